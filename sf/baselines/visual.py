"""Methods that keep all text and a share of the prompt's visual tokens."""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from sf.attention import Trace, sparsify
from sf.attention.decoder_hooks import unwrapped
from sf.attention.visual_tokens import placeholder_ids
from sf.baselines.method import Hyperparameter, Method
from sf.errors import ConfigError
from sf.selection import Policy

__all__ = ["VisualColumns", "VisualPolicy", "VisualShare", "watching_visual"]


@dataclass
class VisualColumns:
    """Filled by each forward on an empty cache.

    Attributes:
        mask: bool (B, L), True on placeholders of images and videos.
        ids: int64 (B, L), the prompt's token ids.
    """

    mask: Tensor | None = None
    ids: Tensor | None = None

    def prompt(self, valid_BP: Tensor) -> Tensor:
        """bool (B, P): the visual tokens of a prompt of `valid_BP`'s columns.

        Raises:
            ConfigError: the forward pass received embeddings instead of token ids.
        """
        if self.mask is None or self.mask.shape[0] != valid_BP.shape[0]:
            raise ConfigError(
                "input_ids",
                None,
                "the prompt's token ids say which tokens are visual",
                "pass input_ids, not inputs_embeds",
            )
        return self.mask[:, : valid_BP.shape[1]].to(valid_BP.device) & valid_BP

    def row_ids(self, row: int, valid_P: Tensor) -> Tensor:
        """int64 (length,): the token ids of one row of the prompt, without padding."""
        assert self.ids is not None, "prompt() refuses a forward without token ids"
        return self.ids[row, : len(valid_P)].to(valid_P.device)[valid_P]


@contextmanager
def watching_visual(model: Any) -> Iterator[VisualColumns]:
    """Record the visual tokens of every prompt of `model`.

    Raises:
        UnsupportedModelError: the model's configuration names no image or video token.
    """
    owner = unwrapped(model)
    tokens, columns = placeholder_ids(owner), VisualColumns()

    def before(_: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        cache = kwargs.get("past_key_values")
        if cache is not None and cache.get_seq_length():
            return
        ids = kwargs.get("input_ids", args[0] if args else None)
        columns.mask, columns.ids = None, ids
        if ids is not None:
            columns.mask = torch.isin(ids, tokens.to(ids.device))

    hook = owner.register_forward_pre_hook(before, with_kwargs=True)
    try:
        yield columns
    finally:
        hook.remove()


@dataclass(frozen=True)
class VisualPolicy(Policy):
    """Chooses in one layer, for those after it.

    Attributes:
        ratio: share of a row's visual tokens that is kept, rounded down.
        visual: which columns they are.
        chosen: what was kept of the last prompt.
    """

    ratio: float
    visual: VisualColumns
    chosen: dict[str, Tensor] = field(default_factory=dict)

    @property
    def dense(self) -> bool:
        return self.ratio == 1

    def num_kept(self, visual_BL: Tensor) -> Tensor:
        """int64 (B,), visual tokens that are kept of each row."""
        # 0.29 * 100 is a little below 29 in float64; that must not cost a token.
        return (self.ratio * visual_BL.sum(-1).double() + 1e-9).floor().long()


@dataclass(frozen=True)
class VisualShare(Method):
    """Keeps all text tokens and all positions.

    Attributes:
        ratio: share of the prompt's visual tokens that is kept, rounded down; the default is
            FastV's.
    """

    decodes_densely: ClassVar[bool] = True
    hyperparameter: ClassVar[Hyperparameter] = Hyperparameter("ratio", 0.5, dense=1.0)

    ratio: float = 0.5

    @abstractmethod
    def policy(self, model: Any, visual: VisualColumns) -> VisualPolicy:
        """The selector of the tokens."""

    @contextmanager
    def apply(self, model: Any) -> Iterator[Trace]:
        with watching_visual(model) as visual, sparsify(model, self.policy(model, visual)) as trace:
            yield trace
