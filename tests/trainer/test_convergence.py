"""convergence.csv and convergence.png of a run folder: Fig. 3 (a, b)."""

from __future__ import annotations

from pathlib import Path

import pytest
from PIL import Image
from trainer_worlds import rows

from cscl_fast.trainer import convergence

EVALUATION = """phase,step,row,mIoU,road
warmup,40,source only,20.0,1
warmup,40,"source only, target statistics",25.5,1
adaptation,10,CSCL,27.0,1
adaptation,10,"CSCL, averaged weights",28.0,1
adaptation,20,CSCL,29.0,1
adaptation,20,"CSCL, averaged weights",30.0,1
"""
GAP = """phase,epoch,step,accuracy,divergence
adaptation,0,0,0.5,0.3
adaptation,0,10,0.9,0.2
adaptation,1,20,nan,0.1
"""


def folder(path: Path, evaluation: str = EVALUATION, gap: str | None = GAP) -> Path:
    (path / "evaluation.csv").write_text(evaluation)
    (path / "config.yaml").write_text("adaptation: {steps: 10, epochs: 2}\n")
    if gap is not None:
        (path / "gap.csv").write_text(gap)
    return path


def test_scores_and_gap_by_epoch(tmp_path: Path) -> None:
    assert convergence.write(folder(tmp_path))
    written = rows(tmp_path / "convergence.csv")
    assert tuple(written[0]) == convergence.COLUMNS
    assert [tuple(row.values()) for row in written] == [
        ("warmup", "", "40", "20", "", "", ""),
        ("adaptation", "0", "0", "25.5", "25.5", "0.5", "0.3"),
        ("adaptation", "1", "10", "27", "28", "0.9", "0.2"),
        ("adaptation", "2", "20", "29", "30", "", "0.1"),
    ]
    with Image.open(tmp_path / "convergence.png") as picture:
        assert picture.width > 1000  # two panels


def test_a_run_of_an_older_version_has_no_gap(tmp_path: Path) -> None:
    assert convergence.write(folder(tmp_path, gap=None))
    assert {row["gap divergence"] for row in rows(tmp_path / "convergence.csv")} == {""}
    with Image.open(tmp_path / "convergence.png") as picture:
        assert picture.width < 700  # the score's panel alone


@pytest.mark.parametrize("lines", [0, 1, 3])
def test_nothing_is_drawn_without_an_adaptation(tmp_path: Path, lines: int) -> None:
    """No score at all, or a source-only run."""
    folder(tmp_path, "\n".join(EVALUATION.splitlines()[:lines]), gap=None)
    assert not convergence.write(tmp_path)
    assert not (tmp_path / "convergence.csv").exists()


def test_a_run_of_today_can_be_read(finished: Path) -> None:
    points = convergence.read(finished)
    assert [(p.phase, p.step) for p in points] == [
        ("warmup", 4), ("adaptation", 0), ("adaptation", 2), ("adaptation", 4),
    ]  # fmt: skip
    assert [p.epoch for p in points[1:]] == [0, 1, 2]
    assert all(0 <= p.miou <= 100 for p in points)
