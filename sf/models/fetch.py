"""Published base models: from a local folder or a pinned hub revision into a result folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from sf.atomic_files import read_json
from sf.data.hub import HubSource, parse_hub, recorded_commit
from sf.data.hub_cache import WEIGHT_FILES, hub_folder
from sf.disk import require_room
from sf.errors import DataError, UnsupportedModelError
from sf.layout import STAMP
from sf.models.convert_llava import convert_llava
from sf.models.load import load_config, readable

__all__ = ["check_family", "checkpoint_files", "fetch_checkpoint"]

LLAVA_NEXT = "llava_qwen"
"""The model type in LLaVA-NeXT's files that `convert_llava` knows."""


def check_family(folder: Path, family: str) -> Any:
    """The configuration of a checkpoint, checked to be of the declared family.

    Raises:
        DataError: no checkpoint in the folder.
        UnsupportedModelError: another architecture than declared, or an unsupported one.
    """
    config = load_config(folder)
    if config.model_type != family:
        raise UnsupportedModelError(
            "family",
            family,
            f"the checkpoint's architecture is {config.model_type}",
            "correct `family` or `source` in the parameters",
        )
    return config


def _place(source: Path, target: Path) -> None:
    """Hard-link a file, or copy it across file systems."""
    real = source.resolve()
    target.unlink(missing_ok=True)
    try:
        os.link(real, target)
    except OSError:
        shutil.copy2(real, target)


def _in_llava_next_format(folder: Path) -> bool:
    """Whether a checkpoint is of LLaVA-NeXT's code, such as LLaVA-Video-7B-Qwen2."""
    config = folder / "config.json"
    if not config.is_file():
        return False
    with readable("config.json", folder):
        return bool(read_json(config).get("model_type") == LLAVA_NEXT)


def fetch_checkpoint(
    source: str, family: str, target: Path, fetched: Path | None = None, work: Path | None = None
) -> dict[str, str]:
    """Put a checkpoint's files into `target`, unchanged.

    A hub's checkpoint in LLaVA-NeXT's format is converted if the family is `llava_onevision`
    (`sf.models.convert_llava`); a local one is to be converted before.

    Args:
        source: a local folder, or "hub:OWNER/NAME@REVISION".
        family: the required model type.
        target: existing folder.
        fetched: result of the stage `fetch`, which resolves a branch or tag to a commit.
        work: folder for a conversion, on the disk of `target`; a later call continues it.

    Returns:
        The origin: the source and, for a hub, the commit of the revision; `converted` names the
        format that it was converted from.

    Raises:
        ConfigError: a malformed hub source.
        DataError: no weights or configuration at the source.
        EnvironmentFault: the hub does not answer, or the disk lacks space.
        UnsupportedModelError: another architecture than declared.
    """
    origin = {"source": source}
    if source.startswith("hub:"):
        hub = parse_hub(source)
        commit = recorded_commit(source, [fetched] if fetched else [])
        folder, origin["commit"] = hub_folder(HubSource(hub.name, commit or hub.revision))
        if work is not None and family == "llava_onevision" and _in_llava_next_format(folder):
            convert_llava(f"hub:{hub.name}@{origin['commit']}", work / "converted")
            folder, origin["converted"] = work / "converted", LLAVA_NEXT
    else:
        folder = Path(source)
    check_family(folder, family)
    if not list(folder.glob("*.safetensors")):
        raise DataError(
            "source", source, "has no *.safetensors", "give a folder with a model's weights"
        )
    files = checkpoint_files(folder)
    if os.stat(files[0].resolve()).st_dev != os.stat(target).st_dev:  # they are copied
        require_room(target, sum(file.stat().st_size for file in files), f"the weights of {source}")
    for file in files:
        _place(file, target / file.name)
    return origin


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's folder that `fetch_checkpoint` takes."""
    files = [file for kind in WEIGHT_FILES for file in sorted(folder.glob(kind))]
    return [file for file in files if file.name not in (STAMP, "metrics.json", "base.json")]
