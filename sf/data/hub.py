"""A dataset repository on a hub -> a local data root: pinned, resumable, only the needed files."""

from __future__ import annotations

import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from sf.atomic_files import read_json, write_json
from sf.data.archives import archive_stem, is_archive
from sf.disk import require_room
from sf.errors import ConfigError, EnvironmentFault
from sf.redaction import without_credentials

__all__ = [
    "HubSource",
    "Repository",
    "announce",
    "hub_errors",
    "is_hub_failure",
    "needed_files",
    "notes_folder",
    "page_of",
    "parse_hub",
    "record_commit",
    "recorded_commit",
    "require_access",
]

ORIGIN = "origin.json"

_SOURCE = re.compile(r"hub:(?P<name>[\w.-]+/[\w.-]+)@(?P<revision>[\w./-]+)")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_PART = re.compile(r"([._-]?(part|videos|images|chunk|shard))?[._-]?\d*$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class HubSource:
    """OWNER/NAME at a revision."""

    name: str
    revision: str

    @property
    def pinned(self) -> bool:
        """Whether the revision is a commit; a branch or tag can move."""
        return _COMMIT.fullmatch(self.revision) is not None


def parse_hub(source: str) -> HubSource:
    """Parse "hub:OWNER/NAME@REVISION".

    Raises:
        ConfigError: another form; the revision is required, so that a study can be repeated.
    """
    match = _SOURCE.fullmatch(source)
    if not match:
        rule = "it must be hub:OWNER/NAME@REVISION"
        raise ConfigError("prepare.source", source, rule, "pin a commit of the repository")
    return HubSource(match["name"], match["revision"])


def notes_folder(name: str) -> Path:
    """The folder with the records of a repository's local files."""
    from huggingface_hub import constants

    return Path(constants.HF_HOME) / "sparsity-forcing" / name.replace("/", "--")


def record_commit(folder: Path, source: str, commit: str) -> None:
    """Write `origin.json`: the commit that a source's revision denotes from now on."""
    write_json(folder / ORIGIN, {"source": source, "commit": commit})


def recorded_commit(source: str, folders: Iterable[Path]) -> str | None:
    """The commit recorded for exactly this source in the first of the folders that has one."""
    for folder in folders:
        if (folder / ORIGIN).is_file():
            record = read_json(folder / ORIGIN)
            if record["source"] == source:
                return str(record["commit"])
    return None


def needed_files(files: Sequence[str], media: Iterable[str]) -> list[str]:
    """The files of a repository that contain the wanted media.

    Media stored as files are taken directly. For the others, all archives that can contain them
    are taken: those in one of their folders, or with the name of one. If archives in one folder
    are named after sub-folders of the media, only the matching ones are taken.

    Args:
        files: all paths in the repository.
        media: media paths relative to the data root.
    """
    present = set(files)
    needed: set[str] = set()
    folders: set[str] = set()
    for path in media:
        if path in present:
            needed.add(path)
        else:
            folders.add(posixpath.dirname(path))
    archives = [name for name in files if is_archive(name)]
    for folder in folders:
        needed.update(_archives_for(folder, archives))
    return sorted(needed)


def _archives_for(folder: str, archives: Sequence[str]) -> list[str]:
    parts = folder.split("/")
    fitting, general = [], []
    for archive in archives:
        home = posixpath.dirname(archive)
        if home and parts[: len(home.split("/"))] != home.split("/"):
            continue
        stem = archive_stem(archive)
        below = parts[len(home.split("/")) if home else 0 :]
        if {stem, _PART.sub("", stem)} & set(below):
            fitting.append(archive)
        elif home:
            general.append(archive)
    return fitting or general


class Repository:
    """A pinned dataset repository, mirrored file by file into a local folder.

    huggingface_hub downloads the files: it resumes interrupted downloads and skips complete files.
    `HF_ENDPOINT` and `HF_TOKEN` are respected.

    The commit's file list is stored next to the mirror: a later call whose files are all present
    needs no network.

    Args:
        source: name and revision.
        commit: an earlier resolution of a branch or tag, used instead of resolving it again.

    Raises:
        EnvironmentFault: the hub does not answer, or has no such repository or revision.
    """

    def __init__(self, source: HubSource, commit: str | None = None) -> None:
        from huggingface_hub import HfApi

        self._api = HfApi()
        self.source = source
        parent = notes_folder(source.name)
        known = source.revision if source.pinned else commit
        listing = parent / f"{known}.sizes.json"
        if known and listing.is_file():
            self.commit = known
            self.sizes: dict[str, int] = read_json(listing)
        else:
            with hub_errors("prepare.source", source):
                info = self._api.dataset_info(
                    source.name, revision=known or source.revision, files_metadata=True
                )
            require_access({source.name: info})
            self.commit = str(info.sha)
            self.sizes = {file.rfilename: file.size or 0 for file in info.siblings or ()}
            parent.mkdir(parents=True, exist_ok=True)
            write_json(parent / f"{self.commit}.sizes.json", self.sizes)
        self.files = sorted(self.sizes)
        self.root = parent / self.commit

    def fetch(self, names: Iterable[str]) -> None:
        """Download the files missing below `root`, after announcing their size.

        Raises:
            EnvironmentFault: a download fails permanently, or the disk lacks the space.
        """
        from sf.progress import progress

        wanted = list(names)
        missing = {name: self.sizes[name] for name in wanted if not (self.root / name).is_file()}
        announce(self.source.name, missing, self.root)
        with progress(f"download {self.source.name}", len(wanted)) as bar:
            for name in wanted:
                with hub_errors("prepare.source", self.source):
                    self._api.hf_hub_download(
                        self.source.name,
                        name,
                        repo_type="dataset",
                        revision=self.commit,
                        local_dir=self.root,
                    )
                bar.advance(1, name)


def announce(name: str, sizes: Mapping[str, int], folder: Path) -> None:
    """Announce a download on stderr, and check that the disk has the space for it.

    Args:
        name: of the repository.
        sizes: bytes of each file.
        folder: the destination; created if missing.

    Raises:
        EnvironmentFault: the disk has less space.
    """
    if not sizes:
        return
    size, files = sum(sizes.values()), "1 file" if len(sizes) == 1 else f"{len(sizes)} files"
    what = f"{files} of {name}, {size / 2**30:.2f} GiB"
    print(f"to be downloaded: {what}, to {folder}", file=sys.stderr, flush=True)
    folder.mkdir(parents=True, exist_ok=True)
    require_room(folder, size, what, "set HF_HOME to a folder on a larger disk")


def require_access(repositories: Mapping[str, Any], kind: str = "dataset") -> None:
    """Report all gated repositories that the token gives no access to, in one error.

    Args:
        repositories: the hub's information on each, by name.
        kind: "dataset" or "model".

    Raises:
        EnvironmentFault: there is no token, or its account has not accepted a repository's terms.
    """
    from huggingface_hub import HfApi, get_token
    from huggingface_hub.errors import GatedRepoError

    closed = []
    for name, info in repositories.items():
        if not getattr(info, "gated", False):
            continue
        try:
            if get_token() is not None:
                HfApi().auth_check(name, repo_type=kind)
                continue
        except GatedRepoError:
            pass
        closed.append(page_of(name, kind))
    if closed:
        state = "is not set" if get_token() is None else "gives no access"
        rule = f"{state}, and these sources are gated: {', '.join(closed)}"
        remedy = "accept the terms there and set HF_TOKEN to a token of that account"
        raise EnvironmentFault("HF_TOKEN", None, rule, remedy)


def page_of(name: str, kind: str = "dataset") -> str:
    """The URL of a repository's page, where its terms can be accepted."""
    from huggingface_hub import constants

    folder = "datasets/" if kind == "dataset" else ""
    return f"{without_credentials(constants.ENDPOINT)}/{folder}{name}"


@contextmanager
def hub_errors(field: str, source: HubSource, kind: str = "dataset") -> Iterator[None]:
    """Turn exceptions of huggingface_hub into one clear error.

    Args:
        field: parameter that names the source.
        source: the requested repository.
        kind: "dataset" or "model".

    Raises:
        EnvironmentFault: the hub does not answer, or lacks the repository.
    """
    try:
        yield
    except Exception as error:
        if not is_hub_failure(error):
            raise
        what = f"{source.name}@{source.revision}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        rule = f"cannot be fetched from {page_of(source.name, kind)}: {reason}"
        remedy = (
            "check name and revision, HF_TOKEN (gated sources need it), the network and "
            "HF_ENDPOINT; without a network, run the stage fetch on a connected machine that has "
            "the same HF_HOME; then run it again"
        )
        raise EnvironmentFault(field, what, rule, remedy) from error


def is_hub_failure(error: Exception) -> bool:
    """Whether huggingface_hub or its HTTP library raised it; the library depends on the version."""
    from huggingface_hub import errors

    hub = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
    client = type(error).__module__.split(".")[0]
    return isinstance(error, hub) or client in ("httpx", "httpx2", "httpcore", "requests")
