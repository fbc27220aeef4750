"""How the last layer and its loss meet: by logits, or without; of all classes, or of a rank's."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from .. import functional as LF
from ..distributed import all_rows
from ..evaluation import check_highest
from ..linear import NormalizedLinear
from ..losses import CrossEntropyLoss
from .kinds import ClassLosses


def keep_own_classes(head: nn.Module, group: Any) -> None:
    """Leaves of a classifier this rank's rows: consecutive ones, about as many as any rank's."""
    rank, ranks = torch.distributed.get_rank(group), torch.distributed.get_world_size(group)
    for name, whole in list(head.named_parameters(recurse=False)):
        if len(whole) < ranks:
            raise ValueError(f"expected at most as many ranks as classes, got {ranks}")
        setattr(head, name, nn.Parameter(whole.detach().tensor_split(ranks)[rank].clone()))
    head.out_features = len(head.weight)  # type: ignore[arg-type, assignment]


def share_classes(criterion: Any, group: Any) -> None:
    """Tells a loss, or the one that it stands on, that its logits are of this rank's classes.

    Raises:
        ValueError: it looks at those of all classes.
    """
    holder = criterion if isinstance(criterion, CrossEntropyLoss) else criterion.base
    holder.process_group = group


def layer(head: nn.Module, features: Tensor) -> tuple[Tensor, Tensor, Tensor | None]:
    """Features, weight and bias whose product the logits are."""
    if isinstance(head, NormalizedLinear):
        return *head.factors(features), None
    return features, head.weight, head.bias  # type: ignore[return-value]


def loss(criterion: Any, head: nn.Module, features: Tensor, target: Any) -> Tensor:
    """That of the logits, which nobody holds."""
    x, weight, bias = layer(head, features)
    found: Tensor = criterion.linear(x, weight, target, bias)
    return found


def class_losses(
    criterion: Any, head: nn.Module, features: Tensor, target: Tensor, group: Any
) -> ClassLosses:
    """As `Kind.class_losses`, without logits."""
    x, weight, bias = layer(head, features)
    scale: Any = getattr(criterion, "s", 1.0)
    plain = LF.linear_cross_entropy(
        scale * x,
        weight,
        target,
        linear_bias=None if bias is None else scale * bias,
        reduction="none",
        process_group=group,
    )
    return ClassLosses(plain, criterion.linear(x, weight, target, bias), target)


def answers(pieces: Iterable[Tensor], group: Any) -> Tensor:
    """The classes of the largest logits, whose columns are this rank's, some rows after others."""
    values, places, classes = [], [], 0
    for logits in pieces:
        value, place = logits.max(1)
        values.append(value)
        places.append(place)
        classes = logits.shape[1]
    value, place = torch.cat(values), torch.cat(places)
    value = value[None] if group is None else all_rows(value, group)
    check_highest(value)
    if group is None:
        return place
    widths = all_rows(torch.tensor([classes], device=place.device), group)[:, 0]
    first = widths.cumsum(0) - widths
    best = value.argmax(0, keepdim=True)
    return (all_rows(place, group) + first[:, None]).gather(0, best)[0]
