"""What a thread does for a logit: loops, their turns, what is rare."""

from __future__ import annotations

import pytest

from benchmarks import loop_cost, sass

EXP = "MUFU.EX2 R4, R4"
FMA = "FFMA R4, R4, 1.5, R5"


def code(text: str) -> list[sass.Instruction]:
    """Instructions 16 bytes apart from lines `label: instruction`; `@label` in operands becomes
    its address."""
    lines = [line.strip() for line in text.splitlines() if line.strip()]
    addresses = {}
    bare = []
    for line in lines:
        label, _, rest = line.rpartition(": ")
        if label:
            addresses[label] = len(bare) * 16
        bare.append(rest)
    listing = ["		Function : f"]
    for k, line in enumerate(bare):
        for label, address in addresses.items():
            line = line.replace(f"@{label}", f"{address:#x}")
        listing.append(f"        /*{k * 16:04x}*/  {line} ;   /* 0x00 */")
    usage = " Function f:\n  REG:32 STACK:0 SHARED:64 LOCAL:8 CONSTANT[0]:1 TEXTURE:0"
    (found,) = sass.parsed("\n".join([usage, *listing])).values()
    assert found[1] == sass.Resources(32, 64, 8)
    assert len(found[0]) == len(bare)
    return found[0]


def row_loop(name: str, unroll: int, body: str = "") -> str:
    """A loop over a row of bfloat16: 8 exponentials and 8 others for each 16 bytes."""
    loads = "\n".join(f"LDG.E.128 R8, desc[UR4][R2.64+{16 * k:#x}]" for k in range(unroll))
    work = "\n".join([FMA, EXP] * (8 * unroll))
    return f"""{name}: IADD3 R2, R2, R7, RZ
        {loads}
        {work}
        {body}
        ISETP.GE.AND P0, PT, R2, R6, PT
        @!P0 BRA @{name}"""


def test_a_loop_takes_as_many_turns_as_its_loads_ask_for() -> None:
    found = loop_cost.cost(code(f"MOV R1, R1\n{row_loop('L', 2)}\nEXIT"), 2)
    (loop,) = found.loops
    assert (loop.logits, loop.mufu, loop.depth) == (16, 16, 0)
    assert loop.instructions == 32 + 2 + 3
    assert found.straight == 2
    count, mufu = found.per_logit(100)
    assert count == pytest.approx(37 / 16 + 2 / 100)
    assert mufu == 1
    assert found.bytes_per_logit(100, "LDG") == 2


def test_a_remainder_does_what_the_loop_before_has_left() -> None:
    found = loop_cost.cost(code(f"{row_loop('A', 4)}\n{row_loop('B', 1)}\nEXIT"), 2)
    assert [(loop.logits, loop.remainder) for loop in found.loops] == [(32, False), (8, True)]
    assert found.per_logit(1e9)[1] == pytest.approx(1)


def test_loops_that_do_the_same_share_the_row() -> None:
    found = loop_cost.cost(code(f"{row_loop('A', 2)}\n{row_loop('B', 2)}\nEXIT"), 2)
    assert [loop.shared_by for loop in found.loops] == [2, 2]
    assert found.per_logit(1e9)[1] == pytest.approx(1)


def test_sweeps_that_differ_each_take_the_whole_row() -> None:
    writes = "STG.E.128 desc[UR4][R2.64], R8"
    found = loop_cost.cost(code(f"{row_loop('A', 1)}\n{row_loop('B', 1, writes)}\nEXIT"), 2)
    assert found.per_logit(1e9)[1] == pytest.approx(2)
    assert found.bytes_per_logit(1e9, "STG") == 2


def test_a_patch_of_a_few_logits_is_rare() -> None:
    patch = """BSSY B0, @over
        @P1 BRA @sync
        PRMT R8, R8, R9, R10
        PRMT R8, R8, R9, R10
        sync: BSYNC B0
        over: NOP"""
    (loop,) = loop_cost.cost(code(f"{row_loop('L', 1, patch)}\nEXIT"), 2).loops
    (plain,) = loop_cost.cost(code(f"{row_loop('L', 1)}\nEXIT"), 2).loops
    assert loop.rare == 2
    assert loop.instructions == plain.instructions + 3  # the branch and its barrier


def test_the_element_by_element_way_beside_the_vectors_is_rare() -> None:
    elements = "\n".join("LDG.E.U16 R8, desc[UR4][R2.64]" for _ in range(8))
    text = f"""L: IADD3 R2, R2, R7, RZ
        @P1 BRA @slow
        LDG.E.128 R8, desc[UR4][R2.64]
        BRA @work
        slow: MOV R3, R3
        {elements}
        work: {FMA}
        @!P0 BRA @L
        EXIT"""
    (loop,) = loop_cost.cost(code(text), 2).loops
    assert (loop.logits, loop.instructions, loop.rare) == (8, 6, 9)


def test_what_stands_under_a_branchs_predicate_is_on_its_way_alone() -> None:
    """A compiler stores the vector under the predicate by which it then jumps beyond the single
    elements: not both of them are of a turn, which has 4 logits and not 8."""
    body = """ISETP.NE.AND P1, PT, R7, R9, PT
        IMAD R20, R23, 0x4, R48
        @!P1 STG.E.128 desc[UR4][R20.64], R12
        {between}
        @!P1 BRA @J
        STG.E.64 desc[UR4][R20.64], R12
        STG.E.64 desc[UR4][R20.64+0x8], R14
        J: LDG.E.128 R16, desc[UR4][R44.64]"""
    found = {}
    for between in ("MOV R7, R7", "ISETP.NE.AND P1, PT, R8, R9, PT"):
        text = row_loop("L", 1, body.format(between=between)).replace(f"{FMA}\n{EXP}\n", "", 4)
        (loop,) = loop_cost.cost(code(f"{text}\nEXIT"), 4).loops
        found[between] = loop.logits
    assert found == {"MOV R7, R7": 4, "ISETP.NE.AND P1, PT, R8, R9, PT": 8}


def test_of_two_ways_the_dearer_is_counted() -> None:
    """Exclusive: never both of them."""
    long = "\n".join([FMA] * 20)
    text = f"MOV R1, R1\n@P0 BRA @other\n{long}\nEXIT\nother: {FMA}\nEXIT"
    assert loop_cost.cost(code(text), 4).straight == 23


def test_what_a_dead_row_is_filled_with_is_not_the_way() -> None:
    """Zeros are written in wide stores, the live row is swept element by element before a loop."""
    text = f"""LDG.E.U16 R2, desc[UR4][R2.64]
        @P0 BRA @live
        STG.E.128 desc[UR4][R2.64], RZ
        EXIT
        live: LDG.E.U16 R2, desc[UR4][R2.64]
        {row_loop("L", 1)}
        EXIT"""
    assert [loop.mufu for loop in loop_cost.cost(code(text), 2).loops] == [8]


def test_a_sum_over_warps_is_no_loop_over_the_row() -> None:
    text = f"""MOV R1, R1
        L: LDS.128 R8, [R2]
        VIADD R2, R2, 0x10
        {FMA}
        @!P0 BRA @L
        EXIT"""
    (loop,) = loop_cost.cost(code(text), 2).loops
    assert loop.logits is None
    assert loop.turns_per_logit == 0
    # where threads lie side by side, a turn moves on by what all of them read
    (loop,) = loop_cost.cost(code(text.replace("0x10", "0x1000")), 2).loops
    assert loop.logits == 8


def test_a_call_that_never_comes_back_is_a_jump() -> None:
    """As compilers for 8.0 leave loops; what is called and returns is neither lost nor on the way."""
    text = f"""MOV R1, R1
        {row_loop("A", 1)}
        @P1 CALL.REL.NOINC @slow
        @P2 CALL.REL.NOINC @more
        BRA @A
        more: BAR.SYNC.DEFER_BLOCKING 0x0
        {row_loop("B", 1, "STG.E.128 desc[UR4][R2.64], R8")}
        EXIT
        slow: MUFU.RCP R4, R4
        RET.REL.NODEC R20 0x0"""
    found = loop_cost.cost(code(text), 2)
    assert found.lost == 0
    assert found.per_logit(1e9)[1] == pytest.approx(2)
    assert found.bytes_per_logit(1e9, "STG") == 2


@pytest.mark.parametrize("jump", ["BRX R14 -0x10", "BRXU UR6 -0x10", "JMX R14 -0x10"])
def test_the_cases_of_a_switch_are_found(jump: str) -> None:
    """The table of a jump is not in the listing: its cases lie behind it, and nothing else leads
    there."""
    text = f"""MOV R1, R1
        L: IADD3 R2, R2, R7, RZ
        LDG.E.128 R8, desc[UR4][R2.64]
        {jump}
        {FMA}
        BRA @join
        {FMA}
        {FMA}
        BRA @join
        {FMA}
        join: {EXP}
        @!P0 BRA @L
        EXIT"""
    found = loop_cost.cost(code(text), 2)
    (loop,) = found.loops
    assert found.lost == 0
    assert (loop.instructions, loop.mufu) == (3 + 3 + 2, 1)  # the dearest of three


def test_code_that_nothing_leads_to_is_told() -> None:
    text = f"MOV R1, R1\nEXIT\n{FMA}\n{FMA}\nEXIT"
    assert loop_cost.cost(code(text), 2).lost == 3
    assert loop_cost.cost(code("MOV R1, R1\nEXIT"), 2).lost == 0


def test_a_sweep_with_many_questions_is_no_row_end_where_no_other_does_its_work() -> None:
    """A penalty is measured by such a sweep, beside which the sums cost half as much."""
    asks = "\n".join(["ISETP.GT.AND P1, PT, R4, R5, PT", "SEL R4, R4, R5, P1", FMA] * 16)
    measured = f"""M: LDG.E.128 R8, desc[UR4][R2.64]
        IADD3 R2, R2, R7, RZ
        {asks}
        {asks}
        @!P0 BRA @M"""
    alone = loop_cost.cost(code(f"{measured}\nEXIT"), 2)
    found = loop_cost.cost(code(f"{measured}\n{row_loop('L', 2)}\nEXIT"), 2)
    assert [loop.remainder for loop in found.loops] == [False, False]
    assert found.loops[0].instructions == alone.loops[0].instructions
    # one that has as much to do with each logit as the sums is of a row's ends
    ends = measured.replace("@!P0", "\n".join([EXP] * 8) + "\n@!P0")
    found = loop_cost.cost(code(f"{ends}\n{row_loop('L', 2)}\nEXIT"), 2)
    assert [loop.remainder for loop in found.loops] == [True, False]


@pytest.mark.parametrize(
    "moves", ["IMAD R2, R5, 0x8, R2", "IMAD.IADD R2, R5, 0x1, R2", "IADD3 R2, R2, R7, RZ"]
)
def test_a_turn_moves_on_by_registers_too(moves: str) -> None:
    text = f"""MOV R1, R1
        L: {moves}
        IMAD.WIDE R44, R2, 0x8, R36
        LDG.E.128 R8, desc[UR6][R44.64]
        DMUL R8, R34, R8
        STG.E.128 desc[UR6][R44.64], R8
        @!P0 BRA @L
        EXIT"""
    (loop,) = loop_cost.cost(code(text), 8).loops
    assert loop.logits == 2


def test_smaller_pieces_of_a_gradient_are_a_remainder_though_each_asks_for_its_label() -> None:
    writes = "STG.E.128 desc[UR4][R2.64], R8\n"
    large = row_loop("A", 2, writes * 2)
    patch = "\n".join(["FADD R4, R4, R5"] * 8)
    found = loop_cost.cost(code(f"{large}\n{row_loop('B', 1, writes + patch)}\nEXIT"), 2)
    assert [loop.remainder for loop in found.loops] == [False, True]
    # where products differ they do not do the same
    patch = "\n".join([FMA] * 8)
    found = loop_cost.cost(code(f"{large}\n{row_loop('B', 1, writes + patch)}\nEXIT"), 2)
    assert [loop.remainder for loop in found.loops] == [False, False]


def test_copies_of_single_elements_beside_vectors_are_of_the_ends() -> None:
    copies = """C: LDG.E.U16 R8, desc[UR4][R12.64]
        IADD3 R12, R12, R7, RZ
        STS.U16 [R9], R8
        @!P0 BRA @C"""
    found = loop_cost.cost(code(f"{copies}\n{row_loop('L', 1)}\nEXIT"), 2)
    assert [loop.remainder for loop in found.loops] == [True, False]
    (alone,) = loop_cost.cost(code(f"{copies}\nEXIT"), 2).loops
    assert not alone.remainder


def test_tables_beside_the_logits_are_no_logits() -> None:
    tables = "LDG.E.128 R12, desc[UR4][R12.64]\nLDG.E.128 R16, desc[UR4][R12.64+0x10]"
    (loop,) = loop_cost.cost(code(f"{row_loop('L', 1, tables)}\nEXIT"), 2).loops
    assert loop.logits == 8


def test_a_pair_on_chip_beside_tables_is_two_logits() -> None:
    """However many special functions there are, by which tables are told from logits else."""
    for special in range(4, 10):
        work = "\n".join([FMA, EXP] * special)
        text = f"""L: IADD3 R2, R2, 0x400, RZ
            LDS R8, [R2]
            LDG.E.64 R10, desc[UR4][R4.64]
            LDG.E.64 R12, desc[UR4][R6.64]
            {work}
            @!P0 BRA @L
            EXIT"""
        (loop,) = loop_cost.cost(code(text), 2).loops
        assert loop.logits == 2
        (loop,) = loop_cost.cost(code(text.replace("LDS R8", "LDS.64 R8")), 4).loops
        assert loop.logits == 2


def test_waiting_is_counted_once() -> None:
    text = """MOV R1, R1
        L: SYNCS.PHASECHK.TRANS64.TRYWAIT P0, [UR4], R2
        @!P0 BRA @L
        EXIT"""
    found = loop_cost.cost(code(text), 2)
    assert found.per_logit(10)[0] == pytest.approx(4 / 10)


def test_bulk_copies_are_seen() -> None:
    assert loop_cost.cost(code("UBLKCP.S.G [UR4], [UR6], UR8\nEXIT"), 2).bulk
    assert not loop_cost.cost(code("MOV R1, R1\nEXIT"), 2).bulk
