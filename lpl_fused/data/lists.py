"""ImageNet-LT and Places-LT (Liu et al. 2019): text files of `PATH LABEL` lines."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath

from .base import DataError, LongTailedData
from .listed import Entry, from_lists

IMAGE_SIZE = 224
PREFIXES = {"imagenet-lt": "ImageNet_LT", "places-lt": "Places_LT"}


def load_lists(
    name: str,
    path: str | Path,
    seed: int = 0,
    image_size: int = IMAGE_SIZE,
    skip_broken: bool = False,
) -> LongTailedData:
    """ImageNet-LT or Places-LT by its authors' lists: `ImageFiles`, read as they are needed.

    PATH is the folder that the lists' paths begin in: PATH/train/n01440764/… of ImageNet,
    PATH/data_256/a/airfield/… of Places. The lists, ImageNet_LT_train.txt and ImageNet_LT_test.txt
    or Places_LT_train.txt and Places_LT_test.txt, lie there, or in its folder ImageNet_LT or
    Places_LT. A class is called by the folder of its training images, or by its number where these
    have several.

    Args:
        name: "imagenet-lt" or "places-lt".
        path: PATH.
        seed: decides nothing: the split is published.
        image_size: side of the square that is the centre of an image.
        skip_broken: leaves out wrong lines and images that cannot be read, which it finds by
            reading all; otherwise the first bytes of every image are looked at.

    Raises:
        DataError: a list or images are missing, and everything that `skip_broken` leaves out (the
            message names all of it).
    """
    root, prefix = Path(path), PREFIXES[name]
    faults: list[str] = []
    train, test = (
        list(_entries(_list(root, prefix, f"{prefix}_{split}.txt"), faults))
        for split in ("train", "test")
    )
    if not train or not test:
        raise DataError(
            f"{root}: expected lines PATH LABEL in {prefix}_train.txt and {prefix}_test.txt"
            + "".join(f"\n  {fault}" for fault in faults[:3])
        )
    return from_lists(
        name,
        root,
        train,
        test,
        _class_names(train, test),
        image_size=image_size,
        skip_broken=skip_broken,
        faults=faults,
    )


def _list(root: Path, prefix: str, file: str) -> Path:
    places = (root / file, root / prefix / file)
    for place in places:
        if place.is_file():
            return place
    raise DataError(f"{file} is missing: neither {places[0]} nor {places[1]} is a file")


def _entries(file: Path, faults: list[str]) -> Iterator[Entry]:
    try:
        lines = file.read_text("utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise DataError(f"{file} cannot be read: {error}") from error
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        image, _, label = line.rstrip().rpartition(" ")
        place = f"{file.name}, line {number}"
        # isdecimal of other scripts, too, which int reads as well; a sign is no digit
        if not image.strip() or not label.isdecimal() or len(label) > 9:
            faults.append(f"{place}: expected PATH LABEL, with a label from 0 on, got {line!r:.80}")
            continue
        yield Entry(image.strip(), int(label), place)


def _class_names(train: Sequence[Entry], test: Sequence[Entry]) -> dict[int, str]:
    """Of all labels from 0 to the largest."""
    folders = defaultdict(set)
    for entry in train:
        folders[entry.label].add("/".join(PurePosixPath(entry.file).parts[1:-1]))
    last = max(entry.label for entry in (*train, *test))
    if last > len(train) + len(test):
        raise DataError(
            f"label {last} is larger than the number of images, so most classes have none: labels "
            "go from 0 to the number of classes less 1"
        )
    return {
        label: next(iter(folders[label])) if len(folders[label]) == 1 else str(label)
        for label in range(last + 1)
    }
