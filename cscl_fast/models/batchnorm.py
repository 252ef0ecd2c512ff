"""Batch normalisation across two domains: whose statistics move, and when."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm


def freeze_affine(model: nn.Module) -> None:
    """Stop training the scale and shift of every batch normalisation in `model`."""
    for layer in _batch_norms(model):
        for parameter in layer.parameters(recurse=False):
            parameter.requires_grad_(False)


@contextmanager
def frozen_statistics(model: nn.Module) -> Iterator[None]:
    """Within it, training forwards leave the running statistics alone.

    Training mode still normalises by the batch's own statistics, evaluation mode by the running
    ones. `bn="per-domain"` wraps the source batches in it, so that the running statistics are the
    target's.
    """
    layers = list(_batch_norms(model))
    tracked = [layer.track_running_stats for layer in layers]
    try:
        for layer in layers:
            layer.track_running_stats = False
        yield
    finally:
        for layer, before in zip(layers, tracked, strict=True):
            layer.track_running_stats = before


@contextmanager
def running_statistics(model: nn.Module) -> Iterator[None]:
    """Within it, training forwards normalise by the running statistics and leave them alone.

    `bn="frozen"` wraps every training forward in it: the network then normalises as it does in
    evaluation. Scale and shift still learn, unless `freeze_affine` stopped them; dropout is as
    before. A layer without running statistics goes on normalising by the batch's own.
    """
    layers = list(_batch_norms(model))
    modes = [layer.training for layer in layers]
    try:
        for layer in layers:
            layer.training = False
        yield
    finally:
        for layer, mode in zip(layers, modes, strict=True):
            layer.training = mode


@torch.no_grad()
def reestimate_statistics(
    model: nn.Module,
    batches: Iterable[Tensor],  # [B, 3, H, W] each, drawn at random from one domain
) -> int:
    """Replace the running statistics by those of `batches`: the plain average over them.

    Only batch normalisation runs in training mode meanwhile: dropout stays off. Every layer's mode
    and momentum are as before afterwards. Draw the batches at random: neighbouring frames of a
    video make each batch's variance too small.

    Returns:
        The number of batches read; 0 if `model` has no running statistics (none is read then).

    Raises:
        ValueError: `batches` is empty. Then, and when reading a batch raises, the statistics are as
            before.
    """
    layers = [layer for layer in _batch_norms(model) if layer.running_mean is not None]
    if not layers:
        return 0
    device = next(model.parameters()).device
    saved = [{name: buffer.clone() for name, buffer in layer.named_buffers()} for layer in layers]
    momenta = [layer.momentum for layer in layers]
    modes = {module: module.training for module in model.modules()}
    count = 0
    completed = False
    try:
        model.eval()
        for layer in layers:
            layer.train()
            layer.reset_running_stats()
            layer.momentum = None  # PyTorch's cumulative average: every batch counts the same
        for images in batches:
            model(images.to(device))
            count += 1
        completed = count > 0
    finally:
        for module, mode in modes.items():
            module.training = mode
        for layer, buffers, momentum in zip(layers, saved, momenta, strict=True):
            layer.momentum = momentum
            if not completed:
                for name, buffer in layer.named_buffers():
                    buffer.copy_(buffers[name])
    if count == 0:
        raise ValueError("batches is empty; re-estimating the statistics needs at least one batch")
    return count


def _batch_norms(model: nn.Module) -> Iterator[_BatchNorm]:
    return (module for module in model.modules() if isinstance(module, _BatchNorm))
