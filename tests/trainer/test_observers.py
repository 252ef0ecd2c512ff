"""What observers of a run are told, and what the terminal shows meanwhile."""

from __future__ import annotations

import io
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console
from trainer_worlds import arguments, fails, load, rows

from cscl_fast.cli import parse
from cscl_fast.train import main
from cscl_fast.trainer import progress
from cscl_fast.trainer.observers import Observer, Observers
from cscl_fast.trainer.progress import Bar
from cscl_fast.trainer.run import Run

pytestmark = pytest.mark.usefixtures("tiny")


class Noting(Observer):
    """Takes down everything that it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, tuple[Any, ...]]] = []

    def __getattribute__(self, name: str) -> Any:
        told = object.__getattribute__(self, "told") if name != "__init__" else []
        if name.startswith("_") or name in ("told", "of"):
            return object.__getattribute__(self, name)
        return lambda *given: told.append((name, given))

    def of(self, name: str) -> list[tuple[Any, ...]]:
        return [given for told, given in self.told if told == name]


def run_watched(command: list[str]) -> Noting:
    run, noting = Run(parse(command)), Noting()
    run.observers.observers.append(noting)
    run()
    return noting


def test_an_observer_is_told_what_the_tables_hold(worlds: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    noting = run_watched(arguments(worlds, run, "--gap-batches", "1", "--panels", "1"))
    names = [name for name, _ in noting.told]
    assert names[0] == "start_again" and names[-1] == "close" and names.count("close") == 1
    assert [v["step"] for (v,) in noting.of("log")] == [1, 2, 3, 4] * 2
    logged = rows(run / "metrics.csv")
    assert [f"{v['total']:.6g}" for (v,) in noting.of("log")] == [r["total"] for r in logged]
    assert [(row, phase, step) for row, phase, step, _ in noting.of("score")] == [
        (r["row"], r["phase"], int(r["step"])) for r in rows(run / "evaluation.csv")
    ]
    assert [(e, s, round(p, 6)) for e, s, p, _ in noting.of("thresholds")] == [
        (0, 0, 0.35), (1, 2, 0.4)
    ]  # fmt: skip
    assert [(e, s) for e, s, _ in noting.of("gap")] == [(0, 0), (0, 2), (1, 4)]
    assert [(int(r["epoch"]), int(r["step"])) for r in rows(run / "gap.csv")] == [
        (0, 0), (0, 2), (1, 4)
    ]  # fmt: skip
    assert [folder.name for (folder,) in noting.of("panels")] == ["panels", "transferability"]
    for (_, step, shares), row in zip(noting.of("kept"), rows(run / "kept.csv"), strict=True):
        assert int(row["step"]) == step
        kept = next(r["kept"] for r in logged[4:] if int(r["step"]) == step)
        assert float(shares.sum()) == pytest.approx(float(kept), abs=1e-6)  # a row every step
        assert sum(float(v) for k, v in row.items() if k not in ("phase", "epoch", "step")) == (
            pytest.approx(float(kept), abs=3e-6)  # three cells with six digits
        )


def test_an_observer_of_a_resumed_run_is_told_where_it_goes_on(
    worlds: Path, tmp_path: Path
) -> None:
    run = tmp_path / "run"
    more = ("--gap-batches", "0", "--panels", "0", "--adaptation.epochs", "1")
    assert main(arguments(worlds, run, *more)) == 0
    noting = run_watched(["--resume", str(run), "--adaptation.epochs", "2"])
    name, (done,) = noting.told[0]
    assert name == "cut" and done["adaptation"] == 2 and done["warmup"] > 4
    assert not noting.of("start_again") and not noting.of("gap")
    assert [v["step"] for (v,) in noting.of("log")] == [3, 4]


def test_observers_stop_listening_when_a_run_fails(
    worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run, noting = Run(parse(arguments(worlds, tmp_path / "run"))), Noting()
    run.observers.observers.append(noting)

    def broken(*_: object) -> None:
        raise OSError("broken")

    monkeypatch.setattr(run, "warm_up", broken)
    with pytest.raises(OSError, match="broken"):
        run()
    assert noting.told[-1] == ("close", ())


def test_several_observers_are_told_the_same() -> None:
    pair = Noting(), Noting()
    calls: dict[str, tuple[Any, ...]] = {
        "start_again": (), "cut": ({"warmup": 1},), "log": ({"step": 1},),
        "score": ("row", "warmup", 1, None), "thresholds": (0, 0, 0.3, None),
        "kept": (0, 1, None), "gap": (0, 1, None), "centroids": (0, 1, None),
        "panels": (Path("x"),), "close": (),
    }  # fmt: skip
    methods = {name for name in vars(Observer) if not name.startswith("_")}
    assert methods == calls.keys()
    for name, given in calls.items():
        getattr(Observers(pair), name)(*given)
        getattr(Observer(), name)(*given)  # does nothing
    assert pair[0].told == pair[1].told == list(calls.items())


def test_a_state_that_does_not_fit_the_changed_keys(
    worlds: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    run = tmp_path / "run"
    more = ("--gap-batches", "0", "--panels", "0", "--adaptation.epochs", "1")
    assert main(arguments(worlds, run, *more)) == 0
    message = fails(capsys, ["--resume", str(run), "--adaptation.centroid-momentum", "0.5"])
    assert "does not fit this configuration" in message and "\n" not in message
    assert "resume without the keys that were changed" in message
    assert load(run / "checkpoints" / "last.pt")["place"]["step"] == 2


# --------------------------------------------------------------------------------- the terminal


def shown(terminal: bool, use: Callable[[Bar], None], **more: Any) -> str:
    console = Console(file=io.StringIO(), force_terminal=terminal, width=120)
    with Bar("CSCL", console=console, **more) as bar:
        use(bar)
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def three_steps(bar: Bar) -> None:
    bar.show(mIoU="41.2", epoch="1/2")
    for step in range(3):
        bar.show(loss=f"{2 - step / 2:.3f}", kept="35%")
        bar.advance()


def test_a_terminal_shows_a_bar() -> None:
    text = shown(True, three_steps, total=5, done=2)
    assert "CSCL" in text and "5/5" in text
    assert "epoch 1/2  loss 1.000  kept 35%  mIoU 41.2" in text and "steps/s" in text


def test_a_log_shows_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(progress, "EVERY", math.inf)
    assert shown(False, three_steps, total=4) == ""
    assert capsys.readouterr().out == ""  # neither time nor the end has come
    shown(False, three_steps, total=3)
    line = capsys.readouterr().out
    assert line.startswith("CSCL 3/3  epoch 1/2  loss 1.000  kept 35%  mIoU 41.2  ")
    assert line.endswith(" steps/s  0:00:00 left\n")
