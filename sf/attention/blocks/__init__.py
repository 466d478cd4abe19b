"""Trained attentions whose queries each read some blocks of keys: MoBA and NSA."""

from sf.attention.blocks.moba import MobaAttention
from sf.attention.blocks.nsa import NsaAttention, attach
from sf.attention.blocks.replace import BlockAttention, Replacement

__all__ = [
    "BlockAttention",
    "MobaAttention",
    "NsaAttention",
    "Replacement",
    "attach",
]
