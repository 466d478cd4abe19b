"""Running a program on shapes: floating-point tensors without data, integers with their values.

Torch's `FakeTensorMode` gives every operation's shapes and dtypes without memory. A program that
reads values (the tokens of a mask, the rows of a bucket) cannot run under it. Here integers and
booleans have their values, and so have small floating-point tensors that are computed from values
alone. What would follow from weights or pixels is replaced, in one place:

- an integer is 0, a boolean is True (`isfinite` of a loss, a comparison of scores), and the order
  of numbers is that of their positions;
- a number that is read on the host is 0.0.

Everything that decides about sizes and would depend on these is replaced by the caller with what it
states, such as the longest answer.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._python_dispatch import _disable_current_modes
from torch.utils._pytree import tree_flatten, tree_leaves, tree_map_only, tree_unflatten

from sf.rehearsal.live_memory import EachOperator

__all__ = ["shapes_only"]

_SMALL = 1 << 16
"""Elements of a floating-point tensor up to which its value is kept."""
_aten = torch.ops.aten
_BY_VALUE = {
    _aten.nonzero.default,
    _aten.masked_select.default,
    _aten._unique2.default,
    _aten.unique_dim.default,
    _aten.unique_consecutive.default,
    _aten.repeat_interleave.Tensor,
    _aten.bincount.default,
    _aten.equal.default,
}
"""Operators whose result has a shape that depends on values, or is no tensor."""
_ORDERS = {_aten.sort.default, _aten.sort.stable, _aten.topk.default}
"""Operators that give values and their indices."""


@contextmanager
def shapes_only() -> Iterator[FakeTensorMode]:
    """Run everything inside on shapes; new tensors have no memory but those with values."""
    fake = FakeTensorMode(allow_non_fake_inputs=True)
    with (
        fake,
        _Values(fake),
        patch.object(FakeTensor, "tolist", _read("tolist")),
        patch.object(FakeTensor, "numpy", _read("numpy")),
        patch.object(torch, "tensor", _from_values(torch.tensor)),
        # Everything is on one device; torch cannot swap weights of which it holds gradients.
        patch.object(torch.nn.Module, "to", lambda module, *_, **__: module),
    ):
        yield fake


def _read(method: str) -> Callable[..., Any]:
    """A method of tensors that reads values on the host."""

    def run(tensor: Tensor, **_: Any) -> Any:
        with _disable_current_modes():
            return getattr(_of(tensor), method)()

    return run


def _from_values(make: Callable[..., Tensor]) -> Callable[..., Tensor]:
    """`torch.tensor`, for lists with tensors in them."""

    def run(data: Any, *args: Any, **kwargs: Any) -> Tensor:
        return make(tree_map_only(FakeTensor, _read("tolist"), data), *args, **kwargs)

    return run


def _known(tensor: Tensor) -> Tensor | None:
    """A tensor's value; None if it has none."""
    if not isinstance(tensor, FakeTensor):
        return tensor
    value: Tensor | None = getattr(tensor, "known", None)
    return value


def _of(tensor: Tensor) -> Tensor:
    """A tensor's value, or what replaces it."""
    value = _known(tensor)
    if value is not None:
        return value
    with _disable_current_modes():
        return torch.full(tensor.shape, _substitute(tensor), dtype=tensor.dtype)


def _substitute(tensor: Tensor) -> int | bool:
    return tensor.dtype == torch.bool


def _counts(tensor: Tensor) -> bool:
    """Whether a tensor has a value whatever it was computed from."""
    return not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)


class _Values(EachOperator):
    """Computes values beside shapes."""

    def __init__(self, fake: FakeTensorMode) -> None:
        super().__init__()
        self.fake = fake

    def operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        if kwargs.get("device") is not None:  # "cpu:0" is "cpu", which fake tensors do not know
            kwargs = {**kwargs, "device": torch.device("cpu")}
        if func is _aten._local_scalar_dense.default:
            return _read("item")(args[0])
        if func is _aten.exponential_.default:  # torch has no rule for it with a generator
            _replace(args[0], True)
            return args[0]
        if func in (_aten.index.Tensor, _aten.index_put.default, _aten.index_put_.default):
            args = (args[0], [each for at in args[1] for each in self._places(at)], *args[2:])
        given = [each for each in tree_leaves((args, kwargs)) if isinstance(each, Tensor)]
        values = [_known(each) for each in given]
        known = all(value is not None for value in values)
        if func in _BY_VALUE:
            return self._by_value(func, args, kwargs)
        result = func(*args, **kwargs)
        outputs = [each for each in tree_leaves(result) if isinstance(each, Tensor)]
        small = all(_counts(each) or each.numel() <= _SMALL for each in outputs)
        if known and small:
            self._note(outputs, func, args, kwargs)
        else:
            changed = {id(each) for each in given}
            for output in outputs:
                _replace(output, id(output) in changed)
            if func in _ORDERS:
                _order(outputs[1], _argument(func, "dim", args, kwargs))
        return result

    def _note(self, outputs: list[Tensor], func: Any, args: Any, kwargs: Any) -> None:
        with _disable_current_modes():
            inner, named = tree_map_only(Tensor, _of, (args, kwargs))
            values = [
                each for each in tree_leaves(func(*inner, **named)) if isinstance(each, Tensor)
            ]
        for output, value in zip(outputs, values, strict=True):
            if isinstance(output, FakeTensor):
                output.known = value  # type: ignore[attr-defined]

    def _by_value(self, func: Any, args: Any, kwargs: Any) -> Any:
        """The result of values, whose shapes the other tensors take."""
        with _disable_current_modes():
            inner, named = tree_map_only(Tensor, _of, (args, kwargs))
            leaves, form = tree_flatten(func(*inner, **named))
        return tree_unflatten([self._from_value(each) for each in leaves], form)

    def _from_value(self, value: Any) -> Any:
        if not isinstance(value, Tensor):
            return value
        tensor = torch.empty_like(value, device="meta")
        tensor = FakeTensor(self.fake, tensor, torch.device("cpu"))
        if _counts(tensor) or tensor.numel() <= _SMALL:
            tensor.known = value  # type: ignore[attr-defined]
        return tensor

    def _places(self, index: Any) -> list[Any]:
        """A mask as the indices of its true entries: their number is a shape."""
        if index is None or index.dtype not in (torch.bool, torch.uint8):
            return [index]
        with _disable_current_modes():
            columns = _of(index).nonzero().unbind(1)
        return [self._from_value(column) for column in columns]


def _argument(func: Any, name: str, args: Any, kwargs: Any) -> Any:
    """An operator's argument, or its default."""
    places = {each.name: at for at, each in enumerate(func._schema.arguments)}
    if name in kwargs:
        return kwargs[name]
    at = places[name]
    return args[at] if at < len(args) else func._schema.arguments[at].default_value


def _order(index: Tensor, dim: int) -> None:
    """Note that an operator's indices are the positions along a dimension."""
    with _disable_current_modes():
        places = torch.arange(index.shape[dim])
        shape = [1] * index.ndim
        shape[dim] = -1
        index.known = places.view(shape).expand(index.shape).clone()  # type: ignore[attr-defined]


def _replace(output: Tensor, changed: bool) -> None:
    """Note the value of a result that does not follow from values.

    Args:
        output: of an operator.
        changed: it is one of the operator's inputs, changed in place.
    """
    if not isinstance(output, FakeTensor):
        return
    before = _known(output)
    if not _counts(output):
        output.known = None  # type: ignore[attr-defined]
        return
    with _disable_current_modes():
        if changed and before is not None:
            before.fill_(_substitute(output))
        else:
            value = torch.tensor(_substitute(output), dtype=output.dtype)
            # A tensor of its own: it may be changed in place.
            output.known = value.expand(output.shape).clone()  # type: ignore[attr-defined]
