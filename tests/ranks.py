"""Processes that are the ranks of torch.distributed (gloo) for the tests of a file: started once, and
again where one of them failed and the others may wait for it.
"""

from __future__ import annotations

import datetime
import multiprocessing
import queue
import tempfile
import traceback
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist

MOST = 4
alone: list[Any] = []  # on a rank: groups of one rank each
PATIENCE = 60  # seconds; who waits longer waits for a rank that will not come


class Ranks:
    """`ranks.run(n, function, …)` calls `function(group, …)` on n ranks."""

    def __init__(self, most: int = MOST, timeout: float = PATIENCE) -> None:
        self._most, self._timeout = most, timeout
        self.processes: list[Any] = []

    def _start(self) -> None:
        context = multiprocessing.get_context("spawn")
        self._asked = [context.Queue() for _ in range(self._most)]
        self._answers = context.Queue()
        meeting = f"file://{tempfile.mkdtemp()}/meeting"
        for rank, asked in enumerate(self._asked):
            arguments = (rank, self._most, meeting, self._timeout, asked, self._answers)
            process = context.Process(target=_serve, args=arguments, daemon=True)
            process.start()
            self.processes.append(process)

    def run(self, world: int, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """What it returned on each of the first `world` ranks; raises what one of them raised."""
        if not self.processes:
            self._start()
        for asked in self._asked[:world]:
            asked.put((function, arguments, world))
        found: dict[int, Any] = {}
        while len(found) < world:
            try:
                rank, result, error = self._answers.get(timeout=2 * PATIENCE)
            except queue.Empty:
                self.close()
                missing = set(range(world)) - set(found)
                raise AssertionError(f"ranks {missing} did not answer: they hang") from None
            if error is not None:
                self.close()
                raise AssertionError(f"on rank {rank}: {error}")
            found[rank] = result
        return [found[rank] for rank in range(world)]

    def close(self) -> None:
        while self.processes:
            self.processes.pop().kill()


def _serve(rank: int, most: int, meeting: str, timeout: float, asked: Any, answers: Any) -> None:
    torch.set_num_threads(1)
    wait = datetime.timedelta(seconds=timeout)
    dist.init_process_group("gloo", init_method=meeting, rank=rank, world_size=most, timeout=wait)
    groups = {
        world: dist.new_group(list(range(world)), timeout=wait) for world in range(1, most + 1)
    }
    alone.extend(dist.new_group([each], timeout=wait) for each in range(most))
    while True:
        function, arguments, world = asked.get()
        try:
            answers.put((rank, function(groups[world], *arguments), None))
        except BaseException:
            answers.put((rank, None, traceback.format_exc()))
