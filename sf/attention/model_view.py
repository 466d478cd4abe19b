"""Objects that replace parts of a model while another attention is active.

A copy or a pickle of the model (`copy.deepcopy`, `torch.save`) is an independent model with its own
attention: each object here is copied as the original that it replaces.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from copy import deepcopy
from functools import update_wrapper
from inspect import Parameter, signature
from typing import Any

__all__ = ["ConfigView", "Generate", "ModuleForward"]


class ConfigView:
    """A configuration with another attention implementation.

    It replaces the configuration in some modules, so that other models with the same
    configuration object keep their attention. All other attributes are read from and written to
    the configuration itself.
    """

    def __init__(self, config: Any, implementation: str) -> None:
        object.__setattr__(self, "viewed", config)
        object.__setattr__(self, "_attn_implementation", implementation)

    def __getattr__(self, name: str) -> Any:
        return getattr(object.__getattribute__(self, "viewed"), name)

    def __setattr__(self, name: str, value: Any) -> None:
        setattr(self.viewed, name, value)

    @property  # type: ignore[misc]
    def __class__(self) -> Any:
        return type(self.viewed)

    def __deepcopy__(self, memo: dict[int, Any]) -> Any:
        return deepcopy(self.viewed, memo)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return _same, (self.viewed,)


class _Method:
    """Replaces a method of one module instance; other instances are unchanged."""

    def __init__(self, module: Any, name: str) -> None:
        self.module, self.name, self.own = module, name, getattr(module, name)
        update_wrapper(self, self.own)  # type: ignore[arg-type]

    def __reduce_ex__(self, protocol: Any) -> Any:
        return getattr, (self.module, self.name)


class ModuleForward(_Method):
    """Replaces an attention module's forward by `run(module, own, args, kwargs)`."""

    def __init__(self, module: Any, run: Callable[..., Any]) -> None:
        super().__init__(module, "forward")
        self.run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        return self.run(self.module, self.own, args, kwargs)


class Generate(_Method):
    """A model's `generate` that looks at its arguments first.

    Args:
        owner: the model.
        run: called with `generate` itself, its arguments by name, and a call without arguments.
    """

    def __init__(
        self, owner: Any, run: Callable[[Mapping[str, Any], Callable[[], Any]], Any]
    ) -> None:
        super().__init__(owner, "generate")
        self.run = run

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        known = signature(self.own)
        given = dict(known.bind_partial(*args, **kwargs).arguments)
        for name, parameter in known.parameters.items():
            if parameter.kind is Parameter.VAR_KEYWORD:  # whatever a user's own function calls it
                given |= given.pop(name, {})
        return self.run(given, lambda: self.own(*args, **kwargs))


def _same(value: Any) -> Any:
    return value
