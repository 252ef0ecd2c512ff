"""Decoding of image and label files into uint8 arrays; every failure names the file.

SYNTHIA keeps the class in the first channel of a 16-bit RGB PNG. Pillow has no 16-bit RGB mode:
it unpacks such files to 8 bits by keeping the *high* byte, and every class becomes 0. Its
unpacker for little-endian data, given this big-endian data, keeps the low byte instead, so
`decode_first_channel` decodes with that one; a self-test on two pixels guards the trick, once,
before the first file.
"""

from __future__ import annotations

import functools
import io
import struct
import zlib
from collections.abc import Callable
from pathlib import Path
from typing import IO, Any, TypeVar

import numpy as np
import numpy.typing as npt
from PIL import Image, UnidentifiedImageError

from cscl_fast.data.errors import DataError

Bytes = npt.NDArray[np.uint8]
Result = TypeVar("Result")

IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".bmp", ".tif", ".tiff", ".webp", ".ppm")

# Pillow's unpackers of 16-bit channels: the one that keeps the high byte → the low byte.
_LOW_BYTE = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}


def _reading(path: Path, what: str, read: Callable[[], Result]) -> Result:
    """Run `read` and turn everything that Pillow raises into a DataError with the path."""
    try:
        return read()
    except FileNotFoundError:
        raise DataError(f"{what} {path} is missing; restore the file or leave it out") from None
    except PermissionError:
        raise DataError(f"{what} {path} may not be read; check its permissions") from None
    except UnidentifiedImageError:
        size = path.stat().st_size if path.is_file() else 0
        raise DataError(
            f"{what} {path} is no image file ({size:,} bytes); download or export it again"
        ) from None
    except Image.DecompressionBombError as error:
        raise DataError(f"{what} {path} is too large to decode: {error}") from None
    except (OSError, SyntaxError, ValueError, EOFError, struct.error, zlib.error) as error:
        raise DataError(
            f"{what} {path} cannot be decoded ({error}); download or export it again"
        ) from None


def image_size(path: Path, what: str = "image") -> tuple[int, int]:
    """(H, W) of an image file, from its header.

    Raises:
        DataError: the file is missing or its header cannot be read.
    """

    def read() -> tuple[int, int]:
        with Image.open(path) as image:
            return image.height, image.width

    return _reading(path, what, read)


def decode_image(path: Path) -> Image.Image:
    """A decoded RGB image.

    Raises:
        DataError: the file is missing, truncated or no image.
    """

    def read() -> Image.Image:
        with Image.open(path) as image:
            return image.convert("RGB")

    return _reading(path, "image", read)


def decode_label(path: Path) -> Bytes:  # [H, W]
    """The raw ids of a label file; palette files give the index, not the colour.

    Raises:
        DataError: the file is missing, truncated, has several channels, or has ids above 255.
    """

    def read() -> npt.NDArray[Any]:
        with Image.open(path) as image:
            if image.mode not in ("L", "P", "1", "I", "I;16", "I;16B", "I;16L"):
                raise DataError(
                    f"label {path} is a colour image (mode {image.mode}); labels are "
                    "one-channel files of class indices: export it again as an 8-bit PNG"
                )
            return np.asarray(image)  # mode "1" gives booleans: the ids 0 and 1

    return _eight_bits(path, _reading(path, "label", read))


def decode_first_channel(path: Path) -> Bytes:  # [H, W]
    """The raw ids of a SYNTHIA label file: the first channel, 8 or 16 bits, all of its value.

    Raises:
        DataError: the file is missing, truncated, or has ids above 255.
        RuntimeError: this Pillow loses the low byte of 16-bit files.
    """
    _check_low_byte_survives()
    return _eight_bits(path, _reading(path, "label", lambda: _first_channel(path)))


def _eight_bits(path: Path, ids: npt.NDArray[Any]) -> Bytes:
    if ids.dtype.itemsize > 1 and ids.size and (ids.max() > 255 or ids.min() < 0):
        raise DataError(
            f"label {path} holds id {int(ids.max())}; ids are 0..255: is this an instance map?"
        )
    return ids.astype(np.uint8, copy=False)


def _first_channel(file: Path | IO[bytes]) -> npt.NDArray[Any]:
    with Image.open(file) as image:
        unpacker = _png_unpacker(image)
        if unpacker not in _LOW_BYTE:  # 8 bits a channel, or a single channel of 16
            values = np.asarray(image)
            return values[..., 0] if values.ndim == 3 else values
        high = np.asarray(image)[..., 0]
    if high.any():
        raise ValueError("an id in the first channel is above 255")
    if not isinstance(file, Path):
        file.seek(0)
    with Image.open(file) as image:
        image.tile = [_with_unpacker(tile, _LOW_BYTE[unpacker]) for tile in image.tile]
        return np.asarray(image)[..., 0]


def _png_unpacker(image: Any) -> str:
    """Name of the unpacker that Pillow chose from the header; "" for other formats."""
    arguments = image.tile[0][3] if image.format == "PNG" and image.tile else ""
    return arguments if isinstance(arguments, str) else str(arguments[0])


def _with_unpacker(tile: Any, unpacker: str) -> Any:
    if hasattr(tile, "_replace"):
        return tile._replace(args=unpacker)
    return (*tile[:3], unpacker)


@functools.lru_cache(maxsize=1)
def _check_low_byte_survives() -> None:
    """Decode a 16-bit RGB PNG of two pixels, classes 21 and 3, as a SYNTHIA label."""
    pixels = b"\0" + struct.pack(">6H", 21, 4660, 0, 3, 22136, 0)

    def chunk(name: bytes, data: bytes) -> bytes:
        return (
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
        )

    png = (
        b"\x89PNG\r\n\x1a\n"
        + chunk(b"IHDR", struct.pack(">IIBBBBB", 2, 1, 16, 2, 0, 0, 0))
        + chunk(b"IDAT", zlib.compress(pixels))
        + chunk(b"IEND", b"")
    )
    found = _first_channel(io.BytesIO(png)).tolist()
    if found != [[21, 3]]:
        raise RuntimeError(
            f"this Pillow ({Image.__version__}) decodes SYNTHIA's 16-bit labels [[21, 3]] as "
            f"{found}; install a release between 10.3 and 13"
        )
