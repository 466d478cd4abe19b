"""The model card of trained weights."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from sf.atomic_files import write_text
from sf.attention.trained import TrainedAttention
from sf.escaping import markdown

__all__ = ["usage_of", "write_card"]

USAGE = """Run the weights as they were trained, under {method}{value}, with

```python
from sf.baselines import apply_method
from sf.models import load_model

model = load_model(folder)
with apply_method(model, "trained") as trace:
    output = model.generate(**inputs)
trace.token_ratio
```

The method is recorded in config.json (`trained_attention`) and in `sparsity.json`; without it plain
transformers runs dense attention.
"""


def usage_of(record: TrainedAttention) -> str:
    """Instructions for running a checkpoint with this record."""
    value = "" if record.value is None else f" at {record.value:g}"
    return USAGE.format(method=record.method, value=value)


def write_card(
    folder: Path,
    title: str,
    about: str,
    settings: Mapping[str, Any],
    figures: Mapping[str, float],
    usage: str,
) -> None:
    """A model card: what it is, how to run it, settings, last training figures."""
    lines = [
        "---",
        "library_name: transformers",
        "pipeline_tag: image-text-to-text",
        "tags: [sparsity-forcing, token-sparsity]",
        "---",
        f"# {markdown(title)}",
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
        *[f"| {markdown(name)} | {markdown(str(value))} |" for name, value in settings.items()],
        "",
    ]
    write_text(folder / "README.md", "\n".join(lines))
