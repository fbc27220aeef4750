"""Characters of the DejaVu fonts that matplotlib ships: thousands of classes, no download."""

from __future__ import annotations

import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

from .base import DataError, LongTailedData, long_tail_counts
from .cache import Arrays, cache_folder, cached, expect

POINT_SIZE = 18
CANVAS = 40  # pixels; the widest 18-point character of the twelve faces takes 36
IMAGE_SIZE = 24
LARGEST_CLASS = 200
TEST_PER_CLASS = 10

_CACHE_VERSION = 1
_CLASS_FACE = "DejaVuSans"
_OTHER_FACES = (
    *(f"DejaVuSans-{style}" for style in ("Bold", "Oblique", "BoldOblique")),
    *(f"DejaVuSansMono{style}" for style in ("", "-Bold", "-Oblique", "-BoldOblique")),
    *(f"DejaVuSerif{style}" for style in ("", "-Bold", "-Italic", "-BoldItalic")),
)
_CATEGORIES = "LNPS"  # letters, numbers, punctuation, symbols
_MAX_DEGREES = 12.0
_MAX_SHIFT = 2.0  # pixels
_SCALE_RANGE = (0.85, 1.15)
_NOISE_STD = 0.15  # of full ink
_CHUNK = 8192  # images augmented at a time, so that memory stays small beside the result


@dataclass(frozen=True)
class Sprites:
    """Rendered characters: `images` `(S, CANVAS, CANVAS)` uint8 centred on their ink, `classes`
    `(S,)` int64 in ascending order, `class_names` (one character each)."""

    images: Tensor
    classes: Tensor
    class_names: tuple[str, ...]


def load_glyphs(
    seed: int = 0,
    num_classes: int | None = None,
    imbalance: float = 100.0,
    profile: str = "exp",
    largest: int = LARGEST_CLASS,
) -> LongTailedData:
    """Long-tailed recognition of DejaVu characters, from `(1, 24, 24)` uint8 images.

    A class is a bitmap: characters that DejaVu Sans draws alike at 18 points (Latin A, Greek Α,
    Cyrillic А) are one class. Within a class vary the face (Sans, Sans Mono, Serif; bold, oblique;
    where the face has the character), the rotation (±12°), the scale (0.85–1.15), the shift
    (±2 pixels) and Gaussian noise. Which classes are used and which of them are frequent does not
    depend on `seed`; the images do.

    Args:
        seed: of the images.
        num_classes: a random choice of that many classes; None takes all (about 5,100).
        imbalance: ratio of the largest to the smallest class in training.
        profile: "exp" or "zipf", see `long_tail_counts`.
        largest: training images of the most frequent class.

    Raises:
        DataError: more classes than there are, or a profile that cannot be made.
    """
    sprites = load_sprites()
    available = len(sprites.class_names)
    if num_classes is None:
        num_classes = available
    if num_classes > available:
        raise DataError(f"num_classes: glyphs has {available}, got {num_classes}")
    counts = long_tail_counts(num_classes, largest, imbalance, profile)
    order = torch.randperm(available, generator=torch.Generator().manual_seed(0))[:num_classes]
    names = tuple(sprites.class_names[i] for i in order.tolist())

    generator = torch.Generator().manual_seed(seed)
    train_targets = torch.arange(num_classes).repeat_interleave(counts)
    test_targets = torch.arange(num_classes).repeat_interleave(TEST_PER_CLASS)
    return LongTailedData(
        name="glyphs",
        train_inputs=draw(sprites, order[train_targets], generator),
        train_targets=train_targets,
        test_inputs=draw(sprites, order[test_targets], generator),
        test_targets=test_targets,
        class_names=names,
    )


def draw(sprites: Sprites, classes: Tensor, generator: torch.Generator) -> Tensor:
    """One randomly varied image per entry of `classes` `(N,)`: `(N, 1, 24, 24)` uint8."""
    sprite_counts = torch.bincount(sprites.classes, minlength=len(sprites.class_names))
    first_sprite = sprite_counts.cumsum(0) - sprite_counts
    pick = torch.rand(len(classes), generator=generator) * sprite_counts[classes]
    chosen = first_sprite[classes] + pick.long()
    return torch.cat(
        [_augment(sprites.images[part], generator) for part in chosen.split(_CHUNK)]
        or [torch.empty(0, 1, IMAGE_SIZE, IMAGE_SIZE, dtype=torch.uint8)]
    )


def _augment(sprites: Tensor, generator: torch.Generator) -> Tensor:
    """Random rotation, scale, shift and noise: `(N, CANVAS, CANVAS)` to `(N, 1, 24, 24)`."""
    n = len(sprites)

    def uniform(low: float, high: float) -> Tensor:
        return torch.rand(n, generator=generator) * (high - low) + low

    angle = uniform(-_MAX_DEGREES, _MAX_DEGREES).deg2rad()
    scale = uniform(*_SCALE_RANGE) * _fit(sprites)
    # affine_grid maps output positions to input positions, hence the inverse scale.
    zoom = IMAGE_SIZE / CANVAS / scale
    theta = torch.stack(
        [
            torch.stack(
                [zoom * angle.cos(), -zoom * angle.sin(), uniform(-1, 1) * 2 * _MAX_SHIFT / CANVAS],
                dim=1,
            ),
            torch.stack(
                [zoom * angle.sin(), zoom * angle.cos(), uniform(-1, 1) * 2 * _MAX_SHIFT / CANVAS],
                dim=1,
            ),
        ],
        dim=1,
    )  # (N, 2, 3)
    grid = F.affine_grid(theta, [n, 1, IMAGE_SIZE, IMAGE_SIZE], align_corners=False)
    ink = F.grid_sample(sprites[:, None].float() / 255, grid, align_corners=False)
    ink += _NOISE_STD * torch.randn(ink.shape, generator=generator)
    return (ink.clamp_(0, 1) * 255).round_().to(torch.uint8)


def _fit(sprites: Tensor) -> Tensor:
    """Scale `(N,)` at which a sprite's ink fits the image; 1 for all but the widest characters."""
    columns = (sprites.amax(1) > 0).sum(1)
    rows = (sprites.amax(2) > 0).sum(1)
    extent = torch.maximum(columns, rows).clamp(min=1)
    return (IMAGE_SIZE / extent.float()).clamp(max=1.0)


def cache_file() -> Path:
    """Where the rendered characters are kept: a versioned name under `$XDG_CACHE_HOME`."""
    import matplotlib
    from matplotlib import ft2font

    # Another matplotlib may ship other fonts, and another FreeType may draw them differently.
    key = f"v{_CACHE_VERSION}-mpl{matplotlib.__version__}-ft{ft2font.__freetype_version__}"
    return cache_folder() / f"glyphs-{key}-{POINT_SIZE}pt.npz"


def load_sprites() -> Sprites:
    """The rendered characters, from the cache or, the first time, from the fonts (seconds)."""
    return _sprites(cached(cache_file(), ("images", "classes", "codes"), _rendered, _sprites))


def _sprites(arrays: Arrays) -> Sprites:
    """Of the arrays that `_rendered` gives; ValueError where they cannot be these."""
    expect(arrays, images=(np.uint8, 3), classes=(np.int64, 1), codes=(np.integer, 1))
    images, classes, codes = (arrays[name] for name in ("images", "classes", "codes"))
    if images.shape[1:] != (CANVAS, CANVAS) or len(images) != len(classes):
        raise ValueError(f"images has shape {images.shape}, classes {classes.shape}")
    if len(codes) == 0 or not np.array_equal(np.unique(classes), np.arange(len(codes))):
        raise ValueError(f"classes are not 0 to {len(codes) - 1}")
    if (np.diff(classes) < 0).any():
        raise ValueError("classes do not ascend")
    return Sprites(
        torch.from_numpy(images), torch.from_numpy(classes), tuple(map(chr, codes.tolist()))
    )


def _rendered() -> Arrays:
    sprites = render_sprites()
    return {
        "images": sprites.images.numpy(),
        "classes": sprites.classes.numpy(),
        "codes": np.array([ord(name) for name in sprites.class_names]),
    }


def render_sprites() -> Sprites:
    """Draw every character in every face; equal bitmaps of DejaVu Sans become one class."""
    class_of_code: dict[int, int] = {}
    names: list[str] = []
    owner: dict[bytes, int] = {}  # bitmap → class
    for code, image in _render_face(_CLASS_FACE, None):
        bitmap = image.tobytes()
        if bitmap not in owner:
            owner[bitmap] = len(names)
            names.append(chr(code))
        class_of_code[code] = owner[bitmap]

    others: dict[bytes, set[int]] = {}
    for face in _OTHER_FACES:
        for code, image in _render_face(face, class_of_code):
            others.setdefault(image.tobytes(), set()).add(class_of_code[code])
    # A bitmap that two classes share in another face would carry two labels: it is left out.
    for bitmap, classes in others.items():
        if bitmap not in owner and len(classes) == 1:
            owner[bitmap] = classes.pop()

    ordered = sorted(owner.items(), key=lambda item: item[1])
    images = np.frombuffer(b"".join(bitmap for bitmap, _ in ordered), dtype=np.uint8)
    return Sprites(
        torch.from_numpy(images.reshape(-1, CANVAS, CANVAS).copy()),
        torch.tensor([cls for _, cls in ordered]),
        tuple(names),
    )


def _render_face(
    face: str, codes: dict[int, int] | None
) -> Iterator[tuple[int, np.ndarray[tuple[int, int], np.dtype[np.uint8]]]]:
    """Yield `(code point, canvas)` for the wanted characters that a face has, in code order."""
    import matplotlib
    from matplotlib.ft2font import FT2Font

    font = FT2Font(str(Path(matplotlib.get_data_path(), "fonts", "ttf", f"{face}.ttf")))
    font.set_size(POINT_SIZE, 72)
    for code in sorted(map(int, font.get_charmap())):
        wanted = (
            unicodedata.category(chr(code))[0] in _CATEGORIES if codes is None else code in codes
        )
        if not wanted:
            continue
        font.clear()
        font.set_text(chr(code))
        font.draw_glyphs_to_bitmap(antialiased=True)
        yield code, _centred(np.asarray(font.get_image()))


def _centred(
    bitmap: np.ndarray[tuple[int, int], np.dtype[np.uint8]],
) -> np.ndarray[tuple[int, int], np.dtype[np.uint8]]:
    """The bitmap's ink in the middle of an empty canvas."""
    canvas = np.zeros((CANVAS, CANVAS), dtype=np.uint8)
    rows, columns = np.flatnonzero(bitmap.any(1)), np.flatnonzero(bitmap.any(0))
    if len(rows):
        ink = bitmap[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
        top, left = ((CANVAS - size) // 2 for size in ink.shape)
        canvas[top : top + ink.shape[0], left : left + ink.shape[1]] = ink
    return canvas
