"""The formulas of one pixel, each written once.

A tile is [K, N]: the classes of N pixels, K padded to a power of two; classes that do not exist
are minus infinity. `rows` [K, 1] counts the classes. Equation numbers are those of the paper; the
derivations are in csrc/core/, under the same names.
"""

from __future__ import annotations

import triton
import triton.language as tl

INFINITY = tl.constexpr(float("inf"))
REJECTED = tl.constexpr(255)


@triton.jit
def mask_classes(values, rows, CLASSES: tl.constexpr):
    """Minus infinity for the classes that do not exist."""
    return tl.where(rows < CLASSES, values, -INFINITY)


@triton.jit
def finite_pixels(values, rows, CLASSES: tl.constexpr):
    """[N] bool: no NaN and no infinity among the classes that exist."""
    bad = (rows < CLASSES) & ~(tl.abs(values) < INFINITY)
    return tl.max(bad.to(tl.int32), axis=0) == 0


@triton.jit
def lowest_of_largest(values, largest, rows, CLASSES: tl.constexpr):
    """[N] int32: the class of the largest value, the lowest one of several."""
    return tl.min(tl.where(values == largest[None, :], rows, CLASSES), axis=0)


@triton.jit
def softmax_parts(values):
    """z - max z [K, N], exp of that, and S, the sum over the classes [N]."""
    below = values - tl.max(values, axis=0)[None, :]
    exponentials = tl.exp(below)
    return below, exponentials, tl.sum(exponentials, axis=0)


@triton.jit
def load_penalties(thresholds_ptr, rows, CLASSES: tl.constexpr, REAL: tl.constexpr):
    """-log δ [K, 1], from thresholds [K] float32; rounded once."""
    delta = tl.load(thresholds_ptr + rows, mask=rows < CLASSES, other=1.0)
    return (-tl.log(delta.to(tl.float64))).to(REAL)


@triton.jit
def solve_soft_pseudo_label(values, penalties, gamma, rows, CLASSES: tl.constexpr):
    """Eq. 8-10: soft labels [K, N] before selection, the winning class and the selection [N].

    With d = log p - log δ = (z - m) - log S + penalty and b its largest entry, the cost of Eq. 8
    is S_C = -(b + γ log Σ exp((d - b) / γ)). log S, the same for all classes, stays apart, and γ
    divides only after b has been taken off, so that a tiny γ does not overflow.
    """
    real = values.dtype
    finite = finite_pixels(values, rows, CLASSES)
    values = mask_classes(tl.where(finite[None, :], values, 0.0), rows, CLASSES)
    below, _, total = softmax_parts(values)
    distance = below + penalties
    best = tl.max(distance, axis=0)
    winner = lowest_of_largest(distance, best, rows, CLASSES)
    gamma = tl.cast(gamma, real)
    powers = tl.exp((distance - best[None, :]) / gamma)
    weight = tl.sum(powers, axis=0)
    kept = (best + gamma * tl.log(weight) > tl.log(total)) & finite
    return powers / weight[None, :], winner, kept


@triton.jit
def pseudo_label_loss_of(values, soft, kept, rows, CLASSES: tl.constexpr):
    """Second term of Eq. 7: -Σ ŷ log p [N], and its gradient e / S - ŷ [K, N]; 0 if not kept.

    Also which pixels count: those kept whose own logits are finite.
    """
    kept = kept & finite_pixels(values, rows, CLASSES)
    values = mask_classes(tl.where(kept[None, :], values, 0.0), rows, CLASSES)
    below, exponentials, total = softmax_parts(values)
    # A class that does not exist has ŷ = 0 and lies at minus infinity: 0 * inf is no number.
    shares = tl.where(rows < CLASSES, soft * below, 0.0)
    loss = tl.where(kept, tl.log(total) - tl.sum(shares, axis=0), 0.0)
    gradient = tl.where(kept[None, :], exponentials / total[None, :] - soft, 0.0)
    return loss, gradient, kept


@triton.jit
def cross_entropy_of(values, label, ignore, rows, CLASSES: tl.constexpr):
    """First term of Eq. 7: -log p_label [N], and its gradient [K, N]; 0 where it is ignored.

    A label out of range counts as ignored. What is not finite reaches loss and gradient of a
    labelled pixel.
    """
    counted = (label >= 0) & (label < CLASSES) & (label != ignore)
    chosen = tl.where(counted, label, 0).to(tl.int32)
    values = mask_classes(tl.where(counted[None, :], values, 0.0), rows, CLASSES)
    below, exponentials, total = softmax_parts(values)
    target = rows == chosen[None, :]
    loss = tl.log(total) - tl.sum(tl.where(target, below, 0.0), axis=0)
    loss = tl.where(counted, loss, 0.0)
    gradient = exponentials / total[None, :] - target.to(tl.float32)
    return loss, tl.where(counted[None, :], gradient, 0.0), counted


@triton.jit
def confidence_of(values, rows, CLASSES: tl.constexpr):
    """Algorithm 1: the largest probability [N] float32, its class, and which pixels count."""
    counted = finite_pixels(values, rows, CLASSES)
    values = mask_classes(tl.where(counted[None, :], values, 0.0), rows, CLASSES)
    largest = tl.max(values, axis=0)
    winner = lowest_of_largest(values, largest, rows, CLASSES)
    total = tl.sum(tl.exp(values - largest[None, :]), axis=0)
    return tl.div_rn(1.0, total), winner, counted


@triton.jit
def label_probability_of(values, label, rows, CLASSES: tl.constexpr):
    """Eq. 4-6, one side: log p_label, z_label - max z, argmax and whether it is finite; all [N]."""
    finite = finite_pixels(values, rows, CLASSES)
    values = mask_classes(tl.where(finite[None, :], values, 0.0), rows, CLASSES)
    winner = lowest_of_largest(values, tl.max(values, axis=0), rows, CLASSES)
    below, _, total = softmax_parts(values)
    chosen = tl.sum(tl.where(rows == label[None, :], below, 0.0), axis=0)
    return chosen - tl.log(total), chosen, winner, finite
