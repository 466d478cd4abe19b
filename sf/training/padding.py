"""Less padding: prompts of similar length share a forward pass."""

from __future__ import annotations

from collections.abc import Sequence

__all__ = ["length_buckets"]

SLACK = 1.15
"""Largest ratio of a bucket's longest to its shortest prompt."""


def length_buckets(lengths: Sequence[int], slack: float = SLACK) -> list[list[int]]:
    """Indices in groups of similar length, which need little padding.

    Args:
        lengths: prompt lengths in tokens.
        slack: largest ratio of lengths in a group.
    """
    buckets: list[list[int]] = []
    for at in sorted(range(len(lengths)), key=lambda at: (lengths[at], at)):
        if buckets and lengths[at] <= slack * lengths[buckets[-1][0]]:
            buckets[-1].append(at)
        else:
            buckets.append([at])
    return [sorted(bucket) for bucket in buckets]
