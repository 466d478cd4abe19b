"""What the README says can be typed, can be typed."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.S)
COMMANDS = [code.split() for code in re.findall(r"`((?:sf|make|snakemake|dvc) [^`]+)`", TEXT)]
COMMANDS += [
    line.split("#")[0].split()
    for kind, block in BLOCKS
    if kind in ("bash", "text")
    for line in block.replace("\\\n", " ").splitlines()
    if line.strip()
]


def test_the_first_two_commands_are_the_two_commands() -> None:
    kind, block = BLOCKS[0]
    assert kind == "bash"
    assert [line.split("#")[0].strip() for line in block.strip().splitlines()] == [
        "make study",
        "make test",
    ]


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[0] == "make"], ids=" ".join)
def test_make_targets_exist(words: list[str]) -> None:
    target = next(word for word in words[1:] if "=" not in word)
    assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), flags=re.M)


@pytest.mark.parametrize("words", [c for c in COMMANDS if c[0] == "sf"], ids=" ".join)
def test_sf_commands_and_their_options_exist(words: list[str]) -> None:
    sf = Path(sys.executable).parent / "sf"
    command = [word for word in words[1:2] if not word.startswith("-")]
    result = subprocess.run(
        [sf, *command, "--help"], capture_output=True, text=True, check=True, env={"COLUMNS": "200"}
    )
    for option in (word for word in words if word.startswith("--") and word != "--help"):
        assert option in result.stdout


def test_the_library_example_runs_as_it_stands() -> None:
    from sf.models import build_tiny

    model, processor = build_tiny("qwen2_5_vl", ["what color is the circle"] * 3, 0)
    picture = np.zeros((56, 56, 3), np.uint8)
    conversation = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": picture},
                {"type": "text", "text": "what color"},
            ],
        }
    ]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    example = next(block for kind, block in BLOCKS if kind == "python")
    names: dict[str, Any] = {"model": model.eval(), "inputs": inputs}
    exec(example, names)
    trace, length = names["trace"], inputs["input_ids"].shape[1]
    assert trace.token_ratio.shape == (1,)
    assert 0 < float(trace.token_ratio[0]) <= 1
    assert trace.layer_ratios.shape == (model.config.text_config.num_hidden_layers, 1)
    assert all(kept.shape == (1, length) for kept in trace.kept)


@pytest.mark.parametrize("target", re.findall(r"\]\(((?!http)[^)#]+)\)", TEXT))
def test_links_and_pictures_lie_in_the_checkout(target: str) -> None:
    assert (ROOT / target).exists()
