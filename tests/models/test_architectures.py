"""The segmentation networks: grids, memory format, names, what torchvision's weights compute."""

import math

import pytest
import torch
import torchvision
from torch import nn
from torch.nn import functional as F

from cscl_fast.models import ARCHITECTURES, Features, SegmentationModel, build_model

CLASSES = 5
CHANNELS_LAST = torch.channels_last
SIZES = [(64, 64), (97, 131), (60, 81), (180, 240)]


@pytest.fixture(scope="module")
def fcn8s():
    """Built once: its 134 million parameters take seconds to fill."""
    torch.manual_seed(0)
    return build_model("fcn8s-vgg16", CLASSES).eval()


@pytest.fixture(scope="module", params=[name for name in ARCHITECTURES if "101" not in name])
def model(request):
    if request.param == "fcn8s-vgg16":
        return request.getfixturevalue("fcn8s")
    torch.manual_seed(0)
    return build_model(request.param, CLASSES).eval()


@pytest.mark.parametrize("size", SIZES, ids=str)
@torch.no_grad()
def test_logits_are_on_the_grid_of_stride_8(model, size):
    logits = model(torch.randn(1, 3, *size))
    assert logits.shape == (1, CLASSES, math.ceil(size[0] / 8), math.ceil(size[1] / 8))
    assert logits.dtype == torch.float32


@torch.no_grad()
def test_features_and_logits_are_channels_last(model):
    for images in (torch.randn(2, 3, 97, 131), torch.randn(2, 97, 131, 3).movedim(-1, 1)):
        features = model.encode(images)
        logits = model.classify(features)
        assert features.deep.is_contiguous(memory_format=CHANNELS_LAST)
        assert all(skip.is_contiguous(memory_format=CHANNELS_LAST) for skip in features.skips)
        assert logits.is_contiguous(memory_format=CHANNELS_LAST)
        assert features.deep.shape[1] == model.feature_channels
        assert features.deep.min() >= 0, "F is taken after the last ReLU"
    for parameter in model.parameters():
        if parameter.ndim == 4:
            assert parameter.is_contiguous(memory_format=CHANNELS_LAST)


@torch.no_grad()
def test_plain_path_is_encode_then_classify(model):
    images = torch.randn(1, 3, 65, 97)
    assert torch.equal(model(images), model.classify(model.encode(images)))


@torch.no_grad()
def test_images_of_a_batch_do_not_mix_in_evaluation(model):
    images = torch.randn(2, 3, 65, 97)
    alone = torch.cat([model(images[:1]), model(images[1:])])
    # Another batch size may take another convolution algorithm: float32 rounding only.
    together = model(images)
    torch.testing.assert_close(together, alone, rtol=0, atol=1e-4 * alone.abs().max().item())


@torch.no_grad()
def test_gate_of_zero_transferability_is_the_plain_path(model):
    features = model.encode(torch.randn(1, 3, 65, 97))
    gate = torch.zeros(1, 1, *features.deep.shape[-2:])
    gated = model.classify(features._replace(deep=features.deep * (1 + gate)))
    assert torch.equal(gated, model.classify(features))
    open_gate = model.classify(features._replace(deep=features.deep * 2))
    assert not torch.allclose(open_gate, model.classify(features))


@pytest.mark.parametrize("depth", [18, 50, 101])
def test_encoder_has_the_names_of_torchvision(depth):
    expected = getattr(torchvision.models, f"resnet{depth}")(weights=None).state_dict()
    expected = {name: v.shape for name, v in expected.items() if not name.startswith("fc.")}
    found = build_model(f"deeplabv2-resnet{depth}", CLASSES).encoder.state_dict()
    assert {name: value.shape for name, value in found.items()} == expected


@pytest.mark.parametrize("depth", [18, 50])
@pytest.mark.parametrize("size", [(97, 131), (64, 96)], ids=str)
@torch.no_grad()
def test_dilation_keeps_what_torchvision_weights_compute(depth, size):
    """A dilated network computes the strided one on every fourth location, exactly."""
    torch.manual_seed(1)
    original = getattr(torchvision.models, f"resnet{depth}")(weights=None).eval()
    model = build_model(f"deeplabv2-resnet{depth}", CLASSES).eval()
    model.encoder.load_state_dict(original.state_dict(), strict=False)
    images = torch.randn(1, 3, *size)
    expected = nn.Sequential(*list(original.children())[:-2])(images)
    found = model.encode(images).deep[..., ::4, ::4]
    # The two sum in another order: float32 rounding through the depth of the network.
    torch.testing.assert_close(found, expected, rtol=1e-3, atol=1e-4 * expected.max().item())


@pytest.mark.parametrize(("name", "stride", "dilation"), [("2", 2, 1), ("3", 1, 2), ("4", 1, 4)])
@torch.no_grad()
def test_caffe_variant_strides_and_dilates_as_the_published_networks(name, stride, dilation):
    block = build_model("deeplabv2-resnet101-caffe", CLASSES).eval().encoder
    block = block.get_submodule(f"layer{name}.0")
    weights = dict(block.named_parameters())
    inputs = torch.rand(1, block.conv1.in_channels, 12, 15)
    hidden = F.relu(block.bn1(F.conv2d(inputs, weights["conv1.weight"], stride=stride)))
    hidden = F.conv2d(hidden, weights["conv2.weight"], padding=dilation, dilation=dilation)
    hidden = block.bn3(F.conv2d(F.relu(block.bn2(hidden)), weights["conv3.weight"]))
    shortcut = F.conv2d(inputs, weights["downsample.0.weight"], stride=stride)
    expected = F.relu(hidden + block.downsample[1](shortcut))
    torch.testing.assert_close(block(inputs), expected, rtol=1e-4, atol=1e-5)


@torch.no_grad()
def test_head_of_deeplab_is_the_sum_of_four_dilated_convolutions():
    model = build_model("deeplabv2-resnet18", CLASSES)
    features = torch.rand(1, 512, 9, 11)
    expected = torch.zeros(1, CLASSES, 9, 11, dtype=torch.float64)
    for branch, dilation in zip(model.classifier.branches, (6, 12, 18, 24), strict=True):
        expected += F.conv2d(
            features.double(),
            branch.weight.double(),
            branch.bias.double(),
            padding=dilation,
            dilation=dilation,
        )
    found = model.classify(Features(features))
    torch.testing.assert_close(found.double(), expected, rtol=1e-4, atol=1e-5)  # float32 sums
    assert 0.009 < model.classifier.branches[0].weight.std() < 0.011  # as in DeepLab-v2


@pytest.mark.parametrize("architecture", ["deeplabv2-resnet18", "deeplabv2-resnet101"])
def test_gradients_reach_every_parameter(architecture):
    torch.manual_seed(0)
    model = build_model(architecture, CLASSES)
    model(torch.randn(2, 3, 65, 97)).square().mean().backward()
    for name, parameter in model.named_parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all(), name
        assert parameter.grad.any(), name


def test_fcn8s_gradients_reach_every_part(fcn8s):
    logits = fcn8s(torch.randn(1, 3, 33, 40))
    targets = [fcn8s.encoder.features[0].weight, fcn8s.encoder.fc6.bias, fcn8s.encoder.fc7.bias]
    targets += list(fcn8s.classifier.parameters())
    for gradient in torch.autograd.grad(logits.square().mean(), targets):
        assert gradient.isfinite().all() and gradient.any()


@torch.no_grad()
def test_fcn8s_grids_stay_aligned_where_32_does_not_divide(fcn8s):
    """A score that grows by 1 a column at 1/32 grows by 1/4 a column at 1/8, up to the border."""
    features = fcn8s.encode(torch.randn(1, 3, 97, 131))
    assert [tuple(skip.shape[-2:]) for skip in features.skips] == [(7, 9), (13, 17)]
    assert features.deep.shape[-2:] == (4, 5)
    ramp = torch.arange(5.0).expand(1, 4096, 4, 5).contiguous()
    logits = fcn8s.classify(features._replace(deep=ramp))
    # The skips' scores start at 0, so that the logits are those of fc7 alone. Column x at 1/8
    # lies at (x + 1/2) / 4 - 1/2 of the grid at 1/32; the first three feel its border.
    columns = (torch.arange(3.0, 17.0) + 0.5) / 4 - 0.5
    slope = fcn8s.classifier.score_fc7.weight.sum(dim=1).reshape(1, CLASSES, 1, 1)
    expected = (slope * columns).expand(1, CLASSES, 13, 14)
    torch.testing.assert_close(logits[..., 3:], expected, rtol=1e-4, atol=1e-4)


def test_affine_parameters_of_batch_normalisation_are_trained_or_frozen():
    for affine in (True, False):
        model = build_model("deeplabv2-resnet18", CLASSES, batchnorm_affine=affine)
        for name, parameter in model.named_parameters():
            normalises = "bn" in name or "downsample.1" in name
            assert parameter.requires_grad == (affine or not normalises), name


def test_networks_from_scratch_start_as_torchvision_does():
    model = build_model("deeplabv2-resnet18", CLASSES)
    for layer in model.modules():
        if isinstance(layer, nn.BatchNorm2d):
            assert (layer.weight == 1).all() and (layer.bias == 0).all()
    weight = model.encoder.layer4[1].conv2.weight
    assert weight.std().item() == pytest.approx(math.sqrt(2 / (512 * 9)), rel=0.02)  # He, fan out


def test_attributes_of_the_interface():
    model = build_model("deeplabv2-resnet18", CLASSES)
    assert isinstance(model, SegmentationModel)
    assert (model.architecture, model.num_classes) == ("deeplabv2-resnet18", CLASSES)
    counted = [*model.encoder.parameters(), *model.classifier.parameters()]
    assert {id(p) for p in counted} == {id(p) for p in model.parameters()}


def test_unknown_architecture_names_the_nearest():
    with pytest.raises(ValueError, match=r"'deeplab-resnet18'.*'deeplabv2-resnet18'"):
        build_model("deeplab-resnet18", CLASSES)


@pytest.mark.parametrize("num_classes", [0, -1, 257])
def test_number_of_classes_is_checked(num_classes):
    with pytest.raises(ValueError, match=f"num_classes is {num_classes}"):
        build_model("deeplabv2-resnet18", num_classes)
