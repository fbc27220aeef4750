"""Who may import whom, as CONTRIBUTING.md says it."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

import lpl_fused

PACKAGE = Path(lpl_fused.__file__).parent
# what numbers, codes and fields mean, and who looks at tensors
SHARED = {"arguments", "problem", "paths", "norm", "penalty", "phi", "precision", "tracing"}
MAY = {
    "arguments": set(),
    "version": set(),
    "problem": {"norm", "version"},
    "norm": {"arguments"},
    "penalty": {"arguments"},
    "phi": {"arguments"},
    "precision": {"problem"},
    "tracing": set(),
    "paths": {"problem"},
    "algebra": {"algebra", *SHARED},
    "reference": {"reference", "algebra", *SHARED},
    "backends": {"backends", "algebra", *SHARED},
    "ops": {"ops", "backends", "algebra", *SHARED},
    "sharded": {
        *("sharded", "ops", "backends", "reference", "algebra", *SHARED),
        *("perturbation", "validation"),
    },
}
HEAVY = {"triton", "numpy", "matplotlib", "PIL", "rich", "sklearn", "torchmetrics"}


def imports(path: Path, type_checking: bool = False) -> Iterator[tuple[str, ...]]:
    """Modules of the package that a file imports, as parts of their names below it; also those for
    type checkers alone if asked for."""
    here = path.relative_to(PACKAGE.parent).with_suffix("").parts
    tree = ast.parse(path.read_text())
    skipped = set()
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and ast.unparse(node.test) == "TYPE_CHECKING":
            skipped |= {id(inner) for inner in ast.walk(node)}
    for node in ast.walk(tree):
        if id(node) in skipped and not type_checking:
            continue
        if isinstance(node, ast.ImportFrom):
            base = (node.module or "").split(".") if node.module else []
            if node.level:
                base = [*here[: len(here) - node.level], *base]
            for name in node.names:
                yield (*base, name.name)
        elif isinstance(node, ast.Import):
            for name in node.names:
                yield tuple(name.name.split("."))


def files(room: str) -> list[Path]:
    if (PACKAGE / f"{room}.py").exists():
        return [PACKAGE / f"{room}.py"]
    return sorted((PACKAGE / room).rglob("*.py"))


@pytest.mark.parametrize("room", MAY)
def test_a_room_imports_those_below_it(room: str) -> None:
    assert files(room)
    for path in files(room):
        for name in imports(path):
            if name[0] != "lpl_fused":
                continue
            assert len(name) > 1, f"{path}: imports the package itself"
            assert name[1] in MAY[room], f"{path}: {'.'.join(name)}"


def test_no_backend_imports_another() -> None:
    own = set(lpl_fused.backends())
    for path in files("backends"):
        room = path.relative_to(PACKAGE / "backends").parts[0].removesuffix(".py")
        names = {
            name[2]
            for name in imports(path)
            if name[:2] == ("lpl_fused", "backends") and len(name) > 2
        }
        others = {name for name in names & own if not room.startswith(name)}
        assert not others, f"{path}: {others}"


def test_the_core_needs_torch_alone() -> None:
    """What is imported with the package, at the top of its files; `kernels/` comes with first use."""
    for path in [path for room in MAY for path in files(room)]:
        if "kernels" in path.parts:
            continue
        for node in ast.parse(path.read_text()).body:
            if isinstance(node, ast.Import | ast.ImportFrom):
                names = (
                    [node.module or ""]
                    if isinstance(node, ast.ImportFrom) and not node.level
                    else []
                )
                names += [name.name for name in node.names] if isinstance(node, ast.Import) else []
                assert not {name.split(".")[0] for name in names} & HEAVY, path
