"""The launch past Triton's own: what it is keyed by, what it hands over, where it stays away."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch

from lpl_fused.backends.kernels.arguments import Kept
from lpl_fused.backends.triton import launching
from lpl_fused.backends.triton.memory import Layout


class Parts(NamedTuple):
    input: Any
    stride: Any
    absent: Any = None


class _Part(NamedTuple):
    numbers: Any
    count: Any


class Part(_Part, Kept):
    """What several launches are handed."""


class Constant:
    """As triton.language.constexpr, which has no other part in this."""

    def __init__(self, value: object) -> None:
        self.value = value


class Compiled:
    """What a kernel leaves that was launched once."""

    function, packed_metadata = "function", "metadata"

    def __init__(self) -> None:
        self.launches: list[tuple[Any, ...]] = []

    def run(self, *arguments: Any) -> None:
        self.launches.append(arguments)


class Kernel:
    """As triton.JITFunction: launched by index; the last of its parameters is a constant."""

    arg_names = ("parts", "count", "BLOCK")

    def __init__(self, made: Any) -> None:
        self.made = made
        self.fn = object()
        self.calls = 0

    def __getitem__(self, grid: tuple[int, ...]) -> Any:
        def launched(*arguments: Any, **meta: Any) -> Any:
            self.calls += 1
            return self.made

        return launched


class Hook:
    def __init__(self) -> None:
        self.calls: list[object] = []


@pytest.fixture
def hooks(monkeypatch: pytest.MonkeyPatch) -> tuple[Hook, Hook]:
    """A device's stream is its number and 70; nobody listens to launches."""
    found = Hook(), Hook()
    active = SimpleNamespace(get_current_stream=lambda device: 70 + device)
    monkeypatch.setattr(launching, "_driver", lambda: SimpleNamespace(active=active))
    monkeypatch.setattr(launching, "_hooks", lambda: found)
    monkeypatch.setattr(launching, "_compiled", {})
    return found


def run(kernel: Kernel, parts: Parts, count: Any = 5, grid: tuple[int, ...] = (3, 2)) -> None:
    meta = {"BLOCK": 64, "num_warps": 4}
    launching._run(1, kernel, grid, (parts, count), meta)


def test_the_second_launch_goes_to_what_the_first_has_compiled(hooks: object) -> None:
    made = Compiled()
    kernel = Kernel(made)
    first, second = (Parts(torch.zeros(64), 48) for _ in range(2))
    run(kernel, first)
    run(kernel, second, count=7)
    assert kernel.calls == 1
    # as Triton's own: grid, stream, function, what belongs to it, no hooks, all parameters in order
    expected = (3, 2, 1, 71, "function", "metadata", None, None, None)
    (found,) = made.launches
    assert found[:9] == expected
    assert found[9] is second
    assert found[10:] == (7, 64)


@pytest.mark.parametrize(
    "other",
    [
        pytest.param(Parts(torch.zeros(64, dtype=torch.float64), 48), id="dtype"),
        pytest.param(Parts(torch.zeros(64)[1:], 48), id="not a multiple of 16 bytes"),
        pytest.param(Parts(torch.zeros(64), 49), id="not a multiple of 16"),
        pytest.param(Parts(torch.zeros(64), 1), id="one"),
        pytest.param(Parts(torch.zeros(64), 48 << 30), id="64 bits"),
        pytest.param(Parts(torch.zeros(64), 48, 1.0), id="a float"),
        pytest.param(Parts(torch.zeros(64), Constant(48)), id="a constant"),
        pytest.param(Parts(torch.zeros(64), Constant(32)), id="another constant"),
        pytest.param(Parts(None, 48), id="absent"),
    ],
)
def test_what_triton_specialises_by_is_compiled_anew(hooks: object, other: Parts) -> None:
    kernel = Kernel(Compiled())
    run(kernel, Parts(torch.zeros(64), 48))
    run(kernel, other)
    assert kernel.calls == 2
    run(kernel, other)
    assert kernel.calls == 2


def test_launch_parameters_belong_to_the_key(hooks: object) -> None:
    kernel, parts = Kernel(Compiled()), Parts(torch.zeros(64), 48)
    for block in (64, 128, 64):
        launching._run(0, kernel, (1,), (parts, 2), {"BLOCK": block, "num_warps": 4})
    assert kernel.calls == 2
    launching._run(1, kernel, (1,), (parts, 2), {"BLOCK": 64, "num_warps": 4})
    assert kernel.calls == 3  # of another device


def test_who_listens_is_told(hooks: tuple[Hook, Hook]) -> None:
    kernel, parts = Kernel(Compiled()), Parts(torch.zeros(64), 48)
    run(kernel, parts)
    hooks[1].calls.append(print)
    run(kernel, parts)
    assert kernel.calls == 2


@pytest.mark.parametrize("made", [None, SimpleNamespace(run=print)], ids=["interpreted", "other"])
def test_another_triton_launches_by_itself(hooks: object, made: object) -> None:
    """One whose compiled kernels are not as in 3.6 to 3.9, or whose interpreter leaves none."""
    kernel, parts = Kernel(made), Parts(torch.zeros(64), 48)
    for _ in range(2):
        run(kernel, parts)
    assert kernel.calls == 2


def test_past_the_launchers_python_a_launch_is_handed_the_same(
    hooks: object, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What NVIDIA's launcher of the installed Triton hands its native part, and what we do."""
    triton = pytest.importorskip("triton")
    driver = pytest.importorskip("triton.backends.nvidia.driver")
    monkeypatch.setattr(triton.runtime.driver, "_active", SimpleNamespace(utils=None))
    launcher = driver.CudaLauncher.__new__(driver.CudaLauncher)
    handed: list[tuple[Any, ...]] = []
    fields = {
        "launch": lambda *found: handed.append(found),
        "arg_annotations": ["an argument"],
        "kernel_signature": b"signature",
        "launch_cooperative_grid": False,
        "launch_pdl": True,
        "num_ctas": 1,
        "gsan_enabled": False,
        **{f"{kind}_scratch_size": 0 for kind in ("global", "profile")},
        **{f"{kind}_scratch_align": 1 for kind in ("global", "profile")},
    }
    vars(launcher).update(fields)
    made = SimpleNamespace(run=launcher, function=7, packed_metadata=(4, 1, 0))
    direct = launching._direct_of(made, (64,))
    if not triton.__version__.startswith("3.9."):
        assert direct.run is launcher
        return
    assert direct.in_one
    kernel, parts = Kernel(made), Parts(torch.zeros(64), 48)
    for _ in range(2):
        run(kernel, parts)
    launcher(3, 2, 1, 71, 7, (4, 1, 0), None, None, None, parts, 5, 64)
    ours, theirs = handed
    assert ours == theirs
    # memory that a kernel wants of the host is the launcher's to find
    launcher.global_scratch_size = 8
    assert launching._direct_of(made, (64,)).run is launcher


def test_addresses_are_those_of_the_parts(hooks: object) -> None:
    """Whoever has to know their types gets tensors, a launch past Triton's own the addresses."""
    layout = Layout([((3, 5), torch.float32), ((0,), torch.int32), ((7,), torch.int64)])
    memory = torch.empty(layout.size, dtype=torch.uint8)
    parts = layout.within(memory)
    addresses = layout.addresses(memory)
    assert [part.shape for part in parts] == [(3, 5), (0,), (7,)]
    assert [part.dtype for part in parts] == [torch.float32, torch.int32, torch.int64]
    assert addresses[0] == parts[0].data_ptr()
    assert addresses[2] == parts[2].data_ptr() == layout.part(memory, 2).data_ptr()
    assert addresses[2] % 16 == 0 and addresses[2] >= addresses[0] + parts[0].nbytes
    assert layout.size >= addresses[2] - addresses[0] + parts[2].nbytes

    made = Compiled()
    kernel = Kernel(made)
    typed, placed = Part(parts[0], 3), Part(addresses[0], 3)
    placed.views = lambda: typed
    meta = {"BLOCK": 64, "num_warps": 4}
    for _ in range(2):
        launching._run(1, kernel, (1,), (placed, 5), meta)
    assert kernel.calls == 1  # with tensors
    (found,) = made.launches
    assert found[9] is placed
    # the same whether it is found of tensors or of addresses, and found once
    assert launching.key(placed) is placed.known
    assert launching.key(typed) == placed.known
    assert launching.key(Part(parts[0], 16)) != placed.known


def test_what_is_kept_of_a_tuple_is_not_kept_of_another(hooks: object) -> None:
    part = Part(torch.zeros(64), 3)
    launching.key(part)
    assert part._replace(count=4).known is None
    freed = torch.zeros(64)
    freed.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="a tensor without memory"):
        launching.key(part._replace(numbers=freed))
