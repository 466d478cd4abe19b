"""Ranks forked from a process that has imported everything: an import costs seconds per rank.

torchrun itself is tested in tests/pipeline/test_launch.py.
"""

from __future__ import annotations

import os
import socket
import traceback
from collections.abc import Callable


def on_ranks(size: int, work: Callable[[], None]) -> None:
    """Run `work` on `size` gloo ranks; this process must not have used torch before.

    Raises:
        RuntimeError: a rank failed.
    """
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    children = [_fork(rank, size, port, work) for rank in range(size)]
    codes = [os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) for child in children]
    if any(codes):
        raise RuntimeError(f"exit codes of {size} ranks: {codes}")


def _fork(rank: int, size: int, port: int, work: Callable[[], None]) -> int:
    child = os.fork()
    if child:
        return child
    where = {"RANK": rank, "LOCAL_RANK": rank, "WORLD_SIZE": size, "LOCAL_WORLD_SIZE": size}
    os.environ |= {name: str(value) for name, value in where.items()}
    os.environ |= {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port)}
    try:
        work()
    except BaseException:  # noqa: BLE001 - a child must not return into its parent's stack
        traceback.print_exc()
        os._exit(1)
    os._exit(0)
