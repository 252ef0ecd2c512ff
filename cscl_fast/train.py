"""`python -m cscl_fast.train`: source-only training, then CSCL, and both scores side by side.

With no arguments it runs the demo: street scenes that the package draws itself. With `--ablation`
or `--sweep` it is a study of several runs (cscl_fast/studies).
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from cscl_fast.cli import parse
from cscl_fast.config import Config, ConfigError
from cscl_fast.data import DataError
from cscl_fast.models.compiled import CompileError
from cscl_fast.models.weights import WeightsError
from cscl_fast.trainer import out_of_memory
from cscl_fast.trainer.checkpoint import LAST, PREVIOUS, CheckpointError
from cscl_fast.trainer.evaluation import Score
from cscl_fast.trainer.interrupt import Interrupted
from cscl_fast.trainer.processes import LostProcessError, Processes
from cscl_fast.trainer.run import Run
from cscl_fast.trainer.start import how_to_go_on
from cscl_fast.trainer.update import DivergedError


def train(config: Config, processes: Processes | None = None) -> dict[str, Score]:
    """Run one configuration; returns the score of every row of the final table."""
    config.validate()
    if config.is_study:
        raise ConfigError(
            "ablation and sweep make a study of several runs: cscl_fast.studies.run_study runs it"
        )
    processes = processes or Processes.alone()
    config.run = processes.main_does(lambda: _folder(config))
    return Run(config, processes=processes)()


def _folder(config: Config) -> Path:
    """The run's folder.

    Raises:
        ConfigError: there is a run in it already.
    """
    if config.resume is not None:
        config.run = config.resume
    elif config.run is None:
        config.run = next_free(config.run_folder) if not config.overwrite else config.run_folder
    folder = config.run
    if (folder / "config.yaml").exists() and config.resume is None and not config.overwrite:
        raise ConfigError(
            f"there is a run in {folder} already: go on with it (--resume {folder}), "
            "start it again (--overwrite), or choose another folder (--run FOLDER)"
        )
    return folder


def next_free(folder: Path) -> Path:
    """`folder`, or with the first number behind it that no run has taken."""
    candidates = (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2))
    return next(f for f in itertools.chain([folder], candidates) if not f.exists())


def main(arguments: Sequence[str] | None = None) -> int:
    """0: done; 1: data, weights, a file or memory failed; 2: configuration; 130: stopped."""
    config, processes, status = None, Processes.alone(), 0
    arguments = sys.argv[1:] if arguments is None else arguments
    if arguments[:1] == ["--"]:  # that torchrun was given before the options
        arguments = arguments[1:]
    try:
        config = parse(arguments)
        if config.is_study:
            from cscl_fast.studies import run_study

            return run_study(config, arguments)
        processes = Processes.from_environment(config.device, timeout=config.distributed_timeout)
        train(config, processes)
        processes.close()
    except SystemExit as stop:  # --help, or an argument of the wrong type
        status = int(stop.code or 0)
    except ConfigError as error:
        _complain(processes, error)
        status = 2
    except (
        DataError,
        CheckpointError,
        DivergedError,
        WeightsError,
        CompileError,
        LostProcessError,
        OSError,
    ) as error:
        _complain(processes, error)
        status = 1
    except (RuntimeError, MemoryError) as error:
        message = out_of_memory.in_words(error, out_of_memory.TRAINING)
        if message is None:
            raise
        _complain(processes, message)
        status = 1
    except Interrupted as stop:
        if processes.is_main:
            print(f"\n{stop}", file=sys.stderr)
        status = 130
    except KeyboardInterrupt:  # not between two steps, or for the second time
        print(f"\nInterrupted. {_what_is_saved(config)}", file=sys.stderr)
        status = 130
    if status and processes.several:
        processes.end_at_once(status)
    return status


def _complain(processes: Processes, error: Exception | str) -> None:
    who = f"{processes}: " if processes.several else ""
    print(f"cscl_fast.train: {who}{error}", file=sys.stderr, flush=True)


def _what_is_saved(config: Config | None) -> str:
    if config is None or config.run is None:
        return "Nothing was begun."
    folder = config.run / "checkpoints"
    if not any((folder / name).exists() for name in (LAST, PREVIOUS)):
        return "Nothing is saved yet: begin again, with --overwrite in the same folder."
    return f"Go on from the last checkpoint with:\n  {how_to_go_on(config.run)}"


if __name__ == "__main__":
    sys.exit(main())
