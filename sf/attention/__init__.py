"""Token-sparse attention for transformers: `with sparsify(model, TopP(p=0.975)) as trace:`."""

from sf.attention.budget import Budget
from sf.attention.cache import PrunedLayer
from sf.attention.sparsify import SparseHandle, sparsify
from sf.attention.trace import Trace

__all__ = ["Budget", "PrunedLayer", "SparseHandle", "Trace", "sparsify"]
