"""A trained network out of a checkpoint: what `evaluate` and `predict` start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any, get_args, get_type_hints

import torch

from cscl_fast.data import ClassList, DatasetConfig
from cscl_fast.models import SegmentationModel, build_model
from cscl_fast.trainer import checkpoint


@dataclasses.dataclass
class Trained:
    """A network in evaluation mode and what it was trained on."""

    model: SegmentationModel
    classes: ClassList
    data: DatasetConfig  # of the run's evaluation images: size, normalisation, kind


def load_trained(path: Path, device: torch.device) -> Trained:
    """Build the network of a checkpoint of this package and load its weights.

    Raises:
        CheckpointError: the file is missing, torn, not one of this package's checkpoints, or its
            weights do not fit the network that it names.
    """
    content = checkpoint.load(path)
    try:
        model = build_model(content["architecture"], content["num_classes"])
        model.load_state_dict(content["model"])
        names, colors = content["classes"]["names"], content["classes"]["colors"]
        classes = ClassList(tuple(names), tuple(tuple(c) for c in colors))
        data = from_plain(content["data"])
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        reason = str(error).partition("\n")[0]
        raise checkpoint.CheckpointError(
            f"{path} holds no network that can be built: {type(error).__name__}: {reason}"
        ) from error
    model.to(device).to(memory_format=torch.channels_last)
    return Trained(model.eval(), classes, data)


def to_plain(config: DatasetConfig) -> dict[str, Any]:
    """A data set's configuration as values that a checkpoint may hold."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items()}


def from_plain(entries: dict[str, Any]) -> DatasetConfig:
    """The inverse of `to_plain`."""
    hints = get_type_hints(DatasetConfig)
    values = {k: v for k, v in entries.items() if k in hints}
    for key, value in values.items():
        if isinstance(value, str) and Path in get_args(hints[key]):  # Path | None
            values[key] = Path(value)
    return DatasetConfig(**values)
