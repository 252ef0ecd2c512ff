"""The camera that projects a street, and the canvas that is painted twice."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image, ImageDraw

from .surfaces import SURFACE_CLASS, Surface

Color = tuple[int, int, int]
Point = tuple[float, float]

# Shapes are drawn this many times larger in each direction than the picture: smooth edges.
OVERSAMPLING = 2


@dataclass(frozen=True)
class Camera:
    """Pinhole camera above the street; x to the right, y up, z ahead, in metres.

    The street bends as a parabola, x + bend * z^2, which the projection applies, so that a
    layout is written as if every street were straight.
    """

    focal: float  # pixels of the oversampled canvas
    center: float  # u of the direction z, pixels
    horizon: float  # v of the horizon, pixels
    height: float  # metres above the road
    bend: float = 0.0  # 1/metres

    def u(self, x: float, z: float) -> float:
        """Column of the point at lateral position `x` and depth `z`."""
        return self.center + self.focal * (x / z + self.bend * z)

    def v(self, y: float, z: float) -> float:
        """Row of the point at height `y` and depth `z`."""
        return self.horizon + self.focal * (self.height - y) / z

    def point(self, x: float, y: float, z: float) -> Point:
        """(u, v) of a point."""
        scale = self.focal / z
        return (
            self.center + scale * x + self.focal * self.bend * z,
            self.horizon + scale * (self.height - y),
        )

    def scale(self, z: float) -> float:
        """Pixels of the canvas per metre at depth `z`."""
        return self.focal / z


class Canvas:
    """A colour picture and a picture of surface codes, painted by the same shapes.

    A shape with a `surface` is painted into both; one without (a shadow, the spokes of a wheel)
    changes the colours alone and leaves what the pixel shows as it was.
    """

    def __init__(self, height: int, width: int) -> None:
        self.height = height * OVERSAMPLING
        self.width = width * OVERSAMPLING
        self.picture = Image.new("RGB", (self.width, self.height))
        self.surfaces = Image.new("L", (self.width, self.height), int(Surface.SKY))
        self._paint = ImageDraw.Draw(self.picture)
        self._blend = ImageDraw.Draw(self.picture, "RGBA")
        self._mark = ImageDraw.Draw(self.surfaces)

    def polygon(
        self, points: Sequence[Point], color: Color, surface: Surface | None = None
    ) -> None:
        """Fill a polygon."""
        self._paint.polygon(points, fill=color)
        if surface is not None:
            self._mark.polygon(points, fill=int(surface))

    def box(
        self,
        left: float,
        top: float,
        right: float,
        bottom: float,
        color: Color,
        surface: Surface | None = None,
    ) -> None:
        """Fill an upright rectangle."""
        if right < left or bottom < top or right < 0 or left > self.width:
            return
        self._paint.rectangle((left, top, right, bottom), fill=color)
        if surface is not None:
            self._mark.rectangle((left, top, right, bottom), fill=int(surface))

    def disc(
        self,
        u: float,
        v: float,
        radius_u: float,
        radius_v: float,
        color: Color,
        surface: Surface | None = None,
    ) -> None:
        """Fill an upright ellipse around (u, v)."""
        bounds = (u - radius_u, v - radius_v, u + radius_u, v + radius_v)
        if bounds[2] < 0 or bounds[0] > self.width:
            return
        self._paint.ellipse(bounds, fill=color)
        if surface is not None:
            self._mark.ellipse(bounds, fill=int(surface))

    def line(
        self,
        points: Sequence[Point],
        width: float,
        color: Color,
        surface: Surface | None = None,
    ) -> None:
        """Draw a line `width` pixels wide, at least one."""
        pixels = max(1, round(width))
        self._paint.line(points, fill=color, width=pixels)
        if surface is not None:
            self._mark.line(points, fill=int(surface), width=pixels)

    def mark(self, points: Sequence[Point], surface: Surface) -> None:
        """Set what a polygon's pixels show; the colours stay (between the bars of a railing)."""
        self._mark.polygon(points, fill=int(surface))

    def shade(self, points: Sequence[Point], color: Color, opacity: float) -> None:
        """Lay a translucent polygon over the colours; the surfaces stay."""
        self._blend.polygon(points, fill=(*color, round(255 * opacity)))

    def shade_disc(
        self, u: float, v: float, radius_u: float, radius_v: float, color: Color, opacity: float
    ) -> None:
        """Lay a translucent ellipse over the colours; the surfaces stay."""
        self._blend.ellipse(
            (u - radius_u, v - radius_v, u + radius_u, v + radius_v),
            fill=(*color, round(255 * opacity)),
        )

    def finish(self) -> tuple[np.ndarray, np.ndarray]:
        """The picture [H, W, 3] uint8 and the surface codes [H, W] uint8 at the scene's size."""
        image = np.array(self.picture.reduce(OVERSAMPLING))
        surfaces = np.asarray(self.surfaces)[1::OVERSAMPLING, 1::OVERSAMPLING]
        return image, np.ascontiguousarray(surfaces)

    @staticmethod
    def label(surfaces: np.ndarray) -> np.ndarray:
        """Class indices [H, W] uint8 of surface codes [H, W]."""
        return SURFACE_CLASS[surfaces]
