"""Files that are at every moment the old one or the new one, whole, whatever ends the process."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO

PART = ".part"  # behind the name of a file that is being written


def write_text(path: Path, text: str) -> None:
    """Write a text in the place of what `path` held; if that is the same, nothing is done.

    Raises:
        OSError: it cannot be written, and names the file; what was there is as before.
    """
    content = text.encode()
    with contextlib.suppress(OSError):
        if path.read_bytes() == content:
            path.with_name(path.name + PART).unlink(missing_ok=True)  # of a process that was killed
            return
    try:
        with replacing(path) as file:
            file.write(content)
    except OSError as error:
        error.filename = error.filename or str(path)  # a full disk does not say whose file it was
        raise


@contextlib.contextmanager
def replacing(path: Path, before: Callable[[], None] | None = None) -> Iterator[IO[bytes]]:
    """A file to write to that takes the name `path` when everything in it is on the disk.

    Args:
        before: called just before it does.
    """
    temporary = path.with_name(path.name + PART)
    try:
        with open(temporary, "wb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        if before is not None:
            before()
        os.replace(temporary, path)
        sync_folder(path.parent)
    except BaseException:
        with contextlib.suppress(OSError):
            temporary.unlink()
        raise


def sync_folder(folder: Path) -> None:
    """The new names are on the disk, too, where folders can be synchronised."""
    with contextlib.suppress(OSError):
        descriptor = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)
