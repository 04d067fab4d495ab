"""Facts that engines rely on: liveness, NaN fix-ups, and what elements elsewhere still need."""

from __future__ import annotations

import timeit

from vyre.program.analysis import analyse
from vyre.program.builder import Builder
from vyre.program.ir import Program
from vyre.program.opcodes import BY_CODE, MAX_BLOCK_DEPTH, AccKind, MemType, Type
from vyre.program.random import random_program


def pcs(program: Program, name: str) -> list[int]:
    return [pc for pc, instr in enumerate(program.code) if BY_CODE[instr.op].name == name]


def test_only_the_result_that_is_stored_needs_a_canonical_nan() -> None:
    b = Builder()
    x = b.op("f32.load", imm=b.input("x", MemType.f32))
    y = b.op("f32.mul", b.op("f32.add", x, x), x)
    b.op("f32.store", y, imm=b.output("o", MemType.f32))
    program = b.build()
    facts = analyse(program)
    assert [pc for pc, needed in enumerate(facts.canonical) if needed] == pcs(program, "f32.mul")


def test_a_nan_is_followed_through_moves_selects_joins_and_loops() -> None:
    b = Builder()
    x = b.op("f64.load", imm=b.input("x", MemType.f64))
    n = b.op("i32.load", imm=b.input("n", MemType.i32))
    a = b.op("f64.add", x, x)
    chosen = b.op("f64.select", b.op("f64.neg", a), x, n)
    b.if_(n)
    b.op("f64.sub", x, x, dst=chosen)
    b.end()
    last = b.op("f64.mov", chosen)
    b.loop()
    b.op("f64.mov", chosen, dst=last)
    b.op("f64.div", chosen, x, dst=chosen)
    b.br_if(n)
    b.end()
    b.op("f64.store", last, imm=b.output("o", MemType.f64))
    program = b.build()
    facts = analyse(program)
    for name in ("f64.add", "f64.sub", "f64.div"):
        assert facts.canonical[pcs(program, name)[0]], name


def test_bits_are_not_seen_by_arithmetic_comparisons_narrow_stores_and_accumulators() -> None:
    b = Builder()
    x = b.op("f32.load", imm=b.input("x", MemType.f32))
    y = b.op("f32.add", x, x)
    b.op("i32.store", b.op("f32.lt", y, x), imm=b.output("less", MemType.i32))
    b.op("f32.store", y, imm=b.output("half", MemType.f16))
    b.op("f32.acc_min", y, imm=b.accumulator("low", AccKind.min, MemType.f32))
    assert not any(analyse(b.build()).canonical)


def test_bits_are_seen_by_reinterpretation_and_by_the_sign_of_copysign() -> None:
    for name in ("i32.reinterpret_f32", "f32.copysign"):
        b = Builder()
        x = b.op("f32.load", imm=b.input("x", MemType.f32))
        y = b.op("f32.add", x, x)
        if name == "f32.copysign":
            z = b.op("f32.sqrt", b.op(name, x, y))
            b.op("f32.store", z, imm=b.output("o", MemType.f16))
        else:
            b.op("i32.store", b.op(name, y), imm=b.output("o", MemType.i32))
        program = b.build()
        assert analyse(program).canonical[pcs(program, "f32.add")[0]], name


def test_a_write_in_a_branch_blends_only_where_the_other_elements_need_the_old_value() -> None:
    b = Builder()
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    kept, both = b.op("i32.clz", x), b.op("i32.ctz", x)
    b.if_(x)
    inner = b.op("i32.add", x, x)  # nobody else knows it
    b.op("i32.mul", inner, x, dst=kept)  # the others keep theirs
    b.op("i32.or", inner, x, dst=both)  # the others write theirs in the else branch
    b.else_()
    b.op("i32.xor", x, x, dst=both)  # the first branch's must survive
    b.end()
    b.op("i32.store", b.op("i32.and", kept, both), imm=b.output("o", MemType.i32))
    program = b.build()
    facts = analyse(program)
    blended = {BY_CODE[program.code[pc].op].name for pc, needed in enumerate(facts.blend) if needed}
    assert blended == {"i32.mul", "i32.xor"}


def test_what_lives_after_a_loop_blends_and_what_only_goes_around_does_not() -> None:
    b = Builder()
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    i, total = b.const(Type.i32, 0), b.const(Type.i32, 0)
    one = b.const(Type.i32, 1)
    b.loop()
    b.op("i32.add", i, one, dst=i)
    b.op("i32.xor", total, i, dst=total)
    b.br_if(b.op("i32.lt_u", i, x))
    b.end()
    b.op("i32.store", total, imm=b.output("o", MemType.i32))
    program = b.build()
    facts = analyse(program)
    assert facts.blend[pcs(program, "i32.xor")[0]]
    assert not facts.blend[pcs(program, "i32.add")[0]]


def test_facts_of_random_programs_are_a_fixed_point_of_their_own_definition() -> None:
    """live_out again, the slow way: by following every edge of the control flow until nothing changes."""
    for seed in range(150):
        program = random_program(seed)
        code = program.code
        after: list[list[int]] = []
        for pc, instr in enumerate(code):
            name = BY_CODE[instr.op].name
            if name == "return":
                after.append([])
            elif name == "else":
                after.append([instr.imm])
            elif name in ("if", "br_if"):
                after.append([pc + 1, instr.imm])
            else:
                after.append([pc + 1])
        live_in = [0] * len(code)
        changed = True
        live_out = [0] * len(code)
        while changed:
            changed = False
            for pc in range(len(code) - 1, -1, -1):
                out = 0
                for following in after[pc]:
                    out |= live_in[following]
                op, instr = BY_CODE[code[pc].op], code[pc]
                new = out & ~(1 << instr.dst) if op.result is not None else out
                for register in instr[2 : 2 + len(op.args)]:
                    new |= 1 << register
                if (new, out) != (live_in[pc], live_out[pc]):
                    live_in[pc], live_out[pc], changed = new, out, True
        assert analyse(program).live_out == live_out, f"seed {seed}"


def test_the_deepest_nest_of_loops_takes_no_exponential_time() -> None:
    b = Builder()
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    values = [b.const(Type.i32, k) for k in range(MAX_BLOCK_DEPTH)]
    for k in range(MAX_BLOCK_DEPTH):
        b.loop()
        b.op("i32.add", values[k], values[k - 1], dst=values[k])
    for _ in range(MAX_BLOCK_DEPTH):
        b.br_if(b.op("i32.lt_u", values[0], x))
        b.end()
    b.op("i32.store", values[3], imm=b.output("o", MemType.i32))
    program = b.build()
    assert min(timeit.repeat(lambda: analyse(program), number=1, repeat=3)) < 0.1
