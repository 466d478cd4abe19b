"""Video decoding with PyAV: exactly the sampled frames, by presentation time.

Training, calibration, evaluation and `sf ask` all decode here. A frame is identified by its time
stamp, and every decoded frame is compared with the one that the packets announced. If they differ
(a codec with hidden frames, a stream with lost frames, a container without presentation times
after a seek), all frames are decoded once and counted.

Shape legend: T frames, H height, W width, C = 3 colour channels.
"""

from __future__ import annotations

import bisect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.data.budget import pixel_bounds, resized_size
from sf.data.frame_colours import matrix_of, rgb
from sf.data.video_probe import (
    MAX_SIDE,
    VideoFacts,
    count_frames,
    opened,
    packets_from_key,
    probe_video,
    refuse,
    video_stream,
)
from sf.errors import DataError

if TYPE_CHECKING:
    import av
    import numpy as np
    from transformers.video_utils import VideoMetadata

    from sf.data.frame_cache import FrameCache
    from sf.sections import Vision

__all__ = [
    "MAX_SIDE",
    "VideoFacts",
    "check_video",
    "decode_frames",
    "load_own_size",
    "load_video",
    "probe_video",
    "resize_frame",
]

THREADED_PIXELS = 640 * 360
_INDEXED = frozenset(("mov", "matroska", "avi"))  # seeking finds the right key frame in these


class _OtherFrames(Exception):
    """Decoding gives different frames from those that the packets announced."""


def _read(
    path: Path | str,
    choose: Callable[[VideoFacts], Sequence[int]],
    take: Callable[[av.VideoFrame, VideoFacts], Any],
    threads: int | None = None,
) -> tuple[VideoFacts, list[int], list[Any]]:
    """Decode the frames that `choose` selects and apply `take` to each.

    Returns:
        Facts, the chosen frame numbers, and the result of `take` for each of them.
    """
    facts = probe_video(path)
    for counted in (False, True):
        if counted:
            facts = count_frames(path, facts)
        indices = [int(index) for index in choose(facts)]
        if indices and not 0 <= min(indices) <= max(indices) < facts.num_frames:
            rule = f"frames {indices} are requested, but it has {facts.num_frames}"
            raise refuse(path, rule)
        taken: dict[int, Any] = {}
        try:
            for index, frame in _frames(path, facts, sorted(set(indices)), threads):
                if frame.is_corrupt:
                    raise refuse(path, f"frame {index} is damaged")
                try:
                    taken[index] = take(frame, facts)
                except DataError as error:  # an unsupported size or matrix
                    rule = f"{error.field} {error.value}: {error.rule}"
                    raise refuse(path, rule) from error
            return facts, indices, [taken[index] for index in indices]
        except _OtherFrames:
            if facts.counted:
                break
    raise refuse(path, "decoding it twice gives different frames")


def _frames(
    path: Path | str, facts: VideoFacts, wanted: Sequence[int], threads: int | None
) -> Iterator[tuple[int, av.VideoFrame]]:
    """The wanted frames with their numbers, in order."""
    if threads is None:  # starting threads takes 10x the decoding time of a small clip
        threads = 1 if facts.width * facts.height < THREADED_PIXELS else 0
    with opened(path) as container:
        stream = video_stream(container, path, threads)
        seekable = not _INDEXED.isdisjoint(container.format.name.split(","))
        frames = _numbered(container, stream, facts, None)
        following = 0  # number of the next frame to be decoded
        for index in wanted:
            key = bisect.bisect_right(facts.keys, facts.times[index]) - 1
            if seekable and key > 0:
                stamp = facts.keys[key]
                if bisect.bisect_left(facts.times, stamp) > following:
                    container.seek(stamp, stream=stream, backward=True)
                    frames = _numbered(container, stream, facts, stamp)
            for number, frame in frames:
                if number == index:
                    following = number + 1
                    yield index, frame
                    break
            else:
                raise _OtherFrames


def _numbered(
    container: av.container.InputContainer,
    stream: av.VideoStream,
    facts: VideoFacts,
    sought: int | None,
) -> Iterator[tuple[int, av.VideoFrame]]:
    """Frames in order with their numbers.

    Args:
        container, stream, facts: of the video.
        sought: time stamp of the seek; None at the start of the file.

    Raises:
        _OtherFrames: a frame is not the one expected at its position.
    """
    following, start = 0, facts.times[0]
    for packet in packets_from_key(container, stream, facts.from_key):
        if sought is not None:
            key = bisect.bisect_right(facts.keys, packet.pts or 0) - 1
            if packet.pts is None or packet.pts > sought or facts.keys[key] != packet.pts:
                raise _OtherFrames
            start, sought = packet.pts, None
            following = bisect.bisect_left(facts.times, start)
        for frame in stream.codec_context.decode(packet):
            if facts.counted:
                if not following and frame.is_corrupt:
                    continue
            elif frame.pts is not None and frame.pts < start:
                continue  # leading frames of an open group, whose references are missing
            elif following >= len(facts.times) or frame.pts != facts.times[following]:
                raise _OtherFrames
            yield following, frame
            following += 1


def check_video(path: Path | str, *visions: Vision) -> VideoFacts:
    """Decode the sampled frames on one thread, and keep none of them.

    Args:
        path: of the video (or an archive member).
        *visions: frame rules.

    Raises:
        DataError: see `probe_video`; or a frame cannot be decoded.
    """

    def choose(facts: VideoFacts) -> list[int]:
        return sorted({index for vision in visions for index in facts.sampled(vision)})

    return _read(path, choose, lambda frame, _: matrix_of(frame), 1)[0]


def _decode(
    path: Path | str,
    choose: Callable[[VideoFacts], Sequence[int]],
    size_of: Callable[[VideoFacts], tuple[int, int]],
) -> tuple[VideoFacts, list[int], np.ndarray]:
    """Chosen frames, upright, as uint8 [T, H, W, C] in the size from `size_of`."""
    import numpy as np

    def take(frame: av.VideoFrame, facts: VideoFacts) -> np.ndarray:
        return resize_frame(facts.orientation.upright(rgb(frame)), size_of(facts))

    facts, indices, frames = _read(path, choose, take)
    return facts, indices, np.stack(frames)


def _own_size(facts: VideoFacts) -> tuple[int, int]:
    return facts.width, facts.height


def decode_frames(
    path: Path | str, indices: Sequence[int], size: tuple[int, int] | None = None
) -> tuple[np.ndarray, VideoFacts]:
    """Decode chosen frames, seeking over the others.

    Args:
        path: of the video (or an archive member).
        indices: frame numbers, at least one.
        size: width and height to which each frame is resized; None for those of the first frame.

    Returns:
        Upright frames uint8 [T, H, W, C], RGB, and the file's facts.

    Raises:
        DataError: see `probe_video`; or a frame is missing or cannot be decoded.
    """
    facts, _, frames = _decode(path, lambda _: indices, lambda facts: size or _own_size(facts))
    return frames, facts


def resize_frame(frame: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Resize with antialiased bicubic interpolation, as in transformers' processors.

    Args:
        frame: uint8 [H, W, C].
        size: width and height.
    """
    if (frame.shape[1], frame.shape[0]) == size:
        return frame
    import torch
    import torchvision.transforms.v2.functional as tvf

    pixels = torch.from_numpy(frame).permute(2, 0, 1)
    bicubic = tvf.InterpolationMode.BICUBIC
    smaller = tvf.resize(pixels, [size[1], size[0]], interpolation=bicubic, antialias=True)
    return smaller.permute(1, 2, 0).contiguous().numpy()


def _details(facts: VideoFacts, indices: Sequence[int]) -> dict[str, Any]:
    """Fields of `sf.data.sampled_video.SampledVideo`."""
    return {
        "total_num_frames": facts.num_frames,
        "fps": facts.fps,
        "width": facts.width,
        "height": facts.height,
        "duration": facts.duration_s,
        "video_backend": "pyav",
        "frames_indices": list(indices),
        "seconds": [facts.seconds(index) for index in indices],
    }


def load_video(
    path: Path | str, vision: Vision, cache: FrameCache | None = None
) -> tuple[np.ndarray, VideoMetadata]:
    """The sampled frames, resized to the configured bounds.

    Args:
        path: of the video (or an archive member).
        vision: frame rule and pixel bounds.
        cache: of decoded frames; None to decode them again.

    Returns:
        Frames uint8 [T, H, W, C] and transformers' metadata, from which processors derive time
        stamps and `second_per_grid_ts`.

    Raises:
        DataError: see `probe_video`.
    """
    from sf.data.sampled_video import SampledVideo

    kept = cache.get(path, vision) if cache else None
    if kept is not None:
        return kept[0], SampledVideo(**kept[1])

    def size_of(facts: VideoFacts) -> tuple[int, int]:
        return resized_size(facts.width, facts.height, pixel_bounds("video", vision))

    facts, indices, frames = _decode(path, lambda facts: facts.sampled(vision), size_of)
    details = _details(facts, indices)
    if cache:
        cache.put(path, vision, frames, details)
    return frames, SampledVideo(**details)


def load_own_size(path: Path | str, vision: Vision) -> tuple[np.ndarray, VideoMetadata]:
    """The sampled frames, in the video's original size.

    Args:
        path: of the video (or an archive member).
        vision: `video_fps` and `video_max_frames`.

    Returns:
        Frames uint8 [T, H, W, C] and transformers' metadata.

    Raises:
        DataError: see `probe_video`.
    """
    from sf.data.sampled_video import SampledVideo

    facts, indices, frames = _decode(path, lambda facts: facts.sampled(vision), _own_size)
    return frames, SampledVideo(**_details(facts, indices))
