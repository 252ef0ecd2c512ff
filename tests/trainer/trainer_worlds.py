"""Tiny source and target folders, and the arguments of a run on them that takes seconds."""

from __future__ import annotations

import csv
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from cscl_fast.models import SegmentationModel
from cscl_fast.models.segmentation_model import Features
from cscl_fast.train import main

CLASSES = (("road", (128, 64, 128)), ("car", (0, 0, 142)), ("sky", (70, 130, 180)))
SIZE = (48, 64)  # the smallest comfortable one: features 6x8, D's two strides of 2 need 4x4


def write_split(root: Path, split: str, count: int, *, seed: int, labels: bool = True) -> None:
    """Images of three coloured rectangles and noise, with their labels; some pixels ignored."""
    generator = np.random.default_rng(seed)
    for part in ("images", "labels") if labels else ("images",):
        (root / part / split).mkdir(parents=True, exist_ok=True)
    entries = [{"name": name, "color": list(color)} for name, color in CLASSES]
    (root / "classes.json").write_text(json.dumps({"classes": entries, "ignore": 255}))
    tint = np.array([[150, 90, 60], [30, 200, 60], [90, 120, 230]]) + 25 * (seed % 3)
    for i in range(count):
        label = np.zeros(SIZE, np.uint8)
        label[: int(generator.integers(12, 24))] = 2
        top, left = generator.integers(16, 30), generator.integers(4, 36)
        label[top : top + 14, left : left + 20] = 1
        image = tint[label] + generator.normal(0, 20, (*SIZE, 3))
        image = image.clip(0, 255).astype(np.uint8)
        label[-2:] = 255
        Image.fromarray(image).save(root / "images" / split / f"p{i}.png")
        if labels:
            Image.fromarray(label).save(root / "labels" / split / f"p{i}.png")


def write_worlds(root: Path) -> Path:
    """root/source with 8 images, root/target with 7 for training and 5 for evaluation."""
    write_split(root / "source", "train", 8, seed=0)
    write_split(root / "target", "train", 7, seed=1)
    write_split(root / "target", "val", 5, seed=2)
    return root


def arguments(worlds: Path, run: Path | None, *more: str) -> list[str]:
    """Command line of 4 warm-up steps and 2 epochs of 2 steps; `more` overrides."""
    h, w = (str(length) for length in SIZE)
    options = [
        *("--preset", "small", "--threads", "1", "--device", "cpu"),
        *("--source.root", str(worlds / "source"), "--source.size", h, w),
        *("--target.root", str(worlds / "target"), "--target.size", h, w),
        *("--evaluation.root", str(worlds / "target"), "--evaluation.size", h, w),
        *("--target.color-jitter", "0.5", "--target.blur", "0.5"),
        *("--warmup.steps", "4", "--warmup.batch-size", "2"),
        *("--adaptation.epochs", "2", "--adaptation.steps", "2", "--adaptation.batch-size", "2"),
        *("--adaptation.bn-batches", "1", "--log-every", "1", "--panels", "2"),
    ]
    return [*options, *(("--run", str(run)) if run is not None else ()), *more]


def run_through(command: list[str]) -> None:
    """A run that goes through, in a fixture; the number of threads is as before afterwards."""
    threads = torch.get_num_threads()
    assert main(command) == 0
    torch.set_num_threads(threads)


def rows(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


def load(path: Path) -> dict:
    return torch.load(path, weights_only=True)


def same(a: object, b: object) -> bool:
    """Whether two checkpoints' contents agree bit for bit."""
    if isinstance(a, torch.Tensor):
        return isinstance(b, torch.Tensor) and a.dtype == b.dtype and torch.equal(a, b)
    if isinstance(a, dict):
        return isinstance(b, dict) and a.keys() == b.keys() and all(same(a[k], b[k]) for k in a)
    if isinstance(a, list | tuple):
        return len(a) == len(b) and all(map(same, a, b))  # type: ignore[arg-type]
    return a == b


TABLES = ("metrics.csv", "evaluation.csv", "thresholds.csv", "kept.csv", "gap.csv")


def assert_same_runs(a: Path, b: Path) -> None:
    """Bit for bit: weights, optimizers, thresholds, random generators, tables but for times."""
    for name in ("last", "source", "best"):
        first, second = (load(folder / "checkpoints" / f"{name}.pt") for folder in (a, b))
        assert first.keys() == second.keys()
        for key in first.keys() - {"timing", "tables"}:  # times, and how many digits they have
            assert same(first[key], second[key]), f"{name}: {key}"
    for name in TABLES:
        found, expected = (
            [{k: v for k, v in r.items() if k not in ("seconds", "speed")} for r in rows(f / name)]
            for f in (a, b)
        )
        assert found == expected, name
    for name in ("classes.json", "results.txt", "results.md"):
        assert (a / name).read_text() == (b / name).read_text(), name


def fails(capsys: pytest.CaptureFixture[str], command: list[str], code: int = 1) -> str:
    """Run the training; the message on the error stream."""
    capsys.readouterr()
    assert main(command) == code
    message = capsys.readouterr().err
    assert message.startswith("cscl_fast.train: ") and "Traceback" not in message
    return message.removeprefix("cscl_fast.train: ").strip()


def draw_no_curves(patch: pytest.MonkeyPatch) -> None:
    """Matplotlib takes longer than a tiny run."""
    patch.setattr("cscl_fast.trainer.records.Records.curves", lambda self: None)
    patch.setattr("cscl_fast.trainer.convergence.write", lambda folder: False)


class TinyModel(SegmentationModel):
    """A network of four layers with all that a run has to keep: statistics and dropout."""

    def __init__(self, architecture: str, num_classes: int) -> None:
        super().__init__()
        self.architecture = architecture
        self.num_classes = num_classes
        self.feature_channels = 16
        layers: list[nn.Module] = []
        for channels, out in ((3, 8), (8, 8), (8, 16)):
            layers += [nn.Conv2d(channels, out, 3, stride=2, padding=1, bias=False)]
            layers += [nn.BatchNorm2d(out), nn.ReLU()]
        self.encoder = nn.Sequential(*layers, nn.Dropout(0.2))
        self.classifier = nn.Conv2d(16, num_classes, 1)

    def encode(self, images: torch.Tensor) -> Features:
        return Features(self.encoder(images))

    def classify(self, features: Features) -> torch.Tensor:
        return self.classifier(features.deep)
