"""The runs of a study as processes, some at a time, and what the terminal shows meanwhile.

A run waits for the source-only run that it starts from. One that fails takes only those with it
that start from it. Ctrl-C asks every running process to stop after its step, and waits for it.
"""

from __future__ import annotations

import ctypes
import signal
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field
from pathlib import Path
from types import FrameType
from typing import Literal

import torch
from rich.console import Console
from rich.live import Live
from rich.table import Table

from cscl_fast.cli import to_yaml
from cscl_fast.studies.folders import is_finished, scores_of, state_of
from cscl_fast.studies.plan import PlannedRun, Study
from cscl_fast.trainer.environment import cores
from cscl_fast.trainer.files import write_text

TRAIN = (sys.executable, "-m", "cscl_fast.train")
State = Literal["waiting", "running", "finished", "failed", "stopped", "left out"]
POLL, SPEAK = 0.2, 60.0  # seconds between two looks at the processes, and two lines in a log


@dataclass
class Job:
    """A run and its process."""

    run: PlannedRun
    log: Path
    state: State = "waiting"
    process: subprocess.Popen[bytes] | None = None
    slot: int = 0  # which of the `jobs` places it has
    started: float = 0.0
    seconds: float = 0.0
    resumed: bool = field(default=False)

    @property
    def miou(self) -> float | None:
        """mIoU at the end, percent, of the last checkpoint."""
        scores = scores_of(self.run)
        return None if scores is None else next(iter(scores.values()))["mIoU"]


class Launcher:
    """Runs everything of a study that is not finished yet.

    Args:
        overwrite: start every run again, whatever is in its folder.
        lock: file descriptor that every run keeps open, so that its lock lasts until the last ends.
    """

    def __init__(
        self, study: Study, console: Console, *, overwrite: bool = False, lock: int | None = None
    ) -> None:
        self.study, self.console, self.lock = study, console, lock
        self.overwrite = overwrite
        self.asked = 0  # how often the study was asked to stop
        self.spoke = time.monotonic()
        self.jobs: list[Job] = []
        for run in study.runs:
            log = study.folder / "logs" / f"{run.label.replace('/', '-')}.log"
            self.jobs.append(Job(run, log))
            if not overwrite and state_of(run) == "finished":
                self.jobs[-1].state = "finished"

    def __call__(self) -> None:
        """Until every run is finished, failed or stopped; the state of `jobs` says which."""
        handlers: dict[signal.Signals, object] = {}
        if threading.current_thread() is threading.main_thread():
            for number in (signal.SIGINT, signal.SIGTERM):
                handlers[number] = signal.signal(number, self._stop)
        live = Live(console=self.console, auto_refresh=False, transient=True)
        try:
            if self.console.is_terminal:
                live.start()
            while self._step():
                if live.is_started:
                    live.update(self._picture(), refresh=True)
                elif time.monotonic() - self.spoke > SPEAK:
                    self._speak()
                time.sleep(POLL)
        finally:
            live.stop()
            for job in self._running():  # only after an error of this program itself
                self._signal(job, signal.SIGTERM)
            for number, handler in handlers.items():
                signal.signal(number, handler)  # type: ignore[arg-type]

    # ---------------------------------------------------------------------------------- processes

    def _step(self) -> bool:
        """Look after the processes, start new ones; whether there is anything left to wait for."""
        for job in self._running():
            assert job.process is not None
            code = job.process.poll()
            if code is not None:
                self._ended(job, code)
        for job in self.jobs:
            source = self._source_of(job)
            if job.state == "waiting" and source is not None and source.state in (
                "failed", "left out",
            ):  # fmt: skip
                job.state = "left out"
        places = set(range(self.study.config.jobs)) - {job.slot for job in self._running()}
        ready = [job for job in self.jobs if self._ready(job)]
        if not self.asked:
            for slot, job in zip(sorted(places), ready, strict=False):
                self._start(job, slot)
        return bool(self._running())

    def _ready(self, job: Job) -> bool:
        source = self._source_of(job)
        return job.state == "waiting" and (source is None or source.state == "finished")

    def _source_of(self, job: Job) -> Job | None:
        return next((other for other in self.jobs if other.run is job.run.after), None)

    def _running(self) -> list[Job]:
        return [job for job in self.jobs if job.state == "running"]

    def _start(self, job: Job, slot: int) -> None:
        job.log.parent.mkdir(parents=True, exist_ok=True)
        command = [*TRAIN, *self._arguments(job, slot)]
        with open(job.log, "ab") as log:
            log.write(f"$ {' '.join(command)}\n".encode())
            log.flush()
            job.process = subprocess.Popen(
                command,
                stdin=subprocess.DEVNULL,
                stdout=log,
                stderr=subprocess.STDOUT,
                # A session of its own: Ctrl-C reaches it from here, once, and not by the terminal.
                start_new_session=True,
                pass_fds=() if self.lock is None else (self.lock,),
                preexec_fn=_stop_with_parent if sys.platform == "linux" else None,
            )
        job.state, job.slot, job.started = "running", slot, time.monotonic()
        self._note(f"{job.run.label}: {'goes on' if job.resumed else 'started'}, log in {job.log}")

    def _arguments(self, job: Job, slot: int) -> list[str]:
        run = job.run
        config = run.config
        config.threads = config.threads or max(1, cores() // self.study.config.jobs)
        if config.device == "auto" and torch.cuda.device_count() > 1:
            config.device = f"cuda:{slot % torch.cuda.device_count()}"
        machine = ["--threads", str(config.threads), "--device", config.device]
        state = "begun" if self.overwrite else state_of(run)
        if state == "partial":
            job.resumed = True
            return ["--resume", str(run.folder), *machine]
        file = self.study.folder / "configurations" / f"{run.label.replace('/', '-')}.yaml"
        file.parent.mkdir(parents=True, exist_ok=True)
        write_text(file, to_yaml(config))
        again = [] if state == "empty" else ["--overwrite"]
        return ["--config", str(file), "--run", str(run.folder), *again]

    def _ended(self, job: Job, code: int) -> None:
        job.seconds = time.monotonic() - job.started
        if code == 0 and is_finished(job.run):
            job.state = "finished"
            self._note(f"{job.run.label}: finished, mIoU {job.miou:.1f}")
        elif self.asked:
            job.state = "stopped"
            self._note(f"{job.run.label}: stopped")
        else:
            job.state = "failed"
            self._note(f"{job.run.label}: failed (exit status {code}), see {job.log}")

    def _stop(self, number: int, frame: FrameType | None) -> None:
        """First every run stops after its step; asked again, at once; then it is killed."""
        self.asked += 1
        for job in self._running():
            self._signal(job, signal.SIGINT if self.asked < 3 else signal.SIGKILL)
        if self.asked == 1:
            self._note("stopping every run after its step; a second Ctrl-C stops at once")

    @staticmethod
    def _signal(job: Job, number: int) -> None:
        assert job.process is not None
        if job.process.poll() is None:
            job.process.send_signal(number)

    # --------------------------------------------------------------------------------- what is seen

    def _note(self, text: str) -> None:
        self.console.print(text, markup=False, highlight=False, soft_wrap=True)

    def _speak(self) -> None:
        """A line for a log: how many runs are done, and where the running ones are."""
        self.spoke = time.monotonic()
        done = sum(job.state == "finished" for job in self.jobs)
        now = ", ".join(f"{job.run.label} {progress(job)}" for job in self._running())
        self._note(f"{done} of {len(self.jobs)} runs finished; running: {now}")

    def _picture(self) -> Table:
        """A row for each kind of run, a column for each seed."""
        table = Table("run", *(f"seed {seed}" for seed in self.study.seeds), title="study")
        for name, title in self.study.titles.items():
            cells = [progress(job) for job in self.jobs if job.run.name == name]
            table.add_row(title, *cells)
        return table


def progress(job: Job) -> str:
    """The state of a job in a few words."""
    if job.state == "running":
        step = last_step(job.run.folder / "metrics.csv")
        return f"{step} of {job.run.steps} steps"
    if job.state == "finished" and job.miou is not None:
        return f"finished, mIoU {job.miou:.1f}"
    return str(job.state)


def last_step(metrics: Path) -> int:
    """The step of the last whole row of `metrics.csv`; 0 if there is none."""
    if not metrics.is_file():
        return 0
    with open(metrics, "rb") as file:
        head = file.readline().decode().strip().split(",")
        file.seek(max(0, metrics.stat().st_size - 4096))
        lines = file.read().decode(errors="replace").split("\n")[:-1]
    cells = lines[-1].split(",") if lines else []
    if "step" not in head or len(cells) != len(head):
        return 0
    step = cells[head.index("step")]
    return int(step) if step.isdecimal() else 0


def last_lines(log: Path, count: int = 10) -> list[str]:
    """The end of a run's output."""
    if not log.is_file():
        return []
    return log.read_text(encoding="utf-8", errors="replace").rstrip().splitlines()[-count:]


def _stop_with_parent() -> None:
    """Linux: a run is asked to stop (SIGTERM: it saves) when the study itself is killed."""
    set_death_signal = 1  # PR_SET_PDEATHSIG of linux/prctl.h
    ctypes.CDLL(None).prctl(set_death_signal, signal.SIGTERM)
