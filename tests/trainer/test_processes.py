"""What several processes tell one another; the runs of several are in test_processes_run.py."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import several_processes
import torch
from gloo_processes import finish, start
from torch import nn

from cscl_fast.config import Config, ConfigError
from cscl_fast.train import main
from cscl_fast.trainer.checkpoint import CheckpointError
from cscl_fast.trainer.keeper import Keeper, Place
from cscl_fast.trainer.processes import Processes, Shared, is_sign_of_loss, synchronise_batchnorm

AGREE = "agreement,gradients,thresholds_and_centroids"


def test_three_processes_agree_until_the_first_refuses(tmp_path: Path) -> None:
    script = Path(several_processes.__file__)
    first, *others = finish(start(script, f"{AGREE},refused", str(tmp_path), count=3))
    assert first[0] == 2, first[1]
    assert "there is a run in the folder already" in first[1]
    assert others == [(1, "")] * 2


def test_two_processes_agree_until_one_ends_and_the_other_says_so(tmp_path: Path) -> None:
    script = Path(several_processes.__file__)
    first, second = finish(start(script, f"{AGREE},absent", str(tmp_path)))
    assert second[0] == 7, second[1]
    assert first[0] == 1, first[1]
    assert "lost another process in a sum" in first[1]
    assert "out of memory" in first[1]
    assert "the command that goes on" in first[1]


def test_one_process_needs_nobody(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "WORLD_SIZE", "LOCAL_RANK"):
        monkeypatch.delenv(name, raising=False)
    for us in (Processes.alone(), Processes.from_environment()):
        assert (us.rank, us.count, us.is_main, us.several) == (0, 1, True, False)
        value = torch.ones(2)
        assert us.sum(value) is value
        assert us.gather("a") == ["a"]
        assert us.any(True)
        assert not us.any(False)
        us.barrier()
        us.close()
    network = nn.Linear(2, 1)
    shared = Shared(Processes.alone(), network)
    with shared.alone():
        assert torch.equal(shared(network, value), network(value))


def keeper(count: int, batch_size: int, accumulate: int = 1) -> Keeper:
    """Of a run in its adaptation, in the first of `count` processes."""
    config = Config(run=Path("run"), accumulate=accumulate)
    config.adaptation.batch_size = batch_size
    made = Keeper(config, None, None, None, Processes(0, count))  # type: ignore[arg-type]
    made.place = Place("adaptation", 3)
    return made


def saved(count: int, images: int, position: int | None = None) -> dict[str, Any]:
    """What `count` processes leave after three steps on so many images each."""
    position = 3 * images if position is None else position
    return {
        "random_of_others": [{}] * (count - 1),
        "images_a_step": images,
        "positions": {"source": position, "target": position},
    }


def test_several_processes_go_on_with_as_many_images_a_step() -> None:
    warnings: list[str] = []
    for now, before in (
        (keeper(2, 2), saved(2, 4)),
        (keeper(2, 1, accumulate=2), saved(2, 4)),
        (keeper(4, 1), saved(2, 4)),
        (keeper(1, 4), saved(2, 4)),
        (keeper(1, 4), saved(1, 2)),  # one process may learn from more
        (keeper(1, 4), saved(1, 2, 7)),
    ):
        now._require_same_batch(before, warnings.append)
    assert len(warnings) == 4
    assert warnings[-1] == "note: a step learns from 4 images of each domain now instead of 2"
    for now, before in (
        (keeper(2, 3), saved(2, 4)),  # as many processes, and another batch_size
        (keeper(2, 4), saved(2, 4)),
        (keeper(4, 2), saved(2, 4)),
        (keeper(1, 1), saved(2, 4)),
    ):
        with pytest.raises(CheckpointError, match="learned from 4 images a step; with"):
            now._require_same_batch(before, warnings.append)
    with pytest.raises(CheckpointError, match="in the middle of a batch of 2 processes"):
        keeper(2, 2)._require_same_batch(saved(1, 4, 13), warnings.append)


def test_processes_that_find_different_checkpoints_do_not_go_on(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    second = {"place": {"phase": "adaptation", "step": 4}}
    first = {"place": {"phase": "adaptation", "step": 6}}
    for other in (first, second):
        place = tuple(other["place"].values())
        monkeypatch.setattr(Processes, "gather", lambda self, own, place=place: [own, place])
        if other is first:
            keeper(2, 1)._require_same_place(first)
            continue
        found = r"process 1: adaptation step 6, process 2: adaptation step 4"
        with pytest.raises(CheckpointError, match=found):
            keeper(2, 1)._require_same_place(first)


def test_a_gpu_for_each_process_or_none(monkeypatch: pytest.MonkeyPatch) -> None:
    for name, value in (("RANK", "1"), ("WORLD_SIZE", "2"), ("LOCAL_RANK", "1")):
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    with pytest.raises(ConfigError, match="nproc-per-node"):
        Processes.from_environment("cuda")
    with pytest.raises(ConfigError, match="device is cuda:1; with 2 processes"):
        Processes.from_environment("cuda:1")


def test_a_study_is_not_started_by_torchrun(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("RANK", "0")
    monkeypatch.setenv("WORLD_SIZE", "2")
    assert main(["--", "--ablation"]) == 2
    assert "start it without torchrun" in capsys.readouterr().err


def test_batch_normalisation_is_not_synchronised_on_the_cpu() -> None:
    config = Config(sync_batchnorm=True)
    with pytest.raises(ConfigError, match=r"sync_batchnorm is set, and PyTorch .* on GPUs only"):
        synchronise_batchnorm(nn.BatchNorm2d(3), config, Processes.alone())
    synchronise_batchnorm(nn.BatchNorm2d(3), Config(), Processes.alone())


def test_other_errors_keep_their_own_message() -> None:
    assert not is_sign_of_loss(RuntimeError("mat1 and mat2 shapes cannot be multiplied"))
    assert not is_sign_of_loss(ValueError("gloo"))
    assert is_sign_of_loss(RuntimeError("Timed out waiting 4000ms for recv operation"))
    assert is_sign_of_loss(RuntimeError("[gloo/transport/tcp/pair.cc:553] Connection closed"))
    with (
        pytest.raises(RuntimeError, match="shapes cannot"),
        Processes.alone().watching("a step"),
    ):
        raise RuntimeError("mat1 and mat2 shapes cannot be multiplied")
