"""Activations computed again in the backward pass: the same bits, fewer of them kept."""

import copy

import pytest
import torch
from torch import nn

from cscl_fast.models import (
    EncoderWithHead,
    build_model,
    checkpoint_activations,
    frozen_statistics,
    running_statistics,
)


def images(seed=0, size=(33, 41)):
    return torch.randn(2, 3, *size, generator=torch.Generator().manual_seed(seed))


def deeplab():
    torch.manual_seed(0)
    return build_model("deeplabv2-resnet18", 3)


def with_dropout():
    torch.manual_seed(0)
    encoder = nn.Sequential(
        nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.ReLU(inplace=True)),
        nn.Sequential(nn.Conv2d(4, 8, 3), nn.Dropout(0.5), nn.BatchNorm2d(8, momentum=None)),
    )
    return EncoderWithHead(encoder, nn.Conv2d(8, 3, 1), 3, 8)


def both(make, parts=None):
    plain = make()
    recomputing = copy.deepcopy(plain)
    checkpoint_activations(recomputing, None if parts is None else parts(recomputing))
    return plain, recomputing


def trained(model, forwards, dtype=torch.float32):
    """Loss, gradients and buffers after the forwards and one backward of all of them."""
    torch.manual_seed(1)
    with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        loss = sum(z.float().square().mean() for z in forwards(model))
    loss.backward()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"loss": loss.detach(), **gradients, **dict(model.named_buffers())}


def same(first, second):
    assert first.keys() == second.keys()
    for name, value in first.items():
        assert torch.equal(value, second[name]), name


def per_domain(model):
    """As a training step does: the source leaves the statistics alone, the target moves them."""
    with frozen_statistics(model):
        yield model(images(0))
    yield model(images(1))


def frozen(model):
    with running_statistics(model):
        yield model(images(0))


def evaluating(model):
    """The mode has changed again when the backward comes."""
    yield model.eval()(images(0))
    model.train()


CASES = {"deeplab": (deeplab, None), "dropout": (with_dropout, lambda model: model.encoder)}


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("forwards", [per_domain, frozen, evaluating])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_losses_gradients_and_statistics_are_the_same_bits(case, forwards, dtype):
    plain, recomputing = both(*CASES[case])
    same(trained(plain, forwards, dtype), trained(recomputing, forwards, dtype))
    for model in (plain, recomputing):
        assert all(module.training for module in model.modules())
    momenta = [
        [layer.momentum for layer in model.modules() if isinstance(layer, nn.BatchNorm2d)]
        for model in (plain, recomputing)
    ]
    assert momenta[0] == momenta[1]


def test_fcn8s_recomputes_its_stages():
    torch.manual_seed(0)
    model = build_model("fcn8s-vgg16", 2)
    names = list(model.state_dict())
    answers = []
    for _ in range(2):
        features = images()
        for stage in model.recomputable():  # without the 100 million weights of fc6
            features = stage(features)
        weights = list(model.encoder.features.parameters())
        answers.append([features, *torch.autograd.grad(features.square().sum(), weights)])
        checkpoint_activations(model)
    for a, b in zip(*answers, strict=True):
        assert torch.equal(a, b)
    assert list(model.state_dict()) == names


def kept_bytes(model):
    """Bytes of the tensors that one forward keeps for its backward, weights left out."""
    weights = {parameter.untyped_storage().data_ptr() for parameter in model.parameters()}
    kept = {}

    def note(tensor):
        storage = tensor.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        logits = model(images(size=(65, 65)))
    del logits
    return sum(kept.values())


def test_fewer_bytes_are_kept():
    plain, recomputing = both(deeplab)
    # Of a residual block only its input is left. The stem and the head, which are as before, are
    # most of what this small network keeps then.
    assert kept_bytes(recomputing) < 0.6 * kept_bytes(plain)


def test_names_copies_and_forwards_without_gradients_are_as_before():
    plain, recomputing = both(deeplab)
    assert list(plain.state_dict()) == list(recomputing.state_dict())
    checkpoint_activations(recomputing)  # a second time changes nothing
    twin = copy.deepcopy(recomputing)
    same(trained(twin, per_domain), trained(plain, per_domain))
    assert all(parameter.grad is None for parameter in recomputing.parameters())
    with torch.no_grad():
        assert torch.equal(recomputing.eval()(images()), deeplab().eval()(images()))


def test_network_without_known_parts_is_refused():
    with pytest.raises(ValueError, match=r"Sequential\+Conv2d does not say .* give parts"):
        checkpoint_activations(with_dropout())
