"""HTML in small pieces: everything that comes from a run is escaped here."""

from __future__ import annotations

import html
from collections.abc import Iterable, Sequence


class Markup(str):
    """Text that is HTML already."""

    __slots__ = ()


def escape(text: object) -> Markup:
    """Text as HTML; what is Markup stays as it is."""
    return text if isinstance(text, Markup) else Markup(html.escape(str(text), quote=True))


def tag(name: str, *content: object, **attributes: object) -> Markup:
    """`tag("p", "a < b", class_="note")`; underscores become hyphens, None leaves one out."""
    written = "".join(
        f' {key.rstrip("_").replace("_", "-")}="{escape(value)}"'
        for key, value in attributes.items()
        if value is not None
    )
    return Markup(f"<{name}{written}>{join(content)}</{name}>")


def join(parts: Iterable[object], between: str = "") -> Markup:
    return Markup(between.join(escape(part) for part in parts))


def table(
    head: Sequence[object],
    rows: Iterable[Sequence[object]],
    *,
    caption: object = "",
    text_columns: int = 1,
    strong: Iterable[int] = (),
    sticky: bool = False,
    wrap: bool = False,
) -> Markup:
    """A table in a box that scrolls by itself where the page is too narrow.

    Args:
        text_columns: so many columns at the left are text; the others are numbers, aligned right.
        strong: indices of rows that stand out.
        sticky: the first column stays in sight when a narrow page scrolls the table.
        wrap: long values break anywhere.
    """
    strong = set(strong)

    def cells(row: Sequence[object], *, heads: bool) -> Markup:
        written = []
        for i, cell in enumerate(row):
            kind = None if i < text_columns else "number"
            if heads:
                written.append(tag("th", cell, scope="col", class_=kind))
            elif i == 0:
                written.append(tag("th", cell, scope="row"))
            else:
                written.append(tag("td", cell, class_=kind))
        return join(written)

    body = [
        tag("tr", cells(row, heads=False), class_="strong" if i in strong else None)
        for i, row in enumerate(rows)
    ]
    content = [
        tag("thead", tag("tr", cells(head, heads=True))),
        tag("tbody", *body),
    ]
    look = " ".join(["wide", *["sticky"] * sticky, *["wrap"] * wrap])
    name = html.unescape(str(caption)) if caption else "table"
    box = tag("div", tag("table", *content), class_=look, tabindex="0", role="region",
              aria_label=name.partition(".")[0])  # fmt: skip
    return join([tag("p", caption, class_="note caption"), box]) if caption else box


def note(*content: object) -> Markup:
    return tag("p", *content, class_="note")


def figure(title: str, unit: str, *content: object) -> Markup:
    """A picture with a caption above it: what is shown, and its unit."""
    caption = [tag("strong", title)]
    if unit:
        caption.append(tag("span", unit, class_="unit"))
    return tag("figure", tag("figcaption", join(caption, " ")), *content)


def swatch(color: tuple[int, int, int] | None) -> Markup:
    """A small square in a class's colour."""
    if color is None:
        return Markup("")
    return tag("span", class_="swatch", style=f"background:rgb{color}", aria_hidden="true")
