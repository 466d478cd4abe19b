"""Detection of truncated video files from their container's structure.

FFmpeg reads a truncated file up to the cut and reports nothing. Most containers state the length
of each element, so the structure reveals a cut. Bytes after the end of the structure are ignored.

Limits: a QuickTime file is checked by its sample table (`sf.data.video_probe`). Two cuts remain
undetected: one between two packets of a transport stream, and one between two elements of a file
whose writer could not seek back to fill in the lengths.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator
from typing import IO

__all__ = ["ends_early"]

_TAIL = 2**17  # bytes at the end that contain the start of the last Ogg page or MPEG pack
_SEGMENT, _CLUSTER = 0x18538067, 0x1F43B675
_BOXES = frozenset(
    b"ftyp styp moov moof mdat mfra free skip sidx ssix emsg prft meta udta uuid wide".split()
)
_ASF_PROPERTIES = bytes.fromhex("a1dcab8c47a9cf118ee400c00c205365")


def ends_early(stream: IO[bytes], size: int, container: str) -> bool:
    """Whether the file is truncated.

    Args:
        stream: the file, seekable.
        size: its length in bytes.
        container: FFmpeg's name of the format, for example "matroska,webm".

    Returns:
        True if the structure continues beyond the end of the file.
    """
    for name in container.split(","):
        if name in _CHECKS:
            return _CHECKS[name](stream, size)
    return False


def _read(stream: IO[bytes], place: int, count: int) -> bytes:
    stream.seek(place)
    return stream.read(count)


def _walk(
    stream: IO[bytes], place: int, size: int, step: Callable[[bytes], int], head: int
) -> bool:
    """Follow elements of stated length.

    Args:
        stream, size: as in `ends_early`.
        place: offset of the first element.
        step: distance in bytes from an element's start to the next element, given its first `head`
            bytes; 0 if it is not an element.
        head: number of bytes that `step` needs.
    """
    while place < size:
        length = step(_read(stream, place, head))
        if not length:
            return False
        place += length
    return place > size


def _box(head: bytes) -> int:
    """An ISO base media box; used for fragmented files, which have no sample table."""
    if head[4:8] not in _BOXES:
        return 0
    short = int.from_bytes(head[:4], "big")
    length = int.from_bytes(head[8:16], "big") if short == 1 else short
    return length if length >= 8 else 0


def _fragments(stream: IO[bytes], size: int) -> bool:
    kinds: list[bytes] = []

    def step(head: bytes) -> int:
        kinds.append(head[4:8])
        return _box(head)

    return _walk(stream, 0, size, step, 16) and b"moof" in kinds


def _ebml_number(data: bytes, keep_marker: bool) -> tuple[int, int]:
    """Value and length of a variable-length number; length 0 if it is invalid."""
    length = 9 - data[0].bit_length() if data and data[0] else 0
    if not length or len(data) < length:
        return 0, 0
    value = int.from_bytes(data[:length], "big")
    if not keep_marker:
        value &= (1 << 7 * length) - 1
    return value, length


def _matroska(stream: IO[bytes], size: int) -> bool:
    place = 0
    while place < size:
        head = _read(stream, place, 12)
        name, name_length = _ebml_number(head, keep_marker=True)
        length, width = _ebml_number(head[name_length:], keep_marker=False)
        if not name_length or not width:
            return False
        unknown = length == (1 << 7 * width) - 1
        place += name_length + width
        if name == _SEGMENT and not unknown:
            return place + length > size
        if unknown and name not in (_SEGMENT, _CLUSTER):
            return False
        if name not in (_SEGMENT, _CLUSTER):
            place += length
    return place > size


def _riff(head: bytes) -> int:
    if head[:4] != b"RIFF" or len(head) < 8:
        return 0
    length = int.from_bytes(head[4:8], "little")
    return 0 if length in (0, 0xFFFFFFFF) else 8 + length


def _avi(stream: IO[bytes], size: int) -> bool:
    return _walk(stream, 0, size + 1, _riff, 8)  # the last chunk's padding byte may be missing


def _tag(head: bytes) -> int:
    if head[:1] not in (b"\x08", b"\x09", b"\x12") or head[8:11] not in (b"\0\0\0", b""):
        return 0
    return 11 + int.from_bytes(head[1:4], "big") + 4


def _flv(stream: IO[bytes], size: int) -> bool:
    start = int.from_bytes(_read(stream, 5, 4), "big") + 4
    return _walk(stream, start, size + 4, _tag, 11)  # the last back pointer may be missing


def _transport(stream: IO[bytes], size: int) -> bool:
    head = _read(stream, 0, 1024)
    for length, sync in ((188, 0), (192, 4), (204, 0)):
        marks = head[sync::length]
        if len(marks) > 2 and set(marks) == {0x47}:
            left = _read(stream, size - size % length, length)
            return 0 < len(left) <= sync or left[sync : sync + 1] == b"G"
    return False


def _pack(head: bytes) -> int:
    """A pack header, system header, PES packet or end code of an MPEG program stream."""
    if head[:3] != b"\0\0\1" or len(head) < 4 or head[3] < 0xB9:
        return 0
    if head[3] == 0xB9:
        return 4
    if head[3] == 0xBA:
        mpeg2 = len(head) > 13 and head[4] >> 6 == 1
        return 14 + (head[13] & 7) if mpeg2 else 12
    return 6 + int.from_bytes(head[4:6], "big")


def _program(stream: IO[bytes], size: int) -> bool:
    first = max(0, size - _TAIL)
    place = _read(stream, first, _TAIL).rfind(b"\0\0\1\xba")
    return place >= 0 and _walk(stream, first + place, size, _pack, 14)


def _ogg(stream: IO[bytes], size: int) -> bool:
    """A truncated page, or a last page that does not end its logical stream (RFC 3533)."""
    first = max(0, size - _TAIL)
    tail = _read(stream, first, _TAIL)
    place = tail.rfind(b"OggS")
    if place < 0 or len(tail) < place + 27:
        return place >= 0
    segments = tail[place + 27 : place + 27 + tail[place + 26]]
    cut = place + 27 + tail[place + 26] + sum(segments) > len(tail)
    return cut or not tail[place + 5] & 4


def _asf(stream: IO[bytes], size: int) -> bool:
    header = _read(stream, 0, min(size, 2**20))
    place = header.find(_ASF_PROPERTIES)
    if place < 0 or len(header) < place + 92:
        return False
    (stated,) = struct.unpack_from("<Q", header, place + 40)
    (flags,) = struct.unpack_from("<I", header, place + 88)
    return not flags & 1 and stated > size  # a broadcast states no length


def _gif_blocks(stream: IO[bytes], place: int) -> Iterator[int]:
    """Starts of blocks, -1 for the trailer; ends without -1 if the file is truncated."""
    while kind := _read(stream, place, 1):
        if kind == b";":
            yield -1
            return
        if kind == b"!":
            place += 2
        elif kind == b",":
            flags = _read(stream, place + 9, 1)
            place += 11 + (3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0)
        else:
            yield -1  # bytes outside any block: ignored
            return
        while count := _read(stream, place, 1):
            place += 1 + count[0]
            if not count[0]:
                break
        yield place


def _gif(stream: IO[bytes], size: int) -> bool:
    flags = _read(stream, 10, 1)
    start = 13 + (3 << (flags[0] & 7) + 1 if flags and flags[0] & 0x80 else 0)
    return -1 not in _gif_blocks(stream, start)


_CHECKS: dict[str, Callable[[IO[bytes], int], bool]] = {
    "mov": _fragments,
    "matroska": _matroska,
    "avi": _avi,
    "flv": _flv,
    "mpegts": _transport,
    "mpeg": _program,
    "ogg": _ogg,
    "asf": _asf,
    "gif": _gif,
}
