"""Native lowering of programs without blocks: the same bytes as tileform gives, or no answer."""

from __future__ import annotations

import random
from collections.abc import Callable

import pytest

from vyre.engines.cpu import handlers, plan, straight_form, tileform
from vyre.engines.cpu.handlers import Handlers, shared
from vyre.engines.cpu.tileform import TileForm
from vyre.program.analysis import analyse
from vyre.program.builder import Builder
from vyre.program.expression import compile_expression
from vyre.program.ir import Program
from vyre.program.opcodes import OPCODES, AccKind, MemType, Type
from vyre.program.random import random_program
from vyre.program.verifier import verify

Lower = Callable[[Program], TileForm | None]


@pytest.fixture(scope="module")
def native() -> Lower:
    """Native lowering alone, over the process's handlers."""

    def run(program: Program) -> TileForm | None:
        found = shared().straight(program)
        return None if found is None else TileForm(*found)

    return run


def by_python(program: Program) -> TileForm:
    """Python's lowering alone; compiles what it needs."""
    return tileform._Lowering(program, analyse(program), shared(), early_stores_wait=True).run()


def test_random_programs_without_blocks_are_lowered_to_the_same_bytes(native: Lower) -> None:
    taken = 0
    for seed in range(600):
        program = random_program(seed, max_ops=seed % 60 + 3, functions=seed % 7 == 0)
        if analyse(program).has_blocks:
            assert native(program) is None, seed
            continue
        expected = by_python(program)
        got = native(program)
        if got is not None:
            assert got == expected, seed
            taken += 1
    assert taken > 150


@pytest.mark.parametrize("t", ["f32", "f64", "i32", "i64"])
def test_formulas_are_all_lowered_natively_and_to_the_same_bytes(native: Lower, t: str) -> None:
    rng = random.Random(t)
    leaves = ["a", "b", "3", "7"] if t[0] == "i" else ["a", "b", "0.25", "1.5"]
    binary = ["({} + {})", "({} - {})", "({} * {})", "min({}, {})", "where({} < {}, a, b)"]
    for _ in range(60):
        text = rng.choice(leaves)
        for _ in range(rng.randrange(1, 24)):
            pair = [text, rng.choice(leaves)]
            rng.shuffle(pair)
            text = rng.choice(binary).format(*pair)
        if "a" not in text:
            text += " + a"
        program = compile_expression(text, {"a": MemType[t], "b": MemType[t]})
        expected = by_python(program)
        assert native(program) == expected, text


def test_stores_that_come_too_early_wait_for_the_end_as_in_python(native: Lower) -> None:
    for order in range(6):
        b = Builder("early")
        x, y = b.input("x", MemType.f32), b.input("y", MemType.f32)
        first, second, third = (b.output(name, MemType.f32) for name in "pqr")
        vx = b.op("f32.load", imm=x)
        if order & 1:
            b.op("f32.store", vx, imm=first)
        b.op("f32.store", b.op("f32.add", vx, vx), imm=second)
        vy = b.op("f32.load", imm=y)
        b.op("f32.store", b.const(Type.f32, 2.0) if order & 2 else vy, imm=third)
        b.op("f32.store", b.op("f32.mul", vx, vy), imm=first)
        if order & 4:
            b.op("f32.store", vy, imm=second)
        program = b.build()
        verify(program)
        expected = by_python(program)
        assert native(program) == expected


def test_a_float_sum_with_two_places_is_left_to_python(native: Lower) -> None:
    for places in (1, 2):
        b = Builder("sums")
        x = b.op("f32.load", imm=b.input("x", MemType.f32))
        acc = b.accumulator("s", AccKind.sum, MemType.f64)
        for _ in range(places):
            b.op("f32.acc_sum", x, imm=acc)
        program = b.build()
        expected = by_python(program)
        assert native(program) == (expected if places == 1 else None)


def test_a_program_whose_handlers_are_not_compiled_yet_is_left_to_python_once() -> None:
    own = Handlers(shared().store)
    program = compile_expression("a + b", {"a": MemType.f32, "b": MemType.f32})
    assert own.straight(program) is None
    form = tileform.lower(program, own)
    assert own.straight(program) is not None
    assert tileform.lower(program, own) == form


def test_more_constants_than_there_is_room_for_are_filled_in_the_body_as_in_python(native: Lower) -> None:
    for t, limit in ((Type.f64, 60), (Type.f32, 120)):
        b = Builder("many")
        x = b.op(f"{t.name}.load", imm=b.input("x", MemType[t.name]))
        for i in range(0, limit, 2):  # both operands uniform: each needs a splat
            pair = b.const(t, float(i)), b.const(t, float(i + 1))
            x = b.op(f"{t.name}.add", x, b.op(f"{t.name}.sub", *pair))
        b.op(f"{t.name}.store", x, imm=b.output("y", MemType[t.name]))
        program = b.build()
        expected = by_python(program)
        assert native(program) == expected


def test_the_table_has_the_address_of_every_handler_that_a_plan_names() -> None:
    _, places = straight_form._layout()
    named = {name for _, name in places}
    assert named <= set(handlers.catalogue())
    for op in OPCODES:
        p = plan.PLANS[op.code]
        if p.kind not in (plan.IF, plan.ELSE, plan.END, plan.LOOP, plan.BR_IF):
            assert {n for n in (*p.names, *p.uniform_a, *p.uniform_b, *p.uniform_c) if n} <= named


def test_a_code_that_is_no_instruction_is_left_to_python(native: Lower) -> None:
    program = compile_expression("a + b", {"a": MemType.f32, "b": MemType.f32})
    by_python(program)
    code = list(program.code)
    code[2] = code[2]._replace(op=0xFFFF)
    object.__setattr__(program, "code", tuple(code))
    assert native(program) is None
