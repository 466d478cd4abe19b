"""Starts `sf run` in as many processes as the stage's resources ask for.

    python -m workflow.launch sf run train --study mini …

With more than one GPU the command runs under torchrun on this machine, else as it is. The number of
processes is read from params.yaml when the job starts: it is no part of the command, so changing it
reruns nothing.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

from workflow.jobs import launcher, load_params


def main(words: list[str]) -> None:
    """Replace this process by the job."""
    assert words[:2] == ["sf", "run"], "usage: python -m workflow.launch sf run STAGE …"
    resources = load_params(Path("params.yaml")).resources
    prefix = launcher(words[2], resources)
    if prefix:
        words = [sys.executable, *prefix, "-m", "sf.cli", *words[1:]]
    os.execvp(words[0], words)


if __name__ == "__main__":
    main(sys.argv[1:])
