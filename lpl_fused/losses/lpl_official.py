"""What the authors' LPL scripts really compute, for reproducing numbers made with them.

Source: github.com/limengyang1992/lpl at 9fe33e8. They differ from the paper and from `LPLLoss`:

* a step of class c is divided by the norm of *column* c of (class-mean softmax − identity), not of
  its row, so its length depends on how much other classes predict c; 0/0 gives nan;
* classes absent from the batch count as q̄_c = 0 in the mean that splits the classes, and in the
  scale of the step counts; the split is taken anew at every step, from the perturbed logits;
* `adds=2` variants add every step twice, taking their snapshot in between;
* snapshot k holds k + 1 steps, so every class takes at least one; a rounded index of −1 wraps
  around to the last snapshot;
* the long-tail scripts differentiate through all steps, and their logit adjustment is permuted
  from 11 classes on (its keys sort as strings: 0, 1, 10, 11, …, 2, 20, …).

Memory stays O(N·C): only the rows of classes present in the batch are formed.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import torch
from torch import Tensor

from .. import functional, reference
from ..norm import numbers_of
from ..perturbation import Perturbation
from ..problem import Options, Problem, accumulate_dtype
from ..reference.operators import check_not_recorded, fake_rows, opaque, operator, problem_of
from ..validation import Shaped


@dataclass(frozen=True)
class Variant:
    """One script. `head_factor` and `tail_factor` scale the long-tail step counts."""

    step_size: float
    steps: int
    split: str  # "mean": by class-mean probability; "all": every class is raised; "index": by rank
    count: str  # "fixed", "added" (fixed + 0.1·r_c), "varied" (r_c) or "long-tail"
    adds: int = 1
    differentiable: bool = False
    adjusted: bool = False
    head_factor: float = 0.0
    tail_factor: float = 1.0
    head: float = 0.4  # share of the classes that are lowered: 4 of 10, 40 of 100


VARIANTS = {
    "official-balanced": Variant(0.01, 40, "mean", "added", adds=2),  # lpl-balanced/train_lpl.py
    "official-fixed": Variant(0.005, 20, "mean", "fixed"),  # networks/train.py
    "official-adversarial": Variant(0.01, 40, "all", "fixed"),  # networks/train_adv.py
    "official-varied": Variant(0.001, 10, "mean", "varied", adds=2),  # networks/train_var.py
    "official-long-tail-10": Variant(  # lpl-longtail-other/train_lpl_cifar10.py
        0.15, 10, "index", "long-tail", differentiable=True, head_factor=0.6
    ),
    "official-long-tail-100": Variant(  # lpl-longtail-other/train_lpl_cifar100.py
        0.01, 40, "index", "long-tail", differentiable=True, head_factor=0.2
    ),
    "official-la-long-tail": Variant(  # lpl-longtail-100/la_lpl_cifar100.py
        0.2,
        50,
        "index",
        "long-tail",
        differentiable=True,
        adjusted=True,
        head_factor=0.2,
        head=0.27,
    ),
}


def official_cross_entropy(
    input: Tensor,
    target: Tensor,
    variant: Variant,
    counts: Tensor,
    num_head: int,
    keywords: dict[str, Any],
) -> Tensor:
    """Cross-entropy at the script's perturbed logits.

    Args:
        input: logits (C,), (N, C) or (N, C, d1, …).
        target: class indices.
        variant: which script.
        counts: (C,) training samples per class, most frequent first where the split is by index.
        num_head: classes 0 to num_head − 1 are lowered in long-tail scripts.
        keywords: of `functional.cross_entropy`; its backend runs the loss where the perturbation
            is a constant.
    """
    offset = None
    if variant.adjusted:
        offset = official_adjustment(counts).to(input.device, accumulate_dtype(input.dtype))
    options = Options(ignore_index=keywords["ignore_index"])
    options = options.with_norm(numbers_of(keywords.get("norm")))
    options = options._replace(softcap=keywords.get("softcap", 0.0))
    with torch.set_grad_enabled(variant.differentiable and torch.is_grad_enabled()):
        problem = Shaped(input, target).problem(options, Perturbation(offset=offset))
        follows = torch.is_grad_enabled() and problem.input.requires_grad
        if follows and torch.compiler.is_exporting():
            raise RuntimeError(
                "variant: this script differentiates through its steps, whose number is in the"
                " data, which torch.export does not see; export it under torch.no_grad, or in eval"
                " mode"
            )
        if opaque(problem) and not follows:
            made = [getattr(variant, name) for name in _FIELDS]
            delta, slot = _perturbation_op(problem, counts, num_head, *made)
        else:
            check_not_recorded()
            delta, slot = official_perturbation(problem, variant, counts, num_head)
    if variant.differentiable:
        keywords = {**keywords, "backend": "reference"}
    perturbation = Perturbation(offset=offset, rows=delta, row_index=slot.reshape(target.shape))
    loss: Tensor = functional.cross_entropy(input, target, perturbation=perturbation, **keywords)
    return loss


def official_adjustment(counts: Tensor) -> Tensor:
    """(C,) log π, in the order in which class numbers sort as strings."""
    order = sorted(range(len(counts)), key=str)
    return torch.log(counts / counts.sum() + 1e-12)[order]


def official_steps(
    problem: Problem, variant: Variant, counts: Tensor, num_head: int, gap: Tensor
) -> Tensor:
    """(C,) snapshot indices; `gap` is τ − q̄_c of all classes on the clean logits."""
    classes, total = problem.input.shape[1], variant.steps
    if variant.count == "fixed":
        index = torch.full((classes,), total - 1, device=gap.device)
    elif variant.count == "long-tail":
        counts = counts.to(gap.device)
        is_head = torch.arange(classes, device=gap.device) < num_head
        share = torch.where(
            is_head,
            variant.head_factor * counts / counts[0],
            variant.tail_factor * counts[-1] / counts,
        )
        index = torch.round(share * total - 1).long()
        index = torch.where(index < 0, classes - 1, index)  # the last of `classes` snapshots
    else:
        low, high = gap.min(), gap.max()
        ratio = torch.where(gap < 0, gap / low, gap / high)
        if variant.count == "added":
            index = total + torch.round(0.1 * total * ratio - 1).clamp(min=0).long()
        else:
            index = torch.round(total * ratio - 1).clamp(min=0).long()
    return index


def official_perturbation(
    problem: Problem, variant: Variant, counts: Tensor, num_head: int
) -> tuple[Tensor, Tensor]:
    """(delta (N, C), slot (N,)) in the convention of `reference.learned_perturbation`."""
    reference.check_labels(problem)
    kept = problem.target != problem.options.ignore_index
    # garbage in ignored rows (padding) must not reach the norms as 0·nan
    z = reference.perturb(problem).masked_fill(~kept[:, None], 0)
    classes = z.shape[1]
    slot, size = reference.leaders(problem)
    label = problem.target.masked_fill(~kept, 0)[:, None]
    is_leader = (slot == torch.arange(len(slot), device=slot.device)) & kept

    def gaps(p: Tensor) -> Tensor:
        """τ − q̄_c of every class, absent ones with q̄_c = 0."""
        own = p.gather(1, label)[:, 0] / size * kept
        mean = z.new_zeros(classes).index_add(0, label[:, 0], own)
        return mean.mean() - mean

    delta = torch.zeros_like(z)
    snapshot = torch.zeros_like(z)
    with torch.no_grad():
        index = official_steps(problem, variant, counts, num_head, gaps(torch.softmax(z, 1)))
    last = index[label[:, 0]].masked_fill(~is_leader, -1)[:, None]
    for k in range(int(last.max()) + 1 if len(last) else 0):
        p = torch.softmax(z + delta[slot], 1)
        mean = torch.zeros_like(z).index_add(0, slot, p / size[:, None] * kept[:, None])
        g = mean.scatter_add(1, label, -is_leader[:, None].to(z.dtype))
        column_norm = torch.linalg.vector_norm(g, dim=0)[label[:, 0]][:, None]
        if variant.split == "mean":
            sign = torch.sign(gaps(p))[label]
        elif variant.split == "all":
            sign = torch.ones_like(column_norm)
        else:
            sign = torch.where(label < num_head, -1.0, 1.0).to(z.dtype)
        step = torch.where(is_leader[:, None], sign * variant.step_size * g / column_norm, 0.0)
        for repeat in range(variant.adds):
            delta = delta + step
            if repeat == 0:
                snapshot = torch.where(last == k, delta, snapshot)
    return snapshot, slot


_FIELDS = [field.name for field in fields(Variant)]


def _perturbation(*packed: Any) -> tuple[Tensor, Tensor]:
    problem, (counts, num_head, *made) = problem_of(*packed[:5]), packed[5:]
    return official_perturbation(problem, Variant(*made), counts, num_head)


_perturbation_op = operator(
    "official_perturbation",
    "(Tensor delta, Tensor slot)",
    _perturbation,
    fake_rows,
    ", Tensor counts, int num_head, "
    + ", ".join(f"{field.type} {field.name}" for field in fields(Variant)),
)
