"""What changes with the epoch, as pure functions of it."""

from __future__ import annotations

import torch
from torch import Tensor

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
    """
    if epoch < start_epoch:
        return torch.ones(len(checked_counts(cls_num_list)))
    return effective_number_weights(cls_num_list, beta)
