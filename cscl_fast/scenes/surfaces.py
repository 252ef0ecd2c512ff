"""What a pixel of a drawn street shows: surface codes, and the classes they belong to.

The painter draws every shape twice, once in colour and once as a surface code. A surface is
finer than a class (a wall of brick, a window), so that a look can texture the picture by
surface and the label still follows from the same drawing: class = SURFACE_CLASS[surface].
"""

from __future__ import annotations

from enum import IntEnum

import numpy as np

SCENE_CLASS_NAMES: tuple[str, ...] = (
    "road",
    "sidewalk",
    "building",
    "fence",
    "pole",
    "sign",
    "vegetation",
    "sky",
    "person",
    "car",
)

# The colours of Cityscapes; "sign" has the one of its traffic signs.
SCENE_CLASS_COLORS: tuple[tuple[int, int, int], ...] = (
    (128, 64, 128),
    (244, 35, 232),
    (70, 70, 70),
    (190, 153, 153),
    (153, 153, 153),
    (220, 220, 0),
    (107, 142, 35),
    (70, 130, 180),
    (220, 20, 60),
    (0, 0, 142),
)


class Surface(IntEnum):
    """Code of a drawn surface, as it stands in the surface picture."""

    SKY = 0
    ROAD = 1
    MARKING = 2
    PAVEMENT = 3
    KERB = 4
    PLASTER = 5
    BRICK = 6
    CONCRETE = 7
    ROOF = 8
    WINDOW = 9
    FENCE = 10
    POLE = 11
    SIGN = 12
    FOLIAGE = 13
    GRASS = 14
    TRUNK = 15
    PERSON = 16
    CAR = 17


_CLASS_OF_SURFACE = {
    Surface.SKY: "sky",
    Surface.ROAD: "road",
    Surface.MARKING: "road",
    Surface.PAVEMENT: "sidewalk",
    Surface.KERB: "sidewalk",
    Surface.PLASTER: "building",
    Surface.BRICK: "building",
    Surface.CONCRETE: "building",
    Surface.ROOF: "building",
    Surface.WINDOW: "building",
    Surface.FENCE: "fence",
    Surface.POLE: "pole",
    Surface.SIGN: "sign",
    Surface.FOLIAGE: "vegetation",
    Surface.GRASS: "vegetation",
    Surface.TRUNK: "vegetation",
    Surface.PERSON: "person",
    Surface.CAR: "car",
}

# [number of surfaces] uint8: the class index of each surface code.
SURFACE_CLASS = np.array(
    [SCENE_CLASS_NAMES.index(_CLASS_OF_SURFACE[surface]) for surface in Surface], dtype=np.uint8
)
