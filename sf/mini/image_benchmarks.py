"""Stand-ins for the paper's seven image benchmarks (MMMU-Pro in two parts)."""

from __future__ import annotations

import numpy as np

from sf.mini.documents import SUBJECTS, Document, Maker, Supply, turn
from sf.mini.questions import GeneratedQuestion, Kind, ask
from sf.mini.world import LETTERS

__all__ = ["IMAGE_MAKERS", "MME_CATEGORIES"]

MME_CATEGORIES = (
    "existence", "count", "position", "color", "posters", "celebrity", "scene", "landmark",
    "artwork", "OCR", "commonsense_reasoning", "numerical_calculation", "text_translation",
    "code_reasoning",
)  # fmt: skip


def _mme(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    """Two questions about one picture, one with the answer yes and one with no."""
    category = turn(MME_CATEGORIES, index)
    scene = supply.scene(rng, "presence")
    by_answer: dict[str, GeneratedQuestion] = {}
    while len(by_answer) < 2:
        question = ask(scene, "presence", rng)
        by_answer.setdefault(question.answer, question)
    return [
        Document(
            columns={
                "question_id": f"{category}/{index:04d}.png",
                "question": f"{by_answer[answer].text} Please answer yes or no.",
                "answer": answer.capitalize(),
                "category": category,
            },
            reply=answer.capitalize(),
            images={"image": scene},
        )
        for answer in ("yes", "no")
    ]


def _mmbench(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    kind: Kind = turn(("colour", "shape", "count", "colour"), index)
    scene, question = supply.ask_scene(rng, kind)
    options, letter = question.options(rng)
    category, upper = turn(
        (
            ("attribute_recognition", "finegrained_perception (instance-level)"),
            ("object_localization", "finegrained_perception (instance-level)"),
            ("image_quality", "coarse_perception"),
            ("spatial_relationship", "finegrained_perception (cross-instance)"),
        ),
        index,
    )
    columns = {
        "index": index,
        "question": question.text,
        "hint": "nan",
        "answer": letter,
        **{c: options[i] if i < len(options) else "nan" for i, c in enumerate("ABCD")},
        "category": category,
        "L2-category": upper,
        "source": "scenes",
        "comment": "nan",
        "split": "dev",
    }
    return [Document(columns, letter, {"image": scene})]


_MMSTAR_CATEGORIES = (
    ("coarse perception", "image scene and topic"),
    ("fine-grained perception", "object counting"),
    ("instance reasoning", "single-instance reasoning"),
    ("logical reasoning", "diagram reasoning"),
    ("science & technology", "biology & chemistry & physics"),
    ("math", "numeric commonsense and calculation"),
)


def _mmstar(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    kind: Kind = turn(("colour", "count", "shape"), index)
    scene, question = supply.ask_scene(rng, kind)
    options, letter = question.options(rng)
    listed = ", ".join(f"{c}: {text}" for c, text in zip("ABCD", options, strict=True))
    category, lower = turn(_MMSTAR_CATEGORIES, index)
    columns = {
        "index": index,
        "question": f"{question.text}\nOptions: {listed}",
        "answer": letter,
        "category": category,
        "l2_category": lower,
    }
    return [Document(columns, letter, {"image": scene})]


def _chartqa(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    scene, question = supply.ask_scene(rng, turn(("count", "colour"), index))
    columns = {
        "type": turn(("human_test", "augmented_test"), index),
        "question": question.text,
        "answer": question.answer,
    }
    return [Document(columns, question.answer, {"image": scene})]


def _textvqa(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    """Only digits occur here: the VQA metric drops the letter A as an article."""
    scene, question = supply.ask_scene(rng, "digit")
    columns = {
        "question_id": 34602 + index,
        "image_id": f"scene{index:05d}",
        "question": question.text,
        "answers": [question.answer] * 10,
        "ocr_tokens": [question.answer],
    }
    return [Document(columns, question.answer, {"image": scene})]


_OCRBENCH_TYPES = (
    ("IIIT5K", "Regular Text Recognition"),
    ("svtp", "Irregular Text Recognition"),
    ("WordArt", "Artistic Text Recognition"),
    ("IAM", "Handwriting Recognition"),
    ("ORAND", "Digit String Recognition"),
    ("NonSemanticText", "Non-Semantic Text Recognition"),
    ("STVQA", "Scene Text-centric VQA"),
    ("docVQA", "Doc-oriented VQA"),
    ("SROIE", "Key Information Extraction"),
    ("HME100k", "Handwritten Mathematical Expression Recognition"),
)


def _ocrbench(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    scene, question = supply.ask_scene(rng, turn(("letter", "digit"), index))
    dataset, kind = turn(_OCRBENCH_TYPES, index)
    columns = {
        "dataset": dataset,
        "question": question.text,
        "question_type": kind,
        "answer": [question.answer],
    }
    return [Document(columns, question.answer, {"image": scene})]


def _mmmu_pro_standard(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    scene, question = supply.ask_scene(rng, turn(("colour", "shape"), index))
    options, letter = question.options(rng, count=10)
    subject = turn(SUBJECTS, index)
    columns = {
        "id": f"test_{subject}_{index}",
        "question": f"<image 1> {question.text}",
        "options": str(list(options)),
        "answer": letter,
        "subject": subject,
        "topic_difficulty": "Easy",
    }
    return [Document(columns, letter, {"image_1": scene})]


def _mmmu_pro_vision(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    """The picture contains everything; here, the letter to answer with."""
    scene, question = supply.ask_scene(rng, "letter")
    subject = turn(SUBJECTS, index)
    columns = {
        "id": f"test_{subject}_{index}",
        "options": str(list(LETTERS)),
        "answer": question.answer,
        "subject": subject,
    }
    return [Document(columns, question.answer, {"image": scene})]


def _pope(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    scene, question = supply.ask_scene(rng, "presence")
    columns = {
        "id": str(index),
        "question_id": str(index),
        "question": question.text,
        "answer": question.answer,
        "image_source": f"scene{index:05d}",
        "category": turn(("adversarial", "popular", "random"), index),
    }
    return [Document(columns, question.answer, {"image": scene})]


IMAGE_MAKERS: dict[str, Maker] = {
    "mme": _mme,
    "mmbench_en_dev_static": _mmbench,
    "mmstar": _mmstar,
    "chartqa": _chartqa,
    "textvqa_val": _textvqa,
    "ocrbench": _ocrbench,
    "mmmu_pro_standard": _mmmu_pro_standard,
    "mmmu_pro_vision": _mmmu_pro_vision,
    "pope": _pope,
}
"""By lmms-eval's task name."""
