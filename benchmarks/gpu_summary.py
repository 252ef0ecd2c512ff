"""Stores and looks up what `gpu_session.sh` did; the script calls it, one command a time.

python benchmarks/gpu_summary.py measured kernels --folder FOLDER    # exit status 0: it is
python benchmarks/gpu_summary.py finish kernels passed --folder FOLDER --seconds 400
python benchmarks/gpu_summary.py summary --folder FOLDER [PART ...]
"""

from __future__ import annotations

import argparse
import re
import sys
import xml.etree.ElementTree as ElementTree
from pathlib import Path
from typing import Any

from gpu_support import (
    PACKAGES,
    PARTS,
    PROGRAMS,
    Result,
    has,
    load,
    machine,
    result_file,
    sources,
    version_of,
)

# What a part ends with. "missing": something that it needs is not on this machine.
STATUSES = ("passed", "failed", "timed out", "missing")


def _result(arguments: argparse.Namespace, part: str, *, keep: bool = True) -> Result:
    path = result_file(arguments.folder, part)
    return Result(path, part, dry_run=arguments.dry_run, keep=keep)


def environment(arguments: argparse.Namespace) -> int:
    """What is on this machine, and what is missing for which part."""
    programs = {name: name in arguments.programs for name in PROGRAMS}
    packages = {name: version_of(name) if has(name) else None for name in PACKAGES}
    missing = {name: PACKAGES[name] for name, version in packages.items() if version is None}
    missing |= {name: "see docs/gpu_session.md" for name, there in programs.items() if not there}
    _result(arguments, "environment", keep=False).set(
        packages=packages, programs=programs, missing=missing
    )
    for key, value in machine().items():
        print(f"{key:12} {value}")
    for name, use in missing.items():
        print(f"MISSING {name}: {use}")
    return 0


def measured(arguments: argparse.Namespace) -> int:
    """0 if the part has passed with these sources on this GPU."""
    content = load(result_file(arguments.folder, arguments.part))
    same = (
        content.get("status") == "passed"
        and content.get("dry_run") == arguments.dry_run
        and content.get("sources") == sources()
        and content.get("gpu") == machine()["gpu"]
    )
    return 0 if same else 1


def finish(arguments: argparse.Namespace) -> int:
    """Gives a part its status; whatever it stored before stays."""
    entries: dict[str, Any] = {"status": arguments.status, "seconds": arguments.seconds}
    if arguments.why:
        entries["why"] = arguments.why
    entries["nvidia_smi_after"] = machine()["nvidia_smi"]
    result = _result(arguments, arguments.part)
    if arguments.status == "passed":
        result.content.pop("why", None)
    result.set(**entries)
    return 0


# ---- runs inside a part -------------------------------------------------------------------------


def _put(result: Result, row: dict[str, Any]) -> None:
    """A run of a part, in the place of one of the same name."""
    others = [run for run in result.content.get("runs", []) if run["name"] != row["name"]]
    result.set(runs=[*others, row])


# What the session's script goes on with.
_EXIT = {"passed": 0, "missing": 3}


def _ended(code: int) -> str:
    return "passed" if code == 0 else "timed out" if code in (124, 137) else "failed"


def tests(arguments: argparse.Namespace) -> int:
    """A run of pytest, from its JUnit file."""
    row: dict[str, Any] = {"name": arguments.name, "status": _ended(arguments.code)}
    if arguments.why:
        row.update(status="missing", why=arguments.why)
    elif arguments.file.is_file():
        cases = list(ElementTree.parse(arguments.file).iter("testcase"))
        bad = [case for case in cases if {"failure", "error"} & {part.tag for part in case}]
        names = [f"{case.get('classname')}::{case.get('name')}" for case in bad]
        skipped = sum(1 for case in cases if case.find("skipped") is not None)
        # Cases whose parameters name the backend: proof that it was tried at all.
        own = sum(1 for case in cases if f"{arguments.backend}-" in (case.get("name") or ""))
        row.update(tests=len(cases), failed=len(bad), skipped=skipped, on_backend=own)
        row["failures"] = names[:100]
        if arguments.backend and own == 0 and row["status"] == "passed":
            row.update(status="failed", why=f"no test ran on {arguments.backend}")
    row["seconds"] = arguments.seconds
    _put(_result(arguments, arguments.part), row)
    print({key: value for key, value in row.items() if key != "failures"})
    return _EXIT.get(row["status"], 1)


def run_passed(arguments: argparse.Namespace) -> int:
    """0 if this run of the part has passed already with these sources."""
    runs = _result(arguments, arguments.part).content.get("runs", [])
    return 0 if any(r["name"] == arguments.name and r["status"] == "passed" for r in runs) else 1


def sanitizer(arguments: argparse.Namespace) -> int:
    """A run of compute-sanitizer, from what it printed."""
    said = arguments.file.read_text(encoding="utf-8", errors="replace")
    found = re.findall(r"(ERROR SUMMARY: .*|RACECHECK SUMMARY: .*)", said)
    counts = re.findall(r"SUMMARY: (\d+)", "\n".join(found))
    row = {
        "name": arguments.name,
        "status": _ended(arguments.code),
        "summary": found,
        "reports": sum(map(int, counts)),
        "driver": re.findall(r"^\w+: \d+ cases, \d+ wrong$", said, re.MULTILINE),
        "seconds": arguments.seconds,
    }
    if "not supported" in said and not row["driver"]:
        row.update(status="missing", why="compute-sanitizer does not support this device")
    elif row["status"] == "passed" and not row["driver"]:
        row["status"] = "failed"
    _put(_result(arguments, arguments.part), row)
    print(row)
    return _EXIT.get(row["status"], 1)


# ---- the table at the end -----------------------------------------------------------------------


def note(content: dict[str, Any]) -> str:
    """A line on what a part found."""
    parts = []
    if content.get("why"):
        parts.append(content["why"])
    for run in content.get("runs", []):
        if "tests" in run:
            parts.append(f"{run['name']}: {run['tests']} tests, {run['failed']} failed")
        elif "reports" in run:
            parts.append(f"{run['name']}: {run['reports']} reports")
        elif "rows" in run:
            best = max(score["mIoU"] for score in run["rows"].values())
            parts.append(f"{run['preset']}: best mIoU {best:.1f}, {run['seconds']:.0f} s")
        else:
            parts.append(f"{run['name']}: {run['status']}")
    rows = content.get("kernels")
    if rows is not None:
        bad = sum(1 for row in rows if "milliseconds" not in row)
        parts.append(f"{len(rows)} rows, {bad} without a time")
    for row in content.get("steps", []):
        parts.append(f"{row['backend']} {row['step_milliseconds']:.1f} ms")
    if content.get("left_out"):
        parts.append(f"{len(content['left_out'])} left out for want of time")
    if content.get("missing"):
        parts.append(f"missing: {', '.join(content['missing'])}")
    return "; ".join(parts)


def summary(arguments: argparse.Namespace) -> int:
    """Prints the table; 0: all passed, 1: something failed, 3: something could not be done."""
    code = 0
    print(f"\n{'part':12} {'status':10} {'seconds':>8}  notes")
    for part in arguments.parts or PARTS:
        content = load(result_file(arguments.folder, part))
        status = content.get("status", "not run")
        if content and content.get("dry_run") != arguments.dry_run:
            status, content = "not run", {}
        if status in ("missing", "not run"):
            code = code or 3
        elif status != "passed":
            code = 1
        print(f"{part:12} {status:10} {content.get('seconds', 0):8.0f}  {note(content)}")
    return code


def main() -> int:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--folder", type=Path, required=True)
    common.add_argument("--dry-run", action="store_true")
    common.add_argument("--seconds", type=float, default=0.0)
    common.add_argument("--why", default="")
    commands = parser.add_subparsers(required=True)

    def command(name: str, function: Any) -> argparse.ArgumentParser:
        added = commands.add_parser(name, parents=[common], help=function.__doc__)
        added.set_defaults(function=function)
        return added

    command("environment", environment).add_argument("--programs", nargs="*", default=[])
    command("measured", measured).add_argument("part", choices=PARTS)
    finishing = command("finish", finish)
    finishing.add_argument("part", choices=PARTS)
    finishing.add_argument("status", choices=STATUSES)
    for name, function in (("tests", tests), ("sanitizer", sanitizer), ("run-passed", run_passed)):
        run = command(name, function)
        run.add_argument("part", choices=PARTS)
        run.add_argument("name")
        run.add_argument("--file", type=Path, default=Path("none"))
        run.add_argument("--code", type=int, default=0)
        run.add_argument("--backend", default="")
    command("summary", summary).add_argument("parts", nargs="*")
    arguments = parser.parse_args()
    code: int = arguments.function(arguments)
    return code


if __name__ == "__main__":
    sys.exit(main())
