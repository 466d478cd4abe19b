"""`sf convert`: from LLaVA-NeXT's checkpoint format to transformers' LLaVA-OneVision.

Weights are copied file by file under new names (`sf.models.weight_files`), bit for bit. The output
is written to `TARGET.partial` and renamed once it is complete; after a kill, the same command
continues with the first missing file.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from sf.atomic_files import read_json, write_json, write_text
from sf.data.hub import parse_hub
from sf.data.hub_cache import hub_folder
from sf.disk import require_room
from sf.errors import DataError, OutputConflictError
from sf.models.llava_next_format import (
    SETTINGS,
    check_settings,
    converted_config,
    expected_tensors,
    read_config,
)
from sf.models.llava_processor import build_processor, generation_settings
from sf.models.weight_files import INDEX, WeightFile, copy_renamed, weight_files
from sf.progress import progress

__all__ = ["convert_llava"]

RECORD = "conversion.json"
_VERSION = 1  # of the output; a change restarts partial conversions
_MIB = 2**20
_SMALL = 64 * _MIB  # disk space for everything except the weights
_SOURCE_FILES = ("*.json", "*.txt", "*.model")


@dataclass(frozen=True)
class _Plan:
    """A checked conversion, ready for copying.

    Attributes:
        config, processor, generation: transformers' objects to save.
        files: (source file, its name in the target).
        names: LLaVA-NeXT's tensor name -> the new name.
        record: the content of `RECORD`.
    """

    config: Any
    processor: Any
    generation: Any
    files: Sequence[tuple[WeightFile, str]]
    names: dict[str, str]
    record: dict[str, Any]


def convert_llava(source: str, target: Path, vision_tower: Path | None = None) -> bool:
    """Convert a LLaVA-NeXT checkpoint with a Qwen2 language model.

    Args:
        source: a folder, or "hub:OWNER/NAME@REVISION".
        target: the new folder.
        vision_tower: folder with the config.json of the complete vision tower; needed if
            `mm_vision_tower` is not siglip-so400m-patch14-384.

    Returns:
        False if `target` already contains exactly this conversion.

    Raises:
        ConfigError: a malformed hub source.
        DataError: damaged or incomplete files, or missing or unexpected tensors.
        EnvironmentFault: not enough disk space, or the hub does not answer.
        OutputConflictError: `target` contains something else, or another process writes it.
        UnsupportedModelError: transformers' classes cannot express a setting.
    """
    taken = target.exists() and (not target.is_dir() or any(target.iterdir()))
    if taken and not (target / RECORD).is_file():
        rule = "exists and was not made by `sf convert`"
        raise OutputConflictError("target", str(target), rule, "give another folder")
    folder = _source_folder(source)
    plan = _plan(source, folder, vision_tower)
    partial = target.with_name(f"{target.name}.partial")
    with _locked(target, partial):
        if (target / RECORD).is_file():
            return _refuse_other(target, plan)
        _begin(partial, plan)
        _check_disk(partial, plan)
        _write(partial, plan)
        _publish(partial, target)
    return True


def _source_folder(source: str) -> Path:
    if source.startswith("hub:"):
        return hub_folder(parse_hub(source))[0]
    return Path(source)


def _plan(source: str, folder: Path, tower: Path | None) -> _Plan:
    values = read_config(folder)
    check_settings(values)
    files = weight_files(folder)
    config = converted_config(values, folder, _dtype(files), tower)
    expected = expected_tensors(config, folder)
    _check_tensors(files, expected, folder)
    processor, vocabulary = build_processor(folder, config)
    generation = generation_settings(folder, config, vocabulary)
    count = len(files)
    named = [
        (file, f"model-{at:05d}-of-{count:05d}.safetensors" if count > 1 else "model.safetensors")
        for at, file in enumerate(files, start=1)
    ]
    names = {name: new for name, (new, _) in expected.items()}
    record = {
        "source": source,
        "settings": {name: values[name] for name in SETTINGS if name in values},
        "files": {name: len(file.header(names)) + file.data for file, name in named},
    }
    record["digest"] = _digest(folder, files, config, record)
    return _Plan(config, processor, generation, named, names, record)


def _dtype(files: Sequence[WeightFile]) -> str:
    """The dtype of most weights, by torch's name."""
    sizes: dict[str, int] = {}
    for file in files:
        for entry in file.tensors.values():
            begin, end = entry["data_offsets"]
            sizes[entry["dtype"]] = sizes.get(entry["dtype"], 0) + end - begin
    known = {"BF16": "bfloat16", "F16": "float16", "F32": "float32"}
    dtype = max(sizes, key=lambda name: sizes[name])
    if dtype not in known:
        rule = f"must be one of {', '.join(known)}"
        raise DataError("dtype of the weights", dtype, rule, "convert an unquantised checkpoint")
    return known[dtype]


def _check_tensors(
    files: Sequence[WeightFile], expected: dict[str, tuple[str, list[int]]], folder: Path
) -> None:
    """Raise one error for all tensors that differ from the model's."""
    shapes = {name: entry["shape"] for file in files for name, entry in file.tensors.items()}
    faults = {
        "missing": sorted(expected.keys() - shapes.keys()),
        "unexpected": sorted(shapes.keys() - expected.keys()),
        "of another shape": [
            f"{name} {shapes[name]} instead of {expected[name][1]}"
            for name in sorted(expected.keys() & shapes.keys())
            if shapes[name] != expected[name][1]
        ],
    }
    parts = [
        f"{len(names)} {what}: {', '.join(names[:5])}{', …' if len(names) > 5 else ''}"
        for what, names in faults.items()
        if names
    ]
    if parts:
        rule = f"do not match its config.json: {'; '.join(parts)}"
        raise DataError("tensors", str(folder), rule, "give a complete LLaVA-NeXT checkpoint")


def _digest(folder: Path, files: Sequence[WeightFile], config: Any, record: dict[str, Any]) -> str:
    """Digest of a conversion's inputs: settings, small files, sizes and times of the weights."""
    small = sorted({path for kind in _SOURCE_FILES for path in folder.glob(kind)})
    weights = [
        [file.path.name, (stat := file.path.stat()).st_size, stat.st_mtime_ns] for file in files
    ]
    content = {
        "version": _VERSION,
        "small": {path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in small},
        "weights": weights,
        "config": {**config.to_dict(), "transformers_version": None},
        "files": record["files"],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True, default=str).encode()).hexdigest()


@contextmanager
def _locked(target: Path, partial: Path) -> Iterator[None]:
    """Ensure that only one process writes a target at a time."""
    target.parent.mkdir(parents=True, exist_ok=True)
    lock = FileLock(partial.with_name(f"{partial.name}.lock"))
    try:
        lock.acquire(timeout=0)
    except Timeout:
        rule = "is being written by another process"
        raise OutputConflictError("target", str(target), rule, "wait for it to end") from None
    try:
        yield
    finally:
        Path(lock.lock_file).unlink(missing_ok=True)
        lock.release()


def _refuse_other(target: Path, plan: _Plan) -> bool:
    """Return False if a finished target is this conversion; raise if it is another one."""
    whole = all(
        (target / name).is_file() and (target / name).stat().st_size == size
        for name, size in plan.record["files"].items()
    )
    if read_json(target / RECORD).get("digest") != plan.record["digest"] or not whole:
        rule = "exists and contains another conversion, or parts of one"
        raise OutputConflictError("target", str(target), rule, "delete it, or give another folder")
    return False


def _begin(partial: Path, plan: _Plan) -> None:
    """Prepare an empty partial folder, or keep one from an earlier run of this conversion."""
    record = partial / RECORD
    if partial.exists() and any(path.suffix != ".part" for path in partial.iterdir()):
        if not record.is_file():
            rule = "exists and was not made by `sf convert`"
            raise OutputConflictError("folder", str(partial), rule, "move it away")
        if read_json(record) == plan.record:
            return
        for path in partial.iterdir():  # the record is removed last, so it survives a kill
            if path != record:
                path.unlink()
    partial.mkdir(parents=True, exist_ok=True)
    write_json(record, plan.record)


def _left(partial: Path, plan: _Plan) -> list[tuple[WeightFile, str]]:
    """The weight files still to be written; existing ones are complete."""
    return [(file, name) for file, name in plan.files if not (partial / name).is_file()]


def _check_disk(partial: Path, plan: _Plan) -> None:
    needed = sum(plan.record["files"][name] for _, name in _left(partial, plan)) + _SMALL
    what = f"{needed / 2**30:.1f} GiB of converted weights"
    require_room(partial, needed, what, "give a target on a larger disk")


def _write(partial: Path, plan: _Plan) -> None:
    for part in (plan.config, plan.processor):
        part.save_pretrained(partial)
    # save_pretrained refuses sampling values with `do_sample: false`, which loading accepts.
    write_text(partial / "generation_config.json", plan.generation.to_json_string())
    left = _left(partial, plan)
    total = sum(file.data for file, _ in plan.files)
    done = total - sum(file.data for file, _ in left)
    with progress("converted, MiB", total // _MIB, done // _MIB) as counter:

        def advance(count: int) -> None:
            nonlocal done
            before, done = done, done + count
            counter.advance(done // _MIB - before // _MIB)

        for file, name in left:
            copy_renamed(file, plan.names, partial / name, advance)
    if len(plan.files) > 1:
        places = {plan.names[tensor]: name for file, name in plan.files for tensor in file.tensors}
        index = {"metadata": {"total_size": total}, "weight_map": places}
        write_json(partial / INDEX, index)


def _publish(partial: Path, target: Path) -> None:
    if target.exists():
        target.rmdir()  # checked to be empty
    os.sync()  # flush the small files too, before the name marks them as complete
    os.replace(partial, target)
