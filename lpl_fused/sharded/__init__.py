"""Classes over many ranks: each rank of a process group has some consecutive columns of the logits.

agree    what ranks tell each other before anything else: who has which classes, whether all of them
         ask for the same; errors of one rank become errors of all
gather   sums over the columns of all ranks, from those of each
loss     loss and gradient by these rounds

The engine is torch.distributed. Every rank of the group makes the same calls in the same order.
"""

from .agree import is_sharded
from .loss import Built, cross_entropy, lpl_perturbation

__all__ = ["Built", "cross_entropy", "is_sharded", "lpl_perturbation"]
