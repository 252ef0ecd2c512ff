"""Weights from files: torchvision's, this package's checkpoints, and the field's DeepLab files."""

from __future__ import annotations

import http.client
import pickle
import re
import socket
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor
from torchvision import models as torchvision_models

from cscl_fast.models.segmentation_model import SegmentationModel
from cscl_fast.models.weight_names import Renamed, rename

CHECKPOINT_FORMAT = "cscl_fast.checkpoint"
CHECKPOINT_VERSION = 2

# The keys under which training codes store the state dict, in the order in which they are tried.
WRAPPERS = ("state_dict", "model", "net", "model_state_dict")

IMAGENET_WEIGHTS = {
    "deeplabv2-resnet18": torchvision_models.ResNet18_Weights.IMAGENET1K_V1,
    "deeplabv2-resnet50": torchvision_models.ResNet50_Weights.IMAGENET1K_V1,
    "deeplabv2-resnet101": torchvision_models.ResNet101_Weights.IMAGENET1K_V1,
    "fcn8s-vgg16": torchvision_models.VGG16_Weights.IMAGENET1K_V1,
}

CAFFE_NOTE = (
    "files with these names were trained with Caffe's ResNet-101 (stride and dilation in other "
    "places, BGR input from 0 to 255 minus the mean); only deeplabv2-resnet101-caffe with the "
    "caffe normalisation reproduces their scores"
)

DOWNLOAD_TIMEOUT = 20.0  # seconds without an answer, after which a server counts as unreachable


RESNET_BLOCK = re.compile(r"(^|\.)layer[1-4]\.\d+\.")

Shapes = tuple[tuple[int, ...], tuple[int, ...]]  # in the file, in the network


class WeightsError(RuntimeError):
    """Weights that cannot be used; the message names the file and says what to do."""


@dataclass(frozen=True)
class LoadReport:
    """What `load_weights` took from a file; `str(report)` is the short account of it."""

    source: str  # the file
    matched: tuple[str, ...]  # the network's keys that were loaded
    missing: tuple[str, ...]  # the network's keys that the file does not have
    unexpected: tuple[str, ...]  # the file's keys that the network does not have
    mismatched: dict[str, Shapes]  # the network's keys whose shape differs; not loaded
    renamed: dict[str, tuple[str, ...]]  # rule -> the file's keys that it renamed
    notes: tuple[str, ...] = ()  # what else to know about such a file

    def __str__(self) -> str:
        lines = [f"{self.source}: {len(self.matched)} tensors loaded"]
        for part in ("encoder", "classifier"):
            loaded = _count(part, self.matched)
            absent = _count(part, self.missing) + _count(part, self.mismatched)
            lines.append(f"  {part}: {loaded} of {loaded + absent}")
        if self.missing:
            lines.append(f"  not in the file, left as initialised: {_some(self.missing)}")
        if self.mismatched:
            shapes = (
                f"{key} {list(found)} for {list(needed)}"
                for key, (found, needed) in self.mismatched.items()
            )
            lines.append(f"  of another shape, left as initialised: {_some(shapes)}")
        if self.unexpected:
            lines.append(f"  not in the network, left out: {_some(self.unexpected)}")
        lines += [f"  renamed {rule}: {len(keys)}" for rule, keys in self.renamed.items()]
        lines += [f"  note: {note}" for note in self.notes]
        return "\n".join(lines)


def load_weights(model: SegmentationModel, spec: str | Path) -> LoadReport:
    """Load pretrained weights into `model`, in place, and report what matched.

    Args:
        model: the network; nothing in it has changed when this raises.
        spec: "imagenet" for torchvision's ImageNet weights of its encoder (from the torch hub
            folder, downloaded into it once where they are absent), or the path of a file: a
            torchvision state dict, a checkpoint of this package, or a DeepLab file with
            Caffe-converted names (`Scale.layer5.conv2d_list.0.weight`, `module.conv1.weight`).
            A classifier for another number of classes is left out.

    Raises:
        WeightsError: the file is missing, is no checkpoint, holds pickled objects, belongs to
            another network, or no tensor of it matched.
    """
    path = _imagenet_file(model.architecture) if str(spec) == "imagenet" else Path(spec)
    found = _tensors(path, model)
    expected = model.state_dict()
    names = rename(found, expected)
    mismatched = {
        key: (tuple(tensor.shape), tuple(expected[key].shape))
        for key, tensor in names.tensors.items()
        if tensor.shape != expected[key].shape
    }
    _check_encoder(path, model, names, mismatched)
    loaded = {key: tensor for key, tensor in names.tensors.items() if key not in mismatched}
    if not loaded:
        raise WeightsError(
            f"nothing in {path} matches {model.architecture}: the file has {_some(found)}, "
            f"the network expects {_some(expected)}. Choose a file of this network"
        )
    model.load_state_dict(loaded, strict=False)
    return LoadReport(
        source=str(path),
        matched=tuple(loaded),
        # Files older than PyTorch 0.4.1 do not count batches; only a cumulative average needs it.
        missing=tuple(
            key
            for key in expected
            if key not in names.tensors and not key.endswith(".num_batches_tracked")
        ),
        unexpected=names.left,
        mismatched=mismatched,
        renamed=names.rules,
        notes=_notes(model, names),
    )


def _check_encoder(
    path: Path,
    model: SegmentationModel,
    names: Renamed,
    mismatched: Mapping[str, Shapes],
) -> None:
    """Refuse the weights of another encoder, which would fit in part and train to nothing."""
    wrong = None
    for key, (found, needed) in mismatched.items():
        if key.startswith("encoder."):
            wrong = f"{names.origin[key]} is {list(found)} instead of {list(needed)}"
            break
    else:
        deeper = next((key for key in names.left if RESNET_BLOCK.search(key)), None)
        if deeper is not None:
            wrong = f"{deeper} has no place in the network"
    if wrong:
        raise WeightsError(
            f"{path} belongs to another encoder than that of {model.architecture}: {wrong}. "
            "Choose the file or the architecture that fits"
        )


def _notes(model: SegmentationModel, names: Renamed) -> tuple[str, ...]:
    from_caffe = any("conv2d_list" in rule for rule in names.rules)
    return (CAFFE_NOTE,) if from_caffe and not model.architecture.endswith("-caffe") else ()


def _imagenet_file(architecture: str) -> Path:
    """torchvision's file for the encoder, in the torch hub folder; downloaded if absent."""
    weights = IMAGENET_WEIGHTS.get(architecture)
    if weights is None:
        raise WeightsError(
            f"torchvision has no ImageNet weights that suit {architecture}; give the path of a "
            f"file, or choose one of {', '.join(IMAGENET_WEIGHTS)}"
        )
    folder = Path(torch.hub.get_dir()) / "checkpoints"
    path = folder / weights.url.rpartition("/")[2]
    if not path.is_file():
        try:
            with _socket_timeout(DOWNLOAD_TIMEOUT):
                weights.get_state_dict(progress=True, check_hash=True)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            raise WeightsError(
                f"the ImageNet weights {path.name} are not in {folder}, and downloading "
                f"{weights.url} failed ({error}). Put the file {path.name} into {folder}, "
                "or start from another file or from scratch"
            ) from error
    return path


@contextmanager
def _socket_timeout(seconds: float) -> Iterator[None]:
    """torch.hub sets none: behind a silent firewall it would wait for minutes."""
    before = socket.getdefaulttimeout()
    socket.setdefaulttimeout(seconds)
    try:
        yield
    finally:
        socket.setdefaulttimeout(before)


def _tensors(path: Path, model: SegmentationModel) -> dict[str, Tensor]:
    """The tensors of the file under the file's own keys."""
    content = _read(path)
    if isinstance(content, Mapping) and content.get("format") == CHECKPOINT_FORMAT:
        _check_own(path, content, model)
        content = content.get("model")
    while isinstance(content, Mapping):
        wrapped = (content[name] for name in WRAPPERS if isinstance(content.get(name), Mapping))
        inner = next(wrapped, None)
        if inner is None:
            break
        content = inner
    tensors = (
        {str(key): value for key, value in content.items() if isinstance(value, Tensor)}
        if isinstance(content, Mapping)
        else {}
    )
    if not tensors:
        raise WeightsError(
            f"{path} holds no state dict (a dict of tensors, bare or under one of "
            f"{', '.join(WRAPPERS)}). Choose a file with a network's weights"
        )
    return tensors


def _read(path: Path) -> Any:
    if not path.is_file():
        reason = "is a folder" if path.is_dir() else "does not exist"
        raise WeightsError(f"{path} {reason}; give the path of a weights file, or `imagenet`")
    try:
        return torch.load(path, weights_only=True, map_location="cpu")
    except pickle.UnpicklingError as error:
        refused = re.search(r"GLOBAL (\S+)", str(error))
        if refused is None:
            raise _no_checkpoint(path) from error
        raise WeightsError(
            f"{path} holds a pickled {refused[1]}, which could run code when loaded, and is "
            "refused. If you trust the file, load it yourself with weights_only=False and save "
            "its state dict alone: torch.save(network.state_dict(), new_path)"
        ) from error
    except OSError as error:
        raise WeightsError(f"{path} cannot be read: {error}. Check the file") from error
    except Exception as error:  # what is no checkpoint makes torch.load raise almost anything
        raise _no_checkpoint(path) from error


def _no_checkpoint(path: Path) -> WeightsError:
    return WeightsError(
        f"{path} is not a PyTorch checkpoint, or is damaged. "
        "Download or copy it again, or choose another file"
    )


def _check_own(path: Path, content: Mapping[str, Any], model: SegmentationModel) -> None:
    version = content.get("version")
    if not isinstance(version, int) or version > CHECKPOINT_VERSION:
        raise WeightsError(
            f"{path} is a checkpoint of version {version}; this cscl_fast reads up to version "
            f"{CHECKPOINT_VERSION}. Install the cscl_fast that wrote it, or a newer one"
        )
    architecture = content.get("architecture")
    if architecture != model.architecture:
        raise WeightsError(
            f"{path} is a checkpoint of {architecture}, and the network is {model.architecture}. "
            "Choose the architecture of the checkpoint, or another checkpoint"
        )


def _count(part: str, keys: Iterable[str]) -> int:
    return sum(key.startswith(f"{part}.") for key in keys)


def _some(names: Iterable[str], count: int = 3) -> str:
    """The first `count` names, and how many more there are."""
    names = list(names)
    more = f" and {len(names) - count} more" if len(names) > count else ""
    return ", ".join(names[:count]) + more
