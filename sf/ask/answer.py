"""One greedy answer of a loaded model, and its cost."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import StoppingCriteria, StoppingCriteriaList

from sf.ask.media import Media
from sf.attention import Budget, Trace
from sf.attention.visual_tokens import locate, visual_mask
from sf.baselines import apply_policy
from sf.data.vision import encode
from sf.profiling.clock import Clock
from sf.profiling.memory import cache_bytes
from sf.selection import Policy, TopP

if TYPE_CHECKING:
    from matplotlib.figure import Figure

__all__ = ["AskResult", "answer", "overlay"]


@dataclass(frozen=True)
class AskResult:
    """An answer and its cost.

    Attributes:
        reply: without special tokens and control characters.
        cut: whether the reply reached `max_new_tokens` before its end.
        grid: time steps, rows and columns of visual tokens (LLaVA: of the whole image or of each
            frame, see `sf.attention.visual_tokens`).
        prompt_tokens, visual_tokens, completion_tokens: counts.
        kept: bool (layers, *grid), the visual tokens that each layer kept.
        layer_ratios: kept / prompt tokens by layer, in (0, 1]; `visual_ratios` and `text_ratios`
            are the same for the visual tokens and for the other tokens.
        kv_bytes: size of the K and V entries in the cache after the last token.
        kv_allocated_bytes: the same, including space reserved for further tokens.
        dense_kv_bytes: size of the K and V entries if no token were dropped.
        first_token_ms: time of vision tower, prefill and first token, without loading and encoding.
        token_ms: mean time per further token; None for a reply of one token. Both times are from
            this single run, without warm-up.
        retention_p: threshold of top-p; None for another selector or the one that the checkpoint
            was trained with.
        requested_token_ratio: the token ratio for which `retention_p` was chosen; None if
            `retention_p` was given.
    """

    reply: str
    cut: bool
    grid: tuple[int, int, int]
    prompt_tokens: int
    visual_tokens: int
    completion_tokens: int
    kept: NDArray[np.bool_]
    layer_ratios: tuple[float, ...]
    visual_ratios: tuple[float, ...]
    text_ratios: tuple[float, ...]
    kv_bytes: int
    kv_allocated_bytes: int
    dense_kv_bytes: int
    first_token_ms: float
    token_ms: float | None
    retention_p: float | None = None
    requested_token_ratio: float | None = None

    @property
    def token_ratio(self) -> float:
        """Kept / prompt tokens, mean over layers."""
        return float(np.mean(self.layer_ratios))


class _Marks(StoppingCriteria):
    """Records the time of every new token; never stops the generation."""

    def __init__(self, clock: Clock) -> None:
        self.clock = clock
        self.times: list[Any] = []

    def __call__(
        self, input_ids: torch.Tensor, scores: torch.Tensor, **kwargs: Any
    ) -> torch.Tensor:
        self.times.append(self.clock.mark())
        return torch.zeros(input_ids.shape[0], dtype=torch.bool, device=input_ids.device)


@torch.inference_mode()
def answer(
    model: Any,
    processor: Any,
    media: Media,
    question: str,
    policy: Policy | Budget | None = None,
    *,
    max_new_tokens: int = 128,
) -> AskResult:
    """Ask a loaded model, with greedy decoding.

    Args:
        model: from `sf.models.load_model`, in evaluation mode.
        processor: its processor.
        media: from `load_media`.
        question: passed to the model verbatim.
        policy: the selector; by default the one that the checkpoint was trained with, and for a
            base model `TopP(p=0.975)`. A `Budget` selects the checkpoint's p for a share of the
            tokens.
        max_new_tokens: length limit of the reply.

    Raises:
        ConfigError: the checkpoint records no p for the share.
        UnsupportedModelError: the checkpoint was trained with another attention than the policy's.
    """
    requested = policy.token_ratio if isinstance(policy, Budget) else None
    policy = policy.policy(model) if isinstance(policy, Budget) else policy
    turn = {"role": "user", "content": [media.part, {"type": "text", "text": question}]}
    inputs = encode(processor, [[turn]], media.vision, str(model.device))
    clock = Clock(model.device)
    marks = _Marks(clock)
    with apply_policy(model, policy) as trace:
        clock.synchronize()
        start = clock.mark()
        output = model.generate(
            **inputs,
            max_new_tokens=max_new_tokens,
            do_sample=False,
            temperature=None,
            top_p=None,
            top_k=None,
            return_dict_in_generate=True,
            stopping_criteria=StoppingCriteriaList([marks]),
        )
    clock.synchronize()
    reply_ids = output.sequences[0, inputs["input_ids"].shape[1] :]
    times, further = marks.times, len(marks.times) - 1
    reply = processor.decode(reply_ids, skip_special_tokens=True)
    used, dense = _kv_bytes(output.past_key_values)
    return AskResult(
        reply=_printable(reply).strip(),
        cut=len(reply_ids) == max_new_tokens and not _ended(model, reply_ids),
        completion_tokens=len(reply_ids),
        kv_bytes=used,
        kv_allocated_bytes=cache_bytes(output.past_key_values),
        dense_kv_bytes=dense,
        first_token_ms=clock.ms(start, times[0]),
        token_ms=clock.ms(times[0], times[-1]) / further if further else None,
        retention_p=_retention_p(policy),
        requested_token_ratio=requested,
        **_what_was_kept(trace, inputs, model.config),
    )


def _retention_p(policy: Policy | None) -> float | None:
    return policy.p if isinstance(policy, TopP) and isinstance(policy.p, float) else None


def _printable(text: str) -> str:
    """Replace control characters, which a terminal could execute, by U+FFFD; keep line breaks."""
    return "".join(sign if sign.isprintable() or sign == "\n" else "\ufffd" for sign in text)


def _what_was_kept(trace: Trace, inputs: Any, config: Any) -> dict[str, Any]:
    (span,) = locate(inputs, config)
    kept = torch.stack([mask[0].cpu() for mask in trace.kept])
    visual = visual_mask([span], tuple(inputs["input_ids"].shape))[0]
    text = inputs["attention_mask"][0].cpu().bool() & ~visual
    return {
        "grid": span.shape,
        "prompt_tokens": int(trace.prompt_lengths[0]),
        "visual_tokens": int(visual.sum()),
        "kept": span.cells(trace.kept).numpy(),
        "layer_ratios": tuple(trace.layer_ratios[:, 0].tolist()),
        "visual_ratios": tuple(kept[:, visual].double().mean(-1).tolist()),
        "text_ratios": tuple(kept[:, text].double().mean(-1).tolist()),
    }


def _kv_bytes(cache: Any) -> tuple[int, int]:
    """Size in bytes of the entries in use, and of one entry per logical column."""
    used = dense = 0
    for layer in cache.layers:
        for part in (layer.keys, layer.values):
            used += part.numel() * part.element_size()
            dense += part[:, :, :1].numel() * part.element_size() * layer.get_seq_length()
    return used, dense


def _ended(model: Any, reply_ids: torch.Tensor) -> bool:
    ends = model.generation_config.eos_token_id
    ends = ends if isinstance(ends, list) else [ends]
    return int(reply_ids[-1]) in ends


def overlay(result: AskResult, media: Media, question: str = "") -> Figure:
    """A drawing of the kept tokens, with question and reply below."""
    from sf.report.overlay import kept_picture

    caption = "\n".join(part for part in (question, f"reply: {result.reply}") if part)
    return kept_picture(media.frames, result.kept, caption=caption, seconds=media.seconds)
