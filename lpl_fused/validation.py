"""What a caller passed, checked once and flattened to the rows of a `Problem`.

Every message says what was expected and what came.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, Protocol

import torch
from torch import Tensor

from .arguments import (
    BELOW_ONE,
    FLAG,
    NOT_NEGATIVE,
    POSITIVE,
    REAL,
    SHARE,
    Choice,
    Integer,
    is_integer,
    real_number,
    shown,
)
from .arguments import OFF_OR_NOT_NEGATIVE as _OFF
from .norm import Norm, numbers_of
from .penalty import KINDS, MarginPenalty
from .perturbation import Perturbation
from .phi import Phi, coded
from .problem import NONE, REDUCTIONS, SUM, TABLES, Options, Problem, accumulate_dtype
from .tracing import PLAIN, readable

_MOST_STEPS = 2**31 - 1  # that kernels count
_ABSENT = (None,) * (len(Problem._fields) - 5)  # of a problem, between its labels and its options
_NEEDS_LABELS = (
    "needs class indices, one per row or two (MixedTarget; its of_probabilities finds them in class"
    " probabilities that name no more)"
)

# what a caller gave, who knows of no table
OF_COUNTS = " of the logits (a loss makes it of cls_num_list)"
_ENTRIES = ", one entry per class"
_ENTRIES_OF_COUNTS = _ENTRIES + OF_COUNTS
_COUNTS_OF_STEPS = ", one signed count per class" + OF_COUNTS

_NUMBERS = (int, float, torch.SymInt, torch.SymFloat)
FLOATING = (torch.float64, torch.float32, torch.bfloat16, torch.float16)


class MixedTarget(NamedTuple):
    """Two labels per sample (mixup, CutMix, UniMix): `lam` of `target`, 1 − `lam` of `other`.

    Shapes: `target` and `other` as class indices, `lam` the same shape or 0-dim or a number.
    Shares are in [0, 1]; of another the loss makes a ValueError, or on a GPU, where nobody waits to
    see it, nan in its row.

    Examples:
        >>> logits, lam = torch.tensor([[2.0, 1.0, 0.0]]), torch.tensor([0.75])
        >>> mixed = lpl_fused.MixedTarget(torch.tensor([0]), torch.tensor([2]), lam)
        >>> LF.cross_entropy(logits, mixed)  # 0.75·0.4076 + 0.25·2.4076
        tensor(0.9076)
    """

    target: Tensor
    other: Tensor
    lam: Tensor | float

    @classmethod
    def of_probabilities(
        cls, probabilities: Tensor, label_smoothing: float | None = None
    ) -> MixedTarget:
        """The two labels of each row, and their share, of class probabilities that name no more:
        what timm's `Mixup` makes.

        Smoothed labels have something of every class. With their ε as `label_smoothing` it is
        taken out of them; give the loss the same `label_smoothing`, which puts it back.

        Args:
            probabilities: (C,), (N, C) or (N, C, d1, …), floating, at least two classes.
            label_smoothing: ε in [0, 1) that they were smoothed with; default 0.

        Raises:
            TypeError: no floating tensor.
            ValueError: a row that is not so; on a GPU, for which nobody waits, its share is nan.

        Examples:
            >>> mixed = 0.25 * torch.eye(4)[[0]] + 0.75 * torch.eye(4)[[2]]
            >>> lpl_fused.MixedTarget.of_probabilities(mixed)
            MixedTarget(target=tensor([2]), other=tensor([0]), lam=tensor([0.7500]))
            >>> smoothed = 0.9 * mixed + 0.1 / 4
            >>> lpl_fused.MixedTarget.of_probabilities(smoothed, label_smoothing=0.1)
            MixedTarget(target=tensor([2]), other=tensor([0]), lam=tensor([0.7500]))
        """
        if not isinstance(probabilities, Tensor) or not probabilities.is_floating_point():
            raise TypeError(
                f"probabilities: expected a floating tensor, got {shown(probabilities)}"
            )
        epsilon = 0.0 if label_smoothing is None else BELOW_ONE("label_smoothing", label_smoothing)
        dim = 0 if probabilities.dim() == 1 else 1
        if probabilities.dim() == 0 or probabilities.shape[dim] < 2:
            raise ValueError(
                "probabilities: expected shape (C,), (N, C) or (N, C, d1, ...) of two classes or"
                f" more, got {tuple(probabilities.shape)}"
            )
        p = probabilities.to(accumulate_dtype(probabilities.dtype))
        p = (p - epsilon / p.shape[dim]) / (1 - epsilon)
        shares, labels = p.topk(2, dim)
        first, second = shares.unbind(dim)
        # what rounding leaves of the others, and of shares that sum to 1
        slack = 8 * torch.finfo(probabilities.dtype).eps / (1 - epsilon)
        others = p.scatter(dim, labels, 0.0).abs().amax(dim)
        wrong = ((first + second - 1).abs() > slack) | (others > slack) | (second < -slack)
        wrong = wrong | p.isnan().any(dim)
        if not readable(wrong):
            first = first.masked_fill(wrong, math.nan)
        elif wrong.any():
            raise ValueError(
                "probabilities: expected at most two classes a row, of shares that sum to 1,"
                f" smoothed by label_smoothing={epsilon:g}; {int(wrong.sum())} of {wrong.numel()}"
                " rows are not so (labels that were smoothed have something of every class: say by"
                " how much, as label_smoothing)"
            )
        target, other = labels.unbind(dim)
        return cls(target, other, (first / (first + second)).clamp(max=1))


Target = Tensor | MixedTarget


def call_options(
    reduction: str,
    ignore_index: int,
    phi: Phi,
    label_smoothing: float | Tensor,
    z_loss: float | None,
    softcap: float | None,
    norm: Norm | None = None,
    step_size: float = 0.0,
    normalize: bool = False,
    through: bool = False,
) -> Options:
    """The options of a call, looked up where they were checked before: training repeats them."""
    arguments = (
        *(reduction, ignore_index, phi, label_smoothing, z_loss, softcap, norm),
        *(step_size, normalize, through),
    )
    # a tensor in their place would be looked up as itself, whatever number it has since
    numbers = type(label_smoothing) is type(z_loss) is type(softcap) is type(step_size) is float
    if numbers and type(ignore_index) is int and not torch.compiler.is_compiling():
        try:
            return _known_options(*arguments)
        except TypeError:
            pass  # of an argument that cannot be looked up, or is wrong: said below
    return _call_options(*arguments)


def _call_options(
    reduction: str,
    ignore_index: int,
    phi: Phi,
    label_smoothing: float | Tensor,
    z_loss: float | None,
    softcap: float | None,
    norm: Norm | None,
    step_size: float,
    normalize: bool,
    through: bool,
) -> Options:
    Choice(*REDUCTIONS)("reduction", reduction)
    by_class = isinstance(label_smoothing, Tensor) and label_smoothing.dim() > 0
    smoothing = 0.0 if by_class else SHARE("label_smoothing", label_smoothing)
    z_loss, softcap = _OFF("z_loss", z_loss), _OFF("softcap", softcap)
    code, parameter = coded(phi)
    numbers = numbers_of(norm)
    step_size = checked_step_size(step_size)
    normalize = FLAG("normalize", normalize)
    through = FLAG("through_perturbation", through)
    # every field: torch.compile takes default numbers for inputs of the graph, and fails to find
    # them again in a second call
    return Options(
        reduction=REDUCTIONS[reduction],
        ignore_index=integer("ignore_index", ignore_index),
        phi=code,
        phi_parameter=parameter,
        label_smoothing=smoothing,
        z_loss=z_loss,
        softcap=softcap,
        norm_p=numbers.p,
        norm_limit=numbers.limit,
        norm_gain=numbers.gain,
        norm_offset=numbers.offset,
        inverse_temperature=1.0,
        step_size=step_size,
        penalty=0,
        penalty_margin=1.0,
        penalty_unit=1.0,
        penalty_strength=1.0,
        normalize=normalize,
        through=through,
        first=0,
        classes=0,
    )


# by type, too: True is no 1
_known_options = functools.lru_cache(maxsize=256, typed=True)(_call_options)


def integer(name: str, value: int) -> int:
    return value if isinstance(value, torch.SymInt) else Integer()(name, value)


def checked_step_size(value: float) -> float:
    return NOT_NEGATIVE("step_size", value)


class _OfClasses(Protocol):
    classes: int

    def _check(self, name: str, tensor: Tensor, shape: Sequence[int], why: str = "") -> None: ...


def narrow_steps(call: _OfClasses, steps: Tensor) -> Tensor:
    """Signed step counts as the kernels take them: a method of what a call is checked by."""
    if not isinstance(steps, Tensor):
        raise TypeError(f"steps: expected a tensor, got {type(steps).__name__}")
    if not is_integer(steps):
        raise TypeError(f"steps: expected signed integers, got {steps.dtype}")
    call._check("steps", steps, (call.classes,), _COUNTS_OF_STEPS)
    if steps.dtype.itemsize > 4:
        if readable(steps) and steps.numel():
            # not modulo 2³²; on a GPU nobody waits to see them
            far = steps.flatten()[steps.abs().argmax()]
            if not -_MOST_STEPS <= far <= _MOST_STEPS:
                raise ValueError(
                    f"steps: expected counts of at most {_MOST_STEPS} in size, got {far.item()}"
                )
        steps = steps.clamp(-_MOST_STEPS, _MOST_STEPS)
    if steps.dtype is not torch.int32:
        steps = steps.to(torch.int32)
    return steps.contiguous()


def checked_shares(name: str, shares: Tensor) -> Tensor:
    """Numbers in [0, 1]; nan in the place of others that nobody waits to see.

    Raises:
        ValueError: others, where they may be looked at.
    """
    inside = shares.clamp(0, 1) == shares
    if not readable(shares):
        return shares.where(inside, math.nan)
    if not inside.all():
        raise ValueError(f"{name}: expected {SHARE}, got {shares[~inside][0].item():g}")
    return shares


EMPTY = Choice("nan", "zero")


def empty_is_zero(empty: str) -> bool:
    """Whether a mean over nothing is 0. (Of "nan" callers do not ask: it costs a call.)"""
    return EMPTY("empty", empty) == "zero"


def checked_normalizer(
    value: float | Tensor | None, reduction: int, input: Tensor
) -> Tensor | None:
    """What a sum is divided by as the kernels take it: on the logits' device, whose values nobody
    waits for."""
    if value is None:
        return None
    if reduction != SUM:
        raise ValueError('normalizer: divides a sum, expected reduction="sum"')
    dtype = accumulate_dtype(input.dtype)
    if not isinstance(value, Tensor):
        number = value if isinstance(value, _NUMBERS) else real_number(value)
        if number is None or isinstance(value, bool):
            raise TypeError(f"normalizer: expected a number or a 0-dim tensor, got {value!r}")
        if not 0 < number < math.inf:
            raise ValueError(f"normalizer: expected a finite number > 0, got {value}")
        return input.new_full((), number, dtype=dtype)
    if value.dim() != 0:
        raise ValueError(f"normalizer: expected one number, 0-dim, got shape {tuple(value.shape)}")
    if value.is_complex() or value.dtype == torch.bool:
        raise TypeError(f"normalizer: expected a real number, got {value.dtype}")
    if value.device != input.device and value.device.type != "cpu":
        raise ValueError(
            f"normalizer: expected device {input.device}, as input, or cpu, got {value.device}"
        )
    return value.to(input.device, dtype, non_blocking=True)


def moved_by_two(
    problem: Problem, choose: object, return_stats: bool, *, whole: bool = True
) -> bool:
    """Whether rows have two labels, each of which moves the row's logits.

    Args:
        choose: who makes steps; None: nobody.
        return_stats: statistics of the rows are wanted.
        whole: all logits are in one place.

    Raises:
        ValueError: they have, beside what does not go with that.
    """
    if problem.other is None or not (problem.by_label or choose is not None):
        return False
    if return_stats:
        raise ValueError(
            "return_stats: expected one label per row, or tables that are the same for all labels:"
            " with a margin, a row by label or a learned perturbation a MixedTarget has two"
            " softmaxes"
        )
    if problem.options.penalty and not whole:
        raise ValueError(
            "penalty: beside a MixedTarget whose labels move the logits it needs all of these in"
            " one place; call cross_entropy, without process_group"
        )
    return True


def refuse_distributed(name: str, tensor: Tensor) -> None:
    """Raises TypeError for a DTensor, where all that belongs to a row has to be in one place."""
    if type(tensor).__name__ == "DTensor":
        raise TypeError(f"{name}: a DTensor is not supported; pass its local part, .to_local()")


class Shaped:
    """Logits and target flattened to rows, and the way back."""

    of_some_classes = False  # others may have the classes of these rows: there may be none here

    def __init__(self, input: Tensor, target: Target) -> None:
        if type(input) not in PLAIN:
            if not isinstance(input, Tensor):
                raise TypeError(f"input: expected a tensor, got {type(input).__name__}")
            refuse_distributed("input", input)
        if input.dtype not in FLOATING:
            raise TypeError(
                f"input: expected float64, float32, bfloat16 or float16 logits, got {input.dtype}"
            )
        shape = input.shape
        dims = len(shape)
        if dims == 0:
            raise ValueError(
                "input: expected shape (C,), (N, C) or (N, C, d1, ...), got a 0-dim tensor"
            )
        self.classes = shape[0 if dims == 1 else 1]
        if self.classes == 0 and not self.of_some_classes:
            raise ValueError(f"input: expected at least one class, got shape {tuple(shape)}")
        self.loss_shape: Sequence[int] = ()
        if dims > 1:
            self.loss_shape = (shape[0],) if dims == 2 else (shape[0], *shape[2:])
        self._take(input, target)

    def _take(self, input: Tensor, target: Target) -> None:
        """Target and logits, of which shape, dtype and device are known to be right."""
        self.device, self.dtype = input.device, input.dtype
        self.accumulate = accumulate_dtype(input.dtype)

        self.other: Tensor | None = None
        self.lam: Tensor | None = None
        if isinstance(target, tuple):
            if len(target) != 3:
                raise TypeError(f"target: expected (target, other, lam), got {len(target)} values")
            target, other, lam = target
            self.other = self._labels("target.other", other)
            self.lam = self._shares("target.lam", lam)
        if not isinstance(target, Tensor):
            raise TypeError(f"target: expected a tensor, got {type(target).__name__}")
        refuse_distributed("target", target)
        try:
            if target.is_floating_point() and self.other is None:
                self._check("target (class probabilities)", target, input.shape)
                if target.dtype not in FLOATING:
                    raise TypeError(
                        "target (class probabilities): expected float64, float32, bfloat16 or"
                        f" float16, got {target.dtype}"
                    )
                self.target = self._rows(target)
            else:
                self.target = self._labels("target", target)
        except (TypeError, ValueError) as error:
            raise type(error)(f"{error}{self._way_out(input, target)}") from None
        self.input = input

    def _way_out(self, input: Tensor, target: Tensor) -> str:
        """What a target that does not fit was probably meant to be."""
        shape, rows = tuple(target.shape), tuple(self.loss_shape)
        if target.is_floating_point() and shape == rows:
            return "; class indices are integers: target.long()"
        if not target.is_floating_point() and shape == tuple(input.shape) != rows:
            return (
                "; class probabilities, one-hot ones too, are floating: target.float() (several"
                " labels per row: MultiLabelLoss, binary_cross_entropy_with_logits)"
            )
        if input.dim() > 2 and shape == tuple(input.shape[:-1]) != rows:
            return (
                "; the second dimension of the logits numbers the classes: where that is the last"
                " one, pass logits.movedim(-1, 1)"
            )
        return ""

    def _check(self, name: str, tensor: Tensor, shape: Sequence[int], why: str = "") -> None:
        if tensor.shape != tuple(shape):
            raise ValueError(
                f"{name}: expected shape {tuple(shape)}{why}, got {tuple(tensor.shape)}"
            )
        if tensor.device != self.device:
            raise ValueError(
                f"{name}: expected device {self.device}, as input, got {tensor.device}"
            )

    def _labels(self, name: str, labels: Tensor) -> Tensor:
        if not isinstance(labels, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(labels).__name__}")
        known = labels.dtype is torch.int64  # which is what mostly comes
        if not known and not is_integer(labels):
            raise TypeError(
                f"{name}: expected integer class indices of shape {tuple(self.loss_shape)}"
                f", got {labels.dtype} of shape {tuple(labels.shape)}"
            )
        if labels.shape != self.loss_shape or labels.device != self.device:
            self._check(name, labels, self.loss_shape, ", one class index per row of logits")
        if not known:
            labels = labels.long()
        return (
            labels
            if labels.dim() == 1 and labels.is_contiguous()
            else labels.reshape(-1).contiguous()
        )

    def _shares(self, name: str, value: Tensor | float) -> Tensor:
        """Those of the rows: see `checked_shares`."""
        if not isinstance(value, Tensor):
            return self._per_row(name, SHARE(name, value))
        return checked_shares(name, self._per_row(name, value))

    def _per_row(self, name: str, value: Tensor | float) -> Tensor:
        if not isinstance(value, Tensor):
            number = REAL(name, value)
            value = torch.tensor(number, dtype=self.accumulate, device=self.device)
        if not value.is_floating_point():
            raise TypeError(f"{name}: expected a floating tensor or a number, got {value.dtype}")
        if value.dim() == 0:
            value = value.to(self.device).expand(tuple(self.loss_shape))
        self._check(name, value, self.loss_shape, ", one per row of logits")
        return value.reshape(-1).to(self.accumulate).contiguous()

    def _table(self, name: str, value: Tensor | None, rows: bool = False) -> Tensor | None:
        if value is None:
            return None
        if not isinstance(value, Tensor):
            raise TypeError(f"{name}: expected a tensor, got {type(value).__name__}")
        refuse_distributed(name, value)
        if rows and value.dim() != 2:
            raise ValueError(
                f"{name}: expected shape (R, {self.classes}), got {tuple(value.shape)}"
            )
        shape = (value.shape[0], self.classes) if rows else (self.classes,)
        self._check(name, value, shape, _ENTRIES_OF_COUNTS if name in TABLES else _ENTRIES)
        if value.is_complex():
            raise TypeError(f"{name}: expected a real tensor, got {value.dtype}")
        if value.dtype != self.accumulate:
            value = value.to(self.accumulate)
        return value.contiguous()

    def problem(
        self,
        options: Options,
        perturbation: Perturbation | None = None,
        weight: Tensor | None = None,
        sample_weight: Tensor | None = None,
        label_smoothing: float | Tensor = 0.0,
        steps: Tensor | None = None,
        penalty: MarginPenalty | None = None,
        normalizer: float | Tensor | None = None,
    ) -> Problem:
        dense = self.target.dim() == 2
        if dense and options.ignore_index >= 0:
            raise ValueError("ignore_index: not supported with class probabilities as the target")
        fields: dict[str, Any] = {}
        if normalizer is not None:
            fields["normalizer"] = checked_normalizer(normalizer, options.reduction, self.input)
        if weight is not None:
            fields["weight"] = self._table("weight", weight)
        if sample_weight is not None:
            fields["sample_weight"] = self._per_row("sample_weight", sample_weight)
        if isinstance(label_smoothing, Tensor):
            if dense:
                raise ValueError("label_smoothing: by class it needs class indices as the target")
            fields["smoothing"] = self._table("label_smoothing", label_smoothing)
            if readable(label_smoothing):
                checked_shares("label_smoothing", label_smoothing)
        if perturbation is not None:
            tables, inverse_temperature = self._tables(perturbation, labelled=not dense)
            fields.update(tables)
            if inverse_temperature != 1:
                options = options._replace(inverse_temperature=inverse_temperature)
        if steps is not None:
            self.check_labelled()
            fields["steps"] = self.steps(steps)
        if penalty is not None:
            if not isinstance(penalty, MarginPenalty):
                raise TypeError(f"penalty: expected a MarginPenalty or None, got {penalty!r}")
            options = options._replace(
                penalty=KINDS[penalty.kind],
                penalty_margin=float(penalty.margin),
                penalty_unit=float(penalty.unit),
                penalty_strength=float(penalty.strength),
            )
            for name in ("multiplier", "rho"):
                fields[name] = self._table(name, getattr(penalty, name))
        rows = self._rows(self.input), self.target, self.other, self.lam
        if not fields:  # by place: names cost more than the rest of this
            found: Problem = tuple.__new__(Problem, (*rows, *_ABSENT, options))
            return found
        return Problem(*rows, options=options, **fields)

    def check_labelled(self) -> None:
        """Raises ValueError where the target names no classes that could have a δ."""
        if self.target.is_floating_point():
            raise ValueError(f"target: the learned perturbation {_NEEDS_LABELS}")

    steps = narrow_steps

    def _tables(
        self, perturbation: Perturbation, *, labelled: bool
    ) -> tuple[dict[str, Tensor | None], float]:
        """The tables as fields of a Problem, and 1/temperature where that is a plain number."""
        if not isinstance(perturbation, Perturbation):
            raise TypeError(f"perturbation: expected a Perturbation, got {perturbation!r}")
        p = perturbation
        if not labelled and p.margin is not None:
            raise ValueError(f"margin: {_NEEDS_LABELS}, as the target")
        if not labelled and p.rows is not None and p.row_index is None:
            raise ValueError("rows: with this target they need a row_index")
        if p.row_index is not None and p.rows is None:
            raise ValueError("row_index: given without rows")
        by_class = isinstance(p.rows, Tensor) and p.row_index is None
        if by_class and p.rows.shape[:1] != (self.classes,):  # type: ignore[union-attr]
            raise ValueError(
                f"rows: without row_index, expected one row per class, shape {(self.classes,) * 2}"
                f", got {tuple(p.rows.shape)}"  # type: ignore[union-attr]
            )
        tables: dict[str, Any] = {}
        for name in TABLES:
            value = getattr(p, name)
            if value is not None:
                tables[name] = self._table(name, value, rows=name == "rows")
        row_index = None if p.row_index is None else self._labels("row_index", p.row_index)
        if row_index is not None and row_index.numel() and tables["rows"].shape[0] == 0:
            raise ValueError("rows: expected one or more for row_index to name, got none")
        temperature = p.temperature
        if isinstance(temperature, Tensor):
            if temperature.numel() != 1:
                raise ValueError(
                    f"temperature: expected one number, got shape {tuple(temperature.shape)}"
                )
            # learnable, or on a device whose value is not worth a synchronisation: into the tables
            inverse = temperature.reshape(()).to(self.device, self.accumulate).reciprocal()
            ones = torch.ones(self.classes, dtype=self.accumulate, device=self.device)
            tables = {"scale": ones, **tables}
            tables = {name: table * inverse for name, table in tables.items()}
            return {**tables, "row_index": row_index}, 1.0
        if type(temperature) is not float or temperature != 1:  # which is what mostly comes
            temperature = POSITIVE("temperature", temperature)
        return {**tables, "row_index": row_index}, 1.0 / temperature

    def _rows(self, tensor: Tensor) -> Tensor:
        """What has the logits' shape as (N, C) with unit stride along C; a copy only where the
        layout needs one."""
        dim = tensor.dim()
        if dim == 1:
            tensor = tensor[None]
        elif dim > 2:
            tensor = tensor.movedim(1, -1).flatten(0, -2)
        unit = tensor.stride(1) == 1 or self.classes == 1
        return tensor if unit else tensor.contiguous()

    def of_rows(self, numbers: Tensor) -> Tensor:
        """Numbers of the rows in the shape of losses."""
        return numbers.reshape(tuple(self.loss_shape))

    def restore(self, loss: Tensor, options: Options) -> Tensor:
        return self.of_rows(loss) if options.reduction == NONE else loss


class Projected(Shaped):
    """Features (…, D) of logits (…, C) that nobody has made, the layer that makes them, and target.

    `input` stands for the logits in all that asks for their shape, dtype and device; it has no
    numbers. `dtype` is that of the products: autocast's, where that is on.
    """

    def __init__(
        self, input: Tensor, linear_weight: Tensor, linear_bias: Tensor | None, target: Target
    ) -> None:
        given = {"input": input, "linear_weight": linear_weight}
        if linear_bias is not None:
            given["linear_bias"] = linear_bias
        for name, tensor in given.items():
            if not isinstance(tensor, Tensor):
                raise TypeError(f"{name}: expected a tensor, got {type(tensor).__name__}")
            refuse_distributed(name, tensor)
            if tensor.dtype not in FLOATING:
                raise TypeError(
                    f"{name}: expected float64, float32, bfloat16 or float16, got {tensor.dtype}"
                )
            if tensor.device != input.device:
                raise ValueError(
                    f"{name}: expected device {input.device}, as input, got {tensor.device}"
                )
        if input.dim() == 0:
            raise ValueError("input: expected shape (D,) or (..., D), got a 0-dim tensor")
        features = input.shape[-1]
        if linear_weight.dim() != 2 or linear_weight.shape[1] != features:
            raise ValueError(
                f"linear_weight: expected shape (C, {features}), features as input has them, got"
                f" {tuple(linear_weight.shape)}"
            )
        self.classes = linear_weight.shape[0]
        if self.classes == 0 and not self.of_some_classes:
            raise ValueError(
                "linear_weight: expected at least one class, got shape"
                f" {tuple(linear_weight.shape)}"
            )
        if linear_bias is not None and linear_bias.shape != (self.classes,):
            raise ValueError(
                f"linear_bias: expected shape {(self.classes,)}, got {tuple(linear_bias.shape)}"
            )
        dtype = _product_dtype(given)
        self.loss_shape = tuple(input.shape[:-1])
        self.features = input.reshape(-1, features)
        self.weight, self.bias = linear_weight, linear_bias
        unmade = linear_weight.new_empty(self.classes, dtype=dtype)
        self._take(unmade.expand(*self.loss_shape, self.classes), target)

    @property
    def logits(self) -> Tensor:
        """(N, C), without numbers, as `input`."""
        return self._rows(self.input)

    def _rows(self, tensor: Tensor) -> Tensor:
        """(…, C) as (N, C)."""
        rows = tensor.flatten(0, -2) if tensor.dim() > 1 else tensor[None]
        return rows if rows.stride(1) == 1 or self.classes == 1 else rows.contiguous()


def _product_dtype(given: dict[str, Tensor]) -> torch.dtype:
    """What `torch.nn.functional.linear` makes of these."""
    input = given["input"]
    kind, dtypes = input.device.type, {tensor.dtype for tensor in given.values()}
    if torch.is_autocast_enabled(kind) and torch.float64 not in dtypes:
        return torch.get_autocast_dtype(kind)
    for name, tensor in given.items():
        if tensor.dtype != input.dtype:
            raise TypeError(f"{name}: expected {input.dtype}, as input, got {tensor.dtype}")
    return input.dtype
