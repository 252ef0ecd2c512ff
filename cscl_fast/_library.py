"""Finds the compiled module `_cscl_fast` and refuses one that does not fit these sources.

The module is a top-level one, so that the folder `cscl_fast/` of a checkout, which hides the
installed package from everything started there, never hides the kernels. The other side of that
coin is that Python sources and kernels may come from different versions; hence the comparison.
"""

from __future__ import annotations

import hashlib
import importlib
import importlib.util
from pathlib import Path
from types import ModuleType
from typing import NamedTuple

from cscl_fast._version import __version__

MODULE = "_cscl_fast"


class Library(NamedTuple):
    """The compiled kernels, or why they cannot be used."""

    module: ModuleType | None
    problem: str | None  # None when the module can be used
    built: bool  # False: there is no module at all, rather than one that does not fit


def source_digest(root: Path) -> str | None:
    """What CMake's cscl_source_digest computes, for the sources below `root`; None without any.

    SHA-256 over the lines "<sha256 of the file>  <path>\\n" of csrc/**, cmake/*.cmake and
    CMakeLists.txt, sorted by path.
    """
    if not (root / "csrc").is_dir() or not (root / "CMakeLists.txt").is_file():
        return None
    found = [*(root / "csrc").rglob("*"), *(root / "cmake").rglob("*.cmake")]
    names = [path.relative_to(root).as_posix() for path in found if path.is_file()]
    names = [name for name in names if not any(part.startswith(".") for part in name.split("/"))]
    lines = [
        f"{hashlib.sha256((root / name).read_bytes()).hexdigest()}  {name}\n"
        for name in sorted([*names, "CMakeLists.txt"])
    ]
    return hashlib.sha256("".join(lines).encode()).hexdigest()


def _install_command(root: Path) -> str:
    if (root / "setup.py").is_file():
        return f"`pip install .` (or `pip install -e .`) in {root}"
    return "`pip install .` in the checkout that the package came from"


def staleness(info: dict[str, str], root: Path, where: str) -> str | None:
    """Why a library with this `build_info()` does not fit the sources below `root`, or None."""
    if info["version"] != __version__:
        return (
            f"the compiled library {where} is version {info['version']} and the Python sources in "
            f"{root / 'cscl_fast'} are version {__version__}; both must be one version. "
            f"Run {_install_command(root)}."
        )
    digest = source_digest(root)
    if digest is not None and digest != info["source_digest"]:
        return (
            f"the compiled library {where} was built from other kernel sources "
            f"(digest {info['source_digest'][:12]}) than those in {root / 'csrc'} "
            f"(digest {digest[:12]}). Run {_install_command(root)}."
        )
    return None


def _torch_library() -> str:
    """The shared library of PyTorch that depends on its OpenMP runtime, or ''."""
    spec = importlib.util.find_spec("torch")
    if spec is None or not spec.submodule_search_locations:
        return ""
    path = Path(next(iter(spec.submodule_search_locations))) / "lib" / "libtorch_cpu.so"
    return str(path) if path.is_file() else ""


def load() -> Library:
    """Imports the compiled module, compares it with the sources and gives it PyTorch's threads."""
    import torch  # noqa: F401  (first: it brings the one OpenMP runtime that everybody shares)

    root = Path(__file__).resolve().parent.parent
    if importlib.util.find_spec(MODULE) is None:
        problem = f"the compiled library {MODULE} is not installed. Run {_install_command(root)}."
        return Library(None, problem, built=False)
    try:
        module = importlib.import_module(MODULE)
    except ImportError as error:
        problem = f"{MODULE} cannot be loaded: {error}. Run {_install_command(root)}."
        return Library(None, problem, built=True)
    problem_or_none = staleness(module.build_info(), root, str(module.__file__))
    if problem_or_none is None:
        problem_or_none = _instruction_set_problem(module)
    if problem_or_none is None:
        module.adopt_openmp(_torch_library())
    return Library(module, problem_or_none, built=True)


def _instruction_set_problem(module: ModuleType) -> str | None:
    try:
        module.active_isa()
    except ValueError as error:
        return f"{error}. Unset or change the environment variable CSCL_FAST_ISA."
    return None
