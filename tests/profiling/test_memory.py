"""Bytes are counted, not estimated."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace

import pytest
import torch

from sf.profiling.memory import available_bytes, cache_bytes, is_out_of_memory, peak_of

CPU = torch.device("cpu")
MIB = 2**20


def block(mib: int) -> torch.Tensor:
    return torch.empty(mib * MIB, dtype=torch.uint8)


def test_the_peak_is_what_was_held_at_one_time() -> None:
    before = block(7)  # what was there before does not count

    def run(first_token: Callable[[], None]) -> None:
        first, second = block(3), block(2)
        del first
        first_token()
        third = block(1)
        del second, third

    peak = peak_of(run, CPU)
    assert peak.prefill == 5 * MIB
    assert peak.decode == 3 * MIB
    del before


def test_what_is_held_is_that_of_the_last_token() -> None:
    def run(token: Callable[[], None]) -> None:
        first = block(3)
        token()
        second = block(4)
        del first
        token()
        del second

    peak = peak_of(run, CPU)
    assert (peak.prefill, peak.decode, peak.held) == (3 * MIB, 7 * MIB, 4 * MIB)


def test_a_cache_counts_its_storages_once_and_whole() -> None:
    room = torch.empty(1, 2, 100, 8)  # a buffer of which only a part is in use
    layer = SimpleNamespace(keys=room[:, :, :10], values=torch.empty(1, 2, 10, 8))
    shared = SimpleNamespace(keys=room[:, :, :20], values=room[:, :, :20])
    cache = SimpleNamespace(layers=[layer, shared])
    assert cache_bytes(cache) == 4 * (2 * 100 * 8 + 2 * 10 * 8)


def test_running_out_of_memory_is_told_from_other_errors() -> None:
    with pytest.raises(RuntimeError) as caught:
        torch.empty(10**15)
    assert is_out_of_memory(caught.value)
    assert is_out_of_memory(MemoryError())
    assert not is_out_of_memory(RuntimeError("shapes do not match"))


def test_some_memory_is_available() -> None:
    assert 0 < available_bytes(CPU) < 2**50
