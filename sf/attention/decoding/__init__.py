"""Fast decoding: fixed buffers and one fixed step, recorded as a CUDA graph."""

from sf.attention.decoding.buffers import DecodeCache
from sf.attention.decoding.choice import Choice, Greedy, Rules, Sampled
from sf.attention.decoding.generate import Decoded, Prefilled, decode, greedy, prefill
from sf.attention.decoding.loop import Answers, DecodeLoop, Prompts, Waiting

__all__ = [
    "Answers",
    "Choice",
    "DecodeCache",
    "DecodeLoop",
    "Decoded",
    "Greedy",
    "Prefilled",
    "Prompts",
    "Rules",
    "Sampled",
    "Waiting",
    "decode",
    "greedy",
    "prefill",
]
