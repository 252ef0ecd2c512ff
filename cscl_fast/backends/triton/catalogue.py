"""Every kernel with what it is compiled for, so that it can be compiled without a GPU.

A case is a kernel, the types of its arguments and the compile-time ones, as the operators start it
for some number of classes. Types follow from the names of the parameters.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterator
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any

import triton

from . import (
    centroid_kernels,
    class_centroid,
    class_threshold,
    divergence_kernels,
    launch,
    loss,
    pixel_loss,
    quad_loss,
    soft_pseudo_label,
    transfer_reward,
)

MODULES = (
    soft_pseudo_label,
    pixel_loss,
    quad_loss,
    class_threshold,
    transfer_reward,
    centroid_kernels,
    divergence_kernels,
)
DTYPES = ("fp32", "fp16", "bf16")

# What a pointer of this name points to; "data" is the dtype of logits, features and results.
_POINTERS = {
    "logits_ptr": "data",
    "teacher_ptr": "data",
    "gated_ptr": "data",
    "plain_ptr": "data",
    "features_ptr": "data",
    "soft_ptr": "data",
    "thresholds_ptr": "fp32",
    "labels_ptr": "i64",
    "hard_ptr": "i64",
    "losses_ptr": "fp32",
    "counts_ptr": "i32",
    "loss_ptr": "fp32",
    "count_ptr": "i64",
    "scale_ptr": "fp32",
    "gradient_ptr": "data",
    "corners_ptr": "fp32",
    "histogram_ptr": "i64",
    "other_ptr": "i64",
    "selected_ptr": "i32",
    "rank_ptr": "i64",
    "reward_ptr": "fp32",
    "valid_ptr": "i1",
    "row_ptr": "i32",
    "weight_ptr": "fp32",
    "sums_ptr": "fp32",
    "masses_ptr": "fp32",
    "centroids_ptr": "fp64",
    "mass_ptr": "fp64",
    "slope_ptr": "fp32",
    "source_ptr": "fp64",
    "target_ptr": "fp64",
    "source_mass_ptr": "fp64",
    "target_mass_ptr": "fp64",
    "divergence_ptr": "fp64",
    "source_slope_ptr": "fp32",
    "target_slope_ptr": "fp32",
}
_FLOATS = ("gamma", "eps", "portion_high", "portion_middle", "portion_low")
# Two kernels know one name as something else.
_EXCEPTIONS = {
    ("corner_gradient_kernel", "gradient_ptr"): "fp32",
    ("centroid_gradient_kernel", "mass_ptr"): "fp32",
}


@dataclass(frozen=True)
class KernelCase:
    """One way in which a kernel is compiled."""

    name: str  # the kernel's
    variant: str
    kernel: Any  # triton.JITFunction
    dtype: str  # of logits or features: fp32, fp16, bf16
    signature: dict[str, str]  # type of every parameter, "constexpr" for the compile-time ones
    constexprs: dict[str, Any]
    options: dict[str, int] = field(default_factory=dict)  # num_warps
    typical: bool = True  # compiled in every run of the tests, not only in the complete one

    @property
    def id(self) -> str:
        return f"{self.name}-{self.variant}-{self.dtype}"


def jit_function(kernel: Any) -> Any:
    """The kernel itself, without the search for its configuration."""
    while not hasattr(kernel, "params"):
        kernel = kernel.fn
    return kernel


def kernels_of(module: ModuleType) -> dict[str, Any]:
    """The kernels that a module defines: what Triton compiles and is called something_kernel."""
    return {
        name: value
        for name, value in vars(module).items()
        if name.endswith("_kernel") and _module_of(value) == module.__name__
    }


def _module_of(kernel: Any) -> str | None:
    while hasattr(kernel, "fn") and not inspect.isfunction(kernel):
        kernel = kernel.fn
    return getattr(kernel, "__module__", None)


def _signature(kernel: Any, dtype: str, constexprs: dict[str, Any]) -> dict[str, str]:
    signature = {}
    for parameter in kernel.params:
        name = parameter.name
        if parameter.is_constexpr or name in constexprs:
            signature[name] = "constexpr"
        elif name.endswith("_ptr"):
            kind = _EXCEPTIONS.get((kernel.__name__, name), _POINTERS[name])
            signature[name] = "*" + (dtype if kind == "data" else kind)
        else:
            signature[name] = "fp32" if name in _FLOATS else "i32"
    return signature


# A variant: its name, the compile-time arguments, the warps, and whether it is typical.
_Variant = tuple[str, dict[str, Any], int, bool]


def _classes(count: int) -> dict[str, Any]:
    return {"CLASSES": count, "PADDED": launch.padded_classes(count)}


def _pixels(count: int, upsampled: bool) -> dict[str, Any]:
    options = {
        **_classes(count),
        "ALIGN": False,
        "RESAMPLE_Y": upsampled,
        "RESAMPLE_X": upsampled,
        "FLAT": not upsampled,
        "WIDE": False,
    }
    return options if upsampled else {**options, "stride_x": 1}


def _blocks(count: int, precise: bool = False) -> Iterator[tuple[dict[str, Any], int]]:
    """The configurations that are tried for this number of classes."""
    configs = [
        triton.Config({"BLOCK": block}, num_warps=warps)
        for block, warps in launch.PIXEL_CONFIGURATIONS
    ]
    padded = launch.padded_classes(count)
    for config in launch.fitting(configs, {}, PADDED=padded, PRECISE=precise):
        yield dict(config.kwargs), config.num_warps


def _fixed(count: int, precise: bool = False) -> tuple[dict[str, Any], int]:
    block = dict(launch.pixel_block(count, precise))
    return block, block.pop("num_warps")


def _soft_pseudo_label() -> Iterator[_Variant]:
    for count in (19, 2, 13, 64, 128, 256):
        for upsampled in (False, True):
            for precise in (False, True):
                for i, (block, warps) in enumerate(_blocks(count, precise)):
                    name = f"{count}{'-upsampled' * upsampled}{'-precise' * precise}-{i}"
                    options = {**_pixels(count, upsampled), "PRECISE": precise, **block}
                    if not upsampled:
                        options["soft_stride_x"] = 1
                    yield name, options, warps, count in (19, 256) and i == 0
    block, warps = _fixed(19)
    options = {**_pixels(19, True), "PRECISE": False, "ALIGN": True, "WIDE": True, **block}
    yield "19-aligned-wide", options, warps, True


def _terms() -> Iterator[tuple[str, dict[str, Any]]]:
    for name, pseudo, teacher, precise in (
        ("cross-entropy", False, False, False),
        ("own", True, False, False),
        ("own-precise", True, False, True),
        ("teacher", True, True, False),
        ("teacher-precise", True, True, True),
    ):
        yield name, {"PSEUDO": pseudo, "TEACHER": teacher, "PRECISE": precise}


def _pixel_loss(gradient: bool) -> Iterator[_Variant]:
    names = ("CLASSES", "PADDED", "FLAT", "WIDE", "stride_x")
    for count in (19, 2, 13, 64, 128, 256):
        common = {name: _pixels(count, False)[name] for name in names}
        for name, terms in _terms():
            tried = (
                _blocks(count, terms["PRECISE"]) if gradient else [_fixed(count, terms["PRECISE"])]
            )
            for i, (block, warps) in enumerate(tried):
                typical = i == 0 and (count == 19 or (count == 256 and name == "teacher-precise"))
                yield f"{count}-{name}-{i}", {**common, **terms, **block}, warps, typical


def _quad_loss() -> Iterator[_Variant]:
    names = ("CLASSES", "PADDED", "ALIGN", "RESAMPLE_Y", "RESAMPLE_X", "WIDE")
    for count in (19, 2, 5, 13, 64, 128, 256):
        common = {name: _pixels(count, True)[name] for name in names}
        for name, terms in _terms():
            block = dict(loss.quad_block(count, terms["TEACHER"], terms["PRECISE"]))
            warps = block.pop("num_warps")
            for record in (True, False):
                typical = record and (count == 19 or (count == 256 and name == "teacher-precise"))
                variant = f"{count}-{name}{'' if record else '-value'}"
                yield variant, {**common, **terms, "RECORD": record, **block}, warps, typical
    block = dict(loss.quad_block(19, False, False, wide_offsets=True))
    warps = block.pop("num_warps")
    terms = {"RECORD": True, "PSEUDO": False, "TEACHER": False, "PRECISE": False}
    common = {name: _pixels(19, True)[name] for name in names}
    for axes in ((True, False), (False, True)):
        sides = {"RESAMPLE_Y": axes[0], "RESAMPLE_X": axes[1], "WIDE": True, "ALIGN": True}
        yield (
            f"19-{'rows' if axes[0] else 'columns'}-wide",
            {**common, **terms, **block, **sides},
            warps,
            True,
        )


def _count() -> Iterator[_Variant]:
    for count in (19, 2, 13, 64, 128, 256):
        block, warps = _fixed(count)
        for mode in range(3):
            for upsampled in (False, True):
                name = f"{count}-{mode}{'-upsampled' * upsampled}"
                options = {**_pixels(count, upsampled), "MODE": mode, **block}
                yield name, options, warps, count in (19, 256) and (upsampled or mode == 0)


def _select() -> Iterator[_Variant]:
    for mode, total in enumerate(
        (class_threshold.BINS, class_threshold.UPPER_BINS, class_threshold.LOWER_BINS)
    ):
        for other in (False, True):
            options = {"TOTAL": total, "MODE": mode, "OTHER": other, "BLOCK": 1}
            options["CHUNK"] = class_threshold.CHUNK
            yield f"{mode}{'-other' * other}", options, 8, True


def _reward() -> Iterator[_Variant]:
    names = ("CLASSES", "PADDED", "FLAT", "WIDE", "stride_x")
    for count in (19, 2, 13, 64, 128, 256):
        block = dict(transfer_reward.reward_block(count))
        warps = block.pop("num_warps")
        common = {name: _pixels(count, False)[name] for name in names}
        yield f"{count}", {**common, **block}, warps, count in (19, 256)


def _assign() -> Iterator[_Variant]:
    names = ("CLASSES", "PADDED", "FLAT", "WIDE")
    for count in (19, 64, 256):
        block, warps = _fixed(count)
        for hard in (False, True):
            common = {name: _pixels(count, False)[name] for name in names}
            name = f"{count}-{'hard' if hard else 'soft'}"
            yield name, {**common, "HARD": hard, **block}, warps, True


def _class_sum() -> Iterator[_Variant]:
    for count in (19, 64, 256):
        for stride in ("stride_x", "stride_c"):
            options = {**_classes(count), **class_centroid.sum_tile(count, 2048), stride: 1}
            yield f"{count}-{stride}", options, 4, True


def _centroid_gradient() -> Iterator[_Variant]:
    locations, channels = class_centroid.GRADIENT_TILE
    for stride in ("stride_x", "stride_c"):
        for scaled in (False, True):
            options = {"CLASSES": 19, "MASS": not scaled, "SCALE": scaled, stride: 1}
            tile = {"LOCATIONS": locations, "CHANNELS": channels}
            yield f"{stride}{'-scaled' * scaled}", {**options, **tile}, 4, True


def _divergence() -> Iterator[_Variant]:
    for count in (19, 256):
        for softmax in (False, True):
            options = {**_classes(count), "SOFTMAX": softmax, "CHUNK": 1024}
            yield f"{count}-{'softmax' if softmax else 'l1'}", options, 4, True


def _corner_gradient() -> Iterator[_Variant]:
    for axes in ((True, True), (True, False), (False, True)):
        options = {"CLASSES": 19, "RESAMPLE_Y": axes[0], "RESAMPLE_X": axes[1], "BLOCK": 1024}
        yield f"{int(axes[0])}{int(axes[1])}", options, 4, True


_VARIANTS: dict[str, Any] = {
    "soft_pseudo_label_kernel": _soft_pseudo_label,
    "pixel_loss_kernel": lambda: _pixel_loss(gradient=False),
    "pixel_gradient_kernel": lambda: _pixel_loss(gradient=True),
    "quad_loss_kernel": _quad_loss,
    "corner_gradient_kernel": _corner_gradient,
    "mean_kernel": lambda: iter([("1024", {"BLOCK": 1024}, 8, True)]),
    "count_kernel": _count,
    "select_kernel": _select,
    "transfer_reward_kernel": _reward,
    "assign_kernel": _assign,
    "class_sum_kernel": _class_sum,
    "centroid_kernel": lambda: iter([("19", {"CLASSES": 19, "CHANNELS": 256}, 4, True)]),
    "centroid_gradient_kernel": _centroid_gradient,
    "divergence_kernel": _divergence,
    "divergence_mean_kernel": lambda: iter([("19", _classes(19), 4, True)]),
}
_NO_DATA = (
    "corner_gradient_kernel",
    "mean_kernel",
    "select_kernel",
    "centroid_kernel",
    "divergence_kernel",
    "divergence_mean_kernel",
)


def all_kernels() -> list[KernelCase]:
    """Every kernel of the backend, for every dtype, in the ways in which it is started."""
    cases = []
    for module in MODULES:
        for name, kernel in kernels_of(module).items():
            function = jit_function(kernel)
            for variant, constexprs, warps, typical in _VARIANTS[name]():
                for dtype in DTYPES[:1] if name in _NO_DATA else DTYPES:
                    signature = _signature(function, dtype, constexprs)
                    options = {"num_warps": warps}
                    cases.append(
                        KernelCase(
                            name,
                            variant,
                            function,
                            dtype,
                            signature,
                            constexprs,
                            options,
                            typical,
                        )
                    )
    return cases
