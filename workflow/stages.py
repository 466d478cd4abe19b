"""The table of stages, with the inputs, outputs, axes and parameters of each.

`workflow.jobs` derives the jobs, which `Snakefile` runs; `dvc.yaml` is rendered from the same
table (`python -m workflow.dvc_yaml`). A job gets one file with all values that it uses, so a
changed value changes only the files of the jobs that use it. The code that a stage depends on is
derived from its imports (`sf.result_key.imports`).

Placeholders: `{model}`, `{method}`, `{objective}`, `{train_seed}`, `{suite}` are axis values;
`{scale}` and `{seed}` come from the parameters, `{models}` and `{objectives}` are all names,
`{without}` the rows that a model does not have; `{rows}`, `{suites}`, `{targets}` and `{lacking}`
come from `workflow.targets`.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from types import MappingProxyType

from sf.config import Params
from sf.layout import FOLDERS, TRAINED


@dataclass(frozen=True)
class Stage:
    """One row of the table.

    Attributes:
        name: the rule's name; several rules may run the same `sf` stage.
        run: the stage of `sf run`.
        output: key of `sf.layout.FOLDERS`.
        axes: axis name -> dotted path of a list (or of a mapping, whose keys are used) in params.
        folder_axes: placeholders of `output`, if they differ from the axis names.
        values: parameters with fixed text or placeholders.
        sections: parameter sections of the stage ("FIELD=SECTION" under another name, or a value
            in one of them). "source" is the source of the model; "base" is the model and, if it is
            trained from scratch, its training; "row" is the objective and the settings of the
            trained row.
        inputs: parameter -> (kind, placeholders) of the results that the stage reads.
        gather: kinds of results that are read completely (by the report).
        ranks: whether it can run in several processes, one per GPU.
    """

    name: str
    run: str
    output: str
    axes: Mapping[str, str] = field(default_factory=dict)
    folder_axes: Mapping[str, str] = field(default_factory=dict)
    values: Mapping[str, str] = field(default_factory=dict)
    sections: tuple[str, ...] = ()
    inputs: Mapping[str, tuple[str, Mapping[str, str]]] = field(default_factory=dict)
    gather: tuple[str, ...] = ()
    ranks: bool = False

    @property
    def local(self) -> bool:
        """Whether its jobs run where the study is started, since cluster nodes lack a network."""
        return self.run == "fetch"

    @property
    def launch(self) -> str:
        """The command prefix of a stage that can use GPUs (`workflow.launch`)."""
        return "python -m workflow.launch" if "runtime" in self.sections else ""

    def output_folder(self, names: Mapping[str, str]) -> str:
        placeholders = {**{axis: names[axis] for axis in self.axes}, "scale": names["scale"]}
        for name, text in self.folder_axes.items():
            placeholders[name] = text.format(**names)
        return FOLDERS[self.output].format(**placeholders)

    def input_folders(self, names: Mapping[str, str]) -> dict[str, str]:
        return {
            flag: FOLDERS[kind].format(
                scale=names["scale"], **{key: text.format(**names) for key, text in given.items()}
            )
            for flag, (kind, given) in self.inputs.items()
        }


MODEL = {"model": "base"}
BASE = {"model": "{model}"}
CHECKPOINT = {"model": "{model}", "objective": "{objective}", "train_seed": "{train_seed}"}
OF_BASE = {"checkpoint": ("base", BASE)}
OF_TRAINED = {"checkpoint": ("train", CHECKPOINT)}
DATA: Mapping[str, tuple[str, Mapping[str, str]]] = {"data": ("prepare", {})}
BENCHMARKS: Mapping[str, tuple[str, Mapping[str, str]]] = {"benchmarks": ("benchmarks", {})}
BY_METHOD = {"model": "{model}", "row": "{method}", "method": "{method}", "seed": "{seed}"}
BY_OBJECTIVE = {"model": "{model}", "row": "{objective}", "seed": "{seed}"}
CURVE = ("calibrate", "answering", "vision", "runtime")
EVALUATION = ("evaluate", "answering", "vision=evaluation_vision", "runtime")
TRAINED_AXES = {
    "model": "base",
    "objective": "objectives",
    "train_seed": "axes.seeds",
}

FETCHED: Mapping[str, tuple[str, Mapping[str, str]]] = {
    "rows": ("fetch", {"what": "rows"}),
    "weights": ("fetch", {"what": "base/{model}"}),
    "benchmarks": ("fetch", {"what": "benchmarks"}),
}


def _fetch(
    what: str,
    *sections: str,
    axes: Mapping[str, str] = MappingProxyType({}),
    values: Mapping[str, str] = MappingProxyType({}),
) -> Stage:
    """The stage that fetches one kind of source from a hub."""
    output, folder_axes = FETCHED[what]
    return Stage(
        name=f"fetch_{what}",
        run="fetch",
        output=output,
        axes=axes,
        folder_axes=folder_axes,
        values={"what": what, **values},
        sections=sections,
    )


STAGES = (
    _fetch("benchmarks", "source=benchmarks.source", "suites=benchmarks.suites"),
    _fetch(
        "rows",
        "source=prepare.source",
        "data_sources=prepare.data_sources",
        "sample_rows=prepare.sample_rows",
        values={"seed": "{seed}"},
    ),
    _fetch("weights", "source", axes={"model": "base"}),
    Stage(
        name="benchmarks",
        run="benchmarks",
        output="benchmarks",
        values={"seed": "{seed}"},
        sections=("vision=evaluation_vision", "benchmarks"),
        inputs={"fetched": FETCHED["benchmarks"]},
    ),
    Stage(
        name="prepare",
        run="prepare",
        output="prepare",
        values={"seed": "{seed}"},
        sections=("prepare", "vision", "evaluation_vision"),
        inputs={**BENCHMARKS, "fetched": FETCHED["rows"]},
    ),
    Stage(
        name="base",
        run="base",
        output="base",
        axes={"model": "base"},
        values={"model": "{model}", "seed": "{seed}"},
        sections=("base", "answering", "vision", "runtime"),
        inputs={**DATA, "fetched": FETCHED["weights"]},
    ),
    Stage(
        name="calibrate",
        run="calibrate",
        output="calibrate",
        axes=MODEL,
        values={"model": "{model}", "row": "base", "split": "calibration", "seed": "{seed}"},
        sections=("calibrate", "answering", "vision=evaluation_vision", "runtime"),
        inputs={**OF_BASE, **DATA},
    ),
    Stage(
        name="train",
        run="train",
        output="train",
        axes=TRAINED_AXES,
        values={"model": "{model}", "row": "{objective}", "seed": "{train_seed}"},
        sections=("row", "answering", "vision", "runtime"),
        inputs={"base": ("base", BASE), **DATA},
        ranks=True,
    ),
    Stage(
        name="accuracy_curve_base",
        run="calibrate",
        output="accuracy_curve",
        axes=MODEL,
        folder_axes={"row": "base"},
        values={"model": "{model}", "row": "base", "split": "heldout", "seed": "{seed}"},
        sections=CURVE,
        inputs={**OF_BASE, **DATA},
    ),
    Stage(
        name="accuracy_curve_method",
        run="calibrate",
        output="accuracy_curve",
        axes={"model": "base", "method": "axes.curve_methods"},
        folder_axes={"row": "{method}"},
        values={**BY_METHOD, "split": "heldout"},
        sections=CURVE,
        inputs={**OF_BASE, **DATA},
    ),
    Stage(
        name="accuracy_curve_trained",
        run="calibrate",
        output="accuracy_curve",
        axes=TRAINED_AXES,
        folder_axes={"row": TRAINED},
        values={**BY_OBJECTIVE, "split": "heldout"},
        sections=CURVE,
        inputs={**OF_TRAINED, **DATA},
    ),
    Stage(
        name="evaluate_base",
        run="evaluate",
        output="evaluate",
        axes={"model": "base", "method": "axes.methods", "suite": "benchmarks.suites"},
        folder_axes={"row": "{method}"},
        values={**BY_METHOD, "suite": "{suite}"},
        sections=EVALUATION,
        inputs={**OF_BASE, **BENCHMARKS, **DATA},
        ranks=True,
    ),
    Stage(
        name="evaluate_trained",
        run="evaluate",
        output="evaluate",
        axes={**TRAINED_AXES, "suite": "benchmarks.suites"},
        folder_axes={"row": TRAINED},
        values={**BY_OBJECTIVE, "method": "trained", "suite": "{suite}"},
        sections=EVALUATION,
        inputs={**OF_TRAINED, **BENCHMARKS, **DATA},
        ranks=True,
    ),
    Stage(
        name="profile",
        run="profile",
        output="profile",
        axes=MODEL,
        values={"model": "{model}", "seed": "{seed}"},
        sections=("profile", "runtime"),
        inputs=OF_BASE,
    ),
    Stage(
        name="previews",
        run="previews",
        output="previews",
        axes={"suite": "benchmarks.suites"},
        values={"suite": "{suite}"},
        sections=("vision=evaluation_vision",),
        inputs=BENCHMARKS,
    ),
    Stage(
        name="table",  # `workflow.targets` determines its rows and inputs
        run="table",
        output="table",
        axes={"target": "tables"},
        values={
            "target": "{target}",
            "models": "{models}",
            "without": "{without}",
            "rows": "{rows}",
            "suites": "{suites}",
            "train_seed": "{train_seed}",
            "results": "results/{scale}",
        },
    ),
    Stage(
        name="report",
        run="report",
        output="report",
        values={
            "results": "results/{scale}",
            "scale": "{scale}",
            "models": "{models}",
            "without": "{without}",
            "objectives": "{objectives}",
            "targets": "{targets}",
            "lacking": "{lacking}",
        },
        sections=("axes", "benchmarks"),
        gather=(
            *("calibrate", "train", "accuracy_curve", "evaluate", "profile", "previews", "table"),
        ),
    ),
)


def stages_of(params: Params) -> tuple[Stage, ...]:
    """The table for a study.

    Without suites, no stage uses the benchmarks. Only hub sources are fetched; if only some base
    models are on a hub, the fetch jobs of the others do nothing.
    """
    unread = set()
    if not params.benchmarks.suites:
        unread.add("benchmarks")
    if not params.benchmarks.suites or params.benchmarks.source != "hub":
        unread.add("fetch/benchmarks")
    if not params.prepare.source.startswith("hub:"):
        unread.add("fetch/rows")
    if not any(spec.source.startswith("hub:") for spec in params.base.values()):
        unread.add("fetch/base/{model}")
    return tuple(
        replace(
            stage,
            inputs={
                name: (kind, given)
                for name, (kind, given) in stage.inputs.items()
                if "/".join([kind, *given.values()]) not in unread
            },
        )
        for stage in STAGES
        if "/".join([stage.output, *stage.folder_axes.values()]) not in unread
        and not ("suite" in stage.axes and "benchmarks" in unread)
    )
