"""The start and end of the times of a prefill and of a token, on a simulated clock."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import nn

from sf.profiling import timing
from sf.profiling.generation import Workload

PREFILL, CLOSING, STEP, LOOP = 100.0, 7.0, 10.0, 3.0


class Model(nn.Module):
    """Has a decoder, which is never run."""

    def get_decoder(self) -> nn.Module:
        return self


class FakeClock:
    """Time passes only when a test advances it."""

    def __init__(self, _: Any = None) -> None:
        self.now = 0.0

    def mark(self) -> float:
        return self.now

    def synchronize(self) -> None: ...

    def ms(self, start: float, end: float) -> float:
        return end - start


class FakeParts:
    """Closing takes time, as removing hooks does."""

    def __init__(self, clock: FakeClock) -> None:
        self.clock, self.closed = clock, False

    def close(self) -> None:
        self.clock.now += CLOSING
        self.closed = True

    def milliseconds(self, total: float) -> dict[str, float]:
        return {"mlp": 0.6 * total, "other": 0.4 * total}


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> FakeClock:
    """A generation takes 100, closing the hooks 7, each further token 10, the loop's token 3."""
    clock = FakeClock()

    @contextmanager
    def watched(model: Any, own: Any) -> Iterator[FakeParts]:
        yield FakeParts(own)

    def generate(work: Workload, each: Callable[[], None]) -> Any:
        clock.now += PREFILL
        each()
        for _ in range(work.decode_tokens):
            clock.now += STEP
            each()
        return SimpleNamespace(past_key_values=SimpleNamespace(layers=[]))

    def advance(tokens: int) -> None:
        clock.now += LOOP * tokens

    monkeypatch.setattr(timing, "Clock", lambda device: clock)
    monkeypatch.setattr(timing, "watched", watched)
    monkeypatch.setattr(timing, "generate", generate)
    monkeypatch.setattr(timing, "loop_after", lambda *_: SimpleNamespace(advance=advance))
    monkeypatch.setattr(timing, "take_peak", lambda *_: None)
    return clock


def test_decoding_is_timed_from_the_first_token_on_without_the_hooks(clock: FakeClock) -> None:
    work = Workload(Model(), {"input_ids": torch.ones(1, 5, dtype=torch.long)}, 4)
    run = timing.measure(work, {"full": None}, repeats=2)["full"]
    assert run.prefill_ms == [PREFILL] * 2
    assert run.decode_ms == [STEP] * 2
    assert run.step_ms == [LOOP] * 2  # the first token of the loop warms up
    assert run.parts_ms == {"mlp": [60.0] * 2, "other": [40.0] * 2}


def test_ratios_are_means_over_the_rows_of_each_layer(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    ratios = torch.tensor([[0.2, 0.4], [0.6, 0.8], [1.0, 1.0]])  # three layers of two rows
    trace = SimpleNamespace(layer_ratios=ratios, token_ratio=ratios.mean(0))
    monkeypatch.setattr(timing, "context_of", lambda *_: nullcontext(trace))
    work = Workload(Model(), {"input_ids": torch.ones(2, 5, dtype=torch.long)}, 1)
    run = timing.measure(work, {"sparse": "S"}, repeats=1)["sparse"]
    assert run.token_ratio == pytest.approx(2 / 3)
    assert run.layer_ratios == pytest.approx([0.3, 0.7, 1.0])


def test_sides_alternate_from_repeat_to_repeat(
    clock: FakeClock, monkeypatch: pytest.MonkeyPatch
) -> None:
    order: list[Any] = []
    timed = timing._timed

    def note(work: Any, side: Any, *args: Any, **kwargs: Any) -> None:
        order.append(side)
        timed(work, None, *args, **kwargs)

    monkeypatch.setattr(timing, "_timed", note)
    work = Workload(Model(), {"input_ids": torch.ones(1, 5, dtype=torch.long)}, 1)
    timing.measure(work, {"a": "A", "b": "B"}, repeats=3)  # type: ignore[dict-item]
    assert order == ["A", "B", "B", "A", "A", "B"]
