"""Text of models and data in every kind of file and picture."""

from __future__ import annotations

import re
import warnings
from html.parser import HTMLParser
from pathlib import Path
from xml.etree import ElementTree

import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st

from sf.escaping import encodable, markdown, printable
from sf.plotting import figure, note, save, write_figure
from sf.tables import table_of, write_csv, write_parquet

HOSTILE = (
    "a\rb",
    "a\r\nb",
    "nul \0 bell \7",
    "\x1b[31mred\x1b[0m \x9b2J",
    "\x1b]8;;http://evil\7link",
    "half \ud83d and \udc00",
    "separators \u2028 \u2029 \x85 \x1c",
    "right to left \u202e mark",
    'quotes " and, commas',
    "$x_{$ and $$ and \\$",
    "| pipe | `code` | *bold* | _it_ | [a](javascript:x) | ![i](x)",
    "<script>alert(1)</script><img src=x onerror=y> &lt;b&gt;",
    "line\nfeed\ttab",
    "  007",
    "NA",
    "",
)
ANY_TEXT = st.text(st.characters(codec=None, exclude_categories=()))
CONTROL = re.compile("[\0-\x08\x0b-\x1f\x7f-\x9f\u2028\u2029\u202e\ud800-\udfff]")


@given(ANY_TEXT)
def test_printable_leaves_nothing_that_a_terminal_obeys(text: str) -> None:
    shown = printable(text)
    assert not CONTROL.search(shown)
    assert printable(shown) == shown
    shown.encode()


def test_plain_text_is_left_alone() -> None:
    for text in ("a\tb\nc é 中 \U0001f468\u200d\U0001f469 x_y 5 % (1)", "sparsity_forcing 0.975"):
        assert printable(text) == encodable(text) == text
    assert markdown("sparsity_forcing: 62.1 (+1.2 to 3.4), p = 0.975") == (
        "sparsity_forcing: 62.1 (+1.2 to 3.4), p = 0.975"
    )


@pytest.mark.parametrize("text", HOSTILE)
def test_a_csv_table_keeps_its_rows_and_columns(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.csv"
    write_csv(
        table_of([{"id": 1, "reply": text, "b": "x"}, {"id": 2, "reply": "y", "b": text}]), path
    )
    table = pd.read_csv(path, keep_default_na=False, dtype={"reply": str, "b": str})
    assert table["id"].tolist() == [1, 2]
    assert table["reply"].tolist() == [printable(text), "y"]
    assert table["b"].tolist() == ["x", printable(text)]
    assert not re.search("[\0-\x08\x0b-\x1f\x7f-\x9f]", path.read_text(encoding="utf-8"))


def test_csv_escapes_names_of_columns_and_mixed_cells(tmp_path: Path) -> None:
    table = pd.DataFrame([[0.123456789, "n/p\r"], [1, 2.123456789]], columns=["a\rb", "c"])
    write_csv(table, tmp_path / "t.csv")
    assert (tmp_path / "t.csv").read_bytes() == b"a\\rb,c\n0.123457,n/p\\r\n1,2.123456789\n"


@pytest.mark.parametrize("text", HOSTILE)
def test_parquet_keeps_every_text_that_utf8_can_hold(tmp_path: Path, text: str) -> None:
    path = tmp_path / "t.parquet"
    write_parquet(table_of([{"reply": text}]), path)
    assert pd.read_parquet(path)["reply"].tolist() == [encodable(text)]


@pytest.mark.parametrize("text", HOSTILE)
def test_a_markdown_cell_stays_a_cell_without_markup(text: str) -> None:
    cell = markdown(text)
    assert not re.search(r"(?<!\\)[|`*\[\]~$]", cell)
    assert "\n" not in cell
    assert not re.search(r"<|&(?!amp;|lt;|gt;)", cell)


def test_figures_draw_any_text(tmp_path: Path) -> None:
    texts = [text[:12] for text in HOSTILE if text]
    fig, axes = figure(9.0, 9.0, columns=2)
    left, right = axes[0]
    left.barh(texts, range(len(texts)))
    right.set_yticks(range(len(texts)), texts)
    for text in texts:
        right.plot([0, 1], label=f"legend {text}")
    right.legend()
    left.set_title("\n".join(texts))
    note(fig, "".join(texts))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", "Glyph")
        save(fig, tmp_path, "f")
        write_figure(fig, tmp_path / "again.pdf")
    ElementTree.parse(tmp_path / "f.svg")
    assert (tmp_path / "f.png").stat().st_size
    assert (tmp_path / "again.pdf").read_bytes().startswith(b"%PDF")


class Tags(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.names: list[str] = []

    def handle_starttag(self, tag: str, attrs: object) -> None:
        self.names.append(tag)


def test_the_pages_of_a_report_show_text_as_text(tmp_path: Path) -> None:
    from sf.report.benchmark_tables import Cell
    from sf.report.page import Page, Section, Table, write_page

    def page(texts: tuple[str, ...]) -> Page:
        rows = [[Cell(text, text, text)] for text in texts]
        return Page("t", texts, [Section("s", texts, texts, [Table("x", texts[0], ["a"], rows)])])

    pages = []
    hostile = tuple(text for text in HOSTILE if text)
    for name, texts in (("plain", ("x",) * len(hostile)), ("hostile", hostile)):
        write_page(page(texts), tmp_path / name)
        content = (tmp_path / name / "index.html").read_text(encoding="utf-8")
        tags = Tags()
        tags.feed(content)
        pages.append(tags.names)
        report = (tmp_path / name / "report.md").read_text(encoding="utf-8")
        assert not CONTROL.search(content + report)
        assert "<script" not in report
    assert pages[0] == pages[1]
