"""Command-line options shared by several commands, as typer annotations."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable
from dataclasses import fields, is_dataclass
from typing import Annotated, Any, get_type_hints

import typer

__all__ = [
    "DEVICE",
    "DTYPE",
    "FPS",
    "MAX_FRAMES",
    "MAX_PIXELS",
    "MODEL",
    "REVISION",
    "from_dataclasses",
]

MODEL = Annotated[str, typer.Option(help="a checkpoint's folder, or OWNER/NAME on the hub")]
REVISION = Annotated[str | None, typer.Option(help="revision of a hub id")]
DEVICE = Annotated[str | None, typer.Option(help="cpu or cuda; by default a GPU if available")]
DTYPE = Annotated[
    str | None, typer.Option(help="float32 (default on a CPU), bfloat16 (on a GPU) or float16")
]
MAX_PIXELS = Annotated[int | None, typer.Option(help="maximum pixels of an image or frame")]
MAX_FRAMES = Annotated[int, typer.Option(help="maximum frames of a video")]
FPS = Annotated[float, typer.Option(help="frames sampled per second")]


def from_dataclasses(command: Callable[..., None]) -> Callable[..., None]:
    """Give a command an option for every field of its dataclass arguments.

    Args:
        command: the fields of its arguments have typer annotations and the options' names.
    """
    signature = inspect.signature(command, eval_str=True)
    classes: dict[str, Any] = {
        name: parameter.annotation
        for name, parameter in signature.parameters.items()
        if is_dataclass(parameter.annotation)
    }
    options: list[inspect.Parameter] = []
    for name, parameter in signature.parameters.items():
        options += _options(classes[name]) if name in classes else [parameter]

    @functools.wraps(command)
    def called(**values: Any) -> None:
        arguments = {
            name: kind(**{field.name: values.pop(field.name) for field in fields(kind)})
            for name, kind in classes.items()
        }
        command(**arguments, **values)

    called.__signature__ = signature.replace(  # type: ignore[attr-defined]
        parameters=[each.replace(kind=inspect.Parameter.KEYWORD_ONLY) for each in options]
    )
    return called


def _options(kind: Any) -> list[inspect.Parameter]:
    hints = get_type_hints(kind, include_extras=True)
    parameters = inspect.signature(kind).parameters.values()
    return [parameter.replace(annotation=hints[parameter.name]) for parameter in parameters]
