"""No training step copies a feature map into another memory format."""

import sys
from pathlib import Path

import pytest
import torch
from torch import nn

from cscl_fast import CSCL, ops
from cscl_fast.config import Config
from cscl_fast.models import build_model

sys.path.insert(0, str(Path(__file__).resolve().parents[2] / "benchmarks"))
from layout_copies import layout_copies, of_features

CHANNELS_LAST = torch.channels_last
CLASSES = 5


def images(seed, memory_format=CHANNELS_LAST):
    drawn = torch.randn(2, 3, 64, 96, generator=torch.Generator().manual_seed(seed))
    return drawn.contiguous(memory_format=memory_format)


LABELS = torch.randint(0, CLASSES, (2, 64, 96), generator=torch.Generator().manual_seed(0))


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_step_of_the_method_copies_no_feature_map(precision):
    torch.manual_seed(0)
    cscl = CSCL(build_model("deeplabv2-resnet18", CLASSES), Config(precision=precision))
    source, target = (images(0), LABELS), images(1)
    cscl.begin_epoch([target])
    cscl.step(source, target)  # optimizers make their state in the first one
    with layout_copies() as found:
        values = cscl.step(source, target)
    assert "divergence" in values and "regression" in values  # every part took part
    assert not of_features(found, cscl.players.parameters())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_fcn8s_copies_no_feature_map(dtype):
    torch.manual_seed(0)
    model = build_model("fcn8s-vgg16", CLASSES)
    model.encoder.fc6.weight.requires_grad_(False)  # seconds, for nothing that is looked at
    gate = torch.rand(2, 1, 2, 3, requires_grad=True)
    source = images(0)
    with layout_copies() as found:
        with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
            logits = model.classify_both(model.encode(source), gate)
            loss = sum(ops.upsampled_cross_entropy(z, LABELS) for z in logits)
        loss.backward()
    assert gate.grad is not None and model.encoder.features[0].weight.grad is not None
    assert not of_features(found, model.parameters())


def test_copies_are_found_where_they_are_made():
    convolution = nn.Conv2d(3, 4, 3).to(memory_format=CHANNELS_LAST)
    planes = images(0, torch.contiguous_format)
    with layout_copies() as found:
        convolution(planes)  # the kernel makes its own copy
    assert [copy.shape for copy in of_features(found, convolution.parameters())] == [(2, 3, 64, 96)]
    assert "aten::conv2d" in found[0].operators
    assert "2x3x64x96 from (18432, 6144, 96, 1) to (18432, 1, 288, 3): aten::copy_" in str(found[0])
    pixels = images(0)
    with layout_copies() as found:
        pixels.clone()
        pixels[:, :1].contiguous()  # one channel lies the same in both formats
        torch.ones(()).expand(2, 3, 64, 96).contiguous()
        torch.randn(6, 4).t().contiguous()
    assert found == [], "copies that change no format of a feature map"
