"""Real-world videos: unusual starts, cuts, sizes, rates and colours."""

from __future__ import annotations

from fractions import Fraction

import av
import numpy as np
import pytest
from reference_clips import CLIPS, COLOURS, Clip, bar_colours, picture, read_number, stamps, write

from sf.data import video
from sf.data.video import decode_frames, load_own_size, load_video, probe_video
from sf.data.vision import encode
from sf.errors import DataError

B_FRAMES = {"preset": "medium", "bf": "2", "g": "8"}
MPEG4_B = {"bf": "2", "g": "8", "qscale": "2", "flags": "qscale"}


def numbers(frames: np.ndarray) -> list[int]:
    return [read_number(frame) for frame in frames]


@pytest.mark.parametrize("suffix", ["flv", "mpg", "vob", "m2ts", "ts"])
def test_containers_whose_streams_appear_late_do_not_crash(tmp_path, suffix):
    """`options=` of av.open reaches for streams that are not there yet."""
    clip = next(clip for clip in CLIPS if clip.suffix == suffix)
    path = write(clip, tmp_path / f"a.{suffix}").rename(tmp_path / "named.mp4")
    frames, facts = decode_frames(path, range(clip.count))
    assert facts.num_frames == clip.count
    assert numbers(frames) == list(range(clip.count))


@pytest.mark.parametrize("full", [False, True])
@pytest.mark.parametrize("matrix", [1, 5, 6, 7, 9])
@pytest.mark.parametrize("pixels", ["yuv420p", "yuv444p", "yuv420p10le"])
def test_colours_follow_matrix_and_range(tmp_path, pixels, matrix, full):
    options = {"preset": "ultrafast", "qp": "4"}
    clip = Clip("mp4", "libx264", pixels, options, matrix=matrix, full=full, count=4)
    frames, _ = decode_frames(write(clip, tmp_path / "a.mp4"), [2])
    assert np.abs(bar_colours(frames[0]) - np.array(COLOURS)).max() <= 6


def test_a_colour_matrix_that_is_not_read_is_named(tmp_path, vision):
    clip = Clip("mp4", "libx264", "yuv444p", {"preset": "ultrafast"}, matrix=8, count=4)
    path = write(clip, tmp_path / "a.mp4")
    for load in (load_video, video.check_video):
        with pytest.raises(DataError, match=r"a\.mp4.*matrix 8"):
            load(path, vision)


@pytest.mark.parametrize("suffix", ["avi", "mp4", "mkv"])
def test_frames_behind_a_seek_are_those_asked_for(tmp_path, suffix):
    path = write(Clip(suffix, "mpeg4", options=MPEG4_B, count=40), tmp_path / f"a.{suffix}")
    for chosen in ([9, 15, 21], [0, 39], [38], [8, 16, 24, 32], [31, 3, 3]):
        assert numbers(decode_frames(path, chosen)[0]) == chosen


def test_a_frame_that_is_not_there_is_refused(tmp_path):
    path = write(Clip("mp4", "libx264", options=B_FRAMES), tmp_path / "a.mp4")
    for chosen in ([24], [-1]):
        with pytest.raises(DataError, match="it has 24"):
            decode_frames(path, chosen)


@pytest.mark.parametrize("suffix", ["mp4", "mkv", "ts", "flv"])
def test_variable_rate_is_sampled_by_time(tmp_path, vision, suffix):
    clip = Clip(suffix, "libx264", options=B_FRAMES, count=40, irregular=True)
    path = write(clip, tmp_path / f"a.{suffix}")
    seconds = np.array(stamps(clip)) / 10
    frames, metadata = load_video(path, vision)
    assert metadata.timestamps == pytest.approx(seconds[numbers(frames)], abs=1e-3)
    spacing = metadata.duration / len(frames)
    wanted = np.arange(len(frames)) * spacing
    shown = np.searchsorted(seconds, wanted + 2e-3, side="right") - 1
    assert numbers(frames) == shown.tolist()
    assert 1 / metadata.sampled_fps == pytest.approx(spacing)


def test_seconds_per_grid_of_variable_rate_are_true(tmp_path, vision, processor_2_5):
    """Sixteen frames in the first second, one a second after it."""
    path = tmp_path / "a.mp4"
    times = [number * 0.0625 for number in range(16)] + [float(n) for n in range(1, 16)]
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libx264", rate=16, options={"preset": "ultrafast"})
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        stream.codec_context.time_base = Fraction(1, 16)
        for number, time in enumerate(times):
            frame = av.VideoFrame.from_ndarray(picture(number), format="rgb24")
            frame.pts, frame.time_base = round(time * 16), Fraction(1, 16)
            container.mux(stream.encode(frame))
        container.mux(stream.encode(None))
    frames, metadata = load_video(path, vision)
    assert metadata.timestamps == [times[number] for number in numbers(frames)]
    spacing = metadata.duration / 8
    for index, shown in enumerate(metadata.timestamps):
        assert shown == max(time for time in times if time <= index * spacing)
    turn = [{"role": "user", "content": [{"type": "video", "path": str(path)}]}]
    inputs = encode(processor_2_5, [turn], vision)
    assert float(inputs["second_per_grid_ts"][0]) == pytest.approx(2 * spacing)


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [
        ("mkv", "libx264", B_FRAMES),
        ("ts", "libx264", B_FRAMES),
        ("mp4", "mpeg4", MPEG4_B),
        ("avi", "mpeg4", MPEG4_B),
        ("ts", "mpeg2video", MPEG4_B),
    ],
)
def test_a_start_without_key_frame_gives_no_made_up_frames(tmp_path, suffix, codec, options):
    whole = write(Clip("mkv", codec, options=options), tmp_path / "whole.mkv")
    cut = tmp_path / f"cut.{suffix}"
    with av.open(str(whole)) as reader, av.open(str(cut), "w") as writer:
        stream = writer.add_stream_from_template(reader.streams.video[0])
        for number, packet in enumerate(reader.demux(reader.streams.video[0])):
            if packet.dts is not None and number >= 3:
                packet.stream = stream
                writer.mux(packet)
    facts = probe_video(cut)
    frames, _ = decode_frames(cut, range(facts.num_frames))
    assert numbers(frames) == list(range(24 - facts.num_frames, 24))
    assert 12 <= facts.num_frames < 24


CUT_AT_ONCE = ("mp4", "mov", "mkv", "webm", "avi", "ts", "m2ts", "mpg", "flv", "wmv", "ogg", "gif")


@pytest.mark.parametrize("share", [0.4, 0.77])
@pytest.mark.parametrize("suffix", CUT_AT_ONCE)
def test_a_cut_file_is_refused_in_every_container(tmp_path, vision, suffix, share):
    clip = next(clip for clip in CLIPS if clip.suffix == suffix)
    path = write(clip, tmp_path / f"a.{suffix}")
    data = path.read_bytes()
    path.write_bytes(data[: int(len(data) * share) | 1])
    with pytest.raises(DataError, match=rf"a\.{suffix}"):
        load_video(path, vision)


@pytest.mark.parametrize("junk", [bytes(1000), b"\xc3\x28" * 500, b"hello world " * 50])
@pytest.mark.parametrize("suffix", ["mp4", "mkv", "avi", "ts", "mpg", "flv", "ogg"])
def test_bytes_behind_the_end_cost_no_frame(tmp_path, suffix, junk):
    clip = next(clip for clip in CLIPS if clip.suffix == suffix)
    path = write(clip, tmp_path / f"a.{suffix}")
    path.write_bytes(path.read_bytes() + junk)
    assert numbers(decode_frames(path, range(clip.count))[0]) == list(range(clip.count))


def write_two_sizes(path, codec: str, options: dict[str, str]) -> None:
    """Twelve frames of 176x144, then twelve of 320x240, in one stream."""
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=10)
        stream.width, stream.height, stream.pix_fmt = 176, 144, "yuv420p"
        for start, size in ((0, (176, 144)), (12, (320, 240))):
            encoder = av.CodecContext.create(codec, "w")
            encoder.width, encoder.height = size
            encoder.pix_fmt, encoder.options = "yuv420p", options
            encoder.time_base, encoder.framerate = Fraction(1, 10), Fraction(10)
            packets = []
            for number in range(12):
                image = picture(start + number, size)
                frame = av.VideoFrame.from_ndarray(image, format="rgb24")
                frame.pts, frame.time_base = number, Fraction(1, 10)
                packets += encoder.encode(frame.reformat(format="yuv420p"))
            for packet in [*packets, *encoder.encode(None)]:
                packet.pts, packet.dts = packet.pts + start, packet.dts + start
                packet.time_base, packet.stream = Fraction(1, 10), stream
                container.mux(packet)


@pytest.mark.parametrize(
    ("suffix", "codec", "options"),
    [("ts", "libx264", {"preset": "ultrafast"}), ("webm", "libvpx", {"b": "1M"})],
)
def test_a_size_that_changes_is_brought_to_the_first(tmp_path, vision, suffix, codec, options):
    path = tmp_path / f"a.{suffix}"
    write_two_sizes(path, codec, options)
    frames, facts = decode_frames(path, range(24))
    assert frames.shape == (24, 144, 176, 3)
    assert (facts.width, facts.height) == (176, 144)
    assert numbers(frames) == list(range(24))
    assert load_own_size(path, vision)[0].shape[1:] == (144, 176, 3)
    assert len(load_video(path, vision)[0]) == 4


def test_hidden_frames_are_not_counted(tmp_path):
    """VP8's alternate reference frames are packets without a picture."""
    options = {"auto-alt-ref": "1", "lag-in-frames": "16", "b": "300k"}
    path = write(Clip("mkv", "libvpx", options=options, count=60), tmp_path / "a.mkv")
    with av.open(str(path)) as container:
        packets = sum(packet.size > 0 for packet in container.demux(video=0))
    frames, facts = decode_frames(path, range(60))
    assert packets >= facts.num_frames == 60
    assert numbers(frames) == list(range(60))
