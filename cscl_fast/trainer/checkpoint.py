"""Checkpoints: written atomically, read without executing anything, refused with a reason."""

from __future__ import annotations

import contextlib
import os
import random
from pathlib import Path
from typing import Any

import numpy as np
import torch

from cscl_fast.models.weights import CHECKPOINT_FORMAT, CHECKPOINT_VERSION


class CheckpointError(RuntimeError):
    """A checkpoint that cannot be written or read; the message names the file."""


def save(path: Path, content: dict[str, Any]) -> None:
    """Write `content` so that `path` is at every moment either the old file or the new one.

    Raises:
        CheckpointError: the disk is full or the folder cannot be written; the old file survives.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".part")
    try:
        with open(temporary, "wb") as file:
            torch.save(
                {"format": CHECKPOINT_FORMAT, "version": CHECKPOINT_VERSION, **content}, file
            )
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except (OSError, RuntimeError) as error:  # torch's zip writer reports a full disk as the latter
        with contextlib.suppress(OSError):
            temporary.unlink()
        kept = f"; the checkpoint from before is intact: {path}" if path.exists() else ""
        raise CheckpointError(
            f"could not write the checkpoint {path}: {error}{kept}. Free some space and resume"
        ) from error


def load(path: Path) -> dict[str, Any]:
    """Read a checkpoint of this package.

    Raises:
        CheckpointError: the file is missing, torn, or not one of this package's checkpoints.
    """
    if not path.is_file():
        raise CheckpointError(f"no checkpoint at {path}")
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # what is no checkpoint makes torch.load raise almost anything
        reason = str(error).partition("\n")[0][:200]
        raise CheckpointError(
            f"{path} is not a checkpoint, or is damaged ({type(error).__name__}: {reason})"
        ) from error
    if not isinstance(content, dict) or content.get("format") != CHECKPOINT_FORMAT:
        raise CheckpointError(
            f"{path} is not a checkpoint of cscl_fast; weights of other programs go to --model.init"
        )
    version = content.get("version")
    if not isinstance(version, int) or version > CHECKPOINT_VERSION:
        raise CheckpointError(
            f"{path} was written by a newer cscl_fast (checkpoint version {version}, "
            f"this one reads up to {CHECKPOINT_VERSION})"
        )
    return content


def random_state() -> dict[str, Any]:
    """The state of the random generators that a training step draws from."""
    version, keys, position, has_gauss, cached = np.random.get_state(legacy=True)
    state: dict[str, Any] = {
        "torch": torch.get_rng_state(),
        "numpy": [version, torch.tensor(keys), position, has_gauss, cached],
        "python": list(random.getstate()[1]),
    }
    if torch.cuda.is_available():
        state["cuda"] = torch.cuda.get_rng_state_all()
    return state


def set_random_state(state: dict[str, Any]) -> None:
    torch.set_rng_state(state["torch"])
    version, keys, position, has_gauss, cached = state["numpy"]
    np.random.set_state((version, keys.numpy(), position, has_gauss, cached))
    random.setstate((3, tuple(state["python"]), None))
    if "cuda" in state and torch.cuda.is_available():
        torch.cuda.set_rng_state_all(state["cuda"])
