"""Calls that may crash or hang, made in separate processes.

A decoder of untrusted files can end its process (a segmentation fault, an abort, the system's
out-of-memory killer) or never return. `run_isolated` loses only that call, records the reason, and
continues. A few servers (`sf.isolation_server`) import the function once and fork a process for
each shard of calls: a fork takes a millisecond, and its memory is freed at the end of the shard.
Idle servers wait for further calls of the same function and end with this process.
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

CHILD_GIB = 8.0  # address space that a call may add; the largest image or frame fits
FRAME = struct.Struct("<I")  # length of the pickled message that follows
_SHARD = 32
_FEWEST = 16  # calls that justify starting another server
_START = (
    "import json, sys; sys.path[:] = json.loads(sys.argv[1]); "
    "from sf.isolation_server import serve; serve()"
)


@dataclass(frozen=True, slots=True)
class Lost:
    """A call without a result.

    Attributes:
        reason: about the call's input, such as "its decoder crashed (SIGSEGV)".
    """

    reason: str


class _Server:
    """A process that forks one process per shard.

    Args:
        setup: its first message, the pickled function and limit.
    """

    idle: ClassVar[list[_Server]] = []

    @classmethod
    def take(cls, setup: bytes) -> _Server:
        """An idle server, or a new one."""
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
            bufsize=0,  # a selector does not see buffered data
            env=os.environ | threads,
            process_group=0,  # to kill it with its forks; Ctrl-C reaches only this process
        )
        self.send(setup)

    def _pipe(self, name: str) -> IO[bytes]:
        pipe: IO[bytes] | None = getattr(self.process, name)
        assert pipe is not None
        return pipe

    @property
    def replies(self) -> IO[bytes]:
        """The stream of the server's replies."""
        return self._pipe("stdout")

    def send(self, message: bytes) -> None:
        """Send a pickled message."""
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
        remedy = "see its message above, free some memory, and run the same command again"
        return EnvironmentFault("worker process", self.process.pid, rule, remedy)

    def close(self) -> None:
        """Kill it with its forks; all relevant replies have arrived."""
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
    """Call a function once for each tuple of arguments, in separate processes.

    Args:
        function: from an importable module, which each worker imports once.
        calls: arguments of each call.
        seconds: time limit of each call.
        workers: number of concurrent processes.
        child_gib: address space that a process may add, in GiB; beyond it, the call gets a
            `MemoryError`.

    Yields:
        Index of the call and its result, in order of completion. The result is `Lost` if the call,
        made alone in a new process, ended that process or did not return in time.

    Raises:
        ValueError: the function is defined in the running script.
        RuntimeError: the function raised; the text contains its traceback.
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
    """All replies to all shards; a server leaves `busy` when no shard is left for it."""
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
