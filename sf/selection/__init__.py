"""From probe scores to kept tokens: pure functions and small frozen policies.

A new selector is one short file: subclass `Policy`, write `keep`.
"""

from sf.selection.fixed import FixedMask
from sf.selection.layer_shares import LayerShares
from sf.selection.policy import Policy
from sf.selection.probes import Probes, visible_probes
from sf.selection.scores import Scores
from sf.selection.threshold import Threshold
from sf.selection.top_k import TopK
from sf.selection.top_p import TopP

__all__ = [
    "FixedMask",
    "LayerShares",
    "Policy",
    "Probes",
    "Scores",
    "Threshold",
    "TopK",
    "TopP",
    "visible_probes",
]
