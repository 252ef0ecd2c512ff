"""`python -m cscl_fast.report RUN [RUN …]`: one HTML file on runs and studies."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Annotated

import tyro

from cscl_fast.cli import known_options
from cscl_fast.config import ConfigError
from cscl_fast.report import ReportError, compare, page, read_run, runs_below, write_summary
from cscl_fast.report.records import RunRecords


@dataclass
class ReportConfig:
    """Report on runs: scores, curves, classes, pictures, time, configuration, in one HTML file."""

    runs: Annotated[tuple[Path, ...], tyro.conf.Positional, tyro.conf.arg(metavar="RUN [RUN ...]")]
    """Run folders, or folders of run folders such as a study's; runs of one kind are averaged."""
    output: Path | None = None
    """The HTML file; None: report.html in RUN, or in the current folder if several are given."""
    markdown: Path | None = None
    """Write a summary in Markdown too, its pictures into NAME-pictures beside it."""
    title: str | None = None
    """Title of the report; None: the preset, and the seed or the number of runs."""


def read_all(folders: Sequence[Path]) -> list[RunRecords]:
    """The runs in and below these folders, each once, with names that tell them apart.

    Raises:
        ReportError: a folder is missing or has no run in it.
        OSError: a file cannot be read.
    """
    found: dict[Path, Path] = {}  # resolved → as given
    for folder in folders:
        for run in runs_below(folder):
            found.setdefault(run.resolve(), run)
    if len(found) == 1:
        return [read_run(run, name=resolved.name) for resolved, run in found.items()]
    common = Path(os.path.commonpath([str(run) for run in found]))
    return [read_run(run, name=str(path.relative_to(common))) for path, run in found.items()]


def report(config: ReportConfig) -> Path:
    """Write what `config` asks for; returns the HTML file.

    Raises:
        ReportError: no folder or none with a run, or runs whose classes differ.
        OSError: a file cannot be read or written.
    """
    if not config.runs:
        raise ReportError("no run is given; name at least one run folder, such as runs/demo-seed0")
    comparison = compare(read_all(config.runs))
    output = config.output
    if output is None:
        output = (config.runs[0] if len(config.runs) == 1 else Path()) / "report.html"
    output.parent.mkdir(parents=True, exist_ok=True)
    output.write_text(page(comparison, config.title), encoding="utf-8")
    print(f"{output}: {len(comparison.runs)} run(s), {output.stat().st_size / 1e6:.1f} MB")
    if config.markdown is not None:
        files = write_summary(comparison, config.markdown, config.title)
        print(f"{config.markdown} with {len(files) - 1} pictures")
    return output


def main(arguments: Sequence[str] | None = None) -> int:
    """0: written; 1: a file cannot be read or written; 2: what was asked for cannot be done."""
    arguments = list(sys.argv[1:] if arguments is None else arguments)
    try:
        known_options(arguments, ReportConfig)
        report(tyro.cli(ReportConfig, args=arguments, prog="python -m cscl_fast.report"))
    except SystemExit as stop:  # --help, or an argument of the wrong type
        return int(stop.code or 0)
    except (ConfigError, ReportError) as error:
        print(f"cscl_fast.report: {error}", file=sys.stderr)
        return 2
    except OSError as error:
        print(f"cscl_fast.report: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main())
