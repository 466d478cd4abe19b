"""Exclusive allocation of one machine's GPUs to jobs.

Both engines start several jobs at once without managing GPUs. A job locks its devices with files
of this user, keeps them while its processes live, and sees no others. Under Slurm, which
allocates devices itself, this does nothing.
"""

from __future__ import annotations

import fcntl
import os
import re
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from sf.errors import ConfigError, EnvironmentFault

__all__ = ["claim", "devices"]

POLL_SECONDS = 1.0
VISIBLE = "CUDA_VISIBLE_DEVICES"


def devices() -> list[str]:
    """The GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them."""
    given = os.environ.get(VISIBLE)
    if given is not None:
        return [name.strip() for name in given.split(",") if name.strip()]
    return _all_devices()


def _all_devices() -> list[str]:
    words = ["nvidia-smi", "--query-gpu=uuid", "--format=csv,noheader"]
    try:
        done = subprocess.run(words, capture_output=True, text=True, check=True, timeout=60)
    except (OSError, subprocess.SubprocessError):
        return []
    return done.stdout.split()


def claim(count: int, field: str) -> None:
    """Wait for `count` free GPUs and make only these visible to this process and its successor.

    Inherited open files hold the locks. Jobs get GPUs in order, so a job that requests many cannot
    starve.

    Args:
        count: of GPUs, at least 1.
        field: name of the parameter that requests them, for the message.

    Raises:
        ConfigError: the machine has fewer.
        EnvironmentFault: the folder of the locks belongs to someone else.
    """
    names = devices()
    if count > len(names):
        rule = f"is more than the {len(names)} GPUs that can be used here"
        limit = f", or extend {VISIBLE}={os.environ[VISIBLE]!r}" if VISIBLE in os.environ else ""
        raise ConfigError(field, count, rule, f"lower it{limit}")
    folder, known = _lock_folder(), _all_devices()
    # The same device has one lock, whether it is called by its number or by its UUID.
    files = {name: folder / _plain(_uuid(name, known)) for name in names}
    turn = _open(folder / "turn")
    shown = _wait(turn, shown=False)
    held: list[str] = []
    while len(held) < count:
        for name in names:
            if name not in held and len(held) < count:
                descriptor = _open(files[name])
                if _lock(descriptor):
                    os.set_inheritable(descriptor, True)
                    held.append(name)
                else:
                    os.close(descriptor)
        if len(held) < count:
            shown = _note(shown)
            time.sleep(POLL_SECONDS)
    os.close(turn)
    os.environ[VISIBLE] = ",".join(held)


def _wait(descriptor: int, shown: bool) -> bool:
    while not _lock(descriptor):
        shown = _note(shown)
        time.sleep(POLL_SECONDS)
    return shown


def _note(shown: bool) -> bool:
    if not shown:
        print("waiting for a GPU: other jobs use them", file=sys.stderr, flush=True)
    return True


def _lock_folder() -> Path:
    folder = Path(tempfile.gettempdir()) / f"sf-devices-{os.getuid()}"
    folder.mkdir(mode=0o700, exist_ok=True)
    if folder.is_symlink() or folder.stat().st_uid != os.getuid():
        remedy = "set TMPDIR to a folder of your own"
        raise EnvironmentFault("locks of GPUs", str(folder), "is another user's", remedy)
    return folder


def _uuid(name: str, known: list[str]) -> str:
    return known[int(name)] if name.isdigit() and int(name) < len(known) else name


def _plain(name: str) -> str:
    return re.sub(r"[^\w-]", "_", name)


def _open(path: Path) -> int:
    return os.open(path, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)


def _lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True
