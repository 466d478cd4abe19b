"""`sf ask`: the report states what was run, and bad input is one clear error."""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import replace

import crashing_decoders
import numpy as np
import PIL.Image
import pytest
import torch
from rich.console import Console

import sf.cli
from sf.ask import AskResult, answer, ask, choose_policy, load_media, overlay
from sf.ask.media import bounds
from sf.ask.text import render
from sf.attention.ratio_curve import note_curve
from sf.data import check, inspection
from sf.errors import ConfigError, DataError, EnvironmentFault, SparsityForcingError
from sf.mini.scenes import render as draw
from sf.mini.scenes import sample_clip, sample_scene, write_video
from sf.models import build_tiny
from sf.selection import FixedMask, TopP

QUESTION = "What color is the triangle?"
SIDE = 28


@pytest.fixture(scope="module", params=["qwen2_vl", "qwen2_5_vl"])
def tiny(request):
    model, processor = build_tiny(request.param, [QUESTION], seed=0)
    return model.eval(), processor


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """A picture of 4 x 6 cells, a clip of 2 x 3 x 4, and a checkpoint."""
    folder = tmp_path_factory.mktemp("ask")
    rng = np.random.default_rng(0)
    draw(sample_scene(rng, rows=4, cols=6)).save(folder / "scene.png")
    clip = sample_clip(rng, rows=3, cols=4, frames=4, event="recolour")
    write_video(clip, folder / "clip.mp4")
    (folder / "broken.png").write_bytes(b"no picture at all")
    (folder / "broken.mp4").write_bytes(b"no video at all")
    model, processor = build_tiny("qwen2_5_vl", [QUESTION], seed=0)
    model.save_pretrained(folder / "model")
    processor.save_pretrained(folder / "model")
    return folder


def media(files, kind: str):
    path = files / {"image": "scene.png", "video": "clip.mp4"}[kind]
    return load_media(kind, path, bounds(kind, fps=1.0))


KINDS = [("image", (1, 4, 6)), ("video", (2, 3, 4))]


@pytest.mark.parametrize(("kind", "grid"), KINDS)
def test_figures_are_those_of_the_run(tiny, files, kind, grid):
    """Bytes against a dense run's own cache; ratios against the kept sets."""
    model, processor = tiny
    asked = media(files, kind)
    model.generation_config.min_new_tokens = 6
    sparse = answer(model, processor, asked, QUESTION, TopP(p=0.7), max_new_tokens=6)
    dense = answer(model, processor, asked, QUESTION, TopP(p=1.0), max_new_tokens=6)
    model.generation_config.min_new_tokens = None
    assert sparse.grid == dense.grid == grid
    assert sparse.visual_tokens == grid[0] * grid[1] * grid[2]
    assert sparse.completion_tokens == dense.completion_tokens == 6
    text = model.config.text_config
    entry = 2 * text.num_key_value_heads * (text.hidden_size // text.num_attention_heads) * 4
    layers = text.num_hidden_layers
    entries = layers * (dense.prompt_tokens + 5)  # the last token is never fed back
    assert dense.kv_bytes == dense.dense_kv_bytes == sparse.dense_kv_bytes == entries * entry
    prompt = sum(sparse.layer_ratios) * sparse.prompt_tokens
    assert sparse.kv_bytes == round(prompt + 5 * layers) * entry
    assert sparse.kv_bytes < dense.kv_bytes
    assert sparse.kv_allocated_bytes >= sparse.kv_bytes
    visual = sparse.kept.mean((1, 2, 3))
    assert np.allclose(sparse.visual_ratios, visual)
    count = sparse.prompt_tokens - sparse.visual_tokens
    both = visual * sparse.visual_tokens + np.array(sparse.text_ratios) * count
    assert np.allclose(sparse.layer_ratios, both / sparse.prompt_tokens)
    assert 0 < sparse.token_ratio < 1
    assert dense.kept.all()
    assert dense.token_ratio == 1
    assert sparse.first_token_ms > 0
    assert sparse.token_ms > 0


def test_full_attention_is_the_models_own_answer(tiny, files):
    model, processor = tiny
    asked = media(files, "image")
    full = answer(model, processor, asked, QUESTION, TopP(p=1.0), max_new_tokens=6)
    from sf.data.vision import encode

    turn = {"role": "user", "content": [asked.part, {"type": "text", "text": QUESTION}]}
    inputs = encode(processor, [[turn]], asked.vision)
    ids = model.generate(**inputs, max_new_tokens=6, do_sample=False)
    own = processor.decode(ids[0, inputs["input_ids"].shape[1] :], skip_special_tokens=True)
    assert (
        full.reply == "".join(s if s.isprintable() or s == "\n" else "\ufffd" for s in own).strip()
    )


@pytest.mark.parametrize(("kind", "grid"), KINDS)
def test_one_kept_token_is_one_clear_cell_of_the_picture(tiny, files, kind, grid):
    """From a kept prompt column through model, trace and mapping to pixels."""
    model, processor = tiny
    asked = media(files, kind)
    whole = answer(model, processor, asked, QUESTION, max_new_tokens=1)
    cell = (grid[0] - 1, 1, 2)
    number = int(np.ravel_multi_index(cell, grid))
    first = _first_visual(model, processor, asked)
    layers = model.config.text_config.num_hidden_layers
    kept = torch.zeros(1, whole.prompt_tokens, dtype=torch.bool)
    kept[0, first + number] = True
    result = answer(model, processor, asked, QUESTION, FixedMask([kept] * layers), max_new_tokens=1)
    assert np.argwhere(result.kept).tolist() == [[layer, *cell] for layer in range(layers)]
    frame = asked.frames[cell[0]]
    expected = np.zeros(frame.shape[:2], dtype=bool)
    expected[SIDE : 2 * SIDE, 2 * SIDE : 3 * SIDE] = True
    shown = [
        np.asarray(axes.images[0].get_array())
        for axes in overlay(result, asked).axes
        if len(axes.images) == 1 and axes.images[0].get_array().shape == frame.shape
    ]
    clear = [(picture == frame).all(-1) for picture in shown]
    partly = [part for part in clear if part.any() and not part.all()]
    assert sum(np.array_equal(part, expected) for part in partly) == 3
    assert result.token_ms is None


def _first_visual(model, processor, asked) -> int:
    from sf.data.vision import encode

    turn = {"role": "user", "content": [asked.part, {"type": "text", "text": QUESTION}]}
    ids = encode(processor, [[turn]], asked.vision)["input_ids"][0]
    config = model.config
    token = config.image_token_id if asked.kind == "image" else config.video_token_id
    return int((ids == token).nonzero()[0])


def test_video_frames_are_the_first_of_each_time_step(files):
    asked = media(files, "video")
    assert asked.seconds == (0.0, 2.0)
    frames, _ = asked.part["video"]
    assert len(frames) == 4
    assert len(asked.frames) == 2
    assert all(np.shares_memory(asked.frames[at], frames[2 * at]) for at in range(2))


def test_bounds_are_honoured(files):
    few = bounds("image", max_pixels=6 * SIDE * SIDE)
    assert few.image_min_pixels <= few.image_max_pixels == 6 * SIDE * SIDE
    clip = load_media("video", files / "clip.mp4", bounds("video", SIDE * SIDE, max_frames=2))
    assert clip.part["video"][0].shape == (2, SIDE, SIDE, 3)


def run(files, capsys, monkeypatch, *words: str, model: str | None = None) -> tuple[int, str, str]:
    """Exit status, stdout and stderr of `sf ask` in the media's folder."""
    monkeypatch.chdir(files)
    line = ["sf", "ask", "--model", model or "model", "--question", QUESTION, *words]
    monkeypatch.setattr(sys, "argv", line)
    with pytest.raises(SystemExit) as end:
        sf.cli.main()
    out, err = capsys.readouterr()
    return int(end.value.code or 0), out, err


@pytest.mark.parametrize("words", [["--image", "scene.png"], ["--video", "clip.mp4", "--full"]])
def test_the_command_answers_and_draws(files, capsys, monkeypatch, words):
    status, out, _ = run(files, capsys, monkeypatch, *words, "--max-new-tokens", "3")
    assert status == 0
    for part in ("token ratio", "KV cache", "first token after", "last third", "visual", "text"):
        assert part in out
    assert ("100.0 % of the prompt kept" in out) == ("--full" in words)
    picture = files / words[1].replace(".png", ".kept.png").replace(".mp4", ".kept.png")
    assert str(picture.name) in out
    with PIL.Image.open(picture) as drawn:
        assert min(drawn.size) > 300


def test_the_picture_goes_where_it_is_asked_for(files, tmp_path):
    place = tmp_path / "new" / "a.svg"
    ask(files / "model", QUESTION, image=files / "scene.png", max_new_tokens=1, picture=place)
    assert place.read_text().startswith("<?xml")


@pytest.mark.parametrize("token", ["<|image_pad|>", "<|im_end|>", "<|vision_start|>"])
def test_a_control_token_in_the_question_is_refused(tiny, files, capsys, monkeypatch, token):
    status, out, err = run(
        files, capsys, monkeypatch, "--image", "scene.png", "--question", f"What is {token}?"
    )
    assert (status, out) == (2, "")
    assert err.startswith(f"error: question = '{token}'. it is a control token of the model")
    with pytest.raises(DataError, match="control token"):
        answer(*tiny, media(files, "image"), f"What is {token}?")


@pytest.mark.parametrize(("name", "reason"), [("abort.png", "SIGABRT"), ("hang.png", "within 1 s")])
def test_a_decoder_that_crashes_is_one_line(files, capsys, monkeypatch, name, reason):
    monkeypatch.setattr(inspection, "inspect", crashing_decoders.inspect)
    monkeypatch.setattr(check, "TIME_LIMIT_S", 1.0)
    (files / name).write_bytes((files / "scene.png").read_bytes())
    status, out, err = run(files, capsys, monkeypatch, "--image", name)
    assert (status, out, err.count("\n")) == (2, "", 1)
    assert name in err
    assert reason in err


BAD = [
    ([], "exactly one is needed"),
    (["--image", "scene.png", "--video", "clip.mp4"], "exactly one is needed"),
    (["--image", "none.png"], "there is no such file"),
    (["--image", "[/odd].png"], "[/odd].png"),
    (["--video", "none.mp4"], "there is no such file"),
    (["--image", "broken.png"], "image = 'broken.png'"),
    (["--video", "broken.mp4"], "video = 'broken.mp4'"),
    (["--video", "scene.png", "--max-frames", "0"], "video_max_frames"),
    (["--image", "scene.png", "--max-pixels", "0"], "pixels"),
    (["--video", "clip.mp4", "--fps", "0"], "video_fps"),
    (["--image", "scene.png", "--p", "0"], "(0, 1]"),
    (["--image", "scene.png", "--p", "1.5"], "[0, 1]"),
    (["--image", "scene.png", "--p", "0.9", "--full"], "give one of --p, --token-ratio, --full"),
    (["--image", "scene.png", "--token-ratio", "0"], "(0, 1]"),
    (["--image", "scene.png", "--token-ratio", "nan"], "(0, 1]"),
    (["--image", "scene.png", "--question", "  "], "question"),
    (["--image", "scene.png", "--max-new-tokens", "0"], "max_new_tokens"),
    (["--image", "scene.png", "--device", "tpu"], "device"),
    (["--image", "scene.png", "--dtype", "int8"], "dtype"),
    (["--image", "scene.png", "--picture", "scene.png"], "choose another name"),
    (["--image", "scene.png", "--picture", "a.txt"], "must end in"),
    (["--image", "scene.png", "--picture", "scene.png/a.png"], "is not writable"),
]


@pytest.mark.parametrize(("words", "reason"), BAD, ids=[" ".join(words) for words, _ in BAD])
def test_bad_input_is_one_line_before_the_model_is_loaded(
    files, capsys, monkeypatch, words, reason
):
    """The model does not exist either, but the other faults are found first."""
    before = (files / "scene.png").read_bytes()
    status, out, err = run(files, capsys, monkeypatch, *words, model="./missing")
    assert status == 2
    assert out == ""
    assert err.startswith("error: ")
    assert err.count("\n") == 1
    assert reason in err
    assert (files / "scene.png").read_bytes() == before


@pytest.mark.parametrize("model", ["./missing", "missing", "no/one", "not/a/path", "bad name!"])
def test_an_unknown_model_is_one_line(files, capsys, monkeypatch, model):
    status, _, err = run(files, capsys, monkeypatch, "--image", "scene.png", model=model)
    assert status == 2
    assert model in err
    assert err.count("\n") == 1


def test_damaged_weights_are_an_error_of_the_model(files, tmp_path):
    for part in (files / "model").iterdir():
        (tmp_path / part.name).write_bytes(
            part.read_bytes()[:1000] if "tensors" in part.name else part.read_bytes()
        )
    with pytest.raises(DataError, match="cannot be loaded"):
        ask(tmp_path, QUESTION, image=files / "scene.png")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_an_absent_gpu_is_said(files):
    with pytest.raises(EnvironmentFault, match="no CUDA device"):
        ask(files / "model", QUESTION, image=files / "scene.png", device="cuda")


def test_policy_of_the_options():
    assert choose_policy(None, False) is None  # as the checkpoint was trained
    assert choose_policy(0.5, False) == TopP(p=0.5)
    assert choose_policy(None, True).dense
    with pytest.raises(ConfigError):
        choose_policy(0.5, True)
    assert issubclass(ConfigError, SparsityForcingError)


RESULT = AskResult(
    reply="[bold]no markup[/]",
    cut=True,
    grid=(2, 3, 4),
    prompt_tokens=40,
    visual_tokens=24,
    completion_tokens=3,
    kept=np.ones((3, 2, 3, 4), dtype=bool),
    layer_ratios=(0.25, 0.5, 0.75),
    visual_ratios=(0.1, 0.2, 0.3),
    text_ratios=(0.6, 0.7, 0.8),
    kv_bytes=3 * 2**20,
    kv_allocated_bytes=4 * 2**20,
    dense_kv_bytes=2**30,
    first_token_ms=1234.0,
    token_ms=None,
)


def test_text_says_the_figures_without_markup_or_unicode_where_there_is_none(tmp_path):
    with (tmp_path / "out").open("w+", encoding="ascii") as file:
        console = Console(file=file, width=120)
        console.print(render(RESULT, console))
        file.seek(0)
        text = file.read()
    assert "[bold]no markup[/] ... (cut after 3 tokens)" in text
    assert "40 tokens: 24 visual (2 x 3 x 4), 16 text" in text
    assert "3.00 MiB, 0.3 % of the dense 1.00 GiB (allocated: 4.00 MiB)" in text
    assert "first token after 1.23 s (no warm-up)" in text
    (line,) = [line for line in text.splitlines() if line.startswith("first third")]
    assert line.split()[-6:] == ["25.0", "%", "10.0", "%", "60.0", "%"]
    assert line.count("#") == 6
    again = replace(RESULT, token_ms=12.34, cut=False)
    wide = Console(width=120)
    with wide.capture() as seen:
        wide.print(render(again, wide))
    assert "then 12.3 ms per token" in seen.get()
    assert "cut after" not in seen.get()


def test_the_command_line_starts_without_torch():
    code = "import sys, sf.cli; sys.exit('torch' in sys.modules or 'matplotlib' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


def test_a_share_of_the_tokens_is_asked_for_in_place_of_p(files, tmp_path):
    """The checkpoint's own curve gives p; without a curve the error says how to get one."""
    given = {"image": files / "scene.png", "max_new_tokens": 2}
    with pytest.raises(ConfigError, match=r"token_ratio = 0.25.*no curve.*sf curve.*--p"):
        ask(files / "model", QUESTION, policy=choose_policy(None, False, 0.25), **given)
    folder = tmp_path / "model"
    shutil.copytree(files / "model", folder)
    note_curve(folder, [(0.5, 0.2), (0.9, 0.6)])
    result = ask(folder, QUESTION, policy=choose_policy(None, False, 0.4), **given)
    same = ask(folder, QUESTION, policy=TopP(p=result.retention_p), **given)
    assert (result.retention_p, result.requested_token_ratio) == (pytest.approx(1 - 0.05**0.5), 0.4)
    assert (same.retention_p, same.requested_token_ratio) == (result.retention_p, None)
    assert result.layer_ratios == same.layer_ratios
    console = Console(width=120)
    with console.capture() as capture:
        console.print(render(result, console))
    assert f"{100 * result.token_ratio:.1f} % of the prompt" in capture.get()
    assert "(p = 0.7764); requested: 40.0 %" in capture.get()


@pytest.mark.parametrize("given", [(0.5, True, None), (0.5, False, 0.3), (None, True, 0.3)])
def test_one_way_to_say_how_much_is_kept(given):
    with pytest.raises(ConfigError, match="give one of --p, --token-ratio, --full"):
        choose_policy(*given)
