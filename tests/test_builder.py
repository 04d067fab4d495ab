import random
import struct

import numpy as np
import pytest

from vyre.engines import reference
from vyre.errors import VerifyError
from vyre.program import text
from vyre.program.builder import Builder, const_bits, fit_registers
from vyre.program.ir import Instr, Line, Program
from vyre.program.opcodes import BY_NAME, OPCODES, Access, AccKind, MemType, Type
from vyre.program.verifier import verify


def run(program, *inputs, first=0):
    count = len(inputs[0])
    return reference.execute(verify(program), list(inputs), [], [], first, count)


def test_builder_says_what_the_same_listing_says():
    b = Builder("mixed", fuel=9)
    x = b.input("x", MemType.f32)
    y = b.output("y", MemType.f64)
    k = b.param("k", MemType.f64, default=0x4004000000000000)
    t = b.table("t", MemType.i32)
    u = b.table("u", MemType.i32, Access.atomic)
    total = b.accumulator("total", AccKind.sum, MemType.f64)
    row = b.emit_stream("row", MemType.i64)
    v = b.op("f64.promote_f32", b.op("f32.load", imm=x))
    v2 = b.op("f64.mul", v, b.op("f64.param", imm=k))
    b.op("f64.store", v2, imm=y)
    cond = b.op("f64.gt", v, v2)
    b.if_(cond)
    b.op("f64.acc_sum", v, imm=total)
    b.else_()
    b.op("i64.emit", b.op("index"), imm=row)
    b.end()
    i = b.const(Type.i64, 0)
    n = b.op("i32.table_get", i, imm=t)
    b.loop()
    b.op("i32.sub", n, b.const(Type.i32, 1), dst=n)
    b.op("i32.table_add", i, n, imm=u)
    b.br_if(n)
    b.end()
    listing = """
        program mixed
        fuel 9
        input x f32
        output y f64
        param k f64 = 2.5
        table t i32 read
        table u i32 atomic
        accumulator total sum f64
        emit row i64
        f32.load r0, x
        f64.promote_f32 r1, r0
        f64.param r2, k
        f64.mul r3, r1, r2
        f64.store y, r3
        f64.gt r4, r1, r3
        if r4
        f64.acc_sum total, r1
        else
        index r5
        i64.emit row, r5
        end
        i64.const r6, 0
        i32.table_get r7, t, r6
        loop
        i32.const r8, 1
        i32.sub r7, r7, r8
        i32.table_add u, r6, r7
        br_if r7
        end
        return
    """
    program = b.build()
    assert program == text.parse(listing)
    verify(program)


def test_constants_are_pooled_by_bits():
    b = Builder()
    b.const(Type.i32, -1)
    b.const(Type.i64, 0xFFFF_FFFF)
    b.const(Type.f32, 0.0)
    b.bits(Type.f64, 0)
    b.const(Type.f64, -0.0)
    assert b.build().constants == (0xFFFF_FFFF, 0, 1 << 63)


@pytest.mark.parametrize(
    ("type_", "value", "bits"),
    [
        (Type.i32, -1, 0xFFFF_FFFF),
        (Type.i32, 0xFFFF_FFFF, 0xFFFF_FFFF),
        (Type.i64, -(1 << 63), 1 << 63),
        (Type.f32, 0.1, 0x3DCC_CCCD),
        (Type.f32, float("nan"), 0x7FC0_0000),
        (Type.f32, float("-inf"), 0xFF80_0000),
        (Type.f64, 0.1, 0x3FB9_9999_9999_999A),
    ],
)
def test_a_constant_has_the_bits_of_its_value(type_, value, bits):
    assert const_bits(type_, value) == bits


@pytest.mark.parametrize(
    ("type_", "value"),
    [(Type.i32, 1 << 32), (Type.i32, -(1 << 31) - 1), (Type.i64, 1 << 64), (Type.f32, 1e39), (Type.i32, 1.5)],
)
def test_a_constant_that_does_not_fit_is_refused(type_, value):
    with pytest.raises(VerifyError, match="constant"):
        const_bits(type_, value)


def test_an_int_for_a_float_constant_is_refused_because_it_could_be_a_value_or_a_pattern():
    with pytest.raises(VerifyError, match=r"constant 2 for f32 is an int(.|\n)*b\.bits"):
        Builder().const(Type.f32, 2)


def test_lines_are_recorded_where_they_change():
    b = Builder(source="q.py")
    b.at(3)
    b.at(4)
    r = b.const(Type.i32, 1)
    b.op("i32.add", r, r)
    b.at(4)
    b.op("i32.add", r, r)
    b.at(9)
    program = b.build()
    assert program.lines == (Line(0, 4), Line(3, 9))
    assert [program.line_of(pc) for pc in range(4)] == [4, 4, 4, 9]
    verify(program)


@pytest.mark.parametrize(
    ("misuse", "message"),
    [
        (lambda b: b.op("f32.ad", 0, 0), "did you mean 'f32.add'"),
        (lambda b: b.op("f32.add", 0), "takes 2 registers, not 1"),
        (lambda b: b.op("if", 0), "use Builder.if_()"),
        (lambda b: b.op("return"), "use Builder.build()"),
        (lambda b: b.end(), "end at pc 0 without an open block"),
        (lambda b: b.else_(), "else at pc 0 without an open if"),
        (lambda b: (b.if_(b.const(Type.i32, 1)), b.build()), "if at pc 1 is not closed"),
    ],
)
def test_what_cannot_be_written_down_is_refused(misuse, message):
    with pytest.raises(VerifyError) as caught:
        misuse(Builder())
    assert message in str(caught.value)


def test_every_instruction_can_be_appended_or_has_a_method():
    for op in OPCODES:
        b = Builder()
        args = [b.reg(t) for t in op.args]
        if op.name in ("if", "else", "end", "loop", "br_if", "return"):
            continue
        got = b.op(op.name, *args)
        assert (got is None) == (op.result is None)
        if got is not None:
            assert b.type_of(got) is op.result


def test_two_hundred_short_lived_values_fit_64_registers():
    b = Builder()
    x, y = b.input("x", MemType.f32), b.output("y", MemType.f32)
    v = b.op("f32.load", imm=x)
    for _ in range(100):
        v = b.op("f32.add", v, b.const(Type.f32, 1.0))
    b.op("f32.store", v, imm=y)
    program = b.build()
    assert len(program.registers) == 2
    assert run(program, np.array([0.5], np.float32)).outputs[0].view(np.float32)[0] == 100.5


def test_65_values_live_at_once_are_refused_with_the_place():
    b = Builder()
    y = b.output("y", MemType.i32)
    values = [b.const(Type.i32, i) for i in range(65)]
    total = values[0]
    for v in values[1:]:
        total = b.op("i32.add", total, v)
    b.op("i32.store", total, imm=y)
    with pytest.raises(VerifyError) as caught:
        b.build()
    assert caught.value.rule == "limit"
    assert caught.value.pc == 64


def test_sharing_registers_does_not_hide_a_read_before_assignment():
    b = Builder()
    y = b.output("y", MemType.i32)
    never = b.reg(Type.i32)
    for i in range(70):
        last = b.const(Type.i32, i)
        b.op("i32.store", last, imm=y)
    b.op("i32.store", never, imm=y)
    with pytest.raises(VerifyError) as caught:
        b.build()
    assert caught.value.rule == "unassigned"


def structured(b, rng, x, depth, variables, budget):
    """Random statements over i32 variables that live before, in and after blocks."""
    for _ in range(rng.randrange(2, 6)):
        budget[0] -= 1
        if budget[0] < 0:
            return
        kind = rng.randrange(5 if depth < 3 else 3)
        if kind < 3:
            a, c = rng.choice(variables), rng.choice(variables)
            t = b.op(rng.choice(("i32.add", "i32.xor", "i32.mul", "i32.rotl")), a, c)
            t = b.op("i32.add", t, b.const(Type.i32, rng.randrange(100)))
            if rng.random() < 0.5:
                b.op("i32.mov", t, dst=rng.choice(variables))
            elif depth == 0:
                variables.append(t)
        elif kind == 3:
            b.if_(b.op("i32.and", rng.choice(variables), b.const(Type.i32, 1)))
            structured(b, rng, x, depth + 1, variables, budget)
            if rng.random() < 0.7:
                b.else_()
                structured(b, rng, x, depth + 1, variables, budget)
            b.end()
        else:
            n = b.reg(Type.i32)
            b.const(Type.i32, rng.randrange(1, 4), dst=n)
            b.loop()
            structured(b, rng, x, depth + 1, variables, budget)
            b.op("i32.sub", n, b.const(Type.i32, 1), dst=n)
            b.br_if(n)
            b.end()


@pytest.mark.parametrize("seed", range(40))
def test_sharing_registers_changes_no_result(seed):
    rng = random.Random(seed)
    b = Builder()
    x, y = b.input("x", MemType.i32), b.output("y", MemType.i32)
    variables = [b.op("i32.load", imm=x)]
    structured(b, rng, x, 0, variables, [60])
    total = variables[0]
    for v in variables[1:]:
        total = b.op("i32.add", b.op("i32.mul", total, b.const(Type.i32, 31)), v)
    b.op("i32.store", total, imm=y)
    for _ in range(70):
        b.op("i32.add", total, total)
    wide = wide_program(b)
    narrow = fit_registers(wide)
    verify(narrow)
    data = np.arange(-8, 8, dtype=np.int32)
    got = run(narrow, data).outputs[0]
    want = reference.execute(wide, [data], [], [], 0, len(data)).outputs[0]
    assert np.array_equal(got.view(np.int32), want.view(np.int32)), f"seed {seed}"


def wide_program(b):
    """What build() would give if VIR0 had any number of registers. Not verifiable, but executable."""
    built = b.build.__func__.__globals__
    limit, built["MAX_REGISTERS"] = built["MAX_REGISTERS"], 1 << 16
    try:
        return b.build()
    finally:
        built["MAX_REGISTERS"] = limit


def test_float_rounding_of_constants_is_that_of_struct():
    assert const_bits(Type.f32, 16777217.0) == int.from_bytes(struct.pack("<f", 16777216.0), "little")


def test_an_empty_builder_builds_the_empty_program():
    assert Builder("nothing").build() == Program(name="nothing", code=(Instr(BY_NAME["return"].code),))
