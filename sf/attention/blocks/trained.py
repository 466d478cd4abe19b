"""The attention that a checkpoint was trained with.

`trained_attention` in the text part of config.json: the method's name and its settings. Weights of
the method's own lie in the checkpoint's safetensors beside all others.
"""

from __future__ import annotations

from dataclasses import asdict
from typing import Any

from torch import nn

from sf.attention.blocks.moba import MobaAttention
from sf.attention.blocks.nsa import NsaAttention, attach
from sf.attention.blocks.replace import BlockAttention
from sf.errors import DataError

__all__ = ["equip", "note_trained", "trained_attention"]

FIELD = "trained_attention"
ATTENTIONS: dict[str, type[Any]] = {"moba": MobaAttention, "nsa": NsaAttention}


def note_trained(model: Any, attention: BlockAttention) -> None:
    """Note the attention in the model's configuration, and give the model its weights."""
    name = next(name for name, kind in ATTENTIONS.items() if isinstance(attention, kind))
    note = {"name": name, **asdict(attention)}
    setattr(model.config.get_text_config(), FIELD, note)
    equip(model)


def trained_attention(config: Any) -> BlockAttention | None:
    """What a model's configuration says; None for the model's own attention.

    Raises:
        DataError: a method that is not known here.
    """
    note = dict(getattr(config.get_text_config(), FIELD, None) or {})
    if not note:
        return None
    name = note.pop("name")
    if name not in ATTENTIONS:
        raise DataError(f"config.json: {FIELD}", name, f"must be one of {sorted(ATTENTIONS)}")
    found: BlockAttention = ATTENTIONS[name](**note)
    return found


def equip(model: nn.Module) -> None:
    """Add the modules that the configuration's attention needs, with fresh weights."""
    attention = trained_attention(model.config)
    if isinstance(attention, NsaAttention):
        attach(model, attention)
