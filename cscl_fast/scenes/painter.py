"""One scene, from its number to its pixels."""

from __future__ import annotations

from random import Random

import numpy as np

from .brush import Brush
from .canvas import Canvas
from .figures import paint_car, paint_person, paint_pole, paint_tree
from .layout import plan_scene
from .looks import LOOKS, LookName
from .photograph import photograph
from .streets import (
    paint_barrier,
    paint_building,
    paint_ground,
    paint_ground_shadows,
    paint_sky,
    paint_skyline,
)
from .things import Barrier, Building, Car, Person, Pole, Tree

_SMALLEST = 16


def draw_scene(
    seed: int,
    index: int,
    look: LookName,
    size: tuple[int, int],  # (H, W) pixels
) -> tuple[np.ndarray, np.ndarray]:  # [H, W, 3] uint8, [H, W] uint8
    """Draw one street scene and its exact label.

    The same arguments give the same bytes. Scenes of different seeds, indices or looks are
    unrelated; another `size` shows the same street at another resolution.

    Args:
        seed: number of the world.
        index: number of the scene in that world.
        look: "synthetic" (flat and clean) or "real" (textured, lit, blurred, noisy).
        size: height and width of the picture in pixels, each at least 16.

    Returns:
        The picture, RGB, and the label: indices into `SCENE_CLASS_NAMES`, every pixel labelled.

    Raises:
        ValueError: an unknown look, or a size below 16 pixels.
    """
    if look not in LOOKS:
        raise ValueError(f'look is "{look}"; it must be one of {", ".join(LOOKS)}')
    height, width = size
    if height < _SMALLEST or width < _SMALLEST:
        raise ValueError(f"size is {size}; height and width must be at least {_SMALLEST} pixels")
    rng = Random(f"{look}/{seed}/{index}")
    layout = plan_scene(rng, LOOKS[look])
    canvas = Canvas(height, width)
    brush = Brush(layout, canvas, rng)
    paint_sky(brush)
    paint_ground(brush)
    paint_skyline(brush)
    paint_ground_shadows(brush)
    for thing in (*layout.background, *layout.foreground):
        _paint(brush, thing)
    image, surfaces = canvas.finish()
    if look == "real":
        noise = np.random.default_rng(rng.getrandbits(64))
        wall = 0.5 * (layout.street.wall(1) - layout.street.wall(-1))
        image = photograph(image, surfaces, brush.camera, wall, noise)
    return image, Canvas.label(surfaces)


def _paint(brush: Brush, thing: Building | Barrier | Tree | Pole | Car | Person) -> None:
    match thing:
        case Building():
            paint_building(brush, thing)
        case Barrier():
            paint_barrier(brush, thing)
        case Tree():
            paint_tree(brush, thing)
        case Pole():
            paint_pole(brush, thing)
        case Car():
            paint_car(brush, thing)
        case Person():
            paint_person(brush, thing)
