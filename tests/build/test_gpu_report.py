"""The report on the compiled CUDA kernels: its parsers, its rules, and the page that it writes."""

from __future__ import annotations

import copy
import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT / "benchmarks"))

import gpu_binaries  # noqa: E402
import gpu_checks  # noqa: E402
import gpu_flow  # noqa: E402
import gpu_limits  # noqa: E402
import gpu_page  # noqa: E402
import gpu_report  # noqa: E402
import gpu_roofline  # noqa: E402

Report = dict[str, Any]

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


def test_an_unknown_kernel_has_no_launch() -> None:
    with pytest.raises(ValueError, match="launch_of"):
        gpu_limits.launch_of({"kernel": "something_new"})


# ---- the checks, of what is stored --------------------------------------------------------------


@pytest.fixture
def report() -> Report:
    return copy.deepcopy(gpu_report.load())


def facts_of(report: Report, architecture: str = "90", **wanted: str) -> dict[str, int]:
    found = [k for k in report["kernels"] if all(k.get(key) == v for key, v in wanted.items())]
    assert found, wanted
    facts: dict[str, int] = found[0]["architectures"][architecture]
    return facts


def checked(report: Report, monkeypatch: pytest.MonkeyPatch, folder: Path) -> int:
    """The exit status of --check with this in the place of what is stored, page included."""
    stored, page = folder / "gpu_kernels.json", folder / "gpu.md"
    stored.write_text(gpu_report.dump(report), encoding="utf-8")
    text = gpu_report.PAGE.read_text(encoding="utf-8")
    page.write_text(gpu_report.page(report, text), encoding="utf-8")
    monkeypatch.setattr(gpu_report, "load", lambda: json.loads(stored.read_text(encoding="utf-8")))
    monkeypatch.setattr(gpu_report, "PAGE", page)
    return gpu_report.main(["--check"])


def test_the_stored_kernels_are_as_they_have_to_be(
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert gpu_report.main(["--check"]) == 0, capsys.readouterr().out


def test_the_page_shows_what_is_stored(report: Report) -> None:
    text = gpu_report.PAGE.read_text(encoding="utf-8")
    assert gpu_report.page(report, text) == text, "run: python benchmarks/gpu_report.py"


def test_what_is_stored_is_written_the_same_again(report: Report) -> None:
    assert gpu_report.dump(report) == gpu_report.STORED.read_text(encoding="utf-8")


PLANTED = [
    ({"kernel": "walk_planes", "classes": "19"}, {"stack": 8}, "bytes of stack"),
    ({"kernel": "walk_upsampled"}, {"local": 16}, "bytes of local memory"),
    ({"kernel": "finish_loss"}, {"local_memory": 2}, "local memory"),
    ({"kernel": "rank_digit"}, {"double": 1}, "double precision"),
    ({"kernel": "walk_planes", "classes": "19", "pack": "4"}, {"load_128": 18}, "loads of 128"),
    (
        {"kernel": "walk_planes", "classes": "19", "pack": "4", "body": "label"},
        {"store_128": 0},
        "stores of 128",
    ),
    (
        {"kernel": "sum_classes", "walk": "rows", "element": "float32", "width": "4"},
        {"load_128": 0},
        "loads of 128",
    ),
    ({"kernel": "write_rows", "element": "float32", "width": "4"}, {"store_128": 0}, "stores of"),
    ({"kernel": "sum_classes", "walk": "tiles"}, {"inner_divisions": 1}, "divisions of integers"),
    ({"kernel": "walk_upsampled"}, {"outer_divisions": 1}, "divisions of integers"),
    ({"kernel": "sum_classes", "walk": "rows"}, {"registers": 255, "shared": 40 << 10}, "not fit"),
]


@pytest.mark.parametrize(("kernel", "planted", "message"), PLANTED)
@pytest.mark.parametrize("architecture", ["80", "120"])
def test_a_planted_fault_fails_the_check(
    report: Report,
    kernel: dict[str, str],
    planted: dict[str, int],
    message: str,
    architecture: str,
    monkeypatch: pytest.MonkeyPatch,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if message == "not fit" and architecture == "80":
        pytest.skip("it fits there")
    facts_of(report, architecture, **kernel).update(planted)
    assert checked(report, monkeypatch, tmp_path) == 1
    printed = [line for line in capsys.readouterr().out.splitlines() if message in line]
    assert len(printed) == 1, "one fault, one message"
    assert f"sm_{architecture}" in printed[0]
    assert kernel["kernel"] in printed[0]


def test_without_a_fault_the_same_check_passes(
    report: Report, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    assert checked(report, monkeypatch, tmp_path) == 0


def test_a_page_that_shows_something_else_fails_the_check(report: Report) -> None:
    text = gpu_report.PAGE.read_text(encoding="utf-8")
    facts_of(report, kernel="finish_loss")["registers"] += 8
    assert any("gpu_report.py" in line for line in gpu_report.check(report, report, text))


def test_wide_kernels_that_are_gone_are_missed(report: Report) -> None:
    report["kernels"] = [k for k in report["kernels"] if k["kernel"] != "write_rows"]
    assert any("there is no kernel" in line for line in gpu_checks.problems(report["kernels"]))


def test_a_changed_build_is_told_apart(report: Report) -> None:
    other = copy.deepcopy(report)
    assert gpu_report.difference(report, other) == ""
    facts_of(other, kernel="finish_loss")["registers"] += 8
    other["kernels"].pop()
    assert "1 gone" in gpu_report.difference(report, other)
    assert "1 other" in gpu_report.difference(report, other)


def test_a_page_without_the_comments_is_refused() -> None:
    with pytest.raises(ValueError, match="resources"):
        gpu_page.with_blocks("# a page", {"resources": ""})


# ---- the roofline -------------------------------------------------------------------------------


def test_every_case_is_predicted_for_every_card(report: Report) -> None:
    assert report["roofline"] == gpu_roofline.roofline(report["kernels"])
    names = {card.name for card in gpu_roofline.CARDS}
    assert all(set(row["microseconds"]) == names for row in report["roofline"])


def test_bytes_are_those_of_the_cpu_benchmarks() -> None:
    cases = {(case.operator, case.case): case for case in gpu_roofline.CASES}
    for operator, stored, ours in (
        ("soft_pseudo_labels", "[1, 19, 512, 1024] {}", "512x1024"),
        ("soft_pseudo_labels", "[1, 19, 65, 129] to 512x1024 {}", "65x129 to 512x1024"),
    ):
        path = ROOT / "benchmarks" / "results" / f"{operator}.json"
        timings = json.loads(path.read_text(encoding="utf-8"))["timings"]
        for dtype in ("float32", "bfloat16"):
            found = {t["bytes"] for t in timings if t["group"] == stored.format(dtype)}
            assert found <= {cases[operator, ours].bytes_to_move(dtype, 1)}


def test_prediction_by_hand(report: Report) -> None:
    case = gpu_roofline.CASES[0]
    found = gpu_roofline.predict(case, gpu_roofline.CARDS[0], "float32", 1, report["kernels"])
    assert found is not None
    # 160 bytes for each of 524,288 pixels at 90 % of 3.35 TB/s, and one launch.
    assert found["memory"] == pytest.approx(160 * 524288 / 3.015e6, abs=0.01)
    assert found["graph"] == pytest.approx(max(found["memory"], found["instructions"]) + 1.0)
    assert found["stream"] == pytest.approx(found["graph"] + 1.5)


MEASURED = {
    "operator": "soft_pseudo_labels",
    "case": "512x1024",
    "dtype": "float32",
    "batch": 1,
    "milliseconds": 0.125,
    "gpu": "NVIDIA H100 80GB HBM3",
}


def test_measured_times_fill_the_last_column(report: Report, tmp_path: Path) -> None:
    rows = [MEASURED, {**MEASURED, "milliseconds": 0.25}, {**MEASURED, "gpu": "NVIDIA L4"}]
    (tmp_path / "gpu_first.json").write_text(json.dumps({"kernels": rows}), encoding="utf-8")
    text = gpu_report.PAGE.read_text(encoding="utf-8")
    page = gpu_report.page(report, text, tmp_path)
    assert page.count("0.125 (H100), 0.125 (NVIDIA L4)") == 1


@pytest.mark.parametrize(
    ("name", "card"),
    [
        ("NVIDIA H100 80GB HBM3", "H100"),
        ("NVIDIA H200", "H200"),
        ("NVIDIA GeForce RTX 4090", "RTX 4090"),
        ("NVIDIA A100-SXM4-80GB", None),
    ],
)
def test_cards_are_known_by_the_names_of_the_driver(name: str, card: str | None) -> None:
    assert next((c.name for c in gpu_roofline.CARDS if c.matches(name)), None) == card


@pytest.mark.parametrize("wrong", [{"case": "7x7"}, {"operator": "nothing"}, {"gpu": None}])
def test_a_measured_file_with_something_else_is_refused(
    wrong: dict[str, Any], tmp_path: Path
) -> None:
    row = {key: value for key, value in {**MEASURED, **wrong}.items() if value is not None}
    (tmp_path / "gpu_first.json").write_text(json.dumps({"kernels": [row]}), encoding="utf-8")
    with pytest.raises(ValueError, match="gpu_first"):
        gpu_roofline.measured(tmp_path)


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


def test_a_folder_without_objects_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert gpu_report.main(["--objects", str(tmp_path), "--check"]) == 2
    assert "no CUDA objects" in capsys.readouterr().err
