"""Text and tables of a run or a study as Markdown."""

from __future__ import annotations

import re
from collections.abc import Sequence


def plain(text: object) -> str:
    """Text without what Markdown would read as markup, on one line."""
    line = " ".join(str(text).split())
    return re.sub(r"([|<>*_\[\]])", r"\\\1", line) if "`" not in line else line.replace("|", r"\|")


def table(cells: Sequence[Sequence[str]]) -> str:
    """A table whose first row is its head; numbers stand at the right."""
    rule = ["---"] + ["---:"] * (len(cells[0]) - 1)
    head, *rows = [[plain(cell) for cell in line] for line in cells]
    return "\n".join("| " + " | ".join(line) + " |" for line in (head, rule, *rows))
