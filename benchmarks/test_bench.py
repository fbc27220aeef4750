"""The same cases under pytest-benchmark: `pytest benchmarks --benchmark-enable`.

What is asserted is correctness, never a time; compare times with `--benchmark-compare`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .cases import Case, draw
from .correctness import Result, allowed_errors, errors, evaluate, truth
from .peers import OFFICIAL
from .providers import COMPILE, EAGER, Provider, providers
from .selections import product

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LOSSES = ("ce", "la", "vs", "ldam", "smoothing", "linear-ce", "lpl5", "lpl5-zipf", "lpl5-one")
CASES = product(["128x100"], ["fp32"], LOSSES) + product(["64x8142"], ["fp32"], ["ce", "lpl5"])
# they take longer than all the rest, and part in `benchmarks.run`
LATER = (COMPILE, OFFICIAL)
PAIRS = [
    pytest.param(case, provider, id=f"{case.name}-{provider.name}".replace(" ", "-"))
    for case in CASES
    for provider in providers().values()
    if provider.solves(case) and provider not in LATER
]


@pytest.mark.parametrize(("case", "provider"), PAIRS)
def test_forward_and_backward(benchmark: Any, case: Case, provider: Provider) -> None:
    reason = provider.absent(DEVICE.type)
    if reason is not None:
        pytest.skip(f"{provider.name}: {reason}")
    batch = draw(case, DEVICE)
    criterion = provider.criterion(case, batch)
    own = batch.of([part.clone() for part in batch.inputs])  # some write over their inputs

    def run() -> Result:
        result = evaluate(criterion, own)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return result

    exact = truth(case, batch)
    eager = None
    if provider != EAGER:
        eager = errors(evaluate(EAGER.criterion(case, batch), batch), exact)
    wrong = errors(run(), exact).exceeding(allowed_errors(case, eager))
    assert wrong is None, f"{provider.name} in {case.name}: {wrong}"

    benchmark.group = case.name
    benchmark.extra_info.update(provider=provider.name, torch=torch.__version__)
    benchmark(run)
