"""Order of the samples: deterministic, resumable, the same with and without workers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
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
    read_ahead,
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


@pytest.mark.parametrize("length", [5, 12])
@pytest.mark.parametrize(("count", "size"), [(2, 1), (3, 2)])
def test_processes_share_one_order(length: int, count: int, size: int) -> None:
    """Their batches, put together, are those of one process with the sum of the batches."""
    steps = 9
    alone = list(islice(InfiniteSampler(length, seed=2), steps * count * size))

    def of(rank: int, position: int = 0) -> InfiniteSampler:
        return InfiniteSampler(length, 2, position, rank=rank, count=count, batch_size=size)

    samplers = [of(rank) for rank in range(count)]
    shares = [list(islice(sampler, steps * size)) for sampler in samplers]
    together = [
        pair
        for step in range(steps)
        for share in shares
        for pair in share[step * size : (step + 1) * size]
    ]
    assert together == alone
    assert {sampler.position for sampler in samplers} == {steps * count * size}
    for rank in range(count):
        resumed = list(islice(of(rank, 4 * count * size), 5 * size))
        assert resumed == shares[rank][4 * size :]


def test_processes_that_cannot_be() -> None:
    with pytest.raises(ValueError, match="rank is 2 of 2; it is 0 to 1"):
        InfiniteSampler(5, rank=2, count=2)
    with pytest.raises(ValueError, match="rank is -1 of 2"):
        EpochSampler(5, rank=-1, count=2)
    with pytest.raises(ValueError, match="batch_size is 0"):
        InfiniteSampler(5, batch_size=0)
    with pytest.raises(ValueError, match=r"position is 2; 2 processes with batches of 2 .* of 4"):
        InfiniteSampler(5, position=2, count=2, batch_size=2)


@pytest.mark.parametrize("shuffle", [True, False])
def test_processes_share_an_epoch(shuffle: bool) -> None:
    alone = list(EpochSampler(7, seed=1, shuffle=shuffle))
    samplers = [EpochSampler(7, seed=1, shuffle=shuffle, rank=rank, count=3) for rank in range(3)]
    assert [len(sampler) for sampler in samplers] == [3, 2, 2]
    shares = [list(sampler) for sampler in samplers]
    assert [shares[i % 3][i // 3] for i in range(7)] == alone
    batches = [
        list(EpochSampler(7, seed=1, shuffle=shuffle, rank=rank, count=2, batch_size=2))
        for rank in range(2)
    ]
    assert batches == [alone[:2] + alone[4:6], alone[2:4] + alone[6:]]


def test_reading_ahead_changes_nothing(config) -> None:
    def batches() -> Iterator[dict]:
        dataset = open_dataset(config, training=True, seed=3)
        return iter(make_loader(dataset, 2, sampler=InfiniteSampler(len(dataset), seed=4)))

    torch.manual_seed(2)
    before = torch.get_rng_state()
    assert_same(list(islice(read_ahead(batches()), 9)), list(islice(batches(), 9)))
    assert torch.equal(torch.get_rng_state(), before)
    assert list(read_ahead([1, 2, 3])) == [1, 2, 3] and list(read_ahead([])) == []


def test_reading_ahead_is_bounded_and_ends_with_its_reader() -> None:
    taken = []

    def numbers() -> Iterator[int]:
        for i in range(100):
            taken.append(i)
            yield i

    ahead = read_ahead(numbers(), count=2)
    assert next(ahead) == 0 and next(ahead) == 1
    ahead.close()  # waits for the number that is being made
    assert taken[-1] <= 3
    assert not any(thread.name.startswith("read-ahead") for thread in threading.enumerate())


def test_the_next_batches_are_made_while_their_reader_computes() -> None:
    third = threading.Event()

    def numbers() -> Iterator[int]:
        for i in range(100):
            if i == 2:
                third.set()
            yield i

    ahead = read_ahead(numbers(), count=2)
    assert next(ahead) == 0
    assert third.wait(60)  # nobody asked for it yet
    ahead.close()


def test_an_error_comes_where_its_batch_would_have_been() -> None:
    def failing() -> Iterator[int]:
        yield 1
        yield 2
        raise DataError("the third is broken")

    ahead = read_ahead(failing())
    assert [next(ahead), next(ahead)] == [1, 2]
    with pytest.raises(DataError, match="the third is broken"):
        next(ahead)


def test_batches_are_channels_last_and_say_whether_colours_changed(config) -> None:
    for quiet in (True, False):
        changed = replace(config, **({"color_jitter": 0.0, "blur": 0.0} if quiet else {}))
        for workers in (0, 1):
            (batch,) = take(changed, 1, workers)
            assert batch["image"].is_contiguous(memory_format=torch.channels_last)
            assert batch["augmented"] is not quiet
            assert (batch["clean"] is batch["image"]) is quiet
            assert torch.equal(batch["clean"], batch["image"]) is quiet


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
