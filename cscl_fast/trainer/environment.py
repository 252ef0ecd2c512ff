"""`environment.json`: what a run ran on and with, and `--deterministic`."""

from __future__ import annotations

import contextlib
import importlib.util
import json
import os
import platform
import subprocess
import sys
from collections.abc import Iterator, Sequence
from datetime import datetime, timezone
from pathlib import Path

import torch

from cscl_fast import backends
from cscl_fast._version import __version__
from cscl_fast.info import processor_name, version_of
from cscl_fast.trainer.processes import Processes

Entries = dict[str, str | int | float]


def environment(
    device: torch.device, processes: int = 1, arguments: Sequence[str] | None = None
) -> Entries:
    """Versions and machine, as one flat mapping; no host name, no user name, no path of theirs.

    Args:
        device: that the run trains on.
        processes: that train together.
        arguments: of the command line; None: this process's own.
    """
    entries: Entries = {"cscl_fast": __version__}
    commit = commit_of(Path(__file__).resolve().parents[2])
    if commit is not None:
        entries["commit"] = commit
    entries |= {
        "python": platform.python_version(),
        "torch": torch.__version__,
        **{name: version_of(name, "none") for name in ("torchvision", "numpy", "triton")},
        "apex": _apex(),
        "platform": platform.platform(),
        "processor": processor_name(),
        "cores": cores(),
        "threads": torch.get_num_threads(),
        "memory_gib": _memory(),
        "device": device.type,
        "gpu": "none",
        "cuda": torch.version.cuda or "none",
        "backend": backends.current_backend(),
        "instruction_set": _instruction_set(),
        "processes": processes,
    }
    if device.type == "cuda":
        entries["gpu"] = torch.cuda.get_device_name(device)
    entries["started"] = datetime.now(timezone.utc).isoformat(timespec="seconds")
    own = sys.argv[1:] if arguments is None else arguments
    entries["command"] = command(own, Processes(count=processes).command)
    return entries


def write_environment(folder: Path, entries: Entries) -> None:
    """Write `environment.json`; a resumed run replaces that of the process before it."""
    text = json.dumps(entries, indent=2, ensure_ascii=False) + "\n"
    (folder / "environment.json").write_text(text, encoding="utf-8")


def command(arguments: Sequence[str], program: str = "python -m cscl_fast.train") -> str:
    """The command line as it may be shown: of an absolute path only its last part."""
    return " ".join([program, *map(_shown, arguments)])


def _shown(argument: str) -> str:
    key, equals, value = argument.partition("=")
    if equals and key.startswith("--"):
        return key + equals + _shown(value)
    if os.path.isabs(argument) or argument.startswith("~"):
        argument = ".../" + Path(argument).name
    return f"'{argument}'" if " " in argument else argument


def commit_of(checkout: Path) -> str | None:
    """The commit that is checked out there; None if it is no checkout of its own."""
    if not (checkout / ".git").exists():  # installed, perhaps inside somebody else's checkout
        return None
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        found = subprocess.run(
            ["git", "-C", str(checkout), "rev-parse", "HEAD"],
            capture_output=True,
            text=True,
            timeout=10,
            check=True,
        )
        return found.stdout.strip() or None
    return None


def _apex() -> str:
    """The version of NVIDIA's Apex; other packages have that name, too."""
    found = importlib.util.find_spec("apex")
    for folder in (found and found.submodule_search_locations) or ():
        if (Path(folder) / "optimizers" / "fused_adam.py").exists():
            return version_of("apex", "none")
    return "none"


def cores() -> int:
    """Processor cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


def _memory() -> float:
    """Memory of the machine, in GiB; 0 where it is not known."""
    with contextlib.suppress(OSError, ValueError, AttributeError):
        return round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1)
    return 0.0


def _instruction_set() -> str:
    """Of the CPU kernels; "none" without the compiled library."""
    module = backends.library_module()
    if module is None or backends.why_unavailable("cpu") is not None:
        return "none"
    return str(module.active_isa())


@contextlib.contextmanager
def deterministic(wanted: bool) -> Iterator[None]:
    """Inside, only algorithms whose result does not change from run to run, if `wanted`.

    An operation that has none raises an error that names it. Afterwards everything is as before,
    but for CUBLAS_WORKSPACE_CONFIG, which CUDA reads when its first matrix is multiplied.
    """
    if not wanted:
        yield
        return
    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")
    enabled = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cudnn = torch.backends.cudnn
    flags = (cudnn.deterministic, cudnn.benchmark)
    try:
        torch.use_deterministic_algorithms(True)
        cudnn.deterministic, cudnn.benchmark = True, False
        yield
    finally:
        torch.use_deterministic_algorithms(enabled, warn_only=warn_only)
        cudnn.deterministic, cudnn.benchmark = flags
