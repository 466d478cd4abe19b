"""Checkpoints from hostile or broken sources: one clear error, and no code is run."""

from __future__ import annotations

import json
import pickle
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from pickled import Payload

from sf.errors import SparsityForcingError
from sf.models import build_tiny, load_model, load_processor

CODE = "from pathlib import Path\nPath({mark!r}).touch()\n"


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A whole checkpoint."""
    folder = tmp_path_factory.mktemp("whole")
    for part in build_tiny("qwen2_5_vl", ["red square"] * 3, 0):
        part.save_pretrained(folder)
    return folder


def change(folder: Path, name: str, **values: Any) -> None:
    path = folder / name
    content = json.loads(path.read_text()) if path.is_file() else {}
    path.write_text(json.dumps({**content, **values}))


def weights(folder: Path, content: bytes) -> None:
    (folder / "model.safetensors").write_bytes(content)


def header(folder: Path, values: Any) -> None:
    text = values if isinstance(values, bytes) else json.dumps(values).encode()
    weights(folder, struct.pack("<Q", len(text)) + text + bytes(64))


def whole(folder: Path) -> bytes:
    return (folder / "model.safetensors").read_bytes()


def outside(folder: Path) -> None:
    """An index that names a file outside the folder."""
    weights(folder.parent, whole(folder))
    (folder / "model.safetensors").unlink()
    index = {"metadata": {}, "weight_map": {"lm_head.weight": "../model.safetensors"}}
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))


def tensor(begin: int, end: int, shape: list[int]) -> dict[str, Any]:
    return {"lm_head.weight": {"dtype": "F32", "shape": shape, "data_offsets": [begin, end]}}


WEIGHTS: dict[str, Callable[[Path], object]] = {
    "no weights": lambda f: (f / "model.safetensors").unlink(),
    "empty": lambda f: weights(f, b""),
    "cut off in the header": lambda f: weights(f, whole(f)[:100]),
    "cut off in the numbers": lambda f: weights(f, whole(f)[:-1000]),
    "a header of 2^60 bytes": lambda f: weights(f, struct.pack("<Q", 2**60) + b"{}"),
    "a header that is no JSON": lambda f: header(f, b"{" * 50),
    "a header that is a list": lambda f: header(f, []),
    "deeply nested": lambda f: header(f, b'{"a":' * 9000 + b"1" + b"}" * 9000),
    "offsets past the end": lambda f: header(f, tensor(0, 2**40, [2**38])),
    "offsets backwards": lambda f: header(f, tensor(64, 0, [16])),
    "a shape that overflows": lambda f: header(f, tensor(0, 64, [2**62, 2**62])),
    "a shape of other rank": lambda f: header(f, tensor(0, 64, [16])),
    "another kind of file": lambda f: weights(f, b"PK\3\4" + bytes(200)),
    "a part outside the folder": outside,
}
SETTINGS: dict[str, Callable[[Path], object]] = {
    "no JSON": lambda f: (f / "config.json").write_text("{"),
    "no text": lambda f: (f / "config.json").write_bytes(b"\xff\xfe\0\0"),
    "a list": lambda f: (f / "config.json").write_text("[]"),
    "empty": lambda f: (f / "config.json").write_bytes(b""),
    "deeply nested": lambda f: (f / "config.json").write_text("[" * 100_000),
    "a type that is no name": lambda f: change(f, "config.json", model_type=["qwen2_vl"]),
    "an unknown type": lambda f: change(f, "config.json", model_type="../../evil"),
    "negative layers": lambda f: change(f, "config.json", text_config={"num_hidden_layers": -1}),
    "text for a number": lambda f: change(f, "config.json", text_config={"hidden_size": "x"}),
    "a null section": lambda f: change(f, "config.json", vision_config=None),
    "an adapter of another model": lambda f: change(
        f,
        "adapter_config.json",
        peft_type="LORA",
        base_model_name_or_path="evil/base",
        auto_mapping={"parent_library": "evil"},
    ),
    "no heads": lambda f: change(f, "config.json", text_config={"num_attention_heads": 0}),
    "a class of its own": lambda f: change(
        f, "config.json", model_type="evil", auto_map={"AutoConfig": "evil.Config"}
    ),
}
PROCESSORS: dict[str, Callable[[Path], object]] = {
    "no tokenizer": lambda f: (f / "tokenizer.json").unlink(),
    "a tokenizer that is no JSON": lambda f: (f / "tokenizer.json").write_text("{"),
    "a tokenizer of nothing": lambda f: (f / "tokenizer.json").write_text("{}"),
    "a processor of code": lambda f: [
        change(f, name, processor_class="Evil", image_processor_type="Evil",
               auto_map={"AutoProcessor": "evil.Evil", "AutoImageProcessor": "evil.Evil"})
        for name in ("processor_config.json", "preprocessor_config.json")
    ],
}  # fmt: skip


def planted(saved: Path, tmp_path: Path, spoil: Callable[[Path], object]) -> tuple[Path, Path]:
    """A damaged copy beside code that a loader could find, and the mark that it would leave."""
    folder, mark = tmp_path / "inner" / "model", tmp_path / "executed"
    folder.mkdir(parents=True)
    for path in saved.iterdir():
        (folder / path.name).write_bytes(path.read_bytes())
    for name in ("evil.py", "modeling.py", "__init__.py"):
        (folder / name).write_text(CODE.format(mark=str(mark)))
    for name in ("pytorch_model.bin", "model.pkl", "model.ckpt.index", "adapter_model.bin"):
        (folder / name).write_bytes(pickle.dumps(Payload(mark)))
    spoil(folder)
    return folder, mark


@pytest.mark.parametrize("kind", [*WEIGHTS])
def test_weights(saved: Path, tmp_path: Path, kind: str) -> None:
    folder, mark = planted(saved, tmp_path, WEIGHTS[kind])
    with pytest.raises(SparsityForcingError):
        load_model(folder)
    assert not mark.exists()


@pytest.mark.parametrize("kind", [*SETTINGS])
def test_settings(saved: Path, tmp_path: Path, kind: str) -> None:
    folder, mark = planted(saved, tmp_path, SETTINGS[kind])
    with pytest.raises(SparsityForcingError):
        load_model(folder)
    assert not mark.exists()


@pytest.mark.parametrize("kind", [*PROCESSORS])
def test_processors(saved: Path, tmp_path: Path, kind: str) -> None:
    folder, mark = planted(saved, tmp_path, PROCESSORS[kind])
    with pytest.raises(SparsityForcingError):
        load_processor(folder)
    assert not mark.exists()


@pytest.mark.parametrize("kind", ["auto_map", "implementation", "quantization", "tokenizer"])
def test_code_beside_a_good_checkpoint_is_not_run(saved: Path, tmp_path: Path, kind: str) -> None:
    def spoil(folder: Path) -> None:
        values: dict[str, Any] = {
            "auto_map": {"auto_map": dict.fromkeys(("AutoConfig", "AutoModel"), "evil.Evil")},
            "implementation": {
                "_attn_implementation": "evil/kernels",
                "attn_implementation": "x/y",
            },
            "tokenizer": {},
            "quantization": {"quantization_config": {"quant_method": "evil"}},
        }[kind]
        change(folder, "config.json", **values)
        if kind == "tokenizer":
            auto_map = {"AutoTokenizer": ["evil.Evil", "evil.Evil"]}
            change(folder, "tokenizer_config.json", tokenizer_class="Evil", auto_map=auto_map)

    folder, mark = planted(saved, tmp_path, spoil)
    try:
        load_model(folder)
        load_processor(folder)
    except SparsityForcingError:
        pass  # refused, which is as good
    assert not mark.exists()


def test_a_chat_template_cannot_reach_python(saved: Path, tmp_path: Path) -> None:
    reach = "{{ ''.__class__.__mro__[1].__subclasses__() }}"
    folder, mark = planted(saved, tmp_path, lambda f: (f / "chat_template.jinja").write_text(reach))
    processor = load_processor(folder)
    with pytest.raises(Exception, match="unsafe"):
        processor.apply_chat_template([{"role": "user", "content": "x"}])
    assert not mark.exists()
