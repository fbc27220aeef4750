"""The processes of one training, which share the classes: under torchrun each has some of them.

Without torchrun there is one, and nothing is sent.
"""

from __future__ import annotations

import datetime
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import distributed, nn

from .settings import SettingsError

T = TypeVar("T")

# for a rank that makes its data, or writes; who waits longer waits for one that will not come
_PATIENCE = datetime.timedelta(minutes=10)


class ToldError(Exception):
    """Another rank failed, and says so itself."""


@dataclass(frozen=True)
class Ranks:
    """This process among those of the training. `group` is None where it is alone."""

    group: Any = None

    @property
    def size(self) -> int:
        return 1 if self.group is None else distributed.get_world_size(self.group)

    @property
    def leads(self) -> bool:
        """Whether this is the one that speaks and writes."""
        return self.group is None or distributed.get_rank(self.group) == 0

    def of_first(self, make: Callable[[], T]) -> T:
        """What the first rank makes, on all of them.

        Raises:
            what the first rank raises, there; ToldError on the others.
        """
        if self.group is None:
            return make()
        answer: list[Any] = [None, True]
        try:
            if self.leads:
                answer = [make(), False]
        finally:
            distributed.broadcast_object_list(answer, 0, self.group)
        if answer[1]:
            raise ToldError
        made: T = answer[0]
        return made

    @contextmanager
    def together(self) -> Iterator[None]:
        """What is in here is right on all ranks, or ends on all.

        Raises:
            what the first rank raises that raises something, there; ToldError on the others.
        """
        failed: Exception | None = None
        try:
            yield
        except Exception as error:
            failed = error
        if self.group is not None:
            said: list[Any] = [None] * self.size
            distributed.all_gather_object(said, failed is not None, self.group)
            if any(said) and said.index(True) != distributed.get_rank(self.group):
                raise ToldError from failed
        if failed is not None:
            raise failed

    def equalise(self, part: nn.Module) -> None:
        """What every rank has whole is that of the first again. Kernels that add in any order let
        it drift apart."""
        if self.group is not None:
            for tensor in (*part.parameters(), *part.buffers()):
                distributed.broadcast(tensor.detach(), 0, self.group)


@contextmanager
def joined() -> Iterator[Ranks]:
    """The processes that torchrun started; without it, or where it started one, this one.

    Raises:
        SettingsError: the group cannot be made.
    """
    if int(os.environ.get("WORLD_SIZE", "1")) == 1:
        yield Ranks()
        return
    place = int(os.environ.get("LOCAL_RANK", "0"))
    if place < torch.cuda.device_count():
        torch.cuda.set_device(place)
    try:
        distributed.init_process_group(timeout=_PATIENCE)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise SettingsError(f"the ranks do not find each other: {error}") from error
    try:
        yield Ranks(distributed.group.WORLD)
    finally:
        distributed.destroy_process_group()
