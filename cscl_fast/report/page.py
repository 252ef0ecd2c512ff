"""The page: the answer first, then what it rests on."""

from __future__ import annotations

from datetime import datetime, timezone

from cscl_fast import __version__
from cscl_fast.report import answer, background, sections
from cscl_fast.report.comparison import Comparison
from cscl_fast.report.markup import Markup, escape, join, tag
from cscl_fast.report.style import STYLE


def page(comparison: Comparison, title: str | None = None) -> str:
    """The report as one HTML document that refers to nothing outside itself."""
    title = title or default_title(comparison)
    parts = [
        ("scores", "Scores", sections.scores(comparison)),
        ("curves", "Curves", sections.curves(comparison)),
        ("classes", "IoU by class", sections.classes(comparison)),
        ("labels", "Thresholds and kept share", sections.labels(comparison)),
        ("transferability", "Transferability and reward", sections.transferability(comparison)),
        ("panels", "Before and after", sections.panels(comparison)),
        ("time", "Time", background.timing(comparison)),
        ("configuration", "Configuration", background.configuration(comparison)),
        ("environment", "Environment", background.environment(comparison)),
    ]
    first, *more = answer.sentences(comparison)
    header = tag(
        "header",
        tag("h1", title),
        tag("p", first, class_="answer"),
        _numbers(comparison),
        *(tag("p", sentence, class_="said") for sentence in more),
        tag(
            "nav",
            tag("ul", *(tag("li", tag("a", name, href=f"#{key}")) for key, name, _ in parts)),
            aria_label="Sections",
        ),
    )
    body = [tag("section", tag("h2", name), content, id=key) for key, name, content in parts]
    written = datetime.now(timezone.utc).strftime("%Y-%m-%d %H:%M UTC")
    footer = tag("footer", tag("p", f"cscl_fast {__version__}, report written {written}."))
    return _document(title, join([header, tag("main", *body), footer]))


def default_title(comparison: Comparison) -> str:
    """What was run: the preset and the data, how often."""
    main = comparison.main
    presets = sorted(
        {str(run.config["preset"]) for run in comparison.runs if "preset" in run.config}
    )
    several = "s" if len(presets) > 1 else ""
    name = f"CSCL, preset{several} {', '.join(presets)}" if presets else "CSCL"
    if len(comparison.runs) == 1:
        seed = main.runs[0].seed
        return f"{name}, seed {seed}" if seed is not None else name
    return f"{name}, {len(comparison.runs)} runs"


def _numbers(comparison: Comparison) -> Markup:
    boxes = [
        tag(
            "div",
            tag("dt", label),
            tag("dd", value, " ", tag("small", unit), class_="long" if "±" in value else None),
        )
        for label, value, unit in answer.headline(comparison)
    ]
    return tag("dl", *boxes, class_="numbers") if boxes else Markup("")


def _document(title: str, body: Markup) -> str:
    return (
        '<!doctype html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        '<meta name="color-scheme" content="light dark">'
        '<link rel="icon" href="data:,">'
        f"<title>{escape(title)}</title><style>{STYLE}</style></head><body>{body}</body></html>\n"
    )
