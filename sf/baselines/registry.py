"""The methods by name. A new method needs its file and one line here.

The names are separate from the classes, so that parameters can be checked without loading torch;
`sf.result_key.imports` treats these lines as imports.
"""

from __future__ import annotations

import difflib
from importlib import import_module

from sf.baselines.method import Method
from sf.errors import ConfigError

__all__ = [
    "METHODS",
    "TRAINED",
    "build",
    "method_class",
    "misfit",
    "unknown",
    "without_retention_p",
]

METHODS: dict[str, str] = {
    "full": "sf.baselines.full:Full",
    "zipvl": "sf.baselines.selectors:ZipVL",
    "top_k": "sf.baselines.selectors:TopKTokens",
    "threshold": "sf.baselines.selectors:ThresholdTokens",
    "fastv": "sf.baselines.fastv:FastV",
    "random": "sf.baselines.random_tokens:RandomTokens",
    "visionzip": "sf.baselines.visionzip:VisionZip",
    "evs": "sf.baselines.evs:EVS",
    "vidcom2": "sf.baselines.vidcom2:VidCom2",
    "minference": "sf.baselines.minference:MInference",
    "twilight": "sf.baselines.twilight:Twilight",
    "temperature": "sf.baselines.temperature:Temperature",
    "moba": "sf.baselines.moba:MoBA",
    "nsa": "sf.baselines.nsa:NSA",
    "videonsa": "sf.baselines.videonsa:VideoNSA",
}
TRAINED = "trained"
"""In a method's place: what the checkpoint was trained with (`sf.baselines.resolve`)."""

_QWEN = ("qwen2_vl", "qwen2_5_vl")
FAMILIES: dict[str, tuple[str, ...]] = {"visionzip": _QWEN, "evs": _QWEN, "vidcom2": _QWEN}
"""The only model families that a method runs on; all, if it is not named here."""
OWN_WEIGHTS = ("nsa", "videonsa")
"""Methods that run on checkpoints trained with them and on no other."""
BLOCKS = ("moba", "nsa", "videonsa")
"""Trained in the place of the model's attention: such a checkpoint runs under no selection."""
WITH_RETENTION_P = ("zipvl", "twilight", "temperature")
"""Methods with a retention threshold: they have a curve over it."""


def unknown(name: str) -> str | None:
    """A hint for an unknown method name; None for a known one."""
    known = [*METHODS, TRAINED]
    if name in known:
        return None
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    return f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"


def misfit(name: str, family: str, trained_with: str | None) -> str | None:
    """Why a method cannot run on a model, and the remedy; None if it can.

    Args:
        name: a key of `METHODS`.
        family: the model type in config.json.
        trained_with: the method that the checkpoint was trained with; None for a base model.
    """
    allowed = FAMILIES.get(name, (family,))
    if family not in allowed:
        return f"{name} runs on {' and '.join(allowed)} only, not on {family}; leave it out"
    if name in OWN_WEIGHTS and trained_with != name:
        return f"{name} needs weights that this model lacks; train it: objective {name}"
    if trained_with in BLOCKS and name not in (trained_with, "full"):
        rule = f"the checkpoint was trained with {trained_with} instead of its own attention"
        return f"{rule}, under which {name} cannot run; use {TRAINED}, {trained_with} or full"
    return None


def without_retention_p(name: str) -> str | None:
    """Why a method has no curve over p, and which methods have one; None if it has one."""
    if name in (*WITH_RETENTION_P, TRAINED):
        return None
    known = " or ".join(WITH_RETENTION_P)
    return f"{name} has no threshold p to measure a curve over; use {known}"


def method_class(name: str) -> type[Method]:
    """The class of a method: its hyperparameter, paper and texts.

    Raises:
        ConfigError: no method has this name (the message offers the nearest ones).
    """
    hint = unknown(name)
    if hint is not None:
        raise ConfigError("method", name, "no method has this name", hint)
    if name == TRAINED:
        rule = "which method that is depends on the checkpoint"
        raise ConfigError("method", name, rule, "resolve it with sf.baselines.resolve")
    module, _, attribute = METHODS[name].partition(":")
    method: type[Method] = getattr(import_module(module), attribute)
    return method


def build(name: str, value: float | None = None) -> Method:
    """The method at a value of its hyperparameter; None takes the default.

    Raises:
        ConfigError: an unknown name, or a value out of range.
    """
    return method_class(name).with_value(value)
