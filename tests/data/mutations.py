"""Small whole files of many forms, and files made from them by damage of many kinds."""

from __future__ import annotations

import io
import json
import random
import tarfile
import zipfile
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from clips import record
from reference_clips import CLIPS, write
from test_image_forms import PNGS, TIFFS, WRITTEN, turned

EXTREMES = (0, 1, 0x7F, 0x80, 0xFF, 0x7FFF, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF)
ROWS_A_JSON = 6


@dataclass(frozen=True)
class Mutated:
    """A damaged file.

    Attributes:
        name: of the seed.
        suffix: of the file.
        content: its bytes.
        kind: of the damage; "whole" for none.
        start, end: the damage in the seed: bytes before `start` and from `end` on are the seed's.
    """

    name: str
    suffix: str
    content: bytes
    kind: str
    start: int
    end: int


def _bits(data: bytearray, rng: random.Random) -> tuple[int, int]:
    places = [rng.randrange(len(data)) for _ in range(rng.choice((1, 1, 2, 8, 64)))]
    for place in places:
        data[place] ^= 1 << rng.randrange(8)
    return min(places), max(places) + 1


def _span(data: bytearray, rng: random.Random, most: int = 4096) -> tuple[int, int]:
    start = rng.randrange(len(data))
    return start, min(len(data), start + 1 + int(rng.expovariate(8 / most)))


def _random_block(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start, end = _span(data, rng)
    data[start:end] = rng.randbytes(end - start)
    return start, end


def _zero_block(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start, end = _span(data, rng)
    data[start:end] = bytes(end - start)
    return start, end


def _deleted(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start, end = _span(data, rng)
    del data[start:end]
    return start, end


def _inserted(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    data[start:start] = rng.randbytes(rng.choice((1, 2, 3, 4, 16, 188, 1000)))
    return start, start


def _repeated(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start, end = _span(data, rng)
    data[start:start] = data[start:end]
    return start, start


def _truncated(data: bytearray, rng: random.Random) -> tuple[int, int]:
    start = rng.randrange(len(data))
    end = len(data)
    del data[start:]
    return start, end


def _appended(data: bytearray, rng: random.Random) -> tuple[int, int]:
    size = len(data)
    data += rng.choice((bytes(512), rng.randbytes(700), b"\n", bytes(data)))
    return size, size


def _number(data: bytearray, rng: random.Random) -> tuple[int, int]:
    """A field of 1, 2 or 4 bytes, mostly of the header, is an extreme value."""
    width = rng.choice((1, 2, 4))
    reach = rng.choice((64, 256, 1024, len(data)))
    start = rng.randrange(max(1, min(len(data), reach) - width + 1))
    value = rng.choice(EXTREMES) & (1 << 8 * width) - 1
    data[start : start + width] = value.to_bytes(width, rng.choice(("big", "little")))
    return start, start + width


DAMAGE: tuple[Callable[[bytearray, random.Random], tuple[int, int]], ...] = (
    *(_bits, _random_block, _zero_block, _deleted, _inserted),
    *(_repeated, _truncated, _appended, _number),
)


def mutated(seed: tuple[str, str, bytes], rng: random.Random) -> Mutated:
    """Damage a seed once; one in twenty stays whole."""
    name, suffix, content = seed
    if rng.random() < 0.05:
        return Mutated(name, suffix, content, "whole", len(content), len(content))
    damage, data = rng.choice(DAMAGE), bytearray(content)
    start, end = damage(data, rng)
    return Mutated(name, suffix, bytes(data), damage.__name__.strip("_"), start, end)


def images() -> list[tuple[str, str, bytes]]:
    """Name, suffix and content of whole images of all forms."""
    made = {name: data for name, (data, _) in {**PNGS, **TIFFS}.items()}
    made |= {name: make() for name, (make, *_) in WRITTEN.items()}
    made |= {f"turned {kind}": turned(kind, 6) for kind in ("JPEG", "PNG", "WEBP", "TIFF")}
    return [(name, "img", data) for name, data in made.items()]


def videos(folder: Path) -> list[tuple[str, str, bytes]]:
    """Name, suffix and content of short clips of all containers and codecs.

    Args:
        folder: keeps them; what is there is not encoded again.
    """
    folder.mkdir(parents=True, exist_ok=True)
    made = []
    for clip in CLIPS:
        path = folder / f"{clip.name}.{clip.suffix}"
        if not path.is_file():
            part = path.with_stem("part")
            write(replace(clip, count=10), part)
            part.rename(path)
        made.append((clip.name, clip.suffix, path.read_bytes()))
    return made


def archive(pictures: dict[str, bytes], kind: str) -> bytes:
    """A zip or tar ("tar", "tar.gz", ...) with these members."""
    buffer = io.BytesIO()
    if kind == "zip":
        with zipfile.ZipFile(buffer, "w") as opened:
            for name, content in pictures.items():
                opened.writestr(name, content)
    else:
        mode = "w" + kind.removeprefix("tar").replace(".", ":")
        with tarfile.open(fileobj=buffer, mode=mode) as opened:
            for name, content in pictures.items():
                info = tarfile.TarInfo(name)
                info.size = len(content)
                opened.addfile(info, io.BytesIO(content))
    return buffer.getvalue()


def annotations(prefix: str, media: str) -> Iterator[tuple[str, str, bytes]]:
    """Annotation files of all layouts and encodings, whose rows ask about one image."""
    rows = [
        record(n, problem_id=f"{prefix}-{n}", problem=f"Größe {prefix} {n}?", path=media)
        for n in range(ROWS_A_JSON)
    ]
    text = json.dumps(rows, ensure_ascii=False)
    lines = "\n".join(json.dumps(row, ensure_ascii=False) for row in rows) + "\n"
    yield "array", "json", text.encode()
    yield "indented", "json", json.dumps(rows, indent=2).encode()
    yield "lines", "json", lines.encode()
    yield "marked", "json", text.encode("utf-8-sig")
    yield "utf-16", "json", text.encode("utf-16")
    yield "utf-16 lines", "json", lines.encode("utf-16-be")


def untouched_rows(whole: bytes, damaged: Mutated, prefix: str) -> set[str]:
    """Ids of the rows of an annotation file in UTF-8 that no damage touches."""
    ids = set()
    ends = [whole.index(f'"{prefix}-{n}"'.encode()) for n in range(ROWS_A_JSON)]
    ends = [whole.rindex(b"{", 0, place) for place in ends] + [len(whole)]
    for number in range(ROWS_A_JSON):
        start, end = ends[number], ends[number + 1]
        if end <= damaged.start or (start > damaged.end and number > 0):
            ids.add(f"{prefix}-{number}")
    return ids
