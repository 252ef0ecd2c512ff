"""Canvas, camera and light together: what every painter of a thing needs."""

from __future__ import annotations

import math
from collections.abc import Sequence
from random import Random

from .canvas import Camera, Canvas, Color, Point
from .surfaces import Surface
from .things import Layout

# Pavements lie this much above the road.
KERB_HEIGHT = 0.12


class Brush:
    """Paints in street coordinates (metres) with the scene's light and haze."""

    def __init__(self, layout: Layout, canvas: Canvas, rng: Random) -> None:
        half = canvas.width / 2.0
        # A picture less wide than 2:1 shows less of the sides, not a smaller street.
        half = max(half, 0.8 * canvas.height)
        self.layout = layout
        self.light = layout.light
        self.canvas = canvas
        self.rng = rng
        self.camera = Camera(
            focal=layout.focal * half,
            center=canvas.width * (0.5 + layout.yaw),
            horizon=canvas.height * layout.horizon,
            height=layout.camera_height,
            bend=layout.bend,
        )

    def lit(self, color: Color, factor: float, z: float) -> Color:
        """`color` under the scene's light, times `factor`, behind `z` metres of air."""
        clear = math.exp(-z / self.light.haze)
        haze = 1.0 - clear
        factor *= clear
        low = self.light.sky_low
        tint = self.light.tint
        return (
            min(255, int(color[0] * factor * tint[0] + low[0] * haze)),
            min(255, int(color[1] * factor * tint[1] + low[1] * haze)),
            min(255, int(color[2] * factor * tint[2] + low[2] * haze)),
        )

    def side_light(self, side: int) -> float:
        """Light factor of walls on the left (-1) or right (+1) of the street."""
        return self.light.left if side < 0 else self.light.right

    def base(self, x: float) -> float:
        """Height of the ground at lateral position `x`: the road or the pavement."""
        street = self.layout.street
        return 0.0 if street.left < x < street.right else KERB_HEIGHT

    def quad(
        self,
        x: tuple[float, float],
        y: tuple[float, float],
        z: tuple[float, float],
        color: Color,
        surface: Surface | None = None,
    ) -> None:
        """Upright rectangle from (x[0], z[0]) to (x[1], z[1]), between the heights y."""
        point = self.camera.point
        self.canvas.polygon(
            (
                point(x[0], y[0], z[0]),
                point(x[1], y[0], z[1]),
                point(x[1], y[1], z[1]),
                point(x[0], y[1], z[0]),
            ),
            color,
            surface,
        )

    def ground_quad(self, x: tuple[float, float], z: tuple[float, float]) -> Sequence[Point]:
        """Corners of a rectangle on the ground."""
        point = self.camera.point
        y = self.base(0.5 * (x[0] + x[1]))
        return (
            point(x[0], y, z[0]),
            point(x[1], y, z[0]),
            point(x[1], y, z[1]),
            point(x[0], y, z[1]),
        )

    def shade_ground(self, x: tuple[float, float], z: tuple[float, float], opacity: float) -> None:
        """A shadow on the ground."""
        self.canvas.shade(self.ground_quad(x, z), (18, 20, 34), opacity)

    def shade_spot(self, x: float, z: float, radius: float, depth: float, opacity: float) -> None:
        """A round shadow on the ground, `radius` wide and `depth` deep (half axes, metres)."""
        near = max(z - depth, 1.5)
        u, top = self.camera.point(x, self.base(x), z + depth)
        bottom = self.camera.v(self.base(x), near)
        u = self.camera.u(x, z)
        self.canvas.shade_disc(
            u,
            0.5 * (top + bottom),
            radius * self.camera.scale(z),
            0.5 * (bottom - top),
            (18, 20, 34),
            opacity,
        )
