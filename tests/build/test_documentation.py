"""The documentation against the code: commands that parse, links that lead somewhere, no gaps."""

from __future__ import annotations

import importlib.util
import re
import runpy
import shlex
from pathlib import Path

import pytest

import cscl_fast
from cscl_fast import cli, ops
from cscl_fast.config import Config
from cscl_fast.evaluate import EvaluateConfig
from cscl_fast.predict import PredictConfig
from cscl_fast.report.__main__ import ReportConfig
from cscl_fast.trainer.journal import COLUMNS

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted([*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md")])
KEYS = {
    kind: set(cli.keys_of(configuration))
    for kind, configuration in (
        ("train", Config),
        ("evaluate", EvaluateConfig),
        ("predict", PredictConfig),
        ("report", ReportConfig),
    )
}
KEYS["train"].add("optimizer")  # short for optimizer.implementation
# Options of other programs, which the text names: pytest, pip, pre-commit, CMake, .ci/run.
FOREIGN = {
    "quick",
    "save_results",
    "all_files",
    "no_build_isolation",
    "no_deps",
    "force_reinstall",
    "check",
}

FENCE = re.compile(r"^ *```(\w*)\n(.*?)^ *```", re.MULTILINE | re.DOTALL)
MODULE = re.compile(r"python -m cscl_fast\.(\w+)([^\n#`;|&)]*)")
LINK = re.compile(r"!?\[[^\]]*\]\(([^)\s]+)\)")


def page(path: Path) -> str:
    return path.read_text(encoding="utf-8")


def name(path: Path) -> str:
    return path.relative_to(ROOT).as_posix()


def without_code(text: str) -> str:
    return re.sub(r"`[^`\n]*`", "", FENCE.sub("", text))


def commands() -> list[tuple[str, str, str]]:
    """(page, module, arguments) of every `python -m cscl_fast.MODULE` in the text."""
    found = []
    for path in PAGES:
        text = page(path).replace("\\\n", " ")
        found += [(name(path), m[1], m[2].strip()) for m in MODULE.finditer(text)]
    return found


def options(arguments: str) -> list[str]:
    """The keys of the options, as the configuration spells them."""
    keys = []
    for token in arguments.split():
        if token.startswith("--"):
            section, _, last = token[2:].split("=")[0].replace("-", "_").rpartition(".")
            keys.append((f"{section}." if section else "") + last)
    return keys


def is_key(key: str, known: set[str]) -> bool:
    section, _, last = key.rpartition(".")
    positive = (f"{section}." if section else "") + last.removeprefix("no_")
    return key in known or positive in known or key == "help"


def heading_anchors(text: str) -> set[str]:
    headings = re.findall(r"^#+ +(.*)$", FENCE.sub("", text), re.MULTILINE)
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in headings)
    return {heading.replace(" ", "-") for heading in plain}


def test_the_documentation_shows_commands() -> None:
    shown = commands()
    assert {module for _, module, _ in shown} >= {"train", "evaluate", "predict", "info"}
    assert len(shown) > 20


@pytest.mark.parametrize(("where", "module", "arguments"), commands())
def test_command_exists(where: str, module: str, arguments: str) -> None:
    assert importlib.util.find_spec(f"cscl_fast.{module}") is not None, f"{where}: {module}"
    for key in options(arguments):
        assert is_key(key, KEYS.get(module, set())), f"{where}: cscl_fast.{module} has no --{key}"


def runnable() -> list[tuple[str, str]]:
    """The `train` commands of code blocks that need no file to be parsed."""
    found = []
    for path in PAGES:
        for _, code in FENCE.findall(page(path)):
            for match in MODULE.finditer(code.replace("\\\n", " ")):
                needs_file = re.search(r"--(resume|config)\b", match[2])
                if match[1] == "train" and not needs_file:
                    found.append((name(path), match[2].strip()))
    return found


@pytest.mark.parametrize(("where", "arguments"), runnable())
def test_training_command_is_accepted(where: str, arguments: str) -> None:
    cli.parse(shlex.split(arguments))  # names, types and values; raises or exits if one is wrong


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_options_in_the_text_exist(path: Path) -> None:
    known = set().union(*KEYS.values())
    for code in re.findall(r"`(--[^`\n]+)`", FENCE.sub("", page(path))):
        for key in options(code):
            assert is_key(key, known) or key in FOREIGN, f"there is no --{key}"


@pytest.mark.parametrize("path", PAGES, ids=name)
def test_links_lead_somewhere(path: Path) -> None:
    for link in LINK.findall(without_code(page(path))):
        if "://" in link or link.startswith("mailto:"):
            continue
        target, _, anchor = link.partition("#")
        file = (path.parent / target).resolve() if target else path
        assert file.exists(), f"{link}: there is no {target}"
        assert file.is_relative_to(ROOT), f"{link} leads out of the repository"
        if anchor and file.suffix == ".md":
            assert anchor in heading_anchors(page(file)), f"{link}: no such heading"


def test_every_page_can_be_found() -> None:
    linked = set()
    for path in PAGES:
        for link in LINK.findall(without_code(page(path))):
            linked.add((path.parent / link.partition("#")[0]).resolve())
    folders = {place for place in linked if place.is_dir()}
    lost = [p for p in PAGES if p not in linked and p.parent not in folders and p.parent != ROOT]
    assert not lost, f"no page links to {[name(p) for p in lost]}"


@pytest.mark.parametrize("operator", [o for o in ops.__all__ if o != "SoftPseudoLabels"])
def test_operator_is_described(operator: str) -> None:
    headings = re.findall(r"^## (.*)$", page(ROOT / "docs" / "operators.md"), re.MULTILINE)
    assert any(f"`{operator}`" in heading for heading in headings)


def compiled_operators() -> list[str]:
    """File names of the operators that have a walk in csrc/cpu."""
    stems = (path.stem for path in sorted((ROOT / "csrc" / "cpu").glob("*.cpp")))
    return [stem for stem in stems if (ROOT / "cscl_fast" / "ops" / f"{stem}.py").exists()]


@pytest.mark.parametrize("operator", compiled_operators())
def test_compiled_operator_fills_its_row_of_the_grid(operator: str) -> None:
    for file in (
        f"csrc/core/{operator}.h",
        f"cscl_fast/backends/reference/{operator}.py",
        f"cscl_fast/backends/cpu/{operator}.py",
        f"csrc/cuda/{operator}.cu",
        f"cscl_fast/backends/cuda/{operator}.py",
        f"cscl_fast/backends/triton/{operator}.py",
        f"tests/ops/test_{operator}.py",
        f"tests/cpp/test_{operator}.cpp",
        f"benchmarks/bench_{operator}.py",
        f"docs/kernels/{operator}.md",
    ):
        assert (ROOT / file).is_file(), f"{file} is missing"


def test_there_is_a_compiled_operator() -> None:
    assert "soft_pseudo_label" in compiled_operators()


def test_configuration_page_fits_the_code() -> None:
    generator = runpy.run_path(str(ROOT / "docs" / "configuration.py"))
    fits = page(ROOT / "docs" / "configuration.md") == generator["page"]()
    assert fits, "docs/configuration.md is out of date; run: python docs/configuration.py"


def test_columns_of_the_metrics_are_described() -> None:
    section = page(ROOT / "docs" / "training.md").split("**`metrics.csv`**")[1].split("\n**`")[0]
    described = re.findall(r"^\| `(\w+)` \|", section, re.MULTILINE)
    assert tuple(described) == COLUMNS


def test_changelog_begins_with_this_version() -> None:
    versions = re.findall(r"^## \[([^\]]+)\]", page(ROOT / "CHANGELOG.md"), re.MULTILINE)
    assert versions[0] == cscl_fast.__version__


@pytest.mark.parametrize("job", ["run the demo", "run the tests"])
def test_readme_marks_the_commands_that_ci_runs(job: str) -> None:
    lines = page(ROOT / "README.md").splitlines()
    marker = lines.index(f"<!-- ci: {job} -->")
    assert lines[marker + 1].startswith("```"), "the fence comes right behind the marker"
    assert lines[marker + 2].startswith("pip install ")
