"""Populations: loaded together, run over the same inputs; the same arrays on every engine as programs one by one."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace

import numpy as np
import pytest

import vyre
from simulated_gpu import simulated
from vyre.engines.cuda import populations
from vyre.engines.fold import fold_rows, fold_spans
from vyre.program.builder import Builder
from vyre.program.opcodes import AccKind, MemType, Type
from vyre.program.random import random_program
from vyre.program.verifier import verify

ENGINES = ("reference", "cpu", "cuda")
TYPES = {"a": vyre.f32, "b": vyre.f32}
SHAPES = ("a * {k} + b", "where(a < b, a, b * {k})", "sqrt(abs(a)) - {k}", "exp(-b * {k})", "(a - b) * (a + {k})")


@pytest.fixture(scope="module", params=ENGINES)
def session(request):
    """A session; the cuda engine is on a simulated device."""
    with ExitStack() as stack:
        if request.param == "cuda":
            stack.enter_context(simulated())
        yield stack.enter_context(vyre.open(request.param))


def formulas(n: int) -> list[vyre.Program]:
    """Straight code and functions; some read one input only."""
    return [vyre.expression(SHAPES[i % len(SHAPES)].format(k=f"{0.5 + i / 64:.6f}"), TYPES).program for i in range(n)]


def columns(count: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(count)
    return {name: rng.normal(size=count).astype(np.float32) for name in "ab"}


def accumulating(i: int) -> vyre.Program:
    """A sum, a minimum, a maximum, a count and an output; divides by zero where i says so."""
    b = Builder(f"accumulating_{i}")
    x = b.op("f32.load", imm=b.input("x", MemType.f32))
    n = b.op("i32.load", imm=b.input("n", MemType.i32))
    y = b.output("y", MemType.f64)
    p = b.op("f32.param", imm=b.param("p", MemType.f32))
    for name, kind, dtype in (
        ("total", AccKind.sum, MemType.f64), ("low", AccKind.min, MemType.f32), ("high", AccKind.max, MemType.i32),
        ("hits", AccKind.count, MemType.i64),
    ):  # fmt: skip
        b.accumulator(name, kind, dtype)
    v = b.op("f32.mul", b.op("f32.add", x, b.const(Type.f32, i / 7)), p)
    b.op("f32.acc_sum", v, imm=0)
    b.op("f32.acc_min", v, imm=1)
    b.op("i32.acc_max_s", b.op("i32.div_s", b.const(Type.i32, 1000), b.op("i32.sub", n, b.const(Type.i32, i))), imm=2)
    b.op("acc_count", b.op("f32.lt", v, p), imm=3)
    b.op("f64.store", b.op("f64.promote_f32", v), imm=y)
    return b.build()


def test_every_program_gives_what_it_gives_alone(session):
    programs = formulas(40)
    arrays = columns(3000)
    population = session.load_many(programs)
    found = session.run_many(population, arrays)
    assert found.value.shape == (40, 3000)
    assert not found.faulted.any()
    for i, program in enumerate(programs):
        named = {s.name: arrays[s.name] for s in program.inputs}
        assert found.value[i].tobytes() == vyre.run(program, engine="reference", **named).value.tobytes(), i


@pytest.mark.parametrize("count", [0, 1, 1024, 5000])
def test_accumulators_and_faults_are_those_of_single_runs(session, count):
    programs = [accumulating(i) for i in range(12)]
    x = np.random.default_rng(1).normal(size=count).astype(np.float32)
    x[:1] = np.nan
    n = np.arange(count, dtype=np.int32) % 5 + 3
    found = session.run_many(session.load_many(programs), x=x, n=n, p=1.5)
    for i, program in enumerate(programs):
        alone = vyre.run(program, engine="reference", x=x, n=n, p=1.5, on_fault="report")
        assert found.faulted[i] == (alone.fault is not None), i
        for name in ("y", "total", "low", "high", "hits"):
            if alone.fault is None:
                assert np.asarray(found[name][i]).tobytes() == np.asarray(alone[name]).tobytes(), (i, name)
            else:
                assert not np.any(found[name][i])
        if alone.fault is not None:
            fault = found.faults[i]
            assert (fault.code, fault.pc, fault.element) == (alone.fault.code, alone.fault.pc, alone.fault.element)
    assert found.faulted.any() == (count > 0)


def test_some_programs_can_be_chosen_by_number_or_mask_in_any_order(session):
    population = session.load_many(formulas(10))
    arrays = columns(33)
    everything = session.run_many(population, arrays).value
    assert np.array_equal(session.run_many(population, arrays, programs=[7, 0, 7]).value, everything[[7, 0, 7]])
    mask = np.arange(10) % 3 == 1
    assert np.array_equal(session.run_many(population, arrays, programs=mask).value, everything[mask])
    assert session.run_many(population, arrays, programs=[]).value.shape == (0, 33)
    with pytest.raises(vyre.BindError, match="programs 3 to 10 of a population of 10"):
        session.run_many(population, arrays, programs=[3, 10])


def test_a_population_of_packed_arrays_is_that_of_its_programs(session):
    programs = formulas(7)
    made = vyre.Population.of(programs)
    again = vyre.Population(
        made.declarations, made.code.copy(), made.code_at, made.constants.copy(), made.constants_at,
        made.registers.copy(), made.registers_at,
    )  # fmt: skip
    arrays = columns(100)
    first = session.run_many(session.load_many(made), arrays).value
    assert np.array_equal(first, session.run_many(session.load_many(again), arrays).value)


def test_arrays_that_start_at_any_byte_are_taken(session):
    made = vyre.Population.of(formulas(3))
    data = b"x" + made.code.tobytes()
    moved = replace(made, code=np.frombuffer(data, np.uint64, len(made.code), 1))
    assert moved.code.flags.aligned
    arrays = columns(10)
    want = session.run_many(session.load_many(made), arrays).value
    assert np.array_equal(session.run_many(session.load_many(moved), arrays).value, want)


def test_one_bad_program_refuses_all_and_says_which_where_and_why(session):
    programs = formulas(9)
    bad = programs[4]
    code = list(bad.code)
    code[2] = code[2]._replace(a=63)
    programs[4] = replace(bad, code=tuple(code))
    with pytest.raises(vyre.VerifyError) as caught:
        session.load_many(programs)
    with pytest.raises(vyre.VerifyError) as alone:
        verify(programs[4])
    assert caught.value.program == 4
    assert (caught.value.rule, caught.value.pc) == (alone.value.rule, alone.value.pc)
    assert caught.value.message == f"program 4 of 9: {alone.value.message}"


def test_outputs_go_to_the_callers_array(session):
    population = session.load_many(formulas(6))
    arrays = columns(50)
    out = np.empty((6, 50), np.float32)
    found = session.run_many(population, arrays, out=out)
    assert found.value is out
    assert np.array_equal(out, session.run_many(population, arrays).value)
    with pytest.raises(vyre.BindError, match=r"out for value is float32\[6, 49\]; it must be"):
        session.run_many(population, arrays, out=np.empty((6, 49), np.float32))


def test_programs_that_declare_different_things_are_no_population():
    with pytest.raises(vyre.ProgramError, match=r"program 1 .* of a population declares outputs"):
        vyre.Population.of([vyre.expression("a", {"a": vyre.f32}).program, accumulating(1)])
    with pytest.raises(vyre.ProgramError, match="program 1 of a population declares inputs"):
        vyre.Population.of([vyre.expression("a > 1", {"a": t}).program for t in (vyre.f32, vyre.f64)])
    with pytest.raises(vyre.ProgramError, match="at least one program"):
        vyre.Population.of([])


def test_arrays_that_do_not_fit_each_other_are_refused():
    made = vyre.Population.of(formulas(3))
    with pytest.raises(vyre.ProgramError, match="code_at of a population goes from 0 to the"):
        replace(made, code_at=made.code_at[:-1])
    with pytest.raises(vyre.ProgramError, match="each needs one more than there are programs"):
        replace(made, constants=made.constants[:0], constants_at=np.zeros(2, np.int64))
    registers = made.registers.copy()
    registers[1] = 9
    with pytest.raises(vyre.ProgramError, match="register 1 of a population has type 9"):
        replace(made, registers=registers)


def test_results_without_a_row_for_each_program_are_refused(session):
    programs = [random_program(seed, max_ops=10) for seed in range(300)]
    emitting = next(p for p in programs if p.emits)
    with pytest.raises(vyre.BindError, match="run_many gives one row for each program, which emit e0 is not"):
        session.run_many(session.load_many([emitting, emitting]), elements=5)


def test_a_closed_population_is_refused_and_makes_room(session):
    population = session.load_many(formulas(5))
    population.close()
    population.close()
    with pytest.raises(vyre.BindError, match="is not loaded in this session"):
        session.run_many(population, columns(5))


def test_sums_of_rows_are_folded_as_a_single_runs_are():
    rng = np.random.default_rng(3)
    for tiles in (0, 1, 2, 3, 98, 1023, 1024, 1025, 3000):
        rows = rng.normal(size=(5, tiles)) * 10.0 ** rng.integers(-20, 20, (5, tiles))
        if tiles > 2:
            rows[1] = -0.0
            rows[2, 1] = np.nan
        want = np.array([fold_spans(row, 0) for row in rows])
        assert fold_rows(rows).tobytes() == want.tobytes(), tiles


def test_batches_larger_than_the_ring_and_the_staging_are_cut(monkeypatch):
    monkeypatch.setattr(populations, "STAGING_BYTES", 7 * 4096)
    with simulated(), vyre.open("cuda") as session:
        population = session.load_many(formulas(100))
        arrays = columns(1000)
        tickets = [session.submit(p, arrays["a"]) for p in [vyre.expression("a + 1", {"a": vyre.f32})] * 5]
        found = session.run_many(population, arrays).value
        for i, program in enumerate(formulas(100)):
            named = {s.name: arrays[s.name] for s in program.inputs}
            assert np.array_equal(found[i], vyre.run(program, engine="reference", **named).value)
        assert all(np.array_equal(t.result(1.0).value, arrays["a"] + 1) for t in tickets)
        taken = [dict(p.taken) for p in (session.engine.arena._pieces, session.engine._pinned._chunks[0].pieces)]
        session.run_many(population, arrays)
        assert [p.taken for p in (session.engine.arena._pieces, session.engine._pinned._chunks[0].pieces)] == taken


def test_numbers_of_closed_populations_are_used_again():
    with simulated(), vyre.open("cuda") as session:
        programs = vyre.Population.of([p for p in formulas(25) if len(p.code) < 12] * 1_000)
        arrays = {name: a[:3] for name, a in columns(4).items()}
        for _ in range(5):  # 100,000 in all, of 65,536 numbers
            population = session.load_many(programs)
            population.close()
        population = session.load_many(programs)
        found = session.run_many(population, arrays, programs=[0, -1 + len(programs)]).value
        single = session.load(formulas(1)[0])
        assert np.array_equal(session.run(single, arrays).value, found[0])
