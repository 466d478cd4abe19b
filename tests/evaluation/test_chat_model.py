"""The chat model: registration, equality with lmms-eval's own, batching, resumption, records."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from scripted import BOUNDS

from sf.errors import ConfigError, UnsupportedModelError
from sf.evaluation.benchmarks import benchmark_named
from sf.evaluation.model import SparseChatModel
from sf.evaluation.records import record_log
from sf.evaluation.registry import MODEL_NAME
from sf.evaluation.run import evaluate_benchmarks

MIXED = ("mmstar", "ocrbench", "videomme_w_subtitle")


def _model(checkpoint: Path, **changed: Any) -> SparseChatModel:
    return SparseChatModel(str(checkpoint), **{**BOUNDS, "batch_size": 4, **changed})  # type: ignore[arg-type]


def _records(
    lm: SparseChatModel, home: Path, work: Path, names: tuple[str, ...] = MIXED
) -> dict[tuple[str, int], Any]:
    benchmarks = [benchmark_named(name) for name in names]
    results = evaluate_benchmarks(lm, benchmarks, home, work, most_new_tokens=6)
    records = [s.record for r in results for samples in r.samples.values() for s in samples]
    return {(record.task, record.doc_id): record for record in records}


def test_entry_point_resolves_to_the_chat_class() -> None:
    from lmms_eval.models import get_model

    assert get_model(MODEL_NAME) is SparseChatModel


def test_full_equals_lmms_evals_own_class(
    checkpoints: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    """Replies and scores, images and videos, against `qwen2_5_vl` of lmms-eval on the same data."""
    from lmms_eval.models.chat.qwen2_5_vl import Qwen2_5_VL

    class Builtin(Qwen2_5_VL):
        """Kept alive between tasks; scored like ours."""

        def clean(self) -> None: ...

        def answered(self, task: str) -> list[Any]:
            return sparse_model.answered(task)

    sparse_model = _model(checkpoints["qwen2_5_vl"], media="lmms_eval", video_max_frames=4)
    builtin_model = Builtin(
        str(checkpoints["qwen2_5_vl"]),
        device="cpu",
        device_map="cpu",
        batch_size=1,
        min_pixels=784,
        max_pixels=50176,
        max_num_frames=4,
    )
    builtin_model._model.float().load_state_dict(sparse_model.model.state_dict())
    benchmarks = [benchmark_named(name) for name in MIXED]
    own = evaluate_benchmarks(sparse_model, benchmarks, home, tmp_path / "own", most_new_tokens=6)
    replies = {
        task: [sample.record.reply for sample in samples]
        for result in own
        for task, samples in result.samples.items()
    }
    heard: dict[str, list[str]] = {}
    generate = builtin_model.generate_until

    def listen(requests: list[Any]) -> list[Any]:
        results = generate(requests)
        heard[requests[0].args[4]] = [result.text for result in results]
        return results

    builtin_model.generate_until = listen  # type: ignore[method-assign]
    builtin = evaluate_benchmarks(
        builtin_model, benchmarks, home, tmp_path / "theirs", most_new_tokens=6
    )  # type: ignore[arg-type]
    assert heard == replies
    assert len({reply for some in heard.values() for reply in some}) > 3  # not all the same
    assert [result.metrics for result in builtin] == [result.metrics for result in own]


def test_media_ways_give_the_same_pixels_where_nothing_is_resized(
    checkpoints: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    ways = [
        _records(_model(checkpoints["qwen2_vl"], media=media), home, tmp_path / media)
        for media in ("training", "lmms_eval")
    ]
    for key in ways[0]:
        assert ways[0][key].prompt_tokens == ways[1][key].prompt_tokens
        assert ways[0][key].reply == ways[1][key].reply


@pytest.mark.parametrize(("family", "method"), [("qwen2_5_vl", "zipvl"), ("qwen2_vl", "full")])
def test_batches_of_mixed_lengths_equal_batch_one(
    checkpoints: dict[str, Path], home: Path, tmp_path: Path, family: str, method: str
) -> None:
    alone, together = (
        _records(
            _model(
                checkpoints[family],
                method=method,
                value=None if method == "full" else 0.8,
                batch_size=size,
            ),
            home,
            tmp_path / str(size),
        )
        for size in (1, 4)
    )
    lengths = {record.prompt_tokens for record in together.values()}
    assert len(lengths) > 6
    for key, record in alone.items():
        assert record.reply == together[key].reply
        assert record.token_ratio == pytest.approx(together[key].token_ratio, abs=1e-6)
        assert record.new_tokens == together[key].new_tokens


def test_records_state_what_a_reply_cost(
    checkpoints: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    path = checkpoints["qwen2_5_vl"]
    dense = _records(_model(path), home, tmp_path / "dense", ("mmstar",))
    sparse = _records(_model(path, method="zipvl", value=0.7), home, tmp_path / "zip", ("mmstar",))
    text = json.loads((path / "config.json").read_text())["text_config"]
    head = text["hidden_size"] // text["num_attention_heads"]
    entry = 2 * text["num_key_value_heads"] * head * 4
    for key, record in dense.items():
        assert {record.token_ratio, *record.layer_ratios} == {1.0}
        assert record.kv_bytes == entry * text["num_hidden_layers"] * record.prompt_tokens
        pruned = sparse[key]
        assert pruned.prompt_tokens == record.prompt_tokens
        assert 0 < pruned.token_ratio < 0.9
        assert len(pruned.layer_ratios) == text["num_hidden_layers"]
        kept = sum(round(ratio * pruned.prompt_tokens) for ratio in pruned.layer_ratios)
        assert pruned.kv_bytes == entry * kept
        assert pruned.token_ratio == pytest.approx(sum(pruned.layer_ratios) / 3)


def test_p_of_one_is_dense(checkpoints: dict[str, Path], home: Path, tmp_path: Path) -> None:
    path = checkpoints["qwen2_5_vl"]
    dense = _records(_model(path), home, tmp_path / "a", ("ocrbench",))
    whole = _records(_model(path, method="zipvl", value=1.0), home, tmp_path / "b", ("ocrbench",))
    assert [r.reply for r in dense.values()] == [r.reply for r in whole.values()]
    assert {r.token_ratio for r in whole.values()} == {1.0}


def test_answered_samples_are_not_asked_again(
    checkpoints: dict[str, Path], home: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The records are cut in the middle of a line, as by a kill: only the rest is answered."""
    whole, cut = tmp_path / "whole", tmp_path / "cut"
    changes: dict[str, Any] = {"method": "zipvl", "value": 0.8, "batch_size": 2}
    first = _records(
        _model(checkpoints["qwen2_5_vl"], records=str(whole), **changes), home, tmp_path / "w"
    )
    lines = (whole / "rank0.jsonl").read_bytes().splitlines(keepends=True)
    shutil.copytree(whole, cut)
    (cut / "rank0.jsonl").write_bytes(b"".join(lines[:5]) + lines[5][:40])
    lm = _model(checkpoints["qwen2_5_vl"], records=str(cut), **changes)
    asked: list[int] = []
    generate = lm._generate
    monkeypatch.setattr(lm, "_generate", lambda qs: asked.append(len(qs)) or generate(qs))
    second = _records(lm, home, tmp_path / "c")
    assert sum(asked) == len(first) - 4  # the fifth line's batch is answered again as a whole
    assert {k: (r.reply, r.layer_ratios) for k, r in first.items()} == {
        k: (r.reply, r.layer_ratios) for k, r in second.items()
    }
    written = [json.loads(line) for line in (cut / "rank0.jsonl").read_text().splitlines()]
    assert len(written) == len({(line["task"], line["doc_id"]) for line in written}) == len(first)


def test_a_record_answers_only_the_same_question(
    checkpoints: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    """Another limit is another question; `test_question.py` has prompts and media."""
    lm = _model(checkpoints["qwen2_5_vl"], records=str(tmp_path / "records"))
    first = _records(lm, home, tmp_path, ("mmstar",))
    evaluate_benchmarks(lm, [benchmark_named("mmstar")], home, tmp_path, most_new_tokens=2)
    assert {record.new_tokens for record in lm.answered("mmstar")} != {
        record.new_tokens for record in first.values()
    }
    assert len(record_log(tmp_path / "records")) == 2 * len(first)


def test_processes_write_files_of_their_own(tmp_path: Path) -> None:
    from sf.evaluation.records import Record

    logs = [record_log(tmp_path, rank) for rank in (0, 1)]
    for rank, log in enumerate(logs):
        log.add({("mme", rank, "s"): Record("mme", rank, "s", "Yes", 1.0, (1.0,), 9, 2, 8, 0.1, 1)})
    assert sorted(path.name for path in tmp_path.iterdir()) == ["rank0.jsonl", "rank1.jsonl"]
    assert len(record_log(tmp_path)) == 2


@pytest.mark.parametrize(
    ("changed", "message"),
    [
        ({"method": "zipvll"}, "did you mean zipvl"),
        ({"method": "zipvl", "value": 0.0}, r"p = 0.0.*\(0, 1\]"),
        ({"method": "zipvl", "value": 1.2}, r"\(0, 1\]"),
        ({"media": "decord"}, "must be 'training' or 'lmms_eval'"),
        ({"batch_size": 0}, "at least 1"),
    ],
)
def test_bad_arguments_are_refused_before_the_model_is_loaded(
    changed: dict[str, Any], message: str, tmp_path: Path
) -> None:
    with pytest.raises(ConfigError, match=message):
        _model(tmp_path / "nowhere", **changed)


def test_checkpoint_of_another_architecture_is_refused(tmp_path: Path) -> None:
    (tmp_path / "config.json").write_text('{"model_type": "llama"}')
    with pytest.raises(UnsupportedModelError, match="llama"):
        _model(tmp_path)


@pytest.mark.parametrize(
    ("config", "method", "message"),
    [
        ({"model_type": "llava_onevision"}, "visionzip", r"qwen2_5_vl only, not on llava"),
        ({"model_type": "qwen2_5_vl"}, "nsa", "weights that this model lacks.*objective nsa"),
        ({"model_type": "qwen2_5_vl"}, "videonsa", "this model lacks.*objective videonsa"),
    ],
)
def test_a_method_that_does_not_fit_is_refused_before_weights_are_read(
    config: dict[str, str], method: str, message: str, tmp_path: Path
) -> None:
    whole = {**config, "vision_config": {}}  # no weights beside it
    (tmp_path / "config.json").write_text(json.dumps(whole))
    with pytest.raises(UnsupportedModelError, match=message):
        _model(tmp_path, method=method)


def test_a_task_that_samples_is_refused(
    checkpoints: dict[str, Path], home: Path, tmp_path: Path
) -> None:
    from lmms_eval.api.instance import Instance

    lm = _model(checkpoints["qwen2_5_vl"])
    options = {"max_new_tokens": 4, "do_sample": True, "temperature": 0.7}
    metadata = {"task": "t", "doc_id": 0, "repeats": 1}
    request = Instance("generate_until", ("", None, options, 0, "t", "test"), 0, metadata)
    with pytest.raises(ConfigError, match="greedy"):
        lm.generate_until([request])
    options = {"do_sample": False}
    request = Instance("generate_until", ("", None, options, 0, "t", "test"), 0, metadata)
    with pytest.raises(ConfigError, match="max_new_tokens"):
        lm.generate_until([request])


def test_generated_tokens_count_up_to_the_end_token(checkpoints: dict[str, Path]) -> None:
    lm = _model(checkpoints["qwen2_5_vl"])
    end, pad = lm.processor.tokenizer.eos_token_id, lm.processor.tokenizer.pad_token_id
    completion = torch.tensor([[5, end, pad, pad], [5, 6, 7, 8], [end, pad, pad, pad]])
    assert lm._generated(completion) == [2, 4, 1]


def test_the_response_cache_needs_the_digest_of_the_weights(
    checkpoints: dict[str, Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """lmms-eval's cache key contains the arguments but not the weights in the folder."""
    folder = tmp_path / "checkpoint"
    shutil.copytree(checkpoints["qwen2_vl"], folder)
    monkeypatch.setattr("sys.argv", ["lmms-eval", "--use_cache", str(tmp_path / "cache")])
    digests = []
    for given in ("", "0" * 16):
        with pytest.raises(ConfigError, match=r"checkpoint.*--use_cache") as refused:
            SparseChatModel(str(folder), checkpoint=given)
        digests.append(str(refused.value).rpartition("checkpoint=")[2].split()[0])
    assert digests[0] == digests[1]
    SparseChatModel(str(folder), checkpoint=digests[0])
    weights = folder / "model.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    with pytest.raises(ConfigError, match="checkpoint"):
        SparseChatModel(str(folder), checkpoint=digests[0])
    monkeypatch.setattr("sys.argv", ["lmms-eval"])
    SparseChatModel(str(folder))
