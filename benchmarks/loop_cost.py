"""What a thread does for a logit, from a kernel's machine code alone.

Instructions (sass.py) become a control-flow graph, its natural loops (control_flow.py), and the
dearest path through them. What is counted:

* Straight-line code once, and a loop as often as its logits need: a thread that does L logits in a
  turn and has M of them takes M/L turns. L is the bytes that a turn reads, by its widest accesses
  to memory, over an element's. Loops that do the same work one after the other (parts of a row that
  arrive by and by) share the logits; one that does it in smaller pieces is the remainder of the
  other, and so is one that fills rows with what it does not compute.
* Of two ways through a branch that exclude each other the dearer one, so a count is an upper bound
  of what a thread does, but for what is rarely done. Rare is: an atomic, a call, a wait; the
  element by element beside the vector, as at a row's ends; inside a loop a way around which there
  is an empty one, without memory or less of the special functions than half of its turn's logits
  need, unless it is there for every element. Rare code is counted apart.

A path through a loop that counts no logits, as over steps or over warps, is counted once and named.
Instructions that no way leads to are told (`Cost.lost`): what is counted is too little then.
"""

from __future__ import annotations

import collections
import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field
from typing import NamedTuple

from .control_flow import Block, graph, natural_loops, reverse_postorder
from .sass import Instruction

_LOADS, _STORES = ("LDG", "LDS", "LD"), ("STG", "ST")
_ATOMIC = ("ATOM", "ATOMG", "ATOMS", "RED", "REDG", "REDAS")
_SLOW = ("CALL", "BPT", "NANOSLEEP")
_WAITS = ("SYNCS", "NANOSLEEP", "ACQBULK")
_WARP, _SIZE = 32, 16
_VECTOR = 8  # bytes of an access from which on it has several logits
_FEW = 4  # special functions of a turn that are not of its logits
_END = -1  # behind all nodes
_MANY = 1000  # logits
_ALIKE, _NEAR = 0.3, 0.15  # by how much the same work may differ: of itself, and absolutely
_AS_CHEAP = 1.1
_QUESTIONS, _ASKED = ("ISETP", "SEL", "FSEL", "PRMT", "PLOP3"), 3  # of a logit that may be missing
_Names = tuple[str, ...]
_ARITHMETIC: tuple[_Names, ...] = (
    *(("MUFU",), ("FFMA", "FFMA2"), ("FADD", "FADD2"), ("FMUL", "FMUL2")),
    *(("DFMA",), ("DADD",), ("DMUL",)),
)
_PRODUCTS: tuple[_Names, ...] = (("MUFU",), ("FFMA", "FFMA2"), ("DFMA",))
_COMPARISONS: tuple[_Names, ...] = (
    ("FMNMX", "FMNMX3", "HMNMX2", "VHMNMX"),
    ("FSETP",),
    ("F2FP",),
)


class Traffic(NamedTuple):
    """A kind of access and its bytes a thread."""

    base: str
    width: int


@dataclass
class Loop:
    """A natural loop; numbers are of one turn without the loops inside."""

    first: int  # address of its header
    depth: int
    instructions: int
    mufu: int
    rare: int  # instructions that are rarely done
    logits: float | None  # that a thread does in one turn; None where it counts none
    work: collections.Counter[object]
    shared_by: int = 1  # alike loops, among which the logits are split
    remainder: bool = False
    outer: float = 1.0

    @property
    def turns_per_logit(self) -> float:
        return 0 if self.remainder or not self.logits else 1 / (self.logits * self.shared_by)


@dataclass(frozen=True)
class Cost:
    """What a thread does in a kernel."""

    straight: int  # instructions outside of loops
    straight_mufu: int
    rare: int  # instructions of rare code, each once
    size: int  # all instructions
    loops: tuple[Loop, ...]
    work: collections.Counter[object]  # outside of loops
    bulk: bool  # whether rows arrive by bulk copies
    lost: int = 0  # instructions that no way leads to: what is counted is too little

    def per_logit(self, logits: float) -> tuple[float, float]:
        """Instructions and MUFU, of a thread that does so many logits."""
        count, mufu = self.straight / logits, self.straight_mufu / logits
        for loop in self.loops:
            turns = loop.turns_per_logit if loop.logits else loop.outer / logits
            count += loop.instructions * turns
            mufu += loop.mufu * turns
        return count, mufu

    def bytes_per_logit(self, logits: float, *bases: str) -> float:
        """What accesses to memory of some kinds move."""
        # beside loops it is a few numbers of a row, and of one thread, unless there are vectors
        least = _VECTOR if self.loops else 0
        straight = {k: n for k, n in self.work.items() if getattr(k, "width", 0) >= least}
        count = _moved(straight, bases) / logits
        return count + sum(_moved(one.work, bases) * one.turns_per_logit for one in self.loops)

    def rare_per_logit(self, logits: float) -> float:
        """Rare instructions, were each of them done whenever it is passed by."""
        inside = sum(loop.rare * loop.turns_per_logit for loop in self.loops)
        return self.rare / logits + inside


def _moved(work: Mapping[object, int], bases: tuple[str, ...]) -> int:
    return sum(
        key.width * n for key, n in work.items() if isinstance(key, Traffic) and key.base in bases
    )


@dataclass
class _Path:
    """What is done on a way."""

    instructions: int = 0
    mufu: int = 0
    work: collections.Counter[object] = field(default_factory=collections.Counter)

    def add(self, other: _Path) -> None:
        self.instructions += other.instructions
        self.mufu += other.mufu
        self.work += other.work


def _of_block(block: Block) -> _Path:
    path = _Path()
    for one in block.code:
        if one.base == "NOP":
            continue
        path.instructions += 1
        path.mufu += one.base == "MUFU"
        path.work[one.base] += 1
        if one.base in (*_LOADS, *_STORES, "LDGSTS", "STS") and one.guard != "@!PT":
            path.work[Traffic(one.base, one.width)] += 1
    return path


class _Level:
    """The blocks of a loop, or of a kernel, with the loops inside taken for one node each."""

    def __init__(
        self, blocks: list[Block], body: set[int], head: int | None, inner: dict[int, set[int]]
    ) -> None:
        self.head, self.inner = head, inner
        self.of = {k: k for k in body}
        for top, members in inner.items():
            for k in members:
                self.of[k] = top
        self.follows: dict[int, list[int]] = {}
        for k in sorted(body):
            for to in blocks[k].next:
                node, next_ = self.of[k], self.of.get(to)
                if next_ is None or next_ == node or to == head:
                    continue
                if next_ not in self.follows.setdefault(node, []):
                    self.follows[node].append(next_)
        self.order = reverse_postorder(self.of[0] if head is None else head, self.follows)
        self.rare = {
            (self.of[k], self.of[to]) for k in body for to in blocks[k].rare if to in self.of
        }
        self.paths = {
            node: _Path() if node in inner else _of_block(blocks[node]) for node in self.order
        }
        self.latches = {
            self.of[k] for k in body if head in blocks[k].next and self.of[k] in self.paths
        }

    def without(self, rare: set[tuple[int, int]]) -> dict[int, list[int]]:
        """Its ways but the rare ones."""
        return {
            node: [to for to in self.follows.get(node, ()) if (node, to) not in rare]
            for node in self.order
        }


class _Behind:
    """What follows the nodes of a level, from its ends on: where their ways meet again."""

    def __init__(self, level: _Level) -> None:
        self.level = level
        self.follows = {node: list(level.follows.get(node, ())) for node in level.order}
        self.rank = {node: -k for k, node in enumerate(level.order)} | {_END: -len(level.order)}
        self.join: dict[int, int] = {_END: _END}  # the immediate post-dominator

    def settle(self, node: int) -> None:
        """Of a node whose followers are settled."""
        ways = [to for to in self.follows[node] if to in self.join]
        if node in self.level.latches or not ways:
            ways.append(_END)
        found = ways[0]
        for way in ways[1:]:
            found = self._meet(found, way)
        self.join[node] = found

    def _meet(self, a: int, b: int) -> int:
        while a != b:
            if self.rank[a] > self.rank[b]:
                a = self.join[a]
            else:
                b = self.join[b]
        return a

    def region(self, way: int, end: int) -> set[int]:
        """The nodes from `way` on before `end`."""
        seen: set[int] = set()
        stack = [way]
        while stack:
            node = stack.pop()
            if node != end and node not in seen:
                seen.add(node)
                stack += self.follows[node]
        return seen


def _rare_ways(
    level: _Level, inside: dict[int, _Path], in_loop: bool, logits: float, element: int
) -> set[tuple[int, int]]:
    """The edges of a level that are not expected to be taken; the innermost branches first."""
    rare = set(level.rare)
    total = sum(path.mufu for path in level.paths.values())
    sides: list[tuple[tuple[int, int], _Path]] = []
    optional: set[int] = set()  # the nodes of all sides
    behind = _Behind(level)
    for node in reversed(level.order):
        behind.follows[node] = [to for to in behind.follows[node] if (node, to) not in rare]
        behind.settle(node)
        ways = list(behind.follows[node])
        if len(ways) != 2 or node in level.inner:
            continue
        parts = []
        for way in ways:
            whole = _Path()
            for k in behind.region(way, behind.join[node]):
                whole.add(inside.get(k, level.paths[k]))
            parts.append(whole)
        for k in (0, 1):
            edge, mine, other = (node, ways[k]), parts[k], parts[1 - k]
            if _special(mine) and not _special(other):
                rare.add(edge)
            elif _width(other) > _width(mine) > 0 or (
                0 < _width(mine) <= element and other.mufu >= mine.mufu > 0
            ):
                rare.add(edge)  # element by element beside the vector
            elif in_loop and not other.instructions and mine.instructions:
                sides.append((edge, mine))
                optional |= behind.region(ways[k], behind.join[node])
                continue
            else:
                continue
            behind.follows[node].remove(ways[k])
            behind.settle(node)
            break
    sure = sum(level.paths[node].mufu for node in level.order if node not in optional)
    for edge, path in sides:
        alike = sum(
            path.mufu == other.mufu
            and path.instructions <= 1.25 * other.instructions + 1
            and other.instructions <= 1.25 * path.instructions + 1
            for _, other in sides
        )
        of_each = alike >= max(2, logits)
        # where every logit has had one anyway, they are done again
        special_functions = sure < logits and path.mufu and 2 * path.mufu >= min(logits, total)
        moved = sum(key.width * n for key, n in path.work.items() if isinstance(key, Traffic))
        vectors = _width(path) >= 2 * _VECTOR
        if not (of_each or special_functions or vectors or 2 * moved >= logits * element):
            rare.add(edge)
    return rare


def _special(path: _Path) -> bool:
    return any(path.work[name] for name in (*_ATOMIC, *_SLOW))


def _width(path: _Path) -> int:
    return max(
        (key.width for key in path.work if isinstance(key, Traffic) and key.base != "STS"),
        default=0,
    )


def _longest(level: _Level, rare: set[tuple[int, int]], weight: dict[int, int]) -> list[int]:
    """The dearest way through a level without rare edges: its nodes."""
    best: dict[int, tuple[int, int | None]] = {level.order[0]: (weight[level.order[0]], None)}
    for node in level.order:
        if node not in best:
            continue
        for to in level.follows.get(node, ()):
            if (node, to) in rare:
                continue
            new = best[node][0] + weight[to]
            if to not in best or new > best[to][0]:
                best[to] = new, node
    ends = [k for k in best if k in level.latches]
    if not ends:
        ends = [k for k in best if not any(to in best for to in level.follows.get(k, ()))]
    end: int | None = max(ends or best, key=lambda k: best[k][0])
    way = []
    while end is not None:
        way.append(end)
        end = best[end][1]
    return way[::-1]


def _logits(path: _Path, element: int, singly: int | None = None) -> float | None:
    """Those of a turn: by the bytes of its widest loads or of all stores, whichever are fewer; no
    more than it takes exponentials, where it takes several.

    Beside global memory, narrow loads on chip, and those of a turn with a barrier, belong to sums
    over warps. Where logits come one by one there are `singly`, or one in what a loop of them
    leaves.
    """
    if singly:
        loads, stores = (
            sum(path.work[Traffic(base, element)] for base in bases)
            for bases in (("LDG", "LD"), _STORES)
        )
        each = min(loads, stores or loads)
        return (singly if each >= singly else 1) if each else None
    kinds = {k: n for k, n in path.work.items() if isinstance(k, Traffic) and k.base != "STS"}
    moved: dict[str, int] = {}
    for key, number in kinds.items():
        if key.base in _STORES:
            moved[key.base] = moved.get(key.base, 0) + key.width * number
        elif key.width == max(other.width for other in kinds if other.base == key.base):
            moved[key.base] = key.width * number
    vectors = {key.base for key in kinds if key.width >= _VECTOR}
    pairs = path.work[Traffic("LDS", 2 * element)]
    floats = max((key.width for key in kinds if key.base == "LDG"), default=0) == _VECTOR
    if element < 4 and pairs and floats and not path.work["BAR"]:
        return 2 * pairs  # on chip, beside those of tables, which are floats
    if vectors:  # beside which a number is one of the row
        for name in set(moved) - vectors - set(_STORES):
            del moved[name]
    if len(moved) > 1 and ("LDS" not in vectors or path.work["BAR"]):
        moved.pop("LDS", None)
    if not moved:
        return None
    logits = min(moved.values()) / element
    if _FEW < path.mufu < logits:  # tables are loaded beside the logits
        logits = 2.0 ** math.floor(math.log2(path.mufu))
    return logits


def _stride(code: list[Instruction]) -> float:
    """Bytes by which a turn's accesses move on: where constants say so, else infinitely many."""
    written: dict[str, list[Instruction]] = collections.defaultdict(list)
    for one in code:
        written[one.operands.split(",")[0].strip()].append(one)

    def step(register: str, far: int = 0) -> float:
        """Bytes that a register moves on in a turn; 0 for what does not change."""
        found = 0.0
        for one in written[register]:
            if one.base[0] in "FH" or one.base == "MUFU":
                continue  # which uses the register for something else
            sources = [part.strip().removesuffix(".reuse") for part in one.operands.split(",")[1:]]
            constants = [int(part, 16) for part in sources if part.startswith("0x")]
            if register in sources and one.base in ("VIADD", "IADD3", "UIADD3", "IMAD"):
                product = one.base == "IMAD" and sources[0] not in ("RZ", register)
                if product or not constants:
                    return math.inf
                moved = constants[-1]
                found = max(found, min(moved, 2**32 - moved))
            elif one.base in ("IMAD", "LEA", "UIMAD", "ULEA") and far < 2 and sources[0] != "RZ":
                # a factor in a register is the size of what is summed
                times = constants[0] if constants else _SIZE
                times = 1 << min(times, 32) if "LEA" in one.base and constants else times
                found = max(
                    found,
                    times * step(sources[0], far + 1),
                    *(step(part, far + 1) for part in sources[2:] if re.fullmatch(r"U?R\d+", part)),
                )
            elif far < 2 and one.base in ("VIADD", "IADD3", "MOV", "LEA", "IMAD"):
                inner = [step(part, far + 1) for part in sources if re.fullmatch(r"U?R\d+", part)]
                found = max(found, *inner, 0)
            else:
                return math.inf
        return found

    most = 0.0
    for one in code:
        if one.base in (*_LOADS, *_STORES, "LDGSTS", "STS") and one.guard != "@!PT":
            address = re.sub(r"desc\[.*?\]", "", one.operands)
            for register in re.findall(r"\bU?R\d+", "".join(re.findall(r"\[(.*?)\]", address))):
                most = max(most, step(register))
    return most


def _walks_alone(code: list[Instruction]) -> bool:
    """Whether a loop's accesses move on by less than a warp reads: it walks over what every thread
    reads, as the sums of warps, not over a row."""
    sizes = [one.width for one in code if one.base in (*_LOADS, *_STORES) and one.guard != "@!PT"]
    return bool(sizes) and _stride(code) < _WARP * sum(sizes)


def cost(
    code: list[Instruction], element: int, *, columns: bool = False, singly: int | None = None
) -> Cost:
    """Of a kernel whose logits have `element` bytes.

    Args:
        columns: the kernel walks down columns, logit by logit; its loops without special functions,
            or with numbers from on chip, are the block's, not of logits.
        singly: logits come one by one, beside numbers of any size, and a turn has so many, or one.
    """
    return _Counting(graph(code), element, columns, singly).cost(
        any(one.base.startswith("UBLKCP") for one in code),
    )


class _Counting:
    """The loops of a kernel, counted from the inside out."""

    def __init__(
        self, blocks: list[Block], element: int, columns: bool, singly: int | None
    ) -> None:
        self.blocks, self.element, self.columns, self.singly = blocks, element, columns, singly
        self.reached = set(reverse_postorder(0, {k: block.next for k, block in enumerate(blocks)}))
        self.bodies = {
            head: body for head, body in natural_loops(blocks).items() if head in self.reached
        }
        self.parent: dict[int, int | None] = {}
        for head, body in self.bodies.items():
            around = [h for h, b in self.bodies.items() if h != head and head in b and body <= b]
            self.parent[head] = min(around, key=lambda h: len(self.bodies[h]), default=None)
        self.loops: dict[int, Loop] = {}
        self.weights: dict[int, float] = {}  # of loops with those inside
        self.inside: dict[int, _Path] = {}  # a turn of a loop with one of each loop inside
        self.ways: dict[int | None, list[int]] = {}

    def cost(self, bulk: bool) -> Cost:
        for head in sorted(self.bodies, key=self._depth, reverse=True):
            self._count_loop(head)
        straight, rare = self._count(None)
        counted = sorted(self._on_way(None))
        _share([self.loops[head] for head in counted], self.element, bulk)
        return Cost(
            straight.instructions,
            straight.mufu,
            rare,
            sum(len(block.code) for block in self.blocks),
            tuple(self.loops[head] for head in counted),
            straight.work,
            bulk,
            self._lost(),
        )

    def _lost(self) -> int:
        """Instructions that neither a way nor a call leads to."""
        at = {block.code[0].address: k for k, block in enumerate(self.blocks)}
        calls = [one.target for block in self.blocks for one in block.code if one.base == "CALL"]
        follows = {k: block.next for k, block in enumerate(self.blocks)}
        found = set(self.reached)
        for entry in calls:
            if entry is not None and entry in at:
                found.update(reverse_postorder(at[entry], follows))
        return sum(len(block.code) for k, block in enumerate(self.blocks) if k not in found)

    def _depth(self, head: int) -> int:
        up = self.parent[head]
        return 0 if up is None else 1 + self._depth(up)

    def _count_loop(self, head: int) -> None:
        path, rare = self._count(head)
        way = self.ways[head]
        code = [one for node in way if node not in self.bodies for one in self.blocks[node].code]
        code += self.blocks[head].code
        waits = any(path.work[name] for name in _WAITS) and not path.mufu
        # a loop around sweeps of the row is over rows, or over looks at one
        rows = any(
            node in self.loops and self.loops[node].logits and _widest(self.loops[node]) > _VECTOR
            for node in way
        ) and not any(
            isinstance(key, Traffic) and key.width > _VECTOR and key.base in ("LDG", *_STORES)
            for key in path.work
        )
        walks = waits or rows or _walks_alone(code)
        walks = walks or (self.columns and (not path.mufu or path.work["LDS"] > 0))
        self.loops[head] = Loop(
            self.blocks[head].code[0].address,
            self._depth(head),
            path.instructions,
            path.mufu,
            rare,
            None if walks else _logits(path, self.element, self.singly),
            path.work,
        )
        logits = self.loops[head].logits
        self.weights[head] = path.instructions * (_MANY / logits if logits else 1)
        self.weights[head] += sum(
            self.weights[node] for node in way if node in self.loops and node != head
        )
        turn = _Path()
        for node in way:
            turn.add(self.inside.get(node, _of_block(self.blocks[node])))
        self.inside[head] = turn

    def _count(self, head: int | None) -> tuple[_Path, int]:
        """What is done in a loop, or in the kernel, on the dearest way and outside of the loops
        inside; and how many instructions are left out as rare."""
        body = self.reached if head is None else self.bodies[head]
        inner = {h: b for h, b in self.bodies.items() if self.parent[h] == head}
        level = _Level(self.blocks, body, head, inner)
        everything = _Path()
        for node in level.order:
            everything.add(level.paths[node])
        logits = _logits(everything, self.element, self.singly) or 1
        rare = _rare_ways(level, self.inside, head is not None, logits, self.element)
        way = _longest(level, rare, {node: self._weight(level, node) for node in level.order})
        self.ways[head] = way
        path = _Path()
        for node in way:
            path.add(level.paths[node])
        lawful = set(reverse_postorder(level.order[0], level.without(rare)))
        left = [node for node in level.order if node not in lawful]
        return path, sum(self.inside.get(node, level.paths[node]).instructions for node in left)

    def _weight(self, level: _Level, node: int) -> int:
        """By which ways are compared: instructions of a thread that has many logits, of the
        kernel's own those of its loops; among equals the shortest way is what must be done."""
        if node not in level.inner:
            count = level.paths[node].instructions
            return -count if level.head is None and level.inner else count
        return round(self.weights[node]) * (1 if level.head is not None else _MANY)

    def _on_way(self, head: int | None) -> Iterator[int]:
        for node in self.ways[head]:
            if node in self.bodies and node != head:
                yield node
                yield from self._on_way(node)


def _share(loops: Iterable[Loop], element: int, bulk: bool) -> None:
    """Finds loops that do the same work. The cheapest for a logit of those with the
    longest turns is what there is to be done; others as long and as cheap share it, the rest does
    what it leaves: a turn's remainder, a row's ends.
    """
    loops = list(loops)
    sweeps = [loop for loop in loops if loop.logits and _sweeps(loop)]
    groups: list[list[Loop]] = []
    for loop in (one for one in loops if one.logits):
        copies = bulk and loop.work["LDGSTS"] and not loop.mufu  # where there are no bulk copies
        if copies or (
            sweeps
            and (
                _small(loop)
                or _single(loop, element)
                or _guarded(loop, sweeps)
                or _fills(loop, sweeps)
            )
        ):
            loop.remainder = True
            continue
        for group in groups:
            if _alike(group[0], loop):
                group.append(loop)
                break
        else:
            groups.append([loop])
    for group in groups:
        main = min(group, key=lambda loop: (-(loop.logits or 0), loop.instructions))
        whole = [
            loop
            for loop in group
            if loop.logits == main.logits and loop.instructions <= _AS_CHEAP * main.instructions
        ]
        for loop in group:
            loop.remainder = loop not in whole
            loop.shared_by = len(whole)


def _alike(a: Loop, b: Loop) -> bool:
    """Whether they do the same for a logit: both write or neither does, with as many special
    functions and as much of each arithmetic; what guards it may differ. Of those that write after
    special functions the products say it: nothing is written twice, and sums beside them patch a
    label's. Where there is none of that, the same kinds of access and as many comparisons."""
    kinds: list[_Names] = [_STORES]
    if not (a.mufu or b.mufu):
        kinds += [(name,) for name in (*_LOADS, "STS", "LDGSTS")]
    if any(bool(_each(a, names)) != bool(_each(b, names)) for names in kinds):
        return False
    work = _ARITHMETIC if a.mufu or b.mufu else (*_ARITHMETIC, *_COMPARISONS)
    if a.mufu and b.mufu and _each(a, _STORES):
        work = _PRODUCTS
    return all(
        math.isclose(_each(a, names), _each(b, names), rel_tol=_ALIKE, abs_tol=_NEAR)
        for names in work
    )


def _widest(loop: Loop) -> int:
    kinds = (key for key in loop.work if isinstance(key, Traffic) and key.base != "STS")
    return max((key.width for key in kinds), default=0)


def _sweeps(loop: Loop) -> bool:
    """Whether a loop takes a row by vectors."""
    kinds = [key for key in loop.work if isinstance(key, Traffic) and key.width > _VECTOR]
    of_memory = any(key.base in ("LDG", "LDGSTS", *_STORES) for key in kinds)
    return of_memory or (bool(kinds) and 2 * loop.mufu >= (loop.logits or 0))


def _small(loop: Loop) -> bool:
    """Whether a loop, beside others that take vectors, has single numbers: it is of a row's ends,
    of its heads, or of what warps have summed."""
    return _widest(loop) <= _VECTOR


def _single(loop: Loop, element: int) -> bool:
    """Whether a loop takes its logits of 16 bits from memory one by one, as at a row's ends."""
    kinds = {key: n for key, n in loop.work.items() if isinstance(key, Traffic)}
    found = max(
        (n for key, n in kinds.items() if key.base == "LDG" and key.width <= element), default=0
    )
    return element < 4 and 2 * found >= (loop.logits or 0)


def _guarded(loop: Loop, sweeps: list[Loop]) -> bool:
    """Whether a loop asks of every logit whether it is there, where another, that takes more of
    them in a turn and does the same with them, costs half as much: it is of a row's ends, as is
    one that only copies them."""
    assert loop.logits
    if sum(loop.work[name] for name in _QUESTIONS) < _ASKED * loop.logits:
        return False
    copies = not _computes(loop)
    return any(
        other is not loop
        and other.logits is not None
        and other.logits > loop.logits
        and bool(_each(other, _STORES)) == bool(_each(loop, _STORES))
        and (copies or bool(other.mufu) == bool(loop.mufu))
        and 2 * other.instructions / other.logits <= loop.instructions / loop.logits
        for other in sweeps
    )


def _fills(loop: Loop, sweeps: list[Loop]) -> bool:
    """Whether a loop writes what it neither reads nor computes, where another computes what it
    writes: zeros of rows that count nothing, for which the other has nothing to write."""
    reads = any(loop.work[name] for name in (*_LOADS, "LDGSTS"))
    writes = any(loop.work[name] for name in _STORES)
    return (
        writes
        and not reads
        and not _computes(loop)
        and any(
            other is not loop and _computes(other) and any(other.work[name] for name in _STORES)
            for other in sweeps
        )
    )


def _computes(loop: Loop) -> bool:
    return any(loop.work[name] for names in _ARITHMETIC for name in names)


def _each(loop: Loop, names: tuple[str, ...]) -> float:
    assert loop.logits
    return sum(loop.work[name] for name in names) / loop.logits
