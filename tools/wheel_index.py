"""Writes a package index beside a folder's wheels: static pages that pip reads (PEP 503).

    python tools/wheel_index.py dist
    python tools/wheel_index.py dist --url https://example.org/releases/v1.0.0rc1

One index for each CUDA version, since pip would take the highest of all: dist/cu130/ and, for
wheels without a local version, dist/cpu/; dist/index.html says how to install from each. Links lead
to the wheels in the folder, or to `--url` where these have been uploaded to another place.

    pip install lpl_fused --extra-index-url https://example.org/whl/cu130
"""

from __future__ import annotations

import argparse
import hashlib
import html
import zipfile
from email.parser import BytesParser
from pathlib import Path
from urllib.parse import quote

from packaging.utils import canonicalize_name, parse_wheel_filename

PAGE = """<!DOCTYPE html>
<html><head><meta charset="utf-8"><meta name="pypi:repository-version" content="1.0">
<title>{title}</title></head><body>
{body}
</body></html>
"""


def page(path: Path, title: str, lines: list[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(PAGE.format(title=html.escape(title), body="\n".join(lines)))


def link(wheel: Path, base: str) -> str:
    """The line of one file: where it is, its hash, the Pythons that it is for."""
    digest = hashlib.sha256(wheel.read_bytes()).hexdigest()
    with zipfile.ZipFile(wheel) as archive:
        names = [n for n in archive.namelist() if n.endswith(".dist-info/METADATA")]
        if len(names) != 1:
            raise zipfile.BadZipFile(f"expected a wheel, with its metadata, got {wheel.name}")
        (name,) = names
        python = BytesParser().parsebytes(archive.read(name))["Requires-Python"]
    requires = f' data-requires-python="{html.escape(python)}"' if python else ""
    address = f"{base}/{quote(wheel.name)}#sha256={digest}"  # "+" has to be quoted
    return f'<a href="{html.escape(address)}"{requires}>{html.escape(wheel.name)}</a><br>'


def write(folder: Path, url: str | None = None) -> list[Path]:
    """The pages for the wheels in `folder`.

    Raises:
        FileNotFoundError: there are none.
        packaging.utils.InvalidWheelFilename: a .whl whose name is not that of a wheel.
        zipfile.BadZipFile: a .whl that is none.
    """
    variants: dict[str, dict[str, list[Path]]] = {}
    for wheel in sorted(folder.glob("*.whl")):
        name, version, _, _ = parse_wheel_filename(wheel.name)
        projects = variants.setdefault(version.local or "cpu", {})
        projects.setdefault(canonicalize_name(name), []).append(wheel)
    if not variants:
        raise FileNotFoundError(f"expected wheels in {folder}, found none")
    made: list[Path] = []
    lines: list[str] = []
    pages: dict[Path, tuple[str, list[str]]] = {}  # written once all wheels are read
    for variant, projects in variants.items():
        for project, wheels in projects.items():
            made.append(folder / variant / project / "index.html")
            links = [link(wheel, (url or "../..").rstrip("/")) for wheel in wheels]
            pages[made[-1]] = f"{project} {variant}", links
            address = f'<a href="{variant}/{project}/">{variant}</a>'
            lines.append(f"<p>{address}: pip install {project} --extra-index-url …/{variant}</p>")
    made.append(folder / "index.html")
    pages[made[-1]] = "Wheels", lines
    for path, (title, body) in pages.items():
        page(path, title, body)
    return made


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--url", help="where the wheels are, if not in the folder")
    options = parser.parse_args()
    try:
        made = write(options.folder, options.url)
    except (OSError, ValueError, zipfile.BadZipFile) as error:
        parser.error(str(error))
    for path in made:
        print(path)


if __name__ == "__main__":
    main()
