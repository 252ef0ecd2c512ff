"""From preset, configuration file and command line to one checked `Config`."""

from __future__ import annotations

import dataclasses
import difflib
import itertools
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any, get_type_hints

import tyro
import yaml

from cscl_fast.config import Config, ConfigError
from cscl_fast.presets import PRESETS, preset

# What makes a study of a configuration; its runs' own files do not have these.
STUDY_KEYS = ("ablation", "sweep", "seeds", "jobs")
# What other programs call a key of this one.
OTHER_NAMES = {
    "lr": "learning_rate", "batch": "batch_size", "bs": "batch_size", "gpu": "device",
    "gpus": "device", "cuda": "device", "arch": "architecture", "iterations": "steps",
    "iters": "steps", "output": "run",
}  # fmt: skip
NEAR = 0.6  # likeness, 0 to 1, from which on a key may be the one that was meant
REPEATED = ("--without", "--sweep", "--seeds")  # options whose values add up


def parse(arguments: Sequence[str] | None = None) -> Config:
    """The configuration of a run: preset < configuration file < command line.

    Raises:
        ConfigError: an unknown key (those that are near are named), a value that cannot work.
        SystemExit: `--help`, or an argument of the wrong type (the message names it).
    """
    arguments = _without_aliases(sys.argv[1:] if arguments is None else arguments)
    resume = _peek(arguments, "resume")
    if resume is not None:
        file = Path(resume) / "config.yaml"
        if not file.is_file():
            study = file.with_name("study.yaml")
            if study.is_file():
                raise ConfigError(
                    f"resume is {resume}, the folder of a study; it goes on with the command that "
                    f"it was started with, or with --config {study} --run {resume}"
                )
            raise ConfigError(f"resume is {resume}; there is no {file}: it is not a run folder")
        if _peek(arguments, "config") is not None:
            raise ConfigError(
                "config and resume exclude each other: a run goes on with its own configuration; "
                "give single keys on the command line to change them"
            )
        arguments = ["--config", str(file), *arguments]
    from_file = _peek(arguments, "config")
    entries = read_yaml(Path(from_file)) if from_file is not None else {}
    if resume is not None and not flatten(entries):
        raise ConfigError(
            f"resume is {resume}, and there is no key in {from_file}, which says what run it is; "
            "put back what was in it (the checkpoints are untouched), or start the run again"
        )
    name = _peek(arguments, "preset") or entries.get("preset", "demo")
    if not isinstance(name, str) or name not in PRESETS:
        raise ConfigError(_unknown("preset", str(name), list(PRESETS)))
    known_options(arguments, Config)
    base = preset(name)
    tokens = [
        token for key, value in flatten(entries).items() for token in _as_arguments(key, value)
    ]
    config = tyro.cli(
        Config,
        args=[*tokens, *_join_repeated(arguments)],
        default=base,
        prog="python -m cscl_fast.train",
    )
    if resume is not None:
        if config.is_study:
            raise ConfigError(
                f"resume is {resume}; a study goes on with the command that it was started with"
            )
        config.run = Path(resume)
    config.validate()
    for section in ("source", "target", "evaluation"):
        try:
            getattr(config, section).validate(f"--preset small or --{section}.kind")
        except ValueError as error:
            raise ConfigError(f"{section}.{error}") from error
    return config


def known_options(arguments: Sequence[str], kind: Any) -> None:
    """Refuse an option that is no key of this configuration; those that are near are named."""
    known = keys_of(kind)
    for argument in arguments:
        _require_known(argument, known)


def keys_of(kind: Any, prefix: str = "") -> dict[str, Any]:
    """Every dotted key of a (nested) configuration dataclass, with its type."""
    hints = get_type_hints(kind)
    keys: dict[str, Any] = {}
    for field in dataclasses.fields(kind):
        if dataclasses.is_dataclass(hints[field.name]):
            keys |= keys_of(hints[field.name], f"{prefix}{field.name}.")
        else:
            keys[f"{prefix}{field.name}"] = hints[field.name]
    return keys


def read_yaml(path: Path) -> dict[str, Any]:
    """A configuration file as nested dictionaries, its keys checked.

    Raises:
        ConfigError: the file is missing or not a mapping, or a key is unknown or a section.
    """
    if not path.is_file():
        raise ConfigError(f"config is {path}; there is no such file")
    try:
        entries = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
    except (yaml.YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path} is not valid YAML: {error}") from error
    if not isinstance(entries, dict):
        raise ConfigError(f"{path} holds a {type(entries).__name__}; it needs keys and values")
    if isinstance(entries.get("optimizer"), str):
        entries["optimizer"] = {"implementation": entries["optimizer"]}
    known = keys_of(Config)
    for key, value in flatten(entries).items():
        inside = [name for name in known if name.startswith(f"{key}.")]
        if inside:
            raise ConfigError(
                f"{path}: {key} is {value!r}; it is a section with keys such as {inside[0]}"
            )
        if key not in known:
            raise ConfigError(f"{path}: {_unknown('key', key, list(known))}")
    return entries


def flatten(entries: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    """Nested mappings as dotted keys; a section without any key is left out."""
    sections = {field.name for field in dataclasses.fields(Config)} - set(keys_of(Config))
    flat: dict[str, Any] = {}
    for key, value in entries.items():
        name = f"{prefix}{key}".replace("-", "_")
        if isinstance(value, dict):
            flat |= flatten(value, f"{name}.")
        elif value is not None or name not in sections:
            flat[name] = value
    return flat


def to_yaml(config: Config) -> str:
    """The resolved configuration; `--config` reads it back."""

    def plain(value: Any) -> Any:
        if isinstance(value, dict):
            return {k: plain(v) for k, v in value.items()}
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        return str(value) if isinstance(value, Path) else value

    entries = plain(dataclasses.asdict(config))
    for key in ("config", "resume", "overwrite", *STUDY_KEYS):
        entries.pop(key)
    return yaml.safe_dump(entries, sort_keys=False)


def _without_aliases(arguments: Sequence[str]) -> list[str]:
    """`--optimizer apex` is short for `--optimizer.implementation apex`."""
    short, full = "--optimizer", "--optimizer.implementation"
    return [
        full + argument[len(short) :] if argument.split("=", 1)[0] == short else argument
        for argument in arguments
    ]


def _peek(arguments: Sequence[str], name: str) -> str | None:
    """The last value of `--name` before tyro sees the arguments."""
    found = None
    for i, argument in enumerate(arguments):
        if argument == f"--{name}" and i + 1 < len(arguments):
            found = arguments[i + 1]
        elif argument.startswith(f"--{name}="):
            found = argument.split("=", 1)[1]
    return found


def _require_known(argument: str, known: dict[str, Any]) -> None:
    if not argument.startswith("--") or argument in ("--", "--help"):
        return
    key = argument[2:].split("=", 1)[0].replace("-", "_")
    parts = key.rsplit(".", 1)
    positive = key
    if parts[-1].startswith("no_"):
        positive = ".".join([*parts[:-1], parts[-1][3:]])
    if key not in known and positive not in known:
        raise ConfigError(_unknown("key", key, list(known)))


def _unknown(what: str, got: str, valid: list[str]) -> str:
    section, dot, name = got.rpartition(".")
    wanted = {got, section + dot + OTHER_NAMES.get(name, name)}

    def likeness(candidate: str) -> float:
        # Somebody may have left the section out: adaptation.gamma for gamma.
        names = {candidate} if dot else {candidate, candidate.rsplit(".", 1)[-1]}
        pairs = itertools.product(wanted, names)
        return max(difflib.SequenceMatcher(None, a, b).ratio() for a, b in pairs)

    alike = {candidate: likeness(candidate) for candidate in valid}
    best = max(alike.values())
    if best < NEAR:
        known = "--help lists the keys" if what == "key" else f"it is one of {', '.join(valid)}"
        return f"unknown {what} '{got}'; {known}"
    nearest = [candidate for candidate, value in alike.items() if value == best]
    if len(nearest) == 1:
        return f"unknown {what} '{got}'; the nearest valid one is '{nearest[0]}'"
    named = ", ".join(f"'{key}'" for key in nearest)
    return f"unknown {what} '{got}'; the nearest valid ones are {named}"


def _as_arguments(key: str, value: Any) -> list[str]:
    """A value of a configuration file as the command line writes it."""
    section, _, name = key.rpartition(".")
    dotted = f"{section}.{name}" if section else name
    if isinstance(value, bool):
        negative = f"{section}.no-{name}" if section else f"no-{name}"
        return [f"--{dotted if value else negative}".replace("_", "-")]
    option = f"--{dotted}".replace("_", "-")
    if isinstance(value, list | tuple):
        return [option, *(str(v) for v in value)]
    return [option, "None" if value is None else str(value)]


def _join_repeated(arguments: list[str]) -> list[str]:
    """`--without a --without b` means both; `--without` alone means none, whatever a file says.

    So do `--sweep` and `--seeds`.
    """
    given: dict[str, list[str]] = {}
    rest: list[str] = []
    place = rest  # of the values of the last option
    for argument in arguments:
        option, equals, value = argument.partition("=")
        if option in REPEATED:
            values = given.setdefault(option, [])
            values += [value] if equals else []
            place = rest if equals else values
            continue
        if argument.startswith("--"):
            place = rest
        place.append(argument)
    if "--without" in given:
        given["--without"] = list(dict.fromkeys(given["--without"]))
    seeds = given.get("--seeds", [])
    if any("," in seed for seed in seeds):
        apart = " ".join(" ".join(seeds).replace(",", " ").split())
        raise ConfigError(
            f"seeds is {' '.join(seeds)}; between seeds are spaces, not commas: --seeds {apart}"
        )
    return [*rest, *(word for option, values in given.items() for word in (option, *values))]
