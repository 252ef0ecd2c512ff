"""Draws what `gpu_session.sh` measured: the operators, and the training step.

    python benchmarks/gpu_chart.py                                  # docs/images/gpu.png
    python benchmarks/gpu_chart.py --results FOLDER --picture FILE

Drawn from gpu_kernels.json and, if it is there, gpu_step.json. Figures of a rehearsal or made-up
ones ("synthetic": true) say so across the picture, and are never drawn into docs/.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from gpu_support import ROOT, load, result_file

RESULTS = ROOT / "benchmarks" / "results"
DOCS = ROOT / "docs"
BASELINE = "good eager"
COLOURS = {"cuda": "#c77b58", "triton": "#7a5195", "cpu": "#8fa3b5", "torch.compile": "#5fa777"}

Row = dict[str, Any]


class NothingToDraw(ValueError):
    """The results have no pair of an operator and eager PyTorch."""


def milliseconds(rows: dict[str, Row], name: str) -> float:
    """Of the GPU alone where this contender and eager have that: the replay of a graph.

    Else of both the time between events, which holds the host's launches.
    """
    key = "graph_milliseconds"
    both = all(key in rows[contender] for contender in (name, BASELINE))
    found: float = rows[name][key if both else "milliseconds"]
    return found


def ratio(rows: dict[str, Row], name: str) -> float:
    """How many times faster than eager, both timed alike."""
    key = "graph_milliseconds"
    base = rows[BASELINE]
    both = key in base and key in rows[name]
    faster: float = base[key if both else "milliseconds"] / milliseconds(rows, name)
    return faster


def groups(kernels: list[Row]) -> dict[tuple[str, str, str], dict[str, Row]]:
    """The most important cases in the direction of training: contender → row, if eager has one."""
    found: dict[tuple[str, str, str], dict[str, Row]] = {}
    for row in kernels:
        if row["rank"] == 0 and "milliseconds" in row:
            key = (row["operator"], row["case"], row["direction"])
            found.setdefault(key, {})[row["contender"]] = row
    both = {key[:2] for key in found if key[2] != "forward"}
    return {
        key: rows
        for key, rows in found.items()
        if BASELINE in rows and len(rows) > 1 and (key[2] != "forward" or key[:2] not in both)
    }


def time_of(rows: dict[str, Row], name: str) -> str:
    value = milliseconds(rows, name)
    return f"{value:.2f} ms" if value >= 1 else f"{value * 1e3:.0f} µs"


def mark_of(content: Row) -> str | None:
    """What has to stand across the picture."""
    if content.get("synthetic"):
        return "made-up figures"
    return "rehearsal on a CPU" if content.get("dry_run") else None


def speedups(axes: Any, kernels: Row) -> None:
    """Bars: how many times faster than eager PyTorch each contender is."""
    place, ticks, labels = 0.0, [], []
    for (operator, case, _), rows in groups(kernels["kernels"]).items():
        first = place
        for name in (name for name in COLOURS if name in rows):
            faster = ratio(rows, name)
            axes.barh(place, faster, color=COLOURS[name], height=0.9)
            share = rows[name]["share_of_copy"]
            text = f"×{faster:.1f}  {time_of(rows, name)}, {share:.0%} of copy"
            axes.text(faster * 1.05, place, text, va="center", fontsize=7)
            place += 1
        ticks.append((first + place - 1) / 2)
        labels.append(f"{operator}\n{case}: eager {time_of(rows, BASELINE)}")
        place += 0.8
    axes.set_yticks(ticks, labels, fontsize=7)
    axes.set_ylim(place - 0.3, -0.9)
    axes.set_xscale("log")
    axes.set_xlim(left=min(0.8, axes.get_xlim()[0]), right=axes.get_xlim()[1] * 6)
    axes.axvline(1, color="black", linewidth=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"×{value:g}")
    axes.set_xlabel("times faster than the good eager PyTorch")
    here = kernels["machine"]
    axes.set_title(
        f"{kernels['gpu']}, PyTorch {here['torch']}, Triton {here['triton']}; "
        f"copies {kernels['copy_bytes_per_second'] / 1e9:.0f} GB/s",
        fontsize=9,
        loc="left",
    )
    handles = [axes.barh([0], [0], color=colour) for colour in COLOURS.values()]
    shown = {name for rows in groups(kernels["kernels"]).values() for name in rows}
    pairs = [(h, name) for h, name in zip(handles, COLOURS, strict=True) if name in shown]
    axes.legend(*zip(*pairs, strict=True), fontsize=8, loc="lower right")


def steps(axes: Any, step: Row) -> None:
    """Bars: a step with plain PyTorch's operators and with the kernels, the operators dark."""
    for place, row in enumerate(step["steps"]):
        whole = row["step_milliseconds"]
        own = sum(row["operators_milliseconds"].values())
        axes.barh(place, whole, color="#d5dde5", height=0.8)
        axes.barh(place, min(own, whole), color="#3f6f9f", height=0.8)
        axes.text(whole * 1.01, place, f"{whole:.0f} ms, operators {own:.1f} ms", va="center",
                  fontsize=7)  # fmt: skip
    axes.set_yticks(
        range(len(step["steps"])),
        [f"{row['setting']}\n{row['backend']}" for row in step["steps"]],
        fontsize=7,
    )
    axes.invert_yaxis()
    axes.set_xlim(right=axes.get_xlim()[1] * 1.3)
    axes.set_xlabel("milliseconds of a training step; dark: the operators by themselves")


def draw(results: Path, picture: Path) -> None:
    """The picture of the results in a folder.

    Raises:
        NothingToDraw: there are no times of an operator beside those of eager PyTorch.
        ValueError: a rehearsal or made-up figures would go into docs/.
    """
    kernels, step = (load(result_file(results, part)) for part in ("kernels", "step"))
    found = groups(kernels.get("kernels", []))
    if not found:
        raise NothingToDraw(f"{results} has no gpu_kernels.json with times beside eager PyTorch's")
    mark = mark_of(kernels) or (mark_of(step) if step.get("steps") else None)
    if mark and picture.resolve().is_relative_to(DOCS):
        raise ValueError(f"{results} holds {mark}: not for docs/")

    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    heights = [0.17 * sum(len(rows) + 0.8 for rows in found.values()) + 1]
    if step.get("steps"):
        heights.append(0.35 * len(step["steps"]) + 1)
    figure, all_axes = plt.subplots(
        len(heights), figsize=(10, sum(heights)), height_ratios=heights, squeeze=False
    )
    speedups(all_axes[0][0], kernels)
    if step.get("steps"):
        steps(all_axes[1][0], step)
    for (axes,) in all_axes:
        axes.xaxis.grid(True, color="#dddddd")
        axes.set_axisbelow(True)
        for side in ("top", "right", "left"):
            axes.spines[side].set_visible(False)
        axes.tick_params(left=False)
    if mark:
        figure.text(0.5, 0.5, mark.upper(), rotation=30, fontsize=44, color="#cc0000", alpha=0.25,
                    ha="center", va="center")  # fmt: skip
    figure.tight_layout()
    picture.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(picture, dpi=130, metadata={"Software": None})
    plt.close(figure)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--results", type=Path, default=RESULTS)
    parser.add_argument("--picture", type=Path, default=DOCS / "images" / "gpu.png")
    options = parser.parse_args()
    try:
        draw(options.results, options.picture)
    except ValueError as error:
        print(f"gpu_chart.py: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
