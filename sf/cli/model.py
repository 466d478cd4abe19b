"""The commands for one checkpoint: `sf ask`, `sf curve`, `sf profile`, `sf serve`."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer
from rich.markup import escape
from rich.table import Table

from sf.cli.output import stdout
from sf.errors import ConfigError
from sf.options import DEVICE, DTYPE, FPS, MAX_FRAMES, MAX_PIXELS, MODEL, REVISION

__all__ = ["ask_command", "curve_command", "profile_command", "serve_command"]


def _methods() -> list[str]:
    from sf.baselines import METHODS

    return list(METHODS)


def ask_command(
    model: MODEL,
    question: Annotated[str, typer.Option(help="question, passed to the model unchanged")],
    image: Annotated[Path | None, typer.Option(help="an image file")] = None,
    video: Annotated[Path | None, typer.Option(help="or a video file")] = None,
    retention_p: Annotated[
        float | None, typer.Option("--p", help="retention threshold in (0, 1]")
    ] = None,
    token_ratio: Annotated[
        float | None, typer.Option(help="share of the tokens to keep, by the checkpoint's curve")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="full attention")] = False,
    revision: REVISION = None,
    max_new_tokens: Annotated[int, typer.Option(help="length limit of the reply")] = 128,
    device: DEVICE = None,
    dtype: DTYPE = None,
    max_pixels: MAX_PIXELS = None,
    max_frames: MAX_FRAMES = 32,
    fps: FPS = 2.0,
    picture: Annotated[
        Path | None, typer.Option(help="image of the kept tokens; by default ./MEDIA.kept.png")
    ] = None,
) -> None:
    """Answer one question about an image or a video and show which tokens were kept."""
    from sf.ask import ask, choose_policy
    from sf.ask.text import render

    media = image or video
    place = picture or Path(f"{media.stem if media else 'media'}.kept.png")
    result = ask(
        model,
        question,
        image=image,
        video=video,
        policy=choose_policy(retention_p, full, token_ratio),
        revision=revision,
        max_new_tokens=max_new_tokens,
        device=device,
        dtype=dtype,
        max_pixels=max_pixels,
        max_frames=max_frames,
        fps=fps,
        picture=place,
    )
    stdout.print(render(result, stdout))
    stdout.print(f"kept tokens drawn in {escape(str(place))}")


def curve_command(
    model: Annotated[
        Path, typer.Argument(help="a checkpoint's folder; the curve is written there")
    ],
    manifest: Annotated[
        Path, typer.Option(help="rows for the measurement: calibration.parquet of `sf run prepare`")
    ],
    batch: Annotated[int, typer.Option(help="maximum number of prompts per forward pass")] = 8,
) -> None:
    """Measure a checkpoint's token ratio over p, for --token-ratio; bounds as in params.yaml."""
    from sf.config import load_params
    from sf.data.manifest import read_manifest
    from sf.training.ratio_curve import CurveRequest, measure_ratio_curve

    params, rows = load_params(Path("params.yaml")), read_manifest(manifest)
    template = params.answering.prompt_template
    request = CurveRequest(rows, params.vision, params.runtime, template, batch)
    table = Table("p", "token ratio")
    for retention_p, ratio in measure_ratio_curve(model, request):
        table.add_row(f"{retention_p:g}", f"{100 * ratio:.1f} %")
    stdout.print(table)


def profile_command(
    model: Annotated[
        str, typer.Argument(help="a checkpoint's folder or hub id, or a shape: qwen2.5-vl-7b, …")
    ],
    method: Annotated[
        str | None,
        typer.Option(
            help="by default as trained; top_k for random weights", autocompletion=_methods
        ),
    ] = None,
    value: Annotated[
        float | None, typer.Option(help="value of the method's hyperparameter")
    ] = None,
    replay: Annotated[
        Path | None,
        typer.Option(help="keep the shares of a recorded layers.csv; --value selects p"),
    ] = None,
    length: Annotated[list[int] | None, typer.Option(help="prompt tokens; may be repeated")] = None,
    batch: Annotated[int, typer.Option(help="batch size")] = 1,
    repeats: Annotated[int, typer.Option(help="repeats; 95 % intervals need at least 6")] = 6,
    decode_tokens: Annotated[int, typer.Option(help="tokens generated after the first")] = 32,
    prompts: Annotated[str, typer.Option(help="text (random) or video (synthetic)")] = "text",
    video: Annotated[Path | None, typer.Option(help="a file for --prompts video")] = None,
    find_largest: Annotated[
        bool, typer.Option(help="search for the largest batch and the longest prompt")
    ] = False,
    memory_limit_gib: Annotated[
        float, typer.Option(help="memory limit of that search on a CPU")
    ] = 0.0,
    device: DEVICE = None,
    dtype: DTYPE = None,
    output: Annotated[
        Path | None, typer.Option(help="output folder; by default results/own/profile/MODEL")
    ] = None,
) -> None:
    """Measure latency, memory and decoding of a method against full attention."""
    from sf.ask import pick_runtime
    from sf.profiling.command import Request, run, sentences, table

    if prompts not in ("text", "video"):
        raise ConfigError("prompts", prompts, "must be text or video")
    runtime = pick_runtime(device, dtype)
    folder = output or Path("results/own/profile") / Path(model).name
    profiled = run(
        Request(
            model=model,
            method=method,
            value=value,
            replay=replay,
            lengths=tuple(length or (1024, 4096, 16384)),
            batch=batch,
            repeats=repeats,
            decode_tokens=decode_tokens,
            prompts="video" if prompts == "video" else "text",
            video=video,
            find_largest=find_largest,
            memory_limit_gib=memory_limit_gib,
            device=runtime.device,
            dtype=runtime.dtype,
            output=folder,
        )
    )
    stdout.print(table(profiled))
    for sentence in sentences(profiled):
        stdout.print(escape(sentence))
    stdout.print(f"tables and pictures are in {escape(str(folder))}")


def serve_command(
    checkpoint: Annotated[
        str, typer.Argument(help="a checkpoint's folder, or OWNER/NAME on the hub")
    ],
    token_ratio: Annotated[
        float | None, typer.Option(help="share of the prompt's tokens that each layer keeps")
    ] = None,
    retention_p: Annotated[
        float | None, typer.Option("--p", help="or a retention threshold; by default as trained")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="full attention")] = False,
    host: Annotated[str, typer.Option(help="address to listen on")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    slots: Annotated[int, typer.Option(help="maximum number of requests decoded together")] = 8,
    max_tokens: Annotated[int, typer.Option(help="maximum number of tokens per reply")] = 1024,
    revision: REVISION = None,
    device: DEVICE = None,
    dtype: DTYPE = None,
    max_pixels: MAX_PIXELS = None,
) -> None:
    """Serve a model with sparse attention at /v1/chat/completions for OpenAI-compatible clients."""
    from sf.extras import extra

    with extra("serve"):
        from sf.serving import Engine, load, serve
    served = load(
        checkpoint,
        retention_p=retention_p,
        token_ratio=token_ratio,
        full=full,
        revision=revision,
        device=device,
        dtype=dtype,
        max_pixels=max_pixels,
    )
    engine = Engine(served.model, served.method, slots, max_tokens)
    value = served.method.value
    under = served.method.name + ("" if value is None else f" {value:g}")
    stdout.print(
        escape(f"serving {served.name} under {under} at http://{host}:{port}/v1/chat/completions")
    )
    serve(served, engine, host, port)
