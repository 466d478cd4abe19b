"""The differentiable sparsity term and the path of its gradient."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import pytest
import torch
from tiny_world import Log, first_batch, parameters
from torch.utils._python_dispatch import TorchDispatchMode

from sf.attention import sparse_projections
from sf.data.manifest import Row
from sf.progress import Progress
from sf.selection import Probes
from sf.training import pathwise
from sf.training.pathwise import SparsityTerm, effective_ratio
from sf.training.rewards import GroupReward
from sf.training.run import assemble


def oracle(q: torch.Tensor, k: torch.Tensor, valid: torch.Tensor, probes: list[int]) -> float:
    """One row in float64, probe by probe: q (H, L, D), k (G, L, D), valid (L,)."""
    heads, length, _ = q.shape
    mass = torch.zeros(length, dtype=torch.float64)
    for head in range(heads):
        own = k[head * k.shape[0] // heads].double()
        for at in probes:
            seen = [j for j in range(at + 1) if valid[j]]
            weight = torch.softmax(0.5 * own[seen] @ q[head, at].double(), dim=0)
            mass[seen] += weight / heads / len(probes)
    entropy = -sum(float(m) * math.log(float(m)) for m in mass if m > 0)
    return math.exp(entropy) / int(valid.sum())


def test_effective_ratio_is_the_oracles() -> None:
    torch.manual_seed(0)
    q, k = 3 * torch.randn(2, 4, 9, 5), torch.randn(2, 2, 9, 5)
    valid = torch.tensor([[True] * 9, [False] * 4 + [True] * 5])
    measured = effective_ratio(q, k, valid, Probes(recent=3, spread=2), 0.5)
    for row, ratio in enumerate(measured):
        column, present = Probes(recent=3, spread=2).columns(valid[row : row + 1])
        assert ratio == pytest.approx(oracle(q[row], k[row], valid[row], column[present].tolist()))


def test_effective_ratio_of_even_and_of_peaked_attention() -> None:
    """The last token as the only probe: 1 when it looks everywhere, 1/l when at one token."""
    probe, valid = Probes(recent=1, spread=0), torch.ones(1, 8, dtype=torch.bool)
    even = effective_ratio(torch.zeros(1, 1, 8, 2), torch.randn(1, 1, 8, 2), valid, probe, 1.0)
    assert even.item() == pytest.approx(1.0)
    key = torch.zeros(1, 1, 8, 2)
    key[0, 0, 3] = 100.0
    peaked = effective_ratio(torch.ones(1, 1, 8, 2), key, valid, probe, 1.0)
    assert peaked.item() == pytest.approx(1 / 8)


def test_recomputing_saves_memory_and_changes_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    torch.manual_seed(0)
    q, k = torch.randn(2, 4, 9, 5), torch.randn(2, 2, 9, 5)
    valid = torch.ones(2, 9, dtype=torch.bool)
    results = []
    for limit in (1 << 22, 0):
        monkeypatch.setattr(pathwise, "_RECOMPUTE_ELEMENTS", limit)
        given = [q.clone().requires_grad_(), k.clone().requires_grad_()]
        ratio = effective_ratio(*given, valid, Probes(), 1.0)
        results.append((ratio, *torch.autograd.grad(ratio.sum(), given)))
    assert all(torch.allclose(a, b) for a, b in zip(*results, strict=True))


def one_step(
    base: Path, rows: list[Row], folder: Path, **changes: Any
) -> tuple[Any, dict[str, Any]]:
    p = parameters(objective="pathwise", **changes)
    trainer = assemble(p, base, rows, folder, Log(), Progress("t", p.train.steps)).trainer
    return trainer, first_batch(trainer)


def gradients(trainer: Any, loss: torch.Tensor) -> dict[str, torch.Tensor]:
    trainer.model.zero_grad()
    loss.backward()
    return {n: w.grad.clone() for n, w in trainer.model.named_parameters() if w.grad is not None}


@pytest.fixture
def right_when_long(monkeypatch: pytest.MonkeyPatch) -> None:
    """Every other rollout counts as right, because an untrained model never is."""
    monkeypatch.setattr(
        GroupReward,
        "accuracy",
        lambda self, completions, *_, **__: [float(at % 2) for at in range(len(completions))],
    )


@pytest.mark.parametrize("checkpointing", [False, True])
def test_gradient_is_that_of_the_gated_mean_ratio(
    base: Path,
    rows: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    right_when_long: None,
    checkpointing: bool,
) -> None:
    """Injected gradient = gradient of paper loss + weight * mean(correct * ratio), by autograd."""
    trainer, inputs = one_step(
        base, rows, tmp_path, pathwise={"weight": 2.0}, gradient_checkpointing=checkpointing
    )
    if checkpointing:
        trainer.model.gradient_checkpointing_enable()
    injected = gradients(trainer, trainer.compute_loss(trainer.model, inputs))
    if checkpointing:
        trainer.model.gradient_checkpointing_disable()

    terms: list[torch.Tensor] = []

    def collect(self: SparsityTerm, layer: int, output: Any, ratio: torch.Tensor) -> Any:
        self.ratios[layer] = ratio.detach()
        terms.append((self.coefficient * self.shares[layer] * ratio).sum())
        return output

    monkeypatch.setattr(SparsityTerm, "apply", collect)
    loss = trainer.compute_loss(trainer.model, inputs)
    expected = gradients(trainer, loss + sum(terms))
    plain = gradients(trainer, trainer.compute_loss(trainer.model, inputs))
    assert injected.keys() == expected.keys()
    moved = 0.0
    for name, gradient in expected.items():
        assert torch.allclose(injected[name], gradient, atol=1e-5), name
        moved = max(moved, float((gradient - plain[name]).abs().max()))
    assert moved > 1e-3


def test_term_lowers_the_effective_ratio(
    base: Path, rows: list[Row], tmp_path: Path, right_when_long: None
) -> None:
    logs = []
    for at, weight in enumerate((0.0, 50.0)):
        p = parameters(objective="pathwise", pathwise={"weight": weight}, steps=6, save_every=99)
        log = Log()
        assemble(p, base, rows, tmp_path / str(at), log, Progress("t", 6)).trainer.train()
        logs.append(log.history[-1][1])
    assert "effective_ratio" not in logs[0]
    assert logs[1]["effective_ratio"] > 0
    assert logs[1]["token_ratio"] < logs[0]["token_ratio"] - 0.01


def test_long_prompts_whose_projections_could_be_skipped_count_too(
    base: Path,
    rows: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    right_when_long: None,
) -> None:
    """Where sparse prefill stands in for a layer's whole forward, the term must not be lost."""
    by_columns = []
    for columns in (sparse_projections.LEAST_COLUMNS, 1):
        monkeypatch.setattr(sparse_projections, "LEAST_COLUMNS", columns)
        trainer, inputs = one_step(base, rows, tmp_path / str(columns), pathwise={"weight": 2.0})
        by_columns.append(gradients(trainer, trainer.compute_loss(trainer.model, inputs)))
        ratios = trainer._figures.drain()
        assert 0 < ratios["effective_ratio"] <= 1
    assert by_columns[0].keys() == by_columns[1].keys()
    assert all(torch.allclose(by_columns[0][n], g, atol=1e-5) for n, g in by_columns[1].items())


class Bytes(TorchDispatchMode):
    """Bytes of what operations make: the largest tensor, and all of them."""

    def __init__(self) -> None:
        super().__init__()
        self.largest = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        for made in result if isinstance(result, tuple | list) else (result,):
            if isinstance(made, torch.Tensor):
                self.largest = max(self.largest, made.numel() * made.element_size())
        return result


def test_memory_grows_with_the_prompt_not_with_its_square() -> None:
    """Qwen2.5-VL-7B's shape up to 32k tokens, without storage: what is made and what is kept."""
    largest, stored = [], []
    for length in (8192, 16384, 32768):
        q = torch.empty(1, 28, length, 128, device="meta", requires_grad=True)
        k = torch.empty(1, 4, length, 128, device="meta", requires_grad=True)
        valid = torch.ones(1, length, dtype=torch.bool, device="meta")
        kept: dict[int, int] = {}

        def keep(tensor: torch.Tensor, kept: dict[int, int] = kept) -> torch.Tensor:
            if tensor.data_ptr() == 0 and tensor._base is None and not tensor.is_leaf:
                kept[id(tensor)] = tensor.numel() * tensor.element_size()
            return tensor

        with Bytes() as made, torch.autograd.graph.saved_tensors_hooks(keep, lambda t: t):
            effective_ratio(q, k, valid, Probes(), 0.1).sum().backward()
        largest.append(made.largest / length)
        stored.append(sum(kept.values()) / length)
    assert max(largest) <= 1.01 * min(largest)
    assert max(stored) <= 1.01 * min(stored)
    assert largest[0] == 28 * 128 * 4, "the gradient of the queries is the largest tensor"
    assert 0 < stored[0] < 28 * 128 * 4


@pytest.mark.parametrize("gate", [True, False])
def test_gate_and_shares_reach_the_loss(
    base: Path, rows: list[Row], tmp_path: Path, right_when_long: None, gate: bool
) -> None:
    trainer, _ = one_step(base, rows, tmp_path, pathwise={"gate": gate, "layers": "deeper"})
    generation = trainer._generations["train"]
    assert generation.coefficient.tolist() == [0.0 if gate else 1 / 8, 1 / 8] * 4
    assert torch.allclose(generation.shares, torch.tensor([1 / 6, 2 / 6, 3 / 6]))


@pytest.mark.slow
def test_asked_ratio_is_held(base: Path, rows: list[Row], tmp_path: Path) -> None:
    """From 0.95 to the target of 0.5, and no further; without a target the weight continues."""
    ended = []
    for target in ({"token_ratio": 0.5, "dual_rate": 20.0}, None):
        p = parameters(
            objective="pathwise", steps=90, save_every=999, lr_schedule="constant",
            retention_p=[0.5, 0.7, 0.9, 0.975],
            pathwise={"gate": False, "weight": 1.5, "target": target},
        )  # fmt: skip
        log = Log()
        assemble(p, base, rows, tmp_path / str(len(ended)), log, Progress("t", 90)).trainer.train()
        assert log.history[0][1]["pathwise_ratio"] > 0.9
        ended.append(sum(values["pathwise_ratio"] for _, values in log.history[-15:]) / 15)
    assert 0.4 < ended[0] < 0.55
    assert ended[1] < ended[0] - 0.1
