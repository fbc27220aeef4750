"""How providers look in every picture."""

from __future__ import annotations

from collections.abc import Iterable

from matplotlib.ticker import FuncFormatter

from .providers import COMPILE, EAGER, EAGER_CE

# Okabe and Ito's colours, told apart by colour-blind readers as well; Tol's for the later peers
_COLOURS = {
    EAGER.name: "#000000",
    COMPILE.name: "#E69F00",
    "reference": "#999999",
    "auto": "#332288",
    "cpp": "#0072B2",
    "triton": "#009E73",
    "cuda": "#56B4E9",
    "liger": "#D55E00",
    "quack": "#F0E442",
    "liger-linear": "#882255",
    "quack-linear": "#999933",
    "cut-cross-entropy": "#44AA99",
    "torch-linear": "#AA4499",
    "official": "#661100",
    EAGER_CE.name: "#CC79A7",
}
_LABELS = {
    EAGER.name: "eager",
    EAGER_CE.name: "eager, plain CE",
    "auto": "lpl_fused",
    "cpp": "lpl_fused cpp",
    "triton": "lpl_fused triton",
    "cuda": "lpl_fused cuda",
    "reference": "lpl_fused reference",
    COMPILE.name: "torch.compile",
    "liger": "Liger",
    "quack": "QuACK",
    "liger-linear": "Liger, fused linear",
    "quack-linear": "QuACK, chunked linear",
    "torch-linear": "torch, chunked linear",
    "official": "LPL as published",
}
_MARKERS = "osD^v<>Ph*XpHd8"
NUMBER = FuncFormatter(lambda value, _: f"{value:g}")


def colour(provider: str) -> str:
    return _COLOURS.get(provider, "#8B4513")


def label(provider: str) -> str:
    return _LABELS.get(provider, provider)


def marker(provider: str) -> str:
    return dict(zip(_COLOURS, _MARKERS, strict=True)).get(provider, "1")


def in_order(providers: Iterable[str]) -> list[str]:
    """Providers in the order of the legend; unknown ones last."""
    found = set(providers)
    return [p for p in _COLOURS if p in found] + sorted(found - set(_COLOURS))
