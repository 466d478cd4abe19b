"""A dataset repository on a hub, served by this machine under the hub's own protocol."""

from __future__ import annotations

import hashlib
import http.server
import json
import socket
import threading
import warnings
import zipfile
from pathlib import Path
from types import SimpleNamespace

import pytest
from clips import record, write_clip, write_picture
from sources import parameters

from sf.data.check import MediaLog
from sf.data.hub import HubSource, Repository, needed_files, parse_hub, record_commit
from sf.data.preparation import RowSelection, open_source, use_media
from sf.errors import ConfigError, EnvironmentFault
from sf.offline import hub_offline
from sf.stages import fetch, prepare

COMMIT = "c" * 40
NAME = "someone/rows"


class Hub(http.server.ThreadingHTTPServer):
    """Serves the files of one folder as one dataset repository.

    Attributes:
        asked: (path, first byte) of every download.
        break_after: bytes after which a download of a file breaks off, once.
        head: the commit that the branch "main" stands for.
        gated: as the hub says it.
    """

    def __init__(self, folder: Path) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.folder = folder
        self.asked: list[tuple[str, int]] = []
        self.break_after: dict[str, int] = {}
        self.head = COMMIT
        self.gated: bool | str = False


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
            revision = self.path.removeprefix(f"/api/datasets/{NAME}/revision/").split("?")[0]
            if revision not in ("main", COMMIT, self.server.head):
                self._json({"error": "no"}, 404, X_Error_Code="RevisionNotFound")
                return
            sha = self.server.head if revision == "main" else revision
            siblings = [
                {"rfilename": p.relative_to(folder).as_posix(), "size": p.stat().st_size}
                for p in folder.rglob("*")
                if p.is_file()
            ]
            self._json({"id": NAME, "sha": sha, "siblings": siblings, "gated": self.server.gated})
            return
        commits = (COMMIT, self.server.head)
        starts = [f"/datasets/{NAME}/resolve/{commit}/" for commit in commits]
        start = starts[1] if self.path.startswith(starts[1]) else starts[0]
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
        self.send_header("X-Repo-Commit", self.path.split("/")[5])
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


@pytest.fixture
def opened(vision, tmp_path):
    """Opens the repository with its results in one folder and an earlier result in another."""

    def call(sources=(), revision=COMMIT, out="out", earlier="none"):
        (tmp_path / out).mkdir(exist_ok=True)
        return open_source(
            f"hub:{NAME}@{revision}",
            RowSelection(sources, 0, 0),
            1,
            vision,
            out=tmp_path / out,
            earlier=tmp_path / earlier,
        )

    return call


def test_everything_is_fetched_once_and_the_commit_is_recorded(
    hub, opened, vision, tmp_path, monkeypatch
):
    from huggingface_hub import constants

    source = opened()
    assert source.origin == f"hub:{NAME}@{COMMIT}"
    assert source.root.name == COMMIT
    use_media(source, [vision], MediaLog(tmp_path / "media.jsonl"))
    assert len(source.collected.rows) == 6
    assert source.collected.rejects == []
    asked = len(hub.asked)
    assert asked == 1 + 4 + 2
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", "http://127.0.0.1:9/{repo_id}/{filename}"
    )
    again = opened()  # without a network: all files are cached
    assert len(hub.asked) == asked  # nothing is fetched twice
    assert [row.id for row in again.collected.rows] == [row.id for row in source.collected.rows]


def test_a_pinned_commit_is_no_reason_to_warn(hub, opened):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert opened().unpinned == ""


def test_a_branch_stays_at_the_commit_it_stood_for_first(hub, opened, tmp_path):
    with pytest.warns(
        UserWarning, match=f"main names no commit: {COMMIT}.*current target, which is recorded"
    ):
        first = opened(revision="main")
    assert first.unpinned == f"hub:{NAME}@main"
    hub.head = "d" * 40  # someone pushes
    with pytest.warns(UserWarning, match=f"{COMMIT}.*an earlier run recorded"):
        assert opened(revision="main").origin.endswith(COMMIT)  # a killed run continues
    (tmp_path / "out").rename(tmp_path / "result")
    with pytest.warns(UserWarning, match=f"{COMMIT}.*an earlier run recorded"):
        again = opened(revision="main", earlier="result")  # other parameters, new work folder
    assert again.origin.endswith(COMMIT)
    assert json.loads((tmp_path / "out/origin.json").read_text())["commit"] == COMMIT
    with pytest.warns(UserWarning, match=f"{hub.head}.*current target, which is recorded"):
        other = opened(revision="main", out="elsewhere")
    assert other.origin.endswith(hub.head)


def test_a_record_of_another_source_is_not_used(hub, opened, tmp_path):
    (tmp_path / "result").mkdir()
    record_commit(tmp_path / "result", f"hub:{NAME}@v1", "e" * 40)
    with pytest.warns(UserWarning, match=COMMIT):
        assert opened(revision="main", earlier="result").origin.endswith(COMMIT)


def test_the_card_says_that_the_revision_is_not_pinned(hub, tmp_path):
    job = SimpleNamespace(
        out=tmp_path / "out", tracker=SimpleNamespace(summary=lambda values: None)
    )
    for revision, warned in (("main", True), (COMMIT, False)):
        job.out.mkdir(exist_ok=True)
        given = parameters(f"hub:{NAME}@{revision}", tmp_path)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            prepare.run(given, job)
        card = (job.out / "data_card.md").read_text()
        assert card.startswith(f"# Data card: hub:{NAME}@{COMMIT}")
        assert ("Not pinned" in card) is warned
        assert json.loads((job.out / "origin.json").read_text())["commit"] == COMMIT
        assert COMMIT in json.loads((job.out / "dataset.json").read_text())["source"]


def test_sizes_are_said_and_the_disk_is_checked_before_the_first_byte(
    hub, opened, tmp_path, capsys
):
    opened()
    lines = capsys.readouterr().err.splitlines()
    annotations, media = (line for line in lines if line.startswith("to be downloaded"))
    rows = (hub.folder / "Video-R1-260k.json").stat().st_size
    place = f"GiB, to {tmp_path / 'home' / 'sparsity-forcing' / 'someone--rows' / COMMIT}"
    assert annotations == (f"to be downloaded: 1 file of {NAME}, {rows / 2**30:.2f} {place}")
    assert media.startswith(f"to be downloaded: 6 files of {NAME}, 0.00 {place}")
    opened()
    assert "to be downloaded" not in capsys.readouterr().err  # all is there
    repository = Repository(HubSource(NAME, COMMIT))
    repository.sizes["huge.zip"] = 2**60
    with pytest.raises(EnvironmentFault, match=r"free disk space.*1 file of someone/rows.*HF_HOME"):
        repository.fetch(["huge.zip"])


def test_a_gated_repository_is_refused_before_anything(hub, opened, monkeypatch):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    hub.gated = "auto"
    with pytest.raises(
        EnvironmentFault, match=rf"HF_TOKEN\. is not set.*/datasets/{NAME}\. accept the terms"
    ):
        opened()
    assert hub.asked == []


def test_prepare_reads_what_the_stage_fetch_left_and_asks_nothing(hub, tmp_path):
    source, done = f"hub:{NAME}@main", SimpleNamespace(summary=lambda values: None)
    given = fetch.Parameters(what="rows", source=source, seed=0, output=tmp_path / "fetched")
    assert fetch.asks_hub(given)
    with pytest.warns(UserWarning, match=f"{COMMIT} is used"):
        fetch.run(given, SimpleNamespace(out=given.output))
    assert sorted(name for name, _ in hub.asked) == sorted(
        file.relative_to(hub.folder).as_posix() for file in hub.folder.rglob("*") if file.is_file()
    )
    hub.asked.clear()
    hub.head = "d" * 40  # someone pushes
    rows = parameters(source, tmp_path).model_copy(update={"fetched": given.output})
    assert not prepare.asks_hub(rows)
    assert prepare.inputs(rows)["fetched"] == given.output
    (tmp_path / "out").mkdir()
    with hub_offline(), pytest.warns(UserWarning, match=COMMIT):
        prepare.run(rows, SimpleNamespace(out=tmp_path / "out", tracker=done))
    assert json.loads((tmp_path / "out/origin.json").read_text())["commit"] == COMMIT
    assert hub.asked == []


def test_what_lies_on_no_hub_is_not_fetched(tmp_path):
    given = fetch.Parameters(what="weights", source="models/own", output=tmp_path / "out")
    assert not fetch.asks_hub(given)
    fetch.run(given, SimpleNamespace(out=given.output))
    assert list(given.output.iterdir()) == []


def test_only_what_the_subset_needs_is_fetched(hub, opened):
    source = opened(["STAR"])
    assert [row.data_source for row in source.collected.rows] == ["STAR"]
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
        (  # as Video-R1-data is stored on the hub
            ["Chart/Chart_part1.zip", "Chart/Chart_part2.zip", "STAR/STAR_part1.zip"],
            ["Chart/chartqa/1.png"],
            ["Chart/Chart_part1.zip", "Chart/Chart_part2.zip"],
        ),
        (  # as LLaVA-Video-178K does
            ["0_30_s_a_v0_1/0_30_s_a_v0_1_videos_1.tar.gz", "1_2_m_a_v0_1/x_videos_1.tar.gz"],
            ["0_30_s_a_v0_1/academic_source/Charades/1.mp4"],
            ["0_30_s_a_v0_1/0_30_s_a_v0_1_videos_1.tar.gz"],
        ),
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
