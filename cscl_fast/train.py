"""`python -m cscl_fast.train`: source-only training, then CSCL, and both scores side by side.

With no arguments it runs the demo: street scenes that the package draws itself.
"""

from __future__ import annotations

import itertools
import sys
from collections.abc import Sequence
from pathlib import Path

from cscl_fast.cli import parse, to_yaml
from cscl_fast.config import Config, ConfigError
from cscl_fast.data import DataError
from cscl_fast.models.weights import WeightsError
from cscl_fast.trainer.checkpoint import CheckpointError
from cscl_fast.trainer.evaluation import Score
from cscl_fast.trainer.interrupt import Interrupted
from cscl_fast.trainer.run import DivergedError, Run


def train(config: Config) -> dict[str, Score]:
    """Run one configuration; returns the score of every row of the final table."""
    config.validate()
    if config.run is None:
        config.run = next_free(config.run_folder) if not config.overwrite else config.run_folder
    folder = config.run
    if (folder / "config.yaml").exists() and config.resume is None and not config.overwrite:
        raise ConfigError(
            f"there is a run in {folder} already: go on with it (--resume {folder}), "
            "start it again (--overwrite), or choose another folder (--run FOLDER)"
        )
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "config.yaml").write_text(to_yaml(config))
    return Run(config)()


def next_free(folder: Path) -> Path:
    """`folder`, or with the first number behind it that no run has taken."""
    candidates = (folder.with_name(f"{folder.name}-{i}") for i in itertools.count(2))
    return next(f for f in itertools.chain([folder], candidates) if not f.exists())


def main(arguments: Sequence[str] | None = None) -> int:
    try:
        train(parse(arguments))
    except (ConfigError, DataError, CheckpointError, DivergedError, WeightsError) as error:
        print(f"cscl_fast.train: {error}", file=sys.stderr)
        return 1 if not isinstance(error, ConfigError) else 2
    except Interrupted as stop:
        print(f"\n{stop}", file=sys.stderr)
        return 130
    return 0


if __name__ == "__main__":
    sys.exit(main())
