"""The parts of a report, and their output as Markdown and as one HTML page."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path

import jinja2
import pandas as pd
import PIL.Image

from sf.atomic_files import write_text
from sf.escaping import encodable, printable
from sf.escaping import markdown as escaped
from sf.report.benchmark_tables import Cell
from sf.tables import write_csv

SCREEN_PIXELS = 0.6  # largest display width per pixel of a picture (160 pixels per inch)

__all__ = [
    "Page",
    "Picture",
    "Section",
    "Table",
    "embedded",
    "markdown_table",
    "page_environment",
    "sort_script",
    "write_page",
]


@dataclass(frozen=True)
class Picture:
    """A figure in `figures/NAME.png` and `.svg` below the report's folder."""

    name: str
    caption: str


@dataclass(frozen=True)
class Table:
    """A table of cells.

    Attributes:
        name: of its CSV file.
        caption: above the table.
        header: column titles; the first `keys` of them name a row.
        rows: one list of cells per row, as long as the header.
        keys: number of columns that name a row.
        quiet: indices of muted rows (published values next to measured ones).
    """

    name: str
    caption: str
    header: Sequence[str]
    rows: Sequence[Sequence[Cell]]
    keys: int = 1
    quiet: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Section:
    """A part of the report under one heading; `notes` are highlighted at its start."""

    title: str
    text: Sequence[str] = ()
    notes: Sequence[str] = ()
    tables: Sequence[Table] = ()
    pictures: Sequence[Picture] = ()

    @property
    def anchor(self) -> str:
        """The heading as a URL fragment."""
        return "-".join("".join(c if c.isalnum() else " " for c in self.title.lower()).split())


@dataclass(frozen=True)
class Page:
    """The complete report; it starts with sentences and a picture."""

    title: str
    lead: Sequence[str]
    sections: Sequence[Section] = field(default_factory=list)
    verdict: Sequence[str] = ()
    picture: Picture | None = None


def write_page(page: Page, folder: Path) -> None:
    """Write `report.md`, `index.html` (self-contained) and `tables/*.csv` into a folder.

    The page's pictures must already exist. The verdict's sentences are also written to
    `verdict.txt`, one per line.
    """
    for table in (table for section in page.sections for table in section.tables):
        write_csv(_frame(table), folder / "tables" / f"{table.name}.csv")
    write_text(folder / "report.md", markdown(page))
    write_text(folder / "index.html", html(page, folder))
    if page.verdict:
        write_text(folder / "verdict.txt", "".join(f"{line}\n" for line in page.verdict))


def _plain(cell: Cell) -> str:
    return f"{cell.text} ({cell.interval})" if cell.interval else cell.text


def _frame(table: Table) -> pd.DataFrame:
    rows = [[encodable(_plain(cell)) for cell in row] for row in table.rows]
    return pd.DataFrame(rows, columns=[encodable(title) for title in table.header])


def markdown(page: Page) -> str:
    """The report as Markdown, with relative links to pictures."""
    parts = [f"# {escaped(page.title)}"]
    parts += [f"**{escaped(sentence)}**" for sentence in page.verdict]
    parts += _markdown_picture(page.picture) if page.picture is not None else []
    parts += map(escaped, page.lead)
    parts.append("\n".join(f"- [{escaped(s.title)}](#{s.anchor})" for s in page.sections))
    for section in page.sections:
        parts.append(f"## {escaped(section.title)}")
        parts += [f"> **Note.** {escaped(note)}" for note in section.notes]
        parts += map(escaped, section.text)
        for table in section.tables:
            parts += [f"**{escaped(table.caption)}**", markdown_table(table)]
        for picture in section.pictures:
            parts += _markdown_picture(picture)
    return "\n\n".join(parts) + "\n"


def _markdown_picture(picture: Picture) -> list[str]:
    caption = escaped(picture.caption)
    return [f"![{caption}](figures/{picture.name}.png)", f"*{caption}*"]


def markdown_table(table: Table) -> str:
    """A table as Markdown, without its caption."""

    def line(cells: Iterable[str]) -> str:
        return "| " + " | ".join(cells) + " |"

    rule = ["---" if at < table.keys else "---:" for at in range(len(table.header))]

    def linked(cell: Cell) -> str:
        text = escaped(_plain(cell))
        return f"[{text}]({cell.link})" if cell.link else text

    rows = [map(linked, row) for row in table.rows]
    return "\n".join([line([*map(escaped, table.header)]), line(rule), *map(line, rows)])


def html(page: Page, folder: Path) -> str:
    """The report as one HTML page with embedded pictures.

    Args:
        page: the report.
        folder: that contains `figures/`.
    """

    def width(name: str) -> int:
        with PIL.Image.open(folder / "figures" / f"{name}.png") as image:
            return round(SCREEN_PIXELS * image.width)

    template = page_environment().get_template("page.html.jinja")
    given = {
        "page": page,
        "embedded": partial(embedded, folder),
        "width": width,
        "sort": sort_script(),
    }
    return printable(template.render(**given))


def page_environment() -> jinja2.Environment:
    """The environment that renders the page templates."""
    environment = jinja2.Environment(
        loader=jinja2.FileSystemLoader(Path(__file__).parent),
        autoescape=True,
        undefined=jinja2.StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    palette = Path(__file__).with_name("palette.css")
    environment.policies["json.dumps_kwargs"] = {"sort_keys": False}
    environment.globals["palette"] = palette.read_text(encoding="utf-8")
    return environment


def sort_script() -> str:
    """The script that sorts a table by the clicked column title."""
    return Path(__file__).with_name("sort.js").read_text(encoding="utf-8")


def embedded(folder: Path, name: str) -> str:
    """A picture of `figures/` as a data URL."""
    content = (folder / "figures" / f"{name}.png").read_bytes()
    return f"data:image/png;base64,{base64.b64encode(content).decode()}"
