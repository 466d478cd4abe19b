"""The whole pipeline at the smoke scale under both engines, with kills on the way.

One module-wide checkout is used in order: Snakemake (killed in every stage), then DVC adopting,
then changed parameters, then DVC alone, then Snakemake adopting.
"""

from __future__ import annotations

import json
import random
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pandas as pd
import pytest
from random_kills import (
    ENGINES,
    copy_checkout,
    environment,
    one_per_stage,
    run_with_kills,
    tables,
    use_smoke,
)
from ruamel.yaml import YAML

from sf.result_key.imports import LOOKS, RUNNER, module_file, stage_code
from workflow.jobs import jobs, load_params

ROOT = Path(__file__).parent.parent.parent
WATCH = """
import atexit, ipaddress, os, signal, socket, sys
ignored = signal.SIG_IGN in map(signal.getsignal, (signal.SIGTERM, signal.SIGUSR1))
connect, resolve = socket.socket.connect, socket.getaddrinfo
def check(host):
    try:
        here = ipaddress.ip_address(host).is_loopback
    except ValueError:
        here = host in (None, "", "localhost", socket.gethostname())
    if not here:
        with open("imported/asked", "a") as stream:
            print(*sys.argv, host, file=stream)
        raise ConnectionRefusedError("the network is cut")
def connect_here(own, address):
    if own.family in (socket.AF_INET, socket.AF_INET6):
        check(address[0])
    return connect(own, address)
def resolve_here(host, *rest, **options):
    check(host)
    return resolve(host, *rest, **options)
socket.socket.connect, socket.getaddrinfo = connect_here, resolve_here
def record():
    if sys.argv[1:2] == ["run"]:
        if ignored:
            open("imported/ignored", "w").close()
        names = sorted(name for name in sys.modules if name.split(".")[0] == "sf")
        with open(f"imported/{sys.argv[2]}.{os.getpid()}", "w") as stream:
            stream.write("\\n".join(names))
atexit.register(record)
"""
BIN = Path(sys.executable).parent

DOWNSTREAM = {  # what reads a stage's results, directly or not
    "train": {
        *("accuracy_curve_trained", "evaluate_trained", "report", "table1", "table2", "table7"),
        *("figure4a", "figure4b", "figure5", "figure7"),
    },
    "evaluate_base": {"table1", "table2", "figure7", "report"},
    "evaluate_trained": {"table1", "table2", "figure7", "report"},
    "profile": {"figure4c", "figure4d", "report"},
}

pytestmark = pytest.mark.timeout(2700)


@pytest.fixture(scope="module")
def checkout(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the checkout's files in a path that needs quotes, at the smoke scale."""
    folder = copy_checkout(tmp_path_factory.mktemp("checkout") / "é ü's x")
    (folder / "imported").mkdir()
    (folder / "imported/sitecustomize.py").write_text(WATCH)
    use_smoke(folder)
    return folder


def run(folder: Path, *words: str) -> str:
    result = subprocess.run(
        words, cwd=folder, capture_output=True, text=True, env=environment(), check=False
    )
    output = result.stdout + result.stderr
    assert result.returncode == 0, f"{' '.join(words)}\n{output[-6000:]}"
    return output


def planned(folder: Path, output: str | None = None) -> set[str]:
    """The jobs that Snakemake would run now, or those in the output of a dry run."""
    output = output or run(folder, "snakemake", "-n", "--cores", "2")
    names = {job.name for job in jobs(load_params(folder / "params.yaml"))}
    return {name for name in names if f"rule {name}:" in output}


def changed_in_dvc(folder: Path) -> set[str]:
    """The rules that DVC considers changed, after the jobs' files are written."""
    run(folder, "python", "-m", "workflow.resolve")
    status = json.loads(run(folder, "dvc", "status", "--json"))
    return {name.split("@")[0] for name in status} - {"resolve", "code"}


def set_value(folder: Path, dotted: str, value: object) -> str:
    """Change one parameter; returns the earlier text of params.yaml."""
    path, yaml = folder / "params.yaml", YAML()
    before = path.read_text()
    params = yaml.load(before)
    section, _, name = dotted.rpartition(".")
    values = params
    for part in section.split("."):
        values = values[part]
    assert name in values
    assert values[name] != value
    values[name] = value
    with path.open("w") as stream:
        yaml.dump(params, stream)
    return before


def test_snakemake_survives_kills_in_every_stage_and_finishes(checkout: Path) -> None:
    """DVC's undisturbed run, below, must write the same tables."""
    chosen = one_per_stage(checkout)
    assert len(chosen) == 10
    signals = (signal.SIGKILL, signal.SIGTERM)
    kills = run_with_kills(
        checkout, ENGINES["snakemake"], chosen, 6.0, random.Random(0), signals=signals
    )
    # Two jobs run at once: one may end while the other's kill is due.
    assert len({output for kill in kills for output in kill.outputs}) >= 8, kills
    for job in jobs(load_params(checkout / "params.yaml")):
        assert (checkout / job.stamp).is_file(), job.name
    assert (checkout / "reports/smoke/index.html").is_file()


def test_a_stage_imports_only_what_its_key_holds(checkout: Path) -> None:
    names = {path.name.split(".")[0] for path in (checkout / "imported").glob("*.*")}
    runs = {job.stage.run for job in jobs(load_params(checkout / "params.yaml"))}
    assert runs == names - {"sitecustomize", "__pycache__"}
    # With what these import: names are checked with the registry, which decides no result.
    start = f"import sys, {', '.join([*RUNNER, 'sf.cli'])}"
    of_runner = run(checkout, "python", "-c", f"{start}; print(*sys.modules)").split()
    code = f"{start}, {', '.join(LOOKS)}; print(*sys.modules)"
    of_looks = run(checkout, "python", "-c", code).split()
    compared = set()
    for run_name in runs:
        beside = of_runner if run_name == "report" else of_looks
        for path in (checkout / "imported").glob(f"{run_name}.*"):
            loaded = {
                file.relative_to(ROOT).as_posix()
                for name in path.read_text().splitlines()
                if name not in beside and (file := module_file(name)) is not None
            }
            assert loaded <= stage_code(run_name).modules.keys(), (run_name, loaded)
            compared |= loaded
    assert {"sf/training/trainer.py", "sf/evaluation/run.py"} <= compared


def test_no_job_used_the_network(checkout: Path) -> None:
    assert [*(checkout / "imported").glob("*.[0-9]*")], "no job has run and been watched"
    assert not (checkout / "imported/asked").exists()


def test_no_job_ignores_signals_before_it_listens(checkout: Path) -> None:
    """Its shell and `tee` do. A signal in the first seconds would be lost: the job would go on."""
    assert [*(checkout / "imported").glob("*.[0-9]*")], "no job has run and been watched"
    assert not (checkout / "imported/ignored").exists()


def test_a_second_call_has_nothing_to_do(checkout: Path) -> None:
    assert "Nothing to be done" in run(checkout, "snakemake", "--cores", "2")


def test_every_table_is_made_and_named(checkout: Path) -> None:
    for job in jobs(load_params(checkout / "params.yaml")):
        if job.stage.name == "table":
            for name in ("index.html", *(f"{job.name}.{kind}" for kind in ("csv", "md", "tex"))):
                assert (checkout / job.output / name).is_file(), name
                assert (checkout / "reports/smoke" / job.name / name).is_file(), name
    output = run(checkout, "snakemake", "--cores", "2", "table1")
    assert "table1: results/smoke/table/table1/index.html" in output
    assert "Nothing to be done" in output


def test_dvc_adopts_what_snakemake_made(checkout: Path) -> None:
    output = run(checkout, "dvc", "repro")
    specs = jobs(load_params(checkout / "params.yaml"))
    assert output.count(": up to date") == len(specs)
    assert ": done" not in output
    assert changed_in_dvc(checkout) == set()


def test_a_parameter_reruns_exactly_the_stages_that_use_it(checkout: Path) -> None:
    expected: list[tuple[dict[str, object], set[str]]] = [
        # Of an objective that the study does not train, and of how a job is run.
        ({"nsa.window": 4, "resources.default.cpus": 2}, set()),
        ({"evaluate.retention_p": 0.9}, {"evaluate_base", "evaluate_trained"}),
        ({"grpo.beta": 1.0}, {"train"}),
        ({"profile.token_ratio": 0.5}, {"profile"}),
    ]
    before = (checkout / "params.yaml").read_text()
    for values, stages in expected:
        for name, value in values.items():
            set_value(checkout, name, value)
        in_dvc = {name for name in changed_in_dvc(checkout) if name != "report"}
        in_snakemake = {name.split("__")[0] for name in planned(checkout)}
        (checkout / "params.yaml").write_text(before)
        downstream = set()
        for stage in stages:
            downstream |= DOWNSTREAM[stage]
        assert in_dvc == stages, values
        assert in_snakemake == stages | downstream, values


def test_snakemake_notices_what_its_records_do_not_say(checkout: Path) -> None:
    shutil.rmtree(checkout / ".snakemake")
    assert planned(checkout) == set()
    before = set_value(checkout, "profile.token_ratio", 0.5)
    output = run(checkout, "snakemake", "-n", "--cores", "2")
    names = {name.split("__")[0] for name in planned(checkout, output)}
    other = run(checkout, "snakemake", "-n", "--cores", "2", "table1")
    (checkout / "params.yaml").write_text(before)
    assert names == {"profile", *DOWNSTREAM["profile"]}
    assert "Nothing to be done" in other
    lines = [line for line in output.splitlines() if line.startswith("stale: ")]
    assert lines
    for line in lines:
        assert line.startswith("stale: profile__")
        assert line.endswith(": parameter profile.token_ratio: 0.25 → 0.5")

    stamp = next((checkout / "results/smoke/profile").rglob("stage.json"))
    text = stamp.read_text()
    stamp.write_text(text.replace('"profile.token_ratio": 0.25', '"profile.token_ratio": 0.5'))
    assert stamp.read_text() != text
    output = run(checkout, "snakemake", "--cores", "2")
    assert "profile: up to date" in output  # called again, verified and restored, not computed
    assert "profile: done" not in output
    assert stamp.read_text() == text


def test_a_comment_reruns_nothing_and_code_what_imports_it(checkout: Path) -> None:
    comment, code = checkout / "sf/errors.py", checkout / "sf/profiling/study.py"
    before = code.read_text()
    comment.write_text("# A comment.\n" + comment.read_text().replace('"""', '"""New: ', 1))
    code.write_text(before + "\n# Another.\n")
    run(checkout, "python", "-m", "workflow.code_digests")
    assert planned(checkout) == set()
    assert changed_in_dvc(checkout) == set()
    code.write_text(before + "\nMORE = 1\n")
    run(checkout, "python", "-m", "workflow.code_digests")
    assert {name.split("__")[0] for name in planned(checkout)} == {
        "profile",
        *DOWNSTREAM["profile"],
    }
    assert changed_in_dvc(checkout) == {"profile"}
    code.write_text(before)
    run(checkout, "python", "-m", "workflow.code_digests")


def test_dvc_alone_does_the_whole_study_and_snakemake_adopts_it(checkout: Path) -> None:
    first = tables(checkout)
    assert first
    for name in ("results", "reports/smoke", ".snakemake"):
        shutil.rmtree(checkout / name)
    (checkout / "dvc.lock").unlink()
    run(checkout, "dvc", "repro")
    assert planned(checkout) == set()
    second = tables(checkout)
    assert second.keys() == first.keys()
    for name, table in first.items():
        pd.testing.assert_frame_equal(table, second[name])


@pytest.mark.slow
def test_a_second_model_adds_its_rows_and_moves_no_other(checkout: Path) -> None:
    first = tables(checkout)
    run(checkout, "sf", "use", "smoke", "--force")
    run(checkout, "snakemake", "--cores", "2")
    second = tables(checkout)
    assert second.keys() == first.keys()
    for name, table in second.items():
        left = table[table["model"] != "tiny-qwen2-vl"].reset_index(drop=True)
        assert 0 < len(left) < len(table)
        pd.testing.assert_frame_equal(left, first[name])


def test_the_runs_hang_under_one_study_in_mlflow(checkout: Path) -> None:
    from mlflow.tracking import MlflowClient

    client = MlflowClient(f"sqlite:///{checkout}/mlflow.db")
    experiment = client.get_experiment_by_name("sparsity-forcing")
    runs = client.search_runs([experiment.experiment_id], max_results=1000)
    parents = [run.info.run_id for run in runs if run.data.tags.get("sf.parent")]
    assert len(parents) == 1
    children = [run for run in runs if not run.data.tags.get("sf.parent")]
    stages = {run.data.tags["sf.stage"] for run in children if run.info.status == "FINISHED"}
    assert stages == {job.stage.run for job in jobs(load_params(checkout / "params.yaml"))}
    assert {run.data.tags["mlflow.parentRunId"] for run in children} == set(parents)


@pytest.mark.slow
def test_a_failed_job_leaves_a_report_that_says_what_is_missing(tmp_path: Path) -> None:
    folder = copy_checkout(tmp_path / "checkout")
    run(folder, "sf", "use", "smoke", "--force")
    parameters = folder / "params.yaml"
    text = parameters.read_text()
    assert text.count("  source: synthetic ") == 2
    before, _, after = text.rpartition("  source: synthetic ")
    parameters.write_text(f"{before}  source: nowhere {after}")  # of the benchmarks
    done = subprocess.run(
        ["snakemake", "--cores", "2", "results/smoke/benchmarks/stage.json"],
        cwd=folder, capture_output=True, text=True, env=environment(), check=False,
    )  # fmt: skip
    assert done.returncode != 0
    report = (folder / "reports/smoke/report.md").read_text()
    missing = next(line for line in report.splitlines() if line.startswith("Missing when this"))
    assert "benchmarks, " in missing
    assert "evaluate/" in missing
    assert "train/" in missing
