"""A trained network out of a checkpoint: what `evaluate` and `predict` start from."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

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
        CheckpointError: the file is missing, torn, or not one of this package's checkpoints.
    """
    content = checkpoint.load(path)
    model = build_model(content["architecture"], content["num_classes"])
    model.load_state_dict(content["model"])
    model.to(device).to(memory_format=torch.channels_last)
    names, colors = content["classes"]["names"], content["classes"]["colors"]
    return Trained(
        model.eval(),
        ClassList(tuple(names), tuple(tuple(c) for c in colors)),
        from_plain(content["data"]),
    )


def to_plain(config: DatasetConfig) -> dict[str, Any]:
    """A data set's configuration as values that a checkpoint may hold."""
    return {k: str(v) if isinstance(v, Path) else v for k, v in vars(config).items()}


def from_plain(entries: dict[str, Any]) -> DatasetConfig:
    """The inverse of `to_plain`."""
    known = {f.name for f in dataclasses.fields(DatasetConfig)}
    values = {k: v for k, v in entries.items() if k in known}
    for key in ("root", "list_file"):
        if values.get(key) is not None:
            values[key] = Path(values[key])
    return DatasetConfig(**values)
