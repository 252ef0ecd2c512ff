"""Whole runs of two gloo processes: against one process, stopped, killed, gone on with."""

from __future__ import annotations

import json
import math
import os
import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import tiny_train
import torch
from gloo_processes import PATIENCE, finish, start
from several_processes import run_scenario
from trainer_worlds import CLASSES, arguments, draw_no_curves, load, rows, run_through, same

from cscl_fast.train import main

HERE = Path(__file__).parent
SCRIPT = HERE / "tiny_train.py"
# Rewards ask which of two probabilities is larger, and rounding decides about equal ones.
UNLIKE = ("phase", "seconds", "speed", "reward", "regression", "total")


def test_steps_in_shares_are_those_of_one_process(tmp_path: Path) -> None:
    run_scenario("equal_steps,equal_warmup,statistics,different_starts,divergence", tmp_path)


# ------------------------------------------------------------------------------------ whole runs


@pytest.fixture(scope="module")
def init(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Weights to start from, so that a run needs no warm-up, which normalises by batches."""
    torch.manual_seed(3)
    path = tmp_path_factory.mktemp("weights") / "init.pt"
    model = tiny_train.without_dropout("deeplabv2-resnet18", len(CLASSES))
    with torch.no_grad():
        model.classifier.weight.mul_(8)
    torch.save(model.state_dict(), path)
    return path


def command(worlds: Path, run: Path, init: Path, batch_size: int, *more: str) -> list[str]:
    options = [
        *("--warmup.steps", "0", "--model.init", str(init), "--adaptation.bn", "frozen"),
        *("--adaptation.epochs", "2", "--adaptation.steps", "3", "--global-centroids"),
        *("--adaptation.batch-size", str(batch_size), "--save-every", "1"),
        *("--evaluation-batch", "2", "--panels", "0", "--distributed-timeout", "60"),
    ]
    return arguments(worlds, run, *options, *more)


def torchrun(*options: str, befalls: str = "nothing:0:0") -> tuple[int, str]:
    """Exit status and everything printed of two processes under torchrun."""
    done = subprocess.run(
        [
            *(sys.executable, "-m", "torch.distributed.run", "--standalone"),
            *("--nproc-per-node", "2", "-m", "tiny_train", "--", *options),
        ],
        cwd=HERE,
        env=os.environ
        | {"BEFALLS": befalls, "OMP_NUM_THREADS": "1"}
        | {"PYTHONPATH": os.pathsep.join(sys.path)},
        capture_output=True,
        text=True,
        timeout=PATIENCE,
    )
    return done.returncode, done.stdout + done.stderr


def two(*options: str, befalls: str = "nothing:0:0") -> list[tuple[int, str]]:
    """The same without torchrun: exit status and text of each process."""
    before = os.environ.get("BEFALLS")
    os.environ["BEFALLS"] = befalls
    try:
        return finish(start(SCRIPT, *options))
    finally:
        os.environ.pop("BEFALLS")
        if before is not None:
            os.environ["BEFALLS"] = before


def draws(*texts: str) -> set[str]:
    return {line for text in texts for line in text.splitlines() if line.startswith("draw ")}


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs in this process as in tiny_train.py."""
    for module in ("trainer.run", "trained"):
        monkeypatch.setattr(f"cscl_fast.{module}.build_model", tiny_train.without_dropout)
    draw_no_curves(monkeypatch)


@pytest.fixture(scope="module")
def uninterrupted(
    worlds: Path, init: Path, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, str]:
    """Two processes with batches of one, by the command of the documentation."""
    run = tmp_path_factory.mktemp("runs") / "two"
    status, text = torchrun(*command(worlds, run, init, 1))
    assert status == 0, text
    return run, text


def test_two_processes_are_one_with_twice_the_batch(
    uninterrupted: tuple[Path, str],
    worlds: Path,
    init: Path,
    tmp_path: Path,
    tiny: None,
) -> None:
    alone, two = tmp_path / "one", uninterrupted[0]
    run_through(command(worlds, alone, init, 2))

    # Of the first epoch from the same network, so bit for bit, as the scores before it.
    thresholds = [rows(run / "thresholds.csv") for run in (alone, two)]
    assert thresholds[0][0] == thresholds[1][0]
    scores = [rows(run / "evaluation.csv") for run in (alone, two)]
    assert [row for row in scores[0] if row["phase"] == "warmup"] == [
        row for row in scores[1] if row["phase"] == "warmup"
    ]
    assert len(scores[0]) == len(scores[1]) > 2
    assert rows(alone / "kept.csv")[0] == rows(two / "kept.csv")[0]

    metrics = [rows(run / "metrics.csv") for run in (alone, two)]
    assert len(metrics[0]) == len(metrics[1]) == 6
    for one, other in zip(*metrics, strict=True):
        for name, value in one.items():
            if name not in UNLIKE and value:
                # float32 sums in another order, and Adam's steps of one size for any gradient;
                # P here is 1 less an entropy of almost 1, of which 1e-7 is a float32's last bit.
                close = math.isclose(float(value), float(other[name]), rel_tol=2e-4, abs_tol=1e-6)
                assert close, (name, value, other[name])

    # One of them has written, once.
    assert {path.name for path in (two / "checkpoints").iterdir()} == {
        path.name for path in (alone / "checkpoints").iterdir()
    }
    assert len(rows(two / "evaluation.csv")) == len({tuple(r.values()) for r in scores[1]})
    assert uninterrupted[1].count("Run folder:") == 1
    environment = json.loads((two / "environment.json").read_text())
    assert environment["processes"] == 2
    assert environment["command"].startswith("torchrun --nproc-per-node 2 -m cscl_fast.train -- ")


def test_stopped_together_and_resumed_bit_for_bit(
    uninterrupted: tuple[Path, str],
    worlds: Path,
    init: Path,
    tmp_path: Path,
    tiny: None,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One process is asked to stop; both stop after the same step, and go on as if they had not."""
    run = tmp_path / "stopped"
    stopped = two(*command(worlds, run, init, 1), befalls="stop:1:3")
    assert [status for status, _ in stopped] == [130, 130], stopped
    assert "Interrupted at adaptation step 4; everything is saved" in stopped[0][1]
    assert "torchrun --nproc-per-node 2 -m cscl_fast.train -- --resume" in stopped[0][1]

    # Another number of processes: with as many images a step it may go on, else not.
    other = tmp_path / "other"
    shutil.copytree(run, other)
    assert main(["--resume", str(other)]) == 1
    fits = "choose adaptation.batch_size and accumulate so that their product is 2 / 1"
    assert fits in capsys.readouterr().err
    run_through(["--resume", str(other), "--adaptation.batch-size", "2"])
    assert "note: the run goes on with 1 process(es) instead of 2" in capsys.readouterr().out
    assert len(rows(other / "metrics.csv")) == 6

    resumed = two("--resume", str(run))
    assert [status for status, _ in resumed] == [0, 0], resumed
    whole, whole_text = uninterrupted
    texts = [text for _, text in (*stopped, *resumed)]
    assert draws(*texts) == draws(whole_text)
    assert len(draws(whole_text)) == 12
    ends = [load(folder / "checkpoints" / "last.pt") for folder in (whole, run)]
    assert {key for key in ends[0] if not same(ends[0][key], ends[1].get(key))} <= {
        "timing",
        "tables",  # of metrics.csv, which has a column of seconds
        "checksum",
    }
    for name in ("thresholds.csv", "evaluation.csv", "kept.csv"):
        assert (whole / name).read_text() == (run / name).read_text()


def test_a_killed_process_ends_the_run_with_a_message(
    worlds: Path, init: Path, tmp_path: Path
) -> None:
    began = time.monotonic()
    status, text = torchrun(*command(worlds, tmp_path / "run", init, 1), befalls="kill:1:2")
    assert status != 0
    assert "cscl_fast.train: process 1 of 2: lost another process" in text
    assert f"--resume {tmp_path / 'run'}" in text
    assert time.monotonic() - began < 60  # less than distributed_timeout: nobody waited for it
    saved = load(tmp_path / "run" / "checkpoints" / "last.pt")
    assert saved["place"]["step"] == 2


def test_a_process_that_fails_says_why_and_the_other_that_it_lost_it(
    worlds: Path, init: Path, tmp_path: Path
) -> None:
    first, second = two(*command(worlds, tmp_path / "run", init, 1), befalls="error:1:1")
    assert second[0] == 1
    assert "cscl_fast.train: process 2 of 2: target/p3.png cannot be read" in second[1]
    assert first[0] == 1, first[1]
    assert "cscl_fast.train: process 1 of 2: lost another process" in first[1]
