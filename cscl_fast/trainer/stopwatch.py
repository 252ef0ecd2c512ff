"""Where the time of a run goes: seconds by part, each second counted once."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager


class Stopwatch:
    """Adds up the seconds spent in named parts.

    Parts may nest: what an inner part takes is not counted in the outer one, so that the sum over
    the parts is never more than the time that passed. On a GPU a part is the time that the program
    spends in it, which is not the time that the kernels it launched take; nothing waits for them.

    Args:
        clock: seconds from some beginning, for tests.
    """

    def __init__(self, clock: Callable[[], float] = time.perf_counter) -> None:
        self.clock = clock
        self.seconds: dict[str, float] = {}  # part → seconds
        self._inner = [0.0]  # seconds of the parts inside each open part

    @contextmanager
    def __call__(self, part: str) -> Iterator[None]:
        """Count what happens inside as `part`."""
        began = self.clock()
        self._inner.append(0.0)
        try:
            yield
        finally:
            whole = self.clock() - began
            inside = self._inner.pop()
            self._inner[-1] += whole
            self.seconds[part] = self.seconds.get(part, 0.0) + whole - inside

    def reset(self) -> None:
        """Forget all seconds; parts that are open go on."""
        self.seconds = {}
