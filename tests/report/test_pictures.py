"""Pictures are written atomically, the same each time, and readable."""

from __future__ import annotations

from pathlib import Path

import made_study
import matplotlib as mpl
import pandas as pd
import PIL.Image
import pytest
from matplotlib.axes import Axes

from sf.evaluation.curve import curve_table, layer_table
from sf.plotting import OTHERS, ROWS, figure, look, save
from sf.report.curve_comparison import at_matched_ratio
from sf.report.curves import curve_picture
from sf.report.pictures import accuracy_curve_picture, layers_picture
from sf.tables import rows_at, write_csv
from sf.training.records import training_picture

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


def test_a_picture_has_the_size_that_was_asked_for_at_160_dots_an_inch(tmp_path: Path) -> None:
    save(figure(7.0, 3.0)[0], tmp_path, "size")
    with PIL.Image.open(tmp_path / "size.png") as image:
        assert image.size == (1120, 480)


def drawn(panel: Axes) -> list[tuple[list[float], list[float]]]:
    """The points of each errorbar's or plot's line in a panel."""
    return [
        (list(line.get_xdata()), list(line.get_ydata()))
        for line in panel.get_lines()
        if line.get_linestyle() != "None" and len(line.get_xdata()) > 1
    ]


def test_the_layers_picture_shows_each_layers_token_ratio_at_its_p() -> None:
    tables = {"base": layer_table(made_study.BEFORE, 0), "x": layer_table(made_study.AFTER, 0)}
    picture = layers_picture(tables, 0.9, "where it is from")
    assert picture is not None
    (panel,) = picture.axes
    for (_, ratios), table in zip(drawn(panel), tables.values(), strict=True):
        assert ratios == table[table["retention_p"] == 0.9]["token_ratio"].tolist()
    assert "0.9" in panel.get_title(loc="left")
    assert "where it is from" in str(picture.get_supxlabel())


def test_a_threshold_is_found_in_a_table_that_was_written(tmp_path: Path) -> None:
    """A CSV holds six digits of it."""
    answers = made_study.BEFORE.assign(
        retention_p=made_study.BEFORE["retention_p"].replace(0.9, 0.1234567891)
    )
    write_csv(layer_table(answers, 0), tmp_path / "layers.csv")
    picture = layers_picture({"base": pd.read_csv(tmp_path / "layers.csv")}, 0.1234567891, "x")
    assert picture is not None
    assert len(rows_at(answers, "retention_p", 0.1234567)) == made_study.ROWS
    assert rows_at(answers, "retention_p", 0.12346).empty


def test_the_accuracy_curve_picture_shows_accuracy_against_token_ratio() -> None:
    matched = {"sparsity_forcing": at_matched_ratio(made_study.BEFORE, made_study.AFTER, 0)}
    left, right = accuracy_curve_picture(CURVES, matched, "x").axes
    for (ratios, accuracies), curve in zip(drawn(left), CURVES.values(), strict=True):
        every = curve[curve["media"] == "all"].sort_values("token_ratio")
        assert ratios == every["token_ratio"].tolist()
        assert accuracies == every["accuracy"].tolist()
    inside = matched["sparsity_forcing"].query("verdict != 'outside'")
    (points,) = (container.lines[0] for container in right.containers)
    assert list(points.get_xdata()) == inside["token_ratio"].tolist()
    assert list(points.get_ydata()) == pytest.approx((100 * inside["difference"]).tolist())


def test_the_training_picture_shows_every_logged_value() -> None:
    history = pd.DataFrame({"step": range(1, 61), "kl": [0.01 * step for step in range(60)]})
    picture = training_picture(history, "x")
    assert picture is not None
    (panel,) = (axes for axes in picture.axes if axes.get_visible())
    smooth, single = drawn(panel)
    assert single == (history["step"].tolist(), history["kl"].tolist())
    assert smooth[0] == history["step"].tolist()
    assert smooth[1][10] == pytest.approx(history["kl"][9:12].mean())


def test_drawing_leaves_matplotlib_as_it_was() -> None:
    before = dict(mpl.rcParams)
    curve_picture(CURVES, "x")
    assert dict(mpl.rcParams) == before


def test_axes_say_what_they_show() -> None:
    matched = {"sparsity_forcing": at_matched_ratio(made_study.BEFORE, made_study.AFTER, 0)}
    layers = {"base": layer_table(made_study.BEFORE, 0)}
    history = pd.DataFrame({"step": [1, 2], "reward": [0.1, 0.2], "kl": [0.0, 0.1]})
    pictures = [
        accuracy_curve_picture(CURVES, matched, "x"),
        layers_picture(layers, 0.9, "x"),
        training_picture(history, "x"),
    ]
    for picture in pictures:
        assert picture is not None
        for panel in picture.axes:
            if panel.axison and panel.get_visible():
                assert panel.get_xlabel()
                assert panel.get_ylabel()
                assert panel.get_title(loc="left")


def test_nothing_to_show_is_no_picture() -> None:
    assert layers_picture({"base": layer_table(made_study.BEFORE, 0)}, 0.42, "x") is None
    assert training_picture(pd.DataFrame({"step": []}), "x") is None


def test_systems_differ_in_colour_and_marker() -> None:
    looks = [ROWS["full"], ROWS["zipvl"], ROWS["sparsity_forcing"], *OTHERS]
    assert len({each.colour for each in looks}) == len(looks)
    assert len({each.marker for each in looks}) == len(looks)
    names = ["pathwise", "sharpness"]
    assert look("pathwise", names) != look("sharpness", names)


def test_a_failed_save_leaves_the_old_picture(tmp_path: Path) -> None:
    save(figure(2, 1)[0], tmp_path, "a")
    old = (tmp_path / "a.png").read_bytes()
    broken, _ = figure(2, 1)

    def half(part: Path, **_: object) -> None:
        part.write_bytes(b"half")
        raise OSError("No space left on device")

    broken.savefig = half  # type: ignore[method-assign, assignment]
    with pytest.raises(OSError, match="No space left"):
        save(broken, tmp_path, "a")
    assert (tmp_path / "a.png").read_bytes() == old
    assert sorted(path.name for path in tmp_path.iterdir()) == ["a.png", "a.svg"]
