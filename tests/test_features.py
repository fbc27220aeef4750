"""A problem is described once, by name, and whoever has not heard of a part of it refuses it.

Features are the parts of a problem that are on. Every path, fast or not, says which it serves; the
names of fields, and what switches them off, are compared when a native module is loaded.
"""

from __future__ import annotations

import inspect
import sys
from collections import namedtuple
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

import lpl_fused.backends.triton  # noqa: F401 - for its paths
from lpl_fused import functional, reference
from lpl_fused.backends import REFERENCE, cpp, cuda, has_multilabel, load, native
from lpl_fused.functional import softmax
from lpl_fused.paths import Path
from lpl_fused.penalty import RELU
from lpl_fused.phi import FOCAL
from lpl_fused.problem import (
    NONE,
    BinaryOptions,
    BinaryProblem,
    Options,
    Problem,
    features_of,
)
from lpl_fused.testing import budget, device_of, error

N, C = 6, 5
MODULES = {"cpp": cpp, "cuda": cuda}


@pytest.fixture(params=MODULES)
def module(request: pytest.FixtureRequest) -> ModuleType:
    """A native module, as its launcher has loaded it."""
    backend = MODULES[request.param]
    if backend.unavailable():
        pytest.skip(str(backend.unavailable()))
    return backend._native()


def problem(**parts: Any) -> Problem:
    torch.manual_seed(0)
    return Problem(torch.randn(N, C), torch.arange(N) % C, **parts)


def multilabel(**parts: Any) -> BinaryProblem:
    torch.manual_seed(0)
    return BinaryProblem(torch.randn(N, C), torch.eye(N, C), **parts)


PLAIN = {Problem: problem, BinaryProblem: multilabel}


def table(kind: type, name: str) -> torch.Tensor:
    """A tensor as the field `name` has it."""
    if name in ("other", "row_index"):
        return torch.arange(N) % C
    if name == "steps":
        return torch.ones(C, dtype=torch.int32)
    shapes = {"lam": (N,), "sample_weight": (N,), "rows": (C, C)}
    return torch.full(shapes.get(name, (C,)), 0.5)


def one_on(kind: type) -> list[tuple[str, Any]]:
    """(feature, problem that has it alone), for every feature of a kind."""
    plain = PLAIN[kind]()
    found = []
    for name, off in plain._field_defaults.items():
        if off is None:
            found.append((name, PLAIN[kind](**{name: table(kind, name)})))
    options = plain.options
    for name, off in options._field_defaults.items():
        on = not off if isinstance(off, bool) else off + 1
        found.append((name, PLAIN[kind](options=options._replace(**{name: on}))))
    if kind is Problem:
        found.append(("dense", plain._replace(target=torch.rand(N, C))))
    return found


def features(module: ModuleType, asked: Any) -> set[str]:
    """What a native module finds on in a problem."""
    if isinstance(asked, Problem):
        return set(module.features(asked, native.Sizes.of(asked)))
    sizes = cpp.BinarySizes(n=N, c=C, row_stride=C, target_stride=C)
    return set(module.binary_features(asked, sizes))


def kinds(module: ModuleType) -> list[type]:
    return [Problem, BinaryProblem] if hasattr(module, "binary_paths") else [Problem]


def of(module: ModuleType, what: str, kind: type) -> Any:
    return getattr(module, f"binary_{what}" if kind is BinaryProblem else what)


def with_unheard(asked: Any, value: Any) -> Any:
    """The same problem with a field more, which is on where `value` is not None."""
    defaults = (*asked._field_defaults.values(), None)
    wider = namedtuple("Wider", (*asked._fields, "unheard"), defaults=defaults)  # type: ignore[misc]

    class Wider(wider):  # type: ignore[misc, valid-type]
        features = property(features_of)
        dense = property(lambda self: self.target.dim() == 2)
        smooth = property(lambda self: False)

    return Wider(*asked, value)


def with_unheard_option(asked: Any, value: float) -> Any:
    """The same problem with an option more, which is on where `value` is not 0."""
    defaults = (*asked.options._field_defaults.values(), 0.0)
    wider = namedtuple("Wider", (*asked.options._fields, "unheard"), defaults=defaults)  # type: ignore[misc]

    class Wider(wider):  # type: ignore[misc, valid-type]
        features = property(features_of)

    return asked._replace(options=Wider(*asked.options, value))


@pytest.mark.parametrize("kind", [Problem, BinaryProblem])
def test_features_are_what_is_on(kind: type) -> None:
    assert PLAIN[kind]().features == set()
    for name, asked in one_on(kind):
        assert asked.features == {name}


def test_both_languages_find_the_same_features(module: ModuleType) -> None:
    for kind in kinds(module):
        assert features(module, PLAIN[kind]()) == set()
        for name, asked in one_on(kind):
            assert features(module, asked) == {name}


@pytest.mark.parametrize("path", Path.known, ids=lambda path: path.name)
def test_a_path_serves_what_it_names_alone(path: Path) -> None:
    assert path.serves(PLAIN[path.kind]())
    for name, asked in one_on(path.kind):
        assert path.serves(asked) == (name in path.features), name
    names = {*path.kind._fields, *path.kind._field_defaults["options"]._fields, "dense"}
    assert path.features <= names  # none is misspelt


@pytest.mark.parametrize("path", Path.known, ids=lambda path: path.name)
def test_a_path_refuses_what_nobody_knows(path: Path) -> None:
    plain = PLAIN[path.kind]()
    for extended, off, on in (
        (with_unheard, None, torch.ones(C)),
        (with_unheard_option, 0.0, 0.5),
    ):
        assert path.serves(extended(plain, off))
        assert not path.serves(extended(plain, on))
        with pytest.raises(RuntimeError, match="no kernel serves unheard"):
            path.demand(extended(plain, on))


def test_native_paths_serve_what_they_name_alone(module: ModuleType) -> None:
    for kind in kinds(module):
        serves, paths = of(module, "serves", kind), of(module, "paths", kind)()
        assert paths
        for name, (named, outputs) in paths.items():
            assert serves(name, named, outputs)
            for feature, _ in one_on(kind):
                assert serves(name, [feature], []) == (feature in named), (name, feature)
            for output in module.fields()["BinaryOutputs" if kind is BinaryProblem else "Outputs"]:
                assert serves(name, [], [output[0]]) == (output[0] in outputs), (name, output)


def test_native_paths_refuse_what_nobody_knows(module: ModuleType) -> None:
    for kind in kinds(module):
        serves = of(module, "serves", kind)
        for name in of(module, "paths", kind)():
            assert serves(name, [], [])
            assert not serves(name, ["unheard"], [])
            assert not serves(name, [], ["unheard"])


@pytest.mark.devices
def test_a_backend_raises_for_what_nobody_knows(backend: str) -> None:
    for extended, on in ((with_unheard, torch.ones(C)), (with_unheard_option, 0.5)):
        for plain, call in ((problem(), "forward"), (multilabel(), "binary_forward")):
            asked = extended(plain, on)
            arguments: tuple[Any, ...] = (True,)
            if backend == REFERENCE:
                binary = call == "binary_forward"
                run = reference.sigmoid.binary_cross_entropy if binary else reference.cross_entropy
                arguments = ()
            elif call == "forward" or has_multilabel(backend):
                run = getattr(load(backend), call)
            else:
                continue
            with pytest.raises((RuntimeError, TypeError), match="unheard|fields, got a Wider"):
                run(asked, *arguments)


def test_kernels_refuse_outputs_that_they_do_not_make(module: ModuleType) -> None:
    asked = problem()
    arguments: list[Any] = [asked, native.Sizes.of(asked)]
    outputs = native.Outputs(swept=torch.empty(N, 3), loss=torch.empty(()))
    scratch = [cuda.Scratch(), 0] if module is cuda._native() else []
    with pytest.raises(RuntimeError, match="no kernel serves swept"):
        module.cross_entropy(*arguments, outputs, *scratch)


def test_torch_is_left_only_what_it_can_do() -> None:
    """An argument that torch's cross-entropy lacks goes to ours, one that is new as well."""
    ours: list[dict[str, Any]] = []

    def newer(input, target, weight=None, *, ignore_index=-100, phi="log", unheard=0.0):  # type: ignore[no-untyped-def]
        ours.append({"weight": weight, "phi": phi, "unheard": unheard})

    call = softmax._left_to_torch(newer)
    input, target = torch.randn(N, C, requires_grad=True), torch.arange(N) % C
    for off in ({}, {"unheard": 0.0}, {"phi": "log", "weight": None}, {"ignore_index": -3}):
        call(input, target, **off)
    assert not ours
    for on in ({"unheard": 0.5}, {"unheard": torch.zeros(1)}, {"phi": FOCAL}, {"weight": target}):
        call(input, target, **on)
        (found,) = ours
        assert {name: found[name] for name in on} == on
        ours.clear()
    with pytest.raises(TypeError, match="nonsense"):
        call(input, target, nonsense=None)


def test_no_argument_of_cross_entropy_but_torchs_goes_by_default() -> None:
    parameters = inspect.signature(functional.cross_entropy).parameters
    assert {*softmax._TORCHS} < {*parameters}
    off = {name: p.default for name, p in parameters.items() if name not in softmax._TORCHS}
    assert softmax._unchanged(off, off)
    for name in off:
        assert not softmax._unchanged({name: object()}, off)


RECORDS = [Problem, Options, native.Sizes, native.Outputs]


def renamed(fields: list[Any]) -> list[Any]:
    return [*fields[:2], ("other_name", fields[2][1]), *fields[3:]]


def reordered(fields: list[Any]) -> list[Any]:
    return [*fields[:2], fields[3], fields[2], *fields[4:]]


def dropped(fields: list[Any]) -> list[Any]:
    return fields[:-1]


def extended(fields: list[Any]) -> list[Any]:
    return [*fields, ("unheard", None)]


def off_elsewhere(fields: list[Any]) -> list[Any]:
    return [*fields[:2], (fields[2][0], 17), *fields[3:]]


def retyped(fields: list[Any]) -> list[Any]:
    """An int where there was a float, or None."""
    return [(name, int(off) if isinstance(off, float) else off or 0) for name, off in fields]


@pytest.mark.parametrize("record", RECORDS, ids=lambda record: record.__name__)
@pytest.mark.parametrize("change", [renamed, reordered, dropped, extended, off_elsewhere, retyped])
def test_a_module_of_other_fields_is_not_loaded(
    record: Any, change: Any, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    fields = module.fields()
    stub = SimpleNamespace(fields=lambda: fields, numbers=module.numbers)
    monkeypatch.setitem(sys.modules, "lpl_fused._stub", stub)  # type: ignore[arg-type]
    assert native.load("_stub", *RECORDS) is stub
    fields = {**fields, record.__name__: change(fields[record.__name__])}
    with pytest.raises(ImportError, match=f"_stub was built from other sources: {record.__name__}"):
        native.load("_stub", *RECORDS)


@pytest.mark.parametrize("kind", ["Terms", "Size", "Mass", "Detail", "Rivals"])
@pytest.mark.parametrize("change", [reversed, lambda names: names[:-1]], ids=["order", "count"])
def test_a_module_of_other_numbers_is_not_loaded(
    kind: str, change: Any, module: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    numbers = {**module.numbers(), kind: list(change(module.numbers()[kind]))}
    stub = SimpleNamespace(fields=module.fields, numbers=lambda: numbers)
    monkeypatch.setitem(sys.modules, "lpl_fused._stub", stub)  # type: ignore[arg-type]
    with pytest.raises(ImportError, match=f"_stub was built from other sources: {kind}'s numbers"):
        native.load("_stub", *RECORDS)


def test_a_module_of_before_fields_is_not_loaded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "lpl_fused._stub", SimpleNamespace())  # type: ignore[arg-type]
    with pytest.raises(ImportError, match="field 0 is input in Python, nothing in C"):
        native.load("_stub", Problem)


def test_options_go_through_an_operators_schema() -> None:
    for kind, options in ((Problem, Options()), (BinaryProblem, BinaryOptions())):
        for _, asked in one_on(kind):
            packed = asked.options.packed()
            assert type(options).unpacked(*packed) == asked.options
            back = type(options).unpacked(*packed)
            assert [type(value) for value in back] == [type(value) for value in options]


@pytest.mark.devices
@pytest.mark.parametrize("reduction", ["mean", "none"])
def test_steps_and_a_penalty(backend: str, reduction: str) -> None:
    """Together, though no public function asks for both: no solver may leave out the penalty."""
    options = Options(
        reduction=NONE if reduction == "none" else 1,
        step_size=0.3,
        penalty=RELU,
        penalty_margin=0.5,
        penalty_strength=0.7,
    )
    steps = torch.tensor([3, 2, -4, 0, 5], dtype=torch.int32)
    exact = problem(steps=steps, options=options)
    exact = exact._replace(input=exact.input.double().requires_grad_())
    truth = reference.cross_entropy(exact)
    (grad,) = torch.autograd.grad(truth.sum(), exact.input)
    if backend == REFERENCE:
        return
    device = device_of(backend)
    asked = problem(steps=steps.to(device), options=options)
    asked = asked._replace(input=asked.input.to(device), target=asked.target.to(device))
    made = load(backend).forward(asked, True)
    loss, found = made.loss, made.grad
    limit = budget(torch.float32, 0.0, ulps=8)
    assert error(loss.cpu(), truth.detach()) < limit
    assert error(found.cpu(), grad, cancels=True) < limit


def test_smoothing_that_learns_is_the_references() -> None:
    smoothing = torch.full((C,), 0.1, requires_grad=True)
    asked = problem()
    loss = functional.cross_entropy(
        asked.input.requires_grad_(), asked.target, label_smoothing=smoothing
    )
    (grad,) = torch.autograd.grad(loss, smoothing)
    assert grad.abs().sum() > 0
