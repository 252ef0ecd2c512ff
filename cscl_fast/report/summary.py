"""The report as Markdown: the answer, its tables, and a few compressed pictures beside it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path
from urllib.parse import quote

from PIL import Image

from cscl_fast.markdown import plain as _plain
from cscl_fast.markdown import table as as_markdown
from cscl_fast.report import answer, background, series
from cscl_fast.report import classes as by_class
from cscl_fast.report.comparison import Comparison
from cscl_fast.report.page import default_title
from cscl_fast.report.sections import SCORES_NOTE, left_out
from cscl_fast.report.style import STYLE
from cscl_fast.report.wording import in_words
from cscl_fast.studies.spread import Spread
from cscl_fast.trainer.rows import ADAPTED, SOURCE_ONLY, TARGET_STATISTICS

WIDEST = 1200  # pixels of a picture
QUALITY = 80  # of WebP


def write_summary(comparison: Comparison, file: Path, title: str | None = None) -> list[Path]:
    """Write `file` and the pictures that it shows into NAME-pictures beside it.

    Returns:
        The files written, the Markdown first.

    Raises:
        OSError: a file cannot be written.
    """
    folder = file.with_name(f"{file.stem}-pictures")
    file.parent.mkdir(parents=True, exist_ok=True)
    images = _pictures(comparison, folder)
    main = comparison.main
    after = TARGET_STATISTICS if main.source_only else ADAPTED
    lines = [f"# {_plain(title or default_title(comparison))}", ""]
    for sentence in answer.sentences(comparison):
        lines += [_plain(sentence), ""]
    lines += ["## Scores", "", _table(answer.ANSWER_HEAD, answer.answer_rows(comparison)), ""]
    lines += [" ".join([SCORES_NOTE, *left_out(comparison)]), ""]
    lines += [_picture(folder, path, text) for text, path in images[:1]]
    lines += ["## IoU by class", ""]
    columns = by_class.columns(comparison)
    if columns:
        paper = by_class.paper(comparison)
        shown = [*columns, *paper.columns]
        keys = ["mIoU", "mIoU*", *comparison.classes]
        rows = [
            [key, *(c.values.get(key, Spread(())).text() for c in shown),
             main.gain(SOURCE_ONLY, after, key).text(sign=True)]
            for key in keys
            if any(c.values.get(key, Spread(())).n for c in columns) or key in comparison.classes
        ]  # fmt: skip
        lines += [_table(["", *(c.title for c in shown), "gain"], rows), ""]
        lines += [_plain(paper.remark), ""] if paper.remark else []
    else:
        lines += [answer.no_score(comparison), ""]
    lines += [_picture(folder, path, text) for text, path in images[1:]]
    lines += _configuration(comparison)
    file.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return [file, *(path for _, path in images)]


def _pictures(comparison: Comparison, folder: Path) -> list[tuple[str, Path]]:
    """The curve of scores, the first pictures of the maps and the panels."""
    written: list[tuple[str, Path]] = []
    run = comparison.shown
    svg = re.search(r"<svg.*?</svg>", series.score_chart(comparison), re.DOTALL)
    if svg:
        folder.mkdir(parents=True, exist_ok=True)
        path = folder / "miou.svg"
        path.write_text(_standing_alone(svg.group()), encoding="utf-8")
        written.append(("mIoU in percent over the steps of the adaptation", path))
    source = [p for p in run.transferability if p.stem.startswith("source_")][:1]
    target = [p for p in run.transferability if p.stem.startswith("target_")][:1]
    chosen = [
        *((f"Transferability and reward: {p.stem}", p) for p in (*source, *target)),
        *((f"Before and after: {p.stem}", p) for p in run.panels[:3]),
    ]
    for text, original in chosen:
        kind = original.parent.name
        path = folder / f"{kind}-{original.stem}.webp"
        try:
            with Image.open(original) as opened:
                picture = opened.convert("RGB")
        except (OSError, SyntaxError):  # torn: the page names it
            continue
        if picture.width > WIDEST:
            height = round(picture.height * WIDEST / picture.width)
            picture = picture.resize((WIDEST, height), Image.Resampling.LANCZOS)
        folder.mkdir(parents=True, exist_ok=True)
        picture.save(path, "WEBP", quality=QUALITY, method=5)
        written.append((text, path))
    return written


def _standing_alone(svg: str) -> str:
    """A chart of the page as a file: with the style sheet that the page has around it."""
    opening = (
        '<svg xmlns="http://www.w3.org/2000/svg" width="660" style="background:var(--ground)" '
    )
    return svg.replace("<svg ", opening, 1).replace(">", f"><style>{STYLE}</style>", 1)


def _configuration(comparison: Comparison) -> list[str]:
    run = comparison.shown
    differences = background.from_preset(run)
    preset = run.config.get("preset", "demo")
    lines = ["## Configuration", ""]
    lines += [f"Preset `{preset}`; run {_plain(run.name)}."]
    if differences:
        rows = [[f"`{key}`", in_words(mine), in_words(usual)] for key, mine, usual in differences]
        lines += ["", _table(("what differs", "this run", f"preset {preset}"), rows)]
    if run.environment:
        named = ("cscl_fast", "torch", "processor", "gpu", "threads")
        said = ", ".join(f"{k} {v}" for k, v in run.environment.items() if k in named)
        lines += ["", _plain(f"Environment: {said}.")]
    return [*lines, ""]


def _picture(folder: Path, path: Path, text: str) -> str:
    return f"![{_plain(text)}]({quote(folder.name)}/{quote(path.name)})\n"


def _table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table; columns in which no row has a value are left out."""
    used = [i for i in range(len(head)) if i == 0 or any(row[i] not in ("", "–") for row in rows)]
    return as_markdown([[line[i] for i in used] for line in (head, *rows)])
