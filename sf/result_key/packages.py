"""The packages whose versions count in a result's key, and the parts of the version that count.

A key includes the packages that the stage's code imports. Every package that any stage imports must
be in one of the two tables; a test fails if one is missing.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable
from importlib import metadata
from typing import NamedTuple

__all__ = ["COUNTED", "UNCOUNTED", "counted_version", "counted_versions"]


class Counted(NamedTuple):
    """One package.

    Attributes:
        parts: number of version parts that count; 2 is major and minor.
        reason: why it counts.
        distribution: its name on the package index, if it differs from the import's.
        uses: packages that count with it, even if our code does not import them.
    """

    parts: int
    reason: str
    distribution: str = ""
    uses: tuple[str, ...] = ()


COUNTED: dict[str, Counted] = {
    "torch": Counted(2, "computes everything; a minor release changes kernels and random draws"),
    "transformers": Counted(2, "model code, processors, generation"),
    "trl": Counted(2, "the training loop and its loss", uses=("accelerate", "transformers")),
    "accelerate": Counted(2, "devices, precision and gradient sums of training"),
    "peft": Counted(2, "adapters"),
    "triton": Counted(2, "compiles the attention kernels"),
    "flash_attn": Counted(2, "attention kernels, used if installed", "flash-attn"),
    "torchvision": Counted(2, "resizes images and frames"),
    "tokenizers": Counted(2, "text to tokens"),
    "lmms_eval": Counted(
        2, "the benchmarks' prompts, parsers and scores", "lmms-eval", ("datasets", "math_verify")
    ),
    "qwen_vl_utils": Counted(2, "frames of the benchmarks' videos", "qwen-vl-utils"),
    "cv2": Counted(1, "counts the benchmarks' frames", "opencv-python-headless"),
    "decord": Counted(2, "decodes the benchmarks' videos"),
    "math_verify": Counted(2, "judges mathematical answers", "math-verify"),
    "rouge_score": Counted(2, "scores free-form answers", "rouge-score", ("nltk",)),
    "jiwer": Counted(2, "scores OCR answers", uses=("rapidfuzz",)),
    "nltk": Counted(1, "stems of words, unchanged for years"),
    "rapidfuzz": Counted(1, "edit distances, which are exact"),
    "datasets": Counted(1, "only reads and orders rows"),
    "av": Counted(1, "decodes videos; a major release follows one of FFmpeg"),
    "PIL": Counted(1, "decodes and resizes images", "pillow"),
    "numpy": Counted(1, "random streams stay the same within a major release"),
    "scipy": Counted(1, "intervals and tests, exact to rounding"),
    "pandas": Counted(1, "tables; a patch release must not cost a training run"),
}
UNCOUNTED: dict[str, str] = {
    "filelock": "locks",
    "huggingface_hub": "fetches files, whose content counts",
    "jinja2": "renders a page",
    "loguru": "prints",
    "matplotlib": "appearance of figures, not numbers",
    "mlflow": "records",
    "psutil": "reads the machine's memory",
    "pyarrow": "writes and reads tables without loss",
    "pydantic": "checks parameters, whose values count",
    "requests": "fetches files, whose content counts",
    "rich": "prints",
    "ruamel": "reads parameters, whose values count",
    "safetensors": "writes and reads weights without loss",
    "sqlalchemy": "records",
    "tenacity": "repeats failed downloads",
    "typer": "the command line",
}
ABSENT = "absent"


@functools.cache
def counted_version(package: str) -> str:
    """The part of a package's version that counts, such as "2.13"; "absent" if not installed.

    Args:
        package: a key of `COUNTED`.
    """
    counted = COUNTED[package]
    try:
        version = metadata.version(counted.distribution or package)
    except metadata.PackageNotFoundError:
        return ABSENT
    return ".".join(version.split("+")[0].split(".")[: counted.parts])


def counted_versions(imported: Iterable[str]) -> dict[str, str]:
    """{package: counted part of its version} for the imported packages that count."""
    names = COUNTED.keys() & set(imported)
    names |= {other for name in names for other in COUNTED[name].uses}
    return {name: counted_version(name) for name in sorted(names)}
