"""What callers get wrong: torch's behaviour, or an error that names what was expected and what came."""

from __future__ import annotations

import math

import pytest
import torch

from lpl_fused import GCE, Alpha, Focal, MarginPenalty, MixedTarget, Perturbation, Poly1, losses
from lpl_fused import functional as LF
from lpl_fused.problem import RangeError

EXAMPLE = torch.tensor([[2.0, 1.0, 0.0], [2.0, 1.0, 0.0]])
LABELS = torch.tensor([0, 2])

# What is wrong, what the message must name.
BAD = {
    "input type": (
        lambda: LF.cross_entropy([[1.0, 2.0]], LABELS),
        TypeError,
        "input.*tensor.*list",
    ),
    "no input": (
        lambda: LF.cross_entropy(None, LABELS),
        TypeError,
        "input: expected a tensor, got NoneType",
    ),
    "no labels": (
        lambda: losses.CrossEntropyLoss()(EXAMPLE, None),
        TypeError,
        "target: expected a tensor, got NoneType",
    ),
    "no labels, LPL": (
        lambda: LF.lpl_cross_entropy(EXAMPLE, None, torch.ones(3).int(), step_size=0.1),
        TypeError,
        "target: expected a tensor, got NoneType",
    ),
    "input dtype": (
        lambda: LF.cross_entropy(torch.ones(2, 3).int(), LABELS),
        TypeError,
        "input.*int32",
    ),
    "input 0-dim": (
        lambda: LF.cross_entropy(torch.tensor(1.0), LABELS),
        ValueError,
        "input.*0-dim",
    ),
    "labels that are numbers": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS.float()),
        ValueError,
        r"\(2, 3\), got \(2,\); .*target.long\(\)",
    ),
    "classes last": (
        lambda: LF.cross_entropy(torch.ones(2, 7, 3), torch.ones(2, 7).long()),
        ValueError,
        r"\(2, 3\).*got \(2, 7\); .*movedim",
    ),
    "labels of another shape": (
        lambda: LF.cross_entropy(torch.ones(2, 7, 3), torch.ones(2, 5).long()),
        ValueError,
        r"got \(2, 5\)$",
    ),
    "labels elsewhere": (
        lambda: LF.cross_entropy(EXAMPLE.clone().requires_grad_(), LABELS.to("meta")),
        ValueError,
        "target: expected device cpu, as input, got meta",
    ),
    "an array of labels": (
        lambda: losses.SeesawLoss(3)(EXAMPLE, LABELS.numpy()),
        TypeError,
        "target: expected a tensor, got ndarray",
    ),
    "zero classes": (
        lambda: LF.cross_entropy(torch.ones(2, 0), LABELS),
        ValueError,
        "at least one class.*\\(2, 0\\)",
    ),
    "normalizer beside a mean": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, normalizer=2),
        ValueError,
        'normalizer.*reduction="sum"',
    ),
    "normalizer beside none": (
        lambda: LF.lpl_cross_entropy(
            EXAMPLE, LABELS, LABELS.new_ones(3), step_size=0.1, normalizer=2, reduction="none"
        ),
        ValueError,
        'normalizer.*reduction="sum"',
    ),
    "normalizer of labels beside a mean": (
        lambda: LF.binary_cross_entropy_with_logits(EXAMPLE, EXAMPLE, normalizer=2),
        ValueError,
        'normalizer.*reduction="sum"',
    ),
    "normalizer 0": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, reduction="sum", normalizer=0),
        ValueError,
        "normalizer.*> 0.*0",
    ),
    "normalizer nan": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, reduction="sum", normalizer=float("nan")),
        ValueError,
        "normalizer.*> 0.*nan",
    ),
    "normalizer type": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, reduction="sum", normalizer="2"),
        TypeError,
        "normalizer.*number.*'2'",
    ),
    "normalizer shape": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, reduction="sum", normalizer=torch.ones(1)),
        ValueError,
        "normalizer.*0-dim.*\\(1,\\)",
    ),
    "normalizer dtype": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, reduction="sum", normalizer=torch.tensor(True)),
        TypeError,
        "normalizer.*bool",
    ),
    "normalizer that learns": (
        lambda: LF.cross_entropy(
            EXAMPLE,
            LABELS,
            reduction="sum",
            normalizer=torch.tensor(2.0, requires_grad=True),
            backend="cpp",
        ),
        RuntimeError,
        "normalizer requires grad.*cpp",
    ),
    "target type": (lambda: LF.cross_entropy(EXAMPLE, [0, 2]), TypeError, "target.*list"),
    "target length": (
        lambda: LF.cross_entropy(EXAMPLE, torch.tensor([0])),
        ValueError,
        "target.*\\(2,\\).*\\(1,\\)",
    ),
    "target 2-dim": (
        lambda: LF.cross_entropy(EXAMPLE, torch.zeros(2, 3).long()),
        ValueError,
        "target.*\\(2, 3\\)",
    ),
    "target bool": (
        lambda: LF.cross_entropy(EXAMPLE, torch.ones(2).bool()),
        TypeError,
        r"expected integer class indices of shape \(2,\), got torch.bool of shape \(2,\)$",
    ),
    "target complex": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS.to(torch.complex64)),
        TypeError,
        "target: expected integer class indices.*complex64",
    ),
    "labels that are one-hot": (
        lambda: LF.cross_entropy(EXAMPLE, torch.eye(3)[LABELS].long()),
        ValueError,
        r"target: expected shape \(2,\).*got \(2, 3\); .*target.float\(\) .*MultiLabelLoss",
    ),
    "labels that are one-hot bools": (
        lambda: losses.LPLLoss([3, 2, 1])(EXAMPLE, torch.eye(3)[LABELS].bool()),
        TypeError,
        r"target: expected integer class indices.*bool.*; .*target.float\(\)",
    ),
    "probabilities of 8 bits": (
        lambda: LF.cross_entropy(EXAMPLE, torch.eye(3)[LABELS].to(torch.float8_e4m3fn)),
        TypeError,
        "target .class probabilities.: expected float64, .*got torch.float8_e4m3fn",
    ),
    "target complex, multi-label": (
        lambda: LF.binary_cross_entropy_with_logits(EXAMPLE, EXAMPLE.to(torch.complex64)),
        TypeError,
        "target: expected a real tensor, got torch.complex64",
    ),
    "target complex, multi-label LPL": (
        lambda: losses.MultiLabelLPLLoss([3, 2, 1], split="balanced")(
            EXAMPLE, EXAMPLE.to(torch.complex64)
        ),
        TypeError,
        "target: expected a real tensor, got torch.complex64",
    ),
    "target complex, two classes": (
        lambda: losses.BinaryAlphaLoss()(EXAMPLE, EXAMPLE.to(torch.complex64)),
        TypeError,
        "target: expected a real tensor, got torch.complex64",
    ),
    "no tensor of labels, multi-label LPL": (
        lambda: losses.MultiLabelLPLLoss([3, 2, 1], split="balanced")(EXAMPLE, [0, 2]),
        TypeError,
        "target: expected a tensor, got list",
    ),
    "target too high": (
        lambda: LF.cross_entropy(EXAMPLE, torch.tensor([0, 3])),
        RangeError,
        "target 3 .*< 3",
    ),
    "target negative": (
        lambda: LF.cross_entropy(EXAMPLE, torch.tensor([-1, 0])),
        RangeError,
        "target -1 ",
    ),
    "other out of range": (
        lambda: LF.cross_entropy(EXAMPLE, MixedTarget(LABELS, torch.tensor([0, 9]), 0.5)),
        RangeError,
        "target 9",
    ),
    "probabilities shape": (
        lambda: LF.cross_entropy(EXAMPLE, torch.ones(2, 4)),
        ValueError,
        "probabilities.*\\(2, 3\\).*\\(2, 4\\)",
    ),
    "probabilities with ignore_index": (
        lambda: LF.cross_entropy(EXAMPLE, torch.ones(2, 3), ignore_index=1),
        ValueError,
        "ignore_index",
    ),
    "ignore_index type": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, ignore_index=1.5),
        TypeError,
        "ignore_index.*1.5",
    ),
    "weight length": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, torch.ones(4)),
        ValueError,
        "weight.*\\(3,\\).*\\(4,\\)",
    ),
    "weight type": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, [1.0, 1, 1]),
        TypeError,
        "weight.*list",
    ),
    "sample_weight length": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, sample_weight=torch.ones(3)),
        ValueError,
        "sample_weight.*\\(2,\\)",
    ),
    "reduction": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, reduction="avg"),
        ValueError,
        "reduction.*'avg'",
    ),
    "label_smoothing": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, label_smoothing=1.2),
        ValueError,
        "label_smoothing.*1.2",
    ),
    "label_smoothing by class": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, label_smoothing=torch.tensor([0.1, 1.2, 0.0])),
        ValueError,
        "label_smoothing.*1.2",
    ),
    "label_smoothing by class, nan": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, label_smoothing=torch.full((3,), math.nan)),
        ValueError,
        "label_smoothing.*nan",
    ),
    "label_smoothing by class with probabilities": (
        lambda: LF.cross_entropy(EXAMPLE, torch.ones(2, 3), label_smoothing=torch.zeros(3)),
        ValueError,
        "label_smoothing",
    ),
    "z_loss": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, z_loss=float("nan")),
        ValueError,
        "z_loss.*nan",
    ),
    "norm": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, norm=2.0),
        TypeError,
        "norm.*LogitClip.*2.0",
    ),
    "penalty": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, penalty=0.1),
        TypeError,
        "penalty.*MarginPenalty.*0.1",
    ),
    "penalty without tables": (lambda: MarginPenalty("phr"), ValueError, "multiplier.*phr"),
    "penalty kind": (lambda: MarginPenalty("l2"), ValueError, "kind.*phr.*l2"),
    "penalty of other classes": (
        lambda: LF.cross_entropy(
            EXAMPLE,
            LABELS,
            penalty=MarginPenalty("p2", multiplier=torch.ones(2), rho=torch.ones(2)),
        ),
        ValueError,
        "multiplier: expected shape",
    ),
    "softcap": (lambda: LF.cross_entropy(EXAMPLE, LABELS, softcap=-1.0), ValueError, "softcap.*-1"),
    "phi": (lambda: LF.cross_entropy(EXAMPLE, LABELS, phi="focal"), TypeError, "phi.*'focal'"),
    "backend name": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, backend="gpu"),
        ValueError,
        "backend.*'gpu'",
    ),
    "perturbation type": (
        lambda: LF.cross_entropy(EXAMPLE, LABELS, perturbation={}),
        TypeError,
        "perturbation",
    ),
    "mixed target of two": (
        lambda: LF.cross_entropy(EXAMPLE, (LABELS, LABELS)),
        TypeError,
        "lam.*2 values",
    ),
    "lam above 1": (
        lambda: LF.cross_entropy(EXAMPLE, MixedTarget(LABELS, LABELS, 1.2)),
        ValueError,
        r"target.lam: expected a number in \[0, 1\], got 1.2",
    ),
    "lam below 0": (
        lambda: LF.cross_entropy(EXAMPLE, MixedTarget(LABELS, LABELS, torch.tensor([0.5, -1e-30]))),
        ValueError,
        r"target.lam: expected a number in \[0, 1\], got -1e-30",
    ),
    "lam nan": (
        lambda: losses.LPLLoss([3, 2, 1], split="balanced")(
            EXAMPLE, MixedTarget(LABELS, LABELS, torch.tensor(float("nan")))
        ),
        ValueError,
        r"target.lam: expected a number in \[0, 1\], got nan",
    ),
    "lam infinite, two cosines": (
        lambda: losses.ArcFaceLoss()(
            EXAMPLE / 2, MixedTarget(LABELS, LABELS, torch.tensor(float("inf")))
        ),
        ValueError,
        r"target.lam: expected a number in \[0, 1\], got inf",
    ),
    "lam of features": (
        lambda: LF.linear_cross_entropy(
            EXAMPLE, EXAMPLE, MixedTarget(LABELS % 2, LABELS % 2, 1.01)
        ),
        ValueError,
        r"target.lam: expected a number in \[0, 1\], got 1.01",
    ),
    "counts of other classes": (
        lambda: losses.LogitAdjustedLoss([9, 5, 3, 1])(EXAMPLE, LABELS),
        ValueError,
        r"\(3,\), one entry per class of the logits \(.*of cls_num_list\), got \(4,\)",
    ),
    "counts of other classes, LPL": (
        lambda: losses.LPLLoss([9, 5, 3, 1])(EXAMPLE, LABELS),
        ValueError,
        r"\(3,\), .* per class of the logits \(.*of cls_num_list\), got \(4,\)",
    ),
    "counts of other classes, multi-label": (
        lambda: losses.MultiLabelLDAMLoss([9, 5, 3, 1])(EXAMPLE, EXAMPLE > 1),
        ValueError,
        r"\(3,\), .* dimension of the logits \(.*of cls_num_list\), got \(4,\)",
    ),
    "lam shape": (
        lambda: LF.cross_entropy(EXAMPLE, (LABELS, LABELS, torch.ones(3))),
        ValueError,
        "lam.*\\(2,\\).*\\(3,\\)",
    ),
}
BAD_TABLES = {
    "offset length": ({"offset": torch.ones(2)}, ValueError, "offset.*\\(3,\\).*\\(2,\\)"),
    "scale shape": ({"scale": torch.ones(3, 1)}, ValueError, "scale.*\\(3,\\).*\\(3, 1\\)"),
    "scale type": ({"scale": 2.0}, TypeError, "scale.*float"),
    "margin complex": ({"margin": torch.ones(3, dtype=torch.cfloat)}, TypeError, "margin.*complex"),
    "offset device": ({"offset": torch.ones(3, device="meta")}, ValueError, "offset.*cpu.*meta"),
    "rows 1-dim": ({"rows": torch.ones(3)}, ValueError, "rows.*\\(R, 3\\)"),
    "rows width": ({"rows": torch.ones(2, 4), "row_index": LABELS}, ValueError, "rows.*\\(2, 3\\)"),
    "rows by target": ({"rows": torch.ones(2, 3)}, ValueError, "rows.*one row per class"),
    "row_index alone": ({"row_index": LABELS}, ValueError, "row_index.*without rows"),
    "row_index floating": ({"rows": torch.ones(2, 3), "row_index": torch.ones(2)}, TypeError, "row_index"),
    "row_index range": ({"rows": torch.ones(2, 3), "row_index": torch.tensor([0, 2])}, RangeError, "row_index 2"),
    "temperature zero": ({"temperature": 0.0}, ValueError, "temperature.*0"),
    "temperature shape": ({"temperature": torch.ones(2)}, ValueError, "temperature"),
}  # fmt: skip


@pytest.mark.parametrize("name", BAD)
def test_bad_input(name: str) -> None:
    call, kind, message = BAD[name]
    with pytest.raises(kind, match=message):
        call()


@pytest.mark.parametrize("name", BAD_TABLES)
def test_bad_tables(name: str) -> None:
    tables, kind, message = BAD_TABLES[name]
    with pytest.raises(kind, match=message):
        LF.cross_entropy(EXAMPLE, LABELS, perturbation=Perturbation(**tables))


def test_tables_that_need_labels() -> None:
    target = torch.full((2, 3), 1 / 3)
    for tables in ({"margin": torch.ones(3)}, {"rows": torch.ones(3, 3)}):
        with pytest.raises(ValueError, match="margin|rows"):
            LF.cross_entropy(EXAMPLE, target, perturbation=Perturbation(**tables))


def test_an_index_into_a_table_of_no_rows() -> None:
    """Nobody on a device would see that there is nothing to read."""
    empty = Perturbation(rows=torch.zeros(0, 3), row_index=torch.zeros(2, dtype=torch.int64))
    with pytest.raises(ValueError, match="rows: expected one or more"):
        LF.cross_entropy(EXAMPLE, LABELS, perturbation=empty)
    none = Perturbation(rows=torch.zeros(0, 3), row_index=torch.zeros(0, dtype=torch.int64))
    nothing = torch.zeros(0, 3), torch.zeros(0, dtype=torch.int64)
    assert LF.cross_entropy(*nothing, perturbation=none, reduction="sum") == 0


@pytest.mark.parametrize("target", [3, 10**6, -1, -(2**40)])
def test_labels_out_of_range(backend: str, target: int) -> None:
    """An error on the CPU from the compiled kernels too, as ValueError and as torch's IndexError."""
    if backend in ("triton", "cuda"):
        pytest.skip("poisons the row with nan instead: test_triton_interpreted.py, test_cuda.py")
    for kind in (ValueError, IndexError):
        with pytest.raises(kind, match=f"target {target} "):
            LF.cross_entropy(EXAMPLE, torch.tensor([0, target]), backend=backend)
        with pytest.raises(kind, match=f"target {target} "):
            LF.lpl_cross_entropy(
                EXAMPLE,
                torch.tensor([0, target]),
                torch.ones(3).int(),
                step_size=0.1,
                backend=backend,
            )


@pytest.mark.parametrize("lam", [-0.5, 1.5, float("nan"), float("inf")])
def test_shares_that_nobody_looks_at(lam: float) -> None:
    """As on a GPU: the row is nan, and no other."""
    logits, shares = EXAMPLE.clone().requires_grad_(), torch.tensor([0.25, lam])

    @torch.compile(backend="eager", fullgraph=True)
    def loss(logits: torch.Tensor, shares: torch.Tensor) -> torch.Tensor:
        return LF.cross_entropy(logits, MixedTarget(LABELS, 2 - LABELS, shares), reduction="none")

    found = loss(logits, shares)
    (grad,) = torch.autograd.grad(found.sum(), logits)
    right = LF.cross_entropy(EXAMPLE[:1], MixedTarget(LABELS[:1], 2 - LABELS[:1], 0.25))
    torch.testing.assert_close(found[0], right)
    assert grad[0].isfinite().all()
    assert found[1].isnan() and grad[1].isnan().all()


@pytest.mark.parametrize("bad", [lambda: Alpha(0.0), lambda: Alpha(float("nan")), lambda: GCE(1.5), lambda: Focal(-1.0), lambda: Poly1(float("inf"))])  # fmt: skip
def test_bad_phi(bad: object) -> None:
    with pytest.raises(ValueError, match="got"):
        bad()
