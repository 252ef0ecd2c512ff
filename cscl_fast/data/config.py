"""What a data set is: where it lies, how large its images become, how it is augmented."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal

Kind = Literal["scenes", "folder", "gta5", "cityscapes", "synthia", "nthu"]
Normalisation = Literal["imagenet", "caffe", "none"]
Size = tuple[int, int]  # (H, W) pixels

KINDS: tuple[Kind, ...] = ("scenes", "folder", "gta5", "cityscapes", "synthia", "nthu")
PUBLISHED: tuple[Kind, ...] = ("gta5", "cityscapes", "synthia", "nthu")

# The sizes that the field trains at; None keeps the files' own.
DEFAULT_SIZES: dict[Kind, Size | None] = {
    "scenes": (128, 256),
    "folder": None,
    "gta5": (720, 1280),
    "cityscapes": (512, 1024),
    "synthia": (760, 1280),
    "nthu": (512, 1024),
}


@dataclass
class DatasetConfig:
    """One data set; the same type describes source, target and evaluation."""

    kind: Kind = "scenes"
    """Layout of the files; "scenes" are drawn and need none."""
    root: Path | None = None
    """Folder of the data set."""
    split: str = "train"
    """Split: a subfolder of `folder`, or train | val | test as published; "" takes everything."""
    city: str | None = None
    """NTHU: the city (Rio, Rome, Taipei, Tokyo). Cityscapes: only this city, if given."""
    list_file: Path | None = None
    """Text file with one image name a line: only these images are used."""
    classes: int = 19
    """Classes of a published data set: 19, 16 or 13."""
    use_labels: bool = True
    """False: label files are never opened and every pixel is ignored."""
    limit: int | None = None
    """At most this many images, evenly spread over the sorted list."""

    size: Size | Literal["default"] | None = "default"
    """(H, W) of the resized images; "default": as the field does for this kind; None: keep."""
    label_size: Size | None = None
    """Evaluation only: (H, W) of the labels; None: the label files' own size."""
    interpolation: Literal["bilinear", "bicubic"] = "bicubic"
    """Of the images, always antialiased. Labels are resized to the nearest."""
    normalisation: Normalisation = "imagenet"
    """imagenet: RGB, mean and deviation. caffe: BGR, 0 to 255, mean subtracted. none: 0 to 1."""
    cache: Literal["none", "ram", "disk"] = "none"
    """Keep the decoded and resized images, 4 bytes a pixel, in memory or in files."""
    cache_folder: Path | None = None
    """Where cache "disk" keeps its files; None: the user's cache folder."""

    mirror: bool = True
    """Training: mirror every other image."""
    scale: tuple[float, float] | None = None
    """Training: random scale, then a crop back to `crop` (or to the image's size)."""
    crop: Size | None = None
    """Training: (H, W) of a random crop; smaller images are padded, labels with 255."""
    color_jitter: float = 0.0
    """Training: strength; 1 is brightness, contrast, saturation ±40 %, hue ±10 %."""
    blur: float = 0.0
    """Training: probability of a Gaussian blur, sigma 0.15 to 1.15 pixels."""

    look: Literal["synthetic", "real"] = "synthetic"
    """Scenes: the flat source look or the textured target look."""
    count: int = 300
    """Scenes: how many are drawn."""
    scene_seed: int = 0
    """Scenes: seed of the drawing."""

    def resolved(self) -> DatasetConfig:
        """The checked configuration with `size` as a pair or None.

        Raises:
            ValueError: names the key, what it holds and what it needs.
        """
        self.validate()
        return replace(self, size=DEFAULT_SIZES[self.kind]) if self.size == "default" else self

    def validate(self, option: str = "kind") -> None:
        """Refuse values that cannot work; says nothing about files.

        Args:
            option: what to give `folder` where files are named and the kind reads none.

        Raises:
            ValueError: names the key, what it holds and what it needs.
        """
        if self.kind not in KINDS:
            raise ValueError(f"kind is {self.kind!r}; it is one of {', '.join(KINDS)}")
        if self.kind != "scenes" and self.root is None:
            raise ValueError(f"root is not set; kind {self.kind!r} needs the data set's folder")
        for key in ("root", "list_file", "city"):
            if self.kind == "scenes" and getattr(self, key) is not None:
                raise ValueError(
                    f"{key} is {getattr(self, key)}, but kind is 'scenes', which are drawn and "
                    f"read no files; for data of your own give {option} folder"
                )
        if self.kind in PUBLISHED and self.classes not in (19, 16, 13):
            raise ValueError(f"classes is {self.classes}; kind {self.kind!r} has 19, 16 or 13")
        if isinstance(self.size, str) and self.size != "default":
            raise ValueError(f'size is {self.size!r}; it is (H, W), None or "default"')
        for key in ("size", "label_size", "crop"):
            value = getattr(self, key)
            if value is None or value == "default":
                continue
            if len(value) != 2 or min(value) < 1:
                raise ValueError(f"{key} is {value}; it is (H, W), both positive")
        if self.scale is not None and not 0 < self.scale[0] <= self.scale[1]:
            raise ValueError(f"scale is {self.scale}; it is (lowest, highest), both positive")
        if not 0 <= self.color_jitter <= 2:
            raise ValueError(f"color_jitter is {self.color_jitter}; it is between 0 and 2")
        if not 0 <= self.blur <= 1:
            raise ValueError(f"blur is {self.blur}; it is a probability, between 0 and 1")
        for key in ("limit", "count"):
            value = getattr(self, key)
            if value is not None and value < 1:
                raise ValueError(f"{key} is {value}; it is at least 1")
        for key, allowed in (
            ("normalisation", ("imagenet", "caffe", "none")),
            ("interpolation", ("bilinear", "bicubic")),
            ("cache", ("none", "ram", "disk")),
            ("look", ("synthetic", "real")),
        ):
            if getattr(self, key) not in allowed:
                raise ValueError(
                    f"{key} is {getattr(self, key)!r}; it is one of {', '.join(allowed)}"
                )
