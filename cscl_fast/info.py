"""`python -m cscl_fast.info`: what is installed, what runs each operator, and why something is not.

Made to be pasted into a bug report; it works with a missing or unfitting kernel library, too.
"""

from __future__ import annotations

import importlib.metadata
import platform
from collections.abc import Iterator
from pathlib import Path

import torch

from cscl_fast import backends
from cscl_fast._version import __version__


def version_of(package: str, missing: str = "not installed") -> str:
    """The version of an installed package; `missing` where there is none."""
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return missing


def processor_name() -> str:
    """The processor's name as Linux knows it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def _versions() -> Iterator[str]:
    yield f"cscl_fast {__version__} in {Path(__file__).resolve().parent}"
    yield f"Python {platform.python_version()} on {platform.platform()}"
    packages = ("torchvision", "triton", "numpy")
    others = ", ".join(f"{name} {version_of(name)}" for name in packages)
    yield f"PyTorch {torch.__version__}, {others}"
    yield f"processor: {processor_name()}"
    if torch.cuda.is_available():
        for device in range(torch.cuda.device_count()):
            major, minor = torch.cuda.get_device_capability(device)
            yield f"GPU {device}: {torch.cuda.get_device_name(device)}, capability {major}.{minor}"
    else:
        yield "GPU: none that PyTorch can use"


def _kernel_library() -> Iterator[str]:
    module = backends.library_module()
    if module is None:
        yield f"kernel library: {backends.why_unavailable('cpu')}"
        return
    info = module.build_info()
    yield f"kernel library: version {info['version']} in {module.__file__}"
    yield f"  compiled by {info['compiler']}, {info['build_type']}, pybind11 {info['pybind11']}"
    yield f"  sources {info['source_digest'][:12]}, cuda {info['cuda']}"
    yield f"  instruction sets: built for {', '.join(module.compiled_isas())}"
    yield f"  this processor can run {', '.join(module.supported_isas())}"
    problem = backends.why_unavailable("cpu")
    if problem is not None:
        yield f"  NOT USED: {problem}"
        return
    yield f"  in use: {module.active_isa()}"
    runtime = module.openmp_runtime()
    shared = f"shared with PyTorch through {runtime}" if runtime else "one, no OpenMP runtime found"
    yield f"threads: {torch.get_num_threads() if runtime else 1}, {shared}"


def _backends() -> Iterator[str]:
    yield f"backend: {backends.current_backend()}"
    problem = backends.environment_problem()
    if problem is not None:
        yield f"  NOT USABLE: {problem}"
    longest = max(9, *map(len, backends.BACKENDS))
    for name in backends.BACKENDS:
        reason = backends.why_unavailable(name)
        yield f"  {name:{longest}} {'available' if reason is None else f'missing: {reason}'}"


def _grid() -> Iterator[str]:
    width = max(map(len, backends.OPERATORS))
    yield "operators (kernel: own code; reference: plain PyTorch completes the backend)"
    yield f"  {'':{width}}  " + "  ".join(f"{name:9}" for name in backends.BACKENDS).rstrip()
    for operator in backends.OPERATORS:
        cells = []
        for name in backends.BACKENDS:
            if backends.why_unavailable(name) is not None:
                cells.append("missing")
            elif name == "reference" or operator not in backends.kernels(name):
                cells.append("reference")
            else:
                cells.append("kernel")
        yield f"  {operator:{width}}  " + "  ".join(f"{cell:9}" for cell in cells).rstrip()


def report() -> str:
    """The whole report, lines of text."""
    parts = (_versions(), _kernel_library(), _backends(), _grid())
    return "\n\n".join("\n".join(part) for part in parts)


def main() -> None:
    """Prints the report."""
    print(report())


if __name__ == "__main__":
    main()
