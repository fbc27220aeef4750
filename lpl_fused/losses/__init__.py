"""Losses as modules: each builds the tables of its equation once and holds what evolves.

All are called `loss(logits, target)` and take `weight`, `ignore_index`, `reduction` and `backend`
as `functional.cross_entropy` does; `cls_num_list` is the number of training samples per class.
"""

from .angular import AMSoftmaxLoss, ArcFaceLoss, CosFaceLoss
from .balance import BalancedSoftmaxLoss, ClassBalancedLoss, LogitAdjustedLoss
from .binary import BinaryAlphaLoss
from .cross_entropy import CrossEntropyLoss, FocalLoss
from .equalization import EQLLoss, EQLv2Loss, SoftmaxEQLLoss
from .group import BinaryVSLoss, GroupVSLoss
from .isda import ISDALoss
from .ldam import LDAMLoss
from .linf import LInfHingeLoss, LInfMixtureLoss
from .lpl import LPLLoss
from .noise import BLVLoss, GCLLoss
from .norm import LogitClipLoss, LogitNormLoss
from .robust import AlphaLoss, GCELoss, Poly1Loss, T5XCrossEntropyLoss, TruncatedGCELoss, ZLoss
from .scaling import CDTLoss, VSLoss
from .seesaw import SeesawLoss
from .smoothmix import SmoothMixLoss, smoothmix_attack, smoothmix_inputs

__all__ = [
    "AMSoftmaxLoss",
    "AlphaLoss",
    "ArcFaceLoss",
    "BLVLoss",
    "BalancedSoftmaxLoss",
    "BinaryAlphaLoss",
    "BinaryVSLoss",
    "CDTLoss",
    "ClassBalancedLoss",
    "CosFaceLoss",
    "CrossEntropyLoss",
    "EQLLoss",
    "EQLv2Loss",
    "FocalLoss",
    "GCELoss",
    "GCLLoss",
    "GroupVSLoss",
    "ISDALoss",
    "LDAMLoss",
    "LInfHingeLoss",
    "LInfMixtureLoss",
    "LPLLoss",
    "LogitAdjustedLoss",
    "LogitClipLoss",
    "LogitNormLoss",
    "Poly1Loss",
    "SeesawLoss",
    "SmoothMixLoss",
    "SoftmaxEQLLoss",
    "T5XCrossEntropyLoss",
    "TruncatedGCELoss",
    "VSLoss",
    "ZLoss",
    "smoothmix_attack",
    "smoothmix_inputs",
]
