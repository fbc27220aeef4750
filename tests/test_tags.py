"""Data "tags": functions, their words and identifiers; sets of labels; splits without leakage."""

from __future__ import annotations

import sysconfig
from pathlib import Path

import numpy as np
import pytest
import torch

from lpl_fused.data import DataError, LabelSets, LongTailedData, load, tags
from lpl_fused.data.labels import class_counts


def sets_of(lists: list[list[int]], num_classes: int) -> LabelSets:
    offsets = torch.tensor([0, *np.cumsum([len(members) for members in lists])])
    classes = torch.tensor([cls for members in lists for cls in members], dtype=torch.int64)
    return LabelSets(offsets, classes, num_classes)


# label sets


LISTS = [[0, 3], [], [2], [0, 1, 2, 3], [], [3]]


def dense_of(lists: list[list[int]]) -> torch.Tensor:
    dense = torch.zeros(len(lists), 5)
    for row, members in zip(dense, lists, strict=True):
        row[members] = 1
    return dense


@pytest.mark.parametrize("index", [[0], [1], [5, 0, 0, 3], [4, 1], [], [0, 1, 2, 3, 4, 5]])
def test_batches_are_multi_hot(index: list[int]) -> None:
    sets, dense = sets_of(LISTS, 5), dense_of(LISTS)
    chosen = torch.tensor(index, dtype=torch.int64)
    assert torch.equal(sets[chosen], dense[chosen])
    part = sets.select(chosen)
    assert len(part) == len(index)
    assert torch.equal(part.dense(), dense[chosen])
    assert torch.equal(part.counts(), dense[chosen].sum(0).long())


def test_selection_by_mask_and_counts() -> None:
    sets = sets_of(LISTS, 5)
    mask = torch.tensor([True, False, False, True, True, False])
    assert torch.equal(sets.select(mask).dense(), dense_of(LISTS)[mask])
    assert torch.equal(sets.dense(), dense_of(LISTS))
    assert class_counts(sets, 5).tolist() == [2, 1, 2, 3, 0]
    assert sets.to(torch.device("cpu")).counts().tolist() == [2, 1, 2, 3, 0]


@pytest.mark.parametrize(
    ("offsets", "classes", "message"),
    [
        ([], [], "offsets: expected numbers from 0"),
        ([1, 2], [0, 1], "offsets: expected numbers from 0"),
        ([0, 2, 1], [0], "that never fall"),
        ([0, 1], [0, 1], "an end at 2, got 1"),
        ([0, 1], [5], "expected 0 to 4"),
        ([0, 1], [-1], "expected 0 to 4"),
        ([0, 2], [1, 1], "ascending classes without repeats"),
        ([0, 2, 3], [2, 1, 0], "ascending classes without repeats"),
    ],
)
def test_bad_sets_are_refused(offsets: list[int], classes: list[int], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        LabelSets(
            torch.tensor(offsets, dtype=torch.int64), torch.tensor(classes, dtype=torch.int64), 5
        )


# functions


MODULE = '''
import os

def readLines(path_name, *rest, HTTPServer2=None):
    """Give all lines of a file."""
    with open(path_name) as file:
        return [os.fsdecode(line.strip()) for line in rest]

def undocumented(path):
    return open(path)

def empty(path):
    """Nothing is mentioned here."""

class Box:
    async def get_it(self, *, lines, **rest):
        """Give the lines of a box."""
        def inner():
            """Give all of a file."""
            return lines + self.content
        return await inner()
'''


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty standard library, and an empty cache."""
    root = tmp_path / "library"
    root.mkdir()
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(root))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return root


def fill(library: Path) -> None:
    """Ten modules of four functions each."""
    words = ("file", "path", "line", "name", "text", "word", "code", "data", "item", "node")
    for i, word in enumerate(words):
        functions = [
            f'def {word}_{other}(a):\n    """The {word} of {other}."""\n'
            f"    return shared({word}_used, a.x{(i + j) % 3}, y{j % 2})\n"
            for j, other in enumerate(words[i : i + 4] if i < 7 else words[:4])
        ]
        (library / f"m{i}.py").write_text("\n".join(functions))


def test_words_and_identifiers_of_functions(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (library / "one.py").write_text(MODULE)
    (library / "test").mkdir()
    (library / "test" / "test_one.py").write_text(MODULE)
    files = [(path, parts, path.read_bytes()) for path, parts in tags.source_files()]
    found = {example.words: example for example in tags._examples(files)}
    lines = (
        "read",
        "lines",
        "path",
        "name",
        "http",
        "server",
        "2",
        "rest",
        "give",
        "all",
        "of",
        "a",
        "file",
    )
    get = ("box", "get", "it", "self", "lines", "rest", "give", "the", "of", "a")
    inner = ("box", "get", "it", "inner", "give", "all", "of", "a", "file")
    assert set(found) == {lines, get, inner}
    assert found[lines].identifiers == {"open", "file", "os", "fsdecode", "line", "strip"}
    assert found[get].identifiers == {"content", "inner"}, (
        "neither self nor lines, but what is nested"
    )
    assert found[inner].identifiers == {"lines", "self", "content"}
    assert {example.unit for example in found.values()} == {"one.py"}


def test_bags_targets_and_names_belong_together(library: Path) -> None:
    fill(library)
    data = load("tags", seed=0, num_classes=4)
    assert data.multi_label
    assert data.class_names[0] == "shared", "the most used comes first"
    counts = data.cls_num_list
    assert (counts.diff() <= 0).all()
    assert torch.equal(counts, data.train_targets.dense().sum(0).long())  # type: ignore[union-attr]
    assert counts[0] == len(data.train_targets)
    assert data.words is not None
    assert data.train_inputs.shape == (len(data.train_targets), tags.LENGTH)
    assert data.train_inputs.max() <= data.words
    assert (data.train_inputs > 0).any(1).all(), "a bag holds a word"
    assert (len(data.train_targets), len(data.test_targets)) == (32, 8)


def test_equal_bags_are_one_example(library: Path) -> None:
    fill(library)
    first = load("tags", num_classes=4)
    text = (library / "m0.py").read_text().replace("shared", "copied")
    (library / "z.py").write_text(text.replace("The file of path.", "Of the path, THE file"))
    assert_same(first, load("tags", num_classes=4))


def test_follows_the_seed(library: Path) -> None:
    fill(library)
    first, again, other = (load("tags", seed=seed, num_classes=4) for seed in (5, 5, 6))
    assert_same(first, again)
    assert not torch.equal(first.test_inputs, other.test_inputs)


def assert_same(first: LongTailedData, second: LongTailedData) -> None:
    assert first.class_names == second.class_names
    for part in ("train", "test"):
        assert torch.equal(getattr(first, f"{part}_inputs"), getattr(second, f"{part}_inputs"))
        mine, others = (getattr(data, f"{part}_targets") for data in (first, second))
        assert torch.equal(mine.offsets, others.offsets)
        assert torch.equal(mine.classes, others.classes)


def test_second_load_reads_the_cache_until_a_source_changes(
    library: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    fill(library)
    first = load("tags", num_classes=4)
    parsed = []
    examples = tags._examples
    monkeypatch.setattr(tags, "_examples", lambda files: parsed.append(1) or examples(files))
    assert_same(first, load("tags", num_classes=4))
    assert not parsed
    path = library / "m3.py"
    path.write_text(path.read_text().replace("shared", "spared"))
    load("tags", num_classes=4)
    assert parsed


def test_broken_cache_is_made_anew(library: Path) -> None:
    fill(library)
    first = load("tags", num_classes=4)
    (file,) = (library.parent / "cache" / "lpl_fused").iterdir()
    file.write_bytes(b"PK\x03\x04 not an archive")
    with pytest.warns(UserWarning, match="is unreadable .* making it anew"):
        assert_same(first, load("tags", num_classes=4))
    assert_same(first, load("tags", num_classes=4))


def test_errors(library: Path) -> None:
    with pytest.raises(DataError, match="0 functions with a docstring were found in 0 modules"):
        load("tags")
    (library / "one.py").write_text(MODULE * 3)
    with pytest.raises(DataError, match="found in 1 modules"):
        load("tags", num_classes=2)
    fill(library)
    for bad in (1, 10_000):
        with pytest.raises(DataError, match=f"num_classes: expected .*, got {bad}"):
            load("tags", num_classes=bad)


# the real standard library


@pytest.fixture(scope="module")
def real() -> LongTailedData:
    return load("tags", seed=1)


def test_standard_library_is_a_long_tailed_multi_label_problem(real: LongTailedData) -> None:
    counts = real.cls_num_list
    assert real.num_classes == len(set(real.class_names)) == 1000
    assert counts.min() >= 1
    assert counts.max() > 20 * counts.min()
    assert (counts > 100).sum() >= 10
    assert (counts < 20).sum() >= 100
    examples = len(real.train_targets) + len(real.test_targets)
    assert examples > 3000
    assert 0.18 * examples < len(real.test_targets) < 0.22 * examples
    judged = real.test_targets.counts() > 0  # type: ignore[union-attr]
    assert judged.sum() > 300


def test_no_example_of_the_test_was_trained_on(real: LongTailedData) -> None:
    bags = [real.train_inputs.sort(1).values, real.test_inputs.sort(1).values]
    together = torch.cat(bags)
    assert len(together.unique(dim=0)) == len(together)


def test_a_module_is_whole_in_one_part() -> None:
    unit, bags, _ = tags._tensors(tags._load_functions())
    held_out = tags._test_units(torch.bincount(unit), seed=1)
    data = load("tags", seed=1)
    assert torch.equal(bags[held_out[unit]], data.test_inputs)
    assert torch.equal(bags[~held_out[unit]], data.train_inputs)
