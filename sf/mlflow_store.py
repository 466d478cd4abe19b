"""The MLflow store: created once, named without secrets, and never a cause of lost results.

MLflow creates the tables of a new sqlite store in several transactions. Concurrent or killed
processes would leave a store that cannot be opened. A new store is therefore created under a lock
and a temporary name, and then renamed.
"""

from __future__ import annotations

import logging
import os
import sqlite3
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sf.atomic_files import replacing
from sf.escaping import printable
from sf.extras import extra
from sf.redaction import redact, without_credentials
from sf.slurm_job import JOB

os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")  # read at MLflow's first import

__all__ = [
    "EXPERIMENT",
    "STUDY_NOTE",
    "Attempt",
    "active_run",
    "best_effort",
    "client_of_store",
    "experiment_of_study",
    "finished_runs",
    "is_left_to_submitter",
    "store_name",
    "store_state",
    "tracking_uri",
]

EXPERIMENT = "sparsity-forcing"
_DEFAULT = "mlflow.db"
_ARTIFACTS = "mlruns"
_LOCK_SECONDS = 120.0
_SQLITE = "sqlite:///"
_NOTE_TAG = "mlflow.note.content"  # displayed by MLflow as the description
_EXPERIMENT_NOTE = (
    "Choose 'Model training' at the top left, then a study, and expand it with its +."
)
STUDY_NOTE = (
    "This run has one child run per stage (click the + next to its name in the list). The artifact "
    "`index.html` of the run `report` shows the study's tables and figures on one page."
)
_opened: dict[str, tuple[int, int]] = {}  # store -> device and inode of its open file


def tracking_uri() -> str:
    """The tracking URI. It may contain a password, so messages and files use `store_name`."""
    return os.environ.get("MLFLOW_TRACKING_URI") or f"{_SQLITE}{Path(_DEFAULT).absolute()}"


def store_name() -> str:
    """The store's name without credentials; the default one has the same name in all checkouts."""
    given = os.environ.get("MLFLOW_TRACKING_URI")
    return without_credentials(given) if given else _DEFAULT


@dataclass
class Attempt:
    """The outcome of a transfer; `down` means that the store, not the content, is at fault."""

    failed: bool = False
    down: bool = False


@contextmanager
def best_effort(what: str) -> Iterator[Attempt]:
    """Turn any exception of MLflow and its dependencies into a warning."""
    with extra("pipeline"):
        import mlflow.exceptions  # noqa: F401

    attempt = Attempt()
    try:
        yield attempt
    except Exception as error:  # noqa: BLE001 - of alembic, sqlalchemy, requests, plugins, …
        attempt.failed, attempt.down = True, _store_is_down(error)
        lines = str(error).splitlines() or [type(error).__name__]
        warnings.warn(
            f"MLflow at {store_name()} did not accept {what} "
            f"({printable(redact(lines[0]))[:200]}); the result is safe and will be logged by the "
            "next `sf run` of this study or by `sf log`",
            stacklevel=3,
        )


def _store_is_down(error: Exception) -> bool:
    from mlflow.exceptions import MlflowException
    from requests.exceptions import RequestException

    if isinstance(error, MlflowException):
        return bool(error.get_http_status_code() >= 500)
    if isinstance(error, RequestException | Timeout):
        return True
    # A file that another stage is publishing, or a damaged record of a single result.
    return not isinstance(error, OSError | ValueError | KeyError | TypeError | AttributeError)


def client_of_store() -> Any:
    """MLflow's client; creates a missing sqlite store."""
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_MAX_RETRIES", "2")
    os.environ.setdefault("MLFLOW_HTTP_REQUEST_TIMEOUT", "10")
    os.environ.setdefault("MLFLOW_ENABLE_ASYNC_LOGGING", "false")
    from mlflow.tracking import MlflowClient

    uri = tracking_uri()
    file = _sqlite_file(uri)
    if file is None:
        return MlflowClient(tracking_uri=uri)
    if not _is_there(file):
        _create(file)
    state = file.stat()
    identity = (state.st_dev, state.st_ino)
    client = MlflowClient(tracking_uri=uri)
    if _opened.setdefault(uri, identity) != identity:
        # The file was deleted and recreated: this process's connections still use the old one.
        client._tracking_client.store.engine.dispose()
        _opened[uri] = identity
    return client


def _sqlite_file(uri: str) -> Path | None:
    if not uri.startswith(_SQLITE):
        return None
    name = uri.removeprefix(_SQLITE).partition("?")[0]
    return Path(name) if name and not name.startswith((":", "file:")) else None


def is_left_to_submitter() -> bool:
    """Whether this Slurm job leaves logging to one process, which reads the metrics from files.

    Nodes that write to one sqlite file over a network file system block each other or damage it.
    """
    return JOB in os.environ and _sqlite_file(tracking_uri()) is not None


def store_state() -> list[int] | None:
    """A state that changes with the store's file; None if the store is not an existing file."""
    file = _sqlite_file(tracking_uri())
    if file is None or not _is_there(file):
        return None
    state = file.stat()
    return [state.st_dev, state.st_ino, state.st_size, state.st_mtime_ns]


def _is_there(file: Path) -> bool:
    return file.is_file() and file.stat().st_size > 0


def _create(file: Path) -> None:
    """Create an empty store under a temporary name and rename it, once among all processes."""
    from mlflow.tracking import MlflowClient

    file.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(f"{file}.lock", timeout=_LOCK_SECONDS):
        if _is_there(file):
            return
        quiet = _quiet("alembic", "mlflow.store.db.utils")
        with replacing(file, shared=True) as part, quiet:
            client = MlflowClient(tracking_uri=f"{_SQLITE}{part}")
            client.search_experiments(max_results=1)
            client._tracking_client.store.engine.dispose()


@contextmanager
def _quiet(*names: str) -> Iterator[None]:
    """Hide the log of the store's migrations, and restore the loggers afterwards."""
    loggers = [logging.getLogger(name) for name in names]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    try:
        yield
    finally:
        for logger, level in zip(loggers, levels, strict=True):
            logger.setLevel(level)


def experiment_of_study(client: Any, study: str) -> tuple[str, str]:
    """The ids of the experiment and of the parent run of all runs of `study`.

    An experiment deleted in MLflow's pages is restored, because its name cannot be reused.
    """
    with FileLock(".mlflow.lock", timeout=_LOCK_SECONDS):
        experiment = client.get_experiment_by_name(EXPERIMENT)
        if experiment is None:
            experiment = _new_experiment(client)
        experiment_id = str(experiment.experiment_id)
        if experiment.lifecycle_stage == "deleted":
            client.restore_experiment(experiment_id)
        _follow_the_checkout(experiment)
        quoted = study.replace("'", "")
        query = f"tags.`sf.study` = '{quoted}' and tags.`sf.parent` = 'true'"
        parents = client.search_runs([experiment_id], query, max_results=1)
        if parents:
            return experiment_id, str(parents[0].info.run_id)
        tags = {
            "sf.study": quoted,
            "sf.parent": "true",
            "mlflow.runName": f"study {study}",
            _NOTE_TAG: STUDY_NOTE,
        }
        return experiment_id, str(client.create_run(experiment_id, tags=tags).info.run_id)


def _new_experiment(client: Any) -> Any:
    from mlflow.exceptions import MlflowException

    try:
        client.create_experiment(EXPERIMENT, tags={_NOTE_TAG: _EXPERIMENT_NOTE})
    except MlflowException as error:  # another checkout with the same server was faster
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise
    return client.get_experiment_by_name(EXPERIMENT)


def _follow_the_checkout(experiment: Any) -> None:
    """Point the default store's artifacts to this checkout after a move or copy.

    MLflow stores absolute paths and has no API to change them.
    """
    if os.environ.get("MLFLOW_TRACKING_URI"):
        return
    stored = str(experiment.artifact_location).removeprefix("file://")
    artifacts = str(Path(_ARTIFACTS).absolute())
    before = stored.rpartition("/")[0]
    if before == artifacts or Path(before).name != _ARTIFACTS:
        return
    with sqlite3.connect(_DEFAULT, timeout=30) as store:
        for table, column in (("experiments", "artifact_location"), ("runs", "artifact_uri")):
            store.execute(
                f"update {table} set {column} = replace({column}, ?, ?) where {column} like ?",
                (f"{before}/", f"{artifacts}/", f"%{before}/%"),
            )
    store.close()


def active_run(client: Any, run_id: str | None) -> Any:
    """A run that is in the store and not deleted; None otherwise."""
    from mlflow.exceptions import MlflowException

    if not run_id:
        return None
    try:
        run = client.get_run(run_id)
    except MlflowException as error:
        if error.error_code != "RESOURCE_DOES_NOT_EXIST":
            raise
        return None
    return run if run.info.lifecycle_stage == "active" else None


def finished_runs(client: Any) -> set[str]:
    """The ids of all finished, visible runs of this project in the store."""
    experiment = client.get_experiment_by_name(EXPERIMENT)
    if experiment is None or experiment.lifecycle_stage == "deleted":
        return set()
    ids: set[str] = set()
    token = None
    while True:
        page = client.search_runs(
            [experiment.experiment_id],
            "attributes.status = 'FINISHED'",
            max_results=1000,
            page_token=token,
        )
        ids |= {str(run.info.run_id) for run in page}
        token = page.token
        if not token:
            return ids
