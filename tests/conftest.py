"""What all tests share: interpreted Triton and CUDA kernels run by the host without a GPU, poisoned
memory, a count per backend."""

from __future__ import annotations

import contextlib
import fcntl
import functools
import importlib
import math
import operator
import os
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

# Threads that wait while others work, as workers of pytest-xdist do, must not spin
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import torch
import torch._functorch.config

# Triton looks at this when its kernels are first imported, so it comes before everything else
if not torch.cuda.is_available():
    os.environ.setdefault("TRITON_INTERPRET", "1")

import cuda_on_host
import pytest
from poison import CONTRACT, PATTERNS, Poison, modules, perturb

import lpl_fused
from lpl_fused.backends import BACKENDS, REFERENCE, has_multilabel, load
from lpl_fused.testing import device_of

if not torch.cuda.is_available():
    # without a compiler the backend says that it is not built
    with contextlib.suppress(ImportError, OSError):
        cuda_on_host.install()

# as where CI is set: operators whose results share memory with what they were given are a fault
torch._functorch.config.error_on_custom_op_aliasing = True

RAN: dict[str, int] = {}
EXPECTED = [name for name, state in lpl_fused.backends().items() if state == "available"]
# Markers of what is run when it is asked for (CONTRIBUTING.md)
RARE = {"architectures", "compilers", "large", "endurance"}
# Minutes each, the longest first: what starts last would run alone while other workers have no more
LONG = (
    "test_triton_compile.py",
    "test_packaging.py",
    "test_cuda_compile.py",
    "test_triton_groups.py",
    "test_device_cost.py",
    "test_instructions.py",
    "test_logit_norm_losses.py",
    "test_solver.py",
    "test_multilabel_backends.py",
    "test_cli.py",
    "test_lpl.py",
)


def _interpret_quickly() -> None:
    """Triton's interpreter searches its language for what to replace whenever a kernel calls a
    function of ours, a millisecond each time; what it has replaced already need not be searched.
    And for every tensor it makes its table of NumPy's types anew, which scalars can look up, and
    its shape. Whether integers overflow it asks by a dozen operations of its own, NumPy by three.
    """
    try:
        from triton.runtime import interpreter
    except ImportError:
        return
    import triton.language as tl

    search = getattr(interpreter, "_patch_lang", None)
    if search is None:  # a release that does it otherwise
        return

    def patch(fn):  # type: ignore[no-untyped-def]
        if not any(tl.core.is_builtin(lang.load) for lang in (tl, tl.core)):
            return interpreter._LangPatchScope()
        return search(fn)

    interpreter._patch_lang = patch
    of_scalar = functools.cache(interpreter._get_np_dtype)
    of_pointer = of_scalar(tl.uint64)  # pointers cannot be hashed
    interpreter._get_np_dtype = lambda type: (
        of_pointer if type.scalar.is_ptr() else of_scalar(type.scalar)
    )

    @functools.cache
    def shape_of(sizes: tuple[int, ...]) -> tuple[Any, Any]:
        # their tuple, for which `split` asks
        return tl.tuple(map(tl.constexpr, sizes)), tl.constexpr(math.prod(sizes))

    def make(self, handle, type):  # type: ignore[no-untyped-def]
        self.handle, self.type, self.dtype = handle, type, type.scalar
        self.shape, self.numel = shape_of(tuple(type.shape) if type.is_block() else ())

    def check_overflow(self, lhs, rhs, operation):  # type: ignore[no-untyped-def]
        kind = lhs.type.scalar
        assert kind == rhs.type.scalar and kind.is_int(), (kind, rhs.type.scalar)
        if kind.int_bitwidth < 64 and lhs.handle.data.size:
            both = (each.handle.data.astype("int64") for each in (lhs, rhs))
            exact = getattr(operator, operation.__name__)(*both)
            least, most = kind.get_int_min_value(), kind.get_int_max_value()
            assert least <= exact.min() and exact.max() <= most, f"{kind} overflow: {exact}"

    tl.tensor.__init__ = make
    interpreter.TritonSemantic.binary_op_sanitize_overflow_impl = check_overflow


if os.environ.get("TRITON_INTERPRET") == "1":
    _interpret_quickly()


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    ranks = {name: rank for rank, name in enumerate(LONG)}
    items.sort(key=lambda item: ranks.get(item.path.name, len(LONG)))
    for item in items:
        for rare in RARE & set(item.keywords) if not config.option.markexpr else ():
            item.add_marker(pytest.mark.skip(reason=f"run with -m {rare}"))
    if torch.cuda.is_available():
        return
    for item in items:
        if "gpu" in item.keywords:
            item.add_marker(pytest.mark.skip(reason="no CUDA device; run with `make gpu` on one"))


@pytest.fixture
def one_thread() -> Iterator[None]:
    """For steps that are too small to share, since other work may want the cores."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def once(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str, Callable[[Path], None]], Path]:
    """once(name, make): a folder that make(folder) has filled, for all workers of pytest-xdist the
    first of them that asks."""
    root = tmp_path_factory.getbasetemp()
    if "PYTEST_XDIST_WORKER" in os.environ:
        root = root.parent

    def filled(name: str, make: Callable[[Path], None]) -> Path:
        folder, done = root / name, root / f"{name}.done"
        with open(root / f"{name}.lock", "w") as lock:
            fcntl.flock(lock, fcntl.LOCK_EX)
            if not done.exists():
                shutil.rmtree(folder, ignore_errors=True)  # of one that failed
                folder.mkdir()
                make(folder)
                done.touch()
        return folder

    return filled


@pytest.fixture(autouse=True)
def poisoned(monkeypatch: pytest.MonkeyPatch) -> Iterator[Poison | None]:
    """What backends allocate shows what was left unwritten, or written beside it (poison.py)."""
    # initcheck and memcheck of `make sanitize` see that themselves, in memory as it comes
    if os.environ.get("LPL_FUSED_POISON") == "0":
        yield None
        return
    poison = Poison()
    for module in modules():
        monkeypatch.setattr(module, "torch", poison)
    if os.environ.get("TRITON_INTERPRET") == "1":
        builder = importlib.import_module("triton.runtime.interpreter").InterpreterBuilder
        load_lanes = poison.load(builder.create_masked_load)
        monkeypatch.setattr(builder, "create_masked_load", load_lanes)
    yield poison
    poison.check()


@pytest.fixture
def twice(
    poisoned: Poison | None, monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest
) -> Iterator[None]:
    """Whatever a backend is asked for it does twice: after other poison, in another order of
    threads, the bits must be the same."""
    if poisoned is None or request.node.get_closest_marker("counts"):
        yield
        return
    for module in map(load, BACKENDS):
        for name, defined in CONTRACT.items():
            if launcher := getattr(module, name, None):
                monkeypatch.setattr(module, name, poisoned.twice(launcher, defined))
    yield
    poisoned.use(PATTERNS[0])
    perturb(0)


def pytest_runtest_logreport(report: pytest.TestReport) -> None:
    if report.when == "call" and report.passed:
        for name, value in report.user_properties:
            if name == "backend":
                RAN[value] = RAN.get(value, 0) + 1


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "backend" in metafunc.fixturenames:
        names = list(BACKENDS)
        if metafunc.definition.get_closest_marker("multilabel"):
            names = [name for name in BACKENDS if has_multilabel(name)]
        metafunc.parametrize("backend", [*names, REFERENCE], indirect=True)
    if "named" in metafunc.fixturenames:  # what a caller may ask for where there are CPU tensors
        metafunc.parametrize("named", ["auto", *(n for n in EXPECTED if device_of(n) == "cpu")])


@pytest.fixture
def backend(request: pytest.FixtureRequest) -> str:
    """Every backend in turn; one that cannot run here skips and says why."""
    name: str = request.param
    state = lpl_fused.backends()[name]
    if state != "available":
        pytest.skip(f"{name}: {state}")
    if device_of(name) != "cpu" and not request.node.get_closest_marker("devices"):
        pytest.skip(f"{name} takes no CPU tensors here; test_backends.py runs it on its device")
    request.node.user_properties.append(("backend", name))
    return name


@pytest.fixture(params=BACKENDS)
def native(request: pytest.FixtureRequest) -> str:
    """Every backend with kernels in turn; one that is not built skips and says why."""
    name: str = request.param
    if reason := load(name).unavailable():
        pytest.skip(f"{name}: {reason}")
    return name


@pytest.fixture(params=["baseline", "avx2", "avx512"])
def isa(request: pytest.FixtureRequest) -> Iterator[str]:
    """The C++ kernels of each instruction set that this processor runs, not only the best."""
    cpp = load("cpp")
    if cpp.unavailable():
        pytest.skip(str(cpp.unavailable()))
    native, name = cpp._native(), str(request.param)
    best = native.isa()
    if not native.use_isa(name):
        pytest.skip(f"this processor does not run {name}")
    yield name
    native.use_isa(best)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter) -> None:
    if RAN:
        counts = ", ".join(f"{name} {count}" for name, count in sorted(RAN.items()))
        terminalreporter.write_line(f"tests passed on each backend: {counts}")


def pytest_sessionfinish(session: pytest.Session, exitstatus: int) -> None:
    """A whole run in which an available backend ran nothing has tested less than it says."""
    if hasattr(session.config, "workerinput"):
        return  # a worker of pytest-xdist has a part of the tests
    whole = not session.config.option.keyword and not session.config.option.markexpr
    whole = whole and session.config.args == session.config.getini("testpaths")
    silent = [name for name in EXPECTED if not RAN.get(name)]
    if whole and exitstatus == 0 and silent and not session.config.option.collectonly:
        print(f"\nno test ran on: {', '.join(silent)}")
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
