"""Renaming of tensors in safetensors files, without loading them.

The format (https://github.com/huggingface/safetensors): 8 bytes with the length N of the header; N
bytes of JSON with each tensor's dtype, shape and position in the data; the data. Only the header
names the tensors, so renaming writes a new header and copies the data.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors import SafetensorError, safe_open

from sf.atomic_files import read_json, replacing
from sf.errors import DataError

__all__ = ["INDEX", "WeightFile", "copy_renamed", "indexed_files", "weight_files", "weights_digest"]

INDEX = "model.safetensors.index.json"
_CHUNK = 2**26  # bytes
_ALIGNMENT = 8  # of the header, in bytes


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file.

    Attributes:
        path: of the file.
        tensors: name -> header entry: "dtype", "shape" and "data_offsets".
        data: size of the tensors in bytes.
    """

    path: Path
    tensors: dict[str, dict[str, Any]]
    data: int

    def header(self, names: Mapping[str, str]) -> bytes:
        """The file's header under new names: length and JSON."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        entries |= {names[name]: entry for name, entry in self.tensors.items()}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


def weight_files(folder: Path) -> list[WeightFile]:
    """A checkpoint's weight files, each checked to be complete.

    Args:
        folder: with `model.safetensors.index.json` and the files it names, or with *.safetensors.

    Raises:
        DataError: no weights, only pickles, a missing, truncated or damaged file, or an index that
            contradicts the files.
    """
    index = folder / INDEX
    listed = indexed_files(index) if index.is_file() else None
    if listed is None:
        paths = sorted(folder.glob("*.safetensors"))
    else:
        paths = [folder / name for name in sorted(set(listed.values()))]
    if not paths:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        rule = f"pickles are not read: {', '.join(pickles)}" if pickles else "are missing"
        remedy = "give a folder with the weights as *.safetensors"
        raise DataError(f"weights of {folder}", None, rule, remedy)
    files = [_read(path) for path in paths]
    places: dict[str, str] = {}
    for file in files:
        for name in file.tensors:
            if name in places:
                rule = f"is in {places[name]} and in {file.path.name}"
                raise DataError("tensor", name, rule, "give a folder of one checkpoint")
            places[name] = file.path.name
    if listed is not None and listed != places:
        wrong = sorted(name for name in {*listed, *places} if listed.get(name) != places.get(name))
        rule = f"contradicts its files: {', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}"
        raise DataError(str(index), None, rule, "fetch the checkpoint again")
    return files


def weights_digest(folder: Path) -> str:
    """A digest of the names and bytes of a checkpoint's weight files, 32 hexadecimal digits.

    Raises:
        DataError: see `weight_files`.
    """
    whole = hashlib.blake2b(digest_size=16)
    for file in weight_files(folder):
        with file.path.open("rb") as stream:
            own = hashlib.file_digest(stream, hashlib.blake2b).digest()
        whole.update(file.path.name.encode() + own)
    return whole.hexdigest()


def indexed_files(index: Path) -> dict[str, str]:
    """The content of a weight index: tensor -> file in the same folder.

    Raises:
        DataError: the index is damaged, or leads out of its folder.
    """
    try:
        listed = dict(read_json(index)["weight_map"])
        outside = sorted(name for name in set(listed.values()) if Path(name).name != name)
    except (ValueError, TypeError, KeyError, OSError) as error:
        rule = f"is not a weight index: {error!r}"
        raise DataError(str(index), None, rule, "fetch the checkpoint again") from error
    if outside:
        rule = "leads out of its folder"
        raise DataError(str(index), outside[0], rule, "give a folder of a saved model")
    return listed


def _read(path: Path) -> WeightFile:
    try:
        with safe_open(path, "np") as whole:  # checks that the header covers the file exactly
            names = set(whole.keys())
        with path.open("rb") as stream:
            size = int.from_bytes(stream.read(8), "little")
            entries = json.loads(stream.read(size))
    except (SafetensorError, OSError, ValueError) as error:
        rule = f"is missing, truncated or damaged: {error}"
        raise DataError("weight file", str(path), rule, "fetch it again") from error
    entries.pop("__metadata__", None)
    assert set(entries) == names
    return WeightFile(path, entries, path.stat().st_size - 8 - size)


def copy_renamed(
    file: WeightFile, names: Mapping[str, str], target: Path, advance: Callable[[int], None]
) -> None:
    """Write a weight file under new tensor names, atomically.

    Args:
        file: the source.
        names: old name -> new name, for every tensor.
        target: the new file.
        advance: called after each chunk with its number of bytes.
    """
    header = file.header(names)
    with replacing(target) as part, file.path.open("rb") as source, part.open("wb") as copy:
        copy.write(header)
        source.seek(file.path.stat().st_size - file.data)
        while piece := source.read(_CHUNK):
            copy.write(piece)
            advance(len(piece))
    written, needed = target.stat().st_size, len(header) + file.data
    if written != needed:
        target.unlink()
        rule = f"changed while it was copied: {written} bytes instead of {needed}"
        raise DataError("weight file", str(file.path), rule, "run the command again")
