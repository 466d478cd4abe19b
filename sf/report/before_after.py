"""The report's first part: the effect of training on the held-out questions."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pandas as pd

from sf.plotting import save
from sf.published import INFERENCE_RETENTION_P
from sf.report.benchmark_tables import NOT_MEASURED, Cell
from sf.report.curve_comparison import Difference, at_matched_ratio, at_retention_p, points_above
from sf.report.curves import curve_picture
from sf.report.overview import verdict_sentence
from sf.report.page import Picture, Section, Table
from sf.report.pictures import accuracy_curve_picture, layers_picture
from sf.report.results import Result, Study
from sf.tables import write_csv

__all__ = ["BeforeAfter", "before_after"]

DENSE = 1.0


@dataclass(frozen=True)
class _Trained:
    """A trained model compared with its base model."""

    model: str
    objective: str
    matched: pd.DataFrame
    fixed: dict[str, Difference] | None
    dense: dict[str, Difference] | None


@dataclass(frozen=True)
class BeforeAfter:
    """The effect of training.

    Attributes:
        verdict: one sentence per trained model.
        picture: of the first base model and the models trained from it.
        sections: the sections of the report.
        figures: metrics by name.
    """

    verdict: list[str]
    picture: Picture | None
    sections: list[Section]
    figures: dict[str, float]


def before_after(study: Study, folder: Path) -> BeforeAfter:
    """Create the report's part about the held-out curves.

    Args:
        study: its results.
        folder: of the report, for figures and `equal_token_ratio.csv`.
    """
    retention_p = _evaluated_retention_p(study)
    comparisons: list[_Trained] = []
    accuracy_curves: list[Picture] = []
    curves: list[Picture] = []
    for model in study.models:
        rows = {
            name: result
            for name in ("base", *study.objectives)
            if (result := study.result("accuracy_curve", model=model, row=name)) is not None
        }
        compared = [_compare(model, name, rows, retention_p) for name in study.objectives]
        trained = [entry for entry in compared if entry is not None]
        comparisons += trained
        if rows:
            accuracy_curves += _accuracy_curve_pictures(model, rows, trained, retention_p, folder)
        curves += _curve_pictures(study, model, rows, folder)
    _write_matched(comparisons, folder)
    whole = [entry for entry in comparisons if entry.fixed is not None]
    first = accuracy_curves[0] if whole and accuracy_curves else None
    sections = [
        Section(
            "In short",
            text=[_headline_text(retention_p)] if comparisons else [],
            notes=[]
            if comparisons
            else ["Not measured: no held-out curve before and after training."],
            tables=[_headline(entry, retention_p) for entry in comparisons],
        ),
        Section(
            "Accuracy at equal token ratio",
            text=[
                "Each point of a trained model is compared with the base model's curve at the same "
                "token ratio (linear interpolation, no extrapolation). Intervals are from a paired "
                "bootstrap over questions."
            ],
            tables=[_matched_table(entry) for entry in comparisons],
            pictures=accuracy_curves[1:] if first is not None else accuracy_curves,
        ),
        Section("Threshold, token ratio and layers", pictures=curves),
    ]
    verdict = [verdict_sentence(e.model, e.objective, retention_p, e.fixed or {}) for e in whole]
    return BeforeAfter(verdict, first, sections, _figures(comparisons))


def _evaluated_retention_p(study: Study) -> float:
    for result in study.everything():
        if result.kind == "evaluate":
            return float(result.parameters["evaluate.retention_p"])
    return INFERENCE_RETENTION_P


def _compare(
    model: str, objective: str, rows: dict[str, Result], retention_p: float
) -> _Trained | None:
    if "base" not in rows or objective not in rows:
        return None
    base, trained = (rows[name].table("answers.parquet") for name in ("base", objective))
    seed = int(rows["base"].parameters["seed"])
    return _Trained(
        model,
        objective,
        at_matched_ratio(base, trained, seed),
        at_retention_p(base, trained, retention_p, seed),
        at_retention_p(base, trained, DENSE, seed),
    )


def _where(result: Result) -> str:
    split, rows = result.parameters["split"], result.table("curve.csv")["samples"].max()
    return f"{result.axes['model']}, {split} split, {rows} questions"


def _accuracy_curve_pictures(
    model: str, rows: dict[str, Result], trained: list[_Trained], retention_p: float, folder: Path
) -> list[Picture]:
    where = _where(next(iter(rows.values())))
    name = f"accuracy_curve_{model}"
    tables = {row: result.table("curve.csv") for row, result in rows.items()}
    matched = {entry.objective: entry.matched for entry in trained}
    save(accuracy_curve_picture(tables, matched, where), folder / "figures", name)
    pictures = [Picture(name, f"{model}: accuracy against token ratio before and after training.")]
    layers = {row: result.table("layers.csv") for row, result in rows.items()}
    fig = layers_picture(layers, retention_p, where)
    if fig is not None:
        save(fig, folder / "figures", f"layers_{model}")
        caption = f"{model}: kept tokens by layer at p = {retention_p:g}."
        pictures.append(Picture(f"layers_{model}", caption))
    return pictures


def _curve_pictures(
    study: Study, model: str, rows: dict[str, Result], folder: Path
) -> list[Picture]:
    pictures = []
    calibration = study.result("calibrate", model=model)
    sets = []
    if calibration is not None:
        sets.append(("calibration", {"base": calibration}))
    if rows:
        sets.append(("heldout", rows))
    for split, results in sets:
        tables = {row: result.table("curve.csv") for row, result in results.items()}
        name = f"curve_{split}_{model}"
        where = _where(next(iter(results.values())))
        save(curve_picture(tables, where), folder / "figures", name)
        pictures.append(
            Picture(name, f"{model}: threshold, token ratio, accuracy ({split} split).")
        )
    return pictures


def _percent(value: float) -> str:
    return f"{100 * value:.1f}"


def _change(name: str, difference: Difference | None) -> list[Cell]:
    if difference is None:
        return [Cell(name), *(Cell(NOT_MEASURED) for _ in range(3))]
    return [
        Cell(name),
        Cell(_percent(difference.before)),
        Cell(_percent(difference.after)),
        Cell(
            f"{100 * difference.change:+.1f}",
            f"{100 * difference.low:+.1f} to {100 * difference.high:+.1f}",
        ),
    ]


def _headline_text(retention_p: float) -> str:
    return (
        "Held-out questions, the base model under top-p sparse attention (ZipVL) before, the "
        "trained model after. The paper's claim is that the token ratio at "
        f"p = {retention_p:g} falls at equal accuracy."
    )


def _headline(entry: _Trained, retention_p: float) -> Table:
    fixed, dense = entry.fixed or {}, entry.dense or {}
    compared = int((entry.matched["verdict"] != "outside").sum())
    above, below = points_above(entry.matched), int((entry.matched["verdict"] == "below").sum())
    rows = [
        _change("accuracy with full attention (%)", dense.get("accuracy")),
        _change(f"accuracy at p = {retention_p:g} (%)", fixed.get("accuracy")),
        _change(f"token ratio at p = {retention_p:g} (%)", fixed.get("token_ratio")),
        [
            Cell("curve points where the trained model is better at equal ratio"),
            Cell(""),
            Cell(f"{above} of {compared}", note="by more than the paired 95 % interval"),
            Cell(f"{below} worse" if below else ""),
        ],
    ]
    return Table(
        name=f"headline_{entry.model}_{entry.objective}",
        caption=f"{entry.model}, {entry.objective}",
        header=["held-out questions", "before", "after", "change"],
        rows=rows,
    )


def _matched_table(entry: _Trained) -> Table:
    rows = []
    for line in entry.matched.to_dict("records"):
        outside = line["verdict"] == "outside"
        rows.append(
            [
                Cell(f"{line['retention_p']:g}"),
                Cell(_percent(line["token_ratio"])),
                Cell(_percent(line["accuracy"])),
                Cell("outside the base curve" if outside else _percent(line["base_accuracy"])),
                Cell("")
                if outside
                else Cell(
                    f"{100 * line['difference']:+.1f}",
                    f"{100 * line['low']:+.1f} to {100 * line['high']:+.1f}",
                ),
                Cell(str(line["verdict"])),
            ]
        )
    return Table(
        name=f"matched_{entry.model}_{entry.objective}",
        caption=f"{entry.model}, {entry.objective}: accuracy at equal token ratio",
        header=["p", "token ratio (%)", "trained (%)", "base (%)", "difference", "trained is"],
        rows=rows,
    )


def _write_matched(comparisons: list[_Trained], folder: Path) -> None:
    if comparisons:
        parts = [
            entry.matched.assign(model=entry.model, objective=entry.objective)
            for entry in comparisons
        ]
        write_csv(pd.concat(parts), folder / "tables" / "equal_token_ratio.csv")


def _figures(comparisons: list[_Trained]) -> dict[str, float]:
    figures: dict[str, float] = {}
    for entry in comparisons:
        name = f"{entry.model}/{entry.objective}"
        figures[f"{name}/points_above"] = float(points_above(entry.matched))
        for label, group in (("fixed_retention_p", entry.fixed), ("dense", entry.dense)):
            for metric, difference in (group or {}).items():
                if (label, metric) == ("dense", "token_ratio"):
                    continue
                figures[f"{name}/{label}_{metric}_before"] = difference.before
                figures[f"{name}/{label}_{metric}_after"] = difference.after
                figures[f"{name}/{label}_{metric}_change"] = difference.change
    return figures
