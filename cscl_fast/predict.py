"""`python -m cscl_fast.predict CHECKPOINT IMAGES OUT`: label maps and overlays of a folder.

Writes OUT/labels/NAME.png (8-bit class indices at the image's own size) and
OUT/overlays/NAME.png (the class colours over the image).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import torch
import tyro
from PIL import Image
from rich.progress import track

from cscl_fast.cli import known_options
from cscl_fast.config import ConfigError
from cscl_fast.data import DataError, list_images, load_image
from cscl_fast.data.visual import overlay, save_label_png
from cscl_fast.trained import load_trained
from cscl_fast.trainer import out_of_memory
from cscl_fast.trainer.checkpoint import CheckpointError
from cscl_fast.trainer.grids import upsampled_argmax
from cscl_fast.trainer.labelling import evaluating
from cscl_fast.trainer.start import choose_device


@dataclass
class PredictConfig:
    """Label every image of a folder."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A checkpoint of this package."""
    images: Annotated[Path, tyro.conf.Positional]
    """Folder of images (searched with its subfolders)."""
    out: Annotated[Path, tyro.conf.Positional]
    """Folder for labels/ and overlays/."""
    opacity: float = 0.5
    """Of the colours in the overlays, 0 to 1."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""


def predict(config: PredictConfig) -> list[Path]:
    """Write the label maps and overlays; returns the label files, in the order of the images.

    Raises:
        ConfigError: the opacity is not in [0, 1], or there is no such device.
        CheckpointError: the checkpoint cannot be used.
        DataError: no images, two whose label maps would have one name, or one that is unreadable.
    """
    if not 0 <= config.opacity <= 1:
        raise ConfigError(f"opacity is {config.opacity}; it is between 0 and 1")
    device = choose_device(config.device)
    trained = load_trained(config.checkpoint, device)
    paths = _images(config)
    written = []
    for path in track(paths, description="predicting", disable=not sys.stdout.isatty()):
        image = load_image(path, trained.data)[None].to(device)
        with Image.open(path) as picture:
            width, height = picture.size
            original = picture.convert("RGB")
        with evaluating(trained.model):
            logits = trained.model(image.contiguous(memory_format=torch.channels_last))
        label = upsampled_argmax(logits, (height, width))[0].cpu()
        relative = path.relative_to(config.images).with_suffix(".png")
        target = config.out / "labels" / relative
        target.parent.mkdir(parents=True, exist_ok=True)
        save_label_png(target, label)
        written.append(target)
        pixels = torch.frombuffer(bytearray(original.tobytes()), dtype=torch.uint8)
        pixels = pixels.view(height, width, 3).permute(2, 0, 1)
        colored = overlay(pixels, label, trained.classes, config.opacity)
        shown = config.out / "overlays" / relative
        shown.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(colored.permute(1, 2, 0).contiguous().numpy()).save(shown)
    print(f"{len(written)} label maps in {config.out / 'labels'}, overlays beside them")
    return written


def _images(config: PredictConfig) -> list[Path]:
    """The images, without what an earlier prediction wrote below them."""
    own = [(config.out / part).resolve() for part in ("labels", "overlays")]
    paths = [
        path
        for path in list_images(config.images)
        if not any(path.resolve().is_relative_to(folder) for folder in own)
    ]
    if not paths:
        raise DataError(f"{config.images} holds no images but those written by a prediction")
    names: dict[Path, Path] = {}
    for path in paths:
        first = names.setdefault(path.with_suffix(""), path)
        if first != path:
            raise DataError(
                f"{first} and {path} would both become {path.stem}.png; rename one of them"
            )
    return paths


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        known_options(arguments, PredictConfig)
        predict(tyro.cli(PredictConfig, args=arguments, prog="python -m cscl_fast.predict"))
    except SystemExit as stop:  # --help, or an argument of the wrong type
        return int(stop.code or 0)
    except ConfigError as error:
        print(f"cscl_fast.predict: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, DataError, OSError) as error:
        print(f"cscl_fast.predict: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        message = out_of_memory.in_words(error, out_of_memory.PREDICTION)
        if message is None:
            raise
        print(f"cscl_fast.predict: {message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
