"""A strip of tiles is taken apart as it was put together."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image, PngImagePlugin

from cscl_fast.trainer.tiles import Tiles, take_apart


def strip(file: Path, tiles: Tiles) -> None:
    sheet = Image.new("RGB", (3 * (tiles.width + tiles.gap), tiles.top + tiles.height + 5), "white")
    for i, color in enumerate(("red", "lime", "blue")):
        tile = Image.new("RGB", (tiles.width, tiles.height), color)
        sheet.paste(tile, (tiles.left(i), tiles.top))
    sheet.save(file, pnginfo=tiles.entry())


def test_tiles_and_their_titles_come_back(tmp_path: Path) -> None:
    file = tmp_path / "strip.png"
    strip(file, Tiles(("a", "ü <b>", "c"), width=7, height=4, gap=2, top=3))
    found = take_apart(file)
    assert [title for title, _ in found] == ["a", "ü <b>", "c"]
    for (_, tile), color in zip(found, ((255, 0, 0), (0, 255, 0), (0, 0, 255)), strict=True):
        assert tile.size == (7, 4)
        assert tile.getcolors() == [(28, color)]


@pytest.mark.parametrize("entry", [None, "{}", "not JSON", '{"titles": ["a"], "width": 90, '
                                   '"height": 1, "gap": 0, "top": 0}'])  # fmt: skip
def test_a_picture_without_a_usable_entry_is_whole(tmp_path: Path, entry: str | None) -> None:
    information = PngImagePlugin.PngInfo()
    if entry is not None:
        information.add_text("cscl_fast tiles", entry)
    Image.new("RGB", (10, 6)).save(tmp_path / "p.png", pnginfo=information)
    ((title, picture),) = take_apart(tmp_path / "p.png")
    assert title == "" and picture.size == (10, 6)
