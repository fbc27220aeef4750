"""Which cases are timed: losses, shapes and the selections that the command offers."""

from __future__ import annotations

from collections.abc import Iterable

from .cases import Case

LOSSES = (
    *("ce", "la", "vs", "ldam", "smoothing", "focal", "logitclip", "logitnorm", "mbls", "cals"),
    *("lpl10", "lpl50", "lpl10-zipf", "lpl10-one"),
)
STEP_SWEEP = ("lpl1", "lpl2", "lpl5", "lpl10", "lpl20", "lpl50", "lpl100")
UNIQUE_SWEEP = ("ce-unique", "lpl5-unique", "lpl10-unique", "lpl50-unique", "lpl100-unique")

# From CIFAR's classes to a language model's. 8142 and 50257 leave rows off every vector's boundary.
SHAPES = (
    *("128x10", "128x100", "256x365", "256x1000", "512x8142", "256x21841", "256x32000"),
    *("128x50257", "64x128256", "64x151936", "32x262144"),
)
# The vocabularies of helion's public cross-entropy sweep, then the largest one in use.
GPU_SHAPES = (
    *SHAPES,
    *("4096x8142", "8192x32000", "8192x50257", "8192x128000", "8192x128256", "8192x129280"),
    *("4096x151936", "4096x152064", "4096x256000", "4096x262144", "2048x128256"),
)
# Labels of many classes at once: COCO, VOC, Open Images, a retrieval vocabulary.
MULTILABEL_LOSSES = ("bce", "db", "bce-lpl10", "bce-lpl50")
MULTILABEL_SHAPES = ("4096x80", "1024x20", "512x9605", "256x32000")
COMMON_SHAPES = ("128x100", "512x8142", "256x32000")
# With many rows of few classes, and gradients that the C library maps anew at every call.
CE_SHAPES = ("128x10", "8192x10", *COMMON_SHAPES, "1024x50257")
# Tokens of a language model: the second is a whole batch, for a GPU or for patience.
TOKEN_SHAPES = ("1024x32000", "8192x128000")

# Features and a classifier's weight in place of logits, as rows of tokens have them.
LINEAR_LOSSES = ("linear-ce", "linear-lpl10")
LINEAR_SHAPES = ("512x8142", "1024x32000")
GPU_LINEAR_SHAPES = ("8192x32000", "8192x128256")

# Every size of problem, as far as memory goes: eager holds several times the logits.
SWEEP_ROWS = (1, 8, 64, 512, 8192)
SWEEP_CLASSES = (2, 10, 100, 1000, 8142, 32000, 128256, 262144)
_MOST_LOGITS = 2**28


def product(shapes: Iterable[str], dtypes: Iterable[str], losses: Iterable[str]) -> list[Case]:
    """Every shape under every dtype and loss."""
    dtypes, losses = list(dtypes), list(losses)
    return [Case.parse(s, d, name) for s in shapes for d in dtypes for name in losses]


def default_cases(device: str) -> list[Case]:
    """A selection that ends in minutes: every loss at one shape, the common ones at others."""
    cases = product(CE_SHAPES, ["fp32"], ["ce"]) + product(["512x8142"], ["fp32"], LOSSES[1:])
    cases += linear_cases(device)[:1]
    if device == "cuda":
        large = ("8192x32000", "8192x128256", "4096x151936", "4096x262144")
        cases += product(large, ["bf16"], ["ce", "la"]) + product(large[:1], ["bf16"], ["lpl50"])
    return cases


def lpl_cases(device: str) -> list[Case]:
    """What the steps of LPL cost: beside plain cross-entropy, one row per class; and in a batch of
    tokens, where frequent ones share a perturbation, beside as many rows that do not.
    """
    cases = product(COMMON_SHAPES[1:], ["fp32"], UNIQUE_SWEEP)
    tokens = ("ce-zipf", "lpl10-zipf", "lpl10-unique")
    if device == "cuda":
        return cases + product(TOKEN_SHAPES, ["bf16"], tokens)
    return cases + product(TOKEN_SHAPES[:1], ["fp32"], tokens)


def multilabel_cases(device: str) -> list[Case]:
    """Multi-label losses, in bfloat16 on a GPU."""
    return product(MULTILABEL_SHAPES, ["bf16" if device == "cuda" else "fp32"], MULTILABEL_LOSSES)


def linear_cases(device: str) -> list[Case]:
    """The classifier's layer and the loss together, in bfloat16 on a GPU."""
    if device == "cuda":
        return product(GPU_LINEAR_SHAPES, ["bf16"], LINEAR_LOSSES)
    return product(LINEAR_SHAPES, ["fp32"], LINEAR_LOSSES)


def all_cases(device: str) -> list[Case]:
    """Every shape and loss, and the sweeps over the number of steps."""
    cases = product(SHAPES, ["fp32"], LOSSES) + product(["512x8142"], ["fp32"], STEP_SWEEP)
    cases += product(CE_SHAPES, ["fp32"], ["ce"])
    cases += lpl_cases(device) + multilabel_cases(device) + linear_cases(device)
    if device == "cuda":
        cases += product(GPU_SHAPES, ["bf16"], LOSSES)
    return list(dict.fromkeys(cases))


def sweep_cases(device: str) -> list[Case]:
    """Plain cross-entropy over rows and classes, in bfloat16 on a GPU."""
    shapes = [f"{n}x{c}" for n in SWEEP_ROWS for c in SWEEP_CLASSES if n * c <= _MOST_LOGITS]
    return product(shapes, ["bf16" if device == "cuda" else "fp32"], ["ce"])


def quick_cases() -> list[Case]:
    """A smoke run."""
    return product(["64x100"], ["fp32"], ["ce", "la", "lpl2", "lpl5"])
