"""Class-wise thresholds, Algorithm 1: streaming and one-shot."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.reference import class_threshold as reference
from cscl_fast.backends.reference.upsample import evaluation_size
from cscl_fast.ops import checks

_KERNELS = backends.implementations("class_threshold")

# Up to so many pixels are kept as they are, 256 KiB, before a histogram is worth its memory.
_KEPT_PIXELS = 1 << 16


class ClassThresholds:
    """Streaming Algorithm 1: the thresholds of a whole data set in constant memory.

    Every pixel's confidence (its largest probability, float32) is counted in one of 65,536 equal
    bins of its class. Over all pixels, class k's confidences in descending order S_k give
    δ_k = S_k[⌊portion · n_k⌋] (index at most n_k - 1), here the centre of the bin that holds it:
    at most 2⁻¹⁷ away. Counts are exact, so that the order and the grouping of the updates change
    nothing, and neither does the number of processes.

    Pixels with a NaN or infinite logit are not counted. Ties between classes go to the lowest.

    Args:
        num_classes: K, 1 to 256.
        device: where the counts (K · 512 KiB, made once there are many) live. None: where the
            logits of `update` are; the counts move along.

    Raises:
        TypeError, ValueError: `num_classes` is not an integer in 1..256.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str | None = None) -> None:
        checks.check_num_classes(num_classes)
        self.num_classes = int(num_classes)
        self._follows_logits = device is None
        # What was counted: a histogram, or, of few pixels on the CPU, their keys.
        self._histogram: Tensor | None = None  # [K, BINS] int64
        self._keys: list[Tensor] = []  # [n] int32, class * BINS + bin; empty with a histogram
        self._kept = 0  # how many keys there are
        self._device = torch.empty(0, device=device).device

    @property
    def device(self) -> torch.device:
        """Where the counts live."""
        return self._device

    @property
    def counts(self) -> Tensor:  # [K] int64
        """n_k: how many counted pixels were predicted as each class."""
        if self._histogram is None and not torch.compiler.is_compiling():
            classes = self._all_keys() // reference.BINS
            counted = torch.bincount(classes, minlength=self.num_classes + 1)
            return counted[: self.num_classes].to(self._device)
        return self._counted().sum(dim=1)

    def to(self, device: torch.device | str) -> ClassThresholds:
        """Move the counts, in place; later logits must be on this device. Returns itself."""
        self._move(torch.empty(0, device=device).device)
        self._follows_logits = False
        return self

    def _move(self, device: torch.device) -> None:
        if self._histogram is not None or self._kept > 0:
            self._histogram = self._counted().to(device)
        self._device = device

    def _all_keys(self) -> Tensor:  # [n] int32
        if len(self._keys) != 1:
            none = [torch.empty(0, dtype=torch.int32, device="cpu")]
            self._keys = [torch.cat(self._keys or none)]
        return self._keys[0]

    def _counted(self) -> Tensor:  # [K, BINS] int64
        """The histogram, made now if it was not there."""
        if self._histogram is None:
            shape = (self.num_classes, reference.BINS)
            if torch.compiler.is_compiling():
                self._histogram = torch.zeros(shape, dtype=torch.int64, device=self._device)
            else:
                # A tensor of inference mode could not be counted into outside of it.
                with torch.inference_mode(False):
                    if self._device.type == "cpu" and "cpu" in backends.available():
                        self._histogram = _KERNELS["cpu"].new_histogram(
                            self.num_classes, self._device
                        )
                    else:
                        self._histogram = torch.zeros(shape, dtype=torch.int64, device=self._device)
            end = self._histogram.numel()
            for keys in self._keys:  # those that do not count have the key `end`
                self._histogram.view(-1).scatter_add_(
                    0, keys.long().clamp(max=end - 1), (keys < end).long()
                )
            self._keys, self._kept = [], 0
        return self._histogram

    def _backend(self) -> str:
        """Who reads the counts."""
        if self._device.type not in ("cpu", "cuda"):
            return "reference"
        return backends.select("class_thresholds", torch.empty(0, device=self._device), "counts")

    def update(
        self,
        logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16 (float64: reference only)
        *,
        size: tuple[int, int] | None = None,  # (H, W) pixels; None keeps h, w
        align_corners: bool = False,
    ) -> None:
        """Count the pixels of a batch, upsampled bilinearly if a size is given.

        Raises:
            TypeError: an argument has the wrong type or dtype.
            ValueError: a wrong rank or size, another number of classes, or logits that are not
                on the device that was asked for.
        """
        checks.check_logits(logits)
        size = checks.check_size(size, logits, align_corners)
        if logits.shape[1] != self.num_classes:
            raise ValueError(
                f"logits {list(logits.shape)} have {logits.shape[1]} classes; these thresholds "
                f"are for {self.num_classes}"
            )
        if logits.device != self._device:
            if not self._follows_logits:
                raise ValueError(
                    f"logits are on {logits.device} and the counts on {self.device}; move either, "
                    "or leave out device= for counts that follow the logits"
                )
            self._move(logits.device)
        backend = backends.select("class_thresholds", logits)
        if backend not in _KERNELS:
            reference.accumulate(self._counted(), logits, size, align_corners)
            return
        area = evaluation_size(logits, size)
        if backend == "cpu" and self._histogram is None and not torch.compiler.is_compiling():
            kept = self._kept + logits.shape[0] * area[0] * area[1]
            if kept <= _KEPT_PIXELS and type(logits) in (Tensor, torch.nn.Parameter):
                self._keys.append(_KERNELS["cpu"].keys(logits, area, align_corners))
                self._kept = kept
                return
        _KERNELS[backend].update(self._counted(), logits, area, align_corners)

    def compute(
        self,
        portion: float | Sequence[float],  # S_A, in (0, 1]; or P of them
        *,
        together_with: ClassThresholds | None = None,
    ) -> Tensor:  # [K] float32, in (0, 1]; [P, K] of several portions
        """δ of Algorithm 1 over everything counted; 1 for a class that was never predicted.

        Several portions take one look at the counts, as one does.

        Args:
            together_with: δ over what either counted, as after `merge`; neither changes.

        Raises:
            TypeError, ValueError: `portion` is not a number in (0, 1] or a list or tuple of them;
                `together_with` counts another number of classes.
        """
        portions = checks.check_portions(portion)
        if together_with is not None:
            self._check_alike("together_with", together_with)
        thresholds = self._thresholds(portions, together_with)
        return thresholds if isinstance(portion, (list, tuple)) else thresholds[0]

    def _thresholds(self, portions: list[float], other: ClassThresholds | None) -> Tensor:  # [P, K]
        backend = self._backend()
        if backend in _KERNELS:
            found: Tensor
            keys_only = other is None and self._histogram is None
            if backend == "cpu" and keys_only and not torch.compiler.is_compiling():
                found = _KERNELS["cpu"].thresholds_of_keys(
                    self._all_keys(), self.num_classes, portions
                )
                return found
            added = None if other is None else other._counted().to(self._device)
            found = _KERNELS[backend].thresholds_of_histogram(self._counted(), portions, added)
            return found
        counted = self._counted()
        if other is not None:
            counted = counted + other._counted().to(self._device)
        return torch.stack(
            [reference.thresholds_of_histogram(counted, portion) for portion in portions]
        )

    def _check_alike(self, name: str, other: Any) -> None:
        if not isinstance(other, ClassThresholds):
            raise TypeError(f"{name} must be ClassThresholds; got {type(other).__name__}")
        if other.num_classes != self.num_classes:
            raise ValueError(
                f"{name} counts {other.num_classes} classes; these thresholds are for "
                f"{self.num_classes}"
            )

    def merge(self, other: ClassThresholds) -> None:
        """Add what another instance counted, on whatever device it lives.

        Raises:
            TypeError: `other` is not a ClassThresholds.
            ValueError: it has another number of classes.
        """
        self._check_alike("other", other)
        self._counted().add_(other._counted().to(self._device))

    def all_reduce(self, group: Any = None) -> None:
        """Add up the counts of all processes, in place, so that each holds the total.

        Call it once for a pass over the data: a second call would add the totals up again.

        Raises:
            RuntimeError: torch.distributed has no process group.
        """
        distributed = torch.distributed
        if not (distributed.is_available() and distributed.is_initialized()):
            raise RuntimeError(
                "all_reduce needs torch.distributed.init_process_group() to have been called; "
                "a single process does not need all_reduce"
            )
        distributed.all_reduce(self._counted(), group=group)

    def reset(self) -> None:
        """Forget everything counted."""
        self._keys, self._kept = [], 0
        if self._histogram is not None:
            self._histogram.zero_()

    def state_dict(self) -> dict[str, Any]:
        """A copy of the counts, and what they are counts of; `torch.save` takes it."""
        return {
            "num_classes": self.num_classes,
            "bins": reference.BINS,
            "histogram": self._counted().clone(),
        }

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Replace the counts by stored ones; they come to this instance's device.

        Raises:
            TypeError: the counts are not an int64 tensor.
            ValueError: an entry is missing, the state has another number of classes or of bins,
                or its counts are negative.
        """
        for key in ("num_classes", "bins", "histogram"):
            if key not in state:
                raise ValueError(f"state has no {key!r}; it has {sorted(state)}")
        if state["num_classes"] != self.num_classes:
            raise ValueError(
                f"state has num_classes {state['num_classes']}; these thresholds are for "
                f"{self.num_classes}"
            )
        if state["bins"] != reference.BINS:
            raise ValueError(f"state has {state['bins']} bins; this version has {reference.BINS}")
        histogram = state["histogram"]
        checks.check_tensor("state['histogram']", histogram, "[K, bins]", (torch.int64,))
        shape = [self.num_classes, reference.BINS]
        if list(histogram.shape) != shape:
            raise ValueError(f"state['histogram'] is {list(histogram.shape)}; it must be {shape}")
        if bool((histogram < 0).any()):
            raise ValueError("state['histogram'] has negative counts")
        self.reset()
        self._counted().copy_(histogram)


def class_thresholds(
    logits: Tensor,  # [B, K, h, w] float32 | float16 | bfloat16 (float64: reference only)
    portion: float,  # S_A, in (0, 1]
    *,
    size: tuple[int, int] | None = None,  # (H, W) pixels; None keeps h, w
    align_corners: bool = False,
) -> Tensor:  # [K] float32, in (0, 1]
    """Algorithm 1 on one tensor: the exact order statistic of each class's confidences.

    Class k's float32 confidences in descending order S_k give δ_k = S_k[⌊portion · n_k⌋], index
    at most n_k - 1; 1 for a class that was never predicted. Pixels with a NaN or infinite logit
    are not counted. Memory grows with the number of pixels: for a data set use `ClassThresholds`.

    Raises:
        TypeError: an argument has the wrong type or dtype.
        ValueError: a wrong rank or size, K not in 1..256, or `portion` not in (0, 1].
    """
    checks.check_logits(logits)
    checks.check_portion(portion)
    size = checks.check_size(size, logits, align_corners)
    kernels = _KERNELS.get(backends.select("class_thresholds", logits))
    if kernels is not None:
        area = evaluation_size(logits, size)
        thresholds: Tensor = kernels.class_thresholds(logits, float(portion), area, align_corners)
        return thresholds
    return reference.class_thresholds(logits, portion, size, align_corners)
