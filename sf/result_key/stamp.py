"""Reading the records of finished results: `stage.json` and its copy in the work folder."""

from __future__ import annotations

import json
import warnings
from pathlib import Path
from typing import Any

__all__ = ["read_record", "read_stamp"]


def read_record(path: Path) -> dict[str, Any] | None:
    """One of our JSON objects; None if it is missing or, with a warning, damaged."""
    try:
        content = json.loads(path.read_bytes())
    except FileNotFoundError:
        return None
    except (OSError, ValueError) as error:  # ValueError: not JSON, or not text
        _warn(path, f"{type(error).__name__}: {error}" if str(error) else type(error).__name__)
        return None
    if not isinstance(content, dict):
        _warn(path, f"it contains a {type(content).__name__}, not an object")
        return None
    return content


def read_stamp(path: Path) -> dict[str, Any] | None:
    """The record of a finished result: {"key": hash, "files": {name: [size, digest]}, …}.

    A result without a valid record is not valid. None if it is missing or, with a warning, damaged.
    """
    stamp = read_record(path)
    if stamp is None:
        return None
    files = stamp.get("files")
    valid = isinstance(files, dict) and all(_is_entry(entry) for entry in files.values())
    if not valid or not isinstance(stamp.get("key", ""), str):
        _warn(path, "it does not record the key and the files of a result")
        return None
    return stamp


def _is_entry(entry: object) -> bool:
    return (
        isinstance(entry, list)
        and len(entry) == 2
        and isinstance(entry[0], int)
        and isinstance(entry[1], str)
    )


def _warn(path: Path, reason: str) -> None:
    warnings.warn(f"{path} is damaged and was ignored ({reason})", stacklevel=3)
