"""Processes on the CPU that find one another as torchrun's do: how the tests start and end them."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

PATIENCE = 120.0  # seconds until a test gives up on its processes


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells its processes."""
    ours = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return os.environ | {k: str(v) for k, v in ours.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(script: Path, *arguments: str, count: int = 2) -> list[subprocess.Popen[str]]:
    """`count` processes of a script that find one another as torchrun's do."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=environment(rank, count, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit status, and everything printed, of each; none is left behind."""
    end = time.monotonic() + PATIENCE
    try:
        found = []
        for process in processes:
            out, error = process.communicate(timeout=max(1.0, end - time.monotonic()))
            found.append((process.returncode, out + error))
        return found
    finally:
        for process in processes:
            process.kill()
