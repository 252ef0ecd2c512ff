"""Runs that are killed: a process that imports PyTorch once and forks one for each run.

Reads requests from standard input and answers on standard output, a JSON line each:

    {"arguments": [...], "kill": null}                               run through
    {"arguments": [...], "kill": {"steps": 3, "delay": 0.01}}        SIGKILL 0.01 s after 3 steps
    {"arguments": [...], "kill": {"at": "MODULE:NAME", "call": 2}}   SIGKILL in place of that call

The answer is the exit status (-9: killed) and the [phase, step] that were logged.
"""

from __future__ import annotations

import importlib
import json
import os
import signal
import sys
import time
from pathlib import Path
from typing import Any

import pytest
import torch
from trainer_worlds import TinyModel, draw_no_curves

from cscl_fast.train import main
from cscl_fast.trainer.records import Records


def kill_at(place: str, call: int) -> None:
    """The process kills itself at the given call, from 1, of a function."""
    module, _, name = place.partition(":")
    *holders, attribute = name.split(".")
    holder: Any = importlib.import_module(module)
    for part in holders:
        holder = getattr(holder, part)
    original, calls = getattr(holder, attribute), [0]

    def wrapper(*arguments: Any, **named: Any) -> Any:
        calls[0] += 1
        if calls[0] == call:
            os.kill(os.getpid(), signal.SIGKILL)
        return original(*arguments, **named)

    setattr(holder, attribute, wrapper)


def child(arguments: list[str], kill: dict[str, Any], report: int) -> int:
    """The run itself; every logged step is written to the pipe `report`."""
    log = Records.log

    def reporting(self: Records, values: dict[str, Any]) -> None:
        log(self, values)
        os.write(report, f"{json.dumps([values['phase'], values['step']])}\n".encode())

    Records.log = reporting  # type: ignore[method-assign]
    if "at" in kill:
        kill_at(kill["at"], kill["call"])
    return main(arguments)


def run(arguments: list[str], kill: dict[str, Any] | None, log: Path) -> dict[str, Any]:
    kill = kill or {}
    receive, send = os.pipe()
    process = os.fork()
    if process == 0:
        os.close(receive)
        with open(log, "ab", buffering=0) as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
            status = 1
            try:
                status = child(arguments, kill, send)
                sys.stdout.flush()
            finally:
                os._exit(status)
    os.close(send)
    steps = []
    with os.fdopen(receive) as lines:
        if kill.get("steps") == 0:
            time.sleep(kill["delay"])
            os.kill(process, signal.SIGKILL)
        for line in lines:
            steps.append(json.loads(line))
            if len(steps) == kill.get("steps"):
                time.sleep(kill["delay"])
                os.kill(process, signal.SIGKILL)
    return {"status": os.waitstatus_to_exitcode(os.waitpid(process, 0)[1]), "steps": steps}


if __name__ == "__main__":
    torch.set_num_threads(1)
    patch = pytest.MonkeyPatch()
    draw_no_curves(patch)
    for name in ("trainer.run", "trained"):
        patch.setattr(f"cscl_fast.{name}.build_model", TinyModel)
    for request in sys.stdin:
        asked = json.loads(request)
        answer = run(asked["arguments"], asked["kill"], Path(sys.argv[1]))
        print(json.dumps(answer), flush=True)
