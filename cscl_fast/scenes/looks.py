"""The two looks of a street: what it is made of, how it is lit, and how crowded it is."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random
from typing import Literal

from .canvas import Color
from .surfaces import Surface

LookName = Literal["synthetic", "real"]
Range = tuple[float, float]


@dataclass(frozen=True)
class Light:
    """How a scene is lit. Factors multiply colours in [0, 255]."""

    sky_top: Color
    sky_low: Color
    cloud: Color
    left: float  # factor of the walls on the left of the street
    right: float  # factor of the walls on the right
    front: float  # factor of the faces towards the camera
    ground: float
    tint: tuple[float, float, float]  # colour of the light
    shadow: float  # opacity of cast shadows
    shadow_length: float  # metres per metre of height, to the side
    haze: float  # metres after which 63 % of a colour is haze; large is clear air
    lit_windows: float = 0.0  # share of windows with a lamp behind them


@dataclass(frozen=True)
class Look:
    """Palettes, habits and frequencies of one look. Ranges are uniform, lengths in metres."""

    lights: tuple[Light, ...]
    roads: tuple[Color, ...]
    pavements: tuple[Color, ...]
    walls: tuple[tuple[Color, Surface], ...]
    roofs: tuple[Color, ...]
    glass: tuple[Color, ...]
    frames: tuple[Color, ...]
    doors: tuple[Color, ...]
    foliage: tuple[Color, ...]
    grass: tuple[Color, ...]
    trunks: tuple[Color, ...]
    poles: tuple[Color, ...]
    cars: tuple[Color, ...]
    skins: tuple[Color, ...]
    tops: tuple[Color, ...]
    trousers: tuple[Color, ...]
    fences: tuple[Color, ...]
    color_spread: float  # relative deviation of every drawn colour from its palette

    camera_height: Range
    focal: Range  # in halves of the picture's width
    horizon: Range  # share of the picture's height
    yaw: float  # largest shift of the vanishing point, share of the picture's width
    bend: float  # largest bend of the street, 1/metres
    lane: Range
    pavement: Range
    missing_pavement: float  # probability for each side
    extra_lane: float  # probability of a third lane
    crown: Range  # radius of trees
    tree_gap: Range  # distance from tree to tree
    tree: float  # probability that a place for a tree is used
    building_gap: float  # probability of a garden between two buildings
    fence: float  # probability that a garden has a fence, and half of that for a railing
    storeys: tuple[int, int]
    parked: float  # probability that a place at the kerb is taken
    traffic: tuple[int, int]  # cars on the lanes
    people: tuple[int, int]
    pole_gap: Range
    sign: float  # probability that a pole is a signpost
    clutter: float  # probability of marks of use: dirt, patches, blinds, washed-out markings


_DAYLIGHT = Light(
    sky_top=(92, 160, 232),
    sky_low=(190, 222, 248),
    cloud=(250, 252, 255),
    left=1.0,
    right=0.82,
    front=0.92,
    ground=1.0,
    tint=(1.0, 1.0, 1.0),
    shadow=0.28,
    shadow_length=0.25,
    haze=400.0,
)

SYNTHETIC = Look(
    lights=(
        _DAYLIGHT,
        Light(
            sky_top=(112, 176, 238),
            sky_low=(206, 230, 250),
            cloud=(252, 252, 255),
            left=0.82,
            right=1.0,
            front=0.92,
            ground=1.0,
            tint=(1.0, 1.0, 1.0),
            shadow=0.28,
            shadow_length=-0.25,
            haze=400.0,
        ),
        Light(  # a pale sky
            sky_top=(186, 206, 224),
            sky_low=(228, 234, 240),
            cloud=(250, 250, 250),
            left=0.92,
            right=0.86,
            front=0.86,
            ground=0.94,
            tint=(1.0, 1.0, 1.0),
            shadow=0.2,
            shadow_length=0.0,
            haze=300.0,
        ),
    ),
    roads=((96, 98, 104), (104, 106, 112), (88, 90, 98)),
    pavements=((186, 182, 176), (196, 190, 180), (176, 174, 172)),
    walls=(
        ((226, 196, 150), Surface.PLASTER),
        ((206, 128, 100), Surface.PLASTER),
        ((232, 220, 196), Surface.PLASTER),
        ((176, 150, 132), Surface.PLASTER),
        ((150, 166, 184), Surface.PLASTER),
        ((222, 170, 128), Surface.PLASTER),
        ((200, 200, 196), Surface.PLASTER),
    ),
    roofs=((150, 72, 58), (120, 84, 72), (98, 100, 112)),
    glass=((104, 148, 186), (86, 126, 166), (124, 164, 196)),
    frames=((244, 242, 236), (236, 232, 224)),
    doors=((120, 70, 46), (60, 92, 84), (140, 50, 46), (58, 74, 120)),
    foliage=((84, 164, 70), (98, 176, 80), (70, 148, 74)),
    grass=((122, 186, 92), (132, 192, 98)),
    trunks=((122, 86, 58), (110, 78, 54)),
    poles=((132, 136, 142), (120, 124, 130)),
    cars=(
        (208, 52, 48),
        (52, 98, 190),
        (238, 238, 236),
        (240, 190, 52),
        (60, 150, 110),
        (64, 66, 74),
    ),
    skins=((240, 200, 168), (202, 150, 112), (140, 96, 70)),
    tops=((216, 70, 60), (60, 110, 196), (244, 206, 80), (104, 180, 110), (236, 236, 232)),
    trousers=((52, 62, 104), (70, 70, 78), (124, 98, 72)),
    fences=((168, 120, 78), (214, 208, 196), (150, 108, 72)),
    color_spread=0.06,
    camera_height=(1.4, 1.7),
    focal=(1.4, 1.75),
    horizon=(0.42, 0.48),
    yaw=0.06,
    bend=0.0008,
    lane=(3.3, 3.6),
    pavement=(2.8, 3.8),
    missing_pavement=0.0,
    extra_lane=0.0,
    crown=(1.3, 1.8),
    tree_gap=(9.0, 13.0),
    tree=0.4,
    building_gap=0.22,
    fence=0.75,
    storeys=(2, 4),
    parked=0.3,
    traffic=(1, 2),
    people=(5, 9),
    pole_gap=(10.0, 14.0),
    sign=0.66,
    clutter=0.0,
)

REAL = Look(
    lights=(
        Light(  # overcast
            sky_top=(196, 208, 222),
            sky_low=(232, 236, 238),
            cloud=(240, 240, 240),
            left=0.86,
            right=0.86,
            front=0.82,
            ground=0.9,
            tint=(0.94, 0.97, 1.0),
            shadow=0.18,
            shadow_length=0.0,
            haze=130.0,
        ),
        Light(  # sun, one side of the street in shadow
            sky_top=(96, 146, 206),
            sky_low=(196, 214, 228),
            cloud=(240, 238, 232),
            left=1.08,
            right=0.58,
            front=0.74,
            ground=0.98,
            tint=(1.04, 1.0, 0.9),
            shadow=0.5,
            shadow_length=-0.9,
            haze=200.0,
        ),
        Light(  # low sun
            sky_top=(156, 174, 202),
            sky_low=(246, 214, 164),
            cloud=(252, 222, 178),
            left=0.5,
            right=1.0,
            front=0.62,
            ground=0.8,
            tint=(1.1, 0.97, 0.82),
            shadow=0.52,
            shadow_length=1.8,
            haze=120.0,
            lit_windows=0.04,
        ),
        Light(  # dusk
            sky_top=(92, 106, 146),
            sky_low=(196, 172, 168),
            cloud=(156, 150, 168),
            left=0.64,
            right=0.6,
            front=0.6,
            ground=0.64,
            tint=(0.88, 0.92, 1.1),
            shadow=0.16,
            shadow_length=0.0,
            haze=120.0,
            lit_windows=0.28,
        ),
        Light(  # a clear day
            sky_top=(98, 152, 214),
            sky_low=(200, 220, 236),
            cloud=(246, 246, 246),
            left=0.92,
            right=0.72,
            front=0.8,
            ground=0.96,
            tint=(1.02, 1.0, 0.96),
            shadow=0.38,
            shadow_length=0.4,
            haze=220.0,
        ),
        Light(  # haze around noon
            sky_top=(176, 200, 222),
            sky_low=(232, 234, 230),
            cloud=(244, 244, 240),
            left=0.74,
            right=1.0,
            front=0.86,
            ground=1.0,
            tint=(1.0, 0.98, 0.92),
            shadow=0.34,
            shadow_length=0.5,
            haze=100.0,
        ),
    ),
    roads=((92, 90, 88), (112, 108, 102), (76, 78, 80), (124, 118, 110)),
    pavements=((156, 150, 142), (172, 162, 148), (142, 138, 134), (162, 142, 126)),
    walls=(
        ((146, 84, 64), Surface.BRICK),
        ((166, 112, 82), Surface.BRICK),
        ((120, 86, 74), Surface.BRICK),
        ((184, 158, 118), Surface.BRICK),
        ((150, 148, 142), Surface.CONCRETE),
        ((124, 124, 122), Surface.CONCRETE),
        ((176, 166, 150), Surface.CONCRETE),
        ((204, 190, 164), Surface.PLASTER),
        ((216, 210, 198), Surface.PLASTER),
        ((186, 168, 132), Surface.PLASTER),
    ),
    roofs=((96, 66, 56), (82, 82, 86), (110, 84, 70)),
    glass=((50, 58, 66), (66, 76, 86), (40, 46, 50), (96, 108, 118)),
    frames=((206, 200, 188), (150, 140, 128), (96, 88, 80)),
    doors=((74, 52, 40), (48, 62, 58), (92, 42, 38), (50, 52, 60)),
    foliage=((68, 106, 50), (86, 116, 54), (60, 94, 52), (100, 116, 56), (124, 108, 52)),
    grass=((98, 124, 62), (114, 126, 70), (86, 114, 58)),
    trunks=((74, 64, 54), (88, 76, 64), (60, 54, 48)),
    poles=((92, 94, 94), (70, 72, 70), (118, 116, 108), (84, 74, 62)),
    cars=(
        (40, 42, 46),
        (150, 152, 154),
        (206, 206, 202),
        (96, 100, 106),
        (34, 46, 76),
        (136, 34, 34),
        (44, 68, 124),
        (70, 84, 78),
        (176, 168, 150),
    ),
    skins=((214, 172, 146), (170, 122, 94), (112, 78, 60)),
    tops=(
        (52, 54, 62),
        (88, 86, 84),
        (40, 52, 78),
        (150, 52, 46),
        (56, 88, 140),
        (178, 150, 70),
        (158, 146, 124),
        (188, 184, 176),
        (74, 84, 60),
    ),
    trousers=((40, 44, 58), (34, 34, 38), (84, 76, 66), (66, 78, 100)),
    fences=((104, 84, 64), (126, 122, 116), (70, 76, 74), (148, 140, 128)),
    color_spread=0.08,
    camera_height=(1.3, 1.95),
    focal=(1.35, 1.95),
    horizon=(0.39, 0.51),
    yaw=0.1,
    bend=0.0022,
    lane=(2.7, 3.7),
    pavement=(1.3, 4.2),
    missing_pavement=0.16,
    extra_lane=0.3,
    crown=(1.4, 2.9),
    tree_gap=(5.0, 12.0),
    tree=0.6,
    building_gap=0.3,
    fence=0.6,
    storeys=(2, 6),
    parked=0.62,
    traffic=(1, 4),
    people=(3, 13),
    pole_gap=(9.0, 20.0),
    sign=0.42,
    clutter=0.6,
)

LOOKS: dict[str, Look] = {"synthetic": SYNTHETIC, "real": REAL}


def vary(rng: Random, color: Color, spread: float) -> Color:
    """`color` with a random brightness and a smaller random deviation of each channel."""
    brightness = 1.0 + spread * (2.0 * rng.random() - 1.0)
    third = spread / 3.0
    red, green, blue = (
        min(255, max(0, round(value * (brightness + third * (2.0 * rng.random() - 1.0)))))
        for value in color
    )
    return red, green, blue
