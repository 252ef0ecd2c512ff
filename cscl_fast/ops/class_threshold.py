"""Class-wise thresholds, Algorithm 1: streaming and one-shot."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from cscl_fast import backends
from cscl_fast.backends.reference import class_threshold as reference
from cscl_fast.ops import checks


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
        device: where the counts (K · 512 KiB) live. None: where the logits of `update` are; the
            counts move along.

    Raises:
        TypeError, ValueError: `num_classes` is not an integer in 1..256.
    """

    def __init__(self, num_classes: int, *, device: torch.device | str | None = None) -> None:
        checks.check_num_classes(num_classes)
        self.num_classes = int(num_classes)
        self._follows_logits = device is None
        self._histogram = torch.zeros(
            (self.num_classes, reference.BINS), dtype=torch.int64, device=device
        )

    @property
    def device(self) -> torch.device:
        """Where the counts live."""
        return self._histogram.device

    @property
    def counts(self) -> Tensor:  # [K] int64
        """n_k: how many counted pixels were predicted as each class."""
        return self._histogram.sum(dim=1)

    def to(self, device: torch.device | str) -> ClassThresholds:
        """Move the counts, in place; later logits must be on this device. Returns itself."""
        self._histogram = self._histogram.to(device)
        self._follows_logits = False
        return self

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
        if logits.device != self._histogram.device:
            if not self._follows_logits:
                raise ValueError(
                    f"logits are on {logits.device} and the counts on {self.device}; move either, "
                    "or leave out device= for counts that follow the logits"
                )
            self._histogram = self._histogram.to(logits.device)
        backends.select("class_thresholds", logits)
        reference.accumulate(self._histogram, logits, size, align_corners)

    def compute(
        self,
        portion: float,  # S_A, in (0, 1]
    ) -> Tensor:  # [K] float32, in (0, 1]
        """δ of Algorithm 1 over everything counted; 1 for a class that was never predicted.

        Raises:
            TypeError, ValueError: `portion` is not a number in (0, 1].
        """
        checks.check_portion(portion)
        return reference.thresholds_of_histogram(self._histogram, portion)

    def merge(self, other: ClassThresholds) -> None:
        """Add what another instance counted, on whatever device it lives.

        Raises:
            TypeError: `other` is not a ClassThresholds.
            ValueError: it has another number of classes.
        """
        if not isinstance(other, ClassThresholds):
            raise TypeError(f"other must be ClassThresholds; got {type(other).__name__}")
        if other.num_classes != self.num_classes:
            raise ValueError(
                f"other counts {other.num_classes} classes; these thresholds are for "
                f"{self.num_classes}"
            )
        self._histogram += other._histogram.to(self.device)

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
        distributed.all_reduce(self._histogram, group=group)

    def reset(self) -> None:
        """Forget everything counted."""
        self._histogram.zero_()

    def state_dict(self) -> dict[str, Any]:
        """A copy of the counts, and what they are counts of; `torch.save` takes it."""
        return {
            "num_classes": self.num_classes,
            "bins": reference.BINS,
            "histogram": self._histogram.clone(),
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
        if histogram.shape != self._histogram.shape:
            raise ValueError(
                f"state['histogram'] is {list(histogram.shape)}; it must be "
                f"{list(self._histogram.shape)}"
            )
        if bool((histogram < 0).any()):
            raise ValueError("state['histogram'] has negative counts")
        self._histogram.copy_(histogram)


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
    backends.select("class_thresholds", logits)
    return reference.class_thresholds(logits, portion, size, align_corners)
