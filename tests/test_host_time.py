"""The benchmark of the host's time: what is in a device's place counts launches right. No time is
looked at."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
import triton_driver

from benchmarks import host_time, triton_launches


def test_kernels_of_torch_are_counted_once() -> None:
    logits, target = torch.zeros(4, 9, requires_grad=True), torch.zeros(4, dtype=torch.int64)
    one = torch.ones(())

    def plain() -> object:
        return torch.autograd.grad(F.cross_entropy(logits, target), logits, one)

    # softmax and label, each forwards and back, and the zeros that the label's gradient is put in
    assert host_time.launches_of_torch(plain).total() == 5
    nothing = host_time.launches_of_torch(lambda: target.to(torch.int64).view(2, 2).expand(3, 2, 2))
    assert nothing.total() == 0
    found = host_time.launches_of_torch(lambda: (target != 1).sum(dtype=torch.float32).mul_(one))
    assert found == {"ne": 1, "sum": 1, "mul_": 1}


# our kernels, and torch's: neither may grow unseen
MOST = {
    ("eager", "cross-entropy"): (0, 5),
    ("cuda", "cross-entropy"): (3, 0),
    ("cuda", "cross-entropy, by statistics"): (3, 0),
    ("cuda", 'cross-entropy, reduction="none"'): (2, 0),
    ("cuda", "LogitAdjustedLoss"): (4, 0),
    ("cuda", "LDAMLoss"): (4, 0),
    ("cuda", "LPL, one row"): (4, 0),
    ("cuda", "LPL"): (8, 0),
    ("cuda", "LPL, many logits"): (8, 0),
    ("cuda", "LPLLoss"): (8, 0),
    ("cuda", "binary cross-entropy"): (3, 0),
    ("cuda", "multi-label LPL"): (6, 0),
    ("triton", "cross-entropy"): (3, 0),
    ("triton", "cross-entropy, by statistics"): (3, 0),
    ("triton", "LPL, one row"): (3, 0),
}


def test_launches_of_a_call(once: Callable[[str, Callable[[Path], None]], Path]) -> None:
    if reason := triton_driver.unavailable():
        pytest.skip(reason)

    def measure(folder: Path) -> None:
        environment = triton_launches.environment(folder)
        # Triton compiles the rest for half a minute
        chosen = "cuda|triton, (cross-entropy(, by statistics)?|LPL, one row)$"
        command = [sys.executable, "-m", "benchmarks.host_time", "--rounds", "1"]
        with open(folder / "found", "w") as out:
            subprocess.run(
                [*command, "--only", chosen, "--json"], env=environment, stdout=out, check=True
            )

    found = json.loads((once("host-time", measure) / "found").read_text())
    counted = {(one["backend"], one["case"]): (one["kernels"], one["operations"]) for one in found}
    assert counted == MOST


def test_docs_show_the_record() -> None:
    text = (Path(__file__).parent.parent / "docs" / "cuda.md").read_text()
    missing = [line for line in host_time.markdown(host_time.recorded()) if line not in text]
    assert not missing
