"""lmms-eval's own tasks, built from its packaged YAMLs over hub data or a local folder.

Only the YAMLs that a run needs are read: lmms-eval's TaskManager indexes some 1,500 of them first,
which takes seconds. The task objects are lmms-eval's, names, prompts, parsers and aggregations
included; what is overridden is where the rows come from, the generation limit, and the metrics that
only write submission files.

A local folder ("benchmark home") looks like an HF_HOME:

    hub/OWNER/NAME/...     a dataset repository's files as they lie on the hub
    videomme/data/*.mp4    videos where lmms-eval looks for them under HF_HOME, one folder a task
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
from sf.extras import extra

__all__ = ["benchmark_home", "build_task", "documents", "repository_folder"]

_FILES_ONLY = ("submission",)  # metrics that write a file for a server and carry no score


def repository_folder(home: Path, task: Task) -> Path:
    """The folder of a task's dataset repository in a benchmark home."""
    return home / "hub" / task.repository


@contextmanager
def benchmark_home(home: Path | None, cache: Path) -> Iterator[None]:
    """Make lmms-eval look for media in `home` and keep its Arrow files in `cache`.

    The task modules read HF_HOME when they are executed, which happens with every YAML that is
    loaded: build tasks inside this context. Models that are already on the hub cache's path are
    not affected: huggingface_hub has read HF_HOME at its own import.

    Args:
        home: a benchmark home; None leaves HF_HOME alone (hub data).
        cache: a folder for Arrow files; nothing is ever written into `home`.
    """
    values = {"LMMS_EVAL_DATASETS_CACHE": str(cache.resolve())}
    if home is not None:
        values["HF_HOME"] = str(home.resolve())
    else:
        default = os.path.expanduser(os.environ.get("HF_HOME", "~/.cache/huggingface"))
        values["HF_HOME"] = default  # two task modules demand that it is set
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
    """lmms-eval's own object of a task, a `ConfigurableMessagesTask`.

    Call it inside `benchmark_home`.

    Args:
        task: which task.
        home: a benchmark home, or None for the hub, from which the task's videos are unpacked.
        most_new_tokens: upper bound of the generation limit (0: none), for stand-ins whose replies
            are known to be short.
        judge: let a task ask its configured judge about replies that it cannot parse. Without, such
            a reply counts as wrong at once, which is what an unreachable judge gives after eleven
            tries.
        revision: of the repository on the hub.
        model_name: lmms-eval's key for model-specific prompts; no packaged task knows ours, so it
            gets every task's default prompt.

    Raises:
        DataError: the folder lacks the repository, its rows cannot be read, or there is none of
            the split.
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
    else:  # lmms-eval's `token: True` refuses public repositories where no token is set
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

        def doc_to_text(self, *args: Any, **options: Any) -> Any:
            return self._or_nothing(super().doc_to_text, *args, **options)

        def doc_to_target(self, *args: Any, **options: Any) -> Any:
            return self._or_nothing(super().doc_to_target, *args, **options)

    return Built


def _without_judge(process_results: Any) -> None:
    """TempCompass asks a GPT about unmatched replies: answer for it.

    The function's module was executed for this one YAML alone (lmms-eval's `!function`), so no
    other task object is touched.
    """
    if "get_eval_result" in process_results.__globals__:
        process_results.__globals__["get_eval_result"] = lambda *_, **__: (None, 0)


def documents(lmms_task: Any) -> Iterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
    """A task's rows, each with the chat messages that lmms-eval makes of it."""
    for document in lmms_task.eval_docs:
        yield document, lmms_task.doc_to_messages(document)
