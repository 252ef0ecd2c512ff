"""Encoders and heads from elsewhere as a network of the method."""

import pytest
import torch
import torchvision
from torch import nn

from cscl_fast.models import EncoderWithHead, SegmentationModel

K, C = 3, 8


class Encoder(nn.Module):
    """Two maps, at 1/2 and 1/4, returned in the way `returned` says."""

    def __init__(self, returned="tensor"):
        super().__init__()
        self.first = nn.Conv2d(3, 4, 3, stride=2, padding=1)
        self.second = nn.Conv2d(4, C, 3, stride=2, padding=1)
        self.returned = returned

    def forward(self, images):
        fine = self.first(images).relu()
        deep = self.second(fine).relu()
        return {
            "tensor": deep,
            "dict": {"fine": fine, "out": deep},
            "list": [images, fine, deep],
            "flat": deep.mean((2, 3)),
            "text": "features",
        }[self.returned]


class Decoder(nn.Module):
    """Adds what it sees in the finer map, on that map's grid."""

    def __init__(self):
        super().__init__()
        self.deep = nn.Conv2d(C, K, 1)
        self.fine = nn.Conv2d(4, K, 1)

    def forward(self, deep, fine):
        deep = nn.functional.interpolate(self.deep(deep), fine.shape[-2:], mode="bilinear")
        return deep + self.fine(fine)


IMAGES = torch.randn(2, 3, 16, 24, generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize(
    ("returned", "pick"), [("tensor", None), ("dict", "out"), ("list", -1), ("list", 2)]
)
def test_one_feature_map_however_it_is_returned(returned, pick):
    encoder, head = Encoder(returned), nn.Conv2d(C, K, 1)
    model = EncoderWithHead(encoder, head, K, C, pick=pick)
    assert isinstance(model, SegmentationModel)
    expected = encoder.second(encoder.first(IMAGES).relu()).relu()
    features = model.encode(IMAGES)
    # Another memory format may take another convolution: float32 rounding.
    torch.testing.assert_close(features.deep, expected)
    assert features.deep.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(model(IMAGES), head(expected))
    assert set(model.state_dict()) == {
        *(f"encoder.{name}" for name in encoder.state_dict()),
        *(f"classifier.{name}" for name in head.state_dict()),
    }


def test_head_gets_the_skips_and_may_answer_on_a_finer_grid():
    model = EncoderWithHead(Encoder("list"), Decoder(), K, C, pick=-1, skips=(1,))
    features = model.encode(IMAGES)
    assert [skip.shape for skip in features.skips] == [(2, 4, 8, 12)]
    gate = torch.rand(2, 1, 4, 6)
    plain, gated = model.classify_both(features, gate)
    assert plain.shape == gated.shape == (2, K, 8, 12)
    assert torch.equal(plain, model(IMAGES))
    assert torch.equal(gated, model.classifier(features.deep * (1 + gate), features.skips[0]))


def test_deeplabv3_of_torchvision():
    network = torchvision.models.segmentation.deeplabv3_resnet50(
        weights=None, weights_backbone=None, num_classes=K
    )
    model = EncoderWithHead(network.backbone, network.classifier, K, 2048, pick="out").eval()
    assert model.architecture == "IntermediateLayerGetter+DeepLabHead"
    with torch.no_grad():
        assert model(torch.randn(1, 3, 33, 65)).shape == (1, K, 5, 9)


@pytest.mark.parametrize(
    ("encoder", "head", "options", "message"),
    [
        (Encoder("dict"), None, {}, "pick is None; the encoder returned a mapping with 'fine', "),
        (Encoder("dict"), None, {"pick": "deep"}, "pick is 'deep'.*'fine', 'out'"),
        (Encoder("list"), None, {}, "pick is None; the encoder returned 3 maps"),
        (Encoder("list"), None, {"pick": 3}, "pick is 3.*from -3 to 2"),
        (Encoder("list"), None, {"pick": 1}, r"\[2, 4, 8, 12\].*feature_channels is 8"),
        (Encoder(), None, {"pick": "out"}, "returned one tensor: pick needs to be None"),
        (Encoder("flat"), None, {}, r"\[2, 8\]; it needs to be \[B, 8, h, w\]"),
        (Encoder("text"), None, {}, "feature map is a str"),
        (Encoder(), nn.Conv2d(C, K + 1, 1), {}, r"\[2, 4, 4, 6\].*num_classes is 3"),
        (Encoder(), nn.Sequential(nn.Flatten(2)), {}, r"\[2, 8, 24\]"),
        (Encoder(), Encoder("dict").requires_grad_(False), {}, "head returned a dict"),
    ],
)
def test_maps_that_do_not_fit_are_named(encoder, head, options, message):
    if isinstance(head, Encoder):
        head.first = nn.Conv2d(C, 4, 1)
    model = EncoderWithHead(encoder, head or nn.Conv2d(C, K, 1), K, C, **options)
    with pytest.raises(ValueError, match=message):
        model(IMAGES)


@pytest.mark.parametrize(
    ("arguments", "options", "error", "message"),
    [
        (("resnet50", nn.Conv2d(C, K, 1), K, C), {}, TypeError, "encoder is a str"),
        ((Encoder(), torch.relu, K, C), {}, TypeError, "head is a builtin"),
        ((Encoder(), nn.Conv2d(C, K, 1), 0, C), {}, ValueError, "num_classes is 0"),
        ((Encoder(), nn.Conv2d(C, K, 1), K, 0), {}, ValueError, "feature_channels is 0"),
        ((Encoder(), nn.Conv2d(C, K, 1), K, C), {"feature_stride": 0}, ValueError, "stride is 0"),
        ((Encoder(), nn.Conv2d(C, K, 1), K, C), {"skips": (1,)}, ValueError, "pick is None"),
    ],
)
def test_arguments_are_checked(arguments, options, error, message):
    with pytest.raises(error, match=message):
        EncoderWithHead(*arguments, **options)
