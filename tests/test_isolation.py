"""Calls that crash or hang cost only themselves, and no process is left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from isolated_calls import misbehave

from sf.isolation import Lost, _Server, run_isolated


def outcomes(whats: list[str], seconds: float = 20.0, **options):
    calls = [(what, number) for number, what in enumerate(whats)]
    options = {"workers": 1, **options}
    results = dict(run_isolated(misbehave, calls, [seconds] * len(calls), **options))
    assert len(results) == len(calls)
    return [results[index] for index in range(len(calls))]


@pytest.mark.parametrize("workers", [1, 3])
@pytest.mark.parametrize(
    ("what", "reason"),
    [
        ("abort", r"its decoder crashed (SIGABRT)"),
        ("exit", "its decoder crashed (exit code 0)"),
        ("hang", "its decoder did not end within 1 s"),
    ],
)
def test_a_call_that_ends_its_process_costs_itself_alone(what, reason, workers):
    whats = ["fine"] * 60
    whats[0] = whats[17] = whats[59] = what
    results = outcomes(whats, seconds=1.0, workers=workers)
    assert [at for at, result in enumerate(results) if result == Lost(reason)] == [0, 17, 59]
    assert all(result[0] == at for at, result in enumerate(results) if whats[at] == "fine")


def test_who_crashes_only_behind_another_call_is_not_lost():
    results = outcomes(["fine", "spoil", "after spoilt", "fine"] * 8)
    assert not any(isinstance(result, Lost) for result in results)


def test_processes_are_forked_for_a_shard_and_not_this_one():
    pids = [pid for _, pid in outcomes(["fine"] * 40)]
    assert os.getpid() not in pids
    assert 2 <= len(set(pids)) < 40


def test_memory_is_bounded():
    with pytest.raises(RuntimeError, match="MemoryError"):
        outcomes(["fine", "allocate"], child_gib=1.0)


def test_an_error_of_the_function_is_raised_with_its_traceback():
    with pytest.raises(RuntimeError, match="of no known kind"):
        outcomes(["fine", "raise", "fine"])


def test_a_server_is_used_again_unless_it_is_gone():
    outcomes(["fine"])
    servers = set(_Server.idle)
    outcomes(["fine"])
    assert set(_Server.idle) == servers
    for server in servers:
        os.kill(server.process.pid, signal.SIGKILL)
        server.process.wait()
    assert [number for number, _ in outcomes(["fine"] * 3)] == [0, 1, 2]


def test_an_abandoned_call_is_ended():
    calls = run_isolated(misbehave, [("fine", 0), ("hang", 1)], [99.0] * 2, workers=1)
    next(calls)
    before = list(_Server.idle)
    calls.close()
    assert before == _Server.idle


def test_no_calls_start_nothing():
    assert outcomes([]) == []


def _dead(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except FileNotFoundError:
        return True
    return state == "Z"


PROGRAM = """
import signal, sys
signal.signal(signal.SIGINT, signal.default_int_handler)  # a shell's background jobs ignore it
sys.path.insert(0, sys.argv[1])
from isolated_calls import hang_forever
from sf.isolation import run_isolated
list(run_isolated(hang_forever, [(sys.argv[2],)], [1000.0], workers=1))
"""


@pytest.mark.parametrize("end", [signal.SIGKILL, signal.SIGTERM, signal.SIGINT])
def test_a_killed_caller_leaves_nothing_behind(tmp_path, end):
    marker = tmp_path / "pid"
    command = [sys.executable, "-c", PROGRAM, str(Path(__file__).parent), str(marker)]
    process = subprocess.Popen(command, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 60
    while not (marker.is_file() and marker.read_text()) and time.monotonic() < deadline:
        time.sleep(0.02)
    process.send_signal(end)
    process.wait(timeout=30)
    pid = int(marker.read_text())
    while not _dead(pid) and time.monotonic() < deadline:
        time.sleep(0.02)
    assert _dead(pid)
