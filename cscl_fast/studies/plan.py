"""Which runs a study is made of: for each seed a source-only run, and what starts from it."""

from __future__ import annotations

import contextlib
import io
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal, get_origin

import tyro

from cscl_fast import published
from cscl_fast.cli import keys_of
from cscl_fast.config import Config, ConfigError, Part

# The paper's names of what it varies in Fig. 3 (c, d).
ALIASES = {
    "xi1": "adaptation.weights.critic",
    "xi2": "adaptation.weights.adversarial",
    "xi3": "adaptation.weights.divergence",
    "gamma": "adaptation.gamma",
}
SOURCE_ONLY = "source-only"
FULL = "full"
FULL_TITLE = "full CSCL"
ABLATIONS: dict[str, tuple[str, tuple[Part, ...]]] = {  # folder → title, what is left out
    **{
        f"without-{parts[0]}": (title, parts) for title, parts in published.WITHOUT.items() if parts
    },
    FULL: (FULL_TITLE, ()),
}


@dataclass
class PlannedRun:
    """One run: its configuration is complete but for the machine it runs on."""

    name: str  # of its folder: "source-only", "without-transfer", "full", "adaptation.gamma=0.1"
    title: str  # of its row
    seed: int
    config: Config
    after: PlannedRun | None = None  # the source-only run whose network it starts from

    @property
    def folder(self) -> Path:
        return self.config.run_folder

    @property
    def label(self) -> str:
        return f"seed{self.seed}/{self.name}"

    @property
    def steps(self) -> int:
        """Optimizer steps of the whole run."""
        adaptation = self.config.adaptation
        return self.config.warmup.steps if self.after is None else (
            adaptation.epochs * adaptation.steps
        )  # fmt: skip


@dataclass
class Sweep:
    """One key over several values."""

    key: str  # dotted
    name: str  # as it was given: the key or its alias
    runs: dict[str, str] = field(default_factory=dict)  # value → name of its runs


@dataclass
class Study:
    """Everything that one command runs."""

    folder: Path
    config: Config
    seeds: tuple[int, ...]
    runs: list[PlannedRun]
    sweeps: list[Sweep]

    @property
    def titles(self) -> dict[str, str]:
        """Name of the runs → title of their row, in the order of the tables."""
        return {run.name: run.title for run in self.runs}

    def of(self, name: str) -> Iterator[PlannedRun]:
        """The runs of one name, one for each seed."""
        return (run for run in self.runs if run.name == name)


def make_plan(config: Config) -> Study:
    """The runs of a configuration with `ablation` or `sweep`.

    Raises:
        ConfigError: a sweep over something else than a number or a name of `adaptation`, or over
            values that cannot be.
    """
    seeds = config.seeds or tuple(range(config.seed, config.seed + 3))
    folder = config.run or Path("runs") / f"{config.preset}-{kind_of(config)}"
    sweeps, variants = _sweeps(config)
    if config.ablation:
        for name, (title, parts) in ABLATIONS.items():
            variant = deepcopy(config)
            variant.without = parts
            variants[name] = (title, variant)
    # Ablations first, in the paper's order; swept values behind them.
    order = [*(ABLATIONS if config.ablation else ()), *variants]
    variants = {name: variants[name] for name in dict.fromkeys(order)}
    runs = [
        PlannedRun(SOURCE_ONLY, "source only", seed, _source_only(config, folder, seed))
        for seed in seeds
    ]
    for source in tuple(runs):
        runs += [
            PlannedRun(name, title, source.seed, _adaptation(variant, name, source, folder), source)
            for name, (title, variant) in variants.items()
        ]
    return Study(folder, config, seeds, runs, sweeps)


def kind_of(config: Config) -> Literal["ablation", "sweep", "study"]:
    if config.ablation and config.sweep:
        return "study"
    return "ablation" if config.ablation else "sweep"


# -------------------------------------------------------------------- configurations of the runs


def _single(config: Config, folder: Path, seed: int, name: str) -> Config:
    """A configuration of one run: what makes it a study is taken out."""
    config = deepcopy(config)
    config.ablation, config.sweep, config.seeds, config.jobs = False, (), (), 1
    config.config, config.resume, config.overwrite = None, None, False
    config.seed, config.run = seed, folder / f"seed{seed}" / name
    return config


def _source_only(config: Config, folder: Path, seed: int) -> Config:
    config = _single(config, folder, seed, SOURCE_ONLY)
    config.source_only, config.without = True, ()
    return config


def _adaptation(config: Config, name: str, source: PlannedRun, folder: Path) -> Config:
    """From the source-only run's network on: without a warm-up of its own."""
    config = _single(config, folder, source.seed, name)
    config.model.init = str((source.folder / "checkpoints" / "source.pt").resolve())
    config.model.batchnorm_affine = "auto"
    config.warmup.steps = 0
    return config


# ---------------------------------------------------------------------------------------- sweeps


def _sweeps(config: Config) -> tuple[list[Sweep], dict[str, tuple[str, Config]]]:
    """The sweeps, and name → (title, configuration) of their variants."""
    sweeps: list[Sweep] = []
    variants: dict[str, tuple[str, Config]] = {}
    for given in _one_key_each(config.sweep):
        name, equals, values = given.partition("=")
        name = name.strip().replace("-", "_")
        key = ALIASES.get(name, name)
        if not equals or not all(values.split(",")):
            raise ConfigError(
                f"sweep is {given!r}; it is KEY=VALUE,VALUE, such as xi1=0.1,0.3, with commas "
                "between the values and spaces between the keys"
            )
        _require_sweepable(given, key)
        if any(key == other.key for other in sweeps):
            raise ConfigError(f"sweep has {key} twice; give all its values at once")
        sweep = Sweep(key, name)
        for text in values.split(","):
            variant = _with_value(config, key, text.strip())
            value = _at(variant, key)
            # The value that the configuration has anyway is the full run, also of the ablation.
            same = value == _at(config, key) and not config.without
            run, title = (FULL, FULL_TITLE) if same else (f"{key}={value}", f"{name} = {value}")
            if str(value) in sweep.runs:
                raise ConfigError(f"sweep is {given!r}; the value {value} is in it twice")
            sweep.runs[str(value)] = run
            variants[run] = (title, variant)
        sweeps.append(sweep)
    return sweeps, variants


def _one_key_each(given: tuple[str, ...]) -> Iterator[str]:
    """`xi1=0.1,0.3,gamma=0.1` as `xi1=0.1,0.3` and `gamma=0.1`: a part with "=" begins a key."""
    for text in given:
        begun: list[str] = []
        for part in text.split(","):
            if "=" in part and begun:
                yield ",".join(begun)
                begun = []
            begun.append(part)
        yield ",".join(begun)


def _require_sweepable(given: str, key: str) -> None:
    kind = keys_of(Config).get(key)
    known = [k for k, t in keys_of(Config).items() if k.startswith("adaptation.") and _simple(t)]
    if kind is None or key not in known:
        reason = "is no key" if kind is None else "is the same for all runs of a study, or a list"
        raise ConfigError(
            f"sweep is {given!r}, and {key} {reason}; a sweep is over {', '.join(ALIASES)} or one "
            f"of {', '.join(known)}"
        )


def _simple(kind: Any) -> bool:
    return kind in (int, float, str) or get_origin(kind) is Literal


def _with_value(config: Config, key: str, text: str) -> Config:
    said = io.StringIO()
    try:
        with contextlib.redirect_stderr(said), contextlib.redirect_stdout(said):
            variant = tyro.cli(Config, args=[f"--{key}={text}"], default=deepcopy(config))
    except SystemExit as error:
        raise ConfigError(f"sweep: {key} cannot be {text!r}") from error
    try:
        variant.validate()
    except ConfigError as error:
        raise ConfigError(f"sweep: {error}") from error
    return variant


def _at(config: Config, key: str) -> Any:
    value: Any = config
    for part in key.split("."):
        value = getattr(value, part)
    return value
