"""Where the time of a run's training steps goes: data, losses, operators, layout copies.

    python benchmarks/profile_trainer.py --preset small --source.root A --target.root B
    python benchmarks/profile_trainer.py --steps 50 --preset demo

Everything but --steps, --profiled and --result is for `python -m cscl_fast.train`: the same
networks, data sets and steps are made from it. Both phases are stepped on real batches, first for
--steps steps with a stopwatch and no profiler (seconds by part, waiting for data among them), then
for --profiled steps under torch.profiler (operators). Nothing is evaluated or saved. Writes
benchmarks/results/training_profile.json and prints Markdown.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from inspect import isfunction
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from layout_copies import copies_of, of_features
from measured_on import environment
from torch.profiler import ProfilerActivity, profile, record_function

from cscl_fast import CSCL, SourceOnly, ops
from cscl_fast.cli import parse
from cscl_fast.models import reestimate_statistics
from cscl_fast.trainer.run import Run
from cscl_fast.trainer.stopwatch import Stopwatch
from cscl_fast.trainer.world import Stream

RESULTS = Path(__file__).resolve().parent / "results" / "training_profile.json"
OURS = "cscl_fast::"
UNCOUNTED = 2  # steps in which memory, optimizer states and the data's readers are made
TOP = 10


class Steps:
    """The steps of one phase on the batches of its streams: `accumulate` of each a step."""

    def __init__(
        self, watch: Stopwatch, accumulate: int, step: Callable[..., Any], *streams: Stream
    ) -> None:
        self.watch, self.accumulate, self.step, self.streams = watch, accumulate, step, streams

    def __call__(self, count: int) -> None:
        for _ in range(count):
            with self.watch("wait"):
                batches = [
                    [stream.next() for _ in range(self.accumulate)] for stream in self.streams
                ]
            self.step(*batches)
        if torch.cuda.is_available():
            torch.cuda.synchronize()

    def by_part(self, count: int) -> tuple[float, dict[str, float]]:
        """Seconds of `count` steps, and those of each part; "other" is what no part has."""
        self(UNCOUNTED)
        self.watch.reset()
        began = time.perf_counter()
        self(count)
        seconds = time.perf_counter() - began
        parts = dict(self.watch.seconds)
        return seconds, {**parts, "other": max(0.0, seconds - sum(parts.values()))}

    def by_operator(self, count: int) -> profile:
        activities = [ProfilerActivity.CPU]
        if torch.cuda.is_available():
            activities.append(ProfilerActivity.CUDA)
        with named_operators(), profile(activities=activities, record_shapes=True) as profiler:
            self(count)
        return profiler


def self_time(event: Any) -> float:
    """Microseconds without those of the operators called: of the GPU's, where there is one."""
    on_gpu = torch.cuda.is_available()
    return float(event.self_device_time_total if on_gpu else event.self_cpu_time_total)


@contextmanager
def named_operators() -> Iterator[None]:
    """Inside, the profiler sees every call of one of this package's operators by its name."""

    def named(name: str) -> Callable[..., Any]:
        function = getattr(ops, name)

        def call(*arguments: Any, **options: Any) -> Any:
            with record_function(OURS + name):
                return function(*arguments, **options)

        return call

    functions = [name for name in ops.__all__ if isfunction(getattr(ops, name))]
    with mock.patch.multiple(ops, **{name: named(name) for name in functions}):
        yield


def own_time(profiler: profile) -> float:
    """Microseconds in this package's operators and their gradients, with all that they call."""
    gradients = {
        f"{kind.__name__}Backward"
        for kind in torch.autograd.Function.__subclasses__()
        if kind.__module__.startswith("cscl_fast.backends")
    }

    def own(event: Any) -> bool:
        return event.name.startswith(OURS) or event.name in gradients

    on_gpu = torch.cuda.is_available()
    total = 0.0
    for event in profiler.events() or ():
        outer = event.cpu_parent
        while outer is not None and not own(outer):
            outer = outer.cpu_parent
        if own(event) and outer is None:
            total += event.device_time_total if on_gpu else event.cpu_time_total
    return total


def report(phase: Steps, model: torch.nn.Module, options: argparse.Namespace) -> dict[str, Any]:
    """What is written down of one phase."""
    seconds, parts = phase.by_part(options.steps)
    profiler = phase.by_operator(options.profiled)
    averages = profiler.key_averages()
    whole = sum(self_time(event) for event in averages)
    top = sorted(averages, key=self_time, reverse=True)[:TOP]
    copies = copies_of(profiler)
    return {
        "steps": options.steps,
        "seconds_per_step": seconds / options.steps,
        "parts": {name: value / seconds for name, value in parts.items()},
        "operators": {
            event.key: {
                "share": self_time(event) / whole,
                "calls_per_step": event.count / options.profiled,
            }
            for event in top
        },
        "own_operators_share": own_time(profiler) / whole,
        "layout_copies_of_features": [str(c) for c in of_features(copies, model.parameters())],
        "layout_copies_of_weights_per_step": (
            len(copies) - len(of_features(copies, model.parameters()))
        )
        / options.profiled,
    }


def markdown(phases: dict[str, dict[str, Any]]) -> str:
    """Tables of the shares of a step, phase by phase."""
    lines = []
    for name, phase in phases.items():
        lines += [
            f"**{name}**: {phase['seconds_per_step'] * 1e3:.0f} ms a step; this package's "
            f"operators {phase['own_operators_share']:.2%}; layout copies of feature maps: "
            f"{len(phase['layout_copies_of_features'])}",
            "",
            "| part | share |",
            "|---|---:|",
        ]
        parts = sorted(phase["parts"].items(), key=lambda part: -part[1])
        lines += [f"| {part} | {share:.2%} |" for part, share in parts]
        lines += ["", "| operator | share | calls a step |", "|---|---:|---:|"]
        lines += [
            f"| `{operator}` | {values['share']:.1%} | {values['calls_per_step']:.0f} |"
            for operator, values in phase["operators"].items()
        ]
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--steps", type=int, default=30, help="of each phase, for the stopwatch")
    parser.add_argument("--profiled", type=int, default=3, help="of each phase, for the profiler")
    parser.add_argument("--result", type=Path, default=RESULTS, help="the JSON file to write")
    options, rest = parser.parse_known_args()
    config = parse(rest)
    run = Run(config)
    options.result.parent.mkdir(parents=True, exist_ok=True)
    watch = Stopwatch()
    source, target = config.warmup.batch_size, config.adaptation.batch_size
    warmup = SourceOnly(run.model, config, stopwatch=watch)
    steps = Steps(watch, config.accumulate, warmup.step, run.world.stream("source", source))
    phases = {"warmup": report(steps, run.model, options)}
    if config.adaptation.bn_batches:
        reestimate_statistics(run.model, run.world.target_statistics(config.adaptation.bn_batches))
    cscl = CSCL(run.model, config, stopwatch=watch)
    cscl.begin_epoch(run.world.target_pass())
    streams = [run.world.stream(which, target) for which in ("source", "target")]
    steps = Steps(watch, config.accumulate, cscl.step, *streams)
    phases["adaptation"] = report(steps, cscl.players, options)
    print(markdown(phases))
    content = {
        "environment": environment() | {"device": str(run.device)},
        "preset": config.preset,
        "architecture": config.model.architecture,
        "size": list(run.world.source[0]["image"].shape[-2:]),
        "precision": config.precision,
        "phases": phases,
    }
    options.result.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
