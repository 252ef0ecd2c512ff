"""What gloo processes on the CPU do in the tests.

`python several_processes.py SCENARIO FOLDER` is one of the processes; a scenario is a function
below, and what it asserts is printed with its traceback.
"""

from __future__ import annotations

import copy
import math
import os
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from gloo_processes import finish, start
from torch import Tensor, nn
from trainer_worlds import TinyModel, same

from cscl_fast import CSCL, Config, SourceOnly, ops
from cscl_fast.config import AdaptationConfig, ConfigError
from cscl_fast.trainer.centroids import RunningCentroids, centroids_of_all
from cscl_fast.trainer.players import Batch
from cscl_fast.trainer.processes import LostProcessError, Processes, Shared
from cscl_fast.trainer.update import DivergedError


def run_scenario(name: str, folder: Path, count: int = 2) -> None:
    """Two processes go through a scenario without an error."""
    for status, text in finish(start(Path(__file__), name, str(folder), count=count)):
        assert status == 0, text


# ----------------------------------------------------------------------------- the scenarios


def agreement(us: Processes, folder: Path) -> None:
    """Everything that processes tell one another."""
    assert us.gather(f"I am {us.rank}") == [f"I am {rank}" for rank in range(us.count)]
    keys = torch.tensor([1, 2], dtype=torch.uint32)  # as NumPy's random state has
    assert torch.equal(us.gather(keys)[-1], keys)
    assert us.any(us.rank == 1)
    assert not us.any(False)

    # Not associative: only one order gives this result.
    value = torch.tensor([1e8, -1e8, 1.0][us.rank])
    expected = torch.tensor(1e8) + torch.tensor(-1e8)
    if us.count == 3:
        expected = expected + torch.tensor(1.0)
    assert torch.equal(us.sum(value), expected)

    # The adjoint: d(sum²)/dx of a loss that all share.
    x = torch.tensor([float(us.rank + 1)], requires_grad=True)
    total = us.sum(x)
    (total.square().sum() / us.count).backward()
    assert torch.equal(x.grad, 2 * total.detach())

    statistics = [torch.full((2,), float(us.rank)), torch.full((2, 2), 10.0 * us.rank)]
    us.average_(statistics)
    mean = (us.count - 1) / 2
    assert torch.equal(statistics[0], torch.full((2,), mean))
    assert torch.equal(statistics[1], torch.full((2, 2), 10 * mean))

    torch.manual_seed(us.rank)
    network = nn.Sequential(nn.Linear(3, 3), nn.BatchNorm1d(3))
    us.copy_from_main(network)
    torch.manual_seed(0)
    assert torch.equal(network[0].weight, nn.Linear(3, 3).weight)


def gradients(us: Processes, folder: Path) -> None:
    """Gradients are sums over the processes, after the last of several backward passes."""
    torch.manual_seed(us.rank)  # Shared gives all the first one's weights
    network = nn.Linear(2, 1, bias=False)
    shared = Shared(us, network)
    x = torch.tensor([[1.0, 10.0]]) * (us.rank + 1)

    def loss(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": network(images).sum(), "watched": images.detach().sum()}

    with shared.alone():
        shared(loss, x)["loss"].backward()
    assert torch.equal(network.weight.grad, x)
    shared(loss, 2 * x)["loss"].backward()
    everybody = sum(range(1, us.count + 1))
    assert torch.equal(network.weight.grad, torch.tensor([[3.0, 30.0]]) * everybody)
    shared.require_all()
    torch.manual_seed(0)
    assert torch.equal(network.weight, nn.Linear(2, 1, bias=False).weight)

    idle = Shared(us, network, nn.Linear(1, 1))
    network.weight.grad = None
    idle(loss, x)["loss"].backward()
    try:
        idle.require_all()
    except ConfigError as error:
        assert "2 parameters take no part in the losses" in str(error)
    else:
        raise AssertionError("nothing was said about parameters without a gradient")


def thresholds_and_centroids(us: Processes, folder: Path) -> None:
    """Shares of a batch give what the batch gives."""
    torch.manual_seed(0)
    logits = 3 * torch.randn(us.count, 5, 6, 8)
    counted, whole = ops.ClassThresholds(5), ops.ClassThresholds(5)
    counted.update(logits[us.rank, None], size=(24, 32))
    counted.all_reduce()
    whole.update(logits, size=(24, 32))
    assert torch.equal(counted.counts, whole.counts)
    assert torch.equal(counted.compute(0.4), whole.compute(0.4))

    features = torch.randn(us.count, 7, 6, 8, requires_grad=True)
    labels = torch.randint(0, 5, (us.count, 6, 8))
    labels[0][labels[0] == 3] = 255  # a class that one process does not have
    labels[labels == 4] = 255  # and one that nobody has
    direction = torch.randn(5, 7)

    def loss(centroids: torch.Tensor) -> torch.Tensor:
        return (centroids.softmax(1) * direction).sum()

    expected, mass = ops.class_centroids(features, labels, 5)
    loss(expected).backward()
    expected_gradient, features.grad = features.grad[us.rank], None
    own = features[us.rank, None], labels[us.rank, None]
    found, mass_of_all = centroids_of_all(us, *own, 5)
    # float32, sums in another order
    torch.testing.assert_close(found, expected, rtol=1e-5, atol=1e-6)
    assert torch.equal(mass_of_all, mass)
    (loss(found) / us.count).backward()
    # Of all processes' objectives, each with its share.
    torch.testing.assert_close(
        features.grad[us.rank], expected_gradient, rtol=1e-4, atol=1e-6 * us.count
    )

    for of_all in (False, True):
        running = RunningCentroids(0.5, 5, 7, us, of_all=of_all)
        alone = RunningCentroids(0.5, 5, 7)
        for _ in range(2):
            blended, present = running.blend(0, *own)
            blended_alone, present_alone = alone.blend(0, features, labels)
            running.settle()
            alone.settle()
        torch.testing.assert_close(running.running, alone.running, rtol=1e-5, atol=1e-6)
        assert torch.equal(running.seen, alone.seen)
        assert not of_all or torch.equal(present, present_alone)
        assert of_all == bool(torch.allclose(blended, blended_alone, rtol=1e-5, atol=1e-6))


# ------------------------------------------------------------- steps of the method, in shares

# What each kind changes of the configuration, and how many batches a process gives a step. L_div
# is the mean of the processes' own, unless their centroids are shared: then one process compares
# with micro-batches, of which L_div is the mean as well.
KINDS: dict[str, tuple[dict[str, Any], int]] = {
    "joint": ({}, 1),
    "alternating": ({"schedule": "alternating"}, 1),
    "global centroids": ({"global_centroids": True}, 1),
    "running centroids": ({"global_centroids": True, "centroid_momentum": 0.5}, 1),
    "online thresholds": ({"thresholds": "online", "labels": "live", "global_centroids": True}, 1),
    "accumulated": ({"schedule": "alternating", "accumulate": 2}, 2),
    "hard labels": ({"without": ("pseudo-labels",)}, 1),
    "losses alone": ({"without": ("transfer", "divergence")}, 1),
}
STEPS = 3


def configured(**changes: Any) -> Config:
    """Keys of `Config` and of its section `adaptation`."""
    own = {key: changes.pop(key) for key in list(changes) if key in Config.__dataclass_fields__}
    adaptation = {"epochs": 1, "steps": 10, "learning_rate": 1e-2, "bn": "frozen", **changes}
    return Config(**own, adaptation=AdaptationConfig(**adaptation))


def network(seed: int = 0) -> TinyModel:
    torch.manual_seed(seed)
    model = TinyModel("tiny", 3)
    model.encoder[-1] = nn.Identity()  # dropout draws by process
    with torch.no_grad():
        # So that it predicts every class somewhere, and some pixels are kept and some are not.
        model.classifier.weight.mul_(32)
    return model


def batch(seed: int) -> tuple[Tensor, Tensor]:
    """One image and its labels, of which more or fewer are ignored."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, 3, 48, 64, generator=generator)
    blocks = torch.randint(0, 3, (1, 1, 6, 8), generator=generator)
    labels = nn.functional.interpolate(blocks.float(), size=(48, 64))[:, 0].long()
    labels[:, : 5 + 8 * (seed % 3)] = 255
    return images, labels


def together(batches: list[tuple[Tensor, Tensor]]) -> tuple[Tensor, Tensor]:
    images, labels = zip(*batches, strict=True)
    return torch.cat(images), torch.cat(labels)


def begun(config: Config, us: Processes) -> CSCL:
    cscl = CSCL(network(), config, processes=us)
    torch.manual_seed(1)
    nn.init.normal_(cscl.players.critic.value.weight, std=0.1)  # every loss at work at once
    with torch.no_grad():  # a gate that opens: rewards ask what it changes, by a bit or by a lot
        cscl.players.quantizer.convolution.bias += 2
    return cscl


def equal_steps(us: Processes, folder: Path) -> None:
    """Processes with an image each do what one does with all of them."""
    for kind, (changes, parts) in KINDS.items():
        config = configured(**changes)
        ours = begun(config, us)
        in_parts = parts > 1 or not (config.global_centroids or "divergence" in config.without)
        micro = us.count * parts if in_parts else 1
        theirs = begun(replace(config, accumulate=micro), Processes.alone())

        passed = [batch(900 + i)[0] for i in range(3)]
        expected = theirs.begin_epoch(passed)
        # Counts are integers: not even a bit differs.
        assert torch.equal(ours.begin_epoch(passed[us.rank :: us.count]), expected), kind

        for step in range(STEPS):
            seeds = [1000 * step + i for i in range(us.count * parts)]
            sources, targets = [batch(i) for i in seeds], [batch(500 + i)[0] for i in seeds]
            mine = slice(us.rank * parts, (us.rank + 1) * parts)
            if parts > 1:
                found = ours.step(sources[mine], targets[mine])
            else:
                found = ours.step(*sources[mine], *targets[mine])
            if in_parts:
                wanted = theirs.step(sources, targets)
            else:
                wanted = theirs.step(together(sources), torch.cat(targets))
            assert found.keys() == wanted.keys()
            for name, value in wanted.items():
                # Sums in float32 are taken in another order: 1e-6. Adam takes steps of one size
                # however small a gradient is, so that the rounding of small ones grows in the
                # players' weights from step to step.
                assert math.isclose(found[name], value, rel_tol=1e-5 if step == 0 else 2e-4), (
                    f"{kind}, step {step}: {name} is {found[name]}, alone {value}"
                )
            assert ours.players.selects == (0.3 < found["kept"] < 0.9), kind
            # As many locations are kept, of each class.
            assert torch.equal(ours.kept_by_class(), theirs.kept_by_class()), kind
        states = us.gather({k: v.clone() for k, v in ours.players.state_dict().items()})
        assert same(states[0], states[-1]), kind  # the same bits in all processes
        for name, tensor in theirs.model.state_dict().items():
            torch.testing.assert_close(
                ours.model.state_dict()[name], tensor, rtol=1e-3, atol=1e-5, msg=f"{kind}: {name}"
            )
        # With the same network, thresholds are the same again, after any number of steps.
        ours.players.load_state_dict(theirs.players.state_dict())
        assert (
            torch.equal(ours.begin_epoch(passed[us.rank :: us.count]), theirs.begin_epoch(passed))
            or config.adaptation.thresholds == "online"
        ), kind


def equal_warmup(us: Processes, folder: Path) -> None:
    for accumulate in (1, 2):
        models = network(), network()
        for model in models:  # the warm-up's normalisations look at whole batches
            for i in (1, 4, 7):
                model.encoder[i] = nn.Identity()
        ours = SourceOnly(models[0], configured(accumulate=accumulate), processes=us)
        theirs = SourceOnly(models[1], configured())
        for step in range(STEPS):
            batches = [batch(100 * step + i) for i in range(us.count * accumulate)]
            mine = batches[us.rank * accumulate : (us.rank + 1) * accumulate]
            found = ours.step(mine if accumulate > 1 else mine[0])
            wanted = theirs.step(together(batches))
            # SGD: only the order of float32 sums differs.
            assert math.isclose(found["total"], wanted["total"], rel_tol=1e-5)
        states = us.gather(ours.model.state_dict())
        assert same(states[0], states[-1])


def statistics(us: Processes, folder: Path) -> None:
    """Running statistics are the averages of the processes', and the same in all."""
    for bn in ("per-domain", "shared"):
        ours = begun(configured(bn=bn), us)
        ours.begin_epoch([batch(us.rank)[0]])
        before = ours.model.encoder[1].running_mean.clone()
        images = batch(10 + us.rank)[0]
        with torch.no_grad():
            own = ours.model.encoder[0](images).mean((0, 2, 3))
        ours.step(batch(us.rank), images)
        if bn == "per-domain":
            expected = 0.9 * before + 0.1 * us.sum(own) / us.count
            torch.testing.assert_close(ours.model.encoder[1].running_mean, expected)
        states = us.gather([ours.model.state_dict(), ours.average.state_dict()])
        assert same(states[0], states[-1])


def different_starts(us: Processes, folder: Path) -> None:
    """Every process begins with the first one's weights, in all that holds a copy of them."""
    for labels in ("ema", "snapshot"):
        ours = CSCL(network(us.rank), configured(labels=labels), processes=us)
        assert same(dict(ours.model.state_dict()), dict(network(0).state_dict())), labels
        held = [ours.average.state_dict(), ours.labeller.network.state_dict()]
        states = us.gather([{k: v.clone() for k, v in state.items()} for state in held])
        assert same(states[0], states[-1]), labels
        # It takes but one process that has target images.
        thresholds = us.gather(ours.begin_epoch([batch(5)[0]] if us.rank else []))
        assert torch.equal(thresholds[0], thresholds[1]) and thresholds[0].min() < 1, labels
        try:
            ours.begin_epoch([])
        except ValueError as error:
            assert "no pixel to take thresholds from" in str(error)
        else:
            raise AssertionError("thresholds of nothing")


def divergence(us: Processes, folder: Path) -> None:
    """A loss that one process finds not to be finite stops all, which name its files."""
    for schedule in ("joint", "alternating"):
        ours = begun(configured(schedule=schedule, thresholds="online"), us)
        ours.begin_epoch([batch(us.rank)[0]])
        before = copy.deepcopy(ours.players.state_dict())
        images, labels = batch(us.rank)
        if us.rank == 1:
            images[0, 0, 0, 0] = math.inf
        source = Batch(images, images, labels, [f"file{us.rank}.png"])
        try:
            ours.step(source, batch(5)[0])
        except DivergedError as error:
            assert error.paths == ("file1.png",), error.paths
            assert error.updated == ()
        else:
            raise AssertionError("the step went through")
        assert same(before, ours.players.state_dict())
        ours.step(batch(us.rank), batch(us.rank + 5)[0])  # they are still together

        # The same of a gradient whose loss is finite; nobody knows whose it is.
        before = copy.deepcopy(ours.players.state_dict())
        if us.rank == 1:
            weight = ours.model.classifier.weight
            hook = weight.register_hook(lambda gradient: gradient * math.nan)
        images, labels = batch(us.rank)
        source = Batch(images, images, labels, [f"file{us.rank}.png"])
        try:
            ours.step(source, batch(5)[0])
        except DivergedError as error:
            assert error.term == "gradient" and "file1.png" in error.paths, error
            assert ("model" in error.updated) is False
        else:
            raise AssertionError("the step went through")
        if us.rank == 1:
            hook.remove()
        model = {k: v for k, v in before.items() if k.startswith("model.")}
        assert same(model, {k: ours.players.state_dict()[k] for k in model})
        ours.step(batch(us.rank), batch(us.rank + 5)[0])

    scaled = begun(configured(precision="float16"), us)
    scaled.begin_epoch([batch(us.rank)[0]])
    before = copy.deepcopy(scaled.players.state_dict())
    images, labels = batch(us.rank)
    if us.rank == 1:
        images[0, 0, 0, 0] = math.inf
    assert scaled.step((images, labels), batch(5)[0])["skipped"] == 1
    assert same(before, scaled.players.state_dict())


def refused(us: Processes, folder: Path) -> None:
    """What the first process refuses ends all, and it alone says why."""
    assert us.main_does(lambda: us.rank) == 0

    def refuse() -> None:
        raise ConfigError("there is a run in the folder already")

    try:
        us.main_does(refuse)
    except ConfigError as error:
        print(error)
        us.end_at_once(2)
    print("not reached")


def absent(us: Processes, folder: Path) -> None:
    """The second process ends in the middle of a step; the first one says so, and ends."""
    us.how_to_go_on = "the command that goes on"
    us.barrier()
    if us.rank == 1:
        os._exit(7)
    try:
        us.sum(torch.ones(3))
    except LostProcessError as error:
        print(error)
        us.end_at_once(1)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (
        agreement,
        gradients,
        thresholds_and_centroids,
        equal_steps,
        equal_warmup,
        statistics,
        different_starts,
        divergence,
        refused,
        absent,
    )
}


def main() -> None:
    torch.set_num_threads(1)
    us = Processes.from_environment("cpu", timeout=60)
    for name in sys.argv[1].split(","):
        SCENARIOS[name](us, Path(sys.argv[2]))
    us.close()


if __name__ == "__main__":
    main()
