"""The class kernels of csrc/cuda, run on the CPU, against double precision."""

from __future__ import annotations

import shutil
import subprocess
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

HERE = Path(__file__).resolve().parent
CSRC = HERE.parents[1] / "csrc"
SOURCES = [
    CSRC / "cuda/class_assignment.cu",
    CSRC / "cuda/class_sums.cu",
    CSRC / "cuda/class_centroid.cu",
    CSRC / "cuda/symmetric_soft_divergence.cu",
    HERE / "test_class_kernels.cpp",
    HERE / "runtime.cpp",
]
FLAGS = ["-std=c++17", "-O2", "-ffp-contract=fast", "-Wall", "-Wextra", "-Wno-unknown-pragmas"]

pytestmark = [
    pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed"),
    pytest.mark.slow,
    pytest.mark.timeout(1200),
]


def run(*command: str | Path) -> None:
    done = subprocess.run([str(part) for part in command], capture_output=True, text=True)
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"


def test_class_kernels(tmp_path: Path) -> None:
    def compiled(source: Path) -> Path:
        result = tmp_path / f"{source.name}.o"
        include = ["-I", HERE / "include", "-I", CSRC]
        run("g++", *FLAGS, *include, "-x", "c++", "-c", source, "-o", result)
        return result

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, SOURCES))
    program = tmp_path / "test_class_kernels"
    # -rdynamic: so that a fault can name the kernel.
    run("g++", "-rdynamic", *objects, "-o", program, "-ldl", "-pthread")
    run(program, "2")
