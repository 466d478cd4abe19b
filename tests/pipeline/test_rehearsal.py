"""`sf rehearse`: the cost of a study, and its errors, before anything runs."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from typer.testing import CliRunner

from sf.cli import app
from sf.config import Params, Runtime, Vision
from sf.data.budget import longest_prompt
from sf.models import build_tiny
from sf.profiling.memory import cache_bytes
from sf.profiling.models import SHAPES, class_and_config
from sf.rehearsal.least_memory import answering
from sf.rehearsal.shapes import ModelShape, shape_of
from sf.rehearsal.weights import weight_counts
from sf.scales import scale_values
from sf.sections import BaseModelSpec
from sf.stages import train as train_stage
from sf.training.collapse import kept_checkpoints
from sf.validation import validated
from workflow.jobs import jobs
from workflow.rehearsal import Options, Rehearsal, as_json, rehearse
from workflow.rehearsal.bill import bill_of

FOLDER = Path(__file__).parent.parent.parent / "params"
WEIGHTS = {  # as these shapes gave when they were written out; not compared with the hub
    "qwen2.5-vl-3b": 3_754_622_976,
    "qwen2.5-vl-7b": 8_292_166_656,
    "qwen2-vl-2b": 2_208_985_600,
    "qwen2-vl-7b": 8_291_375_616,
    "llava-video-7b": 8_030_348_832,
}


@pytest.fixture(autouse=True)
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    return tmp_path


def rehearsed(
    change: Callable[[dict[str, Any]], None], scale: str = "single_gpu", **options: Any
) -> Rehearsal:
    """The rehearsal of a scale with a change."""
    values = scale_values(scale, FOLDER)
    change(values)
    Path("params.yaml").write_text(json.dumps(values))
    return rehearse(None, Options(**options))


def unchanged(values: dict[str, Any]) -> None:
    """Plant nothing."""


def set_to(path: str, value: Any) -> Callable[[dict[str, Any]], None]:
    def change(values: dict[str, Any]) -> None:
        *parents, last = path.split("/")
        for name in parents:
            values = values.setdefault(name, {})
        values[last] = value

    return change


def local_base(folder: Path) -> Path:
    """A tiny checkpoint as the hub would hold one, in two files."""
    model, processor = build_tiny("qwen2_5_vl", ["red blue"] * 2, seed=0)
    model.save_pretrained(folder, max_shard_size="1MB")
    processor.save_pretrained(folder)
    return folder


def test_the_shapes_keep_their_number_of_weights() -> None:
    counts = {
        name: ModelShape(*class_and_config(shape), shape.hub).num_parameters
        for name, shape in SHAPES.items()
        if shape.hub
    }
    assert counts == WEIGHTS


def test_the_bill_has_the_jobs_of_the_engines() -> None:
    """And the sums of their hours, added by hand."""
    params = validated(Params, scale_values("single_gpu", FOLDER))
    specs = jobs(params)
    shapes = {model: shape_of(spec) for model, spec in params.base.items()}
    bill = bill_of(params, specs, shapes, seconds_a_step=36.0)
    assert [charge.job for charge in bill.charges] == specs
    by_name = {charge.job.name: charge for charge in bill.charges}
    train = by_name["train__qwen2.5-vl-3b__sparsity_forcing__0"]
    every = WEIGHTS["qwen2.5-vl-3b"]
    trained = 3_085_938_688  # the language model; the tower is frozen
    checkpoint = 4 * every + 8 * trained
    assert train.disk == checkpoint * 3
    assert train.hours == pytest.approx(20 + 40 * checkpoint / 0.7e9 / 3600)
    counted = [c for c in bill.charges if c.gpus]
    assert bill.gpu_hours == pytest.approx(train.hours + 12.0 * (len(counted) - 1))
    assert bill.machine == 1
    # On one GPU the jobs that need it follow each other; the data come first, the report last.
    assert bill.wall_clock == pytest.approx(bill.gpu_hours + 48 + 36 + 12 + 0.5 + 0.5)
    chain = [48, 12, 24, 12, train.hours, 12, 0.5, 0.5]
    assert bill.longest_chain == pytest.approx(sum(chain))
    needed = bill.tables["table1"]
    assert needed[:2] == (29, pytest.approx(train.hours + 21 * 12.0))
    assert [each.what for each in bill.unknown] == ["Video-R1/Video-R1-data@main"]


def test_a_step_takes_the_published_time_in_proportion_to_weights() -> None:
    """At the paper's scale: 12.0 s of the 7B model, with 8 rollouts a GPU of either."""
    params = validated(Params, scale_values("paper", FOLDER))
    specs = jobs(params)
    shapes = {model: shape_of(spec) for model, spec in params.base.items()}
    charges = {charge.job.name: charge for charge in bill_of(params, specs, shapes).charges}
    steps = params.train.steps
    for model in ("qwen2.5-vl-7b", "qwen2.5-vl-3b"):
        charge = charges[f"train__{model}__sparsity_forcing__0"]
        kept = charge.disk / (kept_checkpoints(params.trained["sparsity_forcing"]) + 1)
        written = steps // params.train.save_every * kept / 0.7e9
        step = 12.0 * WEIGHTS[model] / WEIGHTS["qwen2.5-vl-7b"]
        assert charge.hours == pytest.approx((steps * step + written) / 3600, rel=1e-3)


def test_an_objective_leaves_the_shape_of_the_base_model_as_it_is() -> None:
    """Training records NSA's attention in the configuration of the model that it trains."""
    params = validated(Params, scale_values("paper", FOLDER))
    shape = shape_of(params.base["qwen2.5-vl-7b"])
    assert shape is not None
    before = shape.config.to_dict()
    train = {job.name: job for job in jobs(params) if job.stage.run == "train"}
    for row in ("nsa", "sharpness"):
        parameters = validated(
            train_stage.Parameters, train[f"train__qwen2.5-vl-7b__{row}__0"].parameters
        )
        weight_counts(shape, parameters)
        assert shape.config.to_dict() == before


def test_a_study_without_a_fault_passes() -> None:
    assert rehearsed(unchanged).faults == []
    assert rehearsed(unchanged, "mini").faults == []


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("resources/train/hours", 3, r"resources\.train\.hours = 3.* too short .*2,000 steps"),
        ("resources/train/gpus", 3, r"questions_per_step = 2.* divide over 3 ranks"),
        ("evaluate/batch", 512, r"evaluate\.batch = 512\. does not fit.*at least .*KV cache"),
        ("resources/train/mem_gib", 8, r"resources\.train\.mem_gib = 8\. is too little"),
        ("train/sharding", "fsdp", r"train\.sharding = 'fsdp'.*divides weights over several"),
        ("objectives/moba", {"objective": "moba", "token_ratio": None, "top_k": 64},
         r"objectives\.moba.*keeps 1\.00 of a prompt"),
        ("evaluate/retention_p", 1.0, r"evaluate\.retention_p = 1\.0.*keeps 1 of the tokens"),
        ("profile/token_ratio", 0.97, r"profile\.token_ratio = 0\.97"),
        ("objectives/k", {"objective": "sparsity_forcing", "rollout_selector": "top_k"},
         r"objectives\.k\.retention_p = 0\.9575"),
        ("axes/methods", ["full", "nsa"], r"axes\.methods = 'nsa'.*cannot run on base"),
        ("base/qwen2.5-vl-3b/train", {"stepps": 1}, r"base\.qwen2\.5-vl-3b\.train\.stepps.*steps"),
        ("base/own", {"family": "llava_onevision", "source": "hub:a/b@main", "without": ["fastv"]},
         r"base\.own\.without.*fastv is not one of axes\.methods"),
        ("prepare/source", "rows", r"prepare\.source = 'rows'"),
        ("benchmarks/source", "home", r"benchmarks\.source = 'home'"),
    ],
)  # fmt: skip
def test_a_planted_fault_is_named(path: str, value: Any, message: str) -> None:
    faults = rehearsed(set_to(path, value)).faults
    assert len(faults) == 1
    assert re.search(message, str(faults[0]), flags=re.S), str(faults[0])


def test_a_llava_prompt_has_the_tokens_of_its_frames() -> None:
    """Frames have the tower's size: 27 x 27 patches, pooled; the pixel bounds do not apply."""
    shape = ModelShape(*class_and_config(SHAPES["llava-video-7b"]), "", is_published=True)
    params = validated(Params, scale_values("paper", FOLDER))
    need = answering(shape, params.runtime, params.evaluation_vision, 1, 0, "evaluate")
    tokens, entry = 32 * 14 * 14 + 1 + 64, 2 * 28 * 4 * 128 * 2
    assert need.bytes["KV cache"] == tokens * entry


@pytest.mark.parametrize(("batch", "field"), [(1, ""), (256, "train.rollouts_per_forward")])
def test_a_forward_that_does_not_fit_is_named(batch: int, field: str) -> None:
    """32 questions of 8 on one GPU."""

    def change(values: dict[str, Any]) -> None:
        values["train"] |= {"questions_per_step": 32, "rollouts_per_forward": batch}
        values["resources"]["train"]["hours"] = 10_000

    assert [getattr(fault, "field", "") for fault in rehearsed(change).faults] == [field][
        : batch > 1
    ]


@pytest.mark.filterwarnings("ignore")
def test_a_step_whose_activations_do_not_fit_is_named() -> None:
    """Its lower bound fits; its peak, found by running it on shapes, does not."""

    def change(values: dict[str, Any]) -> None:
        values["objectives"] = {"row": {"objective": "zipvl_sft"}}
        values["runtime"]["device"] = "cuda"
        values["resources"]["train"]["gpus"] = 1

    assert rehearsed(change, "mini", gpu_gib=0.2).faults == []
    result = rehearsed(change, "mini", gpu_gib=0.2, peak=True)
    (fault,) = result.faults
    message = r"train\.rollouts_per_forward = 128.*up to 0\.\d GiB on each GPU in backward"
    assert re.search(message, str(fault), flags=re.S), str(fault)
    assert "activations" in str(fault)
    written = as_json(result)["peak_memory"]
    assert {each["part"] for each in written} >= {"forward", "backward", "optimiser step"}


@pytest.mark.filterwarnings("ignore")
def test_a_batch_of_answers_that_does_not_fit_is_named() -> None:
    """Weights, keys and values fit, the rest does not; every method has a peak or is listed."""

    def change(values: dict[str, Any]) -> None:
        values["axes"]["methods"] = ["full", "zipvl", "fastv", "minference", "temperature"]
        values["objectives"] = {
            "row": {"objective": "zipvl_sft", "train": {"rollouts_per_forward": 1}},
            "blocks": {"objective": "moba", "train": {"rollouts_per_forward": 1}},
        }
        values["runtime"]["device"] = "cuda"
        values["resources"]["train"]["gpus"] = 1
        values["evaluate"]["batch"] = 400

    assert rehearsed(change, "mini", gpu_gib=0.8).faults == []
    result = rehearsed(change, "mini", gpu_gib=0.8, peak=True)
    (fault,) = result.faults
    message = r"evaluate\.batch = 400.*up to \d\.\d GiB on each GPU in (prefill|decoding)"
    assert re.search(message, str(fault), flags=re.S), str(fault)
    written = as_json(result)["peak_memory"]
    evaluations = {each["job"] for each in written if each["part"] == "decoding"}
    assert {name.split("__")[2] for name in evaluations} == {"full", "zipvl", "fastv"}
    (note,) = [note for note in result.notes if "lower bound only" in note]
    assert note.endswith("minference, temperature, moba")


def test_whole_weights_that_do_not_fit_are_named() -> None:
    def change(values: dict[str, Any]) -> None:
        values["train"]["sharding"] = "none"
        for model in ("qwen2-vl-7b", "qwen2.5-vl-3b", "llava-video-7b"):
            del values["base"][model]
        values["objectives"] = {"sparsity_forcing": {"objective": "sparsity_forcing"}}

    (fault,) = rehearsed(change, "paper").faults
    assert "train.sharding = 'none'. does not fit" in str(fault)
    assert "divide the weights" in str(fault)


def test_keys_and_values_take_what_a_cache_holds(tiny: tuple[Any, Any]) -> None:
    model, _ = tiny
    ids = torch.full((2, 40), 5)
    cache = model(input_ids=ids, attention_mask=torch.ones_like(ids), use_cache=True)
    shape = ModelShape(type(model), model.config, "tiny")
    runtime = Runtime(device="cpu", dtype="float32")
    vision = Vision(**scale_values("mini", FOLDER)["vision"])
    need = answering(shape, runtime, vision, 2, 3, "evaluate")
    held = cache_bytes(cache.past_key_values)
    assert need.bytes["KV cache"] == held // 40 * (longest_prompt(vision) + 3)
    assert need.bytes["weights"] == sum(w.numel() * 4 for w in model.parameters())


def test_missing_files_of_local_sources_are_named(tmp_path: Path) -> None:
    """A part of the weights, a tokenizer, media and a benchmark's table."""
    base = local_base(tmp_path / "base")
    assert rehearsed(set_to("base/qwen2.5-vl-3b/source", str(base))).faults == []
    part = sorted(base.glob("model-*.safetensors"))[1]
    part.unlink()
    (base / "tokenizer.json").unlink()
    rows = tmp_path / "rows"
    rows.mkdir()
    row = {
        "problem_id": 1, "problem": "Is it red?", "data_type": "image", "problem_type": "OCR",
        "options": [], "solution": "<answer>yes</answer>", "path": "./pictures/1.png",
        "data_source": "own",
    }  # fmt: skip
    (rows / "Video-R1-260k.json").write_text(json.dumps([row]))
    home = tmp_path / "home"
    home.mkdir()

    def change(values: dict[str, Any]) -> None:
        values["base"]["qwen2.5-vl-3b"]["source"] = str(base)
        values["prepare"]["source"] = str(rows)
        values["benchmarks"] |= {"source": str(home), "suites": ["mme", "videomme"]}

    messages = [str(fault) for fault in rehearsed(change).faults]
    assert len(messages) == 3
    assert part.name in messages[0]
    assert "tokenizer.json" in messages[0]
    assert "pictures/1.png" in messages[1]
    assert "hub/lmms-lab-encoder/MME/*.parquet (MME)" in messages[2]
    assert "videomme/ (VideoMME)" in messages[2]


def test_a_selector_that_a_checkpoint_cannot_run_is_named(tmp_path: Path) -> None:
    """Also the objective that would change what the base was trained with."""
    base = local_base(tmp_path / "base")
    config = json.loads((base / "config.json").read_text())
    note = {"name": "moba", "top_k": 2, "block_size": 4}
    config["text_config"]["trained_attention"] = note
    (base / "config.json").write_text(json.dumps(config))
    faults = rehearsed(set_to("base/qwen2.5-vl-3b/source", str(base))).faults
    assert [fault.field for fault in faults] == [
        "axes.methods",
        "objectives.sparsity_forcing.objective",
    ]
    assert "trained with moba" in str(faults[0])
    assert "zipvl" in str(faults[0])


def test_all_faults_are_listed_and_the_command_fails(tmp_path: Path) -> None:
    values = scale_values("single_gpu", FOLDER)
    values["resources"]["train"]["hours"] = 3
    values["evaluate"]["retention_p"] = 1.0
    Path("params.yaml").write_text(json.dumps(values))
    result = CliRunner().invoke(app, ["rehearse", "--json", "out.json", "--disk-gib", "10"])
    assert result.exit_code == 1
    written = json.loads(Path("out.json").read_text())
    fields = [fault["field"] for fault in written["faults"]]
    assert fields == ["evaluate.retention_p", "resources.train.hours", "free disk space"]
    assert all(fault["rule"] and fault["remedy"] for fault in written["faults"])
    assert result.output.count("error: ") == 3
    assert len(written["bill"]["jobs"]) == len(jobs(validated(Params, values)))


def test_the_sizes_of_a_model_that_is_not_written_out_are_not_known() -> None:
    spec = BaseModelSpec(family="qwen2_5_vl", source="hub:own/model@main")
    assert shape_of(spec) is None
    result = rehearsed(set_to("base/own", spec.model_dump()))
    assert result.bill is not None
    assert any("base.own" in note for note in result.notes)
    assert "own/model@main" in [each.what for each in result.bill.unknown]
