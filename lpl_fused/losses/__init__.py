"""Losses as modules: each builds the tables of its equation once and holds what evolves.

All are called `loss(logits, target)` and take `weight`, `ignore_index`, `reduction` and `backend`
as `functional.cross_entropy` does; `cls_num_list` is the number of training samples per class.
Those that couple rows (`ABSGDLoss`, `GroupDROLoss`) or add a term (`MbLSLoss`, `CALSLoss`) take a
`base` loss instead, which brings these. What evolves in training is in `state_dict`.
"""

from .angular import AMSoftmaxLoss, ArcFaceLoss, CosFaceLoss
from .balance import BalancedSoftmaxLoss, BayiasLoss, ClassBalancedLoss, LADELoss, LogitAdjustedLoss
from .binary import BinaryAlphaLoss
from .calibration import CALSLoss, LabelAwareSmoothingLoss, MbLSLoss
from .cross_entropy import CrossEntropyLoss, FocalLoss
from .equalization import EQLLoss, EQLv2Loss, SoftmaxEQLLoss
from .group import BinaryVSLoss, GroupVSLoss
from .isda import ISDALoss
from .ldam import LDAMLoss
from .linf import LInfHingeLoss, LInfMixtureLoss
from .lpl import LPLLoss
from .multilabel import (
    AsymmetricLoss,
    DistributionBalancedLoss,
    MultiLabelLDAMLoss,
    MultiLabelLoss,
    MultiLabelLPLLoss,
)
from .noise import BLVLoss, GCLLoss
from .norm import LogitClipLoss, LogitNormLoss
from .phi import AlphaLoss, GCELoss, Poly1Loss, T5XCrossEntropyLoss, TruncatedGCELoss, ZLoss
from .reweighting import CDBLoss, IBLoss
from .robust import ABSGDLoss, GroupDROLoss
from .scaling import CDTLoss, VSLoss
from .seesaw import SeesawLoss
from .smoothmix import SmoothMixLoss, smoothmix_attack, smoothmix_inputs

__all__ = [
    "ABSGDLoss",
    "AMSoftmaxLoss",
    "AlphaLoss",
    "ArcFaceLoss",
    "AsymmetricLoss",
    "BLVLoss",
    "BalancedSoftmaxLoss",
    "BayiasLoss",
    "BinaryAlphaLoss",
    "BinaryVSLoss",
    "CALSLoss",
    "CDBLoss",
    "CDTLoss",
    "ClassBalancedLoss",
    "CosFaceLoss",
    "CrossEntropyLoss",
    "DistributionBalancedLoss",
    "EQLLoss",
    "EQLv2Loss",
    "FocalLoss",
    "GCELoss",
    "GCLLoss",
    "GroupDROLoss",
    "GroupVSLoss",
    "IBLoss",
    "ISDALoss",
    "LADELoss",
    "LDAMLoss",
    "LInfHingeLoss",
    "LInfMixtureLoss",
    "LPLLoss",
    "LabelAwareSmoothingLoss",
    "LogitAdjustedLoss",
    "LogitClipLoss",
    "LogitNormLoss",
    "MbLSLoss",
    "MultiLabelLDAMLoss",
    "MultiLabelLPLLoss",
    "MultiLabelLoss",
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
