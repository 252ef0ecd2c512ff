"""The tests of the Triton backend that need Triton's interpreter, in processes that have it."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
from interpreter_cases import INTERPRETED

FOLDER = Path(__file__).parent


@pytest.mark.slow
@pytest.mark.skipif(INTERPRETED, reason="already interpreted")
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("name", ["operators", "features", "library"])
def test_in_the_interpreter(name: str) -> None:
    file = FOLDER / f"test_triton_{name}.py"
    told = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", str(file)],
        env={**os.environ, "TRITON_INTERPRET": "1", "PYTEST_ADDOPTS": ""},
        cwd=FOLDER.parents[1],
        capture_output=True,
        text=True,
    )
    assert told.returncode == 0, told.stdout[-10_000:] + told.stderr[-2_000:]
    assert " skipped" not in told.stdout.splitlines()[-1], told.stdout[-2_000:]
