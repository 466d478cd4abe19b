"""Decoding at the speed of the device: fixed buffers, one fixed step, a CUDA graph of it."""

from sf.attention.decoding.buffers import DecodeCache
from sf.attention.decoding.generate import Decoded, Prefilled, decode, prefill
from sf.attention.decoding.loop import DecodeLoop
from sf.attention.decoding.step import Rules

__all__ = ["DecodeCache", "DecodeLoop", "Decoded", "Prefilled", "Rules", "decode", "prefill"]
