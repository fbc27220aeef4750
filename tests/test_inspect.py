"""`lpl-fused inspect`: what it finds in files of each kind, how little it holds, what it refuses."""

from __future__ import annotations

import copy
import json
import math
import re
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor

from lpl_fused import evaluation, losses
from lpl_fused import functional as LF
from lpl_fused.cli import main
from lpl_fused.inspection import classes as inspected
from lpl_fused.inspection import files
from lpl_fused.training import Record, RunSettings

C, N = 6, 150
COUNTS = [400, 100, 60, 25, 10, 5]

pytestmark = pytest.mark.usefixtures("one_thread")


def made(n: int = N) -> dict[str, Tensor]:
    generator = torch.Generator().manual_seed(0)
    labels = torch.multinomial(torch.tensor(COUNTS).double(), n, True, generator=generator)
    labels[:C] = torch.arange(C)
    logits = torch.randn(n, C, generator=generator)
    logits[torch.arange(n), labels] += 1.5
    return {"logits": logits, "labels": labels, "counts": torch.tensor(COUNTS)}


ARRAYS = made()


def save(path: Path, arrays: dict[str, Tensor], compressed: bool = False) -> Path:
    if path.suffix == ".npz":
        writer = np.savez_compressed if compressed else np.savez
        writer(path, **{name: tensor.numpy() for name, tensor in arrays.items()})
    elif path.suffix == ".safetensors":
        save_file(arrays, path)
    else:
        torch.save(arrays, path)
    return path


KINDS = {
    "a.npz": lambda path: save(path, ARRAYS),
    "compressed.npz": lambda path: save(path, ARRAYS, compressed=True),
    "a.pt": lambda path: save(path, ARRAYS),
    "a.pth": lambda path: save(path, ARRAYS),
    "a.safetensors": lambda path: save(path, ARRAYS),
}


def run(*arguments: object) -> int:
    return main(["inspect", *map(str, arguments)])


def told(capsys: pytest.CaptureFixture[str], *arguments: object) -> dict[str, Any]:
    """What --json says."""
    capsys.readouterr()
    assert run(*arguments, "--json") == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def column(found: dict[str, Any], name: str) -> Tensor:
    values = [of_class[name] for of_class in found["classes"]]
    return torch.tensor([math.nan if v is None else v for v in values], dtype=torch.float64)


def refused(capsys: pytest.CaptureFixture[str], *arguments: object) -> str:
    capsys.readouterr()
    assert run(*arguments) == 2
    out, err = capsys.readouterr()
    lines = [line for line in err.splitlines() if "% done" not in line]
    assert out == "" and len(lines) == 1, err
    return lines[0].removeprefix("lpl-fused inspect: error: ")


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return save(tmp_path / "a.pt", ARRAYS)


# what it finds


@pytest.mark.parametrize("name", KINDS)
def test_every_format_tells_the_same(
    name: str, tmp_path: Path, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expected = told(capsys, path, "--counts", "counts", "--batch-size", 40)
    own = tmp_path / "own"
    own.mkdir()
    KINDS[name](own / name)
    found = told(capsys, own / name, "--counts", "counts", "--batch-size", 40)
    assert found.pop("source") == str(own / name)
    expected.pop("source")
    assert found == expected
    assert found["rows"] == N and column(found, "train").tolist() == COUNTS


def test_numbers_of_lpl_are_those_of_its_batches(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, path, "--counts", "counts", "--batch-size", 40)
    criterion = losses.LPLLoss(COUNTS, reduction="none")
    logits, labels = ARRAYS["logits"], ARRAYS["labels"]
    plain = LF.cross_entropy(logits, labels, reduction="none")
    parts = list(zip(logits.split(40), labels.split(40), strict=True))
    perturbed = torch.cat([criterion(*part) for part in parts])
    variation = evaluation.relative_loss_variation(plain, perturbed, labels, C)
    torch.testing.assert_close(column(found, "loss_variation"), variation, equal_nan=True)
    own, norm, times = torch.zeros(3, C)
    for part in parts:
        present, delta = LF.lpl_perturbation(*part, criterion.steps, step_size=0.15, normalize=True)
        for c, of_class in zip(present.tolist(), delta, strict=True):
            own[c] += of_class[c]
            norm[c] += of_class.norm()
            times[c] += 1
    for name, total in (("delta", own), ("delta_norm", norm)):
        torch.testing.assert_close(column(found, name), (total / times).double(), rtol=1e-5, atol=1e-6)  # fmt: skip
    assert column(found, "steps").tolist() == criterion.steps.tolist()
    accuracy = evaluation.accuracy(logits, labels, torch.tensor(COUNTS))
    torch.testing.assert_close(column(found, "accuracy"), accuracy.per_class, equal_nan=True)
    assert found["summary"]["few"]["raised"] == 2 and found["summary"]["many"]["lowered"] == 1
    directions = [of_class["is"] for of_class in found["classes"]]
    assert directions == ["lowered", "lowered", "same", "raised", "raised", "raised"]


@pytest.mark.parametrize("loss", ["la", "cb", "vs", "ce", "focal"])
def test_pieces_are_the_whole(loss: str, path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Of losses without a batch in their equation, whatever is read at a time."""
    whole = told(capsys, path, "--loss", loss, "--counts", "counts", "--batch-size", N)
    assert whole["summary"]["all"]["raised"] > 0 or loss in ("ce", "focal")
    for size in (1, 7, 10**9):
        found = told(capsys, path, "--loss", loss, "--counts", "counts", "--batch-size", size)
        for name in found["classes"][0]:
            if name != "is":
                torch.testing.assert_close(column(found, name), column(whole, name), rtol=1e-6, atol=1e-7, equal_nan=True)  # fmt: skip


def test_tables_of_a_loss(path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    found = told(capsys, path, "--loss", "la", "--counts", "counts", "--set", "la.tau=2")
    expected = 2 * torch.tensor(COUNTS).double().div(sum(COUNTS)).log()
    torch.testing.assert_close(column(found, "offset"), expected, rtol=1e-6, atol=1e-6)
    assert found["options"] == {"tau": 2}
    cosines = {**ARRAYS, "logits": ARRAYS["logits"].tanh()}
    found = told(capsys, save(path.with_name("cosines.pt"), cosines), "--loss", "ldam")
    margins = column(found, "margin")
    assert margins.max() == pytest.approx(0.5) and (column(found, "loss_variation") > 0).all()


def test_steps_and_step_size_are_those_given(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    given = ("--counts", "counts", "--steps", 3, "--step-size", 0.1)
    found = told(capsys, path, *given)
    assert column(found, "steps").tolist() == [-3, -3, 3, 3, 3, 3]
    torch.testing.assert_close(column(found, "delta_norm"), torch.full((C,), 0.3).double(), rtol=0.02, atol=0)  # fmt: skip
    found = told(capsys, path, *given, "--loss", "lpl-balanced")
    steps = column(found, "steps")
    assert steps.abs().max() <= 3 and steps.min() < 0 < steps.max()


@pytest.mark.parametrize("loss", ["lpl", "lpl-balanced"])
def test_bounded_logits_are_looked_at_bounded(
    loss: str, path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bounded = {**ARRAYS, "logits": 1.5 * torch.tanh(ARRAYS["logits"] / 1.5)}
    expected = told(
        capsys, save(path.with_name("bounded.pt"), bounded), "--loss", loss, "--counts", "counts"
    )
    found = told(capsys, path, "--loss", loss, "--counts", "counts", "--set", f"{loss}.softcap=1.5")
    for name in ("perturbed_loss", "steps", "delta", "delta_norm"):
        torch.testing.assert_close(
            column(found, name), column(expected, name), rtol=1e-5, atol=1e-6
        )


def test_running_means_learn_once_from_a_batch(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, path, "--loss", "lpl-ema", "--counts", "counts", "--batch-size", 30)
    criterion = losses.LPLLoss(COUNTS, split="balanced", statistics="ema", reduction="none")
    logits, labels = ARRAYS["logits"], ARRAYS["labels"]
    parts = zip(logits.split(30), labels.split(30), strict=True)
    perturbed = torch.cat([criterion(*part) for part in parts])
    plain = LF.cross_entropy(logits, labels, reduction="none")
    variation = evaluation.relative_loss_variation(plain, perturbed, labels, C)
    torch.testing.assert_close(column(found, "loss_variation"), variation, equal_nan=True)


def test_counts_are_those_of_the_labels_unless_given(
    path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    found = told(capsys, path)
    assert column(found, "train").tolist() == torch.bincount(ARRAYS["labels"], minlength=C).tolist()
    assert column(found, "train").tolist() == column(found, "rows").tolist()


@pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.safetensors"])
@pytest.mark.parametrize(
    ("logits", "labels"),
    [
        (torch.float16, torch.uint8),
        (torch.float64, torch.int8),
        (torch.bfloat16, torch.int32),
        (torch.float32, torch.uint16),
    ],
)
def test_dtypes(
    name: str,
    logits: torch.dtype,
    labels: torch.dtype,
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    if name == "a.npz" and logits == torch.bfloat16:
        return  # NumPy has none
    coarse = ARRAYS["logits"].bfloat16()
    expected = told(capsys, save(tmp_path / "f.pt", {**ARRAYS, "logits": coarse.float()}))
    arrays = {"logits": coarse.to(logits), "labels": ARRAYS["labels"].to(labels)}
    found = told(capsys, save(tmp_path / name, arrays))
    for each in ("accuracy", "loss", "loss_variation", "delta"):
        torch.testing.assert_close(column(found, each), column(expected, each), rtol=1e-5, atol=1e-5)  # fmt: skip


def test_numbers_of_the_other_end(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    expected = told(capsys, save(tmp_path / "a.npz", ARRAYS))
    big = tmp_path / "big.npz"
    np.savez(big, logits=ARRAYS["logits"].numpy().astype(">f4"), labels=ARRAYS["labels"].numpy().astype(">i2"))  # fmt: skip
    assert told(capsys, big)["classes"] == expected["classes"]


@pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.safetensors"])
@pytest.mark.parametrize("label", [-100, 3])
def test_ignored_rows_count_nothing_nan_or_not(
    name: str, label: int, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    kept = torch.arange(N) % 4 != 1
    kept &= ARRAYS["labels"] != label
    logits = ARRAYS["logits"].clone()
    logits[~kept] = math.nan
    labels = ARRAYS["labels"].masked_fill(~kept, label)
    short = {"logits": ARRAYS["logits"][kept], "labels": ARRAYS["labels"][kept]}
    expected = told(capsys, save(tmp_path / "short.pt", short), "--loss", "la")
    arrays = {"logits": logits, "labels": labels}
    found = told(
        capsys, save(tmp_path / name, arrays), "--loss", "la", "--ignore-index", label, "--batch-size", 3
    )  # fmt: skip
    for each in ("train", "rows", "loss", "perturbed_loss", "loss_variation"):
        torch.testing.assert_close(column(found, each), column(expected, each), equal_nan=True)


# how little it holds


@pytest.mark.parametrize("name", ["a.npz", "compressed.npz", "a.pt", "a.safetensors"])
def test_no_more_rows_are_read_than_said(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Counted where files are read: bytes out of an .npz, rows out of what is mapped."""
    read: list[int] = []
    fill, load, add = files._fill, torch.load, inspected._Sums.add

    def filled(stream: Any, content: bytearray) -> None:
        read.append(len(content) // (4 * C))
        fill(stream, content)

    def loaded(*arguments: Any, **keywords: Any) -> Any:
        assert keywords["mmap"] and keywords["weights_only"]
        return load(*arguments, **keywords)

    def added(self: Any, criterion: Any, logits: Tensor, labels: Tensor) -> None:
        read.append(len(logits))
        add(self, criterion, logits, labels)

    class Slice(files._Slice):
        def pieces(self, rows: int) -> Any:
            for piece in super().pieces(rows):
                read.append(len(piece) if piece.dim() == 2 else 0)
                yield piece

    monkeypatch.setattr(files, "_fill", filled)
    monkeypatch.setattr(torch, "load", loaded)
    monkeypatch.setattr(inspected._Sums, "add", added)
    monkeypatch.setattr(files, "_Slice", Slice)
    path = tmp_path / name
    KINDS[name](path)
    told(capsys, path, "--batch-size", 11, "--counts", "counts")
    assert sum(r == 11 for r in read) >= N // 11 and max(read) == 11


def test_the_end_of_an_archive_is_checked(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """One wrong byte among the logits, which would be another number."""
    path = save(tmp_path / "a.npz", ARRAYS)
    content = bytearray(path.read_bytes())
    content[content.index(ARRAYS["logits"].numpy().tobytes()) + 1000] ^= 1
    path.write_bytes(content)
    assert "CRC" in refused(capsys, path)


# a record


@pytest.fixture
def record(tmp_path: Path) -> Path:
    settings = RunSettings.for_data("digits", {"epochs": 1})
    numbers = dict.fromkeys(("overall", "balanced", "many", "medium", "few", "step_ms", "loss_ms"), 0.5)  # fmt: skip
    variation = {"ce": [0.0] * C, "lpl": [-0.5, -0.1, 0.0, 0.2, 0.6, math.nan]}
    results = [
        {
            "loss": loss,
            "seed": seed,
            **numbers,
            "class_accuracy": [0.9, 0.8, 0.7, 0.6, 0.5, math.nan],
            "loss_variation": [v * (seed + 1) for v in values],
        }
        for loss, values in variation.items()
        for seed in (0, 1)
    ]
    sizes = ("classes", "train_examples", "test_examples", "largest_class", "smallest_class", "many_classes", "medium_classes", "few_classes")  # fmt: skip
    whole = Record(
        settings,
        ["ce", "lpl"],
        [0, 1, 2],
        class_counts={0: COUNTS, 1: COUNTS[::-1]},
        results=results,
        data_summary={**dict.fromkeys(sizes, 1), "balanced_test": True},
        environment={"device": "x", "threads": 1},
    )
    whole.save(tmp_path / "run.json")
    return tmp_path / "run.json"


def test_a_record_tells_what_its_runs_measured(
    record: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for source in (record, record.parent):
        found = told(capsys, source)
        assert (found["loss"], found["seed"], found["rows"]) == ("lpl", 0, None)
        assert [c["is"] for c in found["classes"]] == ["lowered", "lowered", "same", "raised", "raised", "–"]  # fmt: skip
        assert column(found, "loss_variation")[:5].tolist() == [-0.5, -0.1, 0.0, 0.2, 0.6]
        assert found["classes"][5]["accuracy"] is None
        assert (found["many_above"], found["few_below"]) == (20, 5)  # those of the digits
    found = told(capsys, record, "--seed", 1, "--loss", "lpl")
    assert column(found, "train").tolist() == COUNTS[::-1]
    assert found["classes"][0]["loss_variation"] == -1.0
    assert run(record) == 0
    assert "seed 0 of" in " ".join(capsys.readouterr().out.split())
    for arguments, message in (
        (["--seed", 2], "with seed 2; it has seeds 0, 1"),
        (["--loss", "la"], "no finished run of loss 'la'; it has ce, lpl"),
        (["--steps", 2], "--steps: .* is a record, which holds no logits"),
        (["--counts", "n"], "--counts: .* is a record"),
    ):
        assert re.search(message, refused(capsys, record, *arguments))


# what it writes


def test_tables_and_files(path: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "new" / "folder"
    assert run(path, "--counts", "counts", "--top", 2, "--out", folder) == 0
    out, err = capsys.readouterr()
    assert "a.pt, 150 rows: 0 % done" in err
    for text in ("few-shot, < 20", "own δ", "2 classes between them are left out", "written: "):
        assert text in out
    assert json.loads((folder / "inspection.json").read_text()) == told(capsys, path, "--counts", "counts")  # fmt: skip
    with Image.open(folder / "inspection.png") as image:
        pixels = np.asarray(image.convert("RGB"))
    for colour in ((0, 114, 178), (213, 94, 0)):  # lowered and raised
        near = (np.abs(pixels.astype(int) - colour) < 90).all(axis=2)
        assert near.sum() > 20
    assert "already holds inspection.json" in refused(capsys, path, "--out", folder)
    assert "got the file" in refused(capsys, path, "--out", path)


# what it refuses


def changed(**arrays: Tensor) -> dict[str, Tensor]:
    return {**copy.deepcopy(ARRAYS), **arrays}


def with_value(name: str, place: tuple[int, ...], value: float) -> dict[str, Tensor]:
    arrays = changed()
    arrays[name][place] = value
    return arrays


@pytest.mark.parametrize("name", ["a.npz", "a.pt", "a.safetensors"])
@pytest.mark.parametrize(
    ("arrays", "arguments", "message"),
    [
        (changed(), ["--logits", "u"], "no array 'u'; it has "),
        (changed(), ["--labels", "y"], "of which --labels names one"),
        (changed(), ["--counts", "n"], "of which --counts names one"),
        (changed(), ["--counts", "labels"], "'labels' has shape (150,), expected one count for each of 6 classes"),
        (changed(counts=torch.tensor([1, 2, 3, 4, 5, -6])), ["--counts", "counts"], "--counts: expected finite counts"),
        (changed(logits=torch.zeros(N)), [], "'logits' has shape (150,), expected (N, C)"),
        (changed(logits=torch.zeros(N, C, 1)), [], "expected (N, C)"),
        (changed(logits=torch.zeros(0, C)), [], "expected (N, C)"),
        (changed(logits=torch.zeros(N, C).int()), [], "expected floating numbers"),
        (changed(labels=torch.zeros(N)), [], "expected integers"),
        (changed(labels=torch.zeros(N - 1).long()), [], "'labels' has shape (149,), expected (150,)"),
        (with_value("labels", (70,), 6), [], "row 70 has the label 6, expected one of 6 classes"),
        (with_value("labels", (70,), -1), ["--counts", "counts", "--batch-size", 9], "row 70 has the label -1"),
        (with_value("logits", (71, 2), math.nan), ["--batch-size", 9], "row 71 has logits that are nan"),
        (with_value("logits", (72, 2), math.inf), ["--batch-size", 9], "the cross-entropy of row 72 is no finite"),
        (changed(labels=torch.full((N,), -100)), [], "all labels are --ignore-index -100"),
        (changed(labels=torch.full((N,), -100)), ["--counts", "counts"], "all labels are --ignore-index"),
        (changed(), ["--loss", "ldam"], "'ldam' expects cosines as logits"),
        (changed(), ["--loss", "isda"], "'isda' needs more than logits and labels; of these"),
        (changed(), ["--loss", "bce"], "'bce' needs more"),
        (changed(), ["--loss", "x"], "'x' is none"),
        (changed(), ["--set", "la.tau=1"], "--set la.tau: 'lpl' is asked"),
        (changed(), ["--set", "lpl.colour=1"], "--set lpl.colour: no option of the loss; it has split"),
        (changed(), ["--set", "lpl.head=9"], "head: expected"),
        (changed(), ["--loss", "la", "--steps", 2], "--steps: 'la' learns no perturbation"),
        (changed(), ["--steps", 2, "--set", "lpl.epsilon=1"], "--steps and --set lpl.epsilon say the same"),
        (changed(), ["--steps", -1], "--steps: expected at least 0"),
        (changed(), ["--step-size", "nan"], "--step-size: expected a number > 0"),
        (changed(), ["--batch-size", 0], "--batch-size: expected at least 1, got 0"),
        (changed(), ["--top", 0], "--top: expected at least 1"),
        (changed(), ["--seed", 1], "is no record of train"),
        (changed(), ["--few-below", 200], "--few-below: expected at most --many-above + 1"),
    ],
)  # fmt: skip
def test_refusals(name, arrays, arguments, message, tmp_path, capsys) -> None:  # type: ignore[no-untyped-def]
    assert message in refused(capsys, save(tmp_path / name, arrays), *arguments)


@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("share", [0.0, 0.3, 0.97])
def test_truncated_files(
    name: str, share: float, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / name
    KINDS[name](path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    message = refused(capsys, path)
    assert message.startswith(f"{path}: ") and "broken" in message


def test_members_that_end_too_early(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Whole archives whose arrays are shorter, or longer, than they say."""
    import io
    import zipfile

    for rows, message in ((N - 1, "ends before"), (N + 1, "longer than its shape")):
        path = tmp_path / f"{rows}.npz"
        with zipfile.ZipFile(path, "w") as archive:
            for name, array in (("logits", np.zeros((rows, C), np.float32)), ("labels", np.zeros(N, int))):  # fmt: skip
                stream = io.BytesIO()
                np.save(stream, array)
                said = stream.getvalue().replace(b"(%d, 6)" % rows, b"(%d, 6)" % N)
                archive.writestr(f"{name}.npy", said)
        assert message in refused(capsys, path)


def test_headers_that_say_anything(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No memory is made for what is not there, and nothing but a line is said."""
    import struct
    import zipfile

    def said(shape: str) -> bytes:
        return b"{'descr': '<f4', 'fortran_order': False, 'shape': %s, }" % shape.encode()

    for number, (header, message) in enumerate(
        [
            (said("(6, 100000000000000)"), "ends before"),
            (said(f"({N}, {2**70})"), "ends before"),
            (said("(-6, -4)"), "has shape (-6, -4)"),
            (said("(6, -4)"), "has shape (6, -4)"),
            (b"(" * 9000, "broken"),
        ]
    ):
        path = tmp_path / f"{number}.npz"
        with zipfile.ZipFile(path, "w") as archive:
            size = struct.pack("<H", len(header) + 1)
            archive.writestr("logits.npy", b"\x93NUMPY\x01\x00" + size + header + b"\n")
        assert message in refused(capsys, path)


def test_counts_that_are_no_numbers(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "words.npz"
    np.savez(path, **ARRAYS, words=np.array(["1"] * C), objects=np.array([{}] * C))
    for name, kind in (("words", "<U1"), ("objects", "object")):
        assert f"{name!r} is of {kind}, expected numbers" in refused(capsys, path, "--counts", name)


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_a_nested_tensor_is_no_array(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, rows = tmp_path / "nested.pt", list(ARRAYS["logits"])
    torch.save({"logits": torch.nested.nested_tensor(rows, layout=torch.strided)}, path)
    assert "no array 'logits'" in refused(capsys, path)


def test_files_that_are_no_arrays(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert "cannot be read: No such file" in refused(capsys, tmp_path / "absent.npz")
    assert "No such file" in refused(capsys, tmp_path / "absent.pt")
    assert "No such file" in refused(capsys, tmp_path / "absent.safetensors")
    assert "expected a file that ends in .npz, .pt" in refused(capsys, tmp_path / "a.csv")
    assert "is not the record of a run" in refused(capsys, tmp_path)
    other = tmp_path / "other.pt"
    torch.save([1, 2], other)
    assert "expected a dict of tensors, got list" in refused(capsys, other)
    torch.save(ARRAYS, other, _use_new_zipfile_serialization=False)
    assert "since torch 1.6" in refused(capsys, other)
    columns = tmp_path / "columns.npz"
    np.savez(columns, logits=np.asfortranarray(ARRAYS["logits"].numpy()), labels=ARRAYS["labels"])
    assert "ascontiguousarray" in refused(capsys, columns)
    objects = tmp_path / "objects.npz"
    np.savez(objects, logits=np.array([[1.0, "x"]], object), labels=np.zeros(1, int))
    assert "expected floating numbers" in refused(capsys, objects)


class Evil:
    def __reduce__(self) -> Any:
        return Path.touch, (Path("touched"),)


def test_no_code_of_a_file_is_run(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    torch.save({**ARRAYS, "more": Evil()}, "evil.pt")
    assert "could run code" in refused(capsys, "evil.pt")
    assert not Path("touched").exists()


def test_without_safetensors_the_extra_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = save(tmp_path / "a.safetensors", ARRAYS)
    monkeypatch.setitem(sys.modules, "safetensors", None)
    assert refused(capsys, path) == 'safetensors is missing: pip install "lpl_fused[inspect]"'
    assert run(save(tmp_path / "a.pt", ARRAYS)) == 0


def test_help_names_every_option(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit, match="0"):
        run("--help")
    text = capsys.readouterr().out
    for option in ("--loss", "--steps", "--counts", "--ignore-index", "--json", "--out", "--top"):
        assert option in text
