"""The data sets: long-tailed as asked, balanced in the test, the same for the same seed."""

from __future__ import annotations

import errno
import io
import os
import pickle
import subprocess
import sys
import sysconfig
import tempfile
import warnings
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from lpl_fused.data import DataError, LongTailedData, MissingExtraError, load, long_tail_counts
from lpl_fused.data import glyphs as glyphs_module
from lpl_fused.data.glyphs import Sprites, cache_file, draw, load_sprites


def assert_same(first: LongTailedData, second: LongTailedData) -> None:
    assert first.class_names == second.class_names
    for part in ("train_inputs", "train_targets", "test_inputs", "test_targets"):
        assert torch.equal(getattr(first, part), getattr(second, part)), part


def sizes_of_test(data: LongTailedData) -> torch.Tensor:
    return torch.bincount(data.test_targets, minlength=data.num_classes)


# profiles


@pytest.mark.parametrize("profile", ["exp", "zipf"])
@pytest.mark.parametrize(("classes", "largest", "imbalance"), [(10, 100, 100), (1000, 500, 50)])
def test_profile_reaches_the_imbalance(
    profile: str, classes: int, largest: int, imbalance: float
) -> None:
    counts = long_tail_counts(classes, largest, imbalance, profile)
    assert counts.dtype == torch.int64
    assert len(counts) == classes
    assert counts[0] == largest
    assert counts[-1] == largest / imbalance
    assert (counts.diff() <= 0).all()


def test_exponential_profile_is_that_of_ldam() -> None:
    # CIFAR-10-LT of the LDAM code: 5000 · 0.01^(i/9), rounded here, rounded down there
    expected = [5000, 2997, 1797, 1077, 646, 387, 232, 139, 83, 50]
    assert long_tail_counts(10, 5000, 100).tolist() == expected


def test_zipf_profile_is_a_straight_line_in_log_log() -> None:
    counts = long_tail_counts(1000, 10**6, 1000, "zipf").double()
    slope = counts.log().diff() / torch.arange(1, 1001).double().log().diff()
    torch.testing.assert_close(slope[:100], torch.full((100,), -1.0).double(), atol=1e-2, rtol=0)


def test_imbalance_one_is_balanced() -> None:
    assert long_tail_counts(7, 30, 1).tolist() == [30] * 7


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((10, 100, 100, "linear"), 'profile: expected "exp", "zipf" or "step", got \'linear\''),
        ((1, 100, 100), "num_classes: expected an int >= 2, got 1"),
        ((10, 100, 0.5), "imbalance: expected a finite number >= 1, got 0.5"),
        ((10, 100, 101), "imbalance: expected 1 .* to 100 .*, got 101"),
        ((10, 100, float("nan")), "imbalance: .* got nan"),
        ((10, 0, 1), "largest: expected an int >= 1, got 0"),
    ],
)
def test_profile_errors(arguments: tuple[int, int, float, str], message: str) -> None:
    with pytest.raises(DataError, match=message):
        long_tail_counts(*arguments)


# the common structure


def make(train: list[int], test: list[int], names: int, train_inputs: int | None = None) -> None:
    inputs = torch.zeros(len(train) if train_inputs is None else train_inputs, 1, 2, 2)
    LongTailedData(
        name="made",
        train_inputs=inputs.byte(),
        train_targets=torch.tensor(train),
        test_inputs=torch.zeros(len(test), 1, 2, 2).byte(),
        test_targets=torch.tensor(test),
        class_names=tuple("abcdef"[:names]),
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (([0, 1, 1], [0, 1], 2, 5), "made: 5 train inputs but 3 train targets"),
        (([0, 2], [0, 1], 3), "class 'b' has no training example"),
        (([0, 1, 2], [0, 1], 2), "training label 2 is out of range for 2 classes"),
    ],
)
def test_inconsistent_data_are_refused(
    arguments: tuple[list[int], list[int], int], message: str
) -> None:
    with pytest.raises(DataError, match=message):
        make(*arguments)


def test_unknown_name() -> None:
    with pytest.raises(
        DataError, match='name: expected "glyphs", .*, "folder", .* or "cifar100-lt", got \'cifar\''
    ):
        load("cifar")


def test_missing_package_names_the_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "sklearn", None)
    with pytest.raises(
        MissingExtraError, match=r'sklearn is missing: pip install "lpl_fused\[train\]"'
    ):
        load("digits")


def test_importing_needs_no_extra() -> None:
    code = (
        "import sys, lpl_fused, lpl_fused.data, lpl_fused.evaluation, lpl_fused.cli\n"
        "extra = {'matplotlib', 'rich', 'sklearn', 'torchmetrics', 'PIL'} & set(sys.modules)\n"
        "sys.exit(str(extra) if extra else 0)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr


# glyphs


@pytest.fixture(scope="module")
def rendered(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A cache folder that the characters were rendered into, once for this file."""
    folder = tmp_path_factory.mktemp("cache")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("XDG_CACHE_HOME", str(folder))
        load_sprites()
    return folder


@pytest.fixture
def sprites(rendered: Path, monkeypatch: pytest.MonkeyPatch) -> Sprites:
    monkeypatch.setenv("XDG_CACHE_HOME", str(rendered))
    return load_sprites()


@pytest.fixture
def few_sprites(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Sprites:
    """An empty cache, and two squares instead of the fonts."""
    images = torch.zeros(3, glyphs_module.CANVAS, glyphs_module.CANVAS, dtype=torch.uint8)
    images[:2, 10:20, 10:20] = 255
    images[2, 15:25, 5:35] = 200
    made = Sprites(images, torch.tensor([0, 0, 1]), ("□", "▭"))
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setattr(glyphs_module, "render_sprites", lambda: made)
    return made


def test_equal_bitmaps_are_one_class(sprites: Sprites) -> None:
    latin, greek, cyrillic = "A", "\N{GREEK CAPITAL LETTER ALPHA}", "\N{CYRILLIC CAPITAL LETTER A}"
    assert latin in sprites.class_names
    assert greek not in sprites.class_names
    assert cyrillic not in sprites.class_names
    assert len(sprites.class_names) > 5000
    bitmaps = {image.numpy().tobytes() for image in sprites.images}
    assert len(bitmaps) == len(sprites.images), "a bitmap stands in two classes"


def test_faces_are_the_variety_within_a_class(sprites: Sprites) -> None:
    assert (sprites.classes.diff() >= 0).all()
    variants = torch.bincount(sprites.classes, minlength=len(sprites.class_names))
    assert variants.min() >= 1
    assert variants[sprites.class_names.index("A")] >= 12
    assert len(sprites.images) > 6 * len(sprites.class_names)


def test_glyphs_are_long_tailed_and_reproducible(sprites: Sprites) -> None:
    options = {"num_classes": 40, "imbalance": 50.0, "largest": 100, "profile": "zipf"}
    data = load("glyphs", seed=3, **options)
    assert data.cls_num_list.tolist() == long_tail_counts(40, 100, 50, "zipf").tolist()
    assert sizes_of_test(data).unique().tolist() == [glyphs_module.TEST_PER_CLASS]
    assert data.train_inputs.shape == (len(data.train_targets), 1, 24, 24)
    assert data.train_inputs.dtype == torch.uint8
    assert_same(data, load("glyphs", seed=3, **options))

    other = load("glyphs", seed=4, **options)
    assert other.class_names == data.class_names
    assert not torch.equal(other.train_inputs, data.train_inputs)


def test_all_glyphs_are_the_default(sprites: Sprites, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(glyphs_module, "TEST_PER_CLASS", 1)
    available = len(sprites.class_names)
    data = load("glyphs", imbalance=2.0, largest=2)
    assert data.num_classes == available
    with pytest.raises(DataError, match=f"num_classes: glyphs has {available}, got 6000"):
        load("glyphs", num_classes=6000)


def test_images_of_a_class_vary_but_show_it(few_sprites: Sprites) -> None:
    images = draw(few_sprites, torch.tensor([0] * 50 + [1] * 50), torch.Generator().manual_seed(0))
    assert len(images.flatten(1).unique(dim=0)) == 100
    ink = (images > 100).float()
    height, width = (ink.sum(3) > 2).sum((1, 2)).float(), (ink.sum(2) > 2).sum((1, 2)).float()
    assert (width / height)[50:].min() > (width / height)[:50].max()
    # the wide one is scaled to fit: it does not fill the image from side to side
    assert (width[50:] <= glyphs_module.IMAGE_SIZE).all()
    assert ink[50:, 0, :, 0].mean() < 0.2


def test_second_load_reads_the_cache(few_sprites: Sprites, monkeypatch: pytest.MonkeyPatch) -> None:
    load_sprites()

    def rendered_again() -> Sprites:
        raise AssertionError("rendered although it was cached")

    monkeypatch.setattr(glyphs_module, "render_sprites", rendered_again)
    again = load_sprites()
    assert torch.equal(again.images, few_sprites.images)
    assert torch.equal(again.classes, few_sprites.classes)
    assert again.class_names == few_sprites.class_names


def test_interrupted_write_leaves_no_cache(
    few_sprites: Sprites, monkeypatch: pytest.MonkeyPatch
) -> None:
    def interrupted(file, **arrays) -> None:  # type: ignore[no-untyped-def]
        file.write(b"half of it")
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(np, "savez_compressed", interrupted)
        with pytest.raises(KeyboardInterrupt):
            load_sprites()
    assert list(cache_file().parent.iterdir()) == []
    load_sprites()
    assert [file.name for file in cache_file().parent.iterdir()] == [cache_file().name]


def test_broken_cache_is_rendered_anew(few_sprites: Sprites) -> None:
    cache_file().parent.mkdir(parents=True)
    cache_file().write_bytes(b"PK\x03\x04 not an archive")
    with pytest.warns(UserWarning, match="is unreadable .* making it anew"):
        assert torch.equal(load_sprites().images, few_sprites.images)
    assert torch.equal(load_sprites().images, few_sprites.images)


def test_a_cache_of_any_damage_is_made_anew(few_sprites: Sprites) -> None:
    load_sprites()
    path = cache_file()
    good = path.read_bytes()
    with np.load(path) as stored:
        arrays = dict(stored)

    def archive(**changed: object) -> bytes:
        buffer = io.BytesIO()
        kept = {name: value for name, value in {**arrays, **changed}.items() if value is not None}
        np.savez(buffer, **kept)  # type: ignore[arg-type]
        return buffer.getvalue()

    def array(value: object) -> bytes:
        buffer = io.BytesIO()
        np.save(buffer, np.asarray(value))
        return buffer.getvalue()

    plain = archive()
    pixel = plain.index(bytes([200] * 9)) + 4
    method = good.index(b"PK\x01\x02") + 10  # of compression, in the central directory
    damaged = {
        "empty": b"",
        "cut": good[: len(good) // 2],
        "of zeros": bytes(len(good)),
        "method": good[:method] + b"\x63" + good[method + 1 :],
        "encrypted": good[: method - 2] + b"\x01" + good[method - 1 :],
        "a pixel": plain[:pixel] + b"\x07" + plain[pixel + 1 :],
        "an array": array(np.arange(9)),
        "an object": pickle.dumps({"images": 1}),
        "text": b"<html>Not found</html>",
        "one missing": archive(codes=None),
        "objects": archive(images=np.array([{}, []], dtype=object)),
        "floats": archive(images=arrays["images"].astype(np.float32)),
        "another size": archive(images=arrays["images"][:, :8]),
        "fewer": archive(classes=arrays["classes"][:-1]),
        "a class too many": archive(classes=arrays["classes"] + 1),
        "unordered": archive(classes=arrays["classes"][::-1]),
        "no classes": archive(codes=arrays["codes"][:0]),
        "no character": archive(codes=arrays["codes"] + 2**31),
    }
    for name, content in damaged.items():
        path.write_bytes(content)
        with warnings.catch_warnings(record=True) as warned:
            warnings.simplefilter("always")
            found = load_sprites()
        assert len(warned) == 1, name
        assert "is unreadable" in str(warned[0].message), name
        assert torch.equal(found.images, few_sprites.images), name
        with np.load(path) as stored:
            assert all(np.array_equal(stored[key], arrays[key]) for key in arrays), name
    path.unlink()
    path.mkdir()
    with (
        pytest.warns(UserWarning, match="is unreadable"),
        pytest.warns(UserWarning, match="is not cached"),
    ):
        assert torch.equal(load_sprites().images, few_sprites.images)


def test_a_full_disk_leaves_no_cache(few_sprites: Sprites, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(descriptor: int) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(os, "fsync", full)
    with pytest.warns(UserWarning, match="is not cached, .*: .*No space left on device"):
        assert torch.equal(load_sprites().images, few_sprites.images)
    assert list(cache_file().parent.iterdir()) == []


def test_unwritable_cache_is_only_a_warning(
    few_sprites: Sprites, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "file").write_text("not a folder")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "file"))
    with pytest.warns(UserWarning, match="not cached, so the next run makes it again"):
        assert torch.equal(load_sprites().images, few_sprites.images)


def test_cache_follows_xdg_and_the_versions(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    import matplotlib

    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert cache_file().parent == tmp_path / "lpl_fused"
    before = cache_file()
    monkeypatch.setattr(matplotlib, "__version__", "0.0")
    assert cache_file() != before
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    for ignored in ("relative/path", ""):
        monkeypatch.setenv("XDG_CACHE_HOME", ignored)
        assert cache_file().parent == tmp_path / "home" / ".cache" / "lpl_fused"


def test_without_a_home_the_cache_is_temporary(monkeypatch: pytest.MonkeyPatch) -> None:
    def homeless() -> Path:
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    monkeypatch.setattr(Path, "home", homeless)
    assert cache_file().parent == Path(tempfile.gettempdir()) / f"lpl_fused-{os.getuid()}"


# digits


def test_digits_are_long_tailed_with_a_balanced_test() -> None:
    data = load("digits", seed=1)
    counts = data.cls_num_list.sort(descending=True).values
    assert counts.tolist() == long_tail_counts(10, 100, 100).tolist()
    assert counts[0] / counts[-1] == 100
    assert sizes_of_test(data).tolist() == [70] * 10
    both = torch.cat([data.train_inputs, data.test_inputs]).flatten(1)
    assert len(both.unique(dim=0)) == len(both), "an image is in training and test"


def test_digits_follow_the_seed() -> None:
    assert_same(load("digits", seed=2), load("digits", seed=2))
    orders = {tuple(load("digits", seed=seed).cls_num_list.tolist()) for seed in range(4)}
    assert len(orders) == 4, "which digits are frequent depends on the seed"


def test_digits_cannot_have_more_images_than_there_are() -> None:
    with pytest.raises(DataError, match="largest: .* 100 training images per class, got 500"):
        load("digits", largest=500)


# tokens


@pytest.fixture
def library(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A standard library of two modules, and of folders that do not belong to it."""
    (tmp_path / "one.py").write_text("a b c d a b c d a b c d a b c d a b c d rare\n")
    (tmp_path / "sub").mkdir()
    (tmp_path / "sub" / "two.py").write_text("d c b a " * 5, encoding="utf-8")
    for skipped in ("test", "site-packages"):
        (tmp_path / skipped).mkdir()
        (tmp_path / skipped / "other.py").write_text("x y " * 100)
    monkeypatch.setattr(sysconfig, "get_path", lambda name: str(tmp_path))
    return tmp_path


def test_tokens_follow_their_context(library: Path) -> None:
    data = load("tokens", num_classes=4, train_samples=100, context=2)
    assert sorted(data.class_names) == ["a", "b", "c", "d"]
    assert sizes_of_test(data).tolist() == [3] * 4
    assert len(data.train_targets) == 40 - 12  # all that is not in the test
    names = (*data.class_names, "?")
    inputs = torch.cat([data.train_inputs, data.test_inputs])
    targets = torch.cat([data.train_targets, data.test_targets])
    seen = {
        " ".join(names[i] for i in [*context.tolist(), int(target)])
        for context, target in zip(inputs, targets, strict=True)
    }
    forward = {"? ? a", "? a b", "a b c", "b c d", "c d a", "d a b"}
    backward = {"? ? d", "? d c", "d c b", "c b a", "b a d", "a d c"}
    assert seen == forward | backward


def test_tokens_follow_the_seed(library: Path) -> None:
    options = {"num_classes": 4, "train_samples": 10, "context": 1}
    first = load("tokens", seed=5, **options)
    assert len(first.train_targets) == 10
    assert_same(first, load("tokens", seed=5, **options))
    assert not torch.equal(first.test_inputs, load("tokens", seed=6, **options).test_inputs)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"num_classes": 5}, "num_classes: .* has 4 tokens that occur more than 3 times, got 5"),
        ({"num_classes": 4, "train_samples": 3}, "train_samples: expected .* 4 classes, got 3"),
    ],
)
def test_token_errors(library: Path, options: dict[str, int], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load("tokens", **options)


def test_standard_library_is_a_large_zipf_vocabulary() -> None:
    data = load("tokens")
    assert data.num_classes >= 10_000
    assert sizes_of_test(data).unique().tolist() == [3]
    counts = data.cls_num_list
    assert counts.min() >= 1
    assert counts.sum() == 250_000
    # Zipf: count · rank stays within an order of magnitude over three decades of rank
    ranked = counts.sort(descending=True).values.double()
    for rank in (10, 100, 1000):
        assert 0.02 < ranked[rank - 1] * rank / counts.sum() < 0.5
    assert ranked[0] > 1000 * ranked[-1]


# folder


def paint(path: Path, mode: str = "RGB", size: tuple[int, int] = (40, 30)) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.new(mode, size, color=1 if mode == "P" else "red" if mode != "L" else 200).save(path)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """Class folders with 20, 10 and 5 images."""
    for name, number in (("ant", 20), ("bee", 10), ("cat", 5)):
        for i in range(number):
            paint(tmp_path / name / f"{i}.png")
    return tmp_path


def test_folder_draws_a_balanced_test(tree: Path) -> None:
    data = load("folder", path=tree)
    assert data.class_names == ("ant", "bee", "cat")
    assert sizes_of_test(data).tolist() == [1, 1, 1]
    assert data.cls_num_list.tolist() == [19, 9, 4]
    assert data.train_inputs.shape == (32, 3, 32, 32)
    red = torch.tensor([255, 0, 0], dtype=torch.uint8)
    assert torch.equal(data.train_inputs[0, :, 16, 16], red)


@pytest.mark.parametrize(
    ("share", "each"), [(None, 1), (0.2, 1), (0.5, 2), (0.75, 3), (0.999, 4), (1 - 2**-53, 4)]
)
def test_the_share_of_the_test_is_that_of_the_smallest_class(
    tree: Path, share: float | None, each: int
) -> None:
    data = load("folder", path=tree, test_share=share)
    assert sizes_of_test(data).tolist() == [each] * 3
    assert data.cls_num_list.tolist() == [20 - each, 10 - each, 5 - each]


def test_a_share_beside_a_test_split_is_refused(tmp_path: Path) -> None:
    for split in ("train", "test"):
        for name in ("x", "y"):
            paint(tmp_path / split / name / "0.png")
    with pytest.raises(DataError, match=r"test_share: expected none, since .*test is the test set"):
        load("folder", path=tmp_path, test_share=0.5)


def test_folder_follows_the_seed(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(10):
            file = tmp_path / name / f"{i}.png"
            paint(file)
            Image.new("RGB", (8, 8), (i * 20, 0, 0)).save(file)
    first = load("folder", path=tmp_path, seed=1)
    assert sizes_of_test(first).tolist() == [2, 2]
    assert_same(first, load("folder", path=tmp_path, seed=1))
    others = [load("folder", path=tmp_path, seed=seed).test_inputs for seed in (2, 3)]
    assert any(not torch.equal(first.test_inputs, other) for other in others)


@pytest.mark.parametrize(
    ("train_name", "test_name"),
    [("train", "test"), ("train", "val"), ("Train", "VALID"), ("TRAIN", "validation")],
)
def test_folder_takes_a_split_as_it_is(tmp_path: Path, train_name: str, test_name: str) -> None:
    for split, numbers in ((train_name, (7, 3)), (test_name, (2, 4))):
        for name, number in zip(("x", "y"), numbers, strict=True):
            for i in range(number):
                paint(tmp_path / split / name / "deeper" / f"{i}.jpg")
    data = load("folder", path=tmp_path, image_size=16)
    assert data.cls_num_list.tolist() == [7, 3]
    assert sizes_of_test(data).tolist() == [2, 4]
    assert data.test_inputs.shape == (6, 3, 16, 16)


def test_a_test_split_goes_before_a_validation_split(tmp_path: Path) -> None:
    for split, number in (("train", 3), ("valid", 2), ("test", 1)):
        for name in "xy":
            for i in range(number):
                paint(tmp_path / split / name / f"{i}.png")
    assert sizes_of_test(load("folder", path=tmp_path)).tolist() == [1, 1]
    (tmp_path / "Test").mkdir()
    with pytest.raises(DataError, match="has Test and test: which of them"):
        load("folder", path=tmp_path)


def test_a_class_may_be_called_train(tmp_path: Path) -> None:
    for name in ("car", "ship", "train"):
        for i in range(2):
            paint(tmp_path / name / f"{i}.png")
    assert load("folder", path=tmp_path).class_names == ("car", "ship", "train")


def test_train_without_test_says_how_to_have_one_drawn(tmp_path: Path) -> None:
    for name in ("a", "b"):
        for i in range(2):
            paint(tmp_path / "train" / name / f"{i}.png")
    with pytest.raises(DataError, match=f"give {tmp_path}/train to have a test set drawn from it"):
        load("folder", path=tmp_path)
    assert load("folder", path=tmp_path / "train").num_classes == 2


def test_hidden_files_and_folders_are_no_data(tree: Path) -> None:
    expected = load("folder", path=tree)
    for copy in (
        tree / "ant" / ".ipynb_checkpoints" / "0-checkpoint.png",
        tree / ".Trash" / "0.png",
        tree / "__MACOSX" / "ant" / "0.png",
    ):
        paint(copy)
    (tree / "ant" / "._0.png").write_bytes(b"\0\5\x16\7" + bytes(60))
    (tree / "ant" / "Thumbs.db").write_bytes(bytes(60))
    assert_same(load("folder", path=tree), expected)


RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)


@pytest.mark.parametrize(
    ("pixels", "suffix"),
    [
        ((RAMP * 65535).astype(np.uint16), "png"),
        ((RAMP * 65535).astype(np.uint16), "tif"),
        ((RAMP * 65535).astype(">u2"), "tif"),
        (RAMP.astype(np.float32), "tiff"),
        (RAMP.astype(np.float32).T, "TIF"),
    ],
)
def test_more_than_eight_bits_are_scaled_by_their_range(
    tmp_path: Path, pixels: np.ndarray, suffix: str
) -> None:
    plain = np.moveaxis(RAMP * 255, *((0, 1) if suffix == "TIF" else (0, 0)))
    for name, array, ending in (
        ("deep", pixels, suffix),
        ("plain", plain.round().astype(np.uint8), "png"),
    ):
        for i in range(2):
            file = tmp_path / name / f"{i}.{ending}"
            file.parent.mkdir(exist_ok=True)
            Image.fromarray(array).save(file)
    deep, shallow = load("folder", path=tmp_path).train_inputs.int()
    assert (deep - shallow).abs().max() <= 1
    assert deep.float().mean().round() == 128


@pytest.mark.parametrize(
    ("pixels", "message"),
    [
        (np.full((8, 8), 200, np.float32), r"expected numbers in \[0, 1\], got 200 to 200"),
        (np.full((8, 8), -0.5, np.float32), r"expected numbers in \[0, 1\], got -0.5"),
        (np.full((8, 8), np.nan, np.float32), r"expected numbers in \[0, 1\], got nan"),
        (np.full((8, 8), 70000, np.int32), "32 bits have no range"),
    ],
)
def test_pixels_of_unknown_range_are_refused(tree: Path, pixels: np.ndarray, message: str) -> None:
    Image.fromarray(pixels).save(tree / "bee" / "new.tif")
    with pytest.raises(DataError, match=f"cannot read the image .*new.tif: .*{message}"):
        load("folder", path=tree)


@pytest.mark.parametrize("mode", ["RGBA", "LA", "PA", "P"])
def test_what_is_transparent_stands_on_white(tmp_path: Path, mode: str) -> None:
    # black below, seen in the middle alone
    image = Image.new("RGBA", (32, 32), (0, 0, 0, 0))
    image.paste((0, 0, 0, 255), (8, 8, 24, 24))
    if mode in ("P", "PA"):
        image = image.quantize(4) if mode == "P" else image.convert("P").convert("PA")
    elif mode == "LA":
        image = image.convert("LA")
    for name in "xy":
        (tmp_path / name).mkdir()
        for i in range(2):
            if mode == "PA":  # no file format that we read keeps it
                image.convert("RGBA").save(tmp_path / name / f"{i}.png")
            else:
                image.save(tmp_path / name / f"{i}.png")
    found = load("folder", path=tmp_path).train_inputs[0]
    assert (found[:, 16, 16] == 0).all()
    assert (found[:, 2, 2] == 255).all()


@pytest.mark.parametrize("suffix", ["bmp", "gif", "jpg", "png", "ppm", "tif", "webp"])
@pytest.mark.parametrize("kept", [0.0, 0.1, 0.6])
def test_a_truncated_image_is_named(tree: Path, suffix: str, kept: float) -> None:
    file = tree / "bee" / f"cut.{suffix}"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[: int(kept * file.stat().st_size)])
    with pytest.raises(DataError, match=rf"cannot read the image .*cut\.{suffix}"):
        load("folder", path=tree)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"image_size": 0}, r"image_size: expected an int in \[1, 4096\], got 0"),
        ({"image_size": 10**9}, "image_size: .* got 1000000000"),
        ({"path": ""}, "path: expected the path of a folder, got ''"),
    ],
)
def test_folder_options_are_named(tree: Path, options: dict[str, object], message: str) -> None:
    with pytest.raises(DataError, match=message):
        load("folder", **{"path": tree, **options})


def test_all_faults_are_told_at_once_or_left_out(tree: Path) -> None:
    for i in (2, 7):
        (tree / "bee" / f"{i}.png").write_bytes(b"broken")
    (tree / "dog").mkdir()
    paint(tree / "elk" / "0.png")
    (tree / "fox").mkdir()
    (tree / "fox" / "0.png").write_bytes(b"")
    with pytest.raises(DataError) as told:
        load("folder", path=tree)
    lines = str(told.value).splitlines()
    assert lines[0] == f"{tree} has 6 faults (skip_broken leaves them out):"
    for words in (
        "bee/2.png",
        "bee/7.png",
        "'dog' has no images",
        "'elk' has 1 image",
        "fox/0.png",
    ):
        assert sum(words in line for line in lines) == 1, words
    assert sum("'fox' has no image that can be read" in line for line in lines) == 1

    data = load("folder", path=tree, skip_broken=True)
    assert data.class_names == ("ant", "bee", "cat")
    assert data.cls_num_list.tolist() == [19, 7, 4]
    assert [f"  {fault}" for fault in data.left_out] == lines[1:]
    assert load("folder", path=tree / "..", skip_broken=True).left_out != data.left_out


def test_faults_of_a_split_are_told_at_once_or_left_out(tmp_path: Path) -> None:
    for split, names in (("train", "vxyz"), ("test", "wxyz")):
        for name in names:
            paint(tmp_path / split / name / "0.png")
    (tmp_path / "test" / "z" / "0.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="has 4 faults") as told:
        load("folder", path=tmp_path)
    assert "'v' has images in" in str(told.value)
    assert "'w' has images in" in str(told.value)
    data = load("folder", path=tmp_path, skip_broken=True)
    assert data.class_names == ("x", "y")
    assert len(data.left_out) == 4


def test_many_faults_are_counted(tree: Path) -> None:
    for i in range(10):
        (tree / "bee" / f"{i}.png").write_bytes(b"broken")
        (tree / "ant" / f"{i}.png").write_bytes(b"broken")
        (tree / "ant" / f"{i + 10}.png").write_bytes(b"broken")
    with pytest.raises(DataError, match="has 32 faults") as told:
        load("folder", path=tree)
    assert str(told.value).splitlines()[-1] == "  … and 12 more"
    with pytest.raises(DataError, match="is left with 1 class; at least 2 are needed"):
        load("folder", path=tree, skip_broken=True)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGBA", "CMYK"])
def test_folder_reads_any_colour_mode(tmp_path: Path, mode: str) -> None:
    suffix = "tiff" if mode == "CMYK" else "png"
    for name in ("x", "y"):
        for i in range(2):
            paint(tmp_path / name / f"{i}.{suffix}", mode)
    assert load("folder", path=tmp_path).train_inputs.shape == (2, 3, 32, 32)


def spoil_nothing(tree: Path) -> Path:
    return tree / "absent"


def a_file(tree: Path) -> Path:
    return tree / "ant" / "0.png"


def no_classes(tree: Path) -> Path:
    (tree / "empty").mkdir()
    return tree / "empty"


def one_class(tree: Path) -> Path:
    paint(tree / "single" / "only" / "0.png")
    return tree / "single"


def a_class_without_images(tree: Path) -> Path:
    (tree / "dog").mkdir()
    return tree


def a_class_without_test_images(tree: Path) -> Path:
    paint(tree / "dog" / "0.png")
    return tree


def a_class_missing_in_the_test_split(tree: Path) -> Path:
    for split, names in (("train", "xyz"), ("test", "xy")):
        for name in names:
            paint(tree / "split" / split / name / "0.png")
    return tree / "split"


def an_unreadable_image(tree: Path) -> Path:
    (tree / "bee" / "3.png").write_bytes(b"\x89PNG\r\n\x1a\n broken")
    return tree


def a_truncated_image(tree: Path) -> Path:
    file = tree / "bee" / "4.jpg"
    noise = np.random.default_rng(0).integers(0, 255, (64, 64, 3), dtype=np.uint8)
    Image.fromarray(noise).save(file)
    file.write_bytes(file.read_bytes()[:500])
    return tree


@pytest.mark.parametrize(
    ("spoil", "message"),
    [
        (spoil_nothing, "absent does not exist"),
        (a_file, "0.png is not a folder"),
        (no_classes, "empty holds no class folders with images: expected .*CLASS/IMAGE"),
        (one_class, "holds a single class, 'only'; at least 2 are needed"),
        (a_class_without_images, "class 'dog' has no images"),
        (a_class_without_test_images, "class 'dog' has 1 image, so none is left for the test"),
        (a_class_missing_in_the_test_split, "class 'z' has images in .*train but none in .*test"),
        (an_unreadable_image, r"cannot read the image .*bee/3\.png"),
        (a_truncated_image, r"cannot read the image .*bee/4\.jpg.* \(skip_broken leaves it out\)$"),
    ],
)
def test_folder_errors(tree: Path, spoil, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(DataError, match=message):
        load("folder", path=spoil(tree))


def test_an_unreadable_module_is_named(library: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(library / "cache"))
    (library / "odd.py").write_bytes(b"# coding: latin-99\nx = 1\n")
    for name in ("tokens", "tags"):
        with pytest.raises(DataError, match=r"standard library's .*odd\.py cannot be read"):
            load(name, num_classes=4)
