"""The cache of decoded frames changes only the time."""

from __future__ import annotations

import numpy as np
import pytest
from clips import write_clip

from sf.data import video
from sf.data.frame_cache import FrameCache
from sf.data.vision import encode, load_video
from sf.errors import ConfigError


@pytest.fixture
def clip(tmp_path):
    return write_clip(tmp_path / "a.mp4", 24)


@pytest.fixture
def kept(tmp_path):
    return FrameCache(tmp_path / "cache", 2**20)


def test_second_time_nothing_is_decoded(clip, kept, vision, monkeypatch):
    first, facts = load_video(clip, vision, kept)
    monkeypatch.setattr(video, "_decode", None)
    second, again = load_video(clip, vision, kept)
    assert np.array_equal(first, second)
    assert (again.frames_indices, again.fps) == (facts.frames_indices, facts.fps)
    assert again.sampled_fps == facts.sampled_fps


@pytest.mark.parametrize("change", ["video_fps", "video_max_frames", "video_max_pixels"])
def test_other_bounds_are_other_frames(clip, kept, vision, change):
    load_video(clip, vision, kept)
    other = {"video_fps": 1.0, "video_max_frames": 2, "video_max_pixels": 28 * 28 * 2}[change]
    changed = vision.model_copy(update={change: other})
    cached, _ = load_video(clip, changed, kept)
    plain, _ = load_video(clip, changed)
    assert np.array_equal(cached, plain)


def test_changed_file_is_decoded_again(clip, kept, vision):
    load_video(clip, vision, kept)
    write_clip(clip, 16)
    cached, _ = load_video(clip, vision, kept)
    assert np.array_equal(cached, load_video(clip, vision)[0])


def test_damaged_entry_is_written_again(clip, kept, vision):
    frames, _ = load_video(clip, vision, kept)
    (entry,) = kept.folder.rglob("*.npz")
    entry.write_bytes(entry.read_bytes()[:50])
    assert np.array_equal(load_video(clip, vision, kept)[0], frames)
    assert kept.get(clip, vision) is not None


def test_the_bound_holds(clip, tmp_path, vision):
    small = FrameCache(tmp_path / "small", 1000)
    load_video(clip, vision, small)
    assert not list(small.folder.rglob("*")) if small.folder.exists() else True
    assert small.get(clip, vision) is None


def test_environment_switches_it_on(clip, tmp_path, vision, processor_2_5, monkeypatch):
    part = {"type": "video", "path": str(clip)}
    talk = [{"role": "user", "content": [part, {"type": "text", "text": "What?"}]}]
    plain = encode(processor_2_5, [talk], vision)
    monkeypatch.setenv("SF_FRAME_CACHE", str(tmp_path / "env"))
    for _ in range(2):
        cached = encode(processor_2_5, [talk], vision)
        assert (cached["pixel_values_videos"] == plain["pixel_values_videos"]).all()
        assert (cached["second_per_grid_ts"] == plain["second_per_grid_ts"]).all()
    assert len(list((tmp_path / "env").rglob("*.npz"))) == 1


@pytest.mark.parametrize("limit", ["0", "-1", "much", "nan"])
def test_bound_must_be_a_positive_number(tmp_path, monkeypatch, limit):
    monkeypatch.setenv("SF_FRAME_CACHE", str(tmp_path))
    monkeypatch.setenv("SF_FRAME_CACHE_GIB", limit)
    with pytest.raises(ConfigError, match="SF_FRAME_CACHE_GIB"):
        FrameCache.from_environment()


def test_frames_of_an_older_rule_are_decoded_again(clip, kept, vision, monkeypatch):
    load_video(clip, vision, kept)
    assert kept.get(clip, vision) is not None
    monkeypatch.setattr("sf.data.frame_cache.DECODING", "a later rule")
    assert kept.get(clip, vision) is None
