"""The tables of docs/kernels/gpu.md, from what is stored and what was measured."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

from gpu_binaries import short_name
from gpu_checks import DIVISIONS, WIDE, explained
from gpu_limits import DEVICES, launch_of, resident_warps
from gpu_roofline import CARDS, CASES, Key, instructions_of

Report = Mapping[str, Any]
Measured = Mapping[Key, Mapping[str, float]]


def with_blocks(text: str, blocks: Mapping[str, str]) -> str:
    """The page with each block between its two comments."""
    for name, content in blocks.items():
        begin, end = f"<!-- {name}: python benchmarks/gpu_report.py -->", f"<!-- /{name} -->"
        before, found, rest = text.partition(begin)
        _, closed, after = rest.partition(end)
        if not found or not closed:
            raise ValueError(f"the page has no {begin} … {end}")
        text = f"{before}{begin}\n{content}\n{end}{after}"
    return text


def table(heads: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> str:
    """Markdown; the first `left` columns hold words, the others figures."""
    lines = ["| " + " | ".join(heads) + " |", "|---" * left + "|---:" * (len(heads) - left) + "|"]
    return "\n".join([*lines, *("| " + " | ".join(row) + " |" for row in rows)])


def span(values: Iterable[int | float], form: str = "{}") -> str:
    """`12` or `12–16`."""
    found = sorted(set(values))
    ends = [form.format(value) for value in found[:: max(len(found) - 1, 1)]]
    return "–".join(dict.fromkeys(ends))


def warps(kernel: Mapping[str, Any], architecture: str) -> int:
    facts, launch = kernel["architectures"][architecture], launch_of(kernel)
    shared = launch.shared + facts.get("shared", 0)
    return resident_warps(int(architecture), facts["registers"], launch.threads, shared)


def kibibytes(count: int) -> str:
    return "–" if count == 0 else f"{count / 1024:.1f}"


# ---- registers and occupancy --------------------------------------------------------------------


def is_main(kernel: Mapping[str, Any]) -> bool:
    """Of those with one kernel for each number of classes: the one for 19."""
    return kernel.get("classes", "19") == "19" and kernel.get("rule") != "exponential"


def resources(report: Report, _: Measured) -> str:
    """A table for each source file, and one that sums up the other numbers of classes."""
    architectures = report["architectures"]
    places = [f"{int(a) / 10:.1f}" for a in architectures]
    heads = ["threads", "KiB shared", *(f"{p}: registers, warps" for p in places)]
    parts = []
    for operator in dict.fromkeys(kernel["operator"] for kernel in report["kernels"]):
        rows = []
        for kernel in report["kernels"]:
            if kernel["operator"] != operator or not is_main(kernel):
                continue
            launch = launch_of(kernel)
            figures = [f"{registers(kernel, a)}, {warps(kernel, a)}" for a in architectures]
            name = short_name(kernel).replace(", 19 classes", "")
            rows.append([name, f"{launch.threads}", kibibytes(launch.shared), *figures])
        if rows:
            parts.append(table([f"`{operator}.cu`", *heads], rows))
    parts.append("The kernels for other numbers of classes, and for a γ that is no power of ½:")
    groups: dict[str, list[Mapping[str, Any]]] = {}
    for kernel in report["kernels"]:
        if not is_main(kernel):
            rule = ", exponential" if kernel.get("rule") == "exponential" else ""
            name = f"{kernel['kernel']}, {kernel['classes']} classes{rule}"
            groups.setdefault(name, []).append(kernel)
    rows = [
        [
            name,
            f"{len(kernels)}",
            *(
                f"{span(registers(k, a) for k in kernels)}, {span(warps(k, a) for k in kernels)}"
                for a in architectures
            ),
        ]
        for name, kernels in sorted(groups.items())
    ]
    parts.append(table(["", "kernels", *(f"{p}: registers, warps" for p in places)], rows))
    most = ", ".join(
        f"{DEVICES[int(a)].warps} on {p}" for a, p in zip(architectures, places, strict=True)
    )
    spills = sum(
        facts.get("stack", 0) + facts.get("local", 0) > 0
        for kernel in report["kernels"]
        for facts in kernel["architectures"].values()
    )
    parts.append(
        f"{len(report['kernels'])} kernels, nvcc {report['nvcc']}, {report['date']}. Registers of "
        f"a thread; warps that a multiprocessor holds at once, of {most}. Machine code with "
        f"stack or local memory: {spills or 'none'}."
    )
    return "\n\n".join(parts)


def registers(kernel: Mapping[str, Any], architecture: str) -> int:
    found: int = kernel["architectures"][architecture]["registers"]
    return found


# ---- instructions -------------------------------------------------------------------------------


def instructions(report: Report, _: Measured) -> str:
    """Wide loads and stores, arithmetic of the main loops, what is not there, what is excepted."""
    kernels, architectures = report["kernels"], report["architectures"]

    def figure(kernel: Mapping[str, Any], key: str) -> str:
        return span(kernel["architectures"][a].get(key, 0) for a in architectures)

    rows = [
        [
            f"`{kernel['operator']}`",
            short_name(kernel),
            *(figure(kernel, f"{key}_128") for key in ("load", "store")),
            *(figure(kernel, f"shared_{key}_128") for key in ("load", "store")),
        ]
        for kernel in kernels
        if any(wide.concerns(kernel) for wide in WIDE) and kernel.get("rule") != "exponential"
    ]
    heads = ["", "kernel", "loads", "stores", "shared loads", "shared stores"]
    parts = ["Instructions that move 16 bytes at once:", table(heads, rows, left=2)]

    rows = []
    for case in CASES:
        if not case.kernel:
            continue
        counts = [instructions_of(case, kernels, a) for a in architectures]
        cells = [f"{c.all:.0f}, {c.arithmetic:.0f}" if c is not None else "–" for c in counts]
        rows.append([f"`{case.operator}`", case.case, *cells])
    heads = ["", "case", *(f"{int(a) / 10:.1f}" for a in architectures)]
    parts += [
        "One round of the main loop, for each class of a pixel, by the longest way through it: all "
        "instructions, those of them that are arithmetic of floats:",
        table(heads, rows, left=2),
    ]
    absent = ("double", "local_memory")
    counts_of = {
        key: sum(facts.get(key, 0) for k in kernels for facts in k["architectures"].values())
        for key in absent
    }
    parts.append(
        f"In double precision: {counts_of['double'] or 'no instruction'}. "
        f"Of local memory: {counts_of['local_memory'] or 'no instruction'}."
    )
    parts += [
        "Divisions of integers in loops:",
        table(["", "kernels", "why"], divisions(kernels), 3),
    ]
    return "\n\n".join(parts)


def divisions(kernels: Sequence[Mapping[str, Any]]) -> list[list[str]]:
    rows = []
    for division in DIVISIONS:
        found = [
            kernel
            for kernel in kernels
            if any(
                facts.get(f"{where}_divisions", 0) > 0 and explained(kernel, where) == division
                for facts in kernel["architectures"].values()
                for where in division.where
            )
        ]
        if found:
            names = dict.fromkeys(f"`{kernel['kernel']}`" for kernel in found)
            rows.append([", ".join(names), f"{len(found)}", division.why])
    return rows


# ---- the roofline -------------------------------------------------------------------------------


def microseconds(value: float) -> str:
    return f"{value:.0f}" if value >= 100 else f"{value:.1f}"


def predictions(report: Report, times: Measured) -> str:
    """A table for each operator."""
    heads = ["type", "batch", "MB", "launches"]
    for card in CARDS:
        heads += [f"{card.name}, µs", "limit", "in a stream"]
    heads.append("measured, ms")
    parts = []
    for operator in dict.fromkeys(row["operator"] for row in report["roofline"]):
        rows = []
        for row in report["roofline"]:
            if row["operator"] != operator:
                continue
            cells = [row["case"], row["dtype"], f"{row['batch']}", f"{row['bytes'] / 1e6:.1f}"]
            cells.append(f"{row['launches']}")
            for card in CARDS:
                found = row["microseconds"].get(card.name)
                if found is None:
                    cells += ["–"] * 3
                    continue
                cells += [microseconds(found["graph"]), found["limit"]]
                cells.append(microseconds(found["stream"]))
            key: Key = (row["operator"], row["case"], row["dtype"], row["batch"])
            cells.append(taken(times.get(key, {})))
            rows.append(cells)
        parts.append(table([f"`{operator}`", *heads], rows, left=2))
    return "\n\n".join(parts)


def taken(times: Mapping[str, float]) -> str:
    found = [f"{time:.3f} ({card})" for card, time in sorted(times.items())]
    return ", ".join(found) or "not measured yet"


BLOCKS: dict[str, Callable[[Report, Measured], str]] = {
    "resources": resources,
    "instructions": instructions,
    "roofline": predictions,
}
