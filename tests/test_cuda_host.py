"""The host's side of the GPU engine on a simulated device: bindings, results and sessions have the reference's bits."""

from __future__ import annotations

import numpy as np
import pytest

import vyre
from simulated_gpu import simulated
from vyre.engines.cuda.items import SessionCudaEngine
from vyre.engines.cuda.memory import Pieces
from vyre.engines.differential import difference
from vyre.program import bytecode


@pytest.fixture(scope="module")
def engine():
    with simulated(), SessionCudaEngine(arena_bytes=4 << 20) as found:
        yield found


@pytest.fixture(scope="module")
def session():
    with simulated(), vyre.open("cuda") as found:
        yield found


def test_random_programs_have_the_references_bits_whatever_they_declare(engine):
    for seed in range(250):
        assert difference(seed, engine.execute) is None, seed


def test_a_program_from_a_file_runs_where_its_inputs_are_pinned_and_where_they_are_not(engine):
    expression = vyre.expression("a * 2 + b", {"a": vyre.f32, "b": vyre.f64})
    for count in (1, 7, 32, 1024, 5000):
        verified = vyre.verify(bytecode.decode(bytecode.encode(expression.program)))
        opcode = engine.load(verified)
        a = np.linspace(-1, 1, count, dtype=np.float32)
        b = engine.pinned_empty(count, np.float64)
        b[:] = np.linspace(5, 6, count)
        out = engine.pinned_empty(count, np.float64)
        binding = engine.bind(opcode, [a, b], outputs=[out])
        sequence = engine.publish(binding)
        engine.wait(sequence)
        found = engine.result(binding, sequence)
        assert np.array_equal(out, (a * np.float32(2)).astype(np.float64) + b)
        assert np.array_equal(found.outputs[0], out)
        engine.unbind(binding)
        engine.unload(opcode)


def test_what_is_unbound_and_unloaded_makes_room_for_what_comes(engine):
    expression = vyre.expression("a + 1", {"a": vyre.f32})
    a = np.arange(5000, dtype=np.float32)
    engine.pinned_empty(1, np.float32)
    pools = (engine.arena._pieces, engine._pinned._chunks[0].pieces)
    for pieces in pools:
        pieces.settle()
    before = [list(pieces.free) for pieces in pools]
    for _ in range(2_000):
        opcode = engine.load(expression.verified)
        binding = engine.bind(opcode, [a])
        engine.unbind(binding)
        engine.unload(opcode)
    for pieces in pools:
        pieces.settle()
    assert [list(pieces.free) for pieces in pools] == before
    assert len(engine._pinned.chunks) == 1


def test_a_session_runs_bytecode_expressions_sums_and_tables(session):
    x = np.arange(3000, dtype=np.float32)
    data = bytecode.encode(vyre.expression("x * 3", {"x": vyre.f32}).program)
    assert np.array_equal(session.run(data, x=x).value, x * 3)
    total = vyre.expression("sum(x)", {"x": vyre.f32})
    assert session.run(total, x=x).value == vyre.run(total, x=x, engine="reference").value
    bound = session.bind(vyre.expression("x + 1", {"x": vyre.f32}), x=x, out=(out := np.empty_like(x)))
    for i in range(3):
        x[:] = i
        bound.run()
        assert (out == i + 1).all()


def test_pieces_that_wait_for_their_size_are_joined_when_another_size_needs_the_room():
    pieces = Pieces(64 * 256)
    places = [pieces.cut(256) for _ in range(64)]
    assert pieces.cut(1) is None
    for at in places:
        pieces.give_back(at)
    assert pieces.cut(64 * 256) == 0
    pieces.give_back(0)
    pieces.settle()
    assert pieces.free == [(0, 64 * 256)]
