"""What the critical transfer does on images: transferability P and reward R beside each image.

For some training images of both domains, one picture each: the image, the labels that the reward
is judged by (the truth on the source, the pseudo-labels on the target), P (Eq. 2) and R (Eq. 3, 4)
on the grid of the features. The batch normalisations use the statistics of the batch itself, as in
training (those kept with bn="frozen"): with the target's, the source would look like something
that D never saw. Nothing random is drawn, no running statistic moves, every mode is put back.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor
from torch.nn.modules.batchnorm import _BatchNorm

from cscl_fast import ops
from cscl_fast.data import SegmentationDataset, open_dataset
from cscl_fast.data.visual import colorize
from cscl_fast.trainer.grids import at_grid, image_size, nearest_labels
from cscl_fast.trainer.labelling import Labeller, evaluating
from cscl_fast.trainer.players import Players
from cscl_fast.trainer.tiles import Tiles
from cscl_fast.trainer.world import World

# R = 0, 1, 2: three steps of viridis, told apart without seeing colours by their lightness.
REWARD_COLORS = ((68, 1, 84), (33, 145, 140), (253, 231, 37))
HATCH = ((150, 150, 150), (214, 214, 214))  # where there is no label, hence no reward
WIDTHS = (256, 640)  # pixels that a map is at least and at most wide in the picture
CAPTION, LEGEND, GAP = 20, 24, 6  # pixels


@dataclass
class Judged:
    """One image and what the critical transfer makes of it, on the grid of the features."""

    name: str
    image: Tensor  # [3, H, W] uint8
    labels: Tensor  # [h, w] int64, 255 = no label
    transferability: Tensor  # [h, w] float32 in [0, 1]
    reward: Tensor  # [h, w] float32 in {0, 1, 2}, 0 where there is no label


def draw_transferability(
    folder: Path, players: Players, world: World, labeller: Labeller, count: int
) -> list[Path]:
    """Write a picture for each of `count` training images of each domain, evenly spread.

    The files are `source_NAME.png` and `target_NAME.png`. Without the transfer part there is
    nothing to draw, and no folder is made.

    Args:
        labeller: its network and thresholds give the target's pseudo-labels; it is only read.

    Returns:
        The files, source before target.
    """
    if not players.transfer or count < 1:
        return []
    folder.mkdir(parents=True, exist_ok=True)
    files = []
    for domain in ("source", "target"):
        dataset = _plain(world.source if domain == "source" else world.target)
        for judged in _judge(players, labeller, dataset, domain, world.device, count):
            file = folder / f"{domain}_{judged.name.replace('/', '_')}.png"
            picture, tiles = _picture(judged, domain, world)
            picture.save(file, pnginfo=tiles.entry())
            files.append(file)
    return files


def _plain(dataset: SegmentationDataset) -> SegmentationDataset:
    """The training images without augmentation; a data set of its own, with an empty cache."""
    return open_dataset(replace(dataset.config, cache="none"), training=False)


@torch.no_grad()
def _judge(
    players: Players,
    labeller: Labeller,
    dataset: SegmentationDataset,
    domain: str,
    device: torch.device,
    count: int,
) -> Iterator[Judged]:
    """Look at the chosen images in batches as large as those of the training."""
    count = min(count, len(dataset))
    chosen = [round(i * (len(dataset) - 1) / max(count - 1, 1)) for i in range(count)]
    size = dataset.batch_of(players.config.batch_size)
    for start in range(0, count, size):
        samples = [dataset[i] for i in chosen[start : start + size]]
        images = torch.stack([s["clean"] for s in samples]).to(device)
        images = images.contiguous(memory_format=torch.channels_last)
        with _normalising_as_in_training(players):
            view = players.look(images, source=domain == "source", track=False)
        assert view.gated is not None and view.transferability is not None
        grid = image_size(view.features.deep)
        if domain == "source":
            labels = nearest_labels([s["label"].to(device) for s in samples], grid)
        else:
            labels = _pseudo_labels(labeller, images, grid)
        reward, _ = ops.transfer_reward(
            at_grid(view.gated, grid), at_grid(view.plain, grid), labels
        )
        for i, sample in enumerate(samples):
            yield Judged(
                sample["name"],
                dataset.denormalise(sample["clean"]),
                labels[i].cpu(),
                view.transferability[i, 0].float().cpu(),
                reward[i, 0].cpu(),
            )


def _pseudo_labels(labeller: Labeller, images: Tensor, grid: tuple[int, int]) -> Tensor:
    """Hard labels [B, h, w] of target images; online thresholds do not move by it."""
    with evaluating(labeller.network):
        logits = at_grid(labeller.network(images), grid)
    if not labeller.selects:
        return logits.argmax(1)
    return ops.soft_pseudo_labels(logits, labeller.thresholds, labeller.config.gamma).hard


@contextmanager
def _normalising_as_in_training(players: Players) -> Iterator[None]:
    """Evaluation mode, but by the statistics of the batch, unless bn="frozen".

    A batch normalisation without running statistics takes the batch's in evaluation mode too. So
    nothing is in training mode: no dropout draws, and one synchronised over processes, of which
    only the first draws pictures, does not wait for the others.
    """
    modes = {module: module.training for module in players.modules()}
    layers = [m for m in players.modules() if isinstance(m, _BatchNorm)]
    statistics = [(layer.running_mean, layer.running_var) for layer in layers]
    try:
        players.eval()
        if players.config.bn != "frozen":
            for layer in layers:
                layer.running_mean = layer.running_var = None
        yield
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, (mean, variance) in zip(layers, statistics, strict=True):
            layer.running_mean, layer.running_var = mean, variance


# --------------------------------------------------------------------------------- the picture


def _picture(judged: Judged, domain: str, world: World) -> tuple[Image.Image, Tiles]:
    """Image, labels, P and R beside each other, each under its title and over its legend."""
    h, w = image_size(judged.image)
    width = min(max(w, WIDTHS[0]), WIDTHS[1])
    size = (width, max(1, round(width * h / w)))
    labelled = judged.labels != 255
    maps = [
        _image(judged.image).resize(size, Image.Resampling.BILINEAR),
        _hatched(_image(colorize(judged.labels, world.classes)), labelled, size),
        _heat(judged.transferability).resize(size, Image.Resampling.BILINEAR),
        _hatched(_rewards(judged.reward), labelled, size),
    ]
    mean_reward = f"{float(judged.reward[labelled].mean()):.2f}" if labelled.any() else "none"
    titles = (
        f"{domain} image",
        "truth" if domain == "source" else "pseudo-labels",
        f"transferability P, mean {float(judged.transferability.mean()):.2f}",
        f"reward R, mean {mean_reward}",
    )
    tiles = Tiles(titles, width=size[0], height=size[1], gap=GAP, top=CAPTION)
    nothing = "ignored" if domain == "source" else "rejected"
    sheet = Image.new("RGB", (4 * (width + GAP) - GAP, CAPTION + size[1] + LEGEND), (255, 255, 255))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(13)
    for i, (title, picture) in enumerate(zip(titles, maps, strict=True)):
        draw.text((tiles.left(i) + 1, 1), title, fill="black", font=font)
        sheet.paste(picture, (tiles.left(i), CAPTION))
    below = CAPTION + size[1] + 5
    _colour_bar(sheet, (tiles.left(2), below), width)
    swatches = [(str(value), color) for value, color in enumerate(REWARD_COLORS)]
    _swatches(sheet, (tiles.left(3), below), [*swatches, (nothing, None)])
    _swatches(sheet, (tiles.left(1), below), [(nothing, None)])
    return sheet, tiles


def _image(pixels: Tensor) -> Image.Image:
    """[3, H, W] uint8 → picture."""
    return Image.fromarray(pixels.permute(1, 2, 0).contiguous().numpy())


def _heat(values: Tensor) -> Image.Image:
    """[h, w] in [0, 1] in the colours of cividis, made for colour-blind readers too."""
    from matplotlib import colormaps

    return Image.fromarray((colormaps["cividis"](values.numpy())[..., :3] * 255).astype(np.uint8))


def _rewards(reward: Tensor) -> Image.Image:
    return Image.fromarray(np.array(REWARD_COLORS, np.uint8)[reward.round().long().numpy()])


def _hatched(picture: Image.Image, valid: Tensor, size: tuple[int, int]) -> Image.Image:
    """A map enlarged to `size` (W, H) with sharp edges, diagonal stripes where it is not valid."""
    large = np.asarray(picture.resize(size, Image.Resampling.NEAREST)).copy()
    mask = Image.fromarray(valid.numpy().astype(np.uint8)).resize(size, Image.Resampling.NEAREST)
    stripes = np.array(HATCH, np.uint8)[(np.add.outer(range(size[1]), range(size[0])) // 4) % 2]
    nothing = np.asarray(mask) == 0
    large[nothing] = stripes[nothing]
    return Image.fromarray(large)


def _colour_bar(sheet: Image.Image, corner: tuple[int, int], width: int) -> None:
    """The scale of P from 0 to 1."""
    bar = _heat(torch.linspace(0, 1, 128)[None].expand(12, 128)).resize((width - 32, 12))
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    draw.text((corner[0] + 1, corner[1] - 2), "0", fill="black", font=font)
    sheet.paste(bar, (corner[0] + 14, corner[1]))
    draw.text((corner[0] + width - 14, corner[1] - 2), "1", fill="black", font=font)


def _swatches(
    sheet: Image.Image,
    corner: tuple[int, int],
    entries: list[tuple[str, tuple[int, int, int] | None]],
) -> None:
    """Labelled squares; None is the hatching."""
    draw = ImageDraw.Draw(sheet)
    font = ImageFont.load_default(12)
    left, top = corner
    for text, color in entries:
        if color is None:
            square = _hatched(Image.new("RGB", (1, 1)), torch.zeros(1, 1), (18, 12))
        else:
            square = Image.new("RGB", (18, 12), color)
        sheet.paste(square, (left + 1, top))
        draw.text((left + 24, top - 2), text, fill="black", font=font)
        left += 32 + round(draw.textlength(text, font=font)) + 6
