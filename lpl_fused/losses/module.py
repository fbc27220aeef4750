"""What all losses share as modules: tables, precision, a deferred start, the rows that count."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..arguments import Integer, Maybe, Rule, live, rebuilding
from ..distributed import all_rows, all_sum, checked_group, is_group, joined_rows, world_size
from ..problem import accumulate_dtype, is_ignored
from ..validation import Target


class LossModule(nn.Module):
    """A module whose buffers follow devices, never dtypes, and whose attributes keep their word.

    Every argument of a constructor has a `Rule` in `arguments`, of this class or of one above it.
    What is assigned later is checked as in the constructor, and then either acts on the next call,
    as if the loss had been made with it, or is refused with an AttributeError. What evolves
    (buffers) is no argument and has no rule.
    """

    arguments: ClassVar[dict[str, Rule]] = {}
    rules: ClassVar[dict[str, Rule]] = {}

    def __init_subclass__(cls, **keywords: Any) -> None:
        super().__init_subclass__(**keywords)
        cls.rules = {
            name: rule
            for kind in reversed(cls.__mro__)
            for name, rule in vars(kind).get("arguments", {}).items()
        }

    def __setattr__(self, name: str, value: Any) -> None:
        rule = self.rules.get(name)
        if rule is None or "_loads" in self.__dict__:
            super().__setattr__(name, value)
            return
        if rule.check is not None and isinstance(getattr(type(self), name, None), property):
            object.__setattr__(self, name, rule.check(name, value))  # its setter knows where
            return
        buffers = self.__dict__.get("_buffers", {})
        known = name in self.__dict__ or buffers.get(name) is not None
        if rule.check is None or (known and not rule.assignable):
            raise AttributeError(
                f"{name}: read-only, {type(self).__name__} is made of it; make another one"
            )
        before = self.__dict__.get(name)
        super().__setattr__(name, rule.check(name, value))
        if known and rule.rebuilds:
            try:
                self.rebuild()
            except (TypeError, ValueError):
                object.__setattr__(self, name, before)
                raise

    def rebuild(self) -> None:
        """Makes anew, from the attributes, what is made of them; constructors end in it."""

    @property
    def has_linear(self) -> bool:
        """Whether `linear` takes a layer in place of logits."""
        return False

    def linear(
        self,
        input: Tensor,
        linear_weight: Tensor,
        target: Target,
        linear_bias: Tensor | None = None,
        **keywords: Any,
    ) -> Tensor:
        """The loss of the logits input·linear_weightᵀ + linear_bias, which nobody holds: see
        `functional.linear_cross_entropy`.

        Raises:
            NotImplementedError: this loss looks at the logits themselves.
        """
        raise NotImplementedError(
            f"{type(self).__name__} looks at the logits themselves, it has no `linear`; call it"
            " with torch.nn.functional.linear(input, linear_weight, linear_bias)"
        )

    def __deepcopy__(self, memo: dict[int, Any]) -> LossModule:
        # groups of ranks are shared: they have no copies
        memo.update({id(value): value for value in vars(self).values() if is_group(value)})
        made = type(self).__new__(type(self))
        memo[id(self)] = made
        made.__dict__.update(copy.deepcopy(self.__dict__, memo))
        return made

    def _replicate_for_data_parallel(self) -> LossModule:
        # DataParallel puts the buffers of a device in their places, also of those that are
        # read-only for others
        replica: LossModule = super()._replicate_for_data_parallel()  # type: ignore[no-untyped-call]
        replica.__dict__["_loads"] = True
        return replica

    def derived(self, name: str, value: Any) -> None:
        """Sets what is read-only for others, as it follows from another attribute."""
        object.__setattr__(self, name, value)

    def register_weight(self, name: str, value: Tensor | None) -> None:
        """A buffer that is an argument, too."""
        check = self.rules[name].check
        assert check is not None
        self.register_buffer(name, check(name, value))

    def register_table(self, name: str, values: Tensor) -> None:
        """Keeps a table in both precisions, so that float64 logits meet float64 tables.

        Registered again, it stays where it was.

        Raises:
            ValueError: numbers that float32 does not hold (−inf, which masks a class, is one).
        """
        narrow = values.float()
        wrong = ~(narrow < math.inf) | (narrow.isinf() & values.isfinite())
        if wrong.any():
            raise ValueError(
                f"{type(self).__name__}: the {name} that counts and arguments come to is beyond"
                f" float32, {values[wrong][0].item():g} for class {int(wrong.nonzero()[0, -1])}"
            )
        for dtype in (torch.float32, torch.float64):
            full = f"{name}_{str(dtype).removeprefix('torch.')}"
            old = self._buffers.get(full)
            device = values.device if old is None else old.device
            self.register_buffer(full, values.to(device, dtype), persistent=False)

    def table(self, name: str, logits: Tensor) -> Tensor:
        double = accumulate_dtype(logits.dtype) == torch.float64
        found = self._buffers[name + ("_float64" if double else "_float32")]
        assert found is not None
        return found

    def _load_from_state_dict(
        self,
        state_dict: dict[str, Any],
        prefix: str,
        local_metadata: dict[str, Any],
        *arguments: Any,
        **keywords: Any,
    ) -> None:
        # an argument that is None has no key: it was None when the loss was made, and is a tensor
        # in the state (LDAM-DRW's weight), or the state is of before that. A state that holds no
        # loss of this place, of a model alone, is none of its
        held = "version" in local_metadata
        for name, buffer in self._buffers.items():
            if name not in self.rules or not self.rules[name].assignable:
                continue
            saved = state_dict.get(prefix + name)
            if buffer is None and saved is not None:
                here = next((b.device for b in self._buffers.values() if b is not None), "cpu")
                self._buffers[name] = torch.empty_like(saved, device=here)
            elif buffer is not None and saved is None and held:
                self._buffers[name] = None
        # assign=True sets buffers that are read-only for others
        self.__dict__["_loads"] = True
        try:
            super()._load_from_state_dict(
                state_dict, prefix, local_metadata, *arguments, **keywords
            )
        finally:
            del self.__dict__["_loads"]

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
        for name in self.rules:  # options that are tensors and no buffers
            option = self.__dict__.get(name)
            if isinstance(option, Tensor):
                moved = fn(option)
                own = moved if option.is_meta else option
                object.__setattr__(self, name, own.to(moved.device, option.dtype))
        return self


class DeferredStart(LossModule):
    """A loss whose second stage begins at `start_epoch`: call `set_epoch` once per epoch.

    The epoch is a Python number, so that no step waits for a device; it is part of `state_dict`.
    """

    arguments: ClassVar = {"start_epoch": rebuilding(Integer(least=0))}

    def start_at(self, start_epoch: int) -> None:
        """To be called by `__init__`; epoch 0 is the current one."""
        self.start_epoch = start_epoch
        self.set_epoch(0)

    def rebuild(self) -> None:
        super().rebuild()
        self.set_epoch(self.epoch)

    def set_epoch(self, epoch: int) -> None:
        """The epoch that begins, from 0."""
        self.epoch = Integer()("epoch", epoch)
        # a flag beside the number: torch.compile guards on what it reads, and this seldom changes
        self.started = self.epoch >= self.start_epoch

    def get_extra_state(self) -> Tensor:
        # a tensor, as all else in a state: what averages weights, or writes them to safetensors,
        # knows of nothing else
        return torch.tensor(self.epoch, device="cpu")

    def set_extra_state(self, state: Tensor | dict[str, int]) -> None:
        epoch = state["epoch"] if isinstance(state, dict) else state  # a dict before 1.0.0
        self.set_epoch(int(epoch))


class Reducing(LossModule):
    """A loss whose state is that of all ranks together.

    Args:
        data_group: the ranks that share it, which have other rows each (data parallel), a
            ProcessGroup that this one is of; default None, all of torch.distributed where that is
            initialised. Every rank of it calls the loss as
            often as the others, with as many rows as it has, or none. Copies share the group; like
            those of torch, a loss that has one is not pickled (its `state_dict` is).
    """

    arguments: ClassVar = {"data_group": live(Maybe(checked_group))}

    def __init__(self, *arguments: Any, data_group: Any = None, **keywords: Any) -> None:
        super().__init__(*arguments, **keywords)
        self.data_group = data_group

    def all_sum(self, tensor: Tensor) -> Tensor:
        return all_sum(tensor, self.data_group)

    def all_rows(self, tensor: Tensor) -> Tensor:
        return all_rows(tensor, self.data_group)

    def joined_rows(self, tensor: Tensor) -> Tensor:
        return joined_rows(tensor, self.data_group)

    @property
    def ranks(self) -> int:
        return world_size(self.data_group)


def of_part(name: str, part: str = "base") -> Any:
    """A property of a wrapper that is its part's: read there, and assigned there."""

    def read(self: Any) -> Any:
        return getattr(getattr(self, part), name)

    def write(self: Any, value: Any) -> None:
        setattr(getattr(self, part), name, value)

    return property(read, write, doc=f"`{name}` of `{part}`.")


def counted(target: Target, ignore_index: int) -> Tensor:
    """Which rows count, a bool per loss: all but those that are ignored (with both labels)."""
    if not isinstance(target, Tensor):
        return ~(is_ignored(target[0], ignore_index) & is_ignored(target[1], ignore_index))
    if target.is_floating_point():  # class probabilities
        return torch.ones_like(target.select(0 if target.dim() == 1 else 1, 0), dtype=torch.bool)
    return ~is_ignored(target, ignore_index)
