"""Argument checks of every operator, written once for all backends.

Each message names the argument, what it got and what it needs. Checks of types, ranks, shapes and
devices always run. Checks that read values run on the CPU; on other devices, where they would
wait for the device, only with `CSCL_FAST_CHECK=1` in the environment. While torch.compile traces,
no value is read.
"""

from __future__ import annotations

import math
import numbers
import os
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

MAXIMUM_CLASSES = 256
IGNORED = 255
_FLOAT_DTYPES = (torch.float32, torch.float16, torch.bfloat16, torch.float64)
_THRESHOLD_DTYPES = (torch.float32, torch.float64)
# Soft labels are probabilities; half types round a sum of them by about this much.
_ABOVE_ONE = 1.0 + 2.0**-7


def values_readable(tensor: Tensor) -> bool:
    """Whether checks may look at this tensor's values."""
    if torch.compiler.is_compiling() or tensor.device.type == "meta":
        return False
    return tensor.device.type == "cpu" or os.environ.get("CSCL_FAST_CHECK") == "1"


def _type_name(value: object) -> str:
    return type(value).__name__


def _names(dtypes: Sequence[torch.dtype]) -> str:
    return ", ".join(str(dtype) for dtype in dtypes)


def check_tensor(name: str, value: Any, layout: str, dtypes: Sequence[torch.dtype]) -> None:
    """Refuse what is not a tensor of the layout's rank (`"[B, K, h, w]"`) and of these dtypes."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name} must be a tensor {layout}; got {_type_name(value)}")
    if value.ndim != layout.count(",") + 1:
        raise ValueError(
            f"{name} must be {layout}; got {value.ndim} dimensions {list(value.shape)}"
        )
    if value.dtype not in dtypes:
        raise TypeError(f"{name} must be one of {_names(dtypes)}; got {value.dtype}")


def check_same_device(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two arguments on different devices."""
    if tensor.device != other.device:
        raise ValueError(
            f"{name} is on {tensor.device} and {other_name} on {other.device}; "
            "both must be on one device"
        )


def check_num_classes(num_classes: Any) -> None:
    """Refuse what is not an integer in 1..256."""
    if isinstance(num_classes, bool) or not isinstance(num_classes, (int, numbers.Integral)):
        raise TypeError(f"num_classes must be an integer; got {_type_name(num_classes)}")
    if not 1 <= int(num_classes) <= MAXIMUM_CLASSES:
        raise ValueError(f"num_classes is {num_classes}; it must be in 1..{MAXIMUM_CLASSES}")


def check_logits(logits: Any, name: str = "logits") -> None:
    """Refuse what is not a float tensor [B, K, h, w] with 1 to 256 classes."""
    check_tensor(name, logits, "[B, K, h, w]", _FLOAT_DTYPES)
    if not 1 <= logits.shape[1] <= MAXIMUM_CLASSES:
        raise ValueError(
            f"{name} has {logits.shape[1]} classes {list(logits.shape)}; "
            f"[B, K, h, w] needs K in 1..{MAXIMUM_CLASSES}"
        )


def check_same_shape(name: str, tensor: Tensor, other_name: str, other: Tensor) -> None:
    """Refuse two arguments of different shapes."""
    if tensor.shape != other.shape:
        raise ValueError(
            f"{name} is {list(tensor.shape)} and {other_name} {list(other.shape)}; "
            "both must have one shape"
        )


def check_thresholds(thresholds: Any, logits: Tensor) -> Tensor:
    """Refuse thresholds that are not [K] in (0, 1]; returns them in the type they are used in."""
    check_tensor("thresholds", thresholds, "[K]", _THRESHOLD_DTYPES)
    classes = logits.shape[1]
    if thresholds.shape[0] != classes:
        raise ValueError(
            f"thresholds has {thresholds.shape[0]} entries; logits {list(logits.shape)} need "
            f"{classes}, one for each class"
        )
    check_same_device("thresholds", thresholds, "logits", logits)
    if thresholds.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            "thresholds requires a gradient, and soft pseudo-labels are constants that have none; "
            "pass thresholds.detach()"
        )
    dtype = torch.float64 if logits.dtype == torch.float64 else torch.float32
    thresholds = thresholds.detach().to(dtype)
    if values_readable(thresholds):
        for k, value in enumerate(thresholds.tolist()):
            if not 0.0 < value <= 1.0:  # NaN, too
                raise ValueError(
                    f"thresholds[{k}] is {value}; every class needs a threshold in (0, 1]"
                )
    return thresholds


def _check_number(name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, (int, float, numbers.Real)):
        raise TypeError(f"{name} must be a number; got {_type_name(value)}")


def check_gamma(gamma: Any) -> None:
    """Refuse a sharpness that is not a positive finite number."""
    _check_number("gamma", gamma)
    if not 0.0 < gamma < math.inf:
        raise ValueError(f"gamma is {gamma}; it must be positive and finite")


def check_portion(portion: Any, name: str = "portion") -> None:
    """Refuse a portion that is not a number in (0, 1]."""
    _check_number(name, portion)
    if not 0.0 < portion <= 1.0:
        raise ValueError(f"{name} is {portion}; it must be in (0, 1]")


def check_portions(portion: Any) -> list[float]:
    """Refuse what is neither a portion nor a sequence of at least one; a list of them."""
    if not isinstance(portion, (list, tuple)):
        check_portion(portion)
        return [float(portion)]
    if not portion:
        raise ValueError("portion is empty; it must be a number in (0, 1] or several of them")
    for i, value in enumerate(portion):
        check_portion(value, f"portion[{i}]")
    return [float(value) for value in portion]


def check_eps(eps: Any) -> None:
    """Refuse an eps that is not a positive finite number."""
    _check_number("eps", eps)
    if not 0.0 < eps < math.inf:
        raise ValueError(f"eps is {eps}; it must be positive and finite")


def check_normalise(normalise: Any) -> None:
    """Refuse what is not the name of a way to turn a centroid into a distribution."""
    if normalise not in ("softmax", "l1"):
        raise ValueError(f"normalise is {normalise!r}; it must be 'softmax' or 'l1'")


def check_align_corners(align_corners: Any) -> None:
    """Refuse what is not a bool."""
    if not isinstance(align_corners, bool):
        raise TypeError(f"align_corners must be a bool; got {_type_name(align_corners)}")


def check_size(
    size: Any, logits: Tensor, align_corners: Any, name: str = "size"
) -> tuple[int, int] | None:
    """Refuse a size that is not two positive integers, or that nothing can be resampled to."""
    check_align_corners(align_corners)
    if size is None:
        return None
    if not isinstance(size, (tuple, list)) or len(size) != 2:
        raise TypeError(f"{name} must be (H, W), two integers; got {size!r}")
    for length in size:
        if isinstance(length, bool) or not isinstance(length, (int, numbers.Integral)):
            raise TypeError(f"{name} must be (H, W), two integers; got {size!r}")
    height, width = size
    if (height, width) == (logits.shape[2], logits.shape[3]):
        return height, width
    if height < 1 or width < 1:
        raise ValueError(f"{name} is {(height, width)}; height and width must be at least 1")
    if logits.shape[2] < 1 or logits.shape[3] < 1:
        raise ValueError(f"logits {list(logits.shape)} hold no location to resample from")
    return height, width


def _first_bad_place(bad: Tensor) -> tuple[int, ...]:
    return tuple(int(i) for i in bad.nonzero()[0])


def check_label_values(
    name: str, labels: Tensor, num_classes: int, ignore_index: int = IGNORED
) -> None:
    """Refuse labels that are neither a class nor ignored, where values may be looked at."""
    if not values_readable(labels):
        return
    bad = ((labels < 0) | (labels >= num_classes)) & (labels != ignore_index)
    if bool(bad.any()):
        place = _first_bad_place(bad)
        raise ValueError(
            f"{name}{list(place)} is {int(labels[place])}; a label must be in "
            f"0..{num_classes - 1}, or {ignore_index} (ignored)"
        )


def check_label_map(
    labels: Any,
    num_classes: int,
    beside: Tensor,  # [B, *, h, w]
    beside_name: str,
    name: str = "labels",
    *,
    values: bool = True,  # False: a kernel reads them and says whether all are in range
) -> None:
    """Refuse what is not an int64 label for every location of the tensor `beside`."""
    check_tensor(name, labels, "[B, h, w]", (torch.int64,))
    _check_same_grid(name, labels, beside, beside_name)
    if values:
        check_label_values(name, labels, num_classes)


def _check_same_grid(name: str, labels: Tensor, beside: Tensor, beside_name: str) -> None:
    grid = (beside.shape[0], beside.shape[2], beside.shape[3])
    got = (labels.shape[0], labels.shape[-2], labels.shape[-1])
    if got != grid:
        layout = "[B, h, w]" if labels.ndim == 3 else "[B, K, h, w]"
        raise ValueError(
            f"{name} {list(labels.shape)} must be {layout} with B, h, w = {list(grid)} of "
            f"{beside_name} {list(beside.shape)}"
        )
    check_same_device(name, labels, beside_name, beside)


def check_full_size_labels(
    labels: Any, logits: Tensor, ignore_index: Any, align_corners: Any, *, values: bool = True
) -> None:
    """Refuse what is not int64 labels [B, H, W] that the logits can be resampled to.

    `values=False`: whoever computes looks at the values, and calls `check_label_values` if need be.
    """
    check_tensor("labels", labels, "[B, H, W]", (torch.int64,))
    if labels.shape[0] != logits.shape[0]:
        raise ValueError(
            f"labels {list(labels.shape)} hold {labels.shape[0]} images and logits "
            f"{list(logits.shape)} {logits.shape[0]}; both need one batch"
        )
    check_same_device("labels", labels, "logits", logits)
    if isinstance(ignore_index, bool) or not isinstance(ignore_index, (int, numbers.Integral)):
        raise TypeError(f"ignore_index must be an integer; got {_type_name(ignore_index)}")
    check_size(tuple(labels.shape[1:]), logits, align_corners, "the labels' size")
    if values:
        check_label_values("labels", labels, logits.shape[1], int(ignore_index))


def check_features(features: Any, name: str = "features") -> None:
    """Refuse what is not a float tensor [B, C, h, w] with at least one channel."""
    check_tensor(name, features, "[B, C, h, w]", _FLOAT_DTYPES)
    if features.shape[1] < 1:
        raise ValueError(
            f"{name} {list(features.shape)} have no channel; [B, C, h, w] needs C >= 1"
        )


def check_labels_of_features(
    labels: Any,
    features: Tensor,
    num_classes: int,
    name: str = "labels",
    features_name: str = "features",
    *,
    values: bool = True,  # False: whoever reads them anyway looks at them
) -> None:
    """Refuse what is neither hard labels [B, h, w] nor soft labels [B, K, h, w] of the features."""
    if not isinstance(labels, Tensor):
        raise TypeError(
            f"{name} must be a tensor [B, h, w] or [B, K, h, w]; got {_type_name(labels)}"
        )
    if labels.ndim not in (3, 4):
        raise ValueError(
            f"{name} must be hard [B, h, w] or soft [B, K, h, w]; "
            f"got {labels.ndim} dimensions {list(labels.shape)}"
        )
    if labels.ndim == 3:
        check_label_map(labels, num_classes, features, features_name, name, values=values)
        return
    check_tensor(name, labels, "[B, K, h, w]", _FLOAT_DTYPES)
    if labels.shape[1] != num_classes:
        raise ValueError(
            f"{name} {list(labels.shape)} have {labels.shape[1]} classes; "
            f"num_classes is {num_classes}"
        )
    _check_same_grid(name, labels, features, features_name)
    if labels.requires_grad and torch.is_grad_enabled():
        raise ValueError(
            f"{name} requires a gradient, and labels are constants that have none; "
            f"pass {name}.detach()"
        )
    if values and values_readable(labels):
        bad = ~((labels >= 0) & (labels <= _ABOVE_ONE))  # NaN, too
        if bool(bad.any()):
            place = _first_bad_place(bad)
            raise ValueError(
                f"{name}{list(place)} is {float(labels[place])}; soft labels must be in [0, 1]"
            )
