"""Attention methods by name: what the evaluation's `method` argument means."""

from __future__ import annotations

import difflib
from typing import TYPE_CHECKING

from sf.errors import ConfigError

if TYPE_CHECKING:
    from sf.selection import Policy

__all__ = ["METHODS", "policy_of"]

METHODS = {
    "full": "dense attention; p has no meaning",
    "zipvl": "top-p token-sparse attention at prefill, pruned KV cache (arXiv 2410.08584)",
}
"""A trained checkpoint is evaluated with the method that it was trained under (zipvl)."""


def policy_of(method: str, p: float) -> Policy | None:
    """The selection policy of a method, None for dense attention.

    Args:
        method: a key of `METHODS`.
        p: retention threshold in (0, 1].

    Raises:
        ConfigError: an unknown method (the message offers the nearest names) or a bad p.
    """
    if method not in METHODS:
        near = difflib.get_close_matches(method.lower(), METHODS, n=3, cutoff=0.4)
        hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(METHODS)}"
        raise ConfigError("method", method, "no method has this name", hint)
    if not 0 < p <= 1:
        raise ConfigError("p", p, "the retention threshold lies in (0, 1]", "use 0.975")
    if method == "full":
        return None
    from sf.selection import TopP

    return TopP(p=p)
