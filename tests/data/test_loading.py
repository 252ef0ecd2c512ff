"""Order of the samples: deterministic, resumable, the same with and without workers."""

from __future__ import annotations

from dataclasses import replace
from itertools import islice

import numpy as np
import pytest
import torch
from data_writers import save_image, save_label, write_folder

from cscl_fast.data import (
    DataError,
    DatasetConfig,
    EpochSampler,
    InfiniteSampler,
    make_loader,
    open_dataset,
)


@pytest.fixture
def config(tmp_path) -> DatasetConfig:
    root = write_folder(tmp_path, count=7)
    return DatasetConfig(
        kind="folder", root=root, scale=(0.7, 1.3), color_jitter=0.5, blur=0.5, crop=(10, 16)
    )


def take(config: DatasetConfig, count: int, workers: int, position: int = 0) -> list[dict]:
    dataset = open_dataset(config, training=True, seed=3)
    sampler = InfiniteSampler(len(dataset), seed=4, position=position)
    return list(islice(make_loader(dataset, 2, sampler=sampler, workers=workers), count))


def assert_same(a: list[dict], b: list[dict]) -> None:
    assert len(a) == len(b)
    for left, right in zip(a, b, strict=True):
        assert left["name"] == right["name"]
        for key in ("image", "clean", "label", "index"):
            assert torch.equal(left[key], right[key])


def test_batches_do_not_depend_on_workers_or_the_global_generator(config) -> None:
    torch.manual_seed(1)
    alone = take(config, 9, workers=0)  # over two epochs of 7, and into a third
    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert_same(alone, take(config, 9, workers=2))
    assert torch.equal(torch.get_rng_state(), before)
    assert_same(alone, take(replace(config, cache="ram"), 9, workers=2))
    batch = alone[0]
    assert batch["image"].shape == (2, 3, 10, 16) and batch["label"].shape == (2, 10, 16)


def test_resume(config) -> None:
    """From the steps done, as with workers the sampler itself is ahead of them."""
    whole = take(config, 9, workers=0)
    assert_same(whole[4:], take(config, 5, workers=0, position=4 * 2))
    assert_same(whole[4:], take(config, 5, workers=2, position=4 * 2))


def test_infinite_sampler() -> None:
    sampler = InfiniteSampler(5, seed=1)
    pairs = list(islice(sampler, 15))
    for epoch in range(3):
        part = pairs[5 * epoch : 5 * epoch + 5]
        assert [e for e, _ in part] == [epoch] * 5
        assert sorted(i for _, i in part) == list(range(5))
    assert len({tuple(i for _, i in pairs[k : k + 5]) for k in (0, 5, 10)}) > 1
    assert sampler.position == 15
    assert pairs == list(islice(InfiniteSampler(5, seed=1), 15))
    assert pairs != list(islice(InfiniteSampler(5, seed=2), 15))

    resumed = InfiniteSampler(5, seed=1)
    resumed.load_state_dict({**sampler.state_dict(), "position": 7})
    assert list(islice(resumed, 8)) == pairs[7:]
    with pytest.raises(ValueError, match="the sampler's length is 6, the saved one's 5"):
        InfiniteSampler(6, seed=1).load_state_dict(sampler.state_dict())
    with pytest.raises(ValueError, match="length is 0"):
        InfiniteSampler(0)
    with pytest.raises(ValueError, match="position is -1"):
        InfiniteSampler(5, position=-1)


def test_epoch_sampler() -> None:
    sampler = EpochSampler(6, seed=0)
    first, second = list(sampler), list(sampler)
    assert len(sampler) == 6
    assert [e for e, _ in first] == [0] * 6 and [e for e, _ in second] == [1] * 6
    assert sorted(i for _, i in first) == sorted(i for _, i in second) == list(range(6))
    assert [i for _, i in first] != [i for _, i in second]
    assert [i for _, i in EpochSampler(6, shuffle=False)] == list(range(6))


@pytest.mark.parametrize("workers", [0, 1])
def test_a_finite_loader_sees_everything_once(config, workers: int) -> None:
    loader = make_loader(open_dataset(config, training=True), 3, shuffle=True, workers=workers)
    first, second = ([n for batch in loader for n in batch["name"]] for _ in range(2))
    assert sorted(first) == sorted(second) == [f"a{i}" for i in range(7)]
    assert first != second
    plain = make_loader(open_dataset(config, training=False), 3)
    assert [batch["name"] for batch in plain] == [
        ["a0", "a1", "a2"], ["a3", "a4", "a5"], ["a6"],
    ]  # fmt: skip
    assert len(make_loader(open_dataset(config, training=False), 3, drop_last=True)) == 2


@pytest.mark.parametrize("workers", [0, 1])
def test_a_bad_file_names_itself_through_the_workers(config, workers: int) -> None:
    (config.root / "images" / "train" / "a3.png").write_text("broken")
    loader = make_loader(open_dataset(config, training=True), 1, workers=workers)
    with pytest.raises(DataError, match=r"images/train/a3\.png is no image file"):
        list(loader)


def test_images_of_two_sizes(config) -> None:
    save_image(config.root / "images" / "train" / "a1.png", (24, 40))
    save_label(config.root / "labels" / "train" / "a1.png", np.zeros((24, 40)))
    with pytest.raises(DataError, match=r"a0\.png is 12x20 \(HxW\) and .*a1\.png 24x40; set size"):
        next(iter(make_loader(open_dataset(config, training=False), 2)))
    # At one image size, only the labels differ: evaluation gets them one by one.
    evaluation = open_dataset(replace(config, size=(12, 20)), training=False)
    batch = next(iter(make_loader(evaluation, 2)))
    assert batch["image"].shape == (2, 3, 12, 20)
    assert [tuple(label.shape) for label in batch["label"]] == [(12, 20), (24, 40)]
    both = open_dataset(replace(config, size=(12, 20), label_size=(12, 20)), training=False)
    assert next(iter(make_loader(both, 2)))["label"].shape == (2, 12, 20)


def test_loader_arguments(config) -> None:
    dataset = open_dataset(config, training=True)
    with pytest.raises(ValueError, match="batch_size is 0"):
        make_loader(dataset, 0)
    with pytest.raises(ValueError, match="workers is -1"):
        make_loader(dataset, 1, workers=-1)
    with pytest.raises(ValueError, match="shuffle is for loaders without a sampler"):
        make_loader(dataset, 1, sampler=InfiniteSampler(7), shuffle=True)
