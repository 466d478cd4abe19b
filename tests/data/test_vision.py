"""Rows to tensors: bounds, frames, time stamps and padding."""

from __future__ import annotations

import numpy as np
import PIL.Image
import pytest
import torch
from clips import write_clip
from transformers.video_utils import VideoMetadata

from sf.data import video
from sf.data.budget import frame_indices, resized_size, visual_tokens
from sf.data.video import check_video, decode_frames
from sf.data.vision import encode, load_image, load_video
from sf.errors import DataError, UnsupportedModelError


def turn(kind: str, path, text: str = "Which colour?") -> list[dict]:
    return [
        {
            "role": "user",
            "content": [{"type": kind, "path": str(path)}, {"type": "text", "text": text}],
        }
    ]


@pytest.fixture
def picture(tmp_path):
    noise = np.random.default_rng(0).integers(0, 256, (300, 200, 3), dtype=np.uint8)
    PIL.Image.fromarray(noise).save(tmp_path / "a.png")
    return tmp_path / "a.png"


@pytest.mark.parametrize("size", [(200, 300), (10, 10), (28, 28), (1000, 7), (640, 480), (57, 99)])
@pytest.mark.parametrize("bounds", [(3136, 12544), (784, 784), (100352, 401408)])
def test_resized_size_is_transformers_rule(size, bounds):
    from transformers.models.qwen2_vl.image_processing_qwen2_vl import smart_resize

    height, width = smart_resize(size[1], size[0], 28, *bounds)
    assert resized_size(*size, bounds) == (width, height)


@pytest.mark.parametrize("num_frames", [2, 3, 4, 5, 9, 24, 100, 1001])
@pytest.mark.parametrize("fps", [1.0, 8.0, 24.0, 29.97])
def test_frame_rule_is_the_processors(processor, vision, num_frames, fps):
    video = processor.video_processor
    expected = video.sample_frames(
        VideoMetadata(total_num_frames=num_frames, fps=fps),
        fps=vision.video_fps,
        max_frames=vision.video_max_frames,
    )
    indices = frame_indices(num_frames, fps, vision)
    assert len(indices) == len(expected)
    assert np.abs(np.array(indices) - expected.numpy()).max() <= 1  # theirs accumulate in float32
    assert indices[0] == 0
    assert indices[-1] < num_frames


def test_one_frame_is_one_frame(vision):
    assert frame_indices(1, 25.0, vision) == [0]


@pytest.mark.parametrize(("num_frames", "fps"), [(0, 25.0), (5, 0.0), (5, float("nan"))])
def test_no_frames_or_no_rate_is_refused(vision, num_frames, fps):
    with pytest.raises(DataError):
        frame_indices(num_frames, fps, vision)


@pytest.mark.parametrize("size", [(200, 300), (10, 12), (2000, 1000)])
def test_image_bounds_hold_against_the_saved_ones(processor, vision, tmp_path, size):
    PIL.Image.new("RGB", size, "red").save(tmp_path / "a.png")
    inputs = encode(processor, [turn("image", tmp_path / "a.png")], vision)
    pixels = inputs["image_grid_thw"].prod().item() * 14 * 14
    assert vision.image_min_pixels <= pixels <= vision.image_max_pixels
    placeholders = (inputs["input_ids"] == processor.image_token_id).sum().item()
    assert placeholders == visual_tokens("image", *size, 1, 0.0, vision)


def test_image_pixels_equal_the_processors_own_resize(processor, vision, picture):
    inputs = encode(processor, [turn("image", picture)], vision)
    size = {"shortest_edge": vision.image_min_pixels, "longest_edge": vision.image_max_pixels}
    own = processor.image_processor(load_image(picture), size=size, return_tensors="pt")
    assert torch.equal(inputs["image_grid_thw"], own["image_grid_thw"])
    torch.testing.assert_close(inputs["pixel_values"], own["pixel_values"], rtol=0, atol=0)


@pytest.mark.parametrize(("num_frames", "rate"), [(30, 10), (7, 10), (100, 25), (1, 10)])
def test_video_grid_tokens_and_seconds(processor, vision, tmp_path, num_frames, rate):
    path = write_clip(tmp_path / "a.mp4", num_frames, rate)
    inputs = encode(processor, [turn("video", path)], vision)
    indices = frame_indices(num_frames, rate, vision)
    assert inputs["video_grid_thw"][0, 0].item() == -(-len(indices) // 2)
    placeholders = (inputs["input_ids"] == processor.video_token_id).sum().item()
    assert placeholders == visual_tokens("video", 64, 48, num_frames, rate, vision)
    if "second_per_grid_ts" not in processor.model_input_names:
        return
    (seconds,) = [float(value) for value in inputs["second_per_grid_ts"]]
    true_spacing = num_frames / rate / len(indices)  # seconds between two sampled frames
    assert seconds == pytest.approx(2 * true_spacing, rel=1e-3)


@pytest.mark.parametrize(("num_frames", "rate"), [(40, 10), (100, 25), (7, 10)])
def test_seconds_are_those_of_the_processors_own_sampling(
    processor_2_5, vision, tmp_path, num_frames, rate
):
    """The processor is given all frames and samples them itself."""
    path = write_clip(tmp_path / "a.mp4", num_frames, rate)
    talk = turn("video", path)
    inputs = encode(processor_2_5, [talk], vision)
    native, _ = decode_frames(path, range(num_frames))
    size = {"shortest_edge": vision.video_min_pixels, "longest_edge": vision.video_max_pixels}
    own = processor_2_5(
        text=processor_2_5.apply_chat_template(talk, tokenize=False, add_generation_prompt=True),
        videos=[native],
        videos_kwargs={
            "video_metadata": [VideoMetadata(total_num_frames=num_frames, fps=rate)],
            "do_sample_frames": True,
            "fps": vision.video_fps,
            "max_frames": vision.video_max_frames,
            "size": size,
            "cap_pixels_per_frame": False,
            "input_data_format": "channels_last",
        },
        return_tensors="pt",
    )
    assert torch.equal(inputs["video_grid_thw"], own["video_grid_thw"])
    assert torch.equal(inputs["input_ids"], own["input_ids"])
    (one,), (other,) = (given["second_per_grid_ts"] for given in (inputs, own))
    assert float(one) == pytest.approx(float(other), rel=1e-3)


def test_video_pixels_equal_the_processors_own_resize(processor, vision, tmp_path):
    path = write_clip(tmp_path / "a.mp4", 40, size=(200, 120))
    inputs = encode(processor, [turn("video", path)], vision)
    indices = frame_indices(40, 10, vision)
    native, _ = decode_frames(path, indices)
    size = {"shortest_edge": vision.video_min_pixels, "longest_edge": vision.video_max_pixels}
    own = processor.video_processor(
        torch.from_numpy(native),
        size=size,
        do_sample_frames=False,
        cap_pixels_per_frame=False,
        input_data_format="channels_last",
        return_tensors="pt",
    )
    assert torch.equal(inputs["video_grid_thw"], own["video_grid_thw"])
    torch.testing.assert_close(
        inputs["pixel_values_videos"], own["pixel_values_videos"], rtol=0, atol=0
    )


@pytest.mark.parametrize("gop", [1, 5, 60])
@pytest.mark.parametrize(
    ("suffix", "codec"),
    [
        ("mp4", "mpeg4"),
        ("mp4", "libx264"),
        ("mkv", "libx264"),
        ("webm", "libvpx-vp9"),
        ("avi", "mpeg4"),
        ("ts", "libx264"),
    ],
)
def test_exactly_the_chosen_frames_are_decoded(tmp_path, suffix, codec, gop):
    """Frame n has brightness 4 n, also after the key frames that seeking jumps to."""
    path = write_clip(tmp_path / f"a.{suffix}", 50, codec=codec, gop=gop)
    indices = [0, 3, 17, 30, 31, 49]
    frames, facts = decode_frames(path, indices)
    assert facts.num_frames == 50
    assert facts.fps == pytest.approx(10, rel=1e-3)
    brightness = frames.mean(axis=(1, 2, 3)) / 4
    np.testing.assert_allclose(brightness, indices, atol=0.8)


def test_load_video_takes_the_frames_of_the_rule(vision, tmp_path):
    path = write_clip(tmp_path / "a.mp4", 48)
    frames, metadata = load_video(path, vision)
    assert metadata.frames_indices == frame_indices(48, 10.0, vision)
    np.testing.assert_allclose(frames.mean(axis=(1, 2, 3)) / 4, metadata.frames_indices, atol=0.8)


def test_the_frames_of_all_bounds_are_checked(vision, tmp_path, monkeypatch):
    path = write_clip(tmp_path / "a.mp4", 40)
    more = vision.model_copy(update={"video_max_frames": 12, "video_fps": 4.0})
    looked_at = []
    monkeypatch.setattr(video, "matrix_of", lambda frame: looked_at.append(frame.pts))
    facts = check_video(path, vision, more)
    wanted = {facts.times[index] for each in (vision, more) for index in facts.sampled(each)}
    assert len(wanted) > len(facts.sampled(more)) - 1 > len(facts.sampled(vision))
    assert looked_at == sorted(wanted)


def test_batch_is_left_padded_and_rows_do_not_change(processor, vision, picture, tmp_path):
    clip = write_clip(tmp_path / "a.mp4", 20)
    talks = [turn("image", picture), turn("video", clip, "Which colour is it, please?")]
    both = encode(processor, talks, vision)
    assert both["attention_mask"][:, -1].tolist() == [1, 1]
    for row, talk in enumerate(talks):
        alone = encode(processor, [talk], vision)
        valid = both["attention_mask"][row].bool()
        assert torch.equal(both["input_ids"][row, valid], alone["input_ids"][0])
        for name in ("pixel_values", "pixel_values_videos", "video_grid_thw", "image_grid_thw"):
            if name in alone:
                assert torch.equal(both[name], alone[name])
    types = both["mm_token_type_ids"]
    assert types.shape == both["input_ids"].shape
    assert set(types[0].tolist()) == {0, 1}
    assert set(types[1].tolist()) == {0, 2}


def test_text_only_and_in_memory_images(processor, vision, picture):
    text_only = encode(processor, [[{"role": "user", "content": "Hello"}]], vision)
    assert "pixel_values" not in text_only
    memory = [
        {
            "role": "user",
            "content": [
                {"type": "image", "image": load_image(picture)},
                {"type": "text", "text": "Which colour?"},
            ],
        }
    ]
    by_path, in_memory = (
        encode(processor, [talk], vision) for talk in (turn("image", picture), memory)
    )
    assert torch.equal(by_path["pixel_values"], in_memory["pixel_values"])


def test_other_patch_size_is_refused(processor_2_5, vision, picture):
    import copy

    other = copy.deepcopy(processor_2_5)
    other.image_processor.patch_size = 7
    with pytest.raises(UnsupportedModelError, match="bounds give"):
        encode(other, [turn("image", picture)], vision)


def test_transparency_becomes_white(tmp_path):
    PIL.Image.new("RGBA", (8, 8), (255, 0, 0, 0)).save(tmp_path / "a.png")
    assert load_image(tmp_path / "a.png").getpixel((3, 3)) == (255, 255, 255)


def test_exif_turns_the_image(tmp_path):
    image = PIL.Image.new("RGB", (30, 10))
    exif = image.getexif()
    exif[0x0112] = 6
    image.save(tmp_path / "a.jpg", exif=exif)
    assert load_image(tmp_path / "a.jpg").size == (10, 30)
