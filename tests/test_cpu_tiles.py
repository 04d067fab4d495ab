"""Handlers and tile form of the CPU engine against the reference, bit for bit, without the engine's worker."""

from __future__ import annotations

import platform
import re
from pathlib import Path

import numpy as np
import pytest

from tile_driver import Machine, execute
from vyre.engines import conform, differential, reference
from vyre.engines.cpu import handlers
from vyre.engines.cpu.handlers import shared
from vyre.engines.cpu.tileform import lower
from vyre.program.builder import Builder
from vyre.program.ir import Program
from vyre.program.opcodes import OPCODES, Access, AccKind, Group, Imm, MemType, Op, Type
from vyre.program.random import NASTY, compare, random_inputs, random_program
from vyre.program.verifier import verify

SAMPLE = Path(__file__).parent / "data" / "scalar_ops_sample.json"
SIZES = (1, 7, 31, 32, 33, 1023, 1024, 1025, 2055)


def same_as_reference(program: Program, seed: int = 0, counts: tuple[int, ...] = SIZES, first: int = 1024) -> None:
    verify(program)
    for count in counts:
        inputs, params, tables = random_inputs(program, seed, count)
        ours, theirs = ([table.copy() for table in tables] for _ in range(2))
        expected = reference.execute(program, inputs, params, ours, first, count)
        got = execute(program, inputs, params, theirs, first, count)
        assert compare(expected, got, (ours, theirs)) is None, f"count {count}"


def names_of(program: Program) -> list[str]:
    """Handlers that a program's body runs, without return."""
    form = lower(verify(program), shared())
    return Machine(program, form, shared()).names()[:-1]


def program_of(op: Op) -> Program:
    """A short program around one instruction."""
    if op.group is Group.control:
        return control_program()
    b = Builder("one")
    out = b.output
    match op.imm:
        case Imm.table:
            t = op.result or op.args[1]
            dtype = {Type.i32: MemType.u32, Type.i64: MemType.u64}[t] if op.name.endswith("_u") else MemType(t.value)
            b.table("t", dtype, Access.read if op.result else Access.atomic)
        case Imm.acc:
            verb = op.name.rpartition("acc_")[2]
            kind = AccKind[verb.partition("_")[0]]
            dtype = MemType(op.args[0].value)
            if kind is AccKind.sum:
                dtype = MemType.f64 if op.args[0].is_float else MemType.i64
            elif kind in (AccKind.count, AccKind.histogram):
                dtype = MemType.i64
            elif verb.endswith("_u"):
                dtype = MemType.u32 if op.args[0] is Type.i32 else MemType.u64
            b.accumulator("acc", kind, dtype, bins=300 if kind is AccKind.histogram else 0)
        case Imm.emit:
            b.emit_stream("e", MemType(op.args[0].value))
        case Imm.param:
            b.param("p", MemType(op.result.value))
    args = []
    for i, t in enumerate(op.args):
        args.append(b.op(f"{t.name}.load", imm=b.input(f"x{i}", MemType(t.value))))
        if i == 0 and op.imm is Imm.table:
            args[0] = b.op("i64.and", args[0], b.const(Type.i64, 15))
        if op.name == "acc_histogram":
            args[0] = b.op("i32.and", args[0], b.const(Type.i32, 255))
    if op.imm is Imm.input:
        b.input("x", MemType(op.result.value))
    if op.imm is Imm.output:
        out("o", MemType(op.args[0].value))
    if op.imm is Imm.const:
        result = b.bits(op.result, NASTY[op.result][-3])
    else:
        result = b.op(op.name, *args)
    if op.result is not None:
        b.op(f"{op.result.name}.store", result, imm=out("o", MemType(op.result.value)))
    return b.build()


def control_program() -> Program:
    """if, else, loop, br_if, nop; unreachable for negative x."""
    b = Builder("control")
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    o, m = b.output("o", MemType.i32), b.output("m", MemType.i64)
    total, i = b.op("i32.and", x, b.const(Type.i32, 7)), b.const(Type.i32, 0)
    n = b.op("i32.and", x, b.const(Type.i32, 15))
    wide = b.op("i64.extend_i32_s", x)
    b.loop()
    b.op("nop")
    odd = b.op("i32.and", total, b.const(Type.i32, 1))
    b.if_(odd)
    b.op("i32.add", total, x, dst=total)
    b.else_()
    b.op("i32.xor", total, i, dst=total)
    b.op("i64.add", wide, wide, dst=wide)
    b.end()
    b.op("i32.add", i, b.const(Type.i32, 1), dst=i)
    b.br_if(b.op("i32.lt_s", i, n))
    b.end()
    b.if_(b.op("i32.eq", x, b.bits(Type.i32, 0x80000001)))
    b.op("unreachable")
    b.end()
    b.op("i32.store", total, imm=o)
    b.op("i64.store", wide, imm=m)
    return b.build()


@pytest.mark.parametrize("op", OPCODES, ids=lambda op: op.name)
def test_every_instruction_has_a_handler_that_agrees_with_the_reference(op: Op) -> None:
    same_as_reference(program_of(op), seed=op.code, counts=(1, 33, 1024 + 7))


def test_conformance_cases_pass_alone_repeated_and_mixed() -> None:
    report = conform.run_cases(SAMPLE, execute)
    assert not report.failed, report.failures[:5]


@pytest.mark.parametrize("functions", [False, True], ids=["base", "functions"])
def test_random_programs_give_the_bits_of_the_reference(functions: bool) -> None:
    found: list[tuple[int, str]] = []
    passed, failed = differential.run(
        range(1, 161), execute, on_failure=lambda seed, text: found.append((seed, text)), functions=functions
    )
    assert (passed, failed) == (160, 0), found[:2]


def test_an_output_may_be_the_memory_of_an_input_of_its_type() -> None:
    shared_outputs = 0
    for seed in range(300):
        program = verify(random_program(seed, traps=False)).program
        pairs: dict[int, int] = {}
        for o, out in enumerate(program.outputs):
            for i, stream in enumerate(program.inputs):
                if stream.dtype is out.dtype and i not in pairs.values():
                    pairs[o] = i
                    break
        if not pairs:
            continue
        shared_outputs += len(pairs)
        inputs, params, tables = random_inputs(program, seed, 1100)
        ours, theirs = ([table.copy() for table in tables] for _ in range(2))
        expected = reference.execute(program, inputs, params, ours, 0, 1100)
        got = execute(program, inputs, params, theirs, 0, 1100, in_place=pairs)
        assert compare(expected, got, (ours, theirs)) is None, f"seed {seed}, outputs in place of inputs {pairs}"
    assert shared_outputs > 20


def test_two_outputs_may_swap_the_memory_of_two_inputs() -> None:
    b = Builder("swap")
    x = b.op("f32.load", imm=b.input("x", MemType.f32))
    y = b.op("f32.load", imm=b.input("y", MemType.f32))
    b.op("f32.store", y, imm=b.output("a", MemType.f32))
    b.op("f32.store", x, imm=b.output("b", MemType.f32))
    program = b.build()
    inputs, params, tables = random_inputs(program, 1, 1500)
    got = execute(program, inputs, params, tables, 0, 1500, in_place={0: 0, 1: 1})
    assert got.outputs[0].tobytes() == inputs[1].tobytes()
    assert got.outputs[1].tobytes() == inputs[0].tobytes()


# --- what comes out of lowering -----------------------------------------------------------------------------------


def test_a_formula_of_one_instruction_is_one_record() -> None:
    b = Builder("add")
    x = b.op("f32.load", imm=b.input("x", MemType.f32))
    b.op("f32.store", b.op("f32.mul", x, b.const(Type.f32, 2.5)), imm=b.output("o", MemType.f32))
    assert names_of(b.build()) == ["f32.mul.vs.canonical"]


def test_only_results_that_are_seen_get_a_canonical_nan() -> None:
    b = Builder("chain")
    x = b.op("f32.load", imm=b.input("x", MemType.f32))
    y = b.op("f32.add", x, x)
    b.op("f32.store", b.op("f32.sqrt", b.op("f32.mul", y, x)), imm=b.output("o", MemType.f32))
    assert names_of(b.build()) == ["f32.add", "f32.mul", "f32.sqrt.canonical"]


@pytest.mark.parametrize(
    ("verb", "left", "right"),
    [("sub", "f32.sub.sv.canonical", "f32.sub.vs.canonical"), ("add", "f32.add.vs.canonical", "f32.add.vs.canonical")],
)
def test_a_uniform_operand_needs_no_tile(verb: str, left: str, right: str) -> None:
    for first, want in ((True, left), (False, right)):
        b = Builder("uniform")
        x = b.op("f32.load", imm=b.input("x", MemType.f32))
        p = b.op("f32.param", imm=b.param("p", MemType.f32))
        args = (p, x) if first else (x, p)
        b.op("f32.store", b.op(f"f32.{verb}", *args), imm=b.output("o", MemType.f32))
        program = b.build()
        assert names_of(program) == [want]
        same_as_reference(program)


def test_a_long_chain_stays_in_few_slots() -> None:
    b = Builder("chain")
    x = b.op("f64.load", imm=b.input("x", MemType.f64))
    y = b.op("f64.load", imm=b.input("y", MemType.f64))
    for _ in range(20):
        x, y = y, b.op("f64.add", x, y)
    b.op("f64.store", y, imm=b.output("o", MemType.f64))
    assert lower(verify(b.build()), shared()).scratch_slots <= 6


def test_a_sum_used_once_is_one_record_and_a_sum_in_a_loop_has_partials() -> None:
    b = Builder("once")
    x = b.op("f64.load", imm=b.input("x", MemType.f64))
    b.op("f64.acc_sum", x, imm=b.accumulator("s", AccKind.sum, MemType.f64))
    assert names_of(b.build()) == ["f64.acc_sum"]
    b = Builder("twice")
    x = b.op("f64.load", imm=b.input("x", MemType.f64))
    s = b.accumulator("s", AccKind.sum, MemType.f64)
    b.op("f64.acc_sum", x, imm=s)
    b.op("f64.acc_sum", x, imm=s)
    program = b.build()
    assert names_of(program) == ["sum.open", "f64.acc_sum.update", "f64.acc_sum.update", "sum.close"]
    same_as_reference(program)


def test_emits_of_two_branches_come_out_in_element_order() -> None:
    b = Builder("branches")
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    e = b.emit_stream("e", MemType.i16)
    b.if_(b.op("i32.and", x, b.const(Type.i32, 1)))
    b.op("i32.emit", x, imm=e)
    b.else_()
    b.if_(b.op("i32.and", x, b.const(Type.i32, 2)))
    b.op("i32.emit", b.const(Type.i32, 77), imm=e)
    b.end()
    b.end()
    same_as_reference(b.build())


def test_elements_that_left_a_loop_keep_what_they_had() -> None:
    b = Builder("leave")
    n = b.op("i32.load", imm=b.input("n", MemType.u8))
    o = b.output("o", MemType.f32)
    i, last = b.const(Type.i32, 0), b.const(Type.f32, 0.0)
    b.loop()
    scratch = b.op("f32.convert_i32_s", i)
    b.op("f32.sqrt", scratch, dst=last)
    b.op("f32.store", b.op("f32.mul", last, last), imm=o)
    b.op("i32.add", i, b.const(Type.i32, 1), dst=i)
    b.br_if(b.op("i32.lt_u", i, n))
    b.end()
    b.op("f32.store", last, imm=b.output("last", MemType.f32))
    same_as_reference(b.build())


def test_a_program_with_more_early_stores_than_scratch_still_runs() -> None:
    b = Builder("many")
    for k in range(120):
        x = b.op("f64.load", imm=b.input(f"x{k}", MemType.f64))
        b.op("f64.store", b.op("f64.add", x, x), imm=b.output(f"o{k}", MemType.f64))
    program = b.build()
    assert not lower(verify(program), shared()).in_place
    same_as_reference(program, counts=(33,))


def test_more_constants_than_scratch_are_filled_where_they_are_used() -> None:
    b = Builder("constants")
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    for k in range(120):
        x = b.op("i32.rotl", x, b.const(Type.i32, k * 7919))
    b.op("i32.store", x, imm=b.output("o", MemType.i32))
    same_as_reference(b.build(), counts=(33, 1024))


# --- handlers ---------------------------------------------------------------------------------------------------------


@pytest.mark.skipif(platform.machine() != "x86_64", reason="looks for x86-64 registers")
def test_every_numeric_handler_but_64_bit_division_works_on_vectors() -> None:
    slow = {f"i64.{verb}_{sign}" for verb in ("div", "rem") for sign in "su"}
    for op in OPCODES:
        if op.group is Group.numeric and op.name not in slow:
            text = handlers.describe(op.name, assembly=True)
            assert re.search(r"%[yz]mm|\bvcvt\w+2psy\b", text), op.name


def test_no_handler_may_contract_or_reassociate() -> None:
    text = handlers.source("f32.add", "f32.mul", "f64.fma", "f64.acc_sum", "f64.exp")
    for flag in ("fast", "contract", "reassoc", "nnan", "ninf", "nsz", "fmuladd"):
        assert f" {flag} " not in text
        assert f".{flag}." not in text


def test_describe_shows_what_was_generated() -> None:
    assert "fadd <32 x float>" in handlers.describe("f32.add")
    with pytest.raises(KeyError):
        handlers.describe("f32.nothing")


def test_a_second_process_compiles_nothing(tmp_path: Path) -> None:
    from vyre import jit

    class Counting(dict):
        def put(self, key: bytes, data: bytes) -> None:
            self[key] = data

    store = Counting()
    source = handlers.source("f32.nearest").replace("vyre.f32", "vyre.again.f32")
    address = jit.compile_ir(source, ["vyre.again.f32.nearest"], store, brief=True)
    assert len(store) == 1
    assert address["vyre.again.f32.nearest"]
    assert next(iter(store)) == jit.object_key(source, brief=True)


def test_a_sum_of_a_partial_tile_pads_with_minus_zero() -> None:
    b = Builder("zero")
    x = b.op("f32.load", imm=b.input("x", MemType.f32))
    b.op("f32.acc_sum", x, imm=b.accumulator("s", AccKind.sum, MemType.f64))
    program = b.build()
    got = execute(program, [np.full(5, -0.0, np.float32)], [], [], 0, 5)
    assert got.tile_sums[0].view(np.uint64)[0] == 1 << 63


def test_comparisons_joined_by_and_go_straight_into_the_mask_of_the_if_they_decide() -> None:
    b = Builder("filter")
    x = b.op("f64.load", imm=b.input("x", MemType.f64))
    n = b.op("i32.load", imm=b.input("n", MemType.i32))
    low = b.op("f64.ge", x, b.const(Type.f64, 0.25))
    high = b.op("f64.lt", x, b.const(Type.f64, 1e9))
    b.if_(b.op("i32.and", b.op("i32.and", low, high), b.op("i32.ne", n, b.const(Type.i32, 3))))
    b.if_(b.op("i32.eqz", n))
    b.op("f64.acc_sum", x, imm=b.accumulator("s", AccKind.sum, MemType.f64))
    b.end()
    b.op("f64.emit", x, imm=b.emit_stream("e", MemType.f64))
    b.end()
    program = b.build()
    assert names_of(program) == [
        "f64.ge.vs.mask", "f64.lt.vs.mask.and", "i32.ne.vs.mask.and", "test",
        "i32.eqz.mask", "test.nested", "f64.acc_sum.masked", "emit.64.masked",
    ]  # fmt: skip
    same_as_reference(program)


def test_a_condition_that_is_read_elsewhere_or_is_no_truth_value_keeps_its_register() -> None:
    for name in ("read again", "not a truth value"):
        b = Builder("kept")
        x = b.op("i32.load", imm=b.input("x", MemType.i32))
        y = b.op("i32.load", imm=b.input("y", MemType.i32))
        o = b.output("o", MemType.i32)
        a = b.op("i32.lt_s", x, y) if name == "read again" else b.op("i32.or", x, y)
        both = b.op("i32.and", a, b.op("i32.gt_u", x, y))
        result = b.op("i32.mov", y)
        b.if_(both)
        b.op("i32.add", x, a, dst=result)
        b.end()
        b.op("i32.store", result, imm=o)
        program = b.build()
        assert "if" in names_of(program)
        same_as_reference(program)


@pytest.mark.parametrize("t", [Type.f32, Type.f64], ids=lambda t: t.name)
def test_a_product_that_is_only_summed_needs_no_tile(t: Type) -> None:
    b = Builder("products")
    x = b.op(f"{t.name}.load", imm=b.input("x", MemType(t.value)))
    y = b.op(f"{t.name}.load", imm=b.input("y", MemType(t.value)))
    b.if_(b.op(f"{t.name}.lt", x, y))
    b.op(f"{t.name}.acc_sum", b.op(f"{t.name}.mul", x, y), imm=b.accumulator("s", AccKind.sum, MemType.f64))
    b.end()
    b.op(f"{t.name}.acc_sum", b.op(f"{t.name}.mul", y, y), imm=b.accumulator("all", AccKind.sum, MemType.f64))
    program = b.build()
    n = t.name
    assert names_of(program) == [f"{n}.lt.mask", "test", f"{n}.acc_sum.mul.masked", f"{n}.acc_sum.mul"]
    same_as_reference(program)
