"""The compiled kernel of `soft_pseudo_labels` against float64 arithmetic in NumPy.

What is particular to this kernel: vector tails, the ways to solve a pixel, types, layouts, and the
upsampling that is never stored. The table that every backend passes is in
test_soft_pseudo_label.py.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import pytest
import torch
from torch import Tensor

from cscl_fast import ops, use_backend
from cscl_fast.backends import why_unavailable

pytestmark = pytest.mark.skipif(why_unavailable("cpu") is not None, reason="no compiled kernels")

# (H, W) = size, align_corners
Resize = tuple[tuple[int, int], bool]

# Half a unit in the last place of the type that the result is rounded to: relative, absolute.
ROUNDING = {
    torch.float32: (0.0, 0.0),
    torch.float16: (2.0**-11, 2.0**-25),
    torch.bfloat16: (2.0**-8, 0.0),
}


class Oracle(NamedTuple):
    """Eq. 8-10 in float64; all arrays [B, (K,) H, W]."""

    soft: np.ndarray
    hard: np.ndarray
    cost: np.ndarray  # logsumexp(a); kept where positive
    margin: np.ndarray  # between the largest and the second largest a


def resample(z: np.ndarray, axis: int, output: int, align_corners: bool) -> np.ndarray:
    """Linear interpolation along one axis in PyTorch's convention."""
    source = z.shape[axis]
    i = np.arange(output)
    if align_corners:
        numerator, denominator = i * (source - 1), max(output - 1, 1)
    else:
        numerator, denominator = np.maximum((2 * i + 1) * source - output, 0), 2 * output
    first = numerator // denominator
    far = (numerator % denominator) / denominator
    shape = [-1 if a == axis else 1 for a in range(z.ndim)]
    near, far = (1 - far).reshape(shape), far.reshape(shape)
    second = np.minimum(first + 1, source - 1)
    return near * z.take(first, axis) + far * z.take(second, axis)


def oracle(logits: Tensor, thresholds: Tensor, gamma: float, resize: Resize | None) -> Oracle:
    z = logits.double().numpy()
    with np.errstate(invalid="ignore", over="ignore"):
        if resize is not None:
            (height, width), align_corners = resize
            z = resample(resample(z, 2, height, align_corners), 3, width, align_corners)
        finite = np.isfinite(z).all(axis=1)
        z = np.where(finite[:, None], z, 0.0)
    z = z - z.max(axis=1, keepdims=True)
    log_p = z - np.log(np.exp(z).sum(axis=1, keepdims=True))
    a = (log_p - np.log(thresholds.double().numpy())[:, None, None]) / gamma
    top = a.max(axis=1, keepdims=True)
    q = np.exp(a - top)
    total = q.sum(axis=1, keepdims=True)
    cost = (top + np.log(total))[:, 0]
    kept = finite & (cost > 0)
    soft = np.where(kept[:, None], q / total, 0.0)
    hard = np.where(kept, a.argmax(axis=1), 255)
    if a.shape[1] > 1:
        ordered = np.sort(a, axis=1)
        margin = ordered[:, -1] - ordered[:, -2]
    else:
        margin = np.full(cost.shape, np.inf)
    cost = np.where(finite, cost, np.inf)  # a pixel that is not finite is never a close call
    return Oracle(soft, hard, cost, margin)


def check(
    logits: Tensor,
    thresholds: Tensor,
    gamma: float = 0.25,
    resize: Resize | None = None,
) -> ops.SoftPseudoLabels:
    """The kernel's answer, after comparing it with the oracle at the contract's tolerances."""
    size, align_corners = (None, False) if resize is None else resize
    with use_backend("cpu"):
        got = ops.soft_pseudo_labels(
            logits, thresholds, gamma, size=size, align_corners=align_corners
        )
    want = oracle(logits, thresholds, gamma, resize)
    assert got.soft.dtype == logits.dtype
    assert got.hard.dtype == torch.int64
    assert tuple(got.soft.shape) == want.soft.shape
    assert tuple(got.hard.shape) == want.hard.shape
    soft, hard = got.soft.double().numpy(), got.hard.numpy()

    # The contract leaves kept and hard open within 1e-5 of the decision.
    sure = np.abs(want.cost) > 1e-5
    np.testing.assert_array_equal((hard != 255)[sure], (want.hard != 255)[sure])
    clear = sure & (want.margin > 1e-5)
    np.testing.assert_array_equal(hard[clear], want.hard[clear])

    # An error in log p is divided by γ; then the result's own rounding.
    relative, absolute = ROUNDING[logits.dtype]
    allowed = (1e-5 / gamma + relative) * want.soft + 1e-6 + absolute
    error = np.where(sure[:, None], np.abs(soft - want.soft), 0.0)
    assert (error <= allowed).all(), f"{(error / allowed).max():.2f} times the tolerance"
    return got


def random_case(
    seed: int, shape: tuple[int, int, int, int], spread: float = 3.0, low: float = 0.05
) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(seed)
    logits = spread * torch.randn(shape, generator=generator)
    thresholds = low + (1.0 - low) * torch.rand(shape[1], generator=generator)
    return logits, thresholds


CLASSES = [1, 2, 3, 4, 5, 11, 13, 16, 19, 20, 64, 255, 256]
GAMMAS = [0.125, 0.25, 0.3, 0.5, 1.0, 2.0]


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("classes", CLASSES)
def test_classes_types_and_layouts(classes: int, dtype: torch.dtype, channels_last: bool) -> None:
    logits, thresholds = random_case(classes, (2, classes, 9, 31))
    logits = logits.to(dtype)
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    got = check(logits, thresholds)
    assert got.soft.stride() == logits.stride()


@pytest.mark.parametrize("gamma", GAMMAS)
@pytest.mark.parametrize("classes", [1, 3, 19, 64])
def test_sharpness(classes: int, gamma: float) -> None:
    logits, thresholds = random_case(7, (1, classes, 16, 33))
    check(logits, thresholds, gamma)
    check(logits, thresholds, gamma, ((31, 40), False))


@pytest.mark.parametrize("gamma", [1e-6, 1e-3, 0.01, 0.05, 0.1, 1.0 / 3.0, 0.7, 10.0, 1e6])
def test_extreme_sharpness(gamma: float) -> None:
    check(*random_case(8, (1, 19, 16, 33)), gamma)


@pytest.mark.parametrize("gamma", [0.125, 0.25, 0.3, 1.0, 2.0])
@pytest.mark.parametrize("smallest", [1e-2, 1e-4, 1e-6, 1e-10, 1e-20, 1e-30, 1e-38])
def test_tiny_thresholds(smallest: float, gamma: float) -> None:
    logits, thresholds = random_case(9, (1, 19, 16, 16), spread=8.0)
    thresholds[4] = smallest
    thresholds[11] = 1.0
    check(logits, thresholds, gamma)
    thresholds[:] = smallest
    check(logits, thresholds, gamma)


def test_thresholds_of_one_reject_unsure_pixels() -> None:
    logits, _ = random_case(10, (1, 19, 16, 16))
    got = check(logits, torch.ones(19), 1.0)
    assert (got.hard == 255).all()  # Σ p = 1, never above it


@pytest.mark.parametrize("spread", [0.0, 1e-3, 30.0, 1e3, 1e6, 1e30])
def test_spread_of_the_logits(spread: float) -> None:
    check(*random_case(11, (1, 19, 16, 16), spread))


@pytest.mark.parametrize("offset", [-1e4, -100.0, 100.0, 1e4])
def test_common_offset(offset: float) -> None:
    logits, thresholds = random_case(12, (1, 19, 16, 16))
    check(logits + offset, thresholds)
    check(logits + offset, thresholds, 0.25, ((50, 47), False))


@pytest.mark.parametrize("channels_last", [False, True])
@pytest.mark.parametrize("classes", [3, 19])
def test_every_width(classes: int, channels_last: bool) -> None:
    for width in range(1, 68):
        logits, thresholds = random_case(width, (2, classes, 1, width))
        if channels_last:
            logits = logits.contiguous(memory_format=torch.channels_last)
        check(logits, thresholds)
        check(logits, thresholds, 0.25, ((2, 67 - width + 1), width % 2 == 0))


RESIZES = [(1, 1), (1, 7), (7, 1), (5, 9), (9, 5), (20, 30), (64, 131), (3, 3)]


@pytest.mark.parametrize("align_corners", [False, True])
@pytest.mark.parametrize("source", [(1, 1), (1, 9), (9, 1), (5, 9), (17, 40)])
def test_resize(source: tuple[int, int], align_corners: bool) -> None:
    logits, thresholds = random_case(13, (2, 19, *source))
    for size in RESIZES:
        check(logits, thresholds, 0.25, (size, align_corners))


@pytest.mark.parametrize("dtype", [torch.float32, torch.float16, torch.bfloat16])
@pytest.mark.parametrize("channels_last", [False, True])
def test_resize_types_and_layouts(dtype: torch.dtype, channels_last: bool) -> None:
    for classes in (1, 3, 4, 19, 256):
        logits, thresholds = random_case(14, (2, classes, 9, 17))
        logits = logits.to(dtype)
        if channels_last:
            logits = logits.contiguous(memory_format=torch.channels_last)
        got = check(logits, thresholds, 0.25, ((33, 70), False))
        like = torch.channels_last if channels_last else torch.contiguous_format
        assert got.soft.is_contiguous(memory_format=like)


@pytest.mark.parametrize("resize", [None, ((30, 41), False)])
def test_strided_inputs(resize: Resize | None) -> None:
    logits, thresholds = random_case(15, (4, 38, 24, 60))
    views = {
        "crop": logits[:, :19, 3:20, 5:50],
        "every other": logits[::2, ::2, ::3, ::2],
        "transposed": logits[:, :19].transpose(2, 3),
        "expanded": logits[:1, :19].expand(3, -1, -1, -1),
        "crop of channels-last": logits.contiguous(memory_format=torch.channels_last)[
            :, :19, 1:9, 2:30
        ],
    }
    for name, view in views.items():
        got = check(view, thresholds[:19], 0.25, resize)
        plain = check(view.contiguous(), thresholds[:19], 0.25, resize)
        assert torch.equal(got.soft, plain.soft), name
        assert torch.equal(got.hard, plain.hard), name


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("gamma", [0.25, 0.3, 0.01])
@pytest.mark.parametrize("channels_last", [False, True])
def test_a_bad_logit_rejects_its_pixel_alone(bad: float, gamma: float, channels_last: bool) -> None:
    logits, thresholds = random_case(16, (2, 19, 7, 21))
    if channels_last:
        logits = logits.contiguous(memory_format=torch.channels_last)
    clean = check(logits, thresholds, gamma)
    for image, k, y, x in [(0, 0, 0, 0), (1, 18, 6, 20), (0, 7, 3, 16), (1, 1, 2, 15)]:
        spoiled = logits.clone()
        spoiled[image, k, y, x] = bad
        got = check(spoiled, thresholds, gamma)
        assert got.hard[image, y, x] == 255
        assert (got.soft[image, :, y, x] == 0).all()
        others = torch.ones_like(got.hard, dtype=torch.bool)
        others[image, y, x] = False
        assert torch.equal(got.hard[others], clean.hard[others])
        mask = others[:, None].expand_as(got.soft)
        assert torch.equal(got.soft[mask], clean.soft[mask])


@pytest.mark.parametrize("bad", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("resize", [((21, 44), False), ((25, 29), True), ((3, 5), False)])
def test_a_bad_logit_spoils_the_pixels_that_read_it(bad: float, resize: Resize) -> None:
    logits, thresholds = random_case(17, (1, 19, 7, 15))
    logits[0, 5, 2, 8] = bad
    logits[0, :, 6, 14] = bad  # all classes: nothing finite is left there
    check(logits, thresholds, 0.25, resize)  # the oracle interpolates literally, 0 * NaN included


def test_all_logits_bad() -> None:
    for bad in (float("nan"), float("inf"), float("-inf")):
        logits = torch.full((1, 19, 4, 20), bad)
        for size in (None, (9, 9)):
            with use_backend("cpu"):
                got = ops.soft_pseudo_labels(logits, torch.full((19,), 0.5), size=size)
            assert (got.hard == 255).all()
            assert (got.soft == 0).all()


@pytest.mark.parametrize("gamma", [0.25, 0.3, 0.01])
def test_ties_go_to_the_lowest_class(gamma: float) -> None:
    logits = torch.zeros(1, 19, 2, 17)
    logits[:, [4, 9, 17]] = 5.0
    with use_backend("cpu"):
        got = ops.soft_pseudo_labels(logits, torch.full((19,), 0.25), gamma)
    assert (got.hard == 4).all()


def test_one_class() -> None:
    logits, _ = random_case(18, (1, 1, 3, 5))
    assert (check(logits, torch.tensor([1.0])).hard == 255).all()  # Σ (p/δ)^(1/γ) = 1, not above
    assert (check(logits, torch.tensor([0.99])).hard == 0).all()


@pytest.mark.parametrize("shape", [(0, 19, 4, 4), (2, 19, 0, 4), (2, 19, 4, 0)])
def test_empty(shape: tuple[int, int, int, int]) -> None:
    with use_backend("cpu"):
        got = ops.soft_pseudo_labels(torch.zeros(shape), torch.full((19,), 0.5))
    assert tuple(got.soft.shape) == shape
    assert tuple(got.hard.shape) == (shape[0], *shape[2:])


def test_splitting_a_batch_or_an_image_changes_nothing() -> None:
    logits, thresholds = random_case(19, (3, 19, 70, 67))
    with use_backend("cpu"):
        whole = ops.soft_pseudo_labels(logits, thresholds)
        images = [ops.soft_pseudo_labels(image[None], thresholds) for image in logits]
        rows = ops.soft_pseudo_labels(logits[:, :, 33:, 5:], thresholds)
        last = ops.soft_pseudo_labels(
            logits.contiguous(memory_format=torch.channels_last), thresholds
        )
    assert torch.equal(whole.soft, torch.cat([image.soft for image in images]))
    assert torch.equal(whole.hard, torch.cat([image.hard for image in images]))
    # Bitwise: a pixel's answer does not depend on its place in a vector or on the layout.
    assert torch.equal(whole.soft[:, :, 33:, 5:], rows.soft)
    assert torch.equal(whole.hard[:, 33:, 5:], rows.hard)
    assert torch.equal(whole.soft, last.soft)


def test_a_large_result_is_the_same_as_its_parts() -> None:
    """Large results are written past the caches, small ones through them."""
    logits, thresholds = random_case(20, (2, 19, 256, 512))
    for dtype in (torch.float32, torch.bfloat16):
        for format_ in (torch.contiguous_format, torch.channels_last):
            part = logits.to(dtype).contiguous(memory_format=format_)
            with use_backend("cpu"):
                whole = ops.soft_pseudo_labels(part, thresholds)
                top = ops.soft_pseudo_labels(part[:, :, :30], thresholds)
                small = part[:, :, ::8, ::8]
                large = ops.soft_pseudo_labels(small, thresholds, size=(256, 512))
                first = ops.soft_pseudo_labels(small[:1, :4], thresholds[:4], size=(256, 512))
            assert torch.equal(whole.soft[:, :, :30], top.soft)
            assert torch.equal(whole.hard[:, :30], top.hard)
            assert large.soft.shape == whole.soft.shape
            assert first.hard.shape == (1, 256, 512)
            check(small, thresholds, 0.25, ((256, 512), False))
