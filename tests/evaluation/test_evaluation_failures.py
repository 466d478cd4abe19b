"""Bad input: a clear error at once, and finished work stays."""

from __future__ import annotations

import errno
import shutil
from pathlib import Path
from typing import Any

import pytest
from scripted import BOUNDS, Scripted

from sf.errors import DataError, EnvironmentFault, EvaluationFailed
from sf.evaluation.benchmarks import BENCHMARKS, benchmark_named
from sf.evaluation.model import SparseChatModel
from sf.evaluation.run import evaluate_benchmarks


def _model(checkpoints: dict[str, Path], records: Path) -> SparseChatModel:
    path = str(checkpoints["qwen2_5_vl"])
    return SparseChatModel(path, batch_size=2, records=str(records), opened=True, **BOUNDS)  # type: ignore[arg-type]


def test_a_failed_benchmark_does_not_take_the_others_with_it(
    copy: Path, stand_ins: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    videos = sorted((copy / "egoschema" / "videos").iterdir())
    videos[2].unlink()
    shutil.rmtree(copy / "hub" / "Lin-Chen")
    tried: list[str] = []

    class Noting(Scripted):
        def generate_until(self, requests: list[Any]) -> list[str]:
            for request in requests:
                request.args[1](self.task_dict[request.args[4]]["test"][request.args[3]])
            tried.append(requests[0].args[4])
            return super().generate_until(requests)

    benchmarks = [benchmark_named(name) for name in ("mmstar", "egoschema", "chartqa")]
    with pytest.raises(EvaluationFailed, match="2 of 3 benchmarks failed") as caught:
        evaluate_benchmarks(Noting(stand_ins[1]), benchmarks, copy, tmp_path / "work")  # type: ignore[arg-type]
    text = "\n".join(str(error) for error in caught.value.exceptions)
    assert "files are not there" in text
    assert videos[2].name in text
    assert tried == ["chartqa"]
    assert [e.__notes__ for e in caught.value.exceptions] == [
        ["in benchmark mmstar"],
        ["in benchmark egoschema"],
    ]


def test_a_damaged_video_in_the_middle_keeps_what_was_answered(
    copy: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    videos = sorted((copy / "egoschema" / "videos").iterdir())
    videos[3].write_bytes(videos[3].read_bytes()[:300])
    lm = _model(checkpoints, tmp_path / "records")
    with pytest.raises(EvaluationFailed) as caught:
        evaluate_benchmarks(lm, [benchmark_named("egoschema")], copy, tmp_path, most_new_tokens=2)
    (failure,) = caught.value.exceptions
    assert isinstance(failure, DataError)
    assert videos[3].name in str(failure)
    assert len(lm.log) == 2  # the first batch
    shutil.copy(videos[0], videos[3])
    results = evaluate_benchmarks(
        lm, [benchmark_named("egoschema")], copy, tmp_path, most_new_tokens=2
    )
    assert len(results[0].samples["egoschema_subset"]) == 4


def test_a_full_disk_ends_the_run(
    home: Path, stand_ins: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    class Full(Scripted):
        def generate_until(self, requests: list[Any]) -> list[str]:
            raise OSError(errno.ENOSPC, "No space left on device")

    with pytest.raises(EnvironmentFault, match="finished replies are kept"):
        evaluate_benchmarks(Full(stand_ins[1]), BENCHMARKS, home, tmp_path)  # type: ignore[arg-type]


@pytest.mark.skipif(not Path("/dev/full").is_char_device(), reason="needs /dev/full")
def test_no_space_for_samples_ends_the_run_and_what_was_done_stays(
    home: Path, checkpoints: dict[str, Path], tmp_path: Path
) -> None:
    """The file of the records becomes a device that is always full."""
    records, kept = tmp_path / "records" / "rank0.jsonl", tmp_path / "kept.jsonl"
    lm = _model(checkpoints, records.parent)
    (task,) = benchmark_named("chartqa").tasks
    evaluate_benchmarks(
        lm, [benchmark_named("chartqa")], home, tmp_path, limit=2, most_new_tokens=2
    )
    records.rename(kept)
    records.symlink_to("/dev/full")
    with pytest.raises(EnvironmentFault, match=r"is full.*finished replies are kept"):
        evaluate_benchmarks(lm, BENCHMARKS, home, tmp_path, most_new_tokens=2)
    records.unlink()
    kept.rename(records)
    lm = _model(checkpoints, records.parent)
    assert len(lm.log) == 2
    evaluate_benchmarks(lm, [benchmark_named("chartqa")], home, tmp_path, most_new_tokens=2)
    assert len(lm.answered(task.name)) == len(lm.log) == 4


def test_lost_samples_are_noticed(
    home: Path, stand_ins: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    """Fewer replies than requests: lmms-eval would zip them and continue."""

    class Losing(Scripted):
        def generate_until(self, requests: list[Any]) -> list[str]:
            return super().generate_until(requests)[:-1]

    with pytest.raises(EvaluationFailed) as caught:
        evaluate_benchmarks(Losing(stand_ins[1]), [benchmark_named("chartqa")], home, tmp_path)  # type: ignore[arg-type]
    assert "not with the model's replies" in str(caught.value.exceptions[0])


def test_a_limit_takes_whole_pairs_of_mme(
    home: Path, stand_ins: tuple[Path, dict[str, list[str]]], tmp_path: Path
) -> None:
    lm = Scripted(stand_ins[1])
    (result,) = evaluate_benchmarks(lm, [benchmark_named("mme")], home, tmp_path, limit=23)  # type: ignore[arg-type]
    assert len(result.samples["mme"]) == 22
