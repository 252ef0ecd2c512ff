"""The README's table of benchmarks against the stored results, and the script that writes it."""

from __future__ import annotations

import json
import runpy
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
CHART = runpy.run_path(str(ROOT / "benchmarks" / "chart.py"))


def test_the_readme_has_the_stored_results() -> None:
    assert CHART["main"](["--check"]) == 0, "run: python benchmarks/chart.py"


def test_a_changed_figure_changes_the_table(tmp_path: Path) -> None:
    found = CHART["rows"]()
    assert found
    for operator in {headline.operator for headline in CHART["HEADLINES"]}:
        path = CHART["RESULTS"] / f"{operator}.json"
        content = json.loads(path.read_text(encoding="utf-8"))
        for timing in content["timings"]:
            if timing["contender"] != CHART["OURS"]:
                timing["median"] *= 3
        (tmp_path / path.name).write_text(json.dumps(content), encoding="utf-8")
    assert CHART["table"](found) != CHART["table"](CHART["rows"](tmp_path))


def test_a_readme_without_the_comments_is_refused() -> None:
    with pytest.raises(ValueError, match="benchmarks"):
        CHART["with_table"]("# a page", CHART["rows"]())


def test_draws_every_row(tmp_path: Path) -> None:
    CHART["draw"](CHART["rows"](), tmp_path / "chart.png")
    assert (tmp_path / "chart.png").stat().st_size > 10_000
