"""The simulation that runs csrc/cuda on the CPU: right kernels pass, planted faults are caught."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from seeds import VARIABLE, assert_seed_independent, bytes_of

HERE = Path(__file__).resolve().parent
KERNELS = sorted(HERE.glob("planted/*.cu"))
INCLUDE = ["-I", str(HERE / "include"), "-I", str(HERE.parents[1] / "csrc"), "-I", str(HERE)]
STRICT = ["-std=c++17", "-Wall", "-Wextra", "-Werror", *INCLUDE]

pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="g++ is not installed")


def run(*command: str | Path, **options: object) -> str:
    done = subprocess.run(
        [str(part) for part in command], capture_output=True, text=True, **options
    )
    assert done.returncode == 0, f"{' '.join(map(str, command))}\n{done.stdout}{done.stderr}"
    return done.stdout


def build(folder: Path, *flags: str, watched: bool = False) -> Path:
    """The self-test program: the kernels compiled as C++, and runtime.cpp."""
    sources = [*KERNELS, *HERE.glob("selftest*.cpp"), HERE / "runtime.cpp"]
    if watched:
        sources.append(HERE / "global_races.cpp")

    def compiled(source: Path) -> Path:
        result = folder / f"{source.name}.o"
        watch = ["-fsanitize=thread"] if watched and source.suffix == ".cu" else []
        run("g++", *STRICT, *flags, *watch, "-x", "c++", "-c", source, "-o", result)
        return result

    with ThreadPoolExecutor(2) as pool:
        objects = list(pool.map(compiled, sources))
    program = folder / "selftest"
    run("g++", *flags, *objects, "-o", program, "-ldl", "-pthread")
    return program


@pytest.fixture(scope="session")
def selftest(tmp_path_factory: pytest.TempPathFactory) -> Path:
    # _FORTIFY_SOURCE: as distributions compile; contracted: as the kernels' own build does.
    flags = ["-O2", "-D_FORTIFY_SOURCE=2", "-ffp-contract=fast"]
    return build(tmp_path_factory.mktemp("selftest"), *flags)


@pytest.fixture(scope="session")
def sanitized(tmp_path_factory: pytest.TempPathFactory) -> Path:
    flags = ["-O1", "-g1", "-fsanitize=address,undefined", "-fno-sanitize-recover=all"]
    folder = tmp_path_factory.mktemp("sanitized")
    (folder / "empty.cpp").write_text("int main() {}")
    try:
        run("g++", *flags, folder / "empty.cpp", "-o", folder / "empty")
    except AssertionError:
        pytest.skip("g++ has no sanitizers here")
    return build(folder, *flags)


@pytest.fixture(scope="session")
def watched(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(tmp_path_factory.mktemp("watched"), "-O2", "-g1", watched=True)


# What each planted fault has to be called. All but the races name the kernel, block and thread.
WHERE = (
    r"kernel planted::(\(anonymous namespace\)::)?{name}_kernel\(.*\), "
    r"block \(\d+, 0, 0\), thread \(\d+, 0, 0\): "
)
RACE = (
    r"race in shared memory: wrong\.cu:\d+ \w+ element \d+ of the array at byte 0, "
    r"(read|written) by thread \(\d+, 0, 0\) at line \d+, with no barrier in between"
)
DEPENDS = r"the answer depends on the order of the threads: seeds 0 and \d differ in element \d+"
OUTSIDE = "out-of-bounds access of global memory before any barrier: "
FAULTS = {
    "missing_barrier": WHERE + RACE,
    "missing_barrier_unchecked": DEPENDS,
    "missing_warp_barrier": WHERE + RACE,
    "missing_warp_barrier_unchecked": DEPENDS,
    "reads_too_far": WHERE + OUTSIDE + "byte 1 past the end of a buffer of 400 bytes",
    "writes_before": WHERE + OUTSIDE + "byte 4 before a buffer of 128 bytes",
    "null_pointer": WHERE + OUTSIDE + "nothing is mapped at 0x190",
    "shared_index": WHERE + r"out-of-bounds shared index: wrong\.cu:\d+ uses element 32 of the "
    "array at byte 0, which has 32 elements of 4 bytes",
    "shared_index_negative": WHERE + r"out-of-bounds shared index: wrong\.cu:\d+ uses element -1",
    "misaligned_wide": WHERE + r"misaligned shared memory: wrong\.cu:\d+ takes 16 bytes at once",
    "shared_too_small": WHERE + "shared memory is too small: the arrays so far take 256 bytes, "
    "the launch gave 128",
    "divergent_barrier": WHERE + r"divergent barrier: this thread is at wrong\.cu:\d+, but thread "
    r"\(\d+, 0, 0\) waits at the barrier wrong\.cu:\d+",
    "exits_early": WHERE + r"divergent barrier: this thread waits at wrong\.cu:\d+, but thread "
    r"\(63, 0, 0\) has exited",
    "missing_lane": WHERE + r"divergent warp operation: this thread waits at wrong\.cu:\d+ with "
    r"mask 0xffffffff, but thread \(7, 0, 0\) waits at the barrier wrong\.cu:\d+",
    "own_lane_missing": WHERE + r"divergent warp operation: at wrong\.cu:\d+ the mask 0x0000ffff "
    r"lacks this thread's own lane \d+",
    "shuffle_from_nowhere": WHERE + r"divergent warp operation: the shuffle at wrong\.cu:\d+ reads "
    r"lane \d+, which does not exist in this block",
    "uninitialised": WHERE + r"uninitialised shared memory: wrong\.cu:\d+ reads element 9 ",
    "spins": WHERE + "no thread gets anywhere",
    "overflows_stack": WHERE + "the thread's stack of 256 KiB overflows",
    "global_race": DEPENDS,
}
ELSEWHERE = r"race in global memory: {} (byte \d+ of a buffer of \d+ bytes|at 0x\w+) "
ELSEWHERE += r"\(addr2line .*\), {} by block \(\d, 0, 0\), thread \(\d+, 0, 0\), with nothing "
READ_AFTER_WRITE = ELSEWHERE.format("reads", "written")
WRITE_AFTER_READ = ELSEWHERE.format("writes", "read")
GLOBAL_FAULTS = {
    "last_block": READ_AFTER_WRITE,
    "neighbours": f"{READ_AFTER_WRITE}|{WRITE_AFTER_READ}",
    "lost_update": READ_AFTER_WRITE,
    "global_write": ELSEWHERE.format("writes", r"written \(another value\)"),
}
KERNEL_OF = {
    "global_write": "global_race",
    "null_pointer": "reads_too_far",
    "shared_index_negative": "shared_index",
    "shared_too_small": "shared_index",
}


def test_right_kernels_are_right_for_many_seeds(selftest: Path) -> None:
    run(selftest, "right")


@pytest.mark.parametrize("fault", FAULTS)
def test_a_planted_fault_is_caught(selftest: Path, fault: str) -> None:
    message = run(selftest, fault)
    assert re.match(FAULTS[fault].replace("{name}", KERNEL_OF.get(fault, fault)), message), message


@pytest.mark.parametrize("fault", GLOBAL_FAULTS)
def test_a_race_in_global_memory_is_caught(watched: Path, selftest: Path, fault: str) -> None:
    message = run(watched, fault)
    where = WHERE.replace("{name}", KERNEL_OF.get(fault, fault))
    assert re.match(f"{where}({GLOBAL_FAULTS[fault]})", message), message
    assert run(selftest, fault) == "no fault\n"  # why it takes more than the order of the threads


def test_right_kernels_have_no_race_in_global_memory(watched: Path) -> None:
    run(watched, "right")
    run(watched, "recovery")


def test_the_race_detectors_miss_nothing_and_invent_nothing(selftest: Path) -> None:
    run(selftest, "detectors")


def test_the_next_launch_works_after_a_fault(selftest: Path) -> None:
    run(selftest, "recovery")


def test_the_seed_comes_from_the_environment(selftest: Path) -> None:
    def message(seed: int) -> str:
        return run(selftest, "divergent_barrier", env={VARIABLE: str(seed)})

    assert message(3) == message(3)
    assert len({message(seed) for seed in range(8)}) > 1


def test_in_strict_mode_shuffles_do_not_order_memory(selftest: Path) -> None:
    assert run(selftest, "relies_on_shuffle") == "no fault\n"
    message = run(selftest, "relies_on_shuffle", env={"CSCL_FAST_CUDA_ON_CPU_STRICT": "1"})
    assert re.match((WHERE + RACE).replace("{name}", "relies_on_shuffle"), message), message


@pytest.mark.parametrize("case", ["right", "recovery", "exits_early", "reads_too_far"])
def test_under_sanitizers(sanitized: Path, case: str) -> None:
    run(sanitized, case)


def test_a_switch_takes_less_than_a_microsecond(selftest: Path) -> None:
    # Twenty times what it takes where it was written: this finds a system call, not a slow machine.
    took = dict(re.findall(r"(.*): ([\d.]+) ns\n", run(selftest, "stopwatch")))
    assert float(took["a thread at a barrier"]) < 1000, took


@pytest.mark.parametrize("kernel", KERNELS, ids=lambda path: path.name)
def test_the_planted_kernels_are_cuda(kernel: Path, tmp_path: Path) -> None:
    if shutil.which("nvcc") is None:
        pytest.skip("nvcc is not installed")
    run("nvcc", "-std=c++17", *INCLUDE[2:], "-ptx", kernel, "-o", tmp_path / "kernel.ptx")
    ptx = (tmp_path / "kernel.ptx").read_text()
    if kernel.name == "language.cu":  # csrc/cuda/shared.h becomes plain accesses, wide ones too
        assert "st.shared.v4" in ptx and "ld.shared.v4" in ptx and "atom.shared" in ptx
    assert "ld.shared" in ptx or kernel.name == "stopwatch.cu"


def test_a_fault_passes_through_pybind11(tmp_path: Path) -> None:
    """As in the package's own module: hidden symbols, and RuntimeError on the side of Python."""
    pybind11 = pytest.importorskip("pybind11")
    headers = ["-I", pybind11.get_include(), "-I", sysconfig.get_path("include")]
    source = tmp_path / "planted.cpp"
    source.write_text(
        '#include <pybind11/pybind11.h>\n#include "planted/kernels.h"\n'
        "PYBIND11_MODULE(planted_module, module) {\n"
        '  module.def("shared_index", [](int index) {\n'
        "    float out = 0;\n"
        "    return planted::shared_index(index, &out) == cudaSuccess ? out : -1;\n"
        "  });\n}\n"
    )
    flags = ["-std=c++17", "-O1", "-fPIC", "-fvisibility=hidden", "-shared", *INCLUDE, *headers]
    sources = ["-x", "c++", source, HERE / "planted/wrong.cu", HERE / "runtime.cpp"]
    module = tmp_path / f"planted_module{sysconfig.get_config_var('EXT_SUFFIX')}"
    try:
        run("g++", *flags, *sources, "-o", module, "-ldl", "-pthread")
    except AssertionError as error:
        if "Python.h: No such file" in str(error):
            pytest.skip("Python's headers are not installed")
        raise
    code = """
import planted_module
assert planted_module.shared_index(5) == 1
for _ in range(3):
    try:
        planted_module.shared_index(32)
    except RuntimeError as error:
        assert "::shared_index_kernel(int, float*), block (0, 0, 0)" in str(error), error
    else:
        raise AssertionError("no exception")
    assert planted_module.shared_index(31) == 1
"""
    run(sys.executable, "-c", code, cwd=tmp_path)


def test_assert_seed_independent_of_python(monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    monkeypatch.setenv(VARIABLE, "17")
    answer = assert_seed_independent(lambda: (torch.ones(3), torch.zeros(2, dtype=torch.bfloat16)))
    assert bytes_of(answer) == bytes_of(torch.ones(3)) + bytes(4)
    with pytest.raises(AssertionError, match="seeds 0 and 1 differ"):
        assert_seed_independent(lambda: os.environ[VARIABLE].encode())
    assert os.environ[VARIABLE] == "17"
