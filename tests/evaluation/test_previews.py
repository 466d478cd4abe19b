"""What a reader is shown of a benchmark's rows."""

from __future__ import annotations

import io
from pathlib import Path

import PIL.Image

from sf.evaluation.benchmarks import benchmarks_of
from sf.evaluation.previews import MOST_PICTURES, SIDE, _preview, preview_table
from sf.evaluation.source import Source


def test_every_evaluated_row_has_its_question_and_small_pictures(
    home: Path, tmp_path: Path
) -> None:
    """Numbers are those of the rows that count: the first one of ChartQA cannot be read."""
    source = Source("folder", str(home), 3, 0, {"chartqa": {0: "damaged"}})
    whole = Source("folder", str(home), 3, 0)
    suites = benchmarks_of(["chartqa", "videomme"])
    table = preview_table(suites, source, tmp_path, tmp_path)
    chart, video = (table[table["benchmark"] == name] for name in ("chartqa", "videomme"))
    assert [*chart["doc_id"]] == [0, 1]
    assert [*video["doc_id"]] == [0, 1, 2]
    complete = preview_table(benchmarks_of(["chartqa"]), whole, tmp_path, tmp_path)
    assert [*chart["question"]] == [*complete["question"]][1:]
    assert all("Answer the question" in text for text in chart["question"])
    for line in table.to_dict("records"):
        picture = PIL.Image.open(io.BytesIO(line["picture"]))
        frames = MOST_PICTURES if line["benchmark"] == "videomme" else 1
        assert (picture.format, picture.height <= 2 * SIDE) == ("JPEG", True)
        assert (frames - 1) * picture.height < picture.width <= frames * 2 * SIDE


def test_of_many_images_a_few_are_shown() -> None:
    images = [{"type": "image", "image": PIL.Image.new("RGB", (600, 300))}] * 6
    content = [*images, {"type": "text", "text": "Which?"}]
    preview = _preview([{"role": "system", "content": []}, {"role": "user", "content": content}])
    assert preview["question"] == "Which?"
    picture = PIL.Image.open(io.BytesIO(preview["picture"]))
    assert picture.size == (MOST_PICTURES * SIDE, SIDE // 2)
