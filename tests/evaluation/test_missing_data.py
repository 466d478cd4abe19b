"""Missing data are reported before any model is loaded, all at once, with download sizes."""

from __future__ import annotations

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import huggingface_hub
import pytest
from huggingface_hub import HfApi, constants
from huggingface_hub.errors import LocalEntryNotFoundError
from scripted import VISION

from sf.data.leakage import benchmark_names
from sf.errors import ConfigError, DataError, EnvironmentFault
from sf.evaluation import available, tasks
from sf.evaluation.available import fetch_from_hub, missing_in, missing_in_hub_cache
from sf.evaluation.benchmarks import BENCHMARKS, benchmark_named
from sf.evaluation.hub_home import fetch_benchmarks
from sf.evaluation.source import prepare_source, read_source
from sf.offline import hub_offline

COMMIT = "c" * 40
REPOSITORIES = {task.repository: col.download_gib for col in BENCHMARKS for task in col.tasks}


def _refused(source: str, suites: list[str], scratch: Path) -> str:
    with pytest.raises(DataError) as caught:
        prepare_source(source, 0, 0, suites, VISION, scratch, scratch)
    return str(caught.value)


def test_all_fourteen_columns_are_named_with_their_sizes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An empty folder, and an empty hub cache without a network."""
    total = f"perhaps {sum(REPOSITORIES.values()):.1f} GiB in all"
    (tmp_path / "nothing").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    for source in (str(tmp_path / "nothing"), "hub"):
        text = _refused(source, ["all"], tmp_path)
        assert total in text
        assert "14 things are missing" in text
        for col in BENCHMARKS:
            line = next(x for x in text.splitlines() if x.startswith(f"  {col.name}: "))
            assert line.rstrip(". ").endswith(
                f"(hub: {col.tasks[0].repository}, perhaps {col.download_gib:g} GiB)"
            )
    assert "the hub cannot be reached" in text


def test_folders_videos_and_rows_are_named(copy: Path, tmp_path: Path) -> None:
    assert missing_in(copy, BENCHMARKS, tmp_path / "arrow") == []
    shutil.rmtree(copy / "tempcompass")
    shutil.rmtree(copy / "hub" / "echo840")
    shutil.rmtree(copy / "videomme" / "subtitle")
    (copy / "videomme" / "data" / "clip00001.mp4").unlink()
    (file,) = (copy / "hub" / "Lin-Chen" / "MMStar").rglob("*.parquet")
    file.write_bytes(b"PAR1 cut short")
    text = _refused(str(copy), ["all"], tmp_path)
    assert "5 things are missing" in text  # TempCompass, of three tasks, once
    for words in (
        "  tempcompass: no folder",
        "  ocrbench: no parquet file in",
        f"  videomme_w_subtitle: no folder {copy / 'videomme' / 'subtitle'}",
        "  videomme: 1 videos of videomme: ",
        "clip00001.mp4",
        f"  mmstar: {file} cannot be read (",
    ):
        assert words in text
    source, rows = prepare_source(str(copy), 2, 0, ["mme", "mlvu_dev"], VISION, tmp_path, tmp_path)
    assert (source.kind, source.limit) == ("folder", 2)
    assert rows == {"mme": 56, "mlvu_dev": 7}


def test_a_video_whose_name_no_file_can_have_is_named(copy: Path, tmp_path: Path) -> None:
    import pyarrow as pa
    import pyarrow.parquet as pq

    for path in (copy / "hub" / "lmms-eval" / "TempCompass").rglob("*.parquet"):
        table = pq.read_table(path)
        at = table.column_names.index("video_id")
        names = ["\0", *table.column("video_id").to_pylist()[1:]]
        pq.write_table(table.set_column(at, "video_id", pa.array(names)), path)
    text = _refused(str(copy), ["tempcompass"], tmp_path)
    assert "1 videos of tempcompass" in text
    assert "\0" not in text
    assert "\\x00.mp4" in text


def test_an_empty_benchmark_is_refused(copy: Path, tmp_path: Path) -> None:
    import pyarrow.parquet as pq

    (file,) = (copy / "hub" / "lmms-lab-encoder" / "ChartQA").rglob("*.parquet")
    pq.write_table(pq.read_table(file).slice(0, 0), file)
    text = _refused(str(copy), ["chartqa", "mme"], tmp_path)
    assert "1 thing is missing" in text
    assert f"chartqa: {file} holds no row" in text


def test_rows_that_cannot_be_read_are_an_error_that_says_why(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lmms-eval itself says "KeyError", or tries five times and says "RetryError"."""
    monkeypatch.setattr(time, "sleep", lambda _: None)
    (file,) = (copy / "hub" / "lmms-lab-encoder" / "ChartQA").rglob("*.parquet")
    file.rename(file.with_name("train-00000-of-00001.parquet"))
    (card,) = (copy / "hub" / "lmms-lab-encoder" / "MMBench").glob("README.md")
    card.write_text(card.read_text().replace("config_name: en", "config_name: cn"))
    text = _refused(str(copy), ["chartqa", "mmbench_en_dev"], tmp_path)
    assert "2 things are missing" in text
    assert f"chartqa = '{copy}/hub/lmms-lab-encoder/ChartQA'. its rows cannot be read" in text
    assert "there is no split 'test'" in text
    assert "its rows cannot be read: BuilderConfig 'en' not found" in text


def _reachable(
    monkeypatch: pytest.MonkeyPatch,
    home: Path,
    cache: Path,
    gib: float,
    gated: tuple[str, ...] = (),
) -> list[str]:
    """A hub that knows sizes; records the fetched repositories and the built tasks."""
    done: list[str] = []
    build = available.build_task
    monkeypatch.setattr(constants, "HF_HOME", str(cache))

    def info(_: HfApi, repository: str, **__: Any) -> Any:
        folder = home / "hub" / repository
        names = [path.relative_to(folder) for path in folder.rglob("*") if path.is_file()]
        files = [SimpleNamespace(rfilename=str(name), size=None) for name in names]
        files[0].size = int(gib * 2**30)
        return SimpleNamespace(siblings=files, sha=COMMIT, gated=repository in gated)

    def download(
        repository: str, repo_type: str, revision: str = "", local_files_only: bool = False
    ) -> str:
        assert repo_type == "dataset"
        folder = cache / repository / COMMIT
        if not local_files_only:
            assert revision == COMMIT
            done.append(repository)
            shutil.copytree(home / "hub" / repository, folder, dirs_exist_ok=True)
        elif not folder.is_dir():
            raise LocalEntryNotFoundError("not there")
        return str(folder)

    def fetching(task: Any, source: Path | None, **given: Any) -> Any:
        if source is None:
            assert given == {"revision": COMMIT}
            done.append(task.name)
            return None
        return build(task, source)

    monkeypatch.setattr(HfApi, "dataset_info", info)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(available, "build_task", fetching)
    return done


def test_what_the_hub_has_is_said_with_its_own_sizes_before_it_is_fetched(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    done = _reachable(monkeypatch, home, tmp_path / "cache", 0.25)
    wanted = [benchmark_named(name) for name in ("chartqa", "mmmu_pro", "egoschema")]
    missing = missing_in_hub_cache(wanted, {})
    commits = fetch_from_hub(wanted, missing, {}, tmp_path)
    repositories = ["MMMU/MMMU_Pro", "lmms-eval/egoschema", "lmms-lab-encoder/ChartQA"]
    assert commits == dict.fromkeys(repositories, COMMIT)
    assert done == [*repositories[:2], "egoschema_subset", repositories[2]]  # it unpacks videos
    output = capsys.readouterr().err
    assert "to be downloaded, 0.8 GiB:" in output
    assert "  MMMU/MMMU_Pro: 0.2 GiB" in output
    done.clear()
    _reachable(monkeypatch, home, tmp_path / "other", 1e6)
    with pytest.raises(
        EnvironmentFault, match=r"3000000 GiB to be downloaded.*3000000 GiB unpacked"
    ):
        fetch_from_hub(wanted, missing, {}, tmp_path)
    assert done == []
    fetch_from_hub(wanted, [], {}, tmp_path)  # no request to the hub when nothing is missing
    assert capsys.readouterr().err.count("to be downloaded") == 1


def test_all_gated_benchmarks_are_named_before_the_first_byte(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(huggingface_hub, "get_token", lambda: None)
    closed = ("MMMU/MMMU_Pro", "lmms-eval/egoschema")
    done = _reachable(monkeypatch, home, tmp_path / "cache", 0.25, closed)
    with pytest.raises(
        EnvironmentFault, match=r"HF_TOKEN\. is not set.*accept the terms"
    ) as caught:
        fetch_benchmarks(BENCHMARKS, tmp_path, tmp_path, tmp_path)
    assert [name for name in REPOSITORIES if f"/datasets/{name}" in str(caught.value)] == [*closed]
    assert done == []


def test_what_was_fetched_is_used_without_the_hub_and_at_its_commit(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(home))
    done = _reachable(monkeypatch, home, tmp_path / "cache", 0.1)
    wanted = [benchmark_named("egoschema"), benchmark_named("mmstar")]
    commits = fetch_benchmarks(wanted, tmp_path / "fetched", tmp_path / "none", tmp_path)
    assert commits == {"Lin-Chen/MMStar": COMMIT, "lmms-eval/egoschema": COMMIT}
    for name in ("dataset_info", "model_info"):  # no network from here on
        monkeypatch.setattr(HfApi, name, lambda *_, **__: pytest.fail("the hub was asked"))
    again = fetch_benchmarks(wanted, tmp_path / "again", tmp_path / "fetched", tmp_path)
    assert again == commits
    fetched = [name for name in done if "/" in name]
    assert sorted(fetched) == sorted(commits)
    suites = [one.name for one in wanted]
    with hub_offline():
        source, rows = prepare_source(
            "hub", 2, 0, suites, VISION, tmp_path, tmp_path, tmp_path / "fetched"
        )
    assert (source.kind, source.commits) == ("hub", commits)
    assert rows.keys() == {"egoschema_subset", "mmstar"}
    source.write(tmp_path)
    place = read_source(tmp_path).home_path(tmp_path, tmp_path / "job")
    folder = tmp_path / "cache/Lin-Chen/MMStar" / COMMIT
    assert (place / "hub/Lin-Chen/MMStar").resolve() == folder
    next(folder.rglob("*.parquet")).unlink()
    with pytest.raises(DataError, match=rf"MMStar@{COMMIT}.*is not whole in.*HF_HOME"):
        source.home_path(tmp_path, tmp_path / "elsewhere")


def test_a_killed_fetch_goes_on(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In the download, when the cache has some of the files, and while videos are unpacked."""
    monkeypatch.setenv("HF_HOME", str(tmp_path / "cache"))
    done = _reachable(monkeypatch, home, tmp_path / "cache", 0.1)
    wanted, videos = [benchmark_named("egoschema")], tmp_path / "cache/egoschema"
    part = tmp_path / "cache/lmms-eval/egoschema" / COMMIT / "README.md"
    part.parent.mkdir(parents=True)
    part.touch()
    assert [one.what for one in missing_in_hub_cache(wanted, {})] == [f"no folder {videos}"]
    videos.mkdir()
    assert [one.what for one in missing_in_hub_cache(wanted, {})] == ["not whole in the hub cache"]
    videos.rmdir()

    def unpacking(killed: bool) -> None:
        def unpack(*_: Any, **__: Any) -> None:
            if videos.exists():  # lmms-eval unpacks nothing then
                return
            videos.mkdir()
            (videos / "first.mp4").write_text("half" if killed else "whole")
            if killed:
                raise KeyboardInterrupt

        monkeypatch.setattr(available, "build_task", unpack)

    unpacking(killed=True)
    with pytest.raises(KeyboardInterrupt):
        fetch_benchmarks(wanted, tmp_path / "out", tmp_path / "out", tmp_path)
    assert not (tmp_path / "out").exists()
    unpacking(killed=False)
    for _ in range(2):
        commits = fetch_benchmarks(wanted, tmp_path / "out", tmp_path / "out", tmp_path)
        assert commits == {"lmms-eval/egoschema": COMMIT}
        assert (videos / "first.mp4").read_text() == "whole"
    assert done == ["lmms-eval/egoschema"] * 2  # a finished fetch is not repeated


def test_a_benchmark_of_two_repositories_of_which_one_is_there(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(home))
    done = _reachable(monkeypatch, home, tmp_path / "cache", 0.1)
    one, other = (benchmark_named(name) for name in ("egoschema", "perceptiontest_val_mc"))
    both = replace(one, tasks=(*one.tasks, *other.tasks))
    fetch_benchmarks([one], tmp_path / "out", tmp_path / "none", tmp_path)
    done.clear()
    fetch_benchmarks([both], tmp_path / "both", tmp_path / "out", tmp_path)
    assert done == [other.tasks[0].repository, other.tasks[0].name]


def test_public_repositories_are_asked_for_without_a_token(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lmms-eval's `token: True` refuses them if no token is set."""
    given = []

    class Asked(Exception): ...

    def task(config: dict[str, Any], **_: Any) -> None:
        given.append(config["dataset_kwargs"])
        raise Asked

    monkeypatch.setattr(tasks, "_task_class", lambda: task)
    with tasks.benchmark_home(None, tmp_path):
        for one in (task for benchmark in BENCHMARKS for task in benchmark.tasks):
            with pytest.raises(Asked):
                tasks.build_task(one, None, revision=COMMIT)
    assert len(given) > len(BENCHMARKS)
    assert all("token" not in each and each["revision"] == COMMIT for each in given)


def test_the_disk_that_the_files_go_to_must_have_room(
    home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The scratch folder is on another disk; HF_HOME need not exist yet."""
    (tmp_path / "small").mkdir()
    monkeypatch.setenv("HF_HOME", str(tmp_path / "small/not/there"))
    _reachable(monkeypatch, home, tmp_path / "cache", 0.25)
    rooms = {str(tmp_path / "small"): SimpleNamespace(free=2**28)}
    real = shutil.disk_usage
    monkeypatch.setattr(shutil, "disk_usage", lambda path: rooms.get(str(path)) or real(path))
    wanted = [benchmark_named("chartqa")]
    with pytest.raises(EnvironmentFault, match=r"free disk space.*small/not/there.*HF_HOME"):
        fetch_from_hub(wanted, missing_in_hub_cache(wanted, {}), {}, tmp_path)


def test_a_connection_that_fails_lists_what_is_missing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_: Any, **__: Any) -> Any:
        raise httpx.ConnectError("no route to host")

    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    monkeypatch.setattr(HfApi, "dataset_info", fail)
    text = _refused("hub", ["chartqa"], tmp_path)
    assert "the hub cannot be reached (ConnectError)" in text
    assert "chartqa: " in text


def test_videos_that_a_fetch_left_out_are_named(
    copy: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """An archive that was only partly unpacked."""
    _reachable(monkeypatch, copy, tmp_path / "cache", 0.1)
    monkeypatch.setenv("HF_HOME", str(copy))
    videos = sorted((copy / "egoschema" / "videos").iterdir())
    videos[1].unlink()
    text = _refused("hub", ["egoschema", "chartqa"], tmp_path)
    assert "1 thing is missing" in text
    assert f"egoschema: 1 videos of egoschema_subset: {videos[1]}" in text


def test_the_cache_is_looked_at_without_a_network(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_HOME", str(tmp_path / "empty"))
    text = _refused("hub", ["chartqa", "mlvu_dev"], tmp_path)
    assert "2 things are missing, perhaps 400.1 GiB" in text


@pytest.mark.parametrize(
    ("source", "samples", "message"),
    [("nowhere", 4, "neither 'synthetic' nor 'hub' nor a folder"), ("synthetic", 0, "at least 1")],
)
def test_bad_sources_are_refused(source: str, samples: int, message: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=message):
        prepare_source(source, samples, 0, ["all"], VISION, tmp_path, tmp_path)


def test_a_suite_that_does_not_exist_is_refused_first(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="did you mean chartqa"):
        prepare_source("hub", 0, 0, ["chartqq"], VISION, tmp_path, tmp_path)


def test_a_source_says_where_the_data_lie(home: Path, tmp_path: Path) -> None:
    source, _ = prepare_source(str(home), 3, 0, ["mmstar"], VISION, tmp_path, tmp_path)
    source.write(tmp_path)
    written = json.loads((tmp_path / "benchmarks.json").read_text())
    assert written == {
        "kind": "folder",
        "home": str(home),
        "limit": 3,
        "most_new_tokens": 0,
        "unreadable": {},
        "commits": {},
    }


def test_names_of_media_come_from_the_tables_that_are_evaluated(home: Path, tmp_path: Path) -> None:
    """Also from the hub's cache, which has no folder of them; a task without names is reported."""
    prepare_source(str(home), 0, 0, ["videomme", "chartqa"], VISION, tmp_path, tmp_path)
    names, without = benchmark_names(tmp_path)
    clips = {path.stem for path in (home / "videomme" / "data").glob("*.mp4")}
    assert clips <= set(names)
    assert clips
    assert set(names.values()) == {"videomme"}
    assert without == ["chartqa"]
