"""The properties of a video file, read from its packets."""

from __future__ import annotations

import errno
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from fractions import Fraction
from itertools import pairwise
from pathlib import Path
from typing import TYPE_CHECKING

from sf.data.budget import frame_indices, frames_at
from sf.data.file_end import ends_early
from sf.data.media import media_size, open_media, split_reference
from sf.data.orientation import Orientation, orientation_of
from sf.errors import DataError

if TYPE_CHECKING:
    import av

    from sf.sections import Vision

__all__ = [
    "FORMATS",
    "MAX_SIDE",
    "VideoFacts",
    "count_frames",
    "opened",
    "packets_from_key",
    "probe_video",
    "refuse",
    "video_stream",
]

MAX_SIDE = 16_384
MAX_FRAME_PIXELS = 8192 * 8192
MAX_FRAMES = 5_000_000  # two days at 29 frames per second
MAX_SECONDS = 30 * 86_400
# A playlist named .mp4 would make FFmpeg open the files that it lists.
FORMATS = "mov,matroska,avi,flv,mpeg,mpegts,asf,ogg,gif,mp3,wav,flac,aac"
_OPTIONS = {"format_whitelist": FORMATS, "protocol_whitelist": "file"}


@dataclass(frozen=True, slots=True)
class VideoFacts:
    """The properties of a video file.

    Attributes:
        width, height: of the upright first frame, in pixels.
        num_frames: frames that can be shown, independent of the header.
        fps: mean frames per second.
        duration_s: from the start of the first frame to the end of the last one; num_frames / fps.
        codec: FFmpeg's name.
        times: presentation time stamps of the frames in order, in `time_base` seconds.
        time_base: unit of the time stamps, in seconds.
        regular: the frames follow each other at a constant rate.
        keys: time stamps of the key frames.
        from_key: whether packets before the first key frame are dropped.
        counted: whether `times` come from decoding all frames, because the packets do not
            determine them.
        orientation: the transform that makes stored frames upright.
    """

    width: int
    height: int
    num_frames: int
    fps: float
    duration_s: float
    codec: str
    times: tuple[int, ...]
    time_base: Fraction
    regular: bool
    keys: tuple[int, ...]
    from_key: bool
    counted: bool
    orientation: Orientation

    def seconds(self, index: int) -> float:
        """Presentation time of a frame, in seconds from the first one."""
        if self.regular:
            return index / self.fps
        return float((self.times[index] - self.times[0]) * self.time_base)

    def sampled(self, vision: Vision) -> list[int]:
        """The sampled frames, by the rule of `sf.data.budget`."""
        if self.regular:
            return frame_indices(self.num_frames, self.fps, vision)
        seconds = [float((stamp - self.times[0]) * self.time_base) for stamp in self.times]
        return frames_at(seconds, self.duration_s, vision)


def refuse(path: Path | str, rule: str) -> DataError:
    """The error for an unusable video."""
    return DataError("video", str(path), rule, "fetch the file again or leave it out")


@contextmanager
def opened(path: Path | str) -> Iterator[av.container.InputContainer]:
    """A video file or archive member, opened by FFmpeg.

    Raises:
        DataError: it cannot be opened, or reading it fails inside the context.
    """
    import av

    with open_media(path) as stream:
        plain = not split_reference(path)[1]  # FFmpeg reads files faster than Python streams
        source = f"file:{os.path.abspath(path)}" if plain else stream
        try:
            # PyAV would pass `options` to the streams too, and crash on streams that appear late.
            # Titles of old files have unknown encodings and are not used.
            with av.open(
                source, mode="r", container_options=_OPTIONS, metadata_errors="replace"
            ) as container:
                yield container
        except av.FFmpegError as error:
            if error.errno == errno.EINVAL:
                rule = "it is damaged, or its video format is not supported"
                raise refuse(path, rule) from error
            raise refuse(path, f"it cannot be decoded: {error.strerror}") from error


def probe_video(path: Path | str) -> VideoFacts:
    """Read a video's facts from its packets; decodes only the first frame, for the orientation.

    Raises:
        DataError: the file is missing, empty or truncated, or has no video stream (audio only,
            with or without a cover picture), no frames, a codec without a decoder, or an absurd
            frame size.
    """
    facts = _probe(path, from_key=True) or _probe(path, from_key=False)
    if facts is None:
        raise refuse(path, "none of its frames can be decoded")
    return facts


def video_stream(
    container: av.container.InputContainer, path: Path | str, threads: int = 1
) -> av.VideoStream:
    """The first video stream that is not a cover picture, ready for decoding.

    Args:
        container: opened.
        path: for the message.
        threads: number of decoding threads; 0 for FFmpeg's choice.
    """
    from av.stream import Disposition

    for stream in container.streams.video:
        if not stream.disposition & Disposition.attached_pic:
            if stream.codec_context is None:
                raise refuse(path, "there is no decoder for its codec")
            stream.codec_context.options = {"max_pixels": str(MAX_FRAME_PIXELS)}
            if threads:
                stream.thread_count = threads
            else:
                stream.thread_type = "AUTO"
            return stream
    raise refuse(path, "it has no video stream (audio only)")


def packets_from_key(
    container: av.container.InputContainer, stream: av.VideoStream, from_key: bool
) -> Iterator[av.Packet]:
    """The non-empty packets of a stream, and the empty one that flushes the decoder.

    Args:
        container, stream: opened.
        from_key: drop the packets before the first key frame, where some decoders invent frames.
    """
    for packet in container.demux(stream):
        from_key = from_key and not packet.is_keyframe
        if not from_key and (packet.size or packet.dts is None):
            yield packet


def _check_size(path: Path | str, width: int, height: int) -> None:
    if max(width, height) > MAX_SIDE or width * height > MAX_FRAME_PIXELS:
        raise refuse(path, f"frames of {width}x{height} pixels are absurd")


def _probe(path: Path | str, from_key: bool) -> VideoFacts | None:
    """Facts; None if no packet (from the first key frame on) yields a frame."""
    with opened(path) as container:
        stream = video_stream(container, path)
        context = stream.codec_context
        _check_size(path, context.width, context.height)
        first: av.VideoFrame | None = None
        stamps: list[int | None] = []
        keys: list[int] = []
        num_packets = last_duration = latest = 0
        for packet in container.demux(stream):
            num_packets += packet.size > 0
            if packet.is_corrupt:
                raise refuse(path, f"it is truncated or damaged at packet {num_packets - 1}")
            if from_key and not keys and not packet.is_keyframe:
                continue
            if first is None:
                decoded = context.decode(packet)
                first = next((frame for frame in decoded if not frame.is_corrupt), None)
            if packet.size == 0:
                continue
            stamp = packet.pts
            if packet.is_keyframe:
                keys.append(latest if stamp is None else stamp)
            if packet.is_discard:
                continue
            stamps.append(stamp)
            if stamp is not None and stamp >= latest:
                latest, last_duration = stamp, packet.duration or 0
            if len(stamps) > MAX_FRAMES:
                raise refuse(path, f"more than {MAX_FRAMES} frames are absurd")
        if not num_packets:
            raise refuse(path, "it contains no frames")
        stated = stream.frames if "mov" in container.format.name else 0
        if stated > num_packets:
            rule = f"it is truncated: it has {num_packets} of {stated} frames"
            raise refuse(path, rule)
        with open_media(path) as bytes_:
            if ends_early(bytes_, media_size(path), container.format.name):
                raise refuse(path, "it is truncated: it ends before its container does")
        if first is None:
            return None
        _check_size(path, first.width, first.height)
        orientation = orientation_of(first)
        width, height = orientation.size(first.width, first.height)
        known = [stamp for stamp in stamps if stamp is not None]
        start = first.pts if first.pts is not None else min(known, default=0)
        times = sorted(stamp for stamp in known if stamp >= start)
        facts = VideoFacts(
            width=width,
            height=height,
            num_frames=len(times),
            fps=0.0,
            duration_s=0.0,
            codec=context.name,
            times=tuple(times),
            time_base=stream.time_base or Fraction(1, 1000),
            regular=False,
            keys=tuple(sorted(key for key in set(keys) if key in set(times))),
            from_key=from_key,
            counted=False,
            orientation=orientation,
        )
        rates = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate]
    if not times or len(known) < len(stamps) or not _rising(times):
        return count_frames(path, facts)
    return _timed(path, facts, rates, last_duration)


def _timed(
    path: Path | str, facts: VideoFacts, rates: Sequence[Fraction], last_duration: int
) -> VideoFacts:
    """Facts with rate and duration, from the time stamps; from the header for a single frame."""
    times, base, count = facts.times, facts.time_base, len(facts.times)
    if count == 1:
        if not rates:
            raise refuse(path, "it states no frame rate")
        fps = float(rates[0])
        return replace(facts, regular=True, fps=fps, duration_s=1 / fps)
    span = (times[-1] - times[0]) * base
    if not 0 < span < MAX_SECONDS:
        raise refuse(path, f"{float(span):g} seconds of video are absurd")
    for rate in (*rates, (count - 1) / span):
        if _is_regular(times, rate * base):
            fps = float(rate)
            return replace(facts, regular=True, fps=fps, duration_s=count / fps)
    last = (last_duration if last_duration > 0 else times[-1] - times[-2]) * base
    duration_s = float(span + last)
    return replace(facts, regular=False, fps=count / duration_s, duration_s=duration_s)


def _rising(times: Sequence[int]) -> bool:
    return all(earlier < later for earlier, later in pairwise(times))


def _is_regular(times: Sequence[int], per_tick: Fraction) -> bool:
    """Whether the time stamps are those of `per_tick` frames per tick, rounded to ticks."""
    import numpy as np

    stamps = np.asarray(times, dtype=np.float64)
    grid = np.arange(len(stamps)) / float(per_tick)
    return bool(np.abs(stamps - stamps[0] - grid).max() <= 1.0 + 1e-6)


def count_frames(path: Path | str, facts: VideoFacts) -> VideoFacts:
    """Facts from decoding every frame, for files whose packets do not determine the frames.

    The time stamps are the presentation times of the decoded frames. If these are missing or do not
    increase, the decoding times are used, and else the stated rate.

    Args:
        path: of the video.
        facts: size, codec and orientation are kept.
    """
    presented: list[int | None] = []
    decoded: list[int | None] = []
    with opened(path) as container:
        stream = video_stream(container, path)
        rates = [rate for rate in (stream.average_rate, stream.guessed_rate) if rate]
        for packet in packets_from_key(container, stream, facts.from_key):
            for frame in stream.codec_context.decode(packet):
                if presented or not frame.is_corrupt:
                    presented.append(frame.pts)
                    decoded.append(frame.dts)
    if not presented:
        raise refuse(path, "none of its frames can be decoded")
    for stamps in (presented, decoded):
        times = tuple(stamp for stamp in stamps if stamp is not None)
        if len(times) == len(stamps) and _rising(times):
            break
    else:
        if not rates:
            raise refuse(path, "it states neither time stamps nor a frame rate")
        steps = 1 / (rates[0] * facts.time_base)
        times = tuple(round(number * steps) for number in range(len(presented)))
    facts = replace(facts, times=times, num_frames=len(times), keys=(), counted=True)
    return _timed(path, facts, rates, 0)
