"""Functions for `tests/test_isolation.py`, in a module that a worker process can import."""

from __future__ import annotations

import os
import time
from pathlib import Path

_seen: list[str] = []


def misbehave(what: str, number: int) -> tuple[int, int]:
    """Misbehave as requested; otherwise return the number and the process's id."""
    _seen.append(what)
    if what == "abort":
        os.abort()
    elif what == "exit":
        os._exit(0)
    elif what == "hang":
        time.sleep(1000)
    elif what == "raise":
        raise LookupError("of no known kind")
    elif what == "allocate":
        bytearray(2**31)
    elif what == "spoil":
        return number, os.getpid()
    elif what == "after spoilt" and "spoil" in _seen:
        os.abort()
    return number, os.getpid()


def hang_forever(marker: str) -> None:
    """Report this process, then hang."""
    Path(marker).write_text(str(os.getpid()))
    time.sleep(1000)


def hang(*_: object) -> None:
    """Never return."""
    time.sleep(1000)
