"""The small parts of studies: numbers over seeds, and how far a run has come."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from rich.console import Console

from cscl_fast.cli import parse
from cscl_fast.studies.launch import Launcher, last_step
from cscl_fast.studies.plan import make_plan
from cscl_fast.studies.scores import Row
from cscl_fast.studies.spread import spread
from cscl_fast.studies.tables import results


def test_mean_and_deviation_leave_out_what_there_is_not() -> None:
    nan = float("nan")
    assert str(spread([1.0, 2.0, 3.0, nan])) == "2.0 ± 1.0"
    assert str(spread([4.25])) == "4.2" and spread([4.25]).n == 1
    assert str(spread([nan])) == str(spread([])) == "–"


def test_last_step_of_whole_lines(tmp_path: Path) -> None:
    path = tmp_path / "metrics.csv"
    assert last_step(path) == 0
    path.write_text("phase,epoch,step,total\n")
    assert last_step(path) == 0
    path.write_text("phase,epoch,step,total\n" + "warmup,0,10,1.5\n" * 500 + "warmup,0,20,1.")
    assert last_step(path) == 10


def test_the_cores_that_the_study_may_use_are_divided_among_its_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(os, "cpu_count", lambda: 64)
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {0, 1, 2, 5}, raising=False)
    study = make_plan(parse(["--run", str(tmp_path), "--ablation", "--seeds", "0", "--jobs", "2"]))
    launcher = Launcher(study, Console(quiet=True))
    launcher._arguments(launcher.jobs[0], 0)
    assert launcher.jobs[0].run.config.threads == 2


def test_a_class_is_no_markup_whatever_it_is_called() -> None:
    study = make_plan(parse(["--ablation", "--seeds", "0"]))
    row = Row("source only", "source-only", None, {0: {"mIoU": 1.0, "road|lane": 2.0}}, None)
    lines = results(study, [row], markdown=True).splitlines()
    head = lines.index(r"|  | mIoU | road\|lane |")
    assert lines[head + 1 : head + 3] == ["| --- | ---: | ---: |", "| source only | 1.0 | 2.0 |"]


def test_the_table_says_what_its_numbers_are_of() -> None:
    def title(*seeds: str) -> str:
        return results(make_plan(parse(["--ablation", "--seeds", *seeds])), []).splitlines()[0]

    assert title("4", "2") == "mIoU in percent, mean ± standard deviation over the seeds 4 2"
    assert title("4") == "mIoU in percent, seed 4"  # of one there is no deviation
