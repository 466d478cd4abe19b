"""Questions about media that no stage has opened, from lmms-eval's own command line.

The stages open all media before a model is loaded (`sf.evaluation.readable`). lmms-eval does not,
and cannot exclude a row. Here each image and video is first decoded in a worker process, and an
unreadable row is named and gets an empty reply.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

from sf.data.budget import visual_tokens
from sf.data.check import TIME_LIMIT_S, media_faults
from sf.data.control_tokens import check_turns
from sf.data.inspection import read_picture
from sf.errors import ConfigError, DataError
from sf.evaluation.media import decord_faults
from sf.evaluation.opencv_properties import VideoCapture
from sf.evaluation.question import Question, question_of
from sf.evaluation.readable import LoadedImage, picture_content
from sf.evaluation.video_capture import IsolatedCapture
from sf.extras import extra
from sf.isolation import Lost, run_isolated

with extra("eval"):
    import cv2
    from datasets import Image

if TYPE_CHECKING:
    import PIL.Image
    from lmms_eval.api.instance import Instance

    from sf.sections import Vision

__all__ = ["empty_replies", "media_in_workers", "screened"]

_DECODERS = {kind: kind.decode_example for kind in (Image, LoadedImage)}
_collecting: list[list[str]] = []  # of the open contexts, which may close in any order


@contextmanager
def media_in_workers() -> Iterator[list[str]]:
    """A context in which `datasets` (with our loader) and OpenCV decode media in workers.

    Yields:
        A list that receives the reason for every unreadable image, which is replaced by a blank.
    """
    faults: list[str] = []
    _collecting.append(faults)
    cv2.VideoCapture = _Capture  # type: ignore[assignment, misc]
    for kind in _DECODERS:
        kind.decode_example = _decode_in_worker  # type: ignore[method-assign]
    try:
        yield faults
    finally:
        _collecting[:] = [other for other in _collecting if other is not faults]
        if not _collecting:
            cv2.VideoCapture = VideoCapture  # type: ignore[misc]
            for kind, decode_here in _DECODERS.items():
                kind.decode_example = decode_here  # type: ignore[method-assign]


def _note(fault: str) -> None:
    for faults in _collecting:
        faults.append(fault)


class _Capture(IsolatedCapture):
    """Reports no properties of a video that cannot be opened, and records its fault."""

    def get(self, field: int) -> float:
        try:
            return super().get(field)
        except DataError as error:
            _note(f"{error.value}: {error.rule}")
            return 0.0


def _decode_in_worker(feature: Image, value: Any, token_per_repo_id: Any = None) -> PIL.Image.Image:
    import PIL.Image

    if not isinstance(value, dict):
        return _DECODERS[type(feature)](feature, value, token_per_repo_id)
    picture = _read(value)
    if isinstance(picture, str):
        _note(picture)
        return PIL.Image.new("RGB", (28, 28))
    return picture


def _read(value: dict[str, Any]) -> PIL.Image.Image | str:
    """The image of a table's cell, or the reason why it cannot be read."""
    name = value["path"] or "an image of a table"
    try:
        content = picture_content(value)
    except DataError as error:
        return f"{name}: {error.rule}"
    ((_, picture),) = run_isolated(read_picture, [(content, name)], [TIME_LIMIT_S], workers=1)
    outcome = picture.reason if isinstance(picture, Lost) else picture
    return f"{name}: {outcome}" if isinstance(outcome, str) else outcome


def screened(
    requests: Sequence[Instance],
    datasets: Mapping[str, Any],
    processor: Any,
    vision: Vision,
    media: str,
) -> tuple[dict[int, Question], dict[int, str]]:
    """The usable questions.

    Args:
        requests: of type `generate_until`.
        datasets: each task's splits.
        processor: of the model.
        vision: pixel and frame bounds.
        media: "training" or "lmms_eval", the processing of media.

    Returns:
        Questions, and the faults of the other requests, both by index.

    Raises:
        ConfigError: as in `question_of`.
    """
    questions: dict[int, Question] = {}
    refused: dict[int, str] = {}
    for at, request in enumerate(requests):
        with media_in_workers() as faults:
            try:
                questions[at] = question_of(request, datasets)
            except ConfigError:
                raise
            except (Exception, SystemExit) as error:  # noqa: BLE001 - task code on any row
                faults.append(f"its task cannot use it ({type(error).__name__}: {error})")
        if faults:
            questions.pop(at, None)
            refused[at] = faults[0]
    reasons = dict(
        zip(questions, _faults(processor, list(questions.values()), vision, media), strict=True)
    )
    refused |= {at: reason for at, reason in reasons.items() if reason}
    return {at: each for at, each in questions.items() if at not in refused}, refused


def empty_replies(requests: Sequence[Instance], refused: Mapping[int, str]) -> str:
    """The warning about requests that cannot be answered, with the reasons by index."""
    head = f"{len(refused)} rows cannot be read; their replies are empty and are scored so:"
    rows = [
        f"  {requests[index].args[4]} row {requests[index].args[3]}: {reason}"
        for index, reason in sorted(refused.items())
    ]
    return "\n".join([head, *rows, "The stages of `sf run` leave such rows out of the score."])


def _faults(processor: Any, questions: Sequence[Question], vision: Vision, media: str) -> list[str]:
    """The reason why each question cannot be encoded, or ""."""
    faults = [_text_or_size(processor, question, vision) for question in questions]
    if media == "lmms_eval":
        reasons = decord_faults([question.turns for question in questions], vision)
        return [fault or reason for fault, reason in zip(faults, reasons, strict=True)]
    files = [
        (at, part["path"], part["type"])
        for at, question in enumerate(questions)
        for part in _parts(question)
        if "path" in part
    ]
    reasons = media_faults([(path, kind) for _, path, kind in files], vision)
    for (at, path, _), reason in zip(files, reasons, strict=True):
        if reason and not faults[at]:
            faults[at] = f"{path}: {reason}"
    return faults


def _parts(question: Question) -> list[dict[str, Any]]:
    return [part for turn in question.turns for part in turn["content"]]


def _text_or_size(processor: Any, question: Question, vision: Vision) -> str:
    try:
        check_turns(processor, [question.turns])
        for picture in (part["image"] for part in _parts(question) if "image" in part):
            visual_tokens("image", picture.width, picture.height, 1, 1.0, vision)
    except DataError as error:
        return f"{error.field} {error.value}: {error.rule}"
    return ""
