"""Secrets that libraries and child processes write to the descriptors 1 and 2 themselves."""

from __future__ import annotations

import os
import pty
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from sf.redaction import IncrementalRedactor, redact

SECRET = "hf_PLANTEDabcab"
START = """
import ctypes, os, signal, subprocess, sys, time
import sf.cli.entry
secret = os.environ["HF_TOKEN"].encode()
def app():
{body}
sf.cli.entry.app = app
sf.cli.entry.main()
"""


def start(body: str, **options: object) -> subprocess.Popen[bytes]:
    """The command line `sf` with another body."""
    indented = "\n".join(f"    {line}" for line in body.strip().splitlines())
    environment = {**os.environ, "HF_TOKEN": SECRET, "PYTHONPATH": os.pathsep.join(sys.path)}
    return subprocess.Popen(
        [sys.executable, "-c", START.format(body=indented)],
        env=environment,
        **{"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, **options},  # type: ignore[call-overload]
    )


def shown(body: str, **options: object) -> str:
    out, _ = start(body, **options).communicate(timeout=60)
    return str(out.decode())


TEXTS = [
    f"token {SECRET}, hf_PLANTEDab, hf_{SECRET}{SECRET} end",
    "http://me:pass@word@host/a?b=1&api_key=12345&c=2 https://host/x://a@b",
    f"?token={SECRET}&x;password=1 http: //a@b :// @ ?a=b",
    "ä\u2028 50%|███   | 3/9 [00:01<00:02]\r",
]


@pytest.mark.parametrize("text", TEXTS)
def test_a_text_in_parts_is_redacted_as_the_whole(
    text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    monkeypatch.setenv("OTHER_TOKEN", SECRET[3:] + "hf_PL")  # overlaps with the first
    rng = random.Random(0)
    for _ in range(300):
        cuts = sorted(rng.choices(range(len(text) + 1), k=rng.randrange(1, 12)))
        parts = [text[a:b] for a, b in zip([0, *cuts], [*cuts, len(text)], strict=True)]
        redactor = IncrementalRedactor()
        out = [redactor.feed(part) for part in parts] + [redactor.feed("", end=True)]
        assert "".join(out) == redact(text), parts


def test_text_without_the_beginning_of_a_secret_is_not_held(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setenv("HF_TOKEN", SECRET)
    redactor = IncrementalRedactor()
    for text in ("Continue? ", " 50%|███   | 3/9 [00:01<00:02]", "see https://host/a", "."):
        assert redactor.feed(text) == text
    assert redactor.feed("a hf_") == "a "
    assert redactor.feed("x") == "hf_x"


def test_what_is_written_past_python_is_redacted() -> None:
    out = shown("""
os.write(1, b"direct " + secret + b"\\n")
os.write(2, b"in two " + secret[:5])
os.write(2, secret[5:] + b"\\n")
subprocess.run(["sh", "-c", "echo child $HF_TOKEN; echo http://me:word@host >&2"])
ctypes.CDLL(None).printf(b"C %s\\n", secret)
print("last", secret.decode())
""")
    lines = out.splitlines()
    assert lines[:4] == ["direct ***", "in two ***", "child ***", "http://***@host"]
    assert sorted(lines[4:]) == ["C ***", "last ***"]


def test_bytes_that_are_no_text_are_kept() -> None:
    data = bytes(range(1, 256)) * 600  # more than a pipe holds
    process = start(f"os.write(1, b'a\\0b')\nfor _ in range(600): os.write(1, {data[:255]!r})")
    out, _ = process.communicate(timeout=60)
    assert out == b"a\0b" + data


def test_separate_files_stay_separate(tmp_path: Path) -> None:
    with (tmp_path / "out").open("wb") as out, (tmp_path / "err").open("wb") as err:
        body = 'os.write(1, b"out " + secret)\nos.write(2, b"err " + secret)'
        assert start(body, stdout=out, stderr=err).wait(60) == 0
    assert (tmp_path / "out").read_text() == "out ***"  # complete when the command has ended
    assert (tmp_path / "err").read_text() == "err ***"


def test_a_command_does_not_wait_for_its_surviving_children(tmp_path: Path) -> None:
    body = """
subprocess.Popen(["sh", "-c", "read line < go; echo late $HF_TOKEN"])
print("end")
"""
    os.mkfifo(tmp_path / "go")
    process = start(body, cwd=tmp_path)
    assert process.wait(60) == 0
    (tmp_path / "go").write_text("\n")
    assert process.stdout is not None
    assert process.stdout.read() == b"end\nlate ***\n"


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT, signal.SIGUSR1, signal.SIGHUP])
def test_a_signal_to_the_whole_group_loses_no_last_word(number: signal.Signals) -> None:
    body = f"""
def note(number, frame):
    time.sleep(0.3)
    print("stopped", secret.decode())
    sys.exit(75)
signal.signal({int(number)}, note)
os.write(1, b"ready\\n")
time.sleep(60)
"""
    process = start(body, start_new_session=True)
    assert process.stdout is not None
    assert process.stdout.readline() == b"ready\n"
    os.killpg(process.pid, number)
    assert process.stdout.read() == b"stopped ***\n"
    assert process.wait(60) == 75


def test_what_was_written_before_a_kill_arrives() -> None:
    body = 'os.write(1, b"before " + secret)\nos.kill(os.getpid(), signal.SIGKILL)'
    assert shown(body) == "before ***"


def test_a_full_disk_is_one_clear_error_after_the_work(tmp_path: Path) -> None:
    body = f'print("x" * 100000)\nopen({str(tmp_path / "work")!r}, "w").close()\nsys.exit(0)'
    with Path("/dev/full").open("wb") as full:
        process = start(body, stdout=full, stderr=subprocess.PIPE)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 2
    assert b"output of this command" in err
    assert b"No space left" in err
    assert (tmp_path / "work").exists()


def test_a_reader_that_leaves_ends_the_writer() -> None:
    body = 'while True: os.write(1, b"line\\n")'
    process = start(body, stderr=subprocess.DEVNULL)
    assert process.stdout is not None
    assert process.stdout.readline() == b"line\n"
    process.stdout.close()
    assert process.wait(60) != 0


def test_a_forked_child_ends_nothing() -> None:
    body = """
if not os.fork():
    sys.exit(0)
os.wait()
os.write(1, b"parent " + secret)
"""
    assert shown(body) == "parent ***"


def test_a_terminal_stays_one() -> None:
    leader, terminal = pty.openpty()
    process = start("os.write(1, b'%d' % os.isatty(1))", stdout=terminal, stderr=terminal)
    os.close(terminal)
    assert os.read(leader, 10) == b"1"
    assert process.wait(60) == 0
    os.close(leader)


def test_no_process_is_left() -> None:
    body = "import psutil\nprint(*(p.pid for p in psutil.Process().children()))"
    filters = shown(body).split()
    assert len(filters) == 1
    deadline = time.monotonic() + 30
    while psutil.pid_exists(int(filters[0])):
        assert time.monotonic() < deadline
        time.sleep(0.05)
