"""Each data set in its published layout, and what is said when a part of it is missing."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from data_writers import (
    CITYSCAPES_RAW,
    SYNTHIA_RAW,
    rows_of,
    save_image,
    save_label,
    write_cityscapes,
    write_classes,
    write_folder,
    write_gta5,
    write_nthu,
    write_synthia,
)

from cscl_fast.data import DataError, DatasetConfig, list_images, open_dataset

TRAIN_IDS = [*range(19), 255, 255]
SYNTHIA_16 = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 13, 14, 15, 255, 255]
KEPT_13 = [0, 1, 2, 6, 7, 8, 10, 11, 12, 13, 15, 17, 18]


def expected(raw: list[int], indices: list[int], size: tuple[int, int]) -> list[list[int]]:
    table = dict(zip(raw, indices, strict=True))
    return [[table[i] for i in row] for row in rows_of(raw, size).tolist()]


def names(config: DatasetConfig) -> list[str]:
    dataset = open_dataset(config, training=False)
    return [dataset[i]["name"] for i in range(len(dataset))]


def test_gta5(tmp_path) -> None:
    config = DatasetConfig(kind="gta5", root=write_gta5(tmp_path))
    dataset = open_dataset(config, training=False)
    assert dataset.config.size == (720, 1280) and dataset.has_labels
    sample = open_dataset(DatasetConfig(kind="gta5", root=tmp_path, size=None), training=False)[0]
    assert sample["image"].shape == (3, 14, 24)
    assert sample["label"].tolist() == expected(CITYSCAPES_RAW, TRAIN_IDS, (14, 24))
    assert names(config) == ["00001", "00002", "00003"]
    with pytest.raises(DataError, match="published in one folder, without a split 'val'"):
        open_dataset(DatasetConfig(kind="gta5", root=tmp_path, split="val"), training=False)


def test_thirteen_classes_of_gta5(tmp_path) -> None:
    config = DatasetConfig(kind="gta5", root=write_gta5(tmp_path), size=None, classes=13)
    indices = [KEPT_13.index(i) if i in KEPT_13 else 255 for i in TRAIN_IDS]
    label = open_dataset(config, training=False)[0]["label"]
    assert label.tolist() == expected(CITYSCAPES_RAW, indices, (14, 24))


def test_list_file(tmp_path) -> None:
    write_gta5(tmp_path)
    file = tmp_path / "val.txt"
    config = DatasetConfig(kind="gta5", root=tmp_path, split="val", list_file=file)
    file.write_text("images/00003.png labels/00003.png\n00001\n")
    assert names(config) == ["00001", "00003"]
    file.write_text("00001\n00007.png\n00008\n")
    with pytest.raises(DataError, match=r"2 of the images that .* names are missing: 00007"):
        open_dataset(config, training=False)
    file.write_text("\n")
    with pytest.raises(DataError, match=r"val\.txt names no image"):
        open_dataset(config, training=False)
    file.unlink()
    with pytest.raises(DataError, match=r"list file .*val\.txt is missing"):
        open_dataset(config, training=False)


def test_cityscapes(tmp_path) -> None:
    write_cityscapes(tmp_path)
    config = DatasetConfig(kind="cityscapes", root=tmp_path, split="val", size=(8, 16))
    assert names(config) == ["lindau/lindau_000000_000019", "lindau/lindau_000001_000019"]
    sample = open_dataset(config, training=False)[1]
    assert sample["path"].endswith("val/lindau/lindau_000001_000019_leftImg8bit.png")
    assert sample["image"].shape == (3, 8, 16)
    # Evaluation: the label at its file's own size.
    assert sample["label"].tolist() == expected(CITYSCAPES_RAW, TRAIN_IDS, (16, 32))
    train = DatasetConfig(kind="cityscapes", root=tmp_path, split="train", city="aachen")
    assert len(open_dataset(train, training=True)) == 1
    with pytest.raises(DataError, match=r"Cityscapes' images is missing: .*leftImg8bit/test"):
        open_dataset(DatasetConfig(kind="cityscapes", root=tmp_path, split="test"), training=False)


def test_synthia(tmp_path) -> None:
    config = DatasetConfig(kind="synthia", root=write_synthia(tmp_path), size=None, classes=16)
    dataset = open_dataset(config, training=False)
    assert dataset.classes.num_classes == 16
    assert dataset[1]["label"].tolist() == expected(SYNTHIA_RAW, SYNTHIA_16, (19, 32))
    default = DatasetConfig(kind="synthia", root=tmp_path, classes=16)
    assert open_dataset(default, training=False).config.size == (760, 1280)


@pytest.mark.parametrize("city", ["Rio", "Rome", "Taipei", "Tokyo", "tokyo"])
def test_nthu(tmp_path, city: str) -> None:
    write_nthu(tmp_path, (city.capitalize(),))
    config = DatasetConfig(kind="nthu", root=tmp_path, city=city, split="test", classes=13)
    assert names(config) == ["pano_10", "pano_9"]  # not pano_11, which the list leaves out
    dataset = open_dataset(config, training=False)
    indices = [KEPT_13.index(i) if i in KEPT_13 else 255 for i in TRAIN_IDS]
    assert dataset[0]["label"].tolist() == expected(CITYSCAPES_RAW, indices, (16, 32))
    train = DatasetConfig(kind="nthu", root=tmp_path, city=city, size=(16, 32), classes=13)
    assert names(train) == ["pano_0", "pano_2"]
    unlabelled = open_dataset(train, training=True)
    assert not unlabelled.has_labels
    assert unlabelled[0]["label"].unique().tolist() == [255]


def test_nthu_needs_a_city(tmp_path) -> None:
    write_nthu(tmp_path, ("Rio",))
    with pytest.raises(DataError, match="NTHU has Rio, Rome, Taipei, Tokyo"):
        open_dataset(DatasetConfig(kind="nthu", root=tmp_path), training=False)
    with pytest.raises(DataError, match=r"NTHU's city Paris is missing: .*which holds Rio/"):
        open_dataset(DatasetConfig(kind="nthu", root=tmp_path, city="Paris"), training=False)


def test_folder_with_and_without_splits(tmp_path) -> None:
    write_folder(tmp_path / "split", count=2)
    write_folder(tmp_path / "flat", count=3, split="")
    split = DatasetConfig(kind="folder", root=tmp_path / "split")
    flat = DatasetConfig(kind="folder", root=tmp_path / "flat", split="")
    assert names(split) == ["a0", "a1"]
    assert names(flat) == ["a0", "a1", "a2"]
    # "" takes everything below images/, under the path as its name.
    assert names(replace(split, split="")) == ["train/a0", "train/a1"]
    with pytest.raises(DataError, match=r"no split 'val' \(val/\); the splits are train"):
        open_dataset(replace(split, split="val"), training=False)
    with pytest.raises(DataError, match='without splits: set split to ""'):
        open_dataset(replace(flat, split="train"), training=False)


def test_folder_pairs_by_name_whatever_the_format(tmp_path) -> None:
    write_folder(tmp_path, count=2)
    save_image(tmp_path / "images" / "train" / "b" / "photo.one.JPG")
    save_image(tmp_path / "images" / "train" / "._a0.png")  # left behind by some archives
    save_label(tmp_path / "labels" / "train" / "b" / "photo.one.png", np.full((12, 20), 2))
    config = DatasetConfig(kind="folder", root=tmp_path)
    assert names(config) == ["a0", "a1", "b/photo.one"]
    assert (open_dataset(config, training=False)[2]["label"] == 2).all()
    save_image(tmp_path / "images" / "train" / "a0.jpg")
    with pytest.raises(DataError, match=r"a0\.(png|jpg) and .*a0\.(png|jpg) have one name"):
        open_dataset(config, training=False)


def test_unlabelled_target(tmp_path) -> None:
    write_folder(tmp_path, labels=False)
    dataset = open_dataset(DatasetConfig(kind="folder", root=tmp_path), training=True)
    assert not dataset.has_labels
    sample = dataset[0]
    assert sample["label"].shape == (12, 20) and (sample["label"] == 255).all()


def test_use_labels_false_never_opens_a_label(tmp_path) -> None:
    write_folder(tmp_path)
    for file in (tmp_path / "labels").rglob("*.png"):
        file.write_text("broken")
    config = DatasetConfig(kind="folder", root=tmp_path, use_labels=False)
    for training in (True, False):
        dataset = open_dataset(config, training=training)
        assert not dataset.has_labels and (dataset[1]["label"] == 255).all()


def test_limit_is_spread_evenly(tmp_path) -> None:
    write_folder(tmp_path, count=9)
    assert names(DatasetConfig(kind="folder", root=tmp_path, limit=3)) == ["a0", "a4", "a8"]
    assert len(names(DatasetConfig(kind="folder", root=tmp_path, limit=99))) == 9


def test_missing_root_shows_the_nearest_folder(tmp_path) -> None:
    (tmp_path / "sets" / "cityscapes").mkdir(parents=True)
    config = DatasetConfig(kind="gta5", root=tmp_path / "sets" / "gta" / "v5")
    with pytest.raises(DataError) as caught:
        open_dataset(config, training=True)
    message = str(caught.value)
    assert f"`root`) is missing: {tmp_path / 'sets' / 'gta' / 'v5'}" in message
    assert f"nearest folder that exists is {tmp_path / 'sets'}, which holds cityscapes/" in message


def test_missing_parts(tmp_path) -> None:
    with pytest.raises(DataError, match=r"images' folder is missing: .*images; .* is empty"):
        open_dataset(DatasetConfig(kind="folder", root=tmp_path), training=True)
    (tmp_path / "images" / "train").mkdir(parents=True)
    with pytest.raises(DataError, match=r"images/train holds no image \(\.png"):
        open_dataset(DatasetConfig(kind="folder", root=tmp_path), training=True)
    save_image(tmp_path / "images" / "train" / "a.png")
    with pytest.raises(DataError, match=r"classes\.json is missing"):
        open_dataset(DatasetConfig(kind="folder", root=tmp_path), training=True)
    write_classes(tmp_path)
    assert len(open_dataset(DatasetConfig(kind="folder", root=tmp_path), training=True)) == 1
    (tmp_path / "file").write_text("")
    with pytest.raises(DataError, match=r"expected to be a folder, but .*file is a file"):
        open_dataset(DatasetConfig(kind="folder", root=tmp_path / "file"), training=True)


def test_list_images(tmp_path) -> None:
    with pytest.raises(DataError, match="the images' folder is missing"):
        list_images(tmp_path / "none")
    with pytest.raises(DataError, match="holds no image"):
        list_images(tmp_path)
    for name in ("b.png", "a/c.JPG", "notes.txt", ".hidden.png"):
        if name.endswith("txt"):
            (tmp_path / name).write_text("")
        else:
            save_image(tmp_path / name)
    assert list_images(tmp_path) == [tmp_path / "a" / "c.JPG", tmp_path / "b.png"]


def test_drawn_scenes() -> None:
    config = DatasetConfig(kind="scenes", count=3, size=(48, 96))
    train = open_dataset(config, training=False)
    assert len(train) == 3 and train.classes.num_classes >= 8 and train.has_labels
    sample = train[1]
    assert sample["image"].shape == (3, 48, 96) and sample["label"].shape == (48, 96)
    assert int(sample["label"].max()) < train.classes.num_classes
    again = open_dataset(config, training=False)[1]
    assert torch.equal(sample["image"], again["image"])
    for other in (
        DatasetConfig(kind="scenes", count=3, size=(48, 96), split="val"),
        DatasetConfig(kind="scenes", count=3, size=(48, 96), scene_seed=1),
        DatasetConfig(kind="scenes", count=3, size=(48, 96), look="real"),
    ):
        assert not torch.equal(sample["image"], open_dataset(other, training=False)[1]["image"])
    hidden = DatasetConfig(kind="scenes", count=2, size=(48, 96), use_labels=False)
    assert (open_dataset(hidden, training=True)[0]["label"] == 255).all()
