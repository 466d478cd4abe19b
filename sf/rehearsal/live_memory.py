"""Bytes of live tensors, by category and stage.

A tensor's memory counts from the operator that makes it until its storage is freed, as in torch's
allocator. What an operator allocates and frees within itself is not seen. While tensors are
counted, torch adds up gradients into new tensors instead of in place, which can add one gradient of
an activation to the peak of a backward pass.

Categories: logits are tensors whose last dimension is the vocabulary; activations are made by a
forward pass with gradients, temporary tensors by any other; the rest is told with `note`.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import cache, wraps
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor, nn
from torch.distributed.tensor import DTensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

__all__ = [
    "ACTIVATIONS",
    "CATEGORIES",
    "FIXED",
    "GATHERED",
    "GRADIENTS",
    "KV_CACHE",
    "LOGITS",
    "OPTIMISER",
    "TEMPORARY",
    "WEIGHTS",
    "EachOperator",
    "LiveMemory",
    "Peaks",
]

WEIGHTS, GATHERED = "weights", "gathered weights"
GRADIENTS, OPTIMISER = "gradients", "optimiser"
KV_CACHE, LOGITS, ACTIVATIONS, TEMPORARY = "KV cache", "logits", "activations", "temporary"
FIXED = (WEIGHTS, GATHERED, GRADIENTS, OPTIMISER)
"""Independent of the batch."""
CATEGORIES = (*FIXED, KV_CACHE, LOGITS, ACTIVATIONS, TEMPORARY)
Peaks = dict[str, Counter[str]]
"""Stage -> bytes by category at the stage's peak."""


class EachOperator(TorchDispatchMode):
    """Sees all operators: the parts of composite ones, and those on the local parts of DTensors."""

    def operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        """Run an operator."""
        raise NotImplementedError

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:
            return NotImplemented
        kwargs = kwargs or {}
        if _is_composite(func):  # in inference mode, it arrives here in one piece
            with self:
                return func.decompose(*args, **kwargs)
        return self.operator(func, args, kwargs)


@cache
def _is_composite(func: Any) -> bool:
    return func.namespace != "prim" and bool(func._can_decompose())


@dataclass
class _Held:
    """A live storage."""

    bytes: int
    category: str
    watch: Any = field(repr=False)


class LiveMemory(EachOperator):
    """Counts the tensors that are made within `counting`, and those that are told with `note`.

    Args:
        vocabulary: tensors whose last dimension has this size are logits.

    Attributes:
        live: bytes by category, now.
        peaks: stage -> bytes by category at the stage's peak.
    """

    def __init__(self, vocabulary: int) -> None:
        super().__init__()
        self.vocabulary = vocabulary
        self.live: Counter[str] = Counter()
        self.peaks: Peaks = {}
        self._held: dict[int, _Held] = {}
        self._total = 0
        self._stage = ""
        self._category: str | None = None

    # What is counted

    @contextmanager
    def counting(self) -> Iterator[None]:
        """Count what is made inside.

        FSDP frees gathered weights by resizing their storage, which is no operator.
        """
        own = torch.UntypedStorage.resize_

        @wraps(own)
        def resize(storage: Any, size: int) -> Any:
            result = own(storage, size)
            held = self._held.get(storage._cdata)
            if held is not None:
                self._change(held, storage.nbytes())
            return result

        with patch.object(torch.UntypedStorage, "resize_", resize), self:
            yield

    def operator(self, func: Any, args: Any, kwargs: Any) -> Any:
        result = func(*args, **kwargs)
        for each in tree_leaves(result):
            if isinstance(each, Tensor):
                self._count(each)
        return result

    def _count(self, tensor: Tensor) -> None:
        if isinstance(tensor, DTensor):
            tensor = tensor._local_tensor
        storage = tensor.untyped_storage()
        key = storage._cdata
        if key in self._held:
            if self._held[key].bytes != storage.nbytes():
                self._change(self._held[key], storage.nbytes())
            return

        def gone(_: Any) -> None:
            self._change(self._held.pop(key), 0)

        held = _Held(0, self._kind(tensor), weakref.ref(storage, gone))
        self._held[key] = held
        self._change(held, storage.nbytes())

    def _kind(self, tensor: Tensor) -> str:
        if self._category is not None:
            return self._category
        if tensor.ndim and tensor.shape[-1] == self.vocabulary:
            return LOGITS
        in_backward = torch._C._current_graph_task_id() != -1
        return TEMPORARY if in_backward or not torch.is_grad_enabled() else ACTIVATIONS

    def _change(self, held: _Held, size: int) -> None:
        grown, held.bytes = size - held.bytes, size
        self.live[held.category] += grown
        self._total += grown
        if grown > 0 and self._total > self.peaks.get(self._stage, Counter()).total():
            self.peaks[self._stage] = self.live.copy()

    # What is told

    def note(self, category: str, tensors: Iterable[Any]) -> None:
        """Put tensors into a category, and count them if they are not yet."""
        for each in tensors:
            if not isinstance(each, Tensor):
                continue
            self._count(each)
            local = each._local_tensor if isinstance(each, DTensor) else each
            held = self._held[local.untyped_storage()._cdata]
            if held.category != category:
                self.live[held.category] -= held.bytes
                self.live[category] += held.bytes
                held.category = category

    def weights(self, model: nn.Module) -> None:
        """Note a model's weights."""
        self.note(WEIGHTS, [*model.parameters(), *model.buffers()])

    def gradients(self, model: nn.Module) -> None:
        """Note the weights' gradients as they come."""
        for weight in model.parameters():
            if weight.requires_grad:
                weight.register_post_accumulate_grad_hook(lambda p: self.note(GRADIENTS, [p.grad]))

    @contextmanager
    def making(self, category: str) -> Iterator[None]:
        """What is made inside is of this category."""
        before, self._category = self._category, category
        try:
            yield
        finally:
            self._category = before

    @contextmanager
    def stage(self, name: str) -> Iterator[None]:
        """Peaks inside are those of this stage."""
        before, self._stage = self._stage, name
        if self._total > self.peaks.get(name, Counter()).total():
            self.peaks[name] = self.live.copy()
        try:
            yield
        finally:
            self._stage = before

    def staged(self, name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        """The function as a stage."""

        @wraps(function)
        def run(*args: Any, **kwargs: Any) -> Any:
            with self.stage(name):
                return function(*args, **kwargs)

        return run
