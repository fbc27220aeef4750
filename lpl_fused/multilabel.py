"""What a caller of a multi-label loss passed, checked once and flattened to a `BinaryProblem`.

Every message says what was expected and what came.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from .arguments import POSITIVE, REAL, Choice, Maybe, Number
from .perturbation import BinaryPerturbation, Perturbation, RebalancedWeight
from .phi import BinaryPhi, binary_coded
from .problem import NONE, REDUCTIONS, BinaryOptions, BinaryProblem, accumulate_dtype
from .validation import OF_COUNTS, checked_normalizer, narrow_steps, refuse_distributed

_FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)
_ENTRIES = f", one entry per class, the last dimension{OF_COUNTS}"


class Weight(NamedTuple):
    """A weight as torch broadcasts it, by what it depends on: at most one of each is given."""

    by_class: Tensor | None = None  # (C,)
    by_row: Tensor | None = None  # (N,)
    by_logit: Tensor | None = None  # broadcasts to the logits


MISSING = Maybe(Number(infinite=True, nan=True))  # the label of a class that nobody looked at


def binary_options(
    reduction: str,
    phi: BinaryPhi,
    ignore_index: float | None,
    rebalance: RebalancedWeight | None = None,
) -> BinaryOptions:
    Choice(*REDUCTIONS)("reduction", reduction)
    # numbers are written down: of those of a class's defaults torch.compile makes symbols, which
    # the second of two calls then asks the first for, in vain
    off = {"phi_negative": 0.0, "phi_clip": 0.0, "ignored": 0.0, "step_size": 0.0}
    off |= {"alpha": 0.0, "beta": 0.0, "mu": 0.0}
    options = BinaryOptions(REDUCTIONS[reduction], **(off | binary_coded(phi)))
    ignored = MISSING("ignore_index", ignore_index)
    if ignored is not None:
        options = options._replace(missing=True, ignored=ignored)
    if rebalance is not None:
        if not isinstance(rebalance, RebalancedWeight):
            raise TypeError(f"rebalance: expected a RebalancedWeight, got {rebalance!r}")
        numbers = {name: REAL(name, getattr(rebalance, name)) for name in ("alpha", "beta", "mu")}
        options = options._replace(**numbers)  # type: ignore[arg-type]
    return options


class MultiLabel:
    """Logits and labels flattened to rows, and the way back."""

    def __init__(self, input: Tensor, target: Tensor) -> None:
        for name, tensor in (("input", input), ("target", target)):
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
            refuse_distributed(name, tensor)
        if input.dtype not in _FLOATING:
            raise TypeError(
                f"input: expected float64, float32, bfloat16 or float16 logits, got {input.dtype}"
            )
        if target.is_complex():
            raise TypeError(f"target: expected a real tensor, got {target.dtype}")
        if target.shape != input.shape:
            raise ValueError(
                f"target: expected shape {tuple(input.shape)}, that of input, got"
                f" {tuple(target.shape)}"
            )
        self.device, self.shape = input.device, input.shape
        self._on_device("target", target)
        self.classes = input.shape[-1] if input.dim() else 1
        self.accumulate = accumulate_dtype(input.dtype)
        self.input, self.target = self._rows(input), self._rows(target)

    def _rows(self, tensor: Tensor) -> Tensor:
        """(N, C) with unit stride along C; a copy only where the layout needs one."""
        if tensor.dim() != 2:
            rows = math.prod(tensor.shape[:-1]) if tensor.dim() else 1
            tensor = tensor.reshape(rows, self.classes)
        plain = tensor.stride(1) == 1 or self.classes <= 1
        return tensor if plain else tensor.contiguous()

    def _on_device(self, name: str, tensor: Tensor) -> None:
        if tensor.device != self.device:
            raise ValueError(
                f"{name}: expected device {self.device}, as input, got {tensor.device}"
            )

    def _check(self, name: str, tensor: Tensor, shape: Sequence[int], why: str = "") -> None:
        if tensor.shape != tuple(shape):
            raise ValueError(
                f"{name}: expected shape {tuple(shape)}{why}, got {tuple(tensor.shape)}"
            )
        self._on_device(name, tensor)

    def table(self, name: str, value: Tensor | None) -> Tensor | None:
        """(C,) in the dtype of sums."""
        if value is None:
            return None
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if value.is_complex():
            raise TypeError(f"{name}: expected a real tensor, got {value.dtype}")
        self._check(name, value, (self.classes,), _ENTRIES)
        return value.to(self.accumulate).contiguous()

    def weight(self, name: str, value: Tensor | None) -> Weight:
        """A weight sorted by what it depends on; one that learns stays outside the kernels."""
        if value is None:
            return Weight()
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        if value.is_complex():
            raise TypeError(f"{name}: expected a real tensor, got {value.dtype}")
        self._on_device(name, value)
        try:
            fits = torch.broadcast_shapes(value.shape, self.shape) == self.shape
        except RuntimeError:
            fits = False
        if not fits:
            raise ValueError(
                f"{name}: expected a shape that broadcasts to {tuple(self.shape)}, got"
                f" {tuple(value.shape)}"
            )
        if value.requires_grad:
            return Weight(by_logit=value)
        if value.numel() == (value.shape[-1] if value.dim() else 1):
            by_class = value.reshape(-1).to(self.accumulate).expand(self.classes)
            return Weight(by_class=by_class.contiguous())
        if value.dim() == len(self.shape) and value.shape[-1] == 1:
            by_row = value.expand(*self.shape[:-1], 1).reshape(-1).to(self.accumulate)
            return Weight(by_row=by_row.contiguous())
        return Weight(by_logit=value)

    def problem(
        self,
        options: BinaryOptions,
        perturbation: Perturbation | BinaryPerturbation | None = None,
        rebalance: RebalancedWeight | None = None,
        steps: Tensor | None = None,
        normalizer: float | Tensor | None = None,
    ) -> BinaryProblem:
        sides = BinaryPerturbation.of(perturbation)
        positive_scale, positive_offset = self._side("positive", sides.positive)
        negative_scale, negative_offset = self._side("negative", sides.negative)
        inverse = None if rebalance is None else rebalance.inverse_count
        return BinaryProblem(
            self.input,
            self.target,
            positive_scale=positive_scale,
            positive_offset=positive_offset,
            negative_scale=negative_scale,
            negative_offset=negative_offset,
            inverse_count=self.table("inverse_count", inverse),
            steps=None if steps is None else self.steps(steps),
            normalizer=checked_normalizer(normalizer, options.reduction, self.input),
            options=options,
        )

    def _side(self, name: str, side: Perturbation | None) -> tuple[Tensor | None, Tensor | None]:
        """scale and offset of a side, 1/temperature within."""
        if side is None:
            return None, None
        scale, offset = self.table("scale", side.scale), self.table("offset", side.offset)
        temperature = side.temperature
        if isinstance(temperature, Tensor):
            if temperature.numel() != 1:
                raise ValueError(
                    f"temperature: expected one number, got shape {tuple(temperature.shape)}"
                )
            inverse: float | Tensor = temperature.reshape(()).to(self.device, self.accumulate)
            inverse = 1 / inverse
        else:
            inverse = 1.0 / POSITIVE("temperature", temperature)
            if inverse == 1:
                return scale, offset
        if scale is None:
            scale = torch.ones(self.classes, dtype=self.accumulate, device=self.device)
        return scale * inverse, None if offset is None else offset * inverse

    steps = narrow_steps

    def restore(self, loss: Tensor, options: BinaryOptions) -> Tensor:
        return loss.reshape(self.shape) if options.reduction == NONE else loss
