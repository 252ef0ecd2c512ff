"""How many warps of a kernel a multiprocessor holds, and how the host launches each kernel."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

WARP = 32


class Device(NamedTuple):
    """What a multiprocessor of one compute capability has, by the CUDA programming guide."""

    warps: int
    blocks: int
    shared_kilobytes: int  # of the blocks together; one of them may have one less


DEVICES = {
    80: Device(64, 32, 164),
    86: Device(48, 16, 100),
    89: Device(48, 24, 100),
    90: Device(64, 32, 228),
    100: Device(64, 32, 228),
    120: Device(48, 24, 100),
}
REGISTERS = 65536  # of a multiprocessor
REGISTER_UNIT = 256  # of a warp
WARP_UNIT = 4  # a scheduler for each; registers are divided among them
SHARED_UNIT = 128
SHARED_RESERVED = 1024  # of each block


def round_up(value: int, unit: int) -> int:
    return -(-value // unit) * unit


def resident_blocks(architecture: int, registers: int, threads: int, shared: int) -> int:
    """Blocks that a multiprocessor holds at once, as NVIDIA's occupancy calculator counts.

    Args:
        architecture: 80 for compute capability 8.0.
        registers: of a thread.
        shared: static and dynamic, in bytes.
    """
    device = DEVICES[architecture]
    warps = round_up(threads, WARP) // WARP
    register_warps = REGISTERS // round_up(registers * WARP, REGISTER_UNIT)
    shared_block = round_up(shared + SHARED_RESERVED, SHARED_UNIT)
    if shared_block > device.shared_kilobytes << 10:
        return 0
    return min(
        device.blocks,
        device.warps // warps,
        register_warps // WARP_UNIT * WARP_UNIT // warps,
        (device.shared_kilobytes << 10) // shared_block,
    )


def resident_warps(architecture: int, registers: int, threads: int, shared: int) -> int:
    blocks = resident_blocks(architecture, registers, threads, shared)
    return blocks * round_up(threads, WARP) // WARP


# ---- how the host launches the kernels ----------------------------------------------------------
#
# The same sums as in csrc/cuda, in the places that are named; for one image of 512 x 1024 pixels,
# upsampled from 65 x 129, features of 2048 channels. K follows from the kernel: 19 where it can.

CLASSES = {"19": 19, "to 16": 16, "to 32": 32, "any": 64}
TILE_COLUMNS = 18  # lines_touched(128, 129, 1024), upsampled_walk.h
NARROW_COLUMNS = 6  # lines_touched(32, 129, 1024)
BAND, NARROW_BAND = 8, 16  # tiling_of: rows of a block where 100 to 170 multiprocessors want work


class Launch(NamedTuple):
    """Threads of a block and its dynamic shared memory in bytes."""

    threads: int
    shared: int


def array(count: int, size: int = 4) -> int:
    """shared_bytes, shared.h."""
    return round_up(count * size, 16)


def pixel_tile(pixels: int, classes: int) -> int:
    """PixelTile::count, columns.h."""
    return array(pixels * classes + pixels * classes // 32 + 1)


def body_bytes(kernel: Mapping[str, Any], classes: int) -> int:
    """Body::bytes: label_rule.h, loss_body.h, class_threshold.cu."""
    plan = array(max(classes, 32)) + 2 * array(classes)
    sums = 0 if kernel.get("kind") == "gradient" else 2 * array(32)
    return {
        "label": plan,
        "selftraining": plan + sums,
        "crossentropy": sums,
        "counting": array(classes * (256 if classes <= 32 else 32)),
        "ranking": array(classes * 512) if classes <= 32 else 0,
        "reward": 0,
    }[kernel["body"]]


def walk_launch(kernel: Mapping[str, Any]) -> Launch:
    """walk_logits, pixel_walk.h, and upsampled_bytes, upsampled_kernels.h."""
    name, body = kernel["kernel"], kernel["body"]
    classes = CLASSES[kernel["classes"]]
    threads = 32 if kernel["classes"] == "any" else 128
    two = body == "reward" or kernel.get("labels") == "given"
    other_column = body in ("reward", "selftraining")
    bytes_ = body_bytes(kernel, classes)
    if name in ("walk_planes", "walk_pixels"):
        scratch = name == "walk_pixels" or body in ("label", "selftraining", "reward")
        tiles = 2 if threads == 32 and (two or other_column) else 1
        tile = pixel_tile(threads if scratch else 0, classes)
        return Launch(threads, tiles * tile + bytes_)
    gradient = kernel.get("kind") == "value and gradient"
    registers = name == "walk_upsampled"
    tile = body in ("label", "selftraining") or gradient or not registers
    bytes_ += 3 * array(BAND if registers else NARROW_BAND) + pixel_tile(
        threads if tile else 0, classes
    )
    columns = TILE_COLUMNS if registers else NARROW_COLUMNS
    if registers:
        bytes_ += array(classes * columns) + array(columns)
        bytes_ += (2 if two else 1) * 2 * array(threads * classes)
    elif two or other_column:
        bytes_ += pixel_tile(threads, classes)
    if gradient:
        bytes_ += 2 * array(threads) + array(columns + 1)
        bytes_ += 0 if registers else pixel_tile(threads, classes)
    return Launch(threads, bytes_)


def sums_launch(kernel: Mapping[str, Any], classes: int = 19) -> Launch:
    """plan_side, class_sums.cu."""
    width = int(kernel.get("width", 1))
    scratch = 0 if kernel["walk"] == "rows" else WARP * (WARP + 1)

    def shared(warps: int) -> int:
        sums = array(warps * classes * WARP * width) + array(warps * classes * 2)
        return sums + array(warps * scratch)

    warps = 8
    while warps > 1 and shared(warps) > 96 << 10:
        warps -= 1
    return Launch(warps * WARP, shared(warps))


def launch_of(kernel: Mapping[str, Any]) -> Launch:
    """Of a described kernel. Loud for one that it does not know."""
    name = kernel["kernel"]
    if name.startswith("walk_"):
        return walk_launch(kernel)
    if name == "sum_classes":
        return sums_launch(kernel)
    known = {
        "assign": Launch(128, 0),  # class_assignment.cu
        "finish_centroids": Launch(256, array(4 * 256)),  # class_centroid.cu
        "write_rows": Launch(256, 0),
        "write_planes": Launch(256, 0),
        # symmetric_soft_divergence.cu
        "compare_classes": Launch(512, array(4 * 512) + array(3 * 16) + array(1)),
        "finish_loss": Launch(128, 2 * array(32, 8)),  # loss_total.h
        "finish_gradient": Launch(128, 2 * array(32, 8)),
        "read_histogram": Launch(512, array(512, 8)),  # class_threshold.cu
        "rank_digit": Launch(256, array(19) + array(1) + array(19 * 512)),
    }
    if name not in known:
        raise ValueError(
            f"benchmarks/gpu_limits.py does not know how {name} is launched; add it to launch_of"
        )
    return known[name]
