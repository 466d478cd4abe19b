"""A dataset repository on a hub -> a local data root: pinned, resumable, only what is needed."""

from __future__ import annotations

import json
import posixpath
import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from sf.atomic_files import write_text
from sf.data.archives import archive_stem, is_archive
from sf.errors import ConfigError, EnvironmentFault

__all__ = [
    "HubSource",
    "Repository",
    "hub_errors",
    "is_hub_failure",
    "needed_files",
    "parse_hub",
    "record_commit",
    "recorded_commit",
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
        ConfigError: another form; the revision is not optional, so that a study can be repeated.
    """
    found = _SOURCE.fullmatch(source)
    if not found:
        rule = "it must be hub:OWNER/NAME@REVISION"
        raise ConfigError("prepare.source", source, rule, "pin a commit of the repository")
    return HubSource(found["name"], found["revision"])


def record_commit(folder: Path, source: str, commit: str) -> None:
    """Write `origin.json`: the commit that the revision of a source stands for from now on."""
    write_text(folder / ORIGIN, json.dumps({"source": source, "commit": commit}) + "\n")


def recorded_commit(source: str, folders: Iterable[Path]) -> str | None:
    """The commit that the first of these folders records for this very source, if any does."""
    for folder in folders:
        if (folder / ORIGIN).is_file():
            record = json.loads((folder / ORIGIN).read_text(encoding="utf-8"))
            if record["source"] == source:
                return str(record["commit"])
    return None


def needed_files(files: Sequence[str], media: Iterable[str]) -> list[str]:
    """The files of a repository that hold the wanted media.

    Media that lie in the repository as files are taken as such. For the others, archives are taken
    that can hold them: those in one of their folders or named like one of their folders. Where
    archives in one folder are named after sub-folders of the media, only the fitting ones are
    taken.

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

    Files are downloaded by huggingface_hub: an interrupted download goes on where it was, a
    finished file is not fetched again. `HF_ENDPOINT` and `HF_TOKEN` are respected.

    Once the commit is known its list of files is kept beside the mirror: a later call whose files
    are all there needs no network.

    Args:
        source: name and revision.
        folder: parent of the local mirrors; None: below huggingface_hub's own home.
        commit: what a branch or tag stood for earlier, used instead of asking what it stands for
            now.

    Raises:
        EnvironmentFault: the hub does not answer, or has no such repository or revision.
    """

    def __init__(
        self, source: HubSource, folder: Path | None = None, commit: str | None = None
    ) -> None:
        from huggingface_hub import HfApi, constants

        self._api = HfApi()
        self.source = source
        parent = (folder or Path(constants.HF_HOME) / "sparsity-forcing") / source.name.replace(
            "/", "--"
        )
        known = source.revision if source.pinned else commit
        listing = parent / f"{known}.json"
        if known and listing.is_file():
            self.commit = known
            self.files: list[str] = json.loads(listing.read_text(encoding="utf-8"))
        else:
            with hub_errors("prepare.source", source):
                info = self._api.dataset_info(source.name, revision=known or source.revision)
            self.commit = str(info.sha)
            self.files = sorted(sibling.rfilename for sibling in info.siblings or ())
            write_text(parent / f"{self.commit}.json", json.dumps(self.files))
        self.root = parent / self.commit

    def fetch(self, names: Iterable[str]) -> None:
        """Have these files below `root`.

        Raises:
            EnvironmentFault: a download fails for good.
        """
        from sf.progress import progress

        wanted = list(names)
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


@contextmanager
def hub_errors(field: str, source: HubSource) -> Iterator[None]:
    """Turns what huggingface_hub raises into one clear error.

    Args:
        field: parameter that names the source.
        source: what is asked for.

    Raises:
        EnvironmentFault: the hub does not answer, or does not have it.
    """
    try:
        yield
    except Exception as error:
        if not is_hub_failure(error):
            raise
        what = f"{source.name}@{source.revision}"
        reason = (str(error).strip().splitlines() or [type(error).__name__])[0]
        remedy = (
            "check name, revision, HF_TOKEN (gated ones need it) and network; then run it again"
        )
        raise EnvironmentFault(field, what, reason, remedy) from error


def is_hub_failure(error: Exception) -> bool:
    """Whether huggingface_hub or its HTTP library raised it; the latter has changed."""
    from huggingface_hub import errors

    hub = (errors.HfHubHTTPError, errors.LocalEntryNotFoundError, errors.OfflineModeIsEnabled)
    client = type(error).__module__.split(".")[0]
    return isinstance(error, hub) or client in ("httpx", "httpx2", "httpcore", "requests")
