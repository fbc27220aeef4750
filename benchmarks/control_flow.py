"""Where the instructions of a kernel lead: blocks, what follows them, and the loops they make."""

from __future__ import annotations

import collections
import re
from dataclasses import dataclass, field

from .sass import Instruction

_STORES = ("STG", "ST")
_TABLES = ("BRX", "JMX", "BRXU", "JMXU")  # jumps to where a table says


@dataclass
class Block:
    """Instructions that are done one after the other; next: those that may follow."""

    code: list[Instruction]
    next: list[int] = field(default_factory=list)
    rare: set[int] = field(default_factory=set)  # of next, those that are never expected


def graph(code: list[Instruction]) -> list[Block]:
    """Blocks in the order of addresses, the first of which is where a kernel begins; behind them
    what is done on the way of a branch alone."""
    code = _trimmed(code)
    blocks = _blocks(_jumps_for_calls(code, _blocks(code)))
    _part_ways(blocks)
    return blocks


def _part_ways(blocks: list[Block]) -> None:
    """What a block stores under the predicate of the branch that ends it, it stores where that is
    taken: a block of its own on the way there, with all that is under the predicate."""
    for block in list(blocks):
        branch, taken = block.code[-1], block.next[0] if block.next else 0
        if branch.base != "BRA" or not branch.guard or len(block.next) != 2 or taken in block.rare:
            continue
        predicate = branch.guard.lstrip("@!")
        first = len(block.code) - 1
        while first and not re.search(rf"\b{predicate}\b", block.code[first - 1].operands):
            first -= 1
        behind = block.code[first:-1]
        mine = [one for one in behind if one.guard == branch.guard]
        if any(one.base in _STORES for one in mine):
            others = [one for one in behind if one.guard != branch.guard]
            block.code[first:] = [*others, branch]
            block.next[0] = len(blocks)
            blocks.append(Block(mine, [taken]))


def _jumps_for_calls(code: list[Instruction], blocks: list[Block]) -> list[Instruction]:
    """The same with calls that nothing returns from as the jumps that they are: compilers for 8.0
    leave loops by them."""
    before: dict[int, list[int]] = collections.defaultdict(list)
    for k, block in enumerate(blocks):
        for to in block.next:
            before[to].append(k)
    returns = {k for k, block in enumerate(blocks) if block.code[-1].base == "RET"}
    returning = {k for end in returns for k in reverse_postorder(end, before)}
    entries = {block.code[0].address for k, block in enumerate(blocks) if k not in returning}
    return [
        one._replace(name="BRA") if one.base == "CALL" and one.target in entries else one
        for one in code
    ]


def _blocks(code: list[Instruction]) -> list[Block]:
    at = {one.address: k for k, one in enumerate(code)}
    leaders = {0}
    for k, one in enumerate(code):
        if one.base in ("BRA", "JMP", "BSSY", "CALL") and one.target in at:
            leaders.add(at[one.target])
        if one.base in ("BRA", "JMP", "EXIT", "RET", "BSYNC", *_TABLES):
            leaders.add(k + 1)
    starts = sorted(k for k in leaders if k < len(code))
    number = {start: index for index, start in enumerate(starts)}
    blocks = [Block(code[a:b]) for a, b in zip(starts, [*starts[1:], len(code)], strict=True)]
    syncs: dict[str, list[int]] = collections.defaultdict(list)
    for one in code:
        if one.base == "BSSY" and one.target in at:
            syncs[one.operands.split(",")[0].strip()].append(number[at[one.target]])
    for index, block in enumerate(blocks):
        last, after = block.code[-1], index + 1
        follows = [after] if after < len(blocks) else []
        conditional = bool(last.guard) or last.operands.startswith(("P", "!P", "UP", "!UP"))
        if last.base in ("BRA", "JMP"):
            to = number.get(at.get(-1 if last.target is None else last.target, -1))
            block.next = [] if to is None else [to]
            if conditional or ".DIV" in last.name or ".CONV" in last.name:
                block.next += [k for k in follows if k not in block.next]
            if (".DIV" in last.name or ".CONV" in last.name) and to is not None:
                block.rare.add(to)
        elif last.base in ("EXIT", "RET", *_TABLES):
            block.next = follows if conditional else []
        elif last.base == "BSYNC":
            # to where its BSSY says, which stands before it
            name = last.operands.split(",")[0].strip()
            to_ = [k for k in syncs[name] if k > index]
            block.next = [min(to_)] if to_ else follows
        else:
            block.next = follows
    _find_cases(blocks)
    return blocks


def _find_cases(blocks: list[Block]) -> None:
    """A jump by a table, which is not among the instructions, leads to what lies behind it and has
    no other way: to the cases of a switch."""
    known = {to for block in blocks for to in block.next}
    called = {one.target for block in blocks for one in block.code if one.base == "CALL"}
    switch = None
    for k, block in enumerate(blocks):
        if switch and k not in known and block.code[0].address not in called:
            switch.next.append(k)
        if block.code[-1].base in _TABLES:
            switch = block


def _trimmed(code: list[Instruction]) -> list[Instruction]:
    """Without the branch to itself and the nothing that fill a function's end."""
    end = len(code)
    while end and (code[end - 1].base == "NOP" or code[end - 1].target == code[end - 1].address):
        end -= 1
    return code[:end]


def reverse_postorder(start: int, follows: dict[int, list[int]]) -> list[int]:
    """Reverse postorder."""
    seen, order, stack = {start}, [], [(start, iter(follows.get(start, ())))]
    while stack:
        node, rest = stack[-1]
        for to in rest:
            if to not in seen:
                seen.add(to)
                stack.append((to, iter(follows.get(to, ()))))
                break
        else:
            order.append(node)
            stack.pop()
    return order[::-1]


def _dominators(start: int, follows: dict[int, list[int]]) -> dict[int, int]:
    """The immediate dominator of every node that is reached (Cooper, Harvey, Kennedy)."""
    order = reverse_postorder(start, follows)
    rank = {node: k for k, node in enumerate(order)}
    before: dict[int, list[int]] = collections.defaultdict(list)
    for node in order:
        for to in follows.get(node, ()):
            before[to].append(node)
    found = {start: start}
    changed = True
    while changed:
        changed = False
        for node in order[1:]:
            new = -1
            for other in before[node]:
                if other in found:
                    new = other if new < 0 else _meet(new, other, found, rank)
            if found.get(node) != new:
                found[node], changed = new, True
    return found


def _meet(a: int, b: int, found: dict[int, int], rank: dict[int, int]) -> int:
    while a != b:
        while rank[a] > rank[b]:
            a = found[a]
        while rank[b] > rank[a]:
            b = found[b]
    return a


def _dominates(a: int, b: int, immediate: dict[int, int]) -> bool:
    while b != a:
        if immediate[b] == b:
            return False
        b = immediate[b]
    return True


def natural_loops(blocks: list[Block]) -> dict[int, set[int]]:
    """The blocks of every loop, by its header; loops with one header are one loop."""
    follows = {k: block.next for k, block in enumerate(blocks)}
    immediate = _dominators(0, follows)
    before: dict[int, list[int]] = collections.defaultdict(list)
    for node, to_all in follows.items():
        for to in to_all:
            before[to].append(node)
    found: dict[int, set[int]] = {}
    for node, to_all in follows.items():
        for head in to_all:
            if node in immediate and _dominates(head, node, immediate):
                body = found.setdefault(head, {head})
                stack = [node]
                while stack:
                    one = stack.pop()
                    if one not in body and one in immediate:
                        body.add(one)
                        stack += before[one]
    return found
