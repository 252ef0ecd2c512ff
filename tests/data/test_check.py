"""The check before the first step: what it finds, what it says."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from data_writers import save_image, save_label, write_folder, write_gta5

from cscl_fast.data import DataError, DatasetConfig, check_dataset, open_dataset
from cscl_fast.data import check as check_module


@pytest.fixture
def config(tmp_path) -> DatasetConfig:
    return DatasetConfig(kind="folder", root=write_folder(tmp_path, count=8, size=(24, 40)))


def report_of(config: DatasetConfig, **options):
    return check_dataset(open_dataset(config, training=True), **options)


def complaint(config: DatasetConfig, **options) -> str:
    with pytest.raises(DataError) as caught:
        report_of(config, **options).raise_if_bad()
    return str(caught.value)


def test_a_good_data_set(config) -> None:
    report = report_of(replace(config, size=(12, 20)))
    report.raise_if_bad(need_labels=True)
    assert report.problems() == [] and report.labelled
    assert (report.images, report.labels, report.decoded) == (8, 8, 8)
    labels = [np.random.default_rng(100 + i).integers(0, 4, (24, 40)) for i in range(8)]
    counts = np.bincount(np.concatenate(labels).ravel())
    assert report.class_pixels.tolist() == counts[:3].tolist()
    assert report.ignored_pixels == counts[3]
    table = str(report)
    assert f"folder {config.root}, split train" in table
    assert "8, 24x40 (HxW), used at 12x20" in table
    assert "problems  none" in table and "road 2" in table
    assert len(table.splitlines()) == 6


def test_missing_partners_are_counted_and_five_are_named(config) -> None:
    for i in range(1, 8):
        (config.root / "labels" / "train" / f"a{i}.png").unlink()
    message = complaint(config)
    assert "7 labels missing" in message and "use_labels to false" in message
    for i in range(1, 8):
        assert (f"a{i}.png" in message) == (i <= 5)
    assert "2 more" in message
    assert "PROBLEM   7 labels missing" in str(report_of(config))


def test_an_image_that_vanishes(config) -> None:
    dataset = open_dataset(config, training=True)
    (config.root / "images" / "train" / "a2.png").unlink()
    with pytest.raises(DataError, match=r"1 image missing: .*images/train/a2\.png"):
        check_dataset(dataset).raise_if_bad()


def test_labels_without_an_image_are_a_note(config) -> None:
    (config.root / "images" / "train" / "a2.png").unlink()
    report = report_of(config)
    report.raise_if_bad()
    assert "1 label without an image" in str(report) and "labels/train/a2.png" in str(report)


def test_unreadable_files(config) -> None:
    images, labels = config.root / "images" / "train", config.root / "labels" / "train"
    (images / "a1.png").write_text("no picture")
    (labels / "a2.png").write_bytes((labels / "a2.png").read_bytes()[:-40])
    message = complaint(config)
    assert "2 unreadable" in message
    assert "images/train/a1.png is no image file (10 bytes)" in message
    assert "labels/train/a2.png cannot be decoded" in message


def test_a_sample_is_decoded_or_everything(config, monkeypatch) -> None:
    monkeypatch.setattr(check_module, "SAMPLED_AT_LEAST", 3)
    monkeypatch.setattr(check_module, "SAMPLED_PIXELS", 24 * 40 * 3)
    label = config.root / "labels" / "train" / "a1.png"
    label.write_bytes(label.read_bytes()[:-40])  # its header is whole
    quick = report_of(config)
    assert quick.decoded == 3 and quick.problems() == []
    assert report_of(config, deep=True).decoded == 8
    assert "a1.png cannot be decoded" in complaint(config, deep=True)
    monkeypatch.setattr(check_module, "SAMPLED_PIXELS", 24 * 40 * 8)
    assert report_of(config).decoded == 8  # small data sets are decoded whole


def test_sizes(config) -> None:
    labels = config.root / "labels" / "train"
    save_label(labels / "a3.png", np.zeros((12, 20)))  # half the size: allowed, mentioned
    report = report_of(config)
    report.raise_if_bad()
    assert "8, 1 of another size than their image" in str(report)
    save_label(labels / "a4.png", np.zeros((40, 24)))
    message = complaint(config)
    assert "1 labels of another shape" in message
    assert "a4.png (40x24, image 24x40)" in message


def test_ids_outside_the_class_list(config) -> None:
    label = np.zeros((24, 40))
    label[0, :5] = 3
    save_label(config.root / "labels" / "train" / "a0.png", label)
    label[1, :2] = 200
    save_label(config.root / "labels" / "train" / "a6.png", label)
    report = report_of(config)
    assert dict(report.unknown_pixels) == {3: 10, 200: 2}
    message = complaint(config)
    assert (
        "id 3 is outside the class list (3 classes, 255 ignored): 10 pixels in 2 labels" in message
    )
    assert "id 200" in message and "2 pixels in 1 label:" in message and "a6.png" in message


def test_ids_outside_a_published_mapping(tmp_path) -> None:
    config = DatasetConfig(kind="gta5", root=write_gta5(tmp_path))
    report_of(config).raise_if_bad(need_labels=True)  # void ids are no problem
    save_label(tmp_path / "labels" / "00002.png", np.full((14, 24), 77))
    assert "id 77 is outside the class list (19 classes" in complaint(config)


def test_unlabelled_data_sets(config) -> None:
    hidden = report_of(replace(config, use_labels=False))
    hidden.raise_if_bad()
    assert "labels    not used" in str(hidden)
    with pytest.raises(DataError, match="labels are needed here, but use_labels is false"):
        hidden.raise_if_bad(need_labels=True)
    for file in (config.root / "labels" / "train").iterdir():
        file.unlink()
    bare = report_of(config)
    bare.raise_if_bad()
    assert "labels    none (unlabelled)" in str(bare)
    with pytest.raises(DataError, match="labels are needed here, but no label file was found"):
        bare.raise_if_bad(need_labels=True)


def test_drawn_scenes() -> None:
    config = DatasetConfig(kind="scenes", count=5, look="real", split="val")
    report = report_of(config)
    report.raise_if_bad(need_labels=True)
    assert "drawn scenes, look real, split val" in str(report) and "5 drawn" in str(report)


def test_several_problems_come_together(config) -> None:
    save_image(config.root / "labels" / "train" / "a0.png", (24, 40))
    (config.root / "labels" / "train" / "a1.png").unlink()
    message = complaint(config)
    assert message.startswith(f"folder {config.root}, split train cannot be used:\n  - 1 label ")
    assert "a0.png is a colour image (mode RGB)" in message
