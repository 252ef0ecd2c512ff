"""One finished run that many tests look at."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from trainer_worlds import TinyModel, arguments, draw_no_curves, run_through, write_worlds


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny tensors: threads would only wait for each other."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def worlds(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_worlds(tmp_path_factory.mktemp("worlds"))


@pytest.fixture
def tiny(monkeypatch: pytest.MonkeyPatch) -> None:
    """Runs train a network of four layers and draw no curves, which take longer than they do."""
    draw_no_curves(monkeypatch)
    for module in ("trainer.run", "trained"):
        monkeypatch.setattr(f"cscl_fast.{module}.build_model", TinyModel)


@pytest.fixture(scope="session")
def finished(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The folder of a run that went through."""
    run = tmp_path_factory.mktemp("runs") / "finished"
    run_through(arguments(worlds, run))
    return run


@pytest.fixture(scope="session")
def warm(worlds: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A source-only checkpoint of the tiny network."""
    folder = tmp_path_factory.mktemp("warm")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("cscl_fast.trainer.run.build_model", TinyModel)
        draw_no_curves(patch)
        run_through(arguments(worlds, folder, "--source-only", "--warmup.steps", "30"))
    return folder / "checkpoints" / "source.pt"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """Data sets that a test may damage."""
    return write_worlds(tmp_path / "worlds")
