"""The server side of `sf.isolation`: forks a process per shard and detects calls that end it.

It has one thread and loads only what the function needs, so that it can fork safely.
"""

from __future__ import annotations

import os
import pickle
import resource
import select
import signal
import time
import traceback
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn

from sf.isolation import FRAME, Lost

__all__ = ["serve"]

_STDIN, _STDOUT, _STDERR = 0, 1, 2

Call = tuple[int, tuple[Any, ...], float]  # index, arguments, time limit in seconds


class _TimeIsUp(Exception):
    """A process did not answer in time."""


def serve() -> None:
    """Answer shards on the standard streams until they are closed."""
    replies = os.dup(_STDOUT)
    os.dup2(_STDERR, _STDOUT)  # output of a decoder is not a reply
    setup = _receive(_STDIN)
    if setup is None:
        return
    pickled, child_bytes = setup
    function = pickle.loads(pickled)
    while (shard := _receive(_STDIN)) is not None:
        for reply in _replies(function, shard, child_bytes):
            _send(replies, reply)
        _send(replies, None)


def _replies(
    function: Callable[..., Any], shard: Sequence[Call], child_bytes: int
) -> Iterator[tuple[int, Any, str]]:
    """Index, value and traceback of each call.

    If a process ends, its current call is repeated alone in a new process, because an earlier call
    may have corrupted the memory. It is lost only if it fails alone.
    """
    todo = deque(shard)
    alone = False
    while todo:
        batch = [todo[0]] if alone else list(todo)
        child = _Child(function, batch, child_bytes)
        for reply in child.replies():
            todo.popleft()
            yield reply
        if child.failure and len(batch) == 1:
            yield todo.popleft()[0], Lost(child.failure), ""
        alone = bool(child.failure) and len(batch) > 1


class _Child:
    """A forked process that makes a batch of calls.

    Attributes:
        failure: the reason why it ended before its last call returned, or "".
    """

    def __init__(self, function: Callable[..., Any], batch: Sequence[Call], limit: int) -> None:
        self.batch, self.failure = batch, ""
        self._results, write = os.pipe()
        self._pid = os.fork()
        if self._pid == 0:
            os.close(self._results)
            _work(function, batch, write, limit)
        os.close(write)

    def replies(self) -> Iterator[tuple[int, Any, str]]:
        """Its replies, until it ends."""
        ended_early = True
        for _, _, seconds in self.batch:
            try:
                reply = _receive(self._results, time.monotonic() + seconds)
            except _TimeIsUp:
                os.kill(self._pid, signal.SIGKILL)
                self.failure = f"its decoder did not end within {seconds:.0f} s"
                break
            if reply is None:
                break
            yield reply
        else:
            ended_early = False
        os.close(self._results)
        _, status = os.waitpid(self._pid, 0)
        if ended_early and not self.failure:
            self.failure = _why(status)


def _why(status: int) -> str:
    code = os.waitstatus_to_exitcode(status)
    if code == -signal.SIGKILL:
        return "its decoder was killed (SIGKILL), as happens when memory runs out"
    how = f"exit code {code}" if code >= 0 else signal.Signals(-code).name
    return f"its decoder crashed ({how})"


def _work(function: Callable[..., Any], batch: Sequence[Call], write: int, limit: int) -> NoReturn:
    """Run the calls in a forked process."""
    code = 1
    try:
        most = _address_space() + limit
        resource.setrlimit(resource.RLIMIT_AS, (most, most))
        resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
        for index, arguments, _ in batch:
            try:
                reply = index, function(*arguments), ""
            except Exception:  # noqa: BLE001 - the caller raises it
                reply = index, None, traceback.format_exc()
            _send(write, reply)
        code = 0
    finally:
        os._exit(code)


def _address_space() -> int:
    """Bytes of this process's address space; libraries alone can map gigabytes."""
    pages = Path("/proc/self/statm").read_text().split()[0]
    return int(pages) * resource.getpagesize()


def _send(descriptor: int, message: Any) -> None:
    body = pickle.dumps(message)
    data = memoryview(FRAME.pack(len(body)) + body)
    while data:
        data = data[os.write(descriptor, data) :]


def _receive(descriptor: int, deadline: float | None = None) -> Any:
    """The next message; None at the end of the stream.

    Raises:
        _TimeIsUp: the deadline passed.
    """
    head = _read(descriptor, FRAME.size, deadline)
    body = _read(descriptor, FRAME.unpack(head)[0], deadline) if head else b""
    return pickle.loads(body) if body else None


def _read(descriptor: int, count: int, deadline: float | None) -> bytes:
    """Read `count` bytes; empty if the stream ends first."""
    parts = bytearray()
    while len(parts) < count:
        if deadline is not None:
            left = max(0.0, deadline - time.monotonic())
            ready, _, _ = select.select([descriptor, _STDIN], [], [], left)
            if _STDIN in ready:  # the caller sends nothing meanwhile, so it has ended
                os.killpg(0, signal.SIGKILL)  # this process and its child
            if not ready:
                raise _TimeIsUp
        piece = os.read(descriptor, count - len(parts))
        if not piece:
            return b""
        parts += piece
    return bytes(parts)
