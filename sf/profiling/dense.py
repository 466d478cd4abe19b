"""The dense side: the device's fastest dense attention, and a cache that grows in place.

The fastest kernel depends on device, dtype and length, so all available ones are timed on one
layer's attention at the shape of the measurement, and every line of the tables names the kernel.
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
# Messages of PyTorch's dispatcher, cuDNN and flash-attn for unsupported inputs.
_REFUSALS = ("No available kernel", "No viable backend", "cuDNN", "FlashAttention only supports")
_TRIED = 64  # tokens of the call that tests whether a kernel runs on this device


@dataclass(frozen=True)
class KeepAll(Policy):
    """The policy of the dense side: every token in every layer.

    Prefill is then the model's own dense attention, and decoding uses the same growing cache as the
    sparse side. transformers' cache copies itself at every token, at a cost that grows with its
    length; as a baseline, it would attribute the gain of a better cache to sparsity. It is measured
    too, as "transformers", at the shortest length, where its disadvantage is smallest.
    """

    needs_scores: ClassVar[bool] = False
    keeps_all: ClassVar[bool] = True

    def keep(self, scores: Scores, layer: int) -> Tensor:
        """All valid tokens."""
        return scores.valid


@dataclass(frozen=True)
class DensePath:
    """An implementation of dense attention.

    Attributes:
        name: for the tables.
        implementation: its name in transformers.
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
        """Run the model under this attention, keeping every token."""
        with using(model, self.path), sparsify(model, KeepAll()) as trace:
            yield trace


@contextmanager
def using(model: Any, path: DensePath) -> Iterator[None]:
    """Run the model's decoder under another dense attention."""
    decoder = model.get_decoder()
    before = decoder.config._attn_implementation
    decoder.set_attn_implementation(path.implementation)
    try:
        yield
    finally:
        decoder.set_attn_implementation(before)


def candidates() -> list[DensePath]:
    """PyTorch's individual kernels, which it registers, and flash-attn if installed."""
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
    """transformers' SDPA attention with a single kernel, which raises on unsupported inputs."""

    def attend(*args: Any, **kwargs: Any) -> Any:
        with sdpa_kernel(kernel):
            return AttentionInterface()["sdpa"](*args, **kwargs)

    return attend


def fastest(
    model: Any, batch: int, length: int, repeats: int = 3
) -> tuple[DensePath, dict[str, float]]:
    """The fastest dense attention at a prompt's shape.

    Args:
        model: on its device.
        batch, length: rows and tokens of the prompt.
        repeats: of each implementation, interleaved, after one warm-up.

    Returns:
        The implementation, and the median milliseconds of one layer by name. If only one runs, as
        on a CPU, nothing is timed; if none runs, PyTorch chooses.
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
    """Whether an implementation supports this shape on this device."""
    with using(model, path):
        return accepted(_calls(model, [path], batch, length)[path.name], model.device)


def accepted(call: Callable[[], object], device: torch.device) -> bool:
    """Whether a kernel runs: it can lack memory or support for the dtype, device or head size.

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
    """One layer's causal attention by each implementation on the same random tensors, to be called
    in its `using` context."""
    sizes, module = Sizes.of(model), model.get_decoder().layers[0].self_attn
    like = next(module.parameters())

    def part(heads: int) -> Tensor:
        shape = (batch, length, heads, sizes.head)  # with the strides of projections
        return torch.randn(shape, dtype=like.dtype, device=like.device).transpose(1, 2)

    query, key, value = part(sizes.heads), part(sizes.groups), part(sizes.groups)

    def call(path: DensePath) -> Callable[[], Any]:
        run = AttentionInterface()[path.implementation]

        @torch.inference_mode()
        def attend() -> Any:
            return run(module, query, key, value, None, scaling=sizes.head**-0.5)

        return attend

    return {path.name: call(path) for path in paths}
