"""The presets: values of `Config`, chosen with `--preset NAME`."""

from __future__ import annotations

from copy import deepcopy
from dataclasses import replace
from pathlib import Path

from cscl_fast.config import (
    AdaptationConfig,
    Config,
    LossWeights,
    ModelConfig,
    OptimizerConfig,
    PresetName,
    WarmupConfig,
)
from cscl_fast.data.config import DatasetConfig

# From scratch, with few steps: Adam learns faster than SGD, and the paper's weight of L_div (10)
# costs more than it brings (docs/results/real-small.md), so both presets turn it down.
_SCRATCH_OPTIMIZER = OptimizerConfig(name="adam", classifier_factor=1.0)
_SCRATCH_WEIGHTS = LossWeights(divergence=0.3)


def _demo() -> Config:
    """Two drawn worlds at 96×192: minutes on two CPU cores, nothing to download."""
    scenes = DatasetConfig(kind="scenes", size=(96, 192), cache="ram")
    return Config(
        preset="demo",
        model=ModelConfig(architecture="deeplabv2-resnet18", init="none"),
        source=replace(scenes, look="synthetic"),
        target=replace(scenes, look="real", use_labels=False, color_jitter=0.3, blur=0.3),
        evaluation=replace(scenes, look="real", count=60, split="val"),
        optimizer=_SCRATCH_OPTIMIZER,
        warmup=WarmupConfig(steps=300, batch_size=6, learning_rate=1e-3),
        adaptation=AdaptationConfig(
            epochs=2,
            steps=60,
            batch_size=3,
            learning_rate=2e-4,
            ema_decay=0.97,
            bn_batches=60,
            weights=_SCRATCH_WEIGHTS,
        ),
        evaluation_batch=8,
        save_every=100,
    )


def _small() -> Config:
    """One's own data from scratch with ResNet-18 at 180×240: half an hour on two CPU cores."""
    folder = DatasetConfig(kind="folder", root=Path("data"), size=(180, 240), cache="ram")
    source = replace(
        folder, root=Path("data/source"), color_jitter=0.5, blur=0.3, scale=(0.75, 1.5)
    )
    target = replace(folder, root=Path("data/target"), use_labels=False, color_jitter=0.5, blur=0.3)
    return Config(
        preset="small",
        model=ModelConfig(architecture="deeplabv2-resnet18", init="none"),
        source=source,
        target=target,
        evaluation=replace(folder, root=Path("data/target"), split="val"),
        optimizer=_SCRATCH_OPTIMIZER,
        warmup=WarmupConfig(steps=1500, batch_size=4, learning_rate=1e-3),
        adaptation=AdaptationConfig(
            epochs=2,
            steps=100,
            batch_size=3,
            learning_rate=2e-4,
            ema_decay=0.97,
            weights=_SCRATCH_WEIGHTS,
        ),
    )


def _published(
    name: PresetName, source: DatasetConfig, target: DatasetConfig, evaluation: DatasetConfig
) -> Config:
    """The paper's settings: ResNet-101 from ImageNet, batch 1, SGD 2.5e-4."""
    return Config(preset=name, source=source, target=target, evaluation=evaluation, save_every=1000)


def _cityscapes(split: str, classes: int, *, labels: bool) -> DatasetConfig:
    return DatasetConfig(
        kind="cityscapes",
        root=Path("data/cityscapes"),
        split=split,
        size=(512, 1024),
        classes=classes,
        use_labels=labels,
    )


def _nthu(city: str) -> Config:
    target = DatasetConfig(
        kind="nthu", root=Path("data/nthu"), city=city.capitalize(), size=(512, 1024), classes=13
    )
    return _published(
        f"cityscapes-{city}",  # type: ignore[arg-type]
        _cityscapes("train", 13, labels=True),
        replace(target, split="train", use_labels=False),
        replace(target, split="test"),
    )


def _synthetic_to_cityscapes(
    name: PresetName, kind: str, size: tuple[int, int], classes: int
) -> Config:
    source = DatasetConfig(
        kind=kind,  # type: ignore[arg-type]
        root=Path("data") / kind,
        size=size,
        classes=classes,
    )
    return _published(
        name,
        source,
        _cityscapes("train", classes, labels=False),
        _cityscapes("val", classes, labels=True),
    )


def _vgg16(config: Config, name: PresetName) -> Config:
    """The paper's second network: FCN-8s on VGG-16, all of it with Adam 1e-4, D with 1.5e-6."""
    return replace(
        config,
        preset=name,
        model=ModelConfig(architecture="fcn8s-vgg16"),
        optimizer=OptimizerConfig(name="adam", classifier_factor=1.0),
        warmup=WarmupConfig(learning_rate=1e-4),
        adaptation=AdaptationConfig(learning_rate=1e-4, discriminator_rate=1.5e-6),
    )


_GTA5 = _synthetic_to_cityscapes("gta5-cityscapes", "gta5", (720, 1280), 19)
_SYNTHIA = _synthetic_to_cityscapes("synthia-cityscapes", "synthia", (760, 1280), 16)

PRESETS: dict[str, Config] = {
    "demo": _demo(),
    "small": _small(),
    "gta5-cityscapes": _GTA5,
    "gta5-cityscapes-vgg16": _vgg16(_GTA5, "gta5-cityscapes-vgg16"),
    "synthia-cityscapes": _SYNTHIA,
    "synthia-cityscapes-vgg16": _vgg16(_SYNTHIA, "synthia-cityscapes-vgg16"),
    **{f"cityscapes-{city}": _nthu(city) for city in ("rome", "rio", "tokyo", "taipei")},
}


def preset(name: str) -> Config:
    """A fresh copy of a preset."""
    return deepcopy(PRESETS[name])
