"""Which GPU a run is on, with stand-ins for PyTorch's calls: there may be none."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from cscl_fast.config import ConfigError
from cscl_fast.trainer.start import choose_device
from cscl_fast.trainer.update import Arriving


def test_a_gpu_that_is_chosen_becomes_the_current_one(monkeypatch: pytest.MonkeyPatch) -> None:
    current: list[torch.device] = []
    empty = torch.empty
    monkeypatch.setattr(torch, "empty", lambda n, device: empty(n))
    monkeypatch.setattr(torch.cuda, "set_device", current.append)
    assert choose_device("cuda:1") == torch.device("cuda", 1)
    assert current == [torch.device("cuda", 1)]
    assert choose_device("cuda").type == "cuda" and choose_device("cpu").type == "cpu"
    assert len(current) == 1  # the current one is the current one


@pytest.mark.skipif(torch.cuda.is_available(), reason="is about machines without a GPU")
def test_a_gpu_that_is_not_there_is_refused() -> None:
    with pytest.raises(ConfigError, match="device is cuda:1, which cannot be used"):
        choose_device("cuda:1")


def test_numbers_have_arrived_when_the_stream_of_their_own_gpu_says_so(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    class OnTheSecondGpu:
        is_cuda, device = True, torch.device("cuda", 1)

        def detach(self) -> OnTheSecondGpu:
            return self

        def to(self, *_: object, non_blocking: bool) -> torch.Tensor:
            return torch.tensor([1.0, 2.0])

    told: list[Any] = []

    class Event:
        def record(self, stream: str = "the current GPU's") -> None:
            told.append(stream)

        def synchronize(self) -> None:
            told.append("waited")

    monkeypatch.setattr(torch.cuda, "Event", Event)
    monkeypatch.setattr(torch.cuda, "current_stream", lambda device=None: f"{device}'s")
    numbers = Arriving(OnTheSecondGpu())  # type: ignore[arg-type]
    assert numbers.tolist() == [1.0, 2.0]
    assert told == ["cuda:1's", "waited"]
