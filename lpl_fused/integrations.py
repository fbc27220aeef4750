"""Losses as what trainers of other libraries ask for.

Most need a line: a loss is a module that is called `loss(logits, target)`, which is what timm's and
Lightning's own loops call (docs/migration.md). Transformers' `Trainer` asks for a function of the
model's outputs that knows how many labels the whole step has; it is here, with the counts of tokens
that losses by class are made of.
"""

from __future__ import annotations

import inspect
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .arguments import FLAG, Integer, is_integer, shown
from .class_stats import on_cpu
from .losses.rows import mean_divisor
from .problem import is_ignored

_COUNT = Integer(least=1)
_INDEX = Integer()


class TransformersLoss:
    """The `compute_loss_func` of Transformers' `Trainer`: Σ_i loss_i / num_items_in_batch.

    The sum over the labels of a call is divided by the labels of the whole step, over all its
    accumulated batches, which the Trainer counts; so gradients under accumulation are those of one
    large batch, but for what a loss makes of a batch as a whole: LPL's steps are each batch's own.
    Without that number, in evaluation, the mean over the call's labels.

    Args:
        criterion: a loss of ours whose reduction is "sum". It follows the logits to their device.
            The Trainer neither saves it nor trains its parameters: save the `state_dict` of one
            that evolves, and give parameters that learn to the optimizer. Nor does it call its
            `eval()`: where neither the logits nor the criterion's parameters get gradients, in
            evaluation, it is in that mode for the call, so that LPL perturbs nothing and no state
            takes up what is evaluated.
        shift: for a causal language model, whose logits at position t predict the token at t + 1.
            Labels move, not logits: no second N×C matrix. False where there is one label for each
            row of logits, as in classification and masked language models; logits (N, C), which
            have no positions, want that. Default True.

    Called with
        outputs: what has `logits` (..., C), or a mapping with them, or a tuple that begins with
            them; any dtype, without a copy in float32.
        labels: (...) class indices; the criterion's `ignore_index` (default -100) counts for none.
        num_items_in_batch: a number or 0-dim tensor; None: the labels of this call that count, of
            none of them what the criterion's `empty` says.

    Raises:
        TypeError: `criterion` takes no `normalizer`, outputs without logits.
        ValueError: `criterion` has another reduction; labels of another shape than the rows of the
            logits; logits (N, C) beside `shift`.

    Examples:
        >>> criterion = losses.LogitAdjustedLoss([5, 3, 1, 1], reduction="sum")
        >>> loss = lpl_fused.integrations.TransformersLoss(criterion)
        >>> logits, labels = torch.zeros(2, 6, 4), torch.tensor([[0, 1, 2, 0, 1, -100]] * 2)
        >>> loss({"logits": logits}, labels)
        tensor(1.3509)
        >>> sum(loss({"logits": z}, y, 8) for z, y in zip(logits.split(1), labels.split(1)))
        tensor(1.3509)
    """

    def __init__(self, criterion: nn.Module, *, shift: bool = True) -> None:
        reduction = getattr(criterion, "reduction", None)
        if not isinstance(criterion, nn.Module) or reduction is None:
            raise TypeError(f"criterion: expected a loss of lpl_fused, got {shown(criterion)}")
        if "normalizer" not in inspect.signature(criterion.forward).parameters:
            raise TypeError(
                f"criterion: expected a loss that takes a normalizer, as the losses that are a"
                f" choice of tables do, got {type(criterion).__name__}"
            )
        if reduction != "sum":
            raise ValueError(
                'criterion: expected reduction="sum", which is divided by the labels of the whole'
                f" step, got {reduction!r}"
            )
        self.criterion = criterion
        self.shift = FLAG("shift", shift)
        self._device: torch.device | None = None

    def __call__(
        self, outputs: Any, labels: Tensor, num_items_in_batch: float | Tensor | None = None
    ) -> Tensor:
        logits = _logits(outputs)
        if not isinstance(labels, Tensor):
            raise TypeError(f"labels: expected a tensor, got {shown(labels)}")
        if self.shift and logits.dim() < 3:
            raise ValueError(
                "shift: expected logits (N, T, C), with positions that labels move along, got"
                f" {tuple(logits.shape)}; for a label per row pass shift=False to TransformersLoss"
            )
        if logits.shape[:-1] != labels.shape:
            raise ValueError(
                f"labels: expected a label for each row of logits, shape {tuple(logits.shape[:-1])}"
                f", got {tuple(labels.shape)}"
            )
        ignored = getattr(self.criterion, "ignore_index", -100)
        labels = labels.to(logits.device)
        if is_integer(labels):
            labels = labels.long()  # 8 bits do not hold the padding's label
        if self.shift:
            labels = F.pad(labels, (0, 1), value=ignored)[..., 1:]
        target = labels.reshape(-1)
        if num_items_in_batch is None:
            items = (~is_ignored(target, ignored)).sum()
            num_items_in_batch = mean_divisor(items, getattr(self.criterion, "empty", "nan"))
        if isinstance(num_items_in_batch, Tensor):  # of the Trainer, on whatever device
            num_items_in_batch = num_items_in_batch.to(logits.device)
        if logits.device != self._device:
            self.criterion.to(logits.device)
            self._device = logits.device
        rows = logits.reshape(-1, logits.shape[-1])
        learns = logits.requires_grad or any(p.requires_grad for p in self.criterion.parameters())
        with _evaluated(self.criterion, unless=learns and torch.is_grad_enabled()):
            loss: Tensor = self.criterion(rows, target, normalizer=num_items_in_batch)
        return loss


@contextmanager
def _evaluated(criterion: nn.Module, *, unless: bool) -> Iterator[None]:
    """Its modules in evaluation mode, `unless` it trains."""
    training = [] if unless else [module for module in criterion.modules() if module.training]
    for module in training:
        module.training = False
    try:
        yield
    finally:
        for module in training:
            module.training = True


def _logits(outputs: Any) -> Tensor:
    """The logits of a model's outputs, as Transformers' models return them."""
    found = outputs
    if isinstance(outputs, Mapping):
        found = outputs.get("logits")
    elif hasattr(outputs, "logits"):
        found = outputs.logits
    elif isinstance(outputs, (tuple, list)) and outputs:
        found = outputs[0]
    if not isinstance(found, Tensor):
        raise TypeError(f"outputs: expected a model's outputs with logits, got {shown(outputs)}")
    return found


def token_counts(
    labels: Iterable[Any], vocabulary_size: int, *, shift: bool = True, ignore_index: int = -100
) -> Tensor:
    """How often each token is to be predicted, (C,) int64, ready to be a loss's `cls_num_list`.

    One sequence after the other is counted: a data set larger than memory may stream by.

    Args:
        labels: sequences of token indices, of whatever lengths, as tensors, arrays or lists; or
            mappings that have them as "labels", as the rows of a data set for a `Trainer` are.
            What has two dimensions is a batch of them.
        vocabulary_size: C, the width of the logits: `model.config.vocab_size`, which may be more
            than the tokenizer has.
        shift: as for `TransformersLoss`: the first token of a sequence is predicted by nobody.
        ignore_index: labels that do not count. Default -100.

    Raises:
        TypeError: what is no sequence of integers; a row without "labels".
        ValueError: a token outside [0, vocabulary_size).

    Examples:
        >>> rows = [{"labels": [-100, 2, 0, 2]}, {"labels": torch.tensor([1, 2])}]
        >>> lpl_fused.integrations.token_counts(rows, 4)
        tensor([1, 0, 3, 0])
    """
    size = _COUNT("vocabulary_size", vocabulary_size)
    shift, ignored = FLAG("shift", shift), _INDEX("ignore_index", ignore_index)
    counts = torch.zeros(size, dtype=torch.int64, device="cpu")
    for number, row in enumerate(labels):
        if isinstance(row, Mapping):
            if "labels" not in row:
                raise TypeError(f'labels: expected "labels" in row {number}, got {sorted(row)}')
            row = row["labels"]
        tokens = _tokens(row, number)
        tokens = tokens[..., 1 if shift else 0 :].flatten()
        tokens = tokens[tokens != ignored]
        outside = tokens[(tokens < 0) | (tokens >= size)]
        if outside.numel():
            raise ValueError(
                f"labels: expected tokens from 0 to {size - 1}, or {ignored}"
                f", got {int(outside[0])} in row {number}"
            )
        counts += torch.bincount(tokens, minlength=size)
    return counts


def _tokens(row: Any, number: int) -> Tensor:
    """One sequence, or a batch of them, as (..., L) int64 on the CPU."""
    try:
        tokens = on_cpu(row).cpu()
    except (TypeError, ValueError, RuntimeError):
        tokens = None
    if tokens is not None and tokens.numel() == 0 and tokens.dim():
        return tokens.long()
    if tokens is None or tokens.dim() == 0 or not is_integer(tokens):
        raise TypeError(
            f"labels: expected sequences of token indices, got {shown(row)} as row {number}"
        )
    return tokens.long()
