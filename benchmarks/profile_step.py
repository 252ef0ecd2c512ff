"""The share of the operators in one training step of CSCL, with and without the kernels.

    python benchmarks/profile_step.py                       # ResNet-18 and ResNet-101
    python benchmarks/profile_step.py --size 512 1024 --rounds 3

One joint step (labels with online thresholds, every loss of Eq. 14, backward) is timed whole. The
operators' own share is measured on the very arguments they were called with in that step: each
call is repeated alone, forward and, where the step would differentiate it, backward. Both are done
on the backend `reference`, which is well-written eager PyTorch, and on `auto`. Writes
benchmarks/results/training_step.json.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any
from unittest import mock

import torch
import torch.nn.functional as F
from measured_on import environment
from torch import Tensor

from cscl_fast import ops, use_backend
from cscl_fast.config import AdaptationConfig
from cscl_fast.models import WeightAverage, build_model, freeze_affine
from cscl_fast.trainer.labelling import Labeller
from cscl_fast.trainer.players import Batch, Players

RESULTS = Path(__file__).resolve().parent / "results" / "training_step.json"
CLASSES = 19
PARTS = (
    "soft_pseudo_labels",
    "pseudo_label_loss",
    "upsampled_cross_entropy",
    "symmetric_soft_divergence",
    "transfer_reward",
)


def noise(size: tuple[int, int], seed: int) -> Batch:
    """One image, and labels in blocks as large as things on a street."""
    generator = torch.Generator().manual_seed(seed)
    images = torch.randn(1, 3, *size, generator=generator)
    blocks = torch.randint(
        0, CLASSES, (1, 1, size[0] // 32, size[1] // 32), generator=generator
    ).float()
    return Batch(images, images, F.interpolate(blocks, size=size)[:, 0].long(), ["noise"])


class Trainer:
    """A network, its label network and a step of the joint schedule."""

    def __init__(self, architecture: str, size: tuple[int, int]) -> None:
        torch.manual_seed(0)
        model = build_model(architecture, CLASSES)
        freeze_affine(model)
        config = AdaptationConfig(labels="snapshot", thresholds="online")
        self.cscl = Players(model, config).train()
        self.labeller = Labeller(model, WeightAverage(model, 0.99), config, CLASSES)
        self.source, self.target = noise(size, 1), noise(size, 2)
        self.labeller.begin_epoch(0, [self.target.clean])

    def step(self) -> None:
        self.cscl.zero_grad(set_to_none=True)
        pseudo = self.labeller.label(self.target.clean)
        losses = self.cscl.losses(self.source, self.target, pseudo, track=True)
        self.cscl.objective(losses).backward()


@contextmanager
def recorded(calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]]) -> Iterator[None]:
    """Keeps the arguments of every operator called inside."""

    def recorder(name: str, function: Callable[..., Any]) -> Callable[..., Any]:
        def call(*arguments: Any, **options: Any) -> Any:
            calls.append((name, arguments, options))
            return function(*arguments, **options)

        return call

    update = ops.ClassThresholds.update

    def updated(self: ops.ClassThresholds, *arguments: Any, **options: Any) -> None:
        calls.append(("ClassThresholds", arguments, options))
        update(self, *arguments, **options)

    with (
        mock.patch.object(ops.ClassThresholds, "update", updated),
        mock.patch.multiple(ops, **{n: recorder(n, getattr(ops, n)) for n in PARTS}),
    ):
        yield


def alone(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Callable[[], None]:
    """The call by itself, on copies that are leaves where the step differentiates."""
    if name == "ClassThresholds":

        def count() -> None:
            stream = ops.ClassThresholds(CLASSES)
            stream.update(*arguments, **options)
            stream.compute(0.35)

        return count
    leaves = []

    def copy(value: Any) -> Any:
        if isinstance(value, Tensor):
            wanted = value.requires_grad
            value = value.detach().clone(memory_format=torch.preserve_format)
            if wanted:
                leaves.append(value.requires_grad_())
        return value

    arguments = tuple(copy(value) for value in arguments)
    options = {key: copy(value) for key, value in options.items()}
    function = getattr(ops, name)

    def run() -> None:
        for leaf in leaves:
            leaf.grad = None
        answer = function(*arguments, **options)
        if leaves:
            answer.backward()

    return run


def timed(function: Callable[[], None], rounds: int) -> float:
    """Median in seconds, after one round that is not counted."""
    times = []
    for _ in range(rounds + 1):
        began = perf_counter()
        function()
        times.append(perf_counter() - began)
    return median(times[1:])


def measure(architecture: str, size: tuple[int, int], rounds: int) -> list[dict[str, Any]]:
    rows = []
    for backend in ("reference", "auto"):
        with use_backend(backend):
            trainer = Trainer(architecture, size)
            calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
            with recorded(calls):
                trainer.step()
            parts: dict[str, float] = {}
            for name, arguments, options in calls:
                function = alone(name, arguments, options)
                parts[name] = parts.get(name, 0.0) + timed(function, max(rounds, 5))
            calls.clear()
            step = timed(trainer.step, rounds)
        row = {
            "architecture": architecture,
            "size": list(size),
            "backend": backend,
            "step_seconds": step,
            "operators_seconds": parts,
            "share": sum(parts.values()) / step,
        }
        rows.append(row)
        print(f"{architecture} {size[0]}x{size[1]} {backend}: step {step:.3f} s, operators "
              f"{sum(parts.values()) * 1e3:.1f} ms ({row['share']:.1%})")  # fmt: skip
        for name, seconds in parts.items():
            print(f"    {name:28} {seconds * 1e3:9.2f} ms  {seconds / step:6.2%}")
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--size", type=int, nargs=2, default=(512, 1024), help="H W in pixels")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument(
        "--architectures", nargs="+", default=["deeplabv2-resnet18", "deeplabv2-resnet101"]
    )
    options = parser.parse_args()
    rows = []
    for architecture in options.architectures:
        rows += measure(architecture, tuple(options.size), options.rounds)
    RESULTS.write_text(
        json.dumps({"environment": environment(), "steps": rows}, indent=1) + "\n", encoding="utf-8"
    )


if __name__ == "__main__":
    main()
