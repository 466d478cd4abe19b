"""Models with the weights of a block attention, and what every block attention must hold."""

from __future__ import annotations

import torch
from tiny_models import batch, generate
from torch import nn

from sf.attention.blocks import Replacement
from sf.attention.trained import note_trained


def equipped(model, attention, std=0.3):
    """With weights far from those of the start, which differ from token to token."""
    note_trained(model, attention)
    torch.manual_seed(4)
    for name, parameter in model.named_parameters():
        if f".{attention.weights}." in name:
            nn.init.normal_(parameter, std=std)
    return model


def check_left_padding(model, attention, rows, width):
    """A row of a padded batch has the tokens, logits, ratios and cache that it has alone."""
    with Replacement(model, attention) as trace:
        together = generate(model, batch(rows, width))
        ratios, kv = trace.layer_ratios, trace.kv_lengths
        for at, row in enumerate(rows):
            alone = generate(model, row)
            assert torch.equal(together.sequences[at, -6:], alone.sequences[0, -6:])
            gap = torch.stack(together.logits)[:, at] - torch.stack(alone.logits)[:, 0]
            assert gap.abs().max() < 1e-4
            assert torch.allclose(ratios[:, at], trace.layer_ratios[:, 0])
            assert kv[:, at].tolist() == trace.kv_lengths[:, 0].tolist()
            assert kv[0, at] == row["input_ids"].shape[1] + 5
