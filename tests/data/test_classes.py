"""Class lists and the maps from raw ids to class indices."""

from __future__ import annotations

import itertools
import json
import random
import re

import numpy as np
import pytest
from data_writers import write_classes

from cscl_fast.data import (
    CITYSCAPES_19,
    NTHU_13,
    SYNTHIA_16,
    ClassList,
    DataError,
    published_classes,
    require_same_classes,
    thirteen_of_sixteen,
)
from cscl_fast.data.classes import RESERVED_NAMES, folder_classes, id_table, published_id_table
from cscl_fast.scenes import SCENE_CLASS_NAMES

# The contract's table, as text, so that no dict of the package can agree with itself.
CITYSCAPES = (
    "7→0 8→1 11→2 12→3 13→4 17→5 19→6 20→7 21→8 22→9 23→10 24→11 25→12 26→13 27→14 28→15 "
    "31→16 32→17 33→18"
)
SYNTHIA = "3→0 4→1 2→2 21→3 5→4 7→5 15→6 9→7 6→8 1→10 10→11 17→12 8→13 19→15 12→17 11→18"
KEPT = {
    19: list(range(19)),
    16: [i for i in range(19) if i not in (9, 14, 16)],
    13: [0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18],
}


@pytest.mark.parametrize(
    ("kind", "number"),
    list(itertools.product(("gta5", "cityscapes", "nthu", "synthia"), (19, 16, 13))),
)
def test_published_ids(kind: str, number: int) -> None:
    pairs = [pair.split("→") for pair in (SYNTHIA if kind == "synthia" else CITYSCAPES).split()]
    expected = np.full(256, 255)
    for raw, train_id in pairs:
        if int(train_id) in KEPT[number]:
            expected[int(raw)] = KEPT[number].index(int(train_id))
    table = published_id_table(kind, number)
    published = 23 if kind == "synthia" else 35
    assert table[:published].tolist() == expected[:published].tolist()
    assert (table[published:255] == 254).all()  # ids that these files do not have
    assert table[255] == 255


def test_the_three_lists() -> None:
    assert CITYSCAPES_19.names[0] == "road" and CITYSCAPES_19.names[18] == "bicycle"
    left_out = set(CITYSCAPES_19.names) - set(SYNTHIA_16.names)
    assert left_out == {"terrain", "truck", "train"}
    assert set(SYNTHIA_16.names) - set(NTHU_13.names) == {"wall", "fence", "pole"}
    assert [SYNTHIA_16.names[i] for i in thirteen_of_sixteen()] == list(NTHU_13.names)
    for number, classes in ((19, CITYSCAPES_19), (16, SYNTHIA_16), (13, NTHU_13)):
        assert classes.num_classes == number and published_classes(number) == classes
    with pytest.raises(ValueError, match="classes is 7; the published data sets have 19, 16 or 13"):
        published_classes(7)


def test_order_of_the_mapping_does_not_matter() -> None:
    """7→0 8→1 ... in place would send raw 7 to 0 and then, if 0 comes later, on to 255."""
    # A chain: every class index is also the raw id of the next class.
    pairs = [(raw, raw - 1) for raw in range(1, 34)] + [(0, 33)]
    ids = np.arange(34, dtype=np.uint8)
    for seed in range(5):
        random.Random(seed).shuffle(pairs)
        assert id_table(dict(pairs))[ids].tolist() == [33, *range(33)]

    in_place = ids.copy()  # the published fault, to show that this case can tell
    for raw, index in sorted(pairs):
        in_place[in_place == raw] = index
    assert in_place.tolist() != [33, *range(33)]


def test_id_table_refuses_what_cannot_be() -> None:
    with pytest.raises(ValueError, match="id 3 is both ignored and class 1"):
        id_table({3: 1}, [3])
    with pytest.raises(ValueError, match=r"id 300 → class 1: ids are 0\.\.255"):
        id_table({300: 1})
    with pytest.raises(ValueError, match="id 3 → class 255"):
        id_table({3: 255})


def test_class_list_checks() -> None:
    red = (255, 0, 0)
    with pytest.raises(ValueError, match="2 class names, 1 colors"):
        ClassList(("a", "b"), (red,))
    with pytest.raises(ValueError, match="more than once: a"):
        ClassList(("a", "a"), (red, red))
    with pytest.raises(ValueError, match="values from 0 to 255"):
        ClassList(("a",), ((256, 0, 0),))
    with pytest.raises(ValueError, match="1 to 254 names, not 0"):
        ClassList((), ())


def test_palette() -> None:
    palette = ClassList(("a", "b"), ((1, 2, 3), (4, 5, 6))).palette()
    assert palette.shape == (256, 3) and palette.dtype == np.uint8
    assert palette[:2].tolist() == [[1, 2, 3], [4, 5, 6]] and not palette[2:].any()


def test_folder_classes(tmp_path) -> None:
    write_classes(tmp_path)
    classes, table = folder_classes(tmp_path / "classes.json")
    assert classes.names == ("road", "car", "sky") and classes.colors[1] == (0, 0, 142)
    assert table[[0, 1, 2, 3, 254, 255]].tolist() == [0, 1, 2, 254, 254, 255]


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, "is missing; a `folder` data set names its classes there"),
        ("{", "is not a class list"),
        ("[]", "is not a class list"),
        ('{"names": []}', "'classes' is missing"),
        ('{"classes": [{"name": "road"}]}', "'color' is missing"),
        ('{"classes": [{"name": "road", "color": [1, 2]}]}', "three whole numbers"),
        ('{"classes": [{"name": "a", "color": [1, 2, 3]}], "ignore": 0}', "both ignored and class"),
    ],
)
def test_bad_classes_json(tmp_path, content: str | None, message: str) -> None:
    file = tmp_path / "classes.json"
    if content is not None:
        file.write_text(content)
    with pytest.raises(DataError, match=message) as caught:
        folder_classes(file)
    assert str(file) in str(caught.value) and '{"classes": [{"name": "road"' in str(caught.value)


def test_a_class_named_like_another_column_of_the_tables_is_refused(tmp_path) -> None:
    file = tmp_path / "classes.json"
    for name in RESERVED_NAMES:
        entries = [{"name": n, "color": [0, 0, 0]} for n in ("road", name)]
        file.write_text(json.dumps({"classes": entries}))
        with pytest.raises(DataError, match=f"has a class named {re.escape(name)}") as caught:
            folder_classes(file)
        assert str(file) in str(caught.value) and "rename it" in str(caught.value)
        assert all(reserved in str(caught.value) for reserved in RESERVED_NAMES)
    assert not RESERVED_NAMES & {*CITYSCAPES_19.names, *SCENE_CLASS_NAMES}


def test_require_same_classes() -> None:
    require_same_classes(CITYSCAPES_19, published_classes(19))
    with pytest.raises(DataError, match="source has 19 classes, target has 16") as caught:
        require_same_classes(CITYSCAPES_19, SYNTHIA_16)
    assert "only source: terrain, truck, train" in str(caught.value)
    swapped = SYNTHIA_16.subset([1, 0, *range(2, 16)])
    with pytest.raises(DataError, match="index 0 is 'road' in source and 'sidewalk' in target"):
        require_same_classes(SYNTHIA_16, swapped)
