"""A session: programs, threads, several at once, the types that go in and out."""

from __future__ import annotations

import array
import ctypes
import pickle
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import vyre
from vyre.errors import ProgramError, ProgramFault, SessionClosed
from vyre.program.builder import Builder
from vyre.program.bytecode import encode
from vyre.program.opcodes import MemType, Type
from vyre.program.verifier import verify


@vyre.program
def add(a: vyre.f32, b: vyre.f32, *, k: vyre.f32 = 1.0):
    return a + k * b


@vyre.program
def several(x: vyre.i32):
    vyre.sum(total=x)
    vyre.count(evens=x % 2 == 0)
    vyre.min(low=x)
    vyre.max(high=x)
    vyre.histogram(last=x & 7, bins=8)
    if x % 3 == 0:
        vyre.emit(third=x)
    return {"half": x // 2, "negative": -x}


@pytest.fixture(scope="module")
def session() -> Iterator[vyre.Session]:
    with vyre.open("cpu", workers=2) as found:
        yield found


A = np.linspace(0, 1, 5_000, dtype=np.float32)
B = np.linspace(-1, 7, 5_000, dtype=np.float32)


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_every_kind_of_result_has_its_name(engine):
    x = np.arange(-100, 10_000, dtype=np.int32)
    with vyre.open(engine) as session:
        r = session.run(several, x=x)
    assert r["total"] == x.sum()
    assert r["evens"] == (x % 2 == 0).sum()
    assert (r["low"], r["high"]) == (-100, 9_999)
    np.testing.assert_array_equal(r["last"], np.bincount(x & 7, minlength=8))
    np.testing.assert_array_equal(r["third"], x[x % 3 == 0])
    np.testing.assert_array_equal(r["half"], x // 2)
    np.testing.assert_array_equal(r["negative"], -x)
    assert sorted(r) == sorted(["total", "evens", "low", "high", "last", "third", "half", "negative"])
    assert len(r) == 8
    assert "total" in r
    with pytest.raises(KeyError, match="has no result 'sum'; it has"):
        _ = r["sum"]
    with pytest.raises(KeyError, match="has 8 results and none is named value"):
        _ = r.value


def test_a_result_is_the_caller_s_and_a_later_run_does_not_change_it(session):
    first = session.run(add, a=A, b=B)
    kept = first.value.copy()
    session.run(add, a=B, b=A)
    np.testing.assert_array_equal(first.value, kept)
    again = session.run(several, x=np.arange(10, dtype=np.int32))
    counts = again["last"].copy()
    session.run(several, x=np.arange(1_000, dtype=np.int32))
    np.testing.assert_array_equal(again["last"], counts)


def test_numpy_takes_a_result_with_one_value(session):
    r = session.run(add, a=A, b=B)
    np.testing.assert_array_equal(np.asarray(r), A + B)
    assert np.asarray(r, dtype=np.float64).dtype == np.float64


def test_the_shape_of_the_inputs_is_that_of_the_outputs(session):
    a, b = A.reshape(50, 100), B.reshape(50, 100)
    assert session.run(add, a=a, b=b).value.shape == (50, 100)
    assert session.run(add, a=a, b=B).value.shape == (5_000,)
    assert session.run(add, a=np.float32(1), b=np.float32(2)).value.shape == ()


def test_eight_threads_run_submit_bind_and_evaluate_programs_of_their_own(session):
    wrong: list[object] = []

    def work(seed: int) -> None:
        rng = np.random.default_rng(seed)
        rule = vyre.expression(f"{seed} * a - b", types={"a": vyre.f64, "b": vyre.f64})
        for turn in range(40):
            n = int(rng.integers(1, 5_000))
            a, b = rng.standard_normal(n), rng.standard_normal(n)
            want = seed * a - b
            results = [
                session.run(rule, a=a, b=b).value,
                session.evaluate(f"{seed} * a - b + {turn}", {"a": a, "b": b}) - turn,
                session.submit(rule, a=a, b=b).result().value,
            ]
            bound = session.bind(rule, a=a, b=b)
            results += [bound.run().value, bound.run().value]
            bound.close()
            for got in results:
                if not np.allclose(got, want, rtol=1e-12, atol=1e-12):
                    wrong.append((seed, turn))

    with ThreadPoolExecutor(8) as pool:
        for done in [pool.submit(work, seed) for seed in range(1, 9)]:
            done.result()
    assert not wrong
    assert not session._outstanding


def test_threads_that_evict_one_another_s_formulas_still_get_their_own_answers(monkeypatch):
    monkeypatch.setattr("vyre.runtime.session.FORMULAS", 3)
    wrong: list[object] = []
    a = np.arange(2_000, dtype=np.float64)
    with vyre.open("cpu", workers=1) as session:

        def work(seed: int) -> None:
            for turn in range(60):
                k = seed * 100 + turn % 7
                if not np.array_equal(session.evaluate(f"a * {k} + 1", {"a": a}), a * k + 1):
                    wrong.append(k)

        with ThreadPoolExecutor(4) as pool:
            for done in [pool.submit(work, seed) for seed in range(4)]:
                done.result()
        assert len(session._formulas) <= 3 + 4
        assert len(session.engine._images) <= 3 + 8
    assert not wrong


def test_two_sessions_at_once_do_not_know_of_one_another():
    with vyre.open("cpu", workers=1) as one, vyre.open("cpu", workers=1) as two:
        p, q = one.load(add), two.load(several)
        for _ in range(20):
            np.testing.assert_array_equal(one.run(p, a=A, b=B).value, A + B)
            assert two.run(q, x=np.arange(5, dtype=np.int32))["total"] == 10
        # What one has loaded, the other loads for itself, once.
        for _ in range(3):
            np.testing.assert_array_equal(two.run(p, a=A, b=B).value, A + B)
        assert len(two._loaded) == 2
        one.close()
        assert two.run(q, x=np.arange(5, dtype=np.int32))["total"] == 10


def test_programs_come_as_functions_expressions_bytecode_and_loaded(session):
    rule = vyre.expression("a + b", types={"a": vyre.f32, "b": vyre.f32})
    data = encode(rule.verified.program)
    for program in (
        rule,
        data,
        bytearray(data),
        verify(rule.verified.program),
        session.load(rule),
        pickle.loads(pickle.dumps(rule)),
    ):
        np.testing.assert_array_equal(session.run(program, a=A, b=B).value, A + B)


def test_a_bytearray_that_holds_another_program_next_time_is_read_again(session):
    one, two = (encode(vyre.expression(t, types={"a": vyre.f32}).verified.program) for t in ("a + 1", "a + 2"))
    assert len(one) == len(two)
    data = bytearray(one)
    assert session.run(data, a=A).value[0] == 1
    data[:] = two
    assert session.run(data, a=A).value[0] == 2


def test_programs_that_differ_in_names_alone_answer_to_their_own_names(session):
    r = session.run(vyre.expression("a + 1", types={"a": vyre.f32}), a=A)
    s = session.run(vyre.expression("b + 1", types={"b": vyre.f32}), b=A)
    np.testing.assert_array_equal(r.value, s.value)


@pytest.mark.parametrize("thing", ["a + b", 7, lambda a: a, None])
def test_what_is_no_program_is_refused_with_the_way_to_make_one(session, thing):
    with pytest.raises(TypeError, match=r"vyre.expression|@vyre.program|is not a program"):
        session.run(thing, a=A)


def test_a_program_that_was_closed_is_refused_and_can_be_loaded_again(session):
    loaded = session.load(add)
    loaded.close()
    loaded.close()
    with pytest.raises(ValueError, match="program add was closed"):
        session.run(loaded, a=A, b=B)
    np.testing.assert_array_equal(session.run(add, a=A, b=B).value, A + B)


def test_invalid_bytecode_is_refused(session):
    with pytest.raises(ProgramError):
        session.load(b"VIR0 but no program")


# --- what goes in -----------------------------------------------------------------------------------------------------

NUMBERS = np.array([1, 2, 3, 250], np.uint8)


class Subclass(np.ndarray):
    pass


class Arrayed:
    def __array__(self, dtype: object = None, copy: object = None) -> np.ndarray:
        return NUMBERS.astype(np.float32)


class Packed:
    def __dlpack__(self, **_: object) -> object:
        return NUMBERS.astype(np.float32).__dlpack__()

    def __dlpack_device__(self) -> tuple[int, int]:
        return (1, 0)


@pytest.mark.parametrize(
    "value",
    [
        NUMBERS.astype(np.float32), NUMBERS.astype("<f4"), [1, 2, 3, 250], (1.0, 2.0, 3.0, 250.0),
        array.array("f", [1, 2, 3, 250]), memoryview(array.array("f", [1, 2, 3, 250])), (ctypes.c_float * 4)(1, 2, 3, 250),
        Arrayed(), Packed(), NUMBERS.astype(np.float32)[::-1][::-1], np.repeat(NUMBERS, 2).astype(np.float32)[::2],
        NUMBERS.astype(np.float32).reshape(2, 2), NUMBERS.astype(np.float32).view(Subclass),
    ],
    ids=lambda v: type(v).__name__,
)  # fmt: skip
def test_whatever_carries_four_floats_is_taken(session, value):
    rule = vyre.expression("x + 1", types={"x": vyre.f32})
    assert np.asarray(session.run(rule, x=value).value).reshape(-1).tolist() == [2, 3, 4, 251]


@pytest.mark.parametrize("value", [7, 7.0, np.float32(7), np.array(7, np.float32), [7]], ids=repr)
def test_a_scalar_is_one_element(session, value):
    rule = vyre.expression("x * 2", types={"x": vyre.f32})
    assert np.asarray(session.run(rule, x=value).value).reshape(-1).tolist() == [14]


def test_bytes_are_u8(session):
    b = Builder("count")
    x, y = b.input("x", MemType.u8), b.output("y", MemType.u8)
    b.op("i32.store", b.op("i32.add", b.op("i32.load", imm=x), b.const(Type.i32, 1)), imm=y)
    program = b.build()
    for value in (b"abc\xff", bytearray(b"abc\xff"), memoryview(b"abc\xff")):
        assert session.run(program, x=value).value.tobytes() == b"bcd\x00"


def test_a_strided_array_costs_one_copy_which_the_report_announces(session):
    rule = vyre.expression("x + 1", types={"x": vyre.f32})
    wide = np.arange(20_000, dtype=np.float32)
    r = session.run(rule, x=wide[::2])
    np.testing.assert_array_equal(r.value, wide[::2] + 1)
    assert r.report.notes == ["input x: 40,000 bytes copied once, because it is strided or not aligned"]
    unaligned = np.frombuffer(bytes(1 + 4 * 100), np.float32, offset=1, count=100)
    assert "copied once" in session.run(rule, x=unaligned).report.notes[0]
    assert not session.run(rule, x=wide).report.notes


def test_inputs_are_never_written(session):
    frozen = A.copy()
    frozen.flags.writeable = False
    np.testing.assert_array_equal(session.run(add, a=frozen, b=frozen).value, A + A)
    np.testing.assert_array_equal(frozen, A)


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("t", list(MemType), ids=lambda t: t.name)
def test_every_memory_type_is_copied_in_and_out(engine, t):
    from vyre.stream.formats import numpy_dtype

    b = Builder("copy")
    x, y = b.input("x", t), b.output("y", t)
    b.op(f"{t.type.name}.store", b.op(f"{t.type.name}.load", imm=x), imm=y)
    rng = np.random.default_rng(int(t))
    data = rng.integers(0, 100, 3_000).astype(numpy_dtype(t))
    if t is MemType.bf16:
        data = (rng.standard_normal(3_000).astype(np.float32).view(np.uint32) >> 16).astype(np.uint16)
    with vyre.open(engine) as session:
        got = session.run(b.build(), x=data).value
    assert got.dtype == data.dtype
    np.testing.assert_array_equal(got, data)


def test_names_of_ml_dtypes_bfloat16_are_understood(session):
    ml_dtypes = pytest.importorskip("ml_dtypes")
    b = Builder("widen")
    x, y = b.input("x", MemType.bf16), b.output("y", MemType.f32)
    b.op("f32.store", b.op("f32.load", imm=x), imm=y)
    data = np.array([1.5, -2.0, 3.25], ml_dtypes.bfloat16)
    assert session.run(b.build(), x=data).value.tolist() == [1.5, -2.0, 3.25]


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_nothing_in_gives_nothing_out_and_the_identities(engine):
    with vyre.open(engine) as session:
        r = session.run(several, x=np.empty(0, np.int32))
    assert (r["total"], r["evens"]) == (0, 0)
    assert (r["low"], r["high"]) == (2**31 - 1, -(2**31))
    assert r["half"].shape == r["third"].shape == (0,)
    assert not r["last"].any()


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("n", [0, 1, 3_000])
def test_a_program_without_inputs_runs_over_the_elements_asked_for(engine, n):
    @vyre.program
    def squares():
        return vyre.index() * vyre.index()

    with vyre.open(engine) as session:
        np.testing.assert_array_equal(session.run(squares, elements=n).value, np.arange(n) ** 2)


def test_inputs_may_be_named_in_a_mapping_by_keyword_or_not_at_all(session):
    rule = vyre.expression("x + 1", types={"x": vyre.f32})
    for r in (session.run(rule, {"x": A}), session.run(rule, x=A), session.run(rule, A)):
        np.testing.assert_array_equal(r.value, A + 1)
    np.testing.assert_array_equal(session.run(add, {"a": A}, b=B, k=2).value, A + 2 * B)


def test_names_that_are_words_of_run_itself_are_bound_through_the_mapping(session):
    rule = vyre.expression("out + elements", types={"out": vyre.f32, "elements": vyre.f32})
    np.testing.assert_array_equal(session.run(rule, {"out": A, "elements": B}).value, A + B)


# --- where it goes ----------------------------------------------------------------------------------------------------


def test_out_is_written_in_place(session):
    out = np.empty_like(A)
    r = session.run(add, a=A, b=B, out=out)
    assert r.value is out or r.value.base is out
    np.testing.assert_array_equal(out, A + B)
    halves = np.empty(100, np.int32)
    x = np.arange(100, dtype=np.int32)
    r = session.run(several, x=x, out={"half": halves})
    np.testing.assert_array_equal(halves, x // 2)
    np.testing.assert_array_equal(r["negative"], -x)


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_an_output_may_be_exactly_an_input(engine):
    a = A.copy()
    with vyre.open(engine) as session:
        session.run(add, a=a, b=B, out=a)
        np.testing.assert_array_equal(a, A + B)
        bound = session.bind(add, a=a, b=B, out=a)
        bound.run()
        bound.run()
    np.testing.assert_array_equal(a, A + B + B + B)


def test_a_bound_program_reads_its_inputs_as_they_are_at_each_run(session):
    a, b = np.zeros(2_000, np.float32), np.zeros(2_000, np.float32)
    bound = session.bind(add, a=a, b=b)
    for turn in range(5):
        a[:] = turn
        b[:] = 10
        assert (bound.run().value == turn + 10).all()
    bound.close()


def test_a_bound_program_that_faults_once_runs_again(session):
    @vyre.program
    def divide(x: vyre.i32):
        return 100 // x

    x = np.array([1, 0, 2], np.int32)
    bound = session.bind(divide, x=x)
    with pytest.raises(ProgramFault, match="element 1"):
        bound.run()
    assert bound.run(on_fault="report").fault.element == 1
    x[1] = 4
    assert bound.run().value.tolist() == [100, 25, 50]


# --- tables -----------------------------------------------------------------------------------------------------------


def gather() -> object:
    b = Builder("gather")
    x, y = b.input("x", MemType.i64), b.output("y", MemType.f32)
    t = b.table("weights", MemType.f32)
    b.op("f32.store", b.op("f32.table_get", b.op("i64.load", imm=x), imm=t), imm=y)
    return b.build()


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_a_table_is_gathered_from(engine):
    weights = np.linspace(0, 1, 17, dtype=np.float32)
    x = np.random.default_rng(1).integers(0, 17, 5_000)
    with vyre.open(engine) as session:
        np.testing.assert_array_equal(session.run(gather(), x=x, weights=weights).value, weights[x])
        np.testing.assert_array_equal(session.run(gather(), x=x, weights=np.repeat(weights, 2)[::2]).value, weights[x])
        assert session.run(gather(), x=[0, 1], weights=[5, 6]).value.tolist() == [5, 6]
        with pytest.raises(ProgramFault, match="index out of bounds"):
            session.run(gather(), x=[17], weights=weights)


def scatter() -> object:
    from vyre.program.opcodes import Access

    b = Builder("scatter")
    x = b.input("x", MemType.i64)
    t = b.table("counts", MemType.i64, access=Access.atomic)
    b.op("i64.table_add", b.op("i64.load", imm=x), b.const(Type.i64, 1), imm=t)
    return b.build()


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_an_atomic_table_is_updated_in_the_caller_s_memory(engine):
    x = np.random.default_rng(2).integers(0, 9, 100_000)
    counts = np.zeros(9, np.int64)
    with vyre.open(engine) as session:
        for turn in (1, 2):
            session.run(scatter(), x=x, counts=counts)
            np.testing.assert_array_equal(counts, turn * np.bincount(x, minlength=9))


# --- parameters -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("k", [2, 2.0, np.float32(2), np.float64(2), np.int8(2), np.array(2.0)], ids=repr)
def test_numbers_that_fit_a_float_parameter_are_taken(session, k):
    np.testing.assert_array_equal(session.run(add, a=A, b=B, k=k).value, A + 2 * B)


def test_a_float_parameter_is_rounded_and_may_be_infinite_or_nan(session):
    b = np.ones(3, np.float32)
    a = np.zeros(3, np.float32)
    assert session.run(add, a=a, b=b, k=0.1).value[0] == np.float32(0.1)
    assert session.run(add, a=a, b=b, k=float("inf")).value[0] == np.inf
    assert np.isnan(session.run(add, a=a, b=b, k=float("nan")).value[0])
    assert session.run(add, a=a, b=b).value[0] == 1, "the default"


@pytest.mark.parametrize(
    ("t", "value"),
    [(vyre.i32, -(2**31)), (vyre.i32, 2**31 - 1), (vyre.u32, 2**32 - 1), (vyre.i64, -(2**63)), (vyre.i64, 2**63 - 1),
     (vyre.u64, 2**64 - 1), (vyre.u64, np.uint64(2**64 - 1))],
    ids=str,
)  # fmt: skip
def test_the_ends_of_an_integer_parameter_s_range_arrive(session, t, value):
    rule = vyre.expression("x + p", types={"x": t, "p": t}, params=["p"])
    assert session.run(rule, x=[0], p=value).value.tolist() == [int(value)]


def test_the_report_says_engine_elements_and_bytes(session):
    r = session.run(add, a=A, b=B)
    assert (r.report.engine, r.report.elements, r.report.bytes) == ("cpu", 5_000, 40_000)
    assert r.report.seconds > 0
    assert "engine cpu: 5,000 elements, 40,000 bytes in memory" in str(r.report)


def test_a_closed_session_refuses_everything_and_closing_again_is_nothing():
    session = vyre.open("cpu", workers=1)
    loaded = session.load(add)
    bound = session.bind(add, a=A, b=B)
    session.close()
    session.close()
    assert session.closed
    calls = [
        lambda: session.load(several), lambda: session.run(add, a=A, b=B), lambda: session.submit(loaded, a=A, b=B),
        lambda: session.evaluate("a + 1", {"a": A}), lambda: session.bind(add, a=A, b=B), bound.run,
        lambda: session.stream(add, a=A, b=B), lambda: session.submit_nowait(add, a=A, b=B), lambda: session.publish(0),
        lambda: session.dispatch([(add, {"a": A, "b": B})]),
    ]  # fmt: skip
    for call in calls:
        with pytest.raises(SessionClosed, match="this session is closed"):
            call()
    loaded.close()
    bound.close()
    assert "closed" in repr(session)


def test_a_session_closed_while_eight_threads_use_it_ends_each_of_their_calls():
    session = vyre.open("cpu", workers=2)
    x = np.arange(200_000, dtype=np.int32)
    want = x.sum()
    odd: list[object] = []

    def work() -> None:
        while True:
            try:
                if session.run(several, x=x)["total"] != want:
                    odd.append("wrong answer")
            except SessionClosed:
                return
            except BaseException as error:
                odd.append(error)
                return

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    threading.Event().wait(0.2)
    session.close()
    for thread in threads:
        thread.join(20)
    assert not any(t.is_alive() for t in threads)
    assert not odd
