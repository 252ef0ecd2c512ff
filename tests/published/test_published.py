"""The paper's numbers: complete in form, consistent in themselves, each with its source."""

from __future__ import annotations

from pathlib import Path

import pytest

import cscl_fast
from cscl_fast import published
from cscl_fast.data.classes import published_classes
from cscl_fast.presets import PRESETS

ROWS = ["source only", "w/o TC", "w/o CG", "w/o SD", "CSCL"]
CLASSES = {"gta5-cityscapes": 19, "synthia-cityscapes": 16}


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_has_the_five_rows(name: str) -> None:
    rows = published.table(name)
    assert [row.name for row in rows] == ROWS
    assert [row.without for row in rows] == [
        None, ("transfer",), ("pseudo-labels",), ("divergence",), (),
    ]  # fmt: skip
    known = published.described(name)
    assert known.comparable == (name not in ("demo", "small"))
    count = CLASSES.get(name.removesuffix("-vgg16"), 13 if known.comparable else 19)
    for row in rows:
        assert tuple(row.iou) == published_classes(count).names


@pytest.mark.parametrize("network", ["resnet101", "vgg16"])
@pytest.mark.parametrize("name", PRESETS)
def test_a_number_has_a_source_and_a_mean_is_that_of_its_classes(name: str, network: str) -> None:
    for row in published.table(name, network):
        values = [v for v in row.iou.values() if v is not None]
        assert (row.read_from is not None) == (row.miou is not None or bool(values))
        assert all(0 <= v <= 100 for v in values)
        if len(values) == len(row.iou):
            # Each class is rounded to a tenth, and so is the mean: 0.05 + 0.05.
            assert row.miou == pytest.approx(sum(values) / len(values), abs=0.1)


def test_the_numbers_that_were_read() -> None:
    gta = {row.name: row for row in published.table("gta5-cityscapes")}
    assert [gta[name].miou for name in ROWS] == [36.6, 46.7, 46.1, 47.4, 48.6]
    assert gta["CSCL"].iou["road"] == 89.6 and gta["CSCL"].iou["bicycle"] == 33.7
    assert gta["w/o TC"].iou["road"] is None
    vgg = {row.name: row for row in published.table("gta5-cityscapes", "fcn8s-vgg16")}
    assert (vgg["source only"].miou, vgg["CSCL"].miou) == (22.3, 41.4)
    synthia = {row.name: row for row in published.table("synthia-cityscapes")}
    assert synthia["CSCL"].miou == 47.2 and synthia["CSCL"].iou["sky"] == 83.2
    assert synthia["source only"].miou is None and synthia["source only"].read_from is None


def test_another_network_is_shown_the_table_and_not_compared() -> None:
    assert published.described("gta5-cityscapes", "deeplabv2-resnet101").comparable
    small = published.described("gta5-cityscapes", "deeplabv2-resnet18")
    assert not small.comparable and small.rows == published.table("gta5-cityscapes")
    assert published.described("small").title == "GTA5 → Cityscapes, ResNet-101"


def test_the_data_is_shipped_with_the_package() -> None:
    package = Path(cscl_fast.__file__).parent
    line = next(
        line
        for line in (package.parent / "pyproject.toml").read_text().splitlines()
        if line.startswith("cscl_fast = [")
    )
    assert "published/tables.yaml" in line and (package / "published/tables.yaml").is_file()
