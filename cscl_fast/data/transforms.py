"""Resizing, augmentation and normalisation of one image and its label.

The steps in their order: resize to the data set's size, random scale and crop, mirror (image and
label alike), colour and blur (image only), normalisation. Every random choice is drawn from a
generator made from (seed, epoch, index), so neither workers, nor the order of the calls, nor a
resumed run changes a sample; the functional forms of torchvision's transforms take the drawn
values, and nothing touches a global generator.
"""

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor
from torchvision.transforms.v2 import InterpolationMode
from torchvision.transforms.v2 import functional as F

from cscl_fast.data.classes import IGNORE
from cscl_fast.data.config import DatasetConfig, Normalisation, Size
from cscl_fast.data.decoding import Bytes

_FILTERS = {"bilinear": Image.Resampling.BILINEAR, "bicubic": Image.Resampling.BICUBIC}
_MODES = {"bilinear": InterpolationMode.BILINEAR, "bicubic": InterpolationMode.BICUBIC}

# Mean and deviation of 0..255 values, in the channel order that the network sees.
_STATISTICS: dict[Normalisation, tuple[tuple[float, ...], tuple[float, ...]]] = {
    "imagenet": (
        (0.485 * 255, 0.456 * 255, 0.406 * 255),
        (0.229 * 255, 0.224 * 255, 0.225 * 255),
    ),
    "caffe": ((104.00698793, 116.66876762, 122.67891434), (1.0, 1.0, 1.0)),
    "none": ((0.0, 0.0, 0.0), (255.0, 255.0, 255.0)),
}
_TABLES = {
    name: (torch.tensor(mean).view(3, 1, 1), torch.tensor(deviation).view(3, 1, 1))
    for name, (mean, deviation) in _STATISTICS.items()
}


def resize_image(
    image: Image.Image,
    size: Size | None,  # (H, W); None keeps
    interpolation: str,  # bilinear | bicubic; antialiased
) -> Tensor:  # [3, H, W] uint8 RGB
    """A decoded image at the data set's size."""
    if size is not None and (image.height, image.width) != tuple(size):
        image = image.resize((size[1], size[0]), _FILTERS[interpolation])
    return torch.from_numpy(np.array(image)).permute(2, 0, 1)


def resize_label(label: Bytes, size: Size | None) -> Bytes:  # [H, W] uint8
    """A label map at another size: the value of the pixel under each new pixel's centre."""
    if size is None or label.shape == tuple(size):
        return label
    return np.array(Image.fromarray(label).resize((size[1], size[0]), Image.Resampling.NEAREST))


def normalise(
    image: Tensor,  # [3, H, W], 0..255 RGB, uint8 or float32
    normalisation: Normalisation,
) -> Tensor:  # [3, H, W] float32, contiguous
    """What the network sees: RGB (imagenet, none) or BGR (caffe), shifted and scaled."""
    mean, deviation = _TABLES[normalisation]
    if normalisation == "caffe":
        image = image.flip(0)
    values = image.to(torch.float32, memory_format=torch.contiguous_format, copy=True)
    return values.sub_(mean).div_(deviation)


def denormalise(
    image: Tensor,  # [..., 3, H, W] float32, normalised
    normalisation: Normalisation,
) -> Tensor:  # [..., 3, H, W] uint8 RGB
    """The inverse of `normalise`, rounded and clamped to 0..255."""
    mean, deviation = (table.to(image.device) for table in _TABLES[normalisation])
    values = (image.float() * deviation + mean).round().clamp(0, 255).to(torch.uint8)
    return values.flip(-3) if normalisation == "caffe" else values


def augment_geometry(
    image: Tensor,  # [3, H, W] uint8
    label: Tensor,  # [H, W] uint8, the same H and W
    config: DatasetConfig,
    generator: np.random.Generator,
) -> tuple[Tensor, Tensor]:
    """Random scale and crop, and mirror; image and label alike.

    Where the scaled image is smaller than the crop, the rest is padded to the right and below:
    the image with its own mean colour, the label with 255.
    """
    # All numbers are drawn in any case, so that switching one step off leaves the others alone.
    scale, top, left, mirror = generator.random(4)
    if config.scale is not None or config.crop is not None:
        low, high = config.scale or (1.0, 1.0)
        crop = config.crop or (image.shape[-2], image.shape[-1])
        image, label = _scale_and_crop(
            image, label, low + (high - low) * scale, crop, (top, left), config.interpolation
        )
    if config.mirror and mirror < 0.5:
        image, label = image.flip(-1), label.flip(-1)
    return image, label


def _scale_and_crop(
    image: Tensor,
    label: Tensor,
    scale: float,
    crop: Size,
    position: tuple[float, float],  # of the crop in the free space, 0..1
    interpolation: str,
) -> tuple[Tensor, Tensor]:
    """Cut the crop out of the unscaled image first: only what is kept gets resized."""
    box: list[tuple[int, int, int]] = []  # per axis: start, length, scaled length
    for extent, wanted, where in zip(image.shape[-2:], crop, position, strict=True):
        length = min(extent, max(1, round(wanted / scale)))
        # A region that fills the crop but for rounding becomes exactly the crop.
        scaled = wanted if length < extent else min(wanted, max(1, round(extent * scale)))
        box.append((min(int(where * (extent - length + 1)), extent - length), length, scaled))
    (top, height, new_height), (left, width, new_width) = box
    rows, columns = slice(top, top + height), slice(left, left + width)
    image, label = image[:, rows, columns], label[rows, columns]
    if (height, width) != (new_height, new_width):
        size = [new_height, new_width]
        image = F.resize(image, size, interpolation=_MODES[interpolation], antialias=True)
        label = F.resize(label[None], size, interpolation=InterpolationMode.NEAREST_EXACT)[0]
    if (new_height, new_width) != tuple(crop):
        mean = image.float().mean(dim=(1, 2)).round().to(torch.uint8)
        padded = mean.view(3, 1, 1).expand(3, *crop).clone()
        padded[:, :new_height, :new_width] = image
        ignored = torch.full(tuple(crop), IGNORE, dtype=torch.uint8)
        ignored[:new_height, :new_width] = label
        image, label = padded, ignored
    return image, label


def augment_colors(
    image: Tensor,  # [3, H, W] uint8
    config: DatasetConfig,
    generator: np.random.Generator,
) -> Tensor:  # [3, H, W] uint8; `image` itself where nothing changes
    """Brightness, contrast, saturation and hue in random order, then perhaps a blur."""
    strength = config.color_jitter
    order = generator.permutation(4)
    amounts = generator.uniform(-1.0, 1.0, 4)
    chance, sigma = generator.random(2)
    if strength > 0:
        for step in order:
            amount = float(amounts[step])
            factor = max(0.0, 1 + 0.4 * strength * amount)
            if step == 0:
                image = F.adjust_brightness(image, factor)
            elif step == 1:
                image = F.adjust_contrast(image, factor)
            elif step == 2:
                image = F.adjust_saturation(image, factor)
            else:
                image = F.adjust_hue(image, max(-0.5, min(0.5, 0.1 * strength * amount)))
    if chance < config.blur:
        image = F.gaussian_blur(image, [7, 7], [0.15 + float(sigma)] * 2)
    return image
