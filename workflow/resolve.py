"""Writes the parameters of every job of params.yaml to its file: `python -m workflow.resolve`.

DVC runs this before its other stages; Snakemake does the same when it starts. A file is written
only if its content changes, so a changed value changes only the files of the jobs that use it.
"""

from __future__ import annotations

from pathlib import Path

from sf.errors import SparsityForcingError
from workflow.dvc_yaml import write_dvc_yaml
from workflow.jobs import jobs, load_params, write_configs


def main() -> None:
    """Resolve params.yaml of the working directory."""
    try:
        params = load_params(Path("params.yaml"))
        specs = jobs(params)
        rewritten = write_dvc_yaml(params)
    except SparsityForcingError as error:
        raise SystemExit(f"error: {error}") from None
    written = write_configs(specs)
    print(f"parameters of {len(specs)} jobs: {len(written)} files written")
    if rewritten:  # DVC has read the old one
        raise SystemExit("dvc.yaml had other tables or rows than params.yaml: run dvc repro again")


if __name__ == "__main__":
    main()
