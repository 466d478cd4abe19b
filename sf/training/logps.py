"""Log-probabilities of given completions: one teacher-forced forward pass under sparse attention.

If the rollout kept its prompts' graph (`PromptPass`), the forward pass covers only the completions
and continues from it; the backward pass covers both.

Shapes: R rollouts (or given answers), P padded prompt length, C completion length.
"""

from __future__ import annotations

from contextlib import AbstractContextManager
from dataclasses import dataclass, field
from typing import Any, Protocol

import torch

from sf.attention import Trace, sparsify
from sf.selection import Policy
from sf.training.encoding import PromptBatch, encoder_outputs
from sf.training.padding import length_buckets
from sf.training.pathwise import Measure, SparsityTerm, effective_ratio
from sf.training.rollout import PromptPass
from sf.training.token_scores import TokenScores, scored, scores_of

__all__ = ["Forced", "PolicyForward"]


class Forced(Protocol):
    """Completions to score, and their selection."""

    @property
    def prompts(self) -> PromptBatch:
        """The unique questions."""
        ...

    @property
    def owner(self) -> torch.Tensor:
        """(R,) long, the question of each completion."""
        ...

    def policy(self, rows: torch.Tensor, start: int) -> Policy:
        """The selection for `rows`, on prompts without their first `start` columns."""
        ...


@dataclass
class PolicyForward:
    """The teacher-forced forward of the policy.

    Attributes:
        model: perhaps wrapped for data parallelism.
        bare: the same, unwrapped.
        forced: the completions; rows are indices into it.
        temperature: of the sampling.
        coefficient: (all R of `forced`,) weight of each rollout's effective ratio in the loss, for
            the pathwise objective (`sf.training.pathwise`).
        shares: (J,) each layer's part of it; needed with `coefficient`.
        measure: what replaces the effective ratio in it.
        bucketed: run prompts of similar length together. Ranks that share a model need the same
            number of forwards, so it is for one process only.
        entropy_gradient: entropies have a gradient, for a loss that rewards them.
        passes: of the prompts; used up by the first forward with a gradient, whose `rows` must then
            be all R.
        measured: per bucket (R,), the term's value, mean over layers.
        ratios: per bucket its rows and their token ratios (J, R).
    """

    model: Any
    bare: Any
    forced: Forced
    temperature: float
    bucketed: bool
    coefficient: torch.Tensor | None = None
    shares: torch.Tensor | None = None
    measure: Measure = effective_ratio
    entropy_gradient: bool = False
    passes: list[PromptPass] = field(default_factory=list)
    measured: list[torch.Tensor] = field(default_factory=list)
    ratios: list[tuple[torch.Tensor, torch.Tensor]] = field(default_factory=list)

    def __call__(
        self, rows: torch.Tensor, input_ids: torch.Tensor, attention_mask: torch.Tensor, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies, both (R, C) float32.

        Args:
            rows: (R,) long.
            input_ids: (R, P + C) long.
            attention_mask: (R, P + C) long.
            width: C.
        """
        parts, places = [], []
        if self.passes and torch.is_grad_enabled():
            place = rows.argsort()
            while self.passes:
                part = self.passes.pop(0)
                at = place[part.rows]
                ids, mask = input_ids[at, -width:], attention_mask[at, part.start :]
                parts.append(self._continue(part, ids, mask))
                places.append(at)
        else:
            lengths = attention_mask[:, :-width].sum(1).tolist()
            for bucket in length_buckets(lengths) if self.bucketed else [list(range(len(rows)))]:
                at = torch.tensor(bucket, device=rows.device)
                start = input_ids.shape[1] - width - max(lengths[i] for i in bucket)
                ids, mask = input_ids[at, start:], attention_mask[at, start:]
                parts.append(self._forward(rows[at], start, ids, mask, width))
                places.append(at)
        back = torch.cat(places).argsort()
        logps, entropies = (torch.cat(pieces)[back] for pieces in zip(*parts, strict=True))
        return logps, entropies

    def _continue(
        self, part: PromptPass, ids: torch.Tensor, mask: torch.Tensor
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One bucket's completions (R, C), after the prompts' shared pass."""
        prompts, owner = self.forced.prompts, self.forced.owner[part.rows]
        width = ids.shape[1]
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": prompts.position_ids(owner, slice(-width, None), width),
            "past_key_values": part.cache,
            "use_cache": True,
        }
        with sparsify(self.bare, self.forced.policy(part.rows, part.start)):
            logps, entropies = self._head(part.rows, inputs, width - 1)
        self.ratios.append((part.rows, part.layer_ratios))
        first = scores_of(
            part.logits[:, None], ids[:, :1], self.temperature,
            entropy_gradient=self.entropy_gradient,
        )  # fmt: skip
        return (
            torch.cat([first.logps, logps], dim=1),
            torch.cat([first.entropies, entropies], dim=1),
        )

    def _forward(
        self, rows: torch.Tensor, start: int, ids: torch.Tensor, mask: torch.Tensor, width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """One bucket; `start` columns of padding are cut off everything."""
        prompts, owner = self.forced.prompts, self.forced.owner[rows]
        features = prompts.features(self.bare)
        inputs = {
            "input_ids": ids,
            "attention_mask": mask,
            "position_ids": prompts.position_ids(owner, slice(start, None), width),
            "mm_encoder_outputs": encoder_outputs(self.bare, prompts, features, owner),
            "use_cache": False,
        }
        policy, term = self.forced.policy(rows, start), None
        if self.coefficient is not None and self.shares is not None and torch.is_grad_enabled():
            term = SparsityTerm(self.coefficient[rows], self.shares, self.measure)
            inputs["sparsity_term"] = term
        # Skipped projections would leave the term out, and probes' queries without a gradient.
        with self._attention(policy, ids.shape[1] - width, term is None) as trace:
            result = self._head(rows, inputs, width)
        if term is not None:
            self.measured.append(term.mean_ratio)
        self.ratios.append((rows, trace.layer_ratios))
        return result

    def _attention(
        self, policy: Policy, prompt_width: int, skip_dropped: bool
    ) -> AbstractContextManager[Trace]:
        """The model's attention during a forward pass."""
        return sparsify(self.bare, policy, prompt_width=prompt_width, skip_dropped=skip_dropped)

    def _head(
        self, rows: torch.Tensor, inputs: dict[str, Any], width: int
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Log-probabilities and entropies of the last `width` tokens; the first has none."""
        scores = self._scores(inputs, width)
        return scores.logps, scores.entropies

    def _scores(self, inputs: dict[str, Any], width: int) -> TokenScores:
        ids = inputs["input_ids"]
        targets = ids[:, ids.shape[1] - width :]
        entropy_gradient = self.entropy_gradient
        with scored(self.bare, targets, self.temperature, entropy_gradient=entropy_gradient):
            return TokenScores.of(self.model(**inputs, logits_to_keep=width + 1))
