"""What a run leaves behind while it trains: the CSV of every logged value and the progress bar."""

from __future__ import annotations

import csv
import sys
import time
from pathlib import Path
from types import TracebackType

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)

# Losses in nats, shares and transferability in [0, 1], IoU in percent, speed in steps a second.
COLUMNS = (
    "phase", "epoch", "step", "seconds", "total", "source", "target", "kept", "discriminator",
    "adversarial", "critic", "regression", "reward", "transferability", "divergence",
    "learning_rate", "speed",
)  # fmt: skip


class Journal:
    """Appends rows to `metrics.csv`; a resumed run goes on in the same file."""

    def __init__(self, folder: Path, *, after: dict[str, int] | None = None) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        self.folder = folder
        self.path = folder / "metrics.csv"
        self.started = time.monotonic()
        if self.path.exists() and after is not None:
            self._cut(after)
        else:
            with open(self.path, "w", newline="") as file:
                csv.writer(file).writerow(COLUMNS)

    def _cut(self, after: dict[str, int]) -> None:
        """Drop the rows behind the checkpoint that is resumed: they will be written again."""
        with open(self.path, newline="") as file:
            rows = list(csv.DictReader(file))
        # A row that was torn by a full disk or a lost machine has no step.
        kept = [r for r in rows if int(r["step"] or 10**15) <= after.get(r["phase"], -1)]
        with open(self.path, "w", newline="") as file:
            writer = csv.DictWriter(file, COLUMNS)
            writer.writeheader()
            writer.writerows(kept)

    def log(self, **values: float | int | str) -> None:
        unknown = set(values) - set(COLUMNS)
        if unknown:
            raise KeyError(f"metrics.csv has no column for {sorted(unknown)}")
        values.setdefault("seconds", round(time.monotonic() - self.started, 2))
        with open(self.path, "a", newline="") as file:
            csv.DictWriter(file, COLUMNS).writerow(
                {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()}
            )


class Bar:
    """A progress bar on a terminal; elsewhere a line now and then, so that a log stays readable."""

    def __init__(self, title: str, *, total: int, done: int = 0, console: Console) -> None:
        self.console = console
        self.title = title
        self.total = total
        self.first = self.done = done
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

    def advance(self, **numbers: float) -> None:
        self.done += 1
        text = "  ".join(f"{k} {v:.3f}" for k, v in numbers.items()) + f"  {self.speed:.2f} steps/s"
        self.progress.update(self.task, advance=1, numbers=text)
        now = time.monotonic()
        if not self.console.is_terminal and (now - self.spoke > 15 or self.done == self.total):
            self.spoke = now
            left = (self.total - self.done) / max(self.speed, 1e-9)
            print(
                f"{self.title} {self.done}/{self.total}  {text}  {left:.0f} s left",
                file=sys.stdout,
                flush=True,
            )
