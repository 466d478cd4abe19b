"""Renders `dvc.yaml` from the table of stages: `python -m workflow.dvc_yaml`.

The file holds no values: DVC fills in the names of params.yaml when it runs, so it follows
`sf use`. Its first stages write the parameters of every job and the digest of every stage's code
into files, on which the jobs depend.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from sf.layout import FOLDERS, STAMP
from workflow.code_digests import code_file
from workflow.jobs import JobSpec, command, config_file
from workflow.stages import STAGES, Stage

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

CODE = {  # takes a second; its outputs change only when a result can
    "cmd": "python -m workflow.code_digests",
    "outs": [
        {code_file(run): {"cache": False, "persist": True}}
        for run in dict.fromkeys(stage.run for stage in STAGES)
    ],
    "always_changed": True,
}


def stage_name(job: JobSpec) -> str:
    """What DVC calls a job."""
    values = "-".join(str(job.names[axis]) for axis in job.stage.axes)
    return f"{job.stage.name}@{values}" if values else job.stage.name


def _names(stage: Stage) -> dict[str, str]:
    return {"scale": "${scale}", **{axis: f"${{item.{axis}}}" for axis in stage.axes}}


def _stage(stage: Stage) -> dict[str, Any]:
    names = _names(stage)
    deps = [config_file(stage, names), code_file(stage.run)]
    deps += [f"{path}/{STAMP}" for path in stage.input_folders(names).values()]
    for kind in stage.gather:
        parts = FOLDERS[kind].format_map({"scale": names["scale"], **_rest(kind)}).split("/*")
        deps.append(parts[0])
    body: dict[str, Any] = {
        "cmd": " ".join([stage.launch, command(stage, names)]).strip(),
        "deps": deps,
        "outs": [{stage.output_folder(names): {"cache": False, "persist": True}}],
    }
    if stage.axes:
        return {"matrix": {a: f"${{{path}}}" for a, path in stage.axes.items()}, **body}
    return body


def _rest(kind: str) -> dict[str, str]:
    return {
        name: "*"
        for name in ("model", "objective", "train_seed", "row", "suite")
        if f"{{{name}}}" in FOLDERS[kind]
    }


def render() -> str:
    """The text of `dvc.yaml`."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    stages = {stage.name: _stage(stage) for stage in STAGES}
    yaml.dump({"stages": {"resolve": RESOLVE, "code": CODE, **stages}}, stream)
    return HEADER + stream.getvalue()


if __name__ == "__main__":
    Path("dvc.yaml").write_text(render(), encoding="utf-8")
