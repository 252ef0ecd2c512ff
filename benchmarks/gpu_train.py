"""A short training run on a GPU, for its figures: the demo, and one's own two domains if given.

    python benchmarks/gpu_train.py --result gpu_train.json --runs FOLDER [--data FOLDER]
    python benchmarks/gpu_train.py --result rehearsal.json --runs FOLDER --dry-run

FOLDER of --data holds two data sets in the `folder` layout, *source and *target, the latter with a
split `val`. The same as `python -m cscl_fast.train --preset …` with the options that are stored
beside the figures, without the package for the command line.
"""

from __future__ import annotations

import argparse
import csv
import sys
import time
from pathlib import Path
from typing import Any

import torch
from gpu_support import Result, stand_in_for

stand_in_for("tyro")

from cscl_fast.config import Config  # noqa: E402
from cscl_fast.presets import preset  # noqa: E402
from cscl_fast.train import train  # noqa: E402

Options = dict[str, Any]

# The demo as it is on the CPU, so that the figures can be laid side by side.
DEMO: Options = {}
SMALL: Options = {"warmup.steps": 600, "adaptation.epochs": 2, "adaptation.steps": 60}
# Anything that runs: nothing is learnt in two steps.
TINY: Options = {
    "warmup.steps": 2,
    "warmup.batch_size": 2,
    "adaptation.epochs": 1,
    "adaptation.steps": 2,
    "adaptation.batch_size": 1,
    "adaptation.bn_batches": 1,
    "source.size": (64, 128),
    "target.size": (64, 128),
    "evaluation.size": (64, 128),
    "source.count": 4,
    "target.count": 2,
    "evaluation.count": 2,
    "panels": 1,
    "log_every": 1,
}


def configured(name: str, options: Options) -> Config:
    """A preset with dotted keys changed."""
    config = preset(name)
    for key, value in options.items():
        section, _, last = key.rpartition(".")
        owner = getattr(config, section) if section else config
        if not hasattr(owner, last):
            raise AttributeError(f"there is no key {key}")
        setattr(owner, last, value)
    return config


def domains(data: Path) -> Options:
    """Where the two data sets lie below `data`."""
    found = {}
    for kind in ("source", "target"):
        folders = [path for path in sorted(data.glob(f"*{kind}")) if path.is_dir()]
        if len(folders) != 1:
            raise SystemExit(f"{data} needs one folder *{kind}; it has {len(folders)}")
        found[kind] = folders[0]
    return {
        "source.root": found["source"],
        "target.root": found["target"],
        "evaluation.root": found["target"],
    }


def speeds(run: Path) -> dict[str, float]:
    """Steps a second at the end of each phase, from the run's own table."""
    with (run / "metrics.csv").open(encoding="utf-8", newline="") as file:
        return {row["phase"]: float(row["speed"]) for row in csv.DictReader(file)}


def figures(name: str, options: Options, folder: Path) -> dict[str, Any]:
    """Trains, and what came of it."""
    options = {**options, "run": folder / name, "overwrite": True}
    if torch.cuda.is_available():
        torch.cuda.reset_peak_memory_stats()
    began = time.monotonic()
    scores = train(configured(name, options))
    shown = {k: str(v) if isinstance(v, Path) else v for k, v in options.items()}
    return {
        "preset": name,
        "options": {k: v for k, v in shown.items() if not k.endswith(("run", "root", "overwrite"))},
        "seconds": time.monotonic() - began,
        "steps_per_second": speeds(options["run"]),
        "peak_bytes": torch.cuda.max_memory_allocated() if torch.cuda.is_available() else None,
        "rows": {row: score.row() for row, score in scores.items()},
    }


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--result", type=Path, required=True, help="JSON file to write")
    parser.add_argument("--runs", type=Path, required=True, help="folder of the run folders")
    parser.add_argument("--data", type=Path, help="folder with two domains")
    parser.add_argument("--dry-run", action="store_true", help="a few steps, on the CPU")
    arguments = parser.parse_args()
    device = {"device": "cpu" if arguments.dry_run else "cuda"}
    result = Result(arguments.result, "train", dry_run=arguments.dry_run)
    result.set(runs=[])
    result.add("runs", figures("demo", {**(TINY if arguments.dry_run else DEMO), **device},
                               arguments.runs))  # fmt: skip
    if arguments.data is None:
        result.set(own_data="not given: --data FOLDER")
    else:
        options = {**SMALL, **domains(arguments.data), **device}
        if arguments.dry_run:
            few = {k: v for k, v in TINY.items() if not k.endswith("count")}
            options.update(few)
            options.update({f"{k}.limit": 4 for k in ("source", "target", "evaluation")})
        result.add("runs", figures("small", options, arguments.runs))
    for run in result.content["runs"]:
        for row, score in run["rows"].items():
            print(f"{run['preset']}: {row:32} mIoU {score['mIoU']:.1f}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
