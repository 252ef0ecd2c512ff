"""`CSCL` and `SourceOnly`: one step from anybody's own loop."""

from __future__ import annotations

import copy
import math
from typing import Any

import pytest
import torch
from step_worlds import SCHEDULES, SIZE, K, begun, config, images, labels, source, tiny, trace
from torch import Tensor, nn
from trainer_worlds import same

from cscl_fast import CSCL, SourceOnly
from cscl_fast.config import ConfigError, ModelConfig
from cscl_fast.models import EncoderWithHead, build_model
from cscl_fast.trainer.journal import COLUMNS
from cscl_fast.trainer.players import Batch
from cscl_fast.trainer.stopwatch import Stopwatch
from cscl_fast.trainer.update import DivergedError

# --------------------------------------------------------------------------------------- own loops


def test_a_step_returns_the_columns_of_metrics_csv() -> None:
    cscl = begun()
    losses = cscl.step(source(1), images(2))
    run_only = {"phase", "epoch", "step", "seconds", "speed"}
    assert set(losses) == (set(COLUMNS) - run_only) | {"skipped"}
    assert all(isinstance(value, float) and math.isfinite(value) for value in losses.values())
    assert 0 < losses["kept"] <= 1 and losses["learning_rate"] == pytest.approx(1e-3)
    terms = cscl.players.terms
    assert losses["total"] == pytest.approx(sum(w * losses[name] for name, w in terms.items()))


def test_defaults_are_the_papers() -> None:
    cscl = CSCL(tiny())
    weights = cscl.players.config.weights
    assert (weights.critic, weights.adversarial, weights.divergence) == (0.3, 0.001, 10.0)
    assert cscl.config.adaptation.gamma == 0.25 and cscl.schedule.__name__ == "joint_step"
    cscl.begin_epoch([images(1)])
    assert cscl.step(source(1), images(2))["learning_rate"] == 2.5e-4


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_steps_learn_and_the_average_follows(schedule: str) -> None:
    cscl = begun(schedule=schedule, ema_decay=0.5)
    before = copy.deepcopy(cscl.players)
    average = copy.deepcopy(cscl.average.module)
    cscl.step(source(1), images(2))
    for name, parameter in cscl.players.named_parameters():
        assert not torch.equal(parameter, before.get_parameter(name)), name
    for name, parameter in cscl.average.module.named_parameters():
        expected = (average.get_parameter(name) + cscl.model.get_parameter(name)) / 2
        torch.testing.assert_close(parameter, expected)
    assert cscl.steps_done == 1


def test_batches_and_plain_tensors_are_one() -> None:
    found = []
    for whole in (True, False):
        cscl = begun()
        torch.manual_seed(1)
        s, t = source(1), images(2)
        given = (
            (Batch(s[0], s[0], s[1]), Batch(t, t, torch.full((2, *SIZE), 255))) if whole else (s, t)
        )
        cscl.step(*given)
        found.append(cscl.state_dict())
    assert same(*found)


def test_the_label_network_sees_the_clean_images() -> None:
    seen = []
    cscl = begun()
    original = cscl.labeller.label_parts
    cscl.labeller.label_parts = lambda parts: seen.append(parts) or original(parts)  # type: ignore
    clean = images(3)
    cscl.step(source(1), Batch(images(2), clean, torch.full((2, *SIZE), 255)))
    assert torch.equal(seen[0][0], clean)


def test_learning_rates_decay_over_the_configured_steps() -> None:
    cscl = begun()
    rates = [cscl.step(source(1), images(2))["learning_rate"] for _ in range(9)]
    assert rates == pytest.approx([1e-3 * max(0, 1 - step / 8) ** 0.9 for step in range(9)])


def test_a_model_in_evaluation_mode_is_trained_all_the_same() -> None:
    cscl = begun()
    cscl.model.eval()
    cscl.step(source(1), images(2))
    assert cscl.model.training


def test_the_stopwatch_counts_the_parts_of_a_step() -> None:
    watch = Stopwatch()
    cscl = CSCL(tiny(), config(), stopwatch=watch)
    cscl.begin_epoch([images(1)])
    assert watch.seconds.keys() == {"thresholds"}
    cscl.step(source(1), images(2))
    parts = {"thresholds", "labels", "losses", "backward", "optimizer"}
    assert watch.seconds.keys() == parts and min(watch.seconds.values()) > 0


# ------------------------------------------------------------------------------------ encoder work


class Counting:
    """Counts the calls of a module's forward, with and without gradients."""

    def __init__(self, module: nn.Module) -> None:
        self.trained = self.untrained = 0
        module.register_forward_hook(self._count)

    def _count(self, module: nn.Module, args: Any, output: Tensor) -> None:
        if output.requires_grad:
            self.trained += len(args[0])
        else:
            self.untrained += len(args[0])


def test_the_joint_schedule_encodes_each_image_once() -> None:
    cscl = begun()
    count = Counting(cscl.model.encoder)
    labelling = Counting(cscl.labeller.network.encoder)
    cscl.step(source(1), images(2))
    assert (count.trained, count.untrained) == (4, 0)  # two source and two target images
    assert (labelling.trained, labelling.untrained) == (0, 2)


def test_micro_batches_of_two_sizes_are_encoded_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """But for one image in the first step: how large F is, the shares have to know before."""
    cscl = begun(accumulate=2)
    layer = cscl.model.encoder[1].eval()
    count = Counting(cscl.model.encoder)
    smaller = [(images(i)[..., :40, :56], labels(i)[..., :40, :56]) for i in (1, 2)]
    for untrained in (1, 0):
        count.trained = count.untrained = 0
        with torch.autocast("cpu", torch.bfloat16):
            cscl.step(smaller, [images(3), images(4)])
        assert (count.trained, count.untrained) == (8, untrained)
    assert not layer.training and cscl.model.training


def test_the_alternating_schedule_has_gradients_of_the_encoder_only_where_it_learns() -> None:
    cscl = begun(schedule="alternating")
    count = Counting(cscl.model.encoder)
    cscl.step(source(1), images(2))
    assert (count.trained, count.untrained) == (4, 12)  # E and C; before them D, T_C, T_Q


# ------------------------------------------------------------------------------------------- state


KINDS = {
    "joint": {},
    "all that has a state": {
        "schedule": "alternating",
        "labels": "ema",
        "thresholds": "online",
        "online_window": 2,
        "centroid_momentum": 0.5,
        "precision": "float16",
    },
}


@pytest.mark.parametrize("kind", KINDS)
def test_a_loaded_state_goes_on_bit_for_bit(kind: str) -> None:
    def steps(cscl: CSCL, numbers: range) -> list[dict[str, float]]:
        found = []
        for number in numbers:
            if number == 3:
                cscl.begin_epoch([images(52)])
            torch.manual_seed(number)  # dropout
            found.append(cscl.step(source(number), images(10 + number)))
        return found

    whole = begun(**KINDS[kind])
    first = steps(whole, range(2))
    state = copy.deepcopy(whole.state_dict())
    rest = steps(whole, range(2, 6))
    other = CSCL(tiny(5), config(**KINDS[kind]))
    other.load_state_dict(state)
    assert steps(other, range(2, 6)) == rest
    assert first != rest
    assert same(whole.state_dict(), other.state_dict())
    assert torch.equal(whole.kept_by_class(), other.kept_by_class())


# ----------------------------------------------------------------------------- losses not finite


@pytest.mark.parametrize("schedule", SCHEDULES)
@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_diverged_step_leaves_no_trace(schedule: str, precision: str) -> None:
    cscl = begun(schedule=schedule, precision=precision, thresholds="online", centroid_momentum=0.5)
    cscl.step(source(1), images(2))
    before = trace(cscl)
    bad, good = images(3), images(4)
    bad[0, 0, 0, 0] = math.inf
    with pytest.raises(DivergedError) as failure:
        cscl.step((bad, labels(3)), good)
    assert failure.value.updated == () and "it updated no weight" in str(failure.value)
    assert not math.isfinite(failure.value.value)
    assert same(trace(cscl), before)


def test_what_was_updated_before_is_said(monkeypatch: pytest.MonkeyPatch) -> None:
    cscl = begun(schedule="alternating")
    original = cscl.players.divergence_loss
    monkeypatch.setattr(
        cscl.players, "divergence_loss", lambda *views: original(*views) * math.nan, raising=True
    )
    model, buffers = copy.deepcopy(cscl.model), dict(cscl.model.named_buffers())
    buffers = {name: buffer.clone() for name, buffer in buffers.items()}
    with pytest.raises(DivergedError) as failure:
        cscl.step(source(1), images(2))
    assert failure.value.term == "divergence" and math.isnan(failure.value.value)
    assert failure.value.updated == ("discriminator", "critic", "quantizer")
    assert "had updated discriminator, critic, quantizer" in str(failure.value)
    assert same(dict(cscl.model.state_dict()), dict(model.state_dict()))


# -------------------------------------------------------------------------------- what others watch


def test_kept_by_class_adds_up_to_kept_and_starts_again() -> None:
    cscl = begun()
    kept = [cscl.step(source(seed), images(10 + seed))["kept"] for seed in range(3)]
    shares = cscl.kept_by_class()
    assert shares.shape == (K,) and float(shares.sum()) == pytest.approx(sum(kept) / 3)
    assert (shares > 0).all()
    assert cscl.kept_by_class().sum() == 0


def test_centroid_distances_have_the_divergence_on_their_diagonal() -> None:
    for normalise in ("softmax", "l1"):
        cscl = begun(normalise=normalise)
        assert cscl.centroid_distances().isnan().all()  # not asked for
        cscl.players.watches_centroids = True
        divergence = cscl.step(source(1), images(2))["divergence"]
        distances = cscl.centroid_distances()
        assert distances.shape == (K, K)
        diagonal = distances.diagonal()
        assert float(diagonal.nanmean()) == pytest.approx(divergence, rel=1e-5)


# -------------------------------------------------------------------------------------- source only


def test_source_only_learns_from_labelled_images() -> None:
    warmup = SourceOnly(tiny(), config())
    losses = warmup.step(source(1))
    assert set(losses) == {"source", "total", "learning_rate", "skipped"}
    assert losses["source"] == losses["total"] and losses["skipped"] == 0
    first = losses["source"]
    for _ in range(7):
        last = warmup.step(source(1))["source"]
    assert last < first
    state = copy.deepcopy(warmup.state_dict())
    other = SourceOnly(tiny(3), config())
    other.load_state_dict(state)
    for one in (warmup, other):
        torch.manual_seed(0)
        one.step(source(2))
    assert same(warmup.state_dict(), other.state_dict())


def test_source_only_takes_no_trace_of_a_bad_batch() -> None:
    warmup = SourceOnly(tiny(), config())
    before = trace(warmup)
    bad = images(1)
    bad[:] = math.nan
    with pytest.raises(DivergedError, match="the loss 'source' is nan; it updated no weight"):
        warmup.step((bad, labels(1)))
    assert same(trace(warmup), before)


# ----------------------------------------------------------------------------- any encoder and head


def test_any_encoder_and_head() -> None:
    torch.manual_seed(0)
    whole = tiny()
    model = EncoderWithHead(whole.encoder, whole.classifier, K, 16, feature_stride=8)
    cscl = begun(model)
    losses = cscl.step(source(1), images(2))
    assert losses == begun(tiny()).step(source(1), images(2))


def test_frozen_statistics_stay_and_are_what_training_normalises_by() -> None:
    cscl = begun(bn="frozen")
    cscl.model.encoder[-1].p = 0.0
    before = {name: buffer.clone() for name, buffer in cscl.model.named_buffers()}
    view = cscl.players.look(images(1), source=False, track=True)
    cscl.model.eval()
    assert torch.equal(cscl.model.encode(images(1)).deep, view.features.deep)
    cscl.step(source(1), images(2))
    assert same(before, dict(cscl.model.named_buffers()))


@pytest.mark.parametrize("schedule", SCHEDULES)
def test_activation_checkpointing_changes_no_bit(schedule: str) -> None:
    states = []
    for recomputes in (False, True):
        settings = ModelConfig(activation_checkpointing=recomputes)
        torch.manual_seed(0)
        model = build_model("deeplabv2-resnet18", K)
        cscl = begun(model, schedule=schedule, model=settings)
        torch.manual_seed(1)
        for seed in (1, 2):
            cscl.step(source(seed), images(10 + seed))
        states.append(cscl.state_dict())
    assert same(*states)


def test_activation_checkpointing_of_unknown_parts_is_refused() -> None:
    model = EncoderWithHead(nn.Conv2d(3, 8, 8, stride=8), nn.Conv2d(8, K, 1), K, 8)
    settings = config(model=ModelConfig(activation_checkpointing=True))
    for kind in (CSCL, SourceOnly):
        with pytest.raises(ConfigError, match=r"activation_checkpointing is on.*\(model, parts\)"):
            kind(model, settings)


def test_compiled_steps_are_the_eager_ones_within_rounding() -> None:
    found = []
    for compiles in (False, True):
        warmup = SourceOnly(tiny(), config(compile=compiles))
        warmup.model.encoder[-1].p = 0.0
        warmup.step(source(1))
        cscl = begun(warmup.model, compile=compiles)  # the same network: not compiled twice
        cscl.labeller.network.encoder[-1].p = 0.0
        assert (cscl.model.encoder._compiled_call_impl is not None) == compiles
        assert (cscl.labeller.network.encoder._compiled_call_impl is not None) == compiles
        found.append([cscl.step(source(1), images(2)) for _ in range(2)][-1])
        assert all("_orig_mod" not in name for name in cscl.state_dict()["players"])
    for name, value in found[0].items():
        # Other kernels, then one Adam step whose signs of tiny gradients may differ.
        assert found[1][name] == pytest.approx(value, rel=1e-2, abs=1e-3), name


def test_every_way_a_network_is_called_gets_compiled() -> None:
    """Beyond PyTorch's limit of eight versions, a network would silently run uncompiled."""
    torch._dynamo.reset()
    torch._dynamo.utils.counters.clear()
    cscl = begun(schedule="alternating", compile=True)
    cscl.step(source(1), images(2))
    cscl.model.eval()
    with torch.no_grad():
        cscl.model(images(3, 1))
    counters = torch._dynamo.utils.counters
    assert counters["stats"]["unique_graphs"] > 8
    assert not [why for why in counters["unimplemented"] if "limit" in why]
