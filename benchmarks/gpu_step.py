"""One joint step of CSCL on a GPU, with and without the kernels.

    python benchmarks/gpu_step.py --result gpu_step.json --budget 480
    python benchmarks/gpu_step.py --result rehearsal.json --dry-run       # tiny, on the CPU

A step is what profile_step.py times: labels with online thresholds, every loss of Eq. 14, backward;
no data loading, no optimizer. ResNet-101 at 512x1024, channels-last, the whole forward under
torch.autocast in bfloat16 (and once in float32), the encoder as it is or under torch.compile. Both
backends, `reference` and the best one, start from the same weights, so their losses must agree.

A later call goes on with what the time did not suffice for. The operators' share is measured on the
arguments they had in a step: each call is repeated alone, forward and, where the step
differentiates it, backward.
"""

from __future__ import annotations

import argparse
import gc
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import torch
from gpu_support import Result, stand_in_for
from gpu_timing import Clock
from torch import Tensor

stand_in_for("tyro")  # the configuration is dataclasses; no command line is read here

from profile_step import CLASSES, alone, noise, recorded  # noqa: E402

from cscl_fast import backends, ops, use_backend  # noqa: E402
from cscl_fast.config import AdaptationConfig  # noqa: E402
from cscl_fast.models import WeightAverage, build_model, freeze_affine  # noqa: E402
from cscl_fast.trainer.labelling import Labeller  # noqa: E402
from cscl_fast.trainer.players import Batch, Players  # noqa: E402


@dataclass(frozen=True)
class Setting:
    """What is timed, whatever the backend."""

    architecture: str = "deeplabv2-resnet101"
    size: tuple[int, int] = (512, 1024)
    batch: int = 1
    amp: bool = True  # torch.autocast in bfloat16
    compiled: bool = False  # torch.compile of the encoder

    def __str__(self) -> str:
        number = "bfloat16 autocast" if self.amp else "float32"
        encoder = ", encoder compiled" if self.compiled else ""
        size = f"{self.size[0]}x{self.size[1]}"
        return f"{self.architecture} {size} batch {self.batch} {number}{encoder}"


SETTINGS = (
    Setting(),
    Setting(batch=4),
    Setting(amp=False),
    Setting(compiled=True),  # compiling ResNet-101 takes minutes: last
)
TINY = (Setting("deeplabv2-resnet18", (64, 128), amp=False),)


def batch_of(setting: Setting, seed: int, device: str) -> Batch:
    """Noise, and labels in blocks as large as things on a street."""
    parts = [noise(setting.size, seed + 10 * i) for i in range(setting.batch)]
    images = torch.cat([part.images for part in parts]).to(device)
    labels = torch.cat([part.labels for part in parts]).to(device)
    return Batch(images, images, labels, ["noise"] * setting.batch)


class Trainer:
    """A network, its label network and a step of the joint schedule, on a device."""

    def __init__(self, setting: Setting, device: str) -> None:
        torch.manual_seed(0)
        self.setting, self.device = setting, device
        model = build_model(setting.architecture, CLASSES).to(device)
        model.to(memory_format=torch.channels_last)
        freeze_affine(model)
        config = AdaptationConfig(labels="snapshot", thresholds="online")
        self.cscl = Players(model, config).to(device).train()
        self.labeller = Labeller(model, WeightAverage(model, 0.99), config, CLASSES)
        self.source, self.target = batch_of(setting, 1, device), batch_of(setting, 2, device)
        with self.number():
            self.labeller.begin_epoch(0, [self.target.clean])
        if setting.compiled:
            assert self.labeller.snapshot is not None
            torch._dynamo.reset()
            torch._dynamo.config.recompile_limit = 64  # modes and statistics change in a step
            model.encoder.compile(dynamic=False)
            self.labeller.snapshot.encoder.compile(dynamic=False)

    def number(self) -> AbstractContextManager[Any]:
        if not self.setting.amp:
            return nullcontext()
        # D is looked at without gradients first. A cached copy of its weights from there would keep
        # its own loss from reaching them.
        return torch.autocast(self.device, torch.bfloat16, cache_enabled=False)

    def step(self) -> dict[str, float | Tensor]:
        self.cscl.zero_grad(set_to_none=True)
        with self.number():
            pseudo = self.labeller.label(self.target.clean)
            losses = self.cscl.losses(self.source, self.target, pseudo, track=True)
            total = self.cscl.objective(losses)
        total.backward()
        return {name: loss.detach() for name, loss in losses.items()}


def repeated(name: str, arguments: tuple[Any, ...], options: dict[str, Any]) -> Callable[[], None]:
    """One recorded call by itself."""
    if name != "ClassThresholds":
        return alone(name, arguments, options)
    stream = ops.ClassThresholds(CLASSES, device=arguments[0].device)

    def count() -> None:
        stream.update(*arguments, **options)
        stream.compute(0.35)

    return count


def operators_alone(trainer: Trainer, clock: Clock) -> tuple[dict[str, float], dict[str, float]]:
    """Milliseconds of each operator over its calls in one step, and the losses of that step."""
    calls: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = []
    with recorded(calls):
        losses = trainer.step()
    parts: dict[str, float] = {}
    for name, arguments, options in calls:
        function = repeated(name, arguments, options)
        with torch.enable_grad():
            function()
            parts[name] = parts.get(name, 0.0) + clock.time(function, 0.2).milliseconds
    return parts, {name: float(loss) for name, loss in losses.items()}


def measure(setting: Setting, backend: str, clock: Clock) -> dict[str, Any]:
    with use_backend(backend):
        trainer = Trainer(setting, clock.device)
        parts, losses = operators_alone(trainer, clock)
        for _ in range(3 if clock.device == "cuda" else 1):
            trainer.step()
        held = torch.cuda.memory_allocated() if clock.device == "cuda" else None
        peak = clock.peak_bytes(trainer.step)
        timing = clock.time(trainer.step)
    return {
        "setting": str(setting),
        **asdict(setting),
        "size": list(setting.size),
        "backend": backend,
        "step_milliseconds": timing.milliseconds,
        "fastest_milliseconds": timing.fastest,
        "repetitions": timing.repetitions,
        "operators_milliseconds": parts,
        "share_of_operators": sum(parts.values()) / timing.milliseconds,
        "peak_bytes": peak,  # beyond what is held: networks, images, the clock's buffer
        "held_bytes": held,
        "losses": losses,
    }


def disagreement(rows: list[dict[str, Any]]) -> float:
    """The largest difference of a loss between two backends, relative to 1 + its size."""
    first, second = (row["losses"] for row in rows)
    return max(abs(first[name] - second[name]) / (1 + abs(first[name])) for name in first)


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--result", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--budget", type=float, default=480.0, help="seconds")
    parser.add_argument("--backend", default="auto", help="against `reference`")
    parser.add_argument("--dry-run", action="store_true", help="tiny, on the CPU")
    options = parser.parse_args()
    if options.backend != "auto" and (why := backends.why_unavailable(options.backend)):
        print(f"{options.backend}: {why}", file=sys.stderr)
        return 1
    clock = Clock("cpu", 0.3) if options.dry_run else Clock("cuda", 2.0)
    result = Result(options.result, "step", dry_run=options.dry_run, keep=True)
    kept = result.content.get("steps", [])
    there = {row["setting"] for row in kept if "losses_differ_by" in row}
    kept = [row for row in kept if row["setting"] in there]
    result.set(method=clock.method, steps=kept, left_out=[], failed=[])
    deadline, agreed = monotonic() + options.budget, True
    for setting in TINY if options.dry_run else SETTINGS:
        if str(setting) in there:
            continue
        if monotonic() > deadline:
            result.add("left_out", {"setting": str(setting)})
            continue
        rows = []
        try:
            for backend in ("reference", options.backend):
                rows.append(measure(setting, backend, clock))
                result.add("steps", rows[-1])
                row = rows[-1]
                print(f"{setting}: {backend} {row['step_milliseconds']:.1f} ms, operators "
                      f"{row['share_of_operators']:.1%}", flush=True)  # fmt: skip
                gc.collect()
                if clock.device == "cuda":
                    torch.cuda.empty_cache()
        except Exception as error:  # torch.compile may fail where the rest does not
            result.add("failed", {"setting": str(setting), "why": f"{error}"[:400]})
            print(f"{setting}: failed: {error}", file=sys.stderr, flush=True)
            agreed = agreed and setting.compiled
            continue
        # Bfloat16 convolutions differ from run to run by more than the operators may.
        difference = disagreement(rows)
        rows[-1]["losses_differ_by"] = difference
        result.set()
        if difference > (0.05 if setting.amp else 1e-3):
            agreed = False
            print(f"{setting}: the losses differ by {difference:.1e}", file=sys.stderr)
    if not agreed:
        return 1
    return 4 if result.content["left_out"] else 0


if __name__ == "__main__":
    sys.exit(main())
