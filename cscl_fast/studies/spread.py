"""A number over several runs: its mean and the sample standard deviation."""

from __future__ import annotations

import math
import statistics
from collections.abc import Iterable
from dataclasses import dataclass

NOTHING = "–"


@dataclass(frozen=True)
class Spread:
    """A number over several runs."""

    values: tuple[float, ...]  # without NaN

    @property
    def n(self) -> int:
        return len(self.values)

    @property
    def mean(self) -> float:
        return statistics.fmean(self.values) if self.values else math.nan

    @property
    def deviation(self) -> float:
        """Sample standard deviation (n − 1); NaN for a single run."""
        return statistics.stdev(self.values) if self.n > 1 else math.nan

    def text(self, digits: int = 1, *, sign: bool = False) -> str:
        """`36.8`, or `36.8 ± 0.4` over several runs; a dash where there is nothing."""
        if not self.values:
            return NOTHING
        mean = f"{round(self.mean, digits) + 0.0:.{digits}f}".replace("-", "−")
        if sign and round(self.mean, digits) > 0:
            mean = f"+{mean}"
        # Spaces that do not break: a number stays on one line.
        return mean if self.n == 1 else f"{mean}\u00a0±\u00a0{self.deviation:.{digits}f}"

    def __str__(self) -> str:
        return self.text().replace("\u00a0", " ")


def spread(values: Iterable[float | None]) -> Spread:
    """Of the values that there are: neither None nor NaN."""
    return Spread(tuple(v for v in values if v is not None and math.isfinite(v)))
