"""What the Triton backend would launch for forms of call, compiled for a GPU that is not here.

A process without TRITON_INTERPRET: the library is called as its users call it, on tensors of the
CPU, and every launch is kept instead of done (`python -m benchmarks.triton_launches 90 FOLDER`).
"""

from __future__ import annotations

import contextlib
import dataclasses
import importlib
import importlib.util
import io
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from lpl_fused import functional as LF
from lpl_fused.phi import Focal

from .cases import STEP_SIZE, Case, draw
from .providers import fused

ROOT = Path(__file__).parent.parent
FILE = "launches.json"
# rows enough for the launch parameters of large batches
SHAPE, MULTILABEL_SHAPE = "1024x32000", "4096x9605"
# name, the case it is drawn as, what is not in the case
FORMS: tuple[tuple[str, str, dict[str, Any]], ...] = (
    ("plain", "ce", {}),
    ("plain, by statistics", "ce", {"reduction": "none"}),
    ("plain, with stats", "ce", {"return_stats": True}),
    ("plain, with stats, by statistics", "ce", {"reduction": "none", "return_stats": True}),
    ("one table (logit adjustment)", "la", {}),
    ("two tables (VS)", "vs", {}),
    ("a margin (LDAM)", "ldam", {}),
    ("smoothing", "smoothing", {}),
    ("focal", "ce", {"phi": Focal(2.0)}),
    ("norm (LogitClip)", "logitclip", {}),
    ("penalty (MbLS)", "mbls", {}),
    ("LPL, 10 steps, a class a row", "lpl10-unique", {}),
    ("LPL, 10 steps, a class a row, with stats", "lpl10-unique", {"return_stats": True}),
    ("BCE", "bce", {}),
    ("BCE, LPL, 10 steps", "bce-lpl10", {}),
)
# in both element types; the others in bfloat16 alone
BOTH = ("plain", "one table (logit adjustment)", "LPL, 10 steps, a class a row", "BCE")


@dataclasses.dataclass(frozen=True)
class Launch:
    """A kernel that a form launches: its code is CUBIN, beside this file."""

    form: str
    dtype: str
    backward: bool
    kernel: str
    meta: dict[str, Any]
    grid: int  # programs
    threads: int  # of each
    shared: int  # bytes on chip
    cubin: str
    rows: int
    classes: int

    @property
    def logits(self) -> float:
        """Of a thread, on average, were every program's work the same."""
        return self.rows * self.classes / (self.grid * self.threads)


def environment(folder: Path) -> dict[str, str]:
    """Of a process that does not interpret Triton: with the package, the benchmarks and the Triton
    that this one has, though others may be installed, and the compiler's cache in a folder."""
    found = {name: value for name, value in os.environ.items() if name != "TRITON_INTERPRET"}
    modules: list[Any] = [importlib.util.find_spec(name) for name in ("lpl_fused", "triton")]
    paths = [Path(each.origin).parents[1] for each in modules]
    found["PYTHONPATH"] = os.pathsep.join(map(str, (paths[0], ROOT, *paths[1:])))
    found["TRITON_CACHE_DIR"] = str(folder / "cache")
    return found


def forms() -> Iterator[tuple[str, Case, Callable[[Tensor], Tensor], Tensor]]:
    """(name, case, loss, logits) of every form and dtype."""
    for name, loss, others in FORMS:
        for dtype in ("bf16", "fp32") if name in BOTH else ("bf16",):
            multilabel = loss.startswith("bce")
            case = Case.parse(MULTILABEL_SHAPE if multilabel else SHAPE, dtype, loss)
            batch = draw(case, torch.device("cpu"))
            if others:
                target, steps = batch.target, batch.steps
                keywords: dict[str, Any] = {"backend": "triton", **others}
                loss_of: Any = LF.cross_entropy
                if steps is not None:
                    loss_of = LF.lpl_cross_entropy
                    keywords |= {"steps": steps, "step_size": STEP_SIZE}

                def called(
                    u: Tensor, y: Tensor = target, k: dict[str, Any] = keywords, of: Any = loss_of
                ) -> Tensor:
                    found = of(u, y, **k)
                    losses: Tensor = found[0] if k.get("return_stats") else found
                    return losses.sum()

                yield name, case, called, batch.logits
            else:
                yield name, case, fused("triton")(case, batch), batch.logits


def record(target: int, folder: Path) -> None:
    """Leaves the launches of every form and their cubins in a folder."""
    launching: Any = importlib.import_module("lpl_fused.backends.triton.launching")
    backend: Any = importlib.import_module("lpl_fused.backends.triton")
    kept: list[tuple[Any, tuple[int, ...], tuple[Any, ...], dict[str, Any]]] = []

    def keep(kernel: Any, grid: tuple[int, ...], *arguments: Any, **meta: Any) -> None:
        kept.append((kernel, grid, arguments, meta))

    launching.launch = keep
    # as if interpreted, for CPU tensors to be taken; nothing runs
    launching.interpreted = backend.interpreted = lambda: True
    made: list[Launch] = []
    known: dict[str, tuple[str, Any]] = {}
    for name, case, loss, logits in forms():
        kept.clear()
        leaf = logits.detach().requires_grad_()
        value = loss(leaf)
        forward = len(kept)
        torch.autograd.grad(value, leaf, torch.full_like(value, 0.75))
        for k, (kernel, grid, arguments, meta) in enumerate(kept):
            wanted = asked(kernel, arguments, meta, target)
            cubin, metadata = compiled(wanted, folder, known)
            programs = 1
            for size in grid:
                programs *= size
            shown = {key: value for key, value in meta.items() if isinstance(value, (int, bool))}
            made.append(
                Launch(
                    name,
                    case.dtype_name,
                    k >= forward,
                    kernel.fn.__name__,
                    shown,
                    programs,
                    32 * metadata.num_warps,
                    metadata.shared,
                    cubin,
                    case.rows,
                    case.classes,
                )
            )
    (folder / FILE).write_text(json.dumps([dataclasses.asdict(one) for one in made]))


class Asked(NamedTuple):
    """What a launch asks Triton to compile."""

    source: Any
    target: Any
    options: Any
    values: tuple[Any, ...]  # by parameter

    @property
    def key(self) -> str:
        """Of launches that share what is compiled."""
        return f"{self.source.hash()} {self.options.hash()}"

    def compile(self) -> Any:
        import triton

        return triton.compile(self.source, target=self.target, options=self.options.__dict__)


def asked(
    kernel: Any, arguments: tuple[Any, ...], meta: dict[str, Any], architecture: int | str
) -> Asked:
    """What a launch asks for on an NVIDIA architecture (90), or AMD's of a name ("gfx942")."""
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource, make_backend
    from triton.runtime.jit import create_function_from_signature

    amd = isinstance(architecture, str)
    target = GPUTarget("hip" if amd else "cuda", architecture, 64 if amd else 32)
    meta = {**meta, "enable_fp_fusion": True, "debug": False}
    if amd:
        meta.pop("maxnreg", None)  # which the launcher leaves out under ROCm
    backend = make_backend(target)
    bind = create_function_from_signature(kernel.signature, kernel.params, backend)
    bound, specialization, options = bind(*arguments, **meta)
    options, signature, constants, attributes = kernel._pack_args(
        backend, meta, bound, specialization, options
    )
    source = ASTSource(kernel, signature, constants, attributes)
    return Asked(source, target, options, tuple(bound.values()))


def compiled(wanted: Asked, folder: Path, known: dict[str, tuple[str, Any]]) -> tuple[str, Any]:
    """The name of a cubin of the folder, and what Triton says of it."""
    if wanted.key not in known:
        with contextlib.redirect_stdout(io.StringIO()):
            binary = wanted.compile()
        name = f"{wanted.source.fn.fn.__name__}-{len(known)}.cubin"
        (folder / name).write_bytes(binary.asm["cubin"])
        known[wanted.key] = name, binary.metadata
    return known[wanted.key]


def read(folder: Path) -> list[Launch]:
    """What `record` left."""
    return [Launch(**one) for one in json.loads((folder / FILE).read_text())]


if __name__ == "__main__":
    record(int(sys.argv[1]), Path(sys.argv[2]))
