"""Loads files as `sf ask` does, in a module that a worker process can import."""

from __future__ import annotations

from typing import Any

from sf.ask.media import bounds, load_media

__all__ = ["loaded_to_ask"]


def loaded_to_ask(path: str, kind: Any) -> str:
    """The fault in loading a file that was found to be decodable; "" for none."""
    try:
        load_media(kind, path, bounds(kind))
    except Exception as error:  # noqa: BLE001 - said by the caller
        return repr(error)
    return ""
