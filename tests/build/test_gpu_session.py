"""benchmarks/gpu_session.sh without a GPU: its options, what it stores, and what it does not repeat."""

from __future__ import annotations

import json
import os
import runpy
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

ROOT = Path(__file__).resolve().parents[2]
BENCHMARKS = ROOT / "benchmarks"
SCRIPT = BENCHMARKS / "gpu_session.sh"


def session(*arguments: object, **environment: str) -> subprocess.CompletedProcess[str]:
    inherited = {key: value for key, value in os.environ.items() if key != "OUT"}
    return subprocess.run(
        ["bash", str(SCRIPT), *map(str, arguments)],
        env={**inherited, "PYTHON": sys.executable, **environment},
        capture_output=True,
        text=True,
    )


def python(code: str, *arguments: object) -> subprocess.CompletedProcess[str]:
    """Code that runs beside the benchmarks, as they do."""
    path = os.pathsep.join([str(BENCHMARKS), str(ROOT), *sys.path])
    return subprocess.run(
        [sys.executable, "-c", code, *map(str, arguments)],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        capture_output=True,
        text=True,
    )


def stored(folder: Path, part: str) -> dict[str, Any]:
    content: dict[str, Any] = json.loads((folder / f"gpu_{part}.json").read_text(encoding="utf-8"))
    return content


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(BENCHMARKS))


def test_is_well_formed() -> None:
    told = subprocess.run(["bash", "-n", str(SCRIPT)], capture_output=True, text=True)
    assert told.returncode == 0, told.stderr
    assert os.access(SCRIPT, os.X_OK)


def test_help_names_parts_and_options() -> None:
    told = session("--help")
    assert told.returncode == 0
    for word in ("environment", "build", "contract", "sanitize", "kernels", "step", "train",
                 "--dry-run", "--out", "--again", "--limit"):  # fmt: skip
        assert word in told.stdout
    assert "set -euo" not in told.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["kernel"], "no part 'kernel'"),
        (["--dryrun"], "no option --dryrun"),
        (["--out"], "--out needs a value"),
        (["--limit", "soon"], "--limit is 'soon'"),
        (["--data", "/nowhere/at/all"], "no such folder"),
        (["--dry-run", "--out", BENCHMARKS / "results"], "where real results lie"),
    ],
)
def test_refuses(arguments: list[object], said: str) -> None:
    told = session(*arguments)
    assert told.returncode == 2
    assert said in told.stderr


def test_a_rehearsal_leaves_real_results_alone(tmp_path: Path) -> None:
    real = tmp_path / "gpu_kernels.json"
    real.write_text(json.dumps({"dry_run": False}, indent=1), encoding="utf-8")
    told = session("--dry-run", "--out", tmp_path, "environment")
    assert told.returncode == 2
    assert "holds real results" in told.stderr
    assert list(tmp_path.iterdir()) == [real]


def test_rehearses_once_and_again_when_asked(tmp_path: Path) -> None:
    told = session("--dry-run", "--out", tmp_path, "environment")
    assert told.returncode == 0, told.stdout + told.stderr
    content = stored(tmp_path, "environment")
    assert content["status"] == "passed"
    assert content["dry_run"] is True
    assert content["machine"]["torch"]
    assert content["seconds"] >= 0
    assert "cscl_fast" in (tmp_path / "gpu_environment.log").read_text(encoding="utf-8")

    told = session("--dry-run", "--out", tmp_path, "environment")
    assert told.returncode == 0
    assert "has passed before" in told.stdout
    assert stored(tmp_path, "environment") == content


def test_without_time_a_part_is_recorded_and_not_begun(tmp_path: Path) -> None:
    told = session("--dry-run", "--limit", 20, "--out", tmp_path, "environment")
    assert told.returncode == 3
    assert stored(tmp_path, "environment")["status"] == "missing"
    assert "before it began" in told.stdout


def test_a_failing_part_stops_nothing(tmp_path: Path) -> None:
    """An interpreter that cannot run the package, though it can keep the books."""
    broken = tmp_path / "broken"
    broken.mkdir()
    (broken / "torch.py").write_text("raise ImportError('broken')\n", encoding="utf-8")
    (broken / "python").write_text(
        f'#!/bin/sh\nPYTHONPATH="{broken}:$PYTHONPATH" exec "{sys.executable}" "$@"\n',
        encoding="utf-8",
    )
    (broken / "python").chmod(0o755)
    results = tmp_path / "results"
    told = session("--out", results, "environment", "kernels", PYTHON=str(broken / "python"))
    assert told.returncode == 3
    assert "PyTorch cannot be imported" in stored(results, "environment")["why"]
    assert "finds no GPU" in stored(results, "kernels")["why"]


def test_sums_up(tmp_path: Path) -> None:
    report = [sys.executable, str(BENCHMARKS / "gpu_summary.py")]

    def call(*arguments: object) -> subprocess.CompletedProcess[str]:
        command = [*report, *map(str, arguments), "--folder", str(tmp_path)]
        return subprocess.run(command, capture_output=True, text=True)

    assert call("measured", "build").returncode == 1
    assert call("finish", "build", "passed", "--seconds", 3).returncode == 0
    assert call("measured", "build").returncode == 0
    assert call("measured", "build", "--dry-run").returncode == 1
    content = stored(tmp_path, "build")
    path = tmp_path / "gpu_build.json"
    path.write_text(json.dumps({**content, "sources": "others"}), encoding="utf-8")
    assert call("measured", "build").returncode == 1
    path.write_text(json.dumps(content), encoding="utf-8")
    assert call("summary", "build").returncode == 0
    assert call("summary", "build", "step").returncode == 3
    junit = tmp_path / "tests.xml"
    junit.write_text(
        "<testsuites><testsuite><testcase classname='a' name='t[cuda-cuda]'/>"
        "<testcase classname='a' name='u[cuda-cuda]'><failure/></testcase></testsuite></testsuites>",
        encoding="utf-8",
    )
    run = ("tests", "contract", "ops/cuda", "--backend", "cuda", "--file", junit, "--code", 1)
    assert call(*run).returncode == 1
    assert call("finish", "contract", "failed", "--why", "see the log").returncode == 0
    (row,) = stored(tmp_path, "contract")["runs"]
    assert (row["tests"], row["failed"], row["on_backend"]) == (2, 1, 2)
    assert row["failures"] == ["a::u[cuda-cuda]"]
    told = call("summary", "build", "contract", "step")
    assert told.returncode == 1
    assert "ops/cuda: 2 tests, 1 failed" in told.stdout
    # A run in which no test names the backend proves nothing.
    junit.write_text("<testsuite><testcase name='t'/></testsuite>", encoding="utf-8")
    assert call(*run[:-1], 0).returncode == 1


def test_benchmarks_do_without_pytest_and_tyro(tmp_path: Path) -> None:
    told = python(
        "import importlib.abc, sys\n"
        "class Refuse(importlib.abc.MetaPathFinder):\n"
        "    def find_spec(self, name, path=None, target=None):\n"
        "        if name.split('.')[0] in ('pytest', 'tyro'):\n"
        "            raise ModuleNotFoundError(name)\n"
        "sys.meta_path.insert(0, Refuse())\n"
        "import gpu_contests, gpu_step, gpu_train\n"
        "print(gpu_train.configured('demo', gpu_train.TINY).warmup.steps)\n"
    )
    assert told.returncode == 0, told.stderr
    assert told.stdout.strip() == "2"


def test_kernels_are_checked_timed_and_stored(tmp_path: Path) -> None:
    """One small case of each operator."""
    told = python(
        "import sys, pathlib, gpu_kernels, gpu_support, gpu_timing\n"
        "path = pathlib.Path(sys.argv[1])\n"
        "tiny = gpu_kernels.tiny_plan()\n"
        "first = {planned.operator: planned for planned in reversed(tiny)}\n"
        "gpu_kernels.passes = lambda dry_run: iter([(list(first.values()), False)])\n"
        "result = gpu_support.Result(path, 'kernels', dry_run=True)\n"
        "clock = gpu_timing.Clock('cpu', 0.001)\n"
        "assert gpu_kernels.run(result, clock, ['reference'], 60.0, True)\n",
        tmp_path / "gpu_kernels.json",
    )
    assert told.returncode == 0, told.stdout + told.stderr
    content = stored(tmp_path, "kernels")
    assert content["copy_bytes_per_second"] > 0
    operators = {row["operator"] for row in content["kernels"]}
    assert len(operators) == 8
    for row in content["kernels"]:
        assert row["milliseconds"] > 0, row
        assert {"case", "dtype", "batch", "direction", "contender", "bytes"} <= row.keys()
    both = {row["operator"] for row in content["kernels"] if row["direction"] != "forward"}
    assert "class_centroids" in both and "transfer_reward" not in both


def made_up(folder: Path, **entries: object) -> None:
    """Results of no machine, for the picture only."""
    kernels = []
    for i, operator in enumerate(("soft_pseudo_labels", "transfer_reward")):
        for contender, time in (("good eager", 4.0), ("cuda", 0.2 + i), ("triton", 0.3)):
            kernels.append(
                {
                    "operator": operator,
                    "case": "made up",
                    "direction": "forward",
                    "contender": contender,
                    "rank": 0,
                    "milliseconds": time,
                    "share_of_copy": 0.5,
                }
            )
    content = {
        "synthetic": True,
        "dry_run": False,
        "gpu": "no GPU",
        "machine": {"torch": "0", "triton": "0"},
        "copy_bytes_per_second": 1e12,
        "kernels": kernels,
        **entries,
    }
    (folder / "gpu_kernels.json").write_text(json.dumps(content), encoding="utf-8")
    steps = [
        {
            "setting": "made up",
            "backend": backend,
            "step_milliseconds": 100.0,
            "operators_milliseconds": {"transfer_reward": 10.0},
        }
        for backend in ("reference", "auto")
    ]
    (folder / "gpu_step.json").write_text(
        json.dumps({"synthetic": True, "steps": steps}), encoding="utf-8"
    )


def test_draws_what_was_measured(tmp_path: Path, benchmark_modules: None) -> None:
    chart = runpy.run_path(str(BENCHMARKS / "gpu_chart.py"))
    with pytest.raises(ValueError, match="no gpu_kernels"):
        chart["draw"](tmp_path, tmp_path / "gpu.png")
    made_up(tmp_path)
    chart["draw"](tmp_path, tmp_path / "gpu.png")
    assert (tmp_path / "gpu.png").stat().st_size > 10_000
    with pytest.raises(ValueError, match="not for docs"):
        chart["draw"](tmp_path, ROOT / "docs" / "images" / "gpu.png")


def test_times_are_compared_with_like(benchmark_modules: None) -> None:
    chart = runpy.run_path(str(BENCHMARKS / "gpu_chart.py"))
    rows = {
        "good eager": {"milliseconds": 2.0},
        "cuda": {"milliseconds": 1.0, "graph_milliseconds": 0.1},
    }
    assert chart["ratio"](rows, "cuda") == 2.0
    rows["good eager"]["graph_milliseconds"] = 0.5
    assert chart["ratio"](rows, "cuda") == pytest.approx(5.0)


def test_no_rehearsal_is_stored_as_a_result() -> None:
    for path in (BENCHMARKS / "results").glob("gpu_*.json"):
        if path.name == "gpu_code.json":  # what the compiled kernels are made of: no session's
            continue
        content = json.loads(path.read_text(encoding="utf-8"))
        assert content["dry_run"] is False and not content.get("synthetic"), path.name
