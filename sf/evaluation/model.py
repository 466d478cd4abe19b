"""lmms-eval chat model for Qwen2-VL, Qwen2.5-VL and LLaVA with any attention method.

    lmms-eval --model sf_sparse --model_args pretrained=PATH,method=zipvl,value=0.975 --tasks mme

Differences from lmms-eval's built-in `qwen2_5_vl` chat class, whose replies it reproduces with
`method=full` on the same pixels and frames:
- Qwen2-VL has a chat class too, and per-video time stamps;
- real batches of mixed lengths and media, left-padded, of any size;
- media are processed as in training (`sf.data.vision.encode`): separate pixel bounds for images and
  frames, frames at a rate with a maximum. `media="lmms_eval"` uses the built-in class's processing.

LLaVA-OneVision and LLaVA-NeXT-Video answer through their own processors (`sf.data.llava`); on
images their replies with `method=full` are those of lmms-eval's `llava_hf` chat class.
"""

from __future__ import annotations

import os
import sys
import time
import warnings
from collections.abc import Iterator, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import torch

from sf.attention.decoding import greedy
from sf.baselines import TRAINED, build, resolve
from sf.data.llava import is_llava
from sf.data.vision import encode_parts
from sf.errors import ConfigError
from sf.evaluation.kept_cells import kept_cells
from sf.evaluation.media import encode_as_lmms_eval
from sf.evaluation.question import Question, limit_of, question_of
from sf.evaluation.records import Record, record_log
from sf.evaluation.resumable_log import ResumableLog
from sf.evaluation.unopened import empty_replies, media_in_workers, screened
from sf.extras import extra
from sf.models import load_model, load_processor
from sf.models.load import load_config
from sf.models.weight_files import weights_digest
from sf.progress import progress
from sf.sections import Vision

with extra("eval"):
    from lmms_eval.api.instance import GenerationResult, Instance, TokenCounts
    from lmms_eval.api.model import lmms

__all__ = ["SparseChatModel", "SparseCounts"]


@dataclass
class SparseCounts(TokenCounts):
    """lmms-eval's token counts with the token ratio, for its sample files."""

    token_ratio: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """As in lmms-eval, with the token ratio."""
        return {**super().to_dict(), "token_ratio": self.token_ratio}


class SparseChatModel(lmms):
    """See the module's docstring.

    Args:
        pretrained: checkpoint folder or hub id.
        method: a key of `sf.baselines.METHODS`, or "trained": what the checkpoint was trained with.
        value: of the method's hyperparameter; None takes the recorded value or the default.
        checkpoint: digest of the weights. lmms-eval's response cache (`--use_cache`) is keyed by
            the arguments and does not look at weights, so a local folder requires it there.
        device, dtype: of the model; under torchrun, "cuda" is the process's own GPU.
        batch_size: samples per batch.
        image_min_pixels, image_max_pixels: bounds of an image.
        video_min_pixels, video_max_pixels: bounds of one frame.
        video_max_frames, video_fps: the frame rule.
        media: "training", or "lmms_eval" for the built-in class's sampling and resizing.
        records: folder of the records; "" keeps them in memory, and a killed run restarts.
        opened: whether all media were opened before, as by the `benchmarks` stage. Otherwise each
            is first decoded in a worker process, and an unreadable row is named in a warning and
            gets an empty reply; `datasets` and OpenCV decode in workers until `clean` is called.

    Raises:
        ConfigError: an unknown method, a value out of its range, bounds in the wrong order; a
            response cache without the checkpoint's digest.
        UnsupportedModelError: a checkpoint of another architecture, or one that the method cannot
            run on; raised before weights are loaded.
    """

    is_simple = False

    def __init__(
        self,
        pretrained: str,
        method: str = "full",
        value: float | None = None,
        checkpoint: str = "",
        device: str = "cpu",
        dtype: str = "float32",
        batch_size: int = 1,
        image_min_pixels: int = 4 * 28 * 28,
        image_max_pixels: int = 1280 * 28 * 28,
        video_min_pixels: int = 128 * 28 * 28,
        video_max_pixels: int = 256 * 28 * 28,
        video_max_frames: int = 32,
        video_fps: float = 2.0,
        media: Literal["training", "lmms_eval"] = "training",
        records: str = "",
        opened: bool = False,
        max_batch_size: int | None = None,
    ) -> None:
        super().__init__()
        if method != TRAINED:
            build(method, value)  # check it before reading the checkpoint
        self.checkpoint = checkpoint
        _check_response_cache(Path(pretrained), checkpoint)
        self.vision = Vision(
            image_min_pixels=image_min_pixels,
            image_max_pixels=image_max_pixels,
            video_min_pixels=video_min_pixels,
            video_max_pixels=video_max_pixels,
            video_max_frames=video_max_frames,
            video_fps=video_fps,
        )
        if media not in ("training", "lmms_eval"):
            raise ConfigError("media", media, "must be 'training' or 'lmms_eval'")
        self.media = media
        self.batch_size = int(batch_size)
        if self.batch_size < 1:
            raise ConfigError("batch_size", batch_size, "must be at least 1")
        if device == "cuda":
            device = f"cuda:{os.environ.get('LOCAL_RANK', '0')}"
        self.attention = resolve(load_config(pretrained), method, value)
        self.method = self.attention.name
        self.model = load_model(pretrained, dtype=dtype, device=device)
        self.processor = load_processor(pretrained)
        if media == "lmms_eval" and is_llava(self.processor):
            rule = "the built-in Qwen class's way of media does not fit a LLaVA model"
            raise ConfigError("media", media, rule, "use media=training")
        self._records_folder = Path(records) if records else None
        self._log: ResumableLog[Record] | None = None
        self._answered: dict[str, dict[int, Record]] = {}
        self._opened = opened
        self._until_cleaned = ExitStack()
        if not opened:  # lmms-eval decodes the first row of each task before it asks anything
            self._until_cleaned.enter_context(media_in_workers())

    @property
    def device(self) -> torch.device:
        """The model's device."""
        device: torch.device = self.model.device
        return device

    @property
    def log(self) -> ResumableLog[Record]:
        """The records of this process, opened lazily because lmms-eval sets the rank late."""
        if self._log is None:
            self._log = record_log(self._records_folder, self.rank)
        return self._log

    def set_value(self, value: float) -> None:
        """Set the method's hyperparameter for all following answers.

        Raises:
            ConfigError: out of range, or a method without a hyperparameter.
        """
        self.attention = build(self.method, value)

    def clean(self) -> None:
        """Keep the model: lmms-eval's own would delete it, and one model serves several calls."""
        self._until_cleaned.close()

    def answered(self, task: str) -> list[Record]:
        """The records of this object's last call for a task, in data order."""
        return [record for _, record in sorted(self._answered.get(task, {}).items())]

    def generate_until(self, requests: list[Instance]) -> list[GenerationResult]:
        """Greedy replies, in the order of the requests.

        Batches are cut from the request list before it is known what was answered in an earlier
        run, and a batch with a gap is answered as a whole: replies do not depend on where a kill
        fell.
        """
        records: dict[int, Record] = {}
        refused: dict[int, str] = {}
        for request in requests:
            self._answered[request.args[4]] = {}
        title = requests[0].args[4] if requests else "no requests"
        with progress(f"{title} {self.method}", len(requests)) as bar:
            for members in self._batches(requests):
                questions, faults = self._questions([requests[i] for i in members])
                refused |= {members[at]: fault for at, fault in faults.items()}
                answers = self._answers(list(questions.values())) if questions else []
                for at, record in zip(questions, answers, strict=True):
                    records[members[at]] = record
                    self._answered[record.task][record.doc_id] = record
                bar.advance(len(members))
        if refused:
            warnings.warn(empty_replies(requests, refused), stacklevel=2)
        return [_result(records.get(index)) for index in range(len(requests))]

    def _questions(
        self, requests: Sequence[Instance]
    ) -> tuple[dict[int, Question], dict[int, str]]:
        """Questions by index, and why the other requests cannot be answered."""
        if self._opened:
            return {at: question_of(each, self.task_dict) for at, each in enumerate(requests)}, {}
        return screened(requests, self.task_dict, self.processor, self.vision, self.media)

    def loglikelihood(self, requests: list[Instance]) -> list[tuple[float, bool]]:
        """Not offered: the thirteen benchmarks generate."""
        raise NotImplementedError("sf_sparse generates only; choose a task with generate_until")

    def generate_until_multi_round(self, requests: list[Instance]) -> list[str]:
        """Not offered: the thirteen benchmarks ask once."""
        raise NotImplementedError("sf_sparse answers single turns only")

    def _batches(self, requests: Sequence[Instance]) -> Iterator[list[int]]:
        """Indices in order, batches of one generation limit."""
        groups: dict[str, list[int]] = {}
        for index, request in enumerate(requests):
            groups.setdefault(str(limit_of(request)), []).append(index)
        for group in groups.values():
            for start in range(0, len(group), self.batch_size):
                yield group[start : start + self.batch_size]

    def _answers(self, questions: Sequence[Question]) -> list[Record]:
        keys = [(q.task, q.doc_id, q.source) for q in questions]
        known = [self.log.get(key) for key in keys]
        records = [record for record in known if record is not None]
        if len(records) < len(questions):
            records = self._generate(questions)
            fresh = zip(keys, records, known, strict=True)
            self.log.add({key: record for key, record, old in fresh if old is None})
        return records

    def _generate(self, questions: Sequence[Question]) -> list[Record]:
        started = time.perf_counter()
        replies: dict[int, Record] = {}
        for members, inputs in self._encoded([question.turns for question in questions]):
            records = self._reply([questions[i] for i in members], inputs)
            replies.update(zip(members, records, strict=True))
        seconds = (time.perf_counter() - started) / len(questions)
        return [
            replace(replies[i], seconds=seconds, batch=len(questions))
            for i in range(len(questions))
        ]

    def _encoded(self, talks: Sequence[list[dict[str, Any]]]) -> list[tuple[list[int], Any]]:
        """A batch as inputs that the model takes at once, with the indices of their questions."""
        device = str(self.device)
        if self.media == "training":
            return encode_parts(self.processor, talks, self.vision, device)
        inputs = encode_as_lmms_eval(self.processor, talks, self.vision, device)
        return [(list(range(len(talks))), inputs)]

    @torch.inference_mode()
    def _reply(self, questions: Sequence[Question], inputs: Any) -> list[Record]:
        width = inputs["input_ids"].shape[1]
        output, trace = greedy(
            self.model,
            inputs,
            self.attention.apply(self.model),
            decodes_densely=self.attention.decodes_densely,
            max_new_tokens=questions[0].max_new_tokens,
            tokens={
                "pad_token_id": self.processor.tokenizer.pad_token_id,
                "eos_token_id": self.processor.tokenizer.eos_token_id,
            },
        )
        assert trace is not None
        prompt_tokens = inputs["attention_mask"].sum(dim=1).tolist()
        ratios, kept = trace.layer_ratios.cpu(), trace.prompt_kv.sum(0).tolist()
        replies = self.processor.batch_decode(
            output[:, width:], skip_special_tokens=True, clean_up_tokenization_spaces=False
        )
        counts = self._generated(output[:, width:])
        cells = kept_cells(trace, inputs, self.model.config)
        return [
            Record(
                task=question.task,
                doc_id=question.doc_id,
                source=question.source,
                reply=replies[at],
                token_ratio=float(ratios[:, at].mean()),
                layer_ratios=tuple(float(ratio) for ratio in ratios[:, at]),
                prompt_tokens=int(prompt_tokens[at]),
                new_tokens=counts[at],
                kv_bytes=kept[at] * self._kv_entry,
                seconds=0.0,
                batch=len(questions),
                kept_cells=cells[at],
            )
            for at, question in enumerate(questions)
        ]

    def _generated(self, completion: torch.Tensor) -> list[int]:
        """Tokens of each row up to and with the end token: `completion` is [B, T]."""
        ended = (completion == self.processor.tokenizer.eos_token_id).int().cumsum(dim=1)
        before = (ended == 0).sum(dim=1)
        return [int(n) for n in (before + 1).clamp(max=completion.shape[1])]

    @property
    def value(self) -> float | None:
        """Of the method's hyperparameter; None for a method without one."""
        return self.attention.value

    @property
    def _kv_entry(self) -> int:
        """Bytes of one token's key and value in one layer."""
        text = self.model.config.get_text_config()
        head = getattr(text, "head_dim", None) or text.hidden_size // text.num_attention_heads
        size: int = 2 * text.num_key_value_heads * head * self.model.dtype.itemsize
        return size


def _result(record: Record | None) -> GenerationResult:
    if record is None:
        return GenerationResult(text="", token_counts=SparseCounts())
    counts = SparseCounts(
        input_tokens=record.prompt_tokens,
        output_tokens=record.new_tokens,
        token_ratio=record.token_ratio,
    )
    return GenerationResult(text=record.reply, token_counts=counts)


def _check_response_cache(pretrained: Path, checkpoint: str) -> None:
    """Keep answers of other weights in the same folder from passing for this checkpoint's.

    The command line alone shows that the cache is used: lmms-eval tells a model nothing of it.

    Raises:
        ConfigError: lmms-eval's cache is used, and `checkpoint` is not the weights' digest.
    """
    is_used = any(word.split("=")[0] == "--use_cache" for word in sys.argv)
    if not is_used or not pretrained.is_dir():
        return
    digest = weights_digest(pretrained)
    if checkpoint != digest:
        rule = "must be the digest of the weights with --use_cache, which does not look at them"
        remedy = f"add checkpoint={digest} to --model_args"
        raise ConfigError("checkpoint", checkpoint, rule, remedy)
