"""Planted secrets are found nowhere: not in messages, not in any file that a command leaves."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest

from sf.atomic_files import write_json
from sf.redaction import redact, without_credentials

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
