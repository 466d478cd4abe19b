"""The interface of a backend.

Shape suffixes: B rows, H heads, G KV heads, P probes, L prompt or sequence columns, W active
columns (widest row), N new tokens, K cached entries, D head size.
"""

from __future__ import annotations

from typing import Protocol

from torch import Tensor

__all__ = ["Backend"]


class Backend(Protocol):
    """Three operations, whose keys and values are not repeated for grouped queries.

    Attributes:
        fuses: whether new tokens pass the decoder's layers in fused kernels, where these apply.
    """

    @property
    def fuses(self) -> bool: ...

    def probe_mass(
        self,
        query_BHLD: Tensor,
        key_BGLD: Tensor,
        column_BP: Tensor,
        present_BP: Tensor,
        valid_BL: Tensor,
        scaling: float,
    ) -> Tensor:
        """Attention of the probe queries, averaged over heads and summed over probes.

        Args:
            column_BP: the probes' columns, ascending; only those with `present_BP` count.
            valid_BL: False on padding.

        Returns:
            (B, L) in float32, float64 for float64 inputs; 0 on padding. No gradient.
        """

    def prefill(
        self,
        query_BHLD: Tensor,
        key_BGLD: Tensor,
        value_BGLD: Tensor,
        index_BW: Tensor,
        lengths: list[int],
        scaling: float,
        dropout: float,
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Causal attention among the active columns of each row; differentiable.

        Args:
            index_BW: each row's active columns in its last `lengths[row]` entries, ascending;
                before them other columns of the row, without repetition.

        Returns:
            (B, L, H, D) with zeros at inactive columns, and the gathered keys and values
            (B, G, W, D).
        """

    def decode(
        self,
        query_BHND: Tensor,
        key_BGKD: Tensor,
        value_BGKD: Tensor,
        mask: Tensor | None,
        scaling: float,
    ) -> Tensor:
        """Attention of N new tokens over cached entries.

        Args:
            mask: bool (B, 1, N, K), True where a token may attend, or None for everywhere.

        Returns:
            (B, N, H, D).
        """
