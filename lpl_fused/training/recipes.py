"""The losses by the names that the command line knows them by."""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from torch import Tensor

from .. import losses
from ..schedules import drw_weights

# The reference schedule re-weights from epoch 160 of 200 (Cao et al. 2019).
_DEFERRED_UNTIL = 0.8
# Keywords of the losses that a comparison settles itself, and φ, which is no literal.
_FIXED = frozenset({"cls_num_list", "weight", "ignore_index", "reduction", "backend", "phi"})


@dataclass(frozen=True)
class Recipe:
    """How to train with one loss.

    Args:
        loss: the class of the loss.
        summary: one line for `--list-losses`.
        options: keywords of the loss that differ from its own defaults.
        needs_counts: the loss takes `cls_num_list`.
        cosine_head: the loss expects cosine logits, from a `NormalizedLinear`.
        deferred: class-balanced weights come in after four fifths of the epochs (DRW).
    """

    loss: type[losses.CrossEntropyLoss]
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    needs_counts: bool = True
    cosine_head: bool = False
    deferred: bool = False

    def build(
        self, cls_num_list: Tensor, options: Mapping[str, Any], backend: str
    ) -> losses.CrossEntropyLoss:
        """The loss with `options` on top of the recipe's own, on the device of `cls_num_list`."""
        keywords: dict[str, Any] = {**self.options, **options, "backend": backend}
        if self.needs_counts:
            keywords["cls_num_list"] = cls_num_list
        return self.loss(**keywords)

    def known_options(self) -> list[str]:
        """The keywords that `build` accepts as options."""
        own = inspect.signature(self.loss).parameters.values()
        inherited = inspect.signature(losses.CrossEntropyLoss).parameters.values()
        names = [p.name for p in (*own, *inherited) if p.kind is not p.VAR_KEYWORD]
        return [name for name in dict.fromkeys(names) if name not in _FIXED]

    def class_weights(self, cls_num_list: Tensor, epoch: int, epochs: int) -> Tensor | None:
        """Class weights `(C,)` of an epoch; None where the recipe does not schedule any."""
        if not self.deferred:
            return None
        weights = drw_weights(cls_num_list, epoch, start_epoch=int(_DEFERRED_UNTIL * epochs))
        return weights.to(cls_num_list.device)


RECIPES: dict[str, Recipe] = {
    "ce": Recipe(losses.CrossEntropyLoss, "cross-entropy", needs_counts=False),
    "la": Recipe(losses.LogitAdjustedLoss, "logit adjustment, Menon et al. 2021"),
    "balanced-softmax": Recipe(losses.BalancedSoftmaxLoss, "balanced softmax, Ren et al. 2020"),
    "ldam": Recipe(
        losses.LDAMLoss,
        "label-distribution-aware margins on cosine logits, Cao et al. 2019",
        cosine_head=True,
    ),
    "ldam+drw": Recipe(
        losses.LDAMLoss,
        "LDAM with deferred re-weighting, Cao et al. 2019",
        cosine_head=True,
        deferred=True,
    ),
    "cosface": Recipe(
        losses.CosFaceLoss,
        "margin on cosine logits, Wang et al. 2018",
        needs_counts=False,
        cosine_head=True,
    ),
    "arcface": Recipe(
        losses.ArcFaceLoss,
        "angular margin on cosine logits, Deng et al. 2019",
        needs_counts=False,
        cosine_head=True,
    ),
    "gcl": Recipe(
        losses.GCLLoss, "noise on rare classes' cosine logits, Li et al. 2022", cosine_head=True
    ),
    "blv": Recipe(losses.BLVLoss, "noise that raises rare classes, Wang et al. 2023"),
    "logit-clip": Recipe(
        losses.LogitClipLoss, "logits clipped in norm, Wei et al. 2023", needs_counts=False
    ),
    "logit-norm": Recipe(
        losses.LogitNormLoss, "logits of one norm, Wei et al. 2022", needs_counts=False
    ),
    "gce": Recipe(
        losses.GCELoss, "generalised cross-entropy, Zhang, Sabuncu 2018", needs_counts=False
    ),
    "poly-1": Recipe(losses.Poly1Loss, "poly-1, Leng et al. 2022", needs_counts=False),
    # The literature tunes γ for every data set. Raw logits favour the rare classes until training
    # has made up for the scales, and at the default of 0.3 that takes far longer than here.
    "vs": Recipe(losses.VSLoss, "vector scaling, Kini et al. 2021", options={"gamma": 0.05}),
    "cdt": Recipe(
        losses.CDTLoss, "class-dependent temperatures, Ye et al. 2020", options={"gamma": 0.05}
    ),
    "focal": Recipe(losses.FocalLoss, "focal loss, Lin et al. 2017", needs_counts=False),
    "cb": Recipe(losses.ClassBalancedLoss, "class-balanced weights, Cui et al. 2019"),
    "label-aware": Recipe(
        losses.LabelAwareSmoothingLoss, "smoothing by class (MiSLAS), Zhong et al. 2021"
    ),
    "lade": Recipe(losses.LADELoss, "label distribution disentangling, Hong et al. 2021"),
    "lpl": Recipe(
        losses.LPLLoss,
        "learned class-level perturbation, long-tail split, Li et al. 2022",
    ),
    "la+lpl": Recipe(
        losses.LPLLoss,
        "LPL on logit-adjusted logits, Li et al. 2022",
        options={"tau": 1.0},
    ),
}
