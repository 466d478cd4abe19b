"""Renders `dvc.yaml` from the table of stages: `python -m workflow.dvc_yaml`.

The file holds no values: DVC fills in params.yaml's when it runs, so it follows `sf use`.
"""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

from ruamel.yaml import YAML

from sf.layout import FOLDERS, STAMP
from workflow.code_digests import code_file
from workflow.jobs import command
from workflow.stages import STAGES, Stage

HEADER = "# Rendered from workflow/stages.py by `python -m workflow.dvc_yaml`; do not edit.\n"


def _names(stage: Stage) -> dict[str, str]:
    names = {"scale": "${scale}", "seed": "${seed}"}
    for axis in stage.axes:
        names[axis] = "${key}" if _foreach(stage) else f"${{item.{axis}}}"
    return names


def _foreach(stage: Stage) -> bool:
    """A stage over the models' own sections: DVC's foreach gives key and section."""
    return "base" in stage.sections


def _stage(stage: Stage) -> dict[str, Any]:
    names = _names(stage)
    sections = {
        section: "${item}" if section == "base" else f"${{{section}}}" for section in stage.sections
    }
    deps = [code_file(stage.run)]
    deps += [f"{path}/{STAMP}" for path in stage.input_folders(names).values()]
    for kind in stage.gather:
        parts = FOLDERS[kind].format_map({"scale": names["scale"], **_rest(kind)}).split("/*")
        deps.append(parts[0])
    body: dict[str, Any] = {
        "cmd": " ".join([stage.launch, command(stage, names, sections)]).strip(),
        "deps": deps,
        "outs": [{stage.output_folder(names): {"cache": False, "persist": True}}],
    }
    if _foreach(stage):
        return {"foreach": "${base}", "do": body}
    if stage.axes:
        return {"matrix": {a: f"${{{path}}}" for a, path in stage.axes.items()}, **body}
    return body


def _code_stage() -> dict[str, Any]:
    """Runs every time, takes a second; its outputs change only when a result can change."""
    runs = dict.fromkeys(stage.run for stage in STAGES)
    return {
        "cmd": "python -m workflow.code_digests",
        "outs": [{code_file(run): {"cache": False, "persist": True}} for run in runs],
        "always_changed": True,
    }


def _rest(kind: str) -> dict[str, str]:
    return {
        name: "*"
        for name in ("model", "objective", "train_seed", "system", "suite")
        if f"{{{name}}}" in FOLDERS[kind]
    }


def render() -> str:
    """The text of `dvc.yaml`."""
    yaml = YAML()
    yaml.width = 4096
    yaml.indent(mapping=2, sequence=4, offset=2)
    stream = io.StringIO()
    stages = {stage.name: _stage(stage) for stage in STAGES}
    yaml.dump({"stages": {"code": _code_stage(), **stages}}, stream)
    return HEADER + stream.getvalue()


if __name__ == "__main__":
    Path("dvc.yaml").write_text(render(), encoding="utf-8")
