"""Text files are UTF-8 on every machine, whatever its locale says."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

PACKAGE = Path(__file__).resolve().parents[2] / "cscl_fast"
METHODS = ("open", "read_text", "write_text")
OTHERS = {"Image", "os"}  # whose `open` knows no text
BINARY = ("rb", "wb", "ab", "xb")


def without_encoding(source: str) -> Iterator[int]:
    """The lines that open, read or write a text file in the locale's encoding."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        function = node.func
        method = isinstance(function, ast.Attribute)
        name = getattr(function, "attr" if method else "id", "")
        owner = getattr(getattr(function, "value", None), "id", "")
        if name not in (METHODS if method else ("open",)) or owner in OTHERS:
            continue
        values = [a.value for a in node.args if isinstance(a, ast.Constant)]
        binary = name == "open" and any(v in BINARY for v in values)
        if not binary and all(keyword.arg != "encoding" for keyword in node.keywords):
            yield node.lineno


def test_every_text_file_has_its_encoding() -> None:
    example = 'open(a)\nopen(a, "rb")\nb.read_text()\nb.open("w", encoding="utf-8")\nos.open(a)'
    assert list(without_encoding(example)) == [1, 3]
    found = [
        f"{path.relative_to(PACKAGE.parent)}:{line}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for line in without_encoding(path.read_text(encoding="utf-8"))
    ]
    assert not found, f"give encoding= in {', '.join(found)}"
