"""`sf convert` on broken inputs, after a kill, and with an existing target."""

from __future__ import annotations

import json
import shutil
from collections import namedtuple
from pathlib import Path
from typing import Any

import llava_next
import pytest
import torch
from llava_next import SIDE
from transformers import AutoTokenizer
from typer.testing import CliRunner

from sf.cli import app
from sf.errors import (
    DataError,
    EnvironmentFault,
    OutputConflictError,
    SparsityForcingError,
    UnsupportedModelError,
)
from sf.models import convert_llava as conversion
from sf.models import load_model
from sf.models.convert_llava import convert_llava


def _settings(**changes: Any) -> Any:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **changes}))

    return change


def _elsewhere(folder: Path) -> None:
    """For one tensor, the index names another file than the one that holds it."""
    path = folder / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    places = index["weight_map"]
    held = places["model.image_newline"]
    places["model.image_newline"] = next(name for name in places.values() if name != held)
    path.write_text(json.dumps(index))


def _tensors(drop: str = "", **extra: torch.Tensor) -> Any:
    def change(folder: Path) -> None:
        config = json.loads((folder / "config.json").read_text())
        weights = {**llava_next.tensors(config), **extra}
        weights.pop(drop, None)
        for file in folder.glob("model*"):
            file.unlink()
        llava_next.write_weights(folder, weights, 3)

    return change


def _cut(folder: Path) -> None:
    file = folder / "model-00002-of-00003.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _lost(folder: Path) -> None:
    (folder / "model-00003-of-00003.safetensors").unlink()


def _pickled(folder: Path) -> None:
    for file in folder.glob("model*"):
        file.unlink()
    (folder / "pytorch_model.bin").write_bytes(b"")


def _mixed(folder: Path) -> None:
    shutil.copy(
        folder / "model-00001-of-00003.safetensors", folder / "model-00002-of-00003.safetensors"
    )


def _without_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def _without_chat(folder: Path) -> None:
    whole = (folder / "tokenizer.json").read_text()
    (folder / "tokenizer.json").write_text(whole.replace("<|im_start|>", "<|begin|>"))
    settings = (folder / "tokenizer_config.json").read_text()
    (folder / "tokenizer_config.json").write_text(settings.replace("<|im_start|>", "<|begin|>"))


_WIDE = {"model.image_newline": torch.zeros(7)}
BROKEN: list[tuple[str, Any, type[SparsityForcingError], str]] = [
    ("missing", _tensors("model.layers.1.mlp.up_proj.weight"), DataError, r"1 missing: model\.lay"),
    ("image_newline", _tensors("model.image_newline"), DataError, r"missing: model\.image_newl"),
    (
        "extra",
        _tensors(**{"model.faster_token": torch.zeros(48)}),
        DataError,
        r"1 unexpected: model\.",
    ),
    ("shape", _tensors(**_WIDE), DataError, r"model\.image_newline \[7\] instead of \[48\]"),
    ("cut", _cut, DataError, r"00002-of-00003\.safetensors.*truncated"),
    ("lost", _lost, DataError, r"00003-of-00003\.safetensors.*missing"),
    ("twice", _mixed, DataError, "is in model-00001"),
    ("pickles", _pickled, DataError, r"pytorch_model\.bin"),
    ("tokenizer", _without_tokenizer, DataError, "neither tokenizer.json"),
    ("chat", _without_chat, DataError, r"lacks <\|im_start\|>"),
    ("position", _settings(mm_newline_position="no_token"), UnsupportedModelError, "grid or frame"),
    (
        "pool",
        _settings(mm_spatial_pool_mode="median"),
        UnsupportedModelError,
        "bilinear or average",
    ),
    (
        "stride",
        _settings(mm_spatial_pool_stride=4),
        UnsupportedModelError,
        "mm_spatial_pool_stride",
    ),
    ("faster", _settings(add_faster_video=True), UnsupportedModelError, "add_faster_video"),
    ("merge", _settings(mm_patch_merge_type="flat"), UnsupportedModelError, "spatial_unpad"),
    (
        "layer",
        _settings(mm_vision_select_layer=-1),
        UnsupportedModelError,
        "mm_vision_select_layer",
    ),
    ("aspect", _settings(image_aspect_ratio="pad"), UnsupportedModelError, "anyres_max_N"),
    ("grid", _settings(image_grid_pinpoints=[[20, 38]]), UnsupportedModelError, "multiples of 38"),
    ("tower", _settings(mm_vision_tower="openai/clip"), UnsupportedModelError, "--vision-tower"),
    ("family", _settings(model_type="llava_llama"), UnsupportedModelError, "only llava_qwen"),
    ("vocabulary", _settings(vocab_size=10), DataError, "tensors"),
    ("width", _settings(hidden_size="wide"), DataError, r"config\.json.*hidden_size"),
    ("heads", _settings(num_attention_heads=0), DataError, r"config\.json"),
    ("json", lambda folder: (folder / "config.json").write_text("{"), DataError, "cannot be read"),
    ("index", _elsewhere, DataError, r"contradicts its files: model\.image_newline"),
]


@pytest.mark.parametrize(
    ("change", "kind", "message"), [row[1:] for row in BROKEN], ids=[row[0] for row in BROKEN]
)
def test_what_cannot_be_converted_is_one_error(
    source: Path, tmp_path: Path, change: Any, kind: type[SparsityForcingError], message: str
) -> None:
    shutil.copytree(source, tmp_path / "source")
    change(tmp_path / "source")
    with pytest.raises(kind, match=message):
        convert_llava(str(tmp_path / "source"), tmp_path / "target")
    assert [path.name for path in tmp_path.iterdir()] == ["source"]


def test_placeholders_need_room_in_the_vocabulary(tmp_path: Path) -> None:
    llava_next.write(tmp_path / "source")
    tokens = len(AutoTokenizer.from_pretrained(tmp_path / "source"))
    llava_next.write(tmp_path / "full", vocab_size=tokens + 1)
    with pytest.raises(DataError, match="no room for the placeholders"):
        convert_llava(str(tmp_path / "full"), tmp_path / "target")


def test_grids_in_all_spellings(source: Path, tmp_path: Path) -> None:
    sizes = [[SIDE * w, SIDE * h] for w in (1, 2, 3) for h in (1, 2)]
    for number, spelling in enumerate((sizes, str(sizes), "(1x1),...,(3x2)")):
        shutil.copytree(source, tmp_path / f"{number}")
        _settings(image_grid_pinpoints=spelling)(tmp_path / f"{number}")
        convert_llava(str(tmp_path / f"{number}"), tmp_path / f"to{number}")
        config = json.loads((tmp_path / f"to{number}" / "config.json").read_text())
        assert config["image_grid_pinpoints"] == [[h, w] for w, h in sizes]


class _Killed(BaseException):
    """A kill, to which a process cannot react."""


def test_a_killed_conversion_goes_on(
    source: Path, target: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    copy, copied = conversion.copy_renamed, []

    def counting(file: Any, names: Any, place: Path, advance: Any) -> None:
        if len(copied) == 1:  # in the middle of the second file
            place.with_name(f".{place.name}.part").write_bytes(b"half")
            raise _Killed
        copy(file, names, place, advance)
        copied.append(place.name)

    monkeypatch.setattr(conversion, "copy_renamed", counting)
    new = tmp_path / "new"
    with pytest.raises(_Killed):
        convert_llava(str(source), new)
    assert not new.exists()
    copied += ["", ""]
    assert convert_llava(str(source), new)
    names = [f"model-0000{at}-of-00003.safetensors" for at in (1, 2, 3)]
    assert [name for name in copied if name] == names
    assert {p.name: p.read_bytes() for p in new.iterdir()} == {
        p.name: p.read_bytes() for p in target.iterdir()
    }
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    assert not convert_llava(str(source), new)  # finished: nothing is done
    assert len([name for name in copied if name]) == 3


def test_a_partial_conversion_of_another_checkpoint_begins_anew(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    shutil.copytree(source, tmp_path / "source")
    copy = conversion.copy_renamed

    def killed(file: Any, names: Any, place: Path, advance: Any) -> None:
        if "00003" in place.name:
            raise _Killed
        copy(file, names, place, advance)

    monkeypatch.setattr(conversion, "copy_renamed", killed)
    with pytest.raises(_Killed):
        convert_llava(str(tmp_path / "source"), tmp_path / "new")
    monkeypatch.setattr(conversion, "copy_renamed", copy)
    newline = torch.full((48,), 3.0)
    _tensors(**{"model.image_newline": newline})(tmp_path / "source")
    assert convert_llava(str(tmp_path / "source"), tmp_path / "new")
    assert torch.equal(load_model(tmp_path / "new").model.image_newline, newline)


def test_a_target_that_holds_something_else_is_refused(source: Path, tmp_path: Path) -> None:
    (tmp_path / "full").mkdir()
    (tmp_path / "full" / "notes.txt").write_text("mine")
    (tmp_path / "file").write_text("mine")
    for name in ("full", "file"):
        with pytest.raises(OutputConflictError, match="not made by `sf convert`"):
            convert_llava(str(source), tmp_path / name)
    (tmp_path / "empty").mkdir()
    assert convert_llava(str(source), tmp_path / "empty")
    llava_next.write(tmp_path / "other", add_time_instruction=False)
    with pytest.raises(OutputConflictError, match="another conversion"):
        convert_llava(str(tmp_path / "other"), tmp_path / "empty")
    (tmp_path / "empty" / "model-00001-of-00003.safetensors").unlink()
    with pytest.raises(OutputConflictError, match="parts of one"):
        convert_llava(str(source), tmp_path / "empty")


def test_the_disk_is_asked_first(
    source: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(2**30, 2**30, 2**20))
    with pytest.raises(EnvironmentFault, match="free disk space"):
        convert_llava(str(source), tmp_path / "new")
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_the_command(source: Path, tmp_path: Path) -> None:
    tower = tmp_path / "tower"
    shutil.copytree(source, tmp_path / "source")
    (tmp_path / "source" / "siglip-tiny").rename(tower)
    command = ["convert", str(tmp_path / "source"), str(tmp_path / "new")]
    result = CliRunner().invoke(app, command)
    assert isinstance(result.exception, UnsupportedModelError)
    for word in ("converted", "was converted already"):
        result = CliRunner().invoke(app, [*command, "--vision-tower", str(tower)])
        assert result.output.splitlines()[-1].startswith(f"{word}: ")


@pytest.mark.parametrize("empty", [False, True])
def test_every_file_is_on_disk_before_the_folder_has_its_name(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, empty: bool
) -> None:
    llava_next.write(tmp_path / "source", 1)
    target = tmp_path / "target"
    if empty:
        target.mkdir()
    order = []

    def sync() -> None:
        (partial,) = tmp_path.glob("*.partial")
        order.append({path.name for path in partial.iterdir()})

    monkeypatch.setattr(conversion.os, "sync", sync)
    convert_llava(str(tmp_path / "source"), target)
    (flushed,) = order
    assert flushed == {path.name for path in target.iterdir()}
