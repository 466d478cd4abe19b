"""A real Slurm of two nodes on this machine, for the tests: started as root, stopped at the end."""

from __future__ import annotations

import os
import pwd
import shutil
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

__all__ = ["CPUS", "NODES", "kill_node", "missing", "slurm", "start_node"]

PROGRAMS = ("slurmctld", "slurmd", "sbatch", "munged")
CONFIGURATION = Path("/etc/slurm/slurm.conf")  # jobs lose SLURM_CONF: only this place is read
NODES = ("n1", "n2")
CPUS = 8
"""What each node says that it has; jobs are given no more than the machine's own."""

CONFIG = """\
ClusterName=test
SlurmctldHost={host}(127.0.0.1)
SlurmUser=root
SlurmdUser=root
AuthType=auth/munge
CredType=cred/munge
MpiDefault=none
ProctrackType=proctrack/linuxproc
TaskPlugin=task/none
SwitchType=switch/none
SelectType=select/cons_tres
SelectTypeParameters=CR_Core_Memory
SchedulerParameters=batch_sched_delay=1,sched_interval=2,bf_interval=2
SlurmdParameters=config_overrides
ReturnToService=2
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd-%n.pid
SlurmctldPort=16817
SlurmdTimeout=10
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool-%n
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd-%n.log
MinJobAge=3600
KillWait=5
JobAcctGatherType=jobacct_gather/none
AccountingStorageType=accounting_storage/none
NodeName=n[1-2] NodeHostname={host} NodeAddr=127.0.0.1 Port=[16818-16819] CPUs={cpus} \
RealMemory={memory} State=UNKNOWN
PartitionName=main Nodes=n[1-2] Default=YES MaxTime=INFINITE State=UP
"""


def missing() -> str | None:
    """Why Slurm cannot be started here; None if it can."""
    absent = [name for name in PROGRAMS if shutil.which(name, path=_path()) is None]
    if absent:
        return f"no {', '.join(absent)}: install slurmctld, slurmd, slurm-client and munge"
    if os.geteuid():
        return "Slurm's daemons are started as root"
    if CONFIGURATION.is_file() and "ClusterName=test" not in CONFIGURATION.read_text():
        return f"{CONFIGURATION} belongs to another cluster"
    if subprocess.run(["pgrep", "-x", "slurmctld"], capture_output=True).returncode == 0:
        return "another Slurm runs on this machine"
    return None


def _path() -> str:
    return f"{os.environ.get('PATH', '')}:/usr/sbin:/sbin"


def _start(*words: str) -> None:
    subprocess.run(words, check=True, env={**os.environ, "PATH": _path()}, timeout=60)


def _munge() -> None:
    key = Path("/etc/munge/munge.key")
    owner = pwd.getpwnam("munge")
    if not key.is_file():
        key.write_bytes(os.urandom(128))
        os.chown(key, owner.pw_uid, owner.pw_gid)
        key.chmod(0o400)
    socket_folder = Path("/run/munge")
    socket_folder.mkdir(exist_ok=True)
    os.chown(socket_folder, owner.pw_uid, owner.pw_gid)
    if subprocess.run(["pgrep", "-x", "munged"], capture_output=True).returncode:
        _start("runuser", "-u", "munge", "--", "munged")


def start_node(node: str) -> None:
    """Start a node's daemon."""
    _start("slurmd", "-N", node)


def kill_node(node: str) -> None:
    """Kill a node's daemon and the daemons of the steps that it runs."""
    subprocess.run(["pkill", "-9", "-f", f"^slurmd -N {node}$"], check=True)
    subprocess.run(["pkill", "-9", "-f", "^slurmstepd"], check=False)


def _idle() -> list[str]:
    words = ["sinfo", "--noheader", "--Node", "--states=idle", "--format=%N"]
    return subprocess.check_output(words, text=True).split()


@contextmanager
def slurm(folder: Path) -> Iterator[None]:
    """Slurm without accounting, with its state below `folder`, until the context ends."""
    for name in ("state", *(f"spool-{node}" for node in NODES)):
        (folder / name).mkdir(parents=True, exist_ok=True)
    host = socket.gethostname().split(".")[0]
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // 2**20 * 9 // 20
    CONFIGURATION.parent.mkdir(exist_ok=True)
    CONFIGURATION.write_text(CONFIG.format(host=host, folder=folder, cpus=CPUS, memory=memory))
    _munge()
    try:
        _start("slurmctld")
        for node in NODES:
            start_node(node)
        deadline = time.monotonic() + 30
        while _idle() != list(NODES):
            assert time.monotonic() < deadline, (folder / "slurmctld.log").read_text()[-2000:]
            time.sleep(0.2)
        yield
    finally:
        for name in (*(f"slurmd-{node}" for node in NODES), "slurmctld"):
            pid = folder / f"{name}.pid"
            if pid.is_file():
                subprocess.run(["kill", pid.read_text().strip()])
        CONFIGURATION.unlink()
