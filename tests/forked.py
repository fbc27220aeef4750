"""Programs in processes of their own, some as the ranks that torchrun would start: one process
imports torch, which takes longer than most of them, and is copied for each.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple

ROOT = Path(__file__).resolve().parent.parent

_RUNNER = """
import json, os, socket, sys, tempfile, traceback
import torch, torch._dynamo  # what optimizers import
torch.set_num_threads(1)
first, programs = json.load(sys.stdin)
exec(first)
# a lock that another thread holds stays locked in the copy
assert len(os.listdir("/proc/self/task")) == 1, "copied while other threads run"

def start(code, rank, world, port, file):
    child = os.fork()
    if child:
        return child
    os.dup2(file.fileno(), 1)
    os.dup2(file.fileno(), 2)
    sys.stdout, sys.stderr = (os.fdopen(number, "w", buffering=1) for number in (1, 2))
    if world > 1:
        os.environ.update(
            RANK=str(rank), LOCAL_RANK=str(rank), WORLD_SIZE=str(world),
            MASTER_ADDR="127.0.0.1", MASTER_PORT=str(port),
        )
    status = 0
    try:
        exec(code, {**globals(), "rank": rank})
    except SystemExit as end:
        status = end.code or 0
    except BaseException:
        traceback.print_exc()
        status = 1
    sys.stdout.flush()
    sys.stderr.flush()
    os._exit(status)

found = {}
for name, (code, world) in programs.items():
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    files = [tempfile.TemporaryFile("w+") for _ in range(world)]
    children = [start(code, rank, world, port, file) for rank, file in enumerate(files)]
    ended = []
    for child, file in zip(children, files):
        status = os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])
        file.seek(0)
        ended.append([status, file.read()])
    found[name] = ended
print(json.dumps(found))
"""


class Ended(NamedTuple):
    status: int
    printed: str


def run(
    programs: Mapping[str, tuple[str, int]], first: str = "", timeout: float = 600
) -> dict[str, list[Ended]]:
    """What became of programs, one after the other, by rank.

    Args:
        programs: by name their code, in which `rank` is known, and on how many ranks it runs.
        first: what is imported once.
    """
    ran = subprocess.run(
        [sys.executable, "-c", _RUNNER],
        input=json.dumps([first, programs]),
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=timeout,
        env={**os.environ, "OPENBLAS_NUM_THREADS": "1", "OMP_NUM_THREADS": "1"},
    )
    assert ran.returncode == 0, ran.stderr
    found = json.loads(ran.stdout.splitlines()[-1])
    return {name: [Ended(*each) for each in ranks] for name, ranks in found.items()}
