"""Attention methods by name: `with apply_method(model, "fastv", 0.5) as trace:`.

Each method is one file, registered by one line in `registry`. Importing this package loads no
torch.
"""

from sf.baselines.method import Hyperparameter, Method
from sf.baselines.registry import METHODS, apply_method, build, method_class

__all__ = ["METHODS", "Hyperparameter", "Method", "apply_method", "build", "method_class"]
