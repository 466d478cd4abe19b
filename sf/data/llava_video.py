"""Conversion of LLaVA-Video-178K's records to Video-R1-260k's schema.

Layout: folders such as `0_30_s_academic_v0_1/` with `*_processed.json` files. A record is
{"id", "video", "data_source", "conversations": [{"from": "human" | "gpt", "value"}, ...]}; every
human/gpt pair is a question. `id` names the video, not the question, and several records and files
share it; a question's id therefore combines it with a digest of the question and the answer. File
names state the kind: `_mc_` multiple choice, `_oe_` open ended, `_cap_` caption. The question text
contains the options, and the answer is "B. text" or "B".
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterator, Sequence
from typing import Any

from sf.data.schema import RowError

__all__ = ["is_llava_record", "records"]

_OPTION = re.compile(r"^\s*\(?([A-Z])[.):]\s*(.+?)\s*$")
_INSTRUCTION = re.compile(
    r"^\s*(please (provide|respond|answer|select|choose)|answer with|respond with)", re.IGNORECASE
)
_MEDIA_TAG = re.compile(r"<(image|video)>\s*")
# "The answer is", "Answer:", "Option" before the chosen option.
_PREFIX = re.compile(
    r"(?:(?:so|the|my|correct|right|best|final)\s+)*(?:answer|option|choice)\b"
    r"\s*(?:is|:|would be)*\s*(?:option\b)?\s*",
    re.IGNORECASE,
)
_LETTER = re.compile(r"\(?([A-Z])(?:\)|[.):,])\s*(.*)", re.DOTALL)  # followed by an explanation
_PUNCTUATION = re.compile(r"[\W_]+")


def is_llava_record(record: Any) -> bool:
    """Whether a record has LLaVA-Video-178K's form rather than Video-R1-260k's."""
    return isinstance(record, dict) and "conversations" in record and "problem" not in record


def _pairs(record: dict[str, Any]) -> Iterator[tuple[str, str]]:
    turns = record["conversations"]
    if not isinstance(turns, list) or len(turns) < 2 or len(turns) % 2:
        raise RowError("bad conversation", "conversations", None, "they must be pairs of turns")
    for question, reply in zip(turns[::2], turns[1::2], strict=True):
        are_objects = isinstance(question, dict) and isinstance(reply, dict)
        if not are_objects or question.get("from") != "human" or reply.get("from") != "gpt":
            raise RowError(
                "bad conversation", "conversations", None, "human and gpt must take turns"
            )
        if not isinstance(question.get("value"), str) or not isinstance(reply.get("value"), str):
            raise RowError("bad conversation", "conversations", None, "a turn's value must be text")
        yield question["value"], reply["value"]


def records(record: dict[str, Any], folder: str) -> Iterator[dict[str, Any]]:
    """Yield one Video-R1 record for each question of a LLaVA-Video-178K record.

    Args:
        record: from LLaVA-Video-178K.
        folder: of its JSON file, relative to the data root; `video` is relative to this folder.

    Raises:
        RowError: a missing key or unpaired turns.
    """
    missing = [key for key in ("id", "video", "conversations") if not record.get(key)]
    if missing:
        raise RowError("missing key", "row", None, f"it lacks {', '.join(missing)}")
    video = str(record["video"])
    path = video if folder in ("", ".") or video.startswith("/") else f"{folder}/{video}"
    for question, reply in _pairs(record):
        problem, options = _split_options(_MEDIA_TAG.sub("", question))
        answer = _chosen_letter(reply.strip(), options) if options else reply.strip()
        yield {
            "problem_id": f"{record['id']}#{_digest(path, question, reply)}",
            "problem": problem,
            "data_type": "video",
            "problem_type": "multiple choice" if options else "free-form",
            "options": options,
            "solution": f"<answer>{answer}</answer>",
            "path": path,
            "data_source": record.get("data_source") or folder or "LLaVA-Video-178K",
        }


def _plain(text: str) -> str:
    return _PUNCTUATION.sub(" ", text.casefold()).strip()


def _chosen_letter(reply: str, options: Sequence[str]) -> str:
    """The letter that a reply chooses; the reply itself if it chooses none or several.

    A reply that equals an option's text chooses that option: "A man is walking." does not mean A.
    A letter before the text of a different option chooses neither.
    """
    letters = {option[0]: _plain(option[2:]) for option in options}
    prefix = _PREFIX.match(reply)
    bare = reply[prefix.end() :] if prefix else reply
    plain = _plain(bare)
    if plain.upper() in letters:
        return plain.upper()
    chosen = [
        letter
        for letter, text in letters.items()
        if text and plain in (text, f"{letter.casefold()} {text}")
    ]
    if chosen:
        return chosen[0] if len(chosen) == 1 else reply
    written = _LETTER.fullmatch(bare)
    return reply if written is None or _plain(written[2]) in letters.values() else written[1]


def _digest(*texts: str) -> str:
    return hashlib.blake2b("\0".join(texts).encode("utf-8"), digest_size=6).hexdigest()


def _split_options(question: str) -> tuple[str, list[str]]:
    """The question text and its lettered options, without the closing instruction."""
    text: list[str] = []
    options: list[str] = []
    for line in question.splitlines():
        match = _OPTION.match(line)
        if match and match.group(1) == chr(ord("A") + len(options)):
            options.append(f"{match.group(1)}. {match.group(2)}")
        elif not _INSTRUCTION.match(line):
            text.append(line)
    if len(options) < 2:
        lines = [line for line in question.splitlines() if not _INSTRUCTION.match(line)]
        return "\n".join(lines).strip(), []
    return "\n".join(text).strip(), options
