"""What the programs of `gpu_session.sh` share: the machine, stored results, missing packages.

Nothing here imports PyTorch, so that a result can be stored and looked up in no time.
"""

from __future__ import annotations

import hashlib
import importlib.machinery
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

ROOT = Path(__file__).resolve().parent.parent
PARTS = ("environment", "build", "contract", "sanitize", "kernels", "step", "train")

# What each package is for; the first group is needed by everything.
PACKAGES = {
    "torch": "everything",
    "torchvision": "step, train (the encoder)",
    "numpy": "everything",
    "triton": "the Triton backend, torch.compile",
    "pip": "build (otherwise plain CMake)",
    "setuptools": "build through pip (otherwise plain CMake)",
    "pybind11": "build",
    "pytest": "contract",
    "scipy": "contract",
    "pytest-timeout": "contract (without it a test that hangs ends with the part's time)",
    "pytest-xdist": "contract in several processes",
    "tyro": "the command line of cscl_fast.train (the session does without)",
    "pyyaml": "train",
    "rich": "train",
    "pillow": "train",
    "matplotlib": "train (curves), gpu_chart.py",
}
PROGRAMS = ("cmake", "ninja", "nvcc", "nvidia-smi", "compute-sanitizer", "ncu")
_MODULES = {"pytest-timeout": "pytest_timeout", "pytest-xdist": "xdist", "pyyaml": "yaml",
            "pillow": "PIL"}  # fmt: skip


def has(package: str) -> bool:
    """Whether Python could import it; stand-ins do not count."""
    name = _MODULES.get(package, package)
    if name in sys.modules:
        return not hasattr(sys.modules[name], "_stands_in")
    try:
        return importlib.util.find_spec(name) is not None
    except ModuleNotFoundError:
        return False


def version_of(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None


def _said_by(*command: str) -> str:
    """What a program prints; '' where it is missing or fails."""
    if shutil.which(command[0]) is None:
        return ""
    try:
        answer = subprocess.run(command, capture_output=True, text=True, timeout=30)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return answer.stdout.strip() if answer.returncode == 0 else ""


_QUERY = ("name", "driver_version", "memory.total", "clocks.sm", "clocks.mem", "clocks.max.sm",
          "clocks.max.mem", "power.limit", "temperature.gpu")  # fmt: skip


def processor_name() -> str:
    """The processor's name as Linux knows it, else its architecture."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return platform.machine()
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.machine()


def machine() -> dict[str, Any]:
    """The GPU and its driver and clocks as nvidia-smi knows them, processor, versions."""
    said = _said_by("nvidia-smi", f"--query-gpu={','.join(_QUERY)}", "--format=csv,noheader")
    values = [value.strip() for value in said.splitlines()[0].split(",")] if said else []
    release = re.search(r"release ([\d.]+)", _said_by("nvcc", "--version"))
    return {
        "gpu": values[0] if values else None,
        "nvidia_smi": dict(zip(_QUERY, values, strict=False)) or None,
        "processor": processor_name(),
        "cores": len(os.sched_getaffinity(0)),
        "python": platform.python_version(),
        **{name: version_of(name) for name in ("torch", "torchvision", "triton", "numpy")},
        "nvcc": release[1] if release else None,
    }


def sources() -> str:
    """A digest of kernels and package: results of other sources are measured again."""
    found = [ROOT / "CMakeLists.txt"]
    for folder, pattern in (("csrc", "*"), ("cmake", "*.cmake"), ("cscl_fast", "*.py")):
        found += [path for path in (ROOT / folder).rglob(pattern) if path.is_file()]
    total = hashlib.sha256()
    for path in sorted(found):
        total.update(path.relative_to(ROOT).as_posix().encode() + b"\0" + path.read_bytes())
    return total.hexdigest()[:16]


# ---- stored results -----------------------------------------------------------------------------


def result_file(folder: Path, part: str) -> Path:
    return folder / f"gpu_{part}.json"


def load(path: Path) -> dict[str, Any]:
    """A stored result; {} where there is none, or only half of one."""
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def store(path: Path, content: dict[str, Any]) -> None:
    """Written beside the old one, which it then replaces: whoever stops us leaves a whole file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_suffix(".new")
    beside.write_text(json.dumps(content, indent=1) + "\n", encoding="utf-8")
    beside.replace(path)


class Result:
    """The JSON of one part, stored anew with everything that is added to it."""

    def __init__(self, path: Path, part: str, *, dry_run: bool, keep: bool = False) -> None:
        self.path = path
        here = machine()
        begun = {
            "part": part,
            "status": "running",
            "dry_run": dry_run,
            "gpu": here["gpu"],
            "machine": here,
            "sources": sources(),
        }
        before = load(path)
        fits = all(before.get(key) == begun[key] for key in ("dry_run", "gpu", "sources"))
        self.content = {**before, **begun} if keep and fits else begun

    def set(self, **entries: Any) -> None:
        self.content.update(entries)
        store(self.path, self.content)

    def add(self, key: str, row: dict[str, Any]) -> None:
        self.content.setdefault(key, []).append(row)
        store(self.path, self.content)


# ---- packages that may be missing ---------------------------------------------------------------


class _Anything:
    """Answers every attribute and call; as a decorator it leaves the function as it is."""

    def __getattr__(self, name: str) -> _Anything:
        if name.startswith("__"):
            raise AttributeError(name)
        return self

    def __getitem__(self, key: object) -> _Anything:
        return self

    def __call__(self, *arguments: Any, **options: Any) -> Any:
        alone = len(arguments) == 1 and not options and callable(arguments[0])
        return arguments[0] if alone else self


def stand_in_for(*packages: str) -> list[str]:
    """Let modules be imported that only decorate with a package; returns those that are missing.

    The benchmarks' contenders are plain functions under pytest's marks, and the configuration is
    dataclasses under tyro's annotations: neither needs the package for what the session does.
    """
    missing = [name for name in packages if not has(name)]
    for name in missing:
        module = ModuleType(name)
        module.__spec__ = importlib.machinery.ModuleSpec(name, None)
        anything: Callable[[str], Any] = _Anything().__getattr__
        module.__dict__.update(_stands_in=True, __getattr__=anything)
        sys.modules[name] = module
    return missing
