"""The dense side: the fastest dense attention that the device has, and a cache that grows in place.

Which kernel is fastest depends on device, dtype and length, so all that run are measured on one
layer's attention at the point's own shape, and every line of the tables says which one it was.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from statistics import median
from typing import Any, ClassVar

import torch
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel
from transformers import AttentionInterface, AttentionMaskInterface
from transformers.utils import is_flash_attn_2_available, is_flash_attn_3_available

from sf.attention import Trace, sparsify
from sf.profiling.clock import Clock
from sf.profiling.memory import is_out_of_memory
from sf.profiling.roofline import Sizes
from sf.selection import Policy, Scores

__all__ = ["Dense", "DensePath", "KeepAll", "accepted", "candidates", "fastest", "using"]

KERNELS = {
    "SDPA flash": SDPBackend.FLASH_ATTENTION,
    "SDPA cuDNN": SDPBackend.CUDNN_ATTENTION,
    "SDPA memory-efficient": SDPBackend.EFFICIENT_ATTENTION,
}
PACKAGES = {
    "flash-attn 2": ("flash_attention_2", is_flash_attn_2_available),
    "flash-attn 3": ("flash_attention_3", is_flash_attn_3_available),
}
# What PyTorch's dispatcher, cuDNN and flash-attn say of inputs that they do not take.
_REFUSALS = ("No available kernel", "No viable backend", "cuDNN", "FlashAttention only supports")
_TRIED = 64  # tokens of the call that finds out whether a kernel runs here at all


@dataclass(frozen=True)
class KeepAll(Policy):
    """The policy of the dense side: every token in every layer.

    Prefill is then the model's own dense attention, untouched, and decoding uses the same cache
    that grows in place as the sparse side does. transformers' own cache copies itself at every
    token, the more the longer it is: as a baseline it would credit sparsity with what is only a
    better cache. It is measured too, as "transformers", at the shortest length, where it loses
    least.
    """

    needs_scores: ClassVar[bool] = False
    keeps_all: ClassVar[bool] = True

    def keep(self, scores: Scores, layer: int) -> Tensor:
        """All valid tokens."""
        return scores.valid


@dataclass(frozen=True)
class DensePath:
    """One way to compute dense attention.

    Attributes:
        name: for the tables.
        implementation: what transformers calls it.
    """

    name: str
    implementation: str


OWN = DensePath("SDPA, PyTorch's choice", "sdpa")


@dataclass(frozen=True)
class Dense:
    """The dense side of a measurement (a `Side` of `sf.profiling.timing`)."""

    path: DensePath = OWN

    @contextmanager
    def apply(self, model: Any) -> Iterator[Trace]:
        """The model under this attention, every token kept."""
        with using(model, self.path), sparsify(model, KeepAll()) as trace:
            yield trace


@contextmanager
def using(model: Any, path: DensePath) -> Iterator[None]:
    """The model's decoder under another dense attention."""
    decoder = model.get_decoder()
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation(path.implementation)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


def candidates() -> list[DensePath]:
    """PyTorch's kernels one by one, and flash-attn where it is installed; registers the former."""
    paths = []
    for name, kernel in KERNELS.items():
        # The word "flash" in a name makes transformers look for a package of that name.
        implementation = f"sf_sdpa_{kernel.value}"
        AttentionInterface.register(implementation, _only(kernel))
        AttentionMaskInterface.register(implementation, AttentionMaskInterface()["sdpa"])
        paths.append(DensePath(name, implementation))
    installed = [
        (name, interface) for name, (interface, is_installed) in PACKAGES.items() if is_installed()
    ]
    return paths + [DensePath(name, interface) for name, interface in installed]


def _only(kernel: SDPBackend) -> Callable[..., Any]:
    """transformers' SDPA attention with one kernel: what that cannot compute raises."""

    def attend(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(kernel):
            return AttentionInterface()["sdpa"](*args, **kwargs)

    return attend


def fastest(
    model: Any, batch: int, length: int, repeats: int = 3
) -> tuple[DensePath, dict[str, float]]:
    """The dense attention that takes the least time at a prompt's shape.

    Args:
        model: on its device.
        batch, length: rows and tokens of the prompt.
        repeats: of each, interleaved, after one that warms up.

    Returns:
        the path, and the median milliseconds of one layer by name of those that were timed. Where
        only one runs (a CPU) nothing is timed; where none does it is PyTorch's choice.
    """
    paths = [path for path in candidates() if _runs(model, path, 1, min(length, _TRIED))]
    if len(paths) > 1:
        paths = [path for path in paths if _runs(model, path, batch, length)]
    if len(paths) < 2:
        return (paths[0] if paths else OWN), {}
    clock, calls = Clock(model.device), _calls(model, paths, batch, length)
    times: dict[str, list[float]] = {path.name: [] for path in paths}
    for repeat in range(repeats):
        for path in paths if repeat % 2 == 0 else reversed(paths):
            with using(model, path):
                clock.synchronize()
                start = clock.mark()
                calls[path.name]()
                end = clock.mark()
                clock.synchronize()
            times[path.name].append(clock.ms(start, end))
    medians = {name: median(taken) for name, taken in times.items()}
    return min(paths, key=lambda path: medians[path.name]), medians


def _runs(model: Any, path: DensePath, batch: int, length: int) -> bool:
    """Whether a path computes this shape here."""
    with using(model, path):
        return accepted(_calls(model, [path], batch, length)[path.name], model.device)


def accepted(call: Callable[[], object], device: torch.device) -> bool:
    """Whether a kernel takes its inputs: some refuse dtypes, devices, head sizes, or lack memory.

    Raises:
        RuntimeError: any other failure.
    """
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a kernel's reasons for refusing
            call()
            Clock(device).synchronize()
    except RuntimeError as error:
        if not is_out_of_memory(error) and not any(text in str(error) for text in _REFUSALS):
            raise
        return False
    return True


def _calls(
    model: Any, paths: list[DensePath], batch: int, length: int
) -> dict[str, Callable[[], Any]]:
    """One layer's causal attention by each path on the same random tensors; to be called `using`
    it."""
    sizes, module = Sizes.of(model), model.get_decoder().layers[0].self_attn
    like = next(module.parameters())

    def part(heads: int) -> Tensor:
        shape = (batch, length, heads, sizes.head)  # the strides that projections give
        return torch.randn(shape, dtype=like.dtype, device=like.device).transpose(1, 2)

    query, key, value = part(sizes.heads), part(sizes.groups), part(sizes.groups)

    def call(path: DensePath) -> Callable[[], Any]:
        run = AttentionInterface()[path.implementation]

        @torch.inference_mode()
        def attend() -> Any:
            return run(module, query, key, value, None, scaling=sizes.head**-0.5)

        return attend

    return {path.name: call(path) for path in paths}
