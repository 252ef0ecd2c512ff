"""Decoded samples in memory and in files: the same bits, whatever happens to the files."""

from __future__ import annotations

import errno
import multiprocessing
import os
import stat
import threading
import time
import warnings
from dataclasses import replace
from itertools import islice
from pathlib import Path

import numpy as np
import pytest
import torch
from data_writers import save_image, save_label, write_folder, write_synthia

from cscl_fast.data import (
    DataError,
    DatasetConfig,
    InfiniteSampler,
    SegmentationDataset,
    make_loader,
    open_dataset,
)
from cscl_fast.data.cache import HEADER_BYTES, RESERVE, DiskCache

AUGMENTED = {"scale": (0.7, 1.3), "crop": (10, 16), "color_jitter": 0.5, "blur": 0.5}


@pytest.fixture
def config(tmp_path: Path) -> DatasetConfig:
    root = write_folder(tmp_path / "data", count=5, size=(24, 40))
    folder = tmp_path / "cache"
    return DatasetConfig("folder", root, size=(18, 30), cache="disk", cache_folder=folder)


def entries(config: DatasetConfig) -> list[Path]:
    assert config.cache_folder is not None
    return sorted(config.cache_folder.rglob("*.decoded"))


def counting(dataset: SegmentationDataset, monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The indices that are decoded from here on."""
    decoded: list[int] = []
    decode = dataset._decode
    monkeypatch.setattr(dataset, "_decode", lambda i: (decoded.append(i), decode(i))[1])
    return decoded


def assert_same_samples(a: SegmentationDataset, b: SegmentationDataset) -> None:
    for epoch in (0, 1):
        for index in range(len(a)):
            one, two = a[(epoch, index)], b[(epoch, index)]
            for key in ("image", "clean", "label"):
                assert torch.equal(one[key], two[key])
                assert one[key].stride() == two[key].stride()


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("change", [AUGMENTED, {"label_size": (9, 15)}, {"size": None}])
def test_samples_are_bit_for_bit_those_without_a_cache(config, monkeypatch, training, change):
    config = replace(config, **change)
    plain = open_dataset(replace(config, cache="none"), training=training, seed=3)
    assert_same_samples(open_dataset(config, training=training, seed=3), plain)  # fills it
    again = open_dataset(config, training=training, seed=3)
    decoded = counting(again, monkeypatch)
    assert_same_samples(again, plain)
    assert decoded == [] and len(entries(config)) == 5
    assert not list(config.cache_folder.rglob("*.tmp"))
    again[0]["image"].zero_()
    again._read(0)[0].zero_()  # nobody does, but it would not reach the file either
    assert_same_samples(open_dataset(config, training=training, seed=3), plain)


def test_a_files_size_is_four_bytes_a_pixel(config) -> None:
    open_dataset(config, training=True)[0]
    (entry,) = entries(config)
    assert entry.stat().st_size == HEADER_BYTES + 4 * 18 * 30


def test_sixteen_bit_labels(tmp_path: Path) -> None:
    root = write_synthia(tmp_path / "data")
    config = DatasetConfig("synthia", root, classes=16, size=(19, 32), cache="disk")
    config = replace(config, cache_folder=tmp_path / "cache")
    plain = open_dataset(replace(config, cache="none"), training=True)
    for _ in range(2):
        assert_same_samples(open_dataset(config, training=True), plain)


def _flip(data: bytes) -> bytes:
    return data[:-7] + bytes([data[-7] ^ 1]) + data[-6:]


@pytest.mark.parametrize(
    "damage",
    [
        lambda data: b"",
        lambda data: data[:20],
        lambda data: data[: len(data) // 2],
        lambda data: data + b"x",
        lambda data: b"X" + data[1:],
        lambda data: data[: len(data) // 2].ljust(len(data), b"\0"),  # what a crash leaves
        _flip,
    ],
)
def test_a_torn_entry_is_made_anew(config, monkeypatch, damage) -> None:
    plain = open_dataset(replace(config, cache="none"), training=True)
    assert_same_samples(open_dataset(config, training=True), plain)
    path = open_dataset(config, training=True)._cache.path(2)  # type: ignore[attr-defined]
    whole = path.read_bytes()
    path.write_bytes(damage(whole))
    again = open_dataset(config, training=True)
    decoded = counting(again, monkeypatch)
    assert_same_samples(again, plain)
    assert decoded == [2]
    assert path.read_bytes() == whole


def test_a_changed_file_replaces_its_entry(config) -> None:
    open_dataset(config, training=True)[1]
    save_image(config.root / "images" / "train" / "a1.png", (24, 40), seed=77)
    save_label(config.root / "labels" / "train" / "a1.png", np.zeros((24, 40)))
    plain = open_dataset(replace(config, cache="none"), training=True)[1]
    for _ in range(2):
        cached = open_dataset(config, training=True)[1]
        assert torch.equal(cached["image"], plain["image"])
        assert torch.equal(cached["label"], plain["label"])
    assert len(entries(config)) == 1  # one for a file, however often it changes


@pytest.mark.parametrize(
    "change",
    [{"size": (16, 30)}, {"interpolation": "bilinear"}, {"use_labels": False}],
)
def test_what_decides_the_content_has_entries_of_its_own(config, change) -> None:
    open_dataset(config, training=True)[0]
    changed = replace(config, **change)
    cached = open_dataset(changed, training=True)[0]
    plain = open_dataset(replace(changed, cache="none"), training=True)[0]
    assert torch.equal(cached["image"], plain["image"])
    assert torch.equal(cached["label"], plain["label"])


def test_entries_with_and_without_a_label_leave_each_other_alone(config, monkeypatch) -> None:
    labelled = open_dataset(config, training=True)
    unlabelled = open_dataset(replace(config, use_labels=False), training=True)
    for dataset in (labelled, unlabelled):
        dataset[0]
    decoded = [counting(dataset, monkeypatch) for dataset in (labelled, unlabelled)]
    for dataset in (labelled, unlabelled):
        dataset[0]
    assert decoded == [[], []] and len(entries(config)) == 2


def test_everybody_may_read_entries_whom_the_umask_lets(config) -> None:
    before = os.umask(0o027)
    try:
        open_dataset(config, training=True)[0]
    finally:
        os.umask(before)
    files = [*entries(config), *config.cache_folder.rglob("content.json")]
    assert [stat.S_IMODE(file.stat().st_mode) for file in files] == [0o640] * 2


def test_other_classes_have_other_entries(config) -> None:
    open_dataset(config, training=True)[0]
    classes = config.root / "classes.json"
    classes.write_text(classes.read_text().replace('"ignore": 255', '"ignore": 7'))
    open_dataset(config, training=True)[0]
    assert len(entries(config)) == 2
    for content in config.cache_folder.glob("*/content.json"):
        assert '"interpolation": "bicubic"' in content.read_text()  # says what may be deleted


def test_workers_fill_and_read_it(config) -> None:
    def batches(config: DatasetConfig, workers: int) -> list[torch.Tensor]:
        dataset = open_dataset(replace(config, **AUGMENTED), training=True, seed=3)
        sampler = InfiniteSampler(len(dataset), seed=4)
        loader = make_loader(dataset, 2, sampler=sampler, workers=workers)
        return [batch["image"] for batch in islice(loader, 6)]

    expected = batches(replace(config, cache="none"), 0)
    for workers in (2, 2, 0):
        assert all(map(torch.equal, batches(config, workers), expected))
    assert len(entries(config)) == 5


def _read_all(config: DatasetConfig, start: threading.Event) -> None:
    start.wait()
    dataset = open_dataset(config, training=True)
    for index in range(len(dataset)):
        dataset[index]


def test_several_runs_at_once(config) -> None:
    context = multiprocessing.get_context("fork")
    start = context.Event()
    runs = [context.Process(target=_read_all, args=(config, start)) for _ in range(4)]
    for run in runs:
        run.start()
    start.set()
    for run in runs:
        run.join(60)
        assert run.exitcode == 0
    plain = open_dataset(replace(config, cache="none"), training=True)
    assert_same_samples(open_dataset(config, training=True), plain)
    assert len(entries(config)) == 5 and not list(config.cache_folder.rglob("*.tmp"))


@pytest.mark.parametrize("how", ["reserve", "full"])
def test_a_full_disk_warns_once_and_the_run_goes_on(config, monkeypatch, how: str) -> None:
    plain = open_dataset(replace(config, cache="none"), training=True)
    dataset = open_dataset(config, training=True)
    dataset[0]
    if how == "reserve":
        usage = type("usage", (), {"free": RESERVE})
        monkeypatch.setattr("cscl_fast.data.cache.shutil.disk_usage", lambda path: usage)
    else:

        def full(source: str, target: Path) -> None:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

        monkeypatch.setattr("cscl_fast.data.cache.os.replace", full)
    with pytest.warns(UserWarning, match="cache_folder .* takes no more entries") as caught:
        assert_same_samples(dataset, plain)
    assert len(caught) == 1
    assert len(entries(config)) == 1 and not list(config.cache_folder.rglob("*.tmp"))


def test_a_folder_that_cannot_be_written(config, tmp_path: Path) -> None:
    file = tmp_path / "file"
    file.write_text("in the way")
    for folder in (file, file / "below"):
        with pytest.raises(DataError, match=r"cache_folder .*file.* cannot be written to .* ram"):
            open_dataset(replace(config, cache_folder=folder), training=True)


def test_what_killed_runs_left_is_cleared(config) -> None:
    cache = open_dataset(config, training=True)._cache
    assert isinstance(cache, DiskCache)
    old, new = cache.folder / "old.tmp", cache.folder / "new.tmp"
    for path, age in ((old, 7200), (new, 5)):
        path.write_bytes(b"half")
        os.utime(path, (time.time() - age,) * 2)
    open_dataset(config, training=True)
    assert not old.exists() and new.exists()  # another run may be writing that one


def test_missing_files_are_named_as_ever(config) -> None:
    dataset = open_dataset(config, training=True)
    dataset[0]
    (config.root / "images" / "train" / "a0.png").unlink()
    with pytest.raises(DataError, match=r"image .*a0\.png is missing"):
        dataset[0]


def test_the_users_cache_folder(config, monkeypatch, tmp_path: Path) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "home"))
    open_dataset(replace(config, cache_folder=None), training=True)[0]
    assert len(list((tmp_path / "home" / "cscl_fast" / "decoded").rglob("*.decoded"))) == 1


@pytest.mark.parametrize("cache", ["ram", "disk"])
def test_the_target_is_decoded_once_for_training_and_passes(config, monkeypatch, cache) -> None:
    target = replace(config, cache=cache, use_labels=False)
    training = open_dataset(target, training=True)
    plain = open_dataset(target, training=False)
    plain.share_cache(training)
    for index in range(5):
        training[index]
    decoded = counting(plain, monkeypatch)
    expected = open_dataset(replace(target, cache="none"), training=False)
    assert_same_samples(plain, expected)
    assert decoded == []
    labelled = open_dataset(replace(config, cache=cache), training=False)
    labelled.share_cache(training)  # another content: it keeps its own
    assert int(labelled[0]["label"].min()) != 255


def test_a_memory_that_is_too_small_is_warned_of(config, monkeypatch) -> None:
    monkeypatch.setattr("cscl_fast.data.cache.available_memory", lambda: 4 * 18 * 30 * 5 - 1)
    dataset = open_dataset(replace(config, cache="ram"), training=True)
    with pytest.warns(UserWarning, match='cache "ram" needs about .* 5 images.*use cache "disk"'):
        dataset.preload()
    monkeypatch.setattr("cscl_fast.data.cache.available_memory", lambda: 4 * 18 * 30 * 5)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        open_dataset(replace(config, cache="ram"), training=True).preload()
