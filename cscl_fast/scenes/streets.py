"""Sky, ground, markings, buildings, fences: the street itself."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
from PIL import Image

from .brush import KERB_HEIGHT, Brush
from .canvas import Color
from .surfaces import Surface
from .things import FAR, NEAR, Barrier, Building, Pole, Skyline, Tree

# Depths (metres) at which a bent strip of ground has its corners.
_DEPTHS = (NEAR, 4.0, 8.0, 13.0, 20.0, 30.0, 45.0, 65.0, FAR)
_WHITE = (236, 236, 230)
_YELLOW = (236, 190, 60)


def paint_sky(brush: Brush) -> None:
    """The gradient of the sky and its clouds."""
    canvas, light = brush.canvas, brush.light
    rows = max(2, int(brush.camera.horizon) + 2)
    ramp = np.linspace(0.0, 1.0, rows)[:, None] ** 1.3
    column = np.array(light.sky_top) * (1.0 - ramp) + np.array(light.sky_low) * ramp
    strip = Image.fromarray(column.astype(np.uint8)[:, None, :])
    canvas.picture.paste(strip.resize((canvas.width, rows)), (0, 0))
    for across, up, size in brush.layout.clouds:
        u, v = across * canvas.width, up * brush.camera.horizon
        radius = size * canvas.width
        for shift, scale in ((-0.9, 0.55), (0.0, 1.0), (0.8, 0.7), (1.5, 0.4)):
            canvas.shade_disc(
                u + shift * radius, v, radius * scale, 0.42 * radius * scale, light.cloud, 0.7
            )


def paint_skyline(brush: Brush) -> None:
    """Far houses and woods that close the street."""
    for block in brush.layout.skyline:
        if block.wood:
            _paint_wood(brush, block)
        else:
            _paint_far_house(brush, block)


def _paint_wood(brush: Brush, block: Skyline) -> None:
    camera, canvas = brush.camera, brush.canvas
    left = camera.u(block.x - block.width / 2.0, FAR)
    right = camera.u(block.x + block.width / 2, FAR)
    bottom = camera.v(0.0, FAR) + 2.0
    height = block.height * camera.scale(FAR)
    green = brush.lit(block.color, 0.8 * brush.light.front, FAR)
    canvas.box(left, bottom - 0.5 * height, right, bottom, green, Surface.FOLIAGE)
    radius = (right - left) / 5.0
    for number, share in enumerate((0.62, 1.0, 0.76, 0.9)):
        u = left + (number + 0.5) * (right - left) / 4.0
        top = bottom - share * height
        color = brush.lit(block.color, (0.72 + 0.12 * (number % 2)) * brush.light.front, FAR)
        canvas.disc(u, top + radius, radius, radius, color, Surface.FOLIAGE)
        canvas.box(u - radius, top + radius, u + radius, bottom, color, Surface.FOLIAGE)


def _paint_far_house(brush: Brush, block: Skyline) -> None:
    camera, canvas = brush.camera, brush.canvas
    left = camera.u(block.x - block.width / 2.0, FAR)
    right = camera.u(block.x + block.width / 2, FAR)
    scale = camera.scale(FAR)
    bottom = camera.v(0.0, FAR) + 2.0
    top = bottom - block.height * scale
    front = brush.light.front
    canvas.box(left, top, right, bottom, brush.lit(block.color, front, FAR), Surface.PLASTER)
    roof = brush.lit(block.roof, front, FAR)
    eaves, ridge = 0.4 * scale, 2.6 * scale
    canvas.polygon(
        ((left - eaves, top), (right + eaves, top), (right - ridge, top - ridge),
         (left + ridge, top - ridge)),
        roof,
        Surface.ROOF,
    )  # fmt: skip
    glass = brush.lit((92, 108, 124), front, FAR)
    storeys, bays = int(block.height / 3.0), max(1, int(block.width / 2.6))
    for storey in range(storeys):
        v = top + (0.8 + 3.0 * storey) * scale
        for bay in range(bays):
            u = left + (bay + 0.5) * (right - left) / bays
            canvas.box(u - 0.55 * scale, v, u + 0.55 * scale, v + 1.4 * scale, glass)


def paint_ground(brush: Brush) -> None:
    """Verges, pavements, kerbs, the road and its markings."""
    street, canvas, camera = brush.layout.street, brush.canvas, brush.camera
    ground = brush.light.ground
    bottom = float(canvas.height)
    top = camera.v(0.0, 4.0 * FAR)
    canvas.box(0, top, canvas.width, bottom, brush.lit(street.verge, ground, 12.0), Surface.GRASS)
    for side, width in ((-1, street.pavement_left), (1, street.pavement_right)):
        edge = street.left if side < 0 else street.right
        if width > 0.0:
            stone = brush.lit(street.pavement, ground, 6.0)
            _strip(brush, edge, edge + side * (width + 0.6), KERB_HEIGHT, stone, Surface.PAVEMENT)
    _strip(brush, street.left, street.right, 0.0, brush.lit(street.road, ground, 6.0), Surface.ROAD)
    for x0, x1, z0, z1 in street.patches:
        canvas.shade(brush.ground_quad((x0, x1), (z0, z1)), (26, 26, 30), 0.3)
    _paint_markings(brush)
    for side, width in ((-1, street.pavement_left), (1, street.pavement_right)):
        if width > 0.0:
            _paint_kerb(brush, street.left if side < 0 else street.right)


def _strip(brush: Brush, x0: float, x1: float, y: float, color: Color, surface: Surface) -> None:
    point = brush.camera.point
    outline = [point(x0, y, z) for z in _DEPTHS] + [point(x1, y, z) for z in reversed(_DEPTHS)]
    brush.canvas.polygon(outline, color, surface)


def _paint_kerb(brush: Brush, edge: float) -> None:
    point = brush.camera.point
    pavement = brush.layout.street.pavement
    color = brush.lit(pavement, 0.78 * brush.light.ground, 6.0)
    outline = [point(edge, 0.0, z) for z in _DEPTHS]
    outline += [point(edge, KERB_HEIGHT, z) for z in reversed(_DEPTHS)]
    brush.canvas.polygon(outline, color, Surface.KERB)


def _paint_markings(brush: Brush) -> None:
    street, canvas, light = brush.layout.street, brush.canvas, brush.light
    lane = (street.right - street.left - 4.2) / street.lanes
    fresh = 1.0 - street.worn

    def stripe(x: float, width: float, near: float, far: float, color: Color) -> None:
        corners = brush.ground_quad((x - width / 2.0, x + width / 2.0), (near, far))
        if corners[0][1] - corners[2][1] < 0.7:
            return
        canvas.shade(corners, brush.lit(color, light.ground, near), 0.25 + 0.75 * fresh)

    for number in range(street.lanes + 1):
        x = street.left + 2.1 + number * lane
        edge = number in (0, street.lanes)
        if edge:
            for near, far in pairwise(_DEPTHS[:-1]):
                stripe(x, 0.1, near, far, _WHITE)
        else:
            z = 2.5
            while z < 55.0:
                stripe(x, 0.16, z, z + 2.6, _WHITE if street.lanes > 2 else _YELLOW)
                z += 5.2
    if street.crossing is not None:
        x = street.left + 0.4
        while x < street.right - 0.4:
            stripe(x + 0.25, 0.5, street.crossing, street.crossing + 2.8, _WHITE)
            x += 1.0


def paint_ground_shadows(brush: Brush) -> None:
    """Shadows that houses, trees and poles cast across the street."""
    light, street = brush.light, brush.layout.street
    if light.shadow_length == 0.0:
        return
    reach = light.shadow_length
    sunny = -1 if reach > 0.0 else 1
    for thing in brush.layout.background:
        if isinstance(thing, Building) and thing.side == sunny:
            length = min(abs(reach) * thing.height, street.right - street.left + 3.0)
            end = thing.wall - thing.side * length
            brush.shade_ground(
                (min(thing.wall, end), max(thing.wall, end)), (thing.near, thing.far), light.shadow
            )
    for item in brush.layout.foreground:
        if isinstance(item, Tree):
            _paint_tree_shadow(brush, item, reach)
        elif isinstance(item, Pole):
            end = item.x + reach * item.height
            x = (min(item.x, end), max(item.x, end))
            brush.shade_ground(x, (item.near, item.near + 0.2), light.shadow)


def _paint_tree_shadow(brush: Brush, tree: Tree, reach: float) -> None:
    """The shadow of a crown: whole in the flat look, dappled where the crown has more discs."""
    middle = tree.x + reach * (tree.trunk + tree.crown)
    radius = tree.crown * (1.0 + 0.4 * abs(reach))
    if len(tree.discs) < 8:
        brush.shade_spot(middle, tree.near, radius, 0.8 * tree.crown, brush.light.shadow)
        return
    for dx, dy, share in tree.discs[1:8]:
        brush.shade_spot(
            middle + dx * radius,
            tree.near + dy * tree.crown,
            1.2 * share * radius,
            share * tree.crown,
            0.6 * brush.light.shadow,
        )


def paint_building(brush: Brush, house: Building) -> None:
    """A house: its wall along the street, the face towards the camera, roof, windows, doors."""
    near, far, wall, side = house.near, house.far, house.wall, house.side
    height = house.height
    along = brush.side_light(side)
    deep = wall + side * house.depth
    color = brush.lit(house.wall_color, along, 0.5 * (near + far))
    front = brush.lit(house.wall_color, brush.light.front, near)
    if near > NEAR:
        brush.quad((wall, deep), (0.0, height), (near, near), front, house.surface)
        if house.open_front:
            _paint_front_windows(brush, house)
    _paint_roof(brush, house, along)
    brush.quad((wall, wall), (0.0, height), (near, far), color, house.surface)
    _paint_wall_details(brush, house, along)


def _paint_roof(brush: Brush, house: Building, along: float) -> None:
    near, far, wall, height = house.near, house.far, house.wall, house.height
    middle = 0.5 * (near + far)
    point = brush.camera.point
    rise, inset = house.roof_height, house.side * 0.4 * house.roof_height
    # Seen from below, a wall that is high and near hides its roof.
    if rise == 0.0 or rise * abs(wall) < 1.15 * abs(inset) * (height - brush.camera.height):
        return
    color = brush.lit(house.roof, along, middle)
    eaves = wall - house.side * 0.25
    top_near = point(wall + inset, height + rise, near + 0.3)
    top_far = point(wall + inset, height + rise, far - 0.3)
    if near > NEAR:
        back = wall + house.side * house.depth
        brush.canvas.polygon(
            (
                point(eaves, height, near),
                top_near,
                point(back - inset, height + rise, near + 0.3),
                point(back, height, near),
            ),
            brush.lit(house.roof, 0.85 * brush.light.front, near),
            Surface.ROOF,
        )
    if house.seed % 3:
        z = near + (0.3 + 0.4 * (house.seed % 7) / 7.0) * (far - near)
        x = wall + 2.0 * inset
        stack = brush.lit(house.wall_color, 0.7 * along, z)
        brush.quad((x, x), (height, height + rise + 1.0), (z, z + 1.1), stack, Surface.ROOF)
    low_near, low_far = point(eaves, height, near), point(eaves, height, far)
    brush.canvas.polygon((low_near, low_far, top_far, top_near), color, Surface.ROOF)
    # The underside of the eaves, which jut out over the wall.
    brush.canvas.polygon(
        (low_near, low_far, point(wall, height, far), point(wall, height, near)),
        brush.lit(house.roof, 0.6 * along, middle),
        Surface.ROOF,
    )


def _paint_wall_details(brush: Brush, house: Building, along: float) -> None:
    """Cornice, base, windows, doors and shops on the wall along the street."""
    near, far, wall = house.near, house.far, house.wall
    middle = 0.5 * (near + far)
    canvas, camera = brush.canvas, brush.camera
    if max(camera.u(wall, far) * house.side, -1.0) > canvas.width * max(house.side, 0):
        return  # beyond the picture's edge
    trim = brush.lit(house.trim, along, middle)
    brush.quad((wall, wall), (house.height - 0.35, house.height), (near, far), trim)
    line = house.ground_storey
    brush.quad((wall, wall), (line - 0.12, line + 0.08), (near, far), trim)
    base = brush.lit(house.wall_color, 0.72 * along, middle)
    brush.quad((wall, wall), (0.0, 0.5), (near, far), base)
    bays = max(1, int((far - near) / house.bay))
    pitch = (far - near) / bays
    random = brush.rng.random
    for bay in range(bays):
        start = near + (bay + 0.5 - house.window / 2.0) * pitch
        end = start + house.window * pitch
        u0, u1 = camera.u(wall, start), camera.u(wall, end)
        if max(u0, u1) < 0 or min(u0, u1) > canvas.width or abs(u0 - u1) < 1.0:
            continue
        fine = abs(u0 - u1) > 5.0
        for storey in range(1, house.storeys):
            bottom = house.ground_storey + (storey - 1) * house.storey + 0.85
            _paint_window(brush, house, (start, end), (bottom, bottom + 1.5), along, fine)
        if house.awning is None:
            if bay == house.seed % bays:
                door = brush.lit(house.door, along, start)
                brush.quad((wall, wall), (0.1, 2.3), (start, end), door)
                if fine:
                    frame = brush.lit(house.frame, along, start)
                    brush.quad((wall, wall), (2.3, 2.5), (start, end), frame)
            else:
                _paint_window(brush, house, (start, end), (1.0, 2.5), along, fine)
        else:
            glass = brush.lit(house.glass, 0.9 * along, start)
            span = (start - 0.2 * pitch, end + 0.2 * pitch)
            brush.quad((wall, wall), (0.55, 2.5), span, glass, Surface.WINDOW)
            if random() < 0.5 and fine:
                goods = brush.lit(house.frame, 0.8 * along, start)
                brush.quad((wall, wall), (0.6, 1.2), (start, end), goods)
    if house.awning is not None:
        reach = wall - house.side * 0.9
        point = camera.point
        low, high = 2.45, 3.05
        brush.canvas.polygon(
            (
                point(wall, high, near),
                point(wall, high, far),
                point(reach, low, far),
                point(reach, low, near),
            ),
            brush.lit(house.awning, along, middle),
            house.surface,
        )


def _paint_window(
    brush: Brush,
    house: Building,
    z: tuple[float, float],
    y: tuple[float, float],
    along: float,
    fine: bool,
) -> None:
    x = (house.wall, house.wall)
    draw = brush.rng.random()
    glass = house.glass
    if draw < brush.light.lit_windows:
        glass = (255, 214, 140)
        color = brush.lit(glass, 0.95, z[0])
    elif draw > 1.0 - house.blinds:
        color = brush.lit(house.frame, 0.8 * along, z[0])
    else:
        color = brush.lit(glass, along * (0.85 + 0.3 * brush.rng.random()), z[0])
    if not fine:
        brush.quad(x, y, z, color, Surface.WINDOW)
        return
    frame = brush.lit(house.frame, along, z[0])
    border = 0.1 * (z[1] - z[0])
    brush.quad(x, (y[0] - 0.12, y[1] + 0.08), z, frame, house.surface)
    inner = (z[0] + border, z[1] - border)
    brush.quad(x, y, inner, color, Surface.WINDOW)
    middle = 0.5 * (z[0] + z[1])
    point = brush.camera.point
    brush.canvas.line((point(x[0], y[0], middle), point(x[0], y[1], middle)), 1.0, frame)


def _paint_front_windows(brush: Brush, house: Building) -> None:
    light = brush.light.front
    scale = brush.camera.scale(house.near)
    if scale * house.depth < 6.0:
        return
    bays = max(1, int(house.depth / (house.bay + 0.6)))
    pitch = house.depth / bays
    for bay in range(bays):
        start = (bay + 0.3) * pitch
        x = sorted(
            (house.wall + house.side * start, house.wall + house.side * (start + 0.4 * pitch))
        )
        for storey in range(house.storeys):
            bottom = 1.0 if storey == 0 else house.ground_storey + (storey - 1) * house.storey + 0.9
            shine = light * (0.85 + 0.3 * brush.rng.random())
            color = brush.lit(house.glass, shine, house.near)
            brush.quad(
                (x[0], x[1]),
                (bottom, bottom + 1.4),
                (house.near, house.near),
                color,
                Surface.WINDOW,
            )


def paint_barrier(brush: Brush, barrier: Barrier) -> None:
    """A fence of planks, a railing or a hedge."""
    x, near, far = barrier.x, barrier.near, barrier.far
    side = -1 if x < 0.0 else 1
    along = 0.5 * (brush.side_light(side) + brush.light.ground)
    middle = 0.5 * (near + far)
    base = brush.base(x)
    top = base + barrier.height
    point, canvas = brush.camera.point, brush.canvas
    corners = (point(x, base, near), point(x, base, far), point(x, top, far), point(x, top, near))
    color = brush.lit(barrier.color, along, middle)
    if barrier.kind == "hedge":
        canvas.polygon(corners, color, Surface.FOLIAGE)
        lit = brush.lit(barrier.color, 1.25 * along, middle)
        brush.quad((x, x), (top - 0.25, top), (near, far), lit)
        return
    dark = brush.lit(barrier.color, 0.66 * along, middle)
    posts = min(40, int((far - near) / (0.35 if barrier.kind == "planks" else 0.3)))
    if barrier.kind == "planks":
        canvas.polygon(corners, color, Surface.FENCE)
    else:
        canvas.mark(corners, Surface.FENCE)
        canvas.shade(corners, color, 0.35)
    for number in range(posts + 1):
        z = near + (far - near) * number / max(posts, 1)
        u = brush.camera.u(x, z)
        if -8.0 < u < canvas.width + 8.0:
            width = 0.05 * brush.camera.scale(z)
            line = (point(x, base, z), point(x, top, z))
            canvas.line(line, width, dark if barrier.kind == "planks" else color)
    for share in (0.0, 0.5) if barrier.kind == "rails" else (0.2,):
        y = top - share * barrier.height
        brush.quad((x, x), (y - 0.1, y), (near, far), dark)
