"""Two gloo processes on the CPU: how the tests start them, and what they do there.

`python several_processes.py SCENARIO FOLDER` is one of the processes; a scenario is a function
below, and what it asserts is printed with its traceback.
"""

from __future__ import annotations

import os
import socket
import subprocess
import sys
import time
from pathlib import Path

import torch
from torch import nn

from cscl_fast import ops
from cscl_fast.trainer.centroids import RunningCentroids, centroids_of_all
from cscl_fast.trainer.processes import LostProcessError, Processes, Shared

PATIENCE = 120.0  # seconds until a test gives up on its processes


def environment(rank: int, count: int, port: int) -> dict[str, str]:
    """What torchrun tells its processes."""
    ours = {"RANK": rank, "WORLD_SIZE": count, "LOCAL_RANK": rank, "MASTER_PORT": port}
    return os.environ | {k: str(v) for k, v in ours.items()} | {
        "MASTER_ADDR": "127.0.0.1",
        "OMP_NUM_THREADS": "1",
    }  # fmt: skip


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port


def start(script: Path, *arguments: str, count: int = 2) -> list[subprocess.Popen[str]]:
    """`count` processes of a script that find one another as torchrun's do."""
    port = free_port()
    return [
        subprocess.Popen(
            [sys.executable, str(script), *arguments],
            env=environment(rank, count, port),
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(count)
    ]


def finish(processes: list[subprocess.Popen[str]]) -> list[tuple[int, str]]:
    """Exit status, and everything printed, of each; none is left behind."""
    end = time.monotonic() + PATIENCE
    try:
        found = []
        for process in processes:
            out, error = process.communicate(timeout=max(1.0, end - time.monotonic()))
            found.append((process.returncode, out + error))
        return found
    finally:
        for process in processes:
            process.kill()


def run_scenario(name: str, folder: Path, count: int = 2) -> None:
    """Two processes go through a scenario without an error."""
    for status, text in finish(start(Path(__file__), name, str(folder), count=count)):
        assert status == 0, text


# ----------------------------------------------------------------------------- the scenarios


def agreement(us: Processes, folder: Path) -> None:
    """Everything that processes tell one another."""
    assert us.gather(f"I am {us.rank}") == [f"I am {rank}" for rank in range(us.count)]
    assert us.from_main(Path("a") if us.is_main else Path("b")) == Path("a")
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
    network, unused = nn.Linear(2, 1, bias=False), nn.Linear(2, 1)
    shared = Shared(us, network, unused)
    x = torch.tensor([[1.0, 10.0]]) * (us.rank + 1)

    def loss(images: torch.Tensor) -> dict[str, torch.Tensor]:
        return {"loss": network(images).sum(), "watched": images.detach().sum()}

    with shared.alone():
        shared(loss, x)["loss"].backward()
    assert torch.equal(network.weight.grad, x)
    shared(loss, 2 * x)["loss"].backward()
    everybody = sum(range(1, us.count + 1))
    assert torch.equal(network.weight.grad, torch.tensor([[3.0, 30.0]]) * everybody)
    assert unused.weight.grad is None
    torch.manual_seed(0)
    assert torch.equal(network.weight, nn.Linear(2, 1, bias=False).weight)


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
        torch.testing.assert_close(running.running, alone.running, rtol=1e-5, atol=1e-6)
        assert torch.equal(running.seen, alone.seen)
        assert not of_all or torch.equal(present, present_alone)
        assert of_all == bool(torch.allclose(blended, blended_alone, rtol=1e-5, atol=1e-6))


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
        sys.exit(1)


SCENARIOS = {
    scenario.__name__: scenario
    for scenario in (agreement, gradients, thresholds_and_centroids, absent)
}


def main() -> None:
    torch.set_num_threads(1)
    us = Processes.from_environment("cpu", timeout=60)
    for name in sys.argv[1].split(","):
        SCENARIOS[name](us, Path(sys.argv[2]))
    us.close()


if __name__ == "__main__":
    main()
