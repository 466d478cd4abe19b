"""Rows that enter and leave: the same answers as alone, whatever shares their batch."""

from __future__ import annotations

from functools import partial

import pytest
import torch
from tiny_models import batch, build, prompt

from sf import TopP, sparsify
from sf.attention.decoding import DecodeLoop, Prompts, Rules, Sampled, Waiting, prefill
from sf.attention.decoding import loop as loop_module
from sf.attention.decoding.generate import position_after
from sf.errors import ConfigError

LENGTHS = (31, 9, 22, 14, 40, 11, 27)
LIMITS = (3, 12, 1, 7, 5, 12, 2)
RULES = Rules()


@pytest.fixture(scope="module")
def model():
    return build("qwen2_5_vl")


def sampled(model, rows, *, keep=False):
    """Prompts of some rows, each under its own p, to be answered with its own seed."""
    inputs = batch([prompt("image" if row % 2 else "video", LENGTHS[row], row) for row in rows])
    inputs = {name: part.to(model.device) for name, part in inputs.items()}
    places = []
    hook = model.get_decoder().register_forward_pre_hook(
        lambda module, args, kwargs: places.append(kwargs["position_ids"][..., -1:]),
        with_kwargs=True,
    )
    with torch.no_grad(), sparsify(model, TopP(p=[0.5 + 0.06 * row for row in rows])):
        output = model(**inputs, use_cache=True, logits_to_keep=1)
    hook.remove()
    logits = output.logits[:, -1]
    choice = Sampled(1.0, [3], rows, logits.shape[-1], logits.device)
    choice.draw(len(rows))
    token, logp = choice(logits)
    return Prompts(
        cache=output.past_key_values,
        valid=inputs["attention_mask"].bool(),
        token=token[:, 0],
        logp=logp[:, 0],
        position=position_after(places[0], len(rows)),
        choice=choice,
        limits=[LIMITS[row] for row in rows],
        keep=keep,
    )


def answers(model, groups, slots, graph=None):
    loop = DecodeLoop(model, slots, max(LIMITS), RULES, graph=graph)
    waiting = [Waiting(len(rows), partial(sampled, model, rows)) for rows in groups]
    return loop.answer(waiting)


@pytest.fixture(scope="module")
def alone(model):
    return [answers(model, [[row]], 1)[0] for row in range(len(LENGTHS))]


@pytest.mark.parametrize(
    ("groups", "slots"),
    [
        ([[0, 1, 2, 3, 4, 5, 6]], 7),  # all at once
        ([[row] for row in range(7)], 2),  # each waits for a slot
        ([[2, 0], [4, 1, 3], [6], [5]], 3),  # wider prompts arrive in buffers of narrower ones
        ([[5, 1], [2], [4, 0], [3, 6]], 4),
    ],
)
def test_answers_do_not_depend_on_company(model, alone, groups, slots):
    order = [row for rows in groups for row in rows]
    together = answers(model, groups, slots)
    tokens = [ids for part in together for ids in part.tokens]
    logps = [values for part in together for values in part.logps]
    assert tokens == [alone[row].tokens[0] for row in order]
    assert [len(ids) for ids in tokens] == [LIMITS[row] for row in order]
    for row, values in zip(order, logps, strict=True):
        assert values == pytest.approx(alone[row].logps[0], abs=1e-4)
    assert len({tuple(ids) for ids in tokens}) == len(tokens)


@pytest.mark.gpu
def test_recorded_samples_are_those_of_plain_calls(monkeypatch):
    """A recording refuses any copy from the host, as sampling once made."""
    monkeypatch.setattr(loop_module, "_FIRST_STEPS", 2)
    moved = build("qwen2_5_vl").to("cuda")
    groups = [[2, 0], [4, 1, 3], [6], [5]]
    recorded, plain = (answers(moved, groups, 4, graph) for graph in (True, False))
    for ours, right in zip(recorded, plain, strict=True):
        assert ours.tokens == right.tokens


class OnDevice(DecodeLoop):
    """A loop as on CUDA, which replays the step for all slots; here it calls the step itself.

    Attributes:
        recordings: addresses of the first layer's keys when the step was recorded.
    """

    def __init__(self, *args, **kwargs):
        super().__init__(*args, **kwargs)
        self.recorded, self.recordings = True, []

    def _record(self):
        state = self.step.state()
        self.step()
        self.step.restart(state)
        self.recordings.append(self.cache.keys[0].data_ptr())
        return lambda: self._replayed()

    def _replayed(self):
        assert self.cache.keys[0].data_ptr() == self.recordings[-1], "what was recorded has moved"
        self.step()


@pytest.mark.parametrize("first_steps", [0, 2, 100])
@pytest.mark.parametrize("groups", [[[row] for row in range(7)], [[2, 0], [4, 1, 3], [6], [5]]])
def test_slots_that_stay_where_they_are(model, alone, groups, first_steps, monkeypatch):
    """On a device rows keep their slots: a waiting row enters whichever slot is free."""
    monkeypatch.setattr(loop_module, "_LOOK_EVERY", 3)
    monkeypatch.setattr(loop_module, "_FIRST_STEPS", first_steps)
    loop = OnDevice(model, 3, max(LIMITS), RULES)
    together = loop.answer([Waiting(len(rows), partial(sampled, model, rows)) for rows in groups])
    order = [row for rows in groups for row in rows]
    tokens = [ids for part in together for ids in part.tokens]
    assert tokens == [alone[row].tokens[0] for row in order]
    assert bool(loop.recordings) == (first_steps < 100)
    assert len(set(loop.recordings)) == len(loop.recordings)


def test_rows_that_have_ended_are_not_computed(model, monkeypatch):
    """The batch shrinks with the remaining rows: 7, 6, 5, 4 ... rows."""
    widths = []
    loop = DecodeLoop(model, 7, max(LIMITS), RULES)
    narrow = loop.cache.narrow

    def noted(active, *, trim=False):
        widths.extend([active] * trim)
        narrow(active, trim=trim)

    monkeypatch.setattr(loop.cache, "narrow", noted)
    loop.answer([Waiting(7, partial(sampled, model, list(range(7))))])
    assert widths == [sum(limit > made for limit in LIMITS) for made in range(1, max(LIMITS))]


def test_an_answer_ends_with_its_end_token(model, alone):
    ids = alone[1].tokens[0]
    end = ids[4]
    loop = DecodeLoop(model, 1, max(LIMITS), Rules(end=(end,)))
    answer = loop.answer([Waiting(1, partial(sampled, model, [1]))])[0]
    assert answer.tokens[0] == ids[: ids.index(end) + 1]


def test_a_kept_cache_is_left_as_it_is(model):
    prompts = sampled(model, [0, 3], keep=True)
    before = [layer.keys.clone() for layer in prompts.cache.layers]
    loop = DecodeLoop(model, 2, max(LIMITS), RULES)
    loop.answer([Waiting(2, lambda: prompts)])
    for layer, keys in zip(prompts.cache.layers, before, strict=True):
        assert torch.equal(layer.keys, keys)


def test_more_rows_than_slots_are_refused(model):
    with pytest.raises(ConfigError, match=r"rows = 3. the loop has 2 slots. read fewer"):
        answers(model, [[0], [1, 2, 3]], 2)


def test_no_prompts_no_answers(model):
    assert DecodeLoop(model, 2, 4, RULES).answer([]) == []


def test_greedy_prompts_wait_too(model):
    """`prefill` and a loop do what `decode` does, in groups that wait."""
    inputs = [batch([prompt("image", length, 3)]) for length in (12, 30)]
    alone = []
    for row in inputs:
        loop = prefill(model, row, TopP(p=0.6), forced=True).loop(5)
        loop.advance(5)
        alone.append(loop.step.written[0, :6].tolist())
    starts = [prefill(model, row, TopP(p=0.6), forced=True) for row in inputs]
    loop = DecodeLoop(model, 1, 5, starts[0].rules)
    together = loop.answer([Waiting(1, partial(start.prompts, 6)) for start in starts])
    assert [part.tokens[0] for part in together] == alone
    assert [part.logps for part in together] == [[[]], [[]]]
