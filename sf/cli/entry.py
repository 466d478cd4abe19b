"""Starts the command line and ends it: warnings, secrets, errors and exit statuses."""

from __future__ import annotations

import errno
import signal
import sys
import traceback
import warnings
from pathlib import Path
from typing import NoReturn

from rich.console import Console
from rich.markup import escape

from sf import ranks
from sf.cli.app import app
from sf.cli.own import separated
from sf.errors import EnvironmentFault, SparsityForcingError
from sf.escaping import printable
from sf.extras import extra_of, missing
from sf.interruption import LIMIT, STATUS, JobInterrupted, requeue
from sf.redacted_output import redacted_descriptors
from sf.redaction import RedactedStream, redact

__all__ = ["main"]

_PACKAGE = Path(__file__).parent.parent
_PLAIN = warnings.formatwarning
_USER_ERRORS = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOSPC, errno.EDQUOT}


def _one_line(
    message: Warning | str,
    category: type[Warning],
    filename: str,
    lineno: int,
    line: str | None = None,
) -> str:
    """Format this package's warnings without their source line."""
    if issubclass(category, UserWarning) and Path(filename).is_relative_to(_PACKAGE):
        return printable(redact(f"warning: {message}")) + "\n"
    return printable(redact(_PLAIN(message, category, filename, lineno, line)))


def main() -> None:
    """Run the command line; errors that a user can cause give one line and exit status 2.

    Secrets of the environment are masked in all output, and terminal escape sequences in tracebacks
    are escaped.
    """
    try:
        with redacted_descriptors():
            _run()
    except OSError as error:
        _stop(_as_fault(error))


def _run() -> None:
    signal.signal(signal.SIGTERM, signal.SIG_DFL)  # an engine's shell may ignore it
    sys.stdout, sys.stderr = RedactedStream(sys.stdout), RedactedStream(sys.stderr)
    warnings.formatwarning = _one_line
    warnings.filterwarnings("ignore", category=FutureWarning, module=r"transformers\.")
    try:
        sys.argv[1:] = separated(sys.argv[1:])
        app()
    except SparsityForcingError as error:
        _stop(error)
    except JobInterrupted as interruption:
        again = interruption.cause == LIMIT and requeue(interruption.progress)
        print(f"{interruption}{': Slurm starts it again' if again else ''}", file=sys.stderr)
        sys.exit(STATUS)
    except OSError as error:
        if error.errno not in _USER_ERRORS:
            _crash()
        _stop(_as_fault(error))
    except ModuleNotFoundError as error:
        name = extra_of(error.name or "")
        if name is None:
            _crash()
        _stop(missing(error.name or "", name))
    except Exception:  # noqa: BLE001 - shown in full, and the process ends
        _crash()


def _as_fault(error: OSError) -> EnvironmentFault:
    place = error.filename2 or error.filename
    rule = f"cannot be written or read: {error.strerror}"
    remedy = "work in your own folder, on a writable file system with free space"
    return EnvironmentFault("file", None if place is None else str(place), rule, remedy)


def _crash() -> NoReturn:
    """End with the traceback of an internal error of this package or a dependency."""
    sys.stderr.write(printable(traceback.format_exc()))
    sys.exit(1)


def _stop(error: SparsityForcingError) -> NoReturn:
    where = f" on rank {ranks.rank()}" if ranks.world_size() > 1 else ""
    Console(stderr=True, soft_wrap=True).print(
        f"[bold red]error{where}:[/] {escape(printable(redact(str(error))))}", highlight=False
    )
    sys.exit(2)
