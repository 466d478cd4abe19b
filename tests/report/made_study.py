"""A small study made by hand: results as the stages leave them, with known figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sf.evaluation.benchmarks import BENCHMARKS
from sf.evaluation.curve import curve_table, layer_table
from sf.profiling.roofline import ROOFLINE, Ceilings, Work, roofline_lines
from sf.profiling.summary import LINE, NOTES, SPEEDUP, speedups, tidy
from sf.profiling.timing import Run
from sf.report.results import Study
from sf.tables import write_csv, write_parquet

MODEL = "tiny"
GRID = (0.5, 0.9, 0.975, 1.0)
ROWS = 200


def stamp(folder: Path, stage: str, **parameters: Any) -> None:
    """A stage.json as the runner writes it."""
    folder.mkdir(parents=True, exist_ok=True)
    content = {
        "stage": stage,
        "key": f"{abs(hash(str(folder))):016x}",
        "parameters": parameters,
        "commit": "0123456789abcdef",
        "dirty": False,
        "seconds": 12.5,
        "command": f"sf run {stage}",
        "files": {},
        "hardware": {"cpu": "a <CPU> & more", "cores": 2},
        "versions": {"torch": "2.13.0", "transformers": "5.23.0"},
    }
    (folder / "stage.json").write_text(json.dumps(content))


def answers(accuracy: dict[float, float], ratio: dict[float, float]) -> pd.DataFrame:
    """Rows of which exactly the requested share is right, the easy ones first."""
    rng = np.random.default_rng(0)
    noise = rng.normal(0.0, 0.02, ROWS)
    return pd.DataFrame(
        [
            {
                "retention_p": p,
                "id": str(row),
                "data_type": "video" if row % 4 == 0 else "image",
                "correct": float(row < accuracy[p] * ROWS),
                "token_ratio": 1.0 if p == 1 else ratio[p] + noise[row],
                "layer_ratios": [1.0, 1.0]
                if p == 1
                else [ratio[p] + noise[row] - 0.1, ratio[p] + noise[row] + 0.1],
                "prompt_tokens": 80,
                "seconds": 0.01,
            }
            for p in accuracy
            for row in range(ROWS)
        ]
    )


BEFORE = answers(
    dict(zip(GRID, (0.3, 0.7, 0.9, 0.95), strict=True)),
    dict(zip(GRID, (0.2, 0.6, 0.8, 1.0), strict=True)),
)
AFTER = answers(
    dict(zip(GRID, (0.6, 0.85, 0.9, 0.93), strict=True)),
    dict(zip(GRID, (0.3, 0.55, 0.7, 1.0), strict=True)),
)


def write_curve(folder: Path, stage: str, table: pd.DataFrame, split: str) -> None:
    """A finished calibrate stage."""
    stamp(folder, stage, seed=0, split=split)
    write_parquet(table, folder / "tables/answers.parquet")
    write_csv(curve_table(table, 0), folder / "tables/curve.csv")
    write_csv(layer_table(table, 0), folder / "tables/layers.csv")
    second = {"retention_p": 0.9, "pairs": 80, "media": 60, "token_ratio": 0.6}
    arms = {"dense": 0.95, "whole": 0.9, "pruned": 0.8, "anew": 0.85}
    costs = {"cost": -0.1, "cost_low": -0.2, "cost_high": 0.0}
    gaps = {"gap": -0.15, "gap_low": -0.25, "gap_high": -0.05}
    write_csv(pd.DataFrame([{**second, **arms, **costs, **gaps}]), folder / "tables/two_turn.csv")


def write_scores(folder: Path, share: float, ratio: float) -> None:
    """A finished evaluation of all benchmarks, each at the same share of its scale."""
    stamp(folder, "evaluate", evaluate={"retention_p": 0.975})
    lines = [
        {
            "benchmark": benchmark.name,
            "score": share * benchmark.scale,
            "low": (share - 0.1) * benchmark.scale,
            "high": (share + 0.1) * benchmark.scale,
            "scale": benchmark.scale,
            "samples": 24,
            "token_ratio": ratio,
            "token_ratio_low": ratio - (0.05 if ratio < 1 else 0.0),
            "token_ratio_high": ratio + (0.05 if ratio < 1 else 0.0),
        }
        for benchmark in BENCHMARKS
    ]
    write_csv(pd.DataFrame(lines), folder / "tables/scores.csv")


def write_profile(folder: Path) -> None:
    """A finished profile: faster at 2048 tokens, no difference at 1024."""
    stamp(folder, "profile")
    lines, pairs = [], []
    for length, sparse in ((1024, [9.0, 11.0] * 3), (2048, [5.0] * 6)):
        runs = {
            "full": Run(
                [10.0] * 6, [2.0] * 6, {"mlp": [6.0] * 6}, 4 * length, 9, 9, 1.0, [2.0] * 6
            ),
            "sparse": Run(sparse, [1.0] * 6, {"mlp": [3.0] * 6}, length, 9, 9, 0.25, [1.0] * 6),
        }
        note = {"weights": "random", "ratio_set_by": "top-k 0.25", "note": "made"}
        note["dense"] = "SDPA flash"
        lines += [{**line, **note} for line in tidy("shape", length, 1, runs)]
        pairs += [{**line, **note} for line in speedups("shape", length, 1, runs)]
    write_csv(pd.DataFrame(lines, columns=[*LINE, *NOTES]), folder / "tables/profile.csv")
    write_csv(pd.DataFrame(pairs, columns=[*SPEEDUP, *NOTES]), folder / "tables/speedup.csv")
    head = {"model": "shape", "length": 2048, "batch": 1, "side": "full"}
    work = {"mlp": Work(3e9, 1e6)}
    floors = roofline_lines(head, "prefill", work, {"whole": 12.0}, Ceilings(1e12, 1e12))
    write_csv(pd.DataFrame(floors, columns=list(ROOFLINE)), folder / "tables/roofline.csv")
    (folder / "hardware.json").write_text(json.dumps({"notes": ["the CPU was busy"]}))
    (folder / "metrics.json").write_text('{"shape_prefill_ms_break_even_tokens": 2048.0}')


def study_at(root: Path) -> Study:
    """The study's axes."""
    return Study(root, (MODEL,), ("full", "zipvl"), ("sparsity_forcing",), ("all",))


def write_study(root: Path) -> Study:
    """All results of a small study."""
    study = study_at(root)
    stamp(root / "prepare", "prepare")
    stamp(root / "benchmarks", "benchmarks", benchmarks={"source": "synthetic"})
    write_curve(root / f"calibrate/{MODEL}", "calibrate", BEFORE, "calibration")
    write_curve(root / f"accuracy_curve/{MODEL}/base", "calibrate", BEFORE, "heldout")
    write_curve(
        root / f"accuracy_curve/{MODEL}/sparsity_forcing/seed0", "calibrate", AFTER, "heldout"
    )
    train = root / f"train/{MODEL}/sparsity_forcing/seed0"
    stamp(train, "train")
    history = [{"step": s, "reward": 0.5, "accuracy": 0.5, "kl": 0.1} for s in (1, 2, 2, 3)]
    (train / "history.jsonl").write_text("".join(json.dumps(h) + "\n" for h in history))
    for row, share, ratio in (
        ("full", 0.8, 1.0),
        ("zipvl", 0.7, 0.8),
        ("sparsity_forcing/seed0", 0.75, 0.5),
    ):
        write_scores(root / f"evaluate/{MODEL}/{row}/all", share, ratio)
    write_profile(root / f"profile/{MODEL}")
    return study
