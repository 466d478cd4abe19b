"""Safetensors files under other tensor names, without a tensor in memory.

The format (https://github.com/huggingface/safetensors): 8 bytes, the length N of the header; N
bytes of JSON that give each tensor's dtype, shape and place in the rest; the rest. Only the header
names the tensors, so a file under new names is a new header and a copy of the rest.
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
_ALIGNMENT = 8  # bytes, of the header


@dataclass(frozen=True)
class WeightFile:
    """One safetensors file.

    Attributes:
        path: where it lies.
        tensors: name -> its header entry: "dtype", "shape" and "data_offsets".
        data: bytes of the tensors.
    """

    path: Path
    tensors: dict[str, dict[str, Any]]
    data: int

    def header(self, names: Mapping[str, str]) -> bytes:
        """The head of the file under new names: length and JSON."""
        entries: dict[str, Any] = {"__metadata__": {"format": "pt"}}
        entries |= {names[name]: entry for name, entry in self.tensors.items()}
        text = json.dumps(entries, separators=(",", ":")).encode()
        text += b" " * (-len(text) % _ALIGNMENT)
        return len(text).to_bytes(8, "little") + text


def weight_files(folder: Path) -> list[WeightFile]:
    """A checkpoint's weight files, each checked to be whole.

    Args:
        folder: with `model.safetensors.index.json` and what it names, or with *.safetensors.

    Raises:
        DataError: no weights, pickles only, a file that is missing, truncated or damaged, or an
            index that says something else than the files.
    """
    index = folder / INDEX
    listed = indexed_files(index) if index.is_file() else None
    if listed is None:
        paths = sorted(folder.glob("*.safetensors"))
    else:
        paths = [folder / name for name in sorted(set(listed.values()))]
    if not paths:
        pickles = sorted(path.name for path in folder.glob("*.bin"))
        rule = f"pickles are not read: {', '.join(pickles)}" if pickles else "there are none"
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
        rule = f"does not fit its files: {', '.join(wrong[:5])}{' …' if len(wrong) > 5 else ''}"
        raise DataError(str(index), None, rule, "fetch the checkpoint again")
    return files


def weights_digest(folder: Path) -> str:
    """32 hexadecimal digits that follow from the names and bytes of a checkpoint's weight files.

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
    """What an index of weights names: tensor -> file beside it.

    Raises:
        DataError: it is damaged, or leads out of its folder.
    """
    try:
        listed = dict(read_json(index)["weight_map"])
        outside = sorted(name for name in set(listed.values()) if Path(name).name != name)
    except (ValueError, TypeError, KeyError, OSError) as error:
        rule = f"is no index of weights: {error!r}"
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
    """Write a weight file under new tensor names; `target` appears as a whole.

    Args:
        file: the source.
        names: old name -> new name, of every tensor.
        target: the new file.
        advance: called with the number of bytes after each piece.
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
        rule = f"changed while it was copied: {written} bytes in place of {needed}"
        raise DataError("weight file", str(file.path), rule, "run the command again")
