"""Pictures of a run inside the page: scaled down, recompressed, as data URIs."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path

from PIL import Image

from cscl_fast.report.markup import Markup, escape, join, note, tag
from cscl_fast.trainer.tiles import take_apart

WIDEST = 480  # pixels of a tile
WIDEST_STRIP = 1600  # of a picture that does not say where its tiles are
QUALITY = 80  # of WebP


def data_uri(picture: Image.Image, widest: int = WIDEST) -> str:
    """The picture as `data:image/webp;base64,…`.

    Label maps have few colours and sharp edges: they are smaller, and exact, without loss.
    """
    if picture.width > widest:
        height = max(1, round(picture.height * widest / picture.width))
        few = picture.getcolors(300) is not None
        how = Image.Resampling.NEAREST if few else Image.Resampling.LANCZOS
        picture = picture.resize((widest, height), how)
    written = []
    for options in ({"quality": QUALITY, "method": 4}, {"lossless": True, "method": 4}):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "WEBP", **options)
        written.append(buffer.getvalue())
    return "data:image/webp;base64," + base64.b64encode(min(written, key=len)).decode("ascii")


def gallery(files: Sequence[Path]) -> Markup:
    """One row of tiles for each file, each tile under its title; a torn file is named."""
    rows = []
    for file in files:
        name = file.stem
        try:
            tiles = take_apart(file)
        except (OSError, ValueError, SyntaxError) as error:  # Pillow raises all three
            # By its kind alone: the messages of Pillow name the file with all its folders.
            rows.append(note(f"{file.name} cannot be shown ({type(error).__name__})"))
            continue
        whole = len(tiles) == 1 and not tiles[0][0]
        content = []
        for title, picture in tiles:
            image = tag_image(data_uri(picture, WIDEST_STRIP if whole else WIDEST),
                              f"{name}: {title}" if title else name, picture.size)  # fmt: skip
            caption = tag("figcaption", title) if title else Markup("")
            content.append(tag("figure", caption, image))
        kind = "strip" if whole else "tiles"
        style = None if whole else f"--tiles:{len(tiles)}"
        rows.append(
            tag("div", tag("h4", name), tag("div", *content, class_=kind, style=style),
                class_="example")
        )  # fmt: skip
    return join(rows)


def tag_image(source: str, text: str, size: tuple[int, int]) -> Markup:
    width, height = size
    return Markup(
        f'<img src="{source}" alt="{escape(text)}" width="{width}" height="{height}" '
        f'loading="lazy" decoding="async">'
    )
