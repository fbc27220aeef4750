"""Whether plans hand over what Triton's own launches do, for whole calls: a process of its own,
without an interpreter, on the driver that runs nothing (`python tests/triton_plans.py FOLDER`).

Every call is made twice, with tensors of its own. Its launches are done twice for the same tensors,
as Triton does them and by the plan, and what reaches the native part of Triton's launcher is
compared, parameter by parameter. Prints how many launches were, by call.
"""

from __future__ import annotations

import functools
import json
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple
from unittest import mock

import torch
import triton_driver
from torch import Tensor

from benchmarks import host_time
from lpl_fused import functional as LF
from lpl_fused.backends import triton as backend
from lpl_fused.backends.triton import launching
from lpl_fused.backends.triton import learned as launchers

Run = Callable[[], object]
DTYPES = (torch.bfloat16,)


class Annotation(NamedTuple):
    """As PyKernelArg, which does not show what it is."""

    nested_tuple: Any
    type: Any


def parameters(annotations: Sequence[Annotation], values: Sequence[Any], tuples: Any) -> list[Any]:
    """What of a launch's values is handed over, pointers as numbers."""
    from triton.backends.nvidia import driver

    found: list[Any] = []
    values = list(values)
    for annotation in annotations:
        value = values.pop(0)
        if annotation.type == tuples:
            found += parameters(annotation.nested_tuple, value, tuples)
        elif annotation.type == driver.ARG_KERNEL:
            found.append(value.data_ptr() if isinstance(value, torch.Tensor) else value)
    assert not values
    return found


def calls() -> dict[str, Run]:
    """Forward and backward of more than the benchmark has: other types, other upstreams, views."""
    found = host_time.cases("triton")
    generator = torch.Generator().manual_seed(3)
    for dtype in DTYPES:
        wide = torch.randn(9, 60, generator=generator).to(dtype)
        target = torch.randint(41, (9,), generator=generator)
        steps = torch.full((41,), 3, dtype=torch.int32)
        weight = torch.rand(41, generator=generator)
        for begin in (0, 3):
            logits = wide[:, begin : begin + 41].detach().requires_grad_()

            def plain(u: Any = logits, y: Any = target, w: Any = weight) -> object:
                loss = LF.cross_entropy(u, y, weight=w, backend="triton")
                return torch.autograd.grad(loss * 3, u)

            def learned(u: Any = logits, y: Any = target, k: Any = steps) -> object:
                loss = LF.lpl_cross_entropy(u, y, k, step_size=0.1, backend="triton")
                return torch.autograd.grad(loss * 3, u)

            # of the same form as the one before; statistics of rows are made meanwhile
            def stats(u: Any = logits, y: Any = target, k: Any = steps) -> object:
                keywords: Any = {"step_size": 0.1, "backend": "triton", "return_stats": True}
                loss, _ = LF.lpl_cross_entropy(u, y, k, **keywords)
                return torch.autograd.grad(loss * 3, u)

            found[f"{dtype}, from {begin}"] = plain
            found[f"LPL, {dtype}, from {begin}"] = learned
            found[f"LPL, with stats, {dtype}, from {begin}"] = stats
    return found | many() | alike()


def many() -> dict[str, Run]:
    """Of logits that are not few: by solvers, classes with several rows among them or none, with
    groups found by rows themselves or not, and gradients by one launch or by three."""
    found: dict[str, Run] = {}
    for shape, dtype in (((1, 140_000), torch.bfloat16), ((1100, 150), torch.float32)):
        generator = torch.Generator().manual_seed(5)
        logits = torch.randn(shape, generator=generator).to(dtype).requires_grad_()
        target = torch.randint(150, shape[:1], generator=generator)
        steps = torch.full(shape[1:], 3, dtype=torch.int32)

        def learned(u: Any = logits, y: Any = target, k: Any = steps) -> object:
            loss = LF.lpl_cross_entropy(u, y, k, step_size=0.1, backend="triton")
            return torch.autograd.grad(loss * 3, u)

        found[f"LPL, {shape[0]} rows"] = learned

    def apart() -> object:
        with mock.patch.object(launchers, "ONE_LAUNCH", 0):
            return learned()

    return found | {"LPL, gradients apart": apart}


def alike() -> dict[str, Run]:
    """Calls that differ in a number alone: none may go by the plan of another."""
    generator = torch.Generator().manual_seed(4)
    rows = torch.randn(9, 60, generator=generator)
    logits, target = rows[:, :41], torch.randint(41, (9,), generator=generator)
    steps = torch.full((41,), 3, dtype=torch.int32)

    def plain(u: Tensor = logits, upstream: float = 1.0, **keywords: Any) -> Run:
        leaf = u.detach().requires_grad_()

        def run() -> object:
            found = LF.cross_entropy(leaf, target, backend="triton", **keywords)
            loss = found[0] if keywords.get("return_stats") else found
            return torch.autograd.grad(loss, leaf, torch.full_like(loss, upstream))

        return run

    def learned(u: Tensor = logits, step_size: float = 0.1, **keywords: Any) -> Run:
        leaf = u.detach().requires_grad_()

        def run() -> object:
            given = {"step_size": step_size, "backend": "triton", **keywords}
            loss = LF.lpl_cross_entropy(leaf, target, steps, **given)
            return torch.autograd.grad(loss, leaf, torch.ones_like(loss))

        return run

    ones = torch.ones(9)
    return {
        "alike, rows 60 apart": plain(),
        "alike, rows 41 apart": plain(logits.contiguous()),
        "alike, another label ignored": plain(ignore_index=7),
        "alike, smoothed": plain(label_smoothing=0.1),
        "alike, smoothed more": plain(label_smoothing=0.2),
        "alike, z-loss": plain(z_loss=0.1),
        "alike, z-loss, more": plain(z_loss=0.2),
        "alike, scaled": plain(upstream=3.0),
        "alike, with stats": plain(return_stats=True),
        "alike, a sum": plain(reduction="sum"),
        "alike, normalised": plain(reduction="sum", normalizer=5),
        "alike, normalised by a tensor": plain(reduction="sum", normalizer=torch.tensor(5.0)),
        "alike, weighed": plain(sample_weight=ones),
        "alike, weighed by one number": plain(sample_weight=ones[:1].expand(9)),
        "alike, LPL, rows 60 apart": learned(),
        "alike, LPL, rows 41 apart": learned(logits.contiguous()),
        "alike, LPL, longer steps": learned(step_size=0.2),
        "alike, LPL, another label ignored": learned(ignore_index=7),
        "alike, LPL, of rows": learned(reduction="none"),
    }


def main(folder: str) -> None:
    from triton.backends.nvidia import driver

    triton_driver.Driver(Path(folder))
    backend.interpreted = lambda: True  # type: ignore[attr-defined]
    native: list[Any] = []

    def launch(*handed: Any) -> None:
        *how, annotations, signature, values = handed
        grid_and_code = how[:8]  # hooks and memory, of which there are none, behind
        shown = parameters(annotations, values, driver.ARG_TUPLE)
        assert len(shown) == len(signature)
        native.append((grid_and_code, bytes(signature), [repr(each) for each in shown]))

    def launch_nested(types: Any, *handed: Any) -> None:
        shown = list(launching._leaves(types, handed[13:]))
        values = [x.data_ptr() if isinstance(x, torch.Tensor) else x for _, x in shown]
        types_of_all = str([type for type, _ in shown]).encode()
        native.append((handed[:8], types_of_all, [repr(each) for each in values]))

    if hasattr(driver, "PyKernelArg"):
        driver.CudaUtils().launch = launch  # which makes PyKernelArg, too
        driver.PyKernelArg = Annotation
    else:  # every signature has a launcher of its own
        make = driver.CudaLauncher.__init__

        def making(self: Any, src: Any, metadata: Any) -> None:
            make(self, src, metadata)
            self.launch = functools.partial(launch_nested, tuple(src.signature.values()))

        driver.CudaLauncher.__init__ = making
    run, compared, kept = launching.Plans.run, 0, []

    def both(self: Any, kind: Any, tensors: Any, launches: Run) -> None:
        nonlocal compared
        kept.append(tensors)  # the next call gets other memory
        run(self, kind, tensors, launches)  # which writes down, the first time
        native.clear()
        with mock.patch.object(launching, "_direct", return_value=False):
            launches()
        theirs = native.copy()
        native.clear()
        again = mock.Mock(side_effect=launches)  # by a plan it is not called
        run(self, kind, tensors, again)
        assert len(native) == len(theirs) > 0, kind
        if not again.called:
            assert native == theirs, kind
            compared += len(theirs)

    launching.Plans.run = both  # type: ignore[method-assign]
    found = {}
    for name, call in calls().items():
        before = compared
        for _ in range(2):
            call()
        found[name] = compared - before
    print(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1])
