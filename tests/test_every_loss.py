"""All losses, led through several steps in every hand they come into: compiled, recomputed by
checkpoints, on several ranks, interrupted and resumed, beside a bad batch, under autocast. Loss,
gradient and state are the plain run's, or `TELLS` says by name why they are not."""

from __future__ import annotations

import contextlib
import copy
import inspect
import io
import pickle
import traceback
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
import torch
from compositions import A, C
from every_loss import (
    LEAVES,
    PAGE,
    ROWS_SECOND,
    SHARED,
    SUBJECTS,
    TELLS,
    UNDER_WAY,
    Batch,
    Subject,
    nothing_counts,
    page,
    poisoned,
    states,
    without_spoilt_labels,
)
from ranks import Ranks
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from lpl_fused import losses
from lpl_fused.susceptibility import Susceptibility

pytestmark = pytest.mark.usefixtures("one_thread")
SIZES = (8, 8, 5, 9)
EVOLVING = [name for name, subject in SUBJECTS.items() if subject.evolves]
every = pytest.mark.parametrize("name", SUBJECTS)
Found = dict[str, Any]


def same(found: Found, expected: Found, said: str = "", **tolerance: float) -> None:
    """Two steps, or two states: tensors within the tolerance, 0 if none is said."""
    assert found.keys() == expected.keys()
    tolerance = {"rtol": 0, "atol": 0, **tolerance}
    for key, value in expected.items():
        if isinstance(value, Tensor):
            torch.testing.assert_close(
                found[key], value, **tolerance, equal_nan=True, msg=lambda m, k=key: f"{said} {k}: {m}"
            )  # fmt: skip
        else:
            assert found[key] == value, (said, key)


def batches(subject: Subject) -> list[Batch]:
    return [subject.batch(step, n) for step, n in enumerate(SIZES)]


@every
@pytest.mark.parametrize("reentrant", [False, True])
def test_checkpointed(name: str, reentrant: bool) -> None:
    """What runs again in the backward counts once, and finds what it found."""
    subject = SUBJECTS[name]
    plain, loss = subject.make(), subject.make()

    def again(*arguments: Tensor) -> Tensor:
        # the backward of a product needs its factors, so the segment is run again for it
        def segment(first: Tensor, *others: Tensor) -> Tensor:
            return loss(
                first @ torch.eye(first.shape[-1]) if first.dim() > 1 else first * 1, *others
            )

        return checkpoint(segment, *arguments, use_reentrant=reentrant)

    for step in batches(subject):
        expected = subject.step(plain, step)
        same(subject.step(loss, step, again), expected, rtol=1e-6, atol=1e-7)
        same(states(loss), states(plain), rtol=1e-6, atol=1e-7)


def through_a_file(loss: nn.Module, make: Callable[[], nn.Module], steps: list[Batch], subject: Subject) -> nn.Module:  # fmt: skip
    """`state_dict`, into a loss that has been through all of it with other data."""
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    file.seek(0)
    other = make()
    for step in steps:
        subject.step(other, step.some(list(range(step.rows))[::-1]))
    other.load_state_dict(torch.load(file, weights_only=True))
    return other


@every
def test_resumed(name: str) -> None:
    """Saved after each step, in every phase of what its user does, and gone on with."""
    subject = SUBJECTS[name]
    steps = batches(subject)
    for saved_after in range(1, len(steps)):
        loss = subject.make()
        for step in steps[:saved_after]:
            subject.step(loss, step)
        copies = {
            "state_dict": through_a_file(loss, subject.make, steps, subject),
            "into a fresh one": subject.make(),
            "assigned": subject.make(),
            "deepcopy": copy.deepcopy(loss),
            "pickle": pickle.loads(pickle.dumps(loss)),
        }
        copies["into a fresh one"].load_state_dict(loss.state_dict())
        copies["assigned"].load_state_dict(copy.deepcopy(loss.state_dict()), assign=True)
        for step in steps[saved_after:]:
            expected = subject.step(loss, step)
            for how, other in copies.items():
                same(subject.step(other, step), expected, how)
                same(states(other), states(loss), how)


@every
@pytest.mark.parametrize("bad", ["nan", "inf", "ignored"])
def test_beside_a_bad_batch(name: str, bad: str) -> None:
    """What comes later is what it would be had the spoilt rows not been there."""
    subject = SUBJECTS[name]
    hurt, whole = subject.make(), subject.make()
    before, at, *after = batches(subject)
    for loss in (hurt, whole):
        subject.step(loss, before)
    if bad == "ignored":
        subject.step(hurt, nothing_counts(at))
        if subject.lead is not None:
            subject.lead(whole, at.some([]))
    else:
        spoilt, others = poisoned(at, float(bad))
        value = subject.step(hurt, spoilt)["loss"]
        assert bad != "nan" or value.isnan().any()  # nothing is hidden in the loss of that batch
        if "labels" in subject.takes:
            others = without_spoilt_labels(at)
        subject.step(whole, others)
    same(states(hurt), states(whole), rtol=1e-6, atol=1e-7)
    for step in after:
        same(subject.step(hurt, step), subject.step(whole, step), rtol=1e-6, atol=1e-7)


@every
@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_under_autocast(name: str, dtype: torch.dtype) -> None:
    """Logits of 16 bits, and of 32, under autocast: what the same numbers give without it."""
    subject = SUBJECTS[name]
    plain, low, wide = (subject.make() for _ in range(3))

    def mixed(loss: nn.Module) -> Callable[..., Tensor]:
        def call(*arguments: Tensor) -> Tensor:
            with torch.autocast("cpu", dtype=dtype):
                return loss(*arguments)

        return call

    for step in batches(subject):
        rounded = step.to(dtype)
        expected = subject.step(plain, rounded.to(torch.float32))
        assert expected["loss"].dtype == torch.float32
        with torch.autocast("cpu", dtype=dtype):  # the backward, too, as some write it
            found = subject.step(low, rounded)
        came = subject.step(wide, rounded.to(torch.float32), mixed(wide))
        same(came, expected, rtol=1e-6, atol=1e-7)
        assert found["loss"].dtype == torch.float32
        digits = torch.finfo(dtype).eps
        for key, value in expected.items():
            gradient = {"rtol": digits, "atol": 1e-7} if key != "loss" else {"rtol": 1e-6, "atol": 1e-7}  # fmt: skip
            torch.testing.assert_close(found[key].float(), value, **gradient, msg=lambda m, k=key: f"{k}: {m}")  # fmt: skip
        same(states(low), states(plain), rtol=1e-6, atol=1e-7)
        same(states(wide), states(plain), rtol=1e-6, atol=1e-7)


# rows of two ranks, of a batch of 8
SPLITS = {
    "equal": (range(4), range(4, 8)),
    "uneven": (range(6), range(6, 8)),
    "one empty": (range(8), range(0)),
    "a group of its own": (range(3), range(3, 8)),
}
RANKS = 2
AVERAGED = ("ABSGDLoss", "GroupDROLoss")  # as DDP averages gradients, of which they know


def of_rows(subject: Subject, **keywords: Any) -> nn.Module:
    return subject.make(**(subject.by_row or {}), **keywords)


def led(
    subject: Subject, loss: nn.Module, part: Callable[[Batch], Batch], compiled: bool = False
) -> list[Found]:
    """Three steps, and the state after each; in float64, but for a classifier of float32."""
    torch._dynamo.reset()
    call = torch.compile(loss, backend="aot_eager") if compiled else None
    found = []
    for step in range(3):
        rows = part(subject.batch(step))
        rows = rows if "classifier_weight" in subject.takes else rows.to(torch.float64)
        found.append({**subject.step(loss, rows, call), "state": states(loss)})
    return found


def near(found: Found, expected: Found, said: str = "") -> None:
    """`same`, but for sums in another order."""
    narrow = {k: v for k, v in expected.items() if isinstance(v, Tensor) and v.dtype != torch.float64}  # fmt: skip
    same({k: found[k] for k in narrow}, narrow, said, rtol=1e-5, atol=1e-6)
    wide = {k: v for k, v in expected.items() if k not in narrow}
    same({k: v for k, v in found.items() if k not in narrow}, wide, said, rtol=1e-10, atol=1e-12)


def on_rank(_: Any, folder: str, compiled: bool) -> None:
    rank = torch.distributed.get_rank()
    alone = [torch.distributed.new_group([member]) for member in range(RANKS)][rank]
    found: Found = {}
    for split, rows in SPLITS.items():
        for name, subject in SUBJECTS.items():
            if compiled and not (name in EVOLVING and split == "uneven"):
                continue
            group = {"data_group": alone} if split == "a group of its own" else {}
            loss = of_rows(subject, **(group if hasattr(subject.make(), "data_group") else {}))
            mine = list(rows[rank])
            try:
                part = partial(Batch.share, rows=mine, rank=rank, ranks=RANKS)
                found[split, name] = led(subject, loss, part, compiled)
            except Exception:  # of all that fails, not of the first alone
                found[split, name] = traceback.format_exc()
    found["susceptibility"] = probed(rank, RANKS)
    torch.save(found, f"{folder}/{rank}.pt")


Once = Callable[[str, Callable[[Path], None]], Path]


def of_ranks(once: Once, compiled: bool) -> list[Found]:
    """What every loss came to on each of two ranks, of every split."""

    def make(folder: Path) -> None:
        processes = Ranks(RANKS)
        processes.run(RANKS, on_rank, str(folder), compiled)
        processes.close()

    folder = once(f"every-loss-on-ranks-{compiled}", make)
    return [torch.load(folder / f"{rank}.pt", weights_only=False) for rank in range(RANKS)]


@pytest.fixture(scope="module")
def ranks(once: Once) -> list[Found]:
    return of_ranks(once, False)


@pytest.fixture(scope="module")
def compiled_ranks(once: Once) -> list[Found]:
    return of_ranks(once, True)


def probed(rank: int, world: int) -> float:
    """r of a linear model on the batch of a rank; its labels are drawn by rank."""
    torch.manual_seed(0)
    net = nn.Linear(A, C)
    tracker = Susceptibility(C, seed=0 if world > 1 else rank << 32)
    input = torch.randn(8, A, generator=torch.Generator().manual_seed(rank))
    return tracker.probe(net, torch.optim.SGD(net.parameters(), lr=0.1), input)


def test_susceptibility_on_two_ranks(ranks: list[Found]) -> None:
    r = sum(probed(rank, 1) for rank in range(RANKS)) / RANKS
    assert [part["susceptibility"] for part in ranks] == pytest.approx([r] * RANKS)


def joined_state(name: str, parts: list[Found], part: Found) -> Found:
    """Of one rank, with the sums under way of all."""
    under_way = {
        key: sum(other["state"][key] for other in parts) for key in UNDER_WAY.get(name, ())
    }
    return {**part["state"], **under_way}


@every
@pytest.mark.parametrize("split", SPLITS)
def test_on_two_ranks(name: str, split: str, ranks: list[Found]) -> None:
    """State, and where README calls it that of all ranks loss and gradient: those of one process
    that has all rows. Within a group of one, those of one process that has its rows."""
    subject = SUBJECTS[name]
    found = [rank[split, name] for rank in ranks]
    for part in found:
        assert isinstance(part, list), part
    if split == "a group of its own":
        for rank, part in enumerate(found):
            rows = list(SPLITS[split][rank])
            share = partial(Batch.share, rows=rows, rank=rank, ranks=RANKS)
            alone = led(subject, of_rows(subject), share)
            for one, other in zip(part, alone, strict=True):
                near(one.pop("state"), other.pop("state"))
                near(one, other)
        return
    whole = led(subject, of_rows(subject), lambda batch: batch)
    differs = []
    for step, expected in enumerate(whole):
        parts = [part[step] for part in found]
        state = expected.pop("state")
        for part in parts:
            near(joined_state(name, parts, part), state, f"step {step}")
        together = joined(name, parts, expected)
        if name not in TELLS:
            near(together, expected, f"step {step}")
        differs.append(any((together[k] - v).abs().max() > 1e-4 for k, v in expected.items()))
    assert name not in TELLS or split != "equal" or any(differs)  # what is told is so


@pytest.mark.compilers
@pytest.mark.parametrize("name", EVOLVING)
def test_compiled_on_two_ranks(name: str, compiled_ranks: list[Found]) -> None:
    test_on_two_ranks(name, "uneven", compiled_ranks)


def joined(name: str, parts: list[Found], like: Found) -> Found:
    """Losses and gradients of rows beside each other, those of what all share added."""
    found = {}
    for key, value in like.items():
        several = [part[key] for part in parts]
        of_rows = (key == "loss" or key in LEAVES) and key not in SHARED and value.dim() > 0
        found[key] = torch.cat(several, int(key in ROWS_SECOND)) if of_rows else sum(several)
        if name.startswith(AVERAGED):
            found[key] = found[key] / RANKS
    return found


@pytest.mark.parametrize(
    ("name", "compiler"),
    [
        pytest.param(
            name,
            compiler,
            marks=[] if name in EVOLVING and compiler == "aot_eager" else pytest.mark.compilers,
        )
        for name in SUBJECTS
        for compiler in ("aot_eager", "inductor")
    ],
)
def test_compiled(name: str, compiler: str) -> None:
    """Batches of other sizes, a weight that comes later: what is compiled anew goes on."""
    subject = SUBJECTS[name]
    torch._dynamo.reset()
    eager, inner = subject.make(), subject.make()
    compiled = torch.compile(inner, backend=compiler)
    with torch._inductor.config.patch(fallback_random=True):  # draws are torch's own
        for t, step in enumerate(batches(subject)):
            came = subject.step(inner, step, compiled)
            same(came, subject.step(eager, step), f"step {t}", rtol=1e-5, atol=1e-6)
            same(states(inner), states(eager), f"step {t}", rtol=1e-6, atol=1e-7)


CASTS: dict[str, Callable[[nn.Module], nn.Module]] = {
    "half": lambda module: module.half(),
    "bfloat16": lambda module: module.bfloat16(),
    "double": lambda module: module.double(),
    "type": lambda module: module.type(torch.float16),
    "to": lambda module: module.to(torch.float16),
}


def tensors(loss: nn.Module) -> Found:
    """Buffers, and options that are tensors."""
    found: Found = dict(loss.named_buffers())
    for path, module in loss.named_modules():
        options = {name: vars(module).get(name) for name in getattr(module, "rules", ())}
        found.update({f"{path}.{k}": v for k, v in options.items() if isinstance(v, Tensor)})
    return found


def optioned(subject: Subject) -> nn.Module:
    """The loss after a step, with such options as it takes."""
    loss = subject.make()
    subject.step(loss, subject.batch(0))
    for name in ("weight", "label_smoothing"):
        with contextlib.suppress(AttributeError, TypeError, ValueError):
            setattr(loss, name, torch.linspace(0.1, 0.2, C))
    return loss


@every
def test_follows_devices_never_dtypes(name: str) -> None:
    """`.half()` on a model rounds no table, count or option; parameters are cast as torch's are."""
    for cast in CASTS.values():
        loss = optioned(SUBJECTS[name])
        before = copy.deepcopy(tensors(loss))
        model = cast(nn.Sequential(loss, nn.Linear(1, 1)))
        same(tensors(loss), before)
        assert all(p.dtype == model[1].weight.dtype for p in loss.parameters())
    loss.to("meta")
    assert all(value.is_meta for value in [*tensors(loss).values(), *loss.parameters()])


@every
def test_labels_of_8_bits(name: str) -> None:
    """−253 is no class, though it is 3 in 8 bits: −100 is class 156 of 200."""
    subject = SUBJECTS[name]
    plain, loss = subject.make(), subject.make()
    ignoring = [
        part for part in (*plain.modules(), *loss.modules()) if "ignore_index" in vars(part)
    ]
    if not ignoring or "target" not in subject.takes:
        pytest.skip("takes no labels of one class by number")
    for part in ignoring:
        part.ignore_index = 3 - 256
    assert 3 in subject.batch(0, 8).target
    for step in range(2):
        whole = subject.batch(step, 8)
        whole = replace(whole, target=whole.target.clamp(min=0))
        narrow = replace(whole, target=whole.target.to(torch.uint8))
        expected = subject.step(plain, whole, lead=False)
        same(subject.step(loss, narrow, lead=False), expected, rtol=1e-5, atol=1e-6)
    same(states(loss), states(plain), rtol=1e-5, atol=1e-6)


@every
def test_labels_that_torch_does_not_calculate_with(name: str) -> None:
    """Token files are of uint16: torch neither compares nor joins these with other integers."""
    subject = SUBJECTS[name]
    whole = subject.batch(0, 8)
    whole = replace(whole, target=whole.target.clamp(min=0), labels=whole.labels.clamp(min=0))
    given = [key for key in ("target", "labels", "half", "group", "index") if key in subject.takes]
    expected = subject.step(subject.make(), whole, lead=False)
    for dtype in (torch.uint16, torch.uint32, torch.uint64):
        found = replace(whole, **{key: getattr(whole, key).to(dtype) for key in given})
        same(subject.step(subject.make(), found, lead=False), expected, rtol=1e-5, atol=1e-6)


@every
@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_whatever_dtype_is_the_default(name: str, dtype: torch.dtype) -> None:
    """Tables, state and draws have dtypes of their own. (A parameter has the default, as torch's.)"""
    subject = SUBJECTS[name]
    plain = subject.make()
    steps = batches(subject)
    expected = [subject.step(plain, step) for step in steps]
    torch.set_default_dtype(dtype)
    try:
        loss = subject.make()
        found = [subject.step(loss, step) for step in steps]
    finally:
        torch.set_default_dtype(torch.float32)
    near: Any = (
        {"rtol": 2e-2, "atol": 2e-2, "check_dtype": False} if list(loss.parameters()) else {}
    )
    for one, other in zip(found, expected, strict=True):
        same(one, other, **near)
    same(states(loss), states(plain), **near)


@every
def test_made_on_meta_as_large_models_are(name: str) -> None:
    """Made without memory, given room, loaded: goes on as one that was made on the CPU."""
    subject = SUBJECTS[name]
    made = subject.make()
    subject.step(made, subject.batch(0))
    with torch.device("meta"):
        loss = subject.make()
    loss.to_empty(device="cpu").load_state_dict(made.state_dict())
    same(tensors(loss), tensors(made))
    step = subject.batch(1)
    same(subject.step(loss, step), subject.step(made, step))


@every
def test_another_default_device(name: str) -> None:
    subject = SUBJECTS[name]
    loss = subject.make()
    other, steps = copy.deepcopy(loss), batches(subject)
    expected = [subject.step(loss, step) for step in steps]
    torch.set_default_device("meta")
    try:
        found = [subject.step(other, step) for step in steps]
    finally:
        torch.set_default_device("cpu")
    for one, another in zip(found, expected, strict=True):
        same(one, another)
    same(states(other), states(loss))


def test_states_are_tensors_alone() -> None:
    """What averages weights, or writes them to safetensors, asks for nothing else."""
    for name, subject in SUBJECTS.items():
        assert all(isinstance(value, Tensor) for value in subject.make().state_dict().values()), (
            name
        )
    loss, other = losses.ABSGDLoss(start_epoch=2), losses.ABSGDLoss(start_epoch=2)
    loss.set_epoch(3)
    other.load_state_dict(loss.state_dict())
    assert other.epoch == 3 and other.started
    other.load_state_dict({**loss.state_dict(), "_extra_state": {"epoch": 1}})  # of an earlier day
    assert other.epoch == 1 and not other.started


@every
def test_gradients_of_each_sample(name: str) -> None:
    """`vmap` of `grad`, as for private training: each row as if it were called alone. (Evaluated:
    what evolves would take up a row that nobody sees.)"""
    subject = SUBJECTS[name]
    if "target" not in subject.takes or subject.takes[0] != "logits":
        pytest.skip("takes no rows of logits with a label")
    batch = subject.batch(0, 3)
    if subject.lead is not None:
        subject.lead(loss := subject.make(), batch)
    else:
        loss = subject.make()
    loss.eval()
    with contextlib.suppress(AttributeError, ValueError):
        loss.weight = torch.linspace(0.5, 1.5, C)  # type: ignore[assignment]
    arguments = [getattr(batch, key) for key in subject.takes]
    places = tuple(None if key in SHARED else 0 for key in subject.takes)

    def of_one(*row: Tensor) -> Tensor:
        return loss(*row).sum()  # type: ignore[no-any-return]

    found = torch.func.vmap(torch.func.grad(of_one), in_dims=places)(*arguments)
    for row, gradient in enumerate(found):
        one = [a if place is None else a[row] for a, place in zip(arguments, places, strict=True)]
        leaf = one[0].clone().requires_grad_()
        (expected,) = torch.autograd.grad(of_one(leaf, *one[1:]), leaf)
        torch.testing.assert_close(gradient, expected, rtol=1e-4, atol=1e-6)


def test_every_loss_is_walked() -> None:
    classes = {name for name in losses.__all__ if inspect.isclass(getattr(losses, name))}
    assert {name.partition(",")[0] for name in SUBJECTS} == classes
    for name, subject in SUBJECTS.items():
        assert type(subject.make()).__name__ == name.partition(",")[0]


def test_the_page_is_that_of_the_tests() -> None:
    assert PAGE.read_text() == page(), "made by: python tests/every_loss.py"
