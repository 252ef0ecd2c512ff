"""Stands in for `python -m cscl_fast.train`: leaves behind at once what a run leaves.

PRETEND_FAIL=NAME    runs whose folder has this in its name end with an error
PRETEND_WAIT=NAME    such runs go on until they are asked to stop, and save then
Each call appends its arguments to PRETEND_CALLS.
"""

from __future__ import annotations

import argparse
import csv
import os
import signal
import sys
import time
from pathlib import Path

import yaml

parser = argparse.ArgumentParser()
parser.add_argument("--config", type=Path)
parser.add_argument("--run", type=Path)
parser.add_argument("--resume", type=Path)
parser.add_argument("--overwrite", action="store_true")
parser.add_argument("--threads", type=int)
parser.add_argument("--device")
given = parser.parse_args()
folder: Path = given.run or given.resume
with open(os.environ["PRETEND_CALLS"], "a") as calls:
    calls.write(" ".join(sys.argv[1:]) + "\n")

written = folder / "config.yaml"
assert given.resume or given.overwrite or not written.exists(), f"there is a run in {folder}"
config = yaml.safe_load((written if given.resume else given.config).read_text())
(folder / "checkpoints").mkdir(parents=True, exist_ok=True)
written.write_text(yaml.safe_dump(config))
adaptation, source_only = config["adaptation"], config["source_only"]
if not source_only:
    assert config["warmup"]["steps"] == 0 and Path(config["model"]["init"]).is_file()


def named(variable: str) -> bool:
    name = os.environ.get(variable)
    return name is not None and name in str(folder)


def stop(*_: object) -> None:
    (folder / "checkpoints" / "last.pt").touch()
    print("stopped and saved")
    sys.exit(130)


if named("PRETEND_FAIL"):
    print("a loss is not finite")
    sys.exit(1)
if named("PRETEND_WAIT"):
    signal.signal(signal.SIGINT, stop)
    signal.signal(signal.SIGTERM, stop)
    (folder / "metrics.csv").write_text("phase,epoch,step\nadaptation,0,7\nadaptation,0,1")
    (folder / "waiting").touch()
    time.sleep(60)

# Scores that tell the runs apart: the seed, what is left out, xi1.
base = 10 + config["seed"]
miou = base if source_only else base + 20 - 2 * len(config["without"])
miou += adaptation["weights"]["critic"] if not source_only else 0
steps = config["warmup"]["steps"] if source_only else adaptation["steps"] * adaptation["epochs"]
first, second = (
    ("source only", "source only, target statistics")
    if source_only
    else ("CSCL", "CSCL, averaged weights")
)
with open(folder / "evaluation.csv", "w", newline="") as file:
    table = csv.writer(file)
    table.writerow(["phase", "step", "row", "mIoU", "road", "train"])
    phase = "warmup" if source_only else "adaptation"
    table.writerow([phase, steps - 1, first, 0, 0, 0])  # an evaluation on the way
    table.writerow([phase, steps, first, miou, miou + 1, "nan"])
    table.writerow([phase, steps, second, miou + 5, miou + 6, "nan"])
(folder / "checkpoints" / ("source.pt" if source_only else "last.pt")).touch()
(folder / "results.txt").write_text("done\n")
