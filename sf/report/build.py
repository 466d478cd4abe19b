"""Building the report from the results of a study."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

from sf.plotting import save
from sf.report.across_seeds import across_seeds_section
from sf.report.before_after import before_after
from sf.report.benchmark_sections import benchmark_sections
from sf.report.benchmark_tables import Cell
from sf.report.crate import write_crate
from sf.report.definitions import Targets
from sf.report.gate import stand_ins
from sf.report.gpu_figures import gpu_section, measured_on_gpus
from sf.report.overview import tables_section
from sf.report.page import Page, Picture, Section, Table, write_page
from sf.report.paired import paired_sections
from sf.report.profile_sections import profile_sections
from sf.report.results import Study
from sf.report.results_cards import results_cards
from sf.report.samples import samples_sections
from sf.report.two_turn import two_turn_sections
from sf.training.records import training_picture

__all__ = ["build_report"]


def build_report(
    study: Study, scale: str, folder: Path, targets: Targets | None = None
) -> dict[str, float]:
    """Write the report of a study: tables, figures, `report.md` and `index.html`.

    Args:
        study: its results; missing ones are shown as "not measured".
        scale: its name.
        folder: of the report.
        targets: the tables and figures of the paper that have their own pages.

    Returns:
        The metrics for a summary, by name.
    """
    generated = stand_ins(study)
    changed = before_after(study, folder)
    sections, figures = changed.sections, changed.figures
    benchmarks, overview, averages = benchmark_sections(study, folder, generated)
    sections[0] = replace(sections[0], tables=[*sections[0].tables, overview])
    objectives = across_seeds_section(study, folder)
    sections += [objectives] if objectives is not None else []
    sections += benchmarks
    sections += paired_sections(study, folder) + samples_sections(study, folder)
    sections += results_cards(study, folder)
    sections += two_turn_sections(study)
    sections += _training_sections(study, folder)
    sections += profile_sections(study, folder)
    sections.append(gpu_section(measured_on_gpus(), folder))
    sections.append(_provenance(study))
    lead = [
        f"Scale: {scale}. Base models: {', '.join(study.models)}. Every figure comes from the "
        "stage runs listed at the end; figures in brackets or small print are 95 % intervals.",
    ]
    if generated:
        lead.append(
            "Rows, benchmarks and models of this scale are small and synthetic: they show that the "
            "complete study runs and what each part produces, not the paper's results."
        )
    sections.insert(1, tables_section(study, targets or Targets(), folder))
    title = "Sparsity Forcing (arXiv 2504.18579): the study at a glance"
    write_page(Page(title, lead, sections, changed.verdict, changed.picture), folder)
    write_crate(study, title, folder)
    return {**figures, **averages}


def _training_sections(study: Study, folder: Path) -> list[Section]:
    pictures = []
    for model in study.models:
        for objective in study.objectives:
            result = study.result("train", model=model, objective=objective)
            fig = None
            if result is not None:
                where = f"{model}, {objective}, run {result.run}"
                fig = training_picture(result.history(), where)
            if fig is not None:
                name = f"training_{model}_{objective}"
                save(fig, folder / "figures", name)
                pictures.append(Picture(name, f"{model}: training with {objective}."))
    text = () if pictures else ("Not measured: no training run of this study was found.",)
    return [Section("Training history", text=text, pictures=pictures)]


def _provenance(study: Study) -> Section:
    rows = []
    for result in study.everything():
        host: dict[str, Any] = result.stamp["hardware"]
        versions: dict[str, str] = result.stamp["versions"]
        rows.append(
            [
                Cell(result.kind),
                Cell(", ".join(result.axes.values()) or "all"),
                Cell(result.run, note=str(result.stamp.get("command", ""))),
                Cell(result.commit),
                Cell(f"{result.stamp['seconds']:,.0f}"),
                Cell(f"{host['cpu']}, {host['cores']} cores"),
                Cell(f"torch {versions['torch']}, transformers {versions['transformers']}"),
            ]
        )
    shown = Table(
        name="provenance",
        caption="Stage runs in this report",
        header=["stage", "of", "run", "commit", "seconds", "machine", "versions"],
        rows=rows,
        keys=4,
    )
    text = [
        "A run's name is the start of the hash of its parameters, inputs and code; its stage.json "
        "contains the complete command. A + marks a commit with changed files."
    ]
    missing = study.missing()
    if missing:
        text.append(f"Missing when this was written: {', '.join(missing)}.")
    return Section("Sources of the results", text=text, tables=[shown])
