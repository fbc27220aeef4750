"""tools/: wheels for CUDA versions are built, checked and indexed by what is tested here."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

from tools import build_wheel, check_release, check_wheel, wheel_index

ROOT = Path(__file__).resolve().parent.parent
TOOLS = {
    t.__name__.rpartition(".")[2]: t for t in (build_wheel, check_release, check_wheel, wheel_index)
}
CPU = "lpl_fused-1.2.3-cp311-cp311-manylinux_2_28_x86_64.whl"
CUDA = "lpl_fused-1.2.3+cu130-cp311-cp311-manylinux_2_28_x86_64.whl"


def fake_wheel(folder: Path, name: str, files: dict[str, bytes] | None = None) -> Path:
    """An installable wheel of this name with these files and its metadata."""
    folder.mkdir(parents=True, exist_ok=True)
    version, tag = name.split("-")[1], name.removesuffix(".whl").split("-", 2)[2]
    info = f"lpl_fused-{version}.dist-info"
    metadata = (
        f"Metadata-Version: 2.1\nName: lpl_fused\nVersion: {version}\nRequires-Python: >=3.10\n"
    )
    with zipfile.ZipFile(folder / name, "w") as archive:
        for path, content in (files or {"lpl_fused/__init__.py": b""}).items():
            archive.writestr(path, content)
        archive.writestr(f"{info}/METADATA", metadata)
        archive.writestr(
            f"{info}/WHEEL", f"Wheel-Version: 1.0\nRoot-Is-Purelib: false\nTag: {tag}\n"
        )
        archive.writestr(f"{info}/RECORD", "")
    return folder / name


def script(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


# -- the index -------------------------------------------------------------------------------------


def downloaded(folder: Path, variant: str, python: str) -> list[str]:
    """What pip itself takes from the index of a variant."""
    out = folder / f"got-{variant}-{python}"
    options = ["--isolated", "download", "--quiet", "--no-deps", "--only-binary=:all:"]
    where = ["--platform=manylinux_2_28_x86_64", f"--python-version={python}", f"--dest={out}"]
    index = f"--index-url={(folder / variant).as_uri()}"
    command = [sys.executable, "-m", "pip", *options, *where, index, "lpl_fused"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return [path.name for path in out.iterdir()]


def test_pip_takes_the_wheel_of_its_cuda_and_python_from_the_index(tmp_path: Path) -> None:
    names = [CPU, CUDA, CUDA.replace("cu130", "cu132"), CUDA.replace("cp311", "cp312")]
    for name in names:
        fake_wheel(tmp_path, name)
    made = wheel_index.write(tmp_path)
    assert {str(path.relative_to(tmp_path)) for path in made} == {
        "index.html",
        *(f"{variant}/lpl-fused/index.html" for variant in ("cpu", "cu130", "cu132")),
    }
    assert downloaded(tmp_path, "cpu", "3.11") == [names[0]]
    assert downloaded(tmp_path, "cu130", "3.11") == [names[1]]
    assert downloaded(tmp_path, "cu130", "3.12") == [names[3]]


def test_index_of_wheels_that_lie_elsewhere(tmp_path: Path) -> None:
    fake_wheel(tmp_path, CUDA)
    wheel_index.write(tmp_path, "https://example.org/v1.2.3/")
    text = (tmp_path / "cu130/lpl-fused/index.html").read_text()
    address = CUDA.replace("+", "%2B")
    assert re.search(rf'"https://example.org/v1.2.3/{address}#sha256=[0-9a-f]{{64}}"', text)
    assert 'data-requires-python="&gt;=3.10"' in text


def test_no_index_of_nothing_or_of_what_is_no_wheel(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match="expected wheels"):
        wheel_index.write(tmp_path)
    (tmp_path / "lpl_fused.whl").write_bytes(b"")
    with pytest.raises(ValueError, match="wheel filename"):
        wheel_index.write(tmp_path)


@pytest.mark.parametrize(
    ("tool", "arguments", "message"),
    [
        ("wheel_index", ["absent"], "expected wheels in absent, found none"),
        ("wheel_index", ["named"], "wheel filename"),
        ("wheel_index", ["zipped"], "not a zip file"),
        ("wheel_index", ["empty"], "expected a wheel, with its metadata"),
        ("check_wheel", ["absent.whl"], "absent.whl is no wheel"),
        ("check_wheel", [f"absent/{CPU}"], "is no wheel: .*No such file"),
        ("check_wheel", [f"zipped/{CPU}"], "is no wheel: .*not a zip file"),
        ("check_wheel", [f"empty/{CPU}", "--python", "absent"], "--python: absent is no program"),
        (
            "check_release",
            ["absent", "--torch", "2.13.0"],
            "expected one sdist and its wheels in absent",
        ),
        (
            "check_release",
            ["absent", "--torch", "2", "--python", "absent"],
            "--python: absent is no",
        ),
        ("build_wheel", ["rocm6"], "expected cpu or cu and a CUDA version such as cu130, got"),
        ("build_wheel", ["cu130"], "CUDA 13.0: no .*absent-nvcc"),
        ("build_wheel", ["cpu", "--out", f"zipped/{CPU}"], "--out: expected a folder"),
    ],
)
def test_bad_arguments_end_in_one_line(
    tool: str,
    arguments: list[str],
    message: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    for folder in ("named", "zipped", "empty"):
        (tmp_path / folder).mkdir()
    (tmp_path / "named" / "bad.whl").write_text("x")
    (tmp_path / "zipped" / CPU).write_text("x")
    with zipfile.ZipFile(tmp_path / "empty" / CPU, "w"):
        pass
    before = sorted(tmp_path.rglob("*"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("NVCC", str(tmp_path / "absent-nvcc"))
    monkeypatch.setattr(sys, "argv", [tool, *arguments])
    with pytest.raises(SystemExit) as stopped:
        TOOLS[tool].main()
    assert stopped.value.code == 2
    assert re.search(message, capsys.readouterr().err.splitlines()[-1])
    assert sorted(tmp_path.rglob("*")) == before


# -- the build -------------------------------------------------------------------------------------


def version(local: str, *command: str) -> str:
    done = subprocess.run(
        [sys.executable, "setup.py", "--version", *command],
        cwd=ROOT, capture_output=True, text=True, check=True,
        env={**os.environ, "LPL_FUSED_LOCAL_VERSION": local},
    )  # fmt: skip
    return done.stdout.split()[-1]


def test_local_version_is_one_of_wheels_alone() -> None:
    assert version("cu130") == f"{version('')}+cu130"
    assert version("cu130", "sdist") == version("")


def test_cuda_release() -> None:
    assert build_wheel.cuda_release("cu130") == "13.0"
    with pytest.raises(ValueError, match="expected cpu or cu"):
        build_wheel.cuda_release("13.0")


def test_nvcc_of_another_release_builds_nothing(tmp_path: Path) -> None:
    nvcc = str(script(tmp_path / "nvcc", "echo Cuda compilation tools, release 13.2, V13.2.78"))
    assert build_wheel.nvcc_of_release("13.2", nvcc) == nvcc
    with pytest.raises(ValueError, match=r"expected nvcc 13\.0, .* is 13\.2"):
        build_wheel.nvcc_of_release("13.0", nvcc)
    with pytest.raises(ValueError, match=r"no .*/absent"):
        build_wheel.nvcc_of_release("13.0", str(tmp_path / "absent"))


# -- the check -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def libraries(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Shared libraries, named by what is wrong with them."""
    folder = tmp_path_factory.mktemp("libraries")
    compiler = [os.environ.get("CXX", "c++"), "-shared", "-x", "c", "/dev/null", "-x", "none"]
    torch = folder / "libtorch.so"
    options = {
        "good": [],
        "torch": ["-Wl,--no-as-needed", str(torch)],
        "path": ["-Wl,-rpath,/opt/cuda/lib"],
    }
    subprocess.run([*compiler, "-Wl,-soname,libtorch.so", "-o", str(torch)], check=True)
    for name, extra in options.items():
        subprocess.run([*compiler, *extra, "-o", str(folder / name)], check=True)
    return {name: (folder / name).read_bytes() for name in options}


def module(name: str, library: bytes) -> dict[str, bytes]:
    return {f"lpl_fused/{name}.cpython-311-x86_64-linux-gnu.so": library}


@pytest.mark.parametrize(
    ("name", "extra", "complaints"),
    [
        (CPU, {}, []),
        (CPU.replace("manylinux_2_28", "linux"), {}, ["platform: expected manylinux"]),
        (CPU.replace("lpl_fused", "lpl"), {}, ["expected a wheel of lpl-fused"]),
        (CPU, {"lpl_fused.libs/libgomp-1.so": "good"}, ["got also ['lpl_fused.libs']"]),
        (CPU, {"tests/test_lpl.py": "good"}, ["got also ['tests']"]),
        (CPU, {"_cpu": None}, ["native modules: expected ['_cpu'], got []"]),
        (CPU, {"_cuda": "good"}, ["native modules: expected ['_cpu'], got ['_cpu', '_cuda']", "architectures"]),
        (CUDA, {}, ["native modules: expected ['_cpu', '_cuda'], got ['_cpu']"]),
        (CPU, {"_cpu": "torch"}, ["_cpu needs ['libtorch.so']"]),
        (CPU, {"_cpu": "path"}, ["_cpu needs ['DT_RUNPATH /opt/cuda/lib']"]),
    ],
    ids=["good", "linux tag", "other project", "brings libgomp", "brings tests", "no _cpu", "_cuda unannounced", "no _cuda", "needs torch", "search path"],
)  # fmt: skip
def test_check_of_a_file(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    libraries: dict[str, bytes],
    name: str,
    extra: dict[str, str | None],
    complaints: list[str],
) -> None:
    """Every deliberate fault is reported, and nothing else."""
    pytest.importorskip("elftools")
    from tools import check_wheel

    script(tmp_path / "bin/cuobjdump", "true")
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    files = {"lpl_fused/__init__.py": b""}
    for path, kind in {"_cpu": "good", **extra}.items():
        if kind is not None:
            content = libraries[kind]
            files |= module(path, content) if path.startswith("_") else {path: content}
    wrong = check_wheel.problems(fake_wheel(tmp_path, name, files), ["80"])
    assert len(wrong) == len(complaints), wrong
    for said, expected in zip(wrong, complaints, strict=True):
        assert expected in said


@pytest.mark.parametrize(
    ("archs", "complaints"), [(["80", "100"], 0), (["80", "90", "100"], 1), (["100", "80"], 1)]
)
def test_check_of_architectures(
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    libraries: dict[str, bytes],
    archs: list[str],
    complaints: int,
) -> None:
    pytest.importorskip("elftools")
    from tools import check_wheel

    says = """case $1 in
    --list-elf) echo ELF file 1: _cuda.1.sm_80.cubin; echo ELF file 2: _cuda.2.sm_100.cubin ;;
    --list-ptx) echo PTX file 1: _cuda.1.sm_100.ptx ;;
    esac"""
    script(tmp_path / "bin/cuobjdump", says)
    monkeypatch.setenv("PATH", str(tmp_path / "bin"), prepend=os.pathsep)
    both = {**module("_cpu", libraries["good"]), **module("_cuda", libraries["good"])}
    wrong = check_wheel.problems(fake_wheel(tmp_path, CUDA, both), archs)
    assert len(wrong) == complaints, wrong


def test_check_of_what_is_installed(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    pytest.importorskip("elftools")
    from tools import check_wheel

    python = f"cp{sys.version_info.major}{sys.version_info.minor}"
    broken = {"lpl_fused/__init__.py": b"raise ImportError('undefined symbol')"}
    wheel = fake_wheel(tmp_path, CPU.replace("cp311", python), broken)
    assert check_wheel.installed(wheel, sys.executable, [])[0].endswith("tools/smoke.py failed")
    assert "undefined symbol" in capfd.readouterr().err
    other = fake_wheel(tmp_path, CPU.replace("cp311", "cp27"))
    assert check_wheel.installed(other, sys.executable, [])[0].endswith("install failed")


# -- the release -----------------------------------------------------------------------------------


def release(folder: Path, *names: str) -> Path:
    for name in names:
        fake_wheel(folder, name)
    (folder / "lpl_fused-1.2.3.tar.gz").write_bytes(b"")
    return folder


def test_each_python_is_given_the_sdist_and_its_wheels(tmp_path: Path) -> None:
    names = [CPU, CUDA, CUDA.replace("cp311", "cp312")]
    sdist, wheels = check_release.published(release(tmp_path, *names))
    found = check_release.installs(sdist, wheels, tmp_path, "cp311")
    assert [(version, modules) for version, _, modules in found] == [
        ("1.2.3", ["_cpu"]),
        ("1.2.3+cu130", ["_cpu", "_cuda"]),
        ("1.2.3", ["_cpu"]),
    ]
    assert [arguments[-1] for _, arguments, _ in found] == [
        str(sdist.resolve()),
        "lpl_fused==1.2.3+cu130",
        "lpl_fused==1.2.3",
    ]
    assert len(check_release.installs(sdist, wheels, tmp_path, "cp310")) == 1


def test_a_release_is_of_one_version(tmp_path: Path) -> None:
    release(tmp_path, CPU.replace("1.2.3", "1.2.4"))
    with pytest.raises(ValueError, match=r"expected wheels of 1\.2\.3, found lpl_fused-1\.2\.4"):
        check_release.published(tmp_path)


def smoke(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, str(ROOT / "tools" / "smoke.py"), *arguments]
    return subprocess.run(
        command, capture_output=True, text=True, env={**os.environ, **environment}
    )


def test_the_smoke_test_of_what_is_installed_here() -> None:
    done = smoke()
    assert done.returncode == 0, done.stdout + done.stderr
    assert re.search(r"cpu reference: cross-entropy \de-\d\d, LPL \de-\d\d", done.stdout)


def test_the_smoke_test_names_what_is_wrong() -> None:
    done = smoke("1.2.3", "_absent")
    assert done.returncode == 1
    assert re.search(r"wrong: version: expected 1\.2\.3, got ", done.stdout)
    assert "wrong: _absent: No module named 'lpl_fused._absent'" in done.stdout
