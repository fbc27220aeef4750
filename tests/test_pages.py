"""What README and docs/ say: their examples run, their links lead somewhere."""

from __future__ import annotations

import functools
import importlib
import json
import re
import subprocess
import sys
from pathlib import Path

import pytest

import lpl_fused
from lpl_fused import functional, losses

ROOT = Path(__file__).resolve().parent.parent
PAGES = [
    page for page in (*ROOT.glob("*.md"), *sorted(ROOT.glob("docs/**/*.md"))) if page.is_file()
]
NAMES = [str(page.relative_to(ROOT)) for page in PAGES]
# code in fences and between backticks, in which brackets are no links
CODE = re.compile(r"^```.*?^```|`[^`\n]*`", re.DOTALL | re.MULTILINE)

pytestmark = pytest.mark.skipif(not (ROOT / "docs").exists(), reason="no source tree here")


def examples(text: str) -> list[tuple[int, str, str | None]]:
    """(line, code, what it prints or None) of every Python block: a block of text right below it is
    its output."""
    fence = r"^```python\n(.*?)^```\n(?:\n```text\n(.*?)^```$)?"
    return [
        (text.count("\n", 0, found.start()) + 2, found[1], found[2])
        for found in re.finditer(fence, text, re.DOTALL | re.MULTILINE)
    ]


# One process has torch, and is copied for each page: a page has its own names and modules, and none
# that another imported.
RUNNER = """
import contextlib, io, json, os, sys, traceback
import torch
torch.set_num_threads(1)
for page, blocks in json.load(sys.stdin).items():
    if os.fork():
        os.wait()
        continue
    names = {"__name__": "__main__"}
    said = ""
    torch.manual_seed(0)
    for line, code, expected in blocks:
        printed = io.StringIO()
        try:
            with contextlib.redirect_stdout(printed):
                exec(compile("\\n" * (line - 1) + code, page, "exec"), names)
        except BaseException:
            said = traceback.format_exc()
            break
        if expected is not None and printed.getvalue() != expected:
            said = f"line {line}: printed\\n{printed.getvalue()}and not\\n{expected}"
            break
    os.write(1, (json.dumps([page, said]) + "\\n").encode())
    os._exit(0)
"""


@functools.cache
def outcomes() -> dict[str, str]:
    """What went wrong on each page that has examples."""
    found = {name: examples(page.read_text()) for name, page in zip(NAMES, PAGES, strict=True)}
    done = subprocess.run(
        [sys.executable, "-W", "error::UserWarning", "-c", RUNNER],
        input=json.dumps({name: blocks for name, blocks in found.items() if blocks}),
        capture_output=True,
        text=True,
        cwd=ROOT,
        timeout=600,
    )
    assert done.returncode == 0, done.stderr
    return dict(json.loads(line) for line in done.stdout.splitlines())


@pytest.mark.parametrize(
    "name", [n for n, p in zip(NAMES, PAGES, strict=True) if examples(p.read_text())]
)
def test_examples_run(name: str) -> None:
    assert outcomes()[name] == ""


def anchors(page: Path) -> set[str]:
    """The headings of a page, as links name them."""
    plain = CODE.sub(lambda found: "" if "\n" in found[0] else found[0], page.read_text())
    titles = re.findall(r"^#+ (.*)$", plain, re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).strip().replace(" ", "-") for title in titles}


@pytest.mark.parametrize("page", PAGES, ids=NAMES)
def test_links_lead_somewhere(page: Path) -> None:
    for link in re.findall(r"\]\(([^)\s]+)\)", CODE.sub("", page.read_text())):
        if link.startswith(("https://", "http://")):
            continue
        path, _, anchor = link.partition("#")
        goal = (page.parent / path).resolve() if path else page
        assert goal.is_file(), link
        if anchor:
            assert anchor in anchors(goal), link


README = (ROOT / "README.md").read_text() if PAGES else ""
RESULTS = ROOT / "benchmarks" / "results"


def test_the_readme_is_short() -> None:
    """It is a first look: what is longer belongs to a page."""
    assert len(README.splitlines()) <= 120


def test_every_loss_is_listed() -> None:
    kinds = [name for name in losses.__all__ if name[0].isupper()]
    assert f"lists all {len(kinds)} with" in README
    lists = [ROOT / "docs" / page for page in ("which-loss.md", "losses/multi-label.md")]
    text = "".join(page.read_text() for page in lists)
    assert [name for name in kinds if f"`{name}" not in text] == []


def cpu(folder: str, case: str, field: str) -> float:
    lines = map(json.loads, (RESULTS / folder / "results.jsonl").read_text().splitlines())
    return next(
        line[field]
        for line in lines
        if (line["case"], line["provider"], line["mode"]) == (case, "cpp", "both")
    )


def gpu(case: str, over: str) -> float:
    """Of "auto", which is Triton, over eager for the case `over`."""
    lines = map(json.loads, (RESULTS / "nvidia-h200" / "device.jsonl").read_text().splitlines())
    us = {
        (line["case"], line["provider"]): line["device_us"]
        for line in lines
        if line["upstream"] == "1"
    }
    return us[f"8192x32000 bf16 {case}", "triton"] / us[f"8192x32000 bf16 {over}", "eager"]


LPL50 = ("amd-epyc-2-threads-lpl", "512x8142 fp32 lpl50-unique")


@pytest.mark.parametrize(
    ("row", "loss"),
    [
        *(("cross-entropy", "ce"), ("logit adjustment", "la"), ("VS", "vs"), ("LDAM", "ldam")),
        ("LogitClip", "logitclip"),
        ("LPL, 50 steps, every row another class", "lpl50-unique"),
        ("… over PyTorch's *plain* cross-entropy", "plain"),
    ],
)
def test_what_it_costs_is_what_was_recorded(row: str, loss: str) -> None:
    """To the digits that the README shows."""
    (cells,) = re.findall(rf"^\| {re.escape(row)} \| (\S+) \| (\S+) \|$", README, re.MULTILINE)
    if loss == "plain":
        found = cpu(*LPL50, "ratio_to_eager_ce"), gpu("lpl50-unique", "ce")
    elif loss == "lpl50-unique":
        found = cpu(*LPL50, "ratio_to_eager"), gpu(loss, loss)
    else:
        found = (
            cpu("amd-epyc-2-threads", f"512x8142 fp32 {loss}", "ratio_to_eager"),
            gpu(loss, loss),
        )
    for cell, number in zip(cells, found, strict=True):
        assert cell == f"{number:.{len(cell.partition('.')[2])}f}"


def test_the_accuracies_are_what_was_recorded() -> None:
    summary = json.loads((RESULTS / "training" / "glyphs.json").read_text())["summary"]

    def percent(part: str, digits: int) -> list[str]:
        means = [100 * summary[loss][part]["mean"] for loss in ("ce", "la", "la+lpl")]
        return [f"{mean:.{digits}f} %" for mean in means]

    text = " ".join(README.split())
    assert "plain cross-entropy {}, the other two {} and {};".format(*percent("overall", 1)) in text
    assert "fewer than 20 images {}, {} and {}.".format(*percent("few", 0)) in text
    assert "{} become {} and {}.".format(*percent("many", 0)) in text


def test_the_reference_lists_every_public_name() -> None:
    """A name without an entry, and an entry whose name is gone."""
    listed = {
        name
        for page in ROOT.glob("docs/reference/*.md")
        for name in re.findall(r"^::: (\S+)$", page.read_text(), re.MULTILINE)
    }
    public = {f"lpl_fused.losses.{name}" for name in losses.__all__}
    public |= {f"lpl_fused.functional.{name}" for name in functional.__all__}
    public |= {f"lpl_fused.{name}" for name in lpl_fused.__all__}
    elsewhere = {"__version__", "functional", "losses", "functional.MixedTarget", "backends"}
    assert public - listed == {f"lpl_fused.{name}" for name in elsewhere}
    assert {"lpl_fused.MixedTarget", "lpl_fused.backends.backends"} <= listed
    for name in listed:
        module, _, last = name.rpartition(".")
        assert hasattr(importlib.import_module(module), last), name


def test_what_goes_with_what_is_what_is_tested() -> None:
    """`python -m docs.combinations` writes the page anew."""
    from docs import combinations

    assert combinations.PAGE.read_text() == combinations.page()


def test_which_losses_go_where_is_what_is_tested() -> None:
    """`python -m docs.without_logits` writes the page anew."""
    from docs import without_logits

    assert without_logits.PAGE.read_text() == without_logits.page()


def test_every_page_is_once_in_the_site() -> None:
    listed = re.findall(r"([\w/-]+\.md)$", (ROOT / "mkdocs.yml").read_text(), re.MULTILINE)
    there = [
        str(page.relative_to(ROOT / "docs")) for page in PAGES if page.is_relative_to(ROOT / "docs")
    ]
    beside = ["README.md", "CHANGELOG.md", "CONTRIBUTING.md"]
    assert sorted(listed) == sorted([*there, *beside])
