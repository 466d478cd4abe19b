"""The time to the first token, by part of the model.

Time marks are set by module hooks and around the selection and the cache of `sf.attention`.
"vision" is the vision tower; "attention" is the attention module without projections and selection:
RoPE, gathering and the kernel; "pruning" stores a layer's kept K and V. The cache stores the keys
and values that attention has gathered, so pruning copies nothing (except for a dense layer with
padded rows) and its time is close to zero.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from functools import wraps
from typing import Any

from torch import nn

from sf.attention.cache import PrunedLayer
from sf.attention.forward_state import ForwardState
from sf.profiling.clock import Clock

__all__ = ["PARTS", "Parts", "watched"]

PARTS = ("vision", "projections", "selection", "attention", "pruning", "mlp", "other")


@dataclass
class _Span:
    name: str
    outer: int | None  # index of the enclosing span
    begin: Any
    end: Any = None


class Parts:
    """Time marks of one prefill.

    Args:
        clock: of the device.
    """

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self._spans: list[_Span] = []
        self._open: list[int] = []
        self._hooks: list[Any] = []

    def watch(self, module: nn.Module, name: str) -> None:
        """Time each forward pass of a module under a name."""
        self._hooks += [
            module.register_forward_pre_hook(lambda *_: self.start(name)),
            module.register_forward_hook(lambda *_: self.stop()),
        ]

    def start(self, name: str) -> None:
        """Begin a span; spans nest, and the outer one excludes the time of inner ones."""
        outer = self._open[-1] if self._open else None
        self._open.append(len(self._spans))
        self._spans.append(_Span(name, outer, self.clock.mark()))

    def stop(self) -> None:
        """End the innermost span."""
        self._spans[self._open.pop()].end = self.clock.mark()

    def close(self) -> None:
        """Remove the hooks; may be called repeatedly."""
        for hook in self._hooks:
            hook.remove()
        self._hooks = []

    @property
    def closed(self) -> bool:
        """Whether spans are still being recorded."""
        return not self._hooks

    def milliseconds(self, total: float) -> dict[str, float]:
        """Milliseconds per part, after synchronising the clock.

        Args:
            total: milliseconds of the whole prefill; "other" is the remainder.
        """
        milliseconds = dict.fromkeys(PARTS, 0.0)
        milliseconds["other"] = total
        for span in self._spans:
            spent = self.clock.ms(span.begin, span.end)
            milliseconds[span.name] += spent
            milliseconds["other" if span.outer is None else self._spans[span.outer].name] -= spent
        return milliseconds


@contextmanager
def watched(model: Any, clock: Clock) -> Iterator[Parts]:
    """Record the parts of a model's forward passes until `Parts.close` or the end of the context.

    Args:
        model: its decoder layers must have `self_attn` and `mlp`.
        clock: of its device.
    """
    parts = Parts(clock)
    inner = getattr(model, "model", None)
    for name in ("visual", "vision_tower"):
        tower = getattr(inner, name, None)
        if isinstance(tower, nn.Module):
            parts.watch(tower, "vision")
    for layer in model.get_decoder().layers:
        parts.watch(layer.self_attn, "attention")
        parts.watch(layer.mlp, "mlp")
        for module in layer.self_attn.modules():
            if isinstance(module, nn.Linear):
                parts.watch(module, "projections")
    choose, commit = ForwardState.choose, PrunedLayer.commit
    ForwardState.choose = _timed(choose, parts, "selection")  # type: ignore[method-assign]
    PrunedLayer.commit = _timed(commit, parts, "pruning")  # type: ignore[method-assign]
    try:
        yield parts
    finally:
        ForwardState.choose, PrunedLayer.commit = choose, commit  # type: ignore[method-assign]
        parts.close()


def _timed(function: Callable[..., Any], parts: Parts, name: str) -> Callable[..., Any]:
    @wraps(function)
    def run(*args: Any, **kwargs: Any) -> Any:
        if parts.closed:
            return function(*args, **kwargs)
        parts.start(name)
        try:
            return function(*args, **kwargs)
        finally:
            parts.stop()

    return run
