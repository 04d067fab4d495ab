"""The CPU engine alone: residency, fences, control items, what becomes of programs that go away (behaviours 7, 12 to 21)."""

from __future__ import annotations

import random
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from vyre.engines.base import Operands
from vyre.engines.cpu.engine import CpuEngine
from vyre.engines.reference import execute
from vyre.errors import ArenaFull, ProgramError, SessionClosed
from vyre.program.builder import Builder
from vyre.program.opcodes import AccKind, FaultCode, MemType, Type
from vyre.program.verifier import Verified, verify
from vyre.ring.layout import MAX_RINGS, NO_ELEMENT, NO_PC, SLOT_DTYPE, Opcode, Status
from vyre.store import Store


def make(workers: int = 2, **options: object) -> CpuEngine:
    return CpuEngine(workers=workers, store=Store(), **options)  # type: ignore[arg-type]


@pytest.fixture
def engine() -> Iterator[CpuEngine]:
    found = make()
    yield found
    found.close()


def slots(n: int, opcode: int = Opcode.NOP, word: int = 0, operand: int = 0, second: int = 0) -> np.ndarray:
    found = np.zeros(n, SLOT_DTYPE)
    found["opcode"], found["binding"], found["first_low"], found["first_high"] = opcode, word, operand, second
    return found


def finish(engine: CpuEngine, first: int, n: int, limit_s: float = 30.0) -> np.ndarray:
    give_up = time.monotonic() + limit_s
    while engine.wait(engine.ring, first, n, 50_000_000) < n:
        assert time.monotonic() < give_up, "the items were not completed"
    return engine.collect(engine.ring, first, n)


def plus_one() -> Verified:
    b = Builder("plus_one")
    x, y = b.input("x", MemType.i32), b.output("y", MemType.i32)
    b.op("i32.store", b.op("i32.add", b.op("i32.load", imm=x), b.const(Type.i32, 1)), imm=y)
    return verify(b.build())


def spin(fuel: int = 1 << 20) -> Verified:
    """Loops until the fuel is gone."""
    b = Builder("spin")
    b.op("i32.load", imm=b.input("x", MemType.i32))
    one = b.const(Type.i32, 1)
    b.loop()
    b.br_if(one)
    b.end()
    program = b.build()
    object.__setattr__(program, "fuel", fuel)
    return verify(program)


def operands(n: int, x: np.ndarray | None = None) -> Operands:
    x = np.arange(n, dtype=np.int32) if x is None else x
    return Operands(0, n, [x], [np.zeros(n, np.int32)], [], [], [])


# --- residency --------------------------------------------------------------------------------------------------------


def test_ten_thousand_items_published_while_it_runs_are_completed_and_it_leaves_and_is_joined():
    engine = make(workers=2)
    time.sleep(0.02)
    assert engine.ring.published == 0
    threads = list(engine._threads)
    assert len(threads) == 2
    assert all(t.is_alive() for t in threads)
    read = 0
    for first in range(0, 10_000, 100):
        assert engine.submit(engine.ring, slots(100, Opcode.ATOMIC_ADD, 0, 1), wake=1) == first
        if first >= 2_000:
            finish(engine, read, 100)
            read += 100
    finish(engine, read, 10_000 - read)
    assert engine.ring.completed == 10_000
    assert engine.session_words[0] == 10_000
    engine.close()
    assert not any(t.is_alive() for t in threads)
    assert engine.ring.claimed == 10_000


def test_workers_alone_complete_what_nobody_waits_for(engine):
    engine.submit(engine.ring, slots(100, Opcode.ATOMIC_ADD, 1, 2), wake=1)
    give_up = time.monotonic() + 10
    while engine.ring.completed < 100:
        assert time.monotonic() < give_up
        time.sleep(0.001)
    assert engine.session_words[1] == 200


@pytest.mark.parametrize("seed", range(4))
def test_random_publishing_sleeping_and_waking_loses_and_repeats_nothing(seed):
    """Pauses around the two microseconds of spinning, so that publishes meet workers in every state."""
    choose = random.Random(seed)
    engine = make(workers=choose.choice([1, 2, 3]), capacity=64)
    try:
        published = read = 0
        for _ in range(2_500):
            n = choose.randrange(1, 9)
            if engine.submit(engine.ring, slots(n, Opcode.ATOMIC_ADD, 3, 1), wake=choose.choice([1, 1, n])) is not None:
                published += n
            pause = choose.choice([0, 0, 0, 1e-6, 5e-6, 5e-5])
            if pause:
                until = time.perf_counter() + pause
                while time.perf_counter() < until:
                    pass
            if published - read > 40 or choose.random() < 0.2:
                finish(engine, read, published - read)
                read = published
        finish(engine, read, published - read)
        assert engine.session_words[3] == published == engine.ring.completed
    finally:
        engine.close()


def test_an_idle_engine_uses_no_measurable_processor_time():
    engine = make(workers=2)
    try:
        finish(engine, engine.submit(engine.ring, slots(10), wake=2), 10)
        time.sleep(0.05)
        assert engine.asleep == 2
        used = []
        for _ in range(3):  # the least of three: other threads of a loaded process may be late with something
            before = time.process_time()
            time.sleep(0.5)
            used.append(time.process_time() - before)
        assert min(used) < 0.005, used
    finally:
        engine.close()


def test_a_wake_up_after_long_idleness_is_not_lost(engine):
    for word in range(5):
        time.sleep(0.03)
        first = engine.submit(engine.ring, slots(1, Opcode.STORE_U32, word, word + 1), wake=1)
        give_up = time.monotonic() + 5
        while engine.ring.completed <= first:
            assert time.monotonic() < give_up
        assert engine.session_words[word] == word + 1
        engine.collect(engine.ring, first, 1)


def test_done_implies_that_every_byte_of_the_item_is_visible(engine):
    opcode = engine.load(plus_one())
    for turn in range(60):
        x = np.full(70_000, turn, np.int32)
        o = operands(len(x), x)
        item = engine.item(opcode, o)
        item.start()
        record = engine.ring.records[item.sequence & (engine.ring.capacity - 1)]
        # Look at the record alone, as another process would: no call into the engine.
        want = item.sequence + 1
        while record["sequence_plus_1"] != want:
            pass
        assert (o.outputs[0] == turn + 1).all()
        assert item.wait(0)
        item.result()
        item.close()


def test_the_count_of_completions_is_never_ahead_of_the_records():
    engine = make(workers=2, capacity=1_024)
    wrong: list[int] = []
    over = threading.Event()

    def look() -> None:
        ring = engine.ring
        while not over.is_set():
            count = ring.completed
            if 0 < count <= 1_024 and int((ring.records["sequence_plus_1"] != 0).sum()) < count:
                wrong.append(count)

    reader = threading.Thread(target=look)
    reader.start()
    try:
        for first in range(0, 1_024, 8):
            engine.submit(engine.ring, slots(8), wake=2)
            finish(engine, first, 8)
    finally:
        over.set()
        reader.join()
        engine.close()
    assert not wrong


def test_closing_twice_and_from_two_threads_joins_once():
    engine = make()
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: engine.close(), range(4)))
    assert engine._memory.in_use == 0
    with pytest.raises(SessionClosed):
        engine.load(plus_one())


def test_close_waits_for_a_user_thread_that_is_inside_an_item():
    engine = make(workers=1)
    opcode = engine.load(spin(1 << 14))
    x = np.zeros(1024 * 64, np.int32)
    item = engine.item(opcode, Operands(0, len(x), [x], [], [], [], []))
    item.start()
    waiter = threading.Thread(target=lambda: [item.wait(10**9) for _ in range(40) if not engine.closed])
    waiter.start()
    time.sleep(0.01)
    engine.close()
    assert engine._memory.in_use == 0
    waiter.join(5)
    assert not waiter.is_alive()


# --- control items ----------------------------------------------------------------------------------------------------


def test_control_items_work_on_the_words_and_answer_in_the_record(engine):
    batch = np.concatenate(
        [
            slots(1, Opcode.STORE_U32, 5, 40),
            slots(1, Opcode.BATCH_FENCE),
            slots(1, Opcode.ATOMIC_ADD, 5, 2),
            slots(1, Opcode.BATCH_FENCE),
            slots(1, Opcode.COMPARE_SWAP, 5, 42, 7),
            slots(1, Opcode.BATCH_FENCE),
            slots(1, Opcode.COMPARE_SWAP, 5, 42, 9),
            slots(1, Opcode.BATCH_FENCE),
            slots(1, Opcode.LOAD_U32, 5),
            slots(1, Opcode.NOP),
        ]
    )
    records = finish(engine, engine.submit(engine.ring, batch, wake=2), len(batch))
    assert records["status"].tolist() == [Status.DONE] * 10
    assert records["value"][[2, 4, 6, 8]].tolist() == [40, 42, 7, 7]
    assert records["opcode"].tolist() == batch["opcode"].tolist()


@pytest.mark.parametrize("word", [4_096, 0xFFFF_FFFF])
@pytest.mark.parametrize("opcode", [Opcode.STORE_U32, Opcode.ATOMIC_ADD, Opcode.LOAD_U32, Opcode.COMPARE_SWAP])
def test_a_word_beyond_the_session_s_ends_in_fault_and_touches_nothing(engine, opcode, word):
    record = finish(engine, engine.submit(engine.ring, slots(1, opcode, word, 1, 1), wake=1), 1)[0]
    assert (record["status"], record["code"]) == (Status.FAULT, FaultCode.out_of_bounds)
    assert (record["element"], record["opcode"], record["pc"]) == (word, opcode, NO_PC)
    assert not engine.session_words.any()


def test_two_identical_atomic_adds_are_both_executed(engine):
    finish(engine, engine.submit(engine.ring, slots(2, Opcode.ATOMIC_ADD, 8, 21), wake=2), 2)
    assert engine.session_words[8] == 42


def test_ten_thousand_compare_and_swap_increments_from_four_threads_total_ten_thousand(engine):
    def increment(times: int) -> None:
        done = 0
        old = 0
        while done < times:
            first = None
            while first is None:
                first = engine.submit(engine.ring, slots(1, Opcode.COMPARE_SWAP, 11, old, old + 1))
            found = int(finish(engine, first, 1)[0]["value"])
            if found == old:
                done += 1
                old += 1
            else:
                old = found

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(increment, [2_500] * 4))
    assert engine.session_words[11] == 10_000


def test_a_fence_orders_increments_before_a_check_a_hundred_thousand_times():
    """Groups of three increments, a fence, a check that reads their number, a fence."""
    engine = make(workers=3, capacity=4_096)
    group = np.concatenate(
        [
            slots(3, Opcode.ATOMIC_ADD, 2, 1),
            slots(1, Opcode.BATCH_FENCE),
            slots(1, Opcode.LOAD_U32, 2),
            slots(1, Opcode.BATCH_FENCE),
        ]
    )
    batch = np.tile(group, 500)
    n = len(batch)
    try:
        for turn in range(200):
            records = finish(engine, engine.submit(engine.ring, batch, wake=3), n)
            read = records["value"][4::6]
            want = 3 * (500 * turn + 1 + np.arange(500, dtype=np.uint64))
            np.testing.assert_array_equal(read, want)
    finally:
        engine.close()


# --- programs that are not there --------------------------------------------------------------------------------------


def test_a_program_unloaded_after_publish_ends_in_fault_with_its_opcode_in_the_record():
    engine = make(workers=1, resident=False)
    try:
        opcode = engine.load(plus_one())
        item = engine.item(opcode, operands(100))
        item.start()
        engine.unload(opcode)
        assert item.wait(10**9)
        record = engine.ring.records[0]
        assert (record["status"], record["code"]) == (Status.FAULT, FaultCode.unknown_opcode)
        assert record["opcode"] == opcode
        assert (record["element"], record["pc"]) == (NO_ELEMENT, NO_PC)
        assert item.result().fault.code == FaultCode.unknown_opcode
        assert not item.operands.outputs[0].any()
    finally:
        engine.close()


def test_a_built_in_that_nothing_implements_ends_in_fault_and_never_as_done(engine):
    record = finish(engine, engine.submit(engine.ring, slots(1, Opcode.DFA_STEP), wake=1), 1)[0]
    assert (record["status"], record["code"]) == (Status.FAULT, FaultCode.unknown_opcode)
    assert record["opcode"] == Opcode.DFA_STEP


def test_an_opcode_given_to_another_program_does_not_run_over_the_first_one_s_operands():
    engine = make(workers=1, resident=False, programs=1)
    try:
        opcode = engine.load(plus_one())
        item = engine.item(opcode, operands(100))
        item.start()
        engine.unload(opcode)
        assert engine.load(spin()) == opcode
        item.wait(10**9)
        assert item.result().fault.code == FaultCode.bad_binding
    finally:
        engine.close()


@pytest.mark.parametrize(
    ("word", "value"),
    [("binding", 70_000), ("binding", 0xFFFF_FFFF), ("binding", 1), ("first_low", 512), ("first_low", 2048),
     ("count_low", 101), ("count_high", 1), ("first_high", 1), ("count_high", 0xFFFF_FFFF), ("first_high", 0xFFFF_FFFF)],
)  # fmt: skip
def test_a_slot_whose_words_do_not_fit_its_binding_ends_in_fault_and_writes_nothing(engine, word, value):
    o = operands(100)
    item = engine.item(engine.load(plus_one()), o)
    slot = item.prepared().copy()
    slot[word] = value
    record = finish(engine, engine.submit(engine.ring, slot, wake=1), 1)[0]
    assert (record["status"], record["code"]) == (Status.FAULT, FaultCode.bad_binding)
    assert not o.outputs[0].any()
    item.close()


def test_arenas_that_are_full_refuse_by_name_and_take_again_what_was_given_back():
    engine = make(workers=1, programs=2, bindings=2)
    try:
        opcodes = [engine.load(plus_one()) for _ in range(2)]
        with pytest.raises(ArenaFull, match="the program store holds 2 programs and is full"):
            engine.load(plus_one())
        items = [engine.item(opcodes[0], operands(10)) for _ in range(2)]
        with pytest.raises(ArenaFull, match="the arena holds 2 bindings and is full"):
            engine.item(opcodes[0], operands(10))
        items.pop().close()
        engine.item(opcodes[0], operands(10)).close()
        engine.unload(opcodes[1])
        engine.load(plus_one())
        rings = [engine.new_ring(8) for _ in range(MAX_RINGS - 1)]
        with pytest.raises(ArenaFull, match="16 rings are open"):
            engine.new_ring(8)
        engine.release_ring(rings[0])
        assert engine.new_ring(8) is rings[0]
    finally:
        engine.close()


def test_an_item_that_is_dropped_without_close_gives_its_binding_back():
    engine = make(workers=1, bindings=4)
    try:
        opcode = engine.load(plus_one())
        for _ in range(20):
            item = engine.item(opcode, operands(10))
            item.start()
            while not item.wait(10**9):
                pass
            item.result()
            del item
    finally:
        engine.close()


# --- bounds, fuel, order ----------------------------------------------------------------------------------------------


def test_an_endless_loop_ends_in_fault_within_its_fuel_while_other_items_go_on():
    engine = make(workers=2)
    try:
        x = np.zeros(4 * 1024, np.int32)
        endless = engine.item(engine.load(spin()), Operands(0, len(x), [x], [], [], [], []))
        endless.start()
        opcode = engine.load(plus_one())
        finished = 0
        while not endless.wait(0) and finished < 50:
            o = operands(2_000)
            item = engine.item(opcode, o)
            item.start()
            while not item.wait(10**7):
                pass
            assert item.result().fault is None
            assert (o.outputs[0] == o.inputs[0] + 1).all()
            item.close()
            finished += 1
        while not endless.wait(10**8):
            pass
        fault = endless.result().fault
        assert (fault.code, fault.element) == (FaultCode.out_of_fuel, 0)
        assert finished > 0
    finally:
        engine.close()


def countdown(n: int) -> Verified:
    """Every element goes n times round."""
    b = Builder("countdown")
    x, y = b.input("x", MemType.i32), b.output("y", MemType.i32)
    left, one = b.reg(Type.i32), b.const(Type.i32, 1)
    b.op("i32.add", b.op("i32.load", imm=x), b.const(Type.i32, n), dst=left)
    b.loop()
    b.op("i32.sub", left, one, dst=left)
    b.br_if(left)
    b.end()
    b.op("i32.store", left, imm=y)
    return verify(b.build())


@pytest.mark.parametrize("stop", ["cancel", "deadline"])
def test_a_long_loop_is_stopped_between_two_of_its_tiles(stop):
    engine = make(workers=1)
    try:
        x = np.zeros(1024 * 1024, np.int32)
        item = engine.item(engine.load(countdown(1 << 16)), operands(len(x), x))
        began = time.monotonic()
        item.start(deadline_ns=time.monotonic_ns() + 100_000_000 if stop == "deadline" else 0)
        time.sleep(0.1)
        item.cancel() if stop == "cancel" else None
        while not item.wait(10**8):
            pass
        taken = time.monotonic() - began
        code = item.result().fault.code
        assert code == (FaultCode.cancelled if stop == "cancel" else FaultCode.deadline)
        assert 0.1 <= taken < 2
    finally:
        engine.close()


@pytest.mark.parametrize("index", [-1, 50, 2**31, -(2**63)])
def test_a_gather_out_of_range_names_pc_and_element_and_touches_no_neighbour(engine, index):
    b = Builder("gather")
    x, y = b.input("x", MemType.i64), b.output("y", MemType.i32)
    t = b.table("t", MemType.i32)
    b.op("i32.store", b.op("i32.table_get", b.op("i64.load", imm=x), imm=t), imm=y)
    program = verify(b.build())
    memory = np.full(4_096, 7, np.int32)
    x_ = np.zeros(3_000, np.int64)
    x_[2_345] = index
    x_[2_999] = index
    out = memory[1_024:4_024]
    o = Operands(0, 3_000, [x_], [out], [], [memory[:50]], [])
    item = engine.item(engine.load(program), o)
    item.start()
    while not item.wait(10**9):
        pass
    fault = item.result().fault
    want = execute(program, [x_], [], [memory[:50].copy()], 0, 3_000).fault
    assert (fault.code, fault.pc, fault.element) == (want.code, want.pc, want.element)
    assert (fault.code, fault.element) == (FaultCode.out_of_bounds, 2_345)
    assert (memory[:1_024] == 7).all()
    assert (memory[4_024:] == 7).all()
    assert not engine.session_words.any()


@pytest.mark.parametrize("workers", [1, 2, 3])
@pytest.mark.parametrize("n", [0, 1, 1_023, 1_024, 1_025, 70_000, 1_050_000])
def test_sums_emits_and_histograms_have_the_reference_s_bits_with_any_number_of_workers(workers, n):
    b = Builder("fold")
    x = b.input("x", MemType.f32)
    s = b.accumulator("s", AccKind.sum, MemType.f64)
    h = b.accumulator("h", AccKind.histogram, MemType.i64, bins=16)
    e = b.emit_stream("kept", MemType.f32)
    v = b.op("f32.load", imm=x)
    b.op("f32.acc_sum", v, imm=s)
    k = b.op("i32.and", b.op("i32.reinterpret_f32", v), b.const(Type.i32, 15))
    b.op("acc_histogram", k, imm=h)
    b.if_(k)
    b.op("f32.emit", v, imm=e)
    b.end()
    program = verify(b.build())
    data = np.random.default_rng(n).standard_normal(n).astype(np.float32)
    want = execute(program, [data], [], [], 0, n)
    engine = make(workers=workers)
    try:
        item = engine.item(engine.load(program), Operands(0, n, [data], [], [np.empty(n, np.float32)], [], []))
        for _ in range(2):
            item.start()
            while not item.wait(10**9):
                pass
            got = item.result()
            assert got.fault is None
            for mine, reference in zip(got.accumulators, want.accumulators, strict=True):
                assert mine.tobytes() == reference.tobytes()
            assert got.emits[0].tobytes() == want.emits[0].tobytes()
    finally:
        engine.close()


def test_bad_numbers_of_workers_are_refused():
    for workers in (0, -1, 1_025):
        with pytest.raises(ValueError, match="it must be from 1 to 1,024"):
            make(workers=workers)


def test_a_refused_install_leaves_no_trace(engine):
    with pytest.raises(ProgramError):
        engine.install(3, plus_one())
    with pytest.raises(KeyError):
        engine.image(3)
