"""Symmetric divergence of two sets of centroids, Eq. 11, and its gradient by each; in float64.

½(KL(s‖t) + KL(t‖s)) = ½ Σ (s_c - t_c)(log s_c - log t_c): no term is negative. With
r = log s - log t the gradient by log s, each s_c for itself, is g_c = ½ (s_c (r_c + 1) - t_c); by
what s was normalised from it is g_c - s_c Σ g ("softmax"), or that over the positive part ("l1").
The derivation is in csrc/core/symmetric_soft_divergence.h.
"""

from __future__ import annotations

import triton
import triton.language as tl

from .numerics import INFINITY


@triton.jit
def positive_part(centroid, eps):
    """What "l1" takes the logarithm of: never 0. A NaN stays one."""
    return tl.where(centroid < 0, 0.0, centroid) + eps


@triton.jit
def load_centroid(centroids_ptr, k, channel, channels, shown):
    """One centroid's channels; zeros for a class that one side does not show (`shown` is 0)."""
    place = centroids_ptr + k * channels + channel
    return tl.load(place, mask=channel < shown, other=0.0)


@triton.jit
def log_normaliser(
    centroids_ptr, k, channels, shown, eps, SOFTMAX: tl.constexpr, CHUNK: tl.constexpr
):
    """What is taken off to make logarithms of a distribution: two numbers, one after the other."""
    largest = tl.full([], 0.0, dtype=tl.float64)
    if SOFTMAX:
        highest = tl.full([CHUNK], -INFINITY, dtype=tl.float64)
        for first in range(0, channels, CHUNK):
            channel = first + tl.arange(0, CHUNK)
            x = load_centroid(centroids_ptr, k, channel, channels, shown)
            highest = tl.maximum(highest, tl.where(channel < channels, x, -INFINITY))
        largest = tl.max(highest, axis=0)
    total = tl.zeros([CHUNK], dtype=tl.float64)
    for first in range(0, channels, CHUNK):
        channel = first + tl.arange(0, CHUNK)
        x = load_centroid(centroids_ptr, k, channel, channels, shown)
        share = tl.exp(x - largest) if SOFTMAX else positive_part(x, eps)
        total += tl.where(channel < channels, share, 0.0)
    return largest, tl.log(tl.sum(total, axis=0))


@triton.jit
def log_share(centroid, largest, log_total, eps, SOFTMAX: tl.constexpr):
    """log s of some channels."""
    if SOFTMAX:
        return centroid - largest - log_total
    else:
        return tl.log(positive_part(centroid, eps)) - log_total


@triton.jit
def slope_by_logarithm(share, ratio, other):
    """g of the side whose distribution is `share`."""
    return (share * (ratio + 1.0) - other) * 0.5


@triton.jit
def slope_by_centroid(slope, share, total, centroid, eps, SOFTMAX: tl.constexpr):
    """The gradient by x ("softmax") or by the centroid itself ("l1"); total = Σ g."""
    slope = slope - share * total
    if SOFTMAX:
        return slope
    else:
        return tl.where(centroid >= 0, slope / positive_part(centroid, eps), 0.0)


@triton.jit
def number_of_present(
    source_mass_ptr, target_mass_ptr, CLASSES: tl.constexpr, PADDED: tl.constexpr
):
    """How many classes both sides show, at least 1."""
    classes = tl.arange(0, PADDED)
    source = tl.load(source_mass_ptr + classes, mask=classes < CLASSES, other=0.0)
    target = tl.load(target_mass_ptr + classes, mask=classes < CLASSES, other=0.0)
    present = (source > 0) & (target > 0)
    return tl.maximum(tl.sum(present.to(tl.int32), axis=0), 1).to(tl.float64)


@triton.jit
def divergence_kernel(
    source_ptr,  # [K, C] float64, centroids
    target_ptr,  # [K, C] float64
    source_mass_ptr,  # [K] float64
    target_mass_ptr,  # [K] float64
    divergence_ptr,  # [K] float64
    source_slope_ptr,  # [K, C] float32, gradient of the loss by a feature of weight 1
    target_slope_ptr,  # [K, C] float32
    channels,
    eps,
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
    SOFTMAX: tl.constexpr,
    CHUNK: tl.constexpr,
):
    """Program k takes class k; all zeros where one side does not show it."""
    k = tl.program_id(0)
    eps = tl.cast(eps, tl.float64)
    source_mass = tl.load(source_mass_ptr + k)
    target_mass = tl.load(target_mass_ptr + k)
    present = tl.minimum(source_mass, target_mass) > 0
    shown = tl.where(present, channels, 0)
    s_most, s_log = log_normaliser(source_ptr, k, channels, shown, eps, SOFTMAX, CHUNK)
    t_most, t_log = log_normaliser(target_ptr, k, channels, shown, eps, SOFTMAX, CHUNK)

    divergence = tl.zeros([CHUNK], dtype=tl.float64)
    s_total = tl.zeros([CHUNK], dtype=tl.float64)
    t_total = tl.zeros([CHUNK], dtype=tl.float64)
    for first in range(0, channels, CHUNK):
        channel = first + tl.arange(0, CHUNK)
        exists = channel < channels
        log_s = log_share(
            load_centroid(source_ptr, k, channel, channels, shown), s_most, s_log, eps, SOFTMAX
        )
        log_t = log_share(
            load_centroid(target_ptr, k, channel, channels, shown), t_most, t_log, eps, SOFTMAX
        )
        s, t, ratio = tl.exp(log_s), tl.exp(log_t), log_s - log_t
        divergence += tl.where(exists, (s - t) * ratio, 0.0)
        s_total += tl.where(exists, slope_by_logarithm(s, ratio, t), 0.0)
        t_total += tl.where(exists, slope_by_logarithm(t, -ratio, s), 0.0)
    tl.store(divergence_ptr + k, tl.where(present, 0.5 * tl.sum(divergence, axis=0), 0.0))

    s_sum, t_sum = tl.sum(s_total, axis=0), tl.sum(t_total, axis=0)
    number = number_of_present(source_mass_ptr, target_mass_ptr, CLASSES, PADDED)
    s_scale = 1.0 / (tl.where(present, source_mass, 1.0) * number)
    t_scale = 1.0 / (tl.where(present, target_mass, 1.0) * number)
    for first in range(0, channels, CHUNK):
        channel = first + tl.arange(0, CHUNK)
        exists = channel < channels
        s_centroid = load_centroid(source_ptr, k, channel, channels, shown)
        t_centroid = load_centroid(target_ptr, k, channel, channels, shown)
        log_s = log_share(s_centroid, s_most, s_log, eps, SOFTMAX)
        log_t = log_share(t_centroid, t_most, t_log, eps, SOFTMAX)
        s, t, ratio = tl.exp(log_s), tl.exp(log_t), log_s - log_t
        s_slope = slope_by_logarithm(s, ratio, t)
        t_slope = slope_by_logarithm(t, -ratio, s)
        s_slope = slope_by_centroid(s_slope, s, s_sum, s_centroid, eps, SOFTMAX) * s_scale
        t_slope = slope_by_centroid(t_slope, t, t_sum, t_centroid, eps, SOFTMAX) * t_scale
        place = k * channels + channel
        zero = tl.zeros([CHUNK], dtype=tl.float64)
        s_slope, t_slope = tl.where(present, s_slope, zero), tl.where(present, t_slope, zero)
        tl.store(source_slope_ptr + place, s_slope.to(tl.float32), mask=exists)
        tl.store(target_slope_ptr + place, t_slope.to(tl.float32), mask=exists)


@triton.jit
def divergence_mean_kernel(
    divergence_ptr,  # [K] float64
    source_mass_ptr,  # [K] float64
    target_mass_ptr,  # [K] float64
    loss_ptr,  # scalar float32
    CLASSES: tl.constexpr,
    PADDED: tl.constexpr,
):
    """Mean over the classes that both sides show; 0 without one."""
    classes = tl.arange(0, PADDED)
    found = tl.load(divergence_ptr + classes, mask=classes < CLASSES, other=0.0)
    number = number_of_present(source_mass_ptr, target_mass_ptr, CLASSES, PADDED)
    tl.store(loss_ptr, (tl.sum(found, axis=0) / number).to(tl.float32))
