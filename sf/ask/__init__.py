"""One question about one image or video, answered with sparse attention: the code of `sf ask`.

`ask` validates its arguments and loads a model. With a loaded model:

    media = load_media("image", path, vision)
    result = answer(model, processor, media, question, TopP(p=0.9))
    figure = overlay(result, media, question)
"""

from __future__ import annotations

import os
from pathlib import Path

import torch

from sf.ask.answer import AskResult, answer, overlay
from sf.ask.media import FPS, MAX_FRAMES, Media, bounds, check_decodable, chosen, load_media
from sf.attention import Budget
from sf.baselines import check_policy
from sf.data.control_tokens import check_text
from sf.data.llava import is_llava
from sf.errors import ConfigError, EnvironmentFault
from sf.sections import Runtime
from sf.selection import Policy, TopP
from sf.validation import validated

__all__ = [
    "AskResult",
    "Media",
    "answer",
    "ask",
    "choose_policy",
    "load_media",
    "overlay",
    "pick_runtime",
]

PICTURES = (".png", ".svg", ".pdf", ".jpg")


def ask(
    model: str | Path,
    question: str,
    *,
    image: str | Path | None = None,
    video: str | Path | None = None,
    policy: Policy | Budget | None = None,
    revision: str | None = None,
    max_new_tokens: int = 128,
    device: str | None = None,
    dtype: str | None = None,
    max_pixels: int | None = None,
    max_frames: int = MAX_FRAMES,
    fps: float = FPS,
    picture: Path | None = None,
) -> AskResult:
    """Load a model and ask it one question.

    Args:
        model: folder of a checkpoint, or hub id.
        question: passed to the model verbatim, after the media.
        image, video: the media, exactly one of them.
        policy: the selector; by default the one that the checkpoint was trained with, and for a
            base model `TopP(p=0.975)`. `TopP(p=1.0)` is full attention, `Budget(0.25)` a quarter of
            the tokens.
        revision: of a hub id.
        max_new_tokens: length limit of the reply.
        device: "cpu" or "cuda"; by default a GPU if available.
        dtype: of the weights; by default float32 on a CPU and bfloat16 on a GPU.
        max_pixels: of the image, or of each frame; LLaVA models have fixed sizes.
        max_frames, fps: frame sampling of a video.
        picture: file for the drawing of the kept tokens: png, svg, pdf or jpg; None for no drawing.

    Raises:
        ConfigError, DataError, EnvironmentFault, UnsupportedModelError: if possible before the
            model is loaded.
    """
    from sf.models import load_model, load_processor
    from sf.models.load import load_config

    if picture is not None:
        _check_picture(picture, image if video is None else video)
    runtime = pick_runtime(device, dtype)
    if not question.strip():
        raise ConfigError("question", question, "it is empty", "give the text of the question")
    if max_new_tokens < 1:
        raise ConfigError("max_new_tokens", max_new_tokens, "must be at least 1")
    kind, path = chosen(image, video)
    vision = bounds(kind, max_pixels, max_frames, fps)
    check_decodable(kind, path, vision)
    media = load_media(kind, path, vision)
    config = load_config(model, revision)
    check_policy(config, policy.policy(config) if isinstance(policy, Budget) else policy)
    processor = load_processor(model, revision=revision)
    check_text(processor, question, "question")
    network = load_model(model, dtype=runtime.dtype, device=runtime.device, revision=revision)
    if is_llava(processor):
        media = load_media(kind, path, media.vision, llava=True)
    result = answer(network, processor, media, question, policy, max_new_tokens=max_new_tokens)
    if picture is not None:
        from sf.plotting import write_figure

        write_figure(overlay(result, media, question), picture)
    return result


def choose_policy(
    retention_p: float | None, full: bool, token_ratio: float | None = None
) -> Policy | Budget | None:
    """Top-p with a threshold, a share of the tokens, full attention, or None for as trained.

    Raises:
        ConfigError: more than one of them, or a value outside (0, 1].
    """
    given = {"p": retention_p is not None, "token-ratio": token_ratio is not None, "full": full}
    names = [name for name, chosen in given.items() if chosen]
    if len(names) > 1:
        remedy = "give one of --p, --token-ratio, --full"
        raise ConfigError(" and ".join(names), None, "exclude each other", remedy)
    if token_ratio is not None:
        return Budget(token_ratio)
    if full:
        return TopP(p=1.0)
    return None if retention_p is None else TopP(p=retention_p)


def pick_runtime(device: str | None, dtype: str | None) -> Runtime:
    """Device and dtype, checked; None selects the best available.

    Raises:
        ConfigError: an unknown device or dtype.
        EnvironmentFault: a GPU is requested but not available.
    """
    has_cuda = torch.cuda.is_available()
    device = device or ("cuda" if has_cuda else "cpu")
    dtype = dtype or ("float32" if device == "cpu" else "bfloat16")
    runtime = validated(Runtime, {"device": device, "dtype": dtype})
    if runtime.device == "cuda" and not has_cuda:
        raise EnvironmentFault(
            "device", device, "torch sees no CUDA device on this machine", "use device cpu"
        )
    return runtime


def _check_picture(picture: Path, media: str | Path | None) -> None:
    """Reject a path that would only fail after the answer."""
    if picture.suffix.lower() not in PICTURES:
        raise ConfigError(
            "picture", str(picture), f"the name must end in {', '.join(PICTURES)}", "rename it"
        )
    if picture.is_dir() or (media is not None and picture.resolve() == Path(media).resolve()):
        raise ConfigError("picture", str(picture), "it already exists", "choose another name")
    folder = next(path for path in picture.resolve().parents if path.exists())
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise ConfigError(
            "picture", str(picture), f"{folder} is not writable", "choose another folder"
        )
