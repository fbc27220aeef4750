"""Which identifiers a function uses, from its name and docstring: real multi-label data.

Input and answer both stand in the Python standard library's own source.
"""

from __future__ import annotations

import ast
import hashlib
import re
import sys
import warnings
from collections import Counter
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from .base import DataError, LongTailedData
from .cache import Arrays, cache_folder, cached, expect
from .labels import LabelSets, offsets_of
from .stdlib import readable_source, source_files

NUM_CLASSES = 1000
TEST_SHARE = 0.2
LENGTH = 64  # words of a function that count: its name's and parameters', then the docstring's
MIN_WORD_FUNCTIONS = 3

_CACHE_VERSION = 1
# HTTPServer2 is http, server and 2; snake_case falls apart at what is neither letter nor digit.
_WORD = re.compile(r"[A-Z]+(?![a-z])|[A-Z]?[a-z]+|[0-9]+")
_Function = ast.FunctionDef | ast.AsyncFunctionDef


class _Example(NamedTuple):
    unit: str  # module: its file
    words: tuple[str, ...]
    identifiers: frozenset[str]


def load_tags(seed: int = 0, num_classes: int = NUM_CLASSES) -> LongTailedData:
    """Predict which identifiers a function's body mentions: `(64,)` int64 bags of words.

    An example is a function of the running Python's standard library with a docstring. Its words
    are those of its qualified name, its parameters and its docstring, in lower case and split at
    `_` and capitals, each once; those of fewer than three functions are left out, the first 64 of
    the others kept, 0 fills up. Its classes are the names and attributes in its body that are no
    parameters of its own; the data's are the `num_classes` that most training functions mention,
    numbered from the most frequent. Of functions with the same bag the first is kept.

    A module belongs to the test or to training as a whole: modules are drawn by `seed` until the
    test has a fifth of the functions. Which classes there are, and the counts, therefore depend on
    `seed`; a rare class may have no positive in the test.

    Args:
        seed: of the split.
        num_classes: C.

    Raises:
        DataError: the standard library's source is missing or too small, or the training functions
            mention fewer identifiers than `num_classes`.
    """
    arrays = _load_functions()
    unit, bags, sets = _tensors(arrays)
    held_out = _test_units(torch.bincount(unit), seed)[unit]
    train, test = (~held_out).nonzero()[:, 0], held_out.nonzero()[:, 0]
    if len(test) == 0:
        raise DataError(
            "tags needs the standard library's source, with a module of at most a fifth of all "
            f"functions for the test; {len(bags)} functions with a docstring were found in "
            f"{len(arrays['units'])} modules"
        )

    frequency = sets.select(train).counts()
    available = int((frequency > 0).sum())
    if not 2 <= num_classes <= available:
        raise DataError(
            f"num_classes: expected 2 to {available}, the identifiers in training functions, got "
            f"{num_classes}"
        )
    # identifiers are in alphabetical order, which a stable sort keeps among equals
    kept = frequency.argsort(descending=True, stable=True)[:num_classes]
    sets = _restricted(sets, kept)
    return LongTailedData(
        name="tags",
        train_inputs=bags[train],
        train_targets=sets.select(train),
        test_inputs=bags[test],
        test_targets=sets.select(test),
        class_names=tuple(arrays["identifiers"][kept.numpy()].tolist()),
        words=len(arrays["words"]),
    )


def _test_units(sizes: Tensor, seed: int) -> Tensor:
    """(U,) bool: the units of the test, drawn until no other fits into its share."""
    room = round(TEST_SHARE * int(sizes.sum()))
    chosen = torch.zeros(len(sizes), dtype=torch.bool)
    for unit in torch.randperm(len(sizes), generator=torch.Generator().manual_seed(seed)).tolist():
        if int(sizes[unit]) <= room:
            chosen[unit] = True
            room -= int(sizes[unit])
    return chosen


def _restricted(sets: LabelSets, kept: Tensor) -> LabelSets:
    """The same examples with the classes `kept` (C,) alone, numbered as they stand there."""
    number = torch.full((sets.num_classes,), -1)
    number[kept] = torch.arange(len(kept))
    classes = number[sets.classes]
    example = torch.arange(len(sets)).repeat_interleave(sets.offsets.diff())
    example, classes = example[classes >= 0], classes[classes >= 0]
    sizes = torch.bincount(example, minlength=len(sets))
    order = (example * len(kept) + classes).argsort()
    return LabelSets(offsets_of(sizes), classes[order], len(kept))


def _tensors(arrays: Arrays) -> tuple[Tensor, Tensor, LabelSets]:
    """Unit of each function, its bag of words, and its identifiers; ValueError where the arrays
    cannot be those of `_numbered`."""
    expect(arrays, **_ARRAYS)
    unit, bags = (torch.from_numpy(arrays[name]).long() for name in ("unit", "bags"))
    sets = LabelSets(
        torch.from_numpy(arrays["offsets"]),
        torch.from_numpy(arrays["classes"]).long(),
        max(1, len(arrays["identifiers"])),  # of no functions there are none, which is said later
    )
    if bags.shape != (len(unit), LENGTH) or len(sets) != len(unit):
        raise ValueError(f"{len(unit)} units, bags of shape {bags.shape}, {len(sets)} sets")
    for name, numbers, most in (
        ("unit", unit, len(arrays["units"]) - 1),
        ("bags", bags, len(arrays["words"])),
    ):
        if numbers.numel() and not (numbers.min() >= 0 and numbers.max() <= most):
            raise ValueError(f"{name}: expected 0 to {most}")
    return unit, bags, sets


_ARRAYS = {
    **dict.fromkeys(("units", "words", "identifiers"), (np.str_, 1)),
    **dict.fromkeys(("unit", "offsets", "classes"), (np.integer, 1)),
    "bags": (np.integer, 2),
}


def _load_functions() -> Arrays:
    """The functions as arrays, from the cache or, the first time, from the source (seconds)."""
    files = []
    for path, parts in source_files():
        with readable_source(path):
            files.append((path, parts, path.read_bytes()))
    digest = hashlib.blake2b(digest_size=8)
    for _, parts, source in files:
        digest.update(f"{'/'.join(parts)}:{len(source)}:".encode() + source)
    version = ".".join(map(str, sys.version_info[:3]))  # another version may parse otherwise
    path = cache_folder() / f"tags-v{_CACHE_VERSION}-py{version}-{digest.hexdigest()}.npz"
    return cached(path, tuple(_ARRAYS), lambda: _numbered(_examples(files)), _tensors)


def _numbered(examples: Iterable[_Example]) -> Arrays:
    found = list(examples)
    # of distinct examples: copies of a function make no word frequent
    frequency = Counter(word for words in {example.words for example in found} for word in words)
    words = sorted(word for word, n in frequency.items() if n >= MIN_WORD_FUNCTIONS)
    word_number = {word: i for i, word in enumerate(words, start=1)}
    by_bag: dict[tuple[int, ...], _Example] = {}
    for example in found:
        known = [word_number[word] for word in example.words if word in word_number][:LENGTH]
        if known:
            by_bag.setdefault(tuple(sorted(known)), example)
    functions = list(by_bag.values())
    identifiers = sorted(set().union(*(function.identifiers for function in functions)))
    units = sorted({function.unit for function in functions})
    class_number = {name: i for i, name in enumerate(identifiers)}
    unit_number = {name: i for i, name in enumerate(units)}

    bags = np.zeros((len(functions), LENGTH), dtype=np.int32)
    for row, bag in zip(bags, by_bag, strict=True):
        row[: len(bag)] = bag
    sets = [sorted(class_number[name] for name in f.identifiers) for f in functions]
    return {
        "units": np.array(units, dtype=np.str_),
        "words": np.array(words, dtype=np.str_),
        "identifiers": np.array(identifiers, dtype=np.str_),
        "unit": np.array([unit_number[function.unit] for function in functions], dtype=np.int32),
        "bags": bags,
        "offsets": np.cumsum([0, *map(len, sets)], dtype=np.int64),
        "classes": np.array([cls for members in sets for cls in members], dtype=np.int32),
    }


def _examples(files: Iterable[tuple[Path, tuple[str, ...], bytes]]) -> Iterator[_Example]:
    for path, parts, source in files:
        with warnings.catch_warnings(), readable_source(path):
            warnings.simplefilter("ignore")  # escapes that a later Python refuses
            tree = ast.parse(source, filename=str(path))
        unit = "/".join(parts)
        for qualified_name, function in _functions(tree, ()):
            docstring = ast.get_docstring(function)
            parameters = _parameters(function.args)
            identifiers = frozenset(_identifiers(function)) - set(parameters)
            if docstring and identifiers:
                text = " ".join((*qualified_name, *parameters, docstring))
                words = dict.fromkeys(word.lower() for word in _WORD.findall(text))
                yield _Example(unit, tuple(words), identifiers)


def _functions(
    node: ast.AST, outer: tuple[str, ...]
) -> Iterator[tuple[tuple[str, ...], _Function]]:
    """Functions below `node`, methods and nested ones too, with their qualified names."""
    for child in ast.iter_child_nodes(node):
        if isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef)):
            yield (*outer, child.name), child
        named = isinstance(child, (ast.FunctionDef, ast.AsyncFunctionDef, ast.ClassDef))
        yield from _functions(child, (*outer, child.name) if named else outer)  # type: ignore[attr-defined]


def _parameters(arguments: ast.arguments) -> list[str]:
    plain = (*arguments.posonlyargs, *arguments.args, *arguments.kwonlyargs)
    starred = (arguments.vararg, arguments.kwarg)
    return [a.arg for a in plain] + [a.arg for a in starred if a is not None]


def _identifiers(function: _Function) -> Iterator[str]:
    """Names and attributes in the body, with repeats."""
    for statement in function.body:
        for node in ast.walk(statement):
            if isinstance(node, ast.Name):
                yield node.id
            elif isinstance(node, ast.Attribute):
                yield node.attr
