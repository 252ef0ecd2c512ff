"""Draw a small data set in the `folder` layout, to try the commands with before your own is ready.

python docs/examples/draw_data.py mine --count 60

writes mine/source (labelled) and mine/target (photograph-like; labels for `val` only).
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path

from PIL import Image

from cscl_fast.scenes import SCENE_CLASS_COLORS, SCENE_CLASS_NAMES, draw_scene


def write(root: Path, split: str, look: str, seed: int, count: int, size: tuple[int, int]) -> None:
    """`count` scenes as images/SPLIT/N.jpg and labels/SPLIT/N.png; classes.json beside them."""
    labelled = look == "synthetic" or split == "val"
    images, labels = root / "images" / split, root / "labels" / split
    images.mkdir(parents=True, exist_ok=True)
    if labelled:
        labels.mkdir(parents=True, exist_ok=True)
    for index in range(count):
        image, label = draw_scene(seed, index, look, size)  # [H, W, 3] and [H, W] uint8
        Image.fromarray(image).save(images / f"{index:03}.jpg", quality=93)
        if labelled:
            Image.fromarray(label).save(labels / f"{index:03}.png")
    names = zip(SCENE_CLASS_NAMES, SCENE_CLASS_COLORS, strict=True)
    classes = [{"name": name, "color": list(color)} for name, color in names]
    (root / "classes.json").write_text(json.dumps({"classes": classes, "ignore": 255}, indent=1))


def main() -> None:
    parser = argparse.ArgumentParser(description="Draw a data set in the folder layout.")
    parser.add_argument("root", type=Path)
    parser.add_argument("--count", type=int, default=60, help="images of each training set")
    parser.add_argument("--size", type=int, nargs=2, default=(180, 240), metavar=("H", "W"))
    options = parser.parse_args()
    size = tuple(options.size)
    write(options.root / "source", "train", "synthetic", 0, options.count, size)
    write(options.root / "target", "train", "real", 1, options.count, size)
    write(options.root / "target", "val", "real", 2, max(options.count // 4, 2), size)


if __name__ == "__main__":
    main()
