"""Writes a digest of each stage's code and packages for DVC: `python -m workflow.code_digests`.

DVC compares files by their bytes, so Python files cannot be its dependencies: a comment would rerun
a study. These digests are those of the result keys. Unchanged files are not rewritten.
"""

from __future__ import annotations

from pathlib import Path

from sf.atomic_files import write_json
from sf.result_key.contents import digest_of
from sf.result_key.imports import stage_code
from workflow.stages import STAGES

__all__ = ["code_digest", "code_file", "write_code_digests"]


def code_digest(run: str) -> str:
    """A hash of the code of a stage of `sf run` and of the versions of its packages."""
    code = stage_code(run)
    return digest_of([code.modules, code.packages])


def code_file(run: str) -> str:
    """Path of the digest of a stage's code, relative to the checkout."""
    return f"results/.code/{run}.json"


def write_code_digests() -> None:
    """Write the files of all stages."""
    for run in dict.fromkeys(stage.run for stage in STAGES):
        path = Path(code_file(run))
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, {"code": code_digest(run), "packages": stage_code(run).packages})


if __name__ == "__main__":
    write_code_digests()
