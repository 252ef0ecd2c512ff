"""Streams of batches: their place, their share among processes, and what is read beforehand."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from trainer_worlds import SIZE, arguments

from cscl_fast.cli import parse
from cscl_fast.config import Config
from cscl_fast.trainer.world import Stream, World

CPU = torch.device("cpu")


@pytest.fixture
def config(worlds: Path) -> Config:
    return parse(arguments(worlds, None))


def take(stream: Stream, count: int) -> list[torch.Tensor]:
    batches = [stream.next() for _ in range(count)]
    return [
        torch.cat([b.images, b.clean, b.labels[:, None].expand(-1, 3, -1, -1)]) for b in batches
    ]


def same(a: list[torch.Tensor], b: list[torch.Tensor]) -> bool:
    return len(a) == len(b) and all(map(torch.equal, a, b))


@pytest.mark.parametrize("workers", [0, 1])
@pytest.mark.parametrize("which", ["source", "target"])
def test_a_stream_goes_on_anywhere(config: Config, which: str, workers: int) -> None:
    """What was read ahead and not used does not count."""
    stream = World(replace(config, workers=workers), CPU).stream(which, 2)
    whole = take(stream, 9)
    assert stream.position == 18
    again = World(replace(config, workers=workers), CPU).stream(which, 2)
    take(again, 2)
    again.seek(8)
    assert same(take(again, 5), whole[4:])


@pytest.mark.parametrize("workers", [0, 1, 2])
def test_a_stream_is_read_by_as_many_processes_as_asked(config: Config, workers: int) -> None:
    before = set(multiprocessing.active_children())
    stream = World(replace(config, workers=workers), CPU).stream("source", 2)
    stream.next()
    assert len(set(multiprocessing.active_children()) - before) == workers


def test_a_stream_touches_no_global_generator(config: Config) -> None:
    torch.manual_seed(5)
    before = torch.get_rng_state()
    take(World(config, CPU).stream("source", 2), 3)
    assert torch.equal(torch.get_rng_state(), before)


@pytest.mark.parametrize("workers", [0, 1])
def test_processes_see_together_what_one_sees(config: Config, workers: int) -> None:
    config = replace(config, workers=workers)
    alone = World(config, CPU).stream("target", 4)
    streams = [World(config, CPU, rank=rank, count=2).stream("target", 2) for rank in range(2)]
    for _ in range(5):
        whole = alone.next()
        parts = [stream.next() for stream in streams]
        assert torch.equal(whole.images, torch.cat([part.images for part in parts]))
        assert torch.equal(whole.labels, torch.cat([part.labels for part in parts]))
        assert whole.paths == [path for part in parts for path in part.paths]
    assert {stream.position for stream in streams} == {alone.position}
    streams[1].seek(8)
    alone.seek(8)
    assert torch.equal(streams[1].next().images, alone.next().images[2:])


def test_processes_share_the_passes_and_not_the_statistics(config: Config) -> None:
    config = replace(config, evaluation_batch=2)
    alone = World(config, CPU)
    worlds = [World(config, CPU, rank=rank, count=2) for rank in range(2)]
    target = list(alone.target_pass())
    shares = [list(world.target_pass()) for world in worlds]
    # In turns, by batches of one process: 2 2 2 1 of seven images.
    assert [[len(batch) for batch in share] for share in shares] == [[2, 2], [2, 1]]
    assert same(target, [shares[0][0], shares[1][0], shares[0][1], shares[1][1]])
    seen = [sum(len(images) for images, _ in world.evaluation_batches()) for world in worlds]
    assert seen == [3, 2]
    statistics = [list(world.target_statistics(3)) for world in (alone, *worlds)]
    assert same(statistics[0], statistics[1]) and same(statistics[0], statistics[2])


def test_batches_come_as_the_networks_take_them(config: Config) -> None:
    world = World(config, CPU)
    batch = world.stream("target", 2).next()
    images, _ = next(world.evaluation_batches())
    for tensor in (batch.images, batch.clean, images, next(world.target_pass())):
        assert tensor.is_contiguous(memory_format=torch.channels_last)
        assert tensor.shape[1:] == (3, *SIZE)
    quiet = replace(config, target=replace(config.target, color_jitter=0.0, blur=0.0))
    batch = World(quiet, CPU).stream("target", 2).next()
    assert batch.clean is batch.images


def test_caches_change_no_batch(config: Config, tmp_path: Path, monkeypatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    found = []
    for cache, workers in (("none", 0), ("ram", 0), ("disk", 0), ("disk", 1), ("disk", 0)):
        world = World(replace(config, cache=cache, workers=workers), CPU)  # type: ignore[arg-type]
        passes = [*world.target_pass(), *(images for images, _ in world.evaluation_batches())]
        found.append(take(world.stream("source", 2), 6) + passes)
    assert all(same(batches, found[0]) for batches in found)
    assert len(list(tmp_path.rglob("*.decoded"))) == 8 + 7 + 5


@pytest.mark.parametrize("cache", ["none", "ram"])
def test_one_key_sets_all_caches(config: Config, cache: str) -> None:
    world = World(replace(config, cache=cache), CPU)  # type: ignore[arg-type]
    sets = (world.source, world.target, world.target_plain, world.evaluation)
    assert {dataset.config.cache for dataset in sets} == {cache}
    own = replace(config, source=replace(config.source, cache="none"))
    assert World(own, CPU).source.config.cache == "none"
    assert World(own, CPU).target.config.cache == "ram"
