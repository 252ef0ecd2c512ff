"""Decoded and resized samples, kept so that each file is decoded once: in memory or in files.

An entry is an image [H, W, 3] uint8 and its label [H', W'] uint8, as they are before augmentation,
4 bytes a pixel where both have one size. It is what the decoder gave, bit for bit, so a cache
changes the time of a run and nothing else.

On disk an entry is one file that is mapped into memory, never copied: a header of 64 bytes, the
image, the label. All processes and runs share the pages.

    FOLDER/<content>/content.json         what decides it: kind, size, interpolation, classes, ...
    FOLDER/<content>/ab/ab12....decoded   one for each image file, by its path

The header holds a checksum, and the sizes and times of the files that the entry was made from. An
entry that is torn, or older than its files, is made anew in its place; so a folder never holds more
than one entry for an image file and a configuration, and another for the image without its label.
Writing is a rename of a finished temporary file: a reader sees a whole entry or none, however many
processes write.
"""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import struct
import time
import uuid
import warnings
import zlib
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import PIL
import torch
from torch import Tensor

from cscl_fast.data.decoding import Bytes
from cscl_fast.data.errors import DataError
from cscl_fast.data.layouts import Sample

Decoded = tuple[Tensor, Bytes]  # image [3, H, W] uint8 and label [H', W'] uint8; only read

VERSION = 1  # of the decoding and resizing; another one makes every entry anew
MAGIC = b"CSCLdec1"
HEADER = struct.Struct("<8sI4I16s")  # magic, checksum, H, W, H', W', identity of the files
HEADER_BYTES = 64
RESERVE = 1 << 30  # bytes: less free space than this, and nothing more is written
ABANDONED = 3600.0  # seconds after which a temporary file belongs to nobody any more


class Cache(Protocol):
    """Where the decoded samples of one data set are kept."""

    content: dict[str, Any]

    def read(self, index: int, make: Callable[[], Decoded]) -> Decoded:
        """The sample; `make` decodes it where it is not there yet."""


class NoCache:
    """Decodes every time."""

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content

    def read(self, index: int, make: Callable[[], Decoded]) -> Decoded:
        return make()


class RamCache:
    """In this process's memory; worker processes forked afterwards share the pages."""

    def __init__(self, content: dict[str, Any], length: int) -> None:
        self.content = content
        self.length = length
        self._kept: dict[int, Decoded] = {}

    def read(self, index: int, make: Callable[[], Decoded]) -> Decoded:
        found = self._kept.get(index)
        if found is None:
            found = self._kept[index] = make()
            if len(self._kept) == 1:
                self._warn_if_too_large(found)
        return found

    def _warn_if_too_large(self, first: Decoded) -> None:
        needed = (first[0].numel() + first[1].size) * self.length
        free = available_memory()
        if free is not None and needed > free:
            warnings.warn(
                f'cache "ram" needs about {needed / 1e9:.1f} GB for {self.length} images, and '
                f'{free / 1e9:.1f} GB of memory are free; use cache "disk"',
                stacklevel=2,
            )


class DiskCache:
    """In files that all processes and all runs share; see the head of this file.

    Args:
        folder: of all entries, whatever the data set.
        content: what decides an entry's content besides the files it is made from.

    Raises:
        DataError: the folder cannot be made or written to; names the key.
    """

    def __init__(self, folder: Path, content: dict[str, Any], samples: list[Sample]) -> None:
        text = json.dumps(content, sort_keys=True, indent=1)
        self.content = content
        self.samples = samples
        self.folder = folder / hashlib.sha256(text.encode()).hexdigest()[:16]
        self.writes = True
        self._sound: set[int] = set()  # entries whose checksum this process has seen to be right
        self._prepare(text)

    def read(self, index: int, make: Callable[[], Decoded]) -> Decoded:
        identity = self._identity(index)
        if identity is None:  # a file is missing: `make` says which
            return make()
        path = self.path(index)
        found = self._load(path, identity, check=index not in self._sound)
        if found is None:
            found = make()
            if self.writes:
                self._store(path, identity, found)
        else:
            self._sound.add(index)
        return found

    def path(self, index: int) -> Path:
        """The file of an entry, by the place of its image file and whether it has a label."""
        sample = self.samples[index]
        place = os.path.abspath(sample.image) + ("" if sample.label is not None else "\0unlabelled")
        name = hashlib.sha256(os.fsencode(place)).hexdigest()[:32]
        return self.folder / name[:2] / f"{name}.decoded"

    def _identity(self, index: int) -> bytes | None:
        """16 bytes from path, size and time of the image file and the label file."""
        sample = self.samples[index]
        files: list[tuple[str, int, int]] = []
        for file in (sample.image, sample.label):
            if file is None:
                continue
            try:
                status = os.stat(file)
            except OSError:
                return None
            files.append((os.path.abspath(file), status.st_size, status.st_mtime_ns))
        return hashlib.sha256(os.fsencode(repr(files))).digest()[:16]

    @staticmethod
    def _load(path: Path, identity: bytes, *, check: bool) -> Decoded | None:
        """An entry, mapped; None where there is none, or not of these files, or a torn one."""
        try:
            # Writing into the arrays, which nobody should, changes this process's pages alone.
            raw = np.memmap(path, np.uint8, mode="c").view(np.ndarray)
        except (OSError, ValueError):  # ValueError: an empty file
            return None
        if raw.size < HEADER_BYTES:
            return None
        magic, checksum, height, width, label_height, label_width, files = HEADER.unpack_from(
            raw.data
        )
        image_end = HEADER_BYTES + 3 * height * width
        label_end = image_end + label_height * label_width
        if magic != MAGIC or files != identity or raw.size != label_end:
            return None
        if check and zlib.crc32(raw[HEADER_BYTES:].data) != checksum:
            return None
        image = torch.from_numpy(raw[HEADER_BYTES:image_end].reshape(height, width, 3))
        return image.permute(2, 0, 1), raw[image_end:].reshape(label_height, label_width)

    def _store(self, path: Path, identity: bytes, decoded: Decoded) -> None:
        image = np.ascontiguousarray(decoded[0].permute(1, 2, 0).numpy())
        label = np.ascontiguousarray(decoded[1])
        checksum = zlib.crc32(label.data, zlib.crc32(image.data))
        header = HEADER.pack(MAGIC, checksum, *image.shape[:2], *label.shape, identity)
        try:
            free = shutil.disk_usage(self.folder).free
            if free < RESERVE + image.nbytes + label.nbytes:
                raise OSError(f"{free / 1e9:.1f} GB are free, and {RESERVE / 1e9:.1f} GB stay so")
            path.parent.mkdir(exist_ok=True)
            with _temporary(self.folder) as file:
                file.write(header.ljust(HEADER_BYTES, b"\0"))
                file.write(image)
                file.write(label)
                file.close()
                os.replace(file.name, path)
        except OSError as error:
            self.writes = False
            warnings.warn(
                f"cache_folder {self.folder.parent} takes no more entries ({error}); the run goes "
                "on and decodes what is not there; free some space or set cache_folder",
                stacklevel=2,
            )

    def _prepare(self, description: str) -> None:
        """Make the folder, say in it what it holds, and clear what killed processes left."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with _temporary(self.folder) as file:
                file.write(description.encode())
                file.close()
                os.replace(file.name, self.folder / "content.json")
        except OSError as error:
            raise DataError(
                f"cache_folder {self.folder.parent} cannot be written to ({error}); set "
                "cache_folder to a folder of yours, or cache to none or ram"
            ) from None
        for left in self.folder.glob("*.tmp"):
            with suppress(OSError):  # somebody else was faster
                if time.time() - left.stat().st_mtime > ABANDONED:
                    left.unlink()


class _temporary:
    """A new file in a folder, removed at the end unless it was renamed."""

    def __init__(self, folder: Path) -> None:
        # Not by `tempfile`, whose files are their owner's alone: others may read the cache, too.
        self.file = open(folder / f"{uuid.uuid4().hex}.tmp", "xb")  # noqa: SIM115

    def __enter__(self) -> Any:
        return self.file

    def __exit__(self, *exception: object) -> None:
        with suppress(OSError):  # a full disk, again
            self.file.close()
        with suppress(OSError):  # renamed
            os.unlink(self.file.name)


def content_of(
    kind: str,
    size: tuple[int, int] | None,
    interpolation: str,
    label_size: tuple[int, int] | str | None,  # "image": as the image
    id_table: Bytes,
) -> dict[str, Any]:
    """What decides a decoded sample besides its files; equal contents may share their entries."""
    return {
        "version": VERSION,
        "pillow": PIL.__version__,
        "kind": kind,
        "size": size,
        "interpolation": interpolation,
        "label_size": label_size,
        "classes": hashlib.sha256(id_table.tobytes()).hexdigest()[:16],
    }


def default_folder() -> Path:
    """The user's cache folder, by the convention of Linux desktops."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "cscl_fast" / "decoded"


def available_memory() -> int | None:
    """Bytes that programs may still take; None where the system does not say."""
    try:
        for line in Path("/proc/meminfo").read_text(encoding="ascii").splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None
