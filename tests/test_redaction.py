"""Planted secrets appear nowhere: not in messages, not in any file that a command leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sf.atomic_files import write_json
from sf.config import Params
from sf.errors import ConfigError
from sf.redaction import RedactedStream, redact, without_credentials
from sf.validation import read_yaml, validated

PLANTED = "PLANTED5ecret"
PLACES = {
    "MLFLOW_TRACKING_URI": f"http://user:{PLANTED}uri@127.0.0.1:9/?api_key={PLANTED}query",
    "MLFLOW_TRACKING_PASSWORD": f"{PLANTED}password",
    "MLFLOW_TRACKING_TOKEN": f"{PLANTED}token",
    "HF_TOKEN": f"hf_{PLANTED}",
    "HUGGING_FACE_HUB_TOKEN": f"hf_{PLANTED}old",
    "AWS_SECRET_ACCESS_KEY": f"{PLANTED}/aws",
    "OPENAI_API_KEY": f"sk-{PLANTED}",
    "HTTPS_PROXY": f"http://user:{PLANTED}%40proxy@127.0.0.1:9",
    "HF_ENDPOINT": f"http://user:{PLANTED}@127.0.0.1:9",
}


@pytest.mark.parametrize("name", PLACES)
def test_what_is_secret_in_the_environment_is_masked(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(name, PLACES[name])
    assert PLANTED not in redact(f"no answer from {PLACES[name]} ({PLACES[name]!r})")


FILES = {
    "hub/token": f"hf_{PLANTED}\n",
    "hub/stored_tokens": f"[name]\nhf_token = hf_{PLANTED}2\n",
    ".netrc": f"machine host login me password {PLANTED}3\n",
    ".aws/credentials": f"[default]\naws_secret_access_key={PLANTED}/4\nregion = eu-west\n",
    ".mlflow/credentials": f"[mlflow]\nmlflow_tracking_password = {PLANTED}5",
}


@pytest.mark.parametrize("name", FILES)
def test_what_is_secret_in_the_files_of_logins_is_masked(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("HF_HOME", str(tmp_path / "hub"))
    for other in ("HF_TOKEN_PATH", "HF_STORED_TOKENS_PATH", "AWS_SHARED_CREDENTIALS_FILE", "NETRC"):
        monkeypatch.delenv(other, raising=False)
    (tmp_path / name).parent.mkdir(exist_ok=True)
    (tmp_path / name).write_text(FILES[name])
    secret = next(word for word in FILES[name].replace("=", " ").split() if PLANTED in word)
    assert redact(f"me at eu-west: {secret}, {secret}") == "me at eu-west: ***, ***"


def test_ordinary_text_is_left_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TOKENIZERS_PARALLELISM", "false")
    monkeypatch.setenv("SOME_TOKEN", "a")
    text = "token_ratio = 0.5, a false mail a@b.c, https://host/path?x=1&y=2, sqlite:////a/b.db"
    assert redact(text) == without_credentials(text) == text


def test_planted_secrets_are_found_nowhere(tmp_path: Path) -> None:
    output = tmp_path / "results/test/calibrate/tiny"
    record = {
        "stage": "calibrate",
        "key": "key-1",
        "study": "test",
        "parameters": {"output": "results/test/calibrate/tiny"},
    }
    for path in (output / "stage.json", output.parent / ".tiny.work/record.json"):
        write_json(path, record)
    environment = {
        **os.environ,
        **PLACES,
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
        "HF_HOME": str(tmp_path / "hub"),
    }
    for words in (
        ["log"],
        ["run", f"https://user:{PLANTED}@host/stage"],
    ):
        done = subprocess.run(
            [sys.executable, "-m", "sf.cli", *words],
            cwd=tmp_path,
            env=environment,
            capture_output=True,
            text=True,
        )
        assert PLANTED not in done.stdout + done.stderr
        assert done.stdout + done.stderr
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert PLANTED.encode() not in path.read_bytes(), path
        assert PLANTED not in str(path)


LEAKY = """
import logging, os, subprocess, sys, warnings
from pathlib import Path
from types import ModuleType
import sf.cli, sf.jobs
from sf.fields import Section

class Parameters(Section):
    output: Path

def run(parameters, job):
    places = " ".join(os.environ[name] for name in os.environ["LEAKED"].split())
    print(places)
    print(places, file=sys.stderr)
    warnings.warn(places)
    logging.getLogger("library").error("retrying %s", places)
    os.write(2, places.encode())  # as a library in C
    subprocess.run(["sh", "-c", 'echo "$PLACES"'], env={"PLACES": places})
    job.tracker.log(1, {"loss": 1.0})
    if "--fail" in sys.argv[0]:
        raise RuntimeError(places + chr(27) + "[31m")

module = ModuleType("leaky")
module.Parameters, module.run, module.__file__ = Parameters, run, sf.jobs.__file__
module.input_paths = lambda parameters: {}
sf.jobs.stage_module = lambda name: module
sf.cli.main()
"""


@pytest.mark.parametrize("fails", [False, True])
def test_a_stage_that_prints_secrets_shows_and_stores_none(tmp_path: Path, fails: bool) -> None:
    """Secrets that a library prints, warns of, logs or raises, and those in a result's record."""
    script = tmp_path / ("--fail.py" if fails else "leaky.py")
    script.write_text(LEAKY)
    write_json(tmp_path / "config.json", {"output": "results/own/leaky"})
    secret_config = tmp_path / f"{PLACES['HF_TOKEN']}.json"
    (tmp_path / "config.json").rename(secret_config)
    environment = {
        **os.environ,
        **PLACES,
        "LEAKED": " ".join(PLACES),
        "PYTHONPATH": os.pathsep.join(sys.path),
        "MLFLOW_HTTP_REQUEST_MAX_RETRIES": "0",
    }
    words = ["run", "report", "--config", secret_config.name]
    done = subprocess.run(
        [sys.executable, str(script), *words],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    shown = done.stdout + done.stderr
    assert done.returncode == (1 if fails else 0), shown
    assert ("Traceback" in shown) is fails
    assert shown.count("***") >= 6 * len(PLACES)
    assert "\x1b" not in shown
    assert PLANTED not in shown
    secret_config.unlink()
    for path in (path for path in tmp_path.rglob("*") if path.is_file()):
        assert PLANTED.encode() not in path.read_bytes(), path
    assert (tmp_path / "results/own/leaky/stage.json").is_file() is not fails


@pytest.mark.parametrize(
    "source", [PLACES["HF_ENDPOINT"], f"https://host/data.tar?token={PLANTED}"]
)
def test_a_secret_in_the_parameters_is_refused_and_not_shown(source: str) -> None:
    values = read_yaml(Path(__file__).parent.parent / "params/mini.yaml")
    values["prepare"]["source"] = source
    with pytest.raises(ConfigError, match=r"prepare\.source.*contains a secret") as caught:
        validated(Params, values)
    assert PLANTED not in str(caught.value)


def test_a_masked_stream_is_otherwise_the_stream(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_TOKEN", PLACES["HF_TOKEN"])
    with (tmp_path / "log").open("w", encoding="utf-8") as file:
        stream = RedactedStream(file)
        assert stream.write(text := f"token {PLACES['HF_TOKEN']}.") == len(text)
        assert stream.fileno() == file.fileno()
        assert (stream.encoding, stream.errors) == (file.encoding, file.errors)
        assert not stream.isatty()
        assert stream.buffer is file.buffer
        print("next", file=stream, flush=True)
    assert (tmp_path / "log").read_text() == "token ***.next\n"


def test_a_warning_of_a_dead_store_names_it_without_its_password(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from sf.mlflow_store import best_effort

    monkeypatch.setenv("MLFLOW_TRACKING_URI", PLACES["MLFLOW_TRACKING_URI"])
    with (
        pytest.warns(UserWarning, match=r"http://\*\*\*@127\.0\.0\.1:9") as told,
        best_effort("a result"),
    ):
        raise RuntimeError(f"no answer from {PLACES['MLFLOW_TRACKING_URI']}\x1b[31m")
    assert PLANTED not in str(told[0].message)
    assert "\x1b" not in str(told[0].message)
