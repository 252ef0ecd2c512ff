"""Studies: which runs, on from where, stopping, failing, and the tables at the end."""

from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import yaml

from cscl_fast.cli import parse
from cscl_fast.config import ConfigError
from cscl_fast.data.classes import RESERVED_NAMES
from cscl_fast.studies import launch, run_study
from cscl_fast.studies.folders import state_of
from cscl_fast.studies.plan import make_plan
from cscl_fast.train import main, train

ROWS = ("without-transfer", "without-pseudo-labels", "without-divergence", "full")


@pytest.fixture
def calls(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """Runs are pretended; the file that their arguments are written into."""
    path = tmp_path / "calls"
    path.touch()
    monkeypatch.setenv("PRETEND_CALLS", str(path))
    pretend = Path(__file__).with_name("pretend_train.py")
    monkeypatch.setattr(launch, "TRAIN", (sys.executable, str(pretend)))
    monkeypatch.setattr(launch, "POLL", 0.02)
    return path


def command(folder: Path, *more: str) -> list[str]:
    return ["--preset", "demo", "--run", str(folder), *more]


def ran(calls: Path) -> list[str]:
    """Of each call so far: the run's label, with "resume" or "again" before it."""
    found = []
    for line in calls.read_text().splitlines():
        words = line.split()
        folder = Path(words[words.index("--resume" if "--resume" in words else "--run") + 1])
        how = "resume " if "--resume" in words else "again " if "--overwrite" in words else ""
        found.append(f"{how}{folder.parent.name}/{folder.name}")
    calls.write_text("")
    return found


def results(study: Path) -> dict[str, dict]:
    content = json.loads((study / "results.json").read_text())
    return {row["title"]: row for row in content["rows"]}


# ------------------------------------------------------------------------------------------- plans


def test_ablation_is_six_rows_over_three_seeds_from_one_source_network_each(tmp_path: Path) -> None:
    study = make_plan(parse(command(tmp_path, "--ablation", "--seed", "4")))
    assert study.seeds == (4, 5, 6)
    assert list(study.titles) == ["source-only", *ROWS]
    assert list(study.titles.values()) == ["source only", "w/o TC", "w/o CG", "w/o SD", "full CSCL"]
    assert len(study.runs) == 15
    for run in study.runs:
        config = run.config
        config.validate()
        assert not config.is_study and config.seed == run.seed
        assert run.folder == tmp_path / f"seed{run.seed}" / run.name
        if run.after is None:
            assert config.source_only and config.warmup.steps == 300 and run.steps == 300
        else:
            assert run.after.seed == run.seed and not config.source_only
            assert config.warmup.steps == 0 and run.steps == 120
            assert Path(config.model.init) == run.after.folder / "checkpoints" / "source.pt"
    left_out = {run.name: run.config.without for run in study.runs if run.after}
    assert left_out == {
        "without-transfer": ("transfer",),
        "without-pseudo-labels": ("pseudo-labels",),
        "without-divergence": ("divergence",),
        "full": (),
    }


def test_sweep_takes_the_papers_names_and_shares_the_value_that_is_set(tmp_path: Path) -> None:
    options = ["--sweep", "xi1=0.1,0.30", "gamma=0.25", "adaptation.labels=ema,live", "--seeds=7"]
    options += ["--adaptation.thresholds", "online"]
    study = make_plan(parse(command(tmp_path, *options)))
    assert study.seeds == (7,)
    assert [s.key for s in study.sweeps] == [
        "adaptation.weights.critic", "adaptation.gamma", "adaptation.labels",
    ]  # fmt: skip
    # 0.3 and 0.25 are what the configuration has: one run serves both.
    assert study.sweeps[0].runs == {"0.1": "adaptation.weights.critic=0.1", "0.3": "full"}
    assert study.sweeps[1].runs == {"0.25": "full"}
    names = [run.name for run in study.runs]
    assert names == [
        "source-only", "adaptation.weights.critic=0.1", "full",
        "adaptation.labels=ema", "adaptation.labels=live",
    ]  # fmt: skip
    by_name = {run.name: run.config for run in study.runs}
    assert by_name["adaptation.weights.critic=0.1"].adaptation.weights.critic == 0.1
    assert by_name["full"].adaptation.weights.critic == 0.3
    assert by_name["adaptation.labels=ema"].adaptation.labels == "ema"
    # All in one word: a part with "=" begins another key.
    joined = ["--sweep", "xi1=0.1,0.30,gamma=0.25", *options[3:]]
    assert [r.name for r in make_plan(parse(command(tmp_path, *joined))).runs] == names
    both = make_plan(parse(command(tmp_path, *options, "--ablation")))
    assert [r.name for r in both.runs][1:5] == list(ROWS)
    assert sum(r.name == "full" for r in both.runs) == 1


@pytest.mark.parametrize(
    "options, named",
    [
        (["--ablation", "--jobs", "0"], "jobs is 0"),
        (["--ablation", "--seeds", "1", "1"], "seeds is"),
        (["--seeds", "1", "2"], "seeds is"),
        (["--jobs", "2"], "jobs is 2"),
        (["--ablation", "--without", "transfer"], "without is"),
        (["--ablation", "--source-only"], "source_only is True"),
        (["--ablation", "--adaptation.epochs", "0"], "adaptation.epochs is 0"),
        (["--sweep", "xi1"], "sweep is 'xi1'; it is KEY=VALUE,VALUE"),
        (["--sweep", "gamma=0.1", "0.2"], "sweep is '0.2'; it is KEY=VALUE,VALUE"),
        (["--sweep", "gamma=0.1", "0.2"], "with commas between the values"),
        (["--sweep", "xi1=0.1,,0.3"], "sweep is 'xi1=0.1,,0.3'"),
        (["--sweep", "xi1=0.3,0.30"], "the value 0.3 is in it twice"),
        (["--sweep", "xi1=0.1", "adaptation.weights.critic=1"], "weights.critic twice"),
        (["--sweep", "xi4=0.1"], "xi4 is no key"),
        (["--sweep", "warmup.steps=1,2"], "warmup.steps is the same for all runs"),
        (["--sweep", "xi1=many"], "adaptation.weights.critic cannot be 'many'"),
        (["--sweep", "gamma=0"], "sweep: adaptation.gamma is 0"),
    ],
)
def test_what_cannot_be_a_study_is_refused_by_key(
    options: list[str], named: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(command(tmp_path / "study", *options)) == 2
    assert named in capsys.readouterr().err
    assert not (tmp_path / "study").exists()


def test_a_study_is_not_resumed_and_not_started_in_a_runs_folder(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "config.yaml").write_text("preset: demo\n")
    assert main(["--resume", str(tmp_path), "--ablation"]) == 2
    assert "goes on with the command" in capsys.readouterr().err
    assert main(command(tmp_path, "--ablation")) == 2
    assert "folder of a single run" in capsys.readouterr().err
    with pytest.raises(ConfigError, match="run_study"):
        train(parse(command(tmp_path / "study", "--ablation")))
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match="start it without torchrun, and say with jobs"):
        run_study(parse(command(tmp_path / "study", "--ablation")))
    assert main(command(tmp_path / "study", "--ablation")) == 2
    assert "torchrun" in capsys.readouterr().err


# -------------------------------------------------------------------------------------------- runs


def test_ablation_runs_prints_and_is_done_the_second_time(
    calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    study = tmp_path / "study"
    options = command(study, "--ablation", "--seeds", "0", "1", "--jobs", "3", "--threads", "2")
    assert main(options) == 0
    labels = ran(calls)
    assert sorted(labels) == sorted(
        f"seed{s}/{name}" for s in (0, 1) for name in ("source-only", *ROWS)
    )
    said = capsys.readouterr().out
    lines = [line.split("  ")[0].strip() for line in said.splitlines()]
    table = lines[next(i for i, x in enumerate(lines) if x.startswith("mIoU in percent")) :]
    assert table[2:8] == [
        "source only", "source only, target statistics", "w/o TC", "w/o CG", "w/o SD", "full CSCL",
    ]  # fmt: skip
    assert "the paper, GTA5 → Cityscapes, ResNet-101" in said and "are no measure" in said
    full = next(line for line in said.splitlines() if line.startswith("full CSCL"))
    assert full.split() == ["full", "CSCL", "30.8", "±", "0.7", "35.8", "±", "0.7", "48.6"]

    rows = results(study)
    assert rows["full CSCL"]["last"]["seeds"]["1"] == {"mIoU": 31.3, "road": 32.3, "train": None}
    assert rows["w/o SD"]["last"]["mean"]["mIoU"] == 28.8
    assert rows["w/o SD"]["averaged"]["mean"]["mIoU"] == 33.8
    assert rows["w/o SD"]["without"] == ["divergence"] and rows["source only"]["without"] is None
    assert rows["source only"]["last"]["mean"]["mIoU"] == 10.5
    assert rows["source only"]["last"]["deviation"]["mIoU"] == pytest.approx(0.707)
    assert rows["source only, target statistics"]["averaged"] is None
    with open(study / "results.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert {*table[0]} - RESERVED_NAMES == {"road", "train"}  # no class has another column's name
    assert len(table) == 2 * (2 + 2 * 4)  # seeds x (source rows, and each adaptation twice)
    assert "| w/o TC | 28.8 ± 0.7 | 33.8 ± 0.7 | 46.7 |" in (study / "results.md").read_text()
    assert (study / "results.txt").read_text().strip() in said
    described = yaml.safe_load((study / "study.yaml").read_text())
    assert described["ablation"] is True and described["seeds"] == [0, 1]
    assert main(["--resume", str(study)]) == 2  # which goes on as it was started
    said = capsys.readouterr().err
    assert "the folder of a study" in said and f"--config {study / 'study.yaml'}" in said
    assert "ablation" not in yaml.safe_load((study / "seed0/full/config.yaml").read_text())

    before = {f: f.stat().st_mtime_ns for f in study.rglob("config.yaml")}
    assert main(options) == 0
    assert ran(calls) == []
    assert {f: f.stat().st_mtime_ns for f in study.rglob("config.yaml")} == before
    # More seeds, and what only says how it is computed: what is there stays.
    options[options.index("0") : options.index("0")] = ["2"]
    assert main([*options, "--save-every", "3", "--workers", "1", "--no-tensorboard"]) == 0
    assert sorted(ran(calls)) == sorted(f"seed2/{name}" for name in ("source-only", *ROWS))
    assert main([*options, "--overwrite"]) == 0
    assert len(again := ran(calls)) == 15 and all(label.startswith("again ") for label in again)


def test_a_changed_configuration_is_refused_with_the_keys(
    calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options = command(tmp_path / "study", "--ablation", "--seeds", "0")
    assert main(options) == 0
    ran(calls)
    assert main([*options, "--adaptation.gamma", "0.5", "--warmup.steps", "299"]) == 2
    said = capsys.readouterr().err
    assert "seed0/source-only" in said
    assert "warmup.steps is 300 there and 299 here" in said
    assert "gamma" not in said  # a source-only run does not know it
    assert main([*options, "--adaptation.gamma", "0.5", "--adaptation.weights.divergence=1"]) == 2
    said = capsys.readouterr().err
    assert "seed0/without-transfer" in said
    assert "adaptation.gamma is 0.25 there and 0.5 here" in said
    assert "adaptation.weights.divergence is 0.3 there and 1.0 here" in said
    assert ran(calls) == []


def test_a_source_only_run_made_by_hand_in_an_older_version_is_taken(
    calls: Path, tmp_path: Path
) -> None:
    study = tmp_path / "study"
    options = command(study, "--ablation", "--seeds", "3")
    run = make_plan(parse(options)).runs[0]
    assert state_of(run) == "empty"
    entries = yaml.safe_load((_write_run(run.folder, run.steps) / "config.yaml").read_text())
    assert "gap_batches" not in entries  # a key that came later
    assert state_of(run) == "finished"
    assert main(options) == 0
    assert sorted(ran(calls)) == sorted(f"seed3/{name}" for name in ROWS)
    assert results(study)["source only"]["last"]["mean"]["mIoU"] == 21.0


def _write_run(folder: Path, steps: int) -> Path:
    """What a version before studies left of `--source-only --seed 3`, at another place."""
    config = parse(["--preset", "demo", "--source-only", "--seed", "3", "--threads", "1"])
    from cscl_fast.cli import to_yaml

    config.model.batchnorm_affine = "trained"  # what auto became
    entries = yaml.safe_load(to_yaml(config))
    for key in ("precision", "compile", "accumulate", "gap_batches", "tensorboard", "cache"):
        entries.pop(key)
    entries["model"].pop("activation_checkpointing")
    (folder / "checkpoints").mkdir(parents=True)
    (folder / "config.yaml").write_text(yaml.safe_dump(entries))
    (folder / "checkpoints" / "source.pt").touch()
    (folder / "results.txt").touch()
    (folder / "evaluation.csv").write_text(
        f"phase,step,row,mIoU,road\nwarmup,{steps},source only,21,22\n"
        f'warmup,{steps},"source only, target statistics",23,24\n'
    )
    return folder


def test_a_failed_run_is_reported_and_the_others_finish(
    calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    options = command(study, "--ablation", "--seeds", "0", "1")
    monkeypatch.setenv("PRETEND_FAIL", "seed1/without-divergence")
    assert main(options) == 1
    said = capsys.readouterr().out
    assert "seed1/without-divergence failed" in said and "a loss is not finite" in said
    assert len(ran(calls)) == 10
    rows = results(study)
    assert list(rows["w/o SD"]["last"]["seeds"]) == ["0"]
    assert rows["w/o SD"]["last"]["deviation"]["mIoU"] is None  # of one seed there is none
    assert "w/o SD: 1." in said  # the missing seed, below the table
    monkeypatch.delenv("PRETEND_FAIL")
    assert main(options) == 0
    assert ran(calls) == ["again seed1/without-divergence"]  # it had saved nothing

    monkeypatch.setenv("PRETEND_FAIL", "seed5/source-only")
    assert main([*options, "--seeds", "5"]) == 1  # one more
    said = capsys.readouterr().out
    assert ran(calls) == ["seed5/source-only"]
    assert "Not run" in said and "seed5/full" in said


def test_nothing_old_counts_once_a_study_is_overwritten(
    calls: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    options = command(study, "--ablation", "--seeds", "0")
    assert main(options) == 0
    ran(calls)
    monkeypatch.setenv("PRETEND_FAIL", "seed0/source-only")
    assert main([*options, "--overwrite"]) == 1
    assert ran(calls) == ["again seed0/source-only"]
    assert not (study / "results.json").exists()
    monkeypatch.delenv("PRETEND_FAIL")
    assert main(options) == 0
    assert sorted(ran(calls)) == sorted(
        ["again seed0/source-only", *(f"seed0/{name}" for name in ROWS)]
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_stopping_stops_every_run_once_and_says_how_to_go_on(
    number: signal.Signals, calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    study = tmp_path / "study"
    options = command(study, "--ablation", "--seeds", "0", "--jobs", "2", "--overwrite")
    monkeypatch.setenv("PRETEND_WAIT", "seed0/without")
    waiting = [study / "seed0" / name / "waiting" for name in ROWS[:2]]

    def stop_when_both_wait() -> None:
        wait_for(lambda: all(path.exists() for path in waiting))
        os.kill(os.getpid(), number)

    before = signal.getsignal(number)
    thread = threading.Thread(target=stop_when_both_wait)
    thread.start()
    assert main(options) == 130
    thread.join()
    said = capsys.readouterr().out
    assert "seed0/without-transfer: stopped" in said
    expected = f"--preset demo --run {study} --ablation --seeds 0 --jobs 2"
    assert said.rstrip().endswith(f"python -m cscl_fast.train {expected}")  # without --overwrite
    first, *others = ran(calls)
    assert first == "again seed0/source-only"
    assert sorted(others) == sorted(f"again seed0/{name}" for name in ROWS[:2])
    assert signal.getsignal(number) == before  # a study leaves the handlers as they were
    monkeypatch.delenv("PRETEND_WAIT")
    assert main(options[:-1]) == 0
    assert sorted(ran(calls)) == [
        "resume seed0/without-pseudo-labels", "resume seed0/without-transfer",
        "seed0/full", "seed0/without-divergence",
    ]  # fmt: skip


def test_a_study_runs_once_at_a_time_and_its_runs_stop_with_it(
    calls: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    study = tmp_path / "study"
    options = command(study, "--ablation", "--seeds", "0")
    monkeypatch.setenv("PRETEND_WAIT", "seed0/source-only")
    program = (
        "import sys; from cscl_fast.studies import launch; from cscl_fast.train import main; "
        f"launch.TRAIN = {launch.TRAIN!r}; sys.exit(main({options!r}))"
    )
    first = subprocess.Popen([sys.executable, "-c", program], stdout=subprocess.DEVNULL)
    waiting = study / "seed0" / "source-only" / "waiting"
    wait_for(waiting.exists)
    assert main(options) == 2
    assert "a study that is being run" in capsys.readouterr().err
    first.kill()  # no chance to stop its run itself
    first.wait()
    saved = study / "seed0" / "source-only" / "checkpoints" / "last.pt"
    wait_for(saved.exists)  # the run was asked to stop, and saved
    monkeypatch.delenv("PRETEND_WAIT")
    wait_for(lambda: main(options) == 0)  # as soon as it has let go of the lock
    assert "resume seed0/source-only" in ran(calls)


def wait_for(condition: Callable[[], bool]) -> None:
    end = time.monotonic() + 100
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_a_sweep_ends_in_a_figure_for_each_key(calls: Path, tmp_path: Path) -> None:
    study = tmp_path / "study"
    assert main(command(study, "--sweep", "xi1=1,0.3", "gamma=0.1", "--seeds", "0", "1")) == 0
    with open(study / "sweep-adaptation.weights.critic.csv", newline="") as file:
        table = list(csv.DictReader(file))
    assert [row["adaptation.weights.critic"] for row in table] == ["1.0", "0.3"]
    assert [float(row["last checkpoint"]) for row in table] == [31.5, 30.8]
    assert [float(row["averaged weights deviation"]) for row in table] == [0.707, 0.707]
    assert {row["last checkpoint seeds"] for row in table} == {"2"}
    for key in ("adaptation.weights.critic", "adaptation.gamma"):
        assert (study / f"sweep-{key}.png").read_bytes().startswith(b"\x89PNG")
    assert (study / "seed1" / "adaptation.weights.critic=1.0" / "config.yaml").is_file()


def test_another_runs_folder_names_every_key(tmp_path: Path) -> None:
    study = make_plan(parse(command(tmp_path, "--ablation", "--seeds", "3")))
    _write_run(study.runs[0].folder, 300)
    config = study.runs[0].config
    config.optimizer.momentum, config.source.count = 0.5, 7
    with pytest.raises(ConfigError) as error:
        state_of(study.runs[0])
    assert "optimizer.momentum is 0.9 there and 0.5 here" in str(error.value)
    assert "source.count is 300 there and 7 here" in str(error.value)
