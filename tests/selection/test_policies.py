import dataclasses

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import sf.selection
from sf.errors import ConfigError
from sf.selection import FixedMask, Policy, Scores, Threshold, TopK, TopP


def scores(mass, visible=None, valid=None, num_probes=None):
    mass = torch.tensor(mass, dtype=torch.float32)
    mass = mass[None] if mass.ndim == 1 else mass
    ones = torch.ones_like(mass)
    return Scores(
        mass=mass,
        visible=ones.long() if visible is None else torch.tensor(visible),
        num_probes=mass.sum(-1).long() if num_probes is None else torch.tensor(num_probes),
        valid=ones.bool() if valid is None else torch.tensor(valid),
    )


def kept(policy, of, layer=0):
    return policy.keep(of, layer).int().tolist()


def test_top_p_counts_with_the_raw_mass_and_chooses_with_the_normalised_score():
    # Two of four tokens hold half of the raw mass; per visible probe the last two are the best.
    of = scores([3.0, 2.0, 2.0, 1.0], visible=[[8, 4, 2, 1]])
    assert of.num_probes.tolist() == [8]
    assert kept(TopP(p=0.5), of) == [[0, 0, 1, 1]]


def test_top_p_takes_the_smallest_count_that_reaches_the_target_exactly():
    of = scores([4.0, 2.0, 1.0, 1.0])
    assert kept(TopP(p=0.75), of) == [[1, 1, 0, 0]]
    assert kept(TopP(p=0.7501), of) == [[1, 1, 1, 0]]
    assert kept(TopP(p=1e-9), of) == [[1, 0, 0, 0]]


def test_ties_go_to_the_earlier_token():
    assert kept(TopP(p=0.5), scores([1.0] * 6)) == [[1, 1, 1, 0, 0, 0]]
    assert kept(TopP(p=0.25), scores([1.0] * 4096)) == [[1] * 1024 + [0] * 3072]


@pytest.mark.parametrize("num_probes", [2, 3, 4])
def test_p_one_keeps_everything_whatever_the_masses_sum_to(num_probes):
    assert kept(TopP(p=1.0), scores([2.0, 0.0, 1.0], num_probes=[num_probes])) == [[1, 1, 1]]


def test_rows_have_their_own_p_and_padding_is_never_kept():
    of = scores(
        [[0.0, 0.0, 3.0, 1.0], [2.0, 1.0, 1.0, 0.0], [0.0] * 4],
        valid=[[False, False, True, True], [True] * 4, [False] * 4],
    )
    assert kept(TopP(p=[1.0, 0.5, 0.9]), of) == [[0, 0, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0]]


def test_one_p_serves_the_rows_that_generate_makes_of_a_prompt():
    of = scores([[2.0, 1.0, 1.0]] * 4)
    assert kept(TopP(p=[0.5, 1.0]), of) == [[1, 0, 0]] * 2 + [[1, 1, 1]] * 2
    with pytest.raises(ConfigError, match="3 values"):
        TopP(p=[0.5, 0.6, 0.7]).keep(of, 0)


@given(
    mass=st.lists(st.integers(0, 8), min_size=1, max_size=12),
    low=st.floats(0.01, 1),
    high=st.floats(0.01, 1),
)
def test_a_larger_p_keeps_more(mass, low, high):
    of = scores([float(m) for m in mass])
    low, high = sorted((low, high))
    fewer, more = (TopP(p=p).keep(of, 0) for p in (low, high))
    assert not (fewer & ~more).any()


@pytest.mark.parametrize(("ratio", "count"), [(0.0, 0), (0.3, 3), (0.31, 4), (1.0, 10)])
def test_top_k_keeps_a_share_rounded_up(ratio, count):
    assert TopK(ratio=ratio).keep(scores([float(i) for i in range(10)]), 0).sum() == count


def test_top_k_is_not_misled_by_rounding():
    assert 0.07 * 100 > 7
    assert TopK(ratio=0.07).keep(scores([1.0] * 100), 0).sum() == 7


def test_threshold_compares_the_normalised_score():
    of = scores([4.0, 2.0, 1.0], visible=[[8, 2, 1]])
    assert kept(Threshold(value=0.75), of) == [[0, 1, 1]]
    assert Threshold(value=0.0).dense


def test_a_fixed_mask_is_replayed_layer_by_layer_at_any_padding():
    policy = FixedMask([torch.tensor([[0, 0, 1]]), torch.tensor([[0, 1, 1]])])
    of = scores([[0.0] * 2], num_probes=[2])
    assert kept(policy, of, layer=1) == [[1, 1]]
    assert kept(policy, scores([[0.0] * 4] * 2), layer=0) == [[0, 0, 0, 1]] * 2
    with pytest.raises(ConfigError, match="left of it"):
        policy.keep(scores([[0.0]]), 1)
    with pytest.raises(ConfigError, match="layer 2"):
        policy.keep(of, 2)


@pytest.mark.parametrize(
    "make",
    [
        lambda: TopP(p=0.0),
        lambda: TopP(p=1.01),
        lambda: TopP(p=[]),
        lambda: TopK(ratio=-0.1),
        lambda: Threshold(value=2.0),
        lambda: FixedMask([]),
        lambda: FixedMask([torch.ones(3)]),
    ],
)
def test_values_outside_their_range_are_refused(make):
    with pytest.raises(ConfigError):
        make()


def test_only_full_retention_is_known_to_be_dense():
    assert TopP(p=1).dense
    assert TopP(p=[1.0, 1.0]).dense
    assert not TopP(p=[1.0, 0.9]).dense
    assert TopK(ratio=1.0).dense
    assert not FixedMask([torch.ones(1, 3, dtype=torch.bool)]).dense


def test_exports():
    assert sf.selection.__all__ == sorted(sf.selection.__all__)
    assert all(hasattr(sf.selection, name) for name in sf.selection.__all__)
    assert Policy.__abstractmethods__ == {"keep"}


@pytest.mark.parametrize("policy", [TopK, TopP, Threshold])
def test_layers_share_only_what_their_policy_and_prompt_decide(policy):
    """One memory for all layers of a forward; another policy or prompt must not read it."""
    first = scores([0.4, 0.3, 0.2, 0.1], num_probes=[1])
    second = dataclasses.replace(first, mass=first.mass.flip(-1))
    third = dataclasses.replace(first, valid=torch.tensor([[False, True, True, True]]))
    assert first.memory is second.memory is third.memory
    low, high = (0.25, 0.75) if policy is not TopP else (0.4, 0.9)
    for value in (low, high):
        for of in (first, second, third):
            alone = dataclasses.replace(of, memory={})
            assert kept(policy(value), of) == kept(policy(value), alone)


def test_what_layers_share_is_made_once():
    of = scores([0.4, 0.3, 0.2, 0.1])
    made = []
    for _ in range(2):
        of.once("count", of.valid, make=lambda: made.append(1) or torch.ones(1))
    assert made == [1]
    of.once("count", of.mass, make=lambda: made.append(2) or torch.ones(1))
    assert made == [1, 2]
