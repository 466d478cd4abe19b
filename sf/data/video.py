"""Decoding videos with PyAV: what a file holds, and exactly the frames that are looked at.

Shape legend: T frames, H height, W width, C = 3 colour channels.
"""

from __future__ import annotations

import bisect
import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from fractions import Fraction
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.data.budget import frame_indices, pixel_bounds, resized_size
from sf.data.media import MEMBER, open_media
from sf.data.orientation import Orientation, orientation_of
from sf.errors import DataError

if TYPE_CHECKING:
    import av
    import numpy as np
    from transformers.video_utils import VideoMetadata

    from sf.config import Vision
    from sf.data.frame_cache import FrameCache

__all__ = ["VideoFacts", "decode_frames", "load_video", "probe_video", "resize_frame"]

MAX_SIDE = 16_384
MAX_FRAME_PIXELS = 8192 * 8192
MAX_FRAMES = 5_000_000  # two days at 29 frames a second
THREADED_PIXELS = 640 * 360
# A playlist that calls itself .mp4 would make ffmpeg open whatever it lists.
_FORMATS = "mov,matroska,avi,flv,mpeg,mpegts,asf,ogg,gif,mp3,wav,flac,aac"
_INDEXED = frozenset(("mov", "matroska", "avi"))  # seeking finds the right key frame there
_OPTIONS = {"format_whitelist": _FORMATS, "protocol_whitelist": "file"}


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """What lies in a video file.

    Attributes:
        width, height: of the upright frame, in pixels.
        num_frames: frames that are in the file (its packets), whatever the header says.
        fps: frames a second, mean over the file.
        duration_s: num_frames / fps.
        codec: ffmpeg's name.
        times: presentation time stamps of the frames in order, in `time_base` units.
        keys: those of the key frames.
        orientation: how stored frames become upright.
    """

    width: int
    height: int
    num_frames: int
    fps: float
    duration_s: float
    codec: str
    times: tuple[int, ...]
    keys: tuple[int, ...]
    orientation: Orientation


def _refuse(path: Path | str, rule: str) -> DataError:
    return DataError("video", str(path), rule, "fetch it again or drop the row")


@contextmanager
def _opened(path: Path | str) -> Iterator[av.container.InputContainer]:
    import av

    with open_media(path) as stream:
        plain = MEMBER not in str(path)  # ffmpeg reads a file itself faster than through Python
        source = f"file:{os.path.abspath(path)}" if plain else stream
        try:
            # Titles of old files are in any encoding; nobody reads them.
            with av.open(
                source, mode="r", options=_OPTIONS, metadata_errors="replace"
            ) as container:
                yield container
        except av.FFmpegError as error:
            if error.errno == errno.EINVAL:
                rule = "it is damaged, or of no video format that is read"
                raise _refuse(path, rule) from error
            raise _refuse(path, f"it cannot be decoded: {error.strerror}") from error


def probe_video(path: Path | str) -> VideoFacts:
    """Read a video's facts from its packets; only the first frame is decoded, to see it upright.

    Raises:
        DataError: missing, empty or truncated, no video stream (audio only, with or without a
            cover picture), no frames, a codec without a decoder, or an absurd frame size.
    """
    with _opened(path) as container:
        return _facts(container, path)


def _video_stream(container: av.container.InputContainer, path: Path | str) -> av.VideoStream:
    """The first video stream that is no cover picture."""
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise _refuse(path, "there is no decoder for its codec")
            return stream
    raise _refuse(path, "it holds no video stream (audio only)")


def _facts(container: av.container.InputContainer, path: Path | str) -> VideoFacts:
    stream = _video_stream(container, path)
    width, height = stream.codec_context.width, stream.codec_context.height
    if max(width, height) > MAX_SIDE or width * height > MAX_FRAME_PIXELS:
        raise _refuse(path, f"frames of {width}x{height} pixels are absurd")
    stream.thread_count = 1
    first: av.VideoFrame | None = None
    times: list[int] = []
    keys: list[int] = []
    num_packets = 0
    for packet in container.demux(stream):
        if first is None:
            first = next(iter(stream.codec_context.decode(packet)), None)
        if packet.size == 0:
            continue
        num_packets += 1
        if packet.is_discard:
            continue
        if packet.is_corrupt:
            raise _refuse(path, f"it is truncated or damaged at packet {len(times)}")
        stamp = packet.pts if packet.pts is not None else packet.dts
        if stamp is None:
            raise _refuse(path, "its packets have no time stamps")
        times.append(stamp)
        if len(times) > MAX_FRAMES:
            raise _refuse(path, f"more than {MAX_FRAMES} frames are absurd")
        if packet.is_keyframe:
            keys.append(stamp)
    if not times:
        raise _refuse(path, "it holds no frames")
    if "mov" in container.format.name and stream.frames > num_packets:
        rule = f"it is truncated: {num_packets} of {stream.frames} frames are there"
        raise _refuse(path, rule)
    times.sort()
    fps = _mean_rate(times, stream.time_base, stream.average_rate)
    if fps is None:
        raise _refuse(path, "it states no frame rate")
    if first is None:
        raise _refuse(path, "none of its frames decodes")
    orientation = orientation_of(first)
    width, height = orientation.size(width, height)
    return VideoFacts(
        width=width,
        height=height,
        num_frames=len(times),
        fps=fps,
        duration_s=len(times) / fps,
        codec=stream.codec_context.name,
        times=tuple(times),
        keys=tuple(sorted(keys)),
        orientation=orientation,
    )


def _mean_rate(
    times: Sequence[int], time_base: Fraction | None, stated: Fraction | None
) -> float | None:
    """Frames a second from the time stamps; from the header where there are too few of them."""
    if len(times) > 1 and time_base and times[-1] > times[0]:
        return float((len(times) - 1) / ((times[-1] - times[0]) * time_base))
    return float(stated) if stated else None


def decode_frames(
    path: Path | str, indices: Sequence[int], size: tuple[int, int] | None = None
) -> tuple[np.ndarray, VideoFacts]:
    """Decode chosen frames, seeking over what is not needed.

    A frame is found by its time stamp; where a decoder gives a frame another stamp than its packet
    had, the first frame at or behind it is taken.

    Args:
        path: of the video (or an archive member).
        indices: increasing frame numbers.
        size: width and height to resize each frame to as it is decoded; None keeps the source's.

    Returns:
        Upright frames uint8 [T, H, W, C], RGB, and the file's facts.

    Raises:
        DataError: see `probe_video`; or a frame that does not decode.
    """
    facts = probe_video(path)
    with _opened(path) as container:
        return _decode(container, facts, path, indices, size), facts


def _decode(
    container: av.container.InputContainer,
    facts: VideoFacts,
    path: Path | str,
    indices: Sequence[int],
    size: tuple[int, int] | None,
) -> np.ndarray:
    import numpy as np

    stream = _video_stream(container, path)
    if facts.width * facts.height < THREADED_PIXELS:
        stream.thread_count = 1  # starting threads costs 10x the decoding of a small clip
    else:
        stream.thread_type = "AUTO"
    wanted = [facts.times[index] for index in indices]
    found: dict[int, np.ndarray] = {}
    seekable = not _INDEXED.isdisjoint(container.format.name.split(","))
    frames = container.decode(stream)
    position = facts.times[0] - 1  # time stamp that decoding has reached
    for stamp in wanted:
        if stamp in found:
            continue
        at = bisect.bisect_right(facts.keys, stamp)
        if seekable and at and facts.keys[at - 1] > max(position, facts.keys[0]):
            container.seek(facts.keys[at - 1], stream=stream, backward=True)
            frames = container.decode(stream)
        for frame in frames:
            reached = frame.pts if frame.pts is not None else frame.dts
            if reached is not None and reached >= stamp:
                position = reached
                break
        else:
            raise _refuse(path, f"frame {facts.times.index(stamp)} does not decode")
        pixels = facts.orientation.upright(frame.to_ndarray(format="rgb24"))
        found[stamp] = resize_frame(pixels, size)
    return np.stack([found[stamp] for stamp in wanted])


def resize_frame(frame: np.ndarray, size: tuple[int, int] | None) -> np.ndarray:
    """Bicubic with antialiasing, as transformers' processors do.

    Args:
        frame: uint8 [H, W, C].
        size: width and height; None leaves the frame as it is.
    """
    if size is None or (frame.shape[1], frame.shape[0]) == size:
        return frame
    import torch
    import torchvision.transforms.v2.functional as tvf

    pixels = torch.from_numpy(frame).permute(2, 0, 1)
    bicubic = tvf.InterpolationMode.BICUBIC
    smaller = tvf.resize(pixels, [size[1], size[0]], interpolation=bicubic, antialias=True)
    return smaller.permute(1, 2, 0).contiguous().numpy()


def load_video(
    path: Path | str, vision: Vision, cache: FrameCache | None = None
) -> tuple[np.ndarray, VideoMetadata]:
    """The frames that every stage looks at, resized to the configured bounds.

    Args:
        path: of the video (or an archive member).
        vision: frame rule and pixel bounds.
        cache: where decoded frames are kept; None decodes anew.

    Returns:
        Frames uint8 [T, H, W, C] and transformers' metadata, from which processors derive time
        stamps and `second_per_grid_ts`.

    Raises:
        DataError: see `probe_video`.
    """
    from transformers.video_utils import VideoMetadata

    kept = cache.get(path, vision) if cache else None
    if kept is not None:
        return kept[0], VideoMetadata(**kept[1])
    facts = probe_video(path)
    indices = frame_indices(facts.num_frames, facts.fps, vision)
    size = resized_size(facts.width, facts.height, pixel_bounds("video", vision))
    with _opened(path) as container:
        frames = _decode(container, facts, path, indices, size)
    details: dict[str, Any] = {
        "total_num_frames": facts.num_frames,
        "fps": facts.fps,
        "width": facts.width,
        "height": facts.height,
        "duration": facts.duration_s,
        "video_backend": "pyav",
        "frames_indices": indices,
    }
    if cache:
        cache.put(path, vision, frames, details)
    return frames, VideoMetadata(**details)
