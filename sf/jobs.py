"""Runs one stage: validation, reuse of finished work, resumption, stamps, atomic results.

A stage writes to `job.out`, a work folder next to its output folder that survives a kill. When it
returns, the runner writes the stamp (`stage.json`) and renames the work folder to the output
folder: an output folder with a stamp is complete. The stamp contains the result's key
(`sf.result_key`), so either engine (or a person) may run the same command again, and finished work
is adopted instead of redone.

Under torchrun (for stages with `RANKS = True`) the first rank does all of this; the others wait
until it tells them to run the stage or to end.
"""

from __future__ import annotations

import errno
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from pydantic import BaseModel

from sf import provenance, ranks, reuse
from sf.disk import require_room
from sf.errors import ConfigError, EnvironmentFault
from sf.interruption import listening
from sf.layout import work_folder
from sf.offline import unasked
from sf.redaction import redact
from sf.result_key.contents import digest_of, file_digests
from sf.result_key.key import Key, input_paths, key_of
from sf.slurm_job import complete_environment
from sf.tracking import SilentTracker, Tracker, log_pending
from sf.validation import validated

STAGES = (
    *("fetch", "prepare", "benchmarks", "base", "calibrate", "train", "evaluate", "profile"),
    *("previews", "table", "report"),
)
OWN_STAGES = ("questions",)  # of `sf evaluate`, outside studies
MIN_FREE_GIB = 1.0
RUN, DONE, UP_TO_DATE = "run", "done", "up to date"


@dataclass(frozen=True)
class Job:
    """The context of a running stage besides its parameters.

    Attributes:
        out: folder for results; it may contain files from a killed earlier call of the same job.
        state: scratch folder that survives a kill (checkpoints, caches), not part of the result.
        tracker: logs metrics over time and at the end.
    """

    out: Path
    state: Path
    tracker: Tracker


def stage_module(stage: str) -> ModuleType:
    """The module of a stage.

    Raises:
        ConfigError: no such stage.
    """
    if stage not in (*STAGES, *OWN_STAGES):
        raise ConfigError("stage", stage, "is unknown", f"choose one of: {', '.join(STAGES)}")
    return import_module(f"sf.stages.{stage}")


def read_config(path: Path) -> dict[str, Any]:
    """The parameters of a job, as written by `workflow.resolve`.

    Raises:
        ConfigError: the file is missing, is not JSON or is not an object.
    """
    try:
        values = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        remedy = "write the files of params.yaml: `python -m workflow.resolve`"
        raise ConfigError("config", str(path), "does not exist", remedy) from None
    except ValueError as error:
        raise ConfigError("config", str(path), f"is not JSON: {error}", "correct it") from None
    if not isinstance(values, dict):
        raise ConfigError("config", str(path), "must contain an object", "give the parameters")
    return values


def run_stage(
    stage: str, values: Mapping[str, Any], study: str, command: str = "", *, tracked: bool = True
) -> str:
    """Run one stage, or adopt its finished result.

    Args:
        stage: one of `STAGES`.
        values: of the stage's parameters class.
        study: the study of the MLflow run.
        command: the command line, for the record.
        tracked: log to MLflow, which must then be installed; otherwise `sf log` can do so later.

    Returns:
        "done", or "up to date" if a finished result was adopted.

    Raises:
        SparsityForcingError: if possible before any work.
        JobInterrupted: the job was told to stop before its work was done.
    """
    module = stage_module(stage)
    parameters = validated(module.Parameters, values)
    output: Path = parameters.output
    work = work_folder(output)
    complete_environment()
    if ranks.world_size() > 1:
        if not getattr(module, "RANKS", False):
            rule = f"cannot run in {ranks.world_size()} processes"
            raise ConfigError("stage", stage, rule, "start it without torchrun")
        ranks.join()
        if ranks.rank():
            return _follow(stage, module, parameters, work)
    work.mkdir(parents=True, exist_ok=True)
    with reuse.exclusive(work, output):
        key = key_of(stage, module, parameters)
        if reuse.adopt(output, work, key):
            if tracked:
                log_pending(output, study)
            return str(ranks.agreed(UP_TO_DATE))
        reuse.refuse_foreign(output, work)
        require_room(output.parent, MIN_FREE_GIB * 2**30, f"{MIN_FREE_GIB} GiB of results")
        reuse.reset_if_changed(work, key)
        identity = _identity(stage, module, parameters, key)
        tracker = Tracker.start(stage, identity, work, study) if tracked else Tracker(work)
        job = Job(out=work / "out", state=work / "state", tracker=tracker)
        ranks.agreed(RUN)
        with tracker, _no_space(output), _running(stage, module, parameters):
            module.run(parameters, job)
            ranks.meet()
        tracker.write_summary()
        stamp = {
            **identity,
            "command": redact(command),
            "study": study,
            "seconds": tracker.seconds(),
        }
        stamp["files"] = file_digests(job.out, work)
        reuse.finish(output, work, stamp)
        if tracked:
            log_pending(output, study)
    return DONE


def _identity(stage: str, module: ModuleType, parameters: BaseModel, key: Key) -> dict[str, Any]:
    """The stamp without files and times: the key of a result and its provenance."""
    return {
        "stage": stage,
        **key.record(),
        "parameters": parameters.model_dump(mode="json"),
        "parameter_hash": digest_of(key.parameters),
        "input_paths": {name: str(p) for name, p in input_paths(module, parameters).items()},
        "code_hash": digest_of(key.code),
        **provenance.commit(),
        "versions": provenance.versions(),
        "hardware": provenance.hardware(),
    }


def _follow(stage: str, module: ModuleType, parameters: BaseModel, work: Path) -> str:
    """Run the stage on a rank other than the first, if the first one decides to run it."""
    decision: str = ranks.agreed()
    if decision == RUN:
        tracker = SilentTracker(work)
        with _running(stage, module, parameters):
            module.run(parameters, Job(out=work / "out", state=work / "state", tracker=tracker))
        ranks.meet()
        decision = DONE
    return decision


@contextmanager
def _running(stage: str, module: ModuleType, parameters: BaseModel) -> Iterator[None]:
    """Handle signals, and keep the stage off the hub unless its `asks_hub` returns True."""
    asks_hub = getattr(module, "asks_hub", None)
    online = asks_hub is not None and asks_hub(parameters)
    at_once = not getattr(module, "ENDS_STEPS", False)
    with listening(at_once=at_once), nullcontext() if online else unasked(stage):
        yield


@contextmanager
def _no_space(output: Path) -> Iterator[None]:
    """Turn any error of a full disk during a stage into one clear error."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        rule, remedy = "is full", "free some space and run the same command again to continue"
        raise EnvironmentFault("disk", str(output.parent), rule, remedy) from error
