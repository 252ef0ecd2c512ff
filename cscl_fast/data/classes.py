"""Class lists, and the maps from the ids in published label files to class indices.

An id map is a look-up table with one entry for each of the 256 values that a label file can
hold. It is filled from the class list, entry by entry and never by rewriting a label map in
place, so neither the order of the table nor chains such as 7→0, 8→1 ... 0→255 can matter.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from cscl_fast.data.errors import DataError

IGNORE = 255
UNKNOWN = 254  # what an id map holds for an id that a label file should not contain
MAX_CLASSES = 254  # 254 and 255 are taken
# The columns that the tables of runs and studies have beside one for each class.
RESERVED_NAMES = frozenset(
    ("phase", "epoch", "step", "row", "portion", "mIoU", "mIoU*", "weights", "seed")
)

Color = tuple[int, int, int]


@dataclass(frozen=True)
class ClassList:
    """Names and colours of the classes, in the order of their indices.

    Raises:
        ValueError: no class, more than 254, two of one name, or a colour that is not RGB.
    """

    names: tuple[str, ...]
    colors: tuple[Color, ...]  # RGB, 0..255
    ignore: int = IGNORE  # the label of pixels that count nowhere

    def __post_init__(self) -> None:
        object.__setattr__(self, "names", tuple(str(name) for name in self.names))
        object.__setattr__(self, "colors", tuple(_checked_color(c) for c in self.colors))
        if not 1 <= len(self.names) <= MAX_CLASSES:
            raise ValueError(f"a class list has 1 to {MAX_CLASSES} names, not {len(self.names)}")
        if len(self.colors) != len(self.names):
            raise ValueError(
                f"{len(self.names)} class names, {len(self.colors)} colors; every class needs one"
            )
        twice = sorted({name for name in self.names if self.names.count(name) > 1})
        if twice:
            raise ValueError(f"class names must differ; given more than once: {', '.join(twice)}")

    @property
    def num_classes(self) -> int:
        return len(self.names)

    def palette(self) -> npt.NDArray[np.uint8]:
        """RGB of every label value, [256, 3] uint8; values without a class are black."""
        table = np.zeros((256, 3), np.uint8)
        table[: self.num_classes] = self.colors
        return table

    def subset(self, indices: Sequence[int]) -> ClassList:
        """The classes with these indices, in this order."""
        return ClassList(
            tuple(self.names[i] for i in indices), tuple(self.colors[i] for i in indices)
        )


def _checked_color(color: Iterable[int]) -> Color:
    values = tuple(color)
    if len(values) != 3 or not all(isinstance(v, (int, np.integer)) for v in values):
        raise ValueError(f"a color is three whole numbers (red, green, blue), not {values}")
    if not all(0 <= v <= 255 for v in values):
        raise ValueError(f"a color has values from 0 to 255, not {values}")
    return (int(values[0]), int(values[1]), int(values[2]))


_CITYSCAPES: tuple[tuple[str, Color], ...] = (
    ("road", (128, 64, 128)),
    ("sidewalk", (244, 35, 232)),
    ("building", (70, 70, 70)),
    ("wall", (102, 102, 156)),
    ("fence", (190, 153, 153)),
    ("pole", (153, 153, 153)),
    ("traffic light", (250, 170, 30)),
    ("traffic sign", (220, 220, 0)),
    ("vegetation", (107, 142, 35)),
    ("terrain", (152, 251, 152)),
    ("sky", (70, 130, 180)),
    ("person", (220, 20, 60)),
    ("rider", (255, 0, 0)),
    ("car", (0, 0, 142)),
    ("truck", (0, 0, 70)),
    ("bus", (0, 60, 100)),
    ("train", (0, 80, 100)),
    ("motorcycle", (0, 0, 230)),
    ("bicycle", (119, 11, 32)),
)

# Which of the 19 train ids a class list keeps. SYNTHIA has no terrain, truck and train; its
# 13-class score also leaves out wall, fence and pole, which gives the 13 classes of NTHU.
_KEPT: dict[int, tuple[int, ...]] = {
    19: tuple(range(19)),
    16: (0, 1, 2, 3, 4, 5, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18),
    13: (0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18),
}

CITYSCAPES_19 = ClassList(
    tuple(name for name, _ in _CITYSCAPES), tuple(color for _, color in _CITYSCAPES)
)
SYNTHIA_16 = CITYSCAPES_19.subset(_KEPT[16])
NTHU_13 = CITYSCAPES_19.subset(_KEPT[13])

# Raw id → one of the 19 train ids. Cityscapes, GTA5 and NTHU number their classes alike.
CITYSCAPES_IDS: dict[int, int] = {
    7: 0, 8: 1, 11: 2, 12: 3, 13: 4, 17: 5, 19: 6, 20: 7, 21: 8, 22: 9,
    23: 10, 24: 11, 25: 12, 26: 13, 27: 14, 28: 15, 31: 16, 32: 17, 33: 18,
}  # fmt: skip
SYNTHIA_IDS: dict[int, int] = {
    3: 0, 4: 1, 2: 2, 21: 3, 5: 4, 7: 5, 15: 6, 9: 7, 6: 8, 1: 10,
    10: 11, 17: 12, 8: 13, 19: 15, 12: 17, 11: 18,
}  # fmt: skip

_RAW_IDS: dict[str, tuple[dict[int, int], range]] = {
    # Every id up to the last one is published: those without a train id are void classes.
    "gta5": (CITYSCAPES_IDS, range(35)),
    "cityscapes": (CITYSCAPES_IDS, range(35)),
    "nthu": (CITYSCAPES_IDS, range(35)),
    "synthia": (SYNTHIA_IDS, range(23)),
}


def published_classes(number: int) -> ClassList:
    """The list of 19, 16 or 13 classes that the published data sets are scored with."""
    if number not in _KEPT:
        raise ValueError(f"classes is {number}; the published data sets have 19, 16 or 13")
    return CITYSCAPES_19.subset(_KEPT[number])


def thirteen_of_sixteen() -> tuple[int, ...]:
    """Indices, in the 16 classes of SYNTHIA, of the 13 that "mIoU*" averages."""
    return tuple(_KEPT[16].index(train_id) for train_id in _KEPT[13])


def id_table(
    mapping: Mapping[int, int],  # raw id → class index
    ignored: Iterable[int] = (),  # raw ids that become 255
) -> npt.NDArray[np.uint8]:  # [256]
    """Look-up table from raw ids to class indices; raw 255 is ignored, all others unknown.

    Raises:
        ValueError: an id or index is out of range, or an id is both mapped and ignored.
    """
    table = np.full(256, UNKNOWN, np.uint8)
    table[IGNORE] = IGNORE
    for raw in ignored:
        if not 0 <= raw <= 255:
            raise ValueError(f"ignored id {raw} does not fit in 8 bits")
        table[raw] = IGNORE
    for raw, index in mapping.items():
        if not 0 <= raw <= 255 or not 0 <= index < MAX_CLASSES:
            raise ValueError(f"id {raw} → class {index}: ids are 0..255, classes 0..253")
        if table[raw] != UNKNOWN:
            raise ValueError(f"id {raw} is both ignored and class {index}")
        table[raw] = index
    return table


def published_id_table(kind: str, number: int) -> npt.NDArray[np.uint8]:  # [256]
    """Look-up table from the raw ids of a published data set to 19, 16 or 13 classes."""
    train_ids, published = _RAW_IDS[kind]
    published_classes(number)
    position = {train_id: index for index, train_id in enumerate(_KEPT[number])}
    mapping = {raw: position[t] for raw, t in train_ids.items() if t in position}
    return id_table(mapping, [raw for raw in published if raw not in mapping])


def folder_classes(file: Path) -> tuple[ClassList, npt.NDArray[np.uint8]]:
    """Class list and id table from the `classes.json` of a `folder` data set.

    Raises:
        DataError: the file is missing, is not JSON, does not hold a class list, or has a class
            with a name in `RESERVED_NAMES`.
    """
    example = '{"classes": [{"name": "road", "color": [128, 64, 128]}, ...], "ignore": 255}'
    if not file.is_file():
        raise DataError(
            f"{file} is missing; a `folder` data set names its classes there, "
            f"in the order of their indices: {example}"
        )
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
        entries = content["classes"]
        classes = ClassList(
            tuple(entry["name"] for entry in entries), tuple(entry["color"] for entry in entries)
        )
        ignore = int(content.get("ignore", IGNORE))
        table = id_table({index: index for index in range(classes.num_classes)}, [ignore])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        reason = f"{error} is missing" if isinstance(error, KeyError) else str(error)
        raise DataError(f"{file} is not a class list: {reason}; it should read {example}") from None
    taken = [name for name in classes.names if name in RESERVED_NAMES]
    if taken:
        raise DataError(
            f"{file} has a class named {' and one named '.join(taken)}, as another column of the "
            "tables of results is; rename it there and in the other data sets. Names that no class "
            f"may have: {', '.join(sorted(RESERVED_NAMES, key=str.lower))}"
        )
    return classes, table


def write_classes(file: Path, classes: ClassList) -> None:
    """Write a class list as the `classes.json` that `folder_classes` reads."""
    entries = [
        {"name": name, "color": list(color)}
        for name, color in zip(classes.names, classes.colors, strict=True)
    ]
    content = {"classes": entries, "ignore": classes.ignore}
    file.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def require_same_classes(
    source: ClassList, target: ClassList, *, names: tuple[str, str] = ("source", "target")
) -> None:
    """Refuse two data sets whose class indices mean different things.

    Raises:
        DataError: says which classes one side lacks, or the first index that differs.
    """
    if source.names == target.names:
        return
    counts = f"{names[0]} has {source.num_classes} classes, {names[1]} has {target.num_classes}"
    only_source = [n for n in source.names if n not in target.names]
    only_target = [n for n in target.names if n not in source.names]
    details = [
        f"only {side}: {', '.join(only)}"
        for side, only in zip(names, (only_source, only_target), strict=True)
        if only
    ]
    if not details:
        index = next(
            i for i, (a, b) in enumerate(zip(source.names, target.names, strict=True)) if a != b
        )
        details = [
            f"the same names in another order: index {index} is {source.names[index]!r} in "
            f"{names[0]} and {target.names[index]!r} in {names[1]}"
        ]
    raise DataError(
        f"{names[0]} and {names[1]} need one class list, but {counts} ({'; '.join(details)}); "
        "set `classes` alike for published data sets, or make both classes.json the same"
    )
