"""Native verification and lowering of programs without blocks: what Python says and gives, or no answer."""

from __future__ import annotations

import random
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from vyre.engines.cpu import handlers, plan, straight_form, tileform
from vyre.engines.cpu.handlers import Handlers, shared
from vyre.engines.cpu.tileform import TileForm
from vyre.errors import VerifyError
from vyre.program.analysis import analyse
from vyre.program.builder import Builder
from vyre.program.bytecode import decode, encode, identity
from vyre.program.expression import compile_expression
from vyre.program.ir import Program
from vyre.program.opcodes import OPCODES, AccKind, MemType, Type
from vyre.program.random import random_program
from vyre.program.verifier import check_code, check_declarations, quick, verify

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
    assert native(replace(program, code=tuple(code))) is None


def accepted(program: Program) -> bool:
    """Whether Python's verifier takes the code; the declarations are valid."""
    try:
        check_code(program)
    except VerifyError:
        return False
    return True


def natively() -> Callable[[Program], bool]:
    shared().straight(compile_expression("a + 1", {"a": MemType.f32}))
    assert quick.check is not None
    return quick.check


def test_every_valid_program_without_blocks_is_verified_natively() -> None:
    check = natively()
    for seed in range(300):
        program = random_program(seed, max_ops=seed % 60 + 3, functions=seed % 7 == 0)
        assert check(program) == (not analyse(program).has_blocks), seed


def test_native_verification_never_takes_what_the_verifier_refuses() -> None:
    """Single fields of valid programs changed at random: op, registers, immediates, constants, types, declarations."""
    check = natively()
    rng = random.Random(5)
    codes = [op.code for op in OPCODES] + [2, 0xFFFF, 0x200]
    taken = refused = 0
    for seed in range(400):
        program = random_program(seed, max_ops=seed % 30 + 3)
        for _ in range(12):
            pc = rng.randrange(len(program.code))
            code = list(program.code)
            match rng.randrange(8):
                case 0:
                    code[pc] = code[pc]._replace(op=rng.choice(codes))
                case 1 | 2 | 3:
                    near = rng.choice([rng.randrange(len(program.registers) + 2), rng.randrange(256)])
                    code[pc] = code[pc]._replace(**{rng.choice(["dst", "a", "b", "c"]): near})
                case 4:
                    code[pc] = code[pc]._replace(imm=rng.choice([0, 1, 2, 3, 255, 65_535]))
                case 5:
                    code.insert(pc, rng.choice(code))
                case 6:
                    del code[pc]
                case _:
                    code[pc] = rng.choice(code)
            registers, constants = list(program.registers), list(program.constants)
            if rng.random() < 0.2 and registers:
                registers[rng.randrange(len(registers))] = rng.choice(list(Type))
            if rng.random() < 0.2 and constants:
                constants[rng.randrange(len(constants))] |= 1 << rng.randrange(64)
            changed = replace(
                program, code=tuple(code), registers=tuple(registers), constants=tuple(constants),
                **{kind: _changed(rng, getattr(program, kind)) for kind in _DECLARED},
            )  # fmt: skip
            try:
                check_declarations(changed)
            except VerifyError:
                continue
            found = check(changed)
            expected = accepted(changed)
            blocks = any(plan.IF <= plan.KINDS.get(i.op, plan.NOTHING) <= plan.BR_IF for i in changed.code)
            assert found == (expected and not blocks), (seed, changed)
            taken += found
            refused += not expected
    assert taken > 200
    assert refused > 500


_DECLARED = ("inputs", "outputs", "params", "tables", "accumulators", "emits")


def _changed(rng: random.Random, entries: tuple[Any, ...]) -> tuple[Any, ...]:
    """The declarations, at times with one less or with one of another memory type."""
    found = list(entries)
    if found and rng.random() < 0.1:
        at = rng.randrange(len(found))
        if rng.random() < 0.3:
            del found[at]
        else:
            found[at] = found[at]._replace(dtype=rng.choice(list(MemType)))
    return tuple(found)


def test_what_is_no_instruction_at_all_goes_to_the_verifier() -> None:
    check = natively()
    program = compile_expression("a + 1", {"a": MemType.f32})
    assert check(program)
    for wrong in (tuple(program.code[0]), program.code[0]._replace(imm=1 << 16), program.code[0]._replace(a="0")):
        assert not check(replace(program, code=(wrong, *program.code[1:])))
    assert not check(replace(program, code=()))


def test_a_program_from_a_file_has_the_code_and_the_identity_it_was_written_with() -> None:
    for seed in range(40):
        program = random_program(seed)
        read = decode(encode(program))
        assert read.instructions == len(program.code)
        assert identity(read) == identity(program)
        assert read == program
        assert read.code == program.code
        assert replace(read, code=read.code[:-1]).packed == program.packed[:-8]
        assert identity(replace(read, fuel=read.fuel + 1)) != identity(read)
