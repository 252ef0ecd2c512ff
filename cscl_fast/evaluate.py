"""`python -m cscl_fast.evaluate CHECKPOINT`: IoU by class of a checkpoint on a data set."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated

import torch
import tyro
from torch import Tensor

from cscl_fast.cli import known_options
from cscl_fast.config import ConfigError
from cscl_fast.data import DataError, DatasetConfig, check_dataset, make_loader, open_dataset
from cscl_fast.data.classes import require_same_classes
from cscl_fast.trained import load_trained
from cscl_fast.trainer import out_of_memory
from cscl_fast.trainer.checkpoint import CheckpointError
from cscl_fast.trainer.evaluation import Score, evaluate, table
from cscl_fast.trainer.start import choose_device


@dataclass
class EvaluateConfig:
    """Score a checkpoint. The data set defaults to the one its run was evaluated on."""

    checkpoint: Annotated[Path, tyro.conf.Positional]
    """A checkpoint of this package, such as runs/demo-seed0/checkpoints/last.pt."""
    data: DatasetConfig = field(default_factory=DatasetConfig)
    batch_size: int = 4
    csv: Path | None = None
    """Write IoU by class here; None: beside the checkpoint, as CHECKPOINT.evaluation.csv."""
    device: str = "auto"
    """auto (a GPU if there is one), cpu, cuda, cuda:1, ..."""


def score_checkpoint(config: EvaluateConfig) -> Score:
    """Score `config.checkpoint` on `config.data`, print the table and write the CSV.

    Raises:
        OSError: the CSV cannot be written; that is found out before anything is evaluated.
    """
    device = choose_device(config.device)
    trained = load_trained(config.checkpoint, device)
    try:
        config.data.validate("--data.kind")
    except ValueError as error:
        raise ConfigError(f"data.{error}") from error
    dataset = open_dataset(config.data, training=False)
    report = check_dataset(dataset)
    print(report)
    report.raise_if_bad(need_labels=True)
    require_same_classes(trained.classes, dataset.classes)

    def batches() -> Iterator[tuple[Tensor, list[Tensor]]]:
        for sample in make_loader(dataset, dataset.batch_of(config.batch_size)):
            images = sample["clean"].to(device).contiguous(memory_format=torch.channels_last)
            yield images, list(sample["label"])

    path = config.csv or config.checkpoint.with_suffix(".evaluation.csv")
    _require_writable(path)
    score = evaluate(trained.model, batches(), trained.classes)
    print(table({config.checkpoint.name: score}), flush=True)
    with open(path, "w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["class", "iou_percent"])
        writer.writerows([name, f"{value:.3f}"] for name, value in score.row().items())
    print(f"written to {path}")
    return score


def _require_writable(path: Path) -> None:
    """Make the folder of a file, and leave what is in the file as it is."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        new = not path.exists()
        with open(path, "a", encoding="utf-8"):
            pass
        if new:
            path.unlink()
    except OSError as error:
        raise OSError(
            f"{path} cannot be written: {error}; name another file with --csv FILE"
        ) from error


def main(arguments: Sequence[str] | None = None) -> int:
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        known_options(arguments, EvaluateConfig)
        prog = "python -m cscl_fast.evaluate"
        path = tyro.cli(EvaluateConfig, args=arguments, prog=prog).checkpoint
        # Again, now with what the checkpoint was evaluated on as the default of every `data` key.
        default = EvaluateConfig(path, load_trained(path, torch.device("cpu")).data)
        score_checkpoint(tyro.cli(EvaluateConfig, args=arguments, default=default, prog=prog))
    except SystemExit as stop:  # --help, or an argument of the wrong type
        return int(stop.code or 0)
    except ConfigError as error:
        print(f"cscl_fast.evaluate: {error}", file=sys.stderr)
        return 2
    except (CheckpointError, DataError, OSError, ValueError) as error:
        print(f"cscl_fast.evaluate: {error}", file=sys.stderr)
        return 1
    except (RuntimeError, MemoryError) as error:
        message = out_of_memory.in_words(error, out_of_memory.EVALUATION)
        if message is None:
            raise
        print(f"cscl_fast.evaluate: {message}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
