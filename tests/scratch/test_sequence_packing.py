"""A packed question gets exactly the logits of a prompt of its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from sf.data.vision import encode
from sf.mini.rows import WorldSize
from sf.mini.training_examples import TrainingExample, clip_metadata
from sf.scratch.sequence_packing import pack, packed_logits, packed_loss
from sf.scratch.training_loop import Tokens
from sf.scratch.vision_features import make_prefix, media_features

TURNS = (
    ("What color is the circle?", "<answer>red</answer>"),
    ("Is there a cross in the image?\nyes or no", "no"),
    ("circle", "<answer>A</answer>"),
)


def example(data_type: str, seed: int) -> TrainingExample:
    rng = np.random.default_rng(seed)
    if data_type == "image":
        return TrainingExample("image", rng.integers(0, 255, (84, 56, 3), np.uint8), None, TURNS)
    frames = rng.integers(0, 255, (4, 84, 56, 3), np.uint8)
    return TrainingExample("video", frames, clip_metadata(WorldSize(frames=4)), TURNS)


def conversation(given: TrainingExample, prompt: str, reply: str) -> list[dict]:
    media = (
        {"type": "image", "image": Image.fromarray(given.frames)}
        if given.data_type == "image"
        else {"type": "video", "video": (given.frames, given.metadata)}
    )
    user = {"role": "user", "content": [media, {"type": "text", "text": prompt}]}
    return [user, {"role": "assistant", "content": reply}]


def packed_batch(tiny, vision, data_type: str):
    model, processor = tiny
    examples = [example(data_type, seed) for seed in (0, 1)]
    tokens = Tokens(processor.tokenizer)
    prefix = make_prefix(model, processor, examples[0], vision)
    asked = [TURNS, TURNS[1:]]  # of different lengths, so that one row is padded
    branches = [[tokens.branch(*turn) for turn in turns] for turns in asked]
    features = torch.stack(media_features(model, processor, examples))
    return examples, asked, pack(prefix, branches, tokens.pad), features, prefix.visual


@pytest.mark.parametrize("data_type", ["image", "video"])
@torch.no_grad()
def test_branches_equal_separate_prompts(tiny, vision, data_type):
    model, processor = tiny
    examples, asked, packed, features, visual = packed_batch(tiny, vision, data_type)
    logits, labels = packed_logits(model, packed, features, visual)
    at = 0
    for given, turns in zip(examples, asked, strict=True):
        for prompt, reply in turns:
            inputs = encode(processor, [conversation(given, prompt, reply)], vision)
            ids = inputs["input_ids"][0]
            end = int((ids == processor.tokenizer.eos_token_id).nonzero()[-1])
            length = len(processor.tokenizer(reply)["input_ids"]) + 1
            assert torch.equal(labels[at : at + length], ids[end + 1 - length : end + 1])
            alone = model(**inputs).logits[0, end - length : end]
            torch.testing.assert_close(logits[at : at + length], alone, atol=2e-4, rtol=1e-4)
            at += length
    assert at == len(labels)


@torch.no_grad()
def test_padding_and_neighbours_do_not_matter(tiny, vision):
    model = tiny[0]
    *_, packed, features, visual = packed_batch(tiny, vision, "image")
    before, _ = packed_logits(model, packed, features, visual)
    other = features.clone()
    other[0] += 1.0
    after, _ = packed_logits(model, packed, other, visual)
    second = int((packed.labels[1] != -100).sum())
    assert torch.equal(before[-second:], after[-second:])
    assert not torch.allclose(before[:3], after[:3])


def test_the_loss_reaches_the_language_model(tiny, vision):
    model = tiny[0]
    *_, packed, features, visual = packed_batch(tiny, vision, "image")
    packed_loss(model, packed, features, visual).backward()
    weight = model.model.language_model.layers[0].self_attn.q_proj.weight
    assert weight.grad is not None
    assert float(weight.grad.abs().sum()) > 0
    model.zero_grad(set_to_none=True)
