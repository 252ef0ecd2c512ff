"""Tiny data sets in the published layouts, written into a folder of the test."""

from __future__ import annotations

import json
import struct
import zlib
from pathlib import Path

import numpy as np
from PIL import Image

# Every published raw id of Cityscapes, GTA5 and NTHU that has a train id, and two that do not.
CITYSCAPES_RAW = [7, 8, 11, 12, 13, 17, 19, 20, 21, 22, 23, 24, 25, 26, 27, 28, 31, 32, 33, 0, 34]
SYNTHIA_RAW = [3, 4, 2, 21, 5, 7, 15, 9, 6, 1, 10, 17, 8, 19, 12, 11, 0, 22]


def save_image(path: Path, size: tuple[int, int] = (12, 20), seed: int = 0) -> np.ndarray:
    """A smooth random picture, [H, W, 3] uint8."""
    path.parent.mkdir(parents=True, exist_ok=True)
    coarse = np.random.default_rng(seed).integers(0, 256, (3, 4, 3), dtype=np.uint8)
    picture = Image.fromarray(coarse).resize((size[1], size[0]), Image.Resampling.BICUBIC)
    picture.save(path)
    return np.asarray(picture)


def save_label(path: Path, label: np.ndarray, palette: bool = False) -> None:
    """An 8-bit PNG of indices; with `palette` in colours that are not the indices."""
    path.parent.mkdir(parents=True, exist_ok=True)
    image = Image.fromarray(label.astype(np.uint8))
    if palette:
        image.putpalette(bytes((i * 37 + c * 11) % 256 for i in range(256) for c in range(3)))
    image.save(path)


def rows_of(ids: list[int], size: tuple[int, int]) -> np.ndarray:
    """A label map that shows every id, [H, W] uint8."""
    return np.resize(np.array(ids, np.uint8), size)


def save_png16(path: Path, channels: np.ndarray) -> None:
    """A 16-bit PNG, written by hand: channels [H, W, C] uint16 with C = 1, 3 or 4.

    The rows use the PNG filters none, sub and up in turn, as real encoders do.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    height, width, count = channels.shape
    previous = np.zeros(width * count * 2, np.uint8)
    raw = b""
    for y in range(height):
        row = np.frombuffer(channels[y].astype(">u2").tobytes(), np.uint8)
        left = np.concatenate([np.zeros(2 * count, np.uint8), row[: -2 * count]])
        filtered = [row, row - left, row - previous][y % 3]
        raw += bytes([y % 3]) + filtered.tobytes()
        previous = row

    def chunk(name: bytes, data: bytes) -> bytes:
        checksum = struct.pack(">I", zlib.crc32(name + data))
        return struct.pack(">I", len(data)) + name + data + checksum

    color_type = {1: 0, 3: 2, 4: 6}[count]
    path.write_bytes(
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", width, height, 16, color_type, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(raw))
        + chunk(b"IEND", b"")
    )


def synthia_channels(ids: np.ndarray) -> np.ndarray:
    """What SYNTHIA stores, [H, W, 3] uint16: class, instance number, nothing."""
    channels = np.zeros((*ids.shape, 3), np.uint16)
    channels[..., 0] = ids
    channels[..., 1] = 300 + np.arange(ids.size).reshape(ids.shape)
    return channels


CLASSES = [("road", [128, 64, 128]), ("car", [0, 0, 142]), ("sky", [70, 130, 180])]


def write_classes(root: Path, classes: list[tuple[str, list[int]]] = CLASSES) -> None:
    root.mkdir(parents=True, exist_ok=True)
    entries = [{"name": name, "color": color} for name, color in classes]
    (root / "classes.json").write_text(json.dumps({"classes": entries, "ignore": 255}))


def write_folder(
    root: Path,
    count: int = 4,
    size: tuple[int, int] = (12, 20),
    split: str = "train",
    labels: bool = True,
) -> Path:
    """The `folder` layout: images a0, a1, ... with random labels of three classes and 255."""
    write_classes(root)
    for i in range(count):
        save_image(root / "images" / split / f"a{i}.png", size, seed=i)
        if labels:
            values = np.array([0, 1, 2, 255], np.uint8)
            label = values[np.random.default_rng(100 + i).integers(0, 4, size)]
            save_label(root / "labels" / split / f"a{i}.png", label)
    return root


def write_gta5(root: Path) -> Path:
    for name in ("00001", "00002", "00003"):
        save_image(root / "images" / f"{name}.png", (14, 24))
        label = rows_of(CITYSCAPES_RAW, (14, 24))
        save_label(root / "labels" / f"{name}.png", label, palette=True)
    return root


def write_cityscapes(root: Path) -> Path:
    for split, city, number in (("train", "aachen", 0), ("val", "lindau", 0), ("val", "lindau", 1)):
        name = f"{city}_{number:06d}_000019"
        save_image(root / "leftImg8bit" / split / city / f"{name}_leftImg8bit.png", (16, 32))
        fine = root / "gtFine" / split / city
        save_label(fine / f"{name}_gtFine_labelIds.png", rows_of(CITYSCAPES_RAW, (16, 32)))
        # Files of the same image that must not be taken for its label.
        save_image(fine / f"{name}_gtFine_color.png", (16, 32))
        save_label(fine / f"{name}_gtFine_instanceIds.png", rows_of([1], (16, 32)))
    return root


def write_synthia(root: Path) -> Path:
    for name in ("0000000", "0000001"):
        save_image(root / "RGB" / f"{name}.png", (19, 32))
        ids = rows_of(SYNTHIA_RAW, (19, 32))
        save_png16(root / "GT" / "LABELS" / f"{name}.png", synthia_channels(ids))
    return root


def write_nthu(root: Path, cities: tuple[str, ...] = ("Rio", "Rome", "Taipei", "Tokyo")) -> Path:
    for city in cities:
        for i in range(3):
            save_image(root / city / "Images" / "Train" / f"pano_{i}.jpg", (16, 32))
            save_image(root / city / "Images" / "Test" / f"pano_{9 + i}.png", (16, 32))
            label = rows_of(CITYSCAPES_RAW, (16, 32))
            save_label(root / city / "Labels" / "Test" / f"pano_{9 + i}_eval.png", label)
        lists = root / city / "List"
        lists.mkdir()
        (lists / "train.txt").write_text("pano_0\npano_2\n")  # as published: without suffix,
        (lists / "test.txt").write_text("pano_9.png\npano_10.png\n\n")  # or with one
    return root
