"""Makes the PyPI torchvision wheel importable with a CPU-only torch wheel.

The wheel's C++ operators are linked against the CUDA build of torch. With a CPU build they fail to
load, and importing torchvision raises "operator torchvision::nms does not exist", because it
registers fake kernels for undeclared operators. Declaring their schemas is enough: this package
never calls them, and the image and video transforms are pure torch. If the operators load, the
shim does nothing.

Remove this module when torchvision publishes CPU wheels on the index that serves torch's, or
guards its fake-kernel registrations (torchvision/_meta_registrations.py) by a check that the
operator exists.

Other programs import torchvision without `sf`, such as lmms-eval's command through transformers.
`make env` therefore calls `install_at_start`, so that every Python process of the environment has
the shim.
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
_libraries: list[object] = []  # keeps them alive: torch drops the schemas of a collected library


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
    """Declares the operators at torchvision's first import, and finds nothing itself."""

    def find_spec(
        self, fullname: str, path: Sequence[str] | None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        if fullname == "torchvision":
            sys.meta_path.remove(self)
            _declare_operators()
        return None


def install() -> None:
    """Have the operators declared before torchvision's first import."""
    if "torchvision" in sys.modules or any(
        isinstance(finder, _BeforeTorchvision) for finder in sys.meta_path
    ):
        return
    sys.meta_path.insert(0, _BeforeTorchvision())


def install_at_start(packages: str = sysconfig.get_path("purelib")) -> Path:
    """Write a `.pth` file, which Python runs at start, to a package folder."""
    file = Path(packages, "sf_torchvision_shim.pth")
    # It does nothing if the package has been removed.
    file.write_text("import importlib.util; importlib.util.find_spec('sf') and __import__('sf')\n")
    return file
