"""What changes with the epoch, as pure functions of it.

A number that is none, or out of range, is a TypeError or ValueError that names its argument.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from .arguments import BELOW_ONE, POSITIVE, REAL
from .class_stats import Counts, checked_counts, effective_number_weights


def drw_weights(cls_num_list: Counts, epoch: int, start_epoch: int, beta: float = 0.9999) -> Tensor:
    """Deferred re-weighting (DRW; Cao et al., LDAM): class weights (C,) float32 for an epoch.

        w = 1                                                 epoch < start_epoch
        w_c = C·(1 − β)/(1 − β^{n_c}) / Σ …                   from start_epoch on

    Use: `loss.weight = drw_weights(counts, epoch, start_epoch=160).to(device)`, once per epoch.

    Args:
        cls_num_list: (C,) training samples per class.
        epoch: the current epoch, from 0.
        start_epoch: the paper starts at 160 of 200 epochs, when its learning rate first drops.
        beta: default the paper's 0.9999.

    Raises:
        ValueError: bad counts or `beta`.

    Examples:
        >>> lpl_fused.schedules.drw_weights([100, 10, 1], epoch=0, start_epoch=160)
        tensor([1., 1., 1.])
        >>> lpl_fused.schedules.drw_weights([100, 10, 1], epoch=160, start_epoch=160)
        tensor([0.0272, 0.2704, 2.7025])
    """
    if REAL("epoch", epoch) < REAL("start_epoch", start_epoch):
        BELOW_ONE("beta", beta)
        return torch.ones_like(checked_counts(cls_num_list), dtype=torch.float32)
    return effective_number_weights(cls_num_list, beta)


def warm_up(value: float, epoch: int, epochs: int = 10) -> float:
    """value·min(1, (epoch + 1)/epochs): SmoothMix's η, epochs counted from 0; default its 10.

    Examples:
        >>> [lpl_fused.schedules.warm_up(5.0, epoch) for epoch in (0, 4, 9, 20)]
        [0.5, 2.5, 5.0, 5.0]
    """
    value, epoch_now = REAL("value", value), REAL("epoch", epoch)
    return value * min(1.0, (epoch_now + 1) / POSITIVE("epochs", epochs))


def isda_strength(epoch: float, epochs: int, strength: float = 0.5) -> float:
    """λ₀·epoch/epochs (ISDA); λ₀ defaults to the authors' 0.5 for CIFAR, 7.5 being ImageNet's.

    Examples:
        >>> lpl_fused.schedules.isda_strength(epoch=80, epochs=160)
        0.25
    """
    strength = REAL("strength", strength)
    return strength * REAL("epoch", epoch) / POSITIVE("epochs", epochs)


def progress(epoch: float, start: float, end: float) -> float:
    """How much of [start, end] has passed, in [0, 1]; 1 where it is empty. Epochs may be fractions.

    ℓ∞-dist-net v2: r = progress(epoch, 100, 1250) of 1300 epochs for λ and p.

    Examples:
        >>> [lpl_fused.schedules.progress(epoch, 100, 200) for epoch in (0, 150, 300)]
        [0.0, 0.5, 1.0]
    """
    epoch, start, end = REAL("epoch", epoch), REAL("start", start), REAL("end", end)
    return 1.0 if end <= start else min(max((epoch - start) / (end - start), 0.0), 1.0)


def geometric(first: float, last: float, ratio: float) -> float:
    """first·(last/first)^ratio: λ of ℓ∞-dist-net v2, 0.1 to 0.001 by default of the authors.

    Examples:
        >>> round(lpl_fused.schedules.geometric(0.1, 0.001, 0.5), 6)
        0.01
    """
    first, last = POSITIVE("first", first), POSITIVE("last", last)
    ratio = REAL("ratio", ratio)
    return first * math.exp(math.log(last / first) * ratio)


def lp_exponent(ratio: float, first: float = 8.0, last: float = 1000.0) -> float:
    """p of ℓ∞-dist-net v2's layers: geometric, ∞ at the end where `last` ≥ 100.

    Examples:
        >>> [lpl_fused.schedules.lp_exponent(ratio) for ratio in (0.0, 1.0)]
        [8.0, inf]
    """
    ratio, last = REAL("ratio", ratio), POSITIVE("last", last)
    first = POSITIVE("first", first)
    return math.inf if ratio >= 1 and last >= 100 else geometric(first, last, ratio)


def smooth_ramp(value: float, ratio: float, smooth: float = 0.0) -> float:
    """ε of ℓ∞-dist-net v2: linear in `ratio`; with `smooth` in (0, 1), its first part, quartic.

    Value and slope are continuous where the parts meet.

    Examples:
        >>> [lpl_fused.schedules.smooth_ramp(0.3, ratio) for ratio in (0.0, 0.5, 1.0)]
        [0.0, 0.15, 0.3]
    """
    value, ratio = REAL("value", value), REAL("ratio", ratio)
    smooth = BELOW_ONE("smooth", smooth)
    if smooth == 0:
        return value * ratio
    k = 1 / ((4 - 3 * smooth) * smooth**3)
    if ratio < smooth:
        return value * k * ratio**4
    return value * ((1 - k * smooth**4) / (1 - smooth) * (ratio - 1) + 1)
