"""The head of DeepLab-v2 as one product, and the plain and gated path that share it."""

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from cscl_fast.models import Features, SegmentationModel, build_model
from cscl_fast.models.dilated_head import HEAD_DILATIONS, DilatedHead

CHANNELS_LAST = torch.channels_last


def head(channels=6, classes=3, dtype=torch.float64):
    torch.manual_seed(0)
    made = DilatedHead(channels, classes).to(dtype)
    for branch in made.branches:
        nn.init.normal_(branch.bias)  # zeros would hide a bias that is added twice
    return made.to(memory_format=CHANNELS_LAST)


def features_and_gate(size, channels=6, batch=2, dtype=torch.float64):
    generator = torch.Generator().manual_seed(1)
    features = torch.randn(batch, channels, *size, generator=generator, dtype=dtype)
    gate = torch.rand(batch, 1, *size, generator=generator, dtype=dtype)
    features = features.contiguous(memory_format=CHANNELS_LAST)
    return features.requires_grad_(), gate.requires_grad_()


def convolved(head, features):
    """What the head computes, as it is defined."""
    return sum(
        F.conv2d(features, branch.weight, branch.bias, padding=dilation, dilation=dilation)
        for branch, dilation in zip(head.branches, HEAD_DILATIONS, strict=True)
    )


# Smaller than every dilation, than some, larger than all; one location.
SIZES = [(1, 1), (5, 7), (13, 11), (26, 51)]


@pytest.mark.parametrize("size", SIZES, ids=str)
def test_both_paths_and_all_gradients_are_those_of_the_convolutions(size):
    made = head()
    features, gate = features_and_gate(size)
    inputs = [features, gate, *made.parameters()]
    found = made(features, gate)
    expected = convolved(made, features), convolved(made, features * (1 + gate))
    weights = [torch.randn_like(logits) for logits in expected]
    for a, b in zip(found, expected, strict=True):
        assert a.is_contiguous(memory_format=CHANNELS_LAST)
        torch.testing.assert_close(a, b)  # float64 sums in another order
    gradients = [
        torch.autograd.grad(logits, inputs, weights, retain_graph=True)
        for logits in (found, expected)
    ]
    for a, b in zip(*gradients, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-7, atol=1e-9)


def test_plain_path_is_the_same_bits_with_and_without_a_gate():
    made = head(dtype=torch.float32)
    features, gate = features_and_gate((13, 11), dtype=torch.float32)
    assert torch.equal(made(features), made(features, gate)[0])
    assert torch.equal(made(features), made(features, torch.zeros_like(gate))[1])


def test_first_and_second_derivatives_by_finite_differences():
    made = head(2, 2)
    features, gate = features_and_gate((7, 8), channels=2, batch=1)
    assert torch.autograd.gradcheck(made, (features, gate), fast_mode=True)
    assert torch.autograd.gradgradcheck(made, (features, gate), fast_mode=True)


@pytest.mark.parametrize("size", [(5, 7), (13, 11)], ids=str)
def test_inputs_of_any_memory_format(size):
    made = head()
    features, gate = features_and_gate(size)
    contiguous = features.detach().contiguous().requires_grad_()
    for a, b in zip(made(features, gate), made(contiguous, gate), strict=True):
        torch.testing.assert_close(a, b)
        a.sum().backward(retain_graph=True)
        b.sum().backward(retain_graph=True)
    torch.testing.assert_close(features.grad, contiguous.grad)


@pytest.mark.parametrize("frozen", ["classifier", "features", "gate"])
def test_what_is_frozen_gets_no_gradient_and_the_rest_gets_its_own(frozen):
    made = head()
    features, gate = features_and_gate((13, 11))
    everything = {"features": [features], "gate": [gate], "classifier": list(made.parameters())}
    inputs = [tensor for tensors in everything.values() for tensor in tensors]
    expected = torch.autograd.grad(sum(z.square().sum() for z in made(features, gate)), inputs)
    for tensor in everything[frozen]:
        tensor.requires_grad_(False)
    sum(z.square().sum() for z in made(features, gate)).backward()
    for tensor, gradient in zip(inputs, expected, strict=True):
        if tensor.requires_grad:
            assert torch.equal(tensor.grad, gradient)
        else:
            assert tensor.grad is None


def test_gradients_of_the_weights_lie_as_the_weights_do():
    made = head(dtype=torch.float32)
    features, gate = features_and_gate((13, 11), dtype=torch.float32)
    sum(z.sum() for z in made(features, gate)).backward()
    for parameter in [features, *made.parameters()]:
        assert parameter.grad.stride() == parameter.stride()


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_under_autocast_the_products_are_half_and_the_sums_float32(dtype):
    channels = 64
    made = head(channels, 5, torch.float32)
    features, gate = features_and_gate((13, 27), channels, dtype=torch.float32)
    with torch.autocast("cpu", dtype):
        found = made(features, gate)
    sum(z.square().sum() for z in found).backward()
    assert features.grad.dtype == torch.float32
    exact = convolved(made, features), convolved(made, features * (1 + gate))
    for a, b in zip(found, exact, strict=True):
        assert a.dtype == torch.float32
        # Features, weights and each tap's product are rounded: independent errors of some
        # eps times the standard deviation of the result, over all locations at most 5 of them.
        assert (a - b).abs().max() < 5 * torch.finfo(dtype).eps * b.std()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_compiled_in_one_graph(dtype):
    made = head(16, 3, torch.float32)
    features, gate = features_and_gate((7, 9), 16, dtype=torch.float32)
    inputs = [features, gate, *made.parameters()]
    compiled = torch.compile(made, fullgraph=True, backend="eager")
    answers = []
    for function in (made, compiled):
        with torch.autocast("cpu", torch.bfloat16, enabled=dtype == torch.bfloat16):
            logits = function(features, gate)
        answers.append([*logits, *torch.autograd.grad(sum(z.sum() for z in logits), inputs)])
    for a, b in zip(*answers, strict=True):
        assert torch.equal(a, b)  # traced and run as it stands; no operator is replaced


def test_empty_batch():
    made = head()
    features, gate = features_and_gate((5, 7), batch=0)
    assert [logits.shape for logits in made(features, gate)] == [(0, 3, 5, 7)] * 2


def test_names_of_the_weights_are_those_of_the_convolutions():
    names = {f"branches.{i}.{name}" for i in range(4) for name in ("weight", "bias")}
    assert set(head().state_dict()) == names


@pytest.mark.parametrize("architecture", ["deeplabv2-resnet18", "fcn8s-vgg16"])
def test_sharing_networks_compute_what_two_calls_do(architecture):
    torch.manual_seed(0)
    model = build_model(architecture, 4).eval().requires_grad_(False)
    assert model.feature_stride == (32 if architecture == "fcn8s-vgg16" else 8)
    for parameter in model.classifier.parameters():  # FCN's skips start at 0
        nn.init.normal_(parameter, std=0.02)
    deep = torch.rand(2, model.feature_channels, 4, 5).contiguous(memory_format=CHANNELS_LAST)
    skips = (torch.rand(2, 512, 7, 9), torch.rand(2, 256, 13, 17))
    features = Features(deep, skips if architecture == "fcn8s-vgg16" else ())
    gate = torch.rand(2, 1, 4, 5)
    plain, gated = model.classify_both(features, gate)
    assert torch.equal(plain, model.classify(features))
    expected = SegmentationModel.classify_both(model, features, gate)[1]
    torch.testing.assert_close(gated, expected, rtol=1e-4, atol=1e-5)  # float32 sums
