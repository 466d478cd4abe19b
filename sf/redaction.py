"""Removal of the environment's secrets from messages and files."""

from __future__ import annotations

import functools
import io
import os
import re
from typing import Any, TextIO
from urllib.parse import unquote

__all__ = ["IncrementalRedactor", "RedactedStream", "redact", "without_credentials"]

_MASK = "***"
_SHORTEST = 4  # shorter values are not secret and would mask parts of ordinary words
_SECRET_NAMES = re.compile(r"TOKEN|PASSW|SECRET|API_?KEY|ACCESS_KEY|CREDENTIAL|PRIVATE_KEY", re.I)
_ASSIGNED = re.compile(r"(?:token|passw\w*|secret\w*|key)\s*[\s=:]\s*(\S+)", re.I)
_NO_SECRETS = re.compile(r"TOKENIZERS_|_TIMEOUT|_PATH$|_FILE$|_DIR$|PARALLELISM", re.I)
_CREDENTIALS = re.compile(r"(?<=://)[^/\s'\"<>]*@")
_UNFINISHED = re.compile(r"(?::|:/|://[^/\s'\"<>]*|[?&;][^&\s]*)\Z")
"""The end of a text in which a URL's credentials or secret parameter may have begun."""
_QUERY = re.compile(
    r"([?&;][^=&\s]*(?:token|passw|secret|key|credential)[^=&\s]*=)[^&\s'\"]+", re.I
)


def redact(text: str) -> str:
    """Text without the secrets of the environment and without credentials in URLs.

    It masks user and password of every URL, URL parameters such as `token=`, the values of
    environment variables whose names indicate a token, a password, a secret or a key, and what the
    files of the hub's, MLflow's, AWS's and curl's logins contain.
    """
    text = without_credentials(text)
    for secret in sorted(_secrets(), key=len, reverse=True):
        text = text.replace(secret, _MASK)
    return text


def without_credentials(text: str) -> str:
    """Text with user, password and secret parameters removed from its URLs."""
    return _QUERY.sub(rf"\1{_MASK}", _CREDENTIALS.sub(f"{_MASK}@", text))


class IncrementalRedactor:
    """Redacts a text that arrives in parts, however it is divided.

    It holds back an end that may be the beginning of a secret, so text without one passes at once.
    """

    _MOST_HELD = 2**20
    """Characters; longer than any value in the environment of a Linux process."""

    def __init__(self) -> None:
        self._held = ""

    def feed(self, text: str, end: bool = False) -> str:
        """The next part of the redacted text.

        Args:
            text: the next part of the text.
            end: whether it is the last one.
        """
        text = self._held + text
        cut = len(text) if end or len(text) > self._MOST_HELD else _begin_of_unfinished(text)
        self._held = text[cut:]
        return redact(text[:cut])


class RedactedStream(io.TextIOBase):
    """A text stream that masks secrets in everything written to it.

    Attributes:
        stream: the underlying stream, which handles closing and everything else.
    """

    def __init__(self, stream: TextIO) -> None:
        self.stream = stream

    def write(self, text: str) -> int:
        """Write the masked text; return the length of the original text."""
        self.stream.write(redact(text))
        return len(text)

    def flush(self) -> None:
        """Flush the stream."""
        self.stream.flush()

    def isatty(self) -> bool:
        """Whether the stream is a terminal."""
        return self.stream.isatty()

    def fileno(self) -> int:
        """The stream's descriptor; data written to it directly is not masked."""
        return self.stream.fileno()

    def writable(self) -> bool:
        """Always."""
        return True

    @property
    def encoding(self) -> str:  # type: ignore[override]
        """The stream's encoding."""
        return self.stream.encoding

    @property
    def errors(self) -> str | None:  # type: ignore[override]
        """The stream's error handler."""
        return self.stream.errors

    def __getattr__(self, name: str) -> Any:
        return getattr(self.stream, name)


def _begin_of_unfinished(text: str) -> int:
    """The index from which the text may continue as a secret; its length if it cannot."""
    unfinished = _UNFINISHED.search(text)
    cut = unfinished.start() if unfinished else len(text)
    whole: list[tuple[int, int]] = []
    for secret in _secrets():
        for length in range(min(len(secret) - 1, len(text)), 0, -1):
            if text.endswith(secret[:length]):
                cut = min(cut, len(text) - length)
                break
        whole += [found.span() for found in re.finditer(re.escape(secret), text)]
    for pattern in (_CREDENTIALS, _QUERY):
        whole += [(found.start() - len("://"), found.end()) for found in pattern.finditer(text)]
    # What is already complete must not be divided.
    for begin, end in sorted(whole, reverse=True):
        if begin < cut < end:
            cut = begin
    return max(cut, 0)


def _login_files() -> list[str]:
    """Files in which programs that this package uses keep a user's secrets."""
    place, home = os.environ.get, os.path.expanduser("~")
    cache = place("XDG_CACHE_HOME", f"{home}/.cache")
    hub = place("HF_HOME", f"{cache}/huggingface")
    return [
        place("HF_TOKEN_PATH", f"{hub}/token"),
        place("HF_STORED_TOKENS_PATH", f"{hub}/stored_tokens"),
        place("NETRC", f"{home}/.netrc"),
        place("AWS_SHARED_CREDENTIALS_FILE", f"{home}/.aws/credentials"),
        f"{home}/.mlflow/credentials",
    ]


@functools.cache
def _secrets_of(path: str) -> frozenset[str]:
    """The secrets in a file with one secret or with lines such as `password = …`; read once."""
    try:
        with open(path, encoding="utf-8", errors="surrogateescape") as stream:
            text = stream.read()
    except OSError:
        return frozenset()
    words = text.split()
    return frozenset(words if len(words) == 1 else _ASSIGNED.findall(text))


def _secrets() -> set[str]:
    values: set[str] = set()
    for path in _login_files():
        values |= _secrets_of(path)
    for name, value in os.environ.items():
        if _SECRET_NAMES.search(name) and not _NO_SECRETS.search(name):
            values.add(value)
        for credentials in _CREDENTIALS.findall(value):
            password = credentials.removesuffix("@").partition(":")[2]
            values |= {password, unquote(password)}
    return {value for value in values if len(value) >= _SHORTEST}
