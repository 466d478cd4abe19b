"""Methods that leave visual tokens out before the language model.

Shape suffixes: B rows and L columns of the prompt.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Tensor

from sf.attention import Trace, sparsify
from sf.baselines.method import Method
from sf.baselines.vision_tower import watching_features
from sf.selection import Policy, Scores

__all__ = ["TowerPruning", "VideoPruning"]


@dataclass(frozen=True)
class TowerPruning(Method):
    """Decides in the vision tower; kept tokens keep their positions in the whole prompt.

    Attributes:
        ratio: share of the visual tokens to keep; 1 leaves the model unchanged.
    """

    decodes_densely: ClassVar[bool] = True
    counts: ClassVar[str] = "text and the visual tokens left, the same in every layer and its KV"

    ratio: float

    @abstractmethod
    def watch(self, model: Any) -> AbstractContextManager[None]:
        """A context in which the features of tokens that are left out are NaN."""

    @contextmanager
    def apply(self, model: Any) -> Iterator[Trace]:
        marks = _Marks()
        with sparsify(model, _Left(self.ratio, marks)) as trace:
            if self.ratio == 1:
                yield trace
                return
            decoder = model.get_decoder()
            hook = decoder.register_forward_pre_hook(marks.read, with_kwargs=True)
            try:
                with self.watch(model):
                    yield trace
            finally:
                hook.remove()


@dataclass(frozen=True)
class VideoPruning(TowerPruning):
    """Decides on the features that the language model receives of a video.

    Images, and videos of one time step, stay whole. Shape suffixes: T time steps of a video, S
    tokens of one, C width of their features.
    """

    @abstractmethod
    def left(self, feature_TSC: Tensor) -> Tensor:
        """bool (T, S), True where a token of the video stays."""

    def watch(self, model: Any) -> AbstractContextManager[None]:
        return watching_features(model, self.left)


class _Marks:
    """Reads in the decoder's embeddings which tokens the tower left out.

    The mark travels in the features themselves, as NaN, so it survives whatever transformers does
    with them on the way: features computed ahead of the forward, repeated for returned sequences,
    images and videos of several rows.

    Attributes:
        dropped: bool (B, L) of the last prompt.
    """

    def __init__(self) -> None:
        self.dropped: Tensor | None = None

    def read(
        self, decoder: Any, args: tuple[Any, ...], kwargs: dict[str, Any]
    ) -> tuple[tuple[Any, ...], dict[str, Any]]:
        cache, embeds = kwargs.get("past_key_values"), kwargs.get("inputs_embeds")
        if embeds is None or (cache is not None and cache.get_seq_length()):
            return args, kwargs
        self.dropped = embeds.isnan().any(-1)
        # Nothing attends to a dropped token; it only has to be a number.
        cleaned = embeds.masked_fill(self.dropped[..., None], 0.0)
        return args, {**kwargs, "inputs_embeds": cleaned}


@dataclass(frozen=True)
class _Left(Policy):
    """The tokens that the tower kept, the same in every layer."""

    ratio: float
    marks: _Marks

    needs_scores: ClassVar[bool] = False

    @property
    def dense(self) -> bool:
        return self.ratio == 1

    def keep(self, scores: Scores, layer: int) -> Tensor:
        dropped = self.marks.dropped
        if dropped is None:
            return scores.valid
        return scores.valid & ~dropped[:, : scores.valid.shape[1]].to(scores.valid.device)
