"""Whether the reason for refusing a file is true, judged by decoders other than the project's."""

from __future__ import annotations

import re
import shutil
import subprocess
import warnings
from pathlib import Path

import av
import PIL.Image

from sf.data.video_probe import FORMATS

LOST = re.compile("its decoder (crashed|did not end|was killed)|more than 8 GiB")
_IMAGE = re.compile(r"cannot be decoded|it is damaged, or its image format")
_VIDEO = re.compile(r"cannot be decoded|none of its frames can be decoded|no frames")
# What a file states in its own words, or its decoder by a flag, and true as far as these go.
_STATED = re.compile(
    r"decompression bomb|have no known scale|200 times|is empty|at least|truncated"
    r"|damaged at packet|frame \d+ is damaged|are absurd|states no frame rate"
    r"|neither time stamps|colour matrix"
    r"|there is no decoder|different frames|are requested"
)


def pillow_fails(path: Path) -> bool:
    """Whether Pillow alone, with the formats that the project reads, fails to decode the file."""
    formats = ("PNG", "JPEG", "WEBP", "GIF", "BMP", "TIFF")
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            with path.open("rb") as file:  # by its name Pillow would map the file, without checks
                PIL.Image.open(file, formats=formats).load()
    except Exception:  # noqa: BLE001 - Pillow raises anything on damaged files
        return True
    return False


def ffmpeg_complains(path: Path) -> bool:
    """Whether the ffmpeg command reports an error, or decodes no frame."""
    command = ["ffmpeg", "-v", "error", "-nostdin", "-i", str(path), "-map", "0:V:0"]
    done = subprocess.run(
        [*command, "-f", "framemd5", "-"], capture_output=True, timeout=300, check=False
    )
    frames = [line for line in done.stdout.splitlines() if not line.startswith(b"#")]
    return bool(done.returncode or done.stderr or not frames)


def pyav_fails(path: Path) -> bool:
    """Whether PyAV alone fails to decode all frames; its FFmpeg is newer than the command's."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return not list(container.decode(video=0))
    except (av.FFmpegError, ValueError):
        return True


def without_video(path: Path) -> bool:
    """Whether FFmpeg finds no video stream except cover pictures."""
    with av.open(str(path), metadata_errors="replace") as container:
        pictures = av.stream.Disposition.attached_pic
        return not [s for s in container.streams.video if not s.disposition & pictures]


def untrue(reason: str, path: Path, data_type: str) -> str:
    """Why a reason is untrue; "" if it is true, or is one that the file itself states."""
    if data_type == "image":
        if _IMAGE.search(reason):
            return "" if pillow_fails(path) else "Pillow decodes it"
        return "" if _STATED.search(reason) else "no known reason"
    if "video format is not supported" in reason:
        return "" if _other_format(path) or ffmpeg_complains(path) else "FFmpeg opens it"
    if "audio only" in reason:
        return "" if without_video(path) else "it holds a video stream"
    if _VIDEO.search(reason):
        if shutil.which("ffmpeg") is None:
            return ""
        failed = ffmpeg_complains(path) or pyav_fails(path)
        return "" if failed else "the ffmpeg command and PyAV decode it"
    return "" if _STATED.search(reason) else "no known reason"


def _other_format(path: Path) -> bool:
    """Whether FFmpeg does not open it as one of the containers that the project reads."""
    try:
        with av.open(str(path), metadata_errors="replace") as container:
            return set(FORMATS.split(",")).isdisjoint(container.format.name.split(","))
    except (av.FFmpegError, ValueError):
        return True
