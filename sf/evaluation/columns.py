"""The thirteen benchmarks of the paper's tables 1 and 2, as fourteen columns of lmms-eval tasks.

One column is one figure in a table. It is formed from one task or from several (`Part`s), each
with lmms-eval's own prompts, parser and aggregation; `Column.factor` brings their mean to the
scale that the paper prints. VideoMME counts twice, without and with subtitles.

Facts about the tasks: lmms-eval 0.7.3 (`lmms_eval/tasks/`). Its parsers for MMStar, VideoMME,
MLVU, VideoMMMU and OCRBench changed after the paper's time, so absolute scores need not agree with
the published ones to the last decimal.
"""

from __future__ import annotations

import difflib
from collections.abc import Mapping, Sequence

from sf.errors import ConfigError
from sf.evaluation.column import Column, Kind, Part

__all__ = ["COLUMNS", "EXTRA", "SUITES", "Column", "Part", "column", "columns_of", "suite"]


def _one(
    name: str,
    title: str,
    kind: Kind,
    part: Part,
    factor: float,
    download_gib: float,
    scale: float = 100.0,
) -> Column:
    return Column(name, title, kind, (part,), factor, scale, download_gib)


_TEMPCOMPASS_JUDGE = (
    "replies that match no option are rated by a judge at temperature 1; without one they count 0"
)


def _videomme(task: str) -> Part:
    return Part(
        task=task,
        config=f"videomme/{task}.yaml",
        metrics=("videomme_perception_score",),
        repository="lmms-eval/Video-MME",
        split="test",
        max_new_tokens=16,
        media="videomme",
    )


def _mmmu_pro(subset: str, name: str) -> Part:
    return Part(
        task=f"mmmu_pro_{name}",
        config=f"mmmu_pro/mmmu_pro_{name}.yaml",
        metrics=("mmmu_acc",),
        repository="MMMU/MMMU_Pro",
        subset=subset,
        split="test",
        max_new_tokens=256,
    )


def _video_mmmu(subset: str) -> Part:
    return Part(
        task=f"video_mmmu_{subset.lower()}",
        config=f"videommmu/{subset.lower()}.yaml",
        metrics=("mmmu_acc",),
        repository="lmms-eval/VideoMMMU",
        subset=subset,
        split="test",
        max_new_tokens=1024,
        media="video_mmmu",
    )


def _tempcompass(name: str, subset: str, file: str) -> Part:
    return Part(
        task=f"tempcompass_{name}",
        config=f"tempcompass/{file}.yaml",
        metrics=("avg_accuracy",),
        repository="lmms-eval/TempCompass",
        subset=subset,
        split="test",
        max_new_tokens=128,
        media="tempcompass",
    )


COLUMNS: tuple[Column, ...] = (
    _one(
        "mme",
        "MME",
        "image",
        Part(
            task="mme",
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
    _one(
        "mmbench_en_dev",
        "MMBench",
        "image",
        Part(
            task="mmbench_en_dev_static",
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
    _one(
        "mmstar",
        "MMStar",
        "image",
        Part(
            task="mmstar",
            config="mmstar/mmstar.yaml",
            metrics=("average",),
            repository="Lin-Chen/MMStar",
            split="val",
            max_new_tokens=128,
        ),
        factor=100.0,
        download_gib=0.05,
    ),
    _one(
        "chartqa",
        "ChartQA",
        "image",
        Part(
            task="chartqa",
            config="chartqa/chartqa.yaml",
            metrics=("relaxed_overall",),
            repository="lmms-lab-encoder/ChartQA",
            split="test",
            max_new_tokens=16,
        ),
        factor=100.0,
        download_gib=0.1,
    ),
    _one(
        "textvqa_val",
        "TextVQA",
        "image",
        Part(
            task="textvqa_val",
            config="textvqa/textvqa_val.yaml",
            metrics=("exact_match",),
            repository="lmms-lab-encoder/textvqa",
            split="validation",
            max_new_tokens=128,
        ),
        factor=100.0,
        download_gib=1.4,
    ),
    _one(
        "ocrbench",
        "OCRBench",
        "image",
        Part(
            task="ocrbench",
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
    ),
    Column(
        name="mmmu_pro",
        title="MMMU-Pro",
        kind="image",
        parts=(_mmmu_pro("standard (10 options)", "standard"), _mmmu_pro("vision", "vision")),
        factor=100.0,
        scale=100.0,
        download_gib=1.5,
    ),
    _one(
        "videomme",
        "VideoMME",
        "video",
        _videomme("videomme"),
        factor=1.0,
        download_gib=95.0,
    ),
    _one(
        "videomme_w_subtitle",
        "VideoMME (sub.)",
        "video",
        _videomme("videomme_w_subtitle"),
        factor=1.0,
        download_gib=95.0,
    ),
    _one(
        "mlvu_dev",
        "MLVU",
        "video",
        Part(
            task="mlvu_dev",
            config="mlvu/mlvu_dev.yaml",
            metrics=("mlvu_percetion_score",),  # lmms-eval's spelling
            repository="sy1998/MLVU_dev",
            split="test",
            max_new_tokens=16,
            media="mlvu",
        ),
        factor=1.0,
        download_gib=400.0,
    ),
    Column(
        name="video_mmmu",
        title="VideoMMMU",
        kind="video",
        parts=tuple(_video_mmmu(s) for s in ("Perception", "Comprehension", "Adaptation")),
        factor=100.0,
        scale=100.0,
        download_gib=20.0,
    ),
    _one(
        "perceptiontest_val_mc",
        "PerceptionTest",
        "video",
        Part(
            task="perceptiontest_val_mc",
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
    _one(
        "egoschema",
        "EgoSchema",
        "video",
        Part(
            task="egoschema_subset",
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
    Column(
        name="tempcompass",
        title="TempCompass",
        kind="video",
        parts=(
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

EXTRA: tuple[Column, ...] = (
    _one(
        "pope",
        "POPE",
        "image",
        Part(
            task="pope",
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
"""Beyond the paper's tables: robustness against naming objects that are not there."""

SUITES: Mapping[str, tuple[Column, ...]] = {
    "image": tuple(c for c in COLUMNS if c.kind == "image"),
    "video": tuple(c for c in COLUMNS if c.kind == "video"),
    "all": COLUMNS,
    "robustness": EXTRA,
}


def column(name: str) -> Column:
    """The column of that name.

    Raises:
        ConfigError: there is none; the message offers the nearest names.
    """
    for candidate in (*COLUMNS, *EXTRA):
        if candidate.name == name:
            return candidate
    raise _unknown(name, [c.name for c in (*COLUMNS, *EXTRA)])


def suite(name: str) -> tuple[Column, ...]:
    """A group's columns, or the one column of that name.

    Raises:
        ConfigError: neither a group nor a column; the message offers the nearest names.
    """
    if name in SUITES:
        return SUITES[name]
    found = tuple(c for c in (*COLUMNS, *EXTRA) if c.name == name)
    if not found:
        raise _unknown(name, [*SUITES, *(c.name for c in (*COLUMNS, *EXTRA))])
    return found


def columns_of(suites: Sequence[str]) -> list[Column]:
    """The columns of several suites, each once, in the tables' order.

    Raises:
        ConfigError: as `suite`.
    """
    names = {column.name for name in suites for column in suite(name)}
    return [column for column in (*COLUMNS, *EXTRA) if column.name in names]


def _unknown(name: str, known: Sequence[str]) -> ConfigError:
    near = difflib.get_close_matches(name.lower(), known, n=3, cutoff=0.4)
    hint = f"did you mean {' or '.join(near)}?" if near else f"known: {', '.join(known)}"
    return ConfigError("suite", name, "no benchmark and no group has this name", hint)
