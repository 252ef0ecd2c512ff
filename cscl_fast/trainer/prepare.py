"""What a training needs before its first step, whichever it is."""

from __future__ import annotations

from dataclasses import replace

import torch

from cscl_fast.config import Config, ConfigError
from cscl_fast.models import SegmentationModel, checkpoint_activations, compile_parts
from cscl_fast.trainer.optimizers import Optimizers
from cscl_fast.trainer.processes import Processes, synchronise_batchnorm


def checked(config: Config | None) -> Config:
    """The configuration, with values that can be; those of data sets and weights are not used."""
    config = config or Config()
    replace(config, model=replace(config.model, init="loaded by the caller")).validate()
    return config


def optimizers(players: dict[str, torch.optim.Optimizer], config: Config, steps: int) -> Optimizers:
    settings = config.optimizer
    return Optimizers(players, steps=steps, power=settings.power, clip_norm=settings.clip_norm)


def prepare(model: SegmentationModel, config: Config, processes: Processes) -> None:
    """Let the network compute as configured, in place; a second time changes nothing.

    All processes get the weights of the first, before anybody copies them.

    Raises:
        CompileError: PyTorch finds no compiler, with `compile`.
        ConfigError: the network cannot do `model.activation_checkpointing` by itself.
    """
    model.to(memory_format=torch.channels_last)
    processes.copy_from_main(model)
    synchronise_batchnorm(model, config, processes)
    if config.model.activation_checkpointing:
        try:
            checkpoint_activations(model)
        except ValueError as error:
            raise ConfigError(
                f"model.activation_checkpointing is on, and {model.architecture} does not say "
                "which parts of its encoder follow each other; leave the key off, and from a loop "
                "of your own call cscl_fast.models.checkpoint_activations(model, parts) before"
            ) from error
    compile_network(model, config)


def compile_network(model: SegmentationModel, config: Config) -> None:
    """Compile the network, if that is configured and has not been done."""
    if config.compile and model.encoder._compiled_call_impl is None:
        compile_parts(model)
