"""Removal of the environment's secrets from everything a process and its children write.

`RedactedStream` sees what Python prints, also to a terminal, and knows secrets that this process
has added to its environment. Libraries in C and child processes write to the file
descriptors 1 and 2 directly. Here these become pipes to a process of their own, which redacts and
passes on what it reads. It must be a process: a thread would need the interpreter's lock, which a
library may hold while it waits for the full pipe. Terminals are left as they are, because programs
ask them for their size and colours.
"""

from __future__ import annotations

import codecs
import ctypes
import errno
import os
import secrets
import select
import selectors
import signal
import sys
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path

from sf.redaction import IncrementalRedactor

__all__ = ["redacted_descriptors"]

_OUTPUTS = (1, 2)
_CHUNK = 2**16
_PACKAGE_FOLDER = str(Path(__file__).parent.parent)
_PROGRAM = (
    f"import sys; sys.path.insert(0, {_PACKAGE_FOLDER!r}); "
    "from sf.redacted_output import pass_on; pass_on(sys.argv[1:])"
)
_ENDING_SIGNALS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGUSR1)
"""Signals that a whole process group gets. The filter ignores them and ends after the writers."""


@contextmanager
def redacted_descriptors() -> Iterator[None]:
    """Redact what this process and its children write to the descriptors 1 and 2.

    What surviving children write after the context ends is still redacted.

    Raises:
        OSError: an output could not be written, for example to a full disk. It is raised at the
            end, so that it does not stop the work.
    """
    groups = _groups([number for number in _OUTPUTS if _is_file(number)])
    if not groups:
        yield
        return
    owner, marker = os.getpid(), f"\0{secrets.token_hex(16)}"
    saved = {number: os.dup(number) for group in groups for number in group}
    process, answer = _start(groups, marker)
    failed, ending = 0, None
    try:
        yield
    except SystemExit as asked:
        if asked.code:
            raise
        ending = asked
    finally:
        if os.getpid() == owner:  # not in a forked child, which shares the pipes
            failed = _end([group[0] for group in groups], marker, saved, answer)
            os.waitpid(process, os.WNOHANG)
    if failed:
        raise OSError(failed, os.strerror(failed), "output of this command")
    if ending is not None:
        raise ending


def _is_file(number: int) -> bool:
    """Whether a descriptor is open and no terminal."""
    try:
        os.fstat(number)
    except OSError:
        return False
    return not os.isatty(number)


def _groups(numbers: Sequence[int]) -> list[list[int]]:
    """The descriptors of each file; those of one file share a pipe, which keeps their order."""
    files: dict[tuple[int, int], list[int]] = {}
    for number in numbers:
        status = os.fstat(number)
        files.setdefault((status.st_dev, status.st_ino), []).append(number)
    return list(files.values())


def _start(groups: Sequence[Sequence[int]], marker: str) -> tuple[int, int]:
    """Start the filter and direct the descriptors to it; its process id and answering pipe."""
    answer, answering = os.pipe()
    pipes = [os.pipe() for _ in groups]
    for end in (answering, *(reading for reading, _ in pipes)):
        os.set_inheritable(end, True)
    pairs = [f"{pipe[0]}:{group[0]}" for pipe, group in zip(pipes, groups, strict=True)]
    words = [sys.executable, "-I", "-S", "-c", _PROGRAM, marker[1:], str(answering), *pairs]
    # Signals are blocked from the start, so none ends the filter before the writers.
    process = os.posix_spawn(
        sys.executable,
        words,
        os.environ,
        file_actions=[(os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0)],
        setsigmask=_ENDING_SIGNALS,
    )
    os.close(answering)
    for (reading, writing), group in zip(pipes, groups, strict=True):
        os.close(reading)
        for number in group:
            os.dup2(writing, number)
        os.close(writing)
    return process, answer


def _end(written: Sequence[int], marker: str, saved: Mapping[int, int], answer: int) -> int:
    """Restore the descriptors after the filter has passed everything on; its error or 0."""
    for stream in (sys.stdout, sys.stderr):
        with suppress(BrokenPipeError):
            stream.flush()
    ctypes.CDLL(None).fflush(None)  # the buffers of C
    for number in written:
        with suppress(BrokenPipeError):
            os.write(number, marker.encode())
    for number, original in saved.items():
        os.dup2(original, number)
        os.close(original)
    with os.fdopen(answer, "rb") as stream:
        return int(stream.read() or 0)


def pass_on(words: Sequence[str]) -> None:
    """Redact pipes until their writers have closed them: the program of the filter.

    Args:
        words: the marker that ends the command's own output, without its null character; the
            descriptor of the answer; and "FROM:TO" for each pipe. The answer is the number of the
            first error, or empty.
    """
    marker, answering = f"\0{words[0]}", int(words[1])
    pairs = [tuple(map(int, pair.split(":"))) for pair in words[2:]]
    outputs = {source: _Output(target, marker) for source, target in pairs}
    selector = selectors.DefaultSelector()
    for source in outputs:
        selector.register(source, selectors.EVENT_READ)
    answered = False
    while selector.get_map():
        for key, _ in selector.select():
            output = outputs[key.fd]
            data = os.read(key.fd, _CHUNK)
            output.write(data)
            if not data or output.failed == errno.EPIPE:
                selector.unregister(key.fd)
                os.close(key.fd)  # after EPIPE, the writers get this error, too
                output.marked = True
        if not answered and all(output.marked for output in outputs.values()):
            failed = [o.failed for o in outputs.values() if o.failed not in (0, errno.EPIPE)]
            os.write(answering, str(failed[0]).encode() if failed else b"")
            os.close(answering)
            answered = True


class _Output:
    """A descriptor to which redacted text is written.

    Attributes:
        marked: whether the marker came; it is not written.
        failed: number of the first error, after which nothing more is written; 0 without one.
    """

    def __init__(self, target: int, marker: str) -> None:
        self.target, self.marker = target, marker
        self.marked, self.failed = False, 0
        self._decoder = codecs.getincrementaldecoder("utf-8")("surrogateescape")
        self._redactor = IncrementalRedactor()
        self._begun = ""  # of the marker

    def write(self, data: bytes) -> None:
        """Write bytes; empty at the end."""
        text = self._begun + self._decoder.decode(data, final=not data)
        before, found, after = text.partition(self.marker)
        if found:
            self.marked = True
            self._write(self._redactor.feed(before, end=True))
            before = after
        begin = before.rfind(self.marker[0]) if data else -1
        whole = begin < 0 or not self.marker.startswith(before[begin:])
        self._begun = "" if whole else before[begin:]
        before = before if whole else before[:begin]
        self._write(self._redactor.feed(before, end=not data))

    def _write(self, text: str) -> None:
        left = text.encode("utf-8", "surrogateescape")
        while left and not self.failed:
            try:
                left = left[os.write(self.target, left) :]
            except BlockingIOError:
                select.select([], [self.target], [])
            except OSError as error:
                self.failed = error.errno or errno.EIO
