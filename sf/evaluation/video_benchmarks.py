"""Table 2: six benchmarks of videos; VideoMME counts twice."""

from __future__ import annotations

from sf.evaluation.benchmark import Benchmark, Task, one

__all__ = ["VIDEO"]

_TEMPCOMPASS_JUDGE = (
    "rates replies that match no option, at temperature 1; without it they count as wrong"
)


def _videomme(task: str, *media_folders: str) -> Task:
    return Task(
        name=task,
        config=f"videomme/{task}.yaml",
        metrics=("videomme_perception_score",),
        repository="lmms-eval/Video-MME",
        split="test",
        max_new_tokens=16,
        media="videomme",
        media_folders=media_folders,
    )


def _video_mmmu(subset: str) -> Task:
    return Task(
        name=f"video_mmmu_{subset.lower()}",
        config=f"videommmu/{subset.lower()}.yaml",
        metrics=("mmmu_acc",),
        repository="lmms-eval/VideoMMMU",
        subset=subset,
        split="test",
        max_new_tokens=1024,
        media="video_mmmu",
    )


def _tempcompass(name: str, subset: str, file: str) -> Task:
    return Task(
        name=f"tempcompass_{name}",
        config=f"tempcompass/{file}.yaml",
        metrics=("avg_accuracy",),
        repository="lmms-eval/TempCompass",
        subset=subset,
        split="test",
        max_new_tokens=128,
        media="tempcompass",
    )


VIDEO: tuple[Benchmark, ...] = (
    one(
        "videomme",
        "VideoMME",
        "video",
        _videomme("videomme"),
        factor=1.0,
        download_gib=95.0,
        parser_changed=True,
    ),
    one(
        "videomme_w_subtitle",
        "VideoMME (sub.)",
        "video",
        _videomme("videomme_w_subtitle", "subtitle"),
        factor=1.0,
        download_gib=95.0,
        parser_changed=True,
    ),
    one(
        "mlvu_dev",
        "MLVU",
        "video",
        Task(
            name="mlvu_dev",
            config="mlvu/mlvu_dev.yaml",
            metrics=("mlvu_percetion_score",),  # lmms-eval's spelling
            repository="sy1998/MLVU_dev",
            split="test",
            max_new_tokens=16,
            media="mlvu",
        ),
        factor=1.0,
        download_gib=400.0,
        parser_changed=True,
    ),
    Benchmark(
        name="video_mmmu",
        title="VideoMMMU",
        kind="video",
        tasks=tuple(_video_mmmu(s) for s in ("Perception", "Comprehension", "Adaptation")),
        factor=100.0,
        scale=100.0,
        download_gib=20.0,
        parser_changed=True,
    ),
    one(
        "perceptiontest_val_mc",
        "PerceptionTest",
        "video",
        Task(
            name="perceptiontest_val_mc",
            config="perceptiontest/val/perceptiontest_mc.yaml",
            metrics=("accuracy",),
            repository="lmms-eval/PerceptionTest_Val",
            subset="mc_question_val",
            split="validation",
            max_new_tokens=128,
            media="perceptiontest_val",
        ),
        factor=100.0,
        download_gib=130.0,
    ),
    one(
        "egoschema",
        "EgoSchema",
        "video",
        Task(
            name="egoschema_subset",
            config="egoschema/egoschema_subset.yaml",
            metrics=("score",),
            repository="lmms-eval/egoschema",
            subset="Subset",
            split="test",
            max_new_tokens=16,
            media="egoschema",
        ),
        factor=100.0,
        download_gib=110.0,
    ),
    Benchmark(
        name="tempcompass",
        title="TempCompass",
        kind="video",
        tasks=(
            _tempcompass("multi_choice", "multi-choice", "tempcompass_mc"),
            _tempcompass("yes_no", "yes_no", "tempcompass_yes_no"),
            _tempcompass("caption_matching", "caption_matching", "tempcompass_caption_matching"),
        ),
        factor=1.0,
        scale=100.0,
        download_gib=0.5,
        judge=_TEMPCOMPASS_JUDGE,
    ),
)
