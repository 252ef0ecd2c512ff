"""What is settled before a run begins: its device, and whether its images are large enough."""

from __future__ import annotations

import shlex
from pathlib import Path
from typing import Literal

import torch

from cscl_fast.config import AdaptationConfig, ConfigError
from cscl_fast.models import SegmentationModel
from cscl_fast.trainer import checkpoint
from cscl_fast.trainer.grids import discriminator_strides, image_size
from cscl_fast.trainer.labelling import evaluating
from cscl_fast.trainer.processes import Processes
from cscl_fast.trainer.world import World


def choose_device(name: str, processes: Processes | None = None) -> torch.device:
    """The device of that name; "auto" is a GPU if there is one. Each process has its own GPU.

    A GPU becomes the process's current one: what is not told a device (pinned memory, events,
    kernels of other packages) is then on it and not on the first.

    Raises:
        ConfigError: there is no such device.
    """
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    if name == "cuda" and processes is not None and processes.several:
        name = f"cuda:{processes.local_rank}"
    try:
        torch.empty(1, device=name)
    except (RuntimeError, AssertionError) as error:  # without CUDA PyTorch raises the latter
        reason = str(error).partition("\n")[0][:200]
        raise ConfigError(f"device is {name}, which cannot be used: {reason}") from error
    device = torch.device(name)
    if device.type == "cuda" and device.index is not None:
        torch.cuda.set_device(device)
    return device


def affine_for(init: str) -> Literal["frozen", "trained"]:
    """Whether scale and shift of the batch normalisations learn, for batchnorm_affine="auto".

    Pretrained weights keep theirs frozen; from scratch they are trained, and stay so when a
    checkpoint of such a run is gone on from.
    """
    if init == "none":
        return "trained"
    if init == "imagenet":
        return "frozen"
    try:
        content = checkpoint.load(Path(init))
    except checkpoint.UnreadError:
        raise
    except checkpoint.CheckpointError:  # weights of another program
        return "frozen"
    return "frozen" if content.get("batchnorm_affine") == "frozen" else "trained"


def how_to_go_on(folder: Path, processes: Processes | None = None) -> str:
    """The command that goes on with the run in this folder."""
    command = (processes or Processes.alone()).command
    return f"{command} --resume {shlex.quote(str(folder))}"


def require_large_enough(world: World, model: SegmentationModel, config: AdaptationConfig) -> None:
    """Refuse images that are too small for D now, not after hours of warm-up.

    Raises:
        ConfigError: names the data set, its size and what D needs.
    """
    strides = discriminator_strides(model, config)
    smallest = 2 ** strides.count(2)
    for name, dataset in (("source", world.source), ("target", world.target)):
        sizes = dataset.file_sizes or [(0, 0)]
        index = min(range(len(sizes)), key=lambda i: min(sizes[i]))  # the smallest
        image = dataset[index]["image"][None].to(world.device)
        # With --compile, eagerly: one batch is not worth a compilation.
        with evaluating(model), torch.compiler.set_stance("force_eager"):
            grid = image_size(model.encode(image).deep)
        if min(grid) < smallest:
            h, w = image_size(image)
            raise ConfigError(
                f"{name}.size is {h}x{w}, its features {grid[0]}x{grid[1]}, and the "
                f"discriminator with adaptation.discriminator_strides {strides} needs "
                f"{smallest}x{smallest}: use larger images or fewer strides of 2"
            )
