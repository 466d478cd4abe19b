"""Sampling answers under sparse attention, one retention threshold per rollout.

The loss can reuse the forward pass over the prompts (`Sampler(shared=True)`): while the rollout's
weights equal the weights being trained, the rollout's prefill is the training forward pass over the
prompts, provided that it keeps its graph.

Shapes: R rollouts, P padded prompt length, C completion length, J layers.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import torch
from transformers import Cache

from sf.attention import sparsify
from sf.attention.decoding import DecodeLoop, Prompts, Rules, Sampled, Waiting
from sf.selection import FixedMask
from sf.training.encoding import PromptBatch, encoder_outputs
from sf.training.padding import length_buckets
from sf.training.sampling import Truncation

__all__ = ["PromptPass", "Rollout", "Sampler"]


@dataclass(frozen=True, slots=True)
class PromptPass:
    """Prompts that were run once with their graph kept, for sampling and for the loss.

    Attributes:
        rows: (R,) long, the rollouts that they are of.
        start: columns of padding that were cut off the prompts.
        logits: (R, vocabulary) of each prompt's last token, with a gradient.
        cache: keys and values of what each layer kept, with a gradient; continued once.
        layer_ratios: (J, R).
    """

    rows: torch.Tensor
    start: int
    logits: torch.Tensor
    cache: Cache
    layer_ratios: torch.Tensor


@dataclass(frozen=True, slots=True)
class Rollout:
    """The result of one generation call, with the inputs of its training forward pass.

    Attributes:
        prompts: the unique questions.
        owner: (R,) long, the question of each rollout.
        retention_p: (R,) float.
        completion_ids: sampled ids per rollout, the end token included.
        logps: log-probability of each of them at the sampling temperature.
        kept: per layer (R, P) bool, the prompt tokens that the layer attended.
        token_ratio: (R,) kept / valid prompt tokens, mean over layers, in (0, 1].
        layer_ratios: (J, R).
        passes: of the prompts, if they are shared with the loss, which takes them out.
    """

    prompts: PromptBatch
    owner: torch.Tensor
    retention_p: torch.Tensor
    completion_ids: list[list[int]]
    logps: list[list[float]]
    kept: list[torch.Tensor]
    token_ratio: torch.Tensor
    layer_ratios: torch.Tensor
    passes: list[PromptPass] = field(default_factory=list)

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


@dataclass(frozen=True)
class Sampler:
    """Generates rollouts.

    Attributes:
        temperature: sampling temperature.
        max_completion_tokens: generation limit.
        eos_token_ids: ids that end an answer.
        pad_token_id: fills ended rows.
        forbidden: ids that are never sampled.
        make_policy: `retention_p` of each rollout -> selection policy.
        truncate: what limits sampling besides `forbidden` (`sf.training.sampling.truncations`).
    """

    temperature: float
    max_completion_tokens: int
    eos_token_ids: Sequence[int]
    pad_token_id: int
    forbidden: Sequence[int]
    make_policy: Any
    truncate: Sequence[Truncation] = ()

    @torch.no_grad()
    def __call__(
        self,
        model: Any,
        prompts: PromptBatch,
        owner: torch.Tensor,
        retention_p: Sequence[float],
        seeds: Sequence[int],
        bucketed: bool = True,
        shared: bool = False,
    ) -> Rollout:
        """Sample one completion per entry of `owner`.

        Args:
            model: the unwrapped policy.
            prompts: unique questions; each one's features are computed or read once.
            owner: (R,) long, the question of each rollout.
            retention_p: R thresholds in (0, 1].
            seeds: R, of each rollout's sampling.
            bucketed: prompts of similar length are run together, instead of all. Ranks that share
                a model must not: they need the same number of forwards.
            shared: keep the prompts' graph for the loss, in `Rollout.passes`. It holds the memory
                of a training forward over the prompts until then.
        """
        lengths = prompts.attention_mask.sum(1)[owner].tolist()
        buckets = length_buckets(lengths) if bucketed else [list(range(len(owner)))]
        features = prompts.features(model)
        retention_p_R = torch.tensor(list(retention_p), dtype=torch.float64)
        layers = model.config.get_text_config().num_hidden_layers
        shape = (len(owner), prompts.input_ids.shape[1])
        kept = [torch.zeros(shape, dtype=torch.bool, device=owner.device) for _ in range(layers)]
        ratios = torch.empty(layers, len(owner), device=owner.device)
        passes: list[PromptPass] = []

        def read(bucket: list[int]) -> Prompts:
            rows = torch.tensor(bucket, device=owner.device)
            start = shape[1] - max(lengths[at] for at in bucket)
            policy = self.make_policy(retention_p_R[bucket].tolist())
            with sparsify(model, policy) as trace, torch.set_grad_enabled(shared):
                logits, cache = self._prompt(model, prompts, features, owner[rows], start)
            for layer, chosen in zip(kept, trace.kept, strict=True):
                layer[rows, start:] = chosen
            ratios[:, rows] = trace.layer_ratios.float()
            if shared:
                passes.append(PromptPass(rows, start, logits, cache, trace.layer_ratios))
            return Prompts(
                cache=cache,
                valid=prompts.attention_mask[owner[rows], start:].bool(),
                position=prompts.positions_with(owner[rows], 1)[:, :, -1],
                **self._first(logits.detach(), [seeds[at] for at in bucket]),
                limits=[self.max_completion_tokens] * len(bucket),
                keep=shared,
            )

        rules = Rules(end=tuple(self.eos_token_ids), pad=self.pad_token_id)
        loop = DecodeLoop(model, len(owner), max(1, self.max_completion_tokens - 1), rules)
        answers = loop.answer([Waiting(len(bucket), partial(read, bucket)) for bucket in buckets])
        order = [at for bucket in buckets for at in bucket]
        tokens = [ids for part in answers for ids in part.tokens]
        logps = [values for part in answers for values in part.logps]
        place = sorted(range(len(order)), key=order.__getitem__)
        return Rollout(
            prompts=prompts,
            owner=owner,
            retention_p=retention_p_R.float().to(owner.device),
            completion_ids=[tokens[at] for at in place],
            logps=[logps[at] for at in place],
            kept=kept,
            token_ratio=ratios.mean(0),
            layer_ratios=ratios,
            passes=passes,
        )

    def _prompt(
        self,
        model: Any,
        prompts: PromptBatch,
        features: list[torch.Tensor],
        owner: torch.Tensor,
        start: int,
    ) -> tuple[torch.Tensor, Cache]:
        """The forward over the prompts; `start` columns of padding are cut off them."""
        output = model(
            input_ids=prompts.input_ids[owner, start:],
            attention_mask=prompts.attention_mask[owner, start:],
            position_ids=prompts.position_ids(owner, slice(start, None)),
            mm_encoder_outputs=encoder_outputs(model, prompts, features, owner),
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1], output.past_key_values

    def _first(self, logits: torch.Tensor, seeds: Sequence[int]) -> dict[str, Any]:
        """The first token of each row, and how the others are chosen.

        Unlike `model.generate`, this ignores the checkpoint's generation settings (such as a
        repetition penalty): the policy must be the model alone.
        """
        choice = Sampled(
            self.temperature, self.forbidden, seeds, logits.shape[-1], logits.device, self.truncate
        )
        choice.draw(len(logits))
        token, logp = choice(logits)
        return {"token": token[:, 0], "logp": logp[:, 0], "choice": choice}
