"""The fenced blocks of a tutorial, and what the comment before each says is to be done with it.

<!-- run -->                 run by bash, as it stands, from the checkout's root; it has to succeed
<!-- run: exits with N -->   the same, with that exit status
<!-- not run: why -->        shown only
<!-- file: PATH -->          the whole of a file
<!-- edit: PATH -->          a change to a file, as the hunk of a diff

Other blocks (layouts, output) need no comment; `bash` ones do.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
PAGES = [*sorted((ROOT / "docs" / "tutorials").glob("*.md")), ROOT / "docs/examples/README.md"]

BLOCK = re.compile(
    r"(?:^<!-- (?P<job>run|not run|file|edit)(?:: (?P<detail>[^\n]*?))? -->\n)?"
    r"^```(?P<language>\w*)\n(?P<code>.*?)^```$",
    re.MULTILINE | re.DOTALL,
)


@dataclass
class Block:
    job: str | None
    detail: str
    language: str
    code: str

    @property
    def status(self) -> int:
        """The exit status that a block to run ends with."""
        found = re.fullmatch(r"exits with (\d+)", self.detail)
        return int(found[1]) if found else 0


def blocks(page: Path) -> list[Block]:
    return [
        Block(m["job"], m["detail"] or "", m["language"], m["code"])
        for m in BLOCK.finditer(page.read_text("utf-8"))
    ]


def apply_edit(file: Path, hunk: str) -> None:
    """Replace the lines of a hunk that begin with " " or "-" by those with " " or "+"."""
    lines = hunk.splitlines(keepends=True)
    before = "".join(line[1:] for line in lines if line[0] in " -")
    after = "".join(line[1:] for line in lines if line[0] in " +")
    text = file.read_text("utf-8")
    times = text.count(before)
    assert times == 1, f"{file}: these lines are there {times} times:\n{before}"
    file.write_text(text.replace(before, after), "utf-8")
