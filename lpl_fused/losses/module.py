"""What all losses share as modules: tables, precision, a deferred start, the rows that count."""

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn

from ..problem import accumulate_dtype
from ..validation import Target


class LossModule(nn.Module):
    """A module whose buffers follow devices, never dtypes."""

    def register_table(self, name: str, values: Tensor) -> None:
        """Keeps a table in both precisions, so that float64 logits meet float64 tables."""
        self.register_buffer(f"{name}_float32", values.float(), persistent=False)
        self.register_buffer(f"{name}_float64", values.double(), persistent=False)

    def table(self, name: str, logits: Tensor) -> Tensor:
        double = accumulate_dtype(logits.dtype) == torch.float64
        found = self._buffers[f"{name}_{'float64' if double else 'float32'}"]
        assert found is not None
        return found

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> LossModule:
        # .half() on a model must not round the tables of its loss, to_empty() not empty those that
        # no state holds: only devices are followed. What is on meta has no numbers to keep
        kept = {name: buffer for name, buffer in self._buffers.items() if buffer is not None}
        super()._apply(fn, recurse)
        for name, buffer in kept.items():
            moved = self._buffers[name]
            assert moved is not None
            own = moved if buffer.is_meta else buffer
            self._buffers[name] = own.to(moved.device, buffer.dtype)
        return self


class DeferredStart(nn.Module):
    """A loss whose second stage begins at `start_epoch`: call `set_epoch` once per epoch.

    The epoch is a Python number, so that no step waits for a device; it is part of `state_dict`.
    """

    def start_at(self, start_epoch: int) -> None:
        """To be called by `__init__`; epoch 0 is the current one."""
        if start_epoch < 0:
            raise ValueError(f"start_epoch: expected an epoch >= 0, got {start_epoch}")
        self.start_epoch = start_epoch
        self.set_epoch(0)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that begins, from 0."""
        self.epoch = epoch
        # a flag beside the number: torch.compile guards on what it reads, and this seldom changes
        self.started = epoch >= self.start_epoch

    def get_extra_state(self) -> dict[str, int]:
        return {"epoch": self.epoch}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.set_epoch(state["epoch"])


def counted(target: Target, ignore_index: int) -> Tensor:
    """Which rows count, a bool per loss: all but those that are ignored (with both labels)."""
    if not isinstance(target, Tensor):
        return (target[0] != ignore_index) | (target[1] != ignore_index)
    if target.is_floating_point():  # class probabilities
        return torch.ones_like(target.select(0 if target.dim() == 1 else 1, 0), dtype=torch.bool)
    return target != ignore_index
