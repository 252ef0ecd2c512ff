"""Whole runs: what the folder holds, what a run may depend on, stopping and going on."""

from __future__ import annotations

import math
import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from trainer_worlds import (
    CLASSES,
    SIZE,
    TinyModel,
    arguments,
    load,
    rows,
    run_through,
    same,
    write_split,
)

from cscl_fast.cli import parse
from cscl_fast.models import reestimate_statistics
from cscl_fast.presets import preset
from cscl_fast.train import main, train
from cscl_fast.trainer import checkpoint
from cscl_fast.trainer import run as run_module
from cscl_fast.trainer.journal import COLUMNS, Journal
from cscl_fast.trainer.run import Run
from cscl_fast.trainer.start import affine_for
from cscl_fast.trainer.world import Stream

ROWS = ["source only", "source only, target statistics", "CSCL", "CSCL, averaged weights"]
NAMES = [name for name, _ in CLASSES]
WEIGHTS = preset("small").adaptation.weights


# ---------------------------------------------------------------------------------- the run folder


def test_a_finished_run_leaves_its_files(finished: Path) -> None:
    files = {p.relative_to(finished).as_posix() for p in finished.rglob("*") if p.is_file()}
    assert files == {
        "config.yaml", "metrics.csv", "evaluation.csv", "thresholds.csv", "curves.png",
        "results.txt", "results.md", "panels/p0.png", "panels/p4.png", "panels/overview.png",
        "checkpoints/source.pt", "checkpoints/last.pt", "checkpoints/best.pt",
    }  # fmt: skip
    entries = yaml.safe_load((finished / "config.yaml").read_text())
    assert entries["adaptation"]["steps"] == 2 and entries["run"] == str(finished)


def test_metrics_hold_every_value_of_every_step(finished: Path) -> None:
    metrics = rows(finished / "metrics.csv")
    assert list(metrics[0]) == list(COLUMNS)
    places = [(r["phase"], r["epoch"], r["step"]) for r in metrics]
    assert places == [
        *(("warmup", "0", str(step)) for step in (1, 2, 3, 4)),
        *(("adaptation", str((step - 1) // 2), str(step)) for step in (1, 2, 3, 4)),
    ]
    for row in metrics:
        values = {k: float(v) for k, v in row.items() if k != "phase" and v}
        assert all(math.isfinite(v) for v in values.values())
        if row["phase"] == "adaptation":
            assert values.keys() == set(COLUMNS) - {"phase"}
            assert 0 < values["kept"] <= 1 and 0 <= values["transferability"] <= 1
            total = (
                values["source"] + values["target"] + values["discriminator"]
                + values["regression"] + 0.3 * values["critic"] + 1e-3 * values["adversarial"]
                + WEIGHTS.divergence * values["divergence"]
            )  # fmt: skip
            assert values["total"] == pytest.approx(total, rel=1e-4)
        else:
            assert values["total"] == values["source"] and "kept" not in values
    warmup = preset("small").warmup.learning_rate
    assert float(metrics[0]["learning_rate"]) == pytest.approx(warmup)
    assert float(metrics[3]["learning_rate"]) == pytest.approx(warmup * 0.25**0.9, rel=1e-4)


def test_evaluation_and_thresholds_tables(finished: Path) -> None:
    scores = rows(finished / "evaluation.csv")
    assert [(r["phase"], r["step"], r["row"]) for r in scores] == [
        ("warmup", "4", ROWS[0]),
        ("warmup", "4", ROWS[1]),
        *(("adaptation", step, row) for step in ("2", "4") for row in ROWS[2:]),
    ]
    for row in scores:
        ious = [float(row[name]) for name in NAMES]
        assert all(0 <= v <= 100 for v in ious)
        assert float(row["mIoU"]) == pytest.approx(sum(ious) / 3, abs=2e-3)
    thresholds = rows(finished / "thresholds.csv")
    assert [(r["epoch"], r["step"], r["portion"]) for r in thresholds] == [
        ("0", "0", "0.350"),
        ("1", "2", "0.400"),
    ]
    assert all(0 < float(r[name]) <= 1 for r in thresholds for name in NAMES)
    for name in ("results.txt", "results.md"):
        text = (finished / name).read_text()
        last = {r["row"]: r for r in scores}
        for row in ROWS:
            line = next(x for x in text.splitlines() if x.strip("| ").startswith(f"{row} "))
            assert f"{float(last[row]['mIoU']):.1f}" in line


def test_panels_and_curves_are_pictures(finished: Path) -> None:
    strip = np.asarray(Image.open(finished / "panels" / "p0.png"))
    assert strip.shape == (16 + SIZE[0], 5 * (SIZE[1] + 4) - 4, 3)
    overview = Image.open(finished / "panels" / "overview.png")
    assert overview.size == (strip.shape[1], 16 + 2 * (SIZE[0] + 4))
    colors = {tuple(c) for c in strip[16:, SIZE[1] + 4 : 2 * SIZE[1] + 4].reshape(-1, 3)}
    assert colors == {color for _, color in CLASSES} | {(0, 0, 0)}  # the truth, 255 in black
    assert min(Image.open(finished / "curves.png").size) > 400


def test_the_best_checkpoint_is_the_best_scored(finished: Path) -> None:
    scores = rows(finished / "evaluation.csv")
    best = max(float(r["mIoU"]) for r in scores if r["phase"] == "adaptation")
    content = load(finished / "checkpoints" / "best.pt")
    assert content["place"]["best"] == pytest.approx(best, abs=1e-3)
    assert content["classes"]["names"] == NAMES


def test_panels_of_images_that_share_a_stem(tmp_path: Path, tiny: None) -> None:
    write_split(tmp_path / "source", "train", 4, seed=0)
    for split in ("train", "val/a", "val/b"):
        write_split(tmp_path / "target", split, 4, seed=1)
    for part in ("images", "labels"):
        folder = tmp_path / "target" / part / "val" / "a"
        for i in range(4):  # dots are part of a name: these are four names, not one
            (folder / f"p{i}.png").rename(folder / f"p.0.{i}.png")
    options = ("--panels", "8", "--adaptation.epochs", "1", "--warmup.steps", "1")
    assert main(arguments(tmp_path, tmp_path / "run", *options)) == 0
    assert {p.stem for p in (tmp_path / "run" / "panels").iterdir()} == {
        "overview", *(f"a_p.0.{i}" for i in range(4)), *(f"b_p{i}" for i in range(4))
    }  # fmt: skip


# ------------------------------------------------------------------------------ statistics and bn


@pytest.mark.parametrize("bn", ["per-domain", "shared"])
def test_statistics_are_the_sources_then_estimated_anew_on_the_target(
    worlds: Path, tmp_path: Path, tiny: None, bn: str
) -> None:
    options = ("--adaptation.epochs", "0", "--panels", "0", "--adaptation.bn", bn)
    config = parse(arguments(worlds, tmp_path / "run", *options))
    torch.manual_seed(config.seed)
    expected = TinyModel("deeplabv2-resnet18", 3).train()
    config.warmup.learning_rate = 1e-30  # weights stay, statistics move
    run = Run(config)
    run()
    stream = run.world.stream("source", 2)
    for _ in range(4):
        expected(stream.next().images)
    source = load(tmp_path / "run" / "checkpoints" / "source.pt")["model"]
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(source[name], buffer, msg=name)
    reestimate_statistics(expected, run.world.target_statistics(1))
    for name, buffer in expected.named_buffers():
        torch.testing.assert_close(run.model.state_dict()[name], buffer, msg=name)


def test_no_batches_keep_the_sources_statistics(worlds: Path, tmp_path: Path, tiny: None) -> None:
    options = ("--adaptation.epochs", "0", "--panels", "0", "--adaptation.bn-batches", "0")
    run = Run(parse(arguments(worlds, tmp_path / "run", *options)))
    scores = run()
    source = load(tmp_path / "run" / "checkpoints" / "source.pt")["model"]
    assert same(dict(run.model.state_dict()), dict(source))
    assert torch.equal(scores[ROWS[0]].iou, scores[ROWS[1]].iou)


# -------------------------------------------------------------------------------- combinations


@pytest.fixture(scope="module")
def warm(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source-only checkpoint of the tiny network."""
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cscl_fast.trainer.run.build_model", TinyModel)
        patch.setattr("cscl_fast.trainer.records.Records.curves", lambda self: None)
        run_through(arguments(worlds, folder, "--source-only", "--warmup.steps", "30"))
    return folder / "checkpoints" / "source.pt"


@pytest.mark.parametrize("schedule", ["joint", "alternating"])
@pytest.mark.parametrize(
    "options",
    [
        ("--adaptation.labels", "snapshot"),
        ("--adaptation.labels", "snapshot", "--adaptation.thresholds", "online"),
        ("--adaptation.labels", "ema"),
        ("--adaptation.labels", "ema", "--adaptation.thresholds", "online"),
        ("--adaptation.labels", "live", "--adaptation.thresholds", "online"),
        ("--without", "transfer"),
        ("--without", "pseudo-labels"),
        ("--without", "divergence"),
        ("--without", "transfer", "pseudo-labels", "divergence"),
        ("--adaptation.centroid-momentum", "0.9", "--adaptation.normalise", "l1"),
        ("--optimizer.name", "adam", "--optimizer.clip-norm", "1"),
        ("--adaptation.batch-size", "1", "--adaptation.bn", "shared"),
    ],
    ids=lambda options: " ".join(o.removeprefix("--adaptation.") for o in options),
)
def test_every_way_of_labelling_and_ablation_runs(
    worlds: Path, warm: Path, tmp_path: Path, tiny: None, schedule: str, options: tuple[str, ...]
) -> None:
    more = ("--model.init", str(warm), "--warmup.steps", "0", "--panels", "0", "--evaluation.limit")
    more = (*more, "2", "--adaptation.epochs", "2", "--adaptation.steps", "1")
    run = tmp_path / "run"
    assert main(arguments(worlds, run, *more, "--adaptation.schedule", schedule, *options)) == 0
    metrics = rows(run / "metrics.csv")
    assert [r["phase"] for r in metrics] == ["adaptation"] * 2
    empty = {key for key, value in metrics[-1].items() if not value}
    expected = set()
    if "transfer" in options:
        expected |= {"discriminator", "adversarial", "critic", "regression", "reward"}
        expected |= {"transferability"}
    if "divergence" in options:
        expected |= {"divergence"}
    assert empty == expected
    if "pseudo-labels" in options:
        assert float(metrics[-1]["kept"]) == 1
    assert all(math.isfinite(float(v)) for r in metrics for k, v in r.items() if v and k != "phase")


def test_source_only_stops_after_its_evaluation_and_may_go_on(
    worlds: Path, tmp_path: Path, tiny: None
) -> None:
    run = tmp_path / "run"
    assert main(arguments(worlds, run, "--source-only")) == 0
    assert [r["row"] for r in rows(run / "evaluation.csv")] == ROWS[:2]
    assert not (run / "thresholds.csv").exists() and not (run / "checkpoints/best.pt").exists()
    assert {r["phase"] for r in rows(run / "metrics.csv")} == {"warmup"}
    whole = tmp_path / "whole"
    assert main(arguments(worlds, whole)) == 0
    assert main(["--resume", str(run), "--no-source-only"]) == 0
    assert_same_runs(run, whole)


def test_target_labels_never_influence_training(worlds: Path, tmp_path: Path, tiny: None) -> None:
    other = tmp_path / "other"
    write_split(other / "target", "train", 7, seed=1)  # the same images ...
    for i in range(7):  # ... and labels that are all wrong
        path = other / "target" / "labels" / "train" / f"p{i}.png"
        wrong = (np.asarray(Image.open(path)).astype(int) + 1 + i) % 3
        Image.fromarray(wrong.astype(np.uint8)).save(path)
    results = []
    for name, options in {
        "never opened": ("--target.no-use-labels",),
        "wrong": ("--target.use-labels", "--target.root", str(other / "target")),
    }.items():
        run = tmp_path / name
        assert main(arguments(worlds, run, *options, "--panels", "0")) == 0
        content = load(run / "checkpoints" / "last.pt")
        results.append({k: content[k] for k in ("model", "cscl", "average", "labeller")})
    assert same(*results)


def test_a_run_is_repeatable_and_its_seed_matters(worlds: Path, tmp_path: Path, tiny: None) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        options = ("--seed", seed, "--panels", "0", "--adaptation.epochs", "1")
        assert main(arguments(worlds, tmp_path / name, *options)) == 0
    a, b, c = (load(tmp_path / n / "checkpoints" / "last.pt")["model"] for n in "abc")
    assert same(a, b) and not same(a, c)


# -------------------------------------------------------------------------- stopping and going on


def assert_same_runs(a: Path, b: Path) -> None:
    """Bit for bit: weights, optimizers, thresholds, random generators, tables but for times."""
    first, second = (load(folder / "checkpoints" / "last.pt") for folder in (a, b))
    assert first.keys() == second.keys()
    for content in (first, second):  # nothing draws from these two: they are the process's
        del content["random"]["python"], content["random"]["numpy"]
    for key in first:
        assert same(first[key], second[key]), key
    for name in ("source", "best"):
        x, y = (load(folder / "checkpoints" / f"{name}.pt") for folder in (a, b))
        assert same(x["model"], y["model"]), name
    for name in ("evaluation.csv", "thresholds.csv", "results.txt", "results.md"):
        assert (a / name).read_text() == (b / name).read_text(), name
    metrics = [
        [{k: v for k, v in r.items() if k not in ("seconds", "speed")} for r in rows(f)]
        for f in (a / "metrics.csv", b / "metrics.csv")
    ]
    assert metrics[0] == metrics[1]


@pytest.fixture(scope="module")
def whole(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Runs that nothing interrupts, by their options."""
    folder = tmp_path_factory.mktemp("whole")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cscl_fast.trainer.run.build_model", TinyModel)
        patch.setattr("cscl_fast.trainer.records.Records.curves", lambda self: None)
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
}


@pytest.mark.parametrize(
    ("kind", "stops"),
    [
        ("joint", (3,)),  # in the warm-up
        ("joint", (4,)),  # at its end
        ("joint", (6,)),  # in the adaptation
        ("joint", (7,)),  # at the end of an epoch
        ("all that has a state", (2, 5, 8)),
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
    log = Journal.log
    for stop in stops:
        passed = [0]

        def interrupting(
            self: Journal, *, stop: int = stop, passed: list[int] = passed, **values
        ) -> None:
            log(self, **values)
            overall = values["step"] + (4 if values["phase"] == "adaptation" else 0)
            passed[0] += 1
            if overall == stop:
                os.kill(os.getpid(), signal.SIGINT)

        monkeypatch.setattr(Journal, "log", interrupting)
        assert main(command) == 130
        message = capsys.readouterr().err
        step = f"warmup step {stop}" if stop <= 4 else f"adaptation step {stop - 4}"
        assert f"Interrupted at {step}; everything is saved" in message
        assert f"python -m cscl_fast.train --resume '{run}'" in message
        assert passed[0] <= stop
        assert signal.getsignal(signal.SIGINT) is before
        command = ["--resume", str(run)]
    monkeypatch.setattr(Journal, "log", log)
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
    log = Journal.log

    def killing(self: Journal, **values) -> None:
        log(self, **values)
        if (values["phase"], values["step"]) == ("adaptation", at):
            os.kill(os.getpid(), signal.SIGINT)
            os.kill(os.getpid(), signal.SIGINT)

    monkeypatch.setattr(Journal, "log", killing)
    assert main(arguments(worlds, run, *KINDS["joint"])) == 130
    message = capsys.readouterr().err
    assert f"Go on from the last checkpoint with:\n  python -m cscl_fast.train --resume {run}" in (
        message
    )
    assert len(rows(run / "metrics.csv")) == 4 + at
    with open(run / "metrics.csv", "a") as file:
        file.write("adaptation,0")  # a row that the disk took half of
    monkeypatch.setattr(Journal, "log", log)
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


# -------------------------------------------------------------------------------------- the demo


def test_the_demo_runs_when_cut_down(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    run = tmp_path / "demo"
    options = [
        *("--run", str(run), "--warmup.steps", "1", "--warmup.batch-size", "2", "--threads", "1"),
        *("--adaptation.epochs", "1", "--adaptation.steps", "2", "--adaptation.batch-size", "1"),
        *("--source.count", "4", "--target.count", "4", "--evaluation.count", "2"),
        *("--adaptation.bn-batches", "1", "--panels", "1"),
    ]
    assert main(options) == 0
    shown = capsys.readouterr().out
    assert "(source only) -> " in shown and "(CSCL)" in shown
    content = load(run / "checkpoints" / "last.pt")
    assert content["architecture"] == preset("demo").model.architecture
    assert content["num_classes"] >= 8


def test_other_seeds_draw_other_worlds() -> None:
    worlds = [
        run_module.World(replace(preset("demo"), seed=seed), torch.device("cpu"))
        for seed in (0, 0, 1)
    ]
    a, b, c = (w.evaluation[0]["image"] for w in worlds)
    assert torch.equal(a, b) and not torch.equal(a, c)


def test_streams_go_on_where_they_were(worlds: Path) -> None:
    world = run_module.World(parse(arguments(worlds, None)), torch.device("cpu"))
    one: Stream = world.stream("target", 2)
    batches = [one.next() for _ in range(6)]
    other = world.stream("target", 2)
    other.seek(6)
    for expected in batches[3:]:
        found = other.next()
        assert found.paths == expected.paths
        assert torch.equal(found.images, expected.images)
        assert torch.equal(found.clean, expected.clean)
        assert not torch.equal(found.images, found.clean)  # jitter and blur


def test_batchnorm_affine_is_frozen_with_pretrained_weights_only(tmp_path: Path) -> None:
    """From scratch it learns, and goes on learning from a checkpoint of such a run."""
    assert affine_for("none") == "trained"
    assert affine_for("imagenet") == "frozen"
    foreign = tmp_path / "foreign.pth"
    torch.save({"conv1.weight": torch.zeros(1)}, foreign)
    assert affine_for(str(foreign)) == "frozen"
    for affine in ("trained", "frozen"):
        own = tmp_path / f"{affine}.pt"
        checkpoint.save(own, {"batchnorm_affine": affine})
        assert affine_for(str(own)) == affine
