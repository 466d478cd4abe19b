"""Finished results for the report: folder, stamp, tables, history."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from sf.errors import DataError
from sf.fields import flat
from sf.history import history_table
from sf.layout import FOLDERS, STAMP, TRAINED
from sf.result_key.stamp import read_stamp

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Result", "Study"]


@dataclass(frozen=True)
class Result:
    """One finished stage.

    Attributes:
        kind: key of `sf.layout.FOLDERS`.
        axes: the folder's axes, e.g. {"model": ..., "row": ...}.
        folder: its folder.
        stamp: content of its stage.json.
    """

    kind: str
    axes: dict[str, str]
    folder: Path
    stamp: dict[str, Any]

    @property
    def parameters(self) -> dict[str, Any]:
        """The parameters of the stage by dotted name."""
        return flat(self.stamp["parameters"])

    @property
    def run(self) -> str:
        """First characters of the key of parameters, inputs and code."""
        return str(self.stamp["key"])[:8]

    @property
    def commit(self) -> str:
        """Short commit, with "+" if tracked files were changed."""
        return str(self.stamp["commit"])[:7] + ("+" if self.stamp.get("dirty") else "")

    def table(self, name: str) -> pd.DataFrame:
        """`tables/NAME`, a CSV or parquet file.

        Raises:
            DataError: the result has no such table.
        """
        import pandas as pd  # takes 0.4 s, and the stage's module must import quickly

        path = self.folder / "tables" / name
        if not path.is_file():
            raise DataError(
                "table", str(path), f"the {self.kind} stage did not write it", "run it again"
            )
        return pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path)

    def history(self) -> pd.DataFrame:
        """Metrics per step (`sf.history.history_table`)."""
        return history_table(self.folder)


@dataclass(frozen=True)
class Study:
    """The results of one scale.

    Attributes:
        root: their folder, `results/SCALE`.
        models, methods, objectives, suites, seeds, curve_methods: the axes. Without a seed, the
            first one is meant.
        without: rows that a model does not have, by model.
    """

    root: Path
    models: tuple[str, ...]
    methods: tuple[str, ...]
    objectives: tuple[str, ...]
    suites: tuple[str, ...]
    seeds: tuple[int, ...] = (0,)
    curve_methods: tuple[str, ...] = ()
    without: Mapping[str, Sequence[str]] = field(default_factory=dict)

    def has_row(self, model: str, row: str) -> bool:
        """Whether a model has a row of the tables."""
        return row not in self.without.get(model, ())

    def folder(self, kind: str, **axes: str) -> Path:
        """The folder of a result below `root`; a row may be an objective, with a `seed`."""
        pattern = FOLDERS[kind].removeprefix("results/{scale}/")
        seed = axes.pop("seed", str(self.seeds[0]))
        if axes.get("row") in self.objectives:
            axes["row"] = TRAINED.format(objective=axes["row"], train_seed=seed)
        return self.root / pattern.format(train_seed=seed, **axes)

    def shown(self, result: Result) -> bool:
        """Whether a table with one line per row shows it, i.e. no further training seed."""
        return result.axes.get("seed", str(self.seeds[0])) == str(self.seeds[0])

    def result(self, kind: str, **axes: str) -> Result | None:
        """A finished result, or None if the stage has not run."""
        folder = self.folder(kind, **axes)
        stamp = read_stamp(folder / STAMP)
        return None if stamp is None else Result(kind, axes, folder, stamp)

    def everything(self) -> list[Result]:
        """All finished results that the report can show, in stage order."""
        results = [self.result(kind, **axes) for kind, axes in self._wanted()]
        return [result for result in results if result is not None]

    def missing(self) -> list[str]:
        """Folders below `root` of the results that the report could show but that are missing."""
        return [
            self.folder(kind, **axes).relative_to(self.root).as_posix()
            for kind, axes in self._wanted()
            if self.result(kind, **axes) is None
        ]

    def _wanted(self) -> list[tuple[str, dict[str, str]]]:
        wanted: list[tuple[str, dict[str, str]]] = [("prepare", {})]
        wanted += [("benchmarks", {})] if self.suites else []
        for model in self.models:
            named = {"model": model}
            wanted += [("base", named), ("calibrate", named)]
            trained = [
                {**named, "row": name, "seed": str(seed)}
                for name in self.objectives
                for seed in self.seeds
            ]
            wanted += [
                ("train", {**named, "objective": one["row"], "seed": one["seed"]})
                for one in trained
            ]
            untrained = [{**named, "row": name} for name in ("base", *self.curve_methods)]
            wanted += [("accuracy_curve", one) for one in (*untrained, *trained)]
            wanted += [
                ("evaluate", {**one, "suite": suite})
                for one in (*({**named, "row": method} for method in self.methods), *trained)
                for suite in self.suites
            ]
            wanted.append(("profile", named))
        wanted += [("previews", {"suite": suite}) for suite in self.suites]
        return [
            (kind, axes)
            for kind, axes in wanted
            if self.has_row(axes.get("model", ""), axes.get("row", axes.get("objective", "")))
        ]
