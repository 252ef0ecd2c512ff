"""SIGKILL at any moment: the run that goes on ends as the one that nobody killed, bit for bit."""

from __future__ import annotations

import json
import os
import random
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from trainer_worlds import arguments, assert_same_runs

from cscl_fast.trainer.checkpoint import load_newest

SAVE_EVERY = 3
OPTIONS = (
    *("--warmup.steps", "10", "--adaptation.epochs", "2", "--adaptation.steps", "8"),
    *("--save-every", str(SAVE_EVERY), "--evaluate-every", "5", "--evaluation.limit", "3"),
    *("--adaptation.labels", "ema", "--adaptation.thresholds", "online", "--panels", "1"),
    *("--adaptation.online-window", "5", "--adaptation.centroid-momentum", "0.5"),
    *("--gap-batches", "1", "--log-every", "1"),
)
Drive = Callable[..., dict[str, Any]]


@pytest.fixture(scope="module")
def drive(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Drive]:
    """Calls `kill_driver.py`, which lives as long as this module's tests."""
    log = tmp_path_factory.mktemp("driver") / "log.txt"
    folder = Path(__file__).parent
    paths = [str(folder), str(folder.parents[1]), os.environ.get("PYTHONPATH", "")]
    driver = subprocess.Popen(
        [sys.executable, str(folder / "kill_driver.py"), str(log)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, paths))},
    )
    assert driver.stdin is not None and driver.stdout is not None

    def call(command: list[str], **kill: Any) -> dict[str, Any]:
        driver.stdin.write(json.dumps({"arguments": command, "kill": kill or None}) + "\n")
        driver.stdin.flush()
        answer = json.loads(driver.stdout.readline())
        assert answer["status"] in (0, -9), log.read_text()
        return answer

    yield call
    driver.stdin.close()
    driver.wait(timeout=60)


@pytest.fixture(scope="module")
def whole(drive: Drive, worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The run that nobody killed."""
    run = tmp_path_factory.mktemp("whole") / "run"
    answer = drive(arguments(worlds, run, *OPTIONS))
    assert answer["status"] == 0 and len(answer["steps"]) == 26
    return run


def overall(phase: str, step: int) -> int:
    return step if phase == "warmup" else 10 + step


def saved_steps(run: Path) -> int:
    """Where a run would go on."""
    folder = run / "checkpoints"
    if not list(folder.glob("*.pt")):
        return 0
    place = load_newest(folder, print)["place"]
    return overall(place["phase"], place["step"])


def resume(run: Path, command: list[str]) -> list[str]:
    """The command that goes on, or begins again where nothing was saved yet."""
    if (run / "checkpoints" / "last.pt").exists():
        return ["--resume", str(run)]
    return [*command, "--overwrite"]


def test_twenty_kills_at_random_moments_lose_what_was_not_saved_and_nothing_else(
    drive: Drive, whole: Path, worlds: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    first = arguments(worlds, run, *OPTIONS)
    generator = random.Random(6)
    command, kills, before = first, 0, 0
    while kills < 20:
        # Mostly in or just after some step; now and then while the run is still beginning.
        steps = generator.choice((0, 1, 2, 3, 4, 5))
        delay = generator.uniform(0, 0.3 if steps == 0 else 0.04)
        answer = drive(command, steps=steps, delay=delay)
        if answer["status"] == 0:  # went through before the kill came: another run
            assert_same_runs(run, whole)
            command, before = [*first, "--overwrite"], 0
            continue
        kills += 1
        reached = max([before, *(overall(*place) for place in answer["steps"])])
        before = saved_steps(run)
        assert reached - before <= SAVE_EVERY
        command = resume(run, first)
    assert drive(command)["status"] == 0
    assert_same_runs(run, whole)
    assert not list(run.rglob("*.part"))


STEP = "cscl_fast.trainer.world:Stream.next"
SCORE = "cscl_fast.trainer.run:evaluate"
SCORED = "cscl_fast.trainer.records:Records.score"
WRITE = "cscl_fast.trainer.checkpoint:_Hashing.write"

# One kill after the other; calls are counted anew in each process.
CHAINS = {
    "in the warm-up and behind it": (
        (STEP, 1),  # nothing is saved
        (STEP, 6),
        (STEP, 7),  # the last of the warm-up
        (SCORE, 1),
        ("cscl_fast.trainer.run:reestimate_statistics", 1),
        (SCORED, 2),  # between the two rows of the source-only network
        ("cscl_fast.trainer.labelling:Labeller.begin_epoch", 1),
        ("cscl_fast.trainer.records:Records.thresholds", 1),  # before the first step
    ),
    "in the adaptation and behind it": (
        (SCORE, 4),
        (SCORED, 2),  # between two rows of one evaluation
        ("cscl_fast.trainer.records:Records.thresholds", 1),  # of the second epoch
        ("cscl_fast.trainer.gap:domain_gap", 2),
        ("cscl_fast.trainer.finish:table", 1),
        ("cscl_fast.trainer.finish:draw_panels", 1),
    ),
    "while a checkpoint is written": (
        (WRITE, 120),  # half of it
        ("cscl_fast.trainer.checkpoint:_Hashing.trailer", 2),  # all but the checksum
        ("cscl_fast.trainer.checkpoint:os.link", 2),  # before the old one is kept
        ("cscl_fast.trainer.checkpoint:os.replace", 2),  # before the new one takes its place
        ("cscl_fast.trainer.files:sync_folder", 2),  # after that
        (WRITE, 400),
    ),
}


@pytest.mark.parametrize("chain", CHAINS)
def test_a_kill_in_every_phase(
    drive: Drive, whole: Path, worlds: Path, tmp_path: Path, chain: str
) -> None:
    run = tmp_path / "run"
    command = first = arguments(worlds, run, *OPTIONS)
    before = 0
    for at, call in CHAINS[chain]:
        answer = drive(command, at=at, call=call)
        assert answer["status"] == -9, at
        reached = max([before, *(overall(*place) for place in answer["steps"])])
        before = saved_steps(run)
        assert reached - before <= SAVE_EVERY, at
        command = resume(run, first)
    assert drive(command)["status"] == 0
    assert_same_runs(run, whole)
    assert not list(run.rglob("*.part"))
