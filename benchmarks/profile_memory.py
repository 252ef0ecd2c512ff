"""The memory of one joint training step, with this package's losses and with plain PyTorch's.

    python benchmarks/profile_memory.py                      # ResNet-101 at 256x512, Linux
    python benchmarks/profile_memory.py --architecture deeplabv2-resnet18 --size 128 256

A step is all of one: labels by the label network, every loss of Eq. 14, backward, optimizers; batch
1, float32, on the CPU. Each row is measured in a process of its own: how far the resident memory
rises in two steps above what it was once the networks, the label networks among them, were made.
Gradients and optimizer states are therefore in it, weights are not. "plain" is plain_losses.py.
The C library gives back what is freed (its threshold for that is fixed), so that the figures are of
what is in use and not of how blocks of memory happen to lie.
Writes benchmarks/results/training_memory.json and prints the table in Markdown.
"""

from __future__ import annotations

import argparse
import ctypes
import gc
import json
import os
import subprocess
import sys
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import torch
from measured_on import environment
from plain_losses import plain_losses
from profile_step import CLASSES, noise

from cscl_fast import CSCL
from cscl_fast.config import AdaptationConfig, Config
from cscl_fast.models import build_model, checkpoint_activations, freeze_affine

RESULTS = Path(__file__).resolve().parent / "results" / "training_memory.json"
STEPS = 2
MIB = 1 << 20


def status(entry: str) -> int:
    """Bytes of an entry of /proc/self/status."""
    for line in Path("/proc/self/status").read_text(encoding="ascii").splitlines():
        if line.startswith(entry + ":"):
            return int(line.split()[1]) << 10
    raise KeyError(entry)


def measure(
    architecture: str, size: tuple[int, int], *, plain: bool, recomputing: bool
) -> dict[str, Any]:
    """One row, in this process."""
    torch.manual_seed(0)
    model = build_model(architecture, CLASSES)
    freeze_affine(model)
    if recomputing:
        checkpoint_activations(model)
    cscl = CSCL(model, Config(adaptation=AdaptationConfig(batch_size=1)))
    source, target = noise(size, 1), noise(size, 2)
    with plain_losses() if plain else nullcontext():
        cscl.begin_epoch([target.clean])
        gc.collect()
        ctypes.CDLL(None).malloc_trim(0)  # what the allocator kept would hide what is taken
        Path("/proc/self/clear_refs").write_text("5", encoding="ascii")  # the peak starts anew
        before = status("VmRSS")
        losses = [cscl.step(source, target) for _ in range(STEPS)]
        peak = status("VmHWM") - before
    return {
        "losses": "plain" if plain else "cscl_fast",
        "activation_checkpointing": recomputing,
        "peak_bytes": peak,
        "objective": [step["total"] for step in losses],
    }


def in_own_process(options: argparse.Namespace, *more: str) -> dict[str, Any]:
    height, width = map(str, options.size)
    command = [sys.executable, __file__, "--architecture", options.architecture]
    command += ["--size", height, width, "--row", *more]
    variables = {**os.environ, "MALLOC_MMAP_THRESHOLD_": str(128 << 10)}
    answer = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True, env=variables)
    row: dict[str, Any] = json.loads(answer.stdout.splitlines()[-1])
    return row


def markdown(rows: list[dict[str, Any]]) -> str:
    lines = ["| peak above the networks, MiB | plain losses | cscl_fast |", "|---|---:|---:|"]
    for recomputing in (False, True):
        cells = [
            f"{row['peak_bytes'] / MIB:,.0f}"
            for row in rows
            if row["activation_checkpointing"] == recomputing
        ]
        name = "with activation checkpointing" if recomputing else "a joint step"
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0] if __doc__ else None)
    parser.add_argument("--architecture", default="deeplabv2-resnet101")
    parser.add_argument("--size", type=int, nargs=2, default=(256, 512), help="H W in pixels")
    parser.add_argument("--result", type=Path, default=RESULTS, help="the JSON file to write")
    parser.add_argument("--row", nargs="*", choices=("plain", "recomputing"), help="of the program")
    options = parser.parse_args()
    if options.row is not None:
        row = measure(
            options.architecture,
            tuple(options.size),
            plain="plain" in options.row,
            recomputing="recomputing" in options.row,
        )
        print(json.dumps(row))
        return
    options.result.parent.mkdir(parents=True, exist_ok=True)
    rows = [
        in_own_process(options, *losses, *checkpoints)
        for checkpoints in ((), ("recomputing",))
        for losses in (("plain",), ())
    ]
    print(markdown(rows))
    content = {
        "environment": environment(),
        "architecture": options.architecture,
        "size": list(options.size),
        "steps": STEPS,
        "rows": rows,
    }
    options.result.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
