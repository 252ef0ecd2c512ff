"""The examples in docs/examples run as a reader would run them, and stay short."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
EXAMPLES = ROOT / "docs" / "examples"

COMMANDS = {
    "losses_only": ("--steps", "2"),
    "adversarial_parts": (),
    "segmentation_models_style": ("--steps", "2"),
    "deeplabv3_resnet50": (
        *("--epochs", "1", "--steps", "1", "--size", "64", "96", "--count", "2"),
    ),
}
# What the last line of the output has to tell.
LOSSES = {
    "losses_only": ("source", "target"),
    "adversarial_parts": ("critic",),
    "segmentation_models_style": ("source", "target", "adversarial", "divergence", "total"),
    "deeplabv3_resnet50": ("source", "target", "adversarial", "divergence", "total"),
}


def run(name: str, folder: Path, *arguments: str) -> str:
    environment = os.environ | {"PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, str(EXAMPLES / f"{name}.py"), *arguments],
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=240,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("name", COMMANDS)
def test_example_runs_and_prints_finite_losses(name: str, tmp_path: Path) -> None:
    last = run(name, tmp_path, *COMMANDS[name]).strip().splitlines()[-1]
    values = {
        key: float(value)
        for key, value in re.findall(r"(\w+) (-?[\d.]+(?:e[+-]\d+)?|nan|inf)", last)
    }
    for loss in LOSSES[name]:
        assert loss in values and abs(values[loss]) < 100, last
    assert values.get("kept", 1.0) > 0  # else the losses on the target are those of nothing


def test_drawn_data_has_the_folder_layout(tmp_path: Path) -> None:
    run("draw_data", tmp_path, "mine", "--count", "2", "--size", "32", "48")
    files = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.*")}
    assert files == {
        *(f"mine/{domain}/classes.json" for domain in ("source", "target")),
        *(f"mine/source/images/train/00{i}.jpg" for i in range(2)),
        *(f"mine/source/labels/train/00{i}.png" for i in range(2)),
        *(f"mine/target/images/train/00{i}.jpg" for i in range(2)),
        *(f"mine/target/images/val/00{i}.jpg" for i in range(2)),
        *(f"mine/target/labels/val/00{i}.png" for i in range(2)),
    }


@pytest.mark.parametrize("path", sorted(EXAMPLES.glob("*.py")), ids=lambda path: path.stem)
def test_example_is_short(path: Path) -> None:
    assert len(path.read_text("utf-8").splitlines()) < 60
    assert path.stem in COMMANDS or path.stem == "draw_data", f"{path.name} is run by no test"
