"""The pictures of P and R: what they show, and that drawing them changes nothing else."""

from __future__ import annotations

import copy
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor
from trainer_worlds import TinyModel, arguments

from cscl_fast.cli import parse
from cscl_fast.data import SegmentationDataset
from cscl_fast.models import WeightAverage
from cscl_fast.trainer import transferability_panels
from cscl_fast.trainer.labelling import Labeller
from cscl_fast.trainer.players import Players
from cscl_fast.trainer.tiles import take_apart
from cscl_fast.trainer.transferability_panels import (
    CAPTION,
    GAP,
    REWARD_COLORS,
    Judged,
    draw_transferability,
)
from cscl_fast.trainer.world import World


def cast(worlds: Path, *more: str) -> tuple[Players, World, Labeller]:
    config = parse(arguments(worlds, None, *more))
    torch.manual_seed(0)
    model = TinyModel("tiny", 3)
    players = Players(model, config.adaptation, config.without)
    with torch.no_grad():  # a discriminator that has an opinion: P is not 0 everywhere
        for parameter in players.discriminator.parameters():
            parameter.mul_(3)
    average = WeightAverage(model, 0.9)
    labeller = Labeller(model, average, config.adaptation, 3, selects=players.selects)
    world = World(config, torch.device("cpu"))
    labeller.begin_epoch(0, world.target_pass())
    return players.train(), world, labeller


def state(players: Players, labeller: Labeller) -> dict[str, object]:
    parts = copy.deepcopy(players.state_dict())
    window = {f"labeller.{k}": v for k, v in labeller.window.state_dict().items()}
    modes = {f"mode.{name}": m.training for name, m in players.named_modules()}
    return {**parts, **copy.deepcopy(window), **modes, "random": torch.get_rng_state()}


@pytest.mark.parametrize(
    "more",
    [
        (),
        ("--adaptation.labels", "live", "--adaptation.thresholds", "online"),
        ("--adaptation.bn", "frozen"),
        ("--without", "pseudo-labels"),
    ],
    ids=["epoch", "online", "frozen", "hard labels"],
)
def test_pictures_of_both_domains_that_disturb_nothing(
    worlds: Path, tmp_path: Path, more: tuple[str, ...]
) -> None:
    players, world, labeller = cast(worlds, *more)
    before = state(players, labeller)
    files = draw_transferability(tmp_path / "first", players, world, labeller, 3)
    after = state(players, labeller)
    assert before.keys() == after.keys()
    for name, value in before.items():
        same = (
            torch.equal(value, after[name]) if isinstance(value, Tensor) else value == after[name]
        )  # type: ignore[arg-type]
        assert same, name

    # 8 source and 7 target images: first, middle and last of each, in the order of their names.
    assert [f.stem.split("_", 1) for f in files] == [
        ["source", "p0"], ["source", "p4"], ["source", "p7"],
        ["target", "p0"], ["target", "p3"], ["target", "p6"],
    ]  # fmt: skip
    torch.manual_seed(1)  # the second time draws the same pictures whatever was drawn since
    again = draw_transferability(tmp_path / "second", players, world, labeller, 3)
    assert [f.read_bytes() for f in again] == [f.read_bytes() for f in files]
    titles = [title.split(",")[0] for title, _ in take_apart(files[3])]
    assert titles == ["target image", "pseudo-labels", "transferability P", "reward R"]
    with Image.open(files[0]) as picture:
        assert picture.width == 4 * (256 + GAP) - GAP
        assert picture.height > 192 + CAPTION


@pytest.mark.parametrize("bn", ["per-domain", "frozen"])
def test_normalised_as_in_training(worlds: Path, bn: str) -> None:
    """P of a batch is the one that a training forward of the same images gives."""
    players, world, _ = cast(worlds, "--adaptation.bn", bn)
    players.model.encoder[-1].p = 0.0  # dropout would draw in the training forward
    images = torch.stack([world.target_plain[i]["clean"] for i in range(2)])
    expected = players.look(images, source=False, track=False).transferability
    with torch.no_grad(), transferability_panels._normalising_as_in_training(players):
        assert not any(module.training for module in players.modules())
        found = players.look(images, source=False, track=False).transferability
    assert found is not None and expected is not None
    torch.testing.assert_close(found, expected)
    assert all(m.running_mean is not None for m in players.modules() if hasattr(m, "running_mean"))


def test_more_images_asked_for_than_there_are(worlds: Path, tmp_path: Path) -> None:
    players, world, labeller = cast(worlds)
    assert len(draw_transferability(tmp_path, players, world, labeller, 100)) == 8 + 7


def test_without_the_transfer_part_nothing_is_drawn(worlds: Path, tmp_path: Path) -> None:
    players, world, labeller = cast(worlds, "--without", "transfer")
    assert draw_transferability(tmp_path / "none", players, world, labeller, 3) == []
    assert not (tmp_path / "none").exists()


def test_names_with_folders_make_one_file(
    worlds: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def with_folders(dataset: SegmentationDataset) -> SegmentationDataset:
        plain = unnamed(dataset)
        plain.samples[:] = [s._replace(name=f"city/{s.name}") for s in plain.samples]
        return plain

    unnamed = transferability_panels._plain
    monkeypatch.setattr(transferability_panels, "_plain", with_folders)
    players, world, labeller = cast(worlds)
    files = draw_transferability(tmp_path, players, world, labeller, 1)
    assert [f.name for f in files] == ["source_city_p0.png", "target_city_p0.png"]


def test_what_the_colours_say(worlds: Path) -> None:
    """Rewards 0, 1, 2 and a location without a label, read back from the picture."""
    _, world, _ = cast(worlds)
    judged = Judged(
        name="x",
        image=torch.full((3, 16, 16), 200, dtype=torch.uint8),
        labels=torch.tensor([[0, 1], [2, 255]]),
        transferability=torch.tensor([[0.0, 0.0], [1.0, 1.0]]),
        reward=torch.tensor([[0.0, 1.0], [2.0, 0.0]]),
    )
    sheet, _ = transferability_panels._picture(judged, "target", world)
    picture = np.asarray(sheet)
    height = width = 256
    reward = picture[CAPTION : CAPTION + height, 3 * (width + GAP) :]
    assert tuple(reward[10, 10]) == REWARD_COLORS[0]
    assert tuple(reward[10, -10]) == REWARD_COLORS[1]
    assert tuple(reward[-10, 10]) == REWARD_COLORS[2]
    corner = {tuple(pixel) for pixel in reward[-100:, -100:].reshape(-1, 3)}
    assert corner == set(transferability_panels.HATCH)
    labels = picture[CAPTION : CAPTION + height, width + GAP : 2 * width + GAP]
    assert tuple(labels[10, 10]) == world.classes.colors[0]
    heat = picture[CAPTION : CAPTION + height, 2 * (width + GAP) : 3 * width + 2 * GAP]
    assert heat[2, 10].sum() < heat[-2, 10].sum()  # cividis goes from dark to light
