"""Which backend runs an operator: `reference`, `cpu`, `cuda`, `triton`, or the best (`auto`).

`select` is called by every operator, inside torch.compile as well, so it reads module-level
variables and nothing else; whatever takes time or may fail is done when this module is imported.
"""

from __future__ import annotations

import difflib
import os
import warnings
from types import ModuleType, TracebackType

import torch
from torch import Tensor

from cscl_fast import _library

BACKENDS = ("reference", "cpu", "cuda", "triton")

# The operators of cscl_fast.ops, by the names that `select` is called with.
OPERATORS = (
    "soft_pseudo_labels",
    "pseudo_label_loss",
    "upsampled_cross_entropy",
    "class_thresholds",
    "class_centroids",
    "symmetric_soft_divergence",
    "transfer_reward",
)

_ENVIRONMENT = "CSCL_FAST_BACKEND"
_CPU_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_library_state = _library.load()

# Why each backend cannot be used; a backend that can is not listed.
_missing: dict[str, str] = {}
if _library_state.problem is not None:
    _missing["cpu"] = _library_state.problem
_missing["cuda"] = "this version has no CUDA kernels yet. Use auto, cpu or reference."
_missing["triton"] = "this version has no Triton kernels yet. Use auto, cpu or reference."

# For each compiled backend the operators it has a kernel for; the reference completes the rest.
_kernels: dict[str, tuple[str, ...]] = {
    "cpu": tuple(_library_state.module.cpu_operators) if _library_state.module else (),
    "cuda": (),
    "triton": (),
}

# The processor's own kernels are used by `auto`, and only if nothing is wrong with them.
_cpu_operators = _kernels["cpu"] if "cpu" not in _missing else ()
# A library that is there but does not fit is an error, never a silent fall back to slow code.
_broken = _library_state.problem if _library_state.built else None
_warned = False


def why_unavailable(name: str) -> str | None:
    """Why a backend cannot be used and what to do about it; None when it can."""
    _check_name(name)
    return _missing.get(name)


def available() -> tuple[str, ...]:
    """The backends that can be used here."""
    return tuple(name for name in BACKENDS if name not in _missing)


def kernels(name: str) -> tuple[str, ...]:
    """The operators that a backend computes itself; the reference computes the others."""
    _check_name(name)
    return OPERATORS if name == "reference" else _kernels[name]


def library_module() -> ModuleType | None:
    """The compiled module if there is one, whether it can be used or not (see why_unavailable)."""
    return _library_state.module


def environment_problem() -> str | None:
    """Why what CSCL_FAST_BACKEND asks for cannot be had; None when it can."""
    return _choice_problem


def current_backend() -> str:
    """What was chosen by `use_backend` or CSCL_FAST_BACKEND: a backend's name or `auto`."""
    return _choice


def library() -> ModuleType:
    """The compiled module, for the backends that call it."""
    if _library_state.module is None or _library_state.problem is not None:
        raise RuntimeError(str(_library_state.problem))
    return _library_state.module


def release_memory() -> None:
    """Give memory that waits for the next large result back to the operating system.

    Results of the CPU kernels of 4 MiB and more lie in such memory; at most CSCL_FAST_CACHE_MB
    (512) of it waits. Results that are still in use are not touched.
    """
    if _library_state.module is not None and _library_state.problem is None:
        _library_state.module.release_cache()


def _check_name(name: object) -> None:
    if name in BACKENDS:
        return
    near = difflib.get_close_matches(str(name), (*BACKENDS, "auto"), n=1, cutoff=0.5)
    guess = f" Did you mean {near[0]!r}?" if near else ""
    raise ValueError(
        f"there is no backend {name!r}; choose from {', '.join(BACKENDS)}, auto.{guess}"
    )


def _check_choice(name: str) -> None:
    if name != "auto":
        _check_name(name)
        if name in _missing:
            raise RuntimeError(f"backend {name!r} is not available: {_missing[name]}")


class use_backend:
    """Chooses the backend of every operator: at once, or inside a `with` block.

        use_backend("reference")            # from here on
        with use_backend("reference"): ...  # and back to what it was

    Raises:
        ValueError: there is no backend of this name.
        RuntimeError: it is not available here; the message says why and what to do.
    """

    def __init__(self, name: str) -> None:
        global _choice, _choice_problem
        _check_choice(name)
        self._before = (_choice, _choice_problem)
        _choice, _choice_problem = name, None

    def __enter__(self) -> None:
        return None

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        global _choice, _choice_problem
        _choice, _choice_problem = self._before


def select(operator: str, tensor: Tensor, argument: str = "logits") -> str:
    """The backend that runs `operator` on `tensor`, an argument of the name `argument`.

    Raises:
        TypeError: the backend that was asked for does not take this dtype.
        ValueError: it does not take tensors on this device.
        RuntimeError: the compiled library does not fit the sources, or CSCL_FAST_BACKEND asks
            for what is not there.
    """
    if _choice_problem is not None:
        raise RuntimeError(_choice_problem)
    if _choice == "reference":
        return "reference"
    if _broken is not None:
        raise RuntimeError(_broken)
    if _choice == "cpu":
        if tensor.device.type != "cpu":
            raise ValueError(
                f"{argument} is on {tensor.device}; the backend 'cpu' needs it on the CPU, or "
                "choose use_backend('auto')"
            )
        if tensor.dtype not in _CPU_DTYPES:
            raise TypeError(
                f"{argument} is {tensor.dtype}; the backend 'cpu' needs float32, float16 or "
                "bfloat16, or choose use_backend('reference')"
            )
    if tensor.device.type == "cpu" and tensor.dtype in _CPU_DTYPES:
        if operator in _cpu_operators:
            return "cpu"
        if _library_state.module is None and not torch.compiler.is_compiling():
            _warn_once()
    return "reference"


def _warn_once() -> None:
    global _warned
    if not _warned:
        _warned = True
        warnings.warn(
            f"cscl_fast computes with plain PyTorch, which is slow: {_missing['cpu']}",
            stacklevel=4,
        )


_choice = os.environ.get(_ENVIRONMENT) or "auto"
_choice_problem: str | None = None
try:
    _check_choice(_choice)
except (ValueError, RuntimeError) as _error:
    # Said at the first use rather than here, so that `python -m cscl_fast.info` can still explain.
    _choice_problem = f"the environment variable {_ENVIRONMENT} is {_choice!r}: {_error}"
