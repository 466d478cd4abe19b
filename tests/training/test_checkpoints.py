"""Sealed checkpoints: complete, or ignored."""

from __future__ import annotations

import shutil
from collections import namedtuple
from pathlib import Path

import pytest

from sf.errors import EnvironmentFault
from sf.training.checkpoints import SEAL, check_disk, last_sealed, seal


def make(folder: Path, step: int) -> Path:
    path = folder / f"checkpoint-{step}"
    (path / "inner").mkdir(parents=True)
    (path / "model.safetensors").write_bytes(b"weights" * 100)
    (path / "inner" / "state").write_bytes(b"state")
    seal(path)
    return path


def test_newest_whole_checkpoint(tmp_path: Path) -> None:
    make(tmp_path, 5)
    newest = make(tmp_path, 10)  # text order would say 5
    assert last_sealed(tmp_path) == newest


def test_none_without_checkpoints(tmp_path: Path) -> None:
    assert last_sealed(tmp_path) is None


@pytest.mark.parametrize("damage", ["unsealed", "torn seal", "missing", "changed", "shortened"])
def test_broken_checkpoint_is_dropped_for_the_one_before(tmp_path: Path, damage: str) -> None:
    good, bad = make(tmp_path, 5), make(tmp_path, 10)
    weights = bad / "model.safetensors"
    if damage == "unsealed":
        (bad / SEAL).unlink()
    elif damage == "torn seal":
        (bad / SEAL).write_text('{"model')
    elif damage == "missing":
        (bad / "inner" / "state").unlink()
    elif damage == "changed":
        weights.write_bytes(b"Weights" + weights.read_bytes()[7:])
    else:
        weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.warns(UserWarning, match="checkpoint-10"):
        assert last_sealed(tmp_path) == good
    assert not bad.exists()


def test_room_for_checkpoints_is_checked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage(0, 0, 3 * 2**30))
    size = check_disk(tmp_path, 2**28, 0, copies=2)
    assert size == pytest.approx(1.0)
    with pytest.raises(EnvironmentFault, match=r"must hold 4 checkpoints of 1\.0 GiB"):
        check_disk(tmp_path, 2**28, 0, copies=3)  # the one being written counts too
    with pytest.raises(EnvironmentFault, match="free disk space"):
        check_disk(tmp_path, 2**28, 2**28, copies=2)
