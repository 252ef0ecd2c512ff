"""The figure of a swept key: mIoU over its values, the paper's Fig. 3 (c, d)."""

from __future__ import annotations

import csv
import math
from pathlib import Path
from typing import Any

from cscl_fast.studies.plan import Study, Sweep
from cscl_fast.studies.scores import Row
from cscl_fast.studies.tables import WEIGHTS

MANY = 20  # values further apart than by this factor are drawn on a logarithmic axis


def write_figures(study: Study, rows: list[Row]) -> list[Path]:
    """For each swept key with a finished value `sweep-KEY.csv` and `.png`; returns the pictures."""
    by_name = {row.name: row for row in rows}
    source_only = rows[0] if rows else None
    written = []
    for sweep in study.sweeps:
        found = {v: by_name[run] for v, run in sweep.runs.items() if by_name[run].last}
        if found:
            _write_csv(study.folder / f"sweep-{sweep.key}.csv", sweep, found)
            path = study.folder / f"sweep-{sweep.key}.png"
            _draw(path, sweep, found, source_only)
            written.append(path)
    return written


def _write_csv(path: Path, sweep: Sweep, found: dict[str, Row]) -> None:
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        names = [f"{name}{what}" for _, name in WEIGHTS for what in ("", " deviation", " seeds")]
        writer.writerow([sweep.key, *names])
        for value, row in found.items():
            cells: list[object] = [value]
            for weights, _ in WEIGHTS:
                s = row.spread(weights)
                cells += [f"{s.mean:.3f}", "" if math.isnan(s.deviation) else f"{s.deviation:.3f}"]
                cells.append(s.n)
            writer.writerow(cells)


def _draw(path: Path, sweep: Sweep, found: dict[str, Row], source_only: Row | None) -> None:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(5.5, 4), layout="constrained")
    axis = figure.subplots()
    places = _places(axis, list(found))
    order = sorted(range(len(places)), key=places.__getitem__)
    for weights, name in WEIGHTS:
        spreads = [row.spread(weights) for row in found.values()]
        axis.errorbar(
            [places[i] for i in order],
            [spreads[i].mean for i in order],
            yerr=[0 if math.isnan(spreads[i].deviation) else spreads[i].deviation for i in order],
            marker="o", markersize=4, capsize=3, label=name,
        )  # fmt: skip
    if source_only is not None and source_only.last:
        mean = source_only.spread("last").mean
        axis.axhline(mean, color="gray", linestyle="--", label=source_only.title)
    axis.set_xlabel(sweep.key if sweep.name == sweep.key else f"{sweep.name} ({sweep.key})")
    axis.set_ylabel("mIoU (%)")
    axis.legend(fontsize=8)
    FigureCanvasAgg(figure).print_png(str(path))


def _places(axis: Any, values: list[str]) -> list[float]:
    """Where the values stand on the axis: numbers by their size, names one after the other."""
    try:
        numbers = [float(value) for value in values]
    except ValueError:
        axis.set_xticks(range(len(values)), values)
        return [float(i) for i in range(len(values))]
    if min(numbers) > 0 and max(numbers) / min(numbers) > MANY:
        axis.set_xscale("log")
    axis.set_xticks(numbers, [f"{number:g}" for number in numbers])
    axis.minorticks_off()
    return numbers
