"""The tutorials do what they say: their files, edits and commands, in a copy of the checkout."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
import sysconfig
from collections.abc import Sequence
from pathlib import Path

import pytest
from tutorials import PAGES, ROOT, Block, apply_edit, blocks

TUTORIALS = ROOT / "docs" / "tutorials"

DOMAINS = ("source", "target", "evaluation")
# What cuts the tutorials' training down to seconds: appended to the arguments that `python` gets,
# where the last value of a key counts.
SHORT = (
    "--warmup.steps 2 --warmup.batch-size 2 --adaptation.epochs 1 --adaptation.steps 2 "
    "--adaptation.batch-size 2 --adaptation.bn-batches 1 --gap-batches 1 --panels 1 --threads 1 "
)
TRAIN_SMALL = SHORT + " ".join(f"--{domain}.size 48 64" for domain in DOMAINS)
TRAIN_DEMO = SHORT + " ".join(f"--{domain}.size 48 96 --{domain}.count 4" for domain in DOMAINS)
SHORTENED_PYTHON = """#!/bin/sh
case "$*" in
  *--resume*) ;;
  *"cscl_fast.train --preset small"*) set -- "$@" {small} ;;
  *cscl_fast.train*) set -- "$@" {demo} ;;
  *draw_data.py*) set -- "$@" --count 4 --size 48 64 ;;
esac
exec {python} "$@"
"""


def copy_of_the_checkout(to: Path) -> Path:
    def ignored(folder: str, names: list[str]) -> set[str]:
        unwanted = {".git", "build", "dist", "runs", "site", "wheelhouse", "__pycache__"}
        here = Path(folder) == ROOT
        return {n for n in names if (n in unwanted and (here or n == "__pycache__"))}

    shutil.copytree(ROOT, to, ignore=ignored)
    return to


def environment(tmp_path: Path) -> tuple[Path, dict[str, str]]:
    """A virtual environment that sees this one's packages, and the variables to use it."""
    command = [sys.executable, "-m", "venv", "--without-pip", str(tmp_path / "venv")]
    subprocess.run(command, check=True)
    version = f"python{sys.version_info.major}.{sys.version_info.minor}"
    packages = tmp_path / "venv" / "lib" / version / "site-packages"
    (packages / "parent.pth").write_text(sysconfig.get_path("purelib"))
    scripts = tmp_path / "venv" / "bin"
    # The parent environment's scripts start the parent's Python: these have to start ours.
    for name in ("pip", "pytest"):
        (scripts / name).write_text(f'#!/bin/sh\nexec {scripts}/python -m {name} "$@"\n')
        (scripts / name).chmod(0o755)
    path = os.pathsep.join([str(scripts), str(Path(sys.executable).parent), os.environ["PATH"]])
    variables = os.environ | {"PATH": path, "OMP_NUM_THREADS": "1", "CSCL_FAST_CUDA": "0"}
    for name in ("PYTHONPATH", "CSCL_FAST_BACKEND", "CSCL_FAST_ISA"):
        variables.pop(name, None)
    return scripts, variables


def shortened(tmp_path: Path, variables: dict[str, str]) -> dict[str, str]:
    """The variables with a `python` in front that cuts the training down."""
    folder = tmp_path / "shortened"
    folder.mkdir()
    real = shutil.which("python", path=variables["PATH"])
    script = SHORTENED_PYTHON.format(small=TRAIN_SMALL, demo=TRAIN_DEMO, python=real)
    (folder / "python").write_text(script)
    (folder / "python").chmod(0o755)
    return variables | {"PATH": f"{folder}{os.pathsep}{variables['PATH']}"}


def follow(page: Sequence[Block], checkout: Path, variables: dict[str, str]) -> list[str]:
    """Do what the page says, from top to bottom; the output of its commands."""
    outputs = []
    for block in page:
        if block.job == "file":
            (checkout / block.detail).parent.mkdir(parents=True, exist_ok=True)
            (checkout / block.detail).write_text(block.code, "utf-8")
        elif block.job == "edit":
            apply_edit(checkout / block.detail, block.code)
        elif block.job == "run":
            command = ["bash", "-euo", "pipefail", "-c", block.code]
            done = subprocess.run(
                command, cwd=checkout, env=variables, capture_output=True, text=True, timeout=1500
            )
            said = done.stdout + done.stderr
            assert done.returncode == block.status, f"{block.code}\n{said[-6000:]}"
            outputs.append(said)
    return outputs


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_every_command_says_whether_it_is_run(page: Path) -> None:
    for block in blocks(page):
        if block.language in ("bash", "diff"):
            assert block.job is not None, f"{page.name}: nothing says what to do with\n{block.code}"
        if block.job == "not run":
            assert block.detail, f"{page.name}: say why this is not run\n{block.code}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_own_data(tmp_path: Path) -> None:
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    variables = shortened(tmp_path, environment(tmp_path)[1] | {"PYTHONPATH": str(checkout)})
    page = blocks(TUTORIALS / "own_data.md")
    _, check, training, _, files, *_ = follow(page, checkout, variables)
    assert "problems  none" in check
    assert "CSCL, averaged weights" in training
    assert "overview.png" in files
    for row in ("source only", "source only, target statistics", "CSCL"):
        assert f"\n{row} " in files  # the rows that the text explains
    assert (checkout / "runs" / "mine" / "report.html").is_file()
    assert list((checkout / "predicted" / "labels").glob("*.png"))
    # And the layout that the page shows is the one that the command has drawn.
    for path in ("source/classes.json", "source/labels/train/000.png", "target/labels/val/000.png"):
        assert (checkout / "mine" / path).is_file()


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_reproducing_a_table(tmp_path: Path) -> None:
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    variables = shortened(tmp_path, environment(tmp_path)[1] | {"PYTHONPATH": str(checkout)})
    _, results, *_ = follow(blocks(TUTORIALS / "reproducing_a_table.md"), checkout, variables)
    for row in ("source only", "w/o TC", "w/o CG", "w/o SD", "full CSCL"):  # ours, of two seeds
        assert re.search(rf"^{row} +[\d.]+ ± [\d.]+ ", results, re.MULTILINE)
    for name in ("results.txt", "results.md", "results.csv", "results.json"):
        assert name in results, f"the page names {name}"


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_adding_an_operator(tmp_path: Path) -> None:
    checkout = copy_of_the_checkout(tmp_path / "checkout")
    _, variables = environment(tmp_path)
    page = blocks(TUTORIALS / "adding_an_operator.md")
    on_reference, on_cpu, compiled, missing = follow(page, checkout, variables)
    assert " passed" in on_reference and " passed" in on_cpu
    assert "tensor(" in compiled
    assert "csrc/cuda/prediction_entropy.cu is missing" in missing
