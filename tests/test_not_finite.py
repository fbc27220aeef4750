"""One policy for numbers that are not finite, as docs/reliability.md has it."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from lpl_fused import Focal, LogitClip, MixedTarget, Perturbation, RebalancedWeight, losses
from lpl_fused import functional as LF
from lpl_fused.backends import BACKENDS, REFERENCE, cpp, has_multilabel

N = 6
IGNORED = torch.tensor([1, -100, 3, 1, -100, 0])
BAD = {"nan": float("nan"), "inf": float("inf"), "-inf": -float("inf")}
UPSTREAMS = {"one": 1.0, "half": 0.7, "zero": 0.0, "inf": BAD["inf"], "nan": BAD["nan"]}
DTYPES = [torch.float64, torch.float32, torch.bfloat16, torch.float16]


def rows(classes: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> Tensor:
    return torch.randn(N, classes, generator=torch.Generator().manual_seed(seed)).to(dtype)


def steps(classes: int, count: int = 4) -> Tensor:
    return torch.full((classes,), count, dtype=torch.int32)


Loss = Callable[[Tensor, str, str], Tensor]

# of logits, reduction and backend; rows 1 and 4 are ignored
LOSSES: dict[str, Loss] = {
    "plain": lambda u, r, b: LF.cross_entropy(u, IGNORED, reduction=r, backend=b),
    "offset": lambda u, r, b: LF.cross_entropy(
        u,
        IGNORED,
        perturbation=Perturbation(offset=torch.linspace(-1, 1, u.shape[1])),
        reduction=r,
        backend=b,
    ),
    "smoothed, weighed": lambda u, r, b: LF.cross_entropy(
        u,
        IGNORED,
        torch.linspace(0.5, 2, u.shape[1]),
        label_smoothing=0.1,
        reduction=r,
        backend=b,
    ),
    "mixed": lambda u, r, b: LF.cross_entropy(
        u, MixedTarget(IGNORED, IGNORED, torch.full((N,), 0.3)), reduction=r, backend=b
    ),
    "z-loss, softcap": lambda u, r, b: LF.cross_entropy(
        u, IGNORED, z_loss=0.1, softcap=5.0, reduction=r, backend=b
    ),
    "lpl": lambda u, r, b: LF.lpl_cross_entropy(
        u, IGNORED, steps(u.shape[1]), step_size=0.3, reduction=r, backend=b
    ),
}


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("classes", [5, 70])
@pytest.mark.parametrize("name", LOSSES)
def test_ignored_rows_contribute_nothing(
    named: str, name: str, classes: int, dtype: torch.dtype, reduction: str
) -> None:
    """Whatever their logits, whatever comes from upstream, first and second time."""
    logits = rows(classes, dtype)
    clean = LOSSES[name](logits, reduction, named)
    logits[1], logits[4] = BAD["nan"], BAD["inf"]
    leaf = logits.requires_grad_()
    for upstream, number in UPSTREAMS.items():
        loss = LOSSES[name](leaf, reduction, named)
        torch.testing.assert_close(loss.detach(), clean)
        given = torch.full(loss.shape, number, dtype=loss.dtype)
        for _ in range(2):
            gradient = torch.autograd.grad(loss, leaf, given, retain_graph=True)[0]
            assert not gradient[[1, 4]].any(), (upstream, gradient[[1, 4]])
            if upstream in ("one", "half"):
                assert gradient[[0, 2, 3, 5]].isfinite().all(), upstream


@pytest.mark.skipif(cpp.unavailable() is not None, reason="C++ backend not built")
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("classes", [10, 70])
def test_a_nan_is_one_whatever_its_bits(classes: int, dtype: torch.dtype) -> None:
    """A GPU's has all of them set."""
    numbers = torch.int64 if dtype == torch.float64 else torch.int32
    usual = torch.tensor(BAD["nan"], dtype=dtype).view(numbers)
    labels = torch.zeros(N, classes)
    losses_ = {
        **LOSSES,
        "labels": lambda u, r, b: LF.binary_cross_entropy_with_logits(
            u, labels, reduction=r, backend=b
        ).sum(),
        "labels, lpl": lambda u, r, b: LF.lpl_binary_cross_entropy_with_logits(
            u, labels, steps(classes), step_size=0.3, reduction=r, backend=b
        ).sum(),
    }
    for name, loss in losses_.items():
        found = []
        for bits in (usual, usual | 1, usual | 0xFFFF, torch.full_like(usual, -1)):
            logits = rows(classes, dtype)
            logits[0].view(numbers)[5] = bits
            leaf = logits.requires_grad_()
            made = loss(leaf, "none", "cpp")
            gradient = torch.autograd.grad(made.sum(), leaf)[0]
            found.append((made.isnan(), gradient.isnan()))
        assert found[0][0].any(), name
        for one in found[1:]:
            assert all(map(torch.equal, one, found[0])), name


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_finished_gradient_of_0_hides_nothing(
    named: str, dtype: torch.dtype, reduction: str
) -> None:
    """Its label says whether a row is ignored; one whose weight is 0 hears of an upstream of nan."""
    for upstream in (2.0, BAD["nan"]):
        leaf = rows(70, dtype).requires_grad_()
        loss = LF.cross_entropy(
            leaf,
            IGNORED,
            sample_weight=torch.tensor([0.0, 1, 1, 1, 1, 1]),
            reduction=reduction,
            backend=named,
            gradient="auto" if named == REFERENCE else "sweep",
        )
        given = torch.full(loss.shape, upstream, dtype=loss.dtype)
        gradient = torch.autograd.grad(loss, leaf, given)[0]
        assert not gradient[[1, 4]].any()
        assert bool(gradient[0].isnan().all()) == (upstream != 2)
        assert bool(gradient[[2, 3, 5]].isfinite().all()) == (upstream == 2)


@pytest.mark.parametrize("upstream", UPSTREAMS)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_a_finished_gradient_of_probabilities_hears_of_all(
    named: str, dtype: torch.dtype, upstream: str
) -> None:
    """No row of them is ignored, and no label is read where there is none."""
    target = torch.softmax(rows(7, seed=1), 1)
    found = []
    for backend, form in ((named, "sweep"), (REFERENCE, "auto")):
        leaf = rows(7, dtype).requires_grad_()
        how = {"backend": backend, "gradient": form if backend != REFERENCE else "auto"}
        loss = LF.cross_entropy(leaf, target, **how)
        given = torch.tensor(UPSTREAMS[upstream], dtype=loss.dtype)
        found.append(torch.autograd.grad(loss, leaf, given)[0].double())
    finite = found[1].isfinite()
    assert torch.equal(found[0].isfinite(), finite)
    torch.testing.assert_close(found[0][finite], found[1][finite], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
def test_so_it_is_of_a_label_without_weight(named: str, dtype: torch.dtype) -> None:
    of_labels(named)
    leaf = rows(3, dtype).requires_grad_()
    weight = torch.tensor([0.0, 1, 1])
    loss = LF.binary_cross_entropy_with_logits(
        leaf,
        LABELS,
        pos_weight=weight,
        ignore_index=-1,
        backend=named,
        gradient="auto" if named == REFERENCE else "sweep",
    )
    gradient = torch.autograd.grad(loss, leaf, torch.tensor(BAD["nan"], dtype=loss.dtype))[0]
    assert not gradient[LABELS == -1].any()
    assert gradient[LABELS != -1].isnan().all()


def test_so_it_is_of_tables_that_learn(named: str) -> None:
    logits = rows(70)
    logits[1] = BAD["nan"]
    offset = torch.zeros(70, requires_grad=True)
    loss = LF.cross_entropy(
        logits, IGNORED, perturbation=Perturbation(offset=offset), backend=named
    )
    assert torch.autograd.grad(loss, offset)[0].isfinite().all()


@pytest.mark.parametrize("reduction", ["none", "mean"])
@pytest.mark.parametrize("phi", ["log", Focal(2.0)], ids=str)
def test_a_class_weight_of_0_hides_no_infinite_loss(named: str, phi: Any, reduction: str) -> None:
    """As in torch, of smoothed targets beside a class that is masked out."""
    logits, target = rows(5), torch.tensor([1, 2, 3, 1, 0, 0])
    logits[0, 4] = BAD["-inf"]
    for weight in (torch.ones(5), torch.tensor([1.0, 1, 1, 1, 0])):
        given = {"label_smoothing": 0.1, "reduction": reduction}
        right = F.cross_entropy(logits, target, weight, **given)
        found = LF.cross_entropy(logits, target, weight, phi=phi, backend=named, **given)
        if phi == "log":
            torch.testing.assert_close(found, right, equal_nan=True)
        assert torch.equal(found.isfinite(), right.isfinite())
        spared = torch.tensor([[0.5, 0.5, 0, 0, 0]]).expand(N, 5)  # probabilities
        assert LF.cross_entropy(logits, spared, phi=phi, backend=named).isfinite()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("classes", [5, 1500])
@pytest.mark.parametrize("far", [3.0e38, 1e30, 1.47e9])
@pytest.mark.parametrize("form", ["plain", "smoothed", "mixed", "offset", "clip", "lpl"])
def test_logits_far_from_0(
    named: str, form: str, far: float, classes: int, dtype: torch.dtype
) -> None:
    """They are numbers, up to the largest float: of a rival, of the label, two alike, one a float
    before the other, a row that is far from 0 throughout. On CUDA rows whose largest is beyond
    1.48·10⁹ may be nan, and nothing else but right."""
    if named == "triton" and (classes == 1500) != (form == "plain"):
        pytest.skip("others have them")
    logits, target = rows(classes, dtype), torch.tensor([1, 2, 3, 1, 4, 0])
    logits[0, 3], logits[1, 2], logits[2, 0] = far, far, -far
    logits[3] = -far
    logits[3, [0, 4]] = 0.9 * far
    logits[4] = far
    logits[4, 4] = logits[4, 4] * (1 - torch.finfo(dtype).eps)
    given: dict[str, Any] = {"reduction": "none"}
    goal: Any = target
    if form == "smoothed":
        given["label_smoothing"] = 0.1
    elif form == "mixed":
        goal = MixedTarget(target, target.roll(1), torch.full((N,), 0.25))
    elif form == "offset":
        given["perturbation"] = Perturbation(offset=torch.zeros(classes))
    elif form == "clip":
        given["norm"] = LogitClip(far / 2, BAD["inf"])

    def solved(values: Tensor, backend: str, gradient: str = "auto") -> list[Tensor]:
        leaf = values.clone().requires_grad_()
        how = {"backend": backend, "gradient": gradient, **given}
        if form == "lpl":
            loss = LF.lpl_cross_entropy(leaf, goal, steps(classes), step_size=0.1, **how)
        else:
            loss = LF.cross_entropy(leaf, goal, **how)
        return [loss.detach(), torch.autograd.grad(loss.sum(), leaf)[0]]

    truth, eager = solved(logits.double(), REFERENCE), solved(logits.float(), REFERENCE)
    for gradient in ("auto", "auto" if named == REFERENCE else "statistics"):
        for got, right, plain in zip(solved(logits, named, gradient), truth, eager, strict=True):
            near = {"rtol": 1e-2 if got.dim() > 1 else 1e-5, "atol": 1e-6}
            # plain PyTorch, too, sums what no float holds, and loses δ beside large logits
            there = torch.isclose(plain.double(), right, **near)
            if named == "cuda" and far > 1.48e9:
                there &= ~got.isnan()
            torch.testing.assert_close(got.double()[there], right[there], **near)
            assert not got[5].isnan().any()


@pytest.mark.parametrize("classes", [5, 70])
@pytest.mark.parametrize("by", ["class", "row"])
def test_a_weight_of_0_hides_no_nan(named: str, classes: int, by: str) -> None:
    """As in torch: 0·nan."""
    logits, target = rows(classes), torch.tensor([1, 2, 3, 1, 4, 0])
    logits[0, 4] = BAD["nan"]
    weight = torch.ones(classes if by == "class" else N)
    weight[1 if by == "class" else 0] = 0
    given: dict[str, Any] = {"weight" if by == "class" else "sample_weight": weight}
    found = LF.cross_entropy(logits, target, reduction="none", backend=named, **given)
    assert found[0].isnan()
    assert found[1:].isfinite().all()


@pytest.mark.parametrize("bad", BAD)
@pytest.mark.parametrize("form", ["smoothed", "mixed", "dense", "smoothed focal"])
def test_nor_does_it_of_targets_of_several_classes(named: str, form: str, bad: str) -> None:
    logits, target = rows(5), torch.tensor([1, 2, 3, 1, 4, 0])
    logits[0] = BAD[bad]
    weight = torch.ones(N)
    weight[0] = 0
    given: dict[str, Any] = {"label_smoothing": 0.1} if "smoothed" in form else {}
    if "focal" in form:
        given["phi"] = Focal(2.0)
    goal: Any = target
    if form == "mixed":
        goal = MixedTarget(target, target.flip(0), 0.3)
    elif form == "dense":
        goal = torch.full((N, 5), 0.2)
        given["weight"] = torch.ones(5)  # of rows there are none beside probabilities
    if form != "dense":
        given["sample_weight"] = weight
    leaf = logits.requires_grad_()
    found = LF.cross_entropy(leaf, goal, reduction="none", backend=named, **given)
    gradient = torch.autograd.grad(found.sum(), leaf)[0]
    assert found[0].isnan()
    assert gradient[0].isnan().all()
    assert found[1:].isfinite().all()
    assert gradient[1:].isfinite().all()


@pytest.mark.parametrize("classes", [5, 70])
@pytest.mark.parametrize("all_of", ["the label", "the others"])
def test_what_has_no_share_of_a_smoothed_label_does_not_count(
    named: str, classes: int, all_of: str
) -> None:
    """A class that is masked out, and where labels are not smoothed, or are nothing but smoothed:
    0·∞ is 0 here, as where a target says so of every class."""
    target = torch.tensor([1, -100, 3, 1, 2, 0])
    kept = target != -100
    whole = F.one_hot(target[kept], classes).float()
    if all_of == "the others":
        whole = torch.full_like(whole, 1 / classes)
    masked = 4 if all_of == "the label" else 3  # beside the labels, or one of them

    def asked(**keywords: Any) -> tuple[Tensor, Tensor]:
        logits = rows(classes).masked_fill(torch.arange(classes) == masked, -torch.inf)
        if isinstance(keywords["target"], Tensor) and keywords["target"].is_floating_point():
            logits = logits[kept]
        logits.requires_grad_()
        loss = LF.cross_entropy(logits, reduction="none", backend=named, **keywords)
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        return loss.detach(), grad

    smoothing = torch.full((classes,), float(all_of == "the others"))
    wanted, wanted_grad = asked(target=whole)
    for one in (smoothing, smoothing[0].item()):
        loss, grad = asked(target=target, label_smoothing=one)
        torch.testing.assert_close(loss[kept], wanted)
        torch.testing.assert_close(grad[kept], wanted_grad)
        assert (loss[~kept] == 0).all() and (grad[~kept] == 0).all()
    infinite = wanted.isinf()
    assert infinite.all() if all_of == "the others" else not infinite.any()


@pytest.mark.parametrize("classes", [5, 70])
@pytest.mark.parametrize("bad", BAD)
def test_a_row_that_has_no_softmax_is_nan(named: str, classes: int, bad: str) -> None:
    logits, target = rows(classes), torch.tensor([1, 2, 3, 1, 4, 0])
    logits[2] = BAD[bad]
    leaf = logits.requires_grad_()
    loss = LF.cross_entropy(leaf, target, reduction="none", backend=named)
    gradient = torch.autograd.grad(loss.sum(), leaf)[0]
    others = [0, 1, 3, 4, 5]
    assert loss[2].isnan()
    assert gradient[2].isnan().all()
    assert loss[others].isfinite().all()
    assert gradient[others].isfinite().all()


@pytest.mark.parametrize("classes", [5, 70])
@pytest.mark.parametrize(
    ("count", "company", "normalize"),
    [
        *itertools.product([1, 2, 3, 6, -6, 40], [False, True], [False]),
        *[(count, True, True) for count in (1, -6, 40)],
    ],
)
def test_a_class_with_such_a_row_has_no_perturbation(
    named: str, classes: int, count: int, company: bool, normalize: bool
) -> None:
    """δ of the class is nan, and so are its rows; no other class hears of it."""
    target = torch.tensor([2, 2 if company else 0, 1, 4, 3, 1])
    own = target == 2

    taken: dict[str, Any] = {"step_size": 0.1, "backend": named, "normalize": normalize}

    def losses_of(logits: Tensor) -> Tensor:
        counts = steps(classes, count)
        return LF.lpl_cross_entropy(logits, target, counts, reduction="none", **taken)

    kept = losses_of(rows(classes))
    for where, (bad, number) in itertools.product(("a logit", "the row"), BAD.items()):
        logits = rows(classes)
        logits[0, slice(None) if where == "the row" else 3] = number
        loss = losses_of(logits)
        present, delta = LF.lpl_perturbation(logits, target, steps(classes, count), **taken)
        masked = bad == "-inf" and where == "a logit"  # a class that is masked out is none
        assert bool(loss[own].isnan().all()) != masked, (where, bad)
        assert bool(delta[present == 2].isnan().any()) != masked, (where, bad)
        torch.testing.assert_close(loss[~own], kept[~own])
        assert delta[present != 2].isfinite().all(), (where, bad)


@pytest.mark.parametrize("classes", [5, 70])
@pytest.mark.parametrize("bad", ["nan", "inf"])
@pytest.mark.parametrize("normalize", [False, True])
def test_a_class_that_takes_no_steps_has_a_perturbation_of_0(
    named: str, classes: int, bad: str, normalize: bool
) -> None:
    target = torch.tensor([1, 2, 1, 3, 1, 0])
    logits, counts = rows(classes), steps(classes)
    logits[0, 4], counts[1] = BAD[bad], 0
    keywords: dict[str, Any] = {"step_size": 0.3, "normalize": normalize, "backend": named}
    present, delta = LF.lpl_perturbation(logits, target, counts, **keywords)
    assert (delta[present == 1] == 0).all()
    assert (delta[present != 1] != 0).any(1).all()
    # where tables learn δ is handed over
    offset = torch.zeros(classes, requires_grad=True)
    loss = LF.lpl_cross_entropy(
        logits,
        target,
        counts,
        perturbation=Perturbation(offset=offset),
        reduction="none",
        **keywords,
    )
    assert loss.isnan().tolist() == [True] + [False] * 5
    torch.testing.assert_close(
        loss[[2, 4]], F.cross_entropy(logits, target, reduction="none")[[2, 4]]
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("n", [1, 2])
@pytest.mark.parametrize("classes", [1, 9, 700])
def test_a_label_without_rivals_has_a_loss_of_0(
    named: str, classes: int, n: int, dtype: torch.dtype
) -> None:
    """All others are masked out, or there are none; wherever the label's logit lies."""
    target = torch.zeros(n, dtype=torch.int64)
    for where, count in itertools.product((-3e4, -100.0, 1e4), (0, 5)):
        logits = torch.full((n, classes), BAD["-inf"], dtype=dtype)
        logits[:, 0] = where
        logits.requires_grad_()
        loss = LF.lpl_cross_entropy(
            logits, target, steps(classes, count), step_size=0.3, reduction="none", backend=named
        )
        (grad,) = torch.autograd.grad(loss.sum(), logits)
        assert not loss.any() and not grad.any(), (where, count)


@pytest.mark.parametrize("classes", [5, 70])
def test_a_mean_without_weight_is_nan_where_rows_live(named: str, classes: int) -> None:
    leaf = rows(classes).requires_grad_()
    loss = LF.cross_entropy(leaf, IGNORED, torch.zeros(classes), backend=named)
    gradient = torch.autograd.grad(loss, leaf)[0]
    assert loss.isnan()
    assert gradient[[0, 2, 3, 5]].isnan().all()
    assert not gradient[[1, 4]].any()


def of_labels(named: str) -> None:
    if named in BACKENDS and not has_multilabel(named):
        pytest.skip(f"{named} has no multi-label losses")


LABELS = torch.tensor([[1.0, -1, 0], [-1, -1, -1], [0, 1, 1], [1, 0, -1], [-1, 1, 0], [0, 0, -1]])


@pytest.mark.parametrize("reduction", ["none", "mean", "sum"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("weights", ["none", "by class", "by row"])
def test_missing_labels_contribute_nothing(
    named: str, weights: str, dtype: torch.dtype, reduction: str
) -> None:
    of_labels(named)
    logits, missing = rows(3, dtype), LABELS == -1
    given: dict[str, Any] = {"ignore_index": -1, "reduction": reduction, "backend": named}
    if weights != "none":
        given["pos_weight"] = torch.full((3,) if weights == "by class" else (N, 1), 2.0)
    clean = LF.binary_cross_entropy_with_logits(logits, LABELS, **given)
    leaf = logits.masked_fill(missing, BAD["nan"]).requires_grad_()
    for upstream, number in UPSTREAMS.items():
        loss = LF.binary_cross_entropy_with_logits(leaf, LABELS, **given)
        torch.testing.assert_close(loss.detach(), clean)
        whole = torch.full(loss.shape, number, dtype=loss.dtype)
        for _ in range(2):
            gradient = torch.autograd.grad(loss, leaf, whole, retain_graph=True)[0]
            assert not gradient[missing].any(), upstream
            if upstream in ("one", "half"):
                assert gradient[~missing].isfinite().all(), upstream


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
@pytest.mark.parametrize("labels", ["bool", "float", "missing"])
@pytest.mark.parametrize("shape", [(4,), (1, 1), (1, 4)], ids=str)
def test_a_weight_of_0_hides_no_infinite_loss_of_a_label(
    named: str, shape: tuple[int, ...], labels: str, dtype: torch.dtype
) -> None:
    """A label that is there, as torch's is; the one that is not does not count."""
    of_labels(named)
    logits = torch.tensor([[BAD["inf"], 1.0, BAD["-inf"], BAD["-inf"]]], dtype=dtype)
    target = torch.tensor([[0.0, 1.0, 1.0, 0.0]])
    given: dict[str, Any] = {"ignore_index": -1} if labels == "missing" else {}
    loss = LF.binary_cross_entropy_with_logits(
        logits,
        target.bool() if labels == "bool" else target,
        torch.zeros(shape),
        reduction="none",
        backend=named,
        **given,
    )
    torch.testing.assert_close(loss, torch.tensor([[BAD["nan"], 0, BAD["nan"], 0]]), equal_nan=True)


@pytest.mark.parametrize("weights", ["none", "by row"])
def test_a_mean_of_no_label_has_no_gradient(named: str, weights: str) -> None:
    of_labels(named)
    leaf = rows(60).requires_grad_()
    given: dict[str, Any] = {} if weights == "none" else {"pos_weight": torch.ones(N, 1)}
    loss = LF.binary_cross_entropy_with_logits(
        leaf, torch.full((N, 60), -1.0), ignore_index=-1, backend=named, **given
    )
    assert loss.isnan()
    assert not torch.autograd.grad(loss, leaf)[0].any()


def test_rows_without_positives_have_gradients_by_their_weights() -> None:
    """Checked against differences: the counts, and soft labels of a row of zeros."""
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(3, 4, generator=generator, dtype=torch.float64)
    labels = torch.tensor([[1, 0, 0, 1], [0, 0, 0, 0], [0, 1, 0, 0]], dtype=torch.float64)

    def loss(inverse: Tensor) -> Tensor:
        return LF.binary_cross_entropy_with_logits(
            logits, labels, rebalance=RebalancedWeight(inverse), backend=REFERENCE
        )

    leaf = (torch.rand(4, generator=generator, dtype=torch.float64) + 0.1).requires_grad_()
    assert torch.autograd.gradcheck(loss, leaf)
    for given in ({}, {"weighting": "class-balanced", "weighting_mode": "average-weight"}):
        soft = labels.clone().requires_grad_()
        made = losses.DistributionBalancedLoss([5, 4, 3, 2], 20, **given)
        assert torch.autograd.grad(made(logits, soft), soft)[0].isfinite().all()
