"""The host's side of the GPU engine on a simulated device: bindings, results and sessions have the reference's bits."""

from __future__ import annotations

import contextlib
import threading
import time

import numpy as np
import pytest

import vyre
from simulated_gpu import simulated
from vyre.engines.base import Operands
from vyre.engines.cuda import abi
from vyre.engines.cuda.items import SessionCudaEngine
from vyre.engines.cuda.memory import Pieces
from vyre.engines.differential import difference
from vyre.errors import BindError, SessionClosed
from vyre.program import bytecode


@vyre.program
def gathered(i: vyre.i64, *, t: vyre.table[vyre.f32]):
    vyre.sum(s=t[i])
    return t[i] * 2


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


def test_a_table_on_disk_is_registered_asked_for_page_by_page_and_given_back(session, tmp_path):
    contents = np.random.default_rng(5).random(20_000, np.float32)
    np.save(tmp_path / "t.npy", contents)
    index = np.random.default_rng(6).integers(0, contents.size, 70_001)
    device = session.engine.device
    before = dict(device.registered)
    with vyre.disk_table(tmp_path / "t.npy") as table:
        for _ in range(2):
            found = session.run(gathered, i=index, t=table)
            assert found.value.tobytes() == (contents[index] * 2).tobytes()
            assert found["s"] == vyre.run(gathered, i=index, t=contents, engine="reference")["s"]
        assert table.loaded == 20  # every page once
        assert len(device.registered) > len(before)
        assert not any("read into memory whole" in note for note in found.report.notes)
    assert device.registered == before
    with vyre.disk_table(tmp_path / "t.npy", pool_bytes=16 << 10) as table, pytest.raises(BindError, match="4 pages"):
        session.run(gathered, i=index, t=table)


def test_where_the_device_sees_registered_memory_elsewhere_a_table_on_disk_is_read_whole(
    session, tmp_path, monkeypatch
):
    monkeypatch.setattr(session.engine.device, "same_addresses", False)
    contents = np.arange(5_000, dtype=np.float32)
    np.save(tmp_path / "t.npy", contents)
    found = session.run(gathered, i=np.arange(10), t=tmp_path / "t.npy")
    assert np.array_equal(found.value, contents[:10] * 2)
    assert any("read into memory whole" in note for note in found.report.notes)


# --- what threads, interrupts and full rings must not break ------------------------------------------------------------


def _operands(x):
    return Operands(0, len(x), [x], [np.empty_like(x)], [], [], [])


def test_a_binding_that_a_full_ring_refused_is_told_of_by_the_slot_that_comes_through():
    with simulated(), SessionCudaEngine(arena_bytes=4 << 20, capacity=8) as engine:
        opcode = engine.load(vyre.expression("x + 1", {"x": vyre.f32}).verified)
        items = [engine.item(opcode, _operands(np.full(5000, n, np.float32))) for n in range(9)]
        assert [item.start() for item in items] == [True] * 8 + [False]
        assert items[0].wait(10**9)
        items[0].result()
        assert items[8].start()
        ring = engine.residency
        assert ring._slot_words[(8 & ring._mask) * 16 + 9] & abi.UPDATE_FLAG
        for n, item in enumerate(items[1:], 1):
            assert item.wait(10**9)
            assert (item.result().outputs[0] == n + 1).all()


def test_more_tickets_than_the_ring_has_slots_are_handed_over_without_an_error():
    with simulated(), vyre.open("cuda", capacity=8) as session:
        assert session.engine.residency.capacity == 8
        program = vyre.expression("x * 2", {"x": vyre.f32})
        tickets = [session.submit(program, x=np.full(10, n, np.float32)) for n in range(30)]
        for n, ticket in enumerate(tickets):
            assert (ticket.result().value == 2 * n).all()


def test_closing_ends_a_wait_in_another_thread_before_its_memory_goes():
    with simulated():
        engine = SessionCudaEngine(arena_bytes=4 << 20)
        engine.residency._paused += 1  # nothing is started: the record never comes
        sequence = engine.residency.publish(bytes(64))
        found = []

        def wait() -> None:
            try:
                engine.residency.wait(sequence, 1, None)
            except SessionClosed as error:
                found.append(error)

        thread = threading.Thread(target=wait)
        thread.start()
        time.sleep(0.05)
        engine.close()
        thread.join(5.0)
        assert len(found) == 1
        with pytest.raises(SessionClosed):
            engine.residency.wait(sequence, 1, None)


def test_two_loads_at_once_leave_the_larger_heap(engine, monkeypatch):
    ring = engine.residency
    size = ring._heap_bytes
    paused, entered = ring.paused, []

    @contextlib.contextmanager
    def overtaken():
        with paused():
            if not entered:
                entered.append(True)
                ring.need_heap(size + 8192)  # another thread's, while this one waited for the stay to end
            yield

    monkeypatch.setattr(ring, "paused", overtaken)
    ring.need_heap(size + 4096)
    assert ring._heap_bytes == int(ring._launch["scratch_bytes"][0]) == size + 8192


def test_an_interrupted_population_leaves_no_slot_taken(session, monkeypatch):
    programs = [vyre.expression(f"x * {n} + 1", {"x": vyre.f32}) for n in range(1, 40)]
    handles = session.load_many(programs)
    x = np.arange(3000, dtype=np.float32)
    engine, calls = session.engine, []
    wait = engine.wait

    def interrupted(sequence, n=1, timeout_s=None):
        if not calls:
            calls.append(sequence)
            raise KeyboardInterrupt
        return wait(sequence, n, timeout_s)

    free = engine.residency.free_slots
    monkeypatch.setattr(engine, "wait", interrupted)
    with pytest.raises(KeyboardInterrupt):
        session.run_many(handles, x=x)
    assert calls
    assert engine.residency.free_slots == free
    found = session.run_many(handles, x=x)
    assert np.array_equal(found["value"][4], x * 5 + 1)
