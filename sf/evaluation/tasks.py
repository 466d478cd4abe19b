"""lmms-eval's tasks, built from its packaged YAMLs over hub data or a local folder.

Only the YAMLs that a run needs are read, because lmms-eval's TaskManager takes seconds to index all
1,500 or so. The task objects, with names, prompts, parsers and aggregations, are lmms-eval's. Only
the source of the rows, the generation limit, and metrics that write submission files are
overridden.

A local folder ("benchmark home") has the layout of an HF_HOME:

    hub/OWNER/NAME/...     a dataset repository's files, as on the hub
    videomme/data/*.mp4    videos at lmms-eval's paths under HF_HOME, one folder per task
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from sf.errors import DataError
from sf.evaluation.benchmarks import Task
from sf.evaluation.table_rows import each_row
from sf.extras import extra

__all__ = ["benchmark_home", "build_task", "documents", "repository_folder"]

_FILES_ONLY = ("submission",)  # metrics that write a file for a server and have no score


def repository_folder(home: Path, task: Task) -> Path:
    """The folder of a task's dataset repository in a benchmark home."""
    return home / "hub" / task.repository


@contextmanager
def benchmark_home(home: Path | None, cache: Path) -> Iterator[None]:
    """Make lmms-eval read media from `home` and keep its Arrow files in `cache`.

    The task modules read HF_HOME when they are executed, which happens for every loaded YAML, so
    build tasks inside this context. Models in the hub cache are not affected, because
    huggingface_hub has read HF_HOME at its import.

    Args:
        home: a benchmark home; None leaves HF_HOME unchanged (hub data).
        cache: a folder for Arrow files; `home` is never written to.
    """
    values = {"LMMS_EVAL_DATASETS_CACHE": str(cache.resolve())}
    if home is not None:
        values["HF_HOME"] = str(home.resolve())
    else:
        default = os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface"))
        values["HF_HOME"] = default  # two task modules require it
    before = {name: os.environ.get(name) for name in values}
    os.environ.update(values)
    from lmms_eval.api import task as module

    module._resolve_hf_datasets_cache_dir.cache_clear()
    try:
        yield
    finally:
        module._resolve_hf_datasets_cache_dir.cache_clear()
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def build_task(
    task: Task,
    home: Path | None,
    *,
    most_new_tokens: int = 0,
    judge: bool = False,
    revision: str = "main",
    model_name: str = "sf_sparse",
) -> Any:
    """lmms-eval's task object, a `ConfigurableMessagesTask`.

    Call it inside `benchmark_home`.

    Args:
        task: the task.
        home: a benchmark home, or None for the hub, from which the task's videos are unpacked.
        most_new_tokens: upper bound of the generation limit (0 for none), for synthetic data with
            short replies.
        judge: let a task call its configured judge for replies that it cannot parse. Otherwise such
            a reply counts as wrong immediately, which is also the outcome of an unreachable judge
            after eleven tries.
        revision: of the repository on the hub.
        model_name: lmms-eval's key for model-specific prompts; no packaged task knows ours, so it
            gets every task's default prompt.

    Raises:
        DataError: the folder lacks the repository, its rows cannot be read, or the split is empty.
    """
    with extra("eval"):
        import lmms_eval
        from datasets import disable_progress_bars
        from lmms_eval.utils import load_yaml_config
        from tenacity import RetryError

    from sf.evaluation.readable import decode_by_loader, images_unseen
    from sf.evaluation.video_capture import isolate_captures

    disable_progress_bars()
    tasks = Path(lmms_eval.__file__).parent / "tasks"
    config = load_yaml_config(str(tasks / task.config))
    limit = min(task.max_new_tokens, most_new_tokens or task.max_new_tokens)
    config["generation_kwargs"] = {
        **(config.get("generation_kwargs") or {}),
        "max_new_tokens": limit,
    }
    config["metric_list"] = [
        metric for metric in config["metric_list"] if metric["metric"] not in _FILES_ONLY
    ]
    if home is not None:
        folder = repository_folder(home, task)
        if not folder.is_dir():
            rule = "the benchmark's files are not there"
            raise DataError(task.name, str(folder), rule, "run the benchmarks stage again")
        config["dataset_path"] = str(folder.resolve())
        config["dataset_kwargs"] = {
            key: value
            for key, value in (config.get("dataset_kwargs") or {}).items()
            if key in ("video", "cache_dir")
        }
    else:  # lmms-eval's `token: True` rejects public repositories if no token is set
        given = {k: v for k, v in (config.get("dataset_kwargs") or {}).items() if k != "token"}
        config["dataset_kwargs"] = {**given, "revision": revision}
    try:
        with images_unseen():
            lmms_task = _task_class()(config=config, model_name=model_name)
    except KeyError as error:
        rule = f"its rows cannot be read: there is no split {error}"
        raise DataError(task.name, str(config["dataset_path"]), rule, "check the data") from error
    except RetryError as error:  # lmms-eval tries five times on any error
        failure = error.last_attempt.exception()
        reason = str((failure and failure.__cause__) or failure).splitlines()[0]
        rule, remedy = f"its rows cannot be read: {reason}", "check the data, or the connection"
        raise DataError(task.name, str(config["dataset_path"]), rule, remedy) from failure
    isolate_captures(config)
    if not judge:
        _without_judge(config["process_results"])
    if len(lmms_task.eval_docs) == 0:
        raise DataError(task.name, task.split, "the split holds no row", "check the data")
    decode_by_loader(lmms_task)
    return lmms_task


@cache
def _task_class() -> type:
    """lmms-eval's class, with a constructor that ignores faults of the first row."""
    from lmms_eval.api.task import ConfigurableMessagesTask

    class Built(ConfigurableMessagesTask):
        constructed = False

        def __init__(self, **given: Any) -> None:
            super().__init__(**given)
            self.constructed = True

        def _or_nothing(self, make: Callable[..., Any], *args: Any, **options: Any) -> Any:
            try:
                return make(*args, **options)
            except (Exception, SystemExit):
                if self.constructed:
                    raise
                return ""

        def _from_readable(self, rows: Any) -> Any:
            """The rows; during construction without those before the first readable one."""
            if self.constructed or rows is None or len(rows) == 0:
                return rows
            readable = (number for number, row in each_row(rows) if isinstance(row, dict))
            first = next(readable, None)
            if first is None:
                rule = "none of its rows can be read"
                raise DataError("task", str(self.config.task), rule, "fetch the data again")
            return rows.select(range(first, len(rows))) if first else rows

        def test_docs(self) -> Any:
            return self._from_readable(super().test_docs())

        def validation_docs(self) -> Any:
            return self._from_readable(super().validation_docs())

        def doc_to_text(self, *args: Any, **options: Any) -> Any:
            return self._or_nothing(super().doc_to_text, *args, **options)

        def doc_to_target(self, *args: Any, **options: Any) -> Any:
            return self._or_nothing(super().doc_to_target, *args, **options)

    return Built


def _without_judge(process_results: Any) -> None:
    """Replace the GPT that TempCompass calls for unmatched replies.

    The function's module was executed only for this YAML (lmms-eval's `!function`), so no other
    task object is affected.
    """
    if "get_eval_result" in process_results.__globals__:
        process_results.__globals__["get_eval_result"] = lambda *_, **__: (None, 0)


def documents(lmms_task: Any) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """A task's rows, each with lmms-eval's chat messages."""
    for document in lmms_task.eval_docs:
        yield document, lmms_task.doc_to_messages(document)
