"""Images that a list names with their classes: checked once, read when they are needed."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from .base import DataError, LongTailedData, told, too_few
from .files import ImageFiles, for_each


class Entry(NamedTuple):
    """An image of a split.

    Args:
        file: its path below the root of the images.
        label: number of its class.
        place: where the list says so.
    """

    file: str
    label: int
    place: str


def from_lists(
    name: str,
    root: Path,
    train: Sequence[Entry],
    test: Sequence[Entry],
    class_names: Mapping[int, str],
    *,
    image_size: int,
    skip_broken: bool,
    faults: list[str],
) -> LongTailedData:
    """The data that two lists name.

    Args:
        name: of the data set.
        root: folder of the images.
        train, test: of the splits.
        class_names: of every class that there should be, by label.
        image_size: side of the square that images are cropped to.
        skip_broken: leaves out what has a fault, and reads every image to its end to find out;
            otherwise images are looked at no further than their first bytes.
        faults: of the lists; those of the images are added.

    Raises:
        DataError: there are faults and they are not left out, or fewer than two classes without.
    """
    splits = {"training": train, "test": test}
    if not any(os.path.exists(root / entry.file) for entry in (*train, *test)):
        first = (*train, *test)[0]
        raise DataError(
            f"none of the {len(train) + len(test)} images is there: {root / first.file} was looked "
            f"for ({first.place})"
        )
    kept = _without_repeats(splits, faults)
    kept = {split: _readable(root, entries, skip_broken, faults) for split, entries in kept.items()}
    labels = {split: {entry.label for entry in entries} for split, entries in kept.items()}
    for label in sorted(class_names):
        for split in splits:
            if label not in labels[split]:
                faults.append(f"class {class_names[label]!r} ({label}) has no {split} image")
    if faults and not skip_broken:
        raise DataError(told(root, faults, skipping=False))
    both = sorted(labels["training"] & labels["test"] & set(class_names))
    if len(both) < 2:
        raise too_few(root, faults, len(both))
    number = {label: i for i, label in enumerate(both)}
    inputs, targets = {}, {}
    for split, entries in kept.items():
        of_classes = [entry for entry in entries if entry.label in number]
        inputs[split] = ImageFiles([str(root / e.file) for e in of_classes], image_size)
        targets[split] = torch.tensor([number[entry.label] for entry in of_classes])
    return LongTailedData(
        name=name,
        train_inputs=inputs["training"],
        train_targets=targets["training"],
        test_inputs=inputs["test"],
        test_targets=targets["test"],
        class_names=tuple(class_names[label] for label in both),
        left_out=tuple(faults),
    )


def _without_repeats(
    splits: Mapping[str, Sequence[Entry]], faults: list[str]
) -> dict[str, list[Entry]]:
    """Every image once: what is in training and test, too, is left to the test."""
    seen: dict[str, tuple[str, Entry]] = {}
    kept: dict[str, list[Entry]] = {split: [] for split in splits}
    for split in reversed(list(splits)):
        for entry in splits[split]:
            # a/./b and a/b are one image
            file = os.path.normpath(entry.file)
            if file in seen:
                earlier = seen[file]
                faults.append(
                    f"image {entry.file} is there twice: as class {earlier[1].label} "
                    f"({earlier[1].place}, {earlier[0]}) and {entry.label} ({entry.place}, {split})"
                )
                continue
            seen[file] = split, entry
            kept[split].append(entry)
    return kept


def _readable(root: Path, entries: Sequence[Entry], whole: bool, faults: list[str]) -> list[Entry]:
    """The images that are there and can be read, as far as is looked at them."""
    from .images import fault

    def found(entry: Entry) -> str | None:
        path = root / entry.file
        if not os.path.exists(path):
            return f"{path} does not exist ({entry.place})"
        return fault(path, whole=whole)

    told_of = for_each(found, entries)
    faults += [text for text in told_of if text]
    return [entry for entry, text in zip(entries, told_of, strict=True) if not text]
