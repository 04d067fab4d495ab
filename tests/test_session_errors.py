"""What a session refuses, and the words it uses: place, rule, value, and the way out (decisions 12 and 13)."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vyre
from vyre.errors import BindError, Cancelled, EngineUnavailable, ProgramFault, VyreError
from vyre.program.builder import Builder
from vyre.program.opcodes import Access, FaultCode, MemType, Type


@vyre.program
def rule(price: vyre.f32, quantity: vyre.i32, *, factor: vyre.f32, limit: vyre.i32 = 7):
    return price * factor if quantity < limit else price


@vyre.program
def divide(x: vyre.i32, y: vyre.i32):
    quotient = x // y
    return quotient


P = np.ones(100, np.float32)
Q = np.ones(100, np.int32)


@pytest.fixture(scope="module")
def session() -> Iterator[vyre.Session]:
    with vyre.open("cpu", workers=1) as found:
        yield found


def refused(session: vyre.Session, *parts: str, program: object = rule, **named: object) -> BindError:
    """Every way in refuses with the same words, and nothing was published."""
    before = session.engine.ring.published
    caught: list[BindError] = []
    for call in (session.run, session.submit, session.bind, session.submit_nowait):
        with pytest.raises(BindError) as found:
            call(program, **named)
        caught.append(found.value)
    assert session.engine.ring.published == before
    assert len({str(error) for error in caught}) == 1
    for part in parts:
        assert part in str(caught[0]), str(caught[0])
    return caught[0]


@pytest.mark.parametrize(
    ("price", "words", "fix"),
    [
        (P.astype(np.float64), "input price has dtype float64; the program takes f32", "price.astype(numpy.float32)"),
        (Q, "input price has dtype int32; the program takes f32", "price.astype(numpy.float32)"),
        (P.astype(np.float16), "input price has dtype float16", "price.astype(numpy.float32)"),
        (P.astype(bool), "input price has dtype bool", "price.astype(numpy.float32)"),
        (P.astype(complex), "input price has dtype complex128", "price.astype(numpy.float32)"),
        (P.astype(object), "input price has dtype object", "price.astype(numpy.float32)"),
        (P.astype(">f4"), "input price has the other byte order (>f4)", "price.astype(numpy.float32)"),
        (np.zeros(100, [("a", "<f4")]), "input price has dtype [('a', '<f4')]", "price.astype(numpy.float32)"),
        (np.ma.masked_array(P, P > 2), "input price is a masked array", "price.filled(value)"),
        (None, "input price is None, which carries no array", "pass an array"),
        ({1: 2}, "input price is a dict, which carries no array", "pass an array"),
        (object(), "input price is a object, which carries no array", "pass an array"),
        (["a", "b"], "input price holds <U1 values", ""),
        ([[1, 2], [3]], "input price: ", ""),
        ([1 + 2j], "input price holds complex128 values", ""),
        ([True, False], "input price is f32 and was given bools", "pass numbers"),
        ([1e39], "input price holds a finite value that would overflow f32", ""),
        (b"bytes", "input price has dtype uint8; the program takes f32", "price.astype(numpy.float32)"),
    ],
    ids=lambda v: str(v)[:30] if isinstance(v, str) else type(v).__name__,
)
def test_an_input_of_another_type_is_refused_with_the_cast_to_write(session, price, words, fix):
    if words.startswith("input price holds <U1"):
        price = [np.array(["a"])[0] + "x", 3.0]  # a list of nothing but strings would be paths
        words = "input price holds <U"
    error = refused(session, words, price=price, quantity=Q, factor=1.0)
    assert fix in error.fix


@pytest.mark.parametrize(
    ("quantity", "words"),
    [
        ([1.5], "input quantity is i32 and was given floats"),
        ([2**31], "input quantity: 2147483648 to 2147483648 does not fit i32 (-2147483648 to 2147483647)"),
        ([-(2**31) - 1], "does not fit i32"),
        (2**70, "input quantity"),
        ([True], "input quantity is i32 and was given bools"),
        (Q.astype(np.uint32), "input quantity has dtype uint32; the program takes i32"),
        (Q.astype(np.int64), "input quantity has dtype int64; the program takes i32"),
    ],
    ids=str,
)
def test_numbers_that_do_not_fit_an_integer_input_are_refused(session, quantity, words):
    refused(session, words, price=P[:1], quantity=quantity, factor=1.0)


def test_device_memory_is_refused_with_two_ways_out(session):
    class Device:
        __cuda_array_interface__ = {"shape": (1,), "typestr": "<f4", "data": (1, False), "version": 3}  # noqa: RUF012

    refused(
        session,
        "input price lies in device memory, which this engine cannot read",
        "engine='cuda', or copy it to the host",
        price=Device(),
        quantity=Q,
        factor=1.0,
    )


def test_lengths_that_differ_are_refused_with_both_names_and_numbers(session):
    refused(
        session,
        "inputs of program rule differ in length: price has 100 elements, quantity has 99",
        "nothing is broadcast",
        price=P,
        quantity=Q[:99],
        factor=1.0,
    )
    refused(session, "price has 1 elements, quantity has 100", price=P[:1], quantity=Q, factor=1.0)


@pytest.mark.parametrize("elements", [99, 0, -1])
def test_a_number_of_elements_that_is_not_the_inputs_is_refused(session, elements):
    refused(
        session,
        f"elements={elements} given, but the inputs have 100",
        price=P,
        quantity=Q,
        factor=1.0,
        elements=elements,
    )


@pytest.mark.parametrize("elements", [None, -1, 1.5, "3", True])
def test_a_program_without_inputs_needs_a_number_of_elements(session, elements):
    @vyre.program
    def numbers():
        return vyre.index()

    words = "no inputs, so it does not know how many elements" if elements is None else f"elements={elements!r}"
    refused(session, words, program=numbers, elements=elements)


def test_names_that_are_unknown_are_refused_with_what_there_is_and_the_nearest(session):
    error = refused(session, "program rule declares no 'prize'", prize=P, quantity=Q, factor=1.0)
    assert "inputs price, quantity; parameters factor, limit" in str(error)
    assert error.fix == "did you mean price?"
    error = refused(session, "declares no 'zzz'", price=P, quantity=Q, factor=1.0, zzz=1)
    assert error.fix == ""


def test_names_that_are_missing_are_named_with_their_type(session):
    refused(session, "program rule: input quantity (i32) is missing", price=P, factor=1.0)
    refused(session, "program rule: input price (f32) is missing", quantity=Q, factor=1.0)
    refused(session, "program rule: parameter factor (f32) is missing", price=P, quantity=Q)


def test_a_bare_value_or_one_given_twice_is_refused(session):
    with pytest.raises(BindError, match="has these inputs: price, quantity; one bare value names none of them"):
        session.run(rule, P, factor=1.0)
    with pytest.raises(BindError, match="price is given twice, in the mapping and by name"):
        session.run(rule, {"price": P, "quantity": Q}, price=P, factor=1.0)
    single = vyre.expression("x + 1", types={"x": vyre.f32})
    with pytest.raises(BindError, match="x is given twice, bare and by name"):
        session.run(single, P, x=P)


PARAMETERS = [
    (vyre.i32, 2**31, "parameter p = 2147483648 does not fit i32, which holds -2147483648 to 2147483647"),
    (vyre.i32, -(2**31) - 1, "does not fit i32"),
    (vyre.u32, -1, "parameter p = -1 does not fit u32, which holds 0 to 4294967295"),
    (vyre.u32, 2**32, "does not fit u32"),
    (vyre.i64, 2**63, "does not fit i64"),
    (vyre.u64, 2**64, "does not fit u64"),
    (vyre.u64, -1, "does not fit u64"),
    (vyre.i32, 1.0, "parameter p is i32 and was given the float 1.0"),
    (vyre.i64, np.float32(1), "parameter p is i64 and was given the float"),
    (vyre.i32, float("nan"), "was given the float nan"),
    (vyre.i32, float("inf"), "was given the float inf"),
    (vyre.f32, 1e39, "parameter p = 1e+39 is finite and would overflow f32"),
    (vyre.f32, -3.5e38, "would overflow f32"),
    (vyre.f32, 10**39, "would overflow f32"),
    (vyre.f32, 10**400, "does not fit f32"),
    (vyre.f64, 10**400, "does not fit f64"),
    (vyre.f32, True, "parameter p is f32 and was given the bool True"),
    (vyre.i32, np.True_, "parameter p is i32 and was given the bool True"),
    (vyre.f64, "1", "parameter p is a str; it takes one f64"),
    (vyre.f64, None, "parameter p is None; it takes one f64"),
    (vyre.f64, [1.0], "parameter p is a list; it takes one f64"),
    (vyre.f64, np.ones(1), "parameter p is a ndarray; it takes one f64"),
    (vyre.f64, 1j, "parameter p is a complex; it takes one f64"),
]


@pytest.mark.parametrize(("t", "value", "words"), PARAMETERS, ids=[f"{t}-{v!r:.20}" for t, v, _ in PARAMETERS])
def test_a_parameter_that_does_not_fit_is_refused_with_its_range(session, t, value, words):
    program = vyre.expression("x + p", types={"x": t, "p": t}, params=["p"])
    refused(session, words, program=program, x=[0], p=value)


def bool_parameter() -> object:
    b = Builder("flag")
    x, y = b.input("x", MemType.i32), b.output("y", MemType.i32)
    p = b.param("on", MemType.bool)
    b.op("i32.store", b.op("i32.add", b.op("i32.load", imm=x), b.op("i32.param", imm=p)), imm=y)
    return b.build()


@pytest.mark.parametrize("value", [1, 0, 1.0, "True"])
def test_a_bool_parameter_takes_a_bool_only(session, value):
    refused(session, "parameter on is a bool and was given", program=bool_parameter(), x=Q, on=value)
    assert session.run(bool_parameter(), x=Q, on=True).value[0] == 2
    assert session.run(bool_parameter(), x=Q, on=np.False_).value[0] == 1


# --- out --------------------------------------------------------------------------------------------------------------


def read_only(a: np.ndarray) -> np.ndarray:
    a = a.copy()
    a.flags.writeable = False
    return a


@pytest.mark.parametrize(
    ("out", "words"),
    [
        (np.empty(100, np.float64), "out for value has dtype float64; the output is f32"),
        (np.empty(99, np.float32), "out for value has 99 elements, the inputs have 100"),
        (np.empty(200, np.float32)[::2], "out for value must be contiguous, aligned and writable"),
        (read_only(P), "out for value must be contiguous, aligned and writable"),
        ([0.0] * 100, "out for value is a list, not a NumPy array"),
        ("file.npy", "out for value is a str, not a NumPy array"),
        ({"other": np.empty(100, np.float32)}, "out names 'other', which is no output of program rule"),
        (np.empty(100, ">f4"), "out for value has dtype >f4"),
    ],
    ids=lambda v: v[:40] if isinstance(v, str) else "",
)
def test_an_out_that_does_not_fit_is_refused(session, out, words):
    with pytest.raises(BindError) as caught:
        session.run(rule, price=P, quantity=Q, factor=1.0, out=out)
    assert words in str(caught.value)


def test_an_out_that_lies_across_an_input_is_refused(session):
    memory = np.zeros(200, np.float32)
    with pytest.raises(BindError, match="out for value overlaps price without being the same elements"):
        session.run(rule, price=memory[:100], quantity=Q, factor=1.0, out=memory[50:150])
    session.run(rule, price=memory[:100], quantity=Q, factor=1.0, out=memory[100:])


def test_two_outs_in_one_memory_are_refused(session):
    @vyre.program
    def both(x: vyre.i32):
        return {"up": x + 1, "down": x - 1}

    memory = np.zeros(150, np.int32)
    for down in (memory[:100], memory[50:]):
        with pytest.raises(BindError, match="out for down overlaps out for up"):
            session.run(both, x=Q, out={"up": memory[:100], "down": down})
    with pytest.raises(BindError, match="out is one array, but program both has these outputs: up, down"):
        session.run(both, x=Q, out=memory[:100])


# --- tables -----------------------------------------------------------------------------------------------------------


def table_program(access: Access) -> object:
    b = Builder("tabled")
    x = b.input("x", MemType.i64)
    t = b.table("t", MemType.i64, access)
    if access is Access.atomic:
        b.op("i64.table_add", b.op("i64.load", imm=x), b.const(Type.i64, 1), imm=t)
    else:
        b.op("i64.store", b.op("i64.table_get", b.op("i64.load", imm=x), imm=t), imm=b.output("y", MemType.i64))
    return b.build()


INDEX = np.zeros(10, np.int64)


@pytest.mark.parametrize("access", list(Access))
def test_a_table_of_another_type_or_shape_or_none_is_refused(session, access):
    p = table_program(access)
    refused(session, "program tabled: table t (i64) is missing", program=p, x=INDEX)
    refused(session, "table t has dtype float64", "t.astype(numpy.int64)", program=p, x=INDEX, t=np.zeros(3))
    refused(session, "table t has 2 dimensions and must have 1", program=p, x=INDEX, t=np.zeros((2, 2), np.int64))


@pytest.mark.parametrize(
    "table",
    [[1, 2], (1, 2), np.zeros(20, np.int64)[::2], read_only(np.zeros(5, np.int64))],
    ids=lambda v: type(v).__name__,
)
def test_a_table_that_is_updated_must_be_the_caller_s_own_memory(session, table):
    words = "table t is updated in place and must be a writable, contiguous NumPy array"
    refused(session, words, program=table_program(Access.atomic), x=INDEX, t=table)


def test_an_out_over_a_table_is_refused(session):
    t = np.zeros(10, np.int64)
    with pytest.raises(BindError, match="out for y overlaps table t"):
        session.run(table_program(Access.read), x=INDEX, t=t, out=t)


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_a_fault_names_file_line_element_and_the_values_of_the_operands(engine):
    x = np.arange(5_000, dtype=np.int32)
    y = np.ones(5_000, np.int32)
    y[[3_333, 4_444]] = 0
    with vyre.open(engine) as session:
        with pytest.raises(ProgramFault) as caught:
            session.run(divide, x=x, y=y)
        reported = session.run(divide, x=x, y=y, on_fault="report")
        assert session.run(divide, x=x, y=y + 1).value[1] == 0
    fault = caught.value.fault
    assert fault == reported.fault
    assert fault.code == FaultCode.divide_by_zero
    assert fault.element == 3_333
    assert fault.file is not None
    assert fault.file.endswith("test_session_errors.py")
    text = Path(__file__).read_text(encoding="utf-8").splitlines()
    assert fault.line is not None
    assert text[fault.line - 1].strip() == "quotient = x // y"
    assert sorted(fault.operands.values()) == [0, 3_333]
    assert f"test_session_errors.py:{fault.line}: integer divide by zero (pc" in str(caught.value)
    with pytest.raises(ProgramFault):
        _ = reported.value


def test_a_fault_behind_a_million_turns_of_a_loop_is_raised_without_running_them_again(session):
    @vyre.program
    def late(x: vyre.i32, *, turns: vyre.i32):
        left = turns + x * 0
        while left > 0:
            left -= 1
        return 7 // left

    early = session.run(late, x=[1, 2], turns=100, on_fault="report").fault
    assert early.operands == {"a": 7, "b": 0}
    began = time.monotonic()
    fault = session.run(late, x=[1, 2], turns=1_000_000, on_fault="report").fault
    assert time.monotonic() - began < 5
    assert (fault.code, fault.pc, fault.line, fault.operands) == (early.code, early.pc, early.line, {})


def test_a_fault_of_a_run_in_place_tells_no_values_that_are_no_longer_there(session):
    x, y = np.full(100, 7, np.int32), np.ones(100, np.int32)
    y[50] = 0
    fault = session.run(divide, x=x, y=y, out=x, on_fault="report").fault
    assert (fault.element, fault.operands) == (50, {})


def test_a_fault_of_the_smallest_quotient_is_an_overflow(session):
    with pytest.raises(ProgramFault, match="integer overflow"):
        session.run(divide, x=np.array([-(2**31)], np.int32), y=np.array([-1], np.int32))


def test_a_faulted_run_leaves_atomic_tables_indeterminate_but_the_session_usable(session):
    t = np.zeros(3, np.int64)
    with pytest.raises(ProgramFault, match="index out of bounds"):
        session.run(table_program(Access.atomic), x=np.array([0, 3, 1]), t=t)
    session.run(table_program(Access.atomic), x=INDEX, t=t)


# --- evaluate ---------------------------------------------------------------------------------------------------------


def test_evaluate_refuses_lengths_that_differ_and_names_that_are_missing(session):
    with pytest.raises(BindError, match="differ in length: a has 100 elements, b has 99"):
        session.evaluate("a + b", {"a": P, "b": P[:99]})
    with pytest.raises(VyreError, match="b"):
        session.evaluate("a + b", {"a": P})


def test_evaluate_runs_no_python(session):
    for text in ("__import__('os').system('true')", "a.__class__", "(lambda: 1)()", "open('x')", "[a for a in a]"):
        with pytest.raises(VyreError):
            session.evaluate(text, {"a": P})


def test_evaluate_takes_numbers_as_parameters_and_ignores_names_it_does_not_use(session):
    np.testing.assert_array_equal(session.evaluate("a * k", {"a": P, "k": 3.0, "unused": Q}), P * 3)


# --- opening ----------------------------------------------------------------------------------------------------------


def test_an_engine_that_is_unknown_or_not_here_is_refused_with_what_is_missing():
    with pytest.raises(ValueError, match="engine 'gpu' is unknown; one of auto, cpu, cuda, null, reference"):
        vyre.open("gpu")  # type: ignore[arg-type]
    for options in ({"workers": 0}, {"capacity": 3}):
        with pytest.raises(ValueError):
            vyre.open("cpu", **options)  # type: ignore[arg-type]
    assert issubclass(EngineUnavailable, VyreError)
    assert issubclass(Cancelled, VyreError)


def test_files_where_arrays_are_needed_are_refused_with_the_way_to_stream(session):
    single = vyre.expression("x + 1", types={"x": vyre.f32})
    for call in (session.submit, session.bind):
        with pytest.raises(BindError, match="takes arrays; files are streamed"):
            call(single, x="somewhere.npy")
