"""From a planned case to its contenders on a device, and the check that each must pass.

Every contender is a function without arguments; this package's is called under `use_backend`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import cache, partial
from typing import Any

import torch
from gpu_support import stand_in_for
from torch import Tensor

stand_in_for("pytest")  # the bench_*.py are made of marks and plain functions

import bench_class_centroid  # noqa: E402
import bench_class_threshold  # noqa: E402
import bench_pseudo_label_loss  # noqa: E402
import bench_soft_pseudo_label  # noqa: E402
import bench_symmetric_soft_divergence  # noqa: E402
import bench_transfer_reward  # noqa: E402
import bench_upsampled_cross_entropy  # noqa: E402
from contests import (  # noqa: E402
    COMPILED,
    EAGER,
    Case,
    assert_loss,
    compiled,
    enlarged,
    network_labels,
    network_logits,
    random_thresholds,
)
from feature_contests import (  # noqa: E402
    Features,
    centroids_by_matmul,
    features_of,
    hard_labels_of,
    soft_labels_of,
)
from gpu_cases import Planned  # noqa: E402
from gpu_thresholds import by_selection, by_selection_compiled, by_sorting  # noqa: E402

from cscl_fast import ops, use_backend  # noqa: E402

SORT = "torch sort"
PORTION = bench_class_threshold.PORTION
FORWARD, BOTH = "forward", "forward+backward"
Function = Callable[[], Any]


@dataclass
class Contest:
    """One case of one operator in one direction."""

    planned: Planned
    direction: str
    bytes: int  # that any implementation must read and write
    ours: Function
    others: dict[str, Function]
    check: Callable[[Any], None]  # raises AssertionError on a wrong answer
    waits: frozenset[str] = field(default_factory=frozenset)  # for the GPU: no CUDA graph of these


def contests_of(planned: Planned, device: str) -> Iterator[Contest]:
    """The contests of a case, with their data on the device."""
    yield from _OPERATORS[planned.operator](planned, planned.case, device)


def directions(operator: str) -> tuple[str, ...]:
    return (FORWARD, BOTH) if operator in _DIFFERENTIABLE else (FORWARD,)


def rivals(operator: str) -> tuple[str, ...]:
    """What this package contends with, besides torch.compile."""
    return (EAGER, SORT) if _OPERATORS[operator] is _thresholds else (EAGER,)


def without_gradients(function: Callable[..., Any], *arguments: Any) -> Function:
    def call() -> Any:
        with torch.no_grad():
            return function(*arguments)

    return call


# ---- soft labels --------------------------------------------------------------------------------


def _soft_eager(z: Tensor, delta: Tensor, gamma: float, size: Any) -> tuple[Tensor, Tensor]:
    """The good eager, which interpolates in float32 whatever the logits are."""
    if size is None:
        return bench_soft_pseudo_label.eager(z, delta, gamma, None)
    soft, hard = bench_soft_pseudo_label.eager(z.float(), delta, gamma, size)
    return soft.to(z.dtype), hard


def _soft_pseudo_labels(planned: Planned, case: Case, device: str) -> Iterator[Contest]:
    arguments = (
        network_logits(case, device=device),
        random_thresholds(case.shape[1]).to(device),
        case.gamma,
        case.size,
    )

    @cache
    def wanted() -> tuple[Tensor, Tensor, Tensor]:
        """In float64: soft, hard, and the pixels whose decisions are not within rounding."""
        z = enlarged(arguments[0].double(), case.size)
        a = (z.log_softmax(dim=1) - arguments[1].double().log()[:, None, None]) / case.gamma
        cost = a.logsumexp(dim=1, keepdim=True)
        first, second = a.topk(2, dim=1).values.unbind(dim=1)
        # F.interpolate computes its coordinates in float32; eager PyTorch is granted that.
        slack = 1e-3 if case.size is not None or case.dtype != torch.float32 else 1e-5
        sure = (cost[:, 0].abs() > slack) & (first - second > slack)
        soft = torch.where(cost > 0, (a - cost).exp(), 0.0)
        return soft, torch.where(cost[:, 0] > 0, a.argmax(dim=1), 255), sure

    def check(answer: tuple[Tensor, Tensor]) -> None:
        soft, hard, sure = wanted()
        assert torch.equal(answer[1][sure], hard[sure]), "hard labels differ"
        error = (answer[0].double() - soft).abs()
        rounding = torch.finfo(case.dtype).eps
        relative = max(1e-5 / case.gamma, 2e-4 if case.size is not None else 0.0) + rounding
        fits = (error <= relative * soft + 1e-6 + 0.1 * rounding) | ~sure[:, None]
        assert bool(fits.all()), f"soft labels are off by {float(error[~fits].max()):.2e}"

    yield Contest(
        planned,
        FORWARD,
        bench_soft_pseudo_label.bytes_to_move(case),
        without_gradients(bench_soft_pseudo_label.ours, *arguments),
        {
            EAGER: without_gradients(_soft_eager, *arguments),
            COMPILED: without_gradients(compiled(_soft_eager), *arguments),
        },
        check,
    )


# ---- losses and centroids: a value and a gradient -----------------------------------------------


def _differentiable(
    planned: Planned,
    leaves: tuple[Tensor, ...],
    rest: tuple[Any, ...],
    ours: Callable[..., Any],
    eager: Callable[..., Any],
    bytes_of: dict[str, int],
    value_tolerance: float,
    gradient_tolerance: Callable[[], float],
    given: Tensor | None = None,  # what the value is multiplied with, where it is no scalar
) -> Iterator[Contest]:
    """Both directions of a function of (*leaves, *rest)."""

    def both(function: Callable[..., Any], *inputs: Tensor) -> tuple[Tensor, ...]:
        value = function(*inputs, *rest)
        value = value[0] if isinstance(value, tuple) else value
        weight = None if given is None else given.to(value.dtype)
        return (value.detach(), *torch.autograd.grad(value, inputs, weight))

    @cache
    def wanted() -> tuple[Tensor, ...]:
        with use_backend("reference"):
            return both(ours, *(leaf.detach().double().requires_grad_() for leaf in leaves))

    def check_value(value: Any) -> None:
        value = value[0] if isinstance(value, tuple) else value
        exact = wanted()[0].double()
        error = (value.double() - exact).abs()
        allowed = value_tolerance * exact.abs() + 1e-5
        assert bool((error <= allowed).all()), f"the value is off by {float(error.max()):.2e}"

    def check_both(answer: tuple[Tensor, ...]) -> None:
        check_value(answer[0])
        none = torch.zeros((), dtype=torch.float64, device=answer[0].device)
        assert_loss((none, *answer[1:]), (none, *wanted()[1:]), 0.0, gradient_tolerance())

    yield Contest(
        planned,
        FORWARD,
        bytes_of[FORWARD],
        without_gradients(ours, *leaves, *rest),
        {
            EAGER: without_gradients(eager, *leaves, *rest),
            COMPILED: without_gradients(compiled(eager), *leaves, *rest),
        },
        check_value,
    )
    yield Contest(
        planned,
        BOTH,
        bytes_of[BOTH],
        partial(both, ours, *leaves),
        {
            EAGER: partial(both, eager, *leaves),
            COMPILED: partial(both, compiled(eager), *leaves),
        },
        check_both,
    )


def _pseudo_label_loss(planned: Planned, case: Case, device: str) -> Iterator[Contest]:
    z = network_logits(case, device=device).requires_grad_()
    delta = random_thresholds(case.shape[1]).to(device)

    @cache
    def tolerance() -> float:
        """A pixel within rounding of its decision moves the gradient by its share of the mean."""
        exact = z.detach().double().requires_grad_()
        with use_backend("reference"):
            loss = bench_pseudo_label_loss.ours(exact, delta, case.gamma, case.size)
        (gradient,) = torch.autograd.grad(loss, exact)
        with torch.no_grad():
            log_p = enlarged(exact, case.size).log_softmax(dim=1)
            cost = ((log_p - delta.double().log()[:, None, None]) / case.gamma).logsumexp(dim=1)
        close = (cost.abs() < 1e-5).sum() / (cost > 0).sum()
        return 2e-3 + float(close / gradient.abs().max())

    yield from _differentiable(
        planned,
        (z,),
        (delta, case.gamma, case.size),
        bench_pseudo_label_loss.ours,
        bench_pseudo_label_loss.eager,
        {FORWARD: case.logits_bytes, BOTH: bench_pseudo_label_loss.bytes_to_move(case)},
        1e-4,
        tolerance,
    )


def _upsampled_cross_entropy(planned: Planned, case: Case, device: str) -> Iterator[Contest]:
    labels = network_labels((case.shape[0], *case.area), case.shape[1]).to(device)
    yield from _differentiable(
        planned,
        (network_logits(case, device=device).requires_grad_(),),
        (labels,),
        bench_upsampled_cross_entropy.ours,
        bench_upsampled_cross_entropy.eager,
        {
            FORWARD: case.logits_bytes + 8 * case.pixels,
            BOTH: bench_upsampled_cross_entropy.bytes_to_move(case),
        },
        1e-4,
        lambda: 2e-3,
    )


def _class_centroids(planned: Planned, case: Features, device: str) -> Iterator[Contest]:
    labels = (soft_labels_of(case) if case.soft else hard_labels_of(case)).to(device)
    generator = torch.Generator().manual_seed(5)
    given = torch.randn(case.classes, case.shape[1], generator=generator).to(device)
    yield from _differentiable(
        planned,
        (features_of(case, 0, device),),
        (labels, case.classes),
        ops.class_centroids,
        centroids_by_matmul,
        {
            FORWARD: case.features_bytes + case.labels_bytes,
            BOTH: bench_class_centroid.bytes_to_move(case),
        },
        1e-4,
        lambda: 1e-3,
        given,
    )


def _symmetric_soft_divergence(planned: Planned, case: Features, device: str) -> Iterator[Contest]:
    both = bench_symmetric_soft_divergence.bytes_to_move(case)
    yield from _differentiable(
        planned,
        (features_of(case, 0, device), features_of(case, 1, device)),
        (hard_labels_of(case).to(device), soft_labels_of(case).to(device), case.classes),
        bench_symmetric_soft_divergence.ours,
        bench_symmetric_soft_divergence.good,
        {FORWARD: both - 2 * case.features_bytes, BOTH: both},
        1e-4,
        lambda: 1e-3,
    )


# ---- thresholds ---------------------------------------------------------------------------------


def _thresholds(planned: Planned, case: Case, device: str) -> Iterator[Contest]:
    one_shot = planned.operator == "class_thresholds"
    images = [network_logits(case, seed, device) for seed in range(planned.images)]
    arguments = (images, PORTION, case.size)

    @cache
    def wanted() -> Tensor:
        with use_backend("reference"):
            together = torch.cat([z.double() for z in images])
            return ops.class_thresholds(together, PORTION, size=case.size).double()

    def check(thresholds: Tensor) -> None:
        error = float((thresholds.double() - wanted()).abs().max())
        # A stream answers with the centre of a bin; a class of few pixels feels it when rounding
        # moves one of them to another class.
        allowed = 2.0**-16 + (1e-3 if case.size is not None else 1e-5)
        assert error <= allowed, f"a threshold is off by {error:.2e}"

    ours = bench_class_threshold.ours if one_shot else bench_class_threshold.ours_streaming
    yield Contest(
        planned,
        FORWARD,
        planned.images * case.logits_bytes,
        without_gradients(ours, *arguments),
        {
            EAGER: without_gradients(by_selection, *arguments),
            SORT: without_gradients(by_sorting, *arguments),
            COMPILED: without_gradients(by_selection_compiled, *arguments),
        },
        check,
        frozenset((EAGER, COMPILED)),
    )


# ---- rewards ------------------------------------------------------------------------------------


def _transfer_reward(planned: Planned, case: Case, device: str) -> Iterator[Contest]:
    plain = network_logits(case, device=device)
    generator = torch.Generator(device).manual_seed(3)
    noise = 0.5 * torch.randn(case.shape, generator=generator, device=device)
    gated = (1.1 * plain.float() + noise).to(case.dtype)
    if case.channels_last:
        gated = gated.contiguous(memory_format=torch.channels_last)
    ignored = network_labels((case.shape[0], *case.area), case.shape[1]).to(device) == 255
    labels = torch.where(ignored, 255, plain.float().argmax(dim=1))
    arguments = (gated, plain, labels)

    def check(answer: tuple[Tensor, Tensor]) -> None:
        with use_backend("reference"):
            reward, valid = ops.transfer_reward(gated.double(), plain.double(), labels)
        label = torch.where(valid, labels[:, None], 0)
        gain = gated.double().log_softmax(1) - plain.double().log_softmax(1)
        sure = gain.gather(1, label).abs() > 1e-4
        assert torch.equal(answer[1], valid), "valid locations differ"
        wrong = int(((answer[0] != reward) & sure).sum())
        assert wrong == 0, f"{wrong} rewards are wrong"

    yield Contest(
        planned,
        FORWARD,
        bench_transfer_reward.bytes_to_move(case),
        without_gradients(bench_transfer_reward.ours, *arguments),
        {
            EAGER: without_gradients(bench_transfer_reward.eager, *arguments),
            COMPILED: without_gradients(compiled(bench_transfer_reward.eager), *arguments),
        },
        check,
    )


_OPERATORS: dict[str, Callable[[Planned, Any, str], Iterator[Contest]]] = {
    "soft_pseudo_labels": _soft_pseudo_labels,
    "pseudo_label_loss": _pseudo_label_loss,
    "upsampled_cross_entropy": _upsampled_cross_entropy,
    "ClassThresholds": _thresholds,
    "class_thresholds": _thresholds,
    "class_centroids": _class_centroids,
    "symmetric_soft_divergence": _symmetric_soft_divergence,
    "transfer_reward": _transfer_reward,
}
_DIFFERENTIABLE = frozenset(_OPERATORS) - {
    "soft_pseudo_labels",
    "ClassThresholds",
    "class_thresholds",
    "transfer_reward",
}
