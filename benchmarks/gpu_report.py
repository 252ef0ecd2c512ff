"""What the compiler made of the CUDA kernels, and what they could reach: docs/kernels/gpu.md.

    python benchmarks/gpu_report.py --objects build/cuda --save   # reads a build, stores, writes
    python benchmarks/gpu_report.py --objects build/cuda --check  # fails if a kernel is not right
    python benchmarks/gpu_report.py --check                       # the same, of what is stored
    python benchmarks/gpu_report.py                               # writes the page again

A kernel is not right if it spills, uses local memory or double precision, lacks the wide loads and
stores that gpu_checks.py asks of it, or divides integers in a loop for no reason given there. Both
checks fail, too, if the page is not what the stored figures give. No GPU is needed, and without
--objects no CUDA toolkit either.
"""

from __future__ import annotations

import argparse
import datetime
import json
import re
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gpu_binaries import KEYS, ToolError, find_tool, object_files, read_objects, run
from gpu_checks import problems
from gpu_page import BLOCKS, with_blocks
from gpu_roofline import measured, roofline

ROOT = Path(__file__).resolve().parent.parent
RESULTS = ROOT / "benchmarks" / "results"
STORED = RESULTS / "gpu_code.json"
PAGE = ROOT / "docs" / "kernels" / "gpu.md"


def compiler_version(folder: Path) -> str:
    """Of the nvcc that CMake has found for this build folder, else of the one on PATH."""
    for path in sorted(folder.glob("CMakeFiles/*/CMakeCUDACompiler.cmake")):
        match = re.search(r'CUDA_COMPILER_VERSION "([^"]+)"', path.read_text(encoding="utf-8"))
        if match:
            return match[1]
    match = re.search(r"\bV(\d+(?:\.\d+)+)", run([find_tool("nvcc"), "--version"]))
    return match[1] if match else "unknown"


def without_zeros(kernel: dict[str, Any]) -> dict[str, Any]:
    architectures = {
        architecture: {key: value for key, value in facts.items() if value != 0}
        for architecture, facts in kernel["architectures"].items()
    }
    return {**kernel, "architectures": architectures}


def read_build(folder: Path) -> dict[str, Any]:
    """Everything that is stored, of the objects of a build folder."""
    kernels = [without_zeros(kernel) for kernel in read_objects(object_files(folder))]
    architectures = {a for kernel in kernels for a in kernel["architectures"]}
    return {
        "date": datetime.date.today().isoformat(),
        "nvcc": compiler_version(folder),
        "architectures": sorted(architectures, key=int),
        "kernels": kernels,
        "roofline": roofline(kernels),
    }


def dump(report: dict[str, Any]) -> str:
    """JSON with a line for each kernel and each case, so that a change shows as one."""
    lists = []
    for key in ("kernels", "roofline"):
        rows = ",\n  ".join(json.dumps(row) for row in report[key])
        lists.append(f' "{key}": [\n  {rows}\n ]')
    rest = [f" {json.dumps(k)}: {json.dumps(v)}" for k, v in report.items() if k not in BOTH]
    return "{\n" + ",\n".join([*rest, *lists]) + "\n}\n"


BOTH = ("kernels", "roofline")


def load(path: Path = STORED) -> dict[str, Any]:
    if not path.is_file():
        raise ToolError(f"there is no {path.name} yet; store one: --objects FOLDER --save")
    content: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
    return content


def page(report: dict[str, Any], text: str, results: Path = RESULTS) -> str:
    """The page with its tables from the report and from the measurements that there are."""
    times = measured(results, STORED.name)
    return with_blocks(text, {name: write(report, times) for name, write in BLOCKS.items()})


def difference(stored: dict[str, Any], fresh: dict[str, Any]) -> str:
    """How a build differs from the stored one; empty if it does not."""

    def key(kernel: dict[str, Any]) -> tuple[str, ...]:
        return tuple(str(kernel.get(k, "")) for k in ("operator", "kernel", *KEYS))

    old = {key(k): k["architectures"] for k in stored["kernels"]}
    new = {key(k): k["architectures"] for k in fresh["kernels"]}
    changed = sum(
        any(old[k].get(a, facts) != facts for a, facts in new[k].items())
        for k in set(old) & set(new)
    )
    counts = {"new": len(set(new) - set(old)), "gone": len(set(old) - set(new)), "other": changed}
    if not any(counts.values()):
        return ""
    what = ", ".join(f"{count} {name}" for name, count in counts.items() if count)
    return f"of nvcc {stored['nvcc']}, this build of {fresh['nvcc']}: kernels {what}"


def check(report: dict[str, Any], stored: dict[str, Any], text: str) -> list[str]:
    """What is wrong with the kernels of `report`, and whether the page shows `stored`."""
    found = problems(report["kernels"])
    if page(stored, text) != text:
        found.append(f"{PAGE.name} is not what is stored; run: python benchmarks/gpu_report.py")
    return found


def main(arguments: Sequence[str]) -> int:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--objects", type=Path, metavar="FOLDER", help="a CMake build with CUDA")
    parser.add_argument("--save", action="store_true", help=f"store {STORED.name}")
    parser.add_argument("--check", action="store_true", help="fail if something is not right")
    options = parser.parse_args(arguments)
    if options.save and options.objects is None:
        parser.error("--save needs --objects: what should be stored?")
    try:
        return run_report(options.objects, options.save, options.check)
    except ToolError as error:
        print(error, file=sys.stderr)
        return 2


def run_report(objects: Path | None, save: bool, judge: bool) -> int:
    report = read_build(objects) if objects else load()
    if save:
        STORED.write_text(dump(report), encoding="utf-8")
    stored = load()
    if save or not judge:
        PAGE.write_text(page(stored, PAGE.read_text(encoding="utf-8")), encoding="utf-8")
    wrong = check(report, stored, PAGE.read_text(encoding="utf-8"))
    for problem in wrong:
        print(problem)
    if objects and not save and (other := difference(stored, report)):
        print(f"note: the stored figures are {other}; --save stores these")
    counts = f"{len(report['kernels'])} kernels for sm_{', sm_'.join(report['architectures'])}"
    print(f"{counts}: {len(wrong)} problems" if wrong else f"{counts}: all is as it has to be")
    return 1 if wrong and judge else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
