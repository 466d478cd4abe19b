"""Calls that may crash or hang, made in processes of their own.

A decoder of other people's files can end its process (a segmentation fault, an abort, the system's
hunt for memory) or never return. `run_isolated` loses the one call that did this, with the reason,
and goes on. A few servers (`sf.isolation_server`) import the function once and fork a process for
each shard of calls: a fork takes a millisecond, and its memory is given back at the shard's end.
Servers wait for the next calls of the same function; they end with this process.
"""

from __future__ import annotations

import json
import os
import pickle
import selectors
import signal
import struct
import subprocess
import sys
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import IO, Any, ClassVar

from sf.errors import EnvironmentFault

__all__ = ["CHILD_GIB", "FRAME", "Lost", "run_isolated"]

CHILD_GIB = 8.0  # of address space that a call may add: the largest image or frame fits
FRAME = struct.Struct("<I")  # length of the pickled message that follows
_SHARD = 32
_FEWEST = 16  # calls for which a further server is worth its start
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from sf.isolation_server import serve; serve()"
)


@dataclass(frozen=True, slots=True)
class Lost:
    """A call without a result.

    Attributes:
        reason: for a message about the call's input, such as "its decoder crashed (SIGSEGV)".
    """

    reason: str


class _Server:
    """A process that forks one process a shard.

    Args:
        setup: pickled function and limit, the first message to it.
    """

    idle: ClassVar[list[_Server]] = []

    @classmethod
    def take(cls, setup: bytes) -> _Server:
        """One that is idle, or a new one."""
        for server in cls.idle:
            if server.setup == setup:
                cls.idle.remove(server)
                if server.process.poll() is None:
                    return server
                server.close()
                break
        return cls(setup)

    def __init__(self, setup: bytes) -> None:
        self.setup = setup
        threads = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            [sys.executable, "-c", _START, json.dumps(sys.path)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            bufsize=0,  # a selector does not see what a buffer holds
            env=os.environ | threads,
            process_group=0,  # it and what it forked can be killed together; Ctrl-C is ours
        )
        self.send(setup)

    def _pipe(self, name: str) -> IO[bytes]:
        pipe: IO[bytes] | None = getattr(self.process, name)
        assert pipe is not None
        return pipe

    @property
    def replies(self) -> IO[bytes]:
        """What the server says."""
        return self._pipe("stdout")

    def send(self, message: bytes) -> None:
        """Hand a pickled message over."""
        data = memoryview(FRAME.pack(len(message)) + message)
        try:
            while data:
                data = data[self._pipe("stdin").write(data) :]
        except BrokenPipeError as error:
            raise self._ended() from error

    def receive(self) -> Any:
        """The next reply."""
        return pickle.loads(self._read(FRAME.unpack(self._read(FRAME.size))[0]))

    def _read(self, count: int) -> bytes:
        parts = bytearray()
        while len(parts) < count:
            piece = self.replies.read(count - len(parts))
            if not piece:
                raise self._ended()
            parts += piece
        return bytes(parts)

    def _ended(self) -> EnvironmentFault:
        rule = f"ended with code {self.process.wait()}, which no input can cause"
        remedy = "see its message above, free some memory, and give the same command again"
        return EnvironmentFault("worker process", self.process.pid, rule, remedy)

    def close(self) -> None:
        """Kill it and what it forked: all replies that count are here."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        with suppress(BrokenPipeError):
            self._pipe("stdin").close()
        self.replies.close()
        self.process.wait()


def run_isolated(
    function: Callable[..., Any],
    calls: Sequence[tuple[Any, ...]],
    seconds: Sequence[float],
    *,
    workers: int,
    child_gib: float = CHILD_GIB,
) -> Iterator[tuple[int, Any]]:
    """Call a function once for each tuple of arguments, in processes of their own.

    Args:
        function: of a module that can be imported. It is imported once a worker.
        calls: arguments of each call.
        seconds: time limit of each call.
        workers: processes at once.
        child_gib: address space that a process may add, in GiB; beyond it the call sees a
            `MemoryError`.

    Yields:
        Index of the call and its result, as they come. `Lost` where the call, made alone in a
        fresh process, ended that process or did not return in time.

    Raises:
        ValueError: the function is defined in the script that runs.
        RuntimeError: the function raised; the text holds its traceback.
        EnvironmentFault: a server itself was killed.
    """
    if function.__module__ == "__main__":
        raise ValueError(f"{function.__name__} must be defined in a module, not in a script")
    workers = min(workers, -(-len(calls) // _FEWEST))
    size = min(_SHARD, -(-len(calls) // max(1, 4 * workers)))
    numbered = list(zip(range(len(calls)), calls, seconds, strict=True))
    shards = [pickle.dumps(numbered[at : at + size]) for at in range(0, len(numbered), size or 1)]
    setup = pickle.dumps((pickle.dumps(function), int(child_gib * 2**30)))
    servers = [_Server.take(setup) for _ in range(min(workers, len(shards)))]
    busy = set(servers)
    try:
        for index, value, trace in _replies(servers, deque(shards), busy):
            if trace:
                raise RuntimeError(f"{function.__name__}{calls[index]} raised\n{trace}")
            yield index, value
    finally:
        for server in busy:
            server.close()


def _replies(
    servers: Sequence[_Server], shards: deque[bytes], busy: set[_Server]
) -> Iterator[tuple[int, Any, str]]:
    """All replies to all shards; a server leaves `busy` when none is left for it."""
    with selectors.DefaultSelector() as selector:
        for server in servers:
            server.send(shards.popleft())
            selector.register(server.replies, selectors.EVENT_READ, server)
        while busy:
            for key, _ in selector.select():
                server = key.data
                reply = server.receive()
                if reply is not None:
                    yield reply
                elif shards:
                    server.send(shards.popleft())
                else:
                    selector.unregister(server.replies)
                    busy.remove(server)
                    _Server.idle.append(server)
