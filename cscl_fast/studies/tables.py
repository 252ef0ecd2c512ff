"""The results of a study as text, Markdown, CSV and JSON, with the paper's table beside them."""

from __future__ import annotations

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path
from typing import Any

from cscl_fast import published
from cscl_fast.cli import to_yaml
from cscl_fast.markdown import plain
from cscl_fast.markdown import table as as_markdown
from cscl_fast.studies.plan import Study
from cscl_fast.studies.scores import Row, Weights, keys_of
from cscl_fast.studies.spread import NOTHING

Cells = list[list[str]]
WEIGHTS: tuple[tuple[Weights, str], ...] = (
    ("last", "last checkpoint"),
    ("averaged", "averaged weights"),
)


def write_results(study: Study, rows: list[Row]) -> str:
    """Write `results.txt`, `.md`, `.csv` and `.json` into the study's folder; returns the text."""
    text = results(study, rows)
    (study.folder / "results.txt").write_text(text + "\n", encoding="utf-8")
    markdown = results(study, rows, markdown=True)
    (study.folder / "results.md").write_text(markdown + "\n", encoding="utf-8")
    _write_csv(study.folder / "results.csv", rows)
    content = json.dumps(as_json(study, rows), indent=1, ensure_ascii=False)
    (study.folder / "results.json").write_text(content + "\n", encoding="utf-8")
    return text


def results(study: Study, rows: list[Row], *, markdown: bool = False) -> str:
    """The tables: mIoU beside the paper's, then IoU by class, here and in the paper."""
    paper = the_paper(study)
    first, *more = study.seeds
    over = f"mean ± standard deviation over the seeds {' '.join(map(str, study.seeds))}"
    parts = [
        _titled(
            f"mIoU in percent, {over if more else f'seed {first}'}",
            [["", *(name for _, name in WEIGHTS), f"the paper, {paper.title}"]]
            + [
                [row.title, *(str(row.spread(w)) for w, _ in WEIGHTS), _published(row, paper)]
                for row in rows
            ],
            markdown,
        )
    ]
    incomplete = [
        f"{row.title}: {', '.join(map(str, missing))}"
        for row in rows
        if (missing := [seed for seed in study.seeds if seed not in row.last])
    ]
    if incomplete:
        parts.append("Without the seeds that are not finished: " + "; ".join(incomplete) + ".")
    if not paper.comparable:
        parts.append(
            "The paper's numbers are of other data or another network: they show which rows the "
            "paper compares, and are no measure for these."
        )
    keys = keys_of(rows)
    for weights, name in WEIGHTS:
        shown = [row for row in rows if row.scores(weights) is not None]
        if shown and keys:
            table = [["", *keys]]
            table += [[r.title, *(str(r.spread(weights, k)) for k in keys)] for r in shown]
            parts.append(_titled(f"IoU by class in percent, {name}", table, markdown))
    parts.append(_paper_by_class(paper, markdown))
    return "\n\n".join(part for part in parts if part)


def the_paper(study: Study) -> published.PublishedTable:
    """The paper's table of the study's preset and network."""
    return published.described(study.config.preset, study.config.model.architecture)


def _published(row: Row, paper: published.PublishedTable) -> str:
    """The paper's mIoU of the same row; empty if the paper has none."""
    swept = "=" in row.name  # a value of a sweep, which is not a row of the paper's tables
    if swept or (row.without is None and row.title != published.SOURCE_ONLY):
        return ""
    for other in paper.rows:
        if other.without == row.without:
            return NOTHING if other.miou is None else f"{other.miou:.1f}"
    return ""


def _paper_by_class(paper: published.PublishedTable, markdown: bool) -> str:
    def cell(value: float | None) -> str:
        return NOTHING if value is None else f"{value:.1f}"

    table = [["", "mIoU", *paper.rows[0].iou]]
    table += [[r.name, cell(r.miou), *map(cell, r.iou.values())] for r in paper.rows]
    text = _titled(f"The paper: {paper.title}", table, markdown)
    read = list(dict.fromkeys(row.read_from for row in paper.rows if row.read_from))
    note = f"{NOTHING}: could not be read in a source. {paper.paper}."
    return "\n\n".join([text, note, *(f"Read in: {source}." for source in read)])


def _titled(title: str, cells: Cells, markdown: bool) -> str:
    if markdown:
        return f"**{plain(title)}**\n\n{as_markdown(cells)}"
    widths = [max(len(line[i]) for line in cells) for i in range(len(cells[0]))]
    lines = [
        "  ".join([line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]).rstrip()
        for line in cells
    ]
    return "\n".join([title, *lines])


def _write_csv(path: Path, rows: list[Row]) -> None:
    """A line for each row, kind of weights and seed."""
    keys = keys_of(rows)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["row", "weights", "seed", *keys])
        for row in rows:
            for weights, _ in WEIGHTS:
                for seed, scores in (row.scores(weights) or {}).items():
                    values = [f"{scores[k]:.3f}" if k in scores else "" for k in keys]
                    writer.writerow([row.title, weights, seed, *values])


def as_json(study: Study, rows: list[Row]) -> dict[str, Any]:
    """Everything in the tables, for other programs; null is a value that there is none of."""
    keys = keys_of(rows)

    def entry(row: Row) -> dict[str, Any]:
        values: dict[str, Any] = {
            "title": row.title,
            "runs": row.name,
            "without": None if row.without is None else list(row.without),
        }
        for weights, _ in WEIGHTS:
            scores = row.scores(weights)
            values[weights] = None if scores is None else {
                "seeds": {str(seed): _finite(s) for seed, s in scores.items()},
                "mean": _finite({k: row.spread(weights, k).mean for k in keys}),
                "deviation": _finite({k: row.spread(weights, k).deviation for k in keys}),
            }  # fmt: skip
        return values

    paper = the_paper(study)
    return {
        "preset": study.config.preset,
        "seeds": list(study.seeds),
        "rows": [entry(row) for row in rows],
        "sweeps": [{"key": s.key, "name": s.name, "runs": s.runs} for s in study.sweeps],
        "paper": {**asdict(paper), "rows": [asdict(row) for row in paper.rows]},
        "configuration": to_yaml(study.config),
    }


def _finite(values: dict[str, float]) -> dict[str, float | None]:
    return {k: None if math.isnan(v) else round(v, 3) for k, v in values.items()}
