"""What only a device shows of the backends for it: graphs, streams, no wait of the host, rows past
2^31 elements, clusters. The common suite runs on it by test_backends.py, the CUDA backend's under
compute-sanitizer by `make sanitize`."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from cases import Draw, cross_entropy_cases, lpl_cases

from lpl_fused import functional as LF
from lpl_fused import testing
from lpl_fused.backends import load

pytestmark = pytest.mark.gpu

Step = Callable[[torch.Tensor], tuple[torch.Tensor, torch.Tensor]]
FORMS = ["plain", "tables", "lpl", "lpl-normalized", "smoothed", "normalizer"]
CASES = {
    "plain": cross_entropy_cases()["ignore"],
    "tables": cross_entropy_cases()["scale"],
    "lpl": lpl_cases()["unique"],
    "lpl-normalized": lpl_cases()["groups-normalized"],
    "smoothed": cross_entropy_cases()["smoothed"],
    "normalizer": cross_entropy_cases()["ignore-normalizer-penalty"],
}


@pytest.fixture(params=["triton", "cuda"])
def on_device(request: pytest.FixtureRequest) -> str:
    """Each backend for CUDA tensors; one that is not there skips and says why."""
    name: str = request.param
    if reason := load(name).unavailable():
        pytest.skip(f"{name}: {reason}")
    return name


def step_of(
    on_device: str, form: str, n: int, classes: int, dtype: torch.dtype
) -> tuple[torch.Tensor, Step]:
    """(logits, what gives loss and gradient of such)"""
    case = CASES[form](Draw(n, classes, seed=1)).rounded(dtype).to(torch.float32).on("cuda")

    def step(input: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        input = input.detach().requires_grad_()
        if case.steps is None:
            loss = LF.cross_entropy(input, case.target, backend=on_device, **case.keywords)
        else:
            loss = LF.lpl_cross_entropy(
                input, case.target, case.steps, backend=on_device, **case.keywords
            )  # type: ignore[arg-type]
        return loss, torch.autograd.grad(loss.sum(), input)[0]

    return case.input.to(dtype), step


@pytest.mark.parametrize("form", FORMS)
def test_the_host_never_waits(on_device: str, form: str) -> None:
    input, step = step_of(on_device, form, 64, 1000, torch.bfloat16)
    step(input)
    torch.cuda.synchronize()
    torch.cuda.set_sync_debug_mode("error")
    try:
        step(input)
    finally:
        torch.cuda.set_sync_debug_mode("default")


@pytest.mark.parametrize("form", FORMS)
def test_a_graph_records_and_replays(on_device: str, form: str) -> None:
    input, step = step_of(on_device, form, 64, 1000, torch.float32)
    side = torch.cuda.Stream()
    with torch.cuda.stream(side):
        step(input)
    torch.cuda.current_stream().wait_stream(side)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        loss, grad = step(input)
    for seed in (1, 2):
        input.copy_(torch.randn(input.shape, generator=torch.Generator().manual_seed(seed)))
        graph.replay()
        expected = step(input)
        assert torch.equal(loss, expected[0])
        assert torch.equal(grad, expected[1])


def test_runs_on_the_current_stream(on_device: str) -> None:
    """Behind a wait on a side stream: on any other it would read logits that are not there yet."""
    input, step = step_of(on_device, "plain", 64, 1000, torch.float32)
    expected = step(input)[0]
    late = torch.zeros_like(input)
    side = torch.cuda.Stream()
    side.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(side):
        torch.cuda._sleep(50_000_000)
        late.copy_(input)
        loss = step(late)[0]
    torch.cuda.current_stream().wait_stream(side)
    assert torch.equal(loss, expected)


@pytest.mark.skipif(torch.cuda.device_count() < 2, reason="one device")
def test_runs_on_the_device_of_its_tensors(on_device: str) -> None:
    input = torch.randn(4, 100, device="cuda:1")
    target = torch.arange(4, device="cuda:1")
    with torch.cuda.device(0):
        loss = LF.cross_entropy(input, target, backend=on_device)
        assert torch.cuda.current_device() == 0
    torch.testing.assert_close(loss, torch.nn.functional.cross_entropy(input, target))


@pytest.mark.parametrize("form", ["plain", "smoothed", "lpl", "tables"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=str)
# a block, one with all of its memory, clusters of 2, 4, 8, and rows that no chip holds
@pytest.mark.parametrize("classes", [8142, 50257, 65537, 131072, 262144, 1_500_001])
def test_rows_of_every_length(on_device: str, form: str, dtype: torch.dtype, classes: int) -> None:
    testing.assert_within_budget(CASES[form](Draw(2, classes, seed=2)), on_device, dtype)


def test_more_than_two_to_the_31_elements(on_device: str) -> None:
    n, classes = 8200, 262_145  # 2.15e9 elements, 4.3 GB of bfloat16, as many of gradient
    free, _ = torch.cuda.mem_get_info()
    if free < 5 * n * classes:
        pytest.skip("not enough device memory")
    input = torch.empty(n, classes, dtype=torch.bfloat16, device="cuda").normal_().requires_grad_()
    target = torch.arange(n, device="cuda")
    loss = LF.cross_entropy(input, target, reduction="none", backend=on_device)
    (grad,) = torch.autograd.grad(loss.sum(), input)
    for row in (0, n // 2, n - 1):
        exact = input.detach()[row : row + 1].double().requires_grad_()
        expected = torch.nn.functional.cross_entropy(exact, target[row : row + 1])
        torch.testing.assert_close(loss[row].double(), expected, rtol=1e-5, atol=0)
        torch.testing.assert_close(
            grad[row].double(), torch.autograd.grad(expected, exact)[0][0], rtol=1e-2, atol=1e-7
        )
