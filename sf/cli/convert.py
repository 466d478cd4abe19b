"""The command for checkpoints in another format."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape

from sf.cli.output import stdout

__all__ = ["convert_command"]


def convert_command(
    source: Annotated[
        str, typer.Argument(help="a folder in LLaVA-NeXT's format, or hub:OWNER/NAME@REVISION")
    ],
    target: Annotated[Path, typer.Argument(help="the new folder")],
    vision_tower: Annotated[
        Path | None,
        typer.Option(help="folder with the config.json of another vision tower"),
    ] = None,
) -> None:
    """Convert a checkpoint of LLaVA-NeXT's code (llava_qwen) to transformers' LLaVA-OneVision."""
    from sf.models.convert_llava import convert_llava

    new = convert_llava(source, target, vision_tower)
    stdout.print(escape(f"{'converted' if new else 'was converted already'}: {target}"))
