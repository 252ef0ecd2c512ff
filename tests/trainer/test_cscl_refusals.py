"""What `CSCL` and its step refuse, by name: tensors, configurations, the wrong order of calls."""

from __future__ import annotations

import pytest
from step_worlds import begun, config, images, labels, source, tiny

from cscl_fast import CSCL, SourceOnly
from cscl_fast.config import ConfigError, OptimizerConfig
from cscl_fast.data import DatasetConfig
from cscl_fast.trainer.players import Batch


@pytest.mark.parametrize(
    ("source_given", "target_given", "error", "expected"),
    [
        (images(1), images(2), TypeError, "source is a Tensor; it needs to be a Batch or (images,"),
        (source(1), "images", TypeError, "target is a str; it needs to be a Batch or images"),
        (source(1), images(2)[0], ValueError, "target's images are torch.float32 [3, 48, 64]"),
        ((images(1), labels(1)[:1]), images(2), ValueError, "int64 [2, 48, 64]"),
        ((images(1), labels(1).int()), images(2), ValueError, "torch.int32 [2, 48, 64]"),
        (
            (images(1).double(), labels(1)),
            images(2),
            ValueError,
            "torch.float64 [2, 3, 48, 64]",
        ),
        (source(1), images(2).half(), ValueError, "they need to be torch.float32 [B, 3, H, W]"),
        (
            Batch(images(1).half(), images(1), labels(1)),
            images(2),
            ValueError,
            "source's images are torch.float16",
        ),
        (
            source(1),
            Batch(images(2), images(2).double(), labels(2)),
            ValueError,
            "target's clean images are torch.float64",
        ),
        ([source(1), source(2)], images(2), ValueError, "source is 2 micro-batches; accumulate is"),
    ],
)
def test_what_a_step_refuses(source_given, target_given, error, expected: str) -> None:
    cscl = begun()
    with pytest.raises(error) as failure:
        cscl.step(source_given, target_given)
    assert expected in str(failure.value)


def test_an_epoch_begins_with_images() -> None:
    cscl = CSCL(tiny(), config())
    with pytest.raises(ValueError, match=r"target_images are torch.float64 \[2, 3, 48, 64\]; they"):
        cscl.begin_epoch([images(1).double()])
    with pytest.raises(TypeError, match="target_images are a tuple; they need to be a tensor"):
        cscl.begin_epoch([source(1)])
    with pytest.raises(ValueError, match="target_images has no pixel"):
        cscl.begin_epoch([])


def test_thresholds_come_first() -> None:
    with pytest.raises(ValueError, match=r"call begin_epoch\(target_images\) first"):
        CSCL(tiny()).step(source(1), images(2))


def test_values_that_cannot_be_are_refused() -> None:
    with pytest.raises(ConfigError, match=r"adaptation\.gamma is 0"):
        CSCL(tiny(), config(gamma=0.0))
    from_scratch = config()
    from_scratch.model.init, from_scratch.warmup.steps = "none", 0
    CSCL(tiny(), from_scratch)  # the weights are the caller's business


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"precision": "bf16"}, "precision is 'bf16'; it is one of float32, bfloat16, float16"),
        ({"labels": "EMA"}, "adaptation.labels is 'EMA'; it is one of snapshot, ema, live"),
        ({"bn": "per_domain"}, "adaptation.bn is 'per_domain'; it is one of per-domain, shared,"),
        (
            {"without": ("transfer", "labels")},
            "without is ('transfer', 'labels'); it is a tuple of any of transfer, pseudo-labels,",
        ),
        ({"without": "transfer"}, "without is 'transfer'; it is a tuple of any of"),
        ({"cache": "ssd"}, "cache is 'ssd'; it is one of none, ram, disk"),
        (
            {"target": DatasetConfig(size="whole")},
            "target.size is 'whole'; it is one of default or",
        ),
        ({"optimizer": OptimizerConfig(name="adamw")}, "optimizer.name is 'adamw'; it is one of"),
    ],
    ids=str,
)
def test_misspelt_names_are_refused(changes: dict, message: str) -> None:
    for trainer in (CSCL, SourceOnly):
        with pytest.raises(ConfigError) as failure:
            trainer(tiny(), config(**changes))
        assert str(failure.value).startswith(message)
