"""The kept cells in a record are those that attention kept."""

from __future__ import annotations

import base64
import math
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from scripted import BOUNDS

from sf.attention import Trace
from sf.attention.trace import PairTrace
from sf.evaluation import model as chat_model
from sf.evaluation.benchmarks import benchmark_named
from sf.evaluation.kept_cells import kept_cells
from sf.evaluation.model import SparseChatModel
from sf.evaluation.packed_cells import packed
from sf.evaluation.records import record_log
from sf.evaluation.run import evaluate_benchmarks

MERGE = 2


def unpacked(text: str, groups: int) -> NDArray[np.bool_]:
    """The cells of `packed`, bool (groups, T, H, W), bit by bit."""
    lengths, _, bits = text.partition(":")
    shape = (groups, *(int(length) for length in lengths.split("x")))
    digits = "".join(f"{byte:08b}" for byte in base64.b64decode(bits))
    return np.array([digit == "1" for digit in digits[: math.prod(shape)]]).reshape(shape)


def test_packed_cells_come_back() -> None:
    cells = np.random.default_rng(0).random((3, 2, 3, 5)) < 0.4
    assert packed(cells).startswith("2x3x5:")
    assert (unpacked(packed(cells), 3) == cells).all()


def test_a_group_keeps_what_half_of_its_layers_keep() -> None:
    """Six layers in pairs; the second row is padded and has another image first."""
    ids = torch.tensor([[7, 7, 7, 7, 1], [0, 1, 7, 1, 7]])
    inputs = {"input_ids": ids, "image_grid_thw": torch.tensor([[1, 4, 4], [1, 2, 2], [1, 2, 2]])}
    config = SimpleNamespace(
        image_token_id=7, video_token_id=8, vision_config=SimpleNamespace(spatial_merge_size=2)
    )
    valid = ids > 0
    kept = [valid.clone() for _ in range(6)]
    kept[0][0, 1] = False  # in one of two layers: kept
    kept[2][0, 2] = kept[3][0, 2] = False
    kept[4][1, 4] = kept[5][1, 4] = False
    first, second = kept_cells(Trace(kept=kept, valid=valid), inputs, config)
    whole = [mask | (torch.arange(2)[:, None] == 1) & valid for mask in kept]
    assert kept_cells(Trace(kept=whole, valid=valid), inputs, config) == [first, ()]
    cells = unpacked(first[0], 3)
    assert cells.reshape(3, 4).tolist() == [[1, 1, 1, 1], [1, 1, 0, 1], [1, 1, 1, 1]]
    assert [unpacked(text, 3).ravel().tolist() for text in second] == [[1, 1, 1], [1, 1, 0]]


def test_records_hold_what_attention_kept(
    checkpoints: dict[str, Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Images and videos in padded batches, against the trace and the placeholders' columns."""
    expected: dict[str, list[tuple[tuple[int, ...], list[list[bool]]]]] = {}
    original, reply = chat_model.greedy, SparseChatModel._reply
    traces: list[Any] = []

    def watched(*args: Any, **options: Any) -> Any:
        output, trace = original(*args, **options)
        traces.append(trace)
        return output, trace

    def checked(self: SparseChatModel, questions: Any, inputs: Any) -> Any:
        records = reply(self, questions, inputs)
        grids = {
            kind: iter(inputs.get(f"{kind}_grid_thw", torch.zeros(0, 3)).tolist())
            for kind in ("image", "video")
        }
        for at, record in enumerate(records):
            media = []
            for kind in ("image", "video"):
                token = getattr(self.model.config, f"{kind}_token_id")
                columns = (inputs["input_ids"][at] == token).nonzero()[:, 0]
                while len(columns):
                    time, high, wide = (int(size) for size in next(grids[kind]))
                    shape = (time, high // MERGE, wide // MERGE)
                    own_columns, columns = columns.split(
                        [int(np.prod(shape)), len(columns) - int(np.prod(shape))]
                    )
                    kept = [layer[at, own_columns].tolist() for layer in traces[-1].kept]
                    media.append((shape, kept))
            expected[record.source] = media
        return records

    monkeypatch.setattr(chat_model, "greedy", watched)
    monkeypatch.setattr(SparseChatModel, "_reply", checked)
    lm = SparseChatModel(
        str(checkpoints["qwen2_5_vl"]),
        method="zipvl",
        value=0.6,
        records=str(tmp_path / "records"),
        **{**BOUNDS, "batch_size": 4},  # type: ignore[arg-type]
    )
    assert lm.model.config.get_text_config().num_hidden_layers == 3  # a layer is a group
    benchmarks = [benchmark_named(name) for name in ("chartqa", "videomme")]
    results = evaluate_benchmarks(lm, benchmarks, home, tmp_path, most_new_tokens=2)
    records = [s.record for r in results for samples in r.samples.values() for s in samples]
    times, dropped = set(), 0
    for record in records:
        media = expected[record.source]
        assert len(record.kept_cells) == len(media) > 0
        for text, (shape, cells) in zip(record.kept_cells, media, strict=True):
            recorded = unpacked(text, 3)
            assert recorded.shape[1:] == shape
            assert recorded.reshape(3, -1).tolist() == cells
            times.add(shape[0])
            dropped += int((~recorded).sum())
    assert dropped
    assert max(times) > 1
    log = record_log(tmp_path / "records")
    assert all(log.get((r.task, r.doc_id, r.source)) == r for r in records)


@pytest.mark.parametrize("kind", [Trace, PairTrace])
def test_where_no_token_is_dropped_nothing_is_recorded(kind: type[Trace]) -> None:
    valid = torch.tensor([[False, True], [True, True]])
    trace = kind(kept=[valid] * 3, valid=valid)
    assert kept_cells(trace, {"input_ids": torch.zeros(2, 2)}, None) == [(), ()]
