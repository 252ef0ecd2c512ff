"""Values of a configuration or an environment as a report writes them: it may be handed on."""

from __future__ import annotations

from pathlib import PurePosixPath, PureWindowsPath
from typing import Any

import yaml

_HOMES = ("home", "homes", "users")  # a folder below one of these has somebody's name


def in_words(value: Any) -> str:
    """One value, as the tables write it."""
    if isinstance(value, list | tuple):
        return " ".join(shortened(str(v)) for v in value) or "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return "none" if value is None else shortened(str(value))


def shortened(text: str) -> str:
    """An absolute path as its last two parts, without whose home they are in; else the text."""
    posix, windows = PurePosixPath(text), PureWindowsPath(text)
    if text.startswith("~"):
        parts, home = posix.parts[1:], True
    elif posix.is_absolute() or windows.is_absolute():
        parts = (posix if posix.is_absolute() else windows).parts[1:]
        homes = [i for i, part in enumerate(parts) if part.lower() in _HOMES]
        parts, home = parts[homes[0] + 2 :] if homes else parts, bool(homes)
    else:
        return text
    if not home and len(parts) <= 2:
        return text
    return "/".join(["…", *parts[-2:]]) if parts else "~"


def shortened_yaml(text: str) -> str:
    """A configuration file with every path in it shortened."""

    def within(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: within(v) for key, v in value.items()}
        if isinstance(value, list):
            return [within(v) for v in value]
        return shortened(value) if isinstance(value, str) else value

    entries = within(yaml.safe_load(text))
    return yaml.safe_dump(entries, sort_keys=False, allow_unicode=True, width=1000)
