"""Who gives the pseudo-labels, with which thresholds, at which size (Algorithm 1)."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from trainer_worlds import arguments

from cscl_fast import ops
from cscl_fast.cli import parse
from cscl_fast.config import AdaptationConfig
from cscl_fast.models import WeightAverage, build_model
from cscl_fast.trainer.labelling import Labeller, evaluating
from cscl_fast.trainer.world import World

K = 4
SIZE = (48, 64)
# The streaming thresholds may be 2^-16 off the exact order statistic.
BIN = 2**-16


def images(seed: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def make(**changes):
    torch.manual_seed(0)
    model = build_model("deeplabv2-resnet18", K).train()
    average = WeightAverage(model, 0.5)
    selects = changes.pop("selects", True)
    return model, average, Labeller(model, average, AdaptationConfig(**changes), K, selects=selects)


def learn(model: torch.nn.Module) -> None:
    """Any update of the weights."""
    with torch.no_grad():
        for p in model.parameters():
            p.add_(0.02 * torch.randn(p.shape, generator=torch.Generator().manual_seed(p.numel())))


def logits(network: torch.nn.Module, x: Tensor) -> Tensor:
    with evaluating(network):
        return network(x)


def at_image_size(*maps: Tensor) -> Tensor:
    return torch.cat([F.interpolate(z, size=SIZE, mode="bilinear") for z in maps])


def test_a_snapshot_is_frozen_during_an_epoch_and_renewed_at_the_next() -> None:
    model, _, labeller = make(labels="snapshot")
    x = images(1)
    labeller.begin_epoch(0, [x])
    first = labeller.label(x)
    torch.testing.assert_close(first.logits, logits(model, x))
    thresholds = labeller.thresholds.clone()
    learn(model)
    second = labeller.label(x)
    assert torch.equal(second.logits, first.logits)
    assert torch.equal(labeller.thresholds, thresholds)
    labeller.begin_epoch(1, [x])
    third = labeller.label(x)
    torch.testing.assert_close(third.logits, logits(model, x))
    assert not torch.allclose(third.logits, first.logits)


def test_averaged_labels_follow_the_average() -> None:
    model, average, labeller = make(labels="ema")
    x = images(1)
    labeller.begin_epoch(0, [x])
    first = labeller.label(x).logits
    learn(model)
    assert torch.equal(labeller.label(x).logits, first)
    average.update(model)
    second = labeller.label(x).logits
    torch.testing.assert_close(second, logits(average.module, x))
    assert not torch.allclose(second, first)
    assert not torch.allclose(second, logits(model, x))


def test_live_labels_come_from_the_trained_network_in_evaluation_mode() -> None:
    model, _, labeller = make(labels="live", thresholds="online")
    x = images(1)
    labeller.begin_epoch(0, [x])
    learn(model)
    before = {name: b.clone() for name, b in model.named_buffers()}
    found = labeller.label(x).logits
    torch.testing.assert_close(found, logits(model, x))
    assert model.training and not found.requires_grad
    assert all(torch.equal(before[name], b) for name, b in model.named_buffers())


def test_layers_that_are_kept_in_evaluation_mode_stay_in_it() -> None:
    model, _, labeller = make(labels="live", thresholds="online")
    layer = next(m for m in model.modules() if isinstance(m, torch.nn.BatchNorm2d)).eval()
    x = images(1)
    labeller.begin_epoch(0, [x])
    labeller.label(x)
    assert not layer.training
    assert all(m.training for m in model.modules() if m is not layer)


@pytest.mark.parametrize("labels", ["snapshot", "ema"])
def test_the_label_network_and_its_thresholds_agree(labels: str) -> None:
    """Thresholds are Algorithm 1 on the label network's own logits at image size."""
    model, average, labeller = make(labels=labels)
    learn(model)
    x = [images(1), images(2), images(3, 1)]
    labeller.begin_epoch(0, iter(x))
    network = average.module if labels == "ema" else model
    everything = at_image_size(*(logits(network, one) for one in x))
    exact = ops.class_thresholds(everything, 0.35)
    torch.testing.assert_close(labeller.thresholds, exact, rtol=0, atol=BIN)
    coarse = ops.class_thresholds(torch.cat([logits(network, one) for one in x]), 0.35)
    assert (coarse - exact).abs().max() > 10 * BIN  # so that this test can tell them apart


def test_the_share_that_is_selected_grows_to_its_maximum() -> None:
    _, _, labeller = make()
    x = images(1)
    everything = at_image_size(logits(labeller.trained, x))
    for epoch, portion in enumerate((0.35, 0.40, 0.45, 0.50, 0.50)):
        thresholds = labeller.begin_epoch(epoch, [x])
        assert labeller.portion == pytest.approx(portion)
        torch.testing.assert_close(
            thresholds, ops.class_thresholds(everything, portion), rtol=0, atol=BIN
        )


def test_online_thresholds_are_those_of_the_concatenated_steps() -> None:
    model, _, labeller = make(labels="live", thresholds="online", online_window=2)
    start = images(0)
    labeller.begin_epoch(0, [start])
    passed: list[Tensor] = []
    seen = [at_image_size(logits(model, start))]  # the window before this one: the first pass
    for step in range(5):
        learn(model)
        x = images(10 + step)
        labeller.label(x)
        passed.append(at_image_size(logits(model, x)))
        expected = ops.class_thresholds(torch.cat(seen + passed), 0.35)
        torch.testing.assert_close(labeller.thresholds, expected, rtol=0, atol=BIN)
        if len(passed) == 2:
            seen, passed = passed, []
    before = labeller.thresholds.clone()
    labeller.begin_epoch(1, iter(()))  # no second pass over the data ...
    assert torch.equal(labeller.thresholds, before)
    labeller.label(images(20))
    passed.append(at_image_size(logits(model, images(20))))
    expected = ops.class_thresholds(torch.cat(seen + passed), 0.40)  # ... but S_A grows
    torch.testing.assert_close(labeller.thresholds, expected, rtol=0, atol=BIN)


def test_thresholds_of_no_pixel_are_refused() -> None:
    model, _, labeller = make()
    used_up = iter([images(1)])
    labeller.begin_epoch(0, used_up)
    with pytest.raises(ValueError, match=r"target_images has no pixel .* read to its end before"):
        labeller.begin_epoch(1, used_up)
    with torch.no_grad():
        model.classifier.branches[0].bias.fill_(torch.nan)
    with pytest.raises(ValueError, match=r"no logit .* is finite"):
        labeller.begin_epoch(1, [images(1)])
    make(selects=False)[2].begin_epoch(0, [])  # needs none


def test_labels_are_solved_on_the_grid_and_in_the_loss_at_image_size() -> None:
    model, _, labeller = make()
    x = images(1)
    labeller.begin_epoch(0, [x])
    pseudo = labeller.label(x)
    z = logits(model, x)
    soft, hard = ops.soft_pseudo_labels(z, labeller.thresholds, 0.25)
    torch.testing.assert_close(pseudo.soft, soft)
    assert torch.equal(pseudo.hard, hard)
    assert 0 < int((hard != 255).sum()) < hard.numel()
    other = torch.randn_like(z)
    full = ops.soft_pseudo_labels(at_image_size(z), labeller.thresholds, 0.25)
    kept = full.hard != 255
    terms = -(full.soft * at_image_size(other).log_softmax(1)).sum(1)[kept]
    torch.testing.assert_close(pseudo.loss(other), terms.mean(), rtol=1e-5, atol=1e-6)


def test_without_selection_every_pixel_has_its_hard_argmax_label() -> None:
    model, _, labeller = make(selects=False)
    x = images(1)
    labeller.begin_epoch(0, [x])
    pseudo = labeller.label(x)
    z = logits(model, x)
    assert torch.equal(pseudo.hard, z.argmax(1))
    assert torch.equal(pseudo.soft, F.one_hot(z.argmax(1), K).permute(0, 3, 1, 2).float())
    other = torch.randn_like(z)
    expected = F.cross_entropy(at_image_size(other), at_image_size(z).argmax(1))
    torch.testing.assert_close(pseudo.loss(other), expected, rtol=1e-5, atol=1e-6)


def test_state_of_online_thresholds_survives() -> None:
    model, _, labeller = make(labels="live", thresholds="online", online_window=2)
    labeller.begin_epoch(0, [images(0)])
    for step in range(3):
        labeller.label(images(step))
    _, _, other = make(labels="live", thresholds="online", online_window=2)
    other.trained.load_state_dict(model.state_dict())
    other.load_state_dict(labeller.state_dict())
    for step in range(3, 6):
        assert torch.equal(labeller.label(images(step)).hard, other.label(images(step)).hard)
        assert torch.equal(labeller.thresholds, other.thresholds)


def test_algorithm_1_sees_every_target_image_once_and_unaugmented(worlds) -> None:
    config = parse(arguments(worlds, None, "--evaluation-batch", "3"))
    world = World(config, torch.device("cpu"))
    for _ in range(2):  # and so at each epoch
        seen = torch.cat(list(world.target_pass()))
        assert len(seen) == len(world.target) == 7
        for i, image in enumerate(seen):
            assert torch.equal(image, world.target_plain[i]["clean"])


def test_statistics_are_estimated_on_random_full_batches(worlds) -> None:
    world = World(parse(arguments(worlds, None)), torch.device("cpu"))
    batches = list(world.target_statistics(100))
    assert [len(batch) for batch in batches] == [4]  # 7 images: one full batch of 4
    in_order = torch.stack([world.target_plain[i]["clean"] for i in range(4)])
    assert not torch.equal(batches[0], in_order)
    few = World(parse(arguments(worlds, None, "--target.limit", "2")), torch.device("cpu"))
    assert [len(batch) for batch in few.target_statistics(100)] == [2]


@pytest.mark.parametrize("window", [1, 2, 3])
def test_a_forgotten_step_leaves_online_thresholds_as_if_it_had_not_been(window: int) -> None:
    """Also the step at which the window begins anew, and a step of several parts."""
    options = {"labels": "ema", "thresholds": "online", "online_window": window}
    _, _, labeller = make(**options)
    _, _, twin = make(**options)
    for one in (labeller, twin):
        one.begin_epoch(0, [images(0)])
    for step in range(1, 6):
        kept = [labeller.label(images(step)), twin.label(images(step))]
        assert torch.equal(kept[0].soft, kept[1].soft)
        assert torch.equal(labeller.thresholds, twin.thresholds)
        labeller.forget(labeller.label_parts([images(10 * step), images(10 * step + 1, 1)]))
