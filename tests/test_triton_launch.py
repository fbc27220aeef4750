"""The launch past Triton's own: what it is keyed by, what it hands over, where it stays away."""

from __future__ import annotations

import json
import subprocess
import sys
import threading
from importlib import metadata
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NamedTuple

import pytest
import torch
import triton_driver

from benchmarks import triton_launches
from lpl_fused.backends.triton import launching
from lpl_fused.backends.triton.launching import Plans
from lpl_fused.backends.triton.memory import Layout


class Parts(NamedTuple):
    input: Any
    stride: Any
    absent: Any = None


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


class Launcher:
    """What `fields` of NVIDIA's launcher has, and notes what its native part is handed."""

    def __init__(self, launcher: Any, **fields: Any) -> None:
        self.handed: list[tuple[Any, ...]] = []
        self.launcher = launcher.__new__(launcher)
        found = {
            "launch": lambda *found: self.handed.append(found),
            "arg_annotations": ["an argument"],
            "kernel_signature": b"signature",
            "launch_cooperative_grid": False,
            "launch_pdl": True,
            "num_ctas": 1,
            "gsan_enabled": False,
            **{f"{kind}_scratch_size": 0 for kind in ("global", "profile")},
            **{f"{kind}_scratch_align": 1 for kind in ("global", "profile")},
        }
        vars(self.launcher).update(found | fields)


@pytest.fixture
def native(hooks: object, monkeypatch: pytest.MonkeyPatch) -> Any:
    """Makes (kernel, what native launches it was handed) by the types of its parameters."""
    triton = pytest.importorskip("triton")
    driver = pytest.importorskip("triton.backends.nvidia.driver")
    if not triton.__version__.startswith(launching._FLAT):
        pytest.skip("this Triton's launcher is not handed parameters one by one")
    monkeypatch.setattr(triton.runtime.driver, "_active", SimpleNamespace(utils=None))
    monkeypatch.setattr(driver, "PyKernelArg", lambda nested_tuple, type: type)
    monkeypatch.setattr(driver, "ARG_KERNEL", "handed over", raising=False)
    monkeypatch.setattr(launching, "interpreted", lambda: False)

    def make(types: tuple[Any, ...], **fields: Any) -> tuple[Kernel, list[tuple[Any, ...]]]:
        found = Launcher(driver.CudaLauncher, **fields)
        source = SimpleNamespace(signature=dict(enumerate(types)))
        made = SimpleNamespace(
            run=found.launcher, function=7, packed_metadata=(4, 1, 0), src=source
        )
        # as Triton's own launch does when it has compiled
        return Kernel(made), found.handed

    return make


def past(handed: list[tuple[Any, ...]]) -> list[tuple[Any, ...]]:
    """Of native launches those by a plan, which asks the tensors for their device: the CPU, −1."""
    return [each for each in handed if each[3] == 70 - 1]


# of Parts, a count and BLOCK
TYPES = (("*fp32", "i32", "constexpr"), "i32", "constexpr")
META = {"BLOCK": 64, "num_warps": 4}


def planned(
    plans: Plans, kernel: Kernel, input: torch.Tensor, stride: int = 48, kind: Any = "any"
) -> None:
    def launches() -> None:
        launching._run(1, kernel, (3, 2), (Parts(input, stride), 5), META)

    plans.run((kind, stride), (input,), launches)


def test_a_plan_hands_over_what_a_launch_does(native: Any) -> None:
    """To the native part of NVIDIA's launcher; constants, and what is not there, are not."""
    kernel, handed = native(TYPES)
    plans, first, second = Plans(), torch.zeros(64), torch.ones(64)
    planned(plans, kernel, first)
    planned(plans, kernel, second)
    assert kernel.calls == 1
    kernel.made.run(3, 2, 1, 70 - 1, 7, (4, 1, 0), None, None, None, Parts(second, 48), 5, 64)
    ours, theirs = handed
    assert past(handed) == [ours, theirs]
    assert ours[:13] == theirs[:13]
    assert ours[13:] == (["handed over"] * 3, b"signature", (second.data_ptr(), 48, 5))
    assert theirs[13:] == (["an argument"], b"signature", (Parts(second, 48), 5, 64))


@pytest.mark.parametrize(
    "other",
    [
        pytest.param((torch.zeros(64, dtype=torch.float64), 48), id="dtype"),
        pytest.param((torch.zeros(64)[1:], 48), id="not a multiple of 16 bytes"),
        pytest.param((torch.zeros(64), 1), id="another number"),
        pytest.param((torch.zeros(64), 48, "other"), id="another kind"),
    ],
)
def test_a_plan_is_of_calls_that_compile_alike(native: Any, other: tuple[Any, ...]) -> None:
    kernel, handed = native(TYPES)
    plans = Plans()
    planned(plans, kernel, torch.zeros(64))
    planned(plans, kernel, *other)
    assert not past(handed)  # the first of its kind is written down
    planned(plans, kernel, *other)
    assert len(past(handed)) == 1
    planned(Plans(), kernel, *other)  # of another form
    assert len(past(handed)) == 1


def test_a_plan_of_parts_of_a_memory(native: Any) -> None:
    """Each goes where it is in another memory; a tensor that is not there stays away."""
    kernel, handed = native((("*fp32", "constexpr", "*i32"), "*i64", "constexpr"))
    layout = Layout([((3, 5), torch.float32), ((0,), torch.int32), ((7,), torch.int64)])
    plans = Plans()
    for offset in (0, 16, 16):
        memory = torch.zeros(layout.size + 16, dtype=torch.uint8)[offset:]
        tensors = memory, torch.zeros(4, dtype=torch.int32), None

        def launches(memory: Any = memory, other: Any = tensors[1]) -> None:
            rows, _, counts = layout.within(memory)
            launching._run(1, kernel, (1,), (Parts(rows, None, other), counts), META)

        plans.run("any", tensors, launches)
    assert kernel.calls == 1
    begin = memory.data_ptr()
    assert past(handed)[-1][-1] == (begin, tensors[1].data_ptr(), begin + 64)
    assert layout.within(memory)[2].data_ptr() == begin + 64


def test_a_launcher_of_one_signature_is_handed_its_tuples(
    native: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As in Triton 3.6, whose own launches triton_plans.py compares; constants are not looked at."""
    monkeypatch.setattr(launching, "_NESTED", launching._FLAT)
    kernel, handed = native((("*fp32", ("constexpr", "i32"), ()), "i32", "constexpr"))
    plans = Plans()
    for input in torch.zeros(64), torch.ones(64):

        def launches(input: Any = input) -> None:
            parts = Parts(input, (None, 48), ())
            launching._run(1, kernel, (3, 2), (parts, 5), META)

        plans.run("any", (input,), launches)
    (ours,) = past(handed)
    before = (3, 2, 1, 70 - 1, 7, False, True, None, None, (4, 1, 0), None, None, None)
    assert ours == (*before, (input.data_ptr(), (None, 48), ()), 5, None)


def test_zeros_have_signs(native: Any) -> None:
    kernel, handed = native(("*fp32", ("fp32", "fp32", "i32"), "constexpr"))
    plans, input = Plans(), torch.zeros(4)
    for _ in range(2):
        plans.run(
            "any",
            (input,),
            lambda: launching._run(1, kernel, (1,), (input, (0.0, -0.0, 0)), META),
        )
    assert [repr(each) for each in past(handed)[0][-1][1:]] == ["0.0", "-0.0", "0"]


def test_what_a_plan_cannot_know_is_launched_every_time(native: Any) -> None:
    """A tensor that is not at hand, one that is there twice, an operation of torch, nothing."""
    input, others = torch.zeros(64), torch.zeros(64)
    of: dict[str, Any] = {
        "not at hand": ((others,), lambda: None),
        "made meanwhile": ((others,), lambda: input.clone()),
        "there twice": ((input, input), lambda: None),
        "within another": ((input, torch.zeros(0).set_(input)), lambda: None),
        "torch's": ((input,), lambda: input.add_(1)),
    }
    for what, (tensors, before) in of.items():
        kernel, handed = native(TYPES)
        plans, calls = Plans(), 0

        def launches(before: Any = before, kernel: Kernel = kernel) -> None:
            nonlocal calls
            calls += 1
            before()
            launching._run(1, kernel, (1,), (Parts(input, 48), 5), META)

        for _ in range(3):
            plans.run("any", tensors, launches)
        assert calls == 3, what
        assert not past(handed), what
    found = []
    plans = Plans()
    for _ in range(2):
        plans.run("any", (input,), lambda: found.append(1))
    assert len(found) == 2


def test_views_and_memory_are_no_operations(native: Any) -> None:
    kernel, handed = native(TYPES)
    plans, input = Plans(), torch.zeros(64)

    def launches() -> None:
        torch.empty(3)
        launching._run(1, kernel, (1,), (Parts(input.view(8, 8), 48), 5), META)

    for _ in range(2):
        plans.run("any", (input,), launches)
    assert len(past(handed)) == 1


def test_a_plan_asks_who_listens_and_whether_memory_is_there(
    native: Any, hooks: tuple[Hook, Hook]
) -> None:
    kernel, handed = native(TYPES)
    plans, input = Plans(), torch.zeros(64)
    planned(plans, kernel, input)
    hooks[0].calls.append(print)
    planned(plans, kernel, input)
    assert (kernel.calls, len(past(handed))) == (2, 0)
    hooks[0].calls.clear()
    planned(plans, kernel, input)
    assert (kernel.calls, len(past(handed))) == (2, 1)
    input.untyped_storage().resize_(0)
    with pytest.raises(RuntimeError, match="a tensor without memory"):
        planned(plans, kernel, input)


def test_another_launcher_has_no_plan(native: Any) -> None:
    kernel, handed = native(TYPES)
    launcher = kernel.made.run
    kernel.made.run = lambda *arguments: launcher(*arguments)  # as another driver's
    plans = Plans()
    for _ in range(3):
        planned(plans, kernel, torch.zeros(64))
    assert (kernel.calls, len(handed), past(handed)) == (1, 2, [])


def test_launchers_that_want_memory_have_no_plan(native: Any) -> None:
    for fields in ({"global_scratch_size": 8}, {"profile_scratch_size": 8}, {"gsan_enabled": True}):
        assert launching._native_of(native(TYPES, **fields)[0].made) is None
    assert launching._native_of(native(TYPES)[0].made) is not None


def test_another_thread_writes_down_its_own(native: Any) -> None:
    """Launches of a thread that is in the midst of a call are not the other's."""
    kernel, handed = native(TYPES)
    other, _ = native(TYPES)
    plans, input, theirs = Plans(), torch.zeros(64), torch.zeros(64)

    def launches() -> None:
        aside = threading.Thread(target=planned, args=(Plans(), other, theirs))
        aside.start()
        aside.join()
        launching._run(1, kernel, (1,), (Parts(input, 48), 5), META)

    for _ in range(2):
        plans.run("any", (input,), launches)
    assert (kernel.calls, other.calls, len(past(handed))) == (1, 1, 1)


def test_an_error_leaves_no_plan_behind(native: Any) -> None:
    kernel, handed = native(TYPES)
    plans, input = Plans(), torch.zeros(64)

    def fails() -> None:
        launching._run(1, kernel, (1,), (Parts(input, 48), 5), META)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        plans.run(("any", 48), (input,), fails)
    for _ in range(2):
        planned(plans, kernel, input)
    assert len(past(handed)) == 1


# launches of two calls that plans know, by call
BY_PLANS = {
    "cross-entropy": 6,
    "cross-entropy, by statistics": 6,
    'cross-entropy, reduction="none"': 4,
    "LogitAdjustedLoss": 6,
    "LDAMLoss": 6,
    "LPL, one row": 6,
    "LPL": 6,
    "LPL, many logits": 16,
    "LPLLoss": 6,
    "binary cross-entropy": 4,
    "multi-label LPL": 26,
    "torch.bfloat16, from 0": 6,
    "LPL, torch.bfloat16, from 0": 6,
    "LPL, with stats, torch.bfloat16, from 0": 2,
    "torch.bfloat16, from 3": 6,
    "LPL, torch.bfloat16, from 3": 6,
    "LPL, with stats, torch.bfloat16, from 3": 2,
    "LPL, 1 rows": 8,
    "LPL, 1100 rows": 14,
    "LPL, gradients apart": 18,
    "alike, rows 60 apart": 6,
    "alike, rows 41 apart": 6,
    "alike, another label ignored": 6,
    "alike, smoothed": 6,
    "alike, smoothed more": 6,
    "alike, z-loss": 6,
    "alike, z-loss, more": 6,
    "alike, scaled": 6,
    "alike, with stats": 2,  # whose class is right may be the labels themselves: not by a plan
    "alike, a sum": 6,
    "alike, normalised": 6,
    "alike, normalised by a tensor": 6,
    "alike, weighed": 6,
    "alike, weighed by one number": 6,
    "alike, LPL, rows 60 apart": 6,
    "alike, LPL, rows 41 apart": 6,
    "alike, LPL, longer steps": 6,
    "alike, LPL, another label ignored": 6,
    "alike, LPL, of rows": 6,
}


@pytest.mark.skipif(
    triton_driver.unavailable() is not None, reason=triton_driver.unavailable() or ""
)
@pytest.mark.skipif(
    not metadata.version("triton").startswith(launching.PLANNED), reason="no plans with this Triton"
)
def test_plans_of_whole_calls_hand_over_what_triton_does(tmp_path: Path) -> None:
    """An interpreter has none; triton_plans.py compares them where the launcher is Triton's."""
    environment = triton_launches.environment(tmp_path)
    command = [sys.executable, str(Path(__file__).with_name("triton_plans.py")), str(tmp_path)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-4000:]
    assert json.loads(done.stdout) == BY_PLANS
