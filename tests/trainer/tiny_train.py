"""`cscl_fast.train` with a network of four layers, for tests that start it as processes.

The environment says what befalls the process: `BEFALLS=stop:1:3`, process 1 gets SIGTERM in its
step 3 of the adaptation, counted from 0; `kill` is SIGKILL, `error` a data set's error.
"""

from __future__ import annotations

import os
import signal
import sys

import pytest
import torch
from torch import nn
from trainer_worlds import TinyModel, draw_no_curves

from cscl_fast import CSCL, trained
from cscl_fast.data import DataError
from cscl_fast.trainer import run


def without_dropout(architecture: str, num_classes: int) -> TinyModel:
    model = TinyModel(architecture, num_classes)
    model.encoder[-1] = nn.Identity()
    return model


def main() -> int:
    torch.set_num_threads(1)
    run.build_model = trained.build_model = without_dropout  # type: ignore[assignment]
    draw_no_curves(pytest.MonkeyPatch())
    what, who, when = os.environ.get("BEFALLS", "nothing:0:0").split(":")
    rank = os.environ.get("RANK", "0")
    step = CSCL.step

    def befallen(self: CSCL, *batches: object) -> dict[str, float]:
        if rank == who and self.steps_done == int(when):
            if what == "stop":
                os.kill(os.getpid(), signal.SIGTERM)
            elif what == "kill":
                os.kill(os.getpid(), signal.SIGKILL)
            elif what == "error":
                raise DataError("target/p3.png cannot be read")
        # Random numbers are restored, too: nothing else here draws any.
        line = f"draw {rank} {self.steps_done} {float(torch.rand(())):.9f}\n"
        os.write(1, line.encode())  # in one piece: several processes write
        return step(self, *batches)  # type: ignore[arg-type]

    CSCL.step = befallen  # type: ignore[method-assign,assignment]
    from cscl_fast.train import main as train

    return train()


if __name__ == "__main__":
    sys.exit(main())
