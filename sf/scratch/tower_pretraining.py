"""Pretraining of the vision tower on cell labels, before the language model is trained.

From scratch, a tiny model spends most of its training with an uninformative tower. Here the tower
is trained alone, in seconds: each visual token must be close to the token embeddings of the words
that describe its cell, and a linear readout, discarded afterwards, must predict the cell's row,
column and words. The embeddings are not trained; the language model then receives visual tokens
aligned with its embeddings, as from an aligned pretrained tower.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from sf.mini.drawing import pixels
from sf.mini.grid_labels import WORDS, cell_facts, cell_words, sample_crowded_scene
from sf.progress import progress
from sf.scratch.optimizers import hybrid_optimizers, scale_rates, step_all
from sf.scratch.vision_features import vision_features, vision_inputs

__all__ = ["naming_accuracy", "pretrain_tower"]

_SCENES = 16
_POSITIVE_WEIGHT = 4.0
_OFFSET = 4.0
"""A word is predicted if its logit exceeds this, because most words apply to few cells."""


def word_ids(tokenizer: Any) -> Tensor:
    """[words, 2] ids of each word's last token, without and with a space before the word."""
    return torch.tensor([[tokenizer(t)["input_ids"][-1] for t in (w, f" {w}")] for w in WORDS])


def _batch(step: int, seed: int, side: int, frames: int) -> tuple[str, list[Any], Tensor, Tensor]:
    """(data type, media, positions [N, 2], words [N, words]) of a step; odd steps have clips."""
    rng = np.random.default_rng([seed, 1, step])
    if step % 2 == 0:
        scenes = [sample_crowded_scene(rng, side) for _ in range(_SCENES)]
        media, shown = [pixels(scene) for scene in scenes], scenes
    else:
        halves = [
            [sample_crowded_scene(rng, side) for _ in range(frames // 2)]
            for _ in range(_SCENES // 2)
        ]
        media = [np.stack([pixels(s) for s in clip for _ in range(2)]) for clip in halves]
        shown = [scene for clip in halves for scene in clip]
    facts = np.concatenate([cell_facts(scene) for scene in shown])
    kind = "image" if step % 2 == 0 else "video"
    return kind, media, torch.from_numpy(facts[:, :2]), torch.from_numpy(cell_words(facts))


def _word_logits(features: Tensor, embeddings: Tensor) -> Tensor:
    """[N, words, 2] from features [N, D] at unit RMS and embeddings [words, 2, D]."""
    normed = features * torch.rsqrt(features.pow(2).mean(-1, keepdim=True) + 1e-6)
    return torch.einsum("nd,wsd->nws", normed, embeddings) - _OFFSET


def pretrain_tower(
    model: Any, processor: Any, *, steps: int, rate: float, seed: int, side: int, frames: int
) -> None:
    """Train `model`'s vision tower, in place, on crowded scenes and clips.

    Args:
        model: an untrained model of a supported family.
        processor: its processor.
        steps: optimizer steps; 150 give 100 % naming accuracy in the default world.
        rate: AdamW's learning rate; Muon's is a fixed multiple.
        seed: of the scenes.
        side: cells per side.
        frames: of a clip, an even number; two equal frames form one temporal patch.
    """
    tower = model.model.visual
    embeddings = model.get_input_embeddings().weight.detach()[word_ids(processor.tokenizer)]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        readout = nn.Linear(embeddings.shape[-1], 2 * side + len(WORDS))
    optimizers = hybrid_optimizers([*tower.named_parameters(), *readout.named_parameters()], rate)
    weight = torch.tensor(_POSITIVE_WEIGHT)
    with progress("vision tower", steps) as shown:
        for step in range(steps):
            kind, media, places, labels = _batch(step, seed, side, frames)
            features = vision_features(model, vision_inputs(processor, kind, media)).flatten(0, 1)
            words = _word_logits(features, embeddings)
            naming = F.binary_cross_entropy_with_logits(
                words, labels[..., None].expand_as(words), pos_weight=weight
            )
            rows, cols, predicted = readout(features).split([side, side, len(WORDS)], dim=-1)
            naming = naming + F.binary_cross_entropy_with_logits(
                predicted, labels, pos_weight=weight
            )
            placing = F.cross_entropy(rows, places[:, 0]) + F.cross_entropy(cols, places[:, 1])
            scale_rates(optimizers, 1.0 - step / steps)
            step_all(optimizers, 10.0 * naming + placing)
            shown.advance(note=f"naming {naming.item():.4f}, placing {placing.item():.3f}")


@torch.no_grad()
def naming_accuracy(model: Any, processor: Any, *, seed: int, side: int, frames: int) -> float:
    """Share of cells in new scenes and clips with all words predicted correctly."""
    embeddings = model.get_input_embeddings().weight.detach()[word_ids(processor.tokenizer)]
    correct: list[Tensor] = []
    for step in (0, 1):
        kind, media, _, labels = _batch(step, seed, side, frames)
        features = vision_features(model, vision_inputs(processor, kind, media)).flatten(0, 1)
        predicted = _word_logits(features, embeddings).mean(-1) > 0
        correct.append((predicted == labels.bool()).all(-1).float())
    return float(torch.cat(correct).mean())
