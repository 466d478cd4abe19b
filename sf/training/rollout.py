"""Sampling answers under sparse attention, one retention threshold per rollout.

Shapes: R rollouts, P padded prompt length, C completion length, J layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from transformers import GenerationConfig, LogitsProcessor, LogitsProcessorList
from transformers.generation import StoppingCriteria, StoppingCriteriaList

from sf.attention import Trace, sparsify
from sf.selection import FixedMask
from sf.training.encoding import Prompts, encoder_outputs
from sf.training.padding import length_buckets

__all__ = ["Rollout", "Sampler", "sampling_seeds", "vision_token_ids"]

VISION_TOKENS = (
    "<|image_pad|>",
    "<|video_pad|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|vision_pad|>",
)


def vision_token_ids(tokenizer: Any) -> list[int]:
    """Ids that must not be sampled: as part of a prompt they would announce pixels.

    (TRL suppresses the image token alone.)
    """
    known = tokenizer.get_vocab()
    return [known[token] for token in VISION_TOKENS if token in known]


@dataclass(frozen=True, slots=True)
class Rollout:
    """What one generation call gave and what its training forward needs.

    Attributes:
        prompts: the unique questions.
        owner: (R,) long, the question of each rollout.
        retention_p: (R,) float.
        completion_ids: sampled ids per rollout, the end token included.
        logps: log-probability of each of them at the sampling temperature.
        kept: per layer (R, P) bool, the prompt tokens that the layer attended.
        token_ratio: (R,) kept / valid prompt tokens, mean over layers, in (0, 1].
        layer_ratios: (J, R).
    """

    prompts: Prompts
    owner: torch.Tensor
    retention_p: torch.Tensor
    completion_ids: list[list[int]]
    logps: list[list[float]]
    kept: list[torch.Tensor]
    token_ratio: torch.Tensor
    layer_ratios: torch.Tensor

    def policy(self, rows: torch.Tensor, start: int) -> FixedMask:
        """The recorded choice for `rows`, without the first `start` columns of padding."""
        return FixedMask([layer[rows, start:] for layer in self.kept])

    def figures(self) -> dict[str, torch.Tensor]:
        """(R,) values by the name they are logged under."""
        layers = {f"token_ratio_layer/{at}": own for at, own in enumerate(self.layer_ratios)}
        return {
            "token_ratio": self.token_ratio, "retention_p": self.retention_p.float(), **layers
        }  # fmt: skip

    def facts(self, at: int) -> dict[str, float]:
        """Threshold and token ratio of one rollout."""
        names = ("retention_p", "token_ratio")
        return {name: round(float(self.figures()[name][at]), 6) for name in names}


def sampling_seeds(seed: int, step: int, places: Sequence[int]) -> list[int]:
    """A seed per rollout, from its place in the global batch of its step."""
    return [
        int(np.random.SeedSequence([seed, step, place]).generate_state(1)[0]) for place in places
    ]


class SeededSampling(LogitsProcessor):
    """Makes greedy decoding sample, and notes each sampled token's log-probability.

    The largest of log p + Gumbel noise is a sample of p. Each rollout has noise of its own seed, so
    it does not matter which rank or which batch it is drawn in, nor what was drawn before: another
    number of ranks and a resumed run sample the same answers.

    The log-probability is that of the whole vocabulary at the temperature, which is what the
    training forward computes; forbidden tokens are removed from sampling only. No step's logits
    outlive the step.

    Args:
        temperature: sampling temperature, > 0.
        forbidden: token ids.
        seeds: one per rollout.
        device: of the logits.
    """

    def __init__(
        self, temperature: float, forbidden: Sequence[int], seeds: Sequence[int], device: Any
    ) -> None:
        self.temperature, self.forbidden = temperature, list(forbidden)
        self.generators = [torch.Generator(device).manual_seed(seed) for seed in seeds]
        self.logps: list[torch.Tensor] = []
        self._next = torch.empty(0)

    def __call__(self, input_ids: torch.Tensor, scores: torch.Tensor) -> torch.Tensor:
        """(R, vocabulary) logits in and out."""
        self._next = torch.log_softmax(scores.float() / self.temperature, dim=-1)
        waiting = torch.empty_like(self._next)
        for row, generator in zip(waiting, self.generators, strict=True):
            row.exponential_(generator=generator)
        noisy = self._next - waiting.log()
        noisy[:, self.forbidden] = float("-inf")
        return noisy

    def note(self, sampled: torch.Tensor) -> None:
        """Look up what was sampled from the latest logits: (R,) long."""
        self.logps.append(self._next.gather(1, sampled[:, None]).squeeze(1))


class SampledToken(StoppingCriteria):
    """Tells the recorder each sampled token; never stops. Called once after every token."""

    def __init__(self, recorder: SeededSampling) -> None:
        self.recorder = recorder

    def __call__(self, input_ids: torch.Tensor, scores: Any, **_: Any) -> torch.Tensor:
        """(R, so far) ids in, (R,) False out."""
        self.recorder.note(input_ids[:, -1])
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@dataclass(frozen=True)
class Sampler:
    """Generates rollouts.

    Attributes:
        temperature: sampling temperature.
        max_completion_tokens: generation limit.
        eos_token_ids: ids that end an answer.
        pad_token_id: fills ended rows.
        forbidden: ids that are never sampled.
        make_policy: per-rollout thresholds -> selection policy.
    """

    temperature: float
    max_completion_tokens: int
    eos_token_ids: Sequence[int]
    pad_token_id: int
    forbidden: Sequence[int]
    make_policy: Any

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        prompts: Prompts,
        owner: torch.Tensor,
        retention_p: Sequence[float],
        seeds: Sequence[int],
        bucketed: bool = True,
    ) -> Rollout:
        """Sample one completion per entry of `owner`.

        Args:
            model: the unwrapped policy.
            prompts: unique questions; each one's features are computed or read once.
            owner: (R,) long, the question of each rollout.
            retention_p: R thresholds in (0, 1].
            seeds: R, of each rollout's sampling.
            bucketed: one `generate` call per group of similar prompt lengths instead of one for
                all. Ranks that share a model must not: they need the same number of forwards.
        """
        lengths = prompts.attention_mask.sum(1)[owner].tolist()
        buckets = length_buckets(lengths) if bucketed else [list(range(len(owner)))]
        features = prompts.features(model)
        thresholds = torch.tensor(list(retention_p), dtype=torch.float64)
        layers = model.config.get_text_config().num_hidden_layers
        shape = (len(owner), prompts.input_ids.shape[1])
        kept = [torch.zeros(shape, dtype=torch.bool, device=owner.device) for _ in range(layers)]
        ratios = torch.empty(layers, len(owner), device=owner.device)
        tokens: dict[int, tuple[list[int], list[float]]] = {}
        for bucket in buckets:
            rows = torch.tensor(bucket, device=owner.device)
            start = shape[1] - max(lengths[at] for at in bucket)
            trace, sampled, logps = self._generate(
                model,
                prompts,
                features,
                owner[rows],
                start,
                thresholds[bucket].tolist(),
                [seeds[at] for at in bucket],
            )
            for layer, chosen in zip(kept, trace.kept, strict=True):
                layer[rows, start:] = chosen
            ratios[:, rows] = trace.layer_ratios.float()
            ends = self.lengths(sampled)
            for at, end, ids, row_logps in zip(
                bucket, ends, sampled.tolist(), logps.tolist(), strict=True
            ):
                tokens[at] = ids[:end], row_logps[:end]
        return Rollout(
            prompts=prompts,
            owner=owner,
            retention_p=thresholds.float().to(owner.device),
            completion_ids=[tokens[at][0] for at in range(len(owner))],
            logps=[tokens[at][1] for at in range(len(owner))],
            kept=kept,
            token_ratio=ratios.mean(0),
            layer_ratios=ratios,
        )

    def _generate(
        self,
        model: Any,
        prompts: Prompts,
        features: list[torch.Tensor],
        owner: torch.Tensor,
        start: int,
        retention_p: list[float],
        seeds: list[int],
    ) -> tuple[Trace, torch.Tensor, torch.Tensor]:
        """One `generate` call; `start` columns of padding are cut off the prompts."""
        recorder = SeededSampling(self.temperature, self.forbidden, seeds, owner.device)
        mask = prompts.attention_mask[owner, start:]
        text = (mask.cumsum(-1) - 1).clamp(min=0)
        with sparsify(model, self.make_policy(retention_p)) as trace:
            output = model.generate(
                input_ids=prompts.input_ids[owner, start:],
                attention_mask=mask,
                position_ids=torch.cat([text[None], prompts.positions[:, owner, start:]]),
                mm_encoder_outputs=encoder_outputs(prompts, features, owner),
                generation_config=self.generation_config(),
                logits_processor=LogitsProcessorList([recorder]),
                stopping_criteria=StoppingCriteriaList([SampledToken(recorder)]),
            )
        return trace, output[:, mask.shape[1] :], torch.stack(recorder.logps, dim=1)

    def generation_config(self) -> GenerationConfig:
        """Greedy; the noise makes it plain sampling: no top-k, no nucleus, no penalty."""
        return GenerationConfig(
            max_new_tokens=self.max_completion_tokens,
            do_sample=False,
            eos_token_id=list(self.eos_token_ids),
            pad_token_id=self.pad_token_id,
            disable_compile=True,
        )

    def lengths(self, sampled: torch.Tensor) -> list[int]:
        """Tokens of each row up to and with its first end token.

        Args:
            sampled: (R, C) long.
        """
        ends = torch.isin(sampled, torch.tensor(list(self.eos_token_ids), device=sampled.device))
        width = sampled.shape[1]
        first = torch.where(ends.any(1), ends.int().argmax(1) + 1, torch.tensor(width))
        return first.tolist()
