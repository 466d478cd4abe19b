"""Repositories in the local hub cache, and whether they are complete.

The cache itself does not record this: a killed download leaves a folder with some of the files.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatch
from pathlib import Path

from sf.atomic_files import read_json, write_json
from sf.data.hub import HubSource, announce, hub_errors, notes_folder, require_access

__all__ = ["WEIGHT_FILES", "hub_folder", "missing_files", "note_whole", "whole_folder"]

WEIGHT_FILES = ("*.json", "*.txt", "*.jinja", "*.safetensors", "*.model")
"""Patterns of a checkpoint's files."""


def note_whole(name: str, commit: str, folder: Path, files: Iterable[str]) -> None:
    """Record that a cache folder has all wanted files of a repository at a commit."""
    notes_folder(name).mkdir(parents=True, exist_ok=True)
    record = {"folder": str(folder), "files": sorted(files)}
    write_json(notes_folder(name) / f"{commit}.files.json", record)


def whole_folder(name: str, commit: str) -> Path | None:
    """The folder recorded by `note_whole`, if all its files still exist; makes no request."""
    note = notes_folder(name) / f"{commit}.files.json"
    if not note.is_file():
        return None
    record = read_json(note)
    folder = Path(record["folder"])
    return folder if all((folder / file).is_file() for file in record["files"]) else None


def missing_files(
    name: str, commit: str, sizes: Mapping[str, int], kind: str = "dataset"
) -> dict[str, int]:
    """The files of a repository that are missing from the hub cache.

    Args:
        name: of the repository.
        commit: of the repository.
        sizes: bytes of each file.
        kind: "dataset" or "model".
    """
    from huggingface_hub import try_to_load_from_cache

    return {
        file: size
        for file, size in sizes.items()
        if not isinstance(try_to_load_from_cache(name, file, revision=commit, repo_type=kind), str)
    }


def hub_folder(hub: HubSource) -> tuple[Path, str]:
    """The folder and the commit of a hub repository's model files.

    No request is made for a pinned revision that is complete in the cache. Otherwise the size is
    announced and the disk space checked before the download.

    Raises:
        EnvironmentFault: the hub does not answer or gives no access, or the disk lacks space.
    """
    from huggingface_hub import HfApi, constants, snapshot_download

    known = whole_folder(hub.name, hub.revision) if hub.pinned else None
    if known is not None:
        return known, hub.revision
    with hub_errors("source", hub, "model"):
        info = HfApi().model_info(hub.name, revision=hub.revision, files_metadata=True)
        commit = str(info.sha)
        require_access({hub.name: info}, "model")
        sizes = {
            file.rfilename: file.size or 0
            for file in info.siblings or ()
            if any(fnmatch(file.rfilename, kind) for kind in WEIGHT_FILES)
        }
        missing = missing_files(hub.name, commit, sizes, "model")
        announce(hub.name, missing, Path(constants.HF_HUB_CACHE))
        folder = Path(
            snapshot_download(hub.name, revision=commit, allow_patterns=list(WEIGHT_FILES))
        )
    note_whole(hub.name, commit, folder, sizes)
    return folder, commit
