"""Validation of client requests before any work.

Unsupported fields are refused by name: a field that would change the reply is never ignored.
"""

from __future__ import annotations

import base64
import binascii
import secrets
import threading
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from sf.attention.decoding.per_row import RowRules
from sf.data.inspection import read_picture
from sf.errors import ConfigError, DataError, SparsityForcingError
from sf.isolation import Lost, run_isolated

__all__ = ["ChatBody", "UnknownModel", "chat_body", "conversation"]

_SECONDS = 20.0  # time limit for decoding a picture
_one_at_a_time = threading.Lock()  # requests are read in several threads


class UnknownModel(SparsityForcingError, LookupError):
    """The server has no model of this name."""


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid")


class TextPart(_Part):
    type: Literal["text"]
    text: str


class ImageUrl(_Part):
    url: str
    detail: str | None = None


class ImagePart(_Part):
    type: Literal["image_url"]
    image_url: ImageUrl


class Message(BaseModel):
    model_config = ConfigDict(extra="ignore")  # name, refusal and the like
    role: Literal["system", "developer", "user", "assistant"]
    content: str | list[Annotated[TextPart | ImagePart, Field(discriminator="type")]]


class ChatBody(BaseModel):
    """The supported part of the body of POST /v1/chat/completions."""

    model_config = ConfigDict(extra="forbid")

    messages: Annotated[list[Message], Field(min_length=1)]
    model: str | None = None
    stream: bool | None = None
    max_tokens: Annotated[int, Field(ge=1)] | None = None
    max_completion_tokens: Annotated[int, Field(ge=1)] | None = None
    temperature: Annotated[float, Field(ge=0, le=2)] | None = None
    top_p: Annotated[float, Field(gt=0, le=1)] | None = None
    seed: Annotated[int, Field(ge=0, lt=2**63)] | None = None
    n: Literal[1] | None = None
    frequency_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    presence_penalty: Annotated[float, Field(ge=0, le=0)] | None = None
    logprobs: Literal[False] | None = None
    # These have no effect on the reply.
    stream_options: dict[str, Any] | None = None
    user: str | None = None
    metadata: dict[str, Any] | None = None
    store: bool | None = None
    service_tier: str | None = None
    safety_identifier: str | None = None
    prompt_cache_key: str | None = None

    def new_tokens(self, most: int) -> int:
        """The client's limit, or else the server's."""
        given = self.max_completion_tokens or self.max_tokens
        return most if given is None else given

    def rules(self, settings: Any) -> RowRules:
        """The sampling rules.

        Args:
            settings: the model's `GenerationConfig`, for settings that the client omits.
        """
        heat = self.temperature
        if heat is None:
            heat = float(settings.temperature or 1.0) if settings.do_sample else 0.0
        top_p = self.top_p if self.top_p is not None else float(settings.top_p or 1.0)
        return RowRules(
            temperature=heat,
            top_p=top_p,
            repetition_penalty=float(settings.repetition_penalty or 1.0),
            seed=secrets.randbits(62) if self.seed is None else self.seed,
        )


def chat_body(body: Mapping[str, Any]) -> ChatBody:
    """The body, checked.

    Raises:
        ConfigError: names the first invalid or unsupported field.
    """
    try:
        return ChatBody.model_validate(body)
    except ValidationError as error:
        entries = sorted(error.errors(), key=lambda entry: len(entry["loc"]))
        first = entries[0]
        names = [str(part) for part in first["loc"] if part not in ("str",)]
        field = ".".join(names) or "body"
        value = first["input"] if isinstance(first["input"], str | int | float | bool) else None
        if first["type"] == "extra_forbidden":
            rule = "is not supported by this server"
            raise ConfigError(field, None, rule, "omit it") from None
        if first["type"] == "missing":
            raise ConfigError(field, None, "is required", "see OpenAI's chat completions") from None
        shown = value[:80] if isinstance(value, str) else value
        raise ConfigError(field, shown, first["msg"], "correct it") from None


def conversation(body: ChatBody) -> list[dict[str, Any]]:
    """The messages for `sf.data.vision.encode`, with decoded pictures.

    Raises:
        DataError: the conversation does not end with the user, or a picture cannot be read.
    """
    if body.messages[-1].role != "user":
        rule = "the last message must be the user's"
        raise DataError("messages", body.messages[-1].role, rule)
    turns = []
    for message in body.messages:
        role = "system" if message.role == "developer" else message.role
        if isinstance(message.content, str):
            turns.append({"role": role, "content": [{"type": "text", "text": message.content}]})
            continue
        parts: list[dict[str, Any]] = []
        for number, part in enumerate(message.content):
            if isinstance(part, TextPart):
                parts.append({"type": "text", "text": part.text})
            else:
                parts.append({"type": "image", "image": _image(part.image_url.url, number)})
        turns.append({"role": role, "content": parts})
    return turns


def _image(url: str, number: int) -> Any:
    """The picture of a data URL, decoded in a worker process.

    The server never fetches a URL or reads a file for a client.
    """
    head, comma, data = url.partition(",")
    if not url.startswith("data:image/") or not comma or not head.endswith(";base64"):
        rule = "a picture must be given as data:image/...;base64,..."
        remedy = "send the file's bytes; this server fetches no URLs and reads no files"
        raise DataError(f"image_url of part {number}", url[:60], rule, remedy)
    try:
        content = base64.b64decode(data, validate=True)
    except binascii.Error as error:
        raise DataError(f"image_url of part {number}", None, f"is not base64: {error}") from None
    name = f"image_url of part {number}"
    with _one_at_a_time:
        ((_, picture),) = run_isolated(read_picture, [(content, name)], [_SECONDS], workers=1)
    rule = picture.reason if isinstance(picture, Lost) else picture
    if isinstance(rule, str):
        raise DataError(name, None, rule, "send another picture")
    return picture
