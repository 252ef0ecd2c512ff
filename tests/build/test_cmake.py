"""The build's switches and its summary. Configures only: compiling is what pip has done."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest

from cscl_fast._version import __version__

ROOT = Path(__file__).resolve().parents[2]
# Programs on PATH or beside this Python; and a PATH on which there is no CUDA compiler.
SEARCH = os.pathsep.join([os.environ.get("PATH", ""), sysconfig.get_path("scripts")])
CMAKE, NINJA = shutil.which("cmake", path=SEARCH), shutil.which("ninja", path=SEARCH)
PLAIN_PATH = os.pathsep.join(["/usr/bin", "/bin"])
COMPILER = shutil.which("c++", path=PLAIN_PATH)

pytestmark = pytest.mark.skipif(
    None in (CMAKE, NINJA, COMPILER) or not (ROOT / "csrc").is_dir(),
    reason="needs the sources, CMake, Ninja and a C++ compiler",
)


def configure(build: Path, **switches: str) -> subprocess.CompletedProcess[str]:
    environment = {
        name: value
        for name, value in os.environ.items()
        if not name.startswith(("CSCL_FAST_", "CMAKE_", "CUDA"))
    }
    command = [
        str(CMAKE), "-S", str(ROOT), "-B", str(build), "-G", "Ninja",
        f"-DCMAKE_MAKE_PROGRAM={NINJA}", f"-DPython_EXECUTABLE={sys.executable}",
    ]  # fmt: skip
    return subprocess.run(
        command,
        capture_output=True,
        text=True,
        env={**environment, "PATH": PLAIN_PATH, "CXX": str(COMPILER), **switches},
    )


def one_line(text: str) -> str:
    """Without CMake's line breaks and indentation."""
    return " ".join(text.split())


def test_summary(tmp_path: Path) -> None:
    result = configure(tmp_path)
    assert result.returncode == 0, result.stderr
    summary = (tmp_path / "summary.txt").read_text()
    assert summary.startswith(f"cscl_fast {__version__}\n")
    for part in ("compiler", "Python", "cpu       built for", "cuda      left out: "):
        assert part in summary
    # The same switch by hand, on the same build folder: an option of CMake wins.
    again = subprocess.run(
        [str(CMAKE), "-DCSCL_FAST_NATIVE=1", "-DCSCL_FAST_CUDA=0", str(tmp_path)],
        capture_output=True,
        text=True,
    )
    assert again.returncode == 0, again.stderr
    summary = (tmp_path / "summary.txt").read_text()
    assert "native (-march=native: this build runs on processors like this one only)" in summary
    assert "left out: CSCL_FAST_CUDA=0" in summary


def test_no_native_code_unless_asked_for(tmp_path: Path) -> None:
    assert configure(tmp_path).returncode == 0
    assert "-march=native" not in (tmp_path / "build.ninja").read_text()


def test_cuda_without_a_compiler(tmp_path: Path) -> None:
    if shutil.which("nvcc", path=PLAIN_PATH):
        pytest.skip("nvcc lies beside the system's programs")
    result = configure(tmp_path, CSCL_FAST_CUDA="1")
    assert result.returncode != 0
    message = one_line(result.stderr)
    assert "CSCL_FAST_CUDA=1 asks for the CUDA kernels, but no CUDA compiler: nvcc" in message
    assert "install the CUDA toolkit" in message
    assert "Set CSCL_FAST_CUDA=auto or 0 to build without them" in message


def test_wrong_switch(tmp_path: Path) -> None:
    result = configure(tmp_path, CSCL_FAST_CUDA="yes")
    assert result.returncode != 0
    assert "CSCL_FAST_CUDA is 'yes'; it needs to be auto, 1 or 0" in one_line(result.stderr)
