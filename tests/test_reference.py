"""The reference engine: facts about control, traps, streams, tables and results, computed by hand."""

from __future__ import annotations

import math
import struct

import numpy as np
import pytest

from vyre.engines import reference
from vyre.engines.reference import execute, fold_spans
from vyre.errors import BindError
from vyre.program.builder import Builder
from vyre.program.opcodes import Access, AccKind, FaultCode, MemType, Type
from vyre.program.random import compare
from vyre.program.verifier import verify
from vyre.stream.formats import numpy_dtype

I32, I64, F32, F64 = Type.i32, Type.i64, Type.f32, Type.f64


def run(b, inputs=(), params=(), tables=(), first=0, count=None):
    """Verify, execute; the item is as long as its first input."""
    count = len(inputs[0]) if count is None else count
    return execute(verify(b.build()), list(inputs), list(params), list(tables), first, count)


def i32(*values):
    return np.array(values, np.int32)


def f64(*values):
    return np.array(values, np.float64)


# --- streams and parameters ---------------------------------------------------------------------------------------


def test_a_stored_value_comes_out_in_the_output_s_memory_type():
    b = Builder()
    x = b.op("i32.load", imm=b.input("x", MemType.i16))
    for name in ("i8", "u8", "i16", "u16", "i32", "u32", "bool"):
        b.op("i32.store", x, imm=b.output(name, MemType[name]))
    result = run(b, [np.array([-1, 256, 300], np.int16)])
    assert [y.dtype.name for y in result.outputs] == ["int8", "uint8", "int16", "uint16", "int32", "uint32", "bool"]
    assert result.outputs[0].tolist() == [-1, 0, 44]
    assert result.outputs[1].tolist() == [255, 0, 44]
    assert result.outputs[5].tolist() == [0xFFFFFFFF, 256, 300]
    assert result.outputs[6].tolist() == [True, True, True]


def test_the_last_store_on_a_path_wins():
    b = Builder()
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    y = b.output("y", MemType.i32)
    b.op("i32.store", b.const(I32, 1), imm=y)
    b.if_(x)
    b.op("i32.store", b.const(I32, 2), imm=y)
    b.end()
    assert run(b, [i32(0, 5, 0)]).outputs[0].tolist() == [1, 2, 1]


def test_index_is_global():
    b = Builder()
    b.op("i64.store", b.op("index"), imm=b.output("y", MemType.u64))
    assert run(b, first=5 * 1024, count=3).outputs[0].tolist() == [5120, 5121, 5122]


def test_a_parameter_is_its_low_bytes_in_memory_form():
    b = Builder()
    for i, (t, m, bits) in enumerate(
        [(I32, "i32", 0xFFFFFFFF), (F32, "f32", 0x3FC00000), (F64, "f64", 0x3FF8 << 48), (I32, "bool", 1)]
    ):
        p = b.op(f"{t.name}.param", imm=b.param(f"p{i}", MemType[m], bits))
        b.op(f"{t.name}.store", p, imm=b.output(f"y{i}", MemType[m]))
    result = run(b, params=[0xFFFFFFFF, 0x3FC00000, 0x3FF8 << 48, 1], count=2)
    assert [y.tolist() for y in result.outputs] == [[-1, -1], [1.5, 1.5], [1.5, 1.5], [True, True]]


def test_moves_keep_a_signalling_nan_s_bits_and_arithmetic_does_not():
    b = Builder()
    x = b.op("f32.load", imm=b.input("x", MemType.f32))
    b.op("f32.store", b.op("f32.neg", b.op("f32.select", x, x, b.const(I32, 1))), imm=b.output("moved", MemType.f32))
    b.op("f32.store", b.op("f32.mul", x, b.const(F32, 1.0)), imm=b.output("computed", MemType.f32))
    result = run(b, [np.array([0x7FA00001], np.uint32).view(np.float32)])
    assert [int(y.view(np.uint32)[0]) for y in result.outputs] == [0xFFA00001, 0x7FC00000]


def test_operands_that_do_not_fit_the_declarations_are_refused():
    b = Builder()
    b.op("i32.load", imm=b.input("x", MemType.i32))
    program = b.build()
    for inputs, message in (
        ([], "0 inputs given"),
        ([i32(1, 2)], "x has 2 elements, the item 1"),
        ([np.zeros(1)], "x is float64"),
        ([np.zeros((1, 1), np.int32)], "takes a contiguous vector"),
    ):
        with pytest.raises(BindError, match=message):
            execute(program, inputs, [], [], 0, 1)


# --- control ------------------------------------------------------------------------------------------------------


def test_an_if_without_else_leaves_the_other_elements_alone():
    b = Builder()
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    y = b.const(I32, 7)
    b.if_(x)
    b.op("i32.add", y, x, dst=y)
    b.end()
    b.op("i32.store", y, imm=b.output("y", MemType.i32))
    assert run(b, [i32(0, 1, -1, 0)]).outputs[0].tolist() == [7, 8, 6, 7]


def test_nested_branches_and_empty_ones_choose_by_element():
    b = Builder()
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    y = b.const(I32, 0)
    b.if_(b.op("i32.and", x, b.const(I32, 1)))
    b.if_(b.op("i32.and", x, b.const(I32, 2)))
    b.else_()
    b.const(I32, 10, dst=y)
    b.end()
    b.else_()
    b.if_(b.op("i32.and", x, b.const(I32, 2)))
    b.const(I32, 20, dst=y)
    b.else_()
    b.end()
    b.end()
    b.op("i32.store", y, imm=b.output("y", MemType.i32))
    assert run(b, [i32(0, 1, 2, 3)]).outputs[0].tolist() == [0, 10, 20, 0]


def countdown(b, x):
    """Rounds that a do-while takes which subtracts 1 from x until it is not positive."""
    n, one = b.const(I32, 0), b.const(I32, 1)
    left = b.op("i32.mov", x)
    b.loop()
    b.op("i32.add", n, one, dst=n)
    b.op("i32.sub", left, one, dst=left)
    b.br_if(b.op("i32.gt_s", left, b.const(I32, 0)))
    b.end()
    return n


def test_a_loop_runs_at_least_once_and_each_element_as_often_as_it_says():
    b = Builder()
    n = countdown(b, b.op("i32.load", imm=b.input("x", MemType.i32)))
    b.op("i32.store", n, imm=b.output("y", MemType.i32))
    assert run(b, [i32(-3, 0, 1, 2, 50)]).outputs[0].tolist() == [1, 1, 1, 2, 50]


def test_fuel_counts_taken_back_edges_and_the_first_beyond_it_traps_at_its_br_if():
    b = Builder(fuel=9)
    n = countdown(b, b.op("i32.load", imm=b.input("x", MemType.i32)))
    b.op("i32.store", n, imm=b.output("y", MemType.i32))
    assert run(b, [i32(10, 1)]).outputs[0].tolist() == [10, 1]  # 9 back-edges
    b = Builder(fuel=9)
    countdown(b, b.op("i32.load", imm=b.input("x", MemType.i32)))
    fault = run(b, [i32(10, 11, 12)]).fault
    assert (fault.code, fault.element, fault.reason) == (FaultCode.out_of_fuel, 1, "out of fuel")
    assert fault.pc == 9  # load, const, const, mov, loop, add, sub, const, gt_s, br_if


def test_the_fuel_of_an_element_is_shared_by_all_its_loops():
    b = Builder(fuel=9)
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    countdown(b, x)
    countdown(b, x)
    assert run(b, [i32(5)]).fault is None  # 4 + 4 back-edges
    b = Builder(fuel=9)
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    countdown(b, x)
    countdown(b, x)
    assert run(b, [i32(6)]).fault.code == FaultCode.out_of_fuel


# --- traps --------------------------------------------------------------------------------------------------------


def divide():
    b = Builder()
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    y = b.op("i32.load", imm=b.input("y", MemType.i32))
    return b, x, y


def test_a_fault_is_that_of_the_lowest_trapping_element_even_when_another_traps_earlier_in_the_program():
    b, x, y = divide()
    b.op("i32.div_s", x, y)  # pc 2: element 2
    b.op("i32.rem_u", y, x)  # pc 3: element 1
    fault = run(b, [i32(5, 0, 7), i32(1, 1, 0)], first=2048).fault
    assert (fault.code, fault.pc, fault.element) == (FaultCode.divide_by_zero, 3, 2049)
    assert fault.operands == {"a": 1, "b": 0}


def test_an_element_stops_at_its_first_trap():
    b, x, y = divide()
    b.op("i32.div_s", x, y)  # overflow
    b.op("i32.div_s", x, b.op("i32.sub", y, y))  # by zero
    fault = run(b, [i32(-(2**31)), i32(-1)]).fault
    assert (fault.code, fault.pc) == (FaultCode.overflow, 2)
    assert fault.reason == "integer overflow"


@pytest.mark.parametrize(("values", "pc"), [((0, 1, 2), 4), ((0, 2, 1), 9)])
def test_a_trapped_element_does_not_go_on_while_others_do(values, pc):
    b = Builder()
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    b.if_(b.op("i32.eq", x, b.const(I32, 1)))
    b.op("unreachable")
    b.end()
    b.if_(b.op("i32.ge_s", x, b.const(I32, 1)))
    b.op("unreachable")
    b.end()
    fault = run(b, [i32(*values)]).fault
    assert (fault.code, fault.pc, fault.element) == (FaultCode.unreachable, pc, 1)


def test_a_branch_not_taken_does_not_trap():
    b, x, y = divide()
    b.if_(y)
    b.op("i32.div_s", x, y)
    b.end()
    assert run(b, [i32(1, 2), i32(0, 1)]).fault is None


def test_a_faulted_item_delivers_nothing():
    b, x, y = divide()
    b.op("i32.store", b.op("i32.div_s", x, y), imm=b.output("q", MemType.i32))
    b.op("acc_count", x, imm=b.accumulator("n", AccKind.count, MemType.i64))
    b.op("i32.emit", x, imm=b.emit_stream("e", MemType.i32))
    result = run(b, [i32(1, 2), i32(1, 0)])
    assert (result.outputs, result.emits, result.accumulators, result.tile_sums) == ([], [], [], {})


def test_a_fault_in_a_later_part_of_a_long_item_is_found_and_one_before_it_wins():
    b, x, y = divide()
    b.op("i32.div_u", x, y)
    divisor = np.ones(200_000, np.int32)
    divisor[[150_001, 199_999]] = 0
    assert run(b, [divisor, divisor]).fault.element == 150_001


def test_a_fault_names_the_line_when_the_program_has_a_map():
    b = Builder(source="rule.py")
    b.at(12)
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    b.at(14)
    b.op("i32.div_u", x, x)
    fault = run(b, [i32(0)]).fault
    assert (fault.file, fault.line, fault.pc) == ("rule.py", 14, 1)


def test_conversions_trap_on_nan_and_on_what_does_not_fit():
    for value, code in ((math.nan, FaultCode.invalid_conversion), (2.0**31, FaultCode.overflow)):
        b = Builder()
        b.op("i32.trunc_f64_s", b.op("f64.load", imm=b.input("x", MemType.f64)))
        assert run(b, [f64(-(2.0**31) - 0.9, 2.0**31 - 0.1, value)]).fault.code == code


# --- tables -------------------------------------------------------------------------------------------------------


def test_a_gather_widens_and_an_index_beyond_the_table_traps_also_a_negative_one():
    def program():
        b = Builder()
        i = b.op("i64.load", imm=b.input("i", MemType.i64))
        b.op("i32.store", b.op("i32.table_get", i, imm=b.table("t", MemType.i8)), imm=b.output("y", MemType.i32))
        return b

    table = np.array([5, -6, 7], np.int8)
    assert run(program(), [np.array([2, 1, 1, 0])], tables=[table]).outputs[0].tolist() == [7, -6, -6, 5]
    for bad in (3, -1, 1 << 40):
        fault = run(program(), [np.array([2, bad])], tables=[table]).fault
        assert (fault.code, fault.pc, fault.element) == (FaultCode.out_of_bounds, 1, 1)
        assert fault.operands == {"a": bad}


@pytest.mark.parametrize(
    ("verb", "dtype", "before", "values", "after"),
    [
        ("add", MemType.i32, 2**31 - 1, (1, 1), -(2**31) + 1),
        ("and", MemType.u32, 0b1111, (0b0111, 0b1101), 0b0101),
        ("or", MemType.i64, 1, (2, 4), 7),
        ("xor", MemType.u64, 1, (3, 4), 6),
        ("min_s", MemType.i32, 5, (-1, 7), -1),
        ("min_u", MemType.u32, 5, (2**32 - 1, 7), 5),
        ("max_s", MemType.i64, 5, (-1, 7), 7),
        ("max_u", MemType.u64, 5, (2**64 - 1, 7), 2**64 - 1),
    ],
)
def test_an_atomic_table_is_updated_by_every_element_in_place(verb, dtype, before, values, after):
    t = dtype.type
    b = Builder()
    x = b.op(f"{t.name}.load", imm=b.input("x", dtype))
    b.op(f"{t.name}.table_{verb}", b.const(I64, 1), x, imm=b.table("t", dtype, Access.atomic))
    table = np.array([9, before, 9], numpy_dtype(dtype))
    assert run(b, [np.array(values, table.dtype)], tables=[table]).fault is None
    assert table.tolist() == [9, after, 9]


# --- accumulators -------------------------------------------------------------------------------------------------


def accumulate(op, kind, dtype, values, bins=0):
    t = Type[op.partition(".")[0]] if "." in op else I32
    memory = {I32: MemType.i32, I64: MemType.i64, F32: MemType.f32, F64: MemType.f64}[t]
    b = Builder()
    x = b.op(f"{t.name}.load", imm=b.input("x", memory))
    b.op(op, x, imm=b.accumulator("a", kind, dtype, bins))
    (result,) = run(b, [np.array(values, {F32: "f4", F64: "f8", I32: "i4", I64: "i8"}[t])]).accumulators
    return result


@pytest.mark.parametrize(
    ("op", "kind", "dtype", "values", "result"),
    [
        ("i64.acc_sum", AccKind.sum, MemType.i64, [2**63 - 1, 2], -(2**63) + 1),
        ("i64.acc_sum", AccKind.sum, MemType.u64, [-1, -1], 2**64 - 2),
        ("acc_count", AccKind.count, MemType.i64, [0, 5, -1, 0], 2),
        ("i32.acc_min_s", AccKind.min, MemType.i32, [3, -4, 5], -4),
        ("i32.acc_min_u", AccKind.min, MemType.u32, [3, -4, 5], 3),
        ("i64.acc_max_s", AccKind.max, MemType.i64, [3, -4, 5], 5),
        ("i64.acc_max_u", AccKind.max, MemType.u64, [3, -4, 5], 2**64 - 4),
        ("f32.acc_min", AccKind.min, MemType.f32, [1.5, -2.5, 7], -2.5),
        ("f64.acc_max", AccKind.max, MemType.f64, [1.5, -2.5, 7], 7.0),
    ],
)
def test_an_accumulator_reduces_all_elements(op, kind, dtype, values, result):
    got = accumulate(op, kind, dtype, values)
    assert got.shape == ()
    assert got[()] == result


@pytest.mark.parametrize(
    ("op", "kind", "dtype", "identity"),
    [
        ("i64.acc_sum", AccKind.sum, MemType.i64, 0),
        ("f64.acc_sum", AccKind.sum, MemType.f64, 0.0),
        ("acc_count", AccKind.count, MemType.i64, 0),
        ("i32.acc_min_s", AccKind.min, MemType.i32, 2**31 - 1),
        ("i32.acc_max_s", AccKind.max, MemType.i32, -(2**31)),
        ("i32.acc_min_u", AccKind.min, MemType.u32, 2**32 - 1),
        ("i64.acc_max_u", AccKind.max, MemType.u64, 0),
        ("f32.acc_min", AccKind.min, MemType.f32, math.inf),
        ("f64.acc_max", AccKind.max, MemType.f64, -math.inf),
    ],
)
def test_an_accumulator_of_nothing_is_its_identity(op, kind, dtype, identity):
    got = accumulate(op, kind, dtype, [])
    assert got[()] == identity
    assert not np.signbit(got) or identity < 0


def test_float_min_and_max_order_zeros_and_give_the_canonical_nan():
    assert np.signbit(accumulate("f64.acc_min", AccKind.min, MemType.f64, [0.0, -0.0, 0.0]))
    assert not np.signbit(accumulate("f64.acc_max", AccKind.max, MemType.f64, [-0.0, 0.0, -0.0]))
    nan = np.array([0xFFF0000000000001], np.uint64).view(np.float64)
    for values in (nan, f64(1, *nan), f64(*nan, 1, 2)):
        assert accumulate("f64.acc_min", AccKind.min, MemType.f64, values).tobytes() == f64(math.nan).tobytes()


def test_a_histogram_counts_into_bins_and_an_index_beyond_them_traps_unsigned():
    assert accumulate("acc_histogram", AccKind.histogram, MemType.i64, [1, 3, 3, 0], bins=4).tolist() == [1, 1, 0, 2]
    for bad in (4, -1):
        b = Builder()
        x = b.op("i32.load", imm=b.input("x", MemType.i32))
        b.op("acc_histogram", x, imm=b.accumulator("h", AccKind.histogram, MemType.i64, 4))
        fault = run(b, [i32(0, bad)]).fault
        assert (fault.code, fault.element) == (FaultCode.out_of_bounds, 1)


def tree(values):
    """Decision 2 in plain Python: partials start at -0.0, absent elements and tiles stay there."""

    def halved(x, width):
        x = list(x) + [-0.0] * (width - len(x))
        while width > 1:
            width //= 2
            x = [x[i] + x[i + width] for i in range(width)]
        return x[0]

    tiles = [halved([-0.0 + v for v in values[k : k + 1024]], 1024) for k in range(0, len(values), 1024)]
    total = 0.0
    for k in range(0, len(tiles), 1024):
        total += halved(tiles[k : k + 1024], 1024)
    return total, tiles


def test_a_float_sum_is_added_in_the_order_of_decision_2():
    rng = np.random.default_rng(3)
    values = rng.normal(0, 1, 5 * 1024 + 77) * 10.0 ** rng.integers(-12, 12, 5 * 1024 + 77)
    total, tiles = tree(values.tolist())
    b = Builder()
    b.op(
        "f64.acc_sum", b.op("f64.load", imm=b.input("x", MemType.f64)), imm=b.accumulator("s", AccKind.sum, MemType.f64)
    )
    result = run(b, [values])
    assert result.tile_sums[0].tolist() == tiles
    assert result.accumulators[0] == total
    assert total != math.fsum(values)
    assert total != float(np.sum(values))


def test_the_halving_adds_elements_512_apart_first():
    values = np.zeros(1024)
    values[[0, 1, 512]] = [1e16, 1.0, -1e16]  # 1.0 survives only if the far pair cancels first
    assert accumulate("f64.acc_sum", AccKind.sum, MemType.f64, values) == 1.0
    values[[0, 1, 512, 511]] = [1e16, -1e16, 1.0, 0.0]  # lost in 1e16 before the neighbours cancel
    assert accumulate("f64.acc_sum", AccKind.sum, MemType.f64, values) == 0.0


def test_each_element_adds_its_own_values_in_program_order_before_any_other_element():
    b = Builder()
    x = b.op("f64.load", imm=b.input("x", MemType.f64))
    s = b.accumulator("s", AccKind.sum, MemType.f64)
    b.op("f64.acc_sum", b.const(F64, 1e16), imm=s)
    b.op("f64.acc_sum", x, imm=s)
    b.op("f64.acc_sum", b.const(F64, -1e16), imm=s)
    assert run(b, [f64(1.0, 1.0)]).accumulators[0] == 0.0


def test_an_f32_sum_is_in_f64():
    assert accumulate("f32.acc_sum", AccKind.sum, MemType.f64, [1.0, 2.0**-40]) == 1 + 2.0**-40


def test_a_sum_of_minus_zeros_is_plus_zero_and_a_nan_sum_is_the_canonical_nan():
    got = accumulate("f64.acc_sum", AccKind.sum, MemType.f64, [-0.0, -0.0])
    assert struct.pack("<d", got) == bytes(8)
    for values in ([math.inf, -math.inf], np.array([0xFFF8000000000001], np.uint64).view(np.float64)):
        assert accumulate("f64.acc_sum", AccKind.sum, MemType.f64, values).tobytes() == f64(math.nan).tobytes()


def test_spans_are_aligned_to_global_tiles_and_added_from_the_left():
    sums = np.array([1e16, 1.0, -1e16])
    assert fold_spans(sums, 0) == 1.0  # one span: tiles 0 and 2 meet first
    assert fold_spans(sums, 1022) == 0.0  # two spans: 1.0 is lost in the first
    assert fold_spans(np.array([1e16, -1e16, 1.0]), 1022) == 1.0
    assert fold_spans(np.zeros(0), 7) == 0.0
    assert math.copysign(1, fold_spans(np.array([-0.0]), 3)) == 1.0
    assert struct.pack("<d", fold_spans(np.array([math.inf, -math.inf]), 0)) == struct.pack("<d", math.nan)


def test_the_sums_of_two_items_fold_into_the_sum_of_one_wherever_the_cut_is():
    rng = np.random.default_rng(4)
    sums = rng.normal(0, 1, 3000) * 10.0 ** rng.integers(-9, 9, 3000)
    padded = np.concatenate([sums, np.full(72, -0.0)])
    expected = 0.0
    for span in padded.reshape(3, 1024):
        while len(span) > 1:
            span = span[: len(span) // 2] + span[len(span) // 2 :]
        expected += span[0]
    assert fold_spans(sums, 0) == expected
    assert fold_spans(sums, 5 * 1024) == expected


# --- emits --------------------------------------------------------------------------------------------------------


def test_emits_keep_the_order_of_elements_whatever_branch_they_come_from():
    b = Builder()
    x = b.op("i32.load", imm=b.input("x", MemType.i32))
    kept, small = b.emit_stream("kept", MemType.i16), b.emit_stream("small", MemType.f16)
    b.if_(b.op("i32.and", x, b.const(I32, 1)))
    b.op("i32.emit", x, imm=kept)
    b.else_()
    b.if_(b.op("i32.gt_s", x, b.const(I32, 4)))
    b.op("i32.emit", b.op("i32.sub", b.const(I32, 0), x), imm=kept)
    b.end()
    b.op("f32.emit", b.op("f32.convert_i32_s", x), imm=small)
    b.end()
    result = run(b, [i32(1, 6, 2, 3, 8, 5)])
    assert result.emits[0].tolist() == [1, -6, 3, -8, 5]
    assert result.emits[0].dtype == np.int16
    assert result.emits[1].tolist() == [6.0, 2.0, 8.0]


def test_how_many_elements_are_worked_on_at_once_changes_no_bit(monkeypatch):
    values = np.random.default_rng(5).normal(0, 1e6, 9000)

    def result():
        b = Builder()
        x = b.op("f64.load", imm=b.input("x", MemType.f64))
        b.op("f64.acc_sum", x, imm=b.accumulator("s", AccKind.sum, MemType.f64))
        b.op("i64.acc_max_s", b.op("i64.reinterpret_f64", x), imm=b.accumulator("m", AccKind.max, MemType.i64))
        b.if_(b.op("f64.gt", x, b.const(F64, 0.0)))
        b.op("f64.emit", x, imm=b.emit_stream("e", MemType.f64))
        b.end()
        b.op("f64.store", b.op("f64.neg", x), imm=b.output("y", MemType.f64))
        return run(b, [values], first=1024)

    whole = result()
    monkeypatch.setattr(reference, "_CHUNK", 2048)
    assert compare(whole, result()) is None


def test_an_item_of_no_elements_delivers_empty_streams_and_identities():
    b = Builder()
    x = b.op("f32.load", imm=b.input("x", MemType.f32))
    b.op("f32.store", x, imm=b.output("y", MemType.f32))
    b.op("f32.emit", x, imm=b.emit_stream("e", MemType.f32))
    b.op("f32.acc_sum", x, imm=b.accumulator("s", AccKind.sum, MemType.f64))
    result = run(b, [np.zeros(0, np.float32)])
    assert len(result.outputs[0]) == len(result.emits[0]) == len(result.tile_sums[0]) == 0
    assert result.accumulators[0] == 0.0
