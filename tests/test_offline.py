"""Only the stages that fetch may use the hub."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import datasets.config
import pytest
from huggingface_hub import HfApi, constants

from sf import jobs
from sf.errors import EnvironmentFault
from sf.fields import Section
from sf.offline import VARIABLES, hub_offline

CHILD = """
from huggingface_hub import constants
from datasets import config
from transformers.utils.hub import is_offline_mode
print(constants.HF_HUB_OFFLINE, config.HF_HUB_OFFLINE, is_offline_mode())
"""


@pytest.fixture
def online(monkeypatch: pytest.MonkeyPatch) -> None:
    """The environment outside tests, with a hub at an address that does not answer."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(datasets.config, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")


@pytest.mark.usefixtures("online")
def test_everything_is_offline_inside_and_as_before_afterwards() -> None:
    with hub_offline():
        assert constants.HF_HUB_OFFLINE
        assert datasets.config.HF_HUB_OFFLINE
        seen = subprocess.run(
            [sys.executable, "-c", CHILD], capture_output=True, text=True, check=True
        )
    assert seen.stdout.split() == ["True"] * 3
    assert not constants.HF_HUB_OFFLINE
    assert not datasets.config.HF_HUB_OFFLINE
    assert not set(VARIABLES) & set(os.environ)


@pytest.mark.usefixtures("online")
def test_a_module_that_is_imported_meanwhile_is_online_afterwards() -> None:
    code = """
from sf.offline import hub_offline
with hub_offline():
    from huggingface_hub import constants
    assert constants.HF_HUB_OFFLINE
assert not constants.HF_HUB_OFFLINE
"""
    subprocess.run([sys.executable, "-c", code], check=True)


@pytest.mark.usefixtures("online")
@pytest.mark.parametrize("fetches", [False, True])
def test_only_a_stage_that_says_so_asks_the_hub(
    fetches: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Parameters(Section):
        output: Path

    def run(p: Parameters, job: jobs.Job) -> None:
        HfApi().model_info("own/model")

    module = SimpleNamespace(Parameters=Parameters, run=run)
    if fetches:
        module.asks_hub = lambda p: p.output == tmp_path / "result"
    monkeypatch.setattr(jobs, "stage_module", lambda stage: module)
    monkeypatch.setattr(jobs, "key_of", lambda *_: jobs.Key("train", {}, {}, {}, {}))
    values = {"output": tmp_path / "result"}
    if fetches:
        with pytest.raises(Exception, match="refused") as caught:
            jobs.run_stage("train", values, "own", tracked=False)
        assert not isinstance(caught.value, EnvironmentFault)
        return
    message = (
        r"hub\. was contacted by the stage train, which must run without it.*run the stages fetch"
    )
    with pytest.raises(EnvironmentFault, match=message):
        jobs.run_stage("train", values, "own", tracked=False)


def test_mlflow_sends_no_usage_statistics() -> None:
    """Tested with the environment outside tests, where nothing else switches them off."""
    code = (
        "import sf.mlflow_store\n"
        "from mlflow.telemetry.utils import is_telemetry_disabled\n"
        "print(is_telemetry_disabled())"
    )
    kept = ("PATH", "HOME", "PYTHONPATH")
    bare = {name: os.environ[name] for name in kept if name in os.environ}
    root = Path(__file__).parent.parent
    done = subprocess.run(
        [sys.executable, "-c", code], env=bare, cwd=root, capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == ["True"]
