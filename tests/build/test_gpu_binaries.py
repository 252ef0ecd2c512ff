"""What the report on the CUDA kernels reads from machine code, and how it counts occupancy."""

from __future__ import annotations

import shutil
import subprocess
import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))

import gpu_binaries
import gpu_checks
import gpu_flow
import gpu_limits

# ---- recorded: cuobjdump, without the instructions that do not matter ---------------------------

RESOURCES = """
Fatbin elf code:
================
arch = sm_80
code version = [1,8]
host = linux

Resource usage:
 Common:
  GLOBAL:0
 Function _Z4copyPKf:
  REG:28 STACK:0 SHARED:0 LOCAL:0 CONSTANT[0]:560 TEXTURE:0 SURFACE:0 SAMPLER:0

Fatbin ptx code:
================
arch = sm_120
code version = [9,0]

Fatbin elf code:
================
arch = sm_120
code version = [1,8]

Resource usage:
 Common:
  GLOBAL:0
 Function _Z4copyPKf:
  REG:40 STACK:16 SHARED:1056 LOCAL:8 CONSTANT[0]:1104 TEXTURE:0 SURFACE:0 SAMPLER:0
"""

SASS = """
Fatbin elf code:
================
arch = sm_90
code version = [1,8]

	code for sm_90
	.target	sm_90

		Function : _Z4copyPKf
	.headerflags	@"EF_CUDA_SM90 EF_CUDA_VIRTUAL_SM(EF_CUDA_SM90)"
        /*0000*/                   LDC R1, c[0x0][0x28] ;                /* 0x00000a00ff017b82 */
                                                                         /* 0x000fe20000000800 */
        /*0010*/               @P0 EXIT ;                                /* 0x000000000000094d */
        /*0020*/                   LDG.E.128 R4, desc[UR4][R16.64] ;     /* 0x0000000410047981 */
        /*0030*/                   I2F.RP R6, R10 ;                      /* 0x0000000a00067306 */
        /*0040*/                   MUFU.RCP R6, R6 ;                     /* 0x0000000600067308 */
        /*0050*/                   FFMA R4, R4, R5, R6 ;                 /* 0x0000000504047223 */
        /*0060*/                   STG.E.128 desc[UR4][R2.64], R4 ;      /* 0x0000000402007986 */
        /*0070*/               @P2 BRA 0x20 ;                            /* 0xfffffff400002947 */
        /*0080*/                   STS.128 [R3], R4 ;                    /* 0x0000000403007388 */
        /*0090*/                   EXIT ;                                /* 0x000000000000794d */
        /*00a0*/                   BRA 0xa0;                             /* 0xfffffffc00fc7947 */
"""


def code(*lines: str) -> list[gpu_flow.Instruction]:
    """Instructions from `@P0 BRA 0x20`; each takes 16 bytes."""
    text = "arch = sm_90\n\tFunction : f\n" + "".join(
        f"        /*{16 * i:04x}*/    {line} ;\n" for i, line in enumerate(lines)
    )
    return gpu_binaries.parse_instructions(text)[90, "f"]


# ---- parsers ------------------------------------------------------------------------------------


def test_resources_are_read_for_each_architecture() -> None:
    found = gpu_binaries.parse_resources(RESOURCES)
    assert found == {
        (80, "_Z4copyPKf"): (28, 0, 0, 0, 560),
        (120, "_Z4copyPKf"): (40, 16, 32, 8, 1104),  # without the 1024 that every block loses
    }


def test_instructions_are_read_and_counted() -> None:
    instructions = gpu_binaries.parse_instructions(SASS)[90, "_Z4copyPKf"]
    assert len(instructions) == 11
    assert instructions[7] == gpu_flow.Instruction(0x70, "BRA", "0x20", True)
    facts = gpu_binaries.facts(instructions)
    wide = {key: facts[key] for key in ("load_128", "store_128", "shared_store_128")}
    assert wide == {"load_128": 1, "store_128": 1, "shared_store_128": 1}
    assert facts["double"] == facts["local_memory"] == 0
    assert (facts["inner_divisions"], facts["outer_divisions"]) == (1, 0)
    assert facts["loop_instructions"] == 6
    assert facts["loop_arithmetic"] == facts["loop_special"] == 1


@pytest.mark.parametrize(
    "name", ["DADD", "DMUL", "DFMA", "DSETP.GT.AND", "F2F.F64.F32", "I2F.F64", "MUFU.RCP64H"]
)
def test_double_precision_is_seen(name: str) -> None:
    assert gpu_binaries.facts(code(f"{name} R2, R4", "EXIT"))["double"] == 1


@pytest.mark.parametrize("name", ["FADD", "F2I.S64.TRUNC", "I2F.S64", "LDG.E.64", "ISETP.GT.S64"])
def test_what_is_not_double_precision_is_not_taken_for_it(name: str) -> None:
    assert gpu_binaries.facts(code(f"{name} R2, R4", "EXIT"))["double"] == 0


def test_local_memory_is_seen() -> None:
    assert gpu_binaries.facts(code("LDL.128 R4, [R1]", "STL [R1], R4"))["local_memory"] == 2


@pytest.mark.parametrize(
    ("demangled", "name"),
    [
        (
            "void cscl::cuda::walk_planes<4, cscl::device::Exactly<19>, cscl::cuda::(anonymous "
            "namespace)::SelfTrainingBody<cscl::device::PowerRule<float, -1, cscl::cuda::LabelPlan>"
            ", false, (cscl::cuda::LossKind)2> >(cscl::cuda::PixelSource, long)",
            "walk_planes, 19 classes, power, own labels, gradient, 4 pixels",
        ),
        (
            "void cscl::cuda::walk_upsampled_rolled<cscl::cuda::(anonymous namespace)::"
            "CountingBody>(cscl::cuda::PixelSource)",
            "walk_upsampled_rolled, any classes, counting",
        ),
        (
            "void cscl::cuda::(anonymous namespace)::sum_classes<cscl::cuda::Rows<"
            "cscl::cuda::BFloat16, 4> >(cscl::cuda::(anonymous namespace)::Sides)",
            "sum_classes, rows, bfloat16, 4 wide",
        ),
        (
            "cscl::cuda::(anonymous namespace)::finish_centroids(cscl::cuda::PartialSums, float*)",
            "finish_centroids",
        ),
        (
            "void cscl::cuda::(anonymous namespace)::compare_classes<true>(cscl::cuda::Arguments)",
            "compare_classes, softmax",
        ),
    ],
)
def test_names_are_readable(demangled: str, name: str) -> None:
    assert gpu_binaries.short_name(gpu_binaries.describe("operator", demangled)) == name


# ---- loops --------------------------------------------------------------------------------------


def divisions(*lines: str) -> tuple[int, int]:
    return tuple(gpu_flow.divisions_in_loops(gpu_flow.Loops.of(code(*lines))))  # type: ignore[return-value]


def test_division_before_a_loop_does_not_count() -> None:
    assert divisions("I2F.U32.RP R1, R2", "FADD R1, R1, R1", "@P0 BRA 0x10", "EXIT") == (0, 0)


def test_division_in_the_inner_of_two_loops_counts() -> None:
    lines = ("FADD R1, R1, R1", "FADD R1, R1, R1", "I2F.U32.RP R1, R2", "@P0 BRA 0x20")
    assert divisions(*lines, "@P1 BRA 0x0", "EXIT") == (1, 0)


def test_division_in_the_outer_of_two_loops_counts() -> None:
    lines = ("I2F.U32.RP R1, R2", "FADD R1, R1, R1", "FADD R1, R1, R1", "@P0 BRA 0x10")
    assert divisions(*lines, "@P1 BRA 0x0", "EXIT") == (0, 1)


def test_division_in_a_routine_counts_where_it_is_called() -> None:
    lines = ("NOP", "FADD R1, R1, R1", "CALL.REL.NOINC 0x50", "@P0 BRA 0x10", "EXIT")
    assert divisions(*lines, "I2F.U64.RP R1, R2", "RET.REL.NODEC R4 0x0") == (1, 0)


def test_a_call_that_does_not_return_is_a_branch() -> None:
    lines = ("NOP", "FADD R1, R1, R1", "@P0 CALL.REL.NOINC 0x50", "BRA 0x10", "NOP")
    assert divisions(*lines, "I2F.U32.RP R1, R2", "EXIT") == (0, 0)


def test_code_behind_the_end_is_no_loop() -> None:
    lines = ("@P0 BRA 0x40", "FADD R1, R1, R1", "EXIT", "NOP", "I2F.U32.RP R1, R2", "BRA 0x10")
    assert gpu_flow.Loops.of(code(*lines)).all == {}


def test_threads_that_wait_for_each_other_go_on_together() -> None:
    # The second BSYNC lies behind the end, and leads back to where BSSY has said.
    lines = ("BSSY B0, 0x40", "@P0 BRA 0x60", "NOP", "BSYNC B0", "@P1 BRA 0x0", "EXIT")
    flow = gpu_flow.Flow(code(*lines, "I2F.U32.RP R1, R2", "BSYNC B0"))
    assert divisions(*lines, "I2F.U32.RP R1, R2", "BSYNC B0") == (1, 0)
    assert len(flow.loops()) == 1


def test_the_longer_branch_is_counted() -> None:
    lines = ("@P0 BRA 0x40", "FADD R1, R1, R1", "FADD R1, R1, R1", "BRA 0x50", "NOP", "@P1 BRA 0x0")
    loop = gpu_flow.main_loop(gpu_flow.Loops.of(code(*lines, "EXIT")))
    assert loop == gpu_flow.LoopCount(instructions=5, arithmetic=2, special=0)


# ---- occupancy ----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("architecture", "registers", "threads", "shared", "warps"),
    [
        # CUDA C++ Best Practices Guide, "Calculating Occupancy": 37 registers, 75 % and 63 %.
        (80, 37, 128, 0, 48),
        (90, 37, 320, 0, 40),
        (80, 32, 256, 0, 64),  # full
        (90, 32, 1024, 0, 64),
        (80, 33, 256, 0, 48),  # 40 registers are what 33 take
        (90, 128, 256, 0, 16),
        (100, 255, 256, 0, 8),
        (86, 32, 1024, 0, 32),  # one block of 32 of the 48 warps
        (120, 40, 256, 0, 48),
        (90, 32, 32, 0, 32),  # 32 blocks
        (89, 32, 32, 0, 24),  # 24 blocks
        (80, 32, 128, 48 << 10, 12),  # three times 49 KiB in 164
        (90, 32, 128, 48 << 10, 16),  # four in 228
        (120, 32, 128, 48 << 10, 8),  # two in 100
        (120, 32, 128, 99 << 10, 4),
        (120, 32, 128, 100 << 10, 0),
        (90, 32, 128, 227 << 10, 4),
    ],
)
def test_occupancy_is_what_nvidia_counts(
    architecture: int, registers: int, threads: int, shared: int, warps: int
) -> None:
    assert gpu_limits.resident_warps(architecture, registers, threads, shared) == warps


# Recorded: what the host code asked a runtime for that only writes it down.
LAUNCHES = [
    ("walk_planes", {"classes": "19", "body": "label", "pack": "4"}, 128, 10336),
    ("walk_planes", {"classes": "19", "body": "crossentropy", "kind": "value"}, 128, 272),
    ("walk_planes", {"classes": "19", "body": "crossentropy", "kind": "gradient"}, 128, 16),
    ("walk_planes", {"classes": "to 32", "body": "counting"}, 128, 32784),
    ("walk_planes", {"classes": "19", "body": "reward"}, 128, 10048),
    ("walk_pixels", {"classes": "19", "body": "ranking"}, 128, 48960),
    ("walk_pixels", {"classes": "any", "body": "reward"}, 32, 16928),
    ("walk_upsampled", {"classes": "19", "body": "label"}, 128, 31344),
    ("walk_upsampled", {"classes": "to 32", "body": "ranking"}, 128, 100800),
    (
        "walk_upsampled",
        {"classes": "19", "body": "crossentropy", "kind": "value and gradient"},
        128,
        32416,
    ),
    (
        "walk_upsampled_rolled",
        {"classes": "any", "body": "crossentropy", "kind": "value and gradient"},
        32,
        17664,
    ),
    ("walk_upsampled_rolled", {"classes": "any", "body": "label"}, 32, 9424),
    ("sum_classes", {"walk": "rows", "element": "float32", "width": "4"}, 256, 79040),
    ("sum_classes", {"walk": "rows", "element": "float32", "width": "1"}, 256, 20672),
    ("sum_classes", {"walk": "tiles", "element": "float16"}, 256, 54464),
    ("rank_digit", {}, 256, 39008),
    ("compare_classes", {"rule": "l1"}, 512, 8400),
]


@pytest.mark.parametrize(("name", "variant", "threads", "shared"), LAUNCHES)
def test_launches_are_those_of_the_host_code(
    name: str, variant: dict[str, str], threads: int, shared: int
) -> None:
    assert gpu_limits.launch_of({"kernel": name, **variant}) == (threads, shared)


def test_an_unknown_kernel_has_no_launch() -> None:
    with pytest.raises(ValueError, match="launch_of"):
        gpu_limits.launch_of({"kernel": "something_new"})


# ---- with a compiler ----------------------------------------------------------------------------

SPILLING = """
__global__ void spill(const int* from, float* to, double* wide) {
  float values[64];  // indexed by what is not known while compiling: it cannot be in registers
  for (int i = 0; i < 64; ++i) values[from[i] & 63] = to[i];
  for (int i = 0; i < 64; ++i) to[i] = values[from[i + 64] & 63];
  *wide = *wide * 3.0;
}
"""


def has_tools() -> bool:
    try:
        return shutil.which("nvcc") is not None and bool(gpu_binaries.find_tool("cuobjdump"))
    except gpu_binaries.ToolError:
        return False


@pytest.mark.skipif(not has_tools(), reason="needs nvcc and cuobjdump")
def test_a_local_array_is_caught_in_what_is_compiled(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "planted.cu").write_text(SPILLING, encoding="utf-8")
    subprocess.run(
        ["nvcc", "-arch=sm_90", "-c", "planted.cu", "-o", "planted.o"], cwd=tmp_path, check=True
    )
    kernels = gpu_binaries.read_objects(gpu_binaries.object_files(tmp_path))
    assert [k["kernel"] for k in kernels] == ["spill"]
    monkeypatch.setattr(gpu_checks, "launch_of", lambda kernel: gpu_limits.Launch(128, 0))
    found = [line for line in gpu_checks.problems(kernels) if "planted: spill, sm_90" in line]
    for what in ("bytes of stack", "read or write local memory", "double precision"):
        assert any(what in line for line in found), found
