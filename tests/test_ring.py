"""What the ring takes, refuses and keeps: behaviours 1 to 6, 9 to 11 and 40, on the compiled protocol."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import numpy as np
import pytest

import vyre
from vyre.engines.cpu.engine import CpuEngine
from vyre.engines.null import NullEngine
from vyre.errors import BindError, BytecodeError, ProgramError, RingFull
from vyre.program.builder import Builder
from vyre.program.bytecode import decode
from vyre.program.opcodes import MemType
from vyre.program.verifier import verify
from vyre.ring.layout import (
    RING_COMPLETED,
    RING_CONTROL_BYTES,
    RING_HEAD,
    RING_TAIL,
    SLOT_DTYPE,
    Opcode,
    Priority,
    Status,
)
from vyre.ring.memory import Ring
from vyre.runtime.batches import records_of, slots_of
from vyre.store import Store


def quiet(capacity: int = 8, workers: int = 1, **options: object) -> CpuEngine:
    """An engine without resident threads: nothing moves unless somebody waits."""
    return CpuEngine(workers=workers, store=Store(), capacity=capacity, resident=False, **options)  # type: ignore[arg-type]


@pytest.fixture
def engine() -> Iterator[CpuEngine]:
    found = quiet()
    yield found
    found.close()


def items(n: int, opcode: int = Opcode.NOP) -> np.ndarray:
    """n slots of one opcode, every argument word a number of its own."""
    words = np.zeros((n, 16), np.uint32)
    words[:, 1] = opcode
    words[:, 4:9] = 1 + np.arange(5 * n).reshape(n, 5) % 1_000
    return words.view(SLOT_DTYPE).reshape(-1)


def everything(ring: Ring) -> bytes:
    """Every byte of a ring but the count of refusals."""
    found = ring._region.bytes.copy()
    found[8:16] = 0
    return found.tobytes()


def copy_program(name: str = "copy") -> object:
    b = Builder(name)
    x = b.input("x", MemType.i32)
    y = b.output("y", MemType.i32)
    b.op("i32.store", b.op("i32.load", imm=x), imm=y)
    return verify(b.build())


def test_as_many_items_as_there_are_slots_are_accepted_and_one_more_is_refused_and_changes_no_byte(engine):
    assert engine.submit(engine.ring, items(8)) == 0
    before = everything(engine.ring)
    assert engine.submit(engine.ring, items(1)) is None
    assert everything(engine.ring) == before
    assert engine.ring.refused_full == 1


def test_a_batch_larger_than_the_ring_is_refused_and_changes_no_byte(engine):
    before = everything(engine.ring)
    assert engine.submit(engine.ring, items(9)) is None
    assert everything(engine.ring) == before


@pytest.mark.parametrize("place", [0, 3, 7])
def test_one_item_without_a_handler_among_eight_leaves_the_ring_as_it_was(engine, place):
    engine.submit(engine.ring, items(3))
    engine.wait(engine.ring, 0, 3, 10**9)
    engine.collect(engine.ring, 0, 3)
    batch = items(8)
    batch["opcode"][place] = 0x1_0000 + 17
    before = everything(engine.ring)
    with pytest.raises(ProgramError, match=f"item {place} of 8: opcode 0x10011"):
        engine.submit(engine.ring, batch)
    assert everything(engine.ring) == before
    assert engine.ring.refused_full == 0


def test_a_batch_that_does_not_fit_behind_others_is_refused_whole(engine):
    engine.submit(engine.ring, items(5))
    before = everything(engine.ring)
    assert engine.submit(engine.ring, items(4)) is None
    assert everything(engine.ring) == before
    assert engine.submit(engine.ring, items(3)) == 5


def test_a_slot_stays_taken_until_its_record_is_read_and_a_fault_too(engine):
    faulty = items(8, Opcode.LOAD_U32)
    faulty["binding"] = 4_096
    assert engine.submit(engine.ring, faulty) == 0
    assert engine.wait(engine.ring, 0, 8, 10**9) == 8
    assert engine.submit(engine.ring, items(1)) is None, "complete, but nobody has read the record"
    records = engine.collect(engine.ring, 0, 1)
    assert records["status"].tolist() == [Status.FAULT]
    assert engine.submit(engine.ring, items(1)) == 8
    assert engine.submit(engine.ring, items(1)) is None


def test_words_that_are_not_given_are_zero_on_a_reused_slot_too():
    with vyre.open("null", capacity=1, store=True, resident=False) as session:
        ring = session.engine.ring
        for args in (range(1, 13), [7], []):
            sequence = session.publish(Opcode.NOP, list(args))
            words = ring.slots.view(np.uint32)[:16].copy()
            lap = sequence & 0xFFFF
            want = np.zeros(16, np.uint32)
            want[[0, 1, 3]] = Status.PUBLISHED, Opcode.NOP, Priority.NORMAL
            want[4 : 4 + len(args)] = list(args)
            want[9] = (want[9] & 0xFFFF) | lap << 16
            assert words.tolist() == want.tolist()
            session.completions(sequence, 1)


def test_twelve_argument_words_are_accepted_and_thirteen_refused():
    with vyre.open("cpu") as session:
        sequence = session.publish(Opcode.NOP, [0] * 12)
        before = session.engine.ring.published
        with pytest.raises(BindError, match="13 argument words given, a slot has 12"):
            session.publish(Opcode.NOP, [0] * 13)
        with pytest.raises(BindError, match="argument word 1 = 4294967296 does not fit u32"):
            session.publish(Opcode.NOP, [0, 1 << 32])
        with pytest.raises(BindError, match="priority 5"):
            session.publish(Opcode.NOP, priority=5)
        assert session.engine.ring.published == before
        assert session.completions(sequence, 1)["status"][0] == Status.DONE


RESERVED = [
    Opcode.MEMCPY,
    0xFFF0,
    Opcode.LOAD_MISS,
    Opcode.PRINTF,
    0xFFFF,
    0x8000_0000,
    Opcode.PACKED_SLOT,
    0xC000_0000,
    Opcode.SHUTDOWN,
]


@pytest.mark.parametrize("opcode", RESERVED, ids=hex)
def test_a_reserved_opcode_is_refused_at_publish_and_at_installation(engine, opcode):
    before = everything(engine.ring)
    with pytest.raises(ProgramError, match=f"opcode {int(opcode):#x} has no handler"):
        engine.submit(engine.ring, items(1, opcode))
    with pytest.raises(ProgramError, match="is reserved"):
        engine.install(opcode, copy_program())
    assert everything(engine.ring) == before


@pytest.mark.parametrize("opcode", [8, 0xFFEF, 0x1_0000, 0x3FFF_FFFF, 0x4000_0000, 0x7FFF_FFFF], ids=hex)
def test_an_opcode_for_users_is_refused_until_a_handler_is_installed_and_then_runs_it(engine, opcode):
    with pytest.raises(ProgramError, match="has no handler"):
        engine.submit(engine.ring, items(1, opcode))
    engine.install(opcode, copy_program())
    x, y = np.arange(100, dtype=np.int32), np.zeros(100, np.int32)
    number, _ = engine.bind(
        opcode, elements=100, inputs=[(1, x.ctypes.data, 0)], outputs=[y.ctypes.data], owners=(x, y)
    )
    slot = items(1, opcode)
    slot["binding"], slot["first_low"], slot["first_high"], slot["count_low"], slot["count_high"] = number, 0, 0, 100, 0
    assert engine.submit(engine.ring, slot) == 0
    assert engine.wait(engine.ring, 0, 1, 10**9) == 1
    record = engine.collect(engine.ring, 0, 1)[0]
    assert (record["status"], record["opcode"]) == (Status.DONE, opcode)
    np.testing.assert_array_equal(x, y)


def test_a_program_loaded_beside_a_handler_gets_an_opcode_of_its_own(engine):
    engine.install(0x1_0000, copy_program())
    assert engine.load(copy_program("other")) != 0x1_0000
    assert engine.image(0x1_0000).program.name == "copy"


def test_an_opcode_that_became_free_is_not_the_next_one_given_out(engine):
    first = engine.load(copy_program())
    engine.unload(first)
    assert engine.load(copy_program()) != first


def test_installing_where_a_program_is_loaded_is_refused(engine):
    opcode = engine.load(copy_program())
    with pytest.raises(ProgramError, match="is a loaded program's"):
        engine.install(opcode, copy_program())


@pytest.mark.parametrize("size", [1, 63, 65, 127])
def test_bytes_that_are_no_whole_number_of_slots_or_records_are_refused(size):
    for decoder in (slots_of, records_of):
        with pytest.raises(BindError, match=f"{size} bytes are no whole number of"):
            decoder(bytes(size))
        assert len(decoder(bytes(128))) == 2


@pytest.mark.parametrize("size", [0, 1, 3, 7, 63])
def test_bytes_that_are_no_whole_program_are_refused(size):
    with pytest.raises(BytecodeError):
        decode(b"VIR0".ljust(size, b"\0")[:size])


@pytest.mark.parametrize(
    "batch",
    [np.zeros((2, 15), np.uint32), np.zeros(16, np.uint32), np.zeros((2, 16), np.int32), np.zeros((2, 16), np.uint64)],
    ids=lambda a: f"{a.dtype}{list(a.shape)}",
)
def test_a_batch_of_another_shape_or_type_is_refused(batch):
    with vyre.open("null") as session, pytest.raises(BindError, match=r"a batch is u32\[n, 16\]"):
        session.submit_batch(batch)


@pytest.mark.parametrize("capacity", [0, -1, 3, 4_095, 1 << 21])
def test_a_capacity_that_is_no_power_of_two_in_range_is_refused(capacity):
    with pytest.raises(ValueError, match=f"ring capacity {capacity}: it must be a power of two"):
        quiet(capacity)


@pytest.mark.parametrize("capacity", [1, 2, 1 << 20])
def test_the_smallest_and_the_largest_ring_take_items_lap_after_lap(capacity):
    engine = quiet(capacity, null=True)
    try:
        for lap in range(3):
            n = min(capacity, 1_000)
            assert engine.submit(engine.ring, items(n)) == lap * n
            assert engine.wait(engine.ring, lap * n, n, 10**9) == n
            assert len(engine.collect(engine.ring, lap * n, n)) == n
    finally:
        engine.close()


def test_a_full_ring_gives_none_to_publish_nowait_and_ring_full_to_publish_and_counts_both():
    with vyre.open("cpu", capacity=4, resident=False) as session:
        for _ in range(4):
            assert session.publish_nowait(Opcode.NOP) is not None
        slots = session.engine.ring.slots.tobytes()
        assert session.publish_nowait(Opcode.NOP) is None
        assert session.engine.ring.refused_full == 1
        with pytest.raises(RingFull, match=r"no 1 slots of the session's ring became free in 0.01 s"):
            session.publish(Opcode.NOP, timeout_s=0.01)
        assert session.engine.ring.refused_full > 1
        assert session.engine.ring.slots.tobytes() == slots
        session.completions(0, 4)
        assert session.publish_nowait(Opcode.NOP) == 4


def test_completions_that_were_never_published_are_refused_instead_of_waited_for():
    refusal = pytest.raises(BindError, match="completions 0 to 1 were asked for; 0 were published")
    with vyre.open("null") as session, refusal:
        session.completions(0, 1)


@pytest.mark.parametrize("start", [2**32 - 5, 2**48 - 3, 2**63 - 5])
def test_counts_that_pass_a_power_of_two_stay_right(start):
    engine = quiet(8)
    ring = engine.ring
    try:
        for word in (RING_TAIL, RING_HEAD, RING_COMPLETED):
            ring._region.words[word // 8] = start
        total = 0
        for _ in range(6):
            batch = items(3, Opcode.ATOMIC_ADD)
            batch["binding"], batch["first_low"] = 9, 1
            first = engine.submit(ring, batch)
            assert first == start + total
            assert engine.wait(ring, first, 3, 10**9) == 3
            records = engine.collect(ring, first, 3)
            assert records["sequence_plus_1"].tolist() == [first + 1, first + 2, first + 3]
            total += 3
            assert sorted(records["value"].tolist()) == [total - 3, total - 2, total - 1]
        assert engine.session_words[9] == 18
        assert (ring.published, ring.claimed, ring.completed) == (start + 18,) * 3
    finally:
        engine.close()


@pytest.mark.parametrize("workers", [1, 2, 3])
def test_a_ring_of_1024_slots_drains_a_million_items_with_any_number_of_workers(workers):
    engine = NullEngine(workers=workers, store=Store(), capacity=1_024)
    try:
        batch = items(512)
        out = 0
        for first in range(0, 1_000_000 + 512, 512):
            if first < 1_000_000:
                n = min(512, 1_000_000 - first)
                assert engine.submit(engine.ring, batch[:n], wake=workers) == first
            if first:
                n = min(512, 1_000_000 - out)
                while engine.wait(engine.ring, out, n, 10**8) < n:
                    pass
                records = engine.collect(engine.ring, out, n)
                assert records["sequence_plus_1"][-1] == out + n
                assert (records["status"] == Status.DONE).all()
                out += n
        assert out == 1_000_000
        assert engine.ring.completed == 1_000_000
    finally:
        engine.close()


def test_a_reader_that_sees_published_sees_every_other_word_of_the_slot():
    """One slot published over and over by one thread, its words all the same number; another reads them racing."""
    engine = NullEngine(workers=1, store=Store(), capacity=1, resident=False)
    words = engine.ring.slots.view(np.uint32)
    torn: list[list[int]] = []
    over = threading.Event()

    def read() -> None:
        while not over.is_set():
            if words[0] == Status.PUBLISHED:
                seen = words[4:9].tolist()
                # The slot may have been published anew meanwhile; then the two readings differ.
                if words[0] == Status.PUBLISHED and words[4:9].tolist() == seen and len(set(seen)) != 1:
                    torn.append(seen)

    reader = threading.Thread(target=read)
    reader.start()
    try:
        batch = items(1)
        for lap in range(3_000):
            for word in ("binding", "first_low", "first_high", "count_low", "count_high"):
                batch[word] = lap + 1
            assert engine.submit(engine.ring, batch) == lap
            engine.wait(engine.ring, lap, 1, 10**9)
            engine.collect(engine.ring, lap, 1)
    finally:
        over.set()
        reader.join()
        engine.close()
    assert not torn


def test_every_control_byte_of_a_ring_has_one_writer_per_cache_line():
    assert {RING_TAIL // 64, RING_HEAD // 64, RING_COMPLETED // 64} == {0, 2, 3}
    assert RING_CONTROL_BYTES % 64 == 0
