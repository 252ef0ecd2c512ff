"""The compiled module against the Python sources: found in a checkout, refused when it is stale."""

from __future__ import annotations

import importlib.machinery
import os
import subprocess
import sys
from pathlib import Path

import pytest

from cscl_fast import _library
from cscl_fast._version import __version__

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def checkout(tmp_path: Path) -> Path:
    """A small checkout: the files that the digest covers, and some that it does not."""
    (tmp_path / "csrc" / "core").mkdir(parents=True)
    (tmp_path / "cmake").mkdir()
    (tmp_path / "csrc" / "core" / "formula.h").write_text("float pi = 3;")
    (tmp_path / "cmake" / "helpers.cmake").write_text("# helpers")
    (tmp_path / "CMakeLists.txt").write_text("# build")
    (tmp_path / "setup.py").write_text("# bridge")
    return tmp_path


def info_of(root: Path, version: str = __version__) -> dict[str, str]:
    return {"version": version, "source_digest": _library.source_digest(root) or "-"}


def test_the_library_is_installed_and_fits() -> None:
    state = _library.load()
    assert state.problem is None
    assert state.module is not None


def test_cmake_and_python_compute_the_same_digest() -> None:
    import _cscl_fast

    assert _cscl_fast.build_info()["source_digest"] == _library.source_digest(ROOT)


def test_the_library_never_lies_in_the_checkout() -> None:
    """There, one left behind by an earlier build would hide the one that was installed last."""
    suffixes = importlib.machinery.EXTENSION_SUFFIXES
    assert not [path for suffix in suffixes for path in ROOT.glob(f"_cscl_fast{suffix}")]


def test_started_in_the_checkout_its_python_sources_meet_the_installed_kernels() -> None:
    script = (
        "import cscl_fast.ops, _cscl_fast, torch\n"
        "print(cscl_fast.__file__); print(_cscl_fast.__file__)\n"
        "print(cscl_fast.backends.select('soft_pseudo_labels', torch.zeros(1)))\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True
    )
    sources, kernels, backend = result.stdout.splitlines()
    assert Path(sources).is_relative_to(ROOT / "cscl_fast")
    assert Path(kernels).parent != ROOT
    assert backend == "cpu"


def test_info_in_the_checkout() -> None:
    result = subprocess.run(
        [sys.executable, "-m", "cscl_fast.info"],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    words = " ".join(result.stdout.split())
    assert f"cscl_fast {__version__} in {ROOT / 'cscl_fast'}" in words
    assert "in use: " in words
    assert "threads: 1, shared with PyTorch through " in words
    assert "cpu available" in words
    assert "cuda missing: " in words
    assert "soft_pseudo_labels reference kernel" in words
    assert "transfer_reward reference kernel" in words


def test_a_library_that_fits_is_accepted(checkout: Path) -> None:
    assert _library.staleness(info_of(checkout), checkout, "lib.so") is None


def test_another_version_is_refused(checkout: Path) -> None:
    message = _library.staleness(info_of(checkout, "0.0.1"), checkout, "lib.so")
    assert message is not None
    for part in ("lib.so", "0.0.1", __version__, "`pip install .`", str(checkout)):
        assert part in message


@pytest.mark.parametrize("change", ["edit", "add", "remove", "rename", "build"])
def test_changed_kernel_sources_are_noticed(checkout: Path, change: str) -> None:
    info = info_of(checkout)
    formula = checkout / "csrc" / "core" / "formula.h"
    if change == "edit":
        formula.write_text("float pi = 4;")
    elif change == "add":
        (checkout / "csrc" / "new.cpp").touch()
    elif change == "remove":
        formula.unlink()
    elif change == "rename":
        formula.rename(formula.with_name("equation.h"))
    else:
        (checkout / "CMakeLists.txt").write_text("# other flags")
    message = _library.staleness(info, checkout, "lib.so")
    assert message is not None
    assert "built from other kernel sources" in message
    assert "`pip install .`" in message


def test_other_files_do_not_matter(checkout: Path) -> None:
    info = info_of(checkout)
    (checkout / "csrc" / ".editor.swp").touch()
    (checkout / "setup.py").write_text("# other bridge")
    (checkout / "cscl_fast").mkdir()
    (checkout / "cscl_fast" / "new.py").touch()
    assert _library.staleness(info, checkout, "lib.so") is None


def test_an_installed_package_has_no_sources_to_compare(tmp_path: Path) -> None:
    assert _library.source_digest(tmp_path) is None
    assert _library.staleness(info_of(tmp_path), tmp_path, "lib.so") is None
    assert _library.staleness(info_of(tmp_path, "9.9"), tmp_path, "lib.so") is not None


def test_a_missing_library_says_what_to_run(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(_library, "MODULE", "_cscl_fast_that_nobody_built")
    state = _library.load()
    assert state.module is None
    assert not state.built
    assert state.problem is not None
    assert "is not installed" in state.problem
    assert "pip install" in state.problem


def test_an_unloadable_library_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / f"_cscl_broken{importlib.machinery.EXTENSION_SUFFIXES[0]}").write_bytes(b"not ELF")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(_library, "MODULE", "_cscl_broken")
    state = _library.load()
    assert state.built
    assert state.problem is not None
    assert "_cscl_broken cannot be loaded" in state.problem


def test_a_stale_library_is_an_error_and_the_reference_still_works(tmp_path: Path) -> None:
    """The whole chain, in a process whose `_cscl_fast` is a fake of another version."""
    (tmp_path / "_cscl_fast.py").write_text(
        "cpu_operators = ('soft_pseudo_labels',)\n"
        "def build_info(): return {'version': '0.0.1', 'source_digest': '0' * 64}\n"
    )
    script = (
        "import torch\n"
        "from cscl_fast import ops, use_backend\n"
        "logits, thresholds = torch.zeros(1, 2, 3, 3), torch.full((2,), 0.5)\n"
        "for name in ('auto', 'cpu'):\n"
        "    try:\n"
        "        with use_backend(name): ops.soft_pseudo_labels(logits, thresholds)\n"
        "    except RuntimeError as error: print(name, error)\n"
        "use_backend('reference')\n"
        "print(ops.soft_pseudo_labels(logits, thresholds).hard.shape)\n"
    )
    result = subprocess.run(
        [sys.executable, "-c", script],
        cwd=ROOT,
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, "PYTHONPATH": str(tmp_path)},
    )
    auto, cpu, reference = result.stdout.splitlines()
    assert auto.startswith("auto the compiled library")
    assert cpu.startswith("cpu backend 'cpu' is not available: the compiled library")
    for line in (auto, cpu):
        assert "is version 0.0.1" in line
        assert "`pip install .`" in line
    assert reference == "torch.Size([1, 3, 3])"
