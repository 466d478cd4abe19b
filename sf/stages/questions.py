"""Stage `questions` of `sf evaluate`: one checkpoint under several methods on own questions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

from pydantic import Field

from sf.evaluation.own_questions import AttentionSetting
from sf.fields import Fraction, Positive, Section, Seed
from sf.sections import Runtime, Vision

if TYPE_CHECKING:
    from sf.data.manifest import Row
    from sf.jobs import Job


class Parameters(Section):
    """One checkpoint on one table of questions."""

    model: str = Field(description="model name shown on the page")
    settings: list[AttentionSetting] = Field(
        min_length=2, description="methods with their values, starting with full attention"
    )
    seed: Seed = Field(description="seed of the bootstrap intervals")
    batch: Positive = Field(description="questions answered at once")
    max_new_tokens: Positive = Field(description="length limit of a reply")
    prompt_template: Literal["short", "answer", "think_answer"] = Field(
        description="answer format: bare, in <answer> tags, or after reasoning"
    )
    correctness_cutoff: Annotated[float, Field(gt=0, le=1)] = Field(
        description="fractional score from which an answer counts as correct"
    )
    max_reject_share: Fraction = Field(
        description="largest share of rejected rows; more is an error"
    )
    pictures: Annotated[int, Field(ge=0)] = Field(
        description="number of questions whose kept tokens are drawn"
    )
    vision: Vision
    runtime: Runtime
    checkpoint: Path = Field(description="result of the stage base")
    questions: Path = Field(description="JSONL, JSON, CSV or parquet (sf.data.own_rows)")
    media: Path = Field(description="root of relative media paths")
    output: Path = Field(description="results folder")


def inputs(p: Parameters) -> dict[str, Path]:
    """The stage's inputs: checkpoint, questions and those media that are files."""
    from sf.data.collect import collect

    collected = collect([p.questions], p.media)
    media = {row.media: p.media / row.media for row in collected.rows}
    files = {f"media/{name}": path for name, path in media.items() if path.is_file()}
    return {"checkpoint": p.checkpoint, "questions": p.questions, **files}


def run(p: Parameters, job: Job) -> None:
    """Answer all questions under all settings and write tables, figures and a page.

    Writes `index.html` and `report.md`, `tables/summary.csv` (a line per setting),
    `tables/answers.csv` and `.parquet` (a line per setting and question), `tables/rejects.csv` and
    `figures/`. Answers are saved in `job.state`, so a killed run resumes at the next batch.

    Raises:
        ConfigError, UnsupportedModelError: a method does not run on the checkpoint.
        DataError: no questions, or more than `max_reject_share` of them are unusable.
    """
    from sf.ask.question_page import write_question_page
    from sf.evaluation.answer import Answer
    from sf.evaluation.own_questions import answer_table, attentions_of, summary
    from sf.evaluation.resumable_log import ResumableLog
    from sf.models import load_model, load_processor
    from sf.tables import write_csv, write_parquet

    attentions_of(p.checkpoint, p.settings)
    rows = usable_rows(p, job)
    model = load_model(p.checkpoint, dtype=p.runtime.dtype, device=p.runtime.device)
    processor = load_processor(p.checkpoint)
    answers = answer_table(
        model,
        processor,
        rows,
        p.vision,
        p.settings,
        ResumableLog(Answer, job.state / "answers.jsonl"),
        batch=p.batch,
        max_new_tokens=p.max_new_tokens,
        template=p.prompt_template,
        cutoff=p.correctness_cutoff,
    )
    table = summary(answers, p.seed)
    write_parquet(answers, job.out / "tables" / "answers.parquet")
    write_csv(answers.drop(columns="layer_ratios"), job.out / "tables" / "answers.csv")
    write_csv(table, job.out / "tables" / "summary.csv")
    write_question_page(job.out, p, model, processor, rows, answers, table)
    figures: dict[str, float] = {}
    for line in table.to_dict("records"):
        name = str(line["setting"]).replace(" ", "_")
        figures |= {f"{what}_{name}": float(line[what]) for what in ("accuracy", "token_ratio")}
    job.tracker.summary({"questions": float(len(rows)), **figures})


def usable_rows(p: Parameters, job: Job) -> list[Row]:
    """The questions whose media can be opened, with their facts.

    Raises:
        DataError: see `run`.
    """
    from dataclasses import replace

    from sf.data import preparation
    from sf.data.check import MediaLog
    from sf.data.collect import refuse_many, reject_table
    from sf.tables import write_csv

    source = preparation.open_source(
        str(p.questions),
        preparation.RowSelection((), 0, p.seed),
        0,
        p.vision,
        out=job.out,
        earlier=p.output,
        media=p.media,
    )
    log = MediaLog(job.state / "media.jsonl")
    preparation.use_media(source, [p.vision], log)
    rejects = job.out / "tables" / "rejects.csv"
    write_csv(reject_table(source.collected.rejects), rejects)
    refuse_many(source.collected, p.max_reject_share, rejects, "--max-reject-share")
    root = str(p.media.resolve())
    return [replace(row, data_root=root) for row in source.collected.rows]
