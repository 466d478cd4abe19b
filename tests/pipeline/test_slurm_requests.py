"""What is asked of Slurm, and what is made of its answers; without a Slurm."""

from __future__ import annotations

import re
from importlib.util import find_spec
from pathlib import Path
from types import SimpleNamespace

import pytest
from ruamel.yaml import YAML
from snakemake_executor_plugin_slurm.submit_string import get_submit_command
from snakemake_executor_plugin_slurm.utils import set_gres_string

from sf.config import Params, Resources
from sf.errors import ConfigError, EnvironmentFault
from sf.scales import scale_values
from sf.validation import validated
from workflow import slurm
from workflow.jobs import jobs

ROOT = Path(__file__).parent.parent.parent
SETTINGS = "MinJobAge = {age} sec\nAccountingStorageType = accounting_storage/{storage}\n"


def answers(monkeypatch: pytest.MonkeyPatch, text: str) -> None:
    monkeypatch.setattr(slurm, "ask", lambda words: text)


def test_time_limits_are_rounded_up_and_never_absent() -> None:
    assert [slurm.minutes(hours) for hours in (0.01, 0.5, 1.01, 168)] == [1, 30, 61, 10080]


class Asked(dict[str, object]):
    """A job's resources as the plugin reads them."""

    __getattr__ = dict.__getitem__


@pytest.mark.parametrize(
    ("changes", "words", "absent"),
    [
        ({}, "--nodes=1 --ntasks=1 --cpus-per-task=12", "--gpus"),
        ({"gpus": 8}, "--nodes=1 --cpus-per-task=12 --gpus=8", "--ntasks"),
        ({"nodes": 2}, "--nodes=2 --ntasks=2 --cpus-per-task=12", "--gpus"),
        ({"nodes": 2, "gpus": 8}, "--nodes=2 --ntasks=2 --cpus-per-task=12 --gpus=16",
         "--ntasks-per-gpu"),
    ],
)  # fmt: skip
def test_slurm_is_asked_for_a_task_a_node(changes: dict[str, int], words: str, absent: str) -> None:
    given = {"cpus": 12, "mem_gib": 4, "gpus": 0, "hours": 1, **changes}
    asked = Asked(slurm.requested(validated(Resources, given)))
    asked |= {name: asked[name](None, 1) for name in ("mem_mb", "runtime")}  # type: ignore[operator]
    job = SimpleNamespace(resources=asked, threads=2)
    names = ("run_uuid", "slurm_logfile", "comment_str", "account", "partition", "workdir")
    command = get_submit_command(job, dict.fromkeys(names, "x")) + set_gres_string(job)
    assert set(words.split()) <= set(command.split())
    assert absent not in command
    assert "--mem 4096" in command


def test_memory_and_time_grow_on_retry() -> None:
    assert [slurm.grow(3072)(None, attempt) for attempt in (1, 2, 3)] == [3072, 4608, 6144]


@pytest.mark.parametrize(
    ("age", "storage", "arguments", "refused"),
    [
        (300, "none", [], False),
        (300, "slurmdbd", ["--slurm-status-command", "sacct"], False),
        (300, "none", ["--slurm-status-command=sacct"], True),
        (300, "none", ["--slurm-status-command", "sacct"], True),
        (60, "slurmdbd", [], False),
        (60, "none", [], True),
    ],
)
def test_a_study_that_would_wait_for_ever_is_refused(
    monkeypatch: pytest.MonkeyPatch, age: int, storage: str, arguments: list[str], refused: bool
) -> None:
    answers(monkeypatch, SETTINGS.format(age=age, storage=storage))
    if refused:
        with pytest.raises(EnvironmentFault, match="neither sacct nor squeue"):
            slurm.check(arguments)
    else:
        slurm.check(arguments)


def test_slurm_that_is_not_there_is_one_clear_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", "")
    with pytest.raises(EnvironmentFault, match="not on PATH"):
        slurm.check([])


def test_only_jobs_of_this_checkout_are_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    lines = ["1|RUNNING|rule_prepare|/a", "2|PENDING|rule_base__m|/b", "3|RUNNING|(null)|/a"]
    answers(monkeypatch, "\n".join(lines) + "\n")
    assert slurm.jobs_of(Path("/a")) == [slurm.QueuedJob("1", "RUNNING", "prepare")]


PROFILE = (ROOT / "slurm/profile.yaml").read_text()


def uncommented(profile: str) -> str:
    return re.sub("(?m)^# (?= |def|group)", "", profile)


def test_what_a_cluster_wants_is_uncommented_in_one_place() -> None:
    """Each commented line of the profile is a setting that the Slurm plugin or Snakemake knows."""
    before, after = (YAML(typ="safe").load(text) for text in (PROFILE, uncommented(PROFILE)))
    given = after.pop("default-resources")
    assert after.pop("group-components") == {"previews": 8}
    assert after == before
    assert set(given) == {"slurm_account", "slurm_partition", "qos", "gpu_model", "slurm_extra"}
    plugin = find_spec("snakemake_executor_plugin_slurm")
    assert plugin is not None
    assert plugin.origin is not None
    source = "".join(path.read_text() for path in Path(plugin.origin).parent.glob("*.py"))
    for name in given:
        assert re.search(rf"[\"'.]{name}\b", source), name


def test_groups_come_from_the_profile_and_the_command_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slurm").mkdir()
    (tmp_path / "slurm/profile.yaml").write_text(uncommented(PROFILE))
    monkeypatch.chdir(tmp_path)
    words = ["--cores", "all", "--profile", "slurm", "previews__mme"]
    assert slurm.group_sizes(words) == {"previews": 8}
    assert slurm.group_sizes([*words, "--group-components", "table=3"]) == {"table": 3}
    assert capsys.readouterr() == ("", "")
    (tmp_path / "slurm/profile.yaml").write_text(PROFILE)
    assert slurm.group_sizes(words) == {}


def test_a_job_is_found_in_the_group_that_has_it() -> None:
    names = [f"previews__{suite}" for suite in ("a", "a_b", "b", "c", "d", "e", "f")]

    def of(rule: str) -> list[str]:
        queued = slurm.QueuedJob("1", "PENDING", rule)
        return [name for name in names if queued.may_contain(name, "previews", names)]

    assert of("previews_previews__a_b_previews__c") == ["previews__a_b", "previews__c"]
    assert of("previews_previews__a") == ["previews__a"]
    # Snakemake lists the first five by name: what comes later may be in the group.
    listed = "_".join(["previews", *names[:5], "..."])
    assert of(listed) == names
    assert of(listed.replace("previews__a_previews__a_b_", "previews__a_")) == [
        *("previews__a", "previews__b", "previews__c", "previews__d", "previews__e", "previews__f")
    ]
    for other in ("previews__a", "table_table1_table2", "evaluate_base_previews__a"):
        assert of(other) == []


@pytest.mark.parametrize(
    ("sizes", "problem"),
    [
        ({"previews": 14}, None),
        ({"previews": 2, "preview": 2}, "group-components.preview = 2. is no stage of this study"),
        ({"fetch_rows": 2}, "runs where the study is started"),
        ({"train": 2}, "runs on several nodes"),
        ({"evaluate_base": 5}, "names of up to 3.. bytes, and 255 are possible"),
        ({"evaluate_base": 3}, None),
    ],
)
def test_only_what_can_be_grouped_is(sizes: dict[str, int], problem: str | None) -> None:
    given = scale_values("paper")
    given["resources"]["train"]["nodes"] = 2
    study_params = validated(Params, given)
    specs = jobs(study_params)
    if problem is None:
        slurm.check_groups(sizes, specs, study_params)
    else:
        with pytest.raises(ConfigError, match=problem):
            slurm.check_groups(sizes, specs, study_params)
