"""Pictures: written whole, the same each time, readable."""

from __future__ import annotations

from pathlib import Path

import made_study
import matplotlib as mpl
import pandas as pd
import PIL.Image
import pytest

from sf.evaluation.curve import curve_table, layer_table
from sf.report.curves import curve_picture, layer_picture
from sf.report.matched import at_matched_ratio
from sf.report.pictures import frontier_picture, history_picture, layers_picture
from sf.report.style import OTHERS, SYSTEMS, figure, look, save

CURVES = {
    "base": curve_table(made_study.BEFORE, 0),
    "sparsity_forcing": curve_table(made_study.AFTER, 0),
}


def test_a_picture_is_the_same_each_time(tmp_path: Path) -> None:
    for folder in ("one", "two"):
        save(curve_picture(CURVES, "somewhere"), tmp_path / folder, "curve")
    for suffix in ("png", "svg"):
        first, second = ((tmp_path / f / f"curve.{suffix}").read_bytes() for f in ("one", "two"))
        assert first == second
    assert {path.name for path in (tmp_path / "one").iterdir()} == {"curve.png", "curve.svg"}


def test_pictures_are_large_enough_to_print(tmp_path: Path) -> None:
    save(layer_picture({"base": layer_table(made_study.BEFORE, 0)}, "x"), tmp_path, "layers")
    with PIL.Image.open(tmp_path / "layers.png") as image:
        assert image.width >= 800


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    curve_picture(CURVES, "x")
    assert dict(mpl.rcParams) == before


def test_axes_say_what_they_show() -> None:
    matched = {"sparsity_forcing": at_matched_ratio(made_study.BEFORE, made_study.AFTER, 0)}
    layers = {"base": layer_table(made_study.BEFORE, 0)}
    history = pd.DataFrame({"step": [1, 2], "reward": [0.1, 0.2], "kl": [0.0, 0.1]})
    pictures = [
        frontier_picture(CURVES, matched, "x"),
        layers_picture(layers, 0.9, "x"),
        history_picture(history, "x"),
    ]
    for picture in pictures:
        assert picture is not None
        for panel in picture.axes:
            if panel.axison:
                assert panel.get_xlabel()
                assert panel.get_ylabel()
                assert panel.get_title(loc="left")


def test_nothing_to_show_is_no_picture() -> None:
    assert layers_picture({"base": layer_table(made_study.BEFORE, 0)}, 0.42, "x") is None
    assert history_picture(pd.DataFrame({"step": []}), "x") is None


def test_systems_differ_in_colour_and_marker() -> None:
    looks = [SYSTEMS["full"], SYSTEMS["zipvl"], SYSTEMS["sparsity_forcing"], *OTHERS]
    assert len({each.colour for each in looks}) == len(looks)
    assert len({each.marker for each in looks}) == len(looks)
    names = ["pathwise", "sharpness"]
    assert look("pathwise", names) != look("sharpness", names)


def test_a_failed_save_leaves_the_old_picture(tmp_path: Path) -> None:
    save(figure(2, 1)[0], tmp_path, "a")
    old = (tmp_path / "a.png").read_bytes()
    broken, axes = figure(2, 1)
    axes[0][0].set_title("$\\notacommand{$")
    with pytest.raises(ValueError, match=r"notacommand|Expected"):
        save(broken, tmp_path, "a")
    assert (tmp_path / "a.png").read_bytes() == old
