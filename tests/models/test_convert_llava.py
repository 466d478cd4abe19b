"""`sf convert`: LLaVA-NeXT's checkpoints in transformers' classes."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import llava_next
import numpy as np
import PIL.Image
import pytest
import torch
from llava_next import SIDE, SYSTEM, Reference
from safetensors import safe_open
from transformers import AutoTokenizer, LlavaOnevisionForConditionalGeneration
from transformers.image_transforms import resize
from transformers.image_utils import ChannelDimension, PILImageResampling
from transformers.video_utils import VideoMetadata

from sf.ask.media import bounds
from sf.attention.visual_tokens import locate
from sf.data.vision import encode
from sf.models import load_model, load_processor
from sf.models.convert_llava import convert_llava

QUESTION = "What color is the ring?"
VISION = bounds("video")
FORMS = [
    {"mm_newline_position": "grid", "mm_spatial_pool_mode": "bilinear"},  # LLaVA-Video's own
    {"mm_newline_position": "frame", "mm_spatial_pool_mode": "average"},
    {"mm_newline_position": "grid", "mm_spatial_pool_mode": "max", "add_time_instruction": False},
    {"mm_newline_position": "one_token", "add_time_instruction": False},  # LLaVA-OneVision's
]


def _noise(*shape: int) -> np.ndarray:
    return np.random.default_rng(sum(shape)).integers(0, 255, (*shape, 3), dtype=np.uint8)


def _video(count: int) -> dict[str, Any]:
    facts = VideoMetadata(
        total_num_frames=3 * count,
        fps=2.0,
        duration=1.5 * count,
        width=60,
        height=40,
        frames_indices=[3 * index for index in range(count)],
    )
    return {"type": "video", "video": (_noise(count, 40, 60), facts)}


def _image(width: int, height: int) -> dict[str, Any]:
    return {"type": "image", "image": PIL.Image.fromarray(_noise(height, width))}


def _turn(*media: dict[str, Any]) -> list[dict[str, Any]]:
    return [{"role": "user", "content": [*media, {"type": "text", "text": QUESTION}]}]


def _ids(source: Path, text: str) -> list[torch.Tensor]:
    """LLaVA-NeXT's `tokenizer_image_token`: the pieces around each <image>."""
    tokenizer = AutoTokenizer.from_pretrained(source)
    return [torch.tensor(tokenizer(piece).input_ids).long() for piece in text.split("<image>")]


def _reference(source: Path) -> Reference:
    config = json.loads((source / "config.json").read_text())
    weights = {}
    for file in source.glob("*.safetensors"):
        with safe_open(file, "pt") as part:
            weights |= {name: part.get_tensor(name) for name in part.keys()}  # noqa: SIM118
    return Reference(weights, config)


def _check_logits(
    source: Path, target: Path, inputs: Any, question: str, visual: list[torch.Tensor]
) -> None:
    """The converted model's logits are LLaVA-NeXT's for the same question and visual tokens."""
    text = f"{SYSTEM}<|im_start|>user\n{question}<|im_end|>\n<|im_start|>assistant\n"
    first, *pieces = _ids(source, text)
    parts = [first]
    for tokens, piece in zip(visual, pieces, strict=True):
        parts += [tokens, piece]
    expected = _reference(source).logits(parts)
    logits = load_model(target)(**inputs).logits[0]
    assert logits.shape == expected.shape
    assert torch.allclose(logits, expected, atol=1e-4 * float(expected.abs().max()), rtol=0)


@torch.inference_mode()
@pytest.mark.parametrize("form", FORMS, ids=lambda form: "-".join(map(str, form.values())))
def test_a_videos_logits_are_llava_nexts(tmp_path: Path, form: dict[str, Any]) -> None:
    llava_next.write(tmp_path / "source", **form)
    convert_llava(str(tmp_path / "source"), tmp_path / "target")
    inputs = encode(load_processor(tmp_path / "target"), [_turn(_video(4))], VISION)
    reference = _reference(tmp_path / "source")
    question = f"<image>\n{QUESTION}"
    if form.get("add_time_instruction", True):
        question = (
            "<image>\nThe video lasts for 6.00 seconds, and 4 frames are uniformly sampled from it."
            " These frames are located at 0.00s,1.50s,3.00s,4.50s.Please answer the following "
            f"questions related to this video.\n{QUESTION}"
        )
    visual = [reference.video(inputs["pixel_values_videos"][0])]
    _check_logits(tmp_path / "source", tmp_path / "target", inputs, question, visual)


@torch.inference_mode()
@pytest.mark.parametrize("size", [(60, 40), (38, 38), (30, 100), (200, 90), (37, 113), (500, 30)])
def test_an_images_logits_are_llava_nexts(
    source: Path, target: Path, size: tuple[int, int]
) -> None:
    inputs = encode(load_processor(target), [_turn(_image(*size))], VISION)
    reference = _reference(source)
    wide, high = reference.grid_shape(*size)
    pixels = inputs["pixel_values"][0]
    assert len(pixels) == 1 + wide * high
    visual = [reference.image(pixels, *size)]
    _check_logits(source, target, inputs, f"<image>\n{QUESTION}", visual)


@torch.inference_mode()
def test_several_images_logits_are_llava_nexts(source: Path, target: Path) -> None:
    inputs = encode(load_processor(target), [_turn(_image(60, 40), _image(30, 90))], VISION)
    reference = _reference(source)
    visual = [reference.image(pixels[:1], 1, 1) for pixels in inputs["pixel_values"]]
    _check_logits(source, target, inputs, f"<image>\n<image>\n{QUESTION}", visual)


def _as_siglip_does(image: np.ndarray) -> np.ndarray:
    """LLaVA-NeXT's `SigLipImageProcessor`: PIL's bicubic, then mean and deviation 0.5."""
    channels = ChannelDimension.FIRST
    small = resize(image, (SIDE, SIDE), PILImageResampling.BICUBIC, data_format=channels)
    return small / 255 * 2 - 1


def test_pixels_are_llava_nexts_within_a_level(target: Path) -> None:
    """Frames, a whole image and its tiles, and an image padded to a square."""
    level = 2 / 255
    processor = load_processor(target)
    video = _video(2)
    frames = encode(processor, [_turn(video)], VISION)["pixel_values_videos"][0]
    expected = np.stack([_as_siglip_does(frame) for frame in video["video"][0]])
    assert np.abs(frames.numpy() - expected).max() < 1.01 * level
    wide = _image(76, 38)["image"]  # fills two tiles: nothing is resized or padded
    tiles = encode(processor, [_turn({"type": "image", "image": wide})], VISION)["pixel_values"][0]
    assert np.abs(tiles[0].numpy() - _as_siglip_does(np.asarray(wide))).max() < 1.01 * level
    for at, tile in enumerate((wide.crop((0, 0, 38, 38)), wide.crop((38, 0, 76, 38)))):
        assert np.abs(tiles[at + 1].numpy() - _as_siglip_does(np.asarray(tile))).max() < 1e-5
    square = PIL.Image.new("RGB", (76, 76), (127, 127, 127))
    square.paste(wide, (0, 19))
    part = {"type": "image", "image": wide}
    several = encode(processor, [_turn(part, part)], VISION)["pixel_values"][0][0]
    assert np.abs(several.numpy() - _as_siglip_does(np.asarray(square))).max() < 1.01 * level


def test_transformers_alone_reads_images_and_refuses_videos(source: Path, target: Path) -> None:
    from transformers import AutoProcessor

    model, report = LlavaOnevisionForConditionalGeneration.from_pretrained(
        target, output_loading_info=True
    )
    assert not any(report.values())
    processor = AutoProcessor.from_pretrained(target)
    text = processor.apply_chat_template(_turn(_image(60, 40)), add_generation_prompt=True)
    assert text.startswith(f"{SYSTEM}<|im_start|>user\n<image>\n{QUESTION}")
    with pytest.raises(Exception, match=r"sf\.models\.load_processor"):
        processor.apply_chat_template(_turn(_video(2)))
    image, video = model.config.image_token_id, model.config.video_token_id
    never = model.generation_config.suppress_tokens
    vocabulary = len(AutoTokenizer.from_pretrained(source))
    assert (image, video) == (vocabulary, vocabulary + 1)
    assert never == list(range(vocabulary, model.config.text_config.vocab_size))


@pytest.mark.parametrize(("form", "ends"), [(FORMS[0], 4 * 3), (FORMS[1], 4), (FORMS[3], 1)])
def test_every_cell_of_a_video_is_located(tmp_path: Path, form: dict[str, Any], ends: int) -> None:
    llava_next.write(tmp_path / "source", **form)
    convert_llava(str(tmp_path / "source"), tmp_path / "target")
    inputs = encode(load_processor(tmp_path / "target"), [_turn(_video(4))], VISION)
    model = load_model(tmp_path / "target")
    (span,) = locate(inputs, model.config)
    side = 2 if form.get("mm_spatial_pool_mode") == "average" else 3
    assert span.shape == (4, side, side)
    assert len(span.others) == ends
    visual = (inputs["input_ids"][0] == model.config.video_token_id).nonzero()[:, 0]
    assert sorted([*span.columns.tolist(), *span.others.tolist()]) == visual.tolist()
    with torch.inference_mode():
        features = model.model.get_video_features(inputs["pixel_values_videos"]).pooler_output[0]
    newline = model.model.image_newline
    is_end = (features == newline).all(-1)
    assert (visual[is_end] == span.others).all()


def test_weights_are_the_same_bits_in_as_many_files(tmp_path: Path) -> None:
    before = llava_next.write(tmp_path / "source", 2, torch.bfloat16)
    convert_llava(str(tmp_path / "source"), tmp_path / "target")
    files = sorted(path.name for path in (tmp_path / "target").glob("*.safetensors"))
    assert files == [f"model-0000{at}-of-00002.safetensors" for at in (1, 2)]
    model = LlavaOnevisionForConditionalGeneration.from_pretrained(tmp_path / "target")
    assert model.dtype == torch.bfloat16
    after = model.state_dict()
    assert len(after) == len(before)
    for old, new in (
        ("lm_head.weight", "lm_head.weight"),
        ("model.image_newline", "model.image_newline"),
        ("model.mm_projector.2.bias", "model.multi_modal_projector.linear_2.bias"),
        ("model.layers.1.mlp.up_proj.weight", "model.language_model.layers.1.mlp.up_proj.weight"),
    ):
        assert torch.equal(before[old], after[new])
    (tower,) = (name for name in after if name.endswith("encoder.layers.1.mlp.fc2.weight"))
    old = "model.vision_tower.vision_tower.vision_model.encoder.layers.1.mlp.fc2.weight"
    assert torch.equal(before[old], after[tower])


def test_tied_embeddings_and_one_file(tmp_path: Path) -> None:
    before = llava_next.write(tmp_path / "source", 1, tie_word_embeddings=True)
    convert_llava(str(tmp_path / "source"), tmp_path / "target")
    model = load_model(tmp_path / "target")
    assert torch.equal(model.lm_head.weight, before["model.embed_tokens.weight"])
    assert not (tmp_path / "target" / "model.safetensors.index.json").exists()


def test_a_tokenizer_of_qwen2s_two_files(source: Path, target: Path, tmp_path: Path) -> None:
    """As LLaVA-Video-7B-Qwen2 has it: vocab.json and merges.txt."""
    shutil.copytree(source, tmp_path / "source")
    whole = json.loads((tmp_path / "source" / "tokenizer.json").read_text())
    (tmp_path / "source" / "tokenizer.json").unlink()
    model, added = whole["model"], whole["added_tokens"]
    (tmp_path / "source" / "vocab.json").write_text(json.dumps(model["vocab"]))
    merges = "\n".join(" ".join(pair) for pair in model["merges"])
    (tmp_path / "source" / "merges.txt").write_text(f"#version: 0.2\n{merges}\n")
    settings = {
        "tokenizer_class": "Qwen2Tokenizer",
        "added_tokens_decoder": {str(token.pop("id")): token for token in added},
        "eos_token": "<|im_end|>",
        "pad_token": "<|endoftext|>",
    }
    (tmp_path / "source" / "tokenizer_config.json").write_text(json.dumps(settings))
    convert_llava(str(tmp_path / "source"), tmp_path / "target")
    talk = [_turn(_video(2))]
    ids = [
        encode(load_processor(x), talk, VISION)["input_ids"] for x in (target, tmp_path / "target")
    ]
    assert torch.equal(*ids)
