"""What a call costs the host, counted: functions of this package that run, operations of torch that
launch something. Times are for a device; these do not scatter."""

from __future__ import annotations

import collections
import sys
from collections.abc import Callable
from pathlib import Path
from types import FrameType

import pytest
import torch
from cases import Draw

import lpl_fused
from lpl_fused import functional as LF
from lpl_fused import losses
from lpl_fused.backends import load

PACKAGE = str(Path(lpl_fused.__file__).parent)
# what makes a tensor, or gives one back, without a kernel: `to` another dtype has others within
NO_LAUNCH = {
    "empty",
    "empty_like",
    "empty_strided",
    "detach",
    "expand",
    "as_strided",
    "unbind",
    "select",
    "view",
    "to",
}
COUNTS = [9, 8, 7, 6, 5, 4, 3, 2, 1]


def functions_of_ours(run: Callable[[], object]) -> int:
    """How many calls of Python functions of this package a run makes."""
    found = 0

    def seen(frame: FrameType, event: str, _: object) -> None:
        nonlocal found
        if event == "call" and frame.f_code.co_filename.startswith(PACKAGE):
            found += 1

    run()  # what is made once
    # autograd runs a backward on the CPU in the thread that asks for it
    sys.setprofile(seen)
    try:
        run()
    finally:
        sys.setprofile(None)
    return found


def launches_of_torch(run: Callable[[], object]) -> collections.Counter[str]:
    """The operations of torch that would launch a kernel on a device."""
    run()
    with torch.profiler.profile() as profile:
        run()
    names = [e.name for e in profile.events() if e.name.startswith("aten::")]
    return collections.Counter(n[6:] for n in names if n[6:].rstrip("_") not in NO_LAUNCH)


def calls(backend: str) -> dict[str, Callable[[], object]]:
    draw = Draw(4, 9, seed=1)
    input, target = draw.input().float().requires_grad_(), draw.labels()
    steps, one = torch.full((9,), 2, dtype=torch.int32), torch.ones(())
    table = losses.LogitAdjustedLoss(COUNTS, backend=backend)

    def differentiated(loss: Callable[[], torch.Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(loss(), input, one)

    return {
        "ce": differentiated(lambda: LF.cross_entropy(input, target, backend=backend)),
        "statistics": differentiated(
            lambda: LF.cross_entropy(input, target, gradient="statistics", backend=backend)
        ),
        "la": differentiated(lambda: table(input, target)),
        "lpl": differentiated(
            lambda: LF.lpl_cross_entropy(input, target, steps, step_size=0.1, backend=backend)
        ),
    }


# functions, launches of torch; neither may grow unseen
MOST = {
    ("cpp", "ce"): (31, 0),
    ("cpp", "statistics"): (41, 1),
    ("cpp", "la"): (50, 0),
    ("cpp", "lpl"): (32, 0),
    ("cuda", "ce"): (34, 0),
    ("cuda", "statistics"): (37, 0),
    ("cuda", "la"): (56, 0),
    ("cuda", "lpl"): (51, 0),
}


@pytest.mark.counts
@pytest.mark.parametrize(("native", "call"), MOST)
def test_a_call_takes_no_more_of_the_host(
    native: str, call: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    module = load(native)
    if reason := module.unavailable():
        pytest.skip(f"{native}: {reason}")
    for made in (module, sys.modules["lpl_fused.backends.buffers"]):
        monkeypatch.setattr(made, "torch", torch)  # poison has functions of its own
    run = calls(native)[call]
    found = functions_of_ours(run), sum(launches_of_torch(run).values())
    most = MOST[native, call]
    assert found[0] <= most[0], f"{found[0]} functions, {launches_of_torch(run)}"
    assert found[1] <= most[1], f"{launches_of_torch(run)}"
