"""Opens one image or video for the media pass.

The module loads the decoders when it is imported: a worker process does that once.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av  # noqa: F401 - see the module's text
import PIL.Image
import PIL.ImageCms

from sf.data.budget import visual_tokens
from sf.data.images import decode_image, load_image_and_format
from sf.data.media import media_digest
from sf.data.media_facts import FOUND, MediaFacts, media_key
from sf.data.video import check_video
from sf.errors import DataError
from sf.isolation import CHILD_GIB

if TYPE_CHECKING:
    from sf.sections import Vision

__all__ = ["inspect", "inspect_picture", "read_picture"]

PIL.Image.init()


@contextmanager
def _quiet() -> Iterator[None]:
    """Without Pillow's warnings, which name no file: what matters of them becomes a reason."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def inspect(root: Path, media: str, data_type: str, *visions: Vision) -> MediaFacts:
    """Open one image or video and decode what models will look at, under any of the bounds.

    Returns:
        Its facts; an unusable one has `error` set.
    """
    key = media_key(root, media, data_type, *visions)
    path = str(root / media)
    try:
        if data_type == "image":
            with _quiet():
                image, codec = load_image_and_format(path)
            found: dict[str, Any] = {
                "width": image.width,
                "height": image.height,
                "num_frames": 1,
                "codec": codec,
            }
        else:
            video = check_video(path, *visions)
            found = {name: getattr(video, name) for name in FOUND}
        facts = MediaFacts(media, data_type, key, **found, digest=media_digest(path))
        size = (facts.width, facts.height, facts.num_frames, facts.fps or 1.0)
        for vision in visions:
            visual_tokens(data_type, *size, vision)
    except DataError as error:
        return MediaFacts(media, data_type, key, error=error.rule)
    except MemoryError:
        rule = f"decoding it takes more than {CHILD_GIB:g} GiB"
        return MediaFacts(media, data_type, key, error=rule)
    return facts


def inspect_picture(content: bytes, name: str, vision: Vision) -> str:
    """Decode an image of a table.

    Args:
        content: its bytes.
        name: for the message.
        vision: pixel bounds.

    Returns:
        Why it cannot be used; "" if it can.
    """
    image = read_picture(content, name)
    if isinstance(image, str):
        return image
    try:
        visual_tokens("image", image.width, image.height, 1, 1.0, vision)
    except DataError as error:
        return error.rule
    return ""


def read_picture(content: bytes, name: str) -> PIL.Image.Image | str:
    """An image of a table, or why it cannot be decoded; `content` and `name` as above."""
    try:
        with _quiet():
            return decode_image(io.BytesIO(content), name)[0]
    except DataError as error:
        return error.rule
    except MemoryError:
        return f"decoding it takes more than {CHILD_GIB:g} GiB"
