"""One of several ranks without the others: collectives give shapes."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any
from unittest.mock import patch

import torch.distributed as dist

__all__ = ["one_of"]


@contextmanager
def one_of(ranks: int) -> Iterator[None]:
    """Be the first of `ranks` processes; nothing is sent. No effect for one.

    Args:
        ranks: processes of the job.
    """
    if ranks == 1:
        yield
        return
    import torch.distributed._tools.fake_collectives  # noqa: F401  shapes of collectives
    from accelerate.state import AcceleratorState, GradientState, PartialState
    from torch.testing._internal.distributed.fake_pg import FakeStore

    def same(values: list[Any], value: Any, *_: Any, **__: Any) -> None:
        values[:] = [value] * len(values)

    environment = {"WORLD_SIZE": str(ranks), "RANK": "0", "LOCAL_RANK": "0",
                   "LOCAL_WORLD_SIZE": str(ranks)}  # fmt: skip
    states = (AcceleratorState, GradientState, PartialState)
    for state in states:
        state._reset_state()
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=ranks)
    try:
        with (
            patch.dict(os.environ, environment),
            patch("sf.training.sharding.join", lambda: None),
            patch.object(dist, "all_gather_object", same),
            patch.object(dist, "broadcast_object_list", lambda *_, **__: None),
        ):
            yield
    finally:
        dist.destroy_process_group()
        for state in states:
            state._reset_state()
