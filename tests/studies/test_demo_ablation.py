"""`--ablation` on the demo, with real runs of a few steps; also interrupted in the middle."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml

from cscl_fast.train import main

CUT_DOWN = [
    *("--preset", "demo", "--device", "cpu", "--threads", "1", "--panels", "0"),
    *(f"--{data}.count=4" for data in ("source", "target", "evaluation")),
    *(word for data in ("source", "target", "evaluation") for word in
      (f"--{data}.size", "64", "128")),
    *("--warmup.steps", "3", "--warmup.batch-size", "2", "--evaluation-batch", "2"),
    *("--adaptation.epochs", "1", "--adaptation.steps", "2", "--adaptation.batch-size", "2"),
    *("--adaptation.bn-batches", "1", "--gap-batches", "1", "--log-every", "1"),
]  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_ablation_on_the_demo_prints_its_rows_beside_the_papers(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    # The source-only run is made by hand first: a study takes it.
    by_hand = ["--source-only", "--seed", "5", "--run", str(study / "seed5" / "source-only")]
    assert main([*CUT_DOWN, *by_hand]) == 0
    capsys.readouterr()
    options = [*CUT_DOWN, "--ablation", "--seeds", "5", "--jobs", "2", "--run", str(study)]
    assert main(options) == 0, capsys.readouterr().out
    said = capsys.readouterr().out
    assert "5 runs in" in said and ", 1 of them finished already" in said
    for title, paper in (
        ("source only", "36.6"), ("w/o TC", "46.7"), ("w/o CG", "46.1"), ("w/o SD", "47.4"),
        ("full CSCL", "48.6"),
    ):  # fmt: skip
        line = next(line for line in said.splitlines() if line.startswith(f"{title}  "))
        assert line.split()[-1] == paper
    rows = {r["title"]: r for r in json.loads((study / "results.json").read_text())["rows"]}
    assert len(rows) == 6
    for row in rows.values():
        assert 0 <= row["last"]["mean"]["mIoU"] <= 100
    # Every adaptation began with the source-only run's network.
    before = (study / "seed5/source-only/evaluation.csv").read_text().splitlines()
    source = torch.load(study / "seed5/source-only/checkpoints/source.pt", weights_only=True)
    for name in ("without-transfer", "without-pseudo-labels", "without-divergence", "full"):
        run = study / "seed5" / name
        after = (run / "evaluation.csv").read_text().splitlines()
        assert after[1].split(",")[3:] == before[1].split(",")[3:]  # row "source only"
        begun = torch.load(run / "checkpoints" / "source.pt", weights_only=True)
        assert all(torch.equal(begun["model"][k], x) for k, x in source["model"].items())
        assert (run / "convergence.csv").is_file() and (run / "gap.csv").is_file()
        assert yaml.safe_load((run / "config.yaml").read_text())["model"][
            "batchnorm_affine"
        ] == "trained"  # fmt: skip


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_study_that_is_interrupted_ends_where_it_would_have_ended(tmp_path: Path) -> None:
    study = tmp_path / "study"
    options = [*CUT_DOWN, "--ablation", "--seeds", "5", "--jobs", "2", "--run", str(study)]
    options += ["--adaptation.steps", "12", "--evaluate-every", "5"]
    command = [sys.executable, "-m", "cscl_fast.train", *options]
    root = Path(__file__).parents[2]
    first = subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True)
    names = ("without-transfer", "without-pseudo-labels")
    steps = [study / "seed5" / name / "metrics.csv" for name in names]
    end = time.monotonic() + 300
    while not all(path.is_file() and len(path.read_text().splitlines()) > 2 for path in steps):
        assert first.poll() is None and time.monotonic() < end
        time.sleep(0.05)
    first.send_signal(signal.SIGINT)
    said, _ = first.communicate(timeout=100)
    assert first.returncode == 130 and "Go on with:" in said
    stopped = [n for n in names if f"seed5/{n}: stopped" in said]
    assert stopped
    for name in stopped:
        assert (study / "seed5" / name / "checkpoints" / "last.pt").is_file()
        assert not (study / "seed5" / name / "results.txt").exists()

    second = subprocess.run(command, cwd=root, capture_output=True, text=True, timeout=600)
    assert second.returncode == 0, second.stdout + second.stderr
    for name in stopped:
        assert f"seed5/{name}: goes on" in second.stdout
    # The same run in one go.
    name = stopped[0]
    configuration = study / "configurations" / f"seed5-{name}.yaml"
    assert main(["--config", str(configuration), "--run", str(tmp_path / "whole")]) == 0
    for table in ("evaluation.csv", "gap.csv", "kept.csv", "thresholds.csv", "convergence.csv"):
        whole = (tmp_path / "whole" / table).read_bytes()
        assert (study / "seed5" / name / table).read_bytes() == whole, table
