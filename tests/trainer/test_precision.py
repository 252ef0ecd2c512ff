"""Mixed precision: what the networks compute in, and what a value that is not finite does."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from step_worlds import SCHEDULES, begun, config, images, labels, source, tiny, trace
from torch import Tensor, nn
from trainer_worlds import same

from cscl_fast import CSCL, SourceOnly
from cscl_fast.trainer import update as update_module
from cscl_fast.trainer.optimizers import Optimizers
from cscl_fast.trainer.players import Batch
from cscl_fast.trainer.precision import Precision
from cscl_fast.trainer.update import DivergedError

CPU = torch.device("cpu")
DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
HALF = tuple(DTYPES)
STATE = {"thresholds": "online", "centroid_momentum": 0.5}  # all that a forward moves


def settled(**changes: Any) -> CSCL:
    """After its first step, with a scale that is small enough for tiny batches."""
    cscl = begun(**changes)
    cscl.precision.scaler.update(256.0)
    assert cscl.step(source(1), images(2))["skipped"] == 0
    return cscl


def poison(cscl: CSCL, name: str, value: float, monkeypatch: pytest.MonkeyPatch) -> None:
    """From now on the gradient of one loss is `value` wherever it flows; the loss stays finite."""
    players = cscl.players
    original = getattr(players, name)

    def poisoned(*views: Any) -> Tensor:
        loss = original(*views)
        loss.register_hook(lambda gradient: gradient * value)
        return loss

    monkeypatch.setattr(players, name, poisoned)


# ------------------------------------------------------------------------------------- the networks


@pytest.mark.parametrize("precision", HALF)
@pytest.mark.parametrize("schedule", SCHEDULES)
def test_networks_compute_in_the_precision_and_losses_in_float32(
    precision: str, schedule: str
) -> None:
    cscl = begun(precision=precision, schedule=schedule)
    seen: dict[str, set[torch.dtype]] = {}

    def record(name: str) -> Any:
        return lambda module, args, output: seen.setdefault(name, set()).add(output.dtype)

    players = cscl.players
    modules = {
        "encoder": players.model.encoder,
        "classifier": players.model.classifier,
        "label network": cscl.labeller.network.encoder,
        "discriminator": players.discriminator,
        "critic": players.critic,
    }
    for name, module in modules.items():
        module.register_forward_hook(record(name))
    losses: dict[str, Tensor] = {}
    original = players.objective
    players.objective = lambda new, shares: losses.update(new) or original(new, shares)  # type: ignore
    cscl.step(source(1), images(2))
    assert seen == {name: {DTYPES[precision]} for name in modules}
    assert set(players.terms) <= set(losses)
    assert {loss.dtype for loss in losses.values()} == {torch.float32}
    assert {p.dtype for p in players.parameters()} == {torch.float32}


@pytest.mark.parametrize(("precision", "tolerance"), [("bfloat16", 0.05), ("float16", 0.01)])
def test_losses_are_those_of_float32_within_the_rounding_of_activations(
    precision: str, tolerance: float
) -> None:
    """A few roundings of 2^-8 (bfloat16) or 2^-11 (float16) in a row.

    Not the rewards: where P is still below the rounding, gated and plain logits are equal, and a
    location earns nothing for a gated probability that is not above the plain one.
    """
    found = []
    for one in ("float32", precision):
        cscl = begun(precision=one)
        cscl.model.encoder[-1].p = 0.0  # dropout draws other numbers for another dtype
        found.append(cscl.step(source(1), images(2)))
    exact, rounded = found
    for name in ("source", "discriminator", "adversarial", "critic", "divergence"):
        assert rounded[name] == pytest.approx(exact[name], rel=tolerance), name


@pytest.mark.parametrize("precision", HALF)
def test_training_in_half_precision_learns(precision: str) -> None:
    warmup = SourceOnly(tiny(), config(precision=precision))
    losses = [warmup.step(source(1))["source"] for _ in range(8)]
    assert losses[-1] < losses[0] and warmup.skipped == 0


def test_weights_are_cast_anew_after_each_update() -> None:
    """Within one autocast, a cast weight must not outlive the weight: T_Q's step sees D's new."""
    precision = Precision("bfloat16", CPU)
    layer = nn.Linear(4, 4)
    x = torch.ones(1, 4)
    with precision.autocast():
        with torch.no_grad():
            first = layer(x)
            layer.weight.add_(1)
        assert layer(x).requires_grad
        assert not torch.equal(layer(x), first)


def test_gradients_are_clipped_in_their_own_scale() -> None:
    parameter = nn.Parameter(torch.zeros(2))
    sgd = torch.optim.SGD([parameter], lr=1.0)
    optimizers = Optimizers({"model": sgd}, steps=1, power=1.0, clip_norm=0.5)
    precision = Precision("float16", CPU, initial_scale=1024.0)
    precision.backward((parameter * torch.tensor([3.0, 4.0])).sum())
    assert float(parameter.grad.norm()) == 5 * 1024
    assert precision.step(optimizers)
    torch.testing.assert_close(parameter.detach(), torch.tensor([-0.3, -0.4]))


# ----------------------------------------------------------------------- values that are not finite


def test_an_infinite_gradient_skips_the_joint_step_and_is_counted(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    cscl = settled(precision="float16", **STATE)
    before = trace(cscl)
    scale = cscl.precision.scaler.get_scale()
    with monkeypatch.context() as patch:
        # D's own loss: no gradient of E or C is infinite, and yet nobody steps.
        poison(cscl, "discriminator_loss", math.inf, patch)
        losses = cscl.step(source(3), images(4))
    assert cscl.skipped == 1 and losses["skipped"] == 1 and math.isfinite(losses["total"])
    assert cscl.precision.scaler.get_scale() == scale / 2
    assert same(untold(trace(cscl)), untold(before))
    assert cscl.steps_done == 2  # the batches are used up
    losses = cscl.step(source(5), images(6))
    assert losses["skipped"] == 1 and not same(untold(trace(cscl)), untold(before))


def untold(state: dict[str, Any]) -> dict[str, Any]:
    """A state without what a skipped step has to change: its count, and the scale."""
    return {k: v for k, v in state.items() if k not in ("precision", "steps_done")}


@pytest.mark.parametrize(
    ("loss", "player"),
    [
        ("discriminator_loss", "discriminator"),
        ("critic_loss", "quantizer"),
        ("adversarial_loss", "model"),
    ],
)
def test_an_infinite_gradient_skips_its_player_of_the_alternating_schedule(
    monkeypatch: pytest.MonkeyPatch, loss: str, player: str
) -> None:
    cscl = settled(precision="float16", schedule="alternating", **STATE)
    before = copy.deepcopy(cscl.players)
    whole = trace(cscl)
    poison(cscl, loss, math.inf, monkeypatch)
    losses = cscl.step(source(3), images(4))
    assert losses["skipped"] == 1
    for name in ("model", "discriminator", "quantizer", "critic"):
        old, new = (dict(getattr(p, name).named_parameters()) for p in (before, cscl.players))
        assert same(old, new) == (name == player), name
    after = trace(cscl)
    assert same(whole["optimizers"][player], after["optimizers"][player])
    moved = player != "model"  # else running statistics, average, histogram are as before
    for key in ("average", "labeller", "kept"):
        assert same(whole[key], after[key]) != moved, key
    assert same(dict(before.named_buffers()), dict(cscl.players.named_buffers())) != moved


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("where", ["source", "target"])
def test_a_forward_that_overflows_float16_skips_the_step(schedule: str, where: str) -> None:
    cscl = settled(precision="float16", schedule=schedule, **STATE)
    before, players = trace(cscl), copy.deepcopy(cscl.players)
    bad, good = images(3), images(4)
    bad[0, 0, 0, 0] = math.inf
    pair = ((bad, labels(3)), good) if where == "source" else ((good, labels(3)), bad)
    losses = cscl.step(*pair)
    assert losses["skipped"] == (1 if schedule == "joint" else 4)
    assert cscl.precision.scaler.get_scale() == 256.0 / 2 ** losses["skipped"]
    assert same(untold(trace(cscl)), untold(before))
    assert same(dict(players.state_dict()), dict(cscl.players.state_dict()))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_without_a_scale_an_infinite_loss_is_an_error(precision: str) -> None:
    warmup = SourceOnly(tiny(), config(precision=precision))
    before = trace(warmup)
    bad = images(1)
    bad[0, 0, 0, 0] = math.inf
    with pytest.raises(DivergedError):
        warmup.step((bad, labels(1)))
    assert same(trace(warmup), before) and warmup.skipped == 0


@pytest.mark.parametrize("asked", ["before the step", "behind a step that refrains"])
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("schedule", "loss", "whose"),
    [
        ("joint", "discriminator_loss", "discriminator"),
        ("joint", "adversarial_loss", "model"),
        ("alternating", "critic_loss", "quantizer"),
        ("alternating", "adversarial_loss", "model"),
    ],
)
def test_without_a_scale_an_infinite_gradient_is_an_error(
    monkeypatch: pytest.MonkeyPatch,
    asked: str,
    precision: str,
    schedule: str,
    loss: str,
    whose: str,
) -> None:
    """The losses are finite; weights would not be for long."""
    behind = asked != "before the step"  # as on a GPU
    monkeypatch.setattr(Optimizers, "can_refrain", lambda self, player: behind)
    cscl = settled(precision=precision, schedule=schedule, **STATE)
    before, weights = trace(cscl), copy.deepcopy(cscl.model.state_dict())
    with monkeypatch.context() as patch:
        poison(cscl, loss, math.inf, patch)
        with pytest.raises(DivergedError, match=f"the gradient is nan.*that of.* the {whose}"):
            cscl.step(source(3), images(4))
    assert same(weights, dict(cscl.model.state_dict()))
    after = trace(cscl)
    if schedule == "joint":
        assert same(after, before)
    else:  # each player by itself
        assert same(after["optimizers"][whose], before["optimizers"][whose])
        assert same(after["average"], before["average"]) and same(after["kept"], before["kept"])
    losses = cscl.step(source(5), images(6))
    assert losses["skipped"] == 0 and not same(weights, dict(cscl.model.state_dict()))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_that_could_refrain_are_the_same(
    monkeypatch: pytest.MonkeyPatch, schedule: str
) -> None:
    found = []
    for behind in (False, True):
        monkeypatch.setattr(Optimizers, "can_refrain", lambda self, player, b=behind: b)
        cscl = begun(schedule=schedule)
        torch.manual_seed(0)  # dropout
        cscl.step(source(1), images(2))
        cscl.step(source(3), images(4))
        found.append(cscl.state_dict())
    assert same(*found)


def test_the_warm_up_skips_and_counts_too() -> None:
    warmup = SourceOnly(tiny(), config(precision="float16"))
    warmup.step(source(1))
    before = trace(warmup)
    bad = images(1)
    bad[0, 0, 0, 0] = math.inf
    assert warmup.step((bad, labels(1)))["skipped"] == 1
    assert same(untold(trace(warmup)), untold(before))
    other = SourceOnly(tiny(3), config(precision="float16"))
    other.load_state_dict(copy.deepcopy(warmup.state_dict()))  # with count and scale
    for one in (warmup, other):
        torch.manual_seed(0)  # dropout
        assert one.step(source(2))["skipped"] == 1
    assert same(warmup.state_dict(), other.state_dict())


def test_skipping_on_and_on_is_an_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_module, "SKIPPED_IN_A_ROW", 3)
    warmup = SourceOnly(tiny(), config(precision="float16"))
    bad = images(1)
    bad[:] = math.nan
    for _ in range(2):
        warmup.step((bad, labels(1)))
    with pytest.raises(DivergedError, match=r"'source' is nan.* 3 updates in a row"):
        warmup.step((bad, labels(1)))
    warmup.precision.in_a_row["model"] = 2
    assert warmup.step(source(1))["skipped"] == 3
    assert warmup.precision.skipped_in_a_row("model") == 0


def test_skipping_one_player_on_and_on_is_an_error_too(monkeypatch: pytest.MonkeyPatch) -> None:
    """In the alternating schedule, where D, T_C and T_Q succeed in between."""
    monkeypatch.setattr(update_module, "SKIPPED_IN_A_ROW", 3)
    cscl = settled(precision="float16", schedule="alternating")
    with monkeypatch.context() as patch:
        poison(cscl, "adversarial_loss", math.inf, patch)
        for _ in range(2):
            cscl.step(source(1), images(2))
    state = copy.deepcopy(cscl.state_dict())
    assert state["precision"]["in_a_row"]["model"] == 2 and cscl.skipped == 2
    cscl = begun(precision="float16", schedule="alternating")
    cscl.load_state_dict(state)  # which remembers
    poison(cscl, "adversarial_loss", math.inf, monkeypatch)
    message = "the gradient is nan.*; 3 updates in a row of the model were skipped"
    with pytest.raises(DivergedError, match=message) as caught:
        cscl.step(source(1), images(2))
    assert caught.value.updated == ("discriminator", "critic", "quantizer")


def test_a_state_with_one_count_for_all_players_is_taken() -> None:
    state = Precision("float16", CPU).state_dict() | {"skipped": 9, "in_a_row": 4}
    precision = Precision("float16", CPU)
    precision.load_state_dict(state)
    assert precision.skipped_in_a_row() == precision.skipped_in_a_row("model") == 4


def test_an_endless_infinite_gradient_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(update_module, "SKIPPED_IN_A_ROW", 1)
    cscl = settled(precision="float16")
    poison(cscl, "discriminator_loss", math.inf, monkeypatch)
    before = trace(cscl)
    files = {1: "source.png", 2: "target.png"}
    given = [Batch(images(i), images(i), labels(i), [file]) for i, file in files.items()]
    message = "the gradient is nan; it updated no weight; 1 updates"
    with pytest.raises(DivergedError, match=message) as caught:
        cscl.step(*given)
    assert caught.value.paths == ("source.png", "target.png")  # nobody knows whose it is
    assert same(untold(trace(cscl)), untold(before))


def test_the_scale_grows_again_and_is_part_of_the_state() -> None:
    precision = Precision("float16", CPU, initial_scale=8.0, growth_interval=2)
    parameter = nn.Parameter(torch.ones(()))
    optimizers = Optimizers({"model": torch.optim.SGD([parameter], lr=0.0)}, steps=1, power=1.0)

    def step(value: float) -> bool:
        optimizers.zero_grad()
        precision.backward(parameter * value)
        return precision.step(optimizers)

    assert [step(1.0), step(math.inf)] == [True, False]
    assert precision.scaler.get_scale() == 4 and precision.skipped == 1
    assert step(1.0)
    other = Precision("float16", CPU, growth_interval=2)
    other.load_state_dict(copy.deepcopy(precision.state_dict()))
    precision = other
    assert step(1.0) and precision.scaler.get_scale() == 8 and precision.skipped == 1


def test_a_step_that_the_forward_made_impossible_starts_the_wait_for_growth_again() -> None:
    precision = Precision("float16", CPU, initial_scale=8.0, growth_interval=2)
    parameter = nn.Parameter(torch.ones(()))
    optimizers = Optimizers({"model": torch.optim.SGD([parameter], lr=0.0)}, steps=1, power=1.0)

    def step() -> float:
        optimizers.zero_grad()
        precision.backward(parameter * 1.0)
        assert precision.step(optimizers)
        return precision.scaler.get_scale()

    assert step() == 8
    precision.skip()
    assert precision.scaler.get_scale() == 4
    assert [step(), step()] == [4, 8]


def test_a_state_of_another_precision_is_taken() -> None:
    for one, two in (("float16", "float32"), ("float32", "float16")):
        state = Precision(one, CPU).state_dict()  # type: ignore[arg-type]
        Precision(two, CPU).load_state_dict(state)  # type: ignore[arg-type]
