"""The commands for an own model: `sf evaluate`, `sf train` and `sf serve`."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Table

__all__ = ["evaluate_command", "separated", "serve_command", "train_command"]

MODEL = Annotated[str, typer.Option(help="a checkpoint's folder, or OWNER/NAME on the hub")]
QUESTIONS = Annotated[
    Path,
    typer.Option(help="JSONL, JSON, CSV or parquet: question, answer, image or video, options"),
]
MEDIA = Annotated[
    Path | None, typer.Option(help="folder of the images and videos; that of the questions")
]
REVISION = Annotated[str | None, typer.Option(help="of a hub id")]
DEVICE = Annotated[str | None, typer.Option(help="cpu or cuda; a GPU where there is one")]
DTYPE = Annotated[str | None, typer.Option(help="float32 (default on a CPU), bfloat16 or float16")]
MAX_PIXELS = Annotated[int | None, typer.Option(help="of an image, or of each frame")]
MAX_FRAMES = Annotated[int, typer.Option(help="of a video")]
FPS = Annotated[float, typer.Option(help="frames looked at a second")]
MAX_REJECTS = Annotated[
    float, typer.Option(help="share of the questions that may be unusable, 0 to 1")
]
SEED = Annotated[int, typer.Option(help="of everything random")]
_stdout = Console(soft_wrap=True)


def separated(words: list[str]) -> list[str]:
    """Arguments with `--p 0.9 0.975` as `--p 0.9 --p 0.975`: an option's values in a row."""
    result: list[str] = []
    option = ""
    for word in words:
        number = word.startswith("-") and word[1:2].isdigit()
        if word.startswith("-") and not number:
            option = word if word in ("--p", "--methods") else ""
        elif option and result[-1] != option:
            result.append(option)
        result.append(word)
    return result


def evaluate_command(
    model: MODEL,
    questions: QUESTIONS,
    media: MEDIA = None,
    p: Annotated[
        list[float] | None, typer.Option("--p", help="retention thresholds in (0, 1]")
    ] = None,
    methods: Annotated[
        list[str] | None,
        typer.Option(help="beside full attention, NAME or NAME=VALUE; as trained by default"),
    ] = None,
    batch: Annotated[int, typer.Option(help="questions answered at once")] = 8,
    max_new_tokens: Annotated[int, typer.Option(help="length limit of a reply")] = 64,
    prompt: Annotated[
        str, typer.Option(help="short: a bare answer; answer: in tags; think_answer: reasoning too")
    ] = "short",
    cutoff: Annotated[
        float, typer.Option(help="share from which OCR, free-form and regression count as right")
    ] = 0.5,
    pictures: Annotated[int, typer.Option(help="questions whose kept tokens are drawn")] = 6,
    revision: REVISION = None,
    device: DEVICE = None,
    dtype: DTYPE = None,
    max_pixels: MAX_PIXELS = None,
    max_frames: MAX_FRAMES = 32,
    fps: FPS = 2.0,
    max_reject_share: MAX_REJECTS = 0.0,
    seed: SEED = 0,
    output: Annotated[
        Path | None, typer.Option(help="folder; below results/own/evaluate if not given")
    ] = None,
) -> None:
    """Answer own questions under full attention and sparse methods; write tables and a page."""
    from sf.own import Asked, evaluate

    folder = evaluate(
        Asked(
            model,
            questions,
            media,
            revision,
            device,
            dtype,
            max_pixels,
            max_frames,
            fps,
            max_reject_share,
        ),
        methods=methods or (),
        retention_p=p or (),
        batch=batch,
        max_new_tokens=max_new_tokens,
        prompt_template=prompt,
        correctness_cutoff=cutoff,
        pictures=pictures,
        seed=seed,
        output=output,
        command=typed(),
    )
    _stdout.print(_summary(folder))
    _stdout.print(f"page, replies and tables: {escape(str(folder / 'index.html'))}")


def train_command(
    model: MODEL,
    questions: QUESTIONS,
    target_token_ratio: Annotated[
        float, typer.Option(help="share of the prompt's tokens to need at p = 0.975")
    ],
    media: MEDIA = None,
    steps: Annotated[int, typer.Option(help="of the optimiser")] = 200,
    questions_per_step: Annotated[int, typer.Option(help="of one step")] = 16,
    learning_rate: Annotated[float, typer.Option(help="of AdamW, at its highest")] = 1e-5,
    lora_rank: Annotated[int, typer.Option(help="of adapters; 0: all decoder weights")] = 0,
    max_new_tokens: Annotated[int, typer.Option(help="length limit of an answer")] = 64,
    cutoff: Annotated[
        float, typer.Option(help="share from which OCR, free-form and regression count as right")
    ] = 0.5,
    rollouts_per_forward: Annotated[int, typer.Option(help="micro-batch, in answers")] = 8,
    save_every: Annotated[int, typer.Option(help="steps between two checkpoints")] = 25,
    revision: REVISION = None,
    device: DEVICE = None,
    dtype: DTYPE = None,
    max_pixels: MAX_PIXELS = None,
    max_frames: MAX_FRAMES = 32,
    fps: FPS = 2.0,
    max_reject_share: MAX_REJECTS = 0.0,
    seed: SEED = 0,
    output: Annotated[
        Path | None, typer.Option(help="folder; below results/own/train if not given")
    ] = None,
) -> None:
    """Train a model on own questions to need fewer tokens; measure it on held-out questions."""
    from sf.own import Asked
    from sf.own_training import Recipe, train

    trained = train(
        Asked(
            model,
            questions,
            media,
            revision,
            device,
            dtype,
            max_pixels,
            max_frames,
            fps,
            max_reject_share,
        ),
        Recipe(
            target_token_ratio,
            steps,
            questions_per_step,
            learning_rate,
            lora_rank,
            max_new_tokens,
            cutoff,
            rollouts_per_forward,
            save_every,
            seed,
        ),
        output=output,
        command=typed(),
    )
    for name, folder in (("before", trained.before), ("after", trained.after)):
        _stdout.print(f"{name} training, held-out questions: {escape(str(folder / 'index.html'))}")
        _stdout.print(_summary(folder))
    _stdout.print(f"the trained model is in {escape(str(trained.checkpoint))}")


def typed() -> str:
    """The command as it was typed."""
    return shlex.join(["sf", *sys.argv[1:]])


def _summary(folder: Path) -> Table:
    import pandas as pd

    from sf.ask.question_page import summary_table

    shown = summary_table(pd.read_csv(folder / "tables" / "summary.csv"))
    table = Table()
    for number, title in enumerate(shown.header):
        table.add_column(title, justify="left" if number < shown.keys else "right", overflow="fold")
    for row in shown.rows:
        cells: list[Any] = [
            f"{cell.text}\n[dim]{cell.interval}[/]" if cell.interval else cell.text for cell in row
        ]
        table.add_row(*cells)
    return table


def serve_command(
    checkpoint: Annotated[
        str, typer.Argument(help="a checkpoint's folder, or OWNER/NAME on the hub")
    ],
    token_ratio: Annotated[
        float | None, typer.Option(help="share of the prompt's tokens that each layer keeps")
    ] = None,
    p: Annotated[
        float | None, typer.Option(help="or a retention threshold; as trained by default")
    ] = None,
    full: Annotated[bool, typer.Option("--full", help="full attention")] = False,
    host: Annotated[str, typer.Option(help="address to listen at")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535)] = 8000,
    slots: Annotated[int, typer.Option(help="requests decoded at once; more wait")] = 8,
    max_tokens: Annotated[int, typer.Option(help="of a reply, at most")] = 1024,
    revision: REVISION = None,
    device: DEVICE = None,
    dtype: DTYPE = None,
    max_pixels: MAX_PIXELS = None,
) -> None:
    """Serve a model at /v1/chat/completions, as OpenAI's clients ask, with sparse attention."""
    from sf.extras import extra

    with extra("serve"):
        from sf.serving import Engine, load, serve
    served = load(
        checkpoint,
        p=p,
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
    _stdout.print(
        escape(f"serving {served.name} under {under} at http://{host}:{port}/v1/chat/completions")
    )
    serve(served, engine, host, port)
