"""Replay of recorded shares of kept tokens, layer by layer, on random weights.

Random weights do not concentrate attention. Each layer therefore keeps the share that a trained
model kept, read from a table (`tables/layers.csv` of `sf profile` or of the stage `calibrate`).
Layers then differ as in the trained model, and selection still reads the scores at its full cost.
"""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from sf.attention import Trace, sparsify
from sf.errors import ConfigError, DataError
from sf.selection import LayerShares
from sf.tables import rows_at

__all__ = ["Replay", "read_shares", "replayed", "stretched"]


@dataclass(frozen=True)
class Replay:
    """Sparse attention with recorded shares (a `Side` of `sf.profiling.generation`).

    Attributes:
        shares: one per layer of the recorded model, in [0, 1].
    """

    shares: tuple[float, ...]

    def apply(self, model: Any) -> AbstractContextManager[Trace]:
        """Run the model under the shares, interpolated over its layers."""
        layers = model.config.get_text_config().num_hidden_layers
        return sparsify(model, LayerShares(shares=stretched(self.shares, layers)))


def stretched(shares: Sequence[float], layers: int) -> tuple[float, ...]:
    """Shares for another number of layers, linearly interpolated in relative depth (ours)."""
    depth = np.linspace(0.0, 1.0, layers)
    recorded = np.linspace(0.0, 1.0, len(shares))
    return tuple(float(share) for share in np.interp(depth, recorded, shares))


def replayed(shares: Sequence[float], source: str) -> str:
    """The origin of the token ratio, for the tables."""
    mean = float(np.mean(shares))
    return f"shares of {len(shares)} layers (mean {mean:.3f}) replayed from {source}"


def read_shares(file: Path, retention_p: float | None = None) -> tuple[float, ...]:
    """The shares of a table of layers.

    Args:
        file: CSV with the columns `layer` (from 0) and `token_ratio`, and optionally `retention_p`
            (several values need a choice), `length` (the longest is taken), `model` and `batch`
            (a single value each).
        retention_p: the threshold whose lines are read.

    Raises:
        DataError: the table is missing, or lacks a share in (0, 1] for a layer.
        ConfigError: `retention_p` is needed but missing, or unknown.
    """
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise DataError("replay", str(file), f"it is not a table: {error}") from error
    if not {"layer", "token_ratio"} <= set(table.columns):
        raise DataError(
            "replay",
            str(file),
            "it lacks the columns layer and token_ratio",
            "use tables/layers.csv of sf profile or of the stage calibrate",
        )
    if "length" in table:
        table = table[table["length"] == table["length"].max()]
    if "retention_p" in table:
        known = sorted(table["retention_p"].unique())
        if retention_p is None and len(known) == 1:
            retention_p = known[0]
        if retention_p is None or rows_at(table, "retention_p", retention_p).empty:
            rule = f"{file} has retention_p = {', '.join(f'{value:g}' for value in known)}"
            raise ConfigError("value", retention_p, rule)
        table = rows_at(table, "retention_p", retention_p)
    elif retention_p is not None:
        rule = f"{file} has no column retention_p to choose from"
        raise ConfigError("value", retention_p, rule, "omit it")
    table = table.sort_values("layer")
    shares = table["token_ratio"].to_numpy(dtype=np.float64)
    whole = list(table["layer"]) == list(range(len(table))) and len(table) > 0
    if not whole or not bool(((shares > 0) & (shares <= 1)).all()):
        raise DataError(
            "replay", str(file), "it must have one share in (0, 1] for every layer, from 0 on"
        )
    return tuple(float(share) for share in shares)
