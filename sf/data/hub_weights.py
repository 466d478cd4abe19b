"""The files of a model's repository on a hub, in the hub's cache on this machine."""

from __future__ import annotations

from collections.abc import Iterable
from fnmatch import fnmatch
from pathlib import Path
from typing import Any

from sf.atomic_files import read_json, write_json
from sf.data.hub import HubSource, announce, hub_errors, require_access

__all__ = ["WEIGHT_FILES", "hub_folder"]

WEIGHT_FILES = ("*.json", "*.txt", "*.jinja", "*.safetensors", "*.model")
"""Patterns of the files that make a checkpoint."""


def hub_folder(hub: HubSource) -> tuple[Path, str]:
    """A hub repository's model files; (folder, commit).

    What came of a commit is listed beside huggingface_hub's own cache: a pinned revision whose
    files are all there asks no hub. Else the size is said, and the disk checked, before the first
    byte.

    Raises:
        EnvironmentFault: the hub does not answer or gives no access, or the disk has no room.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    listings = Path(constants.HF_HOME) / "sparsity-forcing" / hub.name.replace("/", "--")
    listing = listings / f"{hub.revision}.files.json"
    if hub.pinned and listing.is_file():
        record = read_json(listing)
        if all((Path(record["folder"]) / name).is_file() for name in record["files"]):
            return Path(record["folder"]), hub.revision
    with hub_errors("source", hub, "model"):
        info = HfApi().model_info(hub.name, revision=hub.revision, files_metadata=True)
        commit = str(info.sha)
        require_access({hub.name: info}, "model")
        sizes = _missing_files(hub.name, commit, info.siblings or ())
        announce(hub.name, sizes, Path(constants.HF_HUB_CACHE))
        folder = Path(
            snapshot_download(hub.name, revision=commit, allow_patterns=list(WEIGHT_FILES))
        )
    files = sorted(file.name for kind in WEIGHT_FILES for file in folder.glob(kind))
    listings.mkdir(parents=True, exist_ok=True)
    write_json(listings / f"{commit}.files.json", {"folder": str(folder), "files": files})
    return folder, commit


def _missing_files(name: str, commit: str, siblings: Iterable[Any]) -> dict[str, int]:
    """Bytes of each file of a repository that is wanted and not in the hub's cache."""
    from huggingface_hub import try_to_load_from_cache

    return {
        file.rfilename: file.size or 0
        for file in siblings
        if any(fnmatch(file.rfilename, kind) for kind in WEIGHT_FILES)
        and not isinstance(try_to_load_from_cache(name, file.rfilename, revision=commit), str)
    }
