"""Each preset on a miniature of its data, in the published layout: built, checked, trained, scored.

What costs time and shows nothing here is smaller than in the preset: the images, the number of
steps, and the networks but for one ResNet-101. Every network is built as it is, and run at the
preset's image size, on the meta device, which has shapes and no numbers.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch
from trainer_worlds import rows

from cscl_fast.data.classes import published_classes
from cscl_fast.models import build_model
from cscl_fast.presets import PRESETS, preset
from cscl_fast.train import main
from cscl_fast.trainer.optimizers import model_optimizer
from cscl_fast.trainer.players import Players

sys.path.insert(0, str(Path(__file__).parents[1] / "data"))
from data_writers import (
    write_cityscapes,
    write_folder,
    write_gta5,
    write_nthu,
    write_synthia,
)

CLASSES = {"demo": None, "small": None, "gta5": 19, "synthia": 16}  # the others: 13
ROWS = [
    "source only",
    "source only, target statistics",
    "CSCL",
    "CSCL, averaged weights",
]
SIZE = ("48", "64")


@pytest.fixture(scope="session")
def miniatures(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder `data` with every data set where the presets look for it."""
    root = tmp_path_factory.mktemp("miniatures")
    write_gta5(root / "data" / "gta5")
    write_synthia(root / "data" / "synthia")
    write_cityscapes(root / "data" / "cityscapes")
    write_nthu(root / "data" / "nthu")
    write_folder(root / "data" / "source")
    write_folder(root / "data" / "target", labels=False)
    write_folder(root / "data" / "target", split="val")
    return root


def classes_of(name: str) -> int:
    found = CLASSES.get(name.split("-")[0], 13)
    return 3 if found is None else found


@pytest.mark.parametrize("name", PRESETS)
def test_every_network_is_built_and_run_at_its_size(name: str) -> None:
    config = preset(name)
    with torch.device("meta"):
        model = build_model(config.model.architecture, classes_of(name))
        players = Players(model, config.adaptation, config.without)
        height, width = config.source.resolved().size  # type: ignore[misc]
        images = torch.empty(1, 3, int(height), int(width))
        features = model.encode(images)
        logits = model.classify(features)
        judged = players.discriminator(features.deep)
    vgg = name.endswith("vgg16")
    assert model.architecture == ("fcn8s-vgg16" if vgg else config.model.architecture)
    assert logits.shape[1] == classes_of(name)
    assert -(-height // 8) <= logits.shape[2] <= height // 8 + 1  # type: ignore[operator]
    # D works at 1/32 of the image, whatever the network.
    assert -(-height // 32) - 1 <= judged.shape[2] <= height // 32 + 1  # type: ignore[operator]
    assert len(model_optimizer(model, config.optimizer, 0.1).param_groups) == 2


def test_the_papers_second_network_has_its_recipe() -> None:
    for first in ("gta5-cityscapes", "synthia-cityscapes"):
        resnet, vgg = preset(first), preset(f"{first}-vgg16")
        assert (vgg.source, vgg.target, vgg.evaluation) == (
            resnet.source, resnet.target, resnet.evaluation,
        )  # fmt: skip
        assert (vgg.model.architecture, vgg.model.init) == ("fcn8s-vgg16", "imagenet")
        assert vgg.optimizer.name == "adam" and vgg.optimizer.classifier_factor == 1
        assert vgg.warmup.learning_rate == vgg.adaptation.learning_rate == 1e-4
        assert vgg.adaptation.discriminator_rate == 1.5e-6
        assert resnet.optimizer.name == "sgd" and resnet.adaptation.learning_rate == 2.5e-4
        assert resnet.adaptation.discriminator_rate == vgg.adaptation.transfer_rate == 1.5e-4


@pytest.mark.parametrize("name", PRESETS)
def test_every_preset_trains_and_evaluates(
    name: str, miniatures: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(miniatures)
    monkeypatch.setattr("cscl_fast.models.fcn8s.FC_CHANNELS", 32)  # of 4096: 120 M weights
    monkeypatch.setattr("cscl_fast.trainer.records.Records.curves", lambda self: None)
    options = [
        *("--preset", name, "--model.init", "none", "--device", "cpu", "--threads", "1"),
        *("--run", str(tmp_path / "run"), "--log-every", "1", "--panels", "1"),
        *("--warmup.steps", "3", "--adaptation.epochs", "1", "--adaptation.steps", "3"),
        *("--adaptation.bn-batches", "2", "--gap-batches", "1"),
    ]
    for section in ("source", "target", "evaluation"):
        options += [f"--{section}.size", *SIZE]
        if name == "demo":
            options += [f"--{section}.count", "4"]
    if name not in ("demo", "small", "gta5-cityscapes") and "vgg16" not in name:
        options += ["--model.architecture", "deeplabv2-resnet18"]
    assert main(options) == 0

    metrics = rows(tmp_path / "run" / "metrics.csv")
    assert [row["phase"] for row in metrics] == 3 * ["warmup"] + 3 * ["adaptation"]
    assert all(0 < float(row["total"]) < 1000 for row in metrics)
    table = rows(tmp_path / "run" / "evaluation.csv")
    assert list(dict.fromkeys(row["row"] for row in table)) == ROWS
    names = published_classes(classes_of(name)).names if name not in ("demo", "small") else ()
    assert all(0 <= float(row["mIoU"]) <= 100 for row in table)
    assert set(names) <= set(table[0])
    assert json.loads((tmp_path / "run" / "timing.json").read_text())["adaptation"]["steps"] == 3
