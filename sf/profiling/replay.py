"""Shares of kept tokens, recorded layer by layer in a real run, for weights that have none.

Random weights do not concentrate attention. The share that a trained model kept in each layer is
read from a table (`tables/layers.csv` of `sf profile` or of the stage `calibrate`) and kept again:
layers differ as they do there, while selection still reads the scores and costs what it costs.
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
        shares: one per layer of the model that was recorded, in [0, 1].
    """

    shares: tuple[float, ...]

    def apply(self, model: Any) -> AbstractContextManager[Trace]:
        """The model under the shares, stretched over its layers."""
        layers = model.config.get_text_config().num_hidden_layers
        return sparsify(model, LayerShares(shares=stretched(self.shares, layers)))


def stretched(shares: Sequence[float], layers: int) -> tuple[float, ...]:
    """The shares of another number of layers: linear in a layer's relative depth (ours)."""
    depth = np.linspace(0.0, 1.0, layers)
    recorded = np.linspace(0.0, 1.0, len(shares))
    return tuple(float(share) for share in np.interp(depth, recorded, shares))


def replayed(shares: Sequence[float], source: str) -> str:
    """How such a ratio came about, for the tables."""
    mean = float(np.mean(shares))
    return f"shares of {len(shares)} layers (mean {mean:.3f}) replayed from {source}"


def read_shares(file: Path, retention_p: float | None = None) -> tuple[float, ...]:
    """The shares of a table of layers.

    Args:
        file: CSV with the columns `layer` (from 0) and `token_ratio`; further ones say what was
            recorded: `retention_p` (several values need a choice), `length` (the longest is taken),
            `subject` and `batch` (one each).
        retention_p: which threshold's lines.

    Raises:
        DataError: no such table, or not one share in (0, 1] for every layer.
        ConfigError: `retention_p` is needed, or not there.
    """
    try:
        table = pd.read_csv(file)
    except (OSError, ValueError) as error:
        raise DataError("replay", str(file), f"it is no table: {error}") from error
    if not {"layer", "token_ratio"} <= set(table.columns):
        raise DataError(
            "replay",
            str(file),
            "its columns are not layer and token_ratio",
            "take tables/layers.csv of sf profile or of the stage calibrate",
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
        rule = f"{file} has no column retention_p to choose in"
        raise ConfigError("value", retention_p, rule, "leave it away")
    table = table.sort_values("layer")
    shares = table["token_ratio"].to_numpy(dtype=np.float64)
    whole = list(table["layer"]) == list(range(len(table))) and len(table) > 0
    if not whole or not bool(((shares > 0) & (shares <= 1)).all()):
        raise DataError(
            "replay", str(file), "it must hold one share in (0, 1] for every layer, from 0 on"
        )
    return tuple(float(share) for share in shares)
