"""Attention methods by name: `with apply_method(model, "fastv", 0.5) as trace:`.

Each method is one file, registered by one line in `registry`. Importing this package loads no
torch.
"""

from sf.baselines.method import Hyperparameter, Method
from sf.baselines.registry import METHODS, TRAINED, build, method_class
from sf.baselines.resolve import apply_method, apply_policy, check_policy, resolve, resolve_point

__all__ = [
    "METHODS",
    "TRAINED",
    "Hyperparameter",
    "Method",
    "apply_method",
    "apply_policy",
    "build",
    "check_policy",
    "method_class",
    "resolve",
    "resolve_point",
]
