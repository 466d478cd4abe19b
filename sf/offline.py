"""Stages run without the hub, except those that fetch from it."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from sf.errors import EnvironmentFault

__all__ = ["VARIABLES", "hub_offline", "unasked"]

VARIABLES = ("HF_HUB_OFFLINE", "TRANSFORMERS_OFFLINE", "HF_DATASETS_OFFLINE")
_READERS = ("huggingface_hub.constants", "datasets.config")
_FLAG = "HF_HUB_OFFLINE"
"""Settings of these modules, which read the variables once, at import."""


@contextmanager
def hub_offline() -> Iterator[None]:
    """Keep huggingface_hub, transformers and datasets off the hub, also in child processes."""
    variables = {name: os.environ.get(name) for name in VARIABLES}
    flags = {name: getattr(sys.modules[name], _FLAG) for name in _READERS if name in sys.modules}
    os.environ.update(dict.fromkeys(VARIABLES, "1"))
    for name in flags:
        setattr(sys.modules[name], _FLAG, True)
    try:
        yield
    finally:
        for name, value in variables.items():
            if value is None:
                os.environ.pop(name)
            else:
                os.environ[name] = value
        for name in _READERS:
            if name in sys.modules:
                setattr(sys.modules[name], _FLAG, flags.get(name, _is_set(variables)))


def _is_set(variables: Mapping[str, str | None]) -> bool:
    return any((value or "").upper() in ("1", "ON", "YES", "TRUE") for value in variables.values())


@contextmanager
def unasked(stage: str) -> Iterator[None]:
    """`hub_offline`, with one clear error if a library still contacts the hub.

    Args:
        stage: the running stage, for the message.

    Raises:
        EnvironmentFault: the hub was contacted.
    """
    with hub_offline():
        try:
            yield
        except Exception as error:
            if "huggingface_hub" not in sys.modules:
                raise
            from huggingface_hub.errors import OfflineModeIsEnabled

            if not isinstance(error, OfflineModeIsEnabled):
                raise
            rule = f"was contacted by the stage {stage}, which must run without it: {error}"
            remedy = "run the stages fetch, base, prepare and benchmarks again"
            raise EnvironmentFault("the hub", None, rule, remedy) from error
