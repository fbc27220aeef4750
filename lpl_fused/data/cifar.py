"""CIFAR-10 and CIFAR-100 in the pickles that their authors publish, made long-tailed."""

from __future__ import annotations

import io
import pickle
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from ..arguments import shown
from .base import DataError, LongTailedData, long_tail_counts

SIZE = 32
_BYTES = 3 * SIZE * SIZE
_Array = np.ndarray[Any, Any]

# All that an array of numbers is pickled with, by Python 2 and 3 and by NumPy 1 and 2. Nothing else
# is built: a pickle may name any function of any module, and unpickling calls it.
_ALLOWED = {
    ("numpy.core.multiarray", "_reconstruct"),
    ("numpy._core.multiarray", "_reconstruct"),
    ("numpy", "ndarray"),
    ("numpy", "dtype"),
    ("_codecs", "encode"),
}


class Layout(NamedTuple):
    """The files of a CIFAR.

    Args:
        folder: what the archive unpacks to.
        archive: its name.
        train, test: files of images and labels.
        names: the file of the classes' names.
        labels, names_key: keys in these.
        num_classes: C.
    """

    folder: str
    archive: str
    train: tuple[str, ...]
    test: tuple[str, ...]
    names: str
    labels: str
    names_key: str
    num_classes: int


LAYOUTS = {
    "cifar10-lt": Layout(
        folder="cifar-10-batches-py",
        archive="cifar-10-python.tar.gz",
        train=tuple(f"data_batch_{i}" for i in range(1, 6)),
        test=("test_batch",),
        names="batches.meta",
        labels="labels",
        names_key="label_names",
        num_classes=10,
    ),
    "cifar100-lt": Layout(
        folder="cifar-100-python",
        archive="cifar-100-python.tar.gz",
        train=("train",),
        test=("test",),
        names="meta",
        labels="fine_labels",
        names_key="fine_label_names",
        num_classes=100,
    ),
}


def load_cifar(
    name: str,
    path: str | Path,
    seed: int = 0,
    imbalance: float = 100.0,
    profile: str = "exp",
    largest: int | None = None,
) -> LongTailedData:
    """CIFAR-10-LT or CIFAR-100-LT (Cui et al. 2019, Cao et al. 2019): `(3, 32, 32)` uint8 images.

    Class 0 keeps most images and the last class fewest, counts rounded down: 12,406 images of
    CIFAR-10 and 10,847 of CIFAR-100 at imbalance 100. `seed` draws which images are kept; 0 keeps
    those that the code of LDAM keeps. The test set is the whole one.

    Args:
        name: "cifar10-lt" or "cifar100-lt".
        path: the folder that the archive unpacks to, cifar-10-batches-py or cifar-100-python, or
            the one that it is in.
        seed: of the draw.
        imbalance: ratio of the largest to the smallest class in training; 1 keeps all.
        profile: "exp", "step" or "zipf", see `long_tail_counts`.
        largest: training images of class 0, by default N/C.

    Raises:
        DataError: files are missing, are no such pickles or do not fit each other, or a class has
            fewer images than the profile asks for.
    """
    layout = LAYOUTS[name]
    root = _root(Path(path), layout)
    names = _names(root / layout.names, layout)
    images, labels = _read(root, layout.train, layout)
    test_images, test_labels = _read(root, layout.test, layout)
    counts = long_tail_counts(
        layout.num_classes,
        len(labels) // layout.num_classes if largest is None else largest,
        imbalance,
        profile,
        rounding="down",
    )
    available = np.bincount(labels, minlength=layout.num_classes)
    short = [c for c, count in enumerate(counts.tolist()) if available[c] < count]
    if short:
        raise DataError(
            f"{root}: class {names[short[0]]!r} has {available[short[0]]} training images, "
            f"{int(counts[short[0]])} are needed ({len(short)} such classes); a smaller `largest` "
            "needs fewer"
        )
    # NumPy's old generator, because the published subsets are drawn with it
    draw = np.random.RandomState(seed % (1 << 32))
    kept = []
    for cls, count in enumerate(counts.tolist()):
        members = np.flatnonzero(labels == cls)
        draw.shuffle(members)
        kept.append(members[:count])
    chosen = np.concatenate(kept)
    return LongTailedData(
        name=name,
        train_inputs=_images(images[chosen]),
        train_targets=torch.from_numpy(labels[chosen]),
        test_inputs=_images(test_images),
        test_targets=torch.from_numpy(test_labels),
        class_names=names,
    )


def _root(path: Path, layout: Layout) -> Path:
    """The folder that has all files of the layout."""
    wanted = (*layout.train, *layout.test, layout.names)
    for root in (path / layout.folder, path):
        missing = [file for file in wanted if not (root / file).is_file()]
        if not missing:
            return root
        if len(missing) < len(wanted):
            raise DataError(f"{root} lacks {', '.join(missing)}")
    hint = ""
    if (path / layout.archive).is_file():
        hint = f"; unpack it first: tar -xf {layout.archive}"
    raise DataError(f"neither {path / layout.folder} nor {path} holds {', '.join(wanted)}{hint}")


class _Arrays(pickle.Unpickler):
    """Unpickles numbers, text, lists, dicts and NumPy arrays, and nothing that would run code."""

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) not in _ALLOWED:
            raise pickle.UnpicklingError(f"it would call {module}.{name}")
        if name == "_reconstruct":  # its place moved with NumPy 2
            return np.zeros(0).__reduce__()[0]
        return super().find_class(module, name)


def _unpickled(file: Path) -> dict[str, Any]:
    try:
        # latin1: the bytes of arrays are a string of Python 2
        content = _Arrays(io.BytesIO(file.read_bytes()), encoding="latin1").load()
    except Exception as error:  # there is no end to what damaged pickles raise
        raise DataError(f"{file} is no pickle of CIFAR: {error}") from error
    if not isinstance(content, dict):
        raise DataError(f"{file} is no pickle of CIFAR: expected a dict, got {shown(content)}")
    # Python 3 gives bytes for keys that it pickled as such
    return {k.decode("latin1") if isinstance(k, bytes) else k: v for k, v in content.items()}


def _names(file: Path, layout: Layout) -> tuple[str, ...]:
    found = _unpickled(file).get(layout.names_key)
    if not isinstance(found, list) or len(found) != layout.num_classes:
        raise DataError(
            f"{file}: {layout.names_key}: expected the names of {layout.num_classes} classes, got "
            f"{shown(found)}"
        )
    return tuple(n.decode("latin1") if isinstance(n, bytes) else str(n) for n in found)


def _read(root: Path, files: tuple[str, ...], layout: Layout) -> tuple[_Array, _Array]:
    """Bytes (N, 3072) uint8 and labels (N,) int64 of some files together."""
    parts = [_checked(root / file, layout) for file in files]
    images, labels = (np.concatenate(part) for part in zip(*parts, strict=True))
    return images, labels


def _checked(file: Path, layout: Layout) -> tuple[_Array, _Array]:
    content = _unpickled(file)
    for key in ("data", layout.labels):
        if key not in content:
            raise DataError(f"{file} is no pickle of CIFAR: it has no {key!r}")
    images, labels = content["data"], content[layout.labels]
    if not isinstance(images, np.ndarray) or images.dtype != np.uint8 or images.ndim != 2:
        raise DataError(
            f"{file}: data: expected an array of bytes (N, {_BYTES}), got {shown(images)}"
        )
    if images.shape[1] != _BYTES:
        raise DataError(f"{file}: data: expected {_BYTES} bytes an image, got {images.shape[1]}")
    if not isinstance(labels, list) or not all(type(label) is int for label in labels):
        raise DataError(f"{file}: {layout.labels}: expected a list of classes, got {shown(labels)}")
    if len(images) != len(labels):
        raise DataError(f"{file} has {len(images)} images but {len(labels)} labels")
    wrong = [label for label in labels if not 0 <= label < layout.num_classes]
    if wrong:
        raise DataError(
            f"{file}: {layout.labels}: expected 0 to {layout.num_classes - 1}, got {wrong[0]} "
            f"({len(wrong)} such labels)"
        )
    return images, np.array(labels, dtype=np.int64)


def _images(rows: _Array) -> Tensor:
    """(N, 3, 32, 32): a row is all of red, then green, then blue."""
    return torch.from_numpy(rows.reshape(-1, 3, SIZE, SIZE))
