"""A pytest plugin for other projects' suites: every model that a test runs is under `sparsify`.

With `SPARSIFY_P`, the outermost call of a transformers model with a decoder, or of its `generate`,
applies `sparsify(model, TopP(p))` first, until the end of the test. `SPARSIFY_EVERY_LAYER` calls
the sparse attention function also at p = 1. `SPARSIFY_RESULTS` names the JSON file for
`{test: [outcome, last line of its error]}` and, under "models", the classes that ran sparse or
have no decoder.
"""

from __future__ import annotations

import json
import os
import threading
from collections.abc import Iterator
from contextlib import ExitStack
from functools import wraps
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import GenerationMixin, PreTrainedModel

from sf import TopP, sparsify
from sf.attention.decoder_hooks import find_decoder
from sf.errors import UnsupportedModelError

P = os.environ.get("SPARSIFY_P")
EVERY_LAYER = bool(os.environ.get("SPARSIFY_EVERY_LAYER"))
_results: dict[str, list[str]] = {}
_models: dict[str, set[str]] = {"sparse": set(), "no decoder": set()}
_thread = threading.local()
_stack = ExitStack()
_applied: set[int] = set()
_forward, _generate = PreTrainedModel.__call__, GenerationMixin.generate


def _apply(model: Any) -> None:
    if getattr(_thread, "inside", False):
        return
    name = type(model).__name__
    try:
        _, decoder = find_decoder(model)
    except UnsupportedModelError:
        _models["no decoder"].add(name)
        return
    if id(decoder) in _applied:
        return
    _stack.enter_context(sparsify(model, TopP(p=float(P or 1)), skip_dropped=not EVERY_LAYER))
    _stack.callback(_applied.discard, id(decoder))
    _applied.add(id(decoder))
    _models["sparse"].add(name)


def _within(run: Any, *args: Any, **kwargs: Any) -> Any:
    """`run`, whose models are parts of the model that is called."""
    before = getattr(_thread, "inside", False)
    _thread.inside = True
    try:
        return run(*args, **kwargs)
    finally:
        _thread.inside = before


@wraps(_forward)
def _call(self: Any, *args: Any, **kwargs: Any) -> Any:
    if torch.compiler.is_compiling():
        return _forward(self, *args, **kwargs)
    _apply(self)
    return _within(_forward, self, *args, **kwargs)


@wraps(_generate)
def _sparse_generate(self: Any, *args: Any, **kwargs: Any) -> Any:
    if "generate" in vars(self) or getattr(_thread, "inside", False):
        return _generate(self, *args, **kwargs)
    _apply(self)
    own = vars(self).get("generate")  # set by `sparsify`
    return own(*args, **kwargs) if own else _generate(self, *args, **kwargs)


if P is not None:
    PreTrainedModel.__call__ = _call
    GenerationMixin.generate = _sparse_generate


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With a selection there are no attention weights, for which transformers has a switch."""
    for item in items if P is not None and float(P) < 1 else ():
        case = getattr(item, "cls", None)
        if getattr(case, "has_attentions", False):
            case.has_attentions = False


@pytest.hookimpl(wrapper=True)
def pytest_runtest_protocol() -> Iterator[None]:
    with _stack:
        return (yield)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    """The worst of a test and its subtests."""
    before = _results.get(report.nodeid, ["", ""])[0]
    if before != "failed" and (report.when == "call" or report.outcome != "passed"):
        error = ""
        if report.failed:
            crash = getattr(report.longrepr, "reprcrash", None)
            error = str(report.longrepr if crash is None else crash.message)
        _results[report.nodeid] = [report.outcome, error]


def pytest_sessionfinish() -> None:
    models = {kind: sorted(names) for kind, names in _models.items()}
    Path(os.environ["SPARSIFY_RESULTS"]).write_text(
        json.dumps({"models": models, "tests": _results})
    )
