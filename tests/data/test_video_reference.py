"""Frames, times and colours of every container and codec, against the ffmpeg command."""

from __future__ import annotations

import re
import shutil
import subprocess

import numpy as np
import pytest
from reference_clips import CLIPS, Clip, bar_colours, read_number, write

from sf.data.video import decode_frames, probe_video

CHOSEN = (0, 3, 7, 8, 12, 23)
pytestmark = pytest.mark.skipif(
    shutil.which("ffmpeg") is None, reason="the ffmpeg command is the reference: install ffmpeg"
)


def reference(path, clip: Clip) -> tuple[np.ndarray, list[float]]:
    """All frames [T, H, W, 3] and their times in seconds from the first."""
    done = subprocess.run(
        [
            *("ffmpeg", "-nostdin", "-hide_banner", "-i", str(path), "-map", "0:V:0"),
            *("-vf", "showinfo", "-vsync", "passthrough", "-pix_fmt", "rgb24"),
            *("-f", "rawvideo", "-"),
        ],
        capture_output=True,
        check=True,
    )
    times = [float(text) for text in re.findall(rb"pts_time:\s*([0-9.]+)", done.stderr)]
    width, height = clip.size
    frames = np.frombuffer(done.stdout, np.uint8).reshape(-1, height, width, 3)
    return frames, [time - times[0] for time in times]


@pytest.mark.parametrize("clip", CLIPS, ids=lambda clip: clip.name)
def test_frames_times_and_colours_are_the_references(tmp_path, clip):
    path = write(clip, tmp_path / f"clip.{clip.suffix}")
    frames, times = reference(path, clip)
    facts = probe_video(path)
    assert facts.num_frames == len(frames) == clip.count
    assert [facts.seconds(index) for index in range(clip.count)] == pytest.approx(times, abs=1e-3)
    chosen, _ = decode_frames(path, CHOSEN)
    assert [read_number(frame) for frame in chosen] == list(CHOSEN)
    for frame, index in zip(chosen, CHOSEN, strict=True):
        assert np.abs(bar_colours(frame) - bar_colours(frames[index])).max() <= 6
