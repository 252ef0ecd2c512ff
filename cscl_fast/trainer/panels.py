"""Panels: image, truth, source-only, adapted and kept pseudo-labels side by side, as PNG."""

from __future__ import annotations

from pathlib import Path

import torch
from PIL import Image, ImageDraw
from torch import Tensor, nn

from cscl_fast import ops
from cscl_fast.data.visual import colorize
from cscl_fast.trainer.grids import image_size, upsampled_argmax
from cscl_fast.trainer.labelling import evaluating
from cscl_fast.trainer.tiles import Tiles
from cscl_fast.trainer.world import World

TITLES = ("image", "truth", "source only", "CSCL", "kept pseudo-labels")
CAPTION, GAP = 16, 4  # pixels
OVERVIEW = "overview.png"


def draw_panels(
    folder: Path,
    world: World,
    model: nn.Module,
    source_state: dict[str, Tensor],
    count: int,
    *,
    thresholds: Tensor | None,
    gamma: float,
) -> None:
    """Write `count` panels of evaluation images, evenly spread over the set, and one overview.

    `source_state`: the weights before the adaptation; the model's own are put back afterwards.
    `thresholds`: δ [K] of the last epoch; None leaves the pseudo-labels out (black).
    """
    dataset = world.evaluation
    count = min(count, len(dataset))
    chosen = [round(i * (len(dataset) - 1) / max(count - 1, 1)) for i in range(count)]
    samples = [dataset[i] for i in chosen]
    images = [s["clean"][None].to(world.device) for s in samples]
    adapted = [_logits(model, image) for image in images]
    adapted_state = {k: v.clone() for k, v in model.state_dict().items()}
    model.load_state_dict(source_state)
    before = [_logits(model, image) for image in images]
    model.load_state_dict(adapted_state)

    folder.mkdir(parents=True, exist_ok=True)
    strips = []
    for sample, old, new in zip(samples, before, adapted, strict=True):
        size = image_size(sample["clean"])
        label = _resized(sample["label"], size)
        kept = torch.full(size, 255)
        if thresholds is not None:
            kept = ops.soft_pseudo_labels(new, thresholds, gamma, size=size).hard[0].cpu()
        maps = [label, upsampled_argmax(old, size)[0], upsampled_argmax(new, size)[0], kept]
        pictures = [dataset.denormalise(sample["clean"])]
        pictures += [colorize(m.cpu(), world.classes) for m in maps]
        strip = _strip(pictures)
        tiles = Tiles(TITLES, width=size[1], height=size[0], gap=GAP, top=CAPTION)
        file = folder / f"{sample['name'].replace('/', '_')}.png"
        strip.save(file, pnginfo=tiles.entry())
        strips.append(strip)
    _overview(strips).save(folder / OVERVIEW)


def _logits(model: nn.Module, image: Tensor) -> Tensor:
    with evaluating(model):
        return model(image.contiguous(memory_format=torch.channels_last))


def _resized(label: Tensor, size: tuple[int, int]) -> Tensor:
    if tuple(label.shape) == size:
        return label
    picture = Image.fromarray(label.to(torch.uint8).numpy())
    resized = picture.resize((size[1], size[0]), Image.Resampling.NEAREST)
    return torch.frombuffer(bytearray(resized.tobytes()), dtype=torch.uint8).view(size).long()


def _strip(pictures: list[Tensor]) -> Image.Image:
    """Pictures uint8 [3, H, W] beside each other, each under its title."""
    height, width = pictures[0].shape[-2:]
    total = (len(pictures) * (width + GAP) - GAP, height + CAPTION)
    strip = Image.new("RGB", total, "white")
    draw = ImageDraw.Draw(strip)
    for i, (title, picture) in enumerate(zip(TITLES, pictures, strict=True)):
        left = i * (width + GAP)
        draw.text((left + 2, 2), title, fill="black")
        strip.paste(Image.fromarray(picture.permute(1, 2, 0).numpy()), (left, CAPTION))
    return strip


def _overview(strips: list[Image.Image]) -> Image.Image:
    """All strips under each other, the titles once."""
    first = strips[0]
    rows = [first, *(s.crop((0, CAPTION, s.width, s.height)) for s in strips[1:])]
    size = (max(row.width for row in rows), sum(row.height + GAP for row in rows))
    sheet = Image.new("RGB", size, "white")
    top = 0
    for row in rows:
        sheet.paste(row, (0, top))
        top += row.height + GAP
    return sheet
