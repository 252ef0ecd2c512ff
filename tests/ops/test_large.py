"""More than 2³¹ elements, and a data set's worth of images: run by hand with `pytest -m large`.

The largest case holds 18 GB. Each answer is compared with the answers of its parts, which are small
enough for any index to fit.
"""

from __future__ import annotations

import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from cscl_fast import backends, ops, use_backend

pytestmark = [
    pytest.mark.large,
    pytest.mark.timeout(3600),
    pytest.mark.skipif("cpu" in backends._missing, reason="the compiled library is not installed"),
]

SIDE = 33_000  # 2 · SIDE² > 2³¹
LAST = slice(SIDE - 2, SIDE)


@pytest.fixture(autouse=True)
def _cpu() -> None:
    with use_backend("cpu"):
        yield
    backends.library().release_cache()


@pytest.fixture(scope="module")
def logits() -> Tensor:  # [1, 2, SIDE, SIDE] bfloat16, its rows alike
    generator = torch.Generator().manual_seed(0)
    row = 3 * torch.randn(1, 2, 1, SIDE, generator=generator)
    large = torch.empty(1, 2, SIDE, SIDE, dtype=torch.bfloat16)
    assert large.numel() > 2**31
    large.copy_(row)
    large[:, :, LAST] = (3 * torch.randn(1, 2, 2, SIDE, generator=generator)).to(torch.bfloat16)
    return large


def test_soft_pseudo_labels(logits: Tensor) -> None:
    delta = torch.tensor([0.7, 0.8])
    whole = ops.soft_pseudo_labels(logits, delta)
    part = ops.soft_pseudo_labels(logits[:, :, LAST].contiguous(), delta)
    assert torch.equal(whole.soft[:, :, LAST], part.soft)
    assert torch.equal(whole.hard[:, LAST], part.hard)
    assert 0 < int((part.hard == 255).sum()) < part.hard.numel()


def test_class_thresholds_and_pseudo_label_loss(logits: Tensor) -> None:
    stream, part = ops.ClassThresholds(2), ops.ClassThresholds(2)
    stream.update(logits)
    assert int(stream.counts.sum()) == SIDE**2
    part.update(logits[:, :, :1])
    rows = ops.ClassThresholds(2)
    rows.update(logits[:, :, LAST])
    assert torch.equal(stream.counts, part.counts * (SIDE - 2) + rows.counts)
    delta = torch.tensor([0.7, 0.8])
    losses, kept = [], []
    for piece, times in ((logits[:, :, :1], SIDE - 2), (logits[:, :, LAST], 1)):
        losses.append(ops.pseudo_label_loss(piece, delta).double())
        kept.append(times * (ops.soft_pseudo_labels(piece, delta).hard != 255).sum().double())
    expected = (losses[0] * kept[0] + losses[1] * kept[1]) / (kept[0] + kept[1])
    torch.testing.assert_close(
        ops.pseudo_label_loss(logits, delta).double(), expected, rtol=1e-5, atol=1e-6
    )


def test_cross_entropy_at_own_size(logits: Tensor) -> None:
    labels = torch.full((1, SIDE, SIDE), 255)
    labels[:, LAST] = 1
    whole = ops.upsampled_cross_entropy(logits, labels)
    part = ops.upsampled_cross_entropy(logits[:, :, LAST], labels[:, LAST])
    torch.testing.assert_close(whole, part, rtol=1e-5, atol=1e-6)


def test_transfer_reward(logits: Tensor) -> None:
    labels = torch.zeros((1, SIDE, SIDE), dtype=torch.int64)
    reward, valid = ops.transfer_reward(logits, logits, labels)
    part, _ = ops.transfer_reward(logits[:, :, LAST], logits[:, :, LAST], labels[:, LAST])
    assert torch.equal(reward[:, :, LAST], part)
    assert bool(valid.all())


def test_cross_entropy_upsampled() -> None:
    side = 10_700  # 19 · side² > 2³¹, never stored
    generator = torch.Generator().manual_seed(1)
    z = (3 * torch.randn(1, 19, 65, 129, generator=generator)).requires_grad_()
    labels = torch.randint(0, 19, (1, side, side), generator=generator)
    whole = ops.upsampled_cross_entropy(z, labels)
    (gradient,) = torch.autograd.grad(whole, z)
    loss, summed = 0.0, torch.zeros_like(z)
    for half in (slice(0, side // 2), slice(side // 2, side)):
        part = torch.full_like(labels, 255)
        part[:, half] = labels[:, half]
        value = ops.upsampled_cross_entropy(z, part)
        loss += 0.5 * value.detach()
        summed += 0.5 * torch.autograd.grad(value, z)[0]
    torch.testing.assert_close(whole.detach(), loss, rtol=1e-5, atol=1e-6)
    assert float((gradient - summed).abs().max()) <= 1e-4 * float(summed.abs().max())


@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_class_centroids(memory_format: torch.memory_format) -> None:
    side = 1030  # 2048 · side² > 2³¹
    features = torch.empty(1, 2048, side, side, dtype=torch.bfloat16, memory_format=memory_format)
    assert features.numel() > 2**31
    row = torch.rand(1, 2048, 1, side, generator=torch.Generator().manual_seed(2))
    features.copy_(row)
    features[:, :, -1] = 5
    labels = torch.full((1, side, side), 255)
    labels[:, :2] = 0
    labels[:, -1] = 1
    features.requires_grad_()
    centroids, mass = ops.class_centroids(features, labels, 2)
    assert mass.tolist() == [2 * side, side]
    expected = row.to(torch.bfloat16).double().mean(dim=(0, 2, 3))
    torch.testing.assert_close(centroids[0].double(), expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(centroids[1], torch.full((2048,), 5.0))
    (gradient,) = torch.autograd.grad(centroids[1].sum(), features)
    assert bool((gradient[:, :, -1] == torch.tensor(1 / side).to(torch.bfloat16)).all())
    assert bool((gradient[:, :, -2] == 0).all())


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="reads /proc")
def test_thresholds_of_3000_images_take_constant_memory() -> None:
    def resident() -> int:  # KiB
        status = Path("/proc/self/status").read_text()
        return int(next(line for line in status.splitlines() if "VmHWM" in line).split()[1])

    generator = torch.Generator().manual_seed(3)
    images = [3 * torch.randn(1, 19, 65, 129, generator=generator) for _ in range(4)]
    stream = ops.ClassThresholds(19)
    for i in range(3000):
        stream.update(images[i % 4], size=(512, 1024))
        if i == 9:
            after_ten = resident()
    assert resident() - after_ten < 1024
    assert int(stream.counts.sum()) == 3000 * 512 * 1024
    four = ops.ClassThresholds(19)
    for image in images:
        four.update(image, size=(512, 1024))
    assert torch.equal(stream.counts, 750 * four.counts)
    assert torch.equal(stream.compute(0.5), four.compute(0.5))
