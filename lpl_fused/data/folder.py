"""The user's own images: a folder per class."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path

import torch
from torch import Tensor

from .base import DataError, LongTailedData, told, too_few
from .images import read_square

IMAGE_SIZE = 32
TEST_SHARE = 0.2  # of the smallest class, when the tree has no test split of its own
_SUFFIXES = frozenset({".bmp", ".gif", ".jpeg", ".jpg", ".png", ".ppm", ".tif", ".tiff", ".webp"})
_TRAIN_NAME = "train"
_TEST_NAMES = ("test", "val", "valid", "validation")  # the first of them that is there

_Files = Mapping[str, list[Path]]
_Images = dict[str, list[Tensor]]


def load_folder(
    path: str | Path,
    seed: int = 0,
    image_size: int = IMAGE_SIZE,
    test_share: float | None = None,
    skip_broken: bool = False,
) -> LongTailedData:
    """Images in class folders: `(3, image_size, image_size)` uint8, scaled and cropped square.

    Two layouts, with the images anywhere below their class folder:

        PATH/train/CLASS/…, PATH/test/CLASS/…       the split is taken as it is; the test may be
                                                    called test, val, valid or validation (the first
                                                    of them that is there), in any letter case
        PATH/CLASS/…                                a balanced test set is drawn by `seed`: from
                                                    every class as many as `test_share` of the
                                                    smallest class, at least one

    Names that begin with a dot, and `__MACOSX`, are no data. Numbers of 16 bits are scaled by their
    range, floating ones are taken to lie in [0, 1]; what is transparent stands on white.

    Args:
        path: PATH.
        seed: of the test set that is drawn.
        image_size: side of the square.
        test_share: of the smallest class, what is drawn from every class for the test and kept out
            of training, default 0.2; an error where the tree has a test split.
        skip_broken: leaves out images that cannot be read, and classes that then have no training
            or no test image, instead of refusing all; `left_out` of the data says what.

    Raises:
        DataError: PATH is missing or no folder, or holds no class folders; a class has no training
            or no test image, the test split has a class that training lacks, `test_share` is given
            beside a test split, or images cannot be read (the message names all of them).
    """
    root = Path(path)
    if not os.path.isdir(root):  # Path raises at a name that is too long
        there = os.path.exists(root)
        raise DataError(f"{root} is not a folder" if there else f"{root} does not exist")
    faults: list[str] = []
    splits = _splits(root)
    if len(splits) == 2 and test_share is not None:
        raise DataError(
            f"test_share: expected none, since {splits[1]} is the test set, got {test_share:g}"
        )
    found = [_class_files(folder, faults) for folder in splits]
    if not all(any(files.values()) for files in found):
        empty = next(f for f, files in zip(splits, found, strict=True) if not any(files.values()))
        raise DataError(
            f"{empty} holds no class folders with images: expected {empty}/CLASS/IMAGE with one of "
            f"{' '.join(sorted(_SUFFIXES))}"
        )
    for folder, files in zip(splits, found, strict=True):
        if len(files) < 2:
            (only,) = files
            hint = ""
            if only.lower() == _TRAIN_NAME:
                hint = f"; give {folder / only} to have a test set drawn from it"
            raise DataError(f"{folder} holds a single class, {only!r}; at least 2 are needed{hint}")
    read = [_read(files, image_size, faults) for files in found]
    if len(splits) == 2:
        train, test = _shared(splits, read, faults)
    else:
        share = TEST_SHARE if test_share is None else test_share
        train, test = _draw_test(read[0], share, seed, faults)
    if faults and not skip_broken:
        raise DataError(told(root, faults, skipping=False))
    if len(train) < 2:
        raise too_few(root, faults, len(train))
    train_inputs, train_targets = _stacked(train)
    test_inputs, test_targets = _stacked(test)
    return LongTailedData(
        name="folder",
        train_inputs=train_inputs,
        train_targets=train_targets,
        test_inputs=test_inputs,
        test_targets=test_targets,
        class_names=tuple(train),
        left_out=tuple(faults),
    )


def _visible(name: str) -> bool:
    """Whether it is data: no notebook's copies, no ._x.jpg beside x.jpg."""
    return not name.startswith(".") and name != "__MACOSX"


def _folders(root: Path) -> list[Path]:
    try:
        return sorted(p for p in root.iterdir() if _visible(p.name) and p.is_dir())
    except OSError as error:
        raise DataError(f"{root} cannot be listed: {error.strerror}") from error


def _splits(root: Path) -> list[Path]:
    """The folders of classes: those of training and test, or the one to draw a test from."""
    by_name: dict[str, Path] = {}
    for folder in _folders(root):
        name = folder.name.lower()
        if name in (_TRAIN_NAME, *_TEST_NAMES) and name in by_name:
            raise DataError(f"{root} has {by_name[name].name} and {folder.name}: which of them?")
        by_name[name] = folder
    test = next((by_name[name] for name in _TEST_NAMES if name in by_name), None)
    return [by_name[_TRAIN_NAME], test] if _TRAIN_NAME in by_name and test else [root]


def _class_files(root: Path, faults: list[str]) -> dict[str, list[Path]]:
    """Image files of every class folder, by class name in sorted order."""
    files = {folder.name: _image_files(folder, faults) for folder in _folders(root)}
    if any(files.values()):
        for name in [name for name, members in files.items() if not members]:
            faults.append(f"class {name!r} has no images: {root / name} holds none")
    return files


def _image_files(folder: Path, faults: list[str]) -> list[Path]:
    def unlisted(error: OSError) -> None:
        faults.append(f"{error.filename} cannot be listed: {error.strerror}")

    found = []
    for place, folders, names in os.walk(folder, onerror=unlisted):
        folders[:] = filter(_visible, folders)
        found += [
            Path(place, name)
            for name in names
            if _visible(name) and Path(name).suffix.lower() in _SUFFIXES
        ]
    return sorted(found)


def _shared(splits: list[Path], read: list[_Images], faults: list[str]) -> tuple[_Images, _Images]:
    """The classes that have images in both splits."""
    for (here, images), (there, others) in zip(
        zip(splits, read, strict=True), zip(splits[::-1], read[::-1], strict=True), strict=True
    ):
        for name in images:
            if name not in others:
                faults.append(f"class {name!r} has images in {here} but none in {there}")
    both = [name for name, images in read[0].items() if images and read[1].get(name)]
    train, test = ({name: images[name] for name in both} for images in read)
    return train, test


def _draw_test(
    images: _Images, share: float, seed: int, faults: list[str]
) -> tuple[_Images, _Images]:
    """Set the same number of images of every class aside for the test."""
    enough = {name: members for name, members in images.items() if len(members) > 1}
    for name, members in images.items():
        if len(members) == 1:
            faults.append(
                f"class {name!r} has 1 image, so none is left for the test: give it at least 2, "
                "or provide train/ and test/ folders"
            )
    smallest = min(map(len, enough.values()), default=0)
    size = max(1, min(int(share * smallest), smallest - 1))
    generator = torch.Generator().manual_seed(seed)
    train, test = {}, {}
    for name, members in enough.items():
        order = torch.randperm(len(members), generator=generator).tolist()
        test[name] = [members[i] for i in order[:size]]
        train[name] = [members[i] for i in order[size:]]
    return train, test


def _read(files: _Files, image_size: int, faults: list[str]) -> _Images:
    """The images of every class that can be read."""
    images: _Images = {}
    for name, members in files.items():
        images[name] = []
        for file in members:
            try:
                images[name].append(read_square(file, image_size))
            except DataError as error:
                faults.append(str(error))
        if members and not images[name]:
            faults.append(f"class {name!r} has no image that can be read")
    return images


def _stacked(images: _Images) -> tuple[Tensor, Tensor]:
    """All images `(N, 3, image_size, image_size)` and their classes `(N,)`."""
    members: Iterable[Tensor] = (image for of_class in images.values() for image in of_class)
    sizes = torch.tensor([len(of_class) for of_class in images.values()])
    return torch.stack(list(members)), torch.arange(len(images)).repeat_interleave(sizes)
