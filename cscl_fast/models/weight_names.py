"""Which tensor of a file belongs to which tensor of the network, in the namings the field uses."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from torch import Tensor

# Wrappers whose attribute name stands before every key: DataParallel, torch.compile, the
# multi-scale wrapper of the DeepLab-v2 ports, torchvision's segmentation networks.
PREFIXES = ("module.", "_orig_mod.", "Scale.", "backbone.")

BRANCH = re.compile(r"(layer[56])\.conv2d_list\.(\d+)\.(weight|bias)")

VGG_LINEAR = {"classifier.0": "encoder.fc6", "classifier.3": "encoder.fc7"}


class Renamed(NamedTuple):
    """The tensors of a file under the network's names, and how they came to them."""

    tensors: dict[str, Tensor]  # network's key -> tensor
    origin: dict[str, str]  # network's key -> the file's key
    rules: dict[str, tuple[str, ...]]  # rule -> the file's keys that it renamed
    left: tuple[str, ...]  # the file's keys that no tensor of the network answers to


def rename(
    found: Mapping[str, Tensor],  # the file's tensors under the file's keys
    expected: Iterable[str],  # the network's keys
) -> Renamed:
    """Give every tensor of `found` the name it has in the network, where it has one.

    A key that already is the network's is taken as it is; all other keys go through the rules.
    """
    expected = frozenset(expected)
    head = _head_name(found)
    tensors: dict[str, Tensor] = {}
    origin: dict[str, str] = {}
    rules: dict[str, list[str]] = {}
    left: list[str] = []
    for found_key, tensor in found.items():
        key = found_key
        used: list[str] = []
        if key not in expected:
            key, used = _without_prefixes(key)
        if key not in expected:
            key, tensor, rule = _translated(key, tensor, head, expected)
            used += [rule] if rule else []
        if key not in expected or key in tensors:
            left.append(found_key)
            continue
        tensors[key] = tensor
        origin[key] = found_key
        for rule in used:
            rules.setdefault(rule, []).append(found_key)
    return Renamed(tensors, origin, {k: tuple(v) for k, v in rules.items()}, tuple(left))


def _head_name(keys: Iterable[str]) -> str:
    """The DeepLab head's name in a file: `layer6` where the file has two, else `layer5`.

    The two-headed networks of the field put their main head on layer4 and call it layer6; their
    layer5 is an auxiliary head on layer3, which this network does not have.
    """
    return "layer6" if any("layer6.conv2d_list." in key for key in keys) else "layer5"


def _without_prefixes(key: str) -> tuple[str, list[str]]:
    used = []
    while prefix := next((prefix for prefix in PREFIXES if key.startswith(prefix)), None):
        key = key.removeprefix(prefix)
        used.append(f"{prefix}* -> *")
    return key, used


def _translated(
    key: str,
    tensor: Tensor,
    head: str,
    expected: frozenset[str],
) -> tuple[str, Tensor, str]:
    """The network's key, its tensor, and the rule applied ("" for none)."""
    branch = BRANCH.fullmatch(key)
    if branch and branch[1] == head:
        rule = f"{head}.conv2d_list.* -> classifier.branches.*"
        return f"classifier.branches.{branch[2]}.{branch[3]}", tensor, rule
    linear, _, parameter = key.rpartition(".")
    if linear in VGG_LINEAR and f"{VGG_LINEAR[linear]}.{parameter}" in expected:
        if tensor.ndim == 2:  # a linear layer reads its input as [C, height, width], flattened
            channels = 512 if linear == "classifier.0" else tensor.shape[1]
            side = round((tensor.shape[1] / channels) ** 0.5)
            if channels * side * side == tensor.shape[1]:
                tensor = tensor.reshape(tensor.shape[0], channels, side, side)
        rule = f"{linear}.* -> {VGG_LINEAR[linear]}.* (linear layer as convolution)"
        return f"{VGG_LINEAR[linear]}.{parameter}", tensor, rule
    if f"encoder.{key}" in expected:
        return f"encoder.{key}", tensor, "* -> encoder.*"
    return key, tensor, ""
