"""The same cases under pytest-benchmark: `pytest benchmarks --benchmark-enable`.

What is asserted is correctness, never a time; compare times with `--benchmark-compare`.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

from .cases import Case, draw, product
from .correctness import Result, allowed_errors, errors, evaluate, truth
from .providers import COMPILE, EAGER, Provider, providers

DEVICE = torch.device("cuda" if torch.cuda.is_available() else "cpu")
LOSSES = ("ce", "la", "vs", "ldam", "smoothing", "lpl5", "lpl5-zipf")
CASES = product(["128x100"], ["fp32"], LOSSES) + product(["64x8142"], ["fp32"], ["ce", "lpl5"])
# compiling takes longer than all the rest: torch.compile takes part in `benchmarks.run`
PROVIDERS = [provider for provider in providers().values() if provider != COMPILE]


@pytest.mark.parametrize("provider", PROVIDERS, ids=lambda provider: provider.name)
@pytest.mark.parametrize("case", CASES, ids=lambda case: case.name.replace(" ", "-"))
def test_forward_and_backward(benchmark: Any, case: Case, provider: Provider) -> None:
    reason = provider.absent(DEVICE.type, case.loss.multilabel)
    if reason is not None:
        pytest.skip(f"{provider.name}: {reason}")
    batch = draw(case, DEVICE)
    criterion = provider.criterion(case, batch)
    benchmark.group = case.name
    benchmark.extra_info.update(provider=provider.name, torch=torch.__version__)

    def run() -> Result:
        result = evaluate(criterion, batch)
        if DEVICE.type == "cuda":
            torch.cuda.synchronize()
        return result

    found = benchmark(run)

    exact = truth(case, batch)
    eager = None
    if provider != EAGER:
        eager = errors(evaluate(EAGER.criterion(case, batch), batch), exact)
    wrong = errors(found, exact).exceeding(allowed_errors(case, eager))
    assert wrong is None, f"{provider.name} in {case.name}: {wrong}"
