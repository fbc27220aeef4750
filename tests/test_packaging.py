"""What installing and importing need, and what they must not need."""

from __future__ import annotations

import ast
import os
import re
import subprocess
import sys
import tarfile
import tempfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

import lpl_fused

ROOT = Path(__file__).resolve().parent.parent
# tools/check_wheel.py runs these tests beside an installed wheel
needs_source = pytest.mark.skipif(not (ROOT / "setup.py").exists(), reason="no source tree here")


def run(code: str, **environment: str) -> str:
    """Output of `code` in a fresh interpreter."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON", "LPL_FUSED"))}
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tempfile.gettempdir(),  # not the source tree, which would come first on the path
        capture_output=True,
        text=True,
        env={**kept, **environment},
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_import_needs_torch_alone() -> None:
    """No plotting, no triton, no native module comes with the import."""
    heavy = [
        "triton",
        "matplotlib",
        "rich",
        "torchmetrics",
        "sklearn",
        "PIL",
        "numpy.testing",
        "lpl_fused._cpu",
        "lpl_fused._cuda",
    ]
    code = f"import sys, torch; before = set(sys.modules); import lpl_fused; print(sorted(set({heavy}) & (set(sys.modules) - before)))"
    assert run(code).strip() == "[]"


MODULES = (
    *("average_precision", "certification", "class_stats", "evaluation"),
    *("integrations", "ladc", "linear", "sampling", "schedules", "susceptibility"),
)


def test_modules_come_when_they_are_asked_for() -> None:
    """And with each of them nothing that is not installed with torch."""
    code = f"""
import sys, lpl_fused
early = [name for name in {MODULES} if f"lpl_fused.{{name}}" in sys.modules]
shown = [name for name in {MODULES} if name not in dir(lpl_fused)]
found = [getattr(lpl_fused, name).__name__ for name in {MODULES}]
print(early, shown, found == [f"lpl_fused.{{name}}" for name in {MODULES}])
"""
    early, rest = run(code).split("] ", 1)
    assert rest.strip() == "[] True"
    assert "sampling" not in early  # others are what losses are made of


def test_what_is_no_module_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="module 'lpl_fused' has no attribute 'schedule'"):
        lpl_fused.schedule  # noqa: B018


def test_a_missing_package_names_its_extra() -> None:
    code = """
import sys
sys.modules["torchmetrics"] = None
import torch, lpl_fused
try:
    lpl_fused.average_precision.mean_average_precision(torch.rand(2, 2), torch.eye(2), [1, 1])
except ModuleNotFoundError as error:
    print(error)
"""
    assert run(code).strip() == 'torchmetrics is missing: pip install "lpl_fused[metrics]"'


BLOCKED = """
import sys
sys.modules.update(dict.fromkeys({blocked}))  # None there makes an import fail
import torch, lpl_fused
from lpl_fused import functional as LF
x = torch.randn(4, 7, requires_grad=True); y = torch.tensor([0, 1, 2, 6])
LF.cross_entropy(x, y).backward()
LF.lpl_cross_entropy(x, y, torch.ones(7).int(), step_size=0.1).backward()
print(lpl_fused.explain())
"""


@pytest.mark.parametrize(
    ("blocked", "runs"),
    [
        (["triton"], "cpp"),
        (["lpl_fused._cpu"], "reference"),
        (["triton", "lpl_fused._cpu"], "reference"),
    ],
    ids=str,
)
def test_without_triton_or_the_native_module(blocked: list[str], runs: str) -> None:
    """Slower, but everything works, and explain() says what is missing."""
    said = run(BLOCKED.format(blocked=blocked))
    assert f"runs: {runs}" in said
    for name in blocked:
        assert re.search(rf"{'triton' if name == 'triton' else 'cpp'} +no: ", said)


def test_a_backend_asked_for_by_name_never_falls_back() -> None:
    code = BLOCKED.format(blocked=["lpl_fused._cpu"]) + (
        "\ntry: LF.cross_entropy(x, y, backend='cpp')\nexcept RuntimeError as e: print('refused:', e)"
    )
    assert "refused: backend 'cpp' cannot run on cpu torch.float32: its native module" in run(code)


def test_environment_chooses_the_backend() -> None:
    code = "import lpl_fused; print(lpl_fused.explain())"
    assert "runs: reference (LPL_FUSED_BACKEND=reference)" in run(
        code, LPL_FUSED_BACKEND="reference"
    )


def test_version_and_public_names() -> None:
    assert re.fullmatch(r"\d+\.\d+\.\d+(rc\d+)?", lpl_fused.__version__)
    for name in lpl_fused.__all__:
        assert getattr(lpl_fused, name) is not None
    assert callable(lpl_fused.backends)
    assert set(lpl_fused.backends()) == {"cpp", "triton", "cuda", "reference"}


def build(kind: str, out: Path, source: Path, **environment: str) -> Path:
    """An sdist or a wheel, built with what is installed here (no download)."""
    code = (
        "import sys; from setuptools import build_meta as b;"
        f"print('built', getattr(b, 'build_{kind}')(sys.argv[1]))"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, str(out)],
        cwd=source,
        capture_output=True,
        text=True,
        # the CUDA module takes minutes; test_cuda_compile.py compiles its kernels
        env={**os.environ, "LPL_FUSED_CUDA": "0", **environment},
    )
    assert done.returncode == 0, done.stderr[-3000:]
    said = re.search(r"^built (\S+)$", done.stdout, re.MULTILINE)
    assert said, done.stdout
    return out / said[1]


@pytest.fixture
def unpacked_sdist(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The source distribution, unpacked: what `pip install` of it would build from."""
    folder = tmp_path_factory.mktemp("sdist")
    copy = folder / "tree"
    names = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=ROOT, capture_output=True, text=True, check=True,
    ).stdout.split("\n")  # fmt: skip
    for name in filter(None, names):
        if (ROOT / name).is_file():
            (copy / name).parent.mkdir(parents=True, exist_ok=True)
            (copy / name).write_bytes((ROOT / name).read_bytes())
    archive = build("sdist", folder, copy)
    with tarfile.open(archive) as tar:
        # which Python 3.11.2 has not, that of Debian 12
        given: Any = {"filter": "data"} if hasattr(tarfile, "data_filter") else {}
        tar.extractall(folder, **given)
    return folder / archive.name.removesuffix(".tar.gz")


@needs_source
def test_sdist_builds_a_wheel_that_works(unpacked_sdist: Path, tmp_path: Path) -> None:
    # whether all sources are there needs no optimiser, which takes minutes; a last -O counts
    quick = tmp_path / "c++"
    quick.write_text(f'#!/bin/sh\nexec {os.environ.get("CXX", "c++")} "$@" -O0\n')
    quick.chmod(0o755)
    required = {"LPL_FUSED_CUDA": "0", "LPL_FUSED_REQUIRE_EXT": "cpu", "CXX": str(quick)}
    wheel = build("wheel", tmp_path, unpacked_sdist, **required)
    with zipfile.ZipFile(wheel) as archive:
        names = archive.namelist()
        archive.extractall(tmp_path / "site")
    assert any(re.match(r"lpl_fused/_cpu\..*\.(so|pyd)$", name) for name in names)
    assert "lpl_fused/py.typed" in names
    assert "lpl_fused/losses/lpl.py" in names
    assert "lpl_fused/backends/kernels/__init__.py" in names
    assert not any(name.startswith(("tests/", "benchmarks/", "csrc/")) for name in names)
    code = (
        "import lpl_fused, torch; assert 'site' in lpl_fused.__file__, lpl_fused.__file__;"
        "print(lpl_fused.functional.cross_entropy(torch.zeros(2, 4), torch.tensor([0, 3]), backend='cpp'))"
    )
    assert "1.3863" in run(code, PYTHONPATH=str(tmp_path / "site"))


@needs_source
def test_without_a_compiler_it_still_installs(unpacked_sdist: Path, tmp_path: Path) -> None:
    nowhere = {"CXX": "/nonexistent/c++", "NVCC": "/nonexistent/nvcc", "LPL_FUSED_CUDA": "1"}
    wheel = build("wheel", tmp_path, unpacked_sdist, **nowhere)
    with zipfile.ZipFile(wheel) as archive:
        assert not any(re.search(r"_(cpu|cuda)\.", name) for name in archive.namelist())
        assert "lpl_fused/functional/softmax.py" in archive.namelist()
    code = "import sys; from setuptools import build_meta as b;b.build_wheel(sys.argv[1])"
    for required, cuda in (("cpu", "0"), ("cuda", "auto"), ("all", "1")):
        done = subprocess.run(
            [sys.executable, "-c", code, str(tmp_path)],
            cwd=unpacked_sdist, capture_output=True, text=True,
            env={**os.environ, **nowhere, "LPL_FUSED_CUDA": cuda, "LPL_FUSED_REQUIRE_EXT": required},
        )  # fmt: skip
        assert done.returncode != 0, required


def test_native_module_needs_neither_torch_nor_cuda() -> None:
    from lpl_fused.backends import load

    reason = load("cpp").unavailable()
    if reason:
        pytest.skip(reason)
    linked = subprocess.run(
        ["ldd", load("cpp")._native().__file__], capture_output=True, text=True, check=True
    ).stdout
    linked = re.sub(r"\(0x[0-9a-f]+\)", "", linked)  # addresses may spell a name
    assert not re.search("torch|c10|cuda", linked)
    assert len(re.findall(r"libgomp\S* =>", linked)) <= 1


@needs_source
def test_the_oldest_python_reads_the_package() -> None:
    """What neither its syntax nor a type checker tells: its NamedTuple is no base beside others."""
    said = re.search(r'requires-python = ">=3\.(\d+)"', (ROOT / "pyproject.toml").read_text())
    assert said
    oldest = 3, int(said[1])
    sources = [
        *ROOT.glob("lpl_fused/**/*.py"),
        *ROOT.glob("tools/*.py"),
        *ROOT.glob("examples/*.py"),
    ]
    assert len(sources) > 100
    for path in sources:
        for node in ast.walk(ast.parse(path.read_text(), feature_version=oldest)):
            if isinstance(node, ast.ClassDef) and len(node.bases) > 1 and oldest < (3, 11):
                bases = [ast.unparse(base) for base in node.bases]
                assert "NamedTuple" not in bases, f"{path}:{node.lineno}: {node.name}({bases})"


@needs_source
def test_the_project_speaks_of_itself_alone() -> None:
    """No path of a machine in code, documents and results (tests may make one up)."""
    files = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    ).stdout.split()
    pattern = re.compile(r"(?<![\w.])/(?:home|root|Users)/\w")
    for name in files:
        if name.startswith("tests/"):
            continue
        path = ROOT / name
        if (
            path.suffix in {".py", ".md", ".toml", ".json", ".jsonl", ".txt", ".h", ".cpp"}
            and path.is_file()
        ):
            found = pattern.search(path.read_text())
            assert not found, f"{name}: {found[0] if found else ''}"
