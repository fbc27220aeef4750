"""The losses by the names that the command line knows them by."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from .. import losses
from . import hooks
from .hooks import DEFERRED_UNTIL, Hook, shot_groups

# Keywords of the losses that a comparison settles itself, and φ and norms, which are no literals.
_FIXED = frozenset(
    {
        *("weight", "pos_weight", "ignore_index", "reduction", "backend", "phi", "norm", "base"),
        *("dtype", "process_group", "data_group"),
    }
)


@dataclass(frozen=True)
class Facts:
    """What losses are built from.

    Args:
        cls_num_list: (C,) training samples per class.
        num_samples: N, training samples; of multi-label data not the sum of the counts.
        num_features: A, what the classifier sees.
        epochs: of the training.
        few_below, many_above: the borders of few- and many-shot classes.
        backend: of the losses.
    """

    cls_num_list: Tensor
    num_samples: int
    num_features: int
    epochs: int
    few_below: int
    many_above: int
    backend: str = "auto"

    @property
    def rare_share(self) -> float:
        """The share of samples below which a class is few-shot."""
        return float(self.few_below / self.cls_num_list.sum())

    @property
    def shot_counts(self) -> Tensor:
        """(G,) training samples of the few-, medium- and many-shot classes together."""
        groups = shot_groups(self.cls_num_list, self.few_below, self.many_above)
        return torch.bincount(groups, weights=self.cls_num_list.double())


Fact = Callable[[Facts], Any]

# Parameters of losses that are facts of the data, wherever a loss has one of the name.
_FACTS: dict[str, Fact] = {
    "cls_num_list": lambda facts: facts.cls_num_list,
    "num_classes": lambda facts: len(facts.cls_num_list),
    "num_samples": lambda facts: facts.num_samples,
    "num_features": lambda facts: facts.num_features,
}


@dataclass(frozen=True)
class Recipe:
    """How to train with one loss.

    Args:
        loss: the class of the loss.
        summary: one line for `--list-losses`.
        options: keywords of the loss that differ from its own defaults, values or functions of the
            `Facts`.
        base: the recipe of the loss that it stands on; None: it stands on none, or on its own.
        hooks: what the loss asks of the training loop.
        settled: functions of the facts for keywords that no option changes.
        cosine_head: the loss expects cosine logits, from a `NormalizedLinear`.
        uniform_bias: the classifier's biases start where a sigmoid gives the share of positives
            among all labels, 1/C where a sample has one class: in one-vs-rest losses the negatives
            of a sample would drown everything at first.
        held_out: share of every class's training samples kept out for the hooks.
        multi_label: the loss is called with logits and multi-hot labels.
        idle: keywords that would change nothing, or what the loss is named for: no options.
    """

    loss: type[nn.Module]
    summary: str
    options: Mapping[str, Any] = field(default_factory=dict)
    base: Recipe | None = None
    hooks: tuple[type[Hook], ...] = ()
    settled: Mapping[str, Fact] = field(default_factory=dict)
    cosine_head: bool = False
    uniform_bias: bool = False
    held_out: float = 0.0
    multi_label: bool = False
    idle: frozenset[str] = frozenset()

    def build(self, facts: Facts, options: Mapping[str, Any]) -> nn.Module:
        """The loss with `options` on top of the recipe's own."""
        keywords: dict[str, Any] = {
            name: value(facts) if callable(value) else value for name, value in self.options.items()
        }
        keywords |= options
        keywords |= {
            name: value(facts)
            for name, value in (_FACTS | dict(self.settled)).items()
            if name in self.settled or name in inspect.signature(self.loss).parameters
        }
        if self.base is not None:
            keywords["base"] = self.base.build(facts, {})
        elif "backend" in _parameters(self.loss):
            keywords["backend"] = facts.backend
        return self.loss(**keywords)

    def check_linear(self, criterion: Any) -> None:
        """Raises ValueError where the loss, or what it asks of the loop, looks at logits."""
        if any(hook.of_logits for hook in self.hooks):
            raise ValueError(
                f"linear: {type(criterion).__name__} is shown logits during training; expected a"
                " loss that trains without"
            )
        if not criterion.has_linear:
            raise ValueError(
                f"linear: {type(criterion).__name__} looks at the logits themselves; expected a"
                " loss that takes the last layer"
            )

    def known_options(self) -> list[str]:
        """The keywords that `build` accepts as options."""
        excluded = _FIXED | _FACTS.keys() | self.settled.keys() | self.idle
        return [name for name in _parameters(self.loss) if name not in excluded]


def _parameters(loss: type) -> list[str]:
    """The keywords of a loss: its own, and those of the one that it hands others on to."""
    own = list(inspect.signature(loss).parameters.values())
    for root in (losses.CrossEntropyLoss, losses.MultiLabelLoss):
        if any(p.kind is p.VAR_KEYWORD for p in own) and issubclass(loss, root):
            own += inspect.signature(root).parameters.values()
    return list(dict.fromkeys(p.name for p in own if p.kind is not p.VAR_KEYWORD))


def _after(share: float) -> Fact:
    return lambda facts: int(share * facts.epochs)


def _multi_label(loss: type[nn.Module], summary: str, base: Recipe | None = None) -> Recipe:
    return Recipe(loss, summary, base=base, uniform_bias=True, multi_label=True)


def _balanced(
    summary: str, weighting: str | None = "rebalance", ntr: bool = True, focal: bool = True
) -> Recipe:
    """A member of the distribution-balanced family: its parts are its name's and no options."""
    idle = {"weighting", "ntr", "focal"}
    idle |= set() if weighting == "rebalance" else {"alpha", "beta", "mu"}
    idle |= set() if weighting == "class-balanced" else {"weighting_mode", "cb_beta"}
    idle |= set() if weighting else {"weight_norm"}
    idle |= set() if ntr else {"neg_scale", "init_bias", "ntr_bias_div"}
    idle |= set() if focal else {"gamma", "balance"}
    return Recipe(
        losses.DistributionBalancedLoss,
        summary,
        options={"weighting": weighting, "ntr": ntr, "focal": focal},
        uniform_bias=True,
        multi_label=True,
        idle=frozenset(idle),
    )


_CROSS_ENTROPY = Recipe(losses.CrossEntropyLoss, "cross-entropy")
_ROWS = Recipe(losses.CrossEntropyLoss, "one loss per row", options={"reduction": "none"})
_DB = _balanced("distribution-balanced focal loss, Wu et al. 2020")

RECIPES: dict[str, Recipe] = {
    "ce": _CROSS_ENTROPY,
    "label-smoothing": Recipe(
        losses.CrossEntropyLoss,
        "smoothed labels, Szegedy et al. 2016",
        options={"label_smoothing": 0.1},
    ),
    "t5x": Recipe(
        losses.T5XCrossEntropyLoss,
        "T5X's smoothing and z-loss",
        options={"label_smoothing": 0.1, "z_loss": 1e-4},
    ),
    "z-loss": Recipe(losses.ZLoss, "+ λ·logsumexp², Chowdhery et al. 2022"),
    # priors
    "la": Recipe(losses.LogitAdjustedLoss, "logit adjustment, Menon et al. 2021"),
    "balanced-softmax": Recipe(losses.BalancedSoftmaxLoss, "balanced softmax, Ren et al. 2020"),
    "bayias+unimix": Recipe(
        losses.BayiasLoss,
        "logit adjustment on batches mixed towards rare classes, Xu et al. 2021",
        hooks=(hooks.Mixed,),
    ),
    "lade": Recipe(losses.LADELoss, "label distribution disentangling, Hong et al. 2021"),
    # The literature tunes γ for every data set. Raw logits favour the rare classes until training
    # has made up for the scales, and at the default of 0.3 that takes far longer than here.
    "vs": Recipe(losses.VSLoss, "vector scaling, Kini et al. 2021", options={"gamma": 0.05}),
    "cdt": Recipe(
        losses.CDTLoss, "class-dependent temperatures, Ye et al. 2020", options={"gamma": 0.05}
    ),
    # margins
    "ldam": Recipe(
        losses.LDAMLoss,
        "label-distribution-aware margins on cosine logits, Cao et al. 2019",
        cosine_head=True,
    ),
    "ldam+drw": Recipe(
        losses.LDAMLoss,
        "LDAM with deferred re-weighting, Cao et al. 2019",
        hooks=(hooks.DeferredWeights,),
        cosine_head=True,
    ),
    "cosface": Recipe(
        losses.CosFaceLoss, "margin on cosine logits, Wang et al. 2018", cosine_head=True
    ),
    "am-softmax": Recipe(
        losses.AMSoftmaxLoss, "CosFace at s = 30, m = 0.35, Wang et al. 2018", cosine_head=True
    ),
    "arcface": Recipe(
        losses.ArcFaceLoss, "angular margin on cosine logits, Deng et al. 2019", cosine_head=True
    ),
    # noise
    "gcl": Recipe(
        losses.GCLLoss, "noise on rare classes' cosine logits, Li et al. 2022", cosine_head=True
    ),
    "blv": Recipe(losses.BLVLoss, "noise that raises rare classes, Wang et al. 2023"),
    # norms and calibration
    "logit-clip": Recipe(losses.LogitClipLoss, "logits clipped in norm, Wei et al. 2023"),
    "logit-norm": Recipe(losses.LogitNormLoss, "logits of one norm, Wei et al. 2022"),
    "mbls": Recipe(
        losses.MbLSLoss,
        "a penalty on logit distances above a margin, Liu et al. 2022",
        base=_CROSS_ENTROPY,
    ),
    "cals": Recipe(
        losses.CALSLoss,
        "MbLS with multipliers by class, from a tenth of the data held out, Liu et al. 2023",
        base=_CROSS_ENTROPY,
        hooks=(hooks.Observed,),
        held_out=0.1,
    ),
    "label-aware": Recipe(
        losses.LabelAwareSmoothingLoss, "smoothing by class (MiSLAS), Zhong et al. 2021"
    ),
    # φ
    "focal": Recipe(losses.FocalLoss, "focal loss, Lin et al. 2017"),
    "poly-1": Recipe(losses.Poly1Loss, "poly-1, Leng et al. 2022"),
    "alpha": Recipe(losses.AlphaLoss, "α-loss, Sypherd et al. 2022"),
    "gce": Recipe(losses.GCELoss, "generalised cross-entropy, Zhang, Sabuncu 2018"),
    "truncated-gce": Recipe(
        losses.TruncatedGCELoss,
        "GCE without samples of p < k, pruned now and then, Zhang, Sabuncu 2018",
        hooks=(hooks.Pruned,),
    ),
    # weights
    "cb": Recipe(losses.ClassBalancedLoss, "class-balanced weights, Cui et al. 2019"),
    "cdb-w": Recipe(
        losses.CDBLoss,
        "weights by the classes' training accuracies, Sinha et al. 2020",
        hooks=(hooks.DifficultyWeights,),
    ),
    "cdb-s": Recipe(
        losses.CrossEntropyLoss,
        "classes drawn by their training accuracies, Sinha et al. 2022",
        hooks=(hooks.DifficultySampling,),
    ),
    "ib": Recipe(
        losses.IBLoss,
        "weights by influence in the second half of training, Park et al. 2021",
        options={"start_epoch": _after(0.5)},
        hooks=(hooks.Stages, hooks.FeatureNorm),
    ),
    # λ as in the authors' long-tail runs: at the tutorial's 0.5 one row takes a whole batch of many
    # classes, and training diverges.
    "absgd": Recipe(
        losses.ABSGDLoss, "weights exp(ℓ/λ), Qi et al. 2020", options={"lam": 5.0}, base=_ROWS
    ),
    "absgd-late": Recipe(
        losses.ABSGDLoss,
        "ABSGD in the last fifth of training, Qi et al. 2020",
        options={"lam": 5.0, "start_epoch": _after(DEFERRED_UNTIL)},
        base=_ROWS,
        hooks=(hooks.Stages,),
    ),
    "group-dro": Recipe(
        losses.GroupDROLoss,
        "weights of few-, medium- and many-shot classes by loss, Sagawa et al. 2020",
        base=_ROWS,
        hooks=(hooks.ShotGroups,),
        settled={"group_counts": lambda facts: facts.shot_counts},
    ),
    "group-dro-class": Recipe(
        losses.GroupDROLoss,
        "weights of single classes by loss, Sagawa et al. 2020",
        base=_ROWS,
        hooks=(hooks.ClassGroups,),
        settled={"group_counts": lambda facts: facts.cls_num_list},
    ),
    # equalisation
    "seesaw": Recipe(losses.SeesawLoss, "pairs balanced by counts seen, Wang et al. 2021"),
    "eql-softmax": Recipe(
        losses.SoftmaxEQLLoss,
        "few-shot negatives dropped at random, Tan et al. 2020",
        options={"threshold": lambda facts: facts.rare_share},
    ),
    # In detection backgrounds press rare classes down; here nothing does, and they win too often.
    "eql": Recipe(
        losses.EQLLoss,
        "one-vs-rest without few-shot negatives, Tan et al. 2020",
        options={"threshold": lambda facts: facts.rare_share},
        uniform_bias=True,
    ),
    "eql-v2": Recipe(
        losses.EQLv2Loss,
        "one-vs-rest balanced by gradients seen, Tan et al. 2021",
        uniform_bias=True,
    ),
    # features
    "isda": Recipe(
        losses.ISDALoss,
        "implicit augmentation of the features, Wang et al. 2019",
        hooks=(hooks.FeaturePairs,),
    ),
    # learned perturbation
    "lpl": Recipe(
        losses.LPLLoss,
        "learned class-level perturbation, long-tail split, Li et al. 2022",
    ),
    "lpl-balanced": Recipe(
        losses.LPLLoss,
        "LPL, split by the classes' mean probabilities in the batch, Li et al. 2022",
        options={"split": "balanced"},
    ),
    "lpl-ema": Recipe(
        losses.LPLLoss,
        "LPL, split by running mean probabilities",
        options={"split": "balanced", "statistics": "ema"},
    ),
    "la+lpl": Recipe(
        losses.LPLLoss,
        "LPL on logit-adjusted logits, Li et al. 2022",
        options={"tau": 1.0},
    ),
    # several labels
    "bce": _multi_label(losses.MultiLabelLoss, "binary cross-entropy"),
    "focal-bce": _balanced("focal binary cross-entropy, Lin et al. 2017", None, ntr=False),
    "asl": _multi_label(losses.AsymmetricLoss, "asymmetric focusing, Ridnik et al. 2021"),
    "cb-bce": _balanced("class-balanced weights, Cui et al. 2019", "class-balanced", False, False),
    "r-bce": _balanced("weights by a sample's labels, Wu et al. 2020", ntr=False, focal=False),
    "ntr": _balanced("negative-tolerant regularisation, Wu et al. 2020", None, focal=False),
    "ntr-focal": _balanced("NTR with focal loss, Wu et al. 2020", None),
    "cb-ntr": _balanced("NTR, focal, class-balanced, Huang et al. 2021", "class-balanced"),
    "db": _DB,
    "db-0fl": _balanced("DB without focal loss, Wu et al. 2020", focal=False),
    "ml-ldam": _multi_label(
        losses.MultiLabelLDAMLoss, "LDAM margins on the positives, Wu et al. 2020"
    ),
    "ml-lpl": _multi_label(
        losses.MultiLabelLPLLoss, "learned class-level perturbation, our reading of Li et al."
    ),
    "db+lpl": _multi_label(losses.MultiLabelLPLLoss, "LPL on DB", base=_DB),
}

# Losses that no recipe trains with, and why.
LEFT_OUT: dict[type[nn.Module], str] = {
    losses.BinaryAlphaLoss: "one logit and two classes",
    losses.BinaryVSLoss: "one logit and two classes",
    losses.GroupVSLoss: "its groups are an attribute beside the label, and the data have none",
    losses.LInfHingeLoss: "certifies nets that are 1-Lipschitz in ℓ∞, and the models are not",
    losses.LInfMixtureLoss: "certifies nets that are 1-Lipschitz in ℓ∞, and the models are not",
    losses.SmoothMixLoss: "trains on noisy copies and attacked mixtures: another training step",
}
