"""Other libraries' losses: how they are called, when they take part, what is said if they do not."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import replace
from types import ModuleType
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from benchmark_conditions import CE, CPU

from benchmarks import baselines, peers
from benchmarks.cases import STEP_SIZE, Case, draw
from benchmarks.correctness import evaluate, truth
from benchmarks.measure import admit
from benchmarks.peers import OFFICIAL, PEERS
from benchmarks.providers import EAGER, Provider

BY_NAME = {provider.name: provider for provider in PEERS}
FUNCTIONS = {
    "liger": ("liger_kernel.transformers.functional", "liger_cross_entropy"),
    "quack": ("quack.cross_entropy", "cross_entropy"),
    "liger-linear": ("liger_kernel.transformers.functional", "liger_fused_linear_cross_entropy"),
    "quack-linear": ("quack.linear_cross_entropy", "chunked_linear_cross_entropy"),
    "cut-cross-entropy": ("cut_cross_entropy", "linear_cross_entropy"),
}
Installed = Callable[..., list[tuple[tuple[Any, ...], dict[str, Any]]]]


@pytest.fixture
def installed(monkeypatch: pytest.MonkeyPatch) -> Installed:
    """Puts a function of ours where a peer's would be, and keeps what it is called with."""

    def install(peer: str, function: Callable[..., torch.Tensor]) -> list[Any]:
        module, name = FUNCTIONS[peer]
        calls: list[Any] = []

        def called(*arguments: Any, **keywords: Any) -> torch.Tensor:
            calls.append((arguments, keywords))
            return function(*arguments, **keywords)

        parts = module.split(".")
        for i in range(len(parts)):
            monkeypatch.setitem(
                sys.modules, ".".join(parts[: i + 1]), ModuleType(".".join(parts[: i + 1]))
            )
        setattr(sys.modules[module], name, called)
        return calls

    return install


def _linear(x: torch.Tensor, w: torch.Tensor, target: torch.Tensor) -> torch.Tensor:
    return F.cross_entropy(x @ w.T, target)


@pytest.mark.parametrize("peer", ["liger", "quack"])
@pytest.mark.parametrize("loss", ["ce", "la", "vs", "ldam", "logitclip", "mbls", "lpl3-zipf"])
def test_a_peer_of_logits_gets_tables_as_its_users_add_them(
    peer: str, loss: str, installed: Installed
) -> None:
    calls = installed(peer, F.cross_entropy)
    case = Case.parse("48x130", "fp32", loss)
    batch = draw(case, CPU)
    assert BY_NAME[peer].solves(case)
    on_cpu = replace(BY_NAME[peer], absent=lambda device: None)
    found = {e.name: e.status for e in admit(case, batch, [EAGER, on_cpu], "cpu")}
    assert found == {"eager": "ok", peer: "ok"}
    (((logits, target), keywords),) = calls
    assert keywords == {}
    assert target is batch.target
    if batch.perturbation is not None:
        expected = baselines.perturbed(batch.logits, batch.target, batch.perturbation)
        assert torch.equal(logits, expected)


def test_label_smoothing_goes_to_who_knows_it(installed: Installed) -> None:
    case = Case.parse("48x130", "fp32", "smoothing")
    calls = installed("liger", F.cross_entropy)
    batch = draw(case, CPU)
    BY_NAME["liger"].criterion(case, batch)(batch.logits)
    assert calls[0][1] == {"label_smoothing": 0.1}
    assert not BY_NAME["quack"].solves(case)


@pytest.mark.parametrize("peer", ["liger-linear", "quack-linear", "cut-cross-entropy"])
def test_a_peer_of_features_gets_them_and_the_weight(peer: str, installed: Installed) -> None:
    calls = installed(peer, _linear)
    case = Case.parse("48x130", "fp32", "linear-ce")
    batch = draw(case, CPU)
    found = evaluate(BY_NAME[peer].criterion(case, batch), batch)
    (((features, weight, target), keywords),) = calls
    assert (features.shape, weight.shape, keywords) == ((48, 512), (130, 512), {})
    assert target is batch.target
    exact = [grad.float() for grad in truth(case, batch).grads]
    torch.testing.assert_close(list(found.grads), exact, rtol=1e-3, atol=1e-6)


def test_who_solves_what() -> None:
    solved = {
        loss: {p.name for p in PEERS if p.solves(Case.parse("48x130", "fp32", loss))}
        for loss in ("ce", "smoothing", "lpl3", "linear-ce", "linear-lpl3", "bce", "bce-lpl3")
    }
    assert solved == {
        "ce": {"liger", "quack"},
        "smoothing": {"liger"},
        "lpl3": {"liger", "quack", "official"},
        "linear-ce": {"liger-linear", "quack-linear", "cut-cross-entropy", "torch-linear"},
        "linear-lpl3": set(),
        "bce": set(),
        "bce-lpl3": set(),
    }


@pytest.mark.parametrize("peer", FUNCTIONS)
def test_an_absent_peer_says_why(
    peer: str, installed: Installed, monkeypatch: pytest.MonkeyPatch
) -> None:
    provider, (module, name) = BY_NAME[peer], FUNCTIONS[peer]
    assert provider.absent("cpu") == "runs on a GPU, not on cpu"
    root = module.split(".")[0]
    for known in [m for m in sys.modules if m.split(".")[0] == root]:
        monkeypatch.delitem(sys.modules, known)
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "meta_path", [])
    assert provider.absent("cuda") == f"module {root} is not installed"
    installed(peer, F.cross_entropy)
    assert provider.absent("cuda") is None
    delattr(sys.modules[module], name)
    assert f"{module}.{name} cannot be imported: AttributeError" in (provider.absent("cuda") or "")


def test_torch_without_a_chunked_loss_says_so(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(torch.nn, "LinearCrossEntropyOptions", raising=False)
    reason = BY_NAME["torch-linear"].absent("cpu")
    assert reason == f"torch {torch.__version__} has no chunked linear_cross_entropy"


# --- LPL as published --------------------------------------------------------------------------


@pytest.mark.parametrize("labels", ["", "-zipf", "-unique", "-one"])
def test_the_published_algorithm_is_what_the_library_says_of_it(labels: str) -> None:
    case = Case.parse("48x60", "fp64", f"lpl7{labels}")
    batch = draw(case, CPU)
    assert OFFICIAL.truth is not None
    mine = evaluate(OFFICIAL.criterion(case, batch), batch)
    expected = evaluate(OFFICIAL.truth(case, batch), batch)
    torch.testing.assert_close(mine.loss, expected.loss, rtol=1e-12, atol=0)
    torch.testing.assert_close(mine.grads, expected.grads, rtol=1e-10, atol=1e-15)
    assert mine.loss > 1.01 * F.cross_entropy(batch.logits, batch.target)  # raised


def test_a_step_is_divided_by_the_norm_of_the_column() -> None:
    """One row u = (2, 1, 0) of class 0: −e_1 and −e_2 of the absent classes leave its column be."""
    logits, target = torch.tensor([[2.0, 1.0, 0.0]], dtype=torch.float64), torch.tensor([0])
    p = torch.softmax(logits, 1)
    delta = STEP_SIZE * (p - F.one_hot(target, 3)) / (1 - p[0, 0])
    expected = F.cross_entropy(logits + delta, target)
    found = baselines.published_lpl_cross_entropy(logits, target, STEP_SIZE, 1)
    torch.testing.assert_close(found, expected, rtol=1e-14, atol=0)


def test_matrices_beyond_a_quarter_of_memory_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case.parse("48x130", "fp32", "lpl3")
    needed = 4 * 4 * 130**2

    def entrants(memory: int) -> list[tuple[str, str, str | None]]:
        monkeypatch.setattr(peers, "_memory", lambda device: memory)
        found = admit(case, draw(case, CPU), [EAGER, OFFICIAL], "cpu")
        return [(e.name, e.status, e.reason) for e in found]

    assert entrants(4 * needed)[1] == ("official", "ok", None)
    name, status, reason = entrants(4 * needed - 4)[1]
    assert (name, status) == ("official", "absent")
    assert reason is not None
    assert "4 matrices of 130×130" in reason
    assert "more than 25% of memory" in reason


def test_the_device_s_memory_is_known() -> None:
    assert 2**28 < peers._memory(CPU) < 2**50


def test_a_peer_that_raises_is_a_finding(installed: Installed) -> None:
    def no_kernel(*_: Any) -> torch.Tensor:
        raise AssertionError("Unsupported input dtype")

    installed("quack", no_kernel)
    quack: Provider = replace(BY_NAME["quack"], absent=lambda device: None)
    found = list(admit(CE, draw(CE, CPU), [EAGER, quack], "cpu"))
    assert found[1].reason == "AssertionError: Unsupported input dtype"
