"""Logits and labels out of files that may be larger than memory, some rows at a time."""

from __future__ import annotations

import math
import pickle
import tokenize
import zipfile
import zlib
from collections.abc import Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from ..extras import needs_extra

SUFFIXES = (".npz", ".pt", ".pth", ".safetensors")


class InspectError(ValueError):
    """A file, or what is asked of it, cannot be inspected."""


class Column(Protocol):
    """An array of a file, of which rows are read one after the other."""

    @property
    def shape(self) -> tuple[int, ...]: ...

    @property
    def kind(self) -> str:
        """What numbers it holds, as messages say it."""

    @property
    def floating(self) -> bool: ...

    @property
    def integer(self) -> bool: ...

    def pieces(self, rows: int) -> Iterator[Tensor]:
        """All rows, `rows` of them at a time, from the first."""


@dataclass(frozen=True)
class Saved:
    """The arrays of a file, checked but for the numbers in them.

    Args:
        path: of the file.
        logits: (N, C).
        labels: (N,).
        counts: (C,) training examples per class, or None.
    """

    path: Path
    logits: Column
    labels: Column
    counts: Tensor | None

    @property
    def num_rows(self) -> int:
        return self.logits.shape[0]

    @property
    def num_classes(self) -> int:
        return self.logits.shape[1]

    def label_pieces(self, rows: int, ignore_index: int) -> Iterator[Tensor]:
        """(n,) int64, each a class or `ignore_index`."""
        first = 0
        with _readable(self.path):
            for piece in self.labels.pieces(rows):
                labels = piece.long()
                wrong = ((labels < 0) | (labels >= self.num_classes)) & (labels != ignore_index)
                if wrong.any():
                    row = int(wrong.nonzero()[0])
                    raise InspectError(
                        f"{self.path}: row {first + row} has the label {int(labels[row])}, expected"
                        f" one of {self.num_classes} classes from 0, or --ignore-index"
                        f" {ignore_index}"
                    )
                first += len(labels)
                yield labels

    def batches(self, rows: int, ignore_index: int) -> Iterator[tuple[Tensor, Tensor]]:
        """Logits (n, C), in float32 at least, and labels (n,)."""
        first = 0
        labels = self.label_pieces(rows, ignore_index)
        with _readable(self.path):
            for logits, of_rows in zip(self.logits.pieces(rows), labels, strict=True):
                nan = logits.isnan().any(1) & (of_rows != ignore_index)
                if nan.any():
                    row = first + int(nan.nonzero()[0])
                    raise InspectError(f"{self.path}: row {row} has logits that are nan")
                first += len(logits)
                yield logits.to(torch.promote_types(logits.dtype, torch.float32)), of_rows


@contextmanager
def opened(path: Path, *, logits: str, labels: str, counts: str | None) -> Iterator[Saved]:
    """The arrays of the names given.

    Raises:
        InspectError: a file that is missing, broken or of another kind; names that it lacks; arrays
            of other shapes or dtypes.
    """
    if path.suffix not in SUFFIXES:
        raise InspectError(
            f"{path}: expected a file that ends in {', '.join(SUFFIXES)}, or the run.json of a"
            " comparison or its folder"
        )
    with ExitStack() as stack:
        with _readable(path):
            columns = _OPENERS[path.suffix](path, stack)
        found = Saved(
            path,
            _named(path, columns, logits, "--logits"),
            _named(path, columns, labels, "--labels"),
            None,
        )
        _check(found, logits, labels)
        if counts is not None:
            column = _named(path, columns, counts, "--counts")
            if column.shape != (found.num_classes,):
                raise InspectError(
                    f"{path}: {counts!r} has shape {column.shape}, expected one count for each of"
                    f" {found.num_classes} classes"
                )
            if not (column.floating or column.integer):
                raise InspectError(f"{path}: {counts!r} is of {column.kind}, expected numbers")
            with _readable(path):
                found = Saved(path, found.logits, found.labels, _whole(column))
        yield found


def _whole(column: Column) -> Tensor:
    return torch.cat(list(column.pieces(column.shape[0])))


def _named(path: Path, columns: Mapping[str, Column], name: str, option: str) -> Column:
    if name not in columns:
        raise InspectError(
            f"{path}: no array {name!r}; it has {', '.join(map(repr, columns)) or 'none'}, of which"
            f" {option} names one"
        )
    return columns[name]


def _check(found: Saved, logits: str, labels: str) -> None:
    path = found.path
    if len(found.logits.shape) != 2 or math.prod(found.logits.shape) == 0:
        raise InspectError(
            f"{path}: {logits!r} has shape {found.logits.shape}, expected (N, C), rows of logits"
        )
    if not found.logits.floating:
        raise InspectError(
            f"{path}: {logits!r} is of {found.logits.kind}, expected floating numbers"
        )
    if found.labels.shape != found.logits.shape[:1]:
        raise InspectError(
            f"{path}: {labels!r} has shape {found.labels.shape}, expected ({found.num_rows},), a"
            " class for each row of the logits"
        )
    if not found.labels.integer:
        raise InspectError(f"{path}: {labels!r} is of {found.labels.kind}, expected integers")


@contextmanager
def _readable(path: Path) -> Iterator[None]:
    """What readers of files raise as an InspectError in a line."""
    try:
        yield
    except InspectError:
        raise
    except pickle.UnpicklingError as error:
        raise InspectError(
            f"{path}: expected a dict of tensors, as torch.save writes it; other objects are not"
            " loaded, they could run code"
        ) from error
    except OSError as error:
        raise InspectError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (
        *(EOFError, KeyError, MemoryError, RuntimeError, ValueError),
        *(tokenize.TokenError, zipfile.BadZipFile, zlib.error),
    ) as error:
        raise _broken(path, error) from error
    except Exception as error:
        if type(error).__name__ != "SafetensorError":  # known where the package is installed
            raise
        raise _broken(path, error) from error


def _broken(path: Path, error: Exception) -> InspectError:
    reason = (str(error) or type(error).__name__).partition("\n")[0]
    return InspectError(f"{path}: cannot be read, the file is broken or of another kind: {reason}")


# NumPy

_SHORTER, _LONGER = "it ends before its arrays do", "{!r} is longer than its shape {}"


@dataclass(frozen=True)
class _Member:
    """An array in an .npz: a stream, compressed or not, of which no more is held than is asked."""

    archive: zipfile.ZipFile
    name: str
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    fortran: bool

    @property
    def kind(self) -> str:
        return str(self.dtype)

    @property
    def floating(self) -> bool:
        return self.dtype.kind == "f" and self.dtype.itemsize <= 8

    @property
    def integer(self) -> bool:
        return self.dtype.kind in "iu"

    def pieces(self, rows: int) -> Iterator[Tensor]:
        if self.fortran and len(self.shape) > 1 and min(self.shape) > 1:
            raise InspectError(
                f"{self.archive.filename}: {self.name!r} was saved column by column (in Fortran's"
                " order), and its rows cannot be read one after the other; save"
                " numpy.ascontiguousarray of it"
            )
        width = math.prod(self.shape[1:])
        with self.archive.open(f"{self.name}.npy") as stream:
            _header(stream)
            for first in range(0, self.shape[0], rows):
                number = min(rows, self.shape[0] - first)
                content = bytearray(number * width * self.dtype.itemsize)
                _fill(stream, content)
                piece = np.frombuffer(content, self.dtype).reshape(number, *self.shape[1:])
                yield torch.from_numpy(piece.astype(self.dtype.newbyteorder("="), copy=False))
            if stream.read(1):  # and so the checksum is looked at
                raise ValueError(_LONGER.format(self.name, self.shape))


def _fill(stream: Any, content: bytearray) -> None:
    view, done = memoryview(content), 0
    while done < len(content):
        read = stream.readinto(view[done:])
        if not read:
            raise EOFError(_SHORTER)
        done += read


def _header(stream: Any) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    version = np.lib.format.read_magic(stream)
    if version not in ((1, 0), (2, 0)):
        raise ValueError(f"its arrays are of version {version} of NumPy's format")
    of_version = (
        np.lib.format.read_array_header_1_0
        if version == (1, 0)
        else np.lib.format.read_array_header_2_0
    )
    return of_version(stream)


def _npz(path: Path, stack: ExitStack) -> dict[str, Column]:
    archive = stack.enter_context(zipfile.ZipFile(path))
    columns: dict[str, Column] = {}
    for name in archive.namelist():
        if name.endswith(".npy"):
            with archive.open(name) as stream:
                shape, fortran, dtype = _header(stream)
                size = archive.getinfo(name).file_size - stream.tell()
            name = name.removesuffix(".npy")
            # before anybody makes room for what a header says
            needed = math.prod(shape) * dtype.itemsize
            if min(shape, default=0) < 0:
                raise ValueError(f"{name!r} has shape {shape}")
            if not dtype.hasobject and size != needed:
                raise ValueError(_SHORTER if size < needed else _LONGER.format(name, shape))
            columns[name] = _Member(archive, name, shape, dtype, fortran)
    return columns


# PyTorch and safetensors


@dataclass(frozen=True)
class _Mapped:
    """A tensor whose memory is the file."""

    tensor: Tensor

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.tensor.shape)

    @property
    def kind(self) -> str:
        return str(self.tensor.dtype)

    @property
    def floating(self) -> bool:
        return self.tensor.is_floating_point()

    @property
    def integer(self) -> bool:
        return _of_integers(self.tensor.dtype)

    def pieces(self, rows: int) -> Iterator[Tensor]:
        yield from self.tensor.split(rows)


def _of_integers(dtype: torch.dtype) -> bool:
    return not (dtype.is_floating_point or dtype.is_complex or dtype == torch.bool)


def _pt(path: Path, stack: ExitStack) -> dict[str, Column]:
    if path.is_file() and not zipfile.is_zipfile(path):
        raise InspectError(
            f"{path}: expected what torch.save writes since torch 1.6, a zip file; this one is"
            " broken, or older"
        )
    content = torch.load(path, map_location="cpu", mmap=True, weights_only=True)
    if not isinstance(content, Mapping):
        raise InspectError(f"{path}: expected a dict of tensors, got {type(content).__name__}")
    return {
        str(name): _Mapped(tensor.detach())
        for name, tensor in content.items()
        if isinstance(tensor, Tensor) and tensor.layout == torch.strided and not tensor.is_nested
    }


@dataclass(frozen=True)
class _Slice:
    """A tensor in a .safetensors file, which the package maps."""

    slice: Any
    kind: str

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.slice.get_shape())

    @property
    def floating(self) -> bool:
        return self.kind in ("F16", "BF16", "F32", "F64")

    @property
    def integer(self) -> bool:
        return self.kind in ("I8", "I16", "I32", "I64", "U8", "U16", "U32", "U64")

    def pieces(self, rows: int) -> Iterator[Tensor]:
        for first in range(0, self.shape[0], rows):
            yield self.slice[first : first + rows]


def _safetensors(path: Path, stack: ExitStack) -> dict[str, Column]:
    with needs_extra():
        from safetensors import safe_open
    with path.open("rb"):  # says what is wrong with a path in the words of the system
        pass
    file = stack.enter_context(safe_open(path, framework="pt", device="cpu"))
    slices = {name: file.get_slice(name) for name in file.keys()}  # noqa: SIM118
    return {name: _Slice(part, part.get_dtype()) for name, part in slices.items()}


_OPENERS = {".npz": _npz, ".pt": _pt, ".pth": _pt, ".safetensors": _safetensors}
