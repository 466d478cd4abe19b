"""Two ranks with whole and with sharded weights: killed, resumed, saved as a plain model."""

from __future__ import annotations

import json
import os
import pickle
import signal
import subprocess
import sys
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from forked_ranks import on_ranks
from pickled import Payload
from safetensors.torch import load_file
from tiny_world import Log, parameters, write_rows
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import Shard, distribute_tensor
from transformers import Qwen2_5_VLForConditionalGeneration

from sf.data.manifest import Row
from sf.errors import ConfigError
from sf.models import load_model
from sf.progress import Progress
from sf.ranks import join, rank, world_size
from sf.training import token_scores
from sf.training.checkpoints import seal
from sf.training.cost import RankMemory
from sf.training.optimizer_files import read_state, write_state
from sf.training.run import assemble, train
from sf.training.sharding import gathered, local

KINDS = ["none", "fsdp"]
NOTE = {"model": "tiny", "objective": "sparsity_forcing"}


class DeadlyLog(Log):
    """Kills only its own rank, after one checkpoint and before the next."""

    def log(self, step: int, values: dict[str, float]) -> None:
        super().log(step, values)
        if step == 3:
            os.kill(os.getpid(), signal.SIGKILL)


def run(base: Path, folder: Path, sharding: str, name: str, log: Log) -> None:
    """On one of the ranks: four steps, a checkpoint after the second."""
    torch.set_num_threads(1)
    token_scores.BLOCK_LOGITS = 4000  # a few tokens of the tiny vocabulary
    rows, own = write_rows(folder / f"rows-{rank()}"), folder / f"{sharding}-{name}"
    train(parameters(sharding=sharding), base, rows, own / "state", own / "out", log, NOTE)


def held(model: torch.nn.Module, trained: bool = False) -> int:
    """Bytes of this rank's weights."""
    own = [local(w) for w in model.parameters() if w.requires_grad or not trained]
    return sum(w.numel() * w.element_size() for w in own)


def weigh(base: Path, folder: Path) -> None:
    """On one of the ranks: bytes of the weights before the first step."""
    p, rows = parameters(sharding="fsdp"), write_rows(folder / f"rows-{rank()}")
    made = assemble(p, base, rows, folder / "weighed", Log(), Progress("t", 1))
    trainer: Any = made.trainer
    sizes = {
        "policy": held(trainer.model),
        "reference": held(trainer.ref_model),
        "trained": held(trainer.model, trained=True),
    }
    with gathered(trainer.model):
        sizes["gathered"] = held(trainer.model, trained=True)
    sizes["after"] = held(trainer.model)
    (folder / f"bytes-{rank()}.json").write_text(json.dumps(sizes))


def moments(filled: bool) -> dict[str, Any]:
    """A state whose tensors do not divide evenly over 2, 3 or 4 ranks."""
    mesh = init_device_mesh("cpu", (world_size(),))
    whole = {"w/exp_avg": (7, 2), "bias/exp_avg": (1,), "wide/exp_avg": (3, 5)}
    state: dict[str, Any] = {}
    for name, shape in whole.items():
        weight, moment = name.split("/")
        values = torch.arange(1.0, 1 + torch.Size(shape).numel()).reshape(shape)
        given = values if filled else torch.zeros(shape)
        divided = distribute_tensor(given, mesh, [Shard(0)])
        state[weight] = {"step": torch.tensor(float(filled)), moment: divided}
    group = {"lr": 0.1 + 0.2 if filled else 0.0, "betas": (0.9, 0.999), "params": list(state)}
    return {"state": state, "param_groups": [group]}


def write_moments(folder: Path) -> None:
    join()
    write_state(moments(filled=True), folder / "moments")


def read_moments(folder: Path) -> None:
    """On one of the ranks: a state written by another number of ranks is read tensor for tensor."""
    join()
    state, wanted = moments(filled=False), moments(filled=True)
    read_state(state, folder / "moments")
    assert state["param_groups"] == wanted["param_groups"]
    for weight, values in wanted["state"].items():
        for name, tensor in values.items():
            assert torch.equal(local(state["state"][weight][name]), local(tensor)), (weight, name)


@pytest.fixture(scope="module")
def folder(base: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The output of the ranks."""
    made = tmp_path_factory.mktemp("sharded")
    path = os.pathsep.join(str(Path(__file__).parents[at]) for at in range(3))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, __file__, str(base), str(made)]
    done = subprocess.run(command, env=environment, text=True, timeout=1100, capture_output=True)
    assert not done.returncode, done.stderr[-4000:]
    return made


@pytest.mark.parametrize("sharding", KINDS)
def test_a_run_whose_rank_was_killed_goes_on_to_the_same_weights(
    base: Path, folder: Path, sharding: str
) -> None:
    """And to the same figures of every later step, so also to the same answers."""
    places = [folder / f"{sharding}-{name}" / "out" for name in ("whole", "parts")]
    whole, parts = map(load_model, places)
    start = load_model(base).state_dict()
    assert any(not torch.equal(start[name], w) for name, w in whole.state_dict().items())
    assert not (folder / f"{sharding}-parts" / "state" / "checkpoint-3").exists()
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, parts.state_dict()[name]), name
    tables = [(place / "tables" / "completions.csv").read_text() for place in places]
    assert tables[0] == tables[1]


def test_sharded_training_ends_where_data_parallel_does(base: Path, folder: Path) -> None:
    """The first step, and the whole change of the weights; Adam enlarges rounding."""
    start = load_model(base).state_dict()
    places = [folder / f"{name}-whole" for name in ("fsdp", "none")]
    first, expected = (
        json.loads((place / "state" / "checkpoint-4" / "trainer_state.json").read_text())
        for place in places
    )
    for name in ("loss", "grad_norm", "reward", "entropy"):
        wanted = pytest.approx(expected["log_history"][0][name], rel=1e-5, abs=1e-7)
        assert first["log_history"][0][name] == wanted, name
    sharded, other = (load_model(place / "out").state_dict() for place in places)
    assert sharded.keys() == other.keys() == start.keys()
    change = torch.cat([(other[name] - start[name]).flatten() for name in start])
    error = torch.cat([(sharded[name] - other[name]).flatten() for name in start])
    assert error.norm() < 0.02 * change.norm()


@pytest.mark.parametrize("place", ["out", "state/checkpoint-2"])
def test_result_and_checkpoints_are_plain_transformers(folder: Path, place: str) -> None:
    path, other = (folder / f"{name}-whole" / place for name in ("fsdp", "none"))
    names = [set(load_file(where / "model.safetensors")) for where in (path, other)]
    assert names[0] == names[1]
    model, report = Qwen2_5_VLForConditionalGeneration.from_pretrained(
        path, output_loading_info=True
    )
    assert not any(report[kind] for kind in ("missing_keys", "unexpected_keys", "mismatched_keys"))
    config = json.loads((path / "config.json").read_text())
    assert config["architectures"] == ["Qwen2_5_VLForConditionalGeneration"]
    assert model.dtype == torch.float32


def test_each_rank_holds_its_part(base: Path, folder: Path) -> None:
    """As the estimate before a run states; gathered weights are freed."""
    measured = [json.loads((folder / f"bytes-{at}.json").read_text()) for at in (0, 1)]
    model = load_model(base)
    model.model.visual.requires_grad_(False)
    tower = sum(w.numel() * 4 for w in model.model.visual.parameters())
    decoder = sum(w.numel() * 4 for w in model.parameters()) - tower
    predicted = RankMemory.of(parameters(sharding="fsdp"), model, 2, reference=True)
    for own in measured:
        assert own["policy"] == own["reference"] == own["after"] == own["trained"] + tower
        assert own["gathered"] == predicted.gathered == decoder
        # Gradients and two moments are as large as the trained weights.
        needed = own["policy"] + own["reference"] - tower + 3 * own["trained"]
        assert needed == pytest.approx(predicted.held, rel=0.01)
    assert sum(own["trained"] for own in measured) == decoder
    alone = RankMemory.of(parameters(), model, 2, reference=True)
    assert alone.held == 2 * (tower + decoder) + 3 * decoder


def test_a_checkpoint_of_divided_weights_runs_no_code(folder: Path) -> None:
    """`main` plants pickles under every name that torch's own reader would open."""
    planted = folder / "fsdp-parts" / "state" / "checkpoint-2" / "optimizer"
    assert (planted / ".metadata").is_file()
    assert not (folder / "executed").exists()


@pytest.mark.parametrize(
    ("changes", "ranks", "rule"),
    [
        ({}, 1, "several processes"),
        ({"lora": {"rank": 4, "alpha": 8}}, 2, "adapters"),
        ({"train_vision": True}, 2, "frozen vision tower"),
    ],
)
def test_runs_that_cannot_be_sharded(
    base: Path,
    rows: list[Row],
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    changes: dict[str, Any],
    ranks: int,
    rule: str,
) -> None:
    monkeypatch.setenv("WORLD_SIZE", str(ranks))
    p = parameters(**{"sharding": "fsdp"} | changes)
    with pytest.raises(ConfigError, match=f"train.sharding = '{p.train.sharding}'.*{rule}"):
        assemble(p, base, rows, tmp_path, Log(), Progress("t", 1))


def main(base: Path, folder: Path) -> None:
    """All runs, each on its own two ranks."""
    on_ranks(2, lambda: weigh(base, folder))
    on_ranks(2, lambda: write_moments(folder))
    for size in (2, 3, 1, 4):
        on_ranks(size, lambda: read_moments(folder))
    for sharding in KINDS:
        one = partial(run, base, folder, sharding)
        on_ranks(2, partial(one, "whole", Log()))
        # One rank ends by the signal, the other by the error that its neighbour is gone.
        with pytest.raises(RuntimeError, match=r"\[-9, 1\]"):
            on_ranks(2, partial(one, "parts", DeadlyLog()))
        if sharding == "fsdp":
            checkpoint = folder / "fsdp-parts" / "state" / "checkpoint-2"
            for name in (".metadata", "__0_0.distcp", "optimizer.pt"):
                planted = checkpoint / "optimizer" / name
                planted.write_bytes(pickle.dumps(Payload(folder / "executed")))
            seal(checkpoint)
        on_ranks(2, partial(one, "parts", Log()))


if __name__ == "__main__":
    main(*(Path(argument) for argument in sys.argv[1:]))
