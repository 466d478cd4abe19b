"""A dataset repository on a hub, served from this machine by the hub's own protocol."""

from __future__ import annotations

import hashlib
import http.server
import json
import socket
import threading
import zipfile
from pathlib import Path

import pytest
from clips import record, write_clip, write_picture

from sf.data.hub import HubSource, Repository, needed_files, parse_hub
from sf.data.preparation import Selection, open_source, use_media
from sf.errors import ConfigError, EnvironmentFault

COMMIT = "c" * 40
NAME = "someone/rows"


class Hub(http.server.ThreadingHTTPServer):
    """Serves the files of one folder as one dataset repository.

    Attributes:
        asked: (path, first byte) of every download.
        break_after: bytes after which a download of a file breaks off, once.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: list[tuple[str, int]] = []
        self.break_after: dict[str, int] = {}


class Handler(http.server.BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Hub

    def log_message(self, *_: object) -> None:
        """Say nothing."""

    def _json(self, content: object, status: int = 200, **headers: str) -> None:
        body = json.dumps(content).encode()
        self.send_response(status)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            self.send_header(name.replace("_", "-"), value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def do_GET(self) -> None:
        folder = self.server.folder
        if self.path.startswith(f"/api/datasets/{NAME}/revision/"):
            if not self.path.startswith(
                (
                    f"/api/datasets/{NAME}/revision/main",
                    "/api/datasets/" + NAME + "/revision/" + COMMIT,
                )
            ):
                self._json({"error": "no"}, 404, X_Error_Code="RevisionNotFound")
                return
            names = [p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()]
            info = {"id": NAME, "sha": COMMIT, "siblings": [{"rfilename": n} for n in names]}
            self._json(info)
            return
        start = f"/datasets/{NAME}/resolve/{COMMIT}/"
        path = folder / self.path.removeprefix(start)
        if not self.path.startswith(start) or not path.is_file():
            self._json({"error": "no"}, 404, X_Error_Code="RepoNotFound")
            return
        self._file(path, path.relative_to(folder).as_posix())

    do_HEAD = do_GET

    def _file(self, path: Path, name: str) -> None:
        data = path.read_bytes()
        first = int(self.headers.get("Range", "bytes=0-").removeprefix("bytes=").split("-")[0])
        self.send_response(206 if first else 200)
        self.send_header("ETag", f'"{hashlib.sha256(data).hexdigest()}"')
        self.send_header("X-Repo-Commit", COMMIT)
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(len(data) - first))
        if first:
            self.send_header("Content-Range", f"bytes {first}-{len(data) - 1}/{len(data)}")
        self.end_headers()
        if self.command == "HEAD":
            return
        self.server.asked.append((name, first))
        stop = self.server.break_after.pop(name, len(data))
        self.wfile.write(data[first:stop])
        if stop < len(data):
            self.wfile.flush()
            self.connection.shutdown(socket.SHUT_RDWR)
            self.close_connection = True


@pytest.fixture
def hub(tmp_path, monkeypatch):
    """A repository with rows over plain pictures and two zipped folders of clips."""
    from huggingface_hub import constants

    folder = tmp_path / "repository"
    records = []
    for number in range(4):
        write_picture(folder / f"pictures/{number}.png", shade=number)
        records.append(record(number))
    for group in ("CLEVRER", "STAR"):
        clip = write_clip(tmp_path / f"{group}.mp4", 10)
        with zipfile.ZipFile(folder / f"{group}.zip", "w") as archive:
            archive.write(clip, f"{group}/clip.mp4")
        records.append(
            record(
                len(records),
                data_type="video",
                path=f"./{group}/clip.mp4",
                data_source=group,
                problem_type="numerical",
                options=[],
                solution="<answer>3</answer>",
            )
        )
    (folder / "Video-R1-260k.json").write_text(json.dumps(records))
    server = Hub(folder)
    thread = threading.Thread(target=server.serve_forever, args=(0.02,), daemon=True)
    thread.start()
    endpoint = f"http://127.0.0.1:{server.server_port}"
    template = endpoint + "/{repo_id}/resolve/{revision}/{filename}"
    monkeypatch.setattr(constants, "ENDPOINT", endpoint)
    monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "home"))
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield server
    server.shutdown()
    server.server_close()


def opened(vision, sources=(), revision="main"):
    selection = Selection(sources, 0, 0)
    return open_source(f"hub:{NAME}@{revision}", selection, Path("unused"), 1, vision)


def test_everything_is_fetched_once_and_the_commit_is_recorded(hub, vision):
    source = opened(vision)
    assert source.origin == f"hub:{NAME}@{COMMIT}"
    assert source.root.name == COMMIT
    use_media(source, vision, check=False, log=None)
    assert len(source.found.rows) == 6
    assert source.found.rejects == []
    asked = len(hub.asked)
    assert asked == 1 + 4 + 2
    opened(vision, revision=COMMIT)
    assert len(hub.asked) == asked  # nothing is fetched twice


def test_only_what_the_subset_needs_is_fetched(hub, vision):
    source = opened(vision, ["STAR"])
    assert [row.data_source for row in source.found.rows] == ["STAR"]
    assert sorted(name for name, _ in hub.asked) == ["STAR.zip", "Video-R1-260k.json"]


def test_a_broken_download_goes_on_where_it_was(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "DOWNLOAD_CHUNK_SIZE", 100)
    hub.break_after["STAR.zip"] = 500
    repository = Repository(HubSource(NAME, "main"))
    try:
        repository.fetch(["STAR.zip"])
    except EnvironmentFault:
        Repository(HubSource(NAME, "main")).fetch(["STAR.zip"])
    assert [first for _, first in hub.asked] == [0, 500]
    assert (repository.root / "STAR.zip").read_bytes() == (hub.folder / "STAR.zip").read_bytes()


@pytest.mark.parametrize("source", ["someone/other", NAME])
def test_what_is_not_there_is_one_clear_error(hub, source):
    with pytest.raises(EnvironmentFault, match=f"{source}@nowhere"):
        Repository(HubSource(source, "nowhere"))


def test_no_network_is_one_clear_error(hub, monkeypatch):
    from huggingface_hub import constants

    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(EnvironmentFault, match="network"):
        Repository(HubSource(NAME, "main"))


@pytest.mark.parametrize(
    ("files", "media", "expected"),
    [
        (["a/1.png", "a/2.png"], ["a/1.png"], ["a/1.png"]),
        (["CLEVRER.zip", "STAR.zip"], ["STAR/x/1.mp4"], ["STAR.zip"]),
        (["STAR/STAR.zip", "Math/Math.zip"], ["STAR/1.mp4"], ["STAR/STAR.zip"]),
        (
            ["L/a_videos_1.tar.gz", "L/a_videos_2.tar.gz", "M/b.zip"],
            ["L/a/1.mp4"],
            ["L/a_videos_1.tar.gz", "L/a_videos_2.tar.gz"],
        ),
        (["L/part1.zip", "L/part2.zip", "M/x.zip"], ["L/c/1.mp4"], ["L/part1.zip", "L/part2.zip"]),
        (["notes.txt", "a.zip"], ["b/1.png"], []),
    ],
)
def test_which_files_hold_the_media(files, media, expected):
    assert needed_files(files, media) == expected


@pytest.mark.parametrize("source", ["hub:a/b", "hub:a@b", "hub:a/b/c@d", "hub:a/b@", "a/b@c"])
def test_a_source_without_a_revision_is_refused(source):
    with pytest.raises(ConfigError, match="REVISION"):
        parse_hub(source)
