"""Which backend runs an operator: `reference`, `cpu`, `cuda`, `triton`, or the best (`auto`).

A build for tests (CSCL_FAST_CUDA_ON_CPU=1) has one more, `cuda_on_cpu`: the CUDA kernels, run on
the CPU by the simulation in tests/cuda_on_cpu.

`select` is called by every operator, inside torch.compile as well, so it reads module-level
variables and nothing else; whatever takes time or may fail is done when this module is imported.
"""

from __future__ import annotations

import difflib
import importlib
import importlib.util
import os
import warnings
from types import ModuleType, TracebackType

import torch
from torch import Tensor

from cscl_fast import _library

BACKENDS: tuple[str, ...] = ("reference", "cpu", "cuda", "triton")

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
_DTYPES = (torch.float32, torch.float16, torch.bfloat16)

_library_state = _library.load()
_cuda_module = getattr(_library_state.module, "cuda", None)

# The CUDA kernels of this build run on the CPU: a test build.
EMULATES_CUDA = _cuda_module is not None and bool(_cuda_module.on_cpu)
# Triton's interpreter runs its kernels on the CPU.
INTERPRETS_TRITON = os.environ.get("TRITON_INTERPRET") == "1"


def _why_no_cuda() -> str | None:
    if _library_state.problem is not None:
        return _library_state.problem
    if _cuda_module is None or EMULATES_CUDA:
        assert _library_state.module is not None
        status = _library_state.module.build_info()["cuda"]
        return (
            f"the kernel library was built without them; CUDA was {status}. Reinstall with nvcc on "
            "PATH (CSCL_FAST_CUDA=1 insists), or use triton. Use auto, cpu or reference otherwise."
        )
    return _why_no_gpu()


def _why_no_gpu() -> str | None:
    if torch.cuda.is_available():
        return None
    if torch.version.cuda is None:
        return (
            f"this PyTorch ({torch.__version__}) was built without CUDA. Install one for CUDA, or "
            "Use auto, cpu or reference."
        )
    return (
        "PyTorch finds no GPU here (torch.cuda.is_available() is False): no NVIDIA GPU, no driver, "
        f"or one too old for CUDA {torch.version.cuda}. Use auto, cpu or reference."
    )


def _why_no_triton() -> str | None:
    if importlib.util.find_spec("triton") is None:
        return "the package triton is not installed. Use auto, cpu or reference."
    return None if INTERPRETS_TRITON else _why_no_gpu()


# Why each backend cannot be used; a backend that can is not listed.
_missing: dict[str, str] = {
    name: why
    for name, why in (
        ("cpu", _library_state.problem),
        ("cuda", _why_no_cuda()),
        ("triton", _why_no_triton()),
    )
    if why is not None
}
if EMULATES_CUDA and "cpu" not in _missing:
    BACKENDS = (*BACKENDS, "cuda_on_cpu")

# For each compiled backend the operators it has a kernel for; the reference completes the rest.
_kernels: dict[str, tuple[str, ...]] = {
    "cpu": tuple(_library_state.module.cpu_operators) if _library_state.module else (),
    "cuda": tuple(_cuda_module.operators) if _cuda_module is not None else (),
    "cuda_on_cpu": tuple(getattr(_cuda_module, "operators", ())) if EMULATES_CUDA else (),
    "triton": () if "triton" in _missing else OPERATORS,
}

# Where each backend's tensors live.
_DEVICES = {
    "cpu": "cpu",
    "cuda": "cuda",
    "cuda_on_cpu": "cpu",
    "triton": "cpu" if INTERPRETS_TRITON else "cuda",
}
# What `auto` takes for tensors on a device, the best first, where nothing is wrong with it.
_PREFERRED = {"cpu": ("cpu",), "cuda": ("cuda", "triton")}

# A library that is there but does not fit is an error, never a silent fall back to slow code.
_broken = _library_state.problem if _library_state.built else None
_warned = False


def implementations(name: str) -> dict[str, ModuleType]:
    """The modules of this name of the backends that can be used, for the operators to call.

    The compiled backends share one: PyTorch's dispatcher chooses by the tensors' device.
    """
    compiled = importlib.import_module(f"cscl_fast.backends.cpu.{name}")
    importlib.import_module(f"cscl_fast.backends.cuda.{name}")
    found = dict.fromkeys(("cpu", "cuda", "cuda_on_cpu"), compiled)
    if "triton" not in _missing:
        found["triton"] = importlib.import_module(f"cscl_fast.backends.triton.{name}")
    return found


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


def cuda_library() -> ModuleType:
    """The compiled CUDA kernels, for the backend that calls them."""
    found: ModuleType = library().cuda
    return found


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
    device = tensor.device.type
    if _choice != "auto":
        if device != _DEVICES[_choice]:
            needed = "the CPU" if _DEVICES[_choice] == "cpu" else "a GPU"
            raise ValueError(
                f"{argument} is on {tensor.device}; the backend {_choice!r} needs it on {needed}, "
                "or choose use_backend('auto')"
            )
        if tensor.dtype not in _DTYPES:
            raise TypeError(
                f"{argument} is {tensor.dtype}; the backend {_choice!r} needs float32, float16 or "
                "bfloat16, or choose use_backend('reference')"
            )
        return _choice if operator in _kernels[_choice] else "reference"
    if device in _PREFERRED and tensor.dtype in _DTYPES:
        for name in _PREFERRED[device]:
            if name not in _missing and operator in _kernels[name]:
                return name
        if device == "cpu" and _library_state.module is None and not torch.compiler.is_compiling():
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
