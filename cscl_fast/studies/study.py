"""A study from its plan to its table: the same command begins it and goes on with it."""

from __future__ import annotations

import contextlib
import fcntl
import os
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

import yaml
from rich.console import Console

from cscl_fast.cli import STUDY_KEYS, to_yaml
from cscl_fast.config import Config, ConfigError
from cscl_fast.studies.figures import write_figures
from cscl_fast.studies.launch import Job, Launcher, last_lines
from cscl_fast.studies.plan import Study, make_plan
from cscl_fast.studies.scores import collect
from cscl_fast.studies.tables import write_results
from cscl_fast.trainer.files import write_text
from cscl_fast.trainer.processes import count_from_environment


def run_study(
    config: Config, arguments: Sequence[str] | None = None, console: Console | None = None
) -> int:
    """Run what is not finished yet, then write the tables and figures of all that is.

    Args:
        config: with `ablation` or `sweep`.
        arguments: the command line that it came from, for the message that says how to go on.

    Returns:
        0: every run is finished; 1: a run failed; 130: stopped on request.

    Raises:
        ConfigError: the configuration cannot be a study, or a run of another one is in its folder.
    """
    console = console or Console()
    if count_from_environment() > 1:
        raise ConfigError(
            "a study starts its runs itself; start it without torchrun, and say with jobs how many "
            "at a time"
        )
    study = make_plan(config)
    if (study.folder / "config.yaml").exists():
        raise ConfigError(f"run is {study.folder}, which is the folder of a single run; a study "
                          "needs another one (--run FOLDER)")  # fmt: skip
    Launcher(
        study, console, overwrite=config.overwrite
    )  # refuses what is there before it is touched
    study.folder.mkdir(parents=True, exist_ok=True)
    with _alone(study.folder) as lock:
        if config.overwrite:
            _forget(study)
        launcher = Launcher(study, console, overwrite=config.overwrite, lock=lock)
        _write_description(study)
        done = sum(job.state == "finished" for job in launcher.jobs)
        _say(console, f"{len(study.runs)} runs in {study.folder}, {done} of them finished already")
        launcher()
    _conclude(study, console)
    failed = [job for job in launcher.jobs if job.state == "failed"]
    _report(launcher.jobs, console)
    if launcher.asked:
        words = sys.argv[1:] if arguments is None else arguments
        again = [word for word in words if word != "--overwrite"]
        command = shlex.join(["python", "-m", "cscl_fast.train", *again])
        _say(console, f"\nThe study was stopped. Go on with:\n  {command}")
        return 130
    return 1 if failed else 0


@contextlib.contextmanager
def _alone(folder: Path) -> Iterator[int]:
    """Nobody else runs this study meanwhile; yields the file descriptor that holds the lock.

    The runs hold it too: after a study was killed it is free when the last of them has stopped.

    Raises:
        ConfigError: the study is being run.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT, 0o644)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise ConfigError(
            f"run is {folder}, a study that is being run, or whose runs have not stopped yet; "
            "wait for it or choose another folder"
        ) from error
    try:
        yield descriptor
    finally:
        os.close(descriptor)


def _forget(study: Study) -> None:
    """No old run counts any more, even if the study is stopped before it is started again."""
    for folder in (study.folder, *(run.folder for run in study.runs)):
        for path in (folder / "config.yaml", *folder.glob("results.*"), *folder.glob("sweep-*")):
            path.unlink(missing_ok=True)


def _conclude(study: Study, console: Console) -> None:
    """Tables and figures of what is finished, and the first table on the terminal."""
    rows = collect(study)
    if not any(row.last for row in rows):
        return
    text = write_results(study, rows)
    figures = write_figures(study, rows)
    _say(console, "\n" + text)
    for path in (study.folder / "results.md", *figures):
        _say(console, f"Written: {path}")


def _report(jobs: list[Job], console: Console) -> None:
    """Each run that failed with the end of its output, and what could not be run without it."""
    for job in jobs:
        if job.state == "failed":
            _say(console, f"\n{job.run.label} failed. The last lines of {job.log}:")
            for line in last_lines(job.log):
                _say(console, f"  {line}")
    left_out = [job.run.label for job in jobs if job.state == "left out"]
    if left_out:
        _say(console, f"\nNot run, because their source-only run failed: {', '.join(left_out)}")


def _write_description(study: Study) -> None:
    """`study.yaml`: the configuration, and what makes a study of it; `--config` reads it."""
    config = study.config
    entries = yaml.safe_load(to_yaml(config))
    values = {key: getattr(config, key) for key in STUDY_KEYS} | {"seeds": study.seeds}
    entries |= {k: list(v) if isinstance(v, tuple) else v for k, v in values.items()}
    text = yaml.safe_dump(entries, sort_keys=False)
    write_text(study.folder / "study.yaml", text)


def _say(console: Console, text: str) -> None:
    console.print(text, markup=False, highlight=False, soft_wrap=True)
