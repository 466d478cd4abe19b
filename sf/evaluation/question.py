"""lmms-eval's requests as questions, with a digest that identifies their records."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from PIL.Image import Image

from sf.errors import ConfigError
from sf.extras import extra

with extra("eval"):
    from lmms_eval.api.instance import Instance
    from lmms_eval.protocol import ChatMessages

__all__ = ["Question", "limit_of", "question_of", "turns_of"]

_SAMPLING = ("temperature", "do_sample", "num_beams")


@dataclass(frozen=True)
class Question:
    """One request, ready to be encoded.

    Attributes:
        task, doc_id: the task and its row.
        turns: chat messages in transformers' form.
        max_new_tokens: generation limit.
        source: digest of prompt, media and limit.
    """

    task: str
    doc_id: int
    turns: list[dict[str, Any]]
    max_new_tokens: int
    source: str


def question_of(request: Instance, datasets: Mapping[str, Any]) -> Question:
    """The question of a chat request.

    Args:
        request: of type `generate_until`.
        datasets: each task's splits.

    Raises:
        ConfigError: as in `limit_of`; or content other than text, an image or a complete video.
    """
    _, doc_to_messages, _, doc_id, task, split = request.args
    turns = turns_of(doc_to_messages(datasets[task][split][doc_id]))
    limit = limit_of(request)
    return Question(task, int(doc_id), turns, limit, _digest(turns, limit))


def turns_of(messages: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """lmms-eval's messages of a row in transformers' form.

    Raises:
        ConfigError: content other than text, an image or a complete video.
    """
    return [
        {"role": turn.role, "content": [_content(part) for part in turn.content]}
        for turn in ChatMessages(messages=messages).messages
    ]


def limit_of(request: Instance) -> int:
    """The request's generation limit.

    Raises:
        ConfigError: the task requests sampling or beams, or sets no limit.
    """
    options = request.args[2]
    asked = {name: options.get(name) for name in _SAMPLING}
    if (asked["do_sample"] and asked["temperature"]) or (asked["num_beams"] or 1) > 1:
        raise ConfigError("generation_kwargs", asked, "replies are greedy", "choose another task")
    if "max_new_tokens" not in options:
        remedy = "pin it: --gen_kwargs max_new_tokens=128"
        raise ConfigError("max_new_tokens", None, f"{request.args[4]} sets none", remedy)
    return int(options["max_new_tokens"])


def _content(part: Any) -> dict[str, Any]:
    if part.type == "text":
        return {"type": "text", "text": part.text}
    if part.type == "image":
        source = "image" if isinstance(part.url, Image) else "path"
        return {"type": "image", source: part.url}
    if part.type == "video" and isinstance(part.url, str) and part.start_time is None:
        return {"type": "video", "path": part.url}
    raise ConfigError("content", part.type, "images, whole video files and text only")


def _digest(turns: Sequence[dict[str, Any]], limit: int) -> str:
    """The content of a question. Files count by name, size and modification time."""
    digest = hashlib.blake2b(f"{limit}".encode(), digest_size=12)
    for part in (part for turn in turns for part in turn["content"]):
        digest.update(f"\0{part['type']}\0".encode())
        if part["type"] == "text":
            digest.update(part["text"].encode())
        elif "image" in part:
            image = part["image"]
            colours = image.getpalette(), image.info.get("transparency")
            digest.update(f"{image.mode} {image.size} {colours}".encode() + image.tobytes())
        else:
            facts = Path(part["path"]).stat()
            digest.update(f"{Path(part['path']).name} {facts.st_size} {facts.st_mtime_ns}".encode())
    return digest.hexdigest()
