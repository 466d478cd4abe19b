"""Published base models: from a local folder or a pinned hub revision into a result folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from sf.data.hub import HubSource, parse_hub, recorded_commit
from sf.data.hub_cache import WEIGHT_FILES, hub_folder
from sf.disk import require_room
from sf.errors import DataError, UnsupportedModelError
from sf.layout import STAMP
from sf.models.load import load_config

__all__ = ["check_family", "checkpoint_files", "fetch_checkpoint"]


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


def fetch_checkpoint(
    source: str, family: str, target: Path, fetched: Path | None = None
) -> dict[str, str]:
    """Put a checkpoint's files into `target`, unchanged.

    Args:
        source: a local folder, or "hub:OWNER/NAME@REVISION".
        family: the required model type.
        target: existing folder.
        fetched: result of the stage `fetch`, which resolves a branch or tag to a commit.

    Returns:
        The origin: the source and, for a hub, the commit of the revision.

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
