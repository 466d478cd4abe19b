"""The attention that a checkpoint was trained with, whichever it is."""

from __future__ import annotations

import json
from contextlib import AbstractContextManager
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from sf.baselines.method import Hyperparameter, Method

if TYPE_CHECKING:
    from sf.attention import Trace

__all__ = ["AsTrained", "method_of"]


def method_of(checkpoint: Path) -> str:
    """The method that a checkpoint folder was trained with; "zipvl" where none is noted."""
    config = json.loads((checkpoint / "config.json").read_text(encoding="utf-8"))
    noted = config.get("text_config", config).get("trained_attention") or {"name": "zipvl"}
    return str(noted["name"])


@dataclass(frozen=True)
class AsTrained(Method):
    """MoBA or NSA where the checkpoint's config.json says so, else ZipVL.

    Attributes:
        p: of ZipVL, in (0, 1]; the others run with the settings that they were trained with.
    """

    text: ClassVar[str] = "what the checkpoint was trained with: moba, nsa or zipvl"
    paper: ClassVar[str] = "that of the method"
    counts: ClassVar[str] = "as the method that it stands for"
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("p", 0.975)

    p: float = 0.975

    def apply(self, model: Any) -> AbstractContextManager[Trace]:
        from sf.attention.blocks import Replacement, trained_attention
        from sf.attention.sparsify import sparsify
        from sf.selection import TopP

        trained = trained_attention(model.config)
        if trained is not None:
            return Replacement(model, trained)
        return sparsify(model, TopP(p=self.p))
