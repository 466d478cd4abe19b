"""How many operations some code asks the device for: each is a launch, which a GPU waits for.

Counted on a CPU through PyTorch's dispatcher and Triton's interpreter. Some operators, such as a
sort, launch several kernels, so that these are lower bounds.
"""

from __future__ import annotations

from contextlib import contextmanager
from unittest.mock import patch

from torch.utils._python_dispatch import TorchDispatchMode, _disable_current_modes
from triton.runtime.interpreter import GridExecutor

ALLOCATES = ("empty", "new_empty", "empty_like", "empty_strided", "detach")


class Launches(TorchDispatchMode):
    """Names of the operations that are neither views nor allocations; those of Triton in `kernels`.

    A kernel of Triton counts once: the interpreter's own operations do not count.
    """

    def __init__(self):
        super().__init__()
        self.names, self.kernels = [], []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func._schema.name.removeprefix("aten::")
        if not func.is_view and name not in ALLOCATES:
            self.names.append(name)
        return func(*args, **(kwargs or {}))


@contextmanager
def launched():
    """Counts what is launched inside."""
    counted, run = Launches(), GridExecutor.__call__

    def call(self, *args, **kwargs):
        counted.kernels.append(self.fn.__name__)
        with _disable_current_modes():
            return run(self, *args, **kwargs)

    with patch.object(GridExecutor, "__call__", call), counted:
        yield counted
