"""Losses as modules: each builds the tables of its equation once and holds what evolves.

All are called `loss(logits, target)` and take `weight`, `ignore_index`, `reduction` and `backend`
as `functional.cross_entropy` does; `cls_num_list` is the number of training samples per class.
Those that couple rows (`ABSGDLoss`, `GroupDROLoss`) or add a term (`MbLSLoss`, `CALSLoss`) take a
`base` loss instead, which brings these. What evolves in training is in `state_dict`.
"""

from .balance import (
    BalancedSoftmaxLoss,
    BayiasLoss,
    ClassBalancedLoss,
    LADELoss,
    LogitAdjustedLoss,
)
from .calibration import CALSLoss, LabelAwareSmoothingLoss, MbLSLoss
from .cross_entropy import CrossEntropyLoss, FocalLoss
from .ldam import LDAMLoss
from .lpl import LPLLoss
from .reweighting import CDBLoss, IBLoss
from .robust import ABSGDLoss, GroupDROLoss
from .scaling import CDTLoss, VSLoss

__all__ = [
    "ABSGDLoss",
    "BalancedSoftmaxLoss",
    "BayiasLoss",
    "CALSLoss",
    "CDBLoss",
    "CDTLoss",
    "ClassBalancedLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "GroupDROLoss",
    "IBLoss",
    "LADELoss",
    "LDAMLoss",
    "LPLLoss",
    "LabelAwareSmoothingLoss",
    "LogitAdjustedLoss",
    "MbLSLoss",
    "VSLoss",
]
