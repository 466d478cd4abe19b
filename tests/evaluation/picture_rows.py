"""Rows of a manifest about pictures that a test has drawn."""

from __future__ import annotations

from pathlib import Path

from sf.data.manifest import Row


def picture_row(
    folder: Path, media: str, *, kind: str = "image", problem_type: str = "free-form"
) -> Row:
    """A question about `folder / media`, to which "ring" is right; its id is the file's stem."""
    name = Path(media).stem
    return Row(
        id=name,
        problem=f"What is in picture {name}?",
        problem_type=problem_type,
        data_type=kind,
        options=(),
        solution="<answer>ring</answer>",
        answer="ring",
        media=media,
        data_source="test",
        data_root=str(folder),
    )
