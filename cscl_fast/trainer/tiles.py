"""Pictures made of tiles beside each other, which can be taken apart again.

A strip that is one file is easy to look at; a report that lays its tiles out anew on a small
screen needs to know where they are. So the PNG says it, in a text entry that viewers ignore.
"""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass
from pathlib import Path

from PIL import Image, PngImagePlugin

_ENTRY = "cscl_fast tiles"


@dataclass(frozen=True)
class Tiles:
    """Where the tiles of a strip are, in pixels."""

    titles: tuple[str, ...]
    width: int
    height: int
    gap: int
    top: int  # above the tiles: the captions

    def left(self, index: int) -> int:
        return index * (self.width + self.gap)

    def entry(self) -> PngImagePlugin.PngInfo:
        """What `Image.save(…, pnginfo=…)` writes into the file."""
        information = PngImagePlugin.PngInfo()
        information.add_text(_ENTRY, json.dumps(asdict(self)))
        return information


def take_apart(file: Path) -> list[tuple[str, Image.Image]]:
    """The tiles of a strip with their titles; the whole picture under "" if it does not say.

    Raises:
        OSError: the file is missing or no picture.
    """
    with Image.open(file) as opened:
        picture = opened.convert("RGB")
        entry = opened.info.get(_ENTRY)
    try:
        tiles = Tiles(**json.loads(entry or "null"))
        boxes = [
            (tiles.left(i), tiles.top, tiles.left(i) + tiles.width, tiles.top + tiles.height)
            for i in range(len(tiles.titles))
        ]
        if not boxes or boxes[-1][2] > picture.width or boxes[-1][3] > picture.height:
            raise ValueError("the tiles do not lie in the picture")
    except (TypeError, ValueError):  # no entry, or one of another program
        return [("", picture)]
    return [(title, picture.crop(box)) for title, box in zip(tiles.titles, boxes, strict=True)]
