"""Image files to tensors."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .base import DataError

# Random parts of images as usual since GoogLeNet (Szegedy et al. 2015): of this share of the area,
# of this width by height.
_AREA = (0.08, 1.0)
_ASPECT = (3 / 4, 4 / 3)
_CENTRE = 7 / 8  # of the shorter side: 224 of 256 pixels

Box = tuple[float, float, float, float]  # left, upper, right, lower


def read_square(file: str | Path, size: int) -> Tensor:
    """The image scaled and cropped to a square: (3, size, size) uint8.

    Raises:
        DataError: it cannot be read.
    """
    try:
        return _pixels(ImageOps.fit(_colours(file), (size, size)))
    except Exception as error:  # there is no end to what decoders make of a damaged file
        raise unreadable(file, error) from error


def read_crop(file: str | Path, size: int, draws: Sequence[float] | None = None) -> Tensor:
    """The centre of an image, or the part that `draws` say, as (3, size, size) uint8.

    Raises:
        DataError: it cannot be read.
    """
    try:
        image = _colours(file)
        if draws is None:
            box, mirrored = _centre(*image.size), False
        else:
            box, mirrored = random_box(*image.size, draws)
        image = image.resize((size, size), Image.Resampling.BILINEAR, box)
        return _pixels(ImageOps.mirror(image) if mirrored else image)
    except Exception as error:
        raise unreadable(file, error) from error


def fault(file: str | Path, *, whole: bool) -> str | None:
    """What is wrong with an image, or None: by its first bytes, or by all of it."""
    try:
        if whole:
            _colours(file)
        else:
            with Image.open(file):
                pass
        return None
    except Exception as error:
        return str(unreadable(file, error))


def unreadable(file: str | Path, error: Exception) -> DataError:
    return DataError(f"cannot read the image {file}: {error}")


def random_box(width: int, height: int, draws: Sequence[float]) -> tuple[Box, bool]:
    """A part of an image, and whether it is mirrored, from five numbers in [0, 1).

    They say area, width by height, place across and down, and the mirror. A side that is longer
    than the image's is cut to it.
    """
    area, aspect, across, down, mirror = draws
    pixels = width * height * (_AREA[0] + area * (_AREA[1] - _AREA[0]))
    low, high = map(math.log, _ASPECT)
    ratio = math.exp(low + aspect * (high - low))
    wide, tall = min(width, math.sqrt(pixels * ratio)), min(height, math.sqrt(pixels / ratio))
    left, upper = across * (width - wide), down * (height - tall)
    # a sum that rounding puts beyond the image would be refused
    return (left, upper, min(left + wide, width), min(upper + tall, height)), mirror < 0.5


def _centre(width: int, height: int) -> Box:
    side = _CENTRE * min(width, height)
    left, upper = (width - side) / 2, (height - side) / 2
    return left, upper, left + side, upper + side


def _pixels(image: Image.Image) -> Tensor:
    return torch.from_numpy(np.asarray(image).copy()).permute(2, 0, 1)


def _colours(file: str | Path) -> Image.Image:
    """Upright, red, green and blue of 8 bits; what is transparent stands on white."""
    with Image.open(file) as opened:
        image = ImageOps.exif_transpose(opened)
        image = _eight_bits(image, opened.format)
        if image.has_transparency_data:
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image.convert("RGBA"))
        return image.convert("RGB")


def _eight_bits(image: Image.Image, kind: str | None) -> Image.Image:
    """Grey of more than 8 bits, which Pillow would clip at 255; others as they are."""
    if image.mode.startswith("I;16") or (image.mode == "I" and kind in ("PNG", "PPM")):
        white = 65535  # older Pillows call that of 16-bit PNG "I"
    elif image.mode == "F":
        white = 1
    elif image.mode == "I":
        raise ValueError("whole numbers of 32 bits have no range; save it with 8 or 16 bits")
    else:
        return image
    pixels = np.asarray(image).astype(np.float64)
    low, high = pixels.min(), pixels.max()
    if not 0 <= low <= high <= white:  # nan, too
        raise ValueError(f"expected numbers in [0, {white}], got {low:g} to {high:g}")
    return Image.fromarray((pixels * (255 / white)).round().astype(np.uint8))
