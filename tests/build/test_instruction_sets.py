"""Every instruction set that this processor has: chosen, forced, right; and kept apart."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import _cscl_fast
import numpy as np
import pytest

ROOT = Path(__file__).resolve().parents[2]
SUPPORTED = _cscl_fast.supported_isas()
THRESHOLDS = np.linspace(0.1, 1.0, 19).astype(np.float32)
SHARPNESS = (0.25, 0.5, 0.3, 0.02)

# Calls the kernel with NumPy arrays: no PyTorch, so it starts at once.
CHILD = """
import sys
import numpy as np
import _cscl_fast

logits = np.load(sys.argv[1])
thresholds = np.load(sys.argv[2])
results = {}
for gamma in map(float, sys.argv[4:]):
    for layout in ("contiguous", "channels_last"):
        for size in ((9, 37), (30, 75)):
            last = layout == "channels_last"
            memory = np.ascontiguousarray(logits.transpose(0, 2, 3, 1) if last else logits)
            view = memory.transpose(0, 3, 1, 2) if last else memory
            shape = (2, *size, 19) if last else (2, 19, *size)
            soft, hard = np.empty(shape, np.float32), np.empty((2, *size), np.int64)
            _cscl_fast.soft_pseudo_labels(
                view.ctypes.data, 0, view.shape, tuple(s // 4 for s in view.strides), *size, False,
                thresholds.ctypes.data, gamma, soft.ctypes.data, last, hard.ctypes.data, 1)
            key = f"{gamma} {layout} {size[0]}"
            results[key + " soft"] = soft.transpose(0, 3, 1, 2) if last else soft
            results[key + " hard"] = hard
np.savez(sys.argv[3], **results)
print(_cscl_fast.active_isa())
"""


def run_python(
    script: str, *arguments: object, isa: str | None = None
) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k != "CSCL_FAST_ISA"}
    if isa is not None:
        environment["CSCL_FAST_ISA"] = isa
    command = [sys.executable, "-c", script, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, env=environment)


def upsample(z: np.ndarray, axis: int, output: int) -> np.ndarray:
    """Linear interpolation with align_corners=False."""
    position = np.clip((np.arange(output) + 0.5) * z.shape[axis] / output - 0.5, 0, None)
    first = np.floor(position).astype(int)
    second = np.minimum(first + 1, z.shape[axis] - 1)
    far = (position - first).reshape([-1 if a == axis else 1 for a in range(z.ndim)])
    return (1 - far) * z.take(first, axis) + far * z.take(second, axis)


def expected(
    logits: np.ndarray, gamma: float, height: int
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Eq. 8-10 in float64: soft labels, hard labels, and where both are beyond doubt."""
    z = logits.astype(np.float64)
    if height == 30:
        z = upsample(upsample(z, 2, 30), 3, 75)
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    a = (log_p - np.log(THRESHOLDS.astype(np.float64))[:, None, None]) / gamma
    top = a.max(axis=1, keepdims=True)
    total = np.exp(a - top).sum(axis=1, keepdims=True)
    cost = (top + np.log(total))[:, 0]
    ordered = np.sort(a, axis=1)
    sure = (np.abs(cost) > 1e-5) & (ordered[:, -1] - ordered[:, -2] > 1e-5)
    kept = cost > 0
    soft = np.where(kept[:, None], np.exp(a - top) / total, 0.0)
    return soft, np.where(kept, a.argmax(axis=1), 255), sure


def test_the_best_is_chosen() -> None:
    result = run_python("import _cscl_fast; print(_cscl_fast.active_isa())")
    assert result.stdout.strip() == SUPPORTED[-1]
    assert set(SUPPORTED) <= set(_cscl_fast.compiled_isas())


@pytest.mark.parametrize("isa", _cscl_fast.compiled_isas())
def test_answers_of_each(isa: str, tmp_path: Path) -> None:
    if isa not in SUPPORTED:
        pytest.skip(f"this processor does not have {isa}")
    logits = np.random.default_rng(0).normal(0, 3, (2, 19, 9, 37)).astype(np.float32)
    np.save(tmp_path / "logits.npy", logits)
    np.save(tmp_path / "thresholds.npy", THRESHOLDS)
    files = [tmp_path / name for name in ("logits.npy", "thresholds.npy", "results.npz")]
    result = run_python(CHILD, *files, *SHARPNESS, isa=isa)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == isa
    results = np.load(files[2])
    assert len(results) == 2 * 2 * 2 * len(SHARPNESS)
    for gamma in SHARPNESS:
        for height in (9, 30):
            soft, hard, sure = expected(logits, gamma, height)
            for layout in ("contiguous", "channels_last"):
                key = f"{gamma} {layout} {height}"
                np.testing.assert_array_equal(results[key + " hard"][sure], hard[sure])
                error = np.abs(results[key + " soft"] - soft)
                allowed = 1e-5 / gamma * soft + 1e-6  # the contract's tolerance
                assert (error <= allowed)[np.broadcast_to(sure[:, None], error.shape)].all()
            np.testing.assert_array_equal(  # a pixel's bits do not depend on the layout
                results[f"{gamma} contiguous {height} soft"],
                results[f"{gamma} channels_last {height} soft"],
            )


@pytest.mark.parametrize("name", ["avx1024", "AVX2", "sse"])
def test_unknown_instruction_set(name: str) -> None:
    script = "from cscl_fast import backends; print(backends.why_unavailable('cpu'))"
    direct = run_python("import _cscl_fast; _cscl_fast.active_isa()", isa=name)
    assert direct.returncode != 0
    assert f"CSCL_FAST_ISA is '{name}'" in direct.stderr
    assert ", ".join(SUPPORTED) in direct.stderr
    if name == "avx1024":  # and through the package, once: it imports PyTorch
        result = subprocess.run(
            [sys.executable, "-c", script],
            cwd=ROOT,
            capture_output=True,
            text=True,
            check=True,
            env={**os.environ, "CSCL_FAST_ISA": name},
        )
        assert f"CSCL_FAST_ISA is '{name}'" in result.stdout
        assert ", ".join(SUPPORTED) in result.stdout


def test_no_function_is_shared_between_instruction_sets(tmp_path: Path) -> None:
    """A walk's object file offers the linker nothing that another one could offer, too.

    Inline functions and templates become weak symbols, of which the linker keeps any one: were
    one of the same name in two walks, AVX-512 code could end up in the baseline. Compiled without
    optimisation, so that every function that is used shows.
    """
    compiler, nm = shutil.which("c++"), shutil.which("nm")
    if compiler is None or nm is None or "avx512" not in _cscl_fast.compiled_isas():
        pytest.skip("needs a C++ compiler for x86-64, and nm")
    flags = "-std=c++17 -O0 -fPIC -mavx2 -mfma -mf16c -mavx512f -mavx512bw -mavx512dq -mavx512vl"
    for walk in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")):
        if "\nnamespace cscl::cpu::CSCL_ISA {" not in walk.read_text(encoding="utf-8"):
            continue
        target = tmp_path / "walk.o"
        command = [compiler, *flags.split(), "-w", "-DCSCL_ISA=avx512", f"-I{ROOT / 'csrc'}"]
        subprocess.run([*command, "-c", str(walk), "-o", str(target)], check=True)
        listing = subprocess.run([nm, str(target)], capture_output=True, text=True, check=True)
        symbols = [line.split()[-2:] for line in listing.stdout.splitlines()]
        shared = [
            name
            for kind, name in symbols
            if kind in "TWVuBD" and "6avx512" not in name and not name.startswith("DW.ref.")
        ]
        # What only describes a type (_ZTS, _ZTI) holds no code.
        assert [name for name in shared if not name.startswith(("_ZTS", "_ZTI"))] == []
