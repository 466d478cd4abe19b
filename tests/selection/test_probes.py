import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from sf.errors import ConfigError
from sf.selection import Probes, visible_probes


def columns(valid, probes):
    column, present = probes.columns(valid)
    return [c[p].tolist() for c, p in zip(column, present, strict=True)]


def test_a_short_prompt_is_all_probes():
    valid = torch.ones(1, 128, dtype=torch.bool)
    assert columns(valid, Probes()) == [list(range(128))]


def test_a_long_prompt_has_the_recent_and_evenly_spread_others():
    probes = columns(torch.ones(1, 1000, dtype=torch.bool), Probes())[0]
    assert probes[64:] == list(range(936, 1000))
    gaps = torch.tensor(probes[:64]).diff()
    assert len(set(probes)) == 128
    assert gaps.min() >= 14
    assert gaps.max() <= 15  # 936 / 64 = 14.6


@given(
    length=st.integers(0, 40),
    pad=st.integers(0, 9),
    recent=st.integers(0, 6),
    spread=st.integers(1, 6),
)
def test_padding_shifts_the_probes_and_changes_nothing_else(length, pad, recent, spread):
    probes = Probes(recent=recent, spread=spread)
    valid = torch.zeros(2, length + pad, dtype=torch.bool)
    valid[0, pad:] = True
    valid[1, :length] = True
    shifted, plain = columns(valid, probes)
    assert [c - pad for c in shifted] == plain
    assert plain == sorted(set(plain))
    assert len(plain) == min(length, recent + spread)
    assert all(0 <= c < length for c in plain)


def test_rows_of_different_length_have_their_own_probes():
    valid = torch.zeros(3, 50, dtype=torch.bool)
    valid[0, 47:] = True
    valid[1, 10:] = True
    probes = columns(valid, Probes(recent=4, spread=4))
    assert probes == [[47, 48, 49], [14, 23, 32, 41, 46, 47, 48, 49], []]


def test_visible_probes_counts_those_at_or_after_a_key():
    valid = torch.tensor([[False, True, True, True, True, True]])
    column, present = Probes(recent=1, spread=2).columns(valid)
    assert column.tolist() == [[2, 4, 5]]
    assert visible_probes(column, present, 6)[0, 1:].tolist() == [3, 3, 2, 2, 1]


def test_no_probe_at_all_is_refused():
    with pytest.raises(ConfigError, match="at least one probe query"):
        Probes(recent=0, spread=0)
