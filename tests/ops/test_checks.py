"""What each operator says to arguments that it cannot take."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from operator_cases import places_of

from cscl_fast import use_backend
from cscl_fast.ops import (
    ClassThresholds,
    class_centroids,
    class_thresholds,
    pseudo_label_loss,
    soft_pseudo_labels,
    symmetric_soft_divergence,
    transfer_reward,
    upsampled_cross_entropy,
)

K = 4
Z = torch.zeros(2, K, 3, 5)
DELTA = torch.full((K,), 0.5)
HARD = torch.zeros(2, 3, 5, dtype=torch.int64)
SOFT = torch.full((2, K, 3, 5), 0.25)
FEATURES = torch.zeros(2, 6, 3, 5)
NAN = float("nan")


def _with(tensor: torch.Tensor, place: tuple[int, ...], value: float) -> torch.Tensor:
    changed = tensor.clone()
    changed[place] = value
    return changed


def _update(logits: Any, **options: Any) -> None:
    ClassThresholds(K).update(logits, **options)


# Operators that take logits first, each with everything else that it needs.
OF_LOGITS: dict[str, Callable[..., Any]] = {
    "soft_pseudo_labels": lambda z, **o: soft_pseudo_labels(z, DELTA, **o),
    "pseudo_label_loss": lambda z, **o: pseudo_label_loss(z, DELTA, **o),
    "upsampled_cross_entropy": lambda z, **o: upsampled_cross_entropy(z, HARD, **o),
    "ClassThresholds.update": _update,
    "class_thresholds": lambda z, **o: class_thresholds(z, 0.5, **o),
}
OF_THRESHOLDS: dict[str, Callable[..., Any]] = {
    "soft_pseudo_labels": soft_pseudo_labels,
    "pseudo_label_loss": pseudo_label_loss,
}
OF_SIZE = ("soft_pseudo_labels", "pseudo_label_loss", "ClassThresholds.update", "class_thresholds")

LOGITS = (
    (Z[0], ValueError, "logits must be [B, K, h, w]; got 3 dimensions [4, 3, 5]"),
    (Z[:, :0], ValueError, "logits has 0 classes [2, 0, 3, 5]; [B, K, h, w] needs K in 1..256"),
    (torch.zeros(1, 257, 2, 2), ValueError, "logits has 257 classes [1, 257, 2, 2]"),
    (HARD[:, None], TypeError, "logits must be one of torch.float32, torch.float16"),
    ([1.0], TypeError, "logits must be a tensor [B, K, h, w]; got list"),
)
THRESHOLDS = (
    (_with(DELTA, (3,), 0.0), ValueError, "thresholds[3] is 0.0; every class needs a threshold in"),
    (_with(DELTA, (1,), -0.5), ValueError, "thresholds[1] is -0.5; every class needs a threshold"),
    (_with(DELTA, (0,), 1.5), ValueError, "thresholds[0] is 1.5; every class needs a threshold"),
    (_with(DELTA, (2,), NAN), ValueError, "thresholds[2] is nan; every class needs a threshold"),
    (_with(DELTA, (2,), np.inf), ValueError, "thresholds[2] is inf; every class needs a thresh"),
    (DELTA[:3], ValueError, "thresholds has 3 entries; logits [2, 4, 3, 5] need 4, one for each"),
    (DELTA[None], ValueError, "thresholds must be [K]; got 2 dimensions [1, 4]"),
    (
        DELTA.half(),
        TypeError,
        "thresholds must be one of torch.float32, torch.float64; got",
    ),
    (DELTA.long(), TypeError, "got torch.int64"),
    ([0.5] * K, TypeError, "thresholds must be a tensor [K]; got list"),
    (DELTA.to("meta"), ValueError, "thresholds is on meta and logits on cpu; both must be on one"),
    (DELTA.clone().requires_grad_(), ValueError, "thresholds requires a gradient"),
)
NUMBERS = (
    (0.0, ValueError),
    (-0.25, ValueError),
    (NAN, ValueError),
    (float("inf"), ValueError),
    ("a", TypeError),
    (None, TypeError),
    (True, TypeError),
    (torch.tensor(0.25), TypeError),
)
SIZES = (
    ((0, 5), ValueError, "size is (0, 5); height and width must be at least 1"),
    ((4, -1), ValueError, "size is (4, -1); height and width must be at least 1"),
    (7, TypeError, "size must be (H, W), two integers; got 7"),
    ((7,), TypeError, "size must be (H, W), two integers; got (7,)"),
    ((7.0, 8.0), TypeError, "size must be (H, W), two integers; got (7.0, 8.0)"),
    ((True, 8), TypeError, "size must be (H, W), two integers; got (True, 8)"),
)


def refuses(error: type[Exception], message: str) -> Any:
    return pytest.raises(error, match=re.escape(message))


@pytest.mark.parametrize("backend", [place.backend for place in places_of("soft_pseudo_labels")])
@pytest.mark.parametrize("operator", OF_LOGITS)
@pytest.mark.parametrize(("logits", "error", "message"), LOGITS)
def test_logits(
    backend: str, operator: str, logits: Any, error: type[Exception], message: str
) -> None:
    with use_backend(backend), refuses(error, message):
        OF_LOGITS[operator](logits)


@pytest.mark.parametrize("backend", [place.backend for place in places_of("soft_pseudo_labels")])
@pytest.mark.parametrize("operator", OF_THRESHOLDS)
@pytest.mark.parametrize(("thresholds", "error", "message"), THRESHOLDS)
def test_thresholds(
    backend: str, operator: str, thresholds: Any, error: type[Exception], message: str
) -> None:
    with use_backend(backend), refuses(error, message):
        OF_THRESHOLDS[operator](Z, thresholds)


def test_thresholds_that_require_a_gradient_pass_where_none_is_recorded() -> None:
    with torch.no_grad():
        soft_pseudo_labels(Z, DELTA.clone().requires_grad_())


@pytest.mark.parametrize("operator", OF_THRESHOLDS)
@pytest.mark.parametrize(("gamma", "error"), NUMBERS)
def test_gamma(operator: str, gamma: Any, error: type[Exception]) -> None:
    needs = "gamma must be a number" if error is TypeError else "it must be positive and finite"
    with refuses(error, needs):
        OF_THRESHOLDS[operator](Z, DELTA, gamma)


@pytest.mark.parametrize(("portion", "error"), [*NUMBERS, (1.0001, ValueError)])
def test_portion(portion: Any, error: type[Exception]) -> None:
    needs = "portion must be a number" if error is TypeError else "it must be in (0, 1]"
    with refuses(error, needs):
        class_thresholds(Z, portion)
    with refuses(error, needs):
        ClassThresholds(K).compute(portion)


@pytest.mark.parametrize("operator", OF_SIZE)
@pytest.mark.parametrize(("size", "error", "message"), SIZES)
def test_size(operator: str, size: Any, error: type[Exception], message: str) -> None:
    with refuses(error, message):
        OF_LOGITS[operator](Z, size=size)


@pytest.mark.parametrize("operator", OF_LOGITS)
def test_align_corners(operator: str) -> None:
    with refuses(TypeError, "align_corners must be a bool; got int"):
        OF_LOGITS[operator](Z, align_corners=1)


def test_nothing_to_resample_from() -> None:
    with refuses(ValueError, "logits [2, 4, 0, 5] hold no location to resample from"):
        soft_pseudo_labels(Z[:, :, :0], DELTA, size=(3, 5))
    soft, hard = soft_pseudo_labels(Z[:, :, :0], DELTA)
    assert soft.shape == (2, K, 0, 5)
    assert hard.shape == (2, 0, 5)


def test_numbers_of_numpy_are_numbers() -> None:
    soft_pseudo_labels(Z, DELTA, np.float32(0.25), size=(np.int64(4), np.int64(5)))
    class_thresholds(Z, np.float64(0.5), size=[4, 5])


@pytest.mark.parametrize("num_classes", [0, -1, 257])
def test_num_classes_out_of_range(num_classes: int) -> None:
    message = f"num_classes is {num_classes}; it must be in 1..256"
    with refuses(ValueError, message):
        ClassThresholds(num_classes)
    with refuses(ValueError, message):
        class_centroids(FEATURES, HARD, num_classes)
    with refuses(ValueError, message):
        symmetric_soft_divergence(FEATURES, HARD, FEATURES, SOFT, num_classes=num_classes)


@pytest.mark.parametrize("num_classes", [4.0, "4", True])
def test_num_classes_is_an_integer(num_classes: Any) -> None:
    with refuses(TypeError, "num_classes must be an integer; got"):
        ClassThresholds(num_classes)


def test_another_number_of_classes_in_a_stream() -> None:
    with refuses(ValueError, "logits [2, 4, 3, 5] have 4 classes; these thresholds are for 5"):
        ClassThresholds(5).update(Z)


@pytest.mark.parametrize(
    ("label_logits", "error", "message"),
    [
        (Z[:1], ValueError, "label_logits is [1, 4, 3, 5] and logits [2, 4, 3, 5]; both must have"),
        (Z[0], ValueError, "label_logits must be [B, K, h, w]; got 3 dimensions"),
        (Z.int(), TypeError, "label_logits must be one of"),
        (Z.to("meta"), ValueError, "label_logits is on meta and logits on cpu"),
    ],
)
def test_label_logits(label_logits: Any, error: type[Exception], message: str) -> None:
    with refuses(error, message):
        pseudo_label_loss(Z, DELTA, label_logits=label_logits)


@pytest.mark.parametrize(
    ("labels", "error", "message"),
    [
        (HARD[0], ValueError, "labels must be [B, H, W]; got 2 dimensions [3, 5]"),
        (HARD.int(), TypeError, "labels must be one of torch.int64; got torch.int32"),
        (HARD.byte(), TypeError, "labels must be one of torch.int64; got torch.uint8"),
        (HARD[:1], ValueError, "labels [1, 3, 5] hold 1 images and logits [2, 4, 3, 5] 2"),
        (HARD[:, :0], ValueError, "the labels' size is (0, 5); height and width must be at least"),
        (HARD.to("meta"), ValueError, "labels is on meta and logits on cpu"),
        (
            _with(HARD, (1, 2, 4), 42),
            ValueError,
            "labels[1, 2, 4] is 42; a label must be in 0..3, or 255 (ignored)",
        ),
        (_with(HARD, (0, 1, 0), -1), ValueError, "labels[0, 1, 0] is -1; a label must be in 0..3"),
    ],
)
def test_full_size_labels(labels: Any, error: type[Exception], message: str) -> None:
    with refuses(error, message):
        upsampled_cross_entropy(Z, labels)


def test_ignore_index() -> None:
    with refuses(TypeError, "ignore_index must be an integer; got float"):
        upsampled_cross_entropy(Z, HARD, ignore_index=255.0)  # type: ignore[arg-type]
    with refuses(ValueError, "labels[0, 0, 0] is 255; a label must be in 0..3, or -1 (ignored)"):
        upsampled_cross_entropy(Z, HARD + 255, ignore_index=-1)
    upsampled_cross_entropy(Z, HARD - 1, ignore_index=-1)


LABELS_OF_FEATURES = (
    (HARD[0], ValueError, "must be hard [B, h, w] or soft [B, K, h, w]; got 2 dimensions [3, 5]"),
    (HARD.int(), TypeError, "must be one of torch.int64; got torch.int32"),
    (SOFT.long(), TypeError, "must be one of torch.float32"),
    (HARD[:, :2], ValueError, "must be [B, h, w] with B, h, w = [2, 3, 5] of"),
    (SOFT[:1], ValueError, "must be [B, K, h, w] with B, h, w = [2, 3, 5] of"),
    (SOFT[:, :3], ValueError, "[2, 3, 3, 5] have 3 classes; num_classes is 4"),
    (_with(HARD, (1, 0, 3), 4), ValueError, "[1, 0, 3] is 4; a label must be in 0..3, or 255"),
    (_with(SOFT, (0, 1, 2, 3), NAN), ValueError, "[0, 1, 2, 3] is nan; soft labels must be in [0,"),
    (_with(SOFT, (0, 1, 2, 3), -1), ValueError, "[0, 1, 2, 3] is -1.0; soft labels must be in"),
    (_with(SOFT, (0, 1, 2, 3), 3.5), ValueError, "[0, 1, 2, 3] is 3.5; soft labels must be in"),
    (SOFT.clone().requires_grad_(), ValueError, "requires a gradient, and labels are constants"),
    (HARD.to("meta"), ValueError, "on meta and"),
    (None, TypeError, "must be a tensor [B, h, w] or [B, K, h, w]; got NoneType"),
)


@pytest.mark.parametrize(("labels", "error", "message"), LABELS_OF_FEATURES)
def test_labels_of_features(labels: Any, error: type[Exception], message: str) -> None:
    with refuses(error, message):
        class_centroids(FEATURES, labels, K)
    with refuses(error, message):
        symmetric_soft_divergence(FEATURES, labels, FEATURES, SOFT, num_classes=K)
    with refuses(error, message):
        symmetric_soft_divergence(FEATURES, HARD, FEATURES, labels, num_classes=K)


FEATURES_REFUSED = (
    (FEATURES[0], ValueError, "features must be [B, C, h, w]; got 3 dimensions [6, 3, 5]"),
    (FEATURES.int(), TypeError, "features must be one of torch.float32"),
    (FEATURES[:, :0], ValueError, "features [2, 0, 3, 5] have no channel"),
)


@pytest.mark.parametrize(("features", "error", "message"), FEATURES_REFUSED)
def test_features(features: Any, error: type[Exception], message: str) -> None:
    with refuses(error, message):
        class_centroids(features, HARD, K)
    with refuses(error, f"source_{message}"):
        symmetric_soft_divergence(features, HARD, FEATURES, SOFT)
    with refuses(error, f"target_{message}"):
        symmetric_soft_divergence(FEATURES, HARD, features, SOFT)


def test_divergence_of_features_that_do_not_fit() -> None:
    with refuses(ValueError, "must have the same number of channels"):
        symmetric_soft_divergence(FEATURES, HARD, FEATURES[:, :5], SOFT)
    with refuses(ValueError, "target_features is on meta and source_features on cpu"):
        symmetric_soft_divergence(FEATURES, HARD, FEATURES.to("meta"), SOFT)
    with refuses(ValueError, "num_classes is None; it must be given when no labels are soft"):
        symmetric_soft_divergence(FEATURES, HARD, FEATURES, HARD)
    with refuses(ValueError, "normalise is 'l2'; it must be 'softmax' or 'l1'"):
        symmetric_soft_divergence(FEATURES, HARD, FEATURES, SOFT, normalise="l2")


@pytest.mark.parametrize(("eps", "error"), NUMBERS)
def test_eps(eps: Any, error: type[Exception]) -> None:
    needs = "eps must be a number" if error is TypeError else "it must be positive and finite"
    with refuses(error, needs):
        symmetric_soft_divergence(FEATURES, HARD, FEATURES, SOFT, eps=eps)


@pytest.mark.parametrize(
    ("gated", "plain", "labels", "error", "message"),
    [
        (Z[0], Z, HARD, ValueError, "gated_logits must be [B, K, h, w]; got 3 dimensions"),
        (Z, Z.int(), HARD, TypeError, "plain_logits must be one of torch.float32"),
        (Z, Z[:, :3], HARD, ValueError, "plain_logits is [2, 3, 3, 5] and gated_logits [2, 4, 3,"),
        (Z, Z.to("meta"), HARD, ValueError, "plain_logits is on meta and gated_logits on cpu"),
        (Z, Z, HARD[:, :2], ValueError, "labels [2, 2, 5] must be [B, h, w] with B, h, w = [2, 3"),
        (Z, Z, HARD.int(), TypeError, "labels must be one of torch.int64; got torch.int32"),
        (Z, Z, SOFT, ValueError, "labels must be [B, h, w]; got 4 dimensions"),
        (Z, Z, HARD + 4, ValueError, "labels[0, 0, 0] is 4; a label must be in 0..3, or 255"),
    ],
)
def test_reward(gated: Any, plain: Any, labels: Any, error: type[Exception], message: str) -> None:
    with refuses(error, message):
        transfer_reward(gated, plain, labels)


def test_values_are_not_read_while_compiling_and_bad_labels_count_as_ignored() -> None:
    labels = HARD.clone()
    labels[0] = 1000
    labels[1, 0, 0] = -3
    logits = torch.randn(2, K, 3, 5)
    ignored = torch.where((labels >= 0) & (labels < K), labels, 255)

    def answers(y: torch.Tensor) -> tuple[torch.Tensor, ...]:
        loss = upsampled_cross_entropy(logits, y)
        centroids = class_centroids(logits, y, K)
        divergence = symmetric_soft_divergence(logits, y, logits * 2, y, num_classes=K)
        return loss, *centroids, divergence, *transfer_reward(logits, logits * 2, y)

    compiled = torch.compile(answers, fullgraph=True, backend="aot_eager")
    for found, wanted in zip(compiled(labels), answers(ignored), strict=True):
        assert torch.equal(found, wanted)


@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a GPU")
def test_on_a_gpu_values_are_read_only_when_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("CSCL_FAST_CHECK", raising=False)
    logits, labels = Z.cuda(), (HARD + 1000).cuda()
    assert upsampled_cross_entropy(logits, labels).item() == 0.0
    soft_pseudo_labels(logits, -DELTA.cuda())
    monkeypatch.setenv("CSCL_FAST_CHECK", "1")
    with refuses(ValueError, "labels[0, 0, 0] is 1000"):
        upsampled_cross_entropy(logits, labels)
    with refuses(ValueError, "thresholds[0] is -0.5"):
        soft_pseudo_labels(logits, -DELTA.cuda())
