"""How long each operator would take if the GPU reached its limits: a calculation, no measurement.

Three times for each case: of the bytes that must move, of the instructions that must issue, and of
the launches. The prediction is the longer of the first two, and the launches added.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any, NamedTuple


class Card(NamedTuple):
    """What a data sheet promises."""

    name: str
    bytes_per_second: float
    multiply_adds_per_second: float  # half of the FLOP/s; no tensor cores
    architecture: str  # whose machine code it runs, of those that are built

    def matches(self, gpu: str) -> bool:
        """Whether a driver's name for a GPU means this one, not a slower namesake."""
        words = gpu.split()
        return self.name.split()[-1] in words and not {"PCIe", "NVL", "D", "Laptop"} & set(words)


CARDS = (
    Card("H100", 3.35e12, 33.5e12, "90"),
    Card("H200", 4.8e12, 33.5e12, "90"),
    Card("RTX 4090", 1.008e12, 41.3e12, "80"),
)
# Assumptions.
REACHABLE = 0.9  # of the bytes per second
LAUNCH_STREAM = 2.5e-6  # seconds from one small kernel of a stream to the next
LAUNCH_GRAPH = 1e-6  # the same in a CUDA graph
# A multiprocessor issues to 128 lanes a cycle, and does 16 exponentials, logarithms or reciprocals.
SPECIAL_COST = 8

CLASSES = 19
CHANNELS = 2048
SMALL, LARGE = 65 * 129, 512 * 1024
SIZES = {"float32": 4, "bfloat16": 2}
BATCHES = (1, 8)
OWN, UP, SMALL_CASE = "512x1024", "65x129 to 512x1024", "65x129"


class Case(NamedTuple):
    """One call of an operator, or its backward pass.

    The bytes of one image are `elements` of the tensors' type and `bytes_` of other types. The
    instructions are those of `kernel`, for each class of a pixel, or, where there is no such
    kernel, `instructions` for each element.
    """

    operator: str
    case: str
    launches: int
    pixels: int  # of an image; features: their elements
    elements: int
    bytes_: int
    kernel: dict[str, str] = {}  # noqa: RUF012 - never changed
    instructions: float = 0.0

    def bytes_to_move(self, dtype: str, batch: int) -> int:
        return batch * (SIZES[dtype] * self.elements + self.bytes_)


def _walk(kernel: str, body: str, **rest: str) -> dict[str, str]:
    return {"kernel": kernel, "classes": "19", "body": body, **rest}


OWN_LABELS = {"rule": "power", "labels": "own"}
K, C = CLASSES, CHANNELS
FEATURES = C * SMALL
# Per element of the features, by hand: a multiply-add, an eighth of the shuffles and of what the
# loop over locations costs otherwise.
SUM_INSTRUCTIONS, WRITE_INSTRUCTIONS = 3.0, 2.5

CASES = (
    Case("soft_pseudo_labels", OWN, 1, LARGE, 2 * K * LARGE, 8 * LARGE,
         _walk("walk_planes", "label", rule="power")),
    Case("soft_pseudo_labels", UP, 1, LARGE, K * (SMALL + LARGE), 8 * LARGE,
         _walk("walk_upsampled", "label", rule="power")),
    Case("pseudo_label_loss", f"{UP}, with gradient", 2, LARGE, K * SMALL, 4 * K * SMALL,
         _walk("walk_upsampled", "selftraining", kind="value and gradient", **OWN_LABELS)),
    Case("pseudo_label_loss", f"{OWN}, forward", 2, LARGE, K * LARGE, 0,
         _walk("walk_planes", "selftraining", kind="value", **OWN_LABELS)),
    Case("pseudo_label_loss", f"{OWN}, backward", 1, LARGE, 2 * K * LARGE, 0,
         _walk("walk_planes", "selftraining", kind="gradient", **OWN_LABELS)),
    Case("upsampled_cross_entropy", f"{UP}, with gradient", 2, LARGE, K * SMALL,
         4 * K * SMALL + 8 * LARGE,
         _walk("walk_upsampled", "crossentropy", kind="value and gradient")),
    Case("upsampled_cross_entropy", f"{OWN}, forward", 2, LARGE, K * LARGE, 8 * LARGE,
         _walk("walk_planes", "crossentropy", kind="value")),
    Case("upsampled_cross_entropy", f"{OWN}, backward", 1, LARGE, 2 * K * LARGE, 8 * LARGE,
         _walk("walk_planes", "crossentropy", kind="gradient")),
    Case("ClassThresholds.update", OWN, 1, LARGE, K * LARGE, 0,
         _walk("walk_planes", "counting")),
    Case("ClassThresholds.update", UP, 1, LARGE, K * SMALL, 0,
         _walk("walk_upsampled", "counting")),
    Case("class_thresholds", OWN, 4, LARGE, K * LARGE, 5 * LARGE + 2 * 5 * LARGE,
         _walk("walk_planes", "ranking")),
    Case("class_thresholds", UP, 4, LARGE, K * SMALL, 5 * LARGE + 2 * 5 * LARGE,
         _walk("walk_upsampled", "ranking")),
    Case("class_centroids", f"{C} channels, {SMALL_CASE}, forward", 3, FEATURES, FEATURES,
         8 * SMALL, instructions=SUM_INSTRUCTIONS),
    Case("class_centroids", f"{C} channels, {SMALL_CASE}, backward", 1, FEATURES, FEATURES,
         8 * SMALL, instructions=WRITE_INSTRUCTIONS),
    Case("symmetric_soft_divergence", f"2 x {C} channels, {SMALL_CASE}, forward", 3,
         2 * FEATURES, 2 * FEATURES, (8 + 4 * K) * SMALL, instructions=SUM_INSTRUCTIONS),
    Case("symmetric_soft_divergence", f"2 x {C} channels, {SMALL_CASE}, backward", 2,
         2 * FEATURES, 2 * FEATURES, 2 * 8 * SMALL, instructions=WRITE_INSTRUCTIONS),
    Case("transfer_reward", SMALL_CASE, 1, SMALL, 2 * K * SMALL, 13 * SMALL,
         _walk("walk_pixels", "reward")),
    Case("transfer_reward", OWN, 1, LARGE, 2 * K * LARGE, 13 * LARGE,
         _walk("walk_planes", "reward")),
)  # fmt: skip


def find_kernel(case: Case, kernels: Sequence[dict[str, Any]]) -> dict[str, Any] | None:
    """The kernel that does a case's work; None: it is counted by hand."""
    if not case.kernel:
        return None
    found = [k for k in kernels if all(k.get(key) == v for key, v in case.kernel.items())]
    if len(found) != 1:
        raise ValueError(
            f"{case.operator} {case.case}: {len(found)} kernels are {case.kernel}; "
            "mend CASES in benchmarks/gpu_roofline.py"
        )
    return found[0]


class Count(NamedTuple):
    """Instructions for a class of a pixel, or for an element of the features."""

    all: float
    arithmetic: float
    special: float


def instructions_of(
    case: Case, kernels: Sequence[dict[str, Any]], architecture: str
) -> Count | None:
    """By the longest way through the kernel's loop; None: not built for this architecture."""
    kernel = find_kernel(case, kernels)
    if kernel is None:
        return Count(case.instructions, 1.0, 0.0)
    facts = kernel["architectures"].get(architecture)
    if facts is None:
        return None
    each = CLASSES * int(kernel.get("pack", 1))
    return Count(
        *(
            facts.get(key, 0) / each
            for key in ("loop_instructions", "loop_arithmetic", "loop_special")
        )
    )


def predict(
    case: Case, card: Card, dtype: str, batch: int, kernels: Sequence[dict[str, Any]]
) -> dict[str, Any] | None:
    """Microseconds; None: the card's architecture is not in the build."""
    count = instructions_of(case, kernels, card.architecture)
    if count is None:
        return None
    values = batch * case.pixels * (CLASSES if case.kernel else 1)
    memory = case.bytes_to_move(dtype, batch) / (REACHABLE * card.bytes_per_second)
    issue = max(count.all, SPECIAL_COST * count.special) * values / card.multiply_adds_per_second
    work = max(memory, issue)
    graph, stream = work + case.launches * LAUNCH_GRAPH, work + case.launches * LAUNCH_STREAM
    limits = {"memory": memory, "instructions": issue, "launches": case.launches * LAUNCH_GRAPH}
    return {
        **{key: round(value * 1e6, 2) for key, value in limits.items()},
        "graph": round(graph * 1e6, 2),
        "stream": round(stream * 1e6, 2),
        "limit": max(limits, key=lambda key: limits[key]),
    }


def roofline(kernels: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """Every case, type and batch on every card, as it is stored."""
    found = []
    for case in CASES:
        for dtype in SIZES:
            for batch in BATCHES:
                cards = {card.name: predict(case, card, dtype, batch, kernels) for card in CARDS}
                found.append(
                    {
                        "operator": case.operator,
                        "case": case.case,
                        "dtype": dtype,
                        "batch": batch,
                        "bytes": case.bytes_to_move(dtype, batch),
                        "launches": case.launches,
                        "microseconds": {k: v for k, v in cards.items() if v is not None},
                    }
                )
    return found


# ---- measured times -----------------------------------------------------------------------------

MEASURED_KEYS = {"operator", "case", "dtype", "batch", "milliseconds", "gpu"}
Key = tuple[str, str, str, int]


def measured(results: Path, stored: str = "gpu_code.json") -> dict[Key, dict[str, float]]:
    """Milliseconds by case and card, from the files gpu_*.json but the one that this tool stores.

    Such a file is {"kernels": [{"operator", "case", "dtype", "batch", "milliseconds", "gpu"}]},
    with the names of CASES. Of several times for one case the shortest counts.

    Raises:
        ValueError: a file has something else in it.
    """
    known = {(case.operator, case.case) for case in CASES}
    found: dict[Key, dict[str, float]] = {}
    for path in sorted(results.glob("gpu_*.json")):
        if path.name == stored:
            continue
        for row in json.loads(path.read_text(encoding="utf-8"))["kernels"]:
            if missing := MEASURED_KEYS - set(row):
                raise ValueError(f"{path.name}: a row lacks {sorted(missing)}")
            if (row["operator"], row["case"]) not in known:
                raise ValueError(
                    f"{path.name}: there is no case {row['operator']!r} {row['case']!r}; "
                    "CASES in benchmarks/gpu_roofline.py has them"
                )
            card = next((c.name for c in CARDS if c.matches(row["gpu"])), row["gpu"])
            key = (row["operator"], row["case"], row["dtype"], row["batch"])
            times = found.setdefault(key, {})
            times[card] = min(row["milliseconds"], times.get(card, float("inf")))
    return found
