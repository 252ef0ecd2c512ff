"""Ctrl-C and SIGTERM end a run between two steps, with everything saved."""

from __future__ import annotations

import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved its checkpoint; the message says how to go on."""


class StopBetweenSteps:
    """While active, the first SIGINT or SIGTERM only takes note; `check` then saves and raises.

    A step is never cut in half, so the checkpoint is one from which the run goes on exactly.
    A second Ctrl-C stops at once, without saving.
    """

    def __init__(self, save: Callable[[], None], message: Callable[[], str]) -> None:
        self.save, self.message = save, message
        self.asked = False
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopBetweenSteps:
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked:
            raise KeyboardInterrupt
        self.asked = True
        print(
            "\nstopping after this step; a second Ctrl-C stops at once, without saving",
            file=sys.stderr,
        )

    def check(self) -> None:
        """Call between two steps."""
        if self.asked:
            self.save()
            raise Interrupted(self.message())
