"""From lmms-eval's per-sample results to scores that can be resampled.

lmms-eval aggregates a benchmark to one number. An interval and a paired test need each sample's
share of it. `sample_score` reads that share from the result of `process_results`, `Rule` defines
how the shares combine, and `sf.evaluation.run` refuses a benchmark if the combined number differs
from lmms-eval's: an upgrade cannot change a table silently.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

__all__ = ["RULES", "Rule", "SampleScore", "sample_score"]

Metrics = Mapping[str, Any]


@dataclass(frozen=True)
class SampleScore:
    """One sample's share of its benchmark's score.

    Attributes:
        value: 0 to 1 (with partial credit if the benchmark gives it).
        group: the category that the benchmark averages over, or ''.
        unit: the resampling unit: samples about one picture or one video.
        counted: False for a sample that the benchmark excludes from its denominator.
        matched: False if the reply could not be parsed and a judge would have been called.
    """

    value: float
    group: str = ""
    unit: str = ""
    counted: bool = True
    matched: bool = True


@dataclass(frozen=True)
class Rule:
    """The aggregation of sample scores to a task's score in lmms-eval's scale.

    Attributes:
        read: from one document and its metrics to its sample score.
        factor: of the mean of sample scores.
        groups: "one" for the mean over all samples, "mean" for the mean over categories, "sum" for
            the sum over categories.
        num_groups: number of categories of the mean, including absent ones (0 for those present).
        pairs: a unit of two samples scores the mean of both, plus 1 if both are correct (MME).
    """

    read: Callable[[Mapping[str, Any], Metrics, Any], SampleScore]
    factor: float = 1.0
    groups: str = "one"
    num_groups: int = 0
    pairs: bool = False


def _mme(document: Mapping[str, Any], metrics: Metrics, _: Any) -> SampleScore:
    entry = metrics.get("mme_perception_score") or metrics["mme_cognition_score"]
    return SampleScore(entry["score"], entry["category"], entry["question_id"])


def _mmbench(document: Mapping[str, Any], metrics: Metrics, task: Any) -> SampleScore:
    """lmms-eval scores only inside its aggregation, so its evaluator is called for one row."""
    import pandas as pd

    item = metrics["gpt_eval_score"]
    row = pd.DataFrame([{k if k in "ABCD" else k.lower(): v for k, v in item.items()}])
    evaluator = task.aggregation()["gpt_eval_score"].__globals__["mmbench_evaluator"]
    hit = evaluator.eval_sub_data(row, {item["index"]: item["answer"]}, static_only=True)
    return SampleScore(float(hit))


def _mmstar(document: Mapping[str, Any], metrics: Metrics, _: Any) -> SampleScore:
    entry = metrics["average"]
    return SampleScore(entry["score"], entry["l2_category"])


def _plain(key: str) -> Callable[[Mapping[str, Any], Metrics, Any], SampleScore]:
    def read(document: Mapping[str, Any], metrics: Metrics, _: Any) -> SampleScore:
        return SampleScore(float(metrics[key]))

    return read


def _ocrbench(document: Mapping[str, Any], metrics: Metrics, _: Any) -> SampleScore:
    return SampleScore(float(metrics["ocrbench_accuracy"]["score"]))


def _mmmu_pro(document: Mapping[str, Any], metrics: Metrics, _: Any) -> SampleScore:
    entry = metrics["mmmu_acc"]
    return SampleScore(float(entry["answer"] == entry["parsed_pred"]))


def _videomme(document: Mapping[str, Any], metrics: Metrics, _: Any) -> SampleScore:
    entry = metrics["videomme_perception_score"]
    right = entry["pred_answer"] == entry["answer"]
    return SampleScore(float(right), unit=str(document["videoID"]))


def _mlvu(document: Mapping[str, Any], metrics: Metrics, _: Any) -> SampleScore:
    entry = metrics["mlvu_percetion_score"]
    right = entry["pred_answer"] == entry["answer"]
    return SampleScore(float(right), entry["task_type"], str(document["video_name"]))


def _video_mmmu(document: Mapping[str, Any], metrics: Metrics, task: Any) -> SampleScore:
    """An empty open answer counts as an API error and is excluded from the denominator."""
    entry = metrics["mmmu_acc"]
    if entry["parsed_pred"] == "API Error":
        return SampleScore(0.0, counted=False)
    evaluate = task.aggregation()["mmmu_acc"].__globals__["evaluate_videommmu"]
    return SampleScore(float(evaluate([entry])[1]["acc"]))


def _perceptiontest(document: Mapping[str, Any], metrics: Metrics, _: Any) -> SampleScore:
    return SampleScore(float(metrics["accuracy"]["correct"]), unit=str(document["video_name"]))


def _egoschema(document: Mapping[str, Any], metrics: Metrics, _: Any) -> SampleScore:
    entry = metrics["score"]
    return SampleScore(float(str(entry["ground_truth"]) == str(entry["pred"])))


def _tempcompass(document: Mapping[str, Any], metrics: Metrics, _: Any) -> SampleScore:
    entry = metrics["avg_accuracy"]
    return SampleScore(
        float(entry["rating"] == 1),
        unit=str(document["video_id"]),
        matched=bool(entry["match_success"]),
    )


def _pope(document: Mapping[str, Any], metrics: Metrics, _: Any) -> SampleScore:
    return SampleScore(float(metrics["pope_accuracy"]["score"]))


_TEMPCOMPASS = Rule(_tempcompass, factor=100.0)
_VIDEO_MMMU = Rule(_video_mmmu)
_MMMU_PRO = Rule(_mmmu_pro)
_VIDEOMME = Rule(_videomme, factor=100.0)

RULES: Mapping[str, Rule] = {
    "mme": Rule(_mme, factor=100.0, groups="sum", pairs=True),
    "mmbench_en_dev_static": Rule(_mmbench, factor=100.0),
    "mmstar": Rule(_mmstar, groups="mean"),
    "chartqa": Rule(_plain("relaxed_overall")),
    "textvqa_val": Rule(_plain("exact_match")),
    "ocrbench": Rule(_ocrbench),
    "mmmu_pro_standard": _MMMU_PRO,
    "mmmu_pro_vision": _MMMU_PRO,
    "videomme": _VIDEOMME,
    "videomme_w_subtitle": _VIDEOMME,
    "mlvu_dev": Rule(_mlvu, factor=100.0, groups="mean", num_groups=7),
    "video_mmmu_perception": _VIDEO_MMMU,
    "video_mmmu_comprehension": _VIDEO_MMMU,
    "video_mmmu_adaptation": _VIDEO_MMMU,
    "perceptiontest_val_mc": Rule(_perceptiontest),
    "egoschema_subset": Rule(_egoschema),
    "tempcompass_multi_choice": _TEMPCOMPASS,
    "tempcompass_yes_no": _TEMPCOMPASS,
    "tempcompass_caption_matching": _TEMPCOMPASS,
    "pope": Rule(_pope),
}
"""By lmms-eval's task name."""


def sample_score(task: Any, document: Mapping[str, Any], metrics: Metrics) -> SampleScore:
    """One sample's share of its benchmark's score.

    Args:
        task: lmms-eval's task object.
        document: the row.
        metrics: the result of `process_results` for it.
    """
    return RULES[task.task_name].read(document, metrics, task)
