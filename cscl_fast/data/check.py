"""The look at a whole data set before the first step.

The headers of all files are read (missing partners, files that are no images, sizes). Then as
many pairs as `SAMPLED_PIXELS` allows, evenly spread, are decoded whole (truncated files, ids
outside the class list); with `deep=True` all are. So 690 pairs of 480x360 are decoded, all of
them, in about two seconds on one core, and 64 of GTA5's, whose decoding would take an hour.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

from cscl_fast.data.classes import IGNORE, UNKNOWN
from cscl_fast.data.config import Size
from cscl_fast.data.dataset import SegmentationDataset, same_aspect
from cscl_fast.data.decoding import decode_image, image_size
from cscl_fast.data.errors import DataError
from cscl_fast.data.layouts import Sample

SAMPLED_PIXELS = 120_000_000  # that are decoded without `deep` ...
SAMPLED_AT_LEAST = 64  # ... or this many pairs
NAMED = 5  # files that a message names


@dataclass
class DatasetReport:
    """What `check_dataset` found; `str` of it is a short table."""

    title: str
    images: int
    trained_size: Size | None  # None: the files' own
    use_labels: bool
    class_names: tuple[str, ...]
    drawn: bool = False
    labels: int = 0
    decoded: int = 0
    image_sizes: Counter[Size] = field(default_factory=Counter)
    missing_images: list[Path] = field(default_factory=list)
    missing_labels: list[Path] = field(default_factory=list)
    orphan_labels: list[Path] = field(default_factory=list)
    unreadable: dict[Path, str] = field(default_factory=dict)
    scaled_labels: int = 0  # labels of the image's shape but another size
    wrong_sizes: list[str] = field(default_factory=list)
    unknown_ids: dict[int, list[Path]] = field(default_factory=dict)
    unknown_pixels: Counter[int] = field(default_factory=Counter)
    class_pixels: npt.NDArray[np.int64] = field(default_factory=lambda: np.zeros(0, np.int64))
    ignored_pixels: int = 0

    @property
    def labelled(self) -> bool:
        """Whether label files were found and are used."""
        return self.use_labels and (self.drawn or self.labels > 0 or bool(self.missing_labels))

    def problems(self) -> list[str]:
        """One sentence for each thing that has to be put right: what, which files, what to do."""
        found = []
        if self.missing_images:
            found.append(
                f"{_count(self.missing_images, 'image')} missing: {_named(self.missing_images)}"
            )
        if self.missing_labels:
            found.append(
                f"{_count(self.missing_labels, 'label')} missing, which the images expect: "
                f"{_named(self.missing_labels)}; add them, name the complete pairs in "
                "`list_file`, or set use_labels to false"
            )
        if self.unreadable:
            reasons = list(self.unreadable.values())
            found.append(f"{len(reasons)} unreadable: " + "; ".join(reasons[:NAMED]))
        if self.wrong_sizes:
            found.append(
                f"{len(self.wrong_sizes)} labels of another shape than their images: "
                f"{_named(self.wrong_sizes)}; a label covers the whole image"
            )
        for raw, files in sorted(self.unknown_ids.items()):
            found.append(
                f"id {raw} is outside the class list ({len(self.class_names)} classes, {IGNORE} "
                f"ignored): {self.unknown_pixels[raw]:,} pixels in {_count(files, 'label')}: "
                f"{_named(files)}; map it to a class or to {IGNORE}"
            )
        return found

    def raise_if_bad(self, *, need_labels: bool = False) -> None:
        """Stop here rather than in the middle of the training.

        Raises:
            DataError: lists every problem; with `need_labels` also that there are no labels.
        """
        problems = self.problems()
        if need_labels and not self.labelled:
            why = "no label file was found" if self.use_labels else "use_labels is false"
            problems.append(f"labels are needed here, but {why}")
        if problems:
            raise DataError(
                f"{self.title} cannot be used:\n" + "\n".join(f"  - {text}" for text in problems)
            )

    def __str__(self) -> str:
        rows = [("images", self._images_row()), ("labels", self._labels_row())]
        if self.decoded:
            rows.append(("decoded", f"{self.decoded} of {self.images}"))
        total = int(self.class_pixels.sum()) + self.ignored_pixels
        if total:
            rows.append(("classes", self._classes_row(total)))
        if self.orphan_labels:
            orphans = _count(self.orphan_labels, "label")
            rows.append(("note", f"{orphans} without an image: {_named(self.orphan_labels)}"))
        problems = self.problems()
        rows += [("PROBLEM", text) for text in problems] or [("problems", "none")]
        return "\n".join([self.title] + [f"  {name:<9} {text}" for name, text in rows])

    def _images_row(self) -> str:
        sizes = [f"{h}x{w}" for (h, w), _ in self.image_sizes.most_common(3)]
        if len(self.image_sizes) > 3:
            sizes.append(f"{len(self.image_sizes) - 3} more sizes")
        text = str(self.images) + (" drawn" if self.drawn else "")
        text += f", {', '.join(sizes)} (HxW)" if sizes else ""
        if self.trained_size is not None and set(self.image_sizes) != {self.trained_size}:
            text += f", used at {self.trained_size[0]}x{self.trained_size[1]}"
        return text

    def _labels_row(self) -> str:
        if not self.use_labels:
            return "not used"
        if not self.labelled:
            return "none (unlabelled)"
        if self.drawn:
            return str(self.images)
        scaled = f", {self.scaled_labels} of another size than their image"
        return str(self.labels) + (scaled if self.scaled_labels else "")

    def _classes_row(self, total: int) -> str:
        shares = [
            f"{name} {100 * int(pixels) / total:.1f} %"
            for name, pixels in zip(self.class_names, self.class_pixels, strict=True)
            if pixels
        ]
        shares.append(f"ignored {100 * self.ignored_pixels / total:.1f} %")
        unseen = [n for n, p in zip(self.class_names, self.class_pixels, strict=True) if not p]
        return ", ".join(shares) + (f"; not seen: {', '.join(unseen)}" if unseen else "")


class _Header(NamedTuple):
    image: Size | DataError | None  # None: no such file
    label: Size | DataError | None


class _Content(NamedTuple):
    errors: list[tuple[Path, DataError]]
    id_pixels: npt.NDArray[np.int64] | None  # [256] pixels of each raw id


def check_dataset(dataset: SegmentationDataset, *, deep: bool = False) -> DatasetReport:
    """Look at every file of a data set; finds problems, raises nothing.

    Args:
        deep: decode every file to the last pixel, not a sample of 120 million pixels.
    """
    config = dataset.config
    where = "drawn scenes" if config.kind == "scenes" else f"{config.kind} {config.root}"
    city = f", {config.city}" if config.city else ""
    look = f", look {config.look}" if config.kind == "scenes" else ""
    assert not isinstance(config.size, str)
    report = DatasetReport(
        title=f"{where}{city}{look}, split {config.split or 'all'}",
        images=len(dataset),
        trained_size=config.size,
        use_labels=config.use_labels,
        class_names=dataset.classes.names,
        drawn=config.kind == "scenes",
        orphan_labels=list(dataset.orphan_labels),
        class_pixels=np.zeros(dataset.classes.num_classes, np.int64),
    )
    if report.drawn:
        return report
    # Decoders and file systems work outside Python's lock; the order of the answers is kept.
    with ThreadPoolExecutor(min(8, os.cpu_count() or 1)) as pool:
        for sample, header in zip(
            dataset.samples, pool.map(_read_header, dataset.samples), strict=True
        ):
            _note_header(report, sample, header)
        chosen = _spread(len(dataset), len(dataset) if deep else _affordable(report))
        for index, content in zip(
            chosen, pool.map(lambda i: _read_content(dataset, i), chosen), strict=True
        ):
            _note_content(report, dataset, index, content)
    return report


def _affordable(report: DatasetReport) -> int:
    """How many pairs to decode without `deep`, by the headers' sizes."""
    pixels = sum(height * width * n for (height, width), n in report.image_sizes.items())
    readable = max(1, report.image_sizes.total())
    return max(SAMPLED_AT_LEAST, SAMPLED_PIXELS * readable // max(1, pixels))


def _spread(length: int, count: int) -> list[int]:
    """`count` indices, evenly spread, the first and the last among them."""
    if count >= length:
        return list(range(length))
    chosen: list[int] = np.linspace(0, length - 1, count).round().astype(int).tolist()
    return chosen


def _read_header(sample: Sample) -> _Header:
    def size(path: Path | None, what: str) -> Size | DataError | None:
        if path is None or not path.exists():
            return None
        try:
            return image_size(path, what)
        except DataError as error:
            return error

    return _Header(size(sample.image, "image"), size(sample.label, "label"))


def _note_header(report: DatasetReport, sample: Sample, header: _Header) -> None:
    if header.image is None:
        report.missing_images.append(sample.image)
    elif isinstance(header.image, DataError):
        report.unreadable[sample.image] = str(header.image)
    else:
        report.image_sizes[header.image] += 1
    if sample.label is None:
        return
    if header.label is None:
        report.missing_labels.append(sample.label)
        return
    report.labels += 1
    if isinstance(header.label, DataError):
        report.unreadable[sample.label] = str(header.label)
    elif isinstance(header.image, tuple) and header.image != header.label:
        if same_aspect(header.image, header.label):
            report.scaled_labels += 1
        else:
            (h, w), (label_h, label_w) = header.image, header.label
            report.wrong_sizes.append(f"{sample.label} ({label_h}x{label_w}, image {h}x{w})")


def _read_content(dataset: SegmentationDataset, index: int) -> _Content:
    sample = dataset.samples[index]
    errors: list[tuple[Path, DataError]] = []
    id_pixels = None
    if sample.image.exists():
        try:
            decode_image(sample.image)
        except DataError as error:
            errors.append((sample.image, error))
    if sample.label is not None and sample.label.exists():
        try:
            raw = dataset.read_raw_label(index)
            assert raw is not None
            id_pixels = np.bincount(raw.ravel(), minlength=256)
        except DataError as error:
            errors.append((sample.label, error))
    return _Content(errors, id_pixels)


def _note_content(
    report: DatasetReport, dataset: SegmentationDataset, index: int, content: _Content
) -> None:
    report.decoded += 1
    for path, error in content.errors:
        report.unreadable.setdefault(path, str(error))
    if content.id_pixels is None:
        return
    label = dataset.samples[index].label
    assert label is not None
    for raw in np.flatnonzero(content.id_pixels).tolist():
        pixels, class_index = int(content.id_pixels[raw]), int(dataset.id_table[raw])
        if class_index == UNKNOWN:
            report.unknown_ids.setdefault(raw, []).append(label)
            report.unknown_pixels[raw] += pixels
        elif class_index == IGNORE:
            report.ignored_pixels += pixels
        else:
            report.class_pixels[class_index] += pixels


def _count(items: Sequence[object], noun: str) -> str:
    return f"{len(items)} {noun}{'' if len(items) == 1 else 's'}"


def _named(items: Sequence[object]) -> str:
    more = len(items) - NAMED
    return ", ".join(str(item) for item in items[:NAMED]) + (f", {more} more" if more > 0 else "")
