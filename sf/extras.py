"""The optional extras of the installation, and one clear error if one is missing.

The core provides models, media, tables, figures and the command line. Training, evaluation on
published benchmarks and complete studies need extras of `pyproject.toml`.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sf.errors import MissingExtra

__all__ = ["MODULES", "extra", "extra_of", "missing"]

MODULES: Mapping[str, tuple[str, ...]] = {
    "train": ("trl", "accelerate", "peft", "datasets"),
    "eval": (
        "lmms_eval",
        "datasets",
        "decord",
        "cv2",
        "qwen_vl_utils",
        "latex2sympy2",
        "math_verify",
        "tenacity",
        "loguru",
        "requests",
    ),
    "serve": ("fastapi", "uvicorn", "starlette", "openai"),
    "pipeline": ("snakemake", "dvc", "mlflow", "sqlalchemy", "requests"),
    "gpu": ("flash_attn",),
}
"""The modules of each extra."""

_PURPOSES = {
    "train": "training",
    "eval": "evaluation on published benchmarks",
    "serve": "the server",
    "pipeline": "running complete studies with tracking",
    "gpu": "flash attention",
}


def extra_of(module: str) -> str | None:
    """The extra that contains a module ("trl.models" -> "train"), or None."""
    root = module.partition(".")[0]
    return next((name for name, modules in MODULES.items() if root in modules), None)


def missing(module: str, name: str) -> MissingExtra:
    """The error for a module of the extra `name` that is not installed."""
    return MissingExtra(
        "package",
        module.partition(".")[0],
        f"{_PURPOSES[name]} needs it, but it is not installed",
        f"install the extra {name!r}: pip install 'sparsity-forcing[{name}]', "
        f"or in a checkout pip install -e '.[{name}]'",
    )


@contextmanager
def extra(name: str) -> Iterator[None]:
    """Import modules of the extra `name`.

    ```python
    with extra("train"):
        from trl import GRPOTrainer
    ```

    Raises:
        MissingExtra: a module of the extra is not installed. The error for any other missing
            module, a sign of a damaged installation, is not changed.
    """
    try:
        yield
    except ModuleNotFoundError as error:
        root = (error.name or "").partition(".")[0]
        if isinstance(error, MissingExtra) or root not in MODULES[name]:
            raise
        raise missing(root, name) from error
