"""Runs one stage: validation, reuse of finished work, resumption, stamps, atomic results.

A stage writes into `job.out`, a work folder beside its output folder that survives a kill. When
it returns, the runner writes the stamp (`stage.json`) and renames the work folder to the output
folder: an output folder with a stamp is complete. The stamp's key hashes the parameters, the
content of the inputs and the code of the stage, so either engine (or a person) may call the same
command again and finished work is adopted instead of redone.

Under torchrun (stages that say `RANKS = True`) the first rank does all of this and the others wait
for its word: run with it, or end.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from types import ModuleType
from typing import Any

from filelock import FileLock, Timeout
from pydantic import BaseModel

from sf import provenance, ranks
from sf.atomic_files import write_json, write_text
from sf.config import validated
from sf.errors import ConfigError, EnvironmentFault, OutputConflictError
from sf.layout import STAMP
from sf.tracking import SilentTracker, Tracker, log_pending

STAGES = ("prepare", "benchmarks", "base", "calibrate", "train", "evaluate", "profile", "report")
MIN_FREE_GIB = 1.0
RUN, DONE, UP_TO_DATE = "run", "done", "up to date"


@dataclass(frozen=True)
class Job:
    """What a running stage is given besides its parameters.

    Attributes:
        out: results go here; files of a killed earlier call of the same job may be there.
        state: scratch that survives a kill (checkpoints, caches) and is no result.
        tracker: figures over time and at the end.
    """

    out: Path
    state: Path
    tracker: Tracker


def stage_module(stage: str) -> ModuleType:
    """The module of a stage.

    Raises:
        ConfigError: no such stage.
    """
    if stage not in STAGES:
        raise ConfigError("stage", stage, "is unknown", f"choose one of: {', '.join(STAGES)}")
    return import_module(f"sf.stages.{stage}")


def work_folder(output: Path) -> Path:
    """Where a stage works: beside the output, so that the final rename stays on one file system."""
    return output.parent / f".{output.name}.work"


def read_config(path: Path) -> dict[str, Any]:
    """The parameters of one job, as `workflow.resolve` writes them.

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
        raise ConfigError("config", str(path), "must hold an object", "give the parameters")
    return values


def input_folders(module: ModuleType, parameters: BaseModel) -> list[Path]:
    """The folders and files that a stage reads: its path parameters, or what it says itself."""
    if hasattr(module, "inputs"):
        return list(module.inputs(parameters))
    values = [getattr(parameters, name) for name in type(parameters).model_fields]
    output = parameters.output  # type: ignore[attr-defined]
    return [value for value in values if isinstance(value, Path) and value != output]


def run_stage(stage: str, values: Mapping[str, Any], study: str, command: str = "") -> str:
    """Run one stage, or adopt its finished result.

    Args:
        stage: one of `STAGES`.
        values: of the stage's parameters class.
        study: the study that the MLflow run belongs to.
        command: how the stage was started, for the record.

    Returns:
        "done", or "up to date" when a finished result was adopted.

    Raises:
        SparsityForcingError: before any work where that is possible.
    """
    module = stage_module(stage)
    parameters = validated(module.Parameters, values)
    output: Path = parameters.output
    work = work_folder(output)
    if ranks.world_size() > 1:
        if not getattr(module, "RANKS", False):
            rule = f"cannot run in {ranks.world_size()} processes"
            raise ConfigError("stage", stage, rule, "start it without torchrun")
        ranks.join()
        if ranks.rank():
            return _follow(module, parameters, work)
    work.mkdir(parents=True, exist_ok=True)
    with _exclusive(work, output):
        inputs = input_folders(module, parameters)
        identity = provenance.identity(stage, module, parameters, inputs)
        if _adopt(output, work, identity["key"]):
            log_pending(output, study)
            return str(ranks.agreed(UP_TO_DATE))
        _refuse_foreign(output, work)
        _check_disk(output)
        _reset_if_changed(work, identity["key"])
        tracker = Tracker.start(stage, parameters, identity, work, study)
        job = Job(out=work / "out", state=work / "state", tracker=tracker)
        ranks.agreed(RUN)
        with tracker, _no_space(output):
            module.run(parameters, job)
            ranks.meet()
        tracker.write_summary()
        stamp = {**identity, "command": command, "study": study, "seconds": tracker.seconds()}
        stamp["files"] = provenance.file_digests(job.out)
        _finish(output, work, stamp)
        log_pending(output, study)
    return DONE


def _follow(module: ModuleType, parameters: BaseModel, work: Path) -> str:
    """What a rank but the first does: the stage's own work, if the first one says so."""
    said: str = ranks.agreed()
    if said == RUN:
        tracker = SilentTracker(work)
        module.run(parameters, Job(out=work / "out", state=work / "state", tracker=tracker))
        ranks.meet()
        said = DONE
    return said


@contextmanager
def _exclusive(work: Path, output: Path) -> Iterator[None]:
    lock = FileLock(work / "lock")
    try:
        lock.acquire(timeout=0)
    except Timeout:
        raise OutputConflictError(
            "output", str(output), "is being written by another process", "wait for it to end"
        ) from None
    try:
        yield
    finally:
        lock.release()


def _adopt(output: Path, work: Path, key: str) -> bool:
    """True when `output` holds the complete result of `key`; restores a missing stamp."""
    record = work / "record.json"
    finished = work / "out" / STAMP
    if finished.is_file() and json.loads(finished.read_text())["key"] == key:
        _publish(output, work, json.loads(finished.read_text()))  # killed between two renames
    source = output / STAMP if (output / STAMP).is_file() else record
    if not source.is_file():
        return False
    stamp = json.loads(source.read_text(encoding="utf-8"))
    if stamp["key"] != key or provenance.damaged(output, stamp["files"]):
        return False
    write_json(output / STAMP, stamp)
    write_json(record, stamp)
    return True


def _refuse_foreign(output: Path, work: Path) -> None:
    if not output.exists() or not any(output.iterdir()):
        return
    if not (output / STAMP).is_file() and not (work / "record.json").is_file():
        raise OutputConflictError(
            "output",
            str(output),
            "is not empty and was not written by this stage",
            "move it away or choose another folder",
        )


def _check_disk(output: Path) -> None:
    free = shutil.disk_usage(output.parent).free / 2**30
    if free < MIN_FREE_GIB:
        raise EnvironmentFault(
            "free disk space",
            f"{free:.2f} GiB",
            f"must be at least {MIN_FREE_GIB} GiB at {output.parent}",
            "free some space or link `results` to a larger disk",
        )


@contextmanager
def _no_space(output: Path) -> Iterator[None]:
    """A disk that fills up while a stage works is an error that says so, whoever wrote."""
    try:
        yield
    except OSError as error:
        if error.errno != errno.ENOSPC:
            raise
        rule, remedy = "is full", "free some space and give the same command again: it goes on"
        raise EnvironmentFault("disk", str(output.parent), rule, remedy) from error


def _reset_if_changed(work: Path, key: str) -> None:
    """Keep the partial work of the same job; drop that of a job with other parameters."""
    marker = work / "key"
    if not marker.is_file() or marker.read_text() != key:
        for name in ("out", "state"):
            shutil.rmtree(work / name, ignore_errors=True)
        for name in ("seconds", "mlflow.json"):
            (work / name).unlink(missing_ok=True)
        write_text(marker, key)
    for name in ("out", "state"):
        (work / name).mkdir(exist_ok=True)


def _finish(output: Path, work: Path, stamp: dict[str, Any]) -> None:
    write_json(work / "out" / STAMP, stamp)
    _publish(output, work, stamp)
    shutil.rmtree(work / "state", ignore_errors=True)


def _publish(output: Path, work: Path, stamp: dict[str, Any]) -> None:
    old = work / "old"
    shutil.rmtree(old, ignore_errors=True)
    if output.exists():
        os.replace(output, old)
    os.replace(work / "out", output)
    write_json(work / "record.json", stamp)
    shutil.rmtree(old, ignore_errors=True)
