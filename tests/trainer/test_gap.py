"""The domain gap: D's balanced accuracy and the divergence of the class centroids."""

from __future__ import annotations

import math
import random
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from trainer_worlds import TinyModel, arguments, same

from cscl_fast.cli import parse
from cscl_fast.models import SegmentationModel
from cscl_fast.models.segmentation_model import Features
from cscl_fast.trainer.checkpoint import random_state
from cscl_fast.trainer.gap import GapMeter, domain_gap
from cscl_fast.trainer.grids import nearest_labels
from cscl_fast.trainer.world import World


class Looking(SegmentationModel):
    """F is the image itself; the class is the largest of its channels."""

    num_classes = 3
    feature_channels = 3

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(1))

    def encode(self, images: Tensor) -> Features:
        return Features(images)

    def classify(self, features: Features) -> Tensor:
        return features.deep


class Says(nn.Module):
    """Logits of "target": positive where channel 0 of F is above `least`."""

    def __init__(self, least: float) -> None:
        super().__init__()
        self.least = least

    def forward(self, features: Tensor) -> Tensor:
        return features[:, :1] - self.least


def players(least: float = 0.0, *, transfer: bool = True) -> SimpleNamespace:
    return SimpleNamespace(model=Looking(), discriminator=Says(least), transfer=transfer)


def images(*shape: int, seed: int) -> Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def test_accuracy_is_the_mean_of_both_domains_whatever_their_sizes() -> None:
    source = torch.zeros(1, 3, 4, 5)
    source[:, 0] = -1
    source[0, 0, 0, :4] = 1  # 4 of 20 locations look like the target's
    target = torch.ones(2, 3, 6, 5)
    target[0, 0, :, 0] = -1  # 6 of 60 like the source's
    labels = [torch.zeros(4, 5, dtype=torch.int64)]
    gap = domain_gap(players(), [(source, labels)], [target])
    assert gap.accuracy == pytest.approx((16 / 20 + 54 / 60) / 2)
    # One that always gives the same answer cannot tell, however unequal the domains' sizes are.
    for least in (-9.0, 9.0):
        assert domain_gap(players(least), [(source, labels)], [target]).accuracy == 0.5
    assert math.isnan(domain_gap(players(transfer=False), [(source, labels)], [target]).accuracy)


def brute_force(source: Tensor, labels: Tensor, target: Tensor) -> float:
    """Symmetric divergence of softmaxed centroids, class by class in float64."""
    total = []
    predicted = target.argmax(1)
    for k in range(3):
        s = source.double().permute(0, 2, 3, 1)[labels == k]
        t = target.double().permute(0, 2, 3, 1)[predicted == k]
        if len(s) and len(t):
            p, q = s.mean(0).softmax(0), t.mean(0).softmax(0)
            total.append(0.5 * float((p * (p / q).log()).sum() + (q * (q / p).log()).sum()))
    return sum(total) / len(total)


def test_divergence_against_brute_force_and_however_the_images_are_batched() -> None:
    source, target = images(5, 3, 6, 7, seed=1), 0.5 + images(4, 3, 6, 7, seed=2)
    labels = torch.randint(0, 2, (5, 6, 7), generator=torch.Generator().manual_seed(3))
    labels[:, 0] = 255  # ignored; and class 2 is not in the source
    expected = brute_force(source, labels, target)
    together = domain_gap(players(), [(source, list(labels))], [target])
    # The operators' contract on values and losses: 1e-5 relative.
    assert together.divergence == pytest.approx(expected, rel=1e-5)
    apart = domain_gap(
        players(),
        [(source[:2], list(labels[:2])), (source[2:], list(labels[2:]))],
        [target[:1], target[1:]],
    )
    assert apart.divergence == pytest.approx(expected, rel=1e-5)
    assert apart.accuracy == together.accuracy
    nothing = [torch.full((6, 7), 255)] * 5
    assert math.isnan(domain_gap(players(), [(source, nothing)], [target]).divergence)


def test_no_gap_between_a_domain_and_itself() -> None:
    x = images(2, 3, 5, 5, seed=4)
    gap = domain_gap(players(), [(x, list(x.argmax(1)))], [x])
    assert gap.divergence == pytest.approx(0, abs=1e-6)  # the operators' absolute tolerance
    assert gap.accuracy == 0.5  # the same answers, right for one and wrong for the other


def test_labels_of_several_sizes_meet_the_features_grid() -> None:
    label = torch.arange(4).repeat_interleave(4).view(4, 4).repeat_interleave(2, 0)  # [8, 4]
    found = nearest_labels([label, label[:4, :2]], (4, 2))
    assert found.tolist() == [[[i, i] for i in range(4)], [[0, 0], [0, 0], [1, 1], [1, 1]]]


@pytest.fixture
def world(worlds: Path) -> World:
    options = ["--evaluation-batch", "2", "--gap-batches", "2", "--source.color-jitter", "1"]
    return World(parse(arguments(worlds, None, *options)), torch.device("cpu"))


def test_a_run_measures_the_same_plain_images_every_time(world: World) -> None:
    meter = GapMeter(world)
    batches = list(meter._batches(meter.source))
    assert [len(b) for b, _ in batches] == [2, 2]
    again = list(meter._batches(meter.source))
    assert all(torch.equal(a, b) for (a, _), (b, _) in zip(batches, again, strict=True))
    plain = [meter.source[i]["image"] for i in range(len(meter.source))]
    for image in (image for batch, _ in batches for image in batch):
        assert any(torch.equal(image, other) for other in plain)
    meter.count = 100  # more than there are: each once
    assert sum(len(b) for b, _ in meter._batches(meter.target)) == len(world.target_plain)


def test_measuring_disturbs_nothing(world: World) -> None:
    torch.manual_seed(5)
    model = TinyModel("deeplabv2-resnet18", 3)
    model.train()
    model.encoder[1].momentum = 0.9
    discriminator = nn.Conv2d(16, 1, 3, padding=1)
    before = {name: x.clone() for name, x in model.state_dict().items()}
    state = random_state(torch.device("cpu"))
    drawn = (random.getstate(), np.random.get_state()[1].tolist())
    measured = SimpleNamespace(model=model, discriminator=discriminator, transfer=True)
    meter = GapMeter(world)
    gap = meter(measured)
    assert same(random_state(torch.device("cpu")), state)
    assert drawn == (random.getstate(), np.random.get_state()[1].tolist())
    assert same(dict(model.state_dict()), before)
    assert model.training and all(m.training for m in model.modules())
    parameters = [*model.parameters(), *discriminator.parameters()]
    assert all(p.grad is None and p.requires_grad for p in parameters)
    assert 0 <= gap.accuracy <= 1 and gap.divergence > 0
    assert meter(measured) == gap  # bit for bit: neither dropout nor augmentation in it
