"""A cost model of answering with kept tokens only, for the latency part of the reward.

The paper's Table 6 compares a "token + latency" reward with the token reward and gives no formula;
this one is ours. It is computed, not measured: the same kept sets always earn the same reward, on
any machine under any load. It models one 80 GB A100 (the paper's hardware) at its data sheet's
peak in bfloat16:

- prefill, bound by arithmetic: projections and MLP of every prompt token, attention scores and
  outputs among a layer's kept tokens (causal, so half of the square), and its probes' scores;
- decoding, bound by memory: all weights and the pruned cache, read once per token.

The vision tower costs the same with and without sparsity and is left out.

Shapes: R rollouts, J layers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from sf.selection import Probes

__all__ = ["PEAK_BANDWIDTH", "PEAK_FLOPS", "LatencyModel"]

PEAK_FLOPS = 312e12
"""bfloat16 operations per second of an A100."""
PEAK_BANDWIDTH = 2.039e12
"""Bytes per second of an 80 GB A100 (SXM)."""
_BYTES = 2


@dataclass(frozen=True)
class LatencyModel:
    """The sizes of a decoder.

    Attributes:
        num_layers: J.
        layer_weights: parameters of the projections and MLP of one layer.
        head_weights: parameters of the language-model head.
        attention_width: query heads x head size.
        cache_width: key-value heads x head size.
        probes: the queries whose scores selection computes.
    """

    num_layers: int
    layer_weights: int
    head_weights: int
    attention_width: int
    cache_width: int
    probes: Probes = field(default_factory=Probes)

    @classmethod
    def of(cls, model: Any) -> LatencyModel:
        """From a transformers model of Llama's build (Qwen2 and later)."""
        text = model.config.get_text_config()
        hidden, heads = text.hidden_size, text.num_attention_heads
        size = getattr(text, "head_dim", None) or hidden // heads
        cache = text.num_key_value_heads * size
        projections = hidden * (2 * heads * size + 2 * cache)
        return cls(
            num_layers=text.num_hidden_layers,
            layer_weights=projections + 3 * hidden * text.intermediate_size,
            head_weights=hidden * text.vocab_size,
            attention_width=heads * size,
            cache_width=cache,
        )

    def seconds(self, lengths: Tensor, kept: Tensor, completion: Tensor, probed: bool) -> Tensor:
        """Modelled time of prefill and decoding.

        Args:
            lengths: (R,) prompt tokens.
            kept: (J, R) kept prompt tokens.
            completion: (R,) answer tokens.
            probed: whether tokens are selected.

        Returns:
            (R,) float64 seconds.
        """
        lengths, kept, completion = lengths.double(), kept.double(), completion.double()
        dense = 2 * lengths * self.layer_weights * self.num_layers + 2 * self.head_weights
        attention = 4 * self.attention_width * (kept.square() / 2).sum(0)
        if probed:
            asked = lengths.clamp(max=self.probes.recent + self.probes.spread)
            attention = attention + 2 * self.attention_width * asked * lengths * self.num_layers
        prefill = (dense + attention) / PEAK_FLOPS
        weights = self.num_layers * self.layer_weights + self.head_weights
        cached = (kept + completion / 2).sum(0) * 2 * self.cache_width
        return prefill + completion * _BYTES * (weights + cached) / PEAK_BANDWIDTH

    def ratio(self, lengths: Tensor, layer_ratios: Tensor, completion: Tensor) -> Tensor:
        """Time with the kept tokens over time with all, for the same answer length.

        Args:
            lengths: (R,) prompt tokens.
            layer_ratios: (J, R) kept / prompt tokens.
            completion: (R,) answer tokens.

        Returns:
            (R,) float32; above 1 if selection costs more than it saves.
        """
        every = lengths.expand_as(layer_ratios)
        sparse = self.seconds(lengths, layer_ratios.double() * lengths, completion, probed=True)
        return (sparse / self.seconds(lengths, every, completion, probed=False)).float()
