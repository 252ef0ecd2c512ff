"""What every benchmark shares: `pytest benchmarks/ [--quick] [--save-results] [--threads N]`.

A benchmark is a `bench_<operator>.py` whose tests are the contenders of a group, one after the
other in this process. Each contender's answer is checked before it is timed. At the end stand, for
each group, the times, the ratio to this package, and the bytes that the operator must move as a
share of what this machine copies, and the memory that each contender takes at its peak.
"""

from __future__ import annotations

import ctypes
import datetime
import gc
import json
import platform
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any

import measured_on
import pytest
import torch

import cscl_fast
from cscl_fast import backends

RESULTS = Path(__file__).resolve().parent / "results"
OURS = "cscl_fast"


@dataclass
class Timing:
    """One contender of one group; times in seconds."""

    operator: str
    group: str
    contender: str
    median: float
    fastest: float
    rounds: int
    threads: int
    bytes: int  # that any implementation must read and write
    values: int | None  # pixels x classes, where arithmetic and not memory may be the limit
    peak_extra_bytes: int | None  # its results and everything beside them; None: not Linux


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("cscl_fast")
    group.addoption("--quick", action="store_true", help="the main cases, few rounds")
    group.addoption("--save-results", action="store_true", help="write benchmarks/results/*.json")
    group.addoption("--threads", type=int, default=None, help="default: PyTorch's number")


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "full: a case that --quick leaves out")
    config.stash[TIMINGS] = []


TIMINGS = pytest.StashKey[list[Timing]]()
COPY = pytest.StashKey[float]()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if config.getoption("--quick"):
        left_out = [item for item in items if item.get_closest_marker("full")]
        items[:] = [item for item in items if not item.get_closest_marker("full")]
        config.hook.pytest_deselected(items=left_out)


def copy_bandwidth() -> float:
    """Bytes read and written per second by the best copy of a tensor larger than the caches."""
    best = 0.0
    for megabytes in (64, 128, 256, 512):
        source = torch.ones(megabytes << 18)
        target = torch.empty_like(source)
        target.copy_(source)
        for _ in range(10):
            began = perf_counter()
            target.copy_(source)
            best = max(best, 2 * 4 * source.numel() / (perf_counter() - began))
    return best


@pytest.fixture(scope="session", autouse=True)
def machine(request: pytest.FixtureRequest) -> Iterator[None]:
    """The number of threads for all, and this machine's bandwidth, measured at both ends."""
    threads = request.config.getoption("--threads")
    if threads is not None:
        torch.set_num_threads(threads)
    before = copy_bandwidth()
    yield
    request.config.stash[COPY] = max(before, copy_bandwidth())


def _status(entry: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(entry + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(entry)


def peak_extra_memory(function: Callable[[], object]) -> int | None:
    """How far one call raises this process' resident memory at its peak; None where unknown."""
    gc.collect()
    if backends.library_module() is not None:
        backends.library_module().release_cache()
    try:
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator kept would hide what is taken
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        before = _status("VmRSS")
        result = function()
        after = _status("VmHWM")
    except (OSError, AttributeError, KeyError):
        return None
    del result
    return max(0, after - before)


@pytest.fixture
def contend(request: pytest.FixtureRequest, benchmark: Any) -> Callable[..., None]:
    """Times one contender: contend(function, operator=, group=, contender=, bytes=).

    The function has been called before, so that whatever it compiles or keeps is there.
    """

    def run(
        function: Callable[[], object],
        *,
        operator: str,
        group: str,
        contender: str,
        bytes: int,
        values: int | None = None,
        budget: float = 4.0,
    ) -> None:
        benchmark.group = f"{operator} {group}"
        began = perf_counter()
        peak = peak_extra_memory(function)
        once = perf_counter() - began
        if once < 1.0:  # the memory was fresh, and giving it back takes time, too
            began = perf_counter()
            function()
            once = perf_counter() - began
        # Enough rounds for a median, in about four seconds (half a second with --quick).
        fewest = 7
        if request.config.getoption("--quick"):
            budget, fewest = 0.5, 3 if once < 1.0 else 1
        rounds = max(fewest, min(200, int(budget / max(once, 1e-6))))
        times: list[float] = []

        def timed() -> None:
            started = perf_counter()
            result = function()
            times.append(perf_counter() - started)
            del result  # its memory is given back outside of the timed part

        warmup = 1 if once < 1.0 else 0
        benchmark.pedantic(timed, rounds=rounds, warmup_rounds=warmup)
        times = times[warmup:]
        timing = Timing(
            operator,
            group,
            contender,
            median(times),
            min(times),
            len(times),
            torch.get_num_threads(),
            bytes,
            values,
            peak,
        )
        request.config.stash[TIMINGS].append(timing)

    return run


def environment() -> dict[str, object]:
    """Where the times were taken."""
    return {
        "date": datetime.date.today().isoformat(),
        **measured_on.environment(),
        "platform": platform.platform(),
        "cscl_fast": cscl_fast.__version__,
    }


def pytest_terminal_summary(terminalreporter: Any, config: pytest.Config) -> None:
    timings, copy = config.stash[TIMINGS], config.stash.get(COPY, None)
    if not timings or copy is None:
        return
    write = terminalreporter.write_line
    terminalreporter.section("cscl_fast")
    place = environment()
    write(
        f"{place['processor']}, {place['threads']} threads, {place['instruction_set']}, "
        f"PyTorch {place['torch']}; copies {copy / 1e9:.1f} GB/s"
    )
    for operator, group in dict.fromkeys((t.operator, t.group) for t in timings):
        members = [t for t in timings if (t.operator, t.group) == (operator, group)]
        ours = next((t for t in members if t.contender == OURS), None)
        write("")
        write(f"{operator} {group}: {members[0].bytes / 1e6:.1f} MB must move")
        write(
            f"  {'contender':24}  {'median ms':>10} {'fastest ms':>10}  {'ratio':>7}  of copy"
            f"  {'peak MB':>8}  {'10^9 values/s':>13}"
        )
        for t in members:
            ratio = f"{t.median / ours.median:.1f}" if ours is not None else "-"
            share = t.bytes / t.fastest / copy
            peak = "-" if t.peak_extra_bytes is None else f"{t.peak_extra_bytes / 1e6:.1f}"
            speed = "-" if t.values is None else f"{t.values / t.fastest / 1e9:.2f}"
            write(
                f"  {t.contender:24}  {t.median * 1e3:10.3f} {t.fastest * 1e3:10.3f}  {ratio:>7}"
                f"  {share:7.1%}  {peak:>8}  {speed:>13}"
            )
    if config.getoption("--save-results"):
        save(timings, copy, write)


def save(timings: list[Timing], copy: float, write: Callable[[str], None]) -> None:
    """One file for each operator."""
    RESULTS.mkdir(exist_ok=True)
    for operator in dict.fromkeys(t.operator for t in timings):
        content = {
            "operator": operator,
            "environment": environment(),
            "copy_bytes_per_second": copy,
            "timings": [asdict(t) for t in timings if t.operator == operator],
        }
        path = RESULTS / f"{operator}.json"
        path.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
        write(f"stored {path.relative_to(RESULTS.parent.parent)}")
