"""What every operator should answer, in float64 NumPy, written from the equations.

Nothing here calls the package. Arrays are [B, K, H, W] like the tensors; a pixel is a row of
classes in what follows `pixels`. Loops over pixels are plain Python where speed allows it.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray
from scipy.special import logsumexp, rel_entr, softmax

Array = NDArray[np.float64]
Labels = NDArray[np.int64]


def line_positions(source: int, output: int, align_corners: bool) -> Array:
    """Where every output line lies among the source lines (PyTorch's convention)."""
    line = np.arange(output, dtype=np.float64)
    if align_corners:
        return line * (source - 1) / max(output - 1, 1)
    return np.maximum((line + 0.5) * source / output - 0.5, 0.0)


def resampling_matrix(source: int, output: int, align_corners: bool) -> Array:
    """[output, source], by `np.interp` of unit vectors; an equal size is left alone."""
    if source == output:
        return np.eye(source)
    positions = line_positions(source, output, align_corners)
    columns = [np.interp(positions, np.arange(source), unit) for unit in np.eye(source)]
    return np.stack(columns, axis=1)


def upsample(z: Array, size: tuple[int, int] | None, align_corners: bool) -> Array:
    """Four neighbours for every pixel, so that what is not finite reaches only its readers."""
    if size is None:
        return z
    for axis, output in ((2, size[0]), (3, size[1])):
        source = z.shape[axis]
        if source == output:
            continue
        positions = line_positions(source, output, align_corners)
        low = np.minimum(np.floor(positions).astype(int), source - 1)
        high = np.minimum(low + 1, source - 1)
        weight = positions - low
        weight = weight[:, None] if axis == 2 else weight
        with np.errstate(invalid="ignore"):
            z = (1 - weight) * np.take(z, low, axis) + weight * np.take(z, high, axis)
    return z


def upsample_adjoint(gradient: Array, source: tuple[int, int], align_corners: bool) -> Array:
    """Gradient [B, K, H, W] back to [B, K, h, w]."""
    rows = resampling_matrix(source[0], gradient.shape[2], align_corners)
    columns = resampling_matrix(source[1], gradient.shape[3], align_corners)
    return np.einsum("bkij,ir,js->bkrs", gradient, rows, columns, optimize=True)


def pixels(z: Array) -> Array:
    """[B, K, H, W] -> [B*H*W, K]."""
    return np.moveaxis(z, 1, -1).reshape(-1, z.shape[1])


def image(rows: Array, like: Array) -> Array:
    """[B*H*W, K] -> [B, K, H, W]."""
    b, _, h, w = like.shape
    return np.moveaxis(rows.reshape(b, h, w, rows.shape[1]), -1, 1)


def log_softmax(rows: Array) -> Array:
    """log p of every pixel."""
    if not len(rows):
        return rows
    return rows - logsumexp(rows, axis=1, keepdims=True)


def finite_pixels(rows: Array) -> NDArray[np.bool_]:
    return np.isfinite(rows).all(axis=1)


def soft_labels(z: Array, delta: Array, gamma: float) -> tuple[Array, Array]:
    """Eq. 10 for every pixel: ŷ [B, K, H, W] before selection, logsumexp(a) [B, H, W].

    A pixel that is not finite gets a cost of +inf: logsumexp(a) = -inf, it is never kept.
    """
    rows = pixels(z)
    soft = np.zeros_like(rows)
    selected = np.full(len(rows), -np.inf)
    finite = finite_pixels(rows)
    if finite.any():
        a = (log_softmax(rows[finite]) - np.log(delta)) / gamma
        soft[finite] = softmax(a, axis=1)
        selected[finite] = logsumexp(a, axis=1)
    return image(soft, z), image(selected[:, None], z)[:, 0]


def pseudo_label_loss(z: Array, teacher: Array, delta: Array, gamma: float) -> tuple[float, Array]:
    """Mean over kept pixels of -Σ ŷ log p, and its gradient by z at full size."""
    soft, selected = soft_labels(teacher, delta, gamma)
    rows = pixels(z)
    kept = (selected.reshape(-1) > 0) & finite_pixels(rows)
    gradient = np.zeros_like(rows)
    if not kept.any():
        return 0.0, image(gradient, z)
    log_p = log_softmax(rows[kept])
    labels = pixels(soft)[kept]
    gradient[kept] = (np.exp(log_p) * labels.sum(axis=1, keepdims=True) - labels) / kept.sum()
    return float(-(labels * log_p).sum() / kept.sum()), image(gradient, z)


def cross_entropy(z: Array, labels: Labels, ignore: int) -> tuple[float, Array]:
    """Mean over labelled pixels of -log p_label, and its gradient by z at full size."""
    rows, flat = pixels(z), labels.reshape(-1)
    counted = (flat != ignore) & (flat >= 0) & (flat < z.shape[1])
    gradient = np.zeros_like(rows)
    if not counted.any():
        return 0.0, image(gradient, z)
    log_p = log_softmax(rows[counted])
    place = np.arange(len(log_p)), flat[counted]
    loss = -log_p[place].mean()
    share = np.exp(log_p)
    share[place] -= 1
    gradient[counted] = share / len(log_p)
    return float(loss), image(gradient, z)


def thresholds(z: Array, portion: float) -> tuple[Array, Labels]:
    """Algorithm 1 with a Python list for every class, as the published codes do it."""
    confidences: list[list[float]] = [[] for _ in range(z.shape[1])]
    for row in pixels(z):
        if np.isfinite(row).all():
            p = np.exp(row - row.max())
            k = int(np.argmax(row))
            confidences[k].append(float(p[k] / p.sum()))
    delta = np.ones(z.shape[1])
    for k, found in enumerate(confidences):
        found.sort(reverse=True)
        if found:
            delta[k] = found[min(math.floor(portion * len(found)), len(found) - 1)]
    return delta, np.array([len(found) for found in confidences], dtype=np.int64)


def assignment(labels: Labels | Array, classes: int) -> tuple[Labels, Array]:
    """Class of every location (-1: none) and its weight, from hard or soft labels."""
    if labels.ndim == 3:
        flat = labels.reshape(-1).astype(np.int64)
        flat = np.where((flat >= 0) & (flat < classes) & (flat != 255), flat, -1)
        return flat, (flat >= 0).astype(np.float64)
    rows = pixels(labels)
    winner = np.argmax(rows, axis=1) if len(rows) else np.zeros(0, dtype=np.int64)
    weight = rows[np.arange(len(rows)), winner]
    return np.where(weight > 0, winner, -1), weight


def centroids(features: Array, labels: Labels | Array, classes: int) -> tuple[Array, Array]:
    """Eq. 12-13, one location after the other."""
    sums = np.zeros((classes, features.shape[1]))
    mass = np.zeros(classes)
    for row, k, weight in zip(pixels(features), *assignment(labels, classes), strict=True):
        if k >= 0:
            sums[k] += weight * row
            mass[k] += weight
    return sums / np.where(mass > 0, mass, 1)[:, None], mass


def divergence(
    source: tuple[Array, Array], target: tuple[Array, Array], normalise: str, eps: float
) -> float:
    """Eq. 11 from two pairs of centroids and masses."""

    def distribution(centroid: Array) -> Array:
        if normalise == "softmax":
            return softmax(centroid)
        positive = np.maximum(centroid, 0) + eps
        return positive / positive.sum()

    found = []
    for s, t, s_mass, t_mass in zip(source[0], target[0], source[1], target[1], strict=True):
        if s_mass > 0 and t_mass > 0:
            s, t = distribution(s), distribution(t)
            found.append(0.5 * (rel_entr(s, t).sum() + rel_entr(t, s).sum()))
    return float(np.mean(found)) if found else 0.0


def rewards(gated: Array, plain: Array, labels: Labels) -> tuple[Array, NDArray[np.bool_]]:
    """R^s + R^a for every location, and where there is a label; both [B, 1, h, w]."""
    flat = labels.reshape(-1)
    valid = (flat >= 0) & (flat < gated.shape[1]) & (flat != 255)
    reward = np.zeros(len(flat))
    for i, (g, p) in enumerate(zip(pixels(gated), pixels(plain), strict=True)):
        if valid[i] and np.isfinite(g).all():
            reward[i] += np.argmax(g) == flat[i]
            if np.isfinite(p).all():
                reward[i] += softmax(g)[flat[i]] > softmax(p)[flat[i]]
    return reward.reshape(labels.shape)[:, None], valid.reshape(labels.shape)[:, None]
