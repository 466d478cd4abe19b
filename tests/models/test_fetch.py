"""Checkpoints from elsewhere arrive unchanged, or not at all."""

from __future__ import annotations

import json
import os
import shutil
from types import SimpleNamespace

import pytest
import torch

from sf.data.hub import HubSource, record_commit
from sf.data.hub_cache import hub_folder
from sf.data.manifest import Row, read_manifest, write_manifest
from sf.errors import ConfigError, DataError, EnvironmentFault, UnsupportedModelError
from sf.mini.rows import ANNOTATIONS, write_dataset
from sf.models import convert_llava, fetch, load_model, load_processor
from sf.models.fetch import checkpoint_files, fetch_checkpoint
from sf.scratch.heldout import accuracy_table
from sf.stages.base import Parameters, run


@pytest.fixture
def checkpoint(tiny, tmp_path):
    folder = tmp_path / "checkpoint"
    for part in tiny:
        part.save_pretrained(folder)
    return folder


def job(folder) -> SimpleNamespace:
    figures: dict[str, float] = {}
    tracker = SimpleNamespace(log=lambda step, values: None, summary=figures.update)
    return SimpleNamespace(
        out=folder / "out", state=folder / "state", tracker=tracker, figures=figures
    )


def parameters(vision, folder, **changes) -> Parameters:
    values = {
        "vision": vision,
        "runtime": {"device": "cpu", "dtype": "float32"},
        "answering": {
            "prompt_template": "answer",
            "max_completion_tokens": 4,
            "correctness_cutoff": 0.99,
        },
        "seed": 0,
        "model": "tiny",
        "data": folder / "data",
        "output": folder / "result",
    }
    return Parameters(**{**values, **changes})


def test_a_copy_to_another_disk_needs_room(tiny, checkpoint, tmp_path, monkeypatch):
    (tmp_path / "out").mkdir()
    family, real = tiny[0].config.model_type, os.stat
    monkeypatch.setattr(shutil, "disk_usage", lambda _: SimpleNamespace(free=0))
    fetch_checkpoint(str(checkpoint), family, tmp_path / "out")  # links take none

    def stat(path, *given, **options):
        result = real(path, *given, **options)
        return SimpleNamespace(st_dev=-1) if path == tmp_path / "out" else result

    monkeypatch.setattr(os, "stat", stat)
    with pytest.raises(EnvironmentFault, match=r"free disk space.*the weights of"):
        fetch_checkpoint(str(checkpoint), family, tmp_path / "out")


def test_a_local_checkpoint_arrives_unchanged(tiny, checkpoint, tmp_path, vision):
    family = tiny[0].config.model_type
    work = job(tmp_path)
    base = {"source": str(checkpoint), "family": family}
    run(parameters(vision, tmp_path, base=base), work)
    again = load_model(work.out)
    for name, value in tiny[0].state_dict().items():
        assert torch.equal(value, again.state_dict()[name]), name
    assert load_processor(work.out).tokenizer.get_vocab() == tiny[1].tokenizer.get_vocab()
    assert json.loads((work.out / "base.json").read_text()) == {"source": str(checkpoint)}


def test_fetching_again_after_a_kill_is_no_error(tiny, checkpoint, tmp_path):
    (tmp_path / "out").mkdir()
    for _ in range(2):
        fetch_checkpoint(str(checkpoint), tiny[0].config.model_type, tmp_path / "out")
    assert (tmp_path / "out" / "model.safetensors").stat().st_size > 0


def test_another_architecture_than_declared_is_refused(tiny, checkpoint, tmp_path):
    other = {"qwen2_vl": "qwen2_5_vl", "qwen2_5_vl": "qwen2_vl"}[tiny[0].config.model_type]
    with pytest.raises(UnsupportedModelError, match="family"):
        fetch_checkpoint(str(checkpoint), other, tmp_path)


def test_a_folder_without_weights_is_refused(tiny, checkpoint, tmp_path):
    (checkpoint / "model.safetensors").unlink()
    with pytest.raises(DataError, match="safetensors"):
        fetch_checkpoint(str(checkpoint), tiny[0].config.model_type, tmp_path)


@pytest.fixture
def hub(monkeypatch, tiny, checkpoint, tmp_path):
    """A hub that counts requests and can be cut off."""
    import httpx
    import huggingface_hub
    from huggingface_hub import constants
    from huggingface_hub.errors import GatedRepoError

    state = SimpleNamespace(gated=False, granted=False, sizes={})
    asked: list[str] = []
    online = [True]

    def answer(what, value):
        asked.append(what)
        if not online[0]:
            raise httpx.ConnectError("no route to host")
        return value

    def download(name, revision, allow_patterns):
        return answer("download", str(checkpoint))

    class Api:
        def model_info(self, name, revision, files_metadata):
            sha = revision if len(revision) == 40 else "a" * 40
            sizes = {file.name: file.stat().st_size for file in checkpoint.iterdir()} | state.sizes
            files = [SimpleNamespace(rfilename=n, size=size) for n, size in sizes.items()]
            return answer("info", SimpleNamespace(sha=sha, siblings=files, gated=state.gated))

        def auth_check(self, name, repo_type):
            answer("access", None)
            if not state.granted:
                raise GatedRepoError(
                    "no", response=httpx.Response(403, request=httpx.Request("GET", "http://hub"))
                )

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    monkeypatch.setattr(huggingface_hub, "HfApi", Api)
    monkeypatch.setattr(constants, "HF_HOME", str(tmp_path / "hub"))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub/cache"))
    return SimpleNamespace(
        asked=asked, online=online, family=tiny[0].config.model_type, state=state
    )


def test_a_pinned_revision_that_is_there_asks_no_hub(hub, checkpoint, tmp_path):
    commit = "b" * 40
    target = tmp_path / "target"
    target.mkdir()
    origin = fetch_checkpoint(f"hub:someone/model@{commit}", hub.family, target)
    assert origin["commit"] == commit
    assert hub.asked == ["info", "download"]
    hub.online[0] = False
    fetch_checkpoint(f"hub:someone/model@{commit}", hub.family, target)
    assert hub.asked == ["info", "download"]
    assert (target / "config.json").is_file()


def test_a_pinned_revision_with_a_lost_file_is_fetched_again(hub, checkpoint, tmp_path):
    source, copy = f"hub:someone/model@{'b' * 40}", tmp_path / "target"
    copy.mkdir()
    fetch_checkpoint(source, hub.family, copy)
    (tmp_path / "hub/sparsity-forcing/someone--model" / f"{'b' * 40}.files.json").write_text(
        json.dumps({"folder": str(checkpoint), "files": ["config.json", "lost.safetensors"]})
    )
    fetch_checkpoint(source, hub.family, copy)
    assert hub.asked == ["info", "download"] * 2


@pytest.mark.parametrize("revision", ["main", "b" * 40])
def test_a_hub_that_cannot_be_reached_is_one_clear_error(hub, tmp_path, revision):
    hub.online[0] = False
    with pytest.raises(EnvironmentFault, match=r"no route to host.*HF_TOKEN.*network") as caught:
        fetch_checkpoint(f"hub:someone/model@{revision}", "qwen2_vl", tmp_path)
    assert f"someone/model@{revision}" in str(caught.value)


def test_sizes_are_said_and_the_disk_is_checked_before_the_first_byte(
    hub, checkpoint, tmp_path, capsys
):
    hub_folder(HubSource("someone/model", "main"))
    size = sum(file.stat().st_size for file in checkpoint_files(checkpoint)) / 2**30
    output = capsys.readouterr().err
    assert f"of someone/model, {size:.2f} GiB, to {tmp_path / 'hub/cache'}" in output
    hub.state.sizes["more.safetensors"] = 2**60
    with pytest.raises(EnvironmentFault, match=r"free disk space.*of someone/other.*HF_HOME"):
        hub_folder(HubSource("someone/other", "main"))
    assert hub.asked == ["info", "download", "info"]


@pytest.mark.parametrize(("token", "state"), [(None, "is not set"), ("hf_own", "gives no access")])
def test_a_gated_model_is_refused_before_the_first_byte(hub, monkeypatch, token, state):
    import huggingface_hub

    monkeypatch.setattr(huggingface_hub, "get_token", lambda: token)
    hub.state.gated = "manual"
    with pytest.raises(EnvironmentFault, match=rf"HF_TOKEN\. {state}.*/someone/model\. accept the"):
        hub_folder(HubSource("someone/model", "main"))
    assert "download" not in hub.asked
    hub.state.granted = True
    if token:
        hub_folder(HubSource("someone/model", "main"))
        assert hub.asked[-2:] == ["access", "download"]


def test_a_branch_is_the_commit_that_was_fetched(hub, tmp_path):
    source, target = "hub:someone/model@main", tmp_path / "target"
    target.mkdir()
    (tmp_path / "fetched").mkdir()
    record_commit(tmp_path / "fetched", source, "d" * 40)
    origin = fetch_checkpoint(source, hub.family, target, tmp_path / "fetched")
    assert origin == {"source": source, "commit": "d" * 40}


def test_a_checkpoint_in_llava_nexts_format_is_converted(
    source, target, tmp_path, vision, monkeypatch
):
    """As `sf convert` does; what a killed stage left is taken."""
    found = lambda hub: (source, "b" * 40)  # noqa: E731
    for module in (fetch, convert_llava):
        monkeypatch.setattr(module, "hub_folder", found)
    work = job(tmp_path)
    base = {"source": "hub:lmms-lab/LLaVA-Video-tiny@main", "family": "llava_onevision"}
    for _ in range(2):
        run(parameters(vision, tmp_path, base=base), work)
    origin = json.loads((work.out / "base.json").read_text())
    assert origin == {"source": base["source"], "commit": "b" * 40, "converted": "llava_qwen"}
    expected = load_model(target).state_dict()
    assert all(torch.equal(w, expected[n]) for n, w in load_model(work.out).state_dict().items())
    assert load_processor(work.out).video_form == load_processor(target).video_form
    with pytest.raises(UnsupportedModelError, match="sf convert SOURCE"):  # a local one is not
        fetch_checkpoint(str(source), "llava_onevision", work.out, None, work.state)
    with pytest.raises(UnsupportedModelError, match="must be one of"):
        fetch_checkpoint(base["source"], "qwen2_vl", work.out, None, work.state)


def test_an_unpinned_hub_source_is_refused(tmp_path):
    with pytest.raises(ConfigError, match="OWNER/NAME@REVISION"):
        fetch_checkpoint("hub:Qwen/Qwen2.5-VL-3B-Instruct", "qwen2_5_vl", tmp_path)


@pytest.mark.parametrize("family", ["qwen2_vl", "qwen2_5_vl"])
def test_the_stage_trains_saves_and_measures(family, vision, tmp_path):
    small = vision.model_copy(
        update={"image_max_pixels": 784 * 9, "video_max_pixels": 784 * 9, "video_max_frames": 2}
    )
    data = tmp_path / "data"
    write_dataset(data, 30, 0, small)
    rows = [_row(record) for record in json.loads((data / ANNOTATIONS).read_text())]
    write_manifest(data / "train.parquet", rows[:20], data)
    write_manifest(data / "heldout.parquet", rows[20:], data)
    work = job(tmp_path)
    scratch = {
        **{"align_steps": 1, "steps": 2, "batch": 4, "learning_rate": 1e-3},
        **{"media": 4, "examples": 0},
    }
    base = {"family": family, "source": "scratch"}
    run(parameters(small, tmp_path, base=base, scratch=scratch), work)
    assert load_model(work.out).config.model_type == family
    assert 0.0 <= work.figures["heldout_accuracy"] <= 1.0
    assert (work.out / "tables" / "heldout.csv").is_file()
    assert len(read_manifest(data / "heldout.parquet")) == 10


def _row(record: dict) -> Row:
    return Row(
        id=str(record["problem_id"]),
        problem=record["problem"],
        problem_type=record["problem_type"],
        data_type=record["data_type"],
        options=tuple(record["options"]),
        solution=record["solution"],
        answer=record["solution"][8:-9],
        media=record["path"].removeprefix("./"),
        data_source=record["data_source"],
    )


def test_accuracies_are_told_by_media_and_problem_type():
    from sf.evaluation.answer import Answer

    def answer(number: int, media: str, kind: str, correct: float) -> Answer:
        return Answer(str(number), media, kind, "", correct, 1.0, (1.0,), 5, 0.0)

    table = accuracy_table(
        [
            answer(0, "image", "OCR", 1.0),
            answer(1, "image", "numerical", 0.0),
            answer(2, "video", "OCR", 1.0),
        ]
    ).set_index(["data_type", "problem_type"])
    assert table.loc[("image", "all"), "accuracy"] == 0.5
    assert table.loc[("video", "all"), "accuracy"] == 1.0
    assert table.loc[("all", "OCR"), "questions"] == 2
    assert table.loc[("all", "all"), "low"] < 2 / 3 < table.loc[("all", "all"), "high"]
