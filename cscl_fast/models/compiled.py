"""Encoder and classifier through torch.compile, in place."""

from __future__ import annotations

import inspect
from typing import Any

import torch
from torch import Tensor

from cscl_fast.models.segmentation_model import SegmentationModel


class CompileError(RuntimeError):
    """PyTorch cannot compile here; the message says what its compiler reported."""


def compile_parts(model: SegmentationModel) -> None:
    """Compile the encoder and the classifier of `model` with torch.compile, in place.

    Nothing is compiled before the first batch, which then takes minutes; another image size, or a
    first batch without gradients, compiles once more. Names of weights do not change, so that
    checkpoints fit either way. A copy of the network (a label network, an average) is not compiled
    until this function is called for it.

    Raises:
        CompileError: PyTorch finds no compiler for the device of the network.
    """
    _require_compiler(next(model.parameters()).device)
    settings = _several_versions()
    model.encoder.compile(**settings)
    model.classifier.compile(**settings)


def _several_versions() -> dict[str, Any]:
    """Settings of torch.compile that let every network have the versions that training needs.

    With and without gradients, with and without running statistics that move, in training and in
    evaluation, for each image size: PyTorch's limit of 8, counted over all networks of a process,
    would leave some of them uncompiled.
    """
    limit = 32
    if "recompile_limit" in inspect.signature(torch.compile).parameters:
        return {"recompile_limit": limit, "isolate_recompiles": True}
    torch._dynamo.config.recompile_limit = max(torch._dynamo.config.recompile_limit, 4 * limit)
    return {}


def _require_compiler(device: torch.device) -> None:
    """Compile one small operation now: a machine without a compiler would say so in a step."""

    def doubled(values: Tensor) -> Tensor:
        return values * 2

    try:
        torch.compile(doubled)(torch.ones(2, device=device))
    except Exception as error:  # each of PyTorch's backends has errors of its own
        reason = next((line for line in str(error).splitlines() if line.strip()), "no reason given")
        needed = (
            "Triton, which PyTorch brings, and" if device.type == "cuda" else "g++ or clang, and"
        )
        raise CompileError(
            f"torch.compile does not work on {device}: {type(error).__name__}: {reason.strip()}. "
            f"It needs {needed} Python's headers; install them, or leave compile off"
        ) from error
