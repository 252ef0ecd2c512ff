"""What makes a drawn street look photographed: textures, lens, sensor and file."""

from __future__ import annotations

import io

import numpy as np
from PIL import Image, ImageFilter

from .canvas import OVERSAMPLING, Camera
from .surfaces import Surface


def _table(values: dict[Surface, float]) -> np.ndarray:
    return np.array([values.get(surface, 0.0) for surface in Surface], dtype=np.float32)


# Relative amplitude of each texture, by surface.
_GRAIN = _table(
    {
        Surface.SKY: 0.0022,
        Surface.ROAD: 0.017,
        Surface.MARKING: 0.017,
        Surface.PAVEMENT: 0.02,
        Surface.KERB: 0.017,
        Surface.PLASTER: 0.017,
        Surface.BRICK: 0.034,
        Surface.CONCRETE: 0.02,
        Surface.ROOF: 0.045,
        Surface.WINDOW: 0.034,
        Surface.FENCE: 0.05,
        Surface.POLE: 0.028,
        Surface.SIGN: 0.017,
        Surface.FOLIAGE: 0.09,
        Surface.GRASS: 0.056,
        Surface.TRUNK: 0.067,
        Surface.PERSON: 0.039,
        Surface.CAR: 0.017,
    }
)
_STAINS = _table(
    {
        Surface.SKY: 0.06,
        Surface.ROAD: 0.055,
        Surface.MARKING: 0.066,
        Surface.PAVEMENT: 0.077,
        Surface.KERB: 0.055,
        Surface.PLASTER: 0.088,
        Surface.BRICK: 0.077,
        Surface.CONCRETE: 0.099,
        Surface.ROOF: 0.088,
        Surface.WINDOW: 0.17,
        Surface.FENCE: 0.083,
        Surface.POLE: 0.044,
        Surface.FOLIAGE: 0.17,
        Surface.GRASS: 0.12,
        Surface.CAR: 0.099,
        Surface.PERSON: 0.055,
    }
)
_ASPHALT = _table(
    {Surface.ROAD: 0.0675, Surface.MARKING: 0.0675, Surface.PAVEMENT: 0.0375, Surface.GRASS: 0.112}
)
_LEAVES = _table({Surface.FOLIAGE: 0.24, Surface.GRASS: 0.096})
_SLABS = _table({Surface.PAVEMENT: 0.2})
_COURSES = _table({Surface.BRICK: 0.168, Surface.CONCRETE: 0.035})


def photograph(
    image: np.ndarray, surfaces: np.ndarray, camera: Camera, wall: float, rng: np.random.Generator
) -> np.ndarray:
    """A photograph of a painted street.

    Args:
        image: the painted picture, [H, W, 3] uint8.
        surfaces: surface codes, [H, W] uint8.
        camera: the camera of the oversampled canvas.
        wall: metres from the camera to the walls beside the street.
        rng: everything random comes from here.

    Returns:
        The photograph, [H, W, 3] uint8.
    """
    height, width = surfaces.shape
    texture = 1.0 + _texture(surfaces, camera, wall, rng)
    exposure = _exposure(height, width, rng)
    gain = 1.0 + 0.07 * (2.0 * rng.random(3, dtype=np.float32) - 1.0)
    # The camera meters the scene, so that dusk is dark but never black.
    metered = np.float32((104.0 / max(float(image.mean()), 20.0)) ** 0.75)
    picture = image * (metered * texture * exposure)[:, :, None]
    picture *= gain
    picture = _tone(picture, rng)
    unit = height / 128.0
    blurred = _lens(Image.fromarray(picture.astype(np.uint8)), unit, rng)
    return _sensor(np.asarray(blurred), rng)


def _noise(height: int, width: int, cells: int, rng: np.random.Generator) -> np.ndarray:
    """Smooth noise in [-1, 1], about `cells` hills across the width. [H, W] float32."""
    rows = max(2, round(cells * height / width))
    coarse = rng.integers(0, 256, (rows + 1, cells + 1), dtype=np.uint8)
    smooth = Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC)
    return np.asarray(smooth, dtype=np.float32) / 127.5 - 1.0


def _texture(
    surfaces: np.ndarray, camera: Camera, wall: float, rng: np.random.Generator
) -> np.ndarray:
    height, width = surfaces.shape
    texture = _noise(height, width, 14, rng) + 0.5 * _noise(height, width, 40, rng)
    texture *= _STAINS[surfaces]
    texture += _noise(height, width, 80, rng) * _LEAVES[surfaces]
    grain = rng.integers(0, 256, (height, width), dtype=np.uint8).astype(np.float32)
    grain = (grain - 127.5) / 74.0  # unit deviation
    texture += grain * _GRAIN[surfaces]

    # Textures that lie in the street's planes: the pixel's place on the ground, on the walls.
    focal = camera.focal / OVERSAMPLING
    rows = np.arange(height, dtype=np.float32)[:, None] - camera.horizon / OVERSAMPLING
    columns = np.arange(width, dtype=np.float32)[None, :] - camera.center / OVERSAMPLING
    below = np.maximum(rows, 1.0)
    depth = focal * camera.height / below  # [H, 1] metres
    across = columns * depth / focal  # [H, W] metres
    tile = rng.integers(0, 256, (64, 64), dtype=np.uint8).astype(np.float32) / 127.5 - 1.0
    along = (depth * 3.0).astype(np.int32) & 63
    rough = tile[np.broadcast_to(along, (height, width)), (across * 6.0).astype(np.int32) & 63]
    near = np.minimum(1.0, 14.0 / depth)  # far away the texture averages out
    texture += rough * near * _ASPHALT[surfaces]
    joints = ((across % 1.2) < 0.12) | ((depth % 1.2) < 0.1)
    texture -= joints * np.minimum(1.0, 9.0 / depth) * _SLABS[surfaces]

    wall_depth = focal * wall / np.maximum(np.abs(columns), 1.0)  # [1, W] metres
    wall_height = camera.height - rows * wall_depth / focal  # [H, W] metres
    sharp = np.clip(12.0 / wall_depth, 0.0, 1.0)
    course = (wall_height * 2.2) % 1.0 < 0.28
    brick = tile[
        (wall_height * 2.2).astype(np.int32) & 63, (wall_depth * 1.6).astype(np.int32) & 63
    ]
    texture += (0.5 * brick - course) * sharp * _COURSES[surfaces]
    return texture


def _exposure(height: int, width: int, rng: np.random.Generator) -> np.ndarray:
    """Brightness over the picture: exposure and vignetting. [H, W] float32."""
    rows = np.linspace(-1.0, 1.0, height, dtype=np.float32)[:, None]
    columns = np.linspace(-1.0, 1.0, width, dtype=np.float32)[None, :]
    fall = rng.uniform(0.04, 0.22)
    return np.float32(rng.uniform(0.85, 1.15)) * (1.0 - np.float32(fall) * (rows**2 + columns**2))


def _tone(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Contrast, saturation and a veil of stray light; in place, clipped to [0, 255]."""
    gray = picture.mean(axis=2, keepdims=True)
    saturation = np.float32(rng.uniform(0.75, 1.05))
    picture *= saturation
    picture += (1.0 - saturation) * gray
    contrast = np.float32(rng.uniform(0.85, 1.15))
    picture *= contrast
    picture += np.float32(rng.uniform(0.0, 18.0)) + (1.0 - contrast) * 90.0
    return np.clip(picture, 0.0, 255.0, out=picture)


def _lens(picture: Image.Image, unit: float, rng: np.random.Generator) -> Image.Image:
    """Defocus, and for some pictures the motion of the car; `unit`: pixels per 1/128 height."""
    radius = unit * rng.uniform(0.2, 0.55)
    picture = picture.filter(ImageFilter.GaussianBlur(radius))
    if rng.random() < 0.15:
        span = max(2, round(unit * rng.uniform(1.2, 2.4)))
        picture = picture.filter(ImageFilter.BoxBlur((span / 2.0, 0.0)))
    return picture


def _sensor(picture: np.ndarray, rng: np.random.Generator) -> np.ndarray:
    """Noise of the sensor and the artefacts of a JPEG file."""
    height, width, _ = picture.shape
    amplitude = rng.uniform(1.0, 3.5)
    noise = rng.integers(0, 256, (height, width, 3), dtype=np.uint8).astype(np.float32)
    noise -= 127.5
    noise *= np.float32(amplitude / 74.0)
    noise += picture
    clean = Image.fromarray(np.clip(noise, 0.0, 255.0, out=noise).astype(np.uint8))
    file = io.BytesIO()
    clean.save(file, "JPEG", quality=int(rng.integers(60, 93)))
    return np.array(Image.open(file))
