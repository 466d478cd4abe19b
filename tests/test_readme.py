"""Examples in README and docs run, and their links lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

import sf

ROOT = Path(__file__).parent.parent
TEXT = (ROOT / "README.md").read_text()
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", TEXT, flags=re.S)
PAGES = {page.relative_to(ROOT): page.read_text() for page in sorted((ROOT / "docs").glob("*.md"))}
PAGES[Path("README.md")] = TEXT
PAGES[Path("reports/measured/README.md")] = (ROOT / "reports/measured/README.md").read_text()
LINKS = [
    (page, target)
    for page, text in PAGES.items()
    for target in re.findall(r"\]\(((?!http)[^)#]+)(?:#[^)]*)?\)", text)
]


def test_the_first_two_commands_are_the_two_commands() -> None:
    kind, block = BLOCKS[0]
    assert kind == "bash"
    assert [line.split("#")[0].strip() for line in block.strip().splitlines()] == [
        "make study",
        "make test",
    ]


EXAMPLES = [
    pytest.param(block, id=str(page))
    for page, text in PAGES.items()
    for block in re.findall(r"```python\n(.*?)```", text, flags=re.S)
]


@pytest.mark.parametrize("example", EXAMPLES)
def test_examples_run_as_they_stand(
    example: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A tiny checkpoint replaces the one that an example takes from the hub."""
    from sf import TopP
    from sf.baselines import apply_method
    from sf.models import build_tiny

    model, processor = build_tiny("qwen2_5_vl", ["what color is the circle"] * 3, 0)
    picture = np.zeros((56, 56, 3), np.uint8)
    monkeypatch.chdir(tmp_path)
    Image.fromarray(picture).save("photo.png")
    for part in (model, processor):
        part.save_pretrained("Qwen/Qwen2.5-VL-3B-Instruct")
    parts = [{"type": "image", "image": picture}, {"type": "text", "text": "what color"}]
    conversation = [{"role": "user", "content": parts}]
    text = processor.apply_chat_template(conversation, add_generation_prompt=True)
    inputs = processor(text=[text], images=[picture], return_tensors="pt")
    names: dict[str, Any] = {"model": model.eval(), "inputs": inputs}
    names |= {"TopP": TopP, "apply_method": apply_method}
    exec(example, names)
    inputs = names["inputs"]
    length = inputs["input_ids"].shape[1]
    if "trace" not in names:
        assert names["output"].sequences.shape[1] > length
        return
    trace = names["trace"]
    assert trace.token_ratio.shape == (1,)
    assert 0 < float(trace.token_ratio[0]) <= 1
    assert trace.layer_ratios.shape == (model.config.text_config.num_hidden_layers, 1)
    assert all(kept.shape == (1, length) for kept in trace.kept)


@pytest.mark.parametrize(("page", "target"), LINKS, ids=lambda part: str(part))
def test_links_and_pictures_lie_in_the_checkout(page: Path, target: str) -> None:
    assert (ROOT / page.parent / target).exists()


def test_every_supported_model_is_named() -> None:
    head = "| models | what runs | tested tiny | real weights | GPU |"
    table = TEXT.partition(head)[2].partition("\n\n")[0]
    cells = [row.split("|")[1] for row in table.splitlines() if row.count("|") > 2]
    named = [name.strip() for cell in cells[1:] for name in cell.split(",")]
    assert named == [model.name for model in sf.supported_models()]
