"""Renders `dvc.yaml` from the table of stages: `python -m workflow.dvc_yaml`.

DVC substitutes the names from params.yaml at run time. The first stages write the parameters of
every job and the digest of every stage's code to files, on which the jobs depend.

Five settings of params.yaml are rendered into the file, because DVC cannot express them: whether
the study has benchmarks, its hub sources, the results that a table depends on, rows that some base
models lack and, if `tables` selects some tables, the jobs that these need. `sf use`, `sf plan` and
the stage `resolve` update the file when these settings change.
"""

from __future__ import annotations

import io
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from sf.atomic_files import write_text
from sf.config import Params
from sf.layout import FOLDERS, STAMP
from workflow.code_digests import code_file
from workflow.jobs import JobSpec, command, config_file, jobs, load_params, look_up
from workflow.stages import STAGES, Stage, stages_of
from workflow.targets import asked_jobs

HEADER = "# Rendered from workflow/stages.py by `python -m workflow.dvc_yaml`; do not edit.\n"

RESOLVE = {
    "cmd": "python -m workflow.resolve",
    "deps": [
        "params.yaml",
        *("sf/config.py", "sf/fields.py", "sf/sections.py", "sf/stages", "sf/training"),
        "workflow",
    ],
    "outs": [{FOLDERS["config"].format(scale="${scale}"): {"cache": False, "persist": True}}],
}

CODE = {  # its outputs change only if results can change
    "cmd": "python -m workflow.code_digests",
    "outs": [
        {code_file(run): {"cache": False, "persist": True}}
        for run in dict.fromkeys(stage.run for stage in STAGES)
    ],
    "always_changed": True,
}

REPORT = FOLDERS["report"].format(scale="${scale}")
SHOWN = {  # by `dvc metrics show`, `dvc exp show` and `dvc plots show`
    "metrics": [f"{REPORT}/metrics.json"],
    "plots": [
        f"{REPORT}/figures",
        {
            f"{REPORT}/tables/benchmarks.csv": {
                "x": "title",
                "y": "score",
                "template": "scatter",
                "title": "scores of the benchmarks",
            }
        },
    ],
}


def stage_name(job: JobSpec) -> str:
    """DVC's name of a job."""
    if job.stage.name == "table":
        return job.name
    return f"{job.stage.name}@{_item(job)}" if job.stage.axes else job.stage.name


def _item(job: JobSpec) -> str:
    """DVC's name of a job within its stage."""
    return "-".join(str(job.names[axis]) for axis in job.stage.axes)


def _names(stage: Stage) -> dict[str, str]:
    return {"scale": "${scale}", **{axis: f"${{item.{axis}}}" for axis in stage.axes}}


def _stage(stage: Stage, asked: Sequence[JobSpec], some: bool) -> dict[str, Any]:
    """A stage other than a table.

    Args:
        stage: of the table of stages.
        asked: the jobs of `all`.
        some: include only the combinations of axis values in `asked`.
    """
    names, outputs = _names(stage), {job.stage.output for job in asked}
    deps = [f"{path}/{STAMP}" for path in stage.input_folders(names).values()]
    deps += [_above(kind) for kind in stage.gather if kind in outputs]
    body = _body(stage, names, deps)
    if some and stage.axes:
        own = [job for job in asked if job.stage == stage]
        return {
            "foreach": {_item(job): {axis: job.names[axis] for axis in stage.axes} for job in own},
            "do": body,
        }
    if stage.axes:
        return {"matrix": {a: f"${{{path}}}" for a, path in stage.axes.items()}, **body}
    return body


def _partial(stage: Stage, asked: Sequence[JobSpec], params: Params) -> bool:
    """Whether a base model lacks some of the rows that the axes name."""
    own = sum(job.stage == stage for job in asked)
    return own < math.prod(len(look_up(params, path)) for path in stage.axes.values())


def _body(stage: Stage, names: dict[str, str], deps: list[str]) -> dict[str, Any]:
    # `dvc exp show` and `dvc pull` read the reports of other commits from the cache.
    cached = {} if stage.gather else {"cache": False}
    return {
        "cmd": " ".join([stage.launch, command(stage, names)]).strip(),
        "deps": [config_file(stage, names), code_file(stage.run), *deps],
        "outs": [{stage.output_folder(names): {**cached, "persist": True}}],
    }


def _above(kind: str) -> str:
    """The folder of all results of a kind."""
    return FOLDERS[kind].replace("{scale}", "${scale}").partition("/{")[0]


def _tables(asked: Sequence[JobSpec]) -> dict[str, Any]:
    rendered = {}
    for job in asked:
        if job.stage.name == "table":
            names = {"scale": "${scale}", "target": job.name}
            own = f"results/{job.names['scale']}/"
            deps = [path.replace(own, "results/${scale}/", 1) for path in job.inputs]
            rendered[job.name] = _body(job.stage, names, deps)
    return rendered


def render(params: Params) -> str:
    """The text of `dvc.yaml`.

    Args:
        params: determines the tables, their inputs and, with `tables`, the jobs.
    """
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    stages: dict[str, Any] = {"resolve": RESOLVE, "code": CODE}
    asked, some = asked_jobs(params, jobs(params)), bool(params.tables)
    asked_stages = {job.stage.name for job in asked}
    for stage in stages_of(params):
        if stage.name == "table":
            stages |= _tables(asked)
        elif not some or stage.name in asked_stages:
            stages[stage.name] = _stage(stage, asked, some or _partial(stage, asked, params))
    yaml.dump({"stages": stages, **SHOWN}, stream)
    return HEADER + stream.getvalue()


def write_dvc_yaml(params: Params, root: Path = Path()) -> bool:
    """Update the `dvc.yaml` of a checkout to params.yaml; return whether it changed."""
    path, text = root / "dvc.yaml", render(params)
    if not path.is_file() or path.read_text(encoding="utf-8") == text:
        return False
    write_text(path, text)
    return True


if __name__ == "__main__":
    write_dvc_yaml(load_params(Path("params.yaml")))
