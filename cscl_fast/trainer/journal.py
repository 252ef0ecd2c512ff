"""The tables of a run: CSV files that only grow, and go back to where a checkpoint saw them."""

from __future__ import annotations

import csv
import os
from collections.abc import Mapping, Sequence
from pathlib import Path

# Losses in nats, shares and transferability in [0, 1], IoU in percent, speed in steps a second.
COLUMNS = (
    "phase", "epoch", "step", "seconds", "total", "source", "target", "kept", "discriminator",
    "adversarial", "critic", "regression", "reward", "transferability", "divergence",
    "learning_rate", "speed", "skipped",
)  # fmt: skip


class Table:
    """A CSV file with fixed columns, made at its first row.

    Rows are only ever added at the end, so the length of the file says which rows were there: a
    checkpoint holds it, and a resumed run cuts the file to it.
    """

    def __init__(self, path: Path, columns: Sequence[str]) -> None:
        self.path = path
        self.columns = list(columns)

    def append(self, values: Mapping[str, object]) -> None:
        """Add a row; a column without a value stays empty, floats have six digits.

        Raises:
            KeyError: a value has no column.
        """
        unknown = set(values) - set(self.columns)
        if unknown:
            raise KeyError(f"{self.path.name} has no column for {sorted(unknown)}")
        new = not self.path.exists()
        with open(self.path, "a", newline="", encoding="utf-8") as file:
            writer = csv.DictWriter(file, self.columns)
            if new:
                writer.writeheader()
            writer.writerow(
                {k: f"{v:.6g}" if isinstance(v, float) else v for k, v in values.items()}
            )

    def rows(self) -> list[dict[str, str]]:
        """Every row, by column; none if the file is not there."""
        if not self.path.exists():
            return []
        with open(self.path, newline="", encoding="utf-8") as file:
            return list(csv.DictReader(file))

    def length(self) -> int:
        """Bytes that the file has, on the disk and not only on their way to it; 0: no file."""
        if not self.path.exists():
            return 0
        with open(self.path, "rb") as file:
            os.fsync(file.fileno())
            return os.fstat(file.fileno()).st_size

    def cut(self, length: int) -> bool:
        """Drop what was written after the file had `length` bytes; False: it is shorter by now."""
        found = self.path.stat().st_size if self.path.exists() else 0
        if length == 0:
            self.path.unlink(missing_ok=True)
        elif found > length:
            os.truncate(self.path, length)
        elif found < length:
            self._drop_torn_row()
        return found >= length

    def _drop_torn_row(self) -> None:
        """Of a file that somebody else has shortened, keep the whole rows."""
        if self.path.exists():
            content = self.path.read_bytes()
            os.truncate(self.path, content.rfind(b"\n") + 1)
