"""The joint and the alternating step, running statistics, running centroids, learning rates."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from cscl_fast import ops
from cscl_fast.config import AdaptationConfig, OptimizerConfig
from cscl_fast.models import WeightAverage, build_model
from cscl_fast.trainer.centroids import RunningCentroids
from cscl_fast.trainer.labelling import Labeller, PseudoLabels
from cscl_fast.trainer.optimizers import Optimizers, model_optimizer, player_optimizer
from cscl_fast.trainer.players import Batch, Pair, Players
from cscl_fast.trainer.precision import Precision
from cscl_fast.trainer.schedules import SCHEDULES, modules_of
from cscl_fast.trainer.stopwatch import Stopwatch
from cscl_fast.trainer.update import DivergedError, Update

K = 3
SIZE = (48, 64)


def batch(seed: int) -> Batch:
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(2, 3, *SIZE, generator=generator) + seed
    blocks = torch.randint(0, K, (2, 1, 6, 8), generator=generator)
    labels = nn.functional.interpolate(blocks.float(), size=SIZE)[:, 0].long()
    return Batch(images, images, labels, ["a", "b"])


def make(**changes) -> Players:
    without = changes.pop("without", ())
    torch.manual_seed(0)
    cscl = Players(
        build_model("deeplabv2-resnet18", K), AdaptationConfig(**changes), without=without
    ).train()
    nn.init.normal_(cscl.critic.value.weight, std=0.1)  # so that every loss is at work at once
    return cscl


def labels_for(cscl: Players, target: Batch) -> PseudoLabels:
    average = WeightAverage(cscl.model, 0.9)
    labeller = Labeller(cscl.model, average, cscl.config, K, selects=cscl.selects)
    labeller.begin_epoch(0, [target.clean])
    return labeller.label(target.clean)


def optimizers_for(cscl: Players, rate: float, **more) -> Optimizers:
    players = {"model": model_optimizer(cscl.model, OptimizerConfig(**more), rate)}
    if cscl.transfer:
        for name, module in modules_of(cscl).items():
            if name != "model":
                players[name] = player_optimizer(module, rate)
    return Optimizers(players, steps=10, power=0.9)


def take(
    schedule: str,
    cscl: Players,
    optimizers: Optimizers,
    source: Batch,
    target: Batch,
    pseudo: PseudoLabels,
) -> dict[str, float]:
    """One step of a schedule; its losses."""
    precision = Precision("float32", torch.device("cpu"))
    pairs = [Pair(source, target, pseudo)]
    update = Update(pairs, cscl.objective, optimizers, precision, Stopwatch())
    SCHEDULES[schedule](cscl, update)
    return update.values


def weights(module: nn.Module) -> dict[str, Tensor]:
    return {name: p.detach().clone() for name, p in module.named_parameters()}


def changed(before: dict[str, Tensor], module: nn.Module) -> bool:
    return any(not torch.equal(before[name], p) for name, p in module.named_parameters())


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"normalise": "l1"},
        {"centroid_momentum": 0.5},
        {"bn": "shared"},
        {"without": ("transfer",)},
        {"without": ("pseudo-labels",)},
        {"without": ("divergence",)},
        {"without": ("transfer", "pseudo-labels", "divergence")},
    ],
    ids=str,
)
def test_without_learning_both_schedules_give_the_same_losses(changes: dict) -> None:
    cscl = make(**changes)
    source, target = batch(1), batch(2)
    pseudo = labels_for(cscl, target)
    losses, statistics = {}, {}
    for name in SCHEDULES:
        one = copy.deepcopy(cscl)
        before = weights(one)
        optimizers = optimizers_for(one, 0.0, weight_decay=0.1)
        losses[name] = take(name, one, optimizers, source, target, pseudo)
        assert not changed(before, one), name
        statistics[name] = dict(one.model.named_buffers())
    joint, alternating = losses["joint"], losses["alternating"]
    assert joint.keys() == alternating.keys()
    for key in joint:  # the same arithmetic twice; the order of a sum may differ
        assert alternating[key] == pytest.approx(joint[key], rel=1e-6, abs=1e-7)
    # Four forwards instead of one must not move the running statistics four times.
    for key, buffer in statistics["joint"].items():
        torch.testing.assert_close(statistics["alternating"][key], buffer, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize(
    ("without", "missing"),
    [
        ((), set()),
        (
            ("transfer",),
            {"discriminator", "adversarial", "critic", "regression", "reward", "transferability"},
        ),
        (("divergence",), {"divergence"}),
        (("pseudo-labels",), set()),
    ],
    ids=str,
)
def test_ablations_leave_out_their_losses(without: tuple, missing: set) -> None:
    cscl = make(without=without)
    source, target = batch(1), batch(2)
    losses = cscl.losses(source, target, labels_for(cscl, target), track=True)
    everything = {
        "source", "target", "discriminator", "adversarial", "critic", "regression", "reward",
        "transferability", "divergence",
    }  # fmt: skip
    assert losses.keys() == everything - missing
    if without == ("transfer",):
        others = (cscl.discriminator, cscl.quantizer, cscl.critic)
        assert not any(p.requires_grad for module in others for p in module.parameters())


def test_joint_step_moves_every_player_once() -> None:
    cscl = make()
    before = {name: weights(module) for name, module in modules_of(cscl).items()}
    source, target = batch(1), batch(2)
    pseudo = labels_for(cscl, target)
    optimizers = optimizers_for(cscl, 1e-3)
    take("joint", cscl, optimizers, source, target, pseudo)
    for name, module in modules_of(cscl).items():
        for key, parameter in module.named_parameters():
            assert not torch.equal(parameter, before[name][key]), (name, key)


def test_alternating_step_moves_each_player_by_its_own_update_in_the_papers_order() -> None:
    cscl = make()
    source, target = batch(1), batch(2)
    pseudo = labels_for(cscl, target)
    optimizers = optimizers_for(cscl, 1e-3)
    original, order = optimizers.step, []
    last = {name: weights(module) for name, module in modules_of(cscl).items()}

    def step(player: str | None = None) -> None:
        for name, module in modules_of(cscl).items():  # nothing moves between two updates
            assert not changed(last[name], module), name
        original(player)
        for name, module in modules_of(cscl).items():
            assert changed(last[name], module) == (name == player), (name, player)
            last[name] = weights(module)
        order.append(player)

    optimizers.step = step  # type: ignore[method-assign]
    take("alternating", cscl, optimizers, source, target, pseudo)
    assert order == ["discriminator", "critic", "quantizer", "model"]


def test_a_loss_that_is_not_finite_is_refused_before_anything_is_updated() -> None:
    for schedule in SCHEDULES:
        cscl = make()
        source, target = batch(1), batch(2)
        pseudo = labels_for(cscl, target)
        source.images[0, 0, 0, 0] = float("nan")
        before = weights(cscl)
        with pytest.raises(DivergedError) as failure:
            take(schedule, cscl, optimizers_for(cscl, 1e-3), source, target, pseudo)
        assert not changed(before, cscl)
        assert failure.value.updated == () and failure.value.paths == ("a", "b", "a", "b")


# ------------------------------------------------------------------------------ running statistics


def statistics(cscl: Players) -> dict[str, Tensor]:
    return {name: buffer.clone() for name, buffer in cscl.model.named_buffers()}


def differ(a: dict[str, Tensor], b: dict[str, Tensor]) -> bool:
    """True: every buffer differs; False: none; else fails."""
    differing = [not torch.equal(a[name], b[name]) for name in a]
    assert all(differing) or not any(differing)
    return differing[0]


@pytest.mark.parametrize(("bn", "moved_by_source"), [("per-domain", False), ("shared", True)])
def test_whose_batches_move_the_running_statistics(bn: str, moved_by_source: bool) -> None:
    cscl = make(bn=bn)
    before = statistics(cscl)
    cscl.look(batch(1).images, source=True, track=True)
    after_source = statistics(cscl)
    assert differ(before, after_source) == moved_by_source
    cscl.look(batch(2).images, source=False, track=True)
    after_target = statistics(cscl)
    assert differ(after_source, after_target)
    for source in (True, False):
        cscl.look(batch(3).images, source=source, track=False)
    assert not differ(after_target, statistics(cscl))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_a_step_with_per_domain_statistics_moves_them_by_the_target_once(schedule: str) -> None:
    cscl = make()
    source, target = batch(1), batch(2)
    pseudo = labels_for(cscl, target)
    expected = copy.deepcopy(cscl)
    expected.model.encode(target.images)
    take(schedule, cscl, optimizers_for(cscl, 0.0), source, target, pseudo)
    for (name, buffer), other in zip(
        cscl.model.named_buffers(), expected.model.buffers(), strict=True
    ):
        torch.testing.assert_close(buffer, other, msg=name)


def test_source_batches_are_normalised_by_their_own_statistics() -> None:
    cscl = make()
    images = batch(1).images
    first = cscl.look(images, source=True, track=True).plain
    cscl.look(batch(2).images + 100, source=False, track=True)
    torch.testing.assert_close(cscl.look(images, source=True, track=True).plain, first)


# ------------------------------------------------------------------------------- running centroids


def test_running_centroids_blend_as_documented() -> None:
    """Two steps by hand: m = 0.75, two channels, three classes."""
    running = RunningCentroids(0.75, 3, 2)

    def features(*pixels: tuple[float, float]) -> Tensor:
        return torch.tensor(pixels).t()[None, :, None].requires_grad_()  # [1, 2, 1, n]

    first = features((1.0, 2.0), (3.0, 4.0), (10.0, 20.0))
    blended, _ = running.blend(0, first, torch.tensor([[[0, 0, 1]]]))
    assert not running.seen.any()  # the past, until the step is at its end
    running.settle()
    # Seen for the first time: the batch's own. Class 2: never seen, nothing.
    torch.testing.assert_close(blended, torch.tensor([[2.0, 3.0], [10.0, 20.0], [0.0, 0.0]]))
    assert running.seen.tolist() == [[True, True, False], [False] * 3]

    second = features((6.0, 7.0), (5.0, 5.0))
    blended, _ = running.blend(0, second, torch.tensor([[[0, 2]]]))
    expected = torch.tensor([
        [0.75 * 2 + 0.25 * 6, 0.75 * 3 + 0.25 * 7],  # blended
        [10.0, 20.0],  # not in the batch: kept
        [5.0, 5.0],  # new
    ])  # fmt: skip
    torch.testing.assert_close(blended, expected)
    running.settle()
    torch.testing.assert_close(running.running[0], expected)
    assert running.seen[1].any().item() is False and running.running[1].abs().max() == 0
    blended.sum().backward()  # gradients flow to the batch's share only
    torch.testing.assert_close(second.grad[0, :, 0].t(), torch.tensor([[0.25, 0.25], [1.0, 1.0]]))
    assert first.grad is None


def test_divergence_of_fresh_running_centroids_is_the_plain_one() -> None:
    generator = torch.Generator().manual_seed(3)
    f_s, f_t = (torch.rand(2, 5, 4, 6, generator=generator) for _ in range(2))
    labels = torch.randint(0, 4, (2, 4, 6), generator=generator)
    labels[labels == 3] = 255  # class 3 is on one side only
    soft = torch.rand(2, 4, 4, 6, generator=generator) ** 4
    soft[:, :, 0] = 0  # rejected
    for normalise in ("softmax", "l1"):
        running = RunningCentroids(0.9, 4, 5)
        found = running.divergence(f_s, labels, f_t, soft, normalise=normalise)
        plain = ops.symmetric_soft_divergence(f_s, labels, f_t, soft, normalise=normalise)
        torch.testing.assert_close(found, plain)
        running.settle()
    # A batch with nothing on either side lives on the past, without a gradient to anything.
    nothing = torch.full_like(labels, 255)
    again = running.divergence(f_s, nothing, f_t, torch.zeros_like(soft), normalise="l1")
    torch.testing.assert_close(again, plain)


# ---------------------------------------------------------------------------------- learning rates


def test_polynomial_decay_and_the_classifiers_factor() -> None:
    cscl = make()
    optimizers = optimizers_for(cscl, 0.1, classifier_factor=10.0)
    for step in (0, 5, 9, 10):
        optimizers.set_progress(step)
        factor = (1 - step / 10) ** 0.9
        rates = [group["lr"] for group in optimizers.players["model"].param_groups]
        assert rates == pytest.approx([0.1 * factor, 1.0 * factor])
        assert optimizers.players["critic"].param_groups[0]["lr"] == pytest.approx(0.1 * factor)


@pytest.mark.parametrize("name", ["sgd", "adam"])
def test_the_models_optimizer_takes_its_settings(name: str) -> None:
    cscl = make()
    config = OptimizerConfig(name=name, momentum=0.8, weight_decay=0.01)  # type: ignore[arg-type]
    optimizer = model_optimizer(cscl.model, config, 0.1)
    for group in optimizer.param_groups:
        assert group["weight_decay"] == 0.01
        assert group["momentum"] == 0.8 if name == "sgd" else group["betas"] == (0.9, 0.99)


def test_clip_norm_bounds_the_models_gradient() -> None:
    cscl = make()
    optimizers = optimizers_for(cscl, 1e-3)
    optimizers.clip_norm = 0.5
    for parameter in cscl.parameters():
        parameter.grad = torch.ones_like(parameter)
    optimizers.step()
    norms = torch.stack([p.grad.norm() for p in cscl.model.parameters()])
    assert float(norms.norm()) == pytest.approx(0.5, rel=2e-3)  # float32 sums of 11 M terms
    assert all(p.grad.min() == 1 for p in cscl.discriminator.parameters())
