"""The built-in class's media loading: a file that decord cannot read is one clear error."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import av
import isolated_calls
import numpy as np
import PIL.Image
import pytest
from scripted import VISION

from sf.data import check
from sf.errors import DataError
from sf.evaluation import media, qwen_vl_media
from sf.evaluation.media import encode_as_lmms_eval
from sf.models import load_processor


def write(path: Path, codec: str) -> Path:
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=4)
        stream.width, stream.height, stream.pix_fmt = 84, 84, "yuv420p"
        for number in range(8):
            picture = np.full((84, 84, 3), 20 * number, dtype=np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        container.mux(stream.encode(None))
    return path


@pytest.fixture
def encode(checkpoints: dict[str, Path]) -> Any:
    """Encode a question about a video."""
    processor = load_processor(checkpoints["qwen2_5_vl"])

    def run(path: Path) -> Any:
        content = [{"type": "video", "path": str(path)}, {"type": "text", "text": "What?"}]
        return encode_as_lmms_eval(processor, [[{"role": "user", "content": content}]], VISION)

    return run


@pytest.mark.parametrize("codec", ["libsvtav1", "mpeg4"])
@pytest.mark.parametrize("damage", ["whole", "cut", "text"])
def test_a_video_is_read_or_refused_by_name(encode: Any, tmp_path: Path, codec, damage) -> None:
    """decord's FFmpeg has no decoder for AV1."""
    path = write(tmp_path / "clip.mp4", codec)
    if damage != "whole":
        content = path.read_bytes()
        path.write_bytes(content[: len(content) // 2] if damage == "cut" else b"no video")
    if (codec, damage) == ("mpeg4", "whole"):
        assert encode(path)["video_grid_thw"].tolist()[0][0] == 2
        return
    with pytest.raises(DataError, match="decord cannot read it") as caught:
        encode(path)
    assert caught.value.value == str(path)


def test_a_video_on_which_decord_hangs_is_named(encode: Any, tmp_path: Path, monkeypatch) -> None:
    path = write(tmp_path / "clip.mp4", "mpeg4")
    monkeypatch.setattr(qwen_vl_media, "load", isolated_calls.hang)
    monkeypatch.setattr(media, "TIME_LIMIT_S", 0.5)
    monkeypatch.setattr(check, "TIME_LIMIT_S", 0.5)
    with pytest.raises(DataError, match="did not end within 1 s") as caught:
        encode(path)
    assert caught.value.value == str(path)


def test_an_image_that_pillow_fails_on_with_any_class_of_error_is_one_fault(tmp_path: Path) -> None:
    """A broken chunk of a PNG is a SyntaxError; too many pixels are an error of Pillow's own."""
    names = ("broken.png", "bomb.png", "whole.png")
    broken, bomb, whole = (tmp_path / name for name in names)
    pixels = np.random.default_rng(0).integers(0, 256, (256, 256, 3), dtype=np.uint8)
    PIL.Image.fromarray(pixels).save(whole)
    content = bytearray(whole.read_bytes())
    second = content.index(b"IDAT", content.index(b"IDAT") + 4)
    content[second : second + 4] = b"\xa8\xff\x8a\xed"
    broken.write_bytes(content)
    PIL.Image.new("1", (16_000, 16_000)).save(bomb)
    parts = [{"type": "image", "path": str(path)} for path in (broken, bomb, whole)]
    faults = media.decord_faults([[{"role": "user", "content": [part]}] for part in parts], VISION)
    assert faults[0].startswith(f"{broken}: decord cannot read it: SyntaxError")
    assert "DecompressionBombError" in faults[1]
    assert faults[2] == ""
