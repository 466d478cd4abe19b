"""A softmax temperature below 1 with ZipVL (the paper's Table 8, training-free)."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from sf.attention import Trace, sparsify
from sf.baselines.method import Hyperparameter, Method
from sf.errors import ConfigError, UnsupportedModelError
from sf.published import INFERENCE_RETENTION_P
from sf.selection import TopP

__all__ = ["Temperature"]


@dataclass(frozen=True)
class Temperature(Method):
    """softmax(q k / (T sqrt(d))) in every layer, prefill and decoding, under top-p at a fixed p.

    Sharper rows need fewer tokens for the same share p, but they are no longer the attention that
    the model was trained with. At T = 1 this is `ZipVL(retention_p)`, bit for bit. The paper does
    not publish T; the default is ours.

    Attributes:
        temperature: T in (0, 1].
        retention_p: of `ZipVL`.
    """

    name: ClassVar[str] = "temperature"
    text: ClassVar[str] = (
        f"attention logits divided by T < 1, then ZipVL at p = {INFERENCE_RETENTION_P}"
    )
    paper: ClassVar[str] = "2504.18579 table 8 (T: ours)"
    counts: ClassVar[str] = (
        "tokens that take part in a layer's prefill attention and stay in its KV"
    )
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("temperature", 0.5)

    temperature: float = 0.5
    retention_p: float = INFERENCE_RETENTION_P

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 0 < self.retention_p <= 1:
            raise ConfigError(
                "retention_p", self.retention_p, "must be in (0, 1]", f"use {INFERENCE_RETENTION_P}"
            )

    @contextmanager
    def apply(self, model: Any) -> Iterator[Trace]:
        with sparsify(model, TopP(p=self.retention_p)) as trace:
            attentions = [layer.self_attn for layer in model.get_decoder().layers]
            for module in attentions:
                if not isinstance(getattr(module, "scaling", None), float):
                    raise UnsupportedModelError(
                        "model", type(module).__name__, "its attention has no `scaling` to sharpen"
                    )
            before = [module.scaling for module in attentions]
            try:
                for module in attentions:
                    module.scaling = module.scaling / self.temperature
                yield trace
            finally:
                for module, scaling in zip(attentions, before, strict=True):
                    module.scaling = scaling
