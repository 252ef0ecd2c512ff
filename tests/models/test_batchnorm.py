"""Whose statistics move: frozen, re-estimated, restored."""

import pytest
import torch
from torch import nn

from cscl_fast.models import (
    build_model,
    freeze_affine,
    frozen_statistics,
    reestimate_statistics,
    running_statistics,
)


def network():
    torch.manual_seed(0)
    return nn.Sequential(nn.Conv2d(3, 4, 1), nn.BatchNorm2d(4), nn.Dropout(0.5), nn.ReLU())


def statistics(model):
    return {name: buffer.clone() for name, buffer in model.named_buffers()}


def same(first, second):
    return all(torch.equal(first[name], second[name]) for name in first)


def test_frozen_statistics_do_not_move_and_still_normalise_by_the_batch():
    model = build_model("deeplabv2-resnet18", 3)
    images = torch.randn(2, 3, 33, 33) * 3 + 1
    before = statistics(model)
    with torch.no_grad(), frozen_statistics(model):
        frozen = model(images)
    assert same(before, statistics(model))
    moved = model(images)
    assert torch.equal(frozen, moved)
    after = statistics(model)
    assert not any(torch.equal(before[name], after[name]) for name in before)


def test_frozen_statistics_leave_evaluation_as_it_is():
    model = network().eval()
    model[1].running_mean.fill_(2)
    images = torch.randn(2, 3, 5, 5)
    expected = model(images)
    with frozen_statistics(model):
        assert torch.equal(model(images), expected)


def test_frozen_statistics_end_with_an_error_and_nest():
    model = network()
    with pytest.raises(KeyError), frozen_statistics(model), frozen_statistics(model):
        raise KeyError
    before = statistics(model)
    model(torch.randn(2, 3, 5, 5))
    assert not same(before, statistics(model))


def test_reestimated_statistics_are_the_mean_over_the_batches():
    model = network()
    with torch.no_grad():  # what must be forgotten
        model[1].running_mean.fill_(100)
        model[1].running_var.fill_(100)
    batches = [torch.randn(2, 3, 6, 5) + shift for shift in (0.0, 1.0, 5.0)]
    assert reestimate_statistics(model, batches) == 3
    inputs = [model[0](batch).detach().double().movedim(1, 0).flatten(1) for batch in batches]
    mean = torch.stack([x.mean(1) for x in inputs]).mean(0)
    variance = torch.stack([x.var(1) for x in inputs]).mean(0)  # unbiased, as PyTorch keeps it
    # The cumulative average rounds in float32 at every batch.
    torch.testing.assert_close(model[1].running_mean.double(), mean, rtol=1e-5, atol=1e-6)
    torch.testing.assert_close(model[1].running_var.double(), variance, rtol=1e-5, atol=1e-6)


def test_reestimation_restores_modes_and_momenta_and_leaves_no_gradients():
    model = network()
    model[1].momentum = 0.03
    model[1].eval()
    reestimate_statistics(model, [torch.randn(2, 3, 4, 4)])
    assert model[1].momentum == 0.03
    assert [layer.training for layer in model] == [True, False, True, True]
    assert model.training
    assert all(parameter.grad is None for parameter in model.parameters())


def test_reestimation_does_not_use_dropout():
    first, second = (nn.Sequential(nn.Dropout(0.5), nn.BatchNorm2d(3)) for _ in range(2))
    batch = torch.randn(2, 3, 4, 4)
    for seed, model in enumerate((first, second)):
        torch.manual_seed(seed)
        reestimate_statistics(model, [batch])
    assert same(statistics(first), statistics(second))


def failing_batches():
    yield torch.randn(2, 3, 4, 4)
    raise OSError("truncated image")


@pytest.mark.parametrize(
    ("batches", "error"), [((), ValueError), (failing_batches(), OSError)], ids=["empty", "failing"]
)
def test_failed_reestimation_keeps_the_old_statistics(batches, error):
    model = network()
    model(torch.randn(2, 3, 4, 4))
    before = statistics(model)
    with pytest.raises(error):
        reestimate_statistics(model, batches)
    assert same(before, statistics(model))
    assert model[1].momentum == 0.1 and model[1].training


def test_network_without_statistics_reads_no_batches():
    assert reestimate_statistics(nn.Conv2d(3, 3, 1), failing_batches()) == 0


def test_freeze_affine_freezes_nothing_else():
    model = network()
    freeze_affine(model)
    assert [p.requires_grad for p in model.parameters()] == [True, True, False, False]


def test_running_statistics_normalise_as_evaluation_does_and_do_not_move():
    model = build_model("deeplabv2-resnet18", 3)
    images = torch.randn(2, 3, 33, 33) * 3 + 1
    with torch.no_grad():
        model(images)  # so that the running statistics are not the start's
    before = statistics(model)
    with running_statistics(model):
        found = model(images)
    assert same(before, statistics(model))
    assert all(module.training for module in model.modules())
    found.square().mean().backward()
    assert model.encoder.bn1.weight.grad.any()  # scale and shift still learn
    with torch.no_grad():
        assert torch.equal(found, model.eval()(images))


def test_running_statistics_leave_dropout_and_an_evaluating_layer_as_they_are():
    model = nn.Sequential(nn.BatchNorm2d(3), nn.Dropout(0.5), nn.BatchNorm2d(3).eval())
    with pytest.raises(KeyError), running_statistics(model):
        assert [layer.training for layer in model] == [False, True, False]
        raise KeyError
    assert [layer.training for layer in model] == [True, True, False]
