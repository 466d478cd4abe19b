"""The effect of training settings, changed one at a time from the scale `compare`.

Each setting is trained from one base model over training seeds and measured on held-out questions
at equal token ratios and on the synthetic benchmarks, because training may damage the format of the
answers. The base model and the rows are those of a finished study (`make study`, `results/mini`);
results are written to `results/settings`. The picture shows the paper's objective against the
number of training steps, with the published range of p and a wide one: each number of steps is a
run of its own with its own learning rate schedule, up to ten times the default's.

    python benchmarks/training_settings.py [--only NAME …] [--seeds 0 1 2] [--json FILE]
    python benchmarks/training_settings.py --finished    # finished results only, no run

Every run is a call of `sf run` with a folder of its own: finished runs are adopted, a killed one
continues, and adding a setting or seeds leaves the others alone. The table names runs that the
trainer's early stopping ended. Not part of `make bench`, because it takes hours.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import sf  # noqa: F401  (before transformers: it lets torchvision import beside a CPU-only torch)

# isort: split
import pandas as pd
from matplotlib.figure import Figure
from table import Row, write_rows

from sf.config import Params
from sf.errors import TrainingCollapse
from sf.evaluation.benchmarks import suite
from sf.jobs import run_stage
from sf.layout import STAMP, folder
from sf.plotting import figure, in_style, look, marks, note, save
from sf.provenance import ROOT
from sf.report.across_seeds import across_seeds
from sf.report.published import average
from sf.scales import scale_values
from sf.tables import rows_at
from sf.validation import merged, validated

MODEL = "tiny-qwen2.5-vl"
RESULTS = Path("results/settings")
RATIOS = (0.15, 0.25, 0.5)
RATIO, ACCURACY = "ratio at the largest p", "accuracy there"
POINTS = [0.05, 0.15, 0.25, 0.35, 0.5, 0.975]
PAPER = [0.94, 0.945, 0.95, 0.955, 0.96, 0.965, 0.97, 0.975]


@dataclass(frozen=True)
class Setting:
    """One row of the sweep.

    Attributes:
        about: what differs from the default, for the table.
        row: the settings of the row that differ from the default.
        curve: values of `calibrate` that differ: MoBA's and NSA's p is their token ratio.
        series: of the picture, in which the setting is a point at its number of steps.
    """

    about: str
    row: Mapping[str, Any] = field(default_factory=dict)
    curve: Mapping[str, Any] = field(default_factory=dict)
    series: str = ""


def target(token_ratio: float) -> dict[str, Any]:
    """The row of the objective pathwise with a target."""
    term = {"target": {"token_ratio": token_ratio, "dual_rate": 20.0}}
    common = {"lr_schedule": "constant", "short_share": 0.25}
    return {"objective": "pathwise", "pathwise": term, "train": common}


def distilled(measure: str, weight: float) -> dict[str, Any]:
    """The row of the objective distil, as at the scale mini except for the sparsity term."""
    term = {"sparsity_measure": measure, "sparsity_weight": weight, "target_token_ratio": 0.245}
    train = {"steps": 400, "questions_per_step": 48, "learning_rate": 7e-4, "short_share": 0.25}
    common = {"group_size": 1, "retention_p": [0.975], "train": train}
    return {"objective": "distil", **term, **common}


def paper(about: str, steps: int, **row: Any) -> Setting:
    """The paper's objective, trained longer."""
    row["train"] = {"steps": steps}
    return Setting(f"{about}, {steps:,} steps", row, series=about)


WIDE, PUBLISHED = "p in [0.5, 0.975]", "p in [0.94, 0.975]"
SETTINGS: dict[str, Setting] = {
    "default": Setting("the default", series=WIDE),
    "wide_300": paper(WIDE, 300),
    "wide_1000": paper(WIDE, 1000),
    "range_paper": Setting(PUBLISHED, {"retention_p": PAPER}, series=PUBLISHED),
    "paper_300": paper(PUBLISHED, 300, retention_p=PAPER),
    "paper_1000": paper(PUBLISHED, 1000, retention_p=PAPER),
    "range_v1": Setting("p ~ U(0, 1)", {"retention_p": {"low": 0.0, "high": 1.0}}),
    "group_4": Setting(
        "4 rollouts x 16 questions",
        {
            "group_size": 4,
            "retention_p": [0.5, 0.7, 0.9, 0.975],
            "train": {"questions_per_step": 16},
        },
    ),
    "group_16": Setting(
        "16 rollouts x 4 questions", {"group_size": 16, "train": {"questions_per_step": 4}}
    ),
    "beta_0": Setting("beta 0", {"beta": 0.0}),
    "beta_0.3": Setting("beta 0.3", {"beta": 0.3}),
    "beta_1": Setting("beta 1", {"beta": 1.0}),
    "rate_1e-4": Setting("learning rate 1e-4", {"train": {"learning_rate": 1e-4}}),
    "rate_6e-4": Setting("learning rate 6e-4", {"train": {"learning_rate": 6e-4}}),
    "no_gate": Setting("without C", {"reward_gate": False}),
    "short_10": Setting("bare answers in a tenth of the rows", {"train": {"short_share": 0.1}}),
    "short_25": Setting("bare answers in a quarter of the rows", {"train": {"short_share": 0.25}}),
    "short_50": Setting("bare answers in half of the rows", {"train": {"short_share": 0.5}}),
    "target_25": Setting("pathwise, target 25 %", target(0.25)),
    "target_50": Setting("pathwise, target 50 %", target(0.5)),
    "distil_tail": Setting("distil, tail", distilled("tail", 1.0)),
    "distil_effective": Setting("distil, effective", distilled("effective", 6.0)),
    "moba": Setting("MoBA", {"objective": "moba"}, curve={"retention_p": POINTS}),
    "nsa": Setting("NSA", {"objective": "nsa"}, curve={"retention_p": POINTS}),
}


class Sweep:
    """Runs the stages of the settings and reads their results.

    Attributes:
        params: of the scale `compare`, with a row for each setting.
        samples: of each synthetic benchmark.
        only_finished: read finished results and run nothing.
    """

    def __init__(self, study: str, samples: int, only_finished: bool) -> None:
        values = scale_values("compare", ROOT / "params")
        values["objectives"] = {
            name: {"objective": "sparsity_forcing", **setting.row}
            for name, setting in SETTINGS.items()
        }
        self.params = validated(Params, values)
        self.base = folder("base", scale=study, model=MODEL)
        self.data = folder("prepare", scale=study)
        self.home = RESULTS / "benchmarks"
        self.samples, self.only_finished = samples, only_finished

    def sections(self, *names: str, **changes: Any) -> dict[str, Any]:
        """Parameter sections; if `name` is given, with some of its values changed."""
        values = {name: getattr(self.params, name).model_dump(mode="json") for name in names}
        return merged(values, {names[0]: changes})

    def stage(self, name: str, output: Path, **values: Any) -> Path:
        """`sf run NAME`; returns its folder."""
        if not self.only_finished:
            run_stage(name, {**values, "output": output}, "settings")
        return output

    def stand_ins(self) -> None:
        """The synthetic benchmarks, the same for all runs."""
        values = self.sections("benchmarks", suites=["all"], samples=self.samples)
        self.stage("benchmarks", self.home, **values, seed=self.params.seed)

    def measured(
        self, row: str, method: str, checkpoint: Path, into: Path, **curve: Any
    ) -> Measured:
        """The curve on held-out questions and the benchmarks of one checkpoint."""
        common = {"model": MODEL, "row": row, "checkpoint": checkpoint, "data": self.data,
                  "seed": self.params.seed,
                  **self.sections("answering", "vision", "runtime")}  # fmt: skip
        own = self.sections("calibrate", two_turn={"pairs": 0}, **curve)
        points = self.stage("calibrate", into / "accuracy_curve", **common, **own, split="heldout")
        own = {"method": method, "suite": "all", "benchmarks": self.home}
        own |= self.sections("evaluate")
        return Measured.read(points, self.stage("evaluate", into / "evaluate", **common, **own))

    def untrained(self) -> Measured:
        """The base model under ZipVL."""
        return self.measured("base", "zipvl", self.base, RESULTS / "none")

    def trained(self, name: str, seed: int) -> Measured | None:
        """One run; None if the trainer stopped it, or if it is missing and nothing is to be run."""
        setting, into = SETTINGS[name], RESULTS / name / f"seed{seed}"
        if self.only_finished and not (into / "evaluate" / STAMP).is_file():
            return None
        row = self.params.trained[name]
        given = self.sections("answering", "vision", "runtime")
        try:
            model = self.stage(
                "train", into / "train", model=MODEL, row=name, seed=seed, base=self.base,
                data=self.data, **row.model_dump(mode="json"), **given,
            )  # fmt: skip
        except TrainingCollapse as error:
            print(f"{name}, seed {seed}: {error}", file=sys.stderr)
            return None
        return self.measured(name, "trained", model, into, **setting.curve)


@dataclass(frozen=True)
class Measured:
    """The measurements of one checkpoint.

    Attributes:
        answers: to the held-out questions, a line per p and question.
        image, video: averages of the synthetic benchmarks in percent.
        stray: share of their replies that contain a piece of an answer tag, in percent.
    """

    answers: pd.DataFrame
    image: float
    video: float
    stray: float

    @classmethod
    def read(cls, curve: Path, scores: Path) -> Measured:
        """From the folders of two finished stages."""
        table = pd.read_csv(scores / "tables" / "scores.csv").set_index("benchmark")["score"]
        replies = pd.read_json(scores / "samples.jsonl", lines=True)["reply"]
        averages = {
            kind: average(table.to_dict(), list(suite(kind))) for kind in ("image", "video")
        }
        assert averages["image"] is not None
        assert averages["video"] is not None
        return cls(
            pd.read_parquet(curve / "tables" / "answers.parquet"),
            averages["image"],
            averages["video"],
            100 * float(replies.str.contains("answer>", regex=False).mean()),
        )

    def at(self, retention_p: float, column: str) -> float:
        """Mean of a column of the answers at a threshold, in percent."""
        return 100 * float(rows_at(self.answers, "retention_p", retention_p)[column].mean())

    def figures(self) -> dict[str, float]:
        """The columns of the table that need no other checkpoint."""
        measured = self.answers["retention_p"]
        largest = float(measured[measured < 1].max())
        return {
            RATIO: self.at(largest, "token_ratio"),
            ACCURACY: self.at(largest, "correct"),
            "full attention": self.at(1.0, "correct"),
            "image average": self.image,
            "video average": self.video,
            "stray tags": self.stray,
        }


def cell(row: Row) -> str:
    """A cell of the table: mean over training seeds, smallest and largest value."""
    if row.low == row.high:
        return f"{row.value:.1f}"
    return f"{row.value:.1f} ({row.low:.1f} to {row.high:.1f})"


def rows_of(name: str, base: Measured, runs: Sequence[Measured]) -> list[Row]:
    """A setting's figures, without those outside its curve."""
    curves = across_seeds(base.answers, {name: [run.answers for run in runs]}, 0, RATIOS)
    rows = [
        Row(f"{name}: at {100 * line['token_ratio']:g} %",
            *(100 * float(line[column]) for column in ("accuracy", "least", "most")),
            unit="%", better="higher")
        for line in curves[curves["row"] == name].dropna(subset="accuracy").to_dict("records")
    ]  # fmt: skip
    for column in runs[0].figures():
        values = [run.figures()[column] for run in runs]
        better = "lower" if column.startswith(("ratio", "stray")) else "higher"
        mean = sum(values) / len(values)
        rows.append(Row(f"{name}: {column}", mean, min(values), max(values), "%", better=better))
    return rows


@in_style
def against_steps(
    lengths: Mapping[str, Mapping[int, Sequence[Measured]]], base: Measured
) -> Figure:
    """Token ratio and accuracy at the largest p against the steps of training.

    Args:
        lengths: series -> steps -> the models of the seeds.
        base: the model before training, step 0.
    """
    fig, axes = figure(11.0, 4.4, columns=2)
    for series, trained in lengths.items():
        runs = {0: [base], **dict(sorted(trained.items()))}
        for axis, column in zip(axes[0], (RATIO, ACCURACY), strict=True):
            values = [[run.figures()[column] for run in models] for models in runs.values()]
            means = [sum(of_seeds) / len(of_seeds) for of_seeds in values]
            extremes = [min(v) for v in values], [max(v) for v in values]
            marks(axis, list(runs), means, extremes, look(series, list(lengths)), series)
    for axis, name in zip(axes[0], ("Token ratio", "Correct answers"), strict=True):
        axis.set(title=f"{name} at the largest p (%)", xlabel="training steps")
    axes[0][0].legend()
    note(fig, "held-out questions; bars: least and most of the training seeds")
    return fig


def main() -> None:
    """Run what is missing and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--only", nargs="+", choices=[*SETTINGS], default=[*SETTINGS])
    parser.add_argument("--seeds", nargs="+", type=int, default=[0, 1, 2])
    parser.add_argument("--study", default="mini", help="scale whose base model is trained")
    parser.add_argument("--samples", type=int, default=48, help="of each benchmark's stand-in")
    parser.add_argument("--finished", action="store_true", help="run nothing")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--pictures", type=Path, default=RESULTS / "figures", help="folder")
    arguments = parser.parse_args()
    sweep = Sweep(arguments.study, arguments.samples, arguments.finished)
    sweep.stand_ins()
    base = sweep.untrained()
    columns = [*(f"at {100 * ratio:g} %" for ratio in RATIOS), *base.figures()]
    print(f"| setting | seeds | {' | '.join(columns)} |\n|---|---:|{'---:|' * len(columns)}")
    every, lengths = [], dict[str, dict[int, list[Measured]]]()
    for name in ("none", *arguments.only):
        tried = [sweep.trained(name, seed) for seed in arguments.seeds] if name != "none" else []
        runs = [run for run in tried if run is not None] if tried else [base]
        if not runs:
            continue
        rows = rows_of(name, base, runs)
        by_column = {row.name.split(": ", 1)[1]: cell(row) for row in rows}
        about = SETTINGS[name].about if name in SETTINGS else "not trained"
        cells = [about, str(len(runs)) if tried else "", *(by_column.get(c, "") for c in columns)]
        print(f"| {' | '.join(cells)} |", flush=True)
        every += rows
        if name in SETTINGS and SETTINGS[name].series:
            steps = sweep.params.trained[name].train.steps
            lengths.setdefault(SETTINGS[name].series, {})[steps] = runs
    if lengths:
        save(against_steps(lengths, base), arguments.pictures, "training_steps")
    if arguments.json:
        write_rows(arguments.json, every)


if __name__ == "__main__":
    main()
