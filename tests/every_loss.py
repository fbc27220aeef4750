"""Every loss of the package made, called and led through epochs the natural way: one table for
whoever walks them all. Those of one label are `compositions.ENTRIES`; here are the others, and
variants of what evolves."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from compositions import COUNTS, ENTRIES, GROUP_COUNTS, A, C, Call, Entry, G, plain
from torch import Tensor, nn

from lpl_fused import losses, schedules

SAMPLES, COPIES = 64, 2
# of the arguments of a loss, those that may want a gradient; the classifier is no batch's
LEAVES = ("logits", "logit", "clean", "mixed", "feature_norm", "classifier_weight")
SHARED = ("classifier_weight",)
ROWS_SECOND = ("clean", "mixed")
Make = Callable[..., nn.Module]


@dataclass(frozen=True)
class Batch:
    """What any loss of the table may be called with; rows first, but for `ROWS_SECOND`."""

    step: int
    logits: Tensor  # (n, C)
    target: Tensor  # (n,), one class after the other, the second row ignored
    group: Tensor
    index: Tensor
    feature_norm: Tensor
    features: Tensor  # (n, A)
    labels: Tensor  # (n, C), of several classes, those of the second row missing
    logit: Tensor  # (n,)
    half: Tensor  # (n,), labels 0 and 1
    clean: Tensor  # (COPIES, n, C)
    mixed: Tensor
    lam: Tensor
    classifier_weight: Tensor  # (C, A)
    right: Tensor  # (C,) held-out samples that were recognised
    held: Tensor  # (C,) held-out samples

    @property
    def rows(self) -> int:
        return len(self.target)

    def changed(self, change: Callable[[str, Tensor, int], Tensor]) -> Batch:
        """`change` of every tensor that has rows, by name, and where they are."""
        apart = ("classifier_weight", "right", "held")
        names = [name for name in self.__dataclass_fields__ if name not in ("step", *apart)]
        return replace(
            self,
            **{name: change(name, getattr(self, name), int(name in ROWS_SECOND)) for name in names},
        )

    def some(self, rows: Tensor | list[int]) -> Batch:
        chosen = torch.as_tensor(rows, dtype=torch.int64)
        return self.changed(lambda _, tensor, at: tensor.index_select(at, chosen))

    def share(self, rows: list[int], rank: int, ranks: int) -> Batch:
        """Of one rank: its rows, and every `ranks`-th held-out sample."""
        held = (self.held - rank + ranks - 1).div(ranks, rounding_mode="floor").clamp(min=0)
        right = (self.right - rank + ranks - 1).div(ranks, rounding_mode="floor").clamp(min=0)
        return replace(self.some(rows), held=held, right=right)

    def to(self, dtype: torch.dtype) -> Batch:
        """What a network computes, as it computes it; the classifier is its parameter."""
        return self.changed(
            lambda _, tensor, __: tensor.to(dtype) if tensor.is_floating_point() else tensor
        )


def batch(step: int, n: int = 8, *, cosines: bool = False) -> Batch:
    made = torch.Generator().manual_seed(step)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=made)

    logits = 2 * normal(n, C)
    target = torch.arange(n) % C  # 0, ignored, 2, …
    target[1:2] = -100
    labels = (torch.rand(n, C, generator=made) < 0.4).long()
    labels[1:2], labels[:1, 1], labels[2:3, 2] = -1, 1, 1
    return Batch(
        step,
        torch.tanh(logits) * 0.95 if cosines else logits,
        target,
        torch.randint(G, (n,), generator=made),
        torch.randperm(SAMPLES, generator=made)[:n],
        1 + torch.rand(n, generator=made),
        normal(n, A),
        labels,
        normal(n),
        torch.arange(n) % 2,
        *(normal(COPIES, n, C) for _ in range(2)),
        torch.rand(n, generator=made) / 2,
        torch.randn(C, A, generator=torch.Generator().manual_seed(99)),
        torch.randint(1, 8, (C,), generator=made),
        torch.full((C,), 9),
    )


@dataclass(frozen=True)
class Subject:
    """A loss as its user has it.

    Args:
        make: the module, from keywords (`reduction`, `data_group`).
        takes: what it is called with, names of `Batch`.
        by_row: what makes it give the losses of rows; None where it couples them.
        lead: what its user does before a step, once an epoch.
        cosines: the logits are cosines.
    """

    make: Make
    takes: tuple[str, ...] = ("logits", "target")
    by_row: dict[str, Any] | None = None
    lead: Callable[[Any, Batch], None] | None = None
    cosines: bool = False

    @property
    def evolves(self) -> bool:
        """Whether a call changes the state."""
        loss = self.make()
        before = states(loss)
        self.step(loss, self.batch(0), lead=False)
        return any(
            isinstance(value, Tensor) and not torch.equal(value, before[key])
            for key, value in states(loss).items()
        )

    def batch(self, step: int, n: int = 8) -> Batch:
        return batch(step, n, cosines=self.cosines)

    def leaves(self, batch: Batch) -> dict[str, Tensor]:
        """The arguments of a call, those that want a gradient as leaves."""
        return {
            name: getattr(batch, name).detach().clone().requires_grad_()
            if name in LEAVES
            else getattr(batch, name)
            for name in self.takes
        }

    def step(
        self,
        loss: nn.Module,
        batch: Batch,
        call: Callable[..., Tensor] | None = None,
        lead: bool = True,
    ) -> dict[str, Tensor]:
        """One step: "loss", and the gradients by what the loss was called with and its parameters.

        `call`: what is called in place of the loss."""
        if lead and self.lead is not None:
            self.lead(loss, batch)
        arguments = self.leaves(batch)
        torch.manual_seed(batch.step)
        value = (loss if call is None else call)(*arguments.values())
        wanted = {name: leaf for name, leaf in arguments.items() if leaf.requires_grad}
        wanted.update(loss.named_parameters())
        loss.zero_grad()
        value.sum().backward()  # which a reentrant checkpoint wants
        found = {"loss": value.detach()}
        for key, leaf in wanted.items():
            found[key] = torch.zeros_like(leaf) if leaf.grad is None else leaf.grad.clone()
        return found


def states(loss: nn.Module) -> dict[str, Any]:
    """All of `state_dict`, extra state too."""
    return {
        name: value.clone() if isinstance(value, Tensor) else value
        for name, value in loss.state_dict().items()
    }


# what users do once an epoch; an epoch is a step here


def deferred_weights(loss: Any, batch: Batch) -> None:
    loss.weight = schedules.drw_weights(COUNTS, batch.step, 2) if batch.step else None


def next_epoch(loss: Any, batch: Batch) -> None:
    loss.set_epoch(batch.step)


def accuracies(loss: Any, batch: Batch) -> None:
    loss.update(batch.right.double() / batch.held, batch.held)


def held_out(loss: Any, batch: Batch) -> None:
    loss.observe(batch.logits[batch.target != loss.ignore_index])
    if batch.step % 2:
        loss.update()


def prune(loss: Any, batch: Batch) -> None:
    loss.update(batch.logits, batch.target, batch.index)


def grow(loss: Any, batch: Batch) -> None:
    loss.strength = schedules.isda_strength(batch.step + 1, 4)


LEADS: dict[str, Callable[[Any, Batch], None]] = {
    "LDAMLoss": deferred_weights,
    "CDBLoss": accuracies,
    "IBLoss": next_epoch,
    "CALSLoss": held_out,
    "TruncatedGCELoss": prune,
    "ISDALoss": grow,
}


def of_entry(name: str, entry: Entry) -> Subject:
    rows = torch.zeros(SAMPLES, C)
    extra = {"features": torch.zeros(1, A)}

    def make(**keywords: Any) -> nn.Module:
        group = {key: keywords.pop(key) for key in ("data_group",) if keywords.get(key) is not None}
        loss = maker(Call(rows, torch.zeros(SAMPLES).long(), {**start, **keywords}, extra=extra))  # fmt: skip
        for key, value in group.items():
            setattr(loss, key, value)
        return loss

    maker = plain(losses.CDBLoss, C, 1.5) if name == "CDBLoss" else entry.make  # that is trained
    couples = "none" in entry.refuses
    base_rows = "mean" in entry.refuses and not couples
    start = {"reduction": "none"} if base_rows else {}
    return Subject(
        make,
        ("logits", "target", *entry.further),
        None if couples or base_rows else {"reduction": "none"},
        LEADS.get(name),
        entry.cosines,
    )


def rows_first(loss: Make, *arguments: Any, **own: Any) -> Make:
    return lambda **keywords: loss(*arguments, **own, **keywords)


NONE = {"reduction": "none"}
MULTI = ("logits", "labels")
MISSING = {"ignore_index": -1}
EMA: dict[str, Any] = {"split": "balanced", "statistics": "ema", "delta_epsilon": 3.0}


def two_stages(loss: Any, batch: Batch) -> None:
    loss.set_epoch(batch.step // 2)


VARIANTS: dict[str, Subject] = {
    "ABSGDLoss, two stages": Subject(
        lambda **keywords: losses.ABSGDLoss(
            -1.0, start_epoch=1, first_lam=2.0, gamma=0.3, bias_correction=True, **keywords
        ),
        lead=two_stages,
    ),
    "GroupDROLoss, CVaR": Subject(
        rows_first(losses.GroupDROLoss, GROUP_COUNTS, cvar=0.4, adjustment=0.5),
        ("logits", "target", "group"),
    ),
    "GroupDROLoss, adjusted": Subject(
        rows_first(losses.GroupDROLoss, GROUP_COUNTS, step_size=0.3, adjustment=0.5),
        ("logits", "target", "group"),
    ),
    "LPLLoss, running means": Subject(rows_first(losses.LPLLoss, COUNTS, **EMA), by_row=NONE),
    "ISDALoss, full": Subject(
        rows_first(losses.ISDALoss, C, A, covariance="full", decay=0.9),
        ("logits", "target", "features", "classifier_weight"),
        NONE,
        grow,
    ),
    "MultiLabelLoss": Subject(rows_first(losses.MultiLabelLoss, **MISSING), MULTI, NONE),
    "AsymmetricLoss": Subject(rows_first(losses.AsymmetricLoss, 1.0, **MISSING), MULTI, NONE),
    "MultiLabelLDAMLoss": Subject(
        rows_first(losses.MultiLabelLDAMLoss, COUNTS, **MISSING), MULTI, NONE
    ),
    **{
        f"DistributionBalancedLoss{name}": Subject(
            rows_first(losses.DistributionBalancedLoss, COUNTS, 86, **own, **MISSING), MULTI, NONE
        )
        for name, own in {
            "": {},
            ", by row": {"weighting": "inverse", "weighting_mode": "average-count"},
            ", class-balanced": {
                "weighting": "class-balanced",
                "weighting_mode": "average-weight",
                "weight_norm": "by-row",
            },
            ", by batch": {
                "weighting": "inverse",
                "weighting_mode": "average-weight",
                "weight_norm": "by-batch",
            },
        }.items()
    },
    "MultiLabelLPLLoss": Subject(
        rows_first(losses.MultiLabelLPLLoss, COUNTS, **MISSING), MULTI, NONE
    ),
    "MultiLabelLPLLoss, running means": Subject(
        rows_first(losses.MultiLabelLPLLoss, COUNTS, normalize=False, **EMA, **MISSING), MULTI, NONE
    ),
    "BinaryAlphaLoss": Subject(losses.BinaryAlphaLoss, ("logit", "half"), NONE),
    "BinaryVSLoss": Subject(rows_first(losses.BinaryVSLoss, [50, 7]), ("logit", "half"), NONE),
    "SmoothMixLoss": Subject(losses.SmoothMixLoss, ("clean", "mixed", "lam", "target")),
}
SUBJECTS: dict[str, Subject] = {
    **{name: of_entry(name, entry) for name, entry in ENTRIES.items()},
    **VARIANTS,
}


def state_of(name: str) -> list[str]:
    """What the state of a loss has after its user's first steps."""
    subject = SUBJECTS[name]
    loss = subject.make()
    for step in range(2):
        subject.step(loss, subject.batch(step))
    held = loss.state_dict()
    extra = [key for key in held if key.endswith("_extra_state")]
    return [key for key in held if key not in extra] + (["epoch"] if extra else [])


# Why a loss and its gradient are not what one process on all rows has; its state is all the same.
OWN_ROWS = "each rank learns δ from its own rows"
OWN_DRAWS = "each rank draws its own random numbers"
TELLS = {
    "LPLLoss": OWN_ROWS,
    "LPLLoss, balanced": OWN_ROWS,
    "LPLLoss, official": OWN_ROWS,
    "LPLLoss, running means": OWN_ROWS,
    "MultiLabelLPLLoss, running means": OWN_ROWS,
    "GCLLoss": OWN_DRAWS,
    "BLVLoss": OWN_DRAWS,
    "SoftmaxEQLLoss": OWN_DRAWS,
    "LADELoss": "the regulariser is that of the rank's own rows, as in the authors' code",
    "SmoothMixLoss": "both means are over the rank's own rows: equal shares average to the whole",
    "DistributionBalancedLoss, by batch": "weights are divided by the largest of the rank's own rows",
}
# Of the state: sums of an epoch under way
UNDER_WAY = {"CALSLoss": ("sums", "observed")}
UNDER_WAY_NOTE = (
    "`sums` and `observed` are a rank's own until `update` joins them: save between epochs"
)


def poisoned(whole: Batch, bad: float) -> tuple[Batch, Batch]:
    """Two rows spoilt, and what is left without them: the first has `bad` in the second place,
    where one-vs-rest has a label, the third the likelihood 0 of its label."""

    def spoil(name: str, tensor: Tensor, at: int) -> Tensor:
        if not tensor.is_floating_point() or name in ("lam", "feature_norm"):
            return tensor
        rows = tensor.clone().movedim(at, 0)
        if name == "logit":
            rows[0], rows[2] = bad, math.inf  # the label is 0
            return rows
        rows[0, ..., 1] = bad
        rows[2, ..., 2] = math.inf if name == "features" else -math.inf
        return rows.movedim(0, at)

    others = [row for row in range(whole.rows) if row not in (0, 2)]
    return whole.changed(spoil), whole.some(others)


def without_spoilt_labels(whole: Batch) -> Batch:
    """What `poisoned` leaves of many labels: those of the other logits."""
    labels = whole.labels.clone()
    labels[0, 1] = labels[2, 2] = -1
    return replace(whole, labels=labels)


def nothing_counts(whole: Batch) -> Batch:
    """All rows ignored, and what is beneath them anything."""

    def change(name: str, tensor: Tensor, at: int) -> Tensor:
        if name in ("target", "labels"):
            return torch.full_like(tensor, -100 if name == "target" else -1)
        if name in ("logits", "features"):
            return torch.full_like(tensor, math.nan)
        return tensor

    return whole.changed(change)


PAGE = Path(__file__).parent.parent / "docs" / "losses_and_transforms.md"
HEAD = """# Losses under transforms

What training does to a loss beside calling it: compile it, run it again in the backward, spread it over
ranks, save and resume it, hand it a bad batch, wrap it in autocast. `tests/test_every_loss.py` leads
every loss through several steps of each, and compares loss, gradient and state with the plain run's:

* **compiled**: `torch.compile`, aot_eager and inductor, batches of changing size, weights that come later.
* **checkpointed**: `torch.utils.checkpoint`, re-entrant and not, one backward after each call. Nothing
  counts twice. Two calls before one backward are not told apart: the second one's state is what the first
  is run again with.
* **resumed**: `state_dict` saved after every step, through `torch.load(weights_only=True)`, into a fresh
  loss and into one in a later phase; `deepcopy`, `pickle`. What a recipe assigns once an epoch (ISDA's
  `strength`, say) it assigns again; `weight` is in the state, and where it is not it was None.
* **bad batch**: a row with nan or infinity, a row whose label has no likelihood at all, a batch that is
  ignored as a whole. The state takes up rows of finite loss alone (multi-label: positives whose logit is finite;
  ISDA: rows whose features are); the loss of that batch hides nothing. TruncatedGCE leaves `kept` as it was.
  (`s` of LInfMixtureLoss is a parameter: an optimizer does to it what it does to the model's.)
* **autocast**: float16 and bfloat16, around the loss and around the backward. Products inside a loss run in
  float32, a gradient is rounded once.
* **ranks**: two of torch.distributed, of equal shares, unequal ones, and one without rows. The state is
  that of one process with all rows, on every rank. So are the losses of rows and their gradients
  (`reduction="none"`), and the average over ranks of ABSGD's and group DRO's loss, unless a note says
  what is a rank's own. A mean is that of the rank's rows, as torch's. Statistics are those of the ranks of
  `data_group`, all by default; each calls the loss as often as the others.

Modules follow devices, never dtypes: `.half()` on a model rounds no table of its loss. Tensors that were
given as options move along.

"""


def page() -> str:
    """The table, of what the tests compare."""
    notes = list(dict.fromkeys([*TELLS.values(), *UNDER_WAY]))
    lines = ["| loss | state | compiled, checkpointed, resumed, bad batch, autocast | ranks |"]
    lines.append("|---|---|---|---|")
    for name in sorted(SUBJECTS):
        state = ", ".join(f"`{key}`" for key in state_of(name)) or "none"
        note = TELLS.get(name, name if name in UNDER_WAY else None)
        mark = "equal" if note is None else f"see {notes.index(note) + 1}"
        lines.append(f"| `{name.partition(',')[0]}`{''.join(name.partition(',')[1:])} | {state} | equal | {mark} |")  # fmt: skip
    said = [
        f"{number}. {UNDER_WAY_NOTE if note in UNDER_WAY else note[0].upper() + note[1:]}."
        for number, note in enumerate(notes, 1)
    ]
    return HEAD + "\n".join(lines) + "\n\n" + "\n".join(said) + "\n"


if __name__ == "__main__":
    PAGE.write_text(page())
