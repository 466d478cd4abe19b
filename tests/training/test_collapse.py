"""Early stopping, the cost estimate, and machines that run out of memory or disk."""

from __future__ import annotations

import errno
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from tiny_world import Log, parameters
from transformers import Trainer

from sf.data.manifest import Row
from sf.errors import EnvironmentFault, TrainingCollapse
from sf.models import load_model
from sf.training.checkpoints import last_sealed, seal
from sf.training.collapse import CollapseWatch, kept_checkpoints
from sf.training.cost import CostEstimate, RankMemory, duration
from sf.training.rewards import GroupReward
from sf.training.run import train

PROVENANCE = {"model": "tiny", "objective": "sparsity_forcing"}


def feed(watch: CollapseWatch, folder: Path, values: list[dict[str, float]], start: int = 1) -> int:
    """Log entries, one per step; returns the step that raised, 0 if none did."""
    args = SimpleNamespace(output_dir=str(folder))
    for step, logs in enumerate(values, start):
        state: Any = SimpleNamespace(global_step=step, is_world_process_zero=True)
        try:
            watch.on_log(args, state, None, logs)
        except TrainingCollapse:
            return step
    return 0


def falling(name: str, before: float, after: float, at: int, count: int) -> list[dict[str, float]]:
    return [{name: before if step < at else after} for step in range(1, count + 1)]


@pytest.mark.parametrize(
    ("name", "after", "stops"),
    [("accuracy", 0.3, True), ("accuracy", 0.45, False), ("token_ratio", 0.05, True),
     ("token_ratio", 0.25, False), ("entropy", 0.01, True), ("entropy", 0.1, False)],
)  # fmt: skip
def test_a_run_ends_when_a_mean_falls_below_its_share(
    tmp_path: Path, name: str, after: float, stops: bool
) -> None:
    """From 0.8 at step 11: three low steps fill the window of patience 3."""
    watch = CollapseWatch(parameters(collapse={"patience": 3, "entropy": 0.05}))
    step = feed(watch, tmp_path, falling(name, 0.8, after, 11, 20))
    assert step == (13 if stops else 0)


def test_patience_counts_steps_whatever_is_logged(tmp_path: Path) -> None:
    """Patience 6 and an entry every third step: two entries fill each window."""
    watch = CollapseWatch(parameters(collapse={"patience": 6}, log_every=3))
    assert feed(watch, tmp_path, falling("accuracy", 0.8, 0.1, 5, 9)) == 6


def test_one_bad_step_is_no_collapse(tmp_path: Path) -> None:
    watch = CollapseWatch(parameters(collapse={"patience": 4}))
    values = [{"accuracy": 0.0 if step % 3 == 0 else 0.9} for step in range(1, 30)]
    assert feed(watch, tmp_path, values) == 0


def test_a_figure_that_was_nothing_at_first_cannot_collapse(tmp_path: Path) -> None:
    watch = CollapseWatch(parameters(collapse={"patience": 2}))
    assert feed(watch, tmp_path, [{"accuracy": 0.0}] * 9) == 0


def test_switched_off(tmp_path: Path) -> None:
    values = falling("accuracy", 0.8, 0.0, 5, 20)
    assert feed(CollapseWatch(parameters()), tmp_path, values) == 0
    off = CollapseWatch(parameters(collapse={"patience": 2, "accuracy": 0.0}))
    assert feed(off, tmp_path, values) == 0


def test_half_way_there_it_warns_of_the_cause(tmp_path: Path) -> None:
    watch = CollapseWatch(parameters(collapse={"patience": 2}))
    with pytest.warns(UserWarning, match=r"accuracy is 0\.5.*below 0\.4 the run ends") as caught:
        assert feed(watch, tmp_path, falling("accuracy", 0.8, 0.5, 5, 12)) == 0
    assert len(caught) == 1


def test_window_goes_on_after_a_resume(tmp_path: Path) -> None:
    values = falling("accuracy", 0.8, 0.1, 6, 12)
    whole = feed(CollapseWatch(parameters(collapse={"patience": 4})), tmp_path, values)
    first, second = (CollapseWatch(parameters(collapse={"patience": 4})) for _ in range(2))
    assert feed(first, tmp_path, values[:6]) == 0
    second.load_state_dict(first.state_dict())
    assert feed(second, tmp_path, values[6:], start=7) == whole == 8


@pytest.mark.parametrize(("patience", "every", "kept"), [(0, 50, 2), (50, 50, 2), (200, 50, 5)])
def test_enough_checkpoints_are_kept(patience: int, every: int, kept: int) -> None:
    watched = {"collapse": {"patience": patience}} if patience else {}
    assert kept_checkpoints(parameters(save_every=every, **watched)) == kept


def test_checkpoints_of_the_collapse_are_dropped(tmp_path: Path) -> None:
    for step in (4, 8, 12):
        folder = tmp_path / f"checkpoint-{step}"
        folder.mkdir()
        seal(folder)
    watch = CollapseWatch(parameters(collapse={"patience": 4}))
    assert feed(watch, tmp_path, falling("accuracy", 0.8, 0.0, 10, 11)) == 0
    args: Any = SimpleNamespace(output_dir=str(tmp_path))
    state: Any = SimpleNamespace(global_step=12, is_world_process_zero=True)
    with pytest.raises(TrainingCollapse, match=r"beta.*checkpoint-8: copy it") as caught:
        watch.on_log(args, state, None, {"accuracy": 0.0})
    assert caught.value.field == "accuracy"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["checkpoint-4", "checkpoint-8"]


def test_a_real_run_that_forgets_its_answers(
    base: Path, rows: list[Row], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Right for four steps, then never: it ends at step 6 with a whole model of step 4."""
    steps = iter(range(1, 99))
    monkeypatch.setattr(
        GroupReward,
        "accuracy",
        lambda self, completions, *_, **__: [float(next(steps) <= 4)] * len(completions),
    )
    p = parameters(steps=12, save_every=1, collapse={"patience": 2})
    log, state = Log(), tmp_path / "state"
    with pytest.raises(TrainingCollapse, match="accuracy = 0"):
        train(p, base, rows, state, tmp_path / "out", log, PROVENANCE)
    assert log.history[-1][0] == 6
    good = last_sealed(state)
    assert good is not None
    assert good.name == "checkpoint-4"
    assert all(weight.isfinite().all() for weight in load_model(good).state_dict().values())
    assert {"estimated_hours", "estimated_disk_gib", "estimated_tokens"} <= log.history[-1][
        1
    ].keys()


def test_estimate_is_the_steps_without_the_first(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Steps of 100, 10, 12 and 11 s and 50 tokens: 1,000 steps are 11,000 s and 50,000 tokens."""
    times = iter([0.0, 100.0, 0.0, 10.0, 0.0, 12.0, 0.0, 11.0])
    cost = CostEstimate(
        parameters(steps=1000), 2.0, 2, "rollouts", RankMemory(2**31, 0), lambda: next(times)
    )
    assert "8,000 in all, at most 32,000 answer tokens; a checkpoint of 2.00 GiB" in cost.before(
        tmp_path
    )
    for step in range(4):
        seen = SimpleNamespace(num_input_tokens_seen=step * 50, global_step=step, max_steps=1000)
        cost.on_step_begin(None, seen, None)
        after: Any = SimpleNamespace(
            num_input_tokens_seen=(step + 1) * 50, global_step=step + 1, max_steps=1000,
            is_world_process_zero=True,
        )  # fmt: skip
        cost.on_step_end(None, after, None)
    assert cost.figures["estimated_hours"] == pytest.approx(11_000 / 3600)
    assert cost.figures["estimated_tokens"] == 50_000
    assert cost.figures["estimated_disk_gib"] == 6.0
    output = capsys.readouterr().err
    assert "about 11 s a step: 3 h 3 min in all, 3 h 3 min left; 50,000 tokens" in output


@pytest.mark.parametrize(("reference", "expected"), [(False, 4 * 30 + 12 * 10), (True, 360)])
def test_a_rank_holds_weights_reference_and_what_training_adds(
    reference: bool, expected: int
) -> None:
    """30 weights of 4 bytes, of which 10 have a gradient and two moments."""
    model = torch.nn.Sequential(
        torch.nn.Linear(5, 4, bias=False), torch.nn.Linear(5, 2, bias=False)
    )
    model[0].requires_grad_(False)
    assert RankMemory.of(parameters(), model, 1, reference) == RankMemory(expected, 0)


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(40, "40 s"), (600, "10 min"), (7320, "2 h 2 min"), (397_440, "4 d 14 h")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def no_memory() -> None:
    raise torch.OutOfMemoryError("CUDA out of memory")


def no_space() -> None:
    raise OSError(errno.ENOSPC, "No space left on device")


def torch_on_a_full_disk() -> None:
    """torch's own error, which names neither the disk nor a number."""
    torch.save(torch.zeros(2**20), "/dev/full")


@pytest.fixture(scope="module")
def never_exhausted(
    base: Path, rows: list[Row], tmp_path_factory: pytest.TempPathFactory
) -> dict[str, torch.Tensor]:
    """Weights after both steps in one go."""
    folder = tmp_path_factory.mktemp("whole")
    p = parameters(steps=2, save_every=1)
    train(p, base, rows, folder / "state", folder / "out", Log(), PROVENANCE)
    return dict(load_model(folder / "out").state_dict())


@pytest.mark.parametrize(
    ("fault", "where", "parts"),
    [
        (no_memory, "training_step", ("memory", "at step 2", "rollouts_per_forward")),
        (no_space, "_save_optimizer_and_scheduler",
         ("free disk space", "after step 2", "larger disk")),
        (torch_on_a_full_disk, "_save_optimizer_and_scheduler",
         ("free disk space", "after step 2", "larger disk")),
    ],
    ids=["memory", "disk", "torch's disk"],
)  # fmt: skip
def test_an_exhausted_machine_ends_clearly_and_the_run_goes_on(
    base: Path,
    rows: list[Row],
    tmp_path: Path,
    never_exhausted: dict[str, torch.Tensor],
    fault: Callable[[], None],
    where: str,
    parts: tuple[str, ...],
) -> None:
    """In the second step, after a whole checkpoint of the first; a disk fails in mid-checkpoint."""
    p, original = parameters(steps=2, save_every=1), getattr(Trainer, where)
    folders = tmp_path / "state", tmp_path / "out"

    def failing(self: Any, *args: Any, **kwargs: Any) -> Any:
        late = self.state.global_step == (1 if where == "training_step" else 2)
        if late:
            fault()
        return original(self, *args, **kwargs)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Trainer, where, failing)
        with pytest.raises(EnvironmentFault) as caught:
            train(p, base, rows, *folders, Log(), PROVENANCE)
    assert all(part in str(caught.value) for part in (*parts, "goes on from it"))
    log = Log()
    if where != "training_step":
        with pytest.warns(UserWarning, match="checkpoint-2 was not finished"):
            train(p, base, rows, *folders, log, PROVENANCE)
    else:
        train(p, base, rows, *folders, log, PROVENANCE)
    assert [step for step, _ in log.history] == [2]
    weights = load_model(folders[1]).state_dict()
    assert all(torch.equal(weights[name], whole) for name, whole in never_exhausted.items())
