"""Every Triton kernel compiles to machine code, without a GPU, and spills no register.

An ordinary run compiles the typical variants of every kernel (`KernelCase.typical`): for every
dtype on sm_90, for one dtype on the other architectures. With CSCL_FAST_TRITON_COMPILE=full in the
environment it is every variant, dtype and architecture, which takes about half an hour.
"""

from __future__ import annotations

import os
import re
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest

pytest.importorskip("triton")

import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from cscl_fast.backends.triton import all_kernels
from cscl_fast.backends.triton.catalogue import DTYPES, MODULES, KernelCase, kernels_of
from cscl_fast.backends.triton.launch import INTERPRETED

if INTERPRETED:
    pytest.skip("interpreted kernels are not compiled", allow_module_level=True)

COMPLETE = os.environ.get("CSCL_FAST_TRITON_COMPILE") == "full"
ARCHITECTURES = (80, 90, 100, 120)
MEASURED = 90  # registers and spills are looked at here
# Before 3.7 Triton leaves a few registers less.
SPILLED_AT_MOST = 0 if tuple(map(int, triton.__version__.split(".")[:2])) >= (3, 7) else 64
KERNELS = all_kernels()


def cases() -> list[object]:
    """One variant of every kernel in any run; the others are slow."""
    chosen: list[object] = []
    quick = set()
    for architecture in ARCHITECTURES:
        for case in KERNELS:
            dtypes = DTYPES if architecture == MEASURED else DTYPES[:1]
            if COMPLETE or (case.typical and case.dtype in dtypes):
                first = architecture == MEASURED and case.name not in quick
                if first:
                    quick.add(case.name)
                marks = () if first else (pytest.mark.slow,)
                identity = f"sm_{architecture}-{case.id}"
                chosen.append(pytest.param(case, architecture, marks=marks, id=identity))
    return chosen


def assembler() -> str:
    """The ptxas that Triton uses for `MEASURED`."""
    return str(triton.knobs.nvidia.ptxas.path)


def resources(ptx: str, folder: Path) -> tuple[int, int]:
    """Registers of a thread, and bytes that it spills, as ptxas tells."""
    source = folder / "kernel.ptx"
    source.write_text(ptx)
    target = re.search(r"^\.target\s+(\S+)", ptx, re.MULTILINE)
    assert target is not None
    told = subprocess.run(
        [assembler(), "-v", f"--gpu-name={target[1].rstrip(',')}", str(source), "-o", os.devnull],
        capture_output=True,
        text=True,
        check=True,
    ).stderr
    registers = re.search(r"Used (\d+) registers", told)
    spilled = re.findall(r"(\d+) bytes spill (?:stores|loads)", told)
    assert registers is not None, told
    return int(registers[1]), sum(map(int, spilled))


@pytest.mark.parametrize(("case", "architecture"), cases())
def test_compiles(
    case: KernelCase,
    architecture: int,
    tmp_path: Path,
    record_property: Callable[[str, object], None],
) -> None:
    source = ASTSource(case.kernel, case.signature, case.constexprs)
    target = GPUTarget("cuda", architecture, 32)
    compiled = triton.compile(source, target=target, options=case.options)
    assert compiled.asm["cubin"][:4] == b"\x7fELF"
    if architecture == MEASURED:
        registers, spilled = resources(compiled.asm["ptx"], tmp_path)
        record_property("registers", registers)  # in the file that --junitxml writes
        assert spilled <= SPILLED_AT_MOST, f"{registers} registers and {spilled} bytes spilled"


def test_no_kernel_is_forgotten() -> None:
    listed = {case.name for case in KERNELS}
    found = {name for module in MODULES for name in kernels_of(module)}
    assert found == listed
    package = Path(MODULES[0].__file__ or "").parent
    written = {
        name
        for file in package.glob("*.py")
        for name in re.findall(r"^def (\w+_kernel)\(", file.read_text(), re.MULTILINE)
    }
    assert written == listed
    for name in listed:  # all dtypes, or one if it reads and writes no logits and no features
        assert {case.dtype for case in KERNELS if case.name == name} in (set(DTYPES), {DTYPES[0]})
    assert len({case.id for case in KERNELS}) == len(KERNELS)
