"""Run folders that no run wrote: plausible numbers in the files that a run leaves.

python tests/report/fake_runs.py STUDY   makes a study of 15 runs, to look at its report
"""

from __future__ import annotations

import csv
import json
import math
import random
import sys
from pathlib import Path

import yaml
from PIL import Image, ImageDraw

from cscl_fast.cli import flatten, to_yaml
from cscl_fast.data import ClassList
from cscl_fast.data.classes import write_classes
from cscl_fast.presets import preset
from cscl_fast.trainer.rows import ADAPTED, AVERAGED, SOURCE_ONLY, TARGET_STATISTICS
from cscl_fast.trainer.tiles import Tiles

CLASSES = {
    "road": 80, "sidewalk": 30, "building": 45, "fence_wall": 18, "pole": 2, "sign": 8,
    "vegetation": 40, "sky": 80, "person": 8, "car": 12, "bicyclist": 25,
}  # fmt: skip
COLORS = [(20 * i, 255 - 20 * i, 90) for i in range(len(CLASSES))]
GAINS = {(): 7.5, ("transfer",): 7.3, ("pseudo-labels",): 4.0, ("divergence",): 7.9}
METRICS = (
    "phase", "epoch", "step", "seconds", "total", "source", "target", "kept", "discriminator",
    "adversarial", "critic", "regression", "reward", "transferability", "divergence",
    "learning_rate", "speed",
)  # fmt: skip
PARTS = {"wait": 0.01, "labels": 0.22, "losses": 0.36, "backward": 0.3, "optimizer": 0.04,
         "evaluation": 0.05}  # fmt: skip


def fake_run(
    folder: Path,
    *,
    seed: int = 0,
    without: tuple[str, ...] = (),
    source_only: bool = False,
    classes: dict[str, float] | None = None,
    old: bool = False,
    until: int | None = None,
    pictures: bool = True,
    **changes: object,
) -> Path:
    """One run of the preset `small` on `classes` (name → IoU of the source network, percent).

    Args:
        old: leave out what runs of earlier versions did not write.
        until: the step of the adaptation that an unfinished run has come to.
        changes: dotted keys of the configuration, with __ for the dot.
    """
    classes = CLASSES if classes is None else classes
    folder.mkdir(parents=True)
    config = yaml.safe_load(to_yaml(preset("small")))
    config |= {"seed": seed, "without": list(without), "source_only": source_only}
    for key, value in changes.items():
        *sections, name = key.split("__")
        place = config
        for section in sections:
            place = place[section]
        place[name] = value
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
    draw = random.Random(f"{seed} {without}")
    steps = config["adaptation"]["epochs"] * config["adaptation"]["steps"]
    reached = 0 if source_only else steps if until is None else until
    _metrics(folder, draw, without, reached)
    _scores(folder, draw, classes, without, reached, seed)
    if not source_only:
        _by_class(folder, draw, classes, without, reached, old=old)
    if not old:
        colors = tuple(COLORS[i % len(COLORS)] for i in range(len(classes)))
        write_classes(folder / "classes.json", ClassList(tuple(classes), colors))
        _background(folder, seed, reached, without, finished=until is None)
    if pictures and not source_only and until is None:
        _pictures(folder, maps=not old and "transfer" not in without)
    return folder


def fake_study(folder: Path, seeds: int = 3) -> Path:
    """The rows of the paper's ablation: 5 × `seeds` runs."""
    for seed in range(seeds):
        fake_run(folder / f"seed{seed}" / "source-only", seed=seed, source_only=True)
        for without in GAINS:
            name = f"without-{without[0]}" if without else "full"
            fake_run(folder / f"seed{seed}" / name, seed=seed, without=without, warmup__steps=0,
                     model__init=f"{folder}/seed{seed}/source.pt")  # fmt: skip
    return folder


def _write(file: Path, columns: list[str], rows: list[list[object]]) -> None:
    with open(file, "w", newline="") as opened:
        writer = csv.writer(opened)
        writer.writerow(columns)
        writer.writerows(rows)


def _metrics(folder: Path, draw: random.Random, without: tuple[str, ...], reached: int) -> None:
    rows: list[list[object]] = []
    for step in range(10, 1501, 10):
        loss = 0.3 + 1.6 * math.exp(-step / 200) + draw.gauss(0, 0.03)
        rows.append(["warmup", 0, step, step * 0.9, loss, loss, *[""] * 9, 1e-3, 1.1])
    transfer, aligns = "transfer" not in without, "divergence" not in without
    for step in [1, *range(10, reached + 1, 10)]:
        if step > reached:
            break
        grown = 1 - math.exp(-step / 60)
        noise = [draw.gauss(0, 1) for _ in range(8)]
        adversarial = [
            0.69 - 0.3 * grown + 0.03 * noise[0], 0.69 + 0.5 * grown + 0.08 * noise[1],
            -1 - 0.6 * grown, 1 - 0.5 * grown + 0.02 * noise[2], 1.75 + 0.03 * noise[3],
            0.35 * grown + 0.02 * noise[4],
        ]  # fmt: skip
        rows.append(
            ["adaptation", (step - 1) // 100, step, step * 2.6, 1.0, 0.3 + 0.02 * noise[5],
             0.12 + 0.02 * noise[6], 0.37 + 0.02 * noise[7],
             *(adversarial if transfer else [""] * 6),
             0.2 * math.exp(-step / 80) if aligns else "", 2e-4, 0.4]
        )  # fmt: skip
    _write(folder / "metrics.csv", list(METRICS), rows)


def _scores(
    folder: Path, draw: random.Random, classes: dict[str, float], without: tuple[str, ...],
    reached: int, seed: int,
) -> None:  # fmt: skip
    of_seed = random.Random(seed)  # all runs of a seed begin from one network
    start = {name: value + of_seed.gauss(0, 1) for name, value in classes.items()}
    rows: list[list[object]] = []

    def add(phase: str, step: int, row: str, gain: float, noise: float) -> None:
        values = [max(v + gain + draw.gauss(0, noise), 0.0) for v in start.values()]
        finite = [v for v in values if not math.isnan(v)]
        mean = sum(finite) / len(finite) if finite else math.nan
        rows.append([phase, step, row, f"{mean:.3f}", *(f"{v:.3f}" for v in values)])

    add("warmup", 1500, SOURCE_ONLY, 0, 0)
    add("warmup", 1500, TARGET_STATISTICS, 4.2, 0.0)
    for step in range(50, reached + 1, 50):
        gain = GAINS.get(without, 5.0) * (1 - 0.6 * math.exp(-step / 50))
        add("adaptation", step, ADAPTED, gain, 1.5)
        add("adaptation", step, AVERAGED, gain, 0.8)
    _write(folder / "evaluation.csv", ["phase", "step", "row", "mIoU", *classes], rows)


def _by_class(
    folder: Path, draw: random.Random, classes: dict[str, float], without: tuple[str, ...],
    reached: int, *, old: bool,
) -> None:  # fmt: skip
    epochs = [
        ["adaptation", 100 * e, e, f"{0.35 + 0.05 * e:.3f}",
         *(f"{min(0.5 + 0.04 * i + 0.1 * e, 1):.6f}" for i in range(len(classes)))]
        for e in range((reached + 99) // 100)
    ]  # fmt: skip
    _write(folder / "thresholds.csv", ["phase", "step", "epoch", "portion", *classes], epochs)
    if old:
        return
    shares = {name: (0.4 if v == v else 0.0) * max(v, 0) / 400 for name, v in classes.items()}
    kept = [
        ["adaptation", (s - 1) // 100, s,
         *(f"{max(v * (1 + 0.3 * draw.gauss(0, 1)), 0) if v == v else 0:.6f}"
           for v in shares.values())]
        for s in range(10, reached + 1, 10)
    ]  # fmt: skip
    _write(folder / "kept.csv", ["phase", "epoch", "step", *classes], kept)
    gap = [
        ["adaptation", s // 100, s,
         math.nan if "transfer" in without else 0.5 + 0.4 * (1 - math.exp(-s / 60)),
         0.004 + 0.01 * math.exp(-s / 80)]
        for s in range(0, reached + 1, 50)
    ]  # fmt: skip
    _write(folder / "gap.csv", ["phase", "epoch", "step", "accuracy", "divergence"], gap)


def _background(
    folder: Path, seed: int, reached: int, without: tuple[str, ...], *, finished: bool
) -> None:
    environment = {
        "cscl_fast": "0.1.0", "python": "3.11.7", "torch": "2.11.0", "platform": "Linux",
        "processor": "a processor <with> brackets", "cores": 2, "threads": 1, "device": "cpu",
        "started": f"2026-01-0{seed + 1}T10:00:00", "command": f"train --seed {seed}",
    }  # fmt: skip
    (folder / "environment.json").write_text(json.dumps(environment))
    if not finished:
        return
    timing = {"warmup": {"steps": 1500, "seconds": 1350.0,
                         "parts": {"wait": 20.0, "losses": 600.0, "backward": 700.0}}}  # fmt: skip
    if reached:
        parts = {name: share * 520 for name, share in PARTS.items()}
        timing["adaptation"] = {"steps": reached, "seconds": 520.0, "parts": parts}
    (folder / "timing.json").write_text(json.dumps(timing))


def _pictures(folder: Path, *, maps: bool) -> None:
    kinds = {"panels": (("image", "truth", "source only", "CSCL", "kept pseudo-labels"), 2)}
    if maps:
        titles = ("target image", "pseudo-labels", "transferability P, mean 0.31", "reward R")
        kinds["transferability"] = (titles, 2)
    for name, (titles, count) in kinds.items():
        (folder / name).mkdir()
        for i in range(count):
            tiles = Tiles(titles, width=160, height=90, gap=4, top=16)
            sheet = Image.new("RGB", (len(titles) * 164 - 4, 106), "white")
            pen = ImageDraw.Draw(sheet)
            for k in range(len(titles)):
                box = (tiles.left(k), 16, tiles.left(k) + 159, 105)
                pen.rectangle(box, fill=(60 + 40 * k, 90, 150 - 20 * i))
                pen.ellipse((box[0] + 40, 40, box[0] + 90, 80), fill=(220, 200 - 30 * k, 40))
            sheet.save(folder / name / f"target_{i}.png", pnginfo=tiles.entry())


__all__ = ["CLASSES", "COLORS", "GAINS", "fake_run", "fake_study", "flatten"]

if __name__ == "__main__":
    fake_study(Path(sys.argv[1]))
