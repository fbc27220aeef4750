"""Losses as modules: each builds the tables of its equation once and holds what evolves.

All are called `loss(logits, target)` and take `weight`, `ignore_index`, `reduction` and `backend`
as `functional.cross_entropy` does; `cls_num_list` is the number of training samples per class.
"""

from .balance import BalancedSoftmaxLoss, ClassBalancedLoss, LogitAdjustedLoss
from .cross_entropy import CrossEntropyLoss, FocalLoss
from .ldam import LDAMLoss
from .lpl import LPLLoss
from .scaling import CDTLoss, VSLoss

__all__ = [
    "BalancedSoftmaxLoss",
    "CDTLoss",
    "ClassBalancedLoss",
    "CrossEntropyLoss",
    "FocalLoss",
    "LDAMLoss",
    "LPLLoss",
    "LogitAdjustedLoss",
    "VSLoss",
]
