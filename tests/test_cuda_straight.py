"""Native images of programs without blocks: the bytes that lower gives, or none."""

from __future__ import annotations

import random

import pytest

from vyre.engines.cuda import abi, straight_form
from vyre.engines.cuda.lower import Image, lower
from vyre.engines.cuda.straight_form import Lowering
from vyre.errors import VerifyError
from vyre.program.builder import Builder
from vyre.program.expression import compile_expression
from vyre.program.ir import Program
from vyre.program.opcodes import AccKind, MemType, Type
from vyre.program.random import random_program
from vyre.program.verifier import check_code


@pytest.fixture(scope="module")
def lowering() -> Lowering:
    found = Lowering(None)
    assert found._natives is not None
    return found


@pytest.fixture
def native(lowering: Lowering, monkeypatch: pytest.MonkeyPatch):
    """Native rewriting alone: None where it leaves a program to Python."""

    class Python(Exception):
        pass

    def refuse(program: Program) -> Image:
        raise Python

    monkeypatch.setattr(straight_form.lower, "lower", refuse)

    def image(program: Program) -> Image | None:
        try:
            return lowering.image(program)
        except Python:
            return None

    return image


def test_every_random_program_without_blocks_gets_the_image_that_python_makes(native):
    for seed in range(2_500):
        program = random_program(seed, max_ops=seed % 150 + 3, traps=False, blocks=False)
        assert native(program) == lower(program), seed


def test_a_random_program_with_blocks_is_left_to_python_or_has_its_image(native):
    taken = 0
    for seed in range(400):
        program = random_program(seed, functions=seed % 5 == 0)
        got = native(program)
        if got is not None:
            assert got == lower(program), seed
            taken += 1
    assert 20 < taken < 380


@pytest.mark.parametrize("t", ["f32", "f64", "i32", "i64"])
def test_every_formula_is_taken_natively(native, t):
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
        assert native(program) == lower(program), text


def test_more_values_at_once_than_planes_are_shared_as_in_python(native):
    """Forty values of both widths, made, then used in another order, so that planes are given back and taken again."""
    for seed in range(60):
        rng = random.Random(seed)
        b = Builder("crowd")
        b.input("x", MemType.f32)
        b.input("y", MemType.f64)
        b.output("z", MemType.f64)
        x, y = b.op("f32.load", imm=0), b.op("f64.load", imm=1)
        narrow, wide = [x], [y]
        for _ in range(rng.randrange(10, 60)):
            if rng.random() < 0.5:
                narrow.append(b.op("f32.mul", rng.choice(narrow), rng.choice(narrow)))
                narrow = narrow[-20:]
            else:
                wide.append(b.op("f64.add", rng.choice(wide), rng.choice(wide)))
                wide = wide[-12:]
        total = y
        for register in rng.sample(wide, len(wide)):
            total = b.op("f64.add", total, register)
        for register in rng.sample(narrow, len(narrow)):
            total = b.op("f64.mul", total, b.op("f64.promote_f32", register))
        b.op("f64.store", total, imm=0)
        program = b.build()
        assert native(program) == lower(program), seed
        assert native(program).planes > 8


def test_constants_and_parameters_beyond_the_uniform_slots_come_from_the_pool_as_in_python(native):
    b = Builder("many")
    b.input("x", MemType.f64)
    b.output("y", MemType.f64)
    b.param("p", MemType.f64)
    b.param("q", MemType.i32)
    r = b.op("f64.load", imm=0)
    for i in range(100):
        r = b.op("f64.add", r, b.const(Type.f64, float(i % 83)))
        if i == 40:
            r = b.op("f64.mul", r, b.op("f64.param", imm=0))
    r = b.op("f64.add", r, b.op("f64.convert_i32_s", b.op("i32.param", imm=1)))
    b.op("f64.store", r, imm=0)
    program = b.build()
    assert native(program) == lower(program)


def test_a_long_program_has_its_pages_where_python_puts_them(native):
    for count in (abi.WINDOW - 3, abi.WINDOW - 2, abi.WINDOW - 1, 2 * abi.WINDOW, 300, 500):
        b = Builder("long")
        b.input("x", MemType.f32)
        b.output("y", MemType.f32)
        b.accumulator("s", AccKind.sum, MemType.f64)
        r = b.op("f32.load", imm=0)
        for i in range(count):
            r = b.op("f32.add", r, b.const(Type.f32, 1.0 + i % 3))
        b.op("f32.acc_sum", r, imm=0)
        b.op("f32.store", r, imm=0)
        program = b.build()
        assert native(program) == lower(program), count


def test_longer_programs_than_the_workspace_holds_are_left_to_python(native):
    b = Builder("longer")
    b.input("x", MemType.f32)
    b.output("y", MemType.f32)
    r = b.op("f32.load", imm=0)
    for _ in range(1_100):
        r = b.op("f32.add", r, r)
    b.op("f32.store", r, imm=0)
    assert native(b.build()) is None


def test_native_verification_refuses_whatever_the_verifier_refuses(lowering):
    """Random programs with one changed field: no yes where the verifier says no."""
    refused = 0
    for seed in range(1_200):
        rng = random.Random(seed)
        program = random_program(seed, max_ops=12, traps=False, blocks=False)
        code = list(program.code)
        pc = rng.randrange(len(code))
        field = rng.choice(("op", "dst", "a", "b", "c", "imm"))
        value = rng.choice(code).op if field == "op" else rng.randrange(8)
        code[pc] = code[pc]._replace(**{field: value})
        changed = Program(**{**{k: v for k, v in vars(program).items() if k[0] != "_"}, "code": tuple(code)})
        try:
            check_code(changed)
        except VerifyError:
            refused += 1
            assert not lowering.check(changed), (seed, pc, field, value)
    assert refused > 300
