"""Stopping a run at any place, and going on as if nothing had happened."""

from __future__ import annotations

import errno
import os
import signal
import sys
from pathlib import Path

import pytest
from trainer_worlds import (
    TinyModel,
    arguments,
    assert_same_runs,
    draw_no_curves,
    fails,
    load,
    rows,
    run_through,
    same,
)

from cscl_fast.cli import parse
from cscl_fast.train import main, train
from cscl_fast.trainer.interrupt import StopBetweenSteps
from cscl_fast.trainer.records import Records
from cscl_fast.trainer.run import Run

ROWS = ["source only", "source only, target statistics", "CSCL", "CSCL, averaged weights"]


@pytest.fixture(scope="module")
def whole(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that nothing interrupts, by their options."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cscl_fast.trainer.run.build_model", TinyModel)
        draw_no_curves(patch)
        for name, options in KINDS.items():
            run_through(arguments(worlds, folder / name, *options))
    return {name: folder / name for name in KINDS}


KINDS = {
    "joint": ("--panels", "1", "--adaptation.steps", "3", "--evaluate-every", "2"),
    "all that has a state": (
        *("--panels", "0", "--adaptation.steps", "3", "--adaptation.schedule", "alternating"),
        *("--adaptation.labels", "ema", "--adaptation.thresholds", "online"),
        *("--adaptation.online-window", "2", "--adaptation.centroid-momentum", "0.5"),
        *("--optimizer.name", "adam", "--source.crop", "40", "56", "--source.scale", "0.8", "1.2"),
    ),
    "float16": (
        *("--panels", "0", "--precision", "float16", "--accumulate", "2", "--deterministic"),
        *("--gap-batches", "1", "--log-every", "3", "--workers", "1", "--adaptation.steps", "3"),
    ),
}


@pytest.mark.parametrize(
    ("kind", "stops"),
    [
        ("joint", (3,)),  # in the warm-up
        ("joint", (4,)),  # at its end
        ("joint", (6,)),  # in the adaptation
        ("joint", (7,)),  # at the end of an epoch
        ("all that has a state", (2, 5, 8)),
        ("float16", (3, 8)),  # the shares of kept.csv's rows span the second stop
    ],
    ids=str,
)
def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    worlds: Path,
    whole: dict[str, Path],
    tmp_path: Path,
    tiny: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    kind: str,
    stops: tuple[int, ...],
) -> None:
    run = tmp_path / "my run"
    command = arguments(worlds, run, *KINDS[kind])
    before = signal.getsignal(signal.SIGINT)
    done = Run._step_done
    for stop in stops:
        passed = [0]

        def interrupting(
            self: Run, *given: object, stop: int = stop, passed: list[int] = passed
        ) -> None:
            done(self, *given)
            overall = self.place.step + (4 if self.place.phase == "adaptation" else 0)
            passed[0] += 1
            if overall == stop:
                os.kill(os.getpid(), signal.SIGINT if stop % 2 else signal.SIGTERM)

        monkeypatch.setattr(Run, "_step_done", interrupting)
        assert main(command) == 130
        message = capsys.readouterr().err
        step = f"warmup step {stop}" if stop <= 4 else f"adaptation step {stop - 4}"
        assert f"Interrupted at {step}; everything is saved" in message
        assert f"python -m cscl_fast.train --resume '{run}'" in message
        assert passed[0] <= stop
        assert signal.getsignal(signal.SIGINT) is before
        command = ["--resume", str(run)]
        (run / "classes.json").unlink()  # runs of earlier versions have none
    monkeypatch.setattr(Run, "_step_done", done)
    assert main(command) == 0
    assert_same_runs(run, whole[kind])
    assert not list(run.rglob("*.part"))


@pytest.mark.parametrize("at", [1, 3])
def test_a_killed_run_goes_on_from_its_last_checkpoint(
    worlds: Path,
    whole: dict[str, Path],
    tmp_path: Path,
    tiny: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    at: int,
) -> None:
    """A second Ctrl-C (or a lost machine): what came after the checkpoint is done again."""
    run = tmp_path / "run"
    log = Records.log

    def killing(self: Records, values: dict) -> None:
        log(self, values)
        if (values["phase"], values["step"]) == ("adaptation", at):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Records, "log", killing)
    assert main(arguments(worlds, run, *KINDS["joint"])) == 130
    message = capsys.readouterr().err
    assert f"Go on from the last checkpoint with:\n  python -m cscl_fast.train --resume {run}" in (
        message
    )
    assert len(rows(run / "metrics.csv")) == 4 + at
    with open(run / "metrics.csv", "a") as file:
        file.write("adaptation,0")  # a row that the disk took half of
    monkeypatch.setattr(Records, "log", log)
    assert main(["--resume", str(run)]) == 0
    assert_same_runs(run, whole["joint"])


def test_ctrl_c_before_the_first_step_says_so(
    worlds: Path,
    tmp_path: Path,
    tiny: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    def interrupt(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr("cscl_fast.trainer.world.World.check", interrupt)
    assert main(arguments(worlds, tmp_path / "run")) == 130
    assert "Nothing is saved yet" in capsys.readouterr().err


def test_workers_that_read_data_do_not_say_that_they_stop(
    capfd: pytest.CaptureFixture[str],
) -> None:
    """They are forked from the run, with its handlers, and a terminal's Ctrl-C reaches them."""
    with StopBetweenSteps(lambda: None, lambda: "") as stop:
        worker = os.fork()
        if worker == 0:
            os.kill(os.getpid(), signal.SIGINT)
            sys.stderr.flush()
            os._exit(stop.asked)
        assert os.waitstatus_to_exitcode(os.waitpid(worker, 0)[1]) == 1
        assert "stopping" not in capfd.readouterr().err
        os.kill(os.getpid(), signal.SIGINT)
        assert capfd.readouterr().err.count("stopping after this step") == 1
        stop.asked = False


def test_a_finished_run_may_be_resumed(
    worlds: Path, tmp_path: Path, tiny: None, whole: dict[str, Path]
) -> None:
    before = load(whole["joint"] / "checkpoints" / "last.pt")
    scores = train(parse(["--resume", str(whole["joint"])]))
    assert list(scores) == ROWS
    assert same(before, load(whole["joint"] / "checkpoints" / "last.pt"))


def test_resuming_needs_no_initial_weights(
    worlds: Path, warm: Path, tmp_path: Path, tiny: None
) -> None:
    init = tmp_path / "init.pt"
    init.write_bytes(warm.read_bytes())
    run = tmp_path / "run"
    assert main(arguments(worlds, run, "--source-only", "--model.init", str(init))) == 0
    init.unlink()
    assert main(["--resume", str(run)]) == 0


def test_resuming_elsewhere_is_refused(
    worlds: Path,
    tmp_path: Path,
    tiny: None,
    whole: dict[str, Path],
    capsys: pytest.CaptureFixture[str],
) -> None:
    assert main(["--resume", str(tmp_path)]) == 2
    assert f"there is no {tmp_path / 'config.yaml'}: it is not a run folder" in (
        capsys.readouterr().err
    )
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text((whole["joint"] / "config.yaml").read_text())
    assert main(["--resume", str(run)]) == 1
    assert f"no checkpoint at {run / 'checkpoints' / 'last.pt'}" in capsys.readouterr().err
    # A checkpoint of another network is refused, and the run is as it was.
    before = (whole["joint"] / "config.yaml").read_text()
    tables = (whole["joint"] / "metrics.csv").read_text()
    other = ["--model.architecture", "deeplabv2-resnet50"]
    assert main(["--resume", str(whole["joint"]), *other]) == 1
    message = capsys.readouterr().err
    assert "holds a deeplabv2-resnet18 with 3 classes; this run is a deeplabv2-resnet50" in message
    assert (whole["joint"] / "config.yaml").read_text() == before
    assert (whole["joint"] / "metrics.csv").read_text() == tables


@pytest.mark.parametrize("text", ["", "# nothing\n", "{}\n", "source: {}\nmodel:\n"])
def test_a_run_whose_configuration_is_empty_is_not_resumed_as_the_demo(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], text: str
) -> None:
    (tmp_path / "config.yaml").write_text(text)
    message = fails(capsys, ["--resume", str(tmp_path)], 2)
    assert f"there is no key in {tmp_path / 'config.yaml'}" in message


def test_a_configuration_that_cannot_be_written_stays_as_it_was(
    worlds: Path,
    tmp_path: Path,
    tiny: None,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    run = tmp_path / "run"
    command = arguments(worlds, run, "--source-only", "--warmup.steps", "1", "--panels", "0")
    assert main(command) == 0
    config = run / "config.yaml"
    before, written = config.read_text(), config.stat().st_mtime_ns
    (run / "config.yaml.part").write_text("half of i")  # of a process that was killed
    assert main(["--resume", str(run)]) == 0
    assert config.stat().st_mtime_ns == written  # the same text is not written again
    assert not list(run.rglob("*.part"))

    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", full)
        message = fails(capsys, ["--resume", str(run), "--log-every", "7"])
    assert f"No space left on device: '{config}'" in message
    assert config.read_text() == before and not list(run.rglob("*.part"))
    assert main(["--resume", str(run), "--log-every", "7"]) == 0
    assert "log_every: 7" in config.read_text()


def test_keys_of_the_optimizers_may_change(worlds: Path, tmp_path: Path, tiny: None) -> None:
    run = tmp_path / "run"
    command = arguments(worlds, run, "--panels", "0", "--adaptation.epochs", "1")
    assert main(command) == 0
    changed = ("--adaptation.learning-rate", "0.5", "--optimizer.weight-decay", "0.25")
    assert main(["--resume", str(run), "--adaptation.epochs", "2", *changed]) == 0
    rates = [float(r["learning_rate"]) for r in rows(run / "metrics.csv")]
    assert rates[-2:] == pytest.approx([0.5 * (1 - step / 4) ** 0.9 for step in (2, 3)], rel=1e-5)
    optimizer = load(run / "checkpoints" / "last.pt")["trainer"]["optimizers"]["model"]
    assert [group["weight_decay"] for group in optimizer["param_groups"]] == [0.25, 0.25]


def test_another_kind_of_optimizer_is_refused(
    worlds: Path, tmp_path: Path, tiny: None, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    assert main(arguments(worlds, run, "--panels", "0", "--adaptation.epochs", "1")) == 0
    more = ("--adaptation.epochs", "2", "--optimizer.name", "sgd")
    message = fails(capsys, ["--resume", str(run), *more])
    assert "SGD cannot go on with the state of Adam); resume without the keys" in message


def test_a_run_that_is_overwritten_leaves_nothing(worlds: Path, tmp_path: Path, tiny: None) -> None:
    run = tmp_path / "run"
    assert main(arguments(worlds, run, "--adaptation.epochs", "1", "--gap-batches", "1")) == 0
    (run / "panels" / "notes.txt").write_text("somebody's own")
    assert main(arguments(worlds, run, "--overwrite", "--source-only", "--panels", "0")) == 0
    files = {p.relative_to(run).as_posix() for p in run.rglob("*") if p.is_file()}
    assert files == {
        "config.yaml", "classes.json", "environment.json", "timing.json", "metrics.csv",
        "evaluation.csv", "results.txt", "results.md", "checkpoints/source.pt",
        "checkpoints/last.pt", "panels/notes.txt",
    }  # fmt: skip
    assert len(rows(run / "metrics.csv")) == 4
