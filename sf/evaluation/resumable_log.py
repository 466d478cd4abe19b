"""Replies in a JSON Lines file by key, so that a killed run can continue."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any, Generic, TypeVar

from sf.json_lines import append_json_lines, read_json_lines

__all__ = ["Key", "ResumableLog"]

Key = tuple[str | int | float, ...]
Reply = TypeVar("Reply")


class ResumableLog(Generic[Reply]):
    """Replies of one kind, each identified by its question.

    Every process of a data-parallel run reads all files and appends to its own.

    Args:
        kind: dataclass of the replies, with plain values and tuples of them.
        path: the file that this process appends to, created with the first reply. None keeps the
            replies in memory.
        others: files of other processes.

    Raises:
        DataError: a line other than a file's last one is damaged or contains another kind of reply.
    """

    def __init__(
        self, kind: type[Reply], path: Path | None = None, others: Sequence[Path] = ()
    ) -> None:
        self.path = path
        self._kind = kind
        self._replies: dict[Key, Reply] = {}
        existing = [path] if path is not None and path.is_file() else []
        for file in sorted({*existing, *others}):
            for key, reply in read_json_lines(file, self._entry):
                self._replies[key] = reply

    def _entry(self, fields: dict[str, Any]) -> tuple[Key, Reply]:
        key = tuple(fields.pop("key"))
        values = {k: tuple(v) if isinstance(v, list) else v for k, v in fields.items()}
        return key, self._kind(**values)

    def __len__(self) -> int:
        return len(self._replies)

    def get(self, key: Key) -> Reply | None:
        """The reply under a key, if there is one."""
        return self._replies.get(key)

    def add(self, replies: Mapping[Key, Reply]) -> None:
        """Append replies and flush them to the operating system."""
        self._replies.update(replies)
        if self.path is not None:
            lines = ({"key": key, **asdict(reply)} for key, reply in replies.items())  # type: ignore[call-overload]
            append_json_lines(self.path, lines)
