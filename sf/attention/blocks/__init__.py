"""Trained attentions whose queries each read some blocks of keys: MoBA, NSA and VideoNSA."""

from sf.attention.blocks.moba import MobaAttention
from sf.attention.blocks.nsa import NsaAttention
from sf.attention.blocks.replace import BlockAttention, Replacement, attach
from sf.attention.blocks.videonsa import VideoNsaAttention

__all__ = [
    "BlockAttention",
    "MobaAttention",
    "NsaAttention",
    "Replacement",
    "VideoNsaAttention",
    "attach",
]
