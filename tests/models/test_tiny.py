"""Tiny models are the real architectures with the real processors, and survive saving."""

from __future__ import annotations

import json

import numpy as np
import pytest
import torch
from PIL import Image

from sf.data.vision import encode
from sf.errors import ConfigError, DataError, UnsupportedModelError
from sf.models import FAMILIES, build_tiny, load_model, load_processor
from sf.models.tokenizer import ANSWER_TOKENS, SPECIAL_TOKENS, train_tokenizer


def turn(text: str = "What color is the circle?") -> list[dict]:
    image = Image.fromarray(np.random.default_rng(0).integers(0, 255, (56, 84, 3), np.uint8))
    parts = [{"type": "image", "image": image}, {"type": "text", "text": text}]
    return [{"role": "user", "content": parts}]


def test_saved_and_loaded_models_answer_alike(tiny, tmp_path, vision):
    model, processor = tiny
    model.save_pretrained(tmp_path)
    processor.save_pretrained(tmp_path)
    again, inputs = load_model(tmp_path), encode(load_processor(tmp_path), [turn()], vision)
    assert torch.equal(inputs["input_ids"], encode(processor, [turn()], vision)["input_ids"])
    with torch.no_grad():
        assert torch.equal(model(**inputs).logits, again(**inputs).logits)
    assert isinstance(again, FAMILIES[model.config.model_type])


def test_generation_ends_at_the_end_of_the_turn(tiny, vision):
    model, processor = tiny
    assert model.generation_config.eos_token_id == processor.tokenizer.eos_token_id
    output = model.generate(**encode(processor, [turn()], vision), max_new_tokens=3)
    assert output.shape[0] == 1


def test_an_image_costs_one_token_a_cell(tiny, vision):
    model, processor = tiny
    ids = encode(processor, [turn()], vision)["input_ids"]
    assert int((ids == model.config.image_token_id).sum()) == 2 * 3


def test_the_seed_decides_the_weights():
    first, second, other = (build_tiny("qwen2_5_vl", ["a b"], s)[0] for s in (1, 1, 2))
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), second.parameters(), strict=True)]
    assert all(same)
    name = "model.language_model.embed_tokens.weight"
    assert not torch.equal(first.get_parameter(name), other.get_parameter(name))


def test_building_leaves_the_global_random_state_alone():
    torch.manual_seed(5)
    before = torch.random.get_rng_state()
    build_tiny("qwen2_vl", ["a b"], 0)
    assert torch.equal(before, torch.random.get_rng_state())


def test_special_and_answer_tokens_are_one_token_each():
    tokenizer = train_tokenizer(["yes no"] * 2)
    for text in (*SPECIAL_TOKENS, *ANSWER_TOKENS):
        assert len(tokenizer(text)["input_ids"]) == 1, text
    ids = tokenizer("<answer>yes</answer><|im_end|>")["input_ids"]
    assert tokenizer.decode(ids, skip_special_tokens=True) == "<answer>yes</answer>"


def test_any_text_survives_the_tokenizer():
    tokenizer = train_tokenizer(["only these words"] * 2)
    for text in ("Größe 42,5 µm\n(A) naïve", "日本 ok", "a  b\t\n"):
        assert tokenizer.decode(tokenizer(text)["input_ids"]) == text


def test_an_unknown_family_is_refused(tmp_path):
    with pytest.raises(UnsupportedModelError, match="qwen2_5_vl"):
        build_tiny("llama", ["a"], 0)
    (tmp_path / "config.json").write_text(json.dumps({"model_type": "gpt2"}))
    with pytest.raises(UnsupportedModelError, match="gpt2"):
        load_model(tmp_path)


def test_a_folder_without_a_model_is_refused(tmp_path):
    with pytest.raises(DataError, match=r"no config\.json"):
        load_processor(tmp_path)
    with pytest.raises(ConfigError, match="float8"):
        load_model(tmp_path, dtype="float8")
