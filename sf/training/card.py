"""What is written beside the trained weights: `sparsity.json` and a model card."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

__all__ = ["REPLACED", "SELECTED", "SPARSITY_FILE", "read_sparsity", "write_card", "write_sparsity"]

SPARSITY_FILE = "sparsity.json"


def write_sparsity(folder: Path, selector: str, level: float | None, provenance: Any) -> None:
    """Note how the weights are meant to be run.

    Args:
        folder: of the checkpoint.
        selector: name of the policy class in `sf.selection`, or of the trained attention.
        level: at inference; of top-p this is p, of a trained attention None.
        provenance: plain values: objective, base, data, parameters, versions.
    """
    note = {"selector": selector, "p": level, "provenance": provenance}
    partial = folder / (SPARSITY_FILE + ".partial")
    partial.write_text(json.dumps(note, indent=2, default=str) + "\n", encoding="utf-8")
    partial.replace(folder / SPARSITY_FILE)


def read_sparsity(folder: Path) -> dict[str, Any]:
    """The note of `write_sparsity`."""
    note: dict[str, Any] = json.loads((folder / SPARSITY_FILE).read_text(encoding="utf-8"))
    return note


SELECTED = """The weights are a plain transformers checkpoint. Run them sparsely with

```python
from sf import TopP, sparsify

with sparsify(model, TopP(p=...)) as trace:  # p from sparsity.json
    output = model.generate(**inputs)
trace.token_ratio
```
"""
REPLACED = """The attention is noted in config.json, with its settings; plain transformers would run
dense attention in its place. Run them with

```python
from sf.baselines import apply_method
from sf.models import load_model

model = load_model(folder)
with apply_method(model, "trained") as trace:
    output = model.generate(**inputs)
trace.token_ratio
```
"""


def write_card(
    folder: Path,
    title: str,
    about: str,
    settings: Mapping[str, Any],
    figures: Mapping[str, float],
    usage: str = SELECTED,
) -> None:
    """A model card: what it is, how to run it, settings, last training figures."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        "tags: [sparsity-forcing, token-sparsity]",
        "---",
        f"# {title}",
        "",
        f"Trained with {about}",
        usage,
        "## Last training figures",
        "",
        "| figure | value |",
        "|---|---|",
        *[f"| {name} | {value:.4g} |" for name, value in figures.items()],
        "",
        "## Settings",
        "",
        "| parameter | value |",
        "|---|---|",
        *[f"| {name} | {value} |" for name, value in settings.items()],
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")
