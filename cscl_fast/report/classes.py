"""IoU by class: the columns of every kind, the paper's beside them; and the classes' colours."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path

from cscl_fast import published
from cscl_fast.data import CITYSCAPES_19
from cscl_fast.data.classes import Color
from cscl_fast.report.comparison import Comparison, Kind
from cscl_fast.report.records import class_colors
from cscl_fast.scenes import SCENE_CLASS_COLORS, SCENE_CLASS_NAMES
from cscl_fast.studies.spread import Spread, spread
from cscl_fast.trainer.rows import ADAPTED, AVERAGED, SOURCE_ONLY, TARGET_STATISTICS

PUBLISHED = ("gta5", "cityscapes", "synthia", "nthu")  # one list of colours for all of them


@dataclass
class Column:
    """One column of the table: a score by class."""

    title: str
    values: dict[str, Spread] = field(default_factory=dict)  # mIoU, mIoU* and classes, percent
    paper: bool = False


def columns(comparison: Comparison) -> list[Column]:
    """Source only with both statistics, then the last CSCL of every kind; gains are not here."""
    main = comparison.main
    keys = ["mIoU", "mIoU*", *comparison.classes]

    def column(title: str, kind: Kind, row: str) -> Column:
        return Column(title, {key: kind.last(row, key) for key in keys})

    found = [
        column(comparison.source_name(source, row), source, row)
        for source in comparison.sources
        for row in (SOURCE_ONLY, TARGET_STATISTICS)
    ]
    found += [column(kind.title, kind, ADAPTED) for kind in comparison.adapted]
    found.append(column(f"{main.title}, averaged weights", main, AVERAGED))
    return [c for c in found if any(value.n for value in c.values.values())]


@dataclass
class Paper:
    """The paper's numbers for this preset, or why there are none."""

    columns: list[Column] = field(default_factory=list)
    remark: str = ""


def paper(comparison: Comparison) -> Paper:
    """The rows of the paper's table that belong to the rows of this report."""
    run = comparison.shown
    preset = str(run.config.get("preset", "demo"))
    network = str(run.config.get("model.architecture", ""))
    table = published.described(preset, network)
    if not table.comparable:
        return Paper(
            remark=f"No column of the paper: its tables are of other data or networks than preset "
            f"{preset} with {network or 'an unknown network'}, so they are no comparison."
        )
    names = {SOURCE_ONLY, *(published_name(kind) for kind in comparison.kinds)}
    found = []
    for row in table.rows:
        if row.name not in names:
            continue
        values = {name: spread([value]) for name, value in row.iou.items()}
        values["mIoU"] = spread([row.miou])
        if any(value.n for value in values.values()):
            found.append(Column(f"{row.name}, paper", values, paper=True))
    if not found:
        return Paper(remark=f"No number of the paper could be read for {table.title}.")
    steps = "" if run.finished else " This run is not finished."
    return Paper(
        found, f"Paper: {table.paper} {table.title}; other steps, batches and machines.{steps}"
    )


def published_name(kind: Kind) -> str:
    """The paper's name of a kind of run."""
    if kind.source_only:
        return published.SOURCE_ONLY
    for name, without in published.WITHOUT.items():
        if set(without) == set(kind.without):
            return name
    return ""


def colors(comparison: Comparison) -> dict[str, Color]:
    """Class → RGB as the pictures have it; empty where it could only be guessed.

    A run of an earlier version has no `classes.json`. If its data were drawn or published their
    colours are known; those of a `folder` are in its own list, if that can be found for certain.
    """
    run = comparison.shown
    kind, root = run.config.get("source.kind"), Path(str(run.config.get("source.root")))
    found = run.colors
    if not found and kind == "scenes":
        found = dict(zip(SCENE_CLASS_NAMES, SCENE_CLASS_COLORS, strict=True))
    elif not found and kind == "folder" and root.is_absolute():
        found = class_colors(root / "classes.json")
    elif not found and kind in PUBLISHED:
        known = dict(zip(CITYSCAPES_19.names, CITYSCAPES_19.colors, strict=True))
        found = {name: known[name] for name in comparison.classes if name in known}
    return found if list(found) == comparison.classes else {}
