"""Keys of a run that are no part of the method: precision, micro-batches, determinism, memory."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from trainer_worlds import arguments, load, rows, same

from cscl_fast.cli import parse
from cscl_fast.train import main
from cscl_fast.trainer import environment
from cscl_fast.trainer.environment import command, deterministic
from cscl_fast.trainer.precision import Precision
from cscl_fast.trainer.run import Run

pytestmark = pytest.mark.usefixtures("tiny")
SHORT = ("--panels", "0", "--adaptation.epochs", "1", "--gap-batches", "1")


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_in_another_precision(worlds: Path, tmp_path: Path, precision: str) -> None:
    assert main(arguments(worlds, tmp_path / "run", *SHORT, "--precision", precision)) == 0
    metrics = rows(tmp_path / "run" / "metrics.csv")
    assert len(metrics) == 6 and {r["skipped"] for r in metrics} == {"0"}
    state = load(tmp_path / "run" / "checkpoints" / "last.pt")["trainer"]
    assert bool(state["precision"]["scaler"]) == (precision == "float16")


def test_skipped_updates_are_counted_and_reported(
    worlds: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    backward, calls = Precision.backward, [0]

    def with_an_infinity(self: Precision, objective: torch.Tensor) -> None:
        calls[0] += 1
        backward(self, objective * (torch.inf if calls[0] in (2, 5) else 1))

    monkeypatch.setattr(Precision, "backward", with_an_infinity)
    assert main(arguments(worlds, tmp_path / "run", *SHORT, "--precision", "float16")) == 0
    skipped = [(r["phase"], r["skipped"]) for r in rows(tmp_path / "run" / "metrics.csv")]
    assert skipped == [
        *(("warmup", n) for n in ("0", "1", "1", "1")),
        *(("adaptation", n) for n in ("1", "1")),
    ]
    shown = capsys.readouterr().out
    assert "warmup: 1 updates were skipped" in shown
    assert "adaptation: 1 updates were skipped" in shown


def test_micro_batches_take_as_many_images_as_they_say(worlds: Path, tmp_path: Path) -> None:
    """Two micro-batches of 1 a step are read like a batch of 2."""
    states = []
    for name, size, count in (("one", "2", "1"), ("two", "1", "2")):
        options = ("--warmup.batch-size", size, "--adaptation.batch-size", size)
        more = ("--source-only", "--accumulate", count, "--warmup.steps", "3")
        run = tmp_path / name
        assert main(arguments(worlds, run, *SHORT, *options, *more)) == 0
        states.append(load(run / "checkpoints" / "last.pt"))
    assert states[0]["positions"] == states[1]["positions"] == {"source": 6}
    assert not same(states[0]["model"], states[1]["model"])  # each has its own statistics


def test_deterministic_algorithms_are_on_during_the_run_only(
    worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("CUBLAS_WORKSPACE_CONFIG", raising=False)
    seen = []
    run = Run(parse(arguments(worlds, tmp_path / "run", *SHORT, "--deterministic")))
    monkeypatch.setattr(
        run.world,
        "check",
        lambda say: seen.append(
            (torch.are_deterministic_algorithms_enabled(), torch.backends.cudnn.deterministic)
        ),
    )
    before = (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark)
    run()
    assert seen == [(True, True)]
    assert not torch.are_deterministic_algorithms_enabled()
    assert (torch.backends.cudnn.deterministic, torch.backends.cudnn.benchmark) == before
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":4096:8"
    # Nothing changes on a CPU, whose algorithms are deterministic anyway.
    assert main(arguments(worlds, tmp_path / "other", *SHORT)) == 0
    a, b = (load(tmp_path / name / "checkpoints" / "last.pt") for name in ("run", "other"))
    assert same(a["model"], b["model"])


def test_settings_of_others_survive_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    with pytest.raises(ZeroDivisionError), deterministic(True):
        assert torch.are_deterministic_algorithms_enabled()
        raise ZeroDivisionError
    assert not torch.are_deterministic_algorithms_enabled()
    assert os.environ["CUBLAS_WORKSPACE_CONFIG"] == ":16:8"
    with deterministic(False):
        assert not torch.are_deterministic_algorithms_enabled()


def test_the_environment_names_no_place_and_no_person(finished: Path) -> None:
    text = (finished / "environment.json").read_text()
    entries = json.loads(text)
    assert {"cscl_fast", "python", "torch", "processor", "device", "backend", "processes"} <= (
        entries.keys()
    )
    assert all(isinstance(v, str | int | float) for v in entries.values())
    assert entries["torch"] == torch.__version__ and entries["device"] == "cpu"
    assert str(Path.home()) not in text and os.uname().nodename not in entries.values()
    assert command(["--run", "/home/jo/runs/a b", "--source.root=/data/x", "--seed", "1"]) == (
        "python -m cscl_fast.train --run '.../a b' --source.root=.../x --seed 1"
    )


def test_an_installed_package_is_of_no_commit(tmp_path: Path) -> None:
    assert environment.commit_of(tmp_path) is None
    (tmp_path / ".git").mkdir()  # not a repository
    assert environment.commit_of(tmp_path) is None


def test_where_the_time_went(finished: Path) -> None:
    timing = json.loads((finished / "timing.json").read_text())
    assert list(timing) == ["warmup", "adaptation"]
    for phase in timing.values():
        assert phase["steps"] == 4
        assert sum(phase["parts"].values()) == pytest.approx(phase["seconds"], rel=1e-2)
        expected = {"wait", "losses", "backward", "optimizer", "evaluation", "checkpoint"}
        assert expected | {"records", "other"} <= phase["parts"].keys()
    assert {"labels", "thresholds"} <= timing["adaptation"]["parts"].keys()


def test_the_time_of_a_resumed_run_adds_up(worlds: Path, tmp_path: Path) -> None:
    run = tmp_path / "run"
    assert main(arguments(worlds, run, "--source-only", "--warmup.steps", "2")) == 0
    first = json.loads((run / "timing.json").read_text())["warmup"]
    assert main(["--resume", str(run), "--warmup.steps", "4"]) == 0
    both = json.loads((run / "timing.json").read_text())["warmup"]
    assert (first["steps"], both["steps"]) == (2, 4)
    assert both["parts"]["backward"] > first["parts"]["backward"] > 0


@pytest.mark.parametrize("key", ["--compile", "--model.activation-checkpointing"])
def test_the_network_is_prepared_as_asked(
    worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, key: str
) -> None:
    prepared = []
    name = {"--compile": "compile_parts"}.get(key, "checkpoint_activations")
    monkeypatch.setattr(f"cscl_fast.trainer.prepare.{name}", lambda model: prepared.append(model))
    run = Run(parse(arguments(worlds, tmp_path / "run", key)))
    assert prepared == [run.model]
