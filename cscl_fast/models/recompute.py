"""Less memory for more time: activations computed again in the backward pass, not kept."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.utils.checkpoint import checkpoint

from cscl_fast.models.segmentation_model import SegmentationModel


def checkpoint_activations(
    model: SegmentationModel,
    parts: Iterable[nn.Module] | None = None,
) -> None:
    """Let parts of a network keep only their inputs for the backward pass, in place.

    The backward computes the activations of one part after the other again, with the modes
    (training, evaluation) and the random numbers of the first time, and without moving running
    statistics a second time: losses, gradients and statistics are the same bits. Names of weights
    do not change; copies of the network do the same. Without gradients nothing is different.

    Args:
        model: the network.
        parts: modules of one tensor in and one out that follow each other, and of which none is
            inside another; None takes `model.recomputable()`, the encoder's residual blocks or
            stages.

    Raises:
        ValueError: the network does not know its parts, and none are given.
    """
    parts = list(model.recomputable() if parts is None else parts)
    if not parts:
        raise ValueError(
            f"{model.architecture} does not say which parts of its encoder follow each other; "
            "give parts, or train without activation checkpointing"
        )
    for part in parts:
        if not isinstance(part.forward, Recomputed):
            part.forward = Recomputed(part)


class Recomputed:
    """Takes the place of a module's `forward` and computes it again in the backward pass."""

    def __init__(self, module: nn.Module) -> None:
        self.module = module

    def __call__(self, features: Tensor) -> Tensor:
        def forward(features: Tensor) -> Tensor:
            result: Tensor = type(self.module).forward(self.module, features)
            return result

        if not torch.is_grad_enabled():
            return forward(features)
        if torch.compiler.is_compiling():  # the compiler itself does not repeat what has effects
            return checkpoint(forward, features, use_reentrant=False)
        states = [_State(layer) for layer in self.module.modules()]

        def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
            return nullcontext(), _again(states)

        return checkpoint(forward, features, use_reentrant=False, context_fn=contexts)


class _State:
    """A layer and what its forward depends on beside weights and inputs."""

    def __init__(self, layer: nn.Module) -> None:
        self.layer = layer
        self.training = layer.training
        self.tracks = isinstance(layer, _BatchNorm) and layer.track_running_stats

    def restore(self) -> None:
        self.layer.training = self.training
        if isinstance(self.layer, _BatchNorm):
            self.layer.track_running_stats = self.tracks


@contextmanager
def _again(layers: list[_State]) -> Iterator[None]:
    """The layers as they were in the first forward, but for running statistics that do not move.

    They are moved by a momentum of 0 and not left out: the second forward has to keep the same
    tensors as the first for the backward.
    """
    now = [_State(known.layer) for known in layers]
    normalising = [known.layer for known in layers if isinstance(known.layer, _BatchNorm)]
    moves = [(layer, layer.momentum, layer.num_batches_tracked) for layer in normalising]
    try:
        for known in layers:
            known.restore()
        for layer, _, count in moves:
            layer.momentum = 0.0
            if count is not None:
                layer.num_batches_tracked = torch.zeros_like(count)
        yield
    finally:
        for layer, momentum, count in moves:
            layer.momentum, layer.num_batches_tracked = momentum, count
        for known in now:
            known.restore()
