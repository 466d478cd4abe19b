"""Shared by all tests: one thread per process, no network, sf and its shim before torchvision."""

from __future__ import annotations

import gc
import os
from typing import TYPE_CHECKING, Any

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("MLFLOW_SERVER_ENABLE_JOB_EXECUTION", "false")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")

import pytest
import torch

if not torch.cuda.is_available():
    # Before triton is imported anywhere: kernels then run in its interpreter.
    os.environ.setdefault("TRITON_INTERPRET", "1")

import sf  # noqa: F401  (installs the import hook)

if TYPE_CHECKING:
    from sf.config import Vision

try:
    from hypothesis import HealthCheck, settings
except ModuleNotFoundError:  # a GPU machine has few packages; the kernels' tests do without it
    pass
else:
    # A busy machine is not an error in the code under test. CI tries the same examples every time;
    # elsewhere each run looks for new ones.
    settings.register_profile(
        "sf",
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow],
        derandomize=bool(os.environ.get("CI")),
    )
    settings.load_profile("sf")


LONGEST = (
    *(
        "test_engines",
        "test_resume",
        "test_ranks",
        "test_sharding",
        "test_slurm",
        "test_train_llava",
    ),
)
"""Files of a minute and more."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The longest tests first, so that workers end together; `gpu` tests need a CUDA device."""
    names = {f"{name}.py": at for at, name in enumerate(LONGEST)}
    items.sort(key=lambda item: names.get(item.path.name, len(names)))
    if torch.cuda.is_available():
        return
    for item in items:
        # Not `in item.keywords`: these hold the names of folders too, such as a checkout's.
        if item.get_closest_marker("gpu") is not None:
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


def pytest_collection_finish() -> None:
    """Exclude the loaded modules, which are not garbage, from every later collection.

    With all packages imported, one collection takes half a second, and profiling collects before
    each measurement.
    """
    gc.collect()
    gc.freeze()


@pytest.fixture
def vision() -> Vision:
    from sf.config import Vision

    return Vision(
        image_min_pixels=784,
        image_max_pixels=50176,
        video_min_pixels=784,
        video_max_pixels=50176,
        video_max_frames=4,
        video_fps=1.0,
    )


WORDS = "circle cross square triangle blue green red yellow white yes no A B C D"


@pytest.fixture(scope="session", params=["qwen2_vl", "qwen2_5_vl"])
def tiny(request) -> tuple[Any, Any]:
    """(model, processor) of each family; tests must not train it."""
    from sf.models import build_tiny

    model, processor = build_tiny(request.param, [WORDS] * 3, seed=0)
    return model.eval(), processor
