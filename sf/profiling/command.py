"""`sf profile`: any checkpoint or random-weight shape, with any method, on the local device."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

from rich.table import Table

from sf.atomic_files import write_json
from sf.baselines import TRAINED, build, resolve
from sf.errors import ConfigError, OutputConflictError
from sf.models.load import load_config
from sf.profiling.generation import Side
from sf.profiling.hardware import require_device
from sf.profiling.measurement import Settings
from sf.profiling.models import SHAPES, LoadedModel, load_by_name, load_checkpoint
from sf.profiling.replay import Replay, read_shares, replayed
from sf.profiling.study import Profiled, figures, profile
from sf.profiling.summary import FULL, MEASURED, NO_DIFFERENCE, SPARSE, three_digits
from sf.result_key.contents import digest_of
from sf.sections import Runtime
from sf.validation import validated

__all__ = ["Request", "run", "sentences", "table"]

POINTS = ".points"
METRICS = {  # title -> metric, unit of the table, factor
    "processor (ms)": ("processor_ms", 1.0),
    "prefill (ms)": ("prefill_ms", 1.0),
    "first token (ms)": ("first_token_ms", 1.0),
    "token, generate (ms)": ("decode_ms", 1.0),
    "token, loop (ms)": ("step_ms", 1.0),
    "KV cache (MiB)": ("kv_bytes", 2.0**-20),
    "peak (MiB)": ("peak_prefill_bytes", 2.0**-20),
}

ONLY_MEDIA = ("processor_ms", "first_token_ms")  # text prompts have none


@dataclass(frozen=True)
class Request:
    """The arguments of the command.

    Attributes:
        model: a key of `SHAPES`, a checkpoint's folder, or OWNER/NAME on a hub.
        method: a name of `sf.baselines.METHODS`; None for top_k or, for a checkpoint, the method
            that it was trained with.
        value: of the method's hyperparameter, or the p to take from `replay`; None for the default.
        replay: a table of the shares that each layer keeps, instead of a method; see `read_shares`.
        lengths, batch, repeats, decode_tokens, prompts, video: see `Settings`.
        find_largest, memory_limit_gib: see `Settings`.
        device, dtype: see `sf.sections.Runtime`.
        seed: of random weights.
        output: folder for tables and figures.
    """

    model: str
    method: str | None
    value: float | None
    replay: Path | None
    lengths: tuple[int, ...]
    batch: int
    repeats: int
    decode_tokens: int
    prompts: Literal["text", "video"]
    video: Path | None
    find_largest: bool
    memory_limit_gib: float
    device: str
    dtype: str
    output: Path
    seed: int = 0


def run(request: Request) -> Profiled:
    """Measure, write tables and figures into the output folder, and return the results.

    The same request continues a killed run.

    Raises:
        EnvironmentFault: a GPU is requested but not available.
        ConfigError: a value out of range, or an unknown method.
        OutputConflictError: the folder contains something else.
        DataError, UnsupportedModelError: the checkpoint is unusable.
    """
    runtime = validated(Runtime, {"device": request.device, "dtype": request.dtype})
    settings = _settings(request)
    require_device(runtime.device)
    state = _claim(request)
    name = request.model if request.model in SHAPES else Path(request.model).name

    def load(_: str) -> LoadedModel:
        if request.model in SHAPES:
            return load_by_name(request.model, Path(), request.dtype, request.device, request.seed)
        note = f"checkpoint {request.model}"
        return load_checkpoint(name, request.model, request.dtype, request.device, note)

    profiled = profile([name], load, settings, runtime, state, request.output)
    write_json(request.output / "figures.json", figures(profiled))
    return profiled


def _settings(request: Request) -> Settings:
    counts = {
        "batch": (request.batch, 1),
        "repeats": (request.repeats, 3),
        "decode_tokens": (request.decode_tokens, 1),
        "lengths": (min(request.lengths, default=0), 1),
    }
    for field, (value, least) in counts.items():
        if value < least:
            raise ConfigError(field, value, f"at least {least}")
    if request.video is not None and request.prompts != "video":
        raise ConfigError("video", str(request.video), "needs --prompts video")
    if request.video is not None and request.model in SHAPES:
        raise ConfigError(
            "video", str(request.video), "random weights have no processor and cannot read a file"
        )
    sparse, ratio_set_by = _sparse(request)
    return Settings(
        lengths=request.lengths,
        sparse=sparse,
        ratio_set_by=ratio_set_by,
        repeats=request.repeats,
        decode_tokens=request.decode_tokens,
        batch=request.batch,
        prompts=request.prompts,
        video=request.video,
        find_largest=request.find_largest,
        memory_limit_gib=request.memory_limit_gib,
    )


def _sparse(request: Request) -> tuple[Side, str]:
    """The sparse side and the origin of its token ratio."""
    if request.replay is not None:
        if request.method is not None:
            raise ConfigError("method", request.method, "excludes --replay", "give one of the two")
        shares = read_shares(request.replay, request.value)
        at = "" if request.value is None else f" at p = {request.value:g}"
        return Replay(shares), replayed(shares, f"{request.replay.name}{at}")
    if request.model in SHAPES:
        method = build(request.method or "top_k", request.value)
    else:
        method = resolve(load_config(request.model), request.method or TRAINED, request.value)
    hyperparameter = method.hyperparameter
    setting = "" if hyperparameter is None else f" at {hyperparameter.name} = {method.value:g}"
    return method, f"{method.name}{setting}"


def _claim(request: Request) -> Path:
    """The folder for the finished measurements of exactly this request."""
    folder = request.output
    if folder.exists() and (not folder.is_dir() or (any(folder.iterdir()) and not _ours(folder))):
        raise OutputConflictError(
            "output", str(folder), "contains something else", "choose another folder"
        )
    # The contents behind the same path may change.
    asked = {**vars(request), "output": None, "lengths": None}
    asked["files"] = [_facts(path) for path in (Path(request.model), request.video) if path]
    if request.replay is not None:
        asked["replay"] = read_shares(request.replay, request.value)
    return folder / POINTS / digest_of(asked)


def _facts(path: Path) -> list[tuple[str, int, int]]:
    """Name, size and modification time of a file or of a folder's files; empty if missing."""
    files = sorted(path.rglob("*")) if path.is_dir() else [path]
    stats = [(file.name, file.stat()) for file in files if file.is_file()]
    return [(name, facts.st_size, facts.st_mtime_ns) for name, facts in stats]


def _ours(folder: Path) -> bool:
    return (folder / POINTS).is_dir()


def table(profiled: Profiled) -> Table:
    """Full and sparse side by side, a row per length and metric."""
    names = ("prompt", "kept", "dense by", "figure", "full", "sparse", "full / sparse")
    grid = Table(title=str(profiled.table["ratio_set_by"].iloc[0]))
    for name in names:
        grid.add_column(name, justify="left" if name in ("dense by", "figure") else "right")
    metrics = set(profiled.table["metric"])
    for length, part in profiled.table.groupby("length", sort=True):
        cells = {(r["metric"], r["side"]): r for r in part.to_dict("records")}
        ratios = profiled.ratios[profiled.ratios["length"] == length].set_index("metric")
        kept = part[part["side"] == SPARSE]["token_ratio"].dropna()
        kept_share = f"{kept.iloc[0]:.3f}" if len(kept) else ""
        begin = [f"{length:,}", kept_share, str(part["dense"].iloc[0])]
        for title, (metric, factor) in METRICS.items():
            if metric in ONLY_MEDIA and metric not in metrics:
                continue
            ratio = _ratio(ratios.loc[metric]) if metric in ratios.index else ""
            both = [_cell(cells.get((metric, side)), factor) for side in (FULL, SPARSE)]
            grid.add_row(*begin, title, *both, ratio)
            begin = ["", "", ""]
        grid.add_section()
    return grid


def _cell(line: Any, factor: float) -> str:
    if line is None:
        return "not measured"
    if line["status"] != MEASURED:
        return str(line["status"])
    return three_digits(line["value"] * factor)


def _ratio(line: Any) -> str:
    if line["verdict"] == NO_DIFFERENCE:
        return NO_DIFFERENCE
    interval = "" if line["low"] == line["high"] else f" ({line['low']:.2f} to {line['high']:.2f})"
    return f"{line['ratio']:.2f}{interval}"


def sentences(profiled: Profiled) -> list[str]:
    """Break-even lengths, roofline shares, memory limits, and notes about the machine."""
    named = figures(profiled)
    lines = []
    for metric, phrase in (("prefill_ms", "prefill"), ("step_ms", "decoding")):
        tokens = [v for name, v in named.items() if name.endswith(f"{metric}_break_even_tokens")]
        where = f"from {tokens[0]:,.0f} tokens on" if tokens else "at no measured length"
        lines.append(f"Sparse attention is faster in {phrase} {where}.")
    lines += _shares(profiled)
    for line in profiled.largest.to_dict("records"):
        what = (
            f"longest prompt at batch {line['batch']}: {line['length']:,} tokens"
            if line["what"] == "length"
            else f"largest batch at {line['length']:,} tokens: {line['batch']}"
        )
        more = " (limit of the search: more may fit)" if line["bounded"] else ""
        lines.append(f"{line['side']}, {what}{more}.")
    limits = profiled.hardware["ceilings"]
    lines.append(
        f"Ceilings in this run: {limits['flops'] / 1e12:.3g} TFLOP/s, "
        f"{limits['bytes'] / 1e9:.3g} GB/s copied."
    )
    return lines + [f"Note: {note}." for note in profiled.hardware["notes"]]


def _shares(profiled: Profiled) -> Sequence[str]:
    whole = profiled.roofline[profiled.roofline["part"] == "whole"]
    if whole.empty:
        return []
    last = whole[whole["length"] == whole["length"].max()]
    return [
        f"{line['phase']}, {line['side']}, at {line['length']:,} tokens: {100 * line['share']:.0f} "
        f"% of the roofline (floor {line['floor_ms']:.3g} ms)."
        for line in last.to_dict("records")
    ]
