"""How many exponentials the C++ kernels take: count_exponentials.cpp, compiled and run."""

from __future__ import annotations

import os
import shutil
import subprocess
from pathlib import Path
from typing import NamedTuple

SOURCE = Path(__file__).with_name("count_exponentials.cpp")
CSRC = SOURCE.parent.parent / "csrc" / "cpu"
# not optimised, so that every exponential is a call
FLAGS = ("-O0", "-std=c++17", "-fopenmp", "-finstrument-functions", "-Wall", "-Wno-psabi")


class Count(NamedTuple):
    """Of the loss and the gradient of one batch."""

    per_logit: float  # exponentials
    solved: int  # rows, of those that take steps


def compiler() -> str | None:
    """The one that setup.py would use, if it is there."""
    return shutil.which(os.environ.get("CXX", "c++"))


def build(folder: Path) -> Path:
    """Compiles the program into a folder."""
    found = compiler()
    assert found is not None
    program = folder / "count_exponentials"
    defines = ("-DLPL_ISA=baseline", f"-I{CSRC}")
    subprocess.run([found, *FLAGS, *defines, str(SOURCE), "-o", str(program)], check=True)
    return program


def count(
    program: Path,
    rows: int,
    classes: int,
    steps: int,
    *,
    rows_per_class: int = 1,
    normalize: bool = False,
    sweep: bool = False,
) -> Count:
    """Counts for logits, steps and labels as count_exponentials.cpp makes them.

    Args:
        steps: 0 is plain cross-entropy.
        sweep: plain steps, without the solver.
    """
    numbers = (rows, classes, rows_per_class, steps, normalize, sweep)
    command = [str(program), *(str(int(number)) for number in numbers)]
    done = subprocess.run(command, check=True, capture_output=True, text=True)
    per_logit, solved = done.stdout.split()
    return Count(float(per_logit), int(solved))
