"""The live progress of a run: a bar on a terminal, lines elsewhere."""

from __future__ import annotations

import sys
import time
from datetime import timedelta
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

ORDER = ("epoch", "loss", "kept", "mIoU")  # of the values shown
EVERY = 15  # seconds between two lines


class Bar:
    """A progress bar on a terminal; elsewhere a line now and then, so that a log stays readable."""

    def __init__(self, title: str, *, total: int, done: int = 0, console: Console) -> None:
        self.console = console
        self.title = title
        self.total = total
        self.first = self.done = done
        self.shown: dict[str, str] = {}
        self.started = self.spoke = time.monotonic()
        self.progress = Progress(
            TextColumn("{task.description}"),
            BarColumn(bar_width=24),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TimeRemainingColumn(),
            console=console,
            disable=not console.is_terminal,
        )
        self.task = self.progress.add_task(title, total=total, completed=done, numbers="")

    def __enter__(self) -> Bar:
        self.progress.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.progress.stop()

    @property
    def speed(self) -> float:
        """Steps a second since this bar began."""
        return (self.done - self.first) / max(time.monotonic() - self.started, 1e-9)

    def show(self, **values: str) -> None:
        """Values to be shown from now on, beside those shown already."""
        self.shown |= values
        self.progress.update(self.task, numbers=self.text)

    @property
    def text(self) -> str:
        values = [f"{name} {self.shown[name]}" for name in ORDER if name in self.shown]
        return "  ".join([*values, f"{self.speed:.2f} steps/s"])

    def advance(self) -> None:
        """One step is done."""
        self.done += 1
        self.progress.update(self.task, advance=1, numbers=self.text)
        now = time.monotonic()
        if self.console.quiet:
            return
        if not self.console.is_terminal and (now - self.spoke > EVERY or self.done == self.total):
            self.spoke = now
            left = timedelta(seconds=round((self.total - self.done) / max(self.speed, 1e-9)))
            print(
                f"{self.title} {self.done}/{self.total}  {self.text}  {left} left",
                file=sys.stdout,
                flush=True,
            )
