"""Whole runs: what the folder holds, what a run may depend on, stopping and going on."""

from __future__ import annotations

import math
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
    assert_same_runs,
    load,
    rows,
    same,
    write_split,
)

from cscl_fast.cli import parse
from cscl_fast.data.classes import folder_classes
from cscl_fast.models import reestimate_statistics
from cscl_fast.presets import preset
from cscl_fast.train import main
from cscl_fast.trainer import checkpoint
from cscl_fast.trainer import run as run_module
from cscl_fast.trainer.journal import COLUMNS
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
        "config.yaml", "classes.json", "metrics.csv", "evaluation.csv", "thresholds.csv",
        "curves.png", "kept.csv", "gap.csv", "timing.json", "environment.json",
        "convergence.csv", "convergence.png",
        "checkpoints/previous.pt", "transferability/source_p0.png",
        "transferability/source_p7.png", "transferability/target_p0.png",
        "transferability/target_p6.png",
        "results.txt", "results.md", "panels/p0.png", "panels/p4.png", "panels/overview.png",
        "checkpoints/source.pt", "checkpoints/last.pt", "checkpoints/best.pt",
    }  # fmt: skip
    entries = yaml.safe_load((finished / "config.yaml").read_text())
    assert entries["adaptation"]["steps"] == 2 and entries["run"] == str(finished)
    classes, _ = folder_classes(finished / "classes.json")
    assert tuple(zip(classes.names, classes.colors, strict=True)) == CLASSES


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
            assert values.keys() == set(COLUMNS) - {"phase"} and values["skipped"] == 0
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
        results.append({k: content[k] for k in ("model", "trainer")})
    assert same(*results)


def test_a_run_is_repeatable_and_its_seed_matters(worlds: Path, tmp_path: Path, tiny: None) -> None:
    for name, seed in (("a", "0"), ("b", "0"), ("c", "1")):
        options = ("--seed", seed, "--panels", "0", "--adaptation.epochs", "1")
        assert main(arguments(worlds, tmp_path / name, *options)) == 0
    a, b, c = (load(tmp_path / n / "checkpoints" / "last.pt")["model"] for n in "abc")
    assert same(a, b) and not same(a, c)


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
