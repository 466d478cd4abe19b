"""Lets the PyPI torchvision wheel import beside a CPU-only torch wheel.

The wheel's C++ operators are linked against the CUDA build of torch. Beside a CPU build they fail
to load, and torchvision then stops at import with "operator torchvision::nms does not exist": it
registers fake kernels for operators that were never declared. Declaring their schemas is enough:
nothing here calls them, and the image and video transforms are pure torch. Where the operators do
load, the shim does nothing.

Remove this module when torchvision publishes CPU wheels on the index that serves torch's, or
guards its fake-kernel registrations (torchvision/_meta_registrations.py) by a check that the
operator exists.

Other programs import torchvision without `sf` (lmms-eval's command does, through transformers).
`make env` therefore calls `install_at_start`, and every Python of the environment has the shim.
"""

from __future__ import annotations

import importlib.abc
import sys
import sysconfig
from collections.abc import Sequence
from importlib.machinery import ModuleSpec
from pathlib import Path
from types import ModuleType

__all__ = ["install", "install_at_start"]

_SCHEMAS = {
    "nms": "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms": "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
}
_libraries: list[object] = []  # torch drops a library's schemas when the object is collected


def _declare_operators() -> None:
    import torch
    from torch import library

    if torch.version.cuda is not None or torch.version.hip is not None:
        return
    for name, schema in _SCHEMAS.items():
        if not hasattr(torch.ops.torchvision, name):
            fragment = library.Library("torchvision", "FRAGMENT")
            fragment.define(schema)
            _libraries.append(fragment)


class _BeforeTorchvision(importlib.abc.MetaPathFinder):
    """Declares the operators when torchvision is first imported, then steps aside."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_operators()
        return None


def install() -> None:
    """Arrange for the operators to be declared before torchvision's first import."""
    if "torchvision" in sys.modules or any(
        isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path
    ):
        return
    sys.meta_path.insert(0, _BeforeTorchvision())


def install_at_start(packages: str = sysconfig.get_path("purelib")) -> Path:
    """Write a `.pth` file, which Python runs when it starts, into a folder of packages."""
    file = Path(packages, "sf_torchvision_shim.pth")
    # Nothing happens where the package has been removed since.
    file.write_text("import importlib.util; importlib.util.find_spec('sf') and __import__('sf')\n")
    return file
