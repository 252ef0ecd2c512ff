"""What stands and moves on a street: trees, poles and signs, cars, people."""

from __future__ import annotations

from .brush import Brush
from .canvas import OVERSAMPLING, Color, Point
from .surfaces import Surface
from .things import Car, Person, Pole, Tree

_BLACK = (26, 26, 30)
_GLASS = (70, 88, 104)


def paint_tree(brush: Brush, tree: Tree) -> None:
    """A trunk and a crown of discs in three shades, or a conifer."""
    z, x = tree.near, tree.x
    scale = brush.camera.scale(z)
    canvas = brush.canvas
    base = brush.base(x)
    u, foot = brush.camera.point(x, base, z)
    light = 0.5 * (brush.light.front + brush.light.ground)
    bark = brush.lit(tree.bark, light, z)
    half = max(0.13 * scale, 0.6)
    middle = foot - (tree.trunk + 0.75 * tree.crown) * scale
    canvas.polygon(
        ((u - half, foot), (u + half, foot), (u + 0.6 * half, middle), (u - 0.6 * half, middle)),
        bark,
        Surface.TRUNK,
    )
    radius = tree.crown * scale
    shades = ((0.72, 0.0, 1.0), (1.0, -0.14, 0.8), (1.26, -0.3, 0.45))
    sun = 0.12 if brush.light.left > brush.light.right else -0.12
    if tree.conifer:
        for step, (factor, _, _) in enumerate(shades):
            top = middle - radius * (0.1 + 0.75 * step)
            width = radius * (0.85 - 0.2 * step)
            canvas.polygon(
                ((u - width, top + radius), (u + width, top + radius), (u, top - 0.5 * radius)),
                brush.lit(tree.color, light * (0.6 + 0.4 * factor), z),
                Surface.FOLIAGE,
            )
        return
    for factor, lift, size in shades:
        color = brush.lit(tree.color, light * factor, z)
        # The lit parts lie inside the first shade, so the outline is marked once.
        surface = Surface.FOLIAGE if size == 1.0 else None
        discs = tree.discs if size > 0.5 else tree.discs[1:]
        for dx, dy, share in discs:
            canvas.disc(
                u + (dx + (0.0 if size == 1.0 else sun)) * radius * (0.6 + 0.4 * size),
                middle + (dy * (0.6 + 0.4 * size) + lift) * radius,
                share * size * radius,
                share * size * radius,
                color,
                surface,
            )


_SIGN_COLORS: dict[str, Color] = {
    "disc": (206, 36, 40),
    "triangle": (206, 36, 40),
    "square": (236, 196, 52),
    "blue": (40, 92, 186),
    "stop": (196, 30, 36),
}


def paint_pole(brush: Brush, pole: Pole) -> None:
    """A post with what it carries: a lamp, a sign or a traffic light."""
    camera, canvas, z = brush.camera, brush.canvas, pole.near
    base = brush.base(pole.x)
    light = brush.light.front
    scale = camera.scale(z)
    # Never thinner than a pixel of the finished picture: thin, but there.
    half = max(pole.radius * scale, 0.7 * OVERSAMPLING)
    u, foot = camera.point(pole.x, base, z)
    top = foot - pole.height * scale
    color = brush.lit(pole.color, light, z)
    canvas.box(u - half, top, u + half, foot, color, Surface.POLE)
    canvas.box(u + 0.3 * half, top, u + half, foot, brush.lit(pole.color, 0.7 * light, z))
    if pole.kind == "lamp":
        end = u + pole.arm * scale
        canvas.line(((u, top), (end, top - 0.25 * scale)), 1.4 * half, color, Surface.POLE)
        lamp = 0.32 * scale
        glow = (255, 226, 160) if brush.light.lit_windows > 0.1 else (232, 232, 224)
        canvas.disc(
            end, top - 0.2 * scale, lamp, 0.45 * lamp, brush.lit(glow, 1.0, z), Surface.POLE
        )
    elif pole.kind == "light":
        _paint_traffic_light(brush, pole, u, top, scale)
    elif pole.kind == "sign":
        for number in range(pole.plates):
            middle = top + (0.35 + 0.85 * number) * scale
            _paint_plate(brush, pole.shape if number == 0 else "blue", u, middle, scale, z)


def _paint_plate(brush: Brush, shape: str, u: float, v: float, scale: float, z: float) -> None:
    canvas, light = brush.canvas, 0.3 + 0.7 * brush.light.front
    radius = max(0.4 * scale, 1.3 * OVERSAMPLING)
    rim = brush.lit(_SIGN_COLORS[shape], light, z)
    white = brush.lit((238, 238, 234), light, z)
    if shape == "triangle":
        for size, color in ((1.0, rim), (0.58, white)):
            reach = 1.1 * radius * size
            points = ((u - reach, v + 0.75 * reach), (u + reach, v + 0.75 * reach), (u, v - reach))
            canvas.polygon(points, color, Surface.SIGN)
    elif shape == "square":
        diamond = ((u - radius, v), (u, v - radius), (u + radius, v), (u, v + radius))
        canvas.polygon(diamond, rim, Surface.SIGN)
    elif shape == "blue":
        canvas.box(u - radius, v - 0.8 * radius, u + radius, v + 0.8 * radius, rim, Surface.SIGN)
        canvas.box(
            u - 0.55 * radius, v - 0.15 * radius, u + 0.55 * radius, v + 0.15 * radius, white
        )
    else:
        canvas.disc(u, v, radius, radius, rim, Surface.SIGN)
        if shape == "disc":
            canvas.disc(u, v, 0.62 * radius, 0.62 * radius, white)
        else:
            canvas.box(
                u - 0.6 * radius, v - 0.16 * radius, u + 0.6 * radius, v + 0.16 * radius, white
            )


def _paint_traffic_light(brush: Brush, pole: Pole, u: float, top: float, scale: float) -> None:
    canvas, z = brush.canvas, pole.near
    half, height = max(0.2 * scale, OVERSAMPLING), max(1.0 * scale, 3.0 * OVERSAMPLING)
    case = brush.lit((38, 42, 40), brush.light.front, z)
    canvas.box(u - half, top - 0.3 * height, u + half, top + 0.7 * height, case, Surface.SIGN)
    for number, glow in enumerate(((250, 60, 50), (250, 190, 60), (70, 230, 120))):
        color = glow if number == pole.lamp else (70, 66, 60)
        v = top + (-0.3 + 0.18 + 0.32 * number) * height
        canvas.disc(u, v, 0.6 * half, 0.6 * half, brush.lit(color, 1.0, z))


def paint_car(brush: Brush, car: Car) -> None:
    """A car or van in perspective: shadow, wheels, body, cabin with windows, lights."""
    point, canvas = brush.camera.point, brush.canvas
    left, right = car.x - car.width / 2.0, car.x + car.width / 2.0
    near, far = car.near, car.near + car.length
    light = brush.light
    belt = 0.62 * car.height if not car.van else 0.55 * car.height
    # Shares of the length where the cabin begins and ends, from the near end.
    if car.van:
        glass_foot, glass_top, back_top, back_foot = 0.02, 0.05, 0.93, 0.99
        if car.oncoming:
            glass_foot, glass_top = 0.06, 0.2
    elif car.oncoming:
        glass_foot, glass_top, back_top, back_foot = 0.28, 0.44, 0.9, 0.98
    else:
        glass_foot, glass_top, back_top, back_foot = 0.06, 0.16, 0.6, 0.75
    z_foot, z_top = near + glass_foot * car.length, near + glass_top * car.length
    z_back_top, z_back = near + back_top * car.length, near + back_foot * car.length
    brush.shade_ground((left - 0.1, right + 0.1), (near - 0.25, far), 0.35 + 0.5 * light.shadow)
    body = brush.lit(car.color, light.front, near)
    bright = brush.lit(car.color, 1.08 * light.ground, near)
    glass = brush.lit(_GLASS, light.front, near)
    black = brush.lit(_BLACK, 1.0, near)
    detailed = brush.camera.scale(near) * car.width > 14.0

    side = _visible_side(brush, left, right, near, far)
    if side:
        x = left if side < 0 else right
        shine = brush.side_light(-side)
        flank = brush.lit(car.color, shine, near)
        inset = x - side * 0.13
        for share in (0.19, 0.8):
            _paint_wheel(brush, x, near + share * car.length, 0.33, detailed)
        outline = (
            point(x, 0.2, near),
            point(x, 0.2, far),
            point(x, belt * 0.92, far),
            point(x, belt, z_back),
            point(x, belt, z_foot),
            point(x, belt * 0.96, near),
        )
        canvas.polygon(outline, flank, Surface.CAR)
        cabin = (
            point(x, belt, z_foot),
            point(inset, car.height, z_top),
            point(inset, car.height, z_back_top),
            point(x, belt, z_back),
        )
        canvas.polygon(cabin, flank, Surface.CAR)
        if detailed:  # the edge of the doors, in shadow below
            seam = brush.lit(car.color, 0.72 * shine, near)
            brush.quad((x, x), (0.2, 0.36), (near, far), seam)
            door = near + 0.5 * (glass_top + back_top) * car.length
            canvas.line((point(x, 0.36, door), point(x, belt, door)), 1.0, seam)
        for share in (0.19, 0.8):
            _paint_wheel(brush, x, near + share * car.length, 0.31, detailed)
        _paint_side_windows(brush, car, (x, inset), belt, (z_foot, z_top, z_back_top, z_back))
    # Bonnet or boot lid, tail or face, rear window or windscreen, roof.
    below = (near + 0.05, near + 0.05)
    brush.quad((left + 0.08, right - 0.08), (0.1, 0.25), below, black, Surface.CAR)
    for x in (left + 0.03, right - 0.25):
        brush.quad((x, x + 0.22), (0.0, 0.3), below, black, Surface.CAR)
    lid = (
        point(left, belt * 0.96, near),
        point(right, belt * 0.96, near),
        point(right, belt, z_foot),
        point(left, belt, z_foot),
    )
    canvas.polygon(lid, bright, Surface.CAR)
    inner_left, inner_right = left + 0.13, right - 0.13
    roof = (
        point(inner_left, car.height, z_top),
        point(inner_right, car.height, z_top),
        point(inner_right, car.height, z_back_top),
        point(inner_left, car.height, z_back_top),
    )
    canvas.polygon(roof, bright, Surface.CAR)
    cabin_face = (
        point(left, belt, z_foot),
        point(right, belt, z_foot),
        point(inner_right, car.height, z_top),
        point(inner_left, car.height, z_top),
    )
    canvas.polygon(cabin_face, body, Surface.CAR)
    pane = _shrunk(cabin_face, 0.82)
    canvas.polygon(pane, glass)
    if detailed:  # the sky in the glass
        sky = brush.lit(light.sky_low, 0.8, near)
        gleam = (
            _between(pane[0], pane[1], 0.2),
            _between(pane[0], pane[1], 0.45),
            _between(pane[3], pane[2], 0.75),
            _between(pane[3], pane[2], 0.5),
        )
        canvas.shade(gleam, sky, 0.4)
    high = belt * 0.96
    face = (
        point(left + 0.06, 0.2, near),
        point(right - 0.06, 0.2, near),
        point(right, 0.32, near),
        point(right, high - 0.16, near),
        point(right - 0.12, high, near),
        point(left + 0.12, high, near),
        point(left, high - 0.16, near),
        point(left, 0.32, near),
    )
    shoulder = brush.lit(car.color, 0.86 * light.front, near)
    brush.quad((left, right), (0.3, high), (near, near), shoulder, Surface.CAR)
    canvas.polygon(face, body, Surface.CAR)
    _paint_face(brush, car, (left, right), belt, detailed)


def _visible_side(brush: Brush, left: float, right: float, near: float, far: float) -> int:
    """-1 or +1: the flank of a box that the camera sees; 0: neither."""
    u = brush.camera.u
    if u(left, far) < u(left, near) - 0.5:
        return -1
    if u(right, far) > u(right, near) + 0.5:
        return 1
    return 0


def _between(start: Point, end: Point, share: float) -> Point:
    return start[0] + share * (end[0] - start[0]), start[1] + share * (end[1] - start[1])


def _shrunk(points: tuple[Point, ...], share: float) -> list[Point]:
    u = sum(point[0] for point in points) / len(points)
    v = sum(point[1] for point in points) / len(points)
    return [(u + share * (point[0] - u), v + share * (point[1] - v)) for point in points]


def _paint_wheel(brush: Brush, x: float, z: float, radius: float, detailed: bool) -> None:
    """A wheel seen at a slant: an ellipse as wide as the projection of its diameter."""
    camera = brush.camera
    u, v = camera.point(x, radius, z)
    half = max(0.5 * abs(camera.u(x, z + radius) - camera.u(x, z - radius)), 0.7)
    tall = radius * camera.scale(z)
    brush.canvas.disc(u, v, half, tall, brush.lit(_BLACK, 1.0, z), Surface.CAR)
    if detailed:
        rim = brush.lit((150, 152, 156), brush.light.front, z)
        brush.canvas.disc(u, v, 0.5 * half, 0.5 * tall, rim)


def _paint_side_windows(
    brush: Brush,
    car: Car,
    x: tuple[float, float],
    belt: float,
    z: tuple[float, float, float, float],
) -> None:
    point = brush.camera.point
    dark = brush.lit(_GLASS, 0.85 * brush.light.front, car.near)
    low, high = belt + 0.04, car.height - 0.12
    start, end = z[0] + 0.6 * (z[1] - z[0]) + 0.1, z[3] - 0.6 * (z[3] - z[2]) - 0.1
    if car.van and not car.oncoming:
        start = z[0] + 0.62 * (z[3] - z[0])  # a panel van: windows at the front doors only
    elif car.van:
        end = z[0] + 0.42 * (z[3] - z[0])
    middle = 0.5 * (start + end)
    for a, b in ((start, middle - 0.05), (middle + 0.05, end)):
        corners = (
            point(x[0], low, a),
            point(x[1], high, a + (0.08 if a == start else 0.0)),
            point(x[1], high, b - (0.08 if b == end else 0.0)),
            point(x[0], low, b),
        )
        brush.canvas.polygon(corners, dark)


def _paint_face(
    brush: Brush, car: Car, x: tuple[float, float], belt: float, detailed: bool
) -> None:
    """Lights, number plate and bumper at the near end."""
    near, light = car.near, brush.light
    lamps_on = light.lit_windows > 0.1
    if car.oncoming:
        lamp: Color = (255, 248, 214) if lamps_on else (226, 228, 222)
    else:
        lamp = (255, 60, 46) if car.braking or lamps_on else (168, 28, 30)
    glow = 1.0 if lamps_on or car.braking else light.front
    color = brush.lit(lamp, max(glow, 0.7), near)
    height = (0.62 * belt, 0.84 * belt)
    for start in (x[0] + 0.06, x[1] - 0.4):
        brush.quad((start, start + 0.34), height, (near, near), color)
    brush.quad(x, (0.28, 0.42), (near, near), brush.lit(_BLACK, 1.6, near), Surface.CAR)
    if detailed:
        middle = 0.5 * (x[0] + x[1])
        plate = brush.lit((232, 230, 214), light.front, near)
        brush.quad((middle - 0.26, middle + 0.26), (0.46, 0.58), (near, near), plate)
        if car.oncoming:
            grille = brush.lit(_BLACK, 1.3, near)
            brush.quad((middle - 0.4, middle + 0.4), (0.64, 0.78), (near, near), grille)


def paint_person(brush: Brush, person: Person) -> None:
    """Somebody on foot: legs, body, arms, head."""
    z, canvas = person.near, brush.canvas
    base = brush.base(person.x)
    u, foot = brush.camera.point(person.x, base, z)
    size = person.height * brush.camera.scale(z)
    light = 0.5 * (brush.light.front + brush.light.ground)
    skin = brush.lit(person.skin, light, z)
    top = brush.lit(person.top, light, z)
    sleeve = brush.lit(person.top, 0.8 * light, z)
    trousers = brush.lit(person.trousers, light, z)
    brush.shade_spot(person.x, z, 0.4, 0.25, 0.25 + 0.4 * brush.light.shadow)

    def at(dx: float, y: float) -> Point:
        return u + dx * size, foot - y * size

    stride = person.stride
    for sign, cloth in ((-1.0, trousers), (1.0, brush.lit(person.trousers, 0.82 * light, z))):
        toe = sign * stride
        leg = (at(toe - 0.045, 0.0), at(toe + 0.045, 0.0), at(sign * 0.05 + 0.06, 0.5),
               at(sign * 0.05 - 0.06, 0.5))  # fmt: skip
        canvas.polygon(leg, cloth, Surface.PERSON)
        canvas.disc(*at(toe + 0.01, 0.015), 0.055 * size, 0.02 * size, brush.lit(_BLACK, 1.0, z),
                    Surface.PERSON)  # fmt: skip
    width = max(0.05 * size, 1.0)
    for sign in (-1.0, 1.0):
        hand = at(sign * 0.16 + person.swing * sign, 0.46)
        canvas.line((at(sign * 0.13, 0.79), hand), width, sleeve, Surface.PERSON)
        canvas.disc(*hand, 0.03 * size, 0.03 * size, skin, Surface.PERSON)
    body = (at(-0.13, 0.82), at(-0.06, 0.85), at(0.06, 0.85), at(0.13, 0.82), at(0.1, 0.46),
            at(-0.1, 0.46))  # fmt: skip
    canvas.polygon(body, top, Surface.PERSON)
    if person.bag is not None:
        bag = brush.lit(person.bag, 0.9 * light, z)
        canvas.polygon((at(0.08, 0.56), at(0.2, 0.56), at(0.2, 0.4), at(0.08, 0.4)), bag,
                       Surface.PERSON)  # fmt: skip
    canvas.disc(*at(0.0, 0.92), 0.06 * size, 0.075 * size, skin, Surface.PERSON)
    hair = brush.lit(person.hair, light, z)
    canvas.disc(*at(0.0, 0.955), 0.06 * size, 0.045 * size, hair, Surface.PERSON)
