"""What must hold of the compiled CUDA kernels, and the exceptions that are known."""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any, NamedTuple

from gpu_binaries import short_name
from gpu_limits import launch_of, resident_blocks

Kernel = Mapping[str, Any]


class Wide(NamedTuple):
    """Kernels that have to move 16 bytes at once, and at how many places of their code."""

    kernels: Mapping[str, str]
    least: Mapping[str, int]
    why: str

    def concerns(self, kernel: Kernel) -> bool:
        return all(kernel.get(key) == value for key, value in self.kernels.items())


def _planes(classes: int) -> Iterator[Wide]:
    name = {"kernel": "walk_planes", "pack": "4", "classes": f"{classes}"}
    if classes == 16:
        name["classes"] = "to 16"
    each = "one for each class: float32, four pixels"
    yield Wide(name, {"load_128": classes}, each)
    for stores in ({"body": "label"}, {"kind": "gradient"}):
        yield Wide({**name, **stores}, {"store_128": classes}, each)


WIDE = (
    *_planes(19),
    *_planes(16),
    Wide(
        {"kernel": "sum_classes", "walk": "rows", "element": "float32", "width": "4"},
        {"load_128": 8, "shared_load_128": 1, "shared_store_128": 1},
        "eight locations are on their way at once; the sums of four channels lie together",
    ),
    Wide(
        {"kernel": "write_rows", "element": "float32", "width": "4"},
        {"load_128": 1, "store_128": 1},
        "slopes read and gradients written, four channels a lane",
    ),
    Wide(
        {"kernel": "write_rows", "element": "bfloat16", "width": "8"},
        {"load_128": 2, "store_128": 1},
        "eight channels a lane",
    ),
    Wide(
        {"kernel": "write_rows", "element": "float16", "width": "8"},
        {"load_128": 2, "store_128": 1},
        "eight channels a lane",
    ),
    Wide({"kernel": "finish_centroids"}, {"load_128": 1}, "the parts of four channels"),
    Wide({"kernel": "compare_classes"}, {"load_128": 1}, "the parts of four channels"),
)


class Division(NamedTuple):
    """Kernels that may divide integers in a loop, and why that costs little."""

    kernels: str  # a regular expression for the short name
    where: tuple[str, ...]  # inner: loops that have no loop inside; outer: loops that have
    why: str


DIVISIONS = (
    Division(
        r"walk_upsampled",
        ("inner",),
        "where an output row lies between the source rows: once for each row of a block's band, "
        "before the walk; with a gradient once for each source column",
    ),
    Division(
        r"walk_p",
        ("outer",),
        "row and column of a pixel whose rows do not follow each other: strided logits only",
    ),
    Division(
        r"finish_gradient",
        ("inner", "outer"),
        "which band and tile an output line belongs to: a few for each source location",
    ),
    Division(
        r"sum_classes",
        ("outer",),
        "where a lane's first location lies: once for up to 512 locations of its warp",
    ),
)


def problems(kernels: Sequence[Kernel]) -> list[str]:
    """Everything that is not as it has to be, one line each."""
    found: list[str] = []
    for kernel in kernels:
        name = f"{kernel['operator']}: {short_name(kernel)}"
        for architecture, facts in kernel["architectures"].items():
            found += [f"{name}, sm_{architecture}: {problem}" for problem in _of(kernel, facts)]
            launch = launch_of(kernel)
            shared = launch.shared + facts.get("shared", 0)
            if resident_blocks(int(architecture), facts["registers"], launch.threads, shared) < 1:
                found.append(
                    f"{name}, sm_{architecture}: a block of {launch.threads} threads with "
                    f"{shared} bytes of shared memory and {facts['registers']} registers a thread "
                    "does not fit"
                )
    for wide in WIDE:
        if not any(wide.concerns(kernel) for kernel in kernels):
            found.append(f"there is no kernel {dict(wide.kernels)}; mend WIDE in gpu_checks.py")
    return found


def _of(kernel: Kernel, facts: Mapping[str, int]) -> Iterator[str]:
    for key, what in (
        ("stack", "bytes of stack"),
        ("local", "bytes of local memory"),
        ("local_memory", "instructions that read or write local memory"),
        ("double", "instructions in double precision"),
    ):
        if facts.get(key, 0) != 0:
            yield f"{facts[key]} {what}; there must be none"
    for wide in WIDE:
        if not wide.concerns(kernel):
            continue
        for key, least in wide.least.items():
            if facts.get(key, 0) < least:
                kind = key.replace("_128", "s of 128 bits").replace("_", " ")
                yield f"{facts.get(key, 0)} {kind}; it needs {least} ({wide.why})"
    for where in ("inner", "outer"):
        count = facts.get(f"{where}_divisions", 0)
        if count and not explained(kernel, where):
            yield (
                f"{count} divisions of integers in its {where} loops; take them out, or say in "
                "DIVISIONS of gpu_checks.py why they may stay"
            )


def explained(kernel: Kernel, where: str) -> Division | None:
    """Why a kernel may divide; None: nobody has said so."""
    for division in DIVISIONS:
        if where in division.where and re.match(division.kernels, short_name(kernel)):
            return division
    return None
