"""Stand-ins for the paper's six video benchmarks (VideoMMMU and TempCompass in three parts)."""

from __future__ import annotations

import numpy as np

from sf.mini.documents import SUBJECTS, Document, Maker, Supply, turn
from sf.mini.questions import Kind

__all__ = ["MLVU_TYPES", "VIDEO_MAKERS"]

_VIDEO_KINDS: tuple[Kind, ...] = ("colour", "before", "shape", "after")
_SUBTITLE = (
    "{n}\n00:00:{start:02d},000 --> 00:00:{end:02d},000\n"
    '<font color="white" size=".72c">{text}</font>\n\n'
)
_SPOKEN = ("Look at the shapes.", "Here they are again.")


def _videomme(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    """Every third video has no subtitles; the real benchmark also has videos without."""
    clip, question = supply.ask_clip(rng, turn(_VIDEO_KINDS, index))
    options, letter = question.options(rng)
    name = f"clip{index:05d}"
    columns = {
        "video_id": f"{index + 1:03d}",
        "duration": turn(("short", "medium", "long"), index),
        "domain": turn(("Knowledge", "Sports Competition", "Life Record"), index),
        "sub_category": turn(("Technology", "Basketball", "Daily Life"), index),
        "url": "",
        "videoID": name,
        "question_id": f"{index + 1:03d}-1",
        "task_type": turn(("Action Recognition", "Attribute Perception"), index),
        "question": question.text,
        "options": [f"{c}. {text}" for c, text in zip("ABCD", options, strict=True)],
        "answer": letter,
    }
    spoken = "".join(
        _SUBTITLE.format(n=n + 1, start=n, end=n + 1, text=text) for n, text in enumerate(_SPOKEN)
    )
    texts = {f"videomme/subtitle/{name}.srt": spoken} if index % 3 else {}
    return [Document(columns, letter, clip=clip, file=f"videomme/data/{name}.mp4", texts=texts)]


MLVU_TYPES = ("plotQA", "needle", "ego", "count", "order", "anomaly_reco", "topic_reasoning")


def _mlvu(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    clip, question = supply.ask_clip(rng, turn(("shape", "after", "before"), index))
    options, letter = question.options(rng)
    kind = turn(MLVU_TYPES, index)
    listed = "\n".join(f"({c}) {text}" for c, text in zip("ABCD", options, strict=True))
    columns = {
        "video_name": f"{MLVU_TYPES.index(kind) + 1}_{kind}/{kind}_{index}.mp4",
        "duration": supply.size.frames / supply.size.fps,
        "question": f"{question.text}\n{listed}",
        "candidates": list(options),
        "answer": letter,
        "task_type": kind,
    }
    return [Document(columns, letter, clip=clip, file=f"mlvu/{columns['video_name']}")]


_VIDEO_MMMU_FOLDERS = {
    "Art": "Art",
    "Biology": "Science",
    "Accounting": "Business",
    "History": "Humanities",
    "Agriculture": "Engineering",
    "Clinical_Medicine": "Medicine",
}


def _video_mmmu(track: str, kinds: tuple[Kind, ...]) -> Maker:
    def make(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
        subject = turn(SUBJECTS, index)
        clip, question = supply.ask_clip(rng, turn(kinds, index))
        options, letter = question.options(rng)
        is_open = track == "Adaptation" and question.kind == "count"
        name = f"{track.lower()}_{subject}_{index}"
        columns = {
            "id": name,
            "question": question.text,
            "options": [] if is_open else list(options),
            "answer": question.answer if is_open else letter,
            "question_type": "open" if is_open else "multiple-choice",
        }
        file = f"video_mmmu/{_VIDEO_MMMU_FOLDERS[subject]}/{name}.mp4"
        return [Document(columns, str(columns["answer"]), clip=clip, file=file)]

    return make


def _perceptiontest(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    """Three options, as in the real benchmark: the number of shapes, or yes and no."""
    clip, question = supply.ask_clip(rng, turn(("count", "presence"), index))
    options = ("1", "2", "3") if question.kind == "count" else ("no", "yes", "cannot tell")
    answer = options.index(question.answer)
    columns = {
        "video_name": f"video_{index}",
        "question_id": str(index),
        "question": question.text,
        "options": list(options),
        "answer_id": str(answer),
        "area": "physics",
        "reasoning": "descriptive",
        "tag": ["counting"],
    }
    file = f"perceptiontest_val/videos/{columns['video_name']}.mp4"
    return [Document(columns, "ABC"[answer], clip=clip, file=file)]


def _egoschema(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
    clip, question = supply.ask_clip(rng, turn(("shape", "before", "after"), index))
    options, letter = question.options(rng)
    options = (*options, "none of these")
    name = f"{index:08x}-0000-4000-8000-{index:012x}"
    columns = {
        "question_idx": str(index),
        "question": question.text,
        "video_idx": name,
        "option": [f"{c}. {text}" for c, text in zip("ABCDE", options, strict=True)],
        "answer": str("ABCDE".index(letter)),
    }
    return [Document(columns, letter, clip=clip, file=f"egoschema/videos/{name}.mp4")]


_DIMENSIONS: dict[Kind, str] = {
    "before": "attribute_change",
    "after": "attribute_change",
    "shape": "order",
    "presence": "action",
}


def _tempcompass(form: str, kinds: tuple[Kind, ...]) -> Maker:
    def make(rng: np.random.Generator, index: int, supply: Supply) -> list[Document]:
        clip, question = supply.ask_clip(rng, turn(kinds, index))
        options, letter = question.options(rng)
        if form == "yes_no":
            text, answer, reply = question.text, question.answer, question.answer
        else:
            mark = "{}. {}" if form == "multi_choice" else "Caption {}: {}"
            lines = [mark.format(c, text) for c, text in zip("ABCD", options, strict=False)]
            text = "\n".join([question.text, *lines])
            answer, reply = lines["ABCD".index(letter)], letter
        name = f"{form}_{index}"
        columns = {
            "video_id": name,
            "question": text,
            "answer": answer,
            "dim": _DIMENSIONS[question.kind],
        }
        return [Document(columns, reply, clip=clip, file=f"tempcompass/videos/{name}.mp4")]

    return make


VIDEO_MAKERS: dict[str, Maker] = {
    "videomme": _videomme,
    "mlvu_dev": _mlvu,
    "video_mmmu_perception": _video_mmmu("Perception", ("colour", "before")),
    "video_mmmu_comprehension": _video_mmmu("Comprehension", ("shape", "after")),
    "video_mmmu_adaptation": _video_mmmu("Adaptation", ("count", "colour")),
    "perceptiontest_val_mc": _perceptiontest,
    "egoschema_subset": _egoschema,
    "tempcompass_multi_choice": _tempcompass("multi_choice", ("shape", "before", "after")),
    "tempcompass_yes_no": _tempcompass("yes_no", ("presence",)),
    "tempcompass_caption_matching": _tempcompass("caption_matching", ("presence", "before")),
}
"""By lmms-eval's task name; VideoMME with subtitles reads VideoMME's documents."""
