"""Checkpoints: written atomically, checked by their checksum, read without executing code.

A file is what `torch.save` writes and 48 bytes behind it: the mark b"CSCLFAST", the length of what
is before it as 8 bytes (little-endian), and its SHA-256. `torch.load` reads such a file as it is.
"""

from __future__ import annotations

import contextlib
import errno
import hashlib
import os
import random
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any

import numpy as np
import torch

from cscl_fast.models.weights import CHECKPOINT_FORMAT, CHECKPOINT_VERSION
from cscl_fast.trainer.files import replacing

MARK = b"CSCLFAST"
TRAILER = len(MARK) + 8 + hashlib.sha256().digest_size  # bytes
LAST, PREVIOUS, DAMAGED = "last.pt", "previous.pt", "damaged.pt"
FULL = (errno.ENOSPC, errno.EDQUOT)  # of a disk, or of what one may have of it


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file."""


class _Hashing:
    """A file to write to that knows the length and the SHA-256 of what went through it."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.length = 0
        self.digest = hashlib.sha256()
        self.error: OSError | None = None

    def write(self, data: bytes) -> int:
        self.length += len(data)
        self.digest.update(data)
        try:
            self.file.write(data)
        except OSError as error:  # torch's zip writer may not pass it on
            self.error = error
            raise
        return len(data)

    def flush(self) -> None:
        self.file.flush()

    def trailer(self) -> bytes:
        return MARK + self.length.to_bytes(8, "little") + self.digest.digest()


def save(path: Path, content: dict[str, Any], *, previous: Path | None = None) -> None:
    """Write `content` so that `path` is at every moment either the old file or the new one.

    Args:
        previous: where the old file stays, whole like the new one.

    Raises:
        CheckpointError: the disk is full, or the folder cannot be made or written to; the old
            file survives.
    """
    hashing = None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with replacing(path, lambda: _keep(path, previous)) as file:
            hashing = _Hashing(file)
            torch.save(
                {"format": CHECKPOINT_FORMAT, "version": CHECKPOINT_VERSION, **content},
                hashing,  # type: ignore[arg-type]
            )
            file.write(hashing.trailer())
    except (OSError, RuntimeError) as error:  # torch's zip writer makes the latter of the former
        first = (hashing and hashing.error) or error
        kept = f"; the checkpoint from before is intact: {path}" if os.path.isfile(path) else ""
        full = isinstance(first, OSError) and first.errno in FULL
        advice = ". Free some space and resume" if full else ""
        raise CheckpointError(
            f"could not write the checkpoint {path}: {first}{kept}{advice}"
        ) from error


def _keep(path: Path, previous: Path | None) -> None:
    """Give the file at `path`, if any, the name `previous` too; at every moment it has its own."""
    if previous is None or not path.exists():
        return
    link = previous.with_name(previous.name + ".part")
    link.unlink(missing_ok=True)
    try:
        os.link(path, link)
    except OSError:  # a file system without hard links: `previous` alone is whole for a moment
        os.replace(path, previous)
    else:
        os.replace(link, previous)


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package, of this version or an older one.

    Raises:
        CheckpointError: the file is missing, torn or altered, not one of this package's
            checkpoints, written by a newer version of it (`NewerError`), or could not be read
            here and now (`UnreadError`).
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        is_whole = _check(path)
    except OSError as error:
        raise UnreadError(f"{path} could not be read: {error}") from error
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint makes torch.load raise almost anything
        reason = f"{type(error).__name__}: {str(error).partition(chr(10))[0][:200]}"
        if is_whole:
            raise UnreadError(
                f"{path} could not be read ({reason}). It is whole, by its checksum: look for "
                "what this machine lacks, memory perhaps, and try again"
            ) from error
        raise CheckpointError(f"{path} is not a checkpoint, or is damaged ({reason})") from error
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of cscl_fast; weights of other programs go to --model.init"
        )
    version = content.get("version")
    if not isinstance(version, int) or version > CHECKPOINT_VERSION:
        raise NewerError(
            f"{path} was written by a newer cscl_fast (checkpoint version {version}, "
            f"this one reads up to {CHECKPOINT_VERSION})"
        )
    if version > 1 and not is_whole:  # the first version had none
        raise CheckpointError(f"{path} is damaged: there is no checksum at its end")
    return content


class NewerError(CheckpointError):
    """A checkpoint of a newer version of this package, which is no reason to take an older one."""


class UnreadError(CheckpointError):
    """Memory or the disk failed while a checkpoint was read, which says nothing about the file."""


def _check(path: Path) -> bool:
    """Whether a file has a checksum, which it then agrees with."""
    with open(path, "rb") as file:
        length = max(os.fstat(file.fileno()).st_size - TRAILER, 0)
        file.seek(length)
        trailer = file.read()
        if len(trailer) < TRAILER or not trailer.startswith(MARK):
            return False
        file.seek(0)
        digest = hashlib.sha256()
        left = length
        while left > 0 and (block := file.read(min(left, 1 << 20))):
            digest.update(block)
            left -= len(block)
    if trailer != MARK + length.to_bytes(8, "little") + digest.digest():
        raise CheckpointError(f"{path} is damaged: it differs from its own checksum")
    return True


def save_newest(folder: Path, content: dict[str, Any]) -> None:
    """Write `last.pt`; what it was so far stays as `previous.pt`.

    Raises:
        CheckpointError: as `save`.
    """
    save(folder / LAST, content, previous=folder / PREVIOUS)


def load_newest(
    folder: Path,
    warn: Callable[[str], None],
    agree: Callable[[dict[str, Any]], None] = lambda content: None,
) -> dict[str, Any]:
    """Read `last.pt` or, where that is missing or damaged, `previous.pt`.

    A damaged `last.pt` is then called `damaged.pt`: the next one must not push out the whole one.

    Args:
        warn: told which file could not be used, why, and which one is.
        agree: given what was read before anything is renamed; may raise.

    Raises:
        CheckpointError: there is no whole file, or the newest is of a newer version or could not
            be read here and now.
    """
    last, previous = folder / LAST, folder / PREVIOUS
    try:
        content = load(last)
    except (NewerError, UnreadError):
        raise
    except CheckpointError as error:
        if not previous.is_file():
            raise
        try:
            content = load(previous)
        except CheckpointError as other:
            raise CheckpointError(f"{error}, and {other}: nothing to go on from") from other
        agree(content)
        warn(f"warning: {error}. Going on from the one before it, {previous}")
        with contextlib.suppress(FileNotFoundError):  # missing, or another process was faster
            os.replace(last, folder / DAMAGED)
            warn(f"warning: {last} is kept as {folder / DAMAGED}")
    else:
        agree(content)
    return content


def seed_everything(seed: int) -> None:
    """Seed the random generators whose state a checkpoint holds."""
    torch.manual_seed(seed)  # of every GPU, too
    np.random.seed(seed % 2**32)
    random.seed(seed)


def random_state(device: torch.device) -> dict[str, Any]:
    """The state of the random generators that a training step on `device` draws from."""
    version, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    python_version, python_keys, python_gauss = random.getstate()
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [version, torch.tensor(keys), position, has_gauss, cached],
        "python": [python_version, list(python_keys), python_gauss],
    }
    if device.type == "cuda":  # else CUDA is left alone
        state["cuda"] = torch.cuda.get_rng_state(device)
    return state


def set_random_state(state: dict[str, Any], device: torch.device) -> None:
    """Go on drawing where `random_state` was taken, on `device` if that was on a GPU, too."""
    torch.set_rng_state(state["torch"])
    version, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((version, keys.numpy(), position, has_gauss, cached))
    python_version, python_keys, python_gauss = state["python"]
    random.setstate((python_version, tuple(python_keys), python_gauss))
    of_gpu = state.get("cuda")
    if device.type == "cuda" and of_gpu is not None:
        if isinstance(of_gpu, list):  # of every GPU that there was: so it was written once
            number = torch.cuda.current_device() if device.index is None else device.index
            of_gpu = of_gpu[min(number, len(of_gpu) - 1)]
        torch.cuda.set_rng_state(of_gpu, device)
