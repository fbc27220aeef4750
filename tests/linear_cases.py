"""Losses of a layer, whose logits nobody holds all: every one has them, or refuses by name. Those that
have them also go over ranks, and tell statistics of their rows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch

from lpl_fused import losses

N, C, D = 18, 5, 4
COUNTS = [50, 20, 10, 5, 1]
Make = Callable[[], Any]
HAVE: dict[str, Make] = {
    "ce": lambda: losses.CrossEntropyLoss(weight=torch.rand(C), label_smoothing=0.1),
    "none": lambda: losses.CrossEntropyLoss(reduction="none"),
    "focal": lambda: losses.FocalLoss(),
    "la": lambda: losses.LogitAdjustedLoss(COUNTS),
    "balanced": lambda: losses.BalancedSoftmaxLoss(COUNTS),
    "bayias": lambda: losses.BayiasLoss(COUNTS),
    "class-balanced": lambda: losses.ClassBalancedLoss(COUNTS),
    "ldam": lambda: losses.LDAMLoss(COUNTS),
    "vs": lambda: losses.VSLoss(COUNTS),
    "cdt": lambda: losses.CDTLoss(COUNTS),
    "cosface": lambda: losses.CosFaceLoss(16.0, 0.2),
    "am-softmax": lambda: losses.AMSoftmaxLoss(16.0),
    "logit-clip": lambda: losses.LogitClipLoss(2.0),
    "logit-norm": lambda: losses.LogitNormLoss(0.2),
    "alpha": lambda: losses.AlphaLoss(),
    "gce": lambda: losses.GCELoss(),
    "poly-1": lambda: losses.Poly1Loss(),
    "z-loss": lambda: losses.ZLoss(),
    "las": lambda: losses.LabelAwareSmoothingLoss(COUNTS),
    "mbls": lambda: losses.MbLSLoss(margin=1.0, base=losses.LogitAdjustedLoss(COUNTS)),
    "cals": lambda: losses.CALSLoss(C, margin=1.0),
    "lpl": lambda: losses.LPLLoss(COUNTS, tau=1.0),
    "lpl-balanced": lambda: losses.LPLLoss(COUNTS, split="balanced"),
    "lpl-ema": lambda: losses.LPLLoss(COUNTS, split="balanced", statistics="ema"),
    "lpl-eval": lambda: losses.LPLLoss(COUNTS, variant="official-long-tail-10").eval(),
}
REFUSE: dict[str, Make] = {
    "lpl-variant": lambda: losses.LPLLoss(COUNTS, variant="official-long-tail-10"),
    "lpl-through": lambda: losses.LPLLoss(COUNTS, through_perturbation=True),
    "mbls": lambda: losses.MbLSLoss(base=losses.T5XCrossEntropyLoss()),
    "lade": lambda: losses.LADELoss(COUNTS),
    "arcface": lambda: losses.ArcFaceLoss(),
    "truncated-gce": lambda: losses.TruncatedGCELoss(N),
    "t5x": lambda: losses.T5XCrossEntropyLoss(),
    "group-vs": lambda: losses.GroupVSLoss([30, 8, 2]),
    "seesaw": lambda: losses.SeesawLoss(C),
    "gcl": lambda: losses.GCLLoss(COUNTS),
    "blv": lambda: losses.BLVLoss(COUNTS),
    "softmax-eql": lambda: losses.SoftmaxEQLLoss(COUNTS, 0.1),
    "eql": lambda: losses.EQLLoss(COUNTS, 0.1),
    "eql-v2": lambda: losses.EQLv2Loss(C),
    "isda": lambda: losses.ISDALoss(C, D),
    "l-infinity": lambda: losses.LInfMixtureLoss(1.0),
    "l-infinity-hinge": lambda: losses.LInfHingeLoss(1.0),
    "cdb": lambda: losses.CDBLoss(C),
    "ib": lambda: losses.IBLoss(COUNTS, start_epoch=0),
    "absgd": lambda: losses.ABSGDLoss(),
    "group-dro": lambda: losses.GroupDROLoss([9, 9]),
    "binary-alpha": lambda: losses.BinaryAlphaLoss(),
    "binary-vs": lambda: losses.BinaryVSLoss([[30, 10], [20, 5]]),
    "multi-label": lambda: losses.MultiLabelLoss(),
    "asymmetric": lambda: losses.AsymmetricLoss(),
    "multi-label-ldam": lambda: losses.MultiLabelLDAMLoss(COUNTS),
    "distribution-balanced": lambda: losses.DistributionBalancedLoss(COUNTS, 60),
    "multi-label-lpl": lambda: losses.MultiLabelLPLLoss(COUNTS, losses.MultiLabelLoss()),
    "smoothmix": lambda: losses.SmoothMixLoss(),
}
