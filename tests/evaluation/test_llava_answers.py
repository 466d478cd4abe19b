"""LLaVA models in the chat model, `sf ask` and the loader."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import numpy as np
import PIL.Image
import pytest
import torch
from scripted import BOUNDS
from tiny_llava import CELLS, FAMILIES, build_llava
from transformers.video_utils import VideoMetadata

from sf import FixedMask, TopP
from sf.ask import answer, ask, load_media, overlay
from sf.ask.media import bounds
from sf.attention.visual_tokens import locate, visual_mask
from sf.config import BaseModelSpec, Vision
from sf.data.llava import load_own_size
from sf.data.vision import encode, encode_parts
from sf.errors import ConfigError, DataError, UnsupportedModelError
from sf.evaluation.benchmarks import benchmark_named
from sf.evaluation.model import SparseChatModel
from sf.evaluation.question import Question
from sf.evaluation.run import evaluate_benchmarks
from sf.mini.scenes import render, sample_clip, sample_scene, write_video
from sf.models.load import load_config, load_model, load_processor
from sf.validation import validated

CORPUS = ["What color is the ring? A. red B. green Answer with the option's letter."] * 3
QUESTION = "What color is the ring?"
VISION = Vision(**BOUNDS)  # type: ignore[arg-type]


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A checkpoint of each family."""
    folders = {}
    for family in FAMILIES:
        model, processor = build_llava(family, CORPUS)
        folders[family] = tmp_path_factory.mktemp(family)
        model.save_pretrained(folders[family])
        processor.save_pretrained(folders[family])
    return folders


@pytest.fixture(scope="module", params=FAMILIES)
def loaded(request: pytest.FixtureRequest, saved: dict[str, Path]) -> tuple[Any, Any]:
    path = saved[request.param]
    return load_model(path), load_processor(path)


def _evaluated(lm: Any, home: Path, work: Path, names: tuple[str, ...]) -> list[Any]:
    return evaluate_benchmarks(
        lm, [benchmark_named(n) for n in names], home, work, most_new_tokens=6
    )


def _replies(results: list[Any]) -> dict[str, list[str]]:
    return {
        task: [sample.record.reply for sample in samples]
        for result in results
        for task, samples in result.samples.items()
    }


def test_full_on_images_equals_lmms_evals_own_class(
    saved: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    """Replies and scores against `llava_hf` of lmms-eval."""
    from lmms_eval.models.chat.llava_hf import LlavaHf

    names, path = ("mmstar", "ocrbench"), str(saved["llava_onevision"])
    sparse_model = SparseChatModel(path, batch_size=4, **BOUNDS)  # type: ignore[arg-type]
    own = _evaluated(sparse_model, home, tmp_path / "own", names)

    class Builtin(LlavaHf):
        def clean(self) -> None: ...

        def answered(self, task: str) -> list[Any]:
            return sparse_model.answered(task)

    builtin_model = Builtin(
        path, device="cpu", device_map="cpu", dtype="float32", attn_implementation="sdpa"
    )
    heard: dict[str, list[str]] = {}
    generate = builtin_model.generate_until

    def listen(requests: list[Any]) -> list[Any]:
        results = generate(requests)
        heard[requests[0].args[4]] = [result.text for result in results]
        return results

    builtin_model.generate_until = listen  # type: ignore[method-assign]
    builtin = _evaluated(builtin_model, home, tmp_path / "theirs", names)
    assert heard == _replies(own)
    assert len({reply for some in heard.values() for reply in some}) > 4
    assert [result.metrics for result in builtin] == [result.metrics for result in own]


def _every_frame(path: str) -> np.ndarray:
    with av.open(path) as container:
        return np.stack([f.to_ndarray(format="rgb24") for f in container.decode(video=0)])


@torch.inference_mode()
def test_full_on_videos_equals_transformers_own_path(
    loaded: tuple[Any, Any], tmp_path: Path
) -> None:
    """The processor called with paths and frames that the test chooses, and plain `generate`."""
    model, processor = loaded
    rng = np.random.default_rng(3)
    replies: set[str] = set()
    for number, frames in enumerate((2, 4, 7)):
        path = str(tmp_path / f"{number}.mp4")
        write_video(sample_clip(rng, rows=3, cols=5, frames=frames), Path(path), 2)
        turn = {
            "role": "user",
            "content": [{"type": "video", "path": path}, {"type": "text", "text": QUESTION}],
        }
        inputs = encode(processor, [[turn]], VISION)
        every = _every_frame(path)
        count = min(4, frames) // 2 * 2
        chosen = every[[index * frames // count for index in range(count)]]
        text = processor.apply_chat_template([turn], tokenize=False, add_generation_prompt=True)
        reference = processor(text=[text], videos=[chosen], return_tensors="pt")
        for name in reference:
            assert torch.equal(torch.as_tensor(inputs[name]), torch.as_tensor(reference[name])), (
                name
            )
        output = model.generate(**reference, max_new_tokens=6, do_sample=False)
        expected = processor.decode(
            output[0, reference["input_ids"].shape[1] :], skip_special_tokens=True
        )
        media = load_media("video", path, VISION, llava=True)
        result = answer(model, processor, media, QUESTION, TopP(p=1.0), max_new_tokens=6)
        shown = "".join(s if s.isprintable() or s == "\n" else "\ufffd" for s in expected)
        assert result.reply == shown.strip()
        replies.add(result.reply)
    assert len(replies) == 3


def _conversations() -> list[Any]:
    rng = np.random.default_rng(0)

    def noise(*shape: int) -> np.ndarray:
        return rng.integers(0, 255, (*shape, 3), dtype=np.uint8)

    def video(count: int) -> dict[str, Any]:
        facts = VideoMetadata(
            total_num_frames=count, fps=1.0, width=60, height=40, frames_indices=list(range(count))
        )
        return {"type": "video", "video": (noise(count, 40, 60), facts)}

    def turn(*parts: dict[str, Any]) -> list[dict[str, Any]]:
        return [{"role": "user", "content": [*parts, {"type": "text", "text": QUESTION}]}]

    picture = {"type": "image", "image": PIL.Image.fromarray(noise(30, 50))}
    return [turn(video(2)), turn(picture), turn(video(4)), turn(), turn(picture, picture)]


def test_a_mixed_batch_is_cut_by_the_number_of_frames(loaded: tuple[Any, Any]) -> None:
    talks = _conversations()
    parts = encode_parts(loaded[1], talks, VISION)
    assert [members for members, _ in parts] == [[0, 1, 3, 4], [2]]
    with pytest.raises(DataError, match=r"\[2, 4\].*same number of frames"):
        encode(loaded[1], talks, VISION)
    assert [members for members, _ in encode_parts(loaded[1], talks[3:4], VISION)] == [[0]]


def test_batches_of_mixed_media_equal_batch_one(
    saved: dict[str, Path], loaded: tuple[Any, Any]
) -> None:
    family = loaded[0].config.model_type
    lm = SparseChatModel(str(saved[family]), method="zipvl", value=0.8, **BOUNDS)  # type: ignore[arg-type]
    questions = [Question("t", number, talk, 5, "") for number, talk in enumerate(_conversations())]
    together = lm._generate(questions)
    for number, question in enumerate(questions):
        (alone,) = lm._generate([question])
        assert alone.doc_id == together[number].doc_id == number
        assert alone.reply == together[number].reply
        assert alone.prompt_tokens == together[number].prompt_tokens
        assert alone.token_ratio == pytest.approx(together[number].token_ratio, abs=1e-6)
        assert together[number].batch == 5
    assert len({record.reply for record in together}) == 5
    assert max(record.token_ratio for record in together) < 1


def test_a_resized_video_is_refused(loaded: tuple[Any, Any], tmp_path: Path) -> None:
    path = tmp_path / "clip.mp4"
    write_video(sample_clip(np.random.default_rng(0), rows=3, cols=4, frames=4), path, 2)
    small = Vision(**{**BOUNDS, "video_max_pixels": 4 * 784})  # type: ignore[arg-type]
    media = load_media("video", path, small)
    with pytest.raises(ConfigError, match="load_own_size"):
        answer(loaded[0], loaded[1], media, QUESTION)
    frames, facts = load_own_size(path, small)
    assert frames.shape[1:3] == (facts.height, facts.width) == (84, 112)


def test_every_visual_token_is_located(loaded: tuple[Any, Any]) -> None:
    model, processor = loaded
    (members, inputs), _ = encode_parts(processor, _conversations(), VISION)
    spans = locate(inputs, model.config)
    mask = visual_mask(spans, tuple(inputs["input_ids"].shape))
    ids = inputs["input_ids"]
    assert torch.equal(mask, (ids == processor.image_token_id) | (ids == processor.video_token_id))
    side = CELLS[model.config.model_type]
    pooled = {4: 2, 5: 3}[side]
    assert [(s.kind, s.row, s.shape) for s in spans if s.kind == "video"] == [
        ("video", members.index(0), (2, pooled, pooled))
    ]
    assert {s.shape for s in spans if s.kind == "image"} == {(1, side, side)}
    alone, *several = [len(s.others) for s in spans if s.kind == "image"]
    assert len(several) == 2
    if model.config.model_type == "llava_onevision":  # tiles are for an image alone in its prompt
        assert several == [1, 1]
        assert alone > side * side
    short = {**inputs, "input_ids": torch.full_like(ids, processor.image_token_id)[:, :3]}
    with pytest.raises(DataError, match=f"need {side**2}"):
        locate(short, model.config)


@pytest.mark.parametrize("kind", ["image", "video"])
def test_one_kept_token_is_one_cell_of_the_picture(
    loaded: tuple[Any, Any], tmp_path: Path, kind: Any
) -> None:
    model, processor = loaded
    side = CELLS[model.config.model_type]
    grid = (1, side, side) if kind == "image" else (4, -(-side // 2), -(-side // 2))
    rng = np.random.default_rng(1)
    render(sample_scene(rng, rows=3, cols=4)).save(tmp_path / "image.png")
    write_video(sample_clip(rng, rows=3, cols=4, frames=4), tmp_path / "video.mp4", 1)
    path = next(tmp_path.glob(f"{kind}.*"))
    media = load_media(kind, path, bounds(kind, fps=1.0), llava=True)
    whole = answer(model, processor, media, QUESTION, TopP(p=0.9), max_new_tokens=2)
    assert whole.grid == grid
    turn = {"role": "user", "content": [media.part, {"type": "text", "text": QUESTION}]}
    ids = encode(processor, [[turn]], media.vision)["input_ids"][0]
    visual = (ids == processor.image_token_id) | (ids == processor.video_token_id)
    assert whole.visual_tokens == int(visual.sum())
    kept = torch.zeros(1, len(ids), dtype=torch.bool)
    cell = (grid[0] - 1, 1, 0)
    kept[0, int(visual.nonzero()[0]) + int(np.ravel_multi_index(cell, grid))] = True
    result = answer(model, processor, media, QUESTION, FixedMask([kept] * 3), max_new_tokens=1)
    assert np.argwhere(result.kept).tolist() == [[layer, *cell] for layer in range(3)]
    assert overlay(result, media, QUESTION).axes


def test_a_video_is_asked_about_from_its_file(saved: dict[str, Path], tmp_path: Path) -> None:
    """The whole of `sf ask`: the video is loaded again once the model is known to be LLaVA."""
    path, picture = tmp_path / "clip.mp4", tmp_path / "kept.png"
    write_video(sample_clip(np.random.default_rng(1), rows=3, cols=4, frames=4), path, 1)
    result = ask(
        saved["llava_onevision"],
        QUESTION,
        video=path,
        fps=1.0,
        max_pixels=4 * 784,
        device="cpu",
        max_new_tokens=2,
        picture=picture,
    )
    assert result.grid == (4, 3, 3)
    assert picture.stat().st_size > 1000


def test_media_of_the_qwen_class_are_refused(saved: dict[str, Path]) -> None:
    path = str(saved["llava_onevision"])
    with pytest.raises(ConfigError, match="media=training"):
        SparseChatModel(path, media="lmms_eval", **BOUNDS)  # type: ignore[arg-type]


def test_a_checkpoint_of_the_original_code_is_refused_with_the_way_out(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llava_qwen"}')
    with pytest.raises(UnsupportedModelError, match="convert it to transformers' llava_onevision"):
        load_config(tmp_path)


def test_llava_is_not_trained_from_scratch() -> None:
    values = {"family": "llava_onevision", "source": "scratch"}
    with pytest.raises(ConfigError, match="needs a family of"):
        validated(BaseModelSpec, values)
    assert validated(BaseModelSpec, {**values, "source": "/models/llava"}).family
