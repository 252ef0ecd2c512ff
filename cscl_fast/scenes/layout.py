"""Where things stand on a street: layouts drawn at random from the habits of a look."""

from __future__ import annotations

from random import Random

from .looks import Look, vary
from .things import (
    FAR,
    NEAR,
    Barrier,
    Building,
    Car,
    Layout,
    Person,
    Pole,
    Skyline,
    Street,
    Tree,
)


def plan_scene(rng: Random, look: Look) -> Layout:
    """Draw a layout at random."""
    street = _plan_street(rng, look)
    layout = Layout(
        camera_height=rng.uniform(*look.camera_height),
        focal=rng.uniform(*look.focal),
        horizon=rng.uniform(*look.horizon),
        yaw=rng.uniform(-look.yaw, look.yaw),
        bend=rng.uniform(-look.bend, look.bend),
        light=rng.choice(look.lights),
        street=street,
        clouds=[
            (rng.random(), rng.uniform(0.05, 0.85), rng.uniform(0.03, 0.09))
            for _ in range(rng.randint(2, 6))
        ],
        skyline=_plan_skyline(rng, look),
    )
    for side in (-1, 1):
        _plan_frontage(rng, look, street, side, layout)
        _plan_kerb(rng, look, street, side, layout)
    _plan_traffic(rng, look, street, layout)
    _plan_people(rng, look, street, layout)
    layout.background.sort(key=lambda thing: -thing.near)
    layout.foreground.sort(key=lambda thing: -thing.near)
    return layout


def _plan_skyline(rng: Random, look: Look) -> list[Skyline]:
    blocks = []
    for x in range(-84, 85, 12):
        wood = rng.random() < 0.5
        color = rng.choice(look.foliage) if wood else rng.choice(look.walls)[0]
        blocks.append(
            Skyline(
                x=x + rng.uniform(-3.0, 3.0),
                width=rng.uniform(11.0, 17.0),
                height=rng.uniform(6.0, 10.0) if wood else rng.uniform(7.0, 13.0),
                wood=wood,
                color=vary(rng, color, look.color_spread),
                roof=rng.choice(look.roofs),
            )
        )
    return blocks


def _plan_street(rng: Random, look: Look) -> Street:
    lane = rng.uniform(*look.lane)
    lanes = 3 if rng.random() < look.extra_lane else 2
    # The camera drives in the rightmost lane; a strip for parked cars lies beyond it.
    strip = 2.1
    right = lane * rng.uniform(0.45, 0.55) + strip
    left = right - lanes * lane - 2 * strip
    widths = [
        0.0 if rng.random() < look.missing_pavement else rng.uniform(*look.pavement)
        for _ in range(2)
    ]
    patches = []
    while rng.random() < look.clutter:
        x, z = rng.uniform(left, right - 1.0), rng.uniform(4.0, 25.0)
        patches.append((x, x + rng.uniform(0.5, 2.0), z, z + rng.uniform(1.0, 6.0)))
    return Street(
        left=left,
        right=right,
        lanes=lanes,
        pavement_left=widths[0],
        pavement_right=widths[1],
        road=vary(rng, rng.choice(look.roads), look.color_spread),
        pavement=vary(rng, rng.choice(look.pavements), look.color_spread),
        verge=vary(rng, rng.choice(look.grass), look.color_spread),
        crossing=rng.uniform(9.0, 30.0) if rng.random() < 0.3 else None,
        worn=rng.uniform(0.2, 0.9) * (look.clutter > 0.0),
        patches=patches,
    )


def _plan_frontage(rng: Random, look: Look, street: Street, side: int, layout: Layout) -> None:
    """Buildings, and gardens with trees, hedges and fences between them."""
    wall = street.wall(side)
    z = rng.uniform(-6.0, 2.0)
    after_gap = False
    while z < FAR - 6.0:
        if rng.random() < look.building_gap:
            length = rng.uniform(5.0, 12.0)
            _plan_garden(rng, look, side, wall, z, z + length, layout)
            after_gap = True
        else:
            length = rng.uniform(8.0, 15.0)
            setback = rng.uniform(0.0, 0.5) if look.clutter else 0.0
            near, far = max(z, NEAR), min(z + length, FAR)
            if far > NEAR + 1.0:
                layout.background.append(
                    _plan_building(rng, look, side, wall + side * setback, near, far, after_gap)
                )
            after_gap = False
        z += length


def _plan_building(
    rng: Random, look: Look, side: int, wall: float, near: float, far: float, open_front: bool
) -> Building:
    spread = look.color_spread
    color, surface = rng.choice(look.walls)
    color = vary(rng, color, 1.5 * spread)
    awning = vary(rng, rng.choice(look.tops), spread) if rng.random() < 0.3 else None
    return Building(
        side=side,
        wall=wall,
        near=near,
        far=far,
        depth=rng.uniform(8.0, 13.0),
        storeys=rng.randint(*look.storeys),
        storey=rng.uniform(2.8, 3.3),
        ground_storey=rng.uniform(3.2, 3.9),
        wall_color=color,
        surface=surface,
        roof=vary(rng, rng.choice(look.roofs), spread),
        roof_height=rng.uniform(1.8, 3.2) if rng.random() < 0.6 else 0.0,
        trim=vary(rng, rng.choice(look.frames), spread),
        glass=vary(rng, rng.choice(look.glass), 2.0 * spread),
        frame=vary(rng, rng.choice(look.frames), spread),
        door=vary(rng, rng.choice(look.doors), spread),
        awning=awning,
        bay=rng.uniform(2.2, 3.4),
        window=rng.uniform(0.4, 0.6),
        blinds=rng.uniform(0.0, 0.5) * (look.clutter > 0.0),
        open_front=open_front,
        seed=rng.getrandbits(30),
    )


def _plan_garden(
    rng: Random, look: Look, side: int, wall: float, near: float, far: float, layout: Layout
) -> None:
    for _ in range(rng.randint(1, 3)):
        z = rng.uniform(near, far)
        if z > NEAR + 4.0:
            x = wall + side * rng.uniform(2.5, 7.0)
            layout.background.append(plan_tree(rng, look, x, z, 1.25))
    near, far = max(near, NEAR + 1.0), min(far, FAR)
    if far <= near + 1.0:
        return
    if rng.random() < look.fence:
        kind = rng.choice(("planks", "rails"))
        color = vary(rng, rng.choice(look.fences), look.color_spread)
        layout.background.append(Barrier(wall, near, far, rng.uniform(1.2, 1.9), color, kind))
    else:
        color = vary(rng, rng.choice(look.foliage), look.color_spread)
        layout.background.append(Barrier(wall, near, far, rng.uniform(1.0, 1.8), color, "hedge"))


def plan_tree(rng: Random, look: Look, x: float, z: float, size: float = 1.0) -> Tree:
    """A tree of the look's size, times `size`, at (x, z)."""
    crown = rng.uniform(*look.crown) * size
    discs = [(0.0, 0.0, 0.8)]
    for _ in range(6 if look.clutter == 0.0 else 12):
        discs.append((rng.uniform(-0.75, 0.75), rng.uniform(-0.6, 0.7), rng.uniform(0.3, 0.55)))
    return Tree(
        x=x,
        near=z,
        trunk=rng.uniform(1.9, 2.7) * (0.6 + 0.4 * size),
        crown=crown,
        color=vary(rng, rng.choice(look.foliage), look.color_spread),
        bark=vary(rng, rng.choice(look.trunks), look.color_spread),
        discs=discs,
        conifer=rng.random() < 0.15,
    )


def _plan_kerb(rng: Random, look: Look, street: Street, side: int, layout: Layout) -> None:
    """What stands along the kerb: trees, poles, railings and parked cars."""
    width = street.pavement_left if side < 0 else street.pavement_right
    edge = street.left if side < 0 else street.right
    line = edge + side * min(0.45, 0.4 * max(width, 0.9))
    z = rng.uniform(6.0, 12.0)
    while z < FAR - 25.0:
        if rng.random() < look.tree:
            x = line + side * rng.uniform(0.1, 0.4)
            layout.foreground.append(plan_tree(rng, look, x, z))
        z += rng.uniform(*look.tree_gap)
    z = rng.uniform(6.0, 14.0)
    while z < 60.0:
        layout.foreground.append(_plan_pole(rng, look, side, line, z))
        z += rng.uniform(*look.pole_gap)
    if width > 0.0 and rng.random() < 0.5 * look.fence:
        color = vary(rng, rng.choice(look.fences), look.color_spread)
        z = rng.uniform(6.0, 24.0)
        for _ in range(rng.randint(2, 5)):
            layout.foreground.append(Barrier(line, z, z + 2.4, 1.0, color, "rails"))
            z += 2.4
    z = rng.uniform(5.0, 11.0)
    while z < 60.0:
        if rng.random() < look.parked:
            layout.foreground.append(
                _plan_car(rng, look, edge - side * rng.uniform(1.0, 1.2), z, side < 0, False)
            )
        z += rng.uniform(5.4, 7.0)


def _plan_pole(rng: Random, look: Look, side: int, line: float, z: float) -> Pole:
    color = vary(rng, rng.choice(look.poles), look.color_spread)
    if rng.random() < look.sign:
        if rng.random() < 0.35:
            return Pole(line, z, 3.1, 0.09, color, "light", lamp=rng.randrange(3))
        shape = rng.choice(("disc", "triangle", "square", "blue", "stop"))
        return Pole(
            line, z, rng.uniform(2.7, 3.2), 0.075, color, "sign", shape=shape,
            plates=1 + (rng.random() < 0.3),
        )  # fmt: skip
    kind = "lamp" if rng.random() < 0.75 else "plain"
    return Pole(
        line, z, rng.uniform(5.5, 7.5), 0.13, color, kind, arm=-side * rng.uniform(1.2, 2.2)
    )


def _plan_car(rng: Random, look: Look, x: float, z: float, oncoming: bool, drives: bool) -> Car:
    van = rng.random() < (0.18 if look.clutter else 0.1)
    return Car(
        x=x,
        near=z,
        length=rng.uniform(4.6, 5.4) if van else rng.uniform(3.8, 4.5),
        width=rng.uniform(1.7, 1.85) + 0.2 * van,
        height=rng.uniform(2.0, 2.4) if van else rng.uniform(1.4, 1.6),
        color=vary(rng, rng.choice(look.cars), look.color_spread),
        oncoming=oncoming,
        van=van,
        braking=drives and rng.random() < 0.4,
    )


def _plan_traffic(rng: Random, look: Look, street: Street, layout: Layout) -> None:
    for _ in range(rng.randint(*look.traffic)):
        if rng.random() < 0.5:
            x, oncoming = rng.uniform(-0.3, 0.3), False
        else:
            x, oncoming = street.left + 2.1 + rng.uniform(1.5, 1.9), True
        z = rng.uniform(9.0, 55.0)
        cars = [thing for thing in layout.foreground if isinstance(thing, Car)]
        if all(abs(car.x - x) > 1.9 or abs(car.near - z) > 6.5 for car in cars):
            layout.foreground.append(_plan_car(rng, look, x, z, oncoming, True))


def _plan_people(rng: Random, look: Look, street: Street, layout: Layout) -> None:
    count = rng.randint(*look.people)
    while count > 0:
        side = rng.choice((-1, 1))
        wall = street.wall(side)
        edge = street.left if side < 0 else street.right
        near = rng.uniform(5.0, 30.0)
        x = rng.uniform(edge + 0.3 * side, wall - 0.3 * side)
        if street.crossing is not None and rng.random() < 0.4:
            x, near = (
                rng.uniform(street.left, street.right),
                street.crossing + rng.uniform(0.5, 2.5),
            )
        elif look.clutter and rng.random() < 0.12:
            x = rng.uniform(street.left, street.right)
        for _ in range(min(count, 1 + (rng.random() < 0.3) + (rng.random() < 0.4 * look.clutter))):
            layout.foreground.append(_plan_person(rng, look, x, near))
            x += rng.uniform(0.45, 0.7) * rng.choice((-1, 1))
            near += rng.uniform(-0.6, 0.6)
            count -= 1


def _plan_person(rng: Random, look: Look, x: float, z: float) -> Person:
    spread = look.color_spread
    return Person(
        x=x,
        near=max(z, 4.0),
        height=rng.uniform(1.6, 1.88) * (0.7 if rng.random() < 0.08 else 1.0),
        skin=vary(rng, rng.choice(look.skins), spread),
        top=vary(rng, rng.choice(look.tops), 2.0 * spread),
        trousers=vary(rng, rng.choice(look.trousers), 2.0 * spread),
        hair=vary(rng, rng.choice(((54, 38, 28), (30, 26, 24), (150, 112, 66))), spread),
        stride=rng.uniform(0.02, 0.16),
        swing=rng.uniform(-0.08, 0.08),
        bag=vary(rng, rng.choice(look.tops), spread) if rng.random() < 0.25 else None,
    )
