"""Every operator on a GPU: the CUDA and the Triton kernels against PyTorch, eager and compiled.

    python benchmarks/gpu_kernels.py --result gpu_kernels.json --budget 480
    python benchmarks/gpu_kernels.py --result rehearsal.json --dry-run     # tiny, on the CPU

Each contender's answer is checked against the reference in float64 before it is timed; a wrong one
gets a row with what is wrong, and no time. Results are stored case by case, the most important
first; a later call goes on with what the time did not suffice for, on the same GPU with the same
sources. Exit status: 0, 1 if this package was wrong somewhere, 3 if a backend could not be used,
4 if the time did not suffice.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Iterator
from contextlib import nullcontext
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from contests import COMPILED
from gpu_cases import Planned, plan, tiny_plan
from gpu_contests import Contest, Function, contests_of, directions, rivals
from gpu_support import Result
from gpu_timing import Clock

from cscl_fast import backends, use_backend

SMALL_MILLISECONDS = 0.5  # below it the host's launches are a large part: graphs are timed, too


def case_name(planned: Planned) -> str:
    return str(planned.case) if planned.images == 1 else f"{planned.images} x {planned.case}"


def describe(contest: Contest) -> dict[str, Any]:
    """What a row says of its case."""
    planned, case = contest.planned, contest.planned.case
    return {
        "operator": planned.operator,
        "case": case_name(planned),
        "direction": contest.direction,
        "dtype": str(case.dtype).removeprefix("torch."),
        "batch": case.shape[0],
        "channels_last": case.channels_last,
        "rank": planned.rank,
        "bytes": contest.bytes,
    }


def measure(
    clock: Clock, contest: Contest, name: str, function: Function, copy: float
) -> dict[str, Any]:
    """Checks, then times; the row without the description of the case."""
    row: dict[str, Any] = {}
    try:
        contest.check(function())
    except AssertionError as error:
        return {"wrong": str(error).partition("\n")[0]}
    except Exception as error:  # one contender that fails must not end the session
        return {"failed": f"{type(error).__name__}: {error}"[:400]}
    timing = clock.time(function)
    row["milliseconds"] = timing.milliseconds
    row["fastest_milliseconds"] = timing.fastest
    row["warm_milliseconds"] = timing.warm_milliseconds
    row["repetitions"] = timing.repetitions
    row["peak_bytes"] = clock.peak_bytes(function)
    small = timing.milliseconds < SMALL_MILLISECONDS
    if clock.device == "cuda" and small and name not in contest.waits:
        try:
            cold, warm = clock.replay(function)
            row["graph_milliseconds"], row["graph_warm_milliseconds"] = cold, warm
        except RuntimeError as error:
            row["graph_failed"] = str(error).partition("\n")[0][:200]
    best = min(timing.milliseconds, row.get("graph_milliseconds", timing.milliseconds))
    row["share_of_copy"] = contest.bytes / (best / 1e3) / copy
    return row


def told(row: dict[str, Any]) -> str:
    return f"{row['milliseconds']:.4f} ms, {row['share_of_copy']:.0%} of copy"


def contenders(operator: str, ours: list[str], *, compiling: bool) -> list[str]:
    """First this package and eager; compiling in a pass of its own."""
    return [COMPILED] if compiling else [*ours, *rivals(operator)]


def passes(dry_run: bool) -> Iterator[tuple[list[Planned], bool]]:
    """Cases, and whether torch.compile is what is timed: what matters most comes first."""
    if dry_run:
        cases = tiny_plan()
        rewards = [planned for planned in cases if planned.operator == "transfer_reward"]
        yield cases, False
        yield rewards[:1], True  # compiling takes a CPU many seconds
        return
    cases = plan()
    for rank in (0, 1):
        of_rank = [planned for planned in cases if planned.rank == rank]
        yield of_rank, False
        if rank == 0:
            yield of_rank, True


def run(result: Result, clock: Clock, ours: list[str], budget: float, dry_run: bool) -> bool:
    """Measures until the time is over; whether this package was right everywhere."""
    deadline = monotonic() + budget
    copy = clock.copy_bytes_per_second()
    # What is timed stays; what was wrong or failed is tried again.
    rows = [row for row in result.content.get("kernels", []) if "milliseconds" in row]
    result.set(copy_bytes_per_second=copy, method=clock.method, kernels=rows, left_out=[])
    print(f"copies {copy / 1e9:.0f} GB/s, {len(rows)} rows are there", flush=True)
    there = {(row["operator"], row["case"], row["direction"], row["contender"]) for row in rows}
    right = True
    for cases, compiling in passes(dry_run):
        for planned in cases:
            key = (planned.operator, case_name(planned))
            names = contenders(planned.operator, ours, compiling=compiling)
            wanted = {(*key, way, name) for way in directions(planned.operator) for name in names}
            if wanted <= there:
                continue
            if monotonic() > deadline:
                result.add("left_out", {"operator": key[0], "case": key[1], "contenders": names})
                continue
            for contest in contests_of(planned, clock.device):
                for name in names:
                    if (*key, contest.direction, name) not in there:
                        row = one(result, clock, contest, name, name in ours, copy)
                        right = right and not (name in ours and "milliseconds" not in row)
            gc.collect()  # the closures of a contest hold its tensors in cycles
            if clock.device == "cuda":
                torch.cuda.empty_cache()
    return right


def one(
    result: Result, clock: Clock, contest: Contest, name: str, is_ours: bool, copy: float
) -> dict[str, Any]:
    """Measures a contender, stores the row and tells of it."""
    with use_backend(name) if is_ours else nullcontext():
        function = contest.ours if is_ours else contest.others[name]
        row = measure(clock, contest, name, function, copy)
    backend = name if is_ours else None
    about = describe(contest)
    result.add("kernels", {**about, "contender": name, "backend": backend, **row})
    said = row.get("wrong") or row.get("failed") or told(row)
    print(f"{about['operator']} {about['case']} {about['direction']}: {name} {said}", flush=True)
    if "failed" in row:
        clock.synchronize()  # raises if the GPU's context is lost: nothing goes on
    return row


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--result", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds")
    parser.add_argument("--seconds", type=float, default=0.1, help="of one measurement")
    parser.add_argument("--backends", nargs="+", default=["cuda", "triton"])
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
    options = parser.parse_args()
    wanted = ["cpu"] if options.dry_run else options.backends
    missing = {name: why for name in wanted if (why := backends.why_unavailable(name))}
    result = Result(options.result, "kernels", dry_run=options.dry_run, keep=True)
    result.set(missing_backends=missing)
    for name, why in missing.items():
        print(f"{name} is left out: {why}")
    device = "cpu" if options.dry_run else "cuda"
    clock = Clock(device, 0.02 if options.dry_run else options.seconds)
    ours = [name for name in wanted if name not in missing]
    right = run(result, clock, ours, options.budget, options.dry_run)
    left_out = len(result.content["left_out"])
    if left_out:
        print(f"the time did not suffice for {left_out} cases; they are listed as left_out")
    if not right:
        return 1
    return 4 if left_out else 3 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
