"""What `mkdocs build` does to the pages: the documentation is written to be read in the repository.

The pages at the top of the repository become pages of the site, links to them lead there, links to
source files keep their text only, and the page of the examples shows their code.
"""

from __future__ import annotations

import os
import re
from pathlib import Path, PurePosixPath
from typing import Any

from mkdocs.structure.files import File, Files

ROOT = Path(__file__).resolve().parents[2]
TOP = {name: f"project/{name}" for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")}
FENCE = re.compile(r"(^ *```.*?^ *```)", re.MULTILINE | re.DOTALL)
LINK = re.compile(r"(!?\[(?:[^\[\]]|\[[^\]]*\])*\])\(([^)\s]+)\)")


def on_config(config: Any) -> Any:
    """Every page of results has a place, under its own title, also where mkdocs.yml has none."""
    for section in config.nav:
        if isinstance(section, dict) and "Results" in section:
            listed = str(section["Results"])
            pages = sorted((ROOT / "docs" / "results").glob("*.md"))
            section["Results"] += [f"results/{p.name}" for p in pages if p.name not in listed]
    return config


def on_files(files: Files, config: Any) -> Files:
    for name, uri in TOP.items():
        files.append(File.generated(config, uri, content=(ROOT / name).read_text("utf-8")))
    return files


def on_page_markdown(markdown: str, page: Any, config: Any, files: Files) -> str:
    uri = page.file.src_uri
    at_top = next((name for name, place in TOP.items() if place == uri), None)
    written = PurePosixPath(at_top if at_top is not None else f"docs/{uri}")

    def link(found: re.Match[str]) -> str:
        return _link(found[1], found[2], written, PurePosixPath(uri), files)

    parts = FENCE.split(markdown)
    text = "".join(p if FENCE.fullmatch(p) else LINK.sub(link, p) for p in parts)
    if uri == "examples/README.md":
        for path in sorted((ROOT / "docs" / "examples").glob("*.py")):
            text += f"\n\n## `{path.name}`\n\n```python\n{path.read_text('utf-8')}```\n"
    return text


def _link(text: str, target: str, written: PurePosixPath, uri: PurePosixPath, files: Files) -> str:
    """A link from the file `written` of the repository as one from the page `uri` of the site."""
    place, mark, anchor = target.partition("#")
    if "://" in target or not place:
        return f"{text}({target})"
    goal = os.path.normpath(written.parent / place)  # from the repository's root
    if goal in TOP:
        goal = TOP[goal]
    elif goal.startswith("docs/"):
        goal = goal.removeprefix("docs/")
        if not Path(goal).suffix and files.get_file_from_path(f"{goal}/README.md"):
            goal += "/README.md"
    elif (ROOT / goal).exists():
        return text.removeprefix("!")[1:-1]  # a source file: not on the site
    return f"{text}({os.path.relpath(goal, uri.parent)}{mark}{anchor})"
