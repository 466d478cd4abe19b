"""Table 1: seven benchmarks of images; and those beyond the paper's tables."""

from __future__ import annotations

from sf.evaluation.benchmark import Benchmark, Task, one

__all__ = ["EXTRA", "IMAGE"]


def _mmmu_pro(subset: str, name: str) -> Task:
    return Task(
        name=f"mmmu_pro_{name}",
        config=f"mmmu_pro/mmmu_pro_{name}.yaml",
        metrics=("mmmu_acc",),
        repository="MMMU/MMMU_Pro",
        subset=subset,
        split="test",
        max_new_tokens=256,
    )


IMAGE: tuple[Benchmark, ...] = (
    one(
        "mme",
        "MME",
        "image",
        Task(
            name="mme",
            config="mme/mme.yaml",
            metrics=("mme_perception_score", "mme_cognition_score"),
            repository="lmms-lab-encoder/MME",
            split="test",
            max_new_tokens=16,
            even=True,
        ),
        factor=1.0,
        download_gib=0.9,
        scale=2800.0,
    ),
    one(
        "mmbench_en_dev",
        "MMBench",
        "image",
        Task(
            name="mmbench_en_dev_static",
            config="mmbench/mmbench_en_dev_static.yaml",
            metrics=("gpt_eval_score",),
            repository="lmms-lab-encoder/MMBench",
            subset="en",
            split="dev",
            max_new_tokens=1024,
        ),
        factor=1.0,
        download_gib=0.1,
    ),
    one(
        "mmstar",
        "MMStar",
        "image",
        Task(
            name="mmstar",
            config="mmstar/mmstar.yaml",
            metrics=("average",),
            repository="Lin-Chen/MMStar",
            split="val",
            max_new_tokens=128,
        ),
        factor=100.0,
        download_gib=0.05,
        parser_changed=True,
    ),
    one(
        "chartqa",
        "ChartQA",
        "image",
        Task(
            name="chartqa",
            config="chartqa/chartqa.yaml",
            metrics=("relaxed_overall",),
            repository="lmms-lab-encoder/ChartQA",
            split="test",
            max_new_tokens=16,
        ),
        factor=100.0,
        download_gib=0.1,
        text_heavy=True,
    ),
    one(
        "textvqa_val",
        "TextVQA",
        "image",
        Task(
            name="textvqa_val",
            config="textvqa/textvqa_val.yaml",
            metrics=("exact_match",),
            repository="lmms-lab-encoder/textvqa",
            split="validation",
            max_new_tokens=128,
        ),
        factor=100.0,
        download_gib=1.4,
        text_heavy=True,
    ),
    one(
        "ocrbench",
        "OCRBench",
        "image",
        Task(
            name="ocrbench",
            config="ocrbench/ocrbench.yaml",
            metrics=("ocrbench_accuracy",),
            repository="echo840/OCRBench",
            split="test",
            max_new_tokens=128,
            total=1000,
        ),
        factor=1000.0,
        download_gib=0.1,
        scale=1000.0,
        parser_changed=True,
        text_heavy=True,
    ),
    Benchmark(
        name="mmmu_pro",
        title="MMMU-Pro",
        kind="image",
        tasks=(_mmmu_pro("standard (10 options)", "standard"), _mmmu_pro("vision", "vision")),
        factor=100.0,
        scale=100.0,
        download_gib=1.5,
    ),
)

EXTRA: tuple[Benchmark, ...] = (
    one(
        "pope",
        "POPE",
        "image",
        Task(
            name="pope",
            config="pope/pope.yaml",
            metrics=("pope_accuracy",),
            repository="lmms-lab-encoder/POPE",
            split="test",
            max_new_tokens=128,
        ),
        factor=100.0,
        download_gib=0.3,
    ),
)
"""Beyond the paper's tables: robustness against object hallucination."""
