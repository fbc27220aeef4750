"""What is kept: one flat record per case, provider and mode, the same schema everywhere."""

from __future__ import annotations

import datetime
import functools
import json
import math
import os
import platform
import re
import statistics
import subprocess
from collections.abc import Iterable
from dataclasses import dataclass, fields
from importlib import metadata
from pathlib import Path
from typing import get_args, get_type_hints

import numpy as np
import torch

import lpl_fused
from lpl_fused.atomic import replacing

from .cases import Case

OK = "ok"  # timed
WRONG = "wrong"  # its results miss the truth: not timed
FAILED = "failed"  # raised: not timed
ABSENT = "absent"  # cannot run here: not timed
STEP = "step"  # the mode of whole training steps
SLOW = "slow"  # too slow for this mode: timed in "both" alone


@dataclass(frozen=True)
class Environment:
    """Where and with what a record was taken; nothing that names the machine or its user."""

    device: str  # the processor's or the GPU's name
    device_type: str  # "cpu" or "cuda"
    cpu: str
    cpu_cores: int
    threads: int
    cpu_capability: str
    driver: str | None
    torch: str
    triton: str | None
    python: str
    lpl_fused: str
    git: str | None
    date: str


@dataclass(frozen=True, kw_only=True)
class Record(Environment):
    """One line of the JSON. What was not measured is null.

    Times are medians with the 20th and 80th percentile over `samples` blocks, in milliseconds.
    `bytes` is `Case.least_bytes`; `percent_of_copy` compares its rate with that of a copy of the
    logits in the same run. `ratio_to_eager` and `ratio_to_eager_ce` are times over eager's in the
    same mode, with the same loss and with plain cross-entropy (over `both` for a copy), and
    `ratio_to_own_ce` is over plain cross-entropy by the same provider, in turn with it. Errors are
    the worst relative ones against float64 (`lpl_fused.testing.error`); infinite ones are null.
    `peak_bytes`, of mode "both" alone, is the memory at its worst moment beyond what was held
    before (the inputs): gradients and scratch (`memory.peak_bytes`).
    """

    case: str
    provider: str
    mode: str | None
    dtype: str
    rows: int
    classes: int
    loss: str
    steps: int
    labels: str
    status: str
    reason: str | None = None
    clock: str | None = None
    samples: int = 0
    median_ms: float | None = None
    p20: float | None = None
    p80: float | None = None
    bytes: int | None = None
    gb_per_s: float | None = None
    percent_of_copy: float | None = None
    ratio_to_eager: float | None = None
    ratio_to_eager_ce: float | None = None
    ratio_to_own_ce: float | None = None
    loss_error: float | None = None
    grad_error: float | None = None
    peak_bytes: int | None = None

    @property
    def what(self) -> Case:
        """What was timed."""
        return Case.parse(f"{self.rows}x{self.classes}", self.dtype, self.loss)

    @property
    def peak_of_logits(self) -> float | None:
        """The peak as a multiple of the bytes that the logits take, or would take."""
        return None if self.peak_bytes is None else self.peak_bytes / self.what.logits_bytes


FILE = "results.jsonl"
_ENVIRONMENT = tuple(field.name for field in fields(Environment))
# the case first, where it was taken last
FIELDS = tuple(f.name for f in fields(Record) if f.name not in _ENVIRONMENT) + _ENVIRONMENT


@dataclass(frozen=True)
class Timing:
    """Median and percentiles of samples, in milliseconds."""

    samples: int
    median: float
    p20: float
    p80: float

    @staticmethod
    def of(seconds: list[float]) -> Timing:
        p20, p80 = (float(np.percentile(seconds, q)) * 1e3 for q in (20, 80))
        return Timing(len(seconds), statistics.median(seconds) * 1e3, p20, p80)


def environment(device: torch.device, threads: int) -> Environment:
    """Of this process and machine."""
    cpu = _cpu_name()
    cuda = device.type == "cuda"
    return Environment(
        device=torch.cuda.get_device_name(device) if cuda else cpu,
        device_type=device.type,
        cpu=cpu,
        cpu_cores=_cores(),
        threads=threads,
        cpu_capability=torch.backends.cpu.get_cpu_capability(),
        driver=_output("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        if cuda
        else None,
        torch=torch.__version__,
        triton=_version("triton") or _version("pytorch-triton"),
        python=platform.python_version(),
        lpl_fused=lpl_fused.__version__,
        git=_output("git", "describe", "--always", "--dirty", "--abbrev=12", "--exclude=*"),
        date=datetime.datetime.now(datetime.timezone.utc).strftime("%Y-%m-%dT%H:%MZ"),
    )


def default_folder(environment: Environment) -> Path:
    """benchmarks/results/<what the numbers belong to>."""
    slug = re.sub(r"[^a-z0-9]+", "-", environment.device.lower()).strip("-")
    cpu = environment.device_type == "cpu"
    name = f"{slug}-{environment.threads}-threads" if cpu else slug
    return Path(__file__).parent / "results" / name


def _cores() -> int:
    """The cores that this process may use."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@functools.cache
def _cpu_name() -> str:
    try:
        import cpuinfo  # comes with pytest-benchmark
    except ImportError:
        return platform.processor() or platform.machine()
    return str(cpuinfo.get_cpu_info().get("brand_raw", platform.machine()))


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _output(*command: str) -> str | None:
    """The first line that a command prints here; None where it cannot run."""
    try:
        found = subprocess.run(
            command, capture_output=True, text=True, check=True, cwd=Path(__file__).parent
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return found.stdout.strip().split("\n")[0] or None


def finite(number: float) -> float | None:
    """A number that JSON can hold, or None."""
    return number if math.isfinite(number) else None


def without_paths(text: str) -> str:
    """A reason to be published: directories are nobody's business."""
    return re.sub(r"(?<![\w.])(?:/[\w.+@~-]+)+/", "", text)


def write(records: Iterable[Record], path: Path) -> None:
    """JSON lines, one record each."""
    lines = (
        json.dumps({name: getattr(record, name) for name in FIELDS}, allow_nan=False)
        for record in records
    )
    text = "".join(f"{line}\n" for line in lines)
    with replacing(path) as temporary:
        temporary.write_text(text)


def read(path: Path) -> list[Record]:
    """The records of a file that `write` wrote.

    Raises:
        ValueError: it is not such a file, or holds no record.
    """
    found = []
    try:
        for number, line in enumerate(path.read_text().splitlines(), start=1):
            found.append(_checked(json.loads(line), f"line {number}"))
    except (OSError, ValueError, TypeError, RecursionError) as error:
        raise ValueError(f"{path} holds no records: {error}") from error
    if not found:
        raise ValueError(f"{path} holds no records")
    return found


_TYPES = {name: get_args(hint) or (hint,) for name, hint in get_type_hints(Record).items()}


def _checked(content: object, where: str) -> Record:
    if not isinstance(content, dict):
        raise TypeError(f"{where}: expected a record")
    try:
        record = Record(**content)
    except TypeError as error:
        raise TypeError(f"{where}: {error}") from None
    for name, allowed in _TYPES.items():
        value = getattr(record, name)
        if not isinstance(value, (*allowed, int) if float in allowed else allowed):
            raise TypeError(f"{where}: {name}: got {value!r}")
    return record
