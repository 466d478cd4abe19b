"""A share of the prompt's tokens instead of a threshold: `sparsify(model, Budget(0.25))`."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from sf.attention.ratio_curve import Curve, curve_of
from sf.attention.trained import record_of
from sf.errors import ConfigError
from sf.selection import Policy, TopK, TopP

__all__ = ["Budget"]


@dataclass(frozen=True)
class Budget:
    """The share of a prompt's tokens to keep, averaged over layers and prompts.

    The share that a threshold keeps depends on checkpoint and prompt. Training measures a curve for
    the checkpoint (`sf.training.ratio_curve`) and saves it with the weights; the threshold is
    interpolated on that curve. The share is therefore met on average, for prompts like those used
    to measure the curve; the trace gives the share kept of each prompt.

    Attributes:
        token_ratio: in (0, 1]. 1 is full attention.
    """

    token_ratio: float

    def __post_init__(self) -> None:
        if not 0 < self.token_ratio <= 1:
            raise ConfigError("token_ratio", self.token_ratio, "must be in (0, 1]", "try 0.25")

    def policy(self, source: Any) -> Policy:
        """The selector that keeps this share.

        Args:
            source: a model, perhaps PEFT-wrapped, its configuration, or a checkpoint's folder.

        Raises:
            ConfigError: the checkpoint has no curve, or the share lies outside it.
            DataError: the checkpoint's record is malformed.
        """
        if self.token_ratio == 1:
            return TopP(p=1.0)
        record, curve = record_of(source), curve_of(source)
        if record is not None and record.method == "top_k":
            return TopK(ratio=self.token_ratio)
        if record is not None and record.method != "zipvl":
            rule = f"the checkpoint was trained with {record.method}, which has no such share"
            raise ConfigError("token_ratio", self.token_ratio, rule, "run it as trained")
        if not curve:
            rule = "the checkpoint has no curve of token ratio over p"
            remedy = "measure it with `sf curve`, or give p (sf ask: --p)"
            raise ConfigError("token_ratio", self.token_ratio, rule, remedy)
        return TopP(p=self._retention_p(curve))

    def _retention_p(self, curve: Curve) -> float:
        """Interpolated in log(1 - p), in which the ratio is nearly linear near p = 1.

        The last piece, which ends at p = 1 where everything is kept, is linear in p.
        """
        before, points = curve[0], [*curve[1:], (1.0, 1.0)]
        if self.token_ratio < before[1]:
            rule = f"the checkpoint's curve begins at {before[1]:.3g} (p = {before[0]:g})"
            remedy = "ask for no less, or give a smaller p"
            raise ConfigError("token_ratio", self.token_ratio, rule, remedy)
        for after in points:
            if self.token_ratio <= after[1]:
                if after[1] == before[1]:
                    return before[0]
                share = (self.token_ratio - before[1]) / (after[1] - before[1])
                if after[0] == 1:
                    return before[0] + share * (1 - before[0])
                return 1 - (1 - before[0]) ** (1 - share) * (1 - after[0]) ** share
            before = after
        raise AssertionError("a curve ends at 1")
