"""iNaturalist 2018: the competition's JSON, or the folders of torchvision's `INaturalist`."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch

from ..arguments import shown
from .base import DataError, LongTailedData
from .listed import Entry, from_lists

IMAGE_SIZE = 224
TRAIN, TEST = "train2018.json", "val2018.json"
FOLDER = "train_val2018"  # of the archive; torchvision renames it
TORCHVISION = "2018"
TEST_PER_CLASS = 3  # as in val2018.json


class Annotations(NamedTuple):
    """A file of annotations.

    Args:
        entries: images with their categories.
        categories: names by id.
    """

    entries: list[Entry]
    categories: dict[int, str]


def load_inat(
    path: str | Path,
    seed: int = 0,
    image_size: int = IMAGE_SIZE,
    skip_broken: bool = False,
) -> LongTailedData:
    """iNaturalist 2018: `ImageFiles`, read as they are needed.

    Two layouts:

        PATH/train2018.json, PATH/val2018.json      the split of the competition, 437,513 and 24,426
                                                    images of 8,142 classes, below
                                                    PATH/train_val2018/ or, where torchvision
                                                    unpacked them, PATH/2018/
        PATH/2018/SUPERCATEGORY/NUMBER/…            of torchvision's `INaturalist(PATH, "2018")`,
                                                    without these files: there is no split, so
                                                    `seed` draws three images of every class for
                                                    the test

    Args:
        path: PATH.
        seed: of the draw in the second layout.
        image_size: side of the square that is the centre of an image.
        skip_broken: leaves out wrong annotations and images that cannot be read, which it finds by
            reading all; otherwise the first bytes of every image are looked at.

    Raises:
        DataError: files are missing or no such annotations, and everything that `skip_broken`
            leaves out (the message names all of it).
    """
    root = Path(path)
    if not os.path.isdir(root):
        exists = os.path.exists(root)
        raise DataError(f"{root} is not a folder" if exists else f"{root} does not exist")
    faults: list[str] = []
    missing = [file for file in (TRAIN, TEST) if not (root / file).is_file()]
    if not missing:
        parts = [_annotations(root / file, faults) for file in (TRAIN, TEST)]
        names = parts[0].categories
        if parts[1].categories != names:
            raise DataError(f"{root}: {TRAIN} and {TEST} have different categories")
        train, test = (_placed(root, part.entries) for part in parts)
    elif len(missing) == 1:
        raise DataError(f"{root} has no {missing[0]}")
    elif (root / TORCHVISION).is_dir():
        names, train, test = _folders(root, seed, faults)
    else:
        raise DataError(
            f"{root} holds neither {TRAIN} and {TEST} nor torchvision's folder {TORCHVISION}"
        )
    if not train or not test:
        raise DataError(f"{root} has no images for training and test")
    return from_lists(
        "inat2018",
        root,
        train,
        test,
        names,
        image_size=image_size,
        skip_broken=skip_broken,
        faults=faults,
    )


def _annotations(file: Path, faults: list[str]) -> Annotations:
    try:
        content = json.loads(file.read_bytes())
    except (OSError, ValueError, RecursionError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    images = dict(_pairs(content, file, "images", "id", int, "file_name", str))
    categories = dict(_pairs(content, file, "categories", "id", int, "name", str))
    of_image: dict[int, int] = {}
    count = 0
    for image, category in _pairs(
        content, file, "annotations", "image_id", int, "category_id", int
    ):
        count += 1
        if image not in images:
            faults.append(f"{file.name}: an annotation is of image {image}, which is not there")
        elif category not in categories:
            faults.append(
                f"{file.name}: image {image} is of category {category}, which is not there"
            )
        elif of_image.setdefault(image, category) != category:
            faults.append(
                f"{file.name}: image {image} is of two categories, {of_image[image]} and {category}"
            )
    if count != len(content["images"]):
        faults.append(f"{file.name} has {len(content['images'])} images but {count} annotations")
    if len(images) != len(content["images"]):
        faults.append(f"{file.name}: {len(content['images'])} images have {len(images)} ids")
    without = [image for image in images if image not in of_image]
    faults += [f"{file.name}: image {image} has no category" for image in without]
    entries = [
        Entry(images[image], category, f"{file.name}, image {image}")
        for image, category in of_image.items()
    ]
    return Annotations(entries, categories)


def _pairs(
    content: Any, file: Path, key: str, first: str, a: type, second: str, b: type
) -> Iterator[tuple[Any, Any]]:
    """Two fields of every object of a list."""
    found = content.get(key) if isinstance(content, dict) else None
    if not isinstance(found, list):
        raise DataError(f"{file}: expected an object with a list of {key}, got {shown(found)}")
    for number, item in enumerate(found):
        values = (item.get(first), item.get(second)) if isinstance(item, dict) else (None, None)
        if type(values[0]) is not a or type(values[1]) is not b:
            raise DataError(
                f"{file}: {key}[{number}]: expected {first} and {second}, got {shown(item)}"
            )
        yield values


def _placed(root: Path, entries: list[Entry]) -> list[Entry]:
    """The images where torchvision unpacked them, if they are not where the list says."""
    if (root / FOLDER).is_dir() or not (root / TORCHVISION).is_dir():
        return entries
    head = f"{FOLDER}/"
    return [
        entry._replace(file=f"{TORCHVISION}/{entry.file[len(head) :]}")
        if entry.file.startswith(head)
        else entry
        for entry in entries
    ]


def _folders(
    root: Path, seed: int, faults: list[str]
) -> tuple[dict[int, str], list[Entry], list[Entry]]:
    """Classes and splits of torchvision's layout."""
    names: dict[int, str] = {}
    members: dict[int, list[Entry]] = {}
    for group in _listing(root / TORCHVISION):
        for folder in _listing(group):
            if not folder.name.isdecimal():
                raise DataError(f"{folder}: expected a folder called by its category's number")
            label = int(folder.name)
            if label in names:
                raise DataError(f"{folder}: category {label} is {names[label]}, too")
            names[label] = f"{group.name}/{folder.name}"
            files = sorted(file.name for file in os.scandir(folder) if file.is_file())
            place = f"{TORCHVISION}/{group.name}/{folder.name}"
            members[label] = [Entry(f"{place}/{file}", label, place) for file in files]
    generator = torch.Generator().manual_seed(seed)
    train: list[Entry] = []
    test: list[Entry] = []
    for label in sorted(names):
        entries = members[label]
        if len(entries) <= TEST_PER_CLASS:
            faults.append(
                f"class {names[label]!r} ({label}) has {len(entries)} images, at least "
                f"{TEST_PER_CLASS + 1} are needed where a test is drawn"
            )
            continue
        order = torch.randperm(len(entries), generator=generator).tolist()
        test += [entries[i] for i in order[:TEST_PER_CLASS]]
        train += [entries[i] for i in order[TEST_PER_CLASS:]]
    kept = {label for label in names if len(members[label]) > TEST_PER_CLASS}
    return {label: names[label] for label in kept}, train, test


def _listing(folder: Path) -> list[Path]:
    try:
        return sorted(
            Path(entry.path)
            for entry in os.scandir(folder)
            if entry.is_dir() and not entry.name.startswith(".")
        )
    except OSError as error:
        raise DataError(f"{folder} cannot be listed: {error.strerror}") from error
