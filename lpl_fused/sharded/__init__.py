"""Classes over many ranks: each rank of a process group has some consecutive columns of the logits.

local    what a rank hands over: its columns, tables of these or of all classes
agree    what ranks tell each other before anything else: who has which classes, whether all of them
         ask for the same; errors of one rank become errors of all
gather   sums over the columns of all ranks, from those of each
left     rows whose learned perturbation these sums do not settle
loss     loss and gradient by these rounds
linear   the same of a layer, whose logits come in chunks

The engine is torch.distributed. Every rank of the group makes the same calls in the same order.
"""

from .agree import refused
from .linear import linear_cross_entropy
from .local import PartOfLayer, group_of, is_sharded
from .loss import Built, cross_entropy, lpl_perturbation

__all__ = [
    "Built",
    "PartOfLayer",
    "cross_entropy",
    "group_of",
    "is_sharded",
    "linear_cross_entropy",
    "lpl_perturbation",
    "refused",
]
