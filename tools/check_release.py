"""Installs what a folder publishes as its users will, by pip from an index, and tries it.

    python -m tools.check_release dist --torch 2.11.0 --torch 2.13.0
    python -m tools.check_release dist --torch 2.13.0 --python python3.12

The folder holds the sdist and the wheels of one version, as tools/build_wheel.py leaves them. For
each torch (and `--python`, by default the one that runs this) a new environment gets that torch
and then, one after the other, the sdist and every wheel for that Python, by name and version from
an index of the folder (tools/wheel_index.py). tools/smoke.py runs in each; tools/check_wheel.py
reads the files and runs the tests. What else pip needs, torch say, comes from pip's own index.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
import tempfile
import zipfile
from pathlib import Path

from packaging.utils import InvalidSdistFilename, parse_sdist_filename, parse_wheel_filename

from tools import check_wheel, wheel_index

SMOKE = Path(__file__).resolve().parent / "smoke.py"
Install = tuple[str, list[str], list[str]]  # its version, arguments of pip, native modules


def published(folder: Path) -> tuple[Path, list[Path]]:
    """The sdist and the wheels in `folder`, all of one version.

    Raises:
        ValueError: it is not one sdist and at least one wheel, or versions differ.
    """
    sdists, wheels = sorted(folder.glob("*.tar.gz")), sorted(folder.glob("*.whl"))
    if len(sdists) != 1 or not wheels:
        names = [path.name for path in (*sdists, *wheels)]
        raise ValueError(f"expected one sdist and its wheels in {folder}, found {names}")
    version = parse_sdist_filename(sdists[0].name)[1]
    for wheel in wheels:
        found = parse_wheel_filename(wheel.name)[1]
        if found.public != version.public:
            raise ValueError(f"expected wheels of {version}, found {wheel.name}")
    return sdists[0], wheels


def installs(sdist: Path, wheels: list[Path], index: Path, tag: str) -> list[Install]:
    """What a Python with the tag `tag` ("cp311") can be given."""
    version = str(parse_sdist_filename(sdist.name)[1])
    found: list[Install] = [(version, [str(sdist.resolve())], check_wheel.promised(version))]
    for wheel in wheels:
        _, version_, _, tags = parse_wheel_filename(wheel.name)
        if all(t.interpreter != tag for t in tags):
            continue
        where = (index / (version_.local or "cpu")).resolve().as_uri()
        asked = ["--index-url", f"{where}/", "--only-binary", ":all:", f"lpl_fused=={version_}"]
        found.append((str(version_), asked, check_wheel.promised(str(version_))))
    return found


def run(what: str, *command: str, **environment: str) -> list[str]:
    """Runs it; what to complain of, where it fails."""
    kept = {k: v for k, v in os.environ.items() if not k.startswith(("LPL_FUSED", "PYTHONPATH"))}
    with tempfile.TemporaryDirectory() as folder:  # the package's source is not on the path
        done = subprocess.run(command, cwd=folder, env={**kept, **environment})
    return [f"{what} failed"] if done.returncode else []


def tried(sdist: Path, wheels: list[Path], index: Path, python: str, torch: str) -> list[str]:
    """What goes wrong in an environment of `python` with `torch`."""
    with tempfile.TemporaryDirectory() as folder:
        place = f"{python}, torch {torch}"
        inside = str(Path(folder) / "env" / "bin" / "python")
        pip = (inside, "-m", "pip", "--disable-pip-version-check", "install", "--quiet")
        wrong = run(f"{place}: venv", python, "-m", "venv", str(Path(folder) / "env"))
        wrong = wrong or run(f"{place}: torch", *pip, f"torch=={torch}")
        if wrong:
            return wrong
        ask = "import sys; print('cp%d%d' % sys.version_info[:2])"
        tag = subprocess.run([inside, "-c", ask], capture_output=True, text=True).stdout.strip()
        for version, arguments, modules in installs(sdist, wheels, index, tag):
            what = f"{place}: {version} of {'an sdist' if len(arguments) == 1 else 'a wheel'}"
            print(f"== {what}", flush=True)
            environment = {"LPL_FUSED_CUDA": "0", "LPL_FUSED_REQUIRE_EXT": "cpu"}
            failed = run(
                f"{what}: pip", *pip, "--force-reinstall", "--no-deps", *arguments, **environment
            )
            failed = failed or run(f"{what}: pip check", inside, "-m", "pip", "check")
            failed = failed or run(f"{what}: smoke.py", inside, str(SMOKE), version, *modules)
            wrong += failed
    return wrong


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--torch", action="append", required=True, help="may be given repeatedly")
    parser.add_argument("--python", action="append", default=[], help="may be given repeatedly")
    options = parser.parse_args()
    pythons = options.python or [sys.executable]
    for python in pythons:
        if shutil.which(python) is None:
            parser.error(f"--python: {python} is no program")
    with tempfile.TemporaryDirectory() as index:
        try:
            sdist, wheels = published(options.folder)
            for wheel in wheels:
                shutil.copy(wheel, index)
            wheel_index.write(Path(index))
        except (InvalidSdistFilename, OSError, ValueError, zipfile.BadZipFile) as error:
            parser.error(str(error))
        wrong = [
            line
            for python in pythons
            for torch in options.torch
            for line in tried(sdist, wheels, Path(index), python, torch)
        ]
    for line in wrong:
        print(f"wrong: {line}")
    if wrong:
        sys.exit(1)


if __name__ == "__main__":
    main()
