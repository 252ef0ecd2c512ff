"""Compiled encoders and classifiers: the same numbers under the same names."""

import copy

import pytest
import torch
from torch import nn
from torchvision.models.resnet import BasicBlock

from cscl_fast.models import (
    CompileError,
    EncoderWithHead,
    SegmentationModel,
    build_model,
    checkpoint_activations,
    compile_parts,
    frozen_statistics,
)
from cscl_fast.models.dilated_head import DilatedHead
from cscl_fast.models.segmentation_model import Features


class Small(SegmentationModel):
    """A residual block, and the head of DeepLab with both its paths."""

    def __init__(self):
        super().__init__()
        self.architecture, self.num_classes, self.feature_channels = "small", 3, 8
        stem = nn.Conv2d(3, 8, 3, stride=8, padding=1)
        self.encoder = nn.Sequential(stem, BasicBlock(8, 8))
        self.classifier = DilatedHead(8, 3)
        self.to(memory_format=torch.channels_last)

    def encode(self, images):
        return Features(self.encoder(images.contiguous(memory_format=torch.channels_last)))

    def classify(self, features):
        return self.classifier(features.deep)

    def classify_both(self, features, gate):
        return self.classifier(features.deep, gate)


def step(model):
    """What a training step asks of a network: losses, gradients, statistics; and an evaluation."""
    images = torch.randn(2, 3, 96, 128, generator=torch.Generator().manual_seed(1))
    with frozen_statistics(model):
        source = model.encode(images[:1])
    target = model.encode(images[1:])
    gate = torch.full((1, 1, 12, 16), 0.3)
    logits = [*model.classify_both(source, gate), *model.classify_both(target, gate)]
    sum(z.square().mean() for z in logits).backward()
    with torch.no_grad():
        evaluated = model.eval()(images)
    model.train()
    gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
    return {"evaluated": evaluated, **gradients, **dict(model.named_buffers())}


@pytest.mark.timeout(1800)  # the C++ compiler's minutes, on a busy machine
@pytest.mark.parametrize(
    "recomputing", [False, pytest.param(True, marks=pytest.mark.slow)], ids=["plain", "recomputing"]
)
@pytest.mark.parametrize("backend", ["aot_eager", pytest.param(None, marks=pytest.mark.slow)])
def test_a_compiled_step_computes_what_an_eager_one_does(recomputing, backend, monkeypatch):
    if backend is not None:  # without the C++ compiler, which is slow
        compiled = nn.Module.compile
        monkeypatch.setattr(nn.Module, "compile", lambda m, **k: compiled(m, backend=backend, **k))
        monkeypatch.setattr("cscl_fast.models.compiled._require_compiler", lambda device: None)
    torch.manual_seed(0)
    eager = Small()
    model = copy.deepcopy(eager)
    if recomputing:
        checkpoint_activations(model)
    names = list(model.state_dict())
    compile_parts(model)
    torch._dynamo.reset()  # what other tests compiled counts towards a limit
    torch._dynamo.utils.counters.clear()
    expected, found = step(eager), step(model)
    # The encoder with still and with moving statistics and in evaluation, the head of one path
    # and of both: none was left uncompiled.
    assert torch._dynamo.utils.counters["stats"]["unique_graphs"] >= 5
    assert not torch._dynamo.utils.counters["graph_break"]
    assert expected.keys() == found.keys()
    for name, value in expected.items():
        # Fused operations round otherwise, in float32.
        tolerance = 1e-4 * value.abs().max().item()
        torch.testing.assert_close(found[name], value, rtol=0, atol=tolerance, msg=name)
    assert list(model.state_dict()) == names
    eager.load_state_dict(model.state_dict())
    twin = copy.deepcopy(model)  # what a label network is: it works, uncompiled
    with torch.no_grad():
        images = torch.randn(1, 3, 64, 64)
        assert torch.equal(twin.eval()(images), eager.eval()(images))


def test_parts_of_any_network_are_compiled(monkeypatch):
    monkeypatch.setattr("cscl_fast.models.compiled._require_compiler", lambda device: None)
    other = EncoderWithHead(nn.Conv2d(3, 8, 3), nn.Conv2d(8, 2, 1), 2, 8)
    for model in (build_model("deeplabv2-resnet18", 2), other):
        compile_parts(model)
        for part in (model.encoder, model.classifier):
            assert part._compiled_call_impl is not None
            assert copy.deepcopy(part)._compiled_call_impl is None


def test_machine_without_a_compiler_is_told_before_the_first_step(monkeypatch):
    def failing(function):
        raise OSError("\nInvalidCxxCompiler: No working C++ compiler found")

    monkeypatch.setattr(torch, "compile", failing)
    model = Small()
    with pytest.raises(CompileError, match=r"cpu: OSError: InvalidCxx.*install them, or leave"):
        compile_parts(model)
    assert model.encoder._compiled_call_impl is None
