"""Where each data set keeps its files: from a configuration to a list of samples.

A layout lists the images and says where the label of each should be; whether the files can be
read is seen later, by `check_dataset` or when they are read.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np

from cscl_fast.data.config import DatasetConfig
from cscl_fast.data.decoding import IMAGE_SUFFIXES
from cscl_fast.data.errors import DataError

NTHU_CITIES = ("Rio", "Rome", "Taipei", "Tokyo")


class Sample(NamedTuple):
    """One image and where its label should be; None where the split has no labels at all."""

    name: str  # unique in the data set: the path below the images' folder, without suffix
    image: Path
    label: Path | None


@dataclass
class Listing:
    """The samples of one split, and the label files that no image asks for."""

    samples: list[Sample]
    orphan_labels: list[Path] = field(default_factory=list)


def list_images(folder: Path) -> list[Path]:
    """All image files below a folder, sorted by path; hidden files are left out.

    Raises:
        DataError: the folder is missing or holds no image.
    """
    folder = Path(folder)
    images = _files(require_folder(folder, "the images' folder"), IMAGE_SUFFIXES)
    if not images:
        raise DataError(f"{folder} holds no image ({', '.join(IMAGE_SUFFIXES)})")
    return images


def require_folder(folder: Path, what: str) -> Path:
    """The folder, or a DataError that shows the nearest existing one and what is in it."""
    if folder.is_dir():
        return folder
    if folder.exists():
        raise DataError(f"{what} is expected to be a folder, but {folder} is a file")
    nearest = folder.absolute().parent
    while not nearest.is_dir():
        nearest = nearest.parent
    inside = sorted(p.name + ("/" if p.is_dir() else "") for p in nearest.iterdir())
    shown = ", ".join(inside[:8]) + (", ..." if len(inside) > 8 else "")
    raise DataError(
        f"{what} is missing: {folder}; the nearest folder that exists is {nearest}, "
        + (f"which holds {shown}" if inside else "which is empty")
    )


def list_samples(config: DatasetConfig) -> Listing:
    """Images and expected labels of the configured split, sorted by name.

    Raises:
        DataError: a folder is missing, or no image is found.
    """
    assert config.root is not None  # config.validate() has seen to it
    require_folder(Path(config.root), f"the folder of the {config.kind} data set (`root`)")
    listing = _LAYOUTS[config.kind](config, Path(config.root))
    if config.list_file is not None:
        listing = _only_listed(listing, Path(config.list_file))
    if config.limit is not None and config.limit < len(listing.samples):
        kept = np.linspace(0, len(listing.samples) - 1, config.limit).round().astype(int)
        listing = Listing([listing.samples[i] for i in kept], listing.orphan_labels)
    if not config.use_labels:
        listing = Listing([sample._replace(label=None) for sample in listing.samples])
    return listing


def _folder(config: DatasetConfig, root: Path) -> Listing:
    images = require_folder(root / "images", "the images' folder")
    if config.split and not (images / config.split).is_dir():
        splits = sorted(p.name for p in images.iterdir() if p.is_dir())
        advice = (
            f"the splits are {', '.join(splits)}"
            if splits
            else 'the images lie without splits: set split to ""'
        )
        raise DataError(f"{images} has no split {config.split!r} ({config.split}/); {advice}")
    return _pair(images / config.split, root / "labels" / config.split)


def _gta5(config: DatasetConfig, root: Path) -> Listing:
    _require_whole(config)
    return _pair(require_folder(root / "images", "GTA5's images"), root / "labels")


def _synthia(config: DatasetConfig, root: Path) -> Listing:
    _require_whole(config)
    return _pair(require_folder(root / "RGB", "SYNTHIA's images"), root / "GT" / "LABELS")


def _require_whole(config: DatasetConfig) -> None:
    if config.split not in ("", "all", "train") and config.list_file is None:
        raise DataError(
            f"{config.kind} is published in one folder, without a split {config.split!r}; "
            "set split to train for all of it, or name the images in `list_file`"
        )


def _cityscapes(config: DatasetConfig, root: Path) -> Listing:
    parts = [part for part in (config.split, config.city) if part]
    if config.city and not config.split:
        raise DataError(f"city is {config.city}, which needs a split: train, val or test")
    images = require_folder(root.joinpath("leftImg8bit", *parts), "Cityscapes' images")
    labels = root.joinpath("gtFine", *parts)
    return _pair(images, labels, "_leftImg8bit", "_gtFine_labelIds")


def _nthu(config: DatasetConfig, root: Path) -> Listing:
    if config.city is None:
        raise DataError(f"city is not set; NTHU has {', '.join(NTHU_CITIES)}")
    cities = {name.lower(): name for name in NTHU_CITIES}
    city = root / cities.get(config.city.lower(), config.city)
    require_folder(city, f"NTHU's city {config.city}")
    split = config.split.lower()
    if split == "val":  # the labelled images are called "Test"
        split = "test"
    if split not in ("train", "test"):
        raise DataError(f"split is {config.split!r}; NTHU has train (no labels) and test")
    folder = split.capitalize()
    images = require_folder(city / "Images" / folder, "NTHU's images")
    listing = _pair(images, city / "Labels" / folder, "", "_eval")
    names = city / "List" / f"{split}.txt"
    return _only_listed(listing, names) if names.is_file() else listing


_LAYOUTS: dict[str, Callable[[DatasetConfig, Path], Listing]] = {
    "folder": _folder,
    "gta5": _gta5,
    "cityscapes": _cityscapes,
    "synthia": _synthia,
    "nthu": _nthu,
}


def _files(folder: Path, suffixes: Iterable[str]) -> list[Path]:
    """Files below a folder, sorted; hidden ones (also `._x.png` of some archives) left out."""
    wanted = tuple(suffixes)
    return sorted(
        path
        for path in folder.rglob("*")
        if path.suffix.lower() in wanted and not path.name.startswith(".")
    )


def _pair(images: Path, labels: Path, image_ending: str = "", label_ending: str = "") -> Listing:
    """Pair by the path below both folders, without suffix and ending.

    A split without any label file is unlabelled: its samples expect none.
    """
    found: dict[str, Path] = {}
    for path in _files(images, IMAGE_SUFFIXES):
        if not path.stem.endswith(image_ending):
            continue
        name = _name(path, images, image_ending)
        if name in found:
            raise DataError(
                f"{found[name]} and {path} have one name; images pair by name: keep one"
            )
        found[name] = path
    if not found:
        ending = f" whose name ends in {image_ending}" if image_ending else ""
        raise DataError(f"{images} holds no image{ending} ({', '.join(IMAGE_SUFFIXES)})")
    partners = {
        _name(path, labels, label_ending): path
        for path in (_files(labels, (".png",)) if labels.is_dir() else [])
        if path.stem.endswith(label_ending)
    }
    labelled = bool(partners)
    samples = []
    for name, path in sorted(found.items()):
        expected = labels / f"{name}{label_ending}.png"
        samples.append(Sample(name, path, partners.pop(name, expected) if labelled else None))
    return Listing(samples, sorted(partners.values()))


def _name(path: Path, folder: Path, ending: str) -> str:
    name = path.relative_to(folder).with_suffix("").as_posix()
    return name[: len(name) - len(ending)]


def _only_listed(listing: Listing, file: Path) -> Listing:
    """The samples that a text file names: by name, file name or a path that ends in either.

    The first word of each line counts; so `images/00001.png 00001_label.png` names 00001.
    """
    if not file.is_file():
        raise DataError(f"list file {file} is missing")
    known: dict[str, list[Sample]] = {}
    for sample in listing.samples:
        for key in {sample.name, sample.name.rsplit("/", 1)[-1], sample.image.stem}:
            known.setdefault(key, []).append(sample)
    kept: set[Sample] = set()
    missing: list[str] = []
    for line in file.read_text(encoding="utf-8").splitlines():
        if not line.strip():
            continue
        entry = line.split()[0].replace("\\", "/")
        if entry.lower().endswith(IMAGE_SUFFIXES):
            entry = entry.rsplit(".", 1)[0]
        matches = known.get(entry) or known.get(entry.rsplit("/", 1)[-1]) or []
        if len(matches) > 1:
            raise DataError(
                f"{file} names {entry}, which may be {matches[0].name} or {matches[1].name}; "
                "give the path below the images' folder"
            )
        kept.update(matches)
        if not matches:
            missing.append(entry)
    if missing:
        raise DataError(
            f"{len(missing)} of the images that {file} names are missing: "
            f"{', '.join(missing[:5])}{', ...' if len(missing) > 5 else ''}"
        )
    if not kept:
        raise DataError(f"list file {file} names no image")
    return Listing(sorted(kept))
