"""Tries an installed lpl_fused for a few seconds: what is there, and whether what runs is right.

    python tools/smoke.py                               whatever is installed for this Python
    python tools/smoke.py 1.0.0rc1+cu130 _cpu _cuda     of that version, with these native modules

Needs torch and lpl_fused, nothing else. Ends with status 1 and says what is wrong, else prints what
it saw: versions, backends, and the largest error of each against float64.
"""

from __future__ import annotations

import importlib.metadata
import io
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

import lpl_fused
from lpl_fused import functional as LF
from lpl_fused import losses

Loss = Callable[[Tensor, Tensor, str], Tensor]
COUNTS = [1000 // (c + 1) + 1 for c in range(1000)]
LOSSES: dict[str, Loss] = {
    "cross-entropy": lambda x, y, backend: LF.cross_entropy(x, y, backend=backend),
    "LPL": lambda x, y, backend: LF.lpl_cross_entropy(
        x, y, torch.full((1000,), 5, device=x.device), step_size=0.1, backend=backend
    ),
}


def of_this_install(version: str, modules: list[str]) -> list[str]:
    """What differs from the version and the native modules that were promised."""
    wrong = []
    installed = importlib.metadata.distribution("lpl_fused")
    beside, used = Path(str(installed.locate_file("lpl_fused"))), Path(lpl_fused.__file__).parent
    if beside.exists() and beside.resolve() != used.resolve():
        wrong.append(f"installed is {beside}, imported {used}")
    said = installed.version
    if said != version or lpl_fused.__version__ != version.partition("+")[0]:
        wrong.append(f"version: expected {version}, got {said} ({lpl_fused.__version__})")
    for module in modules:
        try:
            importlib.import_module(f"lpl_fused.{module}")
        except ImportError as error:
            wrong.append(f"{module}: {error}")
    return wrong


def error(loss: Loss, x: Tensor, y: Tensor, backend: str) -> float:
    """The largest error of loss and gradient against float64, over the largest value of each."""
    found = []
    for dtype, runs in ((torch.float32, backend), (torch.float64, "reference")):
        logits = x.to(dtype).requires_grad_()
        value = loss(logits, y, runs)
        found.append((value.detach().double(), *torch.autograd.grad(value, logits)))
    return max(float((g - e).abs().max() / e.abs().max()) for g, e in zip(*found, strict=True))


def backends_are_right() -> list[str]:
    wrong = []
    devices = ["cpu", *(["cuda"] if torch.cuda.is_available() else [])]
    for device in devices:
        generator = torch.Generator().manual_seed(0)
        x = torch.randn(64, 1000, generator=generator).to(device)
        y = torch.arange(64, device=device)
        serves = []
        for backend in lpl_fused.backends():
            try:
                LF.cross_entropy(x, y, backend=backend)
            except RuntimeError as refused:
                print(f"  {device} {backend}: {str(refused).splitlines()[0]}")
                continue
            serves.append(backend)
            errors = {name: error(loss, x, y, backend) for name, loss in LOSSES.items()}
            print(f"  {device} {backend}: " + ", ".join(f"{n} {e:.0e}" for n, e in errors.items()))
            wrong += [
                f"{device} {backend}: {name} is off by {e:.1e} of its largest value"
                for name, e in errors.items()
                if not e < 1e-5
            ]
        if "reference" not in serves:
            wrong.append(f"{device}: the reference does not run, which every install has")
    return wrong


def a_step_lowers_the_loss() -> list[str]:
    """One line changed in a training loop; saved and loaded; features in place of logits."""
    torch.manual_seed(0)
    model = torch.nn.Linear(32, 1000)
    optimizer = torch.optim.SGD(model.parameters(), lr=1.0)
    features, target = torch.randn(128, 32), torch.randint(1000, (128,))
    wrong = []
    for criterion in (losses.LogitAdjustedLoss(COUNTS), losses.LPLLoss(COUNTS, tau=1.0)):
        before = criterion(model(features), target)
        optimizer.zero_grad()
        before.backward()
        optimizer.step()
        if not criterion(model(features), target) < before:
            wrong.append(f"{criterion}: a step of SGD does not lower the loss")
        file = io.BytesIO()
        torch.save(criterion.state_dict(), file)
        file.seek(0)
        criterion.load_state_dict(torch.load(file))
        direct = criterion(model(features), target)
        linear = criterion.linear(features, model.weight, target, model.bias)
        if not torch.allclose(direct, linear, rtol=1e-5):
            wrong.append(f"{criterion}: {direct} of logits, {linear} of features")
    return wrong


def the_command_runs() -> list[str]:
    command = [sys.executable, "-m", "lpl_fused", "explain"]
    done = subprocess.run(command, capture_output=True, text=True)
    return [] if done.returncode == 0 else [f"lpl_fused explain: {done.stderr}"]


def one_libgomp() -> list[str]:
    """A second one has threads of its own, which then compete."""
    found = set(re.findall(r"/.*libgomp.*", Path("/proc/self/maps").read_text()))
    return [] if len(found) == 1 else [f"expected one libgomp, got {sorted(found)}"]


def main() -> None:
    if sys.argv[1:2] in (["-h"], ["--help"]):
        print(__doc__)
        return
    where = Path(lpl_fused.__file__).parent
    version = importlib.metadata.version("lpl_fused")
    print(f"lpl_fused {version} in {where}")
    print(f"  Python {sys.version.split()[0]}, torch {torch.__version__}")
    wrong = of_this_install(sys.argv[1] if sys.argv[1:] else version, sys.argv[2:])
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)  # whatever it writes is gone afterwards
        wrong += backends_are_right() + a_step_lowers_the_loss() + the_command_runs()
    if sys.platform == "linux":
        wrong += one_libgomp()
    for line in wrong:
        print(f"wrong: {line}")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
