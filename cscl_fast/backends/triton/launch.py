"""How the operators of the Triton backend are registered and how their kernels are started.

With TRITON_INTERPRET=1 in the environment the kernels are run by Triton's interpreter, in NumPy, on
CPU tensors. PyTorch cannot trace interpreted kernels, so there an operator is a plain custom one,
which a compiled graph calls; on a GPU it is a `triton_op`, which a compiled graph sees through.
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
import triton
from torch import Tensor

NAMESPACE = "cscl_fast_triton"

# An index of this size or more is computed in 64 bits.
_LARGE = 1 << 31


def _version() -> tuple[int, ...]:
    return tuple(int(part) for part in triton.__version__.split(".")[:2])


def _interpreted() -> bool:
    knobs = getattr(triton, "knobs", None)
    return bool(knobs.runtime.interpret) if knobs is not None else False


# Choices are kept on disk where this version of Triton can.
_REMEMBER: dict[str, Any] = (
    {"cache_results": True}
    if "cache_results" in inspect.signature(triton.autotune).parameters
    else {}
)

# Fixed when Triton is imported: `triton.jit` asks for it once for each kernel.
INTERPRETED = _interpreted()


def operator(
    name: str, fake: Callable[..., Any], mutates: Sequence[str] = ()
) -> Callable[[Callable[..., Any]], Any]:
    """Registers a function as `torch.ops.cscl_fast_triton.<name>`.

    Args:
        fake: the same signature; makes results of the right shape and type without values.
        mutates: names of the tensors that it changes in place.
    """

    def register(compute: Callable[..., Any]) -> Any:
        make: Any = torch.library.custom_op if INTERPRETED else torch.library.triton_op
        registered = make(f"{NAMESPACE}::{name}", compute, mutates_args=tuple(mutates))
        if INTERPRETED:
            registered.register_fake(fake)
        return registered

    return register


def launch(kernel: Any, grid: Any, *arguments: Any, **options: Any) -> None:
    """Starts a kernel, such that a compiled graph sees which one and with what."""
    started = kernel if INTERPRETED else torch.library.wrap_triton(kernel)
    started[grid](*arguments, **options)


def on_device_of(tensor: Tensor) -> AbstractContextManager[object]:
    """Makes the tensor's GPU the one that kernels are started on."""
    if torch.compiler.is_compiling() or tensor.device.type != "cuda":
        return nullcontext()
    if tensor.device.index == torch.cuda.current_device():
        return nullcontext()
    return torch.cuda.device(tensor.device)


def power_of_two(count: int) -> int:
    """The smallest power of two that is at least `count`, and at least 1."""
    return 1 << max(int(count) - 1, 0).bit_length()


def padded_classes(classes: int) -> int:
    """How many classes a tile has room for: a power of two."""
    return max(power_of_two(classes), 2)


def blocks_of(count: Any, block: int) -> Any:
    """How many blocks hold `count` items, at least 1. Works on sizes that are being traced."""
    return (count + block - 1) // block


def wide(*tensors: Tensor) -> bool:
    """Whether an offset into an image of one of these may need 64 bits."""
    for tensor in tensors:
        reach: Any = 1
        for length, stride in zip(tensor.shape[1:], tensor.stride()[1:], strict=True):
            reach = reach + length * abs(stride)
        if reach >= _LARGE:
            return True
    return False


def wide_positions(source: Sequence[int], output: Sequence[int]) -> bool:
    """Whether the fractions of `line_position`, or pixel numbers, may need 64 bits."""
    lines = any(4 * s * o >= _LARGE for s, o in zip(source, output, strict=True))
    return lines or output[0] * output[1] >= _LARGE - (1 << 20)


def flat(tensor: Tensor) -> bool:
    """Whether the pixels of [.., h, w] lie at one distance from each other."""
    height, width = tensor.shape[-2:]
    return bool(height <= 1 or tensor.stride(-2) == width * tensor.stride(-1))


def kernel_result(result: Tensor) -> Tensor:
    """Where a kernel writes a result that has been made room for: there, on a GPU.

    The interpreter cuts a float32 number off to make it bfloat16, where a GPU rounds it; there the
    kernel writes float32, for PyTorch to round.
    """
    if INTERPRETED and result.dtype == torch.bfloat16:
        return torch.empty_like(result, dtype=torch.float32)
    return result


def pixel_stride(tensor: Tensor) -> Any:
    """How far neighbouring pixels of [.., h, w], evenly spaced, lie from each other."""
    return tensor.stride(-1) if tensor.shape[-1] > 1 else tensor.stride(-2)


def spread(padded: int, elements: int) -> dict[str, int]:
    """BLOCK and warps such that a thread holds about so many elements of [padded, BLOCK] tiles.

    One warp, so that sums over the classes need no memory between threads, unless one pixel's
    classes are too many for it.
    """
    block = max(32 * elements // padded, 1)
    return {"BLOCK": block, "num_warps": max(padded * block // (32 * elements), 1)}


# Triton before 3.7 needs about twice the registers for the same tile.
ELEMENTS_OF_THREAD = 32 if _version() >= (3, 7) else 16
# The same for a walk over quads, which holds up to ten tiles at once.
QUAD_ELEMENTS_OF_THREAD = 16 if _version() >= (3, 7) else 4


def pixel_block(classes: int, precise: bool = False) -> dict[str, int]:
    """How many pixels a program takes, BLOCK, and its warps.

    Up to ELEMENTS_OF_THREAD classes a thread has a pixel to itself, so that it sums over its
    classes alone. The interpreter's time is one of programs and not of elements: its blocks are
    large.
    """
    padded = padded_classes(classes)
    if INTERPRETED:
        return {"BLOCK": (1 << 16) // padded, "num_warps": 4}
    if precise:
        return spread(padded, ELEMENTS_OF_THREAD // 4)
    if padded > ELEMENTS_OF_THREAD:
        return spread(padded, ELEMENTS_OF_THREAD // 2)
    return {"BLOCK": 256 if 2 * padded <= ELEMENTS_OF_THREAD else 128, "num_warps": 4}


# (BLOCK, warps) that are worth trying where a thread has a pixel, or two, to itself.
PIXEL_CONFIGURATIONS = ((64, 2), (128, 4), (256, 4), (512, 4))


def fitting(
    configs: list[triton.Config], named_args: dict[str, Any], **options: Any
) -> list[triton.Config]:
    """The configurations that are worth trying for this number of classes."""
    padded, precise = options["PADDED"], options.get("PRECISE", False)
    if precise or padded > ELEMENTS_OF_THREAD:
        only = pixel_block(padded, precise)
        return [triton.Config({"BLOCK": only["BLOCK"]}, num_warps=only["num_warps"])]
    most = ELEMENTS_OF_THREAD // padded  # pixels of a thread
    return [
        config for config in configs if config.kwargs["BLOCK"] // (32 * config.num_warps) <= most
    ]


def tuned(kernel: Any) -> Any:
    """A kernel over pixels, with `triton.autotune` over BLOCK and warps for each K and dtype.

    Only kernels without a sum over pixels are tuned, and in every configuration that is tried for
    one K the classes of a pixel lie alike: which one wins may differ between two runs, and must not
    change a result's bits. Nothing is accumulated into, so that trying is harmless.
    """
    if INTERPRETED:
        return kernel
    configs = [
        triton.Config({"BLOCK": block}, num_warps=warps) for block, warps in PIXEL_CONFIGURATIONS
    ]
    key = ["CLASSES", "stride_k", "stride_x", "RESAMPLE_Y", "RESAMPLE_X", "FLAT", "PRECISE"]
    key = [name for name in key if name in kernel.arg_names]
    return triton.autotune(
        configs=configs, key=key, prune_configs_by={"early_config_prune": fitting}, **_REMEMBER
    )(kernel)


def tuned_block(classes: int) -> dict[str, int]:
    """What a tuned kernel must be told: nothing, unless it is interpreted."""
    return pixel_block(classes) if INTERPRETED else {}
