"""Gradient accumulation: micro-batches against one batch of all their images."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from step_worlds import SCHEDULES, begun, config, images, labels, source, tiny, trace
from torch import Tensor
from trainer_worlds import same

from cscl_fast import CSCL, SourceOnly
from cscl_fast.config import OptimizerConfig


def plain(**changes: Any) -> CSCL:
    """What the micro-batches' equality needs: no dropout, statistics that are no batch's."""
    model = tiny()
    model.encoder[-1].p = 0.0
    with torch.no_grad():
        model.classifier.weight.mul_(4)  # so that some pixels are kept and some are not
    model(images(60))  # running statistics of some batch
    sgd = OptimizerConfig(name="sgd", momentum=0.0, weight_decay=0.0)
    return begun(model, **{"bn": "frozen", "optimizer": sgd, "learning_rate": 1.0, **changes})


def parts() -> tuple[list[tuple[Tensor, Tensor]], list[Tensor]]:
    """Two micro-batches that differ: 1 and 2 source images, 3 and 1 target images, and much of
    one is ignored."""
    first, second = source(1, 1), source(2, 2)
    first[1][:, 8:] = 255
    return [first, second], [images(11, 3), images(12, 1)]


def gradients_of(cscl: CSCL) -> dict[str, list[Tensor]]:
    """By player, what its next steps learn from: filled when they are taken."""
    found: dict[str, list[Tensor]] = {}
    for name, optimizer in cscl.optimizers.players.items():

        def keep(_: Any, __: Any, ___: Any, name: str = name, of: Any = optimizer) -> None:
            parameters = [p for group in of.param_groups for p in group["params"]]
            found[name] = [p.grad.clone() for p in parameters]

        optimizer.register_step_pre_hook(keep)
    return found


def steps_of(cscl: CSCL, kind: str) -> dict[str, float]:
    sources, targets = parts()
    if kind == "parts":
        return cscl.step(sources, targets)
    whole = (torch.cat([x for x, _ in sources]), torch.cat([y for _, y in sources]))
    return cscl.step(whole, torch.cat(targets))


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize(
    "changes",
    [{}, {"thresholds": "online"}, {"without": ("transfer",)}, {"without": ("pseudo-labels",)}],
    ids=str,
)
def test_micro_batches_are_one_batch_of_all_their_images(schedule: str, changes: dict) -> None:
    """But for L_div: losses, gradients of every player, thresholds. float32 sums in another order:
    gradients may differ by 1e-4 of their largest entry, as those of the operators."""
    changes = {"without": (), **changes}
    changes["without"] = (*changes["without"], "divergence")
    whole = plain(schedule=schedule, **changes)
    split = plain(schedule=schedule, accumulate=2, **changes)
    gradients = gradients_of(whole), gradients_of(split)
    expected, found = steps_of(whole, "whole"), steps_of(split, "parts")
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        assert found[name] == pytest.approx(value, rel=1e-5, abs=1e-6), name
    assert whole.players.selects == (0.3 < found["kept"] < 0.9)  # else the counts are the areas
    assert gradients[0].keys() == gradients[1].keys() == whole.optimizers.players.keys()
    for player, of_whole in gradients[0].items():
        for a, b in zip(of_whole, gradients[1][player], strict=True):
            # Adam's first step is lr · sign(gradient) whatever its size: the weights say little.
            assert float((a - b).abs().max()) <= 1e-4 * float(a.abs().max()), (player, a.shape)
    assert torch.equal(whole.labeller.thresholds, split.labeller.thresholds)
    torch.testing.assert_close(whole.kept_by_class(), split.kept_by_class())
    assert (whole.labeller.filled, whole.steps_done) == (split.labeller.filled, split.steps_done)


def test_equal_weights_would_not_do() -> None:
    """The means have to be weighted: one of two parts has far fewer labelled pixels."""
    sources, targets = parts()
    split = steps_of(plain(accumulate=2, without=("divergence",)), "parts")
    each = [
        plain(without=("divergence",)).step(*pair)["source"]
        for pair in zip(sources, targets, strict=True)
    ]
    assert abs(split["source"] - sum(each) / 2) > 0.01


def test_l_div_is_the_mean_of_the_micro_batches() -> None:
    sources, targets = parts()
    each = [plain().step(*pair)["divergence"] for pair in zip(sources, targets, strict=True)]
    assert steps_of(plain(accumulate=2), "parts")["divergence"] == pytest.approx(sum(each) / 2)


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_running_centroids_move_as_by_one_batch(schedule: str) -> None:
    found = []
    for count, kind in ((1, "whole"), (2, "parts")):
        # No learning: L_div is another one, and so are the gradients.
        changes = {"schedule": schedule, "learning_rate": 0.0, "centroid_momentum": 0.75}
        cscl = plain(accumulate=count, **changes)
        for _ in range(2):
            steps_of(cscl, kind)
        found.append(cscl.players.centroids)
    assert torch.equal(found[0].seen, found[1].seen) and found[0].seen.any(1).all()
    # float32 sums in another order
    torch.testing.assert_close(found[0].running, found[1].running, rtol=1e-5, atol=1e-6)


def test_one_image_size_for_each_domain() -> None:
    """Sources of another size than the targets: the counts find their own grid."""
    found = []
    for count in (1, 2):
        cscl = plain(accumulate=count, without=("divergence",))
        smaller = (images(1, 4)[..., :40, :56], labels(1, 4)[..., :40, :56])
        target = images(2, 4)
        if count == 1:
            found.append(cscl.step(smaller, target))
        else:
            sources = [tuple(x[some] for x in smaller) for some in (slice(3), slice(3, 4))]
            found.append(cscl.step(sources, [target[:1], target[1:]]))
    for name, value in found[0].items():
        assert found[1][name] == pytest.approx(value, rel=1e-5, abs=1e-6), name


def test_the_graph_of_one_micro_batch_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    cscl = plain(accumulate=2)
    order = []
    losses, backward = cscl.players.losses, cscl.precision.backward
    monkeypatch.setattr(
        cscl.players, "losses", lambda *a, **k: order.append("losses") or losses(*a, **k)
    )
    monkeypatch.setattr(
        cscl.precision, "backward", lambda loss: order.append("backward") or backward(loss)
    )
    steps_of(cscl, "parts")
    assert order == ["losses", "backward"] * 2


def test_a_step_that_fails_before_its_losses_leaves_no_trace() -> None:
    cscl = plain(accumulate=2, thresholds="online", centroid_momentum=0.5)
    steps_of(cscl, "parts")
    before = trace(cscl)
    sources, targets = parts()
    gray = [(x[:, :1, :40, :56], y[:, :40, :56]) for x, y in sources]
    with pytest.raises(RuntimeError, match="channels"):
        cscl.step(gray, targets)
    assert same(trace(cscl), before)


def test_source_only_takes_micro_batches() -> None:
    sources, _ = parts()
    models = [tiny(), tiny()]
    for model in models:
        model.encoder[-1].p = 0.0
        for layer in model.modules():
            if isinstance(layer, torch.nn.BatchNorm2d):
                layer.track_running_stats = False
                layer.momentum = 0.0
    settings = {"optimizer": OptimizerConfig(name="sgd", momentum=0.0), "accumulate": 2}
    warmup = SourceOnly(models[0], config(**settings))
    loss = warmup.step(sources)["source"]
    # By hand: the mean over the labelled pixels of both, each normalised by itself.
    models[1].train()
    total, count = torch.zeros(()), 0
    for x, y in sources:
        logits = torch.nn.functional.interpolate(models[1](x), size=y.shape[-2:], mode="bilinear")
        total = total + torch.nn.functional.cross_entropy(
            logits, y, ignore_index=255, reduction="sum"
        )
        count += int((y != 255).sum())
    assert loss == pytest.approx(float(total.detach()) / count, rel=1e-5)
    (total / count).backward()
    for (name, p), q in zip(models[0].named_parameters(), models[1].parameters(), strict=True):
        torch.testing.assert_close(p.grad, q.grad, rtol=1e-4, atol=1e-6, msg=name)
