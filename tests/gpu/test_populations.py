"""Populations on the GPU: the bits of the reference for every program, whatever the batches. Needs a device."""

from __future__ import annotations

import numpy as np
import pytest

import vyre
from vyre.program.builder import Builder
from vyre.program.opcodes import AccKind, MemType, Type

try:
    _session = vyre.open("cuda")
except vyre.EngineUnavailable as error:
    pytest.skip(f"no GPU engine here: {error.message}", allow_module_level=True)

TYPES = {"a": vyre.f32, "b": vyre.f32}
SHAPES = ("a * {k} + b", "where(a < b, a, b * {k})", "sqrt(abs(a)) - {k}", "exp(-b * {k})", "(a - b) * (a + {k})")


@pytest.fixture(scope="module")
def session():
    yield _session
    _session.close()


def formulas(n: int) -> list[vyre.Program]:
    return [vyre.expression(SHAPES[i % len(SHAPES)].format(k=f"{0.5 + i / 64:.6f}"), TYPES).program for i in range(n)]


def fitness(i: int) -> vyre.Program:
    """A sum of squares, a minimum and a count; traps where n is i."""
    b = Builder(f"fitness_{i}")
    x = b.op("f32.load", imm=b.input("x", MemType.f32))
    n = b.op("i32.load", imm=b.input("n", MemType.i32))
    for name, kind, dtype in (
        ("loss", AccKind.sum, MemType.f64), ("low", AccKind.min, MemType.f32), ("hits", AccKind.count, MemType.i64),
    ):  # fmt: skip
        b.accumulator(name, kind, dtype)
    r = b.op("f32.sub", b.op("f32.mul", x, b.const(Type.f32, 1 + i / 7)), b.const(Type.f32, 0.25))
    b.op("f32.acc_sum", b.op("f32.mul", r, r), imm=0)
    b.op("f32.acc_min", r, imm=1)
    b.op("acc_count", b.op("i32.div_s", b.const(Type.i32, 10), b.op("i32.sub", n, b.const(Type.i32, i))), imm=2)
    return b.build()


@pytest.mark.parametrize("count", [33, 1024, 20_000])
def test_outputs_of_every_program_are_those_of_the_reference(session, count):
    rng = np.random.default_rng(count)
    arrays = {name: rng.normal(size=count).astype(np.float32) for name in "ab"}
    programs = formulas(300)
    population = session.load_many(programs)
    for _ in range(3):
        found = session.run_many(population, arrays).value
    for i in range(0, 300, 7):
        named = {s.name: arrays[s.name] for s in programs[i].inputs}
        assert found[i].tobytes() == vyre.run(programs[i], engine="reference", **named).value.tobytes(), i
    population.close()


@pytest.mark.parametrize("count", [5, 1000, 50_000])
def test_accumulators_and_faults_are_those_of_the_reference(session, count):
    programs = [fitness(i) for i in range(40)]
    x = np.random.default_rng(1).normal(size=count).astype(np.float32)
    n = (np.arange(count, dtype=np.int32) % 5 + 3) * 3
    population = session.load_many(programs)
    found = session.run_many(population, x=x, n=n)
    for i, program in enumerate(programs):
        alone = vyre.run(program, engine="reference", x=x, n=n, on_fault="report")
        assert found.faulted[i] == (alone.fault is not None), i
        for name in ("loss", "low", "hits"):
            if alone.fault is None:
                assert np.asarray(found[name][i]).tobytes() == np.asarray(alone[name]).tobytes(), (i, name)
        if alone.fault is not None:
            fault = found.faults[i]
            assert (fault.code, fault.pc, fault.element) == (alone.fault.code, alone.fault.pc, alone.fault.element)
    assert found.faulted.any()
    assert not found.faulted.all()


def test_arrays_on_the_device_are_read_and_written_where_they_are(session):
    torch = pytest.importorskip("torch")
    programs = formulas(50)
    a, b = (torch.randn(5000, device="cuda") for _ in range(2))
    out = torch.empty((50, 5000), device="cuda")
    found = session.run_many(session.load_many(programs), a=a, b=b, out=out)
    host = session.run_many(session.load_many(programs), a=a.cpu().numpy(), b=b.cpu().numpy()).value
    assert found.value.owner is out or found.value is out
    assert np.array_equal(out.cpu().numpy(), host)


def test_populations_loaded_one_after_another_in_the_same_place_do_not_answer_for_each_other(session):
    x = np.arange(100, dtype=np.float32)
    for k in range(30):
        programs = [vyre.expression(f"x * {k + 1}.0 + {i}.5", {"x": vyre.f32}).program for i in range(20)]
        population = session.load_many(programs)
        found = session.run_many(population, x=x).value
        for i in range(20):
            assert np.array_equal(found[i], x * np.float32(k + 1) + np.float32(i + 0.5)), (k, i)
        population.close()
