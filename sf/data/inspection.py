"""Opens one image or video for the media pass.

Importing the module loads the decoders, which a worker process does once.
"""

from __future__ import annotations

import io
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import av  # noqa: F401 - see the module's docstring
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
    """Suppress Pillow's warnings, which name no file; the important ones become faults."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def inspect(root: Path, media: str, data_type: str, *visions: Vision) -> MediaFacts:
    """Open one image or video and decode the pixels and frames that any of the bounds selects.

    Returns:
        Its facts; `error` is set if it is unusable.
    """
    key = media_key(root, media, data_type, *visions)
    path = str(root / media)
    try:
        if data_type == "image":
            with _quiet():
                image, codec = load_image_and_format(path)
            values: dict[str, Any] = {
                "width": image.width,
                "height": image.height,
                "num_frames": 1,
                "codec": codec,
            }
        else:
            video = check_video(path, *visions)
            values = {name: getattr(video, name) for name in FOUND}
        facts = MediaFacts(media, data_type, key, **values, digest=media_digest(path))
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
    """Decode an image stored in a table.

    Args:
        content: its bytes.
        name: for the message.
        vision: pixel bounds.

    Returns:
        The reason why it is unusable; "" if it is usable.
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
    """An image stored in a table, or the reason why it cannot be decoded."""
    try:
        with _quiet():
            return decode_image(io.BytesIO(content), name)[0]
    except DataError as error:
        return error.rule
    except MemoryError:
        return f"decoding it takes more than {CHILD_GIB:g} GiB"
