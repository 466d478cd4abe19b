"""A killed training of the base model continues from a complete state, or starts again."""

from __future__ import annotations

import hashlib
import pickle
from pathlib import Path
from typing import Any

import pytest
import torch
from pickled import Payload

from sf.errors import DataError
from sf.scratch.partial_state import read_state, write_state


def state() -> dict[str, Any]:
    return {"model": {"w": torch.arange(1000.0)}, "step": 3}


def test_a_state_comes_back(tmp_path: Path) -> None:
    path = tmp_path / "checkpoint.pt"
    assert read_state(path) is None
    write_state(path, state())
    again = read_state(path)
    assert again is not None
    assert again["step"] == 3
    assert torch.equal(again["model"]["w"], state()["model"]["w"])


@pytest.mark.parametrize("damage", ["empty", "cut", "one bit of a weight", "foreign"])
def test_a_damaged_state_is_named_and_does_not_count(tmp_path: Path, damage: str) -> None:
    path = tmp_path / "checkpoint.pt"
    write_state(path, state())
    content = bytearray(path.read_bytes())
    if damage == "one bit of a weight":
        content[content.index(torch.arange(500.0, 510.0).numpy().tobytes())] ^= 1
    spoilt = {"empty": b"", "cut": content[:-1], "foreign": b"PK\3\4" * 100}
    path.write_bytes(spoilt.get(damage, content))
    with pytest.warns(UserWarning, match=r"checkpoint\.pt is damaged"):
        assert read_state(path) is None


def test_a_planted_state_runs_no_code(tmp_path: Path) -> None:
    content = pickle.dumps(Payload(tmp_path / "executed"))
    path = tmp_path / "checkpoint.pt"
    path.write_bytes(hashlib.sha256(content).digest() + content)
    with pytest.raises(DataError, match="not loaded"):
        read_state(path)
    assert not (tmp_path / "executed").exists()
