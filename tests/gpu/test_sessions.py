"""Sessions on the GPU engine: what users do, with the bits of the reference. Needs a device."""

from __future__ import annotations

import numpy as np
import pytest

import vyre

try:
    _session = vyre.open("cuda")
except vyre.EngineUnavailable as error:
    pytest.skip(f"no GPU engine here: {error.message}", allow_module_level=True)


@pytest.fixture(scope="module")
def session():
    yield _session
    _session.close()


def test_an_expression_over_host_arrays_gives_the_bits_of_the_reference(session):
    a = np.linspace(-5, 5, 100_003).astype(np.float32)
    text = "where(a > 0, sqrt(a) + exp(-a), a * 2.5 - sin(a))"
    assert session.evaluate(text, {"a": a}).tobytes() == vyre.evaluate(text, engine="reference", a=a).tobytes()


def test_sums_and_counts_over_files_are_those_of_arrays_and_of_the_reference(session, tmp_path):
    x = np.random.default_rng(1).normal(size=300_001)
    np.save(tmp_path / "x.npy", x)
    program = vyre.expression("sum(x * x)", {"x": vyre.f64})
    want = vyre.run(program, x=x, engine="reference").value
    assert session.run(program, x=x).value == want
    assert session.run(program, x=tmp_path / "x.npy").value == want


def test_a_bound_program_reads_its_inputs_anew_each_time(session):
    x = np.zeros(1000, np.float32)
    out = np.empty_like(x)
    bound = session.bind(vyre.expression("x + 1", {"x": vyre.f32}), x=x, out=out)
    for i in range(100):
        x[:] = i
        bound.run()
        assert (out == i + 1).all()


def test_a_fault_names_element_and_operands(session):
    program = vyre.expression("a // b", {"a": vyre.i32, "b": vyre.i32})
    a = np.arange(5000, dtype=np.int32)
    b = np.ones(5000, np.int32)
    b[4321] = 0
    with pytest.raises(vyre.ProgramFault) as caught:
        session.run(program, a=a, b=b)
    assert caught.value.fault.element == 4321


def test_arrays_of_torch_are_used_where_they_are(session):
    torch = pytest.importorskip("torch")
    x = torch.arange(100_000, dtype=torch.float32, device="cuda")
    out = torch.empty_like(x)
    program = vyre.expression("x * 2 + 1", {"x": vyre.f32})
    result = session.run(program, x=x, out=out)
    assert result["value"] is out
    assert torch.equal(out, x * 2 + 1)
    torch.cuda.synchronize()


def test_tickets_of_many_programs_are_all_answered(session):
    x = np.arange(2048, dtype=np.float32)
    tickets = [(k, session.submit(vyre.expression(f"x + {k}.0", {"x": vyre.f32}), x=x)) for k in range(200)]
    for k, ticket in tickets:
        assert (ticket.result(10.0).value == x + k).all()


def test_a_bound_program_reads_its_tables_anew_each_time(session):
    from vyre.program.builder import Builder
    from vyre.program.opcodes import Access, MemType

    b = Builder("look_up")
    x = b.input("x", MemType.i64)
    t = b.table("t", MemType.f32, Access.read)
    y = b.output("y", MemType.f32)
    b.op("f32.store", b.op("f32.table_get", b.op("i64.load", imm=x), imm=t), imm=y)
    table = np.zeros(16, np.float32)
    bound = session.bind(b.build(), x=np.arange(16), t=table)
    for i in range(5):
        table[:] = i
        assert (bound.run()["y"] == i).all()
