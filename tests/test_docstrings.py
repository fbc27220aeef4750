"""Every public name has an example in its docstring, and it says what happens."""

from __future__ import annotations

import doctest
import importlib
import re
from pathlib import Path
from typing import Any

import pytest
import torch

import lpl_fused
from lpl_fused import functional, losses

ROOT = Path(__file__).resolve().parent.parent
REFERENCE = sorted((ROOT / "docs" / "reference").glob("*.md"))
# what functions return, whose examples show it
RESULTS = {"Accuracy", "AverageK", "Certificate", "MeanAveragePrecision"}
NAMES = [
    name
    for page in REFERENCE
    for name in re.findall(r"^::: lpl_fused\.(\S+)$", page.read_text(), re.MULTILINE)
    if name.rpartition(".")[2] not in RESULTS
]
# what docs/reference/index.md says
NAMES_BEFORE = {"torch": torch, "lpl_fused": lpl_fused, "LF": functional, "losses": losses}

pytestmark = pytest.mark.skipif(not REFERENCE, reason="no source tree here")


def found(name: str) -> Any:
    module, _, last = f"lpl_fused.{name}".rpartition(".")
    return getattr(importlib.import_module(module), last)


@pytest.mark.parametrize("name", NAMES)
def test_example(name: str) -> None:
    text = found(name).__doc__
    example = doctest.DocTestParser().get_doctest(text, dict(NAMES_BEFORE), name, None, None)
    assert any(part.want for part in example.examples), "no example that shows what comes out"
    torch.manual_seed(0)
    said: list[str] = []
    options = doctest.ELLIPSIS | doctest.NORMALIZE_WHITESPACE
    doctest.DocTestRunner(optionflags=options).run(example, out=said.append)
    assert not said, "".join(said)


def test_an_example_that_is_wrong_fails() -> None:
    """The runner above would see it."""
    parse = doctest.DocTestParser().get_doctest
    said: list[str] = []
    doctest.DocTestRunner().run(parse(">>> 1 + 1\n3\n", {}, "", None, None), out=said.append)
    assert said
