"""Draws docs/images/benchmarks.png and writes the tables of the README and of docs/kernels/*.md.

    python benchmarks/chart.py            # all, from benchmarks/results/*.json
    python benchmarks/chart.py --check    # fails if a table is not what the files give

The picture is drawn from the same rows as the table, so that neither can say what the other does
not.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any, NamedTuple

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
PICTURE = ROOT / "docs" / "images" / "benchmarks.png"
BEGIN, END = "<!-- benchmarks: python benchmarks/chart.py -->", "<!-- /benchmarks -->"
OURS = "cscl_fast"
# What stands for eager PyTorch, compiled PyTorch and, where there is one, published code.
OTHERS = ("lists and sort", "torch sort", "literal eager", "good eager", "torch.compile")


class Headline(NamedTuple):
    """A group that the README shows, by the names that the results carry."""

    operator: str
    group: str
    label: str


HEADLINES = (
    Headline("soft_pseudo_labels", "[1, 19, 512, 1024] float32", "19×512×1024"),
    Headline("soft_pseudo_labels", "[1, 19, 65, 129] to 512x1024 float32", "65×129 to 512×1024"),
    Headline("pseudo_label_loss", "[1, 19, 65, 129] to 512x1024 float32", "65×129 to 512×1024"),
    Headline(
        "upsampled_cross_entropy", "[1, 19, 65, 129] to 512x1024 float32", "65×129 to 512×1024"
    ),
    Headline("ClassThresholds", "4 x [1, 19, 512, 1024] float32", "4 images 19×512×1024"),
    Headline("class_thresholds", "[1, 19, 512, 1024] float32", "19×512×1024"),
    Headline(
        "class_centroids",
        "[1, 2048, 65, 129] 19 classes float32 channels-last",
        "2048×65×129",
    ),
    Headline(
        "symmetric_soft_divergence",
        "[1, 2048, 65, 129] 19 classes float32 channels-last",
        "2048×65×129, twice",
    ),
    Headline("transfer_reward", "[4, 19, 65, 129] float32", "4×19×65×129"),
)


class Row(NamedTuple):
    """One headline's timings by contender, and the machine's copy bandwidth in that run."""

    headline: Headline
    timings: dict[str, dict[str, Any]]
    copy: float
    environment: dict[str, Any]

    def ratio(self, contender: str) -> float | None:
        """How many times longer than this package; None: not measured."""
        if contender not in self.timings:
            return None
        return self.timings[contender]["median"] / self.timings[OURS]["median"]

    def share(self) -> float:
        """Of the copy bandwidth."""
        ours = self.timings[OURS]
        return ours["bytes"] / ours["median"] / self.copy


def rows(results: Path = RESULTS) -> list[Row]:
    """The headlines that the stored results have."""
    found = []
    for headline in HEADLINES:
        path = results / f"{headline.operator}.json"
        if not path.is_file():
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        timings = {t["contender"]: t for t in content["timings"] if t["group"] == headline.group}
        if OURS in timings:
            copy, place = content["copy_bytes_per_second"], content["environment"]
            found.append(Row(headline, timings, copy, place))
    return found


# ---- the table ----------------------------------------------------------------------------------


def milliseconds(seconds: float) -> str:
    value = seconds * 1e3
    return (
        f"{value:.0f} ms"
        if value >= 100
        else f"{value:.1f} ms"
        if value >= 1
        else f"{value:.2f} ms"
    )


def times(ratio: float | None) -> str:
    return "–" if ratio is None else f"×{ratio:.0f}" if ratio >= 20 else f"×{ratio:.1f}"


def megabytes(timing: dict[str, Any] | None) -> str:
    peak = None if timing is None else timing.get("peak_extra_bytes")
    return "–" if peak is None else f"{peak / 1e6:.0f}" if peak >= 9.5e6 else f"{peak / 1e6:.1f}"


def table(found: list[Row]) -> str:
    """Markdown, with one line that says where the times were taken."""
    shown = [name for name in OTHERS if any(name in row.timings for row in found)]
    heads = ["operator", "input", OURS, *shown, "share of copy", "peak MB", "peak MB, good eager"]
    lines = ["| " + " | ".join(heads) + " |", "|---|---|" + "---:|" * (len(heads) - 2)]
    for row in found:
        cells = [f"`{row.headline.operator}`", row.headline.label]
        cells.append(milliseconds(row.timings[OURS]["median"]))
        cells += [times(row.ratio(name)) for name in shown]
        cells.append(f"{row.share():.0%}")
        cells += [megabytes(row.timings[OURS]), megabytes(row.timings.get("good eager"))]
        lines.append("| " + " | ".join(cells) + " |")
    places = dict.fromkeys(
        f"{e['processor']}, {e['threads']} threads, {e['instruction_set']}, PyTorch {e['torch']}"
        for e in (row.environment for row in found)
    )
    copies = [row.copy / 1e9 for row in found]
    copied = (
        f"{min(copies):.0f}"
        if round(min(copies)) == round(max(copies))
        else (f"{min(copies):.0f} to {max(copies):.0f}")
    )
    note = f"Medians. {'; '.join(places)}; copies {copied} GB/s."
    return "\n".join([*lines, "", note])


def between(page: str, content: str) -> str:
    """The page with `content` between its two comments."""
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise ValueError(f"a page has no {BEGIN} … {END}")
    return f"{before}{begin}\n{content}\n{end}{after}"


def with_table(readme: str, found: list[Row]) -> str:
    """The README with the table between its two comments."""
    return between(readme, table(found))


# The results that each page of docs/kernels shows, whole.
PAGES = {
    "soft_pseudo_label": ("soft_pseudo_labels",),
    "pseudo_label_loss": ("pseudo_label_loss",),
    "upsampled_cross_entropy": ("upsampled_cross_entropy",),
    "class_threshold": ("ClassThresholds", "class_thresholds"),
    "class_centroid": ("class_centroids",),
    "symmetric_soft_divergence": ("symmetric_soft_divergence",),
    "transfer_reward": ("transfer_reward",),
}


def figures(operator: str, results: Path = RESULTS) -> str:
    """Every group of an operator's results: times, ratios, share of copy and peak memory."""
    content = json.loads((results / f"{operator}.json").read_text(encoding="utf-8"))
    groups: dict[str, dict[str, dict[str, Any]]] = {}
    for timing in content["timings"]:
        if "sweep" not in timing["group"]:
            groups.setdefault(timing["group"], {})[timing["contender"]] = timing
    shown = [name for name in OTHERS if any(name in timings for timings in groups.values())]
    heads = [f"`{operator}`", OURS, *shown, "share of copy", "peak MB", "peak MB, good eager"]
    lines = ["| " + " | ".join(heads) + " |", "|---|" + "---:|" * (len(heads) - 1)]
    copy = content["copy_bytes_per_second"]
    for group, timings in groups.items():
        if OURS not in timings:
            continue
        row = Row(Headline(operator, group, group), timings, copy, content["environment"])
        cells = [
            group,
            milliseconds(timings[OURS]["median"]),
            *(times(row.ratio(n)) for n in shown),
        ]
        cells.append(f"{row.share():.0%}")
        cells += [megabytes(timings[OURS]), megabytes(timings.get("good eager"))]
        lines.append("| " + " | ".join(cells) + " |")
    e = content["environment"]
    place = (
        f"{e['processor']}, {e['threads']} threads, {e['instruction_set']}, PyTorch {e['torch']}"
    )
    return "\n".join([*lines, "", f"Medians. {place}; copies {copy / 1e9:.0f} GB/s."])


def pages() -> dict[Path, str]:
    """What each page with a table should hold."""
    wanted = {README: with_table(README.read_text(encoding="utf-8"), rows())}
    for name, operators in PAGES.items():
        path = ROOT / "docs" / "kernels" / f"{name}.md"
        stored = [o for o in operators if (RESULTS / f"{o}.json").is_file()]
        content = "\n\n".join(figures(operator) for operator in stored)
        wanted[path] = between(path.read_text(encoding="utf-8"), content)
    return wanted


# ---- the picture --------------------------------------------------------------------------------

COLOURS = {
    "lists and sort": "#7a3b2e",
    "torch sort": "#c77b58",
    "literal eager": "#8fa3b5",
    "good eager": "#3f6f9f",
    "torch.compile": "#5fa777",
}


def draw(found: list[Row], path: Path) -> None:
    """Horizontal bars: how many times longer than this package each contender takes."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    bars = [[name for name in OTHERS if name in row.timings] for row in found]
    height = sum(len(names) for names in bars) + 0.9 * len(bars)
    figure, axes = plt.subplots(figsize=(9, 0.24 * height + 1.1))
    place, ticks, labels = 0.0, [], []
    for row, names in zip(found, bars, strict=True):
        first = place
        for name in names:
            ratio = row.ratio(name)
            assert ratio is not None
            axes.barh(place, ratio, color=COLOURS[name], height=0.9)
            axes.text(ratio * 1.06, place, times(ratio), va="center", fontsize=8.5)
            place += 1
        ticks.append((first + place - 1) / 2)
        ours = milliseconds(row.timings[OURS]["median"])
        labels.append(f"{row.headline.operator}\n{row.headline.label}: {ours}")
        place += 0.9
    ratios = [row.ratio(name) for row, names in zip(found, bars, strict=True) for name in names]
    axes.set_xscale("log")
    measured = [ratio for ratio in ratios if ratio is not None]
    axes.set_xlim(min(1.0, 0.8 * min(measured)), 2 * max(measured))
    axes.set_ylim(place - 0.4, -0.9)
    axes.set_yticks(ticks, labels, fontsize=9)
    axes.axvline(1, color="black", linewidth=1)
    axes.xaxis.set_major_formatter(lambda value, _: f"×{value:g}")
    axes.xaxis.grid(True, color="#dddddd")
    axes.set_axisbelow(True)
    axes.set_xlabel("times longer than cscl_fast, whose own time stands on the left")
    for side in ("top", "right", "left"):
        axes.spines[side].set_visible(False)
    axes.tick_params(left=False)
    shown = [name for name in OTHERS if any(name in names for names in bars)]
    handles = [plt.Rectangle((0, 0), 1, 1, color=COLOURS[name]) for name in shown]
    axes.legend(
        handles,
        shown,
        loc="lower left",
        bbox_to_anchor=(-0.3, 1),
        ncols=len(shown),
        frameon=False,
        fontsize=9,
    )
    figure.tight_layout()
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=130, metadata={"Software": None})
    plt.close(figure)


def main(arguments: list[str]) -> int:
    if set(arguments) - {"--check"}:
        print(__doc__)
        return 2
    wrong = {p: w for p, w in pages().items() if p.read_text(encoding="utf-8") != w}
    if "--check" in arguments:
        for path in wrong:
            print(f"{path.name} is not what the results give; run: python benchmarks/chart.py")
        return 1 if wrong else 0
    for path, wanted in wrong.items():
        path.write_text(wanted, encoding="utf-8")
    draw(rows(), PICTURE)
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
