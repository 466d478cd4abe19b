"""One line per answered sample, in a JSONL file that survives a kill at any moment."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path

from sf.errors import DataError

__all__ = ["Record", "RecordLog"]


@dataclass(frozen=True)
class Record:
    """One reply and what it cost.

    Attributes:
        task: lmms-eval's task name.
        doc_id: the row's number in the evaluated split.
        source: digest of the prompt, the media and the generation limit; a record answers only
            the very same question.
        reply: decoded completion without special tokens.
        token_ratio: kept / prompt tokens, mean over layers, in (0, 1]; 1 for dense attention.
        layer_ratios: the same per layer.
        prompt_tokens: valid prompt tokens, visual ones included.
        new_tokens: generated tokens, the end token included.
        kv_bytes: keys and values of the prompt that stay in the cache, all layers.
        seconds: this sample's share of its batch's wall time (encoding, prefill, decoding).
        batch: samples in the batch.
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


class RecordLog:
    """Records in files of one folder; this process appends to its own file only.

    Every process of a data-parallel run reads what all wrote before and writes `rank{N}.jsonl`.
    A last line that a kill cut short is dropped when the file is opened.

    Args:
        folder: where the files lie; created with the first record. None keeps records in memory.
        rank: number of this process.

    Raises:
        DataError: a line other than the last is not a record.
    """

    def __init__(self, folder: Path | None, rank: int = 0) -> None:
        self.path = folder and folder / f"rank{rank}.jsonl"
        self._records: dict[tuple[str, int, str], Record] = {}
        if folder and folder.is_dir():
            for path in sorted(folder.glob("rank*.jsonl")):
                self._read(path)

    @property
    def count(self) -> int:
        """Records that are known."""
        return len(self._records)

    def _read(self, path: Path) -> None:
        lines = path.read_bytes().splitlines(keepends=True)
        whole = 0
        for number, line in enumerate(lines, start=1):
            try:
                fields = json.loads(line)
                fields["layer_ratios"] = tuple(fields["layer_ratios"])
                record = Record(**fields)
            except (ValueError, KeyError, TypeError) as error:
                if number == len(lines):
                    break
                rule = f"is not a record ({error})"
                remedy = "delete the file to answer again"
                raise DataError(f"{path.name} line {number}", line[:80], rule, remedy) from error
            if not line.endswith(b"\n"):
                break
            self._keep(record)
            whole += len(line)
        if path == self.path and whole < path.stat().st_size:
            with path.open("r+b") as file:
                file.truncate(whole)

    def _keep(self, record: Record) -> None:
        self._records[record.task, record.doc_id, record.source] = record

    def get(self, task: str, doc_id: int, source: str) -> Record | None:
        """The record of a sample, if it was answered before."""
        return self._records.get((task, doc_id, source))

    def add(self, records: Iterable[Record]) -> None:
        """Append records; they are with the operating system when this returns."""
        fresh = list(records)
        for record in fresh:
            self._keep(record)
        if self.path is None:
            return
        self.path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(json.dumps(asdict(r), ensure_ascii=False) + "\n" for r in fresh)
        with self.path.open("ab") as file:
            file.write(text.encode())
