"""The record of an answered sample."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from sf.evaluation.resumable_log import ResumableLog

__all__ = ["Record", "record_log"]


@dataclass(frozen=True)
class Record:
    """One reply and its cost.

    Attributes:
        task: lmms-eval's task name.
        doc_id: the row's number in the evaluated split.
        source: digest of the prompt, the media and the generation limit; a record answers only
            exactly this question.
        reply: decoded completion without special tokens.
        token_ratio: kept / prompt tokens, mean over layers, in (0, 1]; 1 for dense attention.
        layer_ratios: the same per layer.
        prompt_tokens: valid prompt tokens, visual ones included.
        new_tokens: generated tokens, including the end token.
        kv_bytes: keys and values of the prompt that remain in the cache, over all layers.
        seconds: this sample's share of its batch's wall time (encoding, prefill, decoding).
        batch: samples in the batch.
        kept_cells: of each image and video, the cells that each group of layers kept
            (`sf.evaluation.kept_cells`); empty if every token was kept or no tokens are dropped.
    """

    task: str
    doc_id: int
    source: str
    reply: str
    token_ratio: float
    layer_ratios: tuple[float, ...]
    prompt_tokens: int
    new_tokens: int
    kv_bytes: int
    seconds: float
    batch: int
    kept_cells: tuple[str, ...] = ()


def record_log(folder: Path | None, rank: int = 0) -> ResumableLog[Record]:
    """The records of an evaluation, by task, number of the row and digest of the question.

    Args:
        folder: contains a file per process; None keeps the records in memory.
        rank: number of this process.
    """
    if folder is None:
        return ResumableLog(Record)
    return ResumableLog(Record, folder / f"rank{rank}.jsonl", sorted(folder.glob("rank*.jsonl")))
