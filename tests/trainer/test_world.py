"""Streams of batches: their place, their share among processes, and what is read beforehand."""

from __future__ import annotations

import multiprocessing
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from PIL import Image
from trainer_worlds import SIZE, arguments, run_through

from cscl_fast import evaluate
from cscl_fast.cli import parse
from cscl_fast.config import Config, ConfigError
from cscl_fast.trainer.gap import GapMeter
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


# ------------------------------------------------------------------------- images of several sizes


@pytest.fixture
def uneven(own: Path) -> Path:
    """Data sets of which every other image is larger."""
    for path in own.rglob("p*[13579].png"):
        picture = Image.open(path)
        picture.resize((80, 56), Image.Resampling.NEAREST).save(path)
    return own


def of_own_sizes(worlds: Path, *more: str) -> list[str]:
    options = [x for name in NAMES for x in (f"--{name}.size", "None")]
    batches = ["--warmup.batch-size", "1", "--adaptation.batch-size", "1"]
    return arguments(worlds, None, *options, *batches, *more)


NAMES = ("source", "target", "evaluation")


def test_passes_take_images_that_differ_in_size_one_by_one(uneven: Path, worlds: Path) -> None:
    options = ("--evaluation-batch", "3", "--adaptation.bn-batches", "9", "--gap-batches", "1")
    world = World(parse(of_own_sizes(uneven, *options)), CPU)
    batches = [
        list(world.target_pass()),
        [images for images, _ in world.evaluation_batches()],
        list(world.target_statistics(9)),
        [images for images, _ in GapMeter(world)._batches(world.target_plain)],
    ]
    for one, number in zip(batches, (7, 5, 7, 3), strict=True):
        assert [len(images) for images in one] == [1] * number
        assert {tuple(images.shape[2:]) for images in one} == {SIZE, (56, 80)}
    alike = World(parse(of_own_sizes(worlds, *options)), CPU)
    assert [len(images) for images in alike.target_pass()] == [3, 3, 1]


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--warmup.batch-size", "2"], "warmup.batch_size is 2, but the source images differ"),
        (["--adaptation.batch-size", "2"], "adaptation.batch_size is 2, but the source images"),
        (
            ["--adaptation.batch-size", "2", "--source.crop", "48", "48"],
            "adaptation.batch_size is 2, but the target images differ in size, as 48x64 and 56x80 "
            "(HxW): set target.size or target.crop, or use batches of 1",
        ),
    ],
)
def test_training_batches_of_unlike_images_are_refused_before_the_first_step(
    uneven: Path, options: list[str], message: str
) -> None:
    with pytest.raises(ConfigError) as failure:
        World(parse(of_own_sizes(uneven, *options)), CPU).check(lambda text: None)
    assert str(failure.value).startswith(message)
    cropped = [*options, *("--source.crop", "48", "48", "--target.crop", "48", "48")]
    World(parse(of_own_sizes(uneven, *cropped)), CPU).check(lambda text: None)


@pytest.mark.usefixtures("tiny")
def test_a_run_on_images_of_several_sizes(uneven: Path, tmp_path: Path) -> None:
    options = ["--accumulate", "2", "--gap-batches", "1", "--adaptation.bn-batches", "3"]
    run = tmp_path / "run"
    run_through([*of_own_sizes(uneven, *options), "--run", str(run)])
    assert evaluate.main([str(run / "checkpoints" / "last.pt")]) == 0


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
