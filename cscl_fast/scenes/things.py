"""The things on a street and their places: metres, x to the right of the camera, z ahead."""

from __future__ import annotations

from dataclasses import dataclass, field

from .canvas import Color
from .looks import Light
from .surfaces import Surface

FAR = 95.0  # metres; the street ends here
NEAR = 1.2  # metres; nothing is drawn nearer to the camera


@dataclass
class Street:
    """The carriageway from `left` to `right`, and what lies beside it."""

    left: float
    right: float
    lanes: int
    pavement_left: float  # width; 0 where there is none
    pavement_right: float
    road: Color
    pavement: Color
    verge: Color
    crossing: float | None  # depth of a zebra crossing
    worn: float  # how far the markings are gone, 0 to 1
    patches: list[tuple[float, float, float, float]]  # repaired asphalt: x0, x1, z0, z1

    def wall(self, side: int) -> float:
        """Lateral position of the walls on the left (-1) or the right (+1)."""
        if side < 0:
            return self.left - max(self.pavement_left, 0.9)
        return self.right + max(self.pavement_right, 0.9)


@dataclass
class Building:
    """A house whose wall stands at x = `wall` from z = `near` to z = `far`."""

    side: int
    wall: float
    near: float
    far: float
    depth: float
    storeys: int
    storey: float
    ground_storey: float
    wall_color: Color
    surface: Surface
    roof: Color
    roof_height: float  # 0: flat, with a cornice
    trim: Color
    glass: Color
    frame: Color
    door: Color
    awning: Color | None  # a shop on the ground floor
    bay: float  # metres from window to window
    window: float  # width of a window as a share of the bay
    blinds: float  # share of windows with a blind
    open_front: bool  # no neighbour hides the face towards the camera
    seed: int

    @property
    def height(self) -> float:
        """Height of the eaves."""
        return self.ground_storey + (self.storeys - 1) * self.storey


@dataclass
class Barrier:
    """A fence or a hedge along the street at x = `x`, from `near` to `far`."""

    x: float
    near: float
    far: float
    height: float
    color: Color
    kind: str  # "planks", "rails", "hedge"


@dataclass
class Tree:
    """A tree; its crown is a cloud of discs (dx, dy, radius) around its middle."""

    x: float
    near: float
    trunk: float
    crown: float
    color: Color
    bark: Color
    discs: list[tuple[float, float, float]]
    conifer: bool


@dataclass
class Pole:
    """A lamp post, a signpost or a traffic light."""

    x: float
    near: float
    height: float
    radius: float
    color: Color
    kind: str  # "lamp", "sign", "light", "plain"
    arm: float = 0.0  # to the side, signed
    shape: str = "disc"  # of a sign
    plates: int = 1
    lamp: int = 0  # which lamp of a traffic light is on


@dataclass
class Car:
    """A car, its tail (or its face, when `oncoming`) towards the camera at z = `near`."""

    x: float
    near: float
    length: float
    width: float
    height: float
    color: Color
    oncoming: bool
    van: bool
    braking: bool


@dataclass
class Person:
    """Somebody on foot."""

    x: float
    near: float
    height: float
    skin: Color
    top: Color
    trousers: Color
    hair: Color
    stride: float
    swing: float
    bag: Color | None


@dataclass
class Skyline:
    """A wood or a house that closes the street in the distance."""

    x: float
    width: float
    height: float
    wood: bool
    color: Color
    roof: Color


@dataclass
class Layout:
    """A whole street scene before it is drawn."""

    camera_height: float
    focal: float  # halves of the picture's width
    horizon: float  # share of the picture's height
    yaw: float  # share of the picture's width
    bend: float
    light: Light
    street: Street
    clouds: list[tuple[float, float, float]]  # share of width, share of sky, size
    skyline: list[Skyline]
    background: list[Building | Barrier | Tree] = field(default_factory=list)
    foreground: list[Barrier | Tree | Pole | Car | Person] = field(default_factory=list)
