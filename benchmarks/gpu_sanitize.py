"""Every operator once, on shapes whose edges hurt: the program that compute-sanitizer watches.

    compute-sanitizer --tool memcheck python benchmarks/gpu_sanitize.py cuda

Inputs come from the host and answers are compared with the reference there, so that nearly all the
GPU does is the operators' own.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Callable, Iterator

import torch
import torch.nn.functional as F
from torch import Tensor

from cscl_fast import ops, use_backend

# [B, K, h, w] and (H, W): rows that are no multiple of a tile or of 16 bytes, one pixel, one class.
SHAPES: tuple[tuple[tuple[int, int, int, int], tuple[int, int] | None], ...] = (
    ((2, 19, 7, 9), None),
    ((1, 19, 5, 9), (40, 72)),
    ((2, 5, 5, 7), (11, 13)),
    ((1, 19, 1, 1), (3, 5)),
    ((2, 1, 4, 5), (7, 6)),
    ((1, 33, 9, 8), (4, 3)),
)
DTYPES = (torch.float32, torch.float16, torch.bfloat16)
Answers = list[Tensor]


def inputs(
    shape: tuple[int, int, int, int], dtype: torch.dtype, channels_last: bool, seed: int
) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    values = (2 * torch.randn(shape, generator=generator)).to(dtype)
    return values.contiguous(memory_format=torch.channels_last) if channels_last else values


def with_gradient(function: Callable[..., Tensor], *leaves: Tensor) -> Answers:
    leaves = tuple(leaf.detach().requires_grad_() for leaf in leaves)
    value = function(*leaves)
    ones = torch.ones(value.shape, dtype=value.dtype).to(value.device)
    return [value.detach(), *torch.autograd.grad(value, leaves, ones)]


def answers(
    shape: tuple[int, int, int, int],
    size: tuple[int, int] | None,
    dtype: torch.dtype,
    channels_last: bool,
    device: str,
) -> Iterator[tuple[str, Answers]]:
    """Each operator's floating-point results on one shape."""
    batch, classes, height, width = shape
    z = inputs(shape, dtype, channels_last, 0).to(device)
    other = inputs(shape, dtype, channels_last, 1).to(device)
    delta = torch.linspace(0.2, 0.9, classes).to(device)
    area = size or (height, width)
    labels = torch.arange(batch * area[0] * area[1]).view(batch, *area) % (classes + 1)
    labels = torch.where(labels == classes, 255, labels).to(device)
    own = torch.arange(batch * height * width).view(batch, height, width) % classes
    own = own.to(device)
    soft = F.softmax(2 * other.float().cpu(), dim=1)
    soft = torch.where(soft.amax(1, keepdim=True) > 0.3, soft, 0.0).to(device)
    features = inputs((batch, 37, height, width), dtype, channels_last, 2).to(device)
    moved = inputs((batch, 37, height, width), dtype, channels_last, 3).to(device)

    yield "soft_pseudo_labels", [ops.soft_pseudo_labels(z, delta, size=size).soft]
    yield (
        "pseudo_label_loss",
        with_gradient(lambda x: ops.pseudo_label_loss(x, delta, size=size), z),
    )
    yield (
        "upsampled_cross_entropy",
        with_gradient(lambda x: ops.upsampled_cross_entropy(x, labels), z),
    )
    stream = ops.ClassThresholds(classes, device=device)
    stream.update(z, size=size)
    stream.update(other, size=size)
    yield "ClassThresholds", [stream.compute(0.4)]
    yield "class_thresholds", [ops.class_thresholds(z, 0.4, size=size)]
    for given in (own, soft):
        yield (
            "class_centroids",
            with_gradient(lambda x, g=given: ops.class_centroids(x, g, classes)[0], features),
        )
    yield (
        "symmetric_soft_divergence",
        with_gradient(
            lambda s, t: ops.symmetric_soft_divergence(s, own, t, soft, num_classes=classes),
            features,
            moved,
        ),
    )
    yield "transfer_reward", [ops.transfer_reward(z, other, own)[0]]


def wrong(answer: Tensor, expected: Tensor) -> bool:
    """Grossly: the contract tests are exact; here a stray write is to be seen."""
    rounding = torch.finfo(answer.dtype).eps if answer.is_floating_point() else 0.0
    difference = (answer.cpu().double() - expected.double()).abs()
    bound = (1e-3 + rounding) * (1 + expected.double().abs())
    # One decision within rounding may fall the other way.
    many = bool((difference > bound).double().mean() > 0.05)
    return many or not bool(difference.isfinite().all())


def main(backend: str, few: bool) -> int:
    device = "cpu" if backend in ("cpu", "cuda_on_cpu", "reference") else "cuda"
    cases = list(itertools.product(SHAPES, DTYPES, (False, True)))
    failures = []
    for (shape, size), dtype, channels_last in cases[::5] if few else cases:
        with use_backend("reference"):
            expected = list(answers(shape, size, dtype, channels_last, "cpu"))
        with use_backend(backend):
            found = list(answers(shape, size, dtype, channels_last, device))
        for (name, ours), (_, theirs) in zip(found, expected, strict=True):
            if any(wrong(a, e) for a, e in zip(ours, theirs, strict=True)):
                failures.append(f"{name} {list(shape)} to {size} {dtype} {channels_last}")
    for failure in failures:
        print(f"wrong: {failure}")
    print(f"{backend}: {len(cases[::5] if few else cases)} cases, {len(failures)} wrong")
    return 1 if failures else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1], "--few" in sys.argv[2:]))
