"""The data set that training, evaluation and prediction read.

dataset = open_dataset(DatasetConfig(kind="folder", root=Path("mine")), training=True)
sample = dataset[0]  # image, clean, label, name, path, index
"""

from __future__ import annotations

import os
from concurrent.futures import ThreadPoolExecutor
from functools import cached_property, partial
from pathlib import Path
from typing import TypedDict

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.utils.data import Dataset

from cscl_fast.data import transforms
from cscl_fast.data.cache import (
    Cache,
    Decoded,
    DiskCache,
    NoCache,
    RamCache,
    content_of,
    default_folder,
)
from cscl_fast.data.classes import (
    IGNORE,
    UNKNOWN,
    ClassList,
    folder_classes,
    published_classes,
    published_id_table,
)
from cscl_fast.data.config import DEFAULT_SIZES, PUBLISHED, DatasetConfig, Size
from cscl_fast.data.decoding import (
    Bytes,
    decode_first_channel,
    decode_image,
    decode_label,
    image_size,
)
from cscl_fast.data.errors import DataError
from cscl_fast.data.layouts import Sample, list_samples

# Evaluation scenes are drawn from here on, training scenes from 0.
FIRST_EVALUATION_SCENE = 1_000_000
# Height / width of an image and its label may differ by this much (GTA5 has such files).
ASPECT_TOLERANCE = 0.02


class SampleDict(TypedDict):
    """What `dataset[i]` returns."""

    image: Tensor  # [3, H, W] float32, normalised, augmented when training
    clean: Tensor  # [3, H, W] float32, the same without colour and blur
    label: Tensor  # [H, W] int64 class indices, 255 ignored
    name: str
    path: str
    index: int


class SegmentationDataset(Dataset[SampleDict]):
    """Images with labels of one class list; see `open_dataset`."""

    def __init__(
        self,
        config: DatasetConfig,  # resolved
        classes: ClassList,
        id_table: npt.NDArray[np.uint8],  # [256] raw id → class index, 255 ignored, 254 unknown
        samples: list[Sample],
        orphan_labels: list[Path],
        *,
        training: bool,
        seed: int,
    ) -> None:
        self.config = config
        self.classes = classes
        self.id_table = id_table
        self.samples = samples
        self.orphan_labels = orphan_labels
        self.training = training
        self.seed = seed
        self.epoch = 0
        self._cache = self._make_cache()

    @property
    def has_labels(self) -> bool:
        """Whether the split has label files (drawn scenes always have labels)."""
        if self.config.kind == "scenes":
            return self.config.use_labels
        return any(sample.label is not None for sample in self.samples)

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def file_sizes(self) -> list[Size] | None:
        """(H, W) of each sample's image file, where samples keep them; None: they have one size.

        Raises:
            DataError: a header cannot be read; names the file.
        """
        if self.config.size is not None or (self.training and self.config.crop is not None):
            return None
        with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
            return list(pool.map(image_size, (sample.image for sample in self.samples)))

    def batch_of(self, wanted: int) -> int:
        """`wanted`, or 1 where the images differ in size and cannot be stacked."""
        differ = wanted > 1 and self.file_sizes is not None and len(set(self.file_sizes)) > 1
        return 1 if differ else wanted

    def set_epoch(self, epoch: int) -> None:
        """The augmentation's epoch for plain indices; `dataset[(epoch, index)]` overrides it."""
        self.epoch = epoch

    def __getitem__(self, key: int | tuple[int, int]) -> SampleDict:
        """One sample, by index or by (epoch, index); the answer depends on nothing else.

        Raises:
            IndexError: the index is out of range.
            DataError: a file is missing, unreadable or does not fit; names it.
        """
        epoch, index = key if isinstance(key, tuple) else (self.epoch, key)
        index = range(len(self.samples))[index]
        sample = self.samples[index]
        pixels, raw_label = self._read(index)
        label = torch.from_numpy(raw_label)
        colored = pixels
        if self.training:
            generator = np.random.default_rng([self.seed, epoch, index])
            pixels, label = transforms.augment_geometry(pixels, label, self.config, generator)
            colored = transforms.augment_colors(pixels, self.config, generator)
        clean = transforms.normalise(pixels, self.config.normalisation)
        image = clean
        if colored is not pixels:
            image = transforms.normalise(colored, self.config.normalisation)
        return {
            "image": image,
            "clean": clean,
            "label": label.to(torch.int64),
            "name": sample.name,
            "path": str(sample.image),
            "index": index,
        }

    def denormalise(self, image: Tensor) -> Tensor:
        """The picture, [..., 3, H, W] uint8 RGB, of a normalised image."""
        return transforms.denormalise(image, self.config.normalisation)

    def preload(self) -> None:
        """Fill the cache (with `cache: ram`, and for scenes), so that forked workers share it."""
        if isinstance(self._cache, RamCache):
            # Decoders work outside Python's lock; the drawing does not.
            threads = 1 if self.config.kind == "scenes" else min(8, os.cpu_count() or 1)
            with ThreadPoolExecutor(threads) as pool:
                for _ in pool.map(self._read, range(len(self))):
                    pass

    def share_cache(self, other: SegmentationDataset) -> None:
        """Use another data set's cache, if it keeps the same: as the target's, twice opened."""
        one, two = self._cache, other._cache
        if type(one) is type(two) and one.content == two.content and self.samples == other.samples:
            self._cache = two

    def read_raw_label(self, index: int) -> Bytes | None:  # [H, W] uint8
        """The raw ids of a label file as they stand in it; None without a label file.

        Raises:
            DataError: the file is missing, unreadable or not a label map.
        """
        label = self.samples[index].label
        if label is None:
            return None
        return decode_first_channel(label) if self.config.kind == "synthia" else decode_label(label)

    def _make_cache(self) -> Cache:
        config = self.config
        assert config.size != "default"
        if config.label_size is None:
            as_image = all(sample.label is None for sample in self.samples)  # 255 everywhere
        else:
            as_image = config.label_size == config.size
        content = content_of(
            config.kind,
            config.size,
            config.interpolation,
            "image" if as_image or self.training else config.label_size,
            self.id_table,
        )
        if config.kind == "scenes":  # quickly drawn, and from no file that could tell its age
            content |= {"scene_seed": config.scene_seed, "use_labels": config.use_labels}
            return RamCache(content, len(self))
        if config.cache == "ram":
            return RamCache(content, len(self))
        if config.cache == "disk":
            return DiskCache(config.cache_folder or default_folder(), content, self.samples)
        return NoCache(content)

    def _read(self, index: int) -> Decoded:
        """Image [3,H,W] uint8 and label [H',W'] uint8, resized, before any augmentation.

        H', W' are H, W in training; the label's evaluation size else. Never written to.
        """
        make = self._draw if self.config.kind == "scenes" else self._decode
        return self._cache.read(index, partial(make, index))

    def _decode(self, index: int) -> Decoded:
        config, sample = self.config, self.samples[index]
        assert config.size != "default"
        picture = decode_image(sample.image)
        file_size = (picture.height, picture.width)
        image = transforms.resize_image(picture, config.size, config.interpolation)
        own_size = (image.shape[1], image.shape[2])
        label_size = own_size if self.training else config.label_size
        raw = self.read_raw_label(index)
        if raw is None:
            return image, np.full(label_size or own_size, IGNORE, np.uint8)
        if not same_aspect(file_size, (raw.shape[0], raw.shape[1])):
            raise DataError(
                f"label {sample.label} is {raw.shape[0]}x{raw.shape[1]} (HxW), but its image "
                f"{sample.image} is {file_size[0]}x{file_size[1]}; one of them is the wrong file"
            )
        label = self.id_table[transforms.resize_label(raw, label_size)]
        if (label == UNKNOWN).any():
            ids = np.unique(raw)
            unknown = ", ".join(str(i) for i in ids[self.id_table[ids] == UNKNOWN])
            raise DataError(
                f"label {sample.label} has ids outside the class list: {unknown}; "
                f"{self.classes.num_classes} classes and {IGNORE} (ignored) are known: "
                "map these ids to classes or to 255"
            )
        return image, label

    def _draw(self, index: int) -> Decoded:
        from cscl_fast.scenes import draw_scene

        config = self.config
        assert isinstance(config.size, tuple)
        number = int(self.samples[index].name.rsplit("_", 1)[1])
        image, label = draw_scene(config.scene_seed, number, config.look, config.size)
        if not config.use_labels:
            label = np.full_like(label, IGNORE)
        elif not self.training:
            label = transforms.resize_label(label, config.label_size)
        # Copies: tensors want arrays that may be written to.
        return torch.from_numpy(np.array(image)).permute(2, 0, 1), np.array(label)


def same_aspect(a: tuple[int, int], b: tuple[int, int]) -> bool:
    """Whether two (H, W) have one shape but for scale and rounding."""
    return abs(a[0] * b[1] / (a[1] * b[0]) - 1) <= ASPECT_TOLERANCE


def open_dataset(config: DatasetConfig, *, training: bool, seed: int = 0) -> SegmentationDataset:
    """Find the files of a data set and say how samples are made of them.

    Args:
        config: what and where; checked here.
        training: augment, and give labels of the image's size. False: no augmentation, labels
            at `label_size`, or their files' own size.
        seed: of the augmentation.

    Raises:
        ValueError: the configuration has a value that cannot work; names the key.
        DataError: a folder, a list or classes.json is missing or wrong; says what was expected.
    """
    config = config.resolved()
    if seed < 0:
        raise ValueError(f"seed is {seed}; it is 0 or more")
    if config.kind == "scenes":
        return _open_scenes(config, training=training, seed=seed)
    assert config.root is not None
    if config.kind in PUBLISHED:
        classes = published_classes(config.classes)
        table = published_id_table(config.kind, config.classes)
        listing = list_samples(config)
    else:
        listing = list_samples(config)
        classes, table = folder_classes(Path(config.root) / "classes.json")
    return SegmentationDataset(
        config,
        classes,
        table,
        listing.samples,
        listing.orphan_labels,
        training=training,
        seed=seed,
    )


def _open_scenes(config: DatasetConfig, *, training: bool, seed: int) -> SegmentationDataset:
    from cscl_fast.scenes import SCENE_CLASS_COLORS, SCENE_CLASS_NAMES

    first = 0 if config.split in ("", "train") else FIRST_EVALUATION_SCENE
    names = [
        f"{config.look}_{first + i:07d}"
        for i in range(min(config.count, config.limit or config.count))
    ]
    classes = ClassList(SCENE_CLASS_NAMES, SCENE_CLASS_COLORS)
    return SegmentationDataset(
        config,
        classes,
        np.arange(256, dtype=np.uint8),
        [Sample(name, Path(f"drawn scene {name}"), None) for name in names],
        [],
        training=training,
        seed=seed,
    )


def load_image(path: Path | str, config: DatasetConfig) -> Tensor:  # [3, H, W] float32
    """One image, resized and normalised as the configuration says, without augmentation.

    Raises:
        DataError: the file is missing, truncated or no image.
    """
    size = DEFAULT_SIZES[config.kind] if isinstance(config.size, str) else config.size
    image = transforms.resize_image(decode_image(Path(path)), size, config.interpolation)
    return transforms.normalise(image, config.normalisation)
