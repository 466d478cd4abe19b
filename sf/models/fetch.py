"""Real base models: from a local folder or a pinned hub revision into a result folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Any

from sf.atomic_files import read_json, write_json
from sf.data.hub import HubSource, hub_errors, parse_hub
from sf.errors import DataError, UnsupportedModelError
from sf.layout import STAMP
from sf.models.load import load_config

__all__ = ["check_family", "checkpoint_files", "fetch_checkpoint", "hub_folder"]

_KINDS = ("*.json", "*.txt", "*.jinja", "*.safetensors", "*.model")


def check_family(folder: Path, family: str) -> Any:
    """The configuration of a checkpoint that is of the declared family.

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


def hub_folder(hub: HubSource) -> tuple[Path, str]:
    """A hub repository's model files; (folder, commit).

    What came of a commit is listed beside huggingface_hub's own cache: a pinned revision whose
    files are all there asks no hub.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    listings = Path(constants.HF_HOME) / "sparsity-forcing" / hub.name.replace("/", "--")
    listing = listings / f"{hub.revision}.files.json"
    if hub.pinned and listing.is_file():
        record = read_json(listing)
        if all((Path(record["folder"]) / name).is_file() for name in record["files"]):
            return Path(record["folder"]), hub.revision
    with hub_errors("source", hub):
        commit = hub.revision
        if not hub.pinned:
            commit = str(HfApi().model_info(hub.name, revision=hub.revision).sha)
        folder = Path(snapshot_download(hub.name, revision=commit, allow_patterns=list(_KINDS)))
    files = sorted(file.name for kind in _KINDS for file in folder.glob(kind))
    listings.mkdir(parents=True, exist_ok=True)
    write_json(listings / f"{commit}.files.json", {"folder": str(folder), "files": files})
    return folder, commit


def _place(source: Path, target: Path) -> None:
    """Hard-link a file, which costs no space, or copy it across file systems."""
    real = source.resolve()
    target.unlink(missing_ok=True)
    try:
        os.link(real, target)
    except OSError:
        shutil.copy2(real, target)


def fetch_checkpoint(source: str, family: str, target: Path) -> dict[str, str]:
    """Put a checkpoint's files into `target`, unchanged.

    Args:
        source: a local folder, or "hub:OWNER/NAME@REVISION".
        family: the model type that it must have.
        target: existing folder.

    Returns:
        Where it came from: source, and for a hub the commit that the revision stands for.

    Raises:
        ConfigError: a malformed hub source.
        DataError: no weights or configuration at the source.
        EnvironmentFault: the hub does not answer.
        UnsupportedModelError: another architecture than declared.
    """
    origin = {"source": source}
    if source.startswith("hub:"):
        folder, origin["commit"] = hub_folder(parse_hub(source))
    else:
        folder = Path(source)
    check_family(folder, family)
    if not list(folder.glob("*.safetensors")):
        raise DataError(
            "source", source, "has no *.safetensors", "give a folder with a model's weights"
        )
    for file in checkpoint_files(folder):
        _place(file, target / file.name)
    return origin


def checkpoint_files(folder: Path) -> list[Path]:
    """The files of a checkpoint's folder that are taken over."""
    files = [file for kind in _KINDS for file in sorted(folder.glob(kind))]
    return [file for file in files if file.name not in (STAMP, "metrics.json", "base.json")]
