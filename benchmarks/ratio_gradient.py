"""Whether the paper's objective has a gradient on the token ratio, measured per batch of rollouts.

The reward prefers rollouts with fewer tokens, but the kept set is not differentiated: the model
learns the probability of the answer under the set that was kept. For each batch of a finished
study's questions (`make study`, `results/mini`) three gradients are computed at the same weights:
that of the paper's loss with and without its KL term, and that of the effective token ratio
exp(H(m)) / l (`sf.training.pathwise`), which the number of kept tokens at a fixed p follows. The
cosine between the first two and the third says whether a step on the loss lowers the ratio: below 0
it raises it. Chance is the cosine of vectors of independent signs, 1 / sqrt(number of weights).

Within each group, the advantage is also correlated with the rollout's p, token ratio and effective
ratio.

    python benchmarks/ratio_gradient.py [--batches 20] [--base FOLDER] [--data FOLDER]
"""

from __future__ import annotations

import argparse
import math
import statistics
import tempfile
from pathlib import Path
from typing import Any

import sf  # noqa: F401  (before transformers: it lets torchvision import beside a CPU-only torch)

# isort: split
import numpy as np
import torch

from sf.config import Params
from sf.data.manifest import read_manifest
from sf.provenance import ROOT
from sf.scales import scale_values
from sf.training.logps import PolicyForward
from sf.training.parameters import RunParameters
from sf.training.run import assemble
from sf.validation import validated

RANGES = {
    "mini": [0.5, 0.6, 0.7, 0.8, 0.85, 0.9, 0.95, 0.975],
    "published": [0.94, 0.945, 0.95, 0.955, 0.96, 0.965, 0.97, 0.975],
}


class Silent:
    """A tracker that discards progress and figures."""

    def log(self, step: int, values: dict[str, float]) -> None: ...

    def advance(self, *_: Any, **__: Any) -> None: ...


def trainer_of(
    base: Path, data: Path, folder: Path, grid: list[float], size: dict[str, int]
) -> Any:
    """The trainer of the paper's objective at the scale `mini`, one batch per step.

    Args:
        base, data: of a finished study.
        folder: for the trainer's output.
        grid: thresholds of a group.
        size: `steps` and `questions_per_step`.
    """
    values = scale_values("mini", ROOT / "params")
    values["objectives"] = {"row": {"objective": "sparsity_forcing", "retention_p": grid}}
    params = validated(Params, values)
    row = params.trained["row"]
    train = row.train.model_copy(update=size)
    p = RunParameters(
        model="tiny", row="row", seed=0, objective=row.objective, train=train,
        answering=params.answering, vision=params.vision, runtime=params.runtime,
    )  # fmt: skip
    rows = read_manifest(data / "train.parquet")
    return assemble(p, base, rows, folder, Silent(), Silent()).trainer


def gradient(trainer: Any, loss: torch.Tensor) -> torch.Tensor:
    """The gradient of all weights as one vector."""
    trainer.model.zero_grad()
    loss.backward()
    parts = [w.grad.flatten() for w in trainer.model.parameters() if w.grad is not None]
    return torch.cat(parts).clone()


def of_effective_ratio(trainer: Any, inputs: dict[str, Any]) -> tuple[torch.Tensor, torch.Tensor]:
    """Gradient of the rollouts' mean effective ratio, and the ratios (R,)."""
    rollout, layers = trainer.rollout, trainer.model.config.get_text_config().num_hidden_layers
    count = len(rollout.owner)
    forward = PolicyForward(
        model=trainer.model,
        bare=trainer.model,
        forced=rollout,
        temperature=1.0,
        bucketed=False,
        coefficient=torch.full((count,), 1 / count),
        shares=torch.full((layers,), 1 / layers),
    )
    ids = torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1)
    mask = torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1)
    width = inputs["completion_ids"].shape[1]
    logps, _ = forward(inputs["rollout"], ids, mask, width)
    vector = gradient(trainer, 0.0 * logps.sum())
    ratios = torch.empty(count)
    ratios[inputs["rollout"]] = torch.cat(forward.measured)
    return vector, ratios


def within_groups(advantages: torch.Tensor, values: torch.Tensor, size: int) -> list[float]:
    """Correlation in each group in which both quantities vary."""
    correlations = []
    for a, v in zip(advantages.view(-1, size), values.view(-1, size), strict=True):
        if float(a.std()) > 1e-6 and float(v.std()) > 1e-6:
            correlations.append(float(np.corrcoef(a.numpy(), v.numpy())[0, 1]))
    return correlations


def measure(trainer: Any, batches: int) -> dict[str, list[float]]:
    """Figures of each batch, or of each group."""
    figures: dict[str, list[float]] = {}
    trainer.model.train()
    trainer.current_gradient_accumulation_steps = 1
    beta = trainer.beta
    for at, batch in zip(range(batches), trainer.get_train_dataloader(), strict=False):
        trainer.state.global_step = at
        inputs = trainer._prepare_inputs(batch)
        gradients = {}
        for name, value in (("with KL", beta), ("without KL", 0.0)):
            trainer.beta = value
            gradients[name] = gradient(trainer, trainer.compute_loss(trainer.model, inputs))
        trainer.beta = beta
        ratio_gradient, effective = of_effective_ratio(trainer, inputs)
        for name, vector in gradients.items():
            cosine = torch.cosine_similarity(vector, ratio_gradient, dim=0)
            figures.setdefault(f"cosine {name}", []).append(float(cosine))
        figures.setdefault("chance", []).append(1 / math.sqrt(len(ratio_gradient)))
        order = inputs["rollout"]
        rollout, size = trainer.rollout, trainer.num_generations
        advantages = torch.empty(len(order))
        advantages[order] = inputs["advantages"].float()
        columns = {
            "p": rollout.retention_p,
            "token ratio": rollout.token_ratio,
            "effective ratio": effective,
        }
        for name, column in columns.items():
            pairs = within_groups(advantages, column, size)
            figures.setdefault(f"correlation of advantage and {name}", []).extend(pairs)
    return figures


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n", 1)[0])
    parser.add_argument("--batches", type=int, default=20)
    parser.add_argument("--questions", type=int, default=16, help="of a batch")
    parser.add_argument("--base", type=Path, default=Path("results/mini/base/tiny-qwen2.5-vl"))
    parser.add_argument("--data", type=Path, default=Path("results/mini/prepare"))
    arguments = parser.parse_args()
    size = {"steps": arguments.batches, "questions_per_step": arguments.questions}
    print("| range | figure | mean | standard error | number |\n|---|---|---:|---:|---:|")
    for name, grid in RANGES.items():
        with tempfile.TemporaryDirectory() as folder:
            trainer = trainer_of(arguments.base, arguments.data, Path(folder), grid, size)
            for figure, values in measure(trainer, arguments.batches).items():
                mean, count = statistics.fmean(values), len(values)
                error = statistics.stdev(values) / math.sqrt(count) if count > 1 else math.nan
                print(f"| {name} | {figure} | {mean:+.4f} | {error:.4f} | {count} |", flush=True)


if __name__ == "__main__":
    main()
