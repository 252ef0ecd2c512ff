"""The numbers of the paper's three tables, to stand beside a run's own.

for row in published.table("gta5-cityscapes"):
    print(row.name, row.miou, row.read_from)

The data is `tables.yaml`, with the source of each number. What could not be read in a source is
None here and "–" in a table; nothing is computed or guessed.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

import yaml

from cscl_fast.config import Part

SOURCE_ONLY = "source only"
FULL = "CSCL"
# The ablations by the paper's names: TC, critical transfer; CG, confidence-guided pseudo-labels;
# SD, symmetric soft divergence.
WITHOUT: dict[str, tuple[Part, ...]] = {
    "w/o TC": ("transfer",),
    "w/o CG": ("pseudo-labels",),
    "w/o SD": ("divergence",),
    FULL: (),
}
# Presets on other data than the paper's are shown this table, which is then no comparison.
NEAREST = "gta5-cityscapes"


@dataclass(frozen=True)
class PublishedRow:
    """One row of a table of the paper."""

    name: str  # "source only", "w/o TC", "w/o CG", "w/o SD", "CSCL"
    network: str  # "resnet101" or "vgg16"
    without: tuple[Part, ...] | None  # what `--without` leaves out; None: no adaptation at all
    miou: float | None  # percent
    iou: dict[str, float | None]  # class → percent
    read_from: str | None  # title of the source; None: no number in this row


@dataclass(frozen=True)
class PublishedTable:
    """One of the paper's tables, for one network."""

    title: str
    paper: str
    comparable: bool  # False: the preset's data is not the paper's
    rows: list[PublishedRow]


def table(preset: str, network: str = "resnet101") -> list[PublishedRow]:
    """The rows of the paper's table for a preset: source only, three ablations, CSCL.

    Args:
        preset: name of a preset; one with other data than the paper's gets GTA5 → Cityscapes.
        network: "resnet101" or "vgg16", or any architecture of this package: what is neither is
            shown ResNet-101's rows.
    """
    return described(preset, network).rows


def described(preset: str, network: str = "resnet101") -> PublishedTable:
    """`table` with its title, and whether the preset's numbers may be compared with it."""
    content = _content()
    preset = preset.removesuffix("-vgg16")  # the same table; the network has its rows in it
    known = preset in content["tables"]
    entry = content["tables"][preset if known else NEAREST]
    wanted = "vgg16" if "vgg16" in network else "resnet101"
    rows = [_row(r, entry, content) for r in entry["rows"] if r["network"] == wanted]
    comparable = known and wanted in network
    return PublishedTable(
        title=f"{entry['title']}, {'VGG-16' if wanted == 'vgg16' else 'ResNet-101'}",
        paper=content["paper"],
        comparable=comparable,
        rows=rows,
    )


def _row(row: dict[str, Any], entry: dict[str, Any], content: dict[str, Any]) -> PublishedRow:
    values = row.get("iou") or [None] * len(entry["classes"])
    return PublishedRow(
        name=row["row"],
        network=row["network"],
        without=WITHOUT.get(row["row"]),
        miou=row["miou"],
        iou=dict(zip(entry["classes"], values, strict=True)),
        read_from=content["sources"][row["from"]]["title"] if "from" in row else None,
    )


@cache
def _content() -> dict[str, Any]:
    text = files(__name__).joinpath("tables.yaml").read_text(encoding="utf-8")
    content: dict[str, Any] = yaml.safe_load(text)
    return content
