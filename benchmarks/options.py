"""What the commands take: values out of range end them in one line, before anything is measured."""

from __future__ import annotations

import argparse
import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch

from lpl_fused.arguments import Check, Integer, Number

THREADS = Integer(least=1, most=1024)
SECONDS = Number(above=0)
PATIENCE = Number(above=0, infinite=True)


def of(read: Callable[[str], Any], check: Check) -> Callable[[str], Any]:
    """A type of argparse: a number within bounds."""

    def parse(text: str) -> Any:
        try:
            return check("value", read(text))
        except ValueError:
            raise argparse.ArgumentTypeError(f"expected {check}, got {text!r}") from None

    return parse


def device(text: str) -> torch.device:
    """A CPU or a CUDA device that is there."""
    try:
        found = torch.device(text)
        if found.type not in ("cpu", "cuda"):
            raise ValueError("expected cpu or cuda")
        torch.empty(0, device=found)
    except (RuntimeError, ValueError, AssertionError) as error:
        # torch asserts where it was built without CUDA
        reason = str(error).partition("\n")[0]
        raise argparse.ArgumentTypeError(f"{text!r} cannot be used: {reason}") from error
    return found


def pattern(text: str) -> str:
    """A regular expression."""
    try:
        re.compile(text)
    except re.error as error:
        raise argparse.ArgumentTypeError(
            f"expected a regular expression, got {text!r}: {error}"
        ) from error
    return text


@contextmanager
def written(parser: argparse.ArgumentParser) -> Iterator[None]:
    """End the command in one line where something cannot be written."""
    try:
        yield
    except OSError as error:
        parser.error(f"cannot be written: {error.filename or ''}: {error.strerror or error}")
