"""What is in the folder of a planned run: nothing, a part of it, all of it, or another run."""

from __future__ import annotations

import csv
import dataclasses
from pathlib import Path
from typing import Any, Literal

from cscl_fast.cli import STUDY_KEYS, parse
from cscl_fast.config import Config, ConfigError
from cscl_fast.studies.plan import PlannedRun
from cscl_fast.trainer.rows import ADAPTED, AVERAGED, SOURCE_ONLY, TARGET_STATISTICS

State = Literal["empty", "begun", "partial", "finished"]

# Keys that say where and how a run is computed and what is recorded of it, not what comes out.
INDIFFERENT = {
    "preset", "config", "run", "resume", "overwrite", *STUDY_KEYS,
    "device", "compile", "threads", "workers", "cache", "deterministic", "distributed_timeout",
    "log_every", "save_every", "evaluate_every", "panels", "gap_batches", "tensorboard",
    "deep_check", "model.activation_checkpointing", "optimizer.implementation",
    *(f"{data}.{key}" for data in ("source", "target", "evaluation")
      for key in ("cache", "cache_folder")),
}  # fmt: skip
# Of the adaptation, a source-only run knows these alone: for the target's statistics.
OF_SOURCE_ONLY = {"adaptation.bn_batches", "adaptation.batch_size"}


def state_of(run: PlannedRun) -> State:
    """How far a run has come.

    begun: there is a run, and no checkpoint to go on from; it has to start again.

    Raises:
        ConfigError: the folder holds a run of another configuration; names the keys that differ.
    """
    if not (run.folder / "config.yaml").is_file():
        return "empty"
    require_same(run)
    if is_finished(run):
        return "finished"
    saved = any((run.folder / "checkpoints" / f"{n}.pt").is_file() for n in ("last", "previous"))
    return "partial" if saved else "begun"


def is_finished(run: PlannedRun) -> bool:
    """Whether its results are there, and its network where another run starts from it."""
    if not (run.folder / "results.txt").is_file() or scores_of(run) is None:
        return False
    return run.after is not None or (run.folder / "checkpoints" / "source.pt").is_file()


def rows_of(run: PlannedRun) -> tuple[str, str]:
    """The two rows of its evaluation that count: for "last" and for "averaged"."""
    return (SOURCE_ONLY, TARGET_STATISTICS) if run.after is None else (ADAPTED, AVERAGED)


def scores_of(run: PlannedRun) -> dict[str, dict[str, float]] | None:
    """Row → class (and mIoU) → percent at the end of the run; None as long as one is missing."""
    wanted = rows_of(run)
    found: dict[str, dict[str, float]] = {}
    path = run.folder / "evaluation.csv"
    if not path.is_file():
        return None
    with open(path, newline="", encoding="utf-8") as file:
        for row in csv.DictReader(file):
            if row["row"] in wanted and row["step"] == str(run.steps):
                found[row["row"]] = {
                    key: float(value)
                    for key, value in row.items()
                    if key not in ("phase", "epoch", "step", "row") and value
                }
    return found if all(row in found for row in wanted) else None


def require_same(run: PlannedRun) -> None:
    """Refuse a folder whose run was configured otherwise.

    A file of an older version lacks the keys that came later: those count as their defaults.

    Raises:
        ConfigError: names every key that differs, with both values.
    """
    path = run.folder / "config.yaml"
    found = parse(["--config", str(path)])
    different = differences(found, run.config, source_only=run.after is None)
    if different:
        raise ConfigError(
            f"there is another run in {run.folder}: " + "; ".join(different) + ". "
            "Give the study another folder (--run FOLDER), or start all of it again (--overwrite)"
        )


def differences(found: Config, wanted: Config, *, source_only: bool) -> list[str]:
    """What in a run's configuration is not what is wanted of it; nothing that cannot matter."""
    there, here = _flat(dataclasses.asdict(found)), _flat(dataclasses.asdict(wanted))
    different = []
    for key, value in here.items():
        if key in INDIFFERENT or (source_only and _only_adapts(key)):
            continue
        if not source_only and key == "model.init":  # the study's own source.pt, wherever it lies
            continue
        if there[key] != value and not resolved_by_runs(key, there[key], value):
            different.append(f"{key} is {there[key]} there and {value} here")
    return different


def resolved_by_runs(key: str, *values: Any) -> bool:
    """Whether these values of a key need not differ: a run writes down what `auto` became."""
    return key == "model.batchnorm_affine" and "auto" in values


def _only_adapts(key: str) -> bool:
    adapts = key.startswith("adaptation.") or key in ("without", "global_centroids")
    return adapts and key not in OF_SOURCE_ONLY


def _flat(entries: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in entries.items():
        if isinstance(value, dict):
            flat |= _flat(value, f"{prefix}{key}.")
        elif isinstance(value, Path):
            flat[f"{prefix}{key}"] = value.resolve()
        elif isinstance(value, tuple | list):
            flat[f"{prefix}{key}"] = list(value)
        else:
            flat[f"{prefix}{key}"] = value
    return flat
