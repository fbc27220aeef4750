"""The user's own images: a folder per class."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageOps
from torch import Tensor

from .base import DataError, LongTailedData

IMAGE_SIZE = 32
TEST_FRACTION = 0.2  # of the smallest class, when the tree has no test split of its own
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_TEST_NAMES = ("test", "val")


def load_folder(path: str | Path, seed: int = 0, image_size: int = IMAGE_SIZE) -> LongTailedData:
    """Images in class folders: `(3, image_size, image_size)` uint8, scaled and cropped square.

    Two layouts, with the images anywhere below their class folder:

        PATH/train/CLASS/…, PATH/test/CLASS/… (or val)      the split is taken as it is
        PATH/CLASS/…                                        a balanced test set is drawn by `seed`:
                                                            a fifth of the smallest class, at least
                                                            one, from every class

    Raises:
        DataError: PATH is missing or no folder, holds no class folders, a class has no training or
            no test image, the test split has a class that training lacks, or an image cannot be
            read (the message names the file).
    """
    root = Path(path)
    if not root.is_dir():
        raise DataError(f"{root} is not a folder" if root.exists() else f"{root} does not exist")
    test_root = next((root / name for name in _TEST_NAMES if (root / name).is_dir()), None)
    if (root / "train").is_dir() and test_root is not None:
        train_files = _class_files(root / "train")
        test_files = _class_files(test_root)
        _check_same_classes(root / "train", train_files, test_root, test_files)
    else:
        train_files, test_files = _draw_test(_class_files(root), seed)

    train_inputs, train_targets = _read(train_files, image_size)
    test_inputs, test_targets = _read(test_files, image_size)
    return LongTailedData(
        name="folder",
        train_inputs=train_inputs,
        train_targets=train_targets,
        test_inputs=test_inputs,
        test_targets=test_targets,
        class_names=tuple(train_files),
    )


def _class_files(root: Path) -> dict[str, list[Path]]:
    """Image files of every class folder, by class name in sorted order."""
    folders = sorted(p for p in root.iterdir() if p.is_dir() and not p.name.startswith("."))
    files = {
        folder.name: sorted(p for p in folder.rglob("*") if p.suffix.lower() in _SUFFIXES)
        for folder in folders
    }
    if not any(files.values()):
        raise DataError(
            f"{root} holds no class folders with images: expected {root}/CLASS/IMAGE with one of "
            f"{' '.join(sorted(_SUFFIXES))}"
        )
    if len(files) < 2:
        raise DataError(f"{root} holds a single class, {folders[0].name!r}; at least 2 are needed")
    for name, members in files.items():
        if not members:
            raise DataError(f"class {name!r} has no images: {root / name} holds none")
    return files


def _check_same_classes(
    train_root: Path,
    train_files: dict[str, list[Path]],
    test_root: Path,
    test_files: dict[str, list[Path]],
) -> None:
    for present, files, absent, others in (
        (train_root, train_files, test_root, test_files),
        (test_root, test_files, train_root, train_files),
    ):
        missing = sorted(set(files) - set(others))
        if missing:
            raise DataError(
                f"class {missing[0]!r} has images in {present} but none in {absent} "
                f"({len(missing)} such classes)"
            )


def _draw_test(
    files: dict[str, list[Path]], seed: int
) -> tuple[dict[str, list[Path]], dict[str, list[Path]]]:
    """Set the same number of images of every class aside for the test."""
    for name, members in files.items():
        if len(members) < 2:
            raise DataError(
                f"class {name!r} has 1 image, so none is left for the test: give it at least 2, "
                "or provide train/ and test/ folders"
            )
    size = max(1, int(TEST_FRACTION * min(map(len, files.values()))))
    generator = torch.Generator().manual_seed(seed)
    train, test = {}, {}
    for name, members in files.items():
        order = torch.randperm(len(members), generator=generator).tolist()
        test[name] = [members[i] for i in order[:size]]
        train[name] = [members[i] for i in order[size:]]
    return train, test


def _read(files: dict[str, list[Path]], image_size: int) -> tuple[Tensor, Tensor]:
    """All images `(N, 3, image_size, image_size)` uint8 and their classes `(N,)`, in sorted order
    of the class names."""
    ordered: list[tuple[int, Path]] = [
        (cls, file) for cls, name in enumerate(sorted(files)) for file in files[name]
    ]
    images = torch.empty(len(ordered), 3, image_size, image_size, dtype=torch.uint8)
    for i, (_, file) in enumerate(ordered):
        images[i] = _read_image(file, image_size)
    return images, torch.tensor([cls for cls, _ in ordered])


def _read_image(file: Path, image_size: int) -> Tensor:
    try:
        with Image.open(file) as image:
            square = ImageOps.fit(ImageOps.exif_transpose(image).convert("RGB"), (image_size,) * 2)
    except (OSError, SyntaxError, ValueError, Image.DecompressionBombError) as error:
        raise DataError(f"cannot read the image {file}: {error}") from error
    return torch.from_numpy(np.asarray(square).copy()).permute(2, 0, 1)
