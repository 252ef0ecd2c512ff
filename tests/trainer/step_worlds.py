"""`CSCL` on a network of four layers and batches of noise: what the tests of its step share."""

from __future__ import annotations

import copy
from typing import Any

import torch
from torch import Tensor, nn
from trainer_worlds import TinyModel

from cscl_fast import CSCL, Config, SourceOnly
from cscl_fast.config import AdaptationConfig, OptimizerConfig, WarmupConfig
from cscl_fast.models import SegmentationModel

K = 3
SIZE = (48, 64)
SCHEDULES = ("joint", "alternating")


def config(**changes: Any) -> Config:
    """Two epochs of four steps; keys of `Config` and of its section `adaptation`."""
    own = {key: changes.pop(key) for key in list(changes) if key in Config.__dataclass_fields__}
    adaptation = {"epochs": 2, "steps": 4, "learning_rate": 1e-3, **changes}
    return Config(
        **{"optimizer": OptimizerConfig(name="adam"), "warmup": WarmupConfig(steps=8), **own},
        adaptation=AdaptationConfig(**adaptation),
    )


def tiny(seed: int = 0) -> TinyModel:
    torch.manual_seed(seed)
    model = TinyModel("tiny", K)
    with torch.no_grad():
        model.classifier.weight.mul_(8)  # so that it predicts every class somewhere
    return model


def images(seed: int, count: int = 2) -> Tensor:
    return torch.randn(count, 3, *SIZE, generator=torch.Generator().manual_seed(seed))


def labels(seed: int, count: int = 2) -> Tensor:
    generator = torch.Generator().manual_seed(100 + seed)
    blocks = torch.randint(0, K, (count, 1, 6, 8), generator=generator)
    found = nn.functional.interpolate(blocks.float(), size=SIZE)[:, 0].long()
    found[:, : 4 + seed] = 255
    return found


def source(seed: int, count: int = 2) -> tuple[Tensor, Tensor]:
    return images(seed, count), labels(seed, count)


def begun(network: SegmentationModel | None = None, /, **changes: Any) -> CSCL:
    """Ready for its first step."""
    cscl = CSCL(network or tiny(), config(**changes))
    nn.init.normal_(cscl.players.critic.value.weight, std=0.1)  # every loss at work at once
    cscl.begin_epoch([images(50), images(51)])
    return cscl


def trace(trainer: CSCL | SourceOnly) -> dict[str, Any]:
    """What a step leaves behind; the learning rate is set at the beginning of the next anyway."""
    state = copy.deepcopy(trainer.state_dict())
    for optimizer in state["optimizers"].values():
        for group in optimizer["param_groups"]:
            del group["lr"]
    return state
