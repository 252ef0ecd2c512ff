"""Ctrl-C and SIGTERM end a run between two steps, with everything saved."""

from __future__ import annotations

import os
import signal
import sys
import threading
from collections.abc import Callable
from types import FrameType

from cscl_fast.trainer.processes import Processes


class Interrupted(KeyboardInterrupt):
    """The run was asked to stop and has saved its checkpoint; the message says how to go on."""


class StopBetweenSteps:
    """While active, the first SIGINT or SIGTERM only takes note; `check` then saves and raises.

    A step is never cut in half, so the checkpoint is one from which the run goes on exactly.
    A second Ctrl-C stops at once, without saving.

    Several processes stop after the same step, whichever of them was asked. There a second signal
    is not a second wish: torchrun passes on what the terminal has sent to everybody already.
    """

    def __init__(
        self,
        save: Callable[[], None],
        message: Callable[[], str],
        processes: Processes | None = None,
    ) -> None:
        self.save, self.message = save, message
        self.processes = processes or Processes.alone()
        self.asked = False
        self._process = 0  # its id
        self._previous: dict[int, object] = {}

    def __enter__(self) -> StopBetweenSteps:
        self._process = os.getpid()
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                self._previous[number] = signal.signal(number, self._note)
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        for number, handler in self._previous.items():
            signal.signal(number, handler)  # type: ignore[arg-type]
        if kind is None:  # asked after the last step's check
            self.check()

    def _note(self, number: int, frame: FrameType | None) -> None:
        if self.asked and not self.processes.several:
            raise KeyboardInterrupt
        # Workers that read data are copies of this process, and Ctrl-C reaches them, too.
        speaks = self.processes.is_main and os.getpid() == self._process
        if not self.asked and speaks:
            second = (
                "" if self.processes.several else "; a second Ctrl-C stops at once, without saving"
            )
            print(f"\nstopping after this step{second}", file=sys.stderr)
        self.asked = True

    def check(self) -> None:
        """Call between two steps, in all processes between the same two."""
        if self.processes.any(self.asked):
            self.save()
            self.processes.barrier()  # who ends first has torchrun end the others
            raise Interrupted(self.message())
