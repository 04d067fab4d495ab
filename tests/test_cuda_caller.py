"""The native way from a slot to its record: what it stores, in which order, and when it gives up. No device needed."""

from __future__ import annotations

import ctypes
import inspect
from array import array

import numpy as np
import pytest

from vyre.engines.cuda import abi, caller
from vyre.ring.layout import RECORD_DTYPE, SLOT_DTYPE, Opcode, Status


class FakeRing:
    """The host's words and the memory that they name; nobody at the other side."""

    def __init__(self, capacity: int = 4) -> None:
        self.control = np.zeros(1, abi.CONTROL)
        self.slots = np.zeros(capacity, SLOT_DTYPE)
        self.records = np.zeros(capacity, RECORD_DTYPE)
        self.busy = np.zeros(capacity, np.uint8)
        self.words = array("Q", bytes(8 * caller.R_WORDS))
        for at, value in (
            (caller.R_CONTROL, self.control.ctypes.data), (caller.R_SLOTS, self.slots.ctypes.data),
            (caller.R_RECORDS, self.records.ctypes.data), (caller.R_BUSY, self.busy.ctypes.data),
            (caller.R_MASK, capacity - 1), (caller.R_SHIFT, capacity.bit_length() - 1), (caller.R_GENERATION, 1),
        ):  # fmt: skip
            self.words[at // 8] = value
        self.address = self.words.buffer_info()[0]

    def complete(self, sequence: int, status: Status = Status.DONE, **fields: int) -> None:
        record = self.records[sequence % len(self.records)]
        record["status"] = status
        for name, value in fields.items():
            record[name] = value
        record["sequence_plus_1"] = sequence + 1


@pytest.fixture
def natives():
    return caller.natives(None)


def slot(opcode: int = Opcode.NOP, binding: int = 7, flags: int = 0) -> bytes:
    found = np.zeros(1, SLOT_DTYPE)
    found["opcode"], found["binding"], found["flags"] = opcode, binding, flags
    found["inline"] = np.arange(6)
    return found.tobytes()


def test_a_published_slot_has_all_words_its_lap_and_its_flags(natives):
    ring = FakeRing()
    data = slot(binding=9, flags=1)
    for sequence in range(4 * 3):
        ring.complete(sequence)
        ring.busy[:] = 0
        assert (
            natives.gpu_put(ring.address, ctypes.addressof(ctypes.create_string_buffer(data, 64)), 0x8000) == sequence
        )
        found = ring.slots[sequence % 4]
        assert found["status"] == Status.PUBLISHED
        assert found["binding"] == 9
        assert list(found["inline"]) == list(range(6))
        assert found["flags"] == sequence // 4 << 16 | 0x8001
        assert ring.control["tail"][0] == sequence + 1


def test_a_fence_is_counted_before_the_tail_says_that_it_is_there(natives):
    ring = FakeRing()
    data = ctypes.create_string_buffer(slot(Opcode.BATCH_FENCE), 64)
    natives.gpu_put(ring.address, ctypes.addressof(data), 0)
    assert ring.control["fences"][0] == 1
    body = inspect.getsource(caller.gpu_put)
    assert body.index("C_FENCES") < body.index("C_TAIL")


def test_a_call_gives_the_record_and_frees_the_slot(natives):
    ring = FakeRing()
    ring.complete(0, Status.FAULT, code=5, pc=3, element=11, value=12)
    call = caller.Call(ring.address, slot())
    assert call.run() == Status.FAULT
    assert call.record() == (Status.FAULT, 5, 3, 11, 12)
    assert not call.is_done
    assert call.sequence is None
    assert ring.busy[0] == 0
    assert ring.slots[0]["status"] == Status.EMPTY


def test_a_full_ring_publishes_nothing(natives):
    ring = FakeRing(2)
    ring.busy[:] = 1
    call = caller.Call(ring.address, slot())
    before = ring.slots.tobytes()
    assert call.run() == caller.FULL
    assert call.sequence is None
    assert ring.slots.tobytes() == before
    assert ring.control["tail"][0] == 0


def test_a_held_ring_publishes_nothing(natives):
    ring = FakeRing()
    ring.words[caller.R_HELD // 8] = 1
    call = caller.Call(ring.address, slot())
    assert call.run() == caller.REFUSED
    assert call.sequence is None
    assert ring.control["tail"][0] == 0


def test_a_call_that_finds_the_stay_over_says_so_and_its_slot_stays_published(natives):
    ring = FakeRing()
    ring.control["left"] = 1
    call = caller.Call(ring.address, slot())
    assert call.run() == caller.PENDING
    assert call.sequence == 0
    assert ring.busy[0] == 1
    ring.complete(0)
    assert natives.gpu_take(call.address) == Status.DONE
    assert call.sequence is None


def test_a_call_without_an_answer_comes_back_soon(natives):
    call = caller.Call((ring := FakeRing()).address, slot())
    assert call.run() == caller.PENDING
    assert call.sequence == 0
    assert ring.busy[0] == 1


def test_what_an_item_reads_is_brought_first_and_what_it_made_is_taken_only_when_it_is_done(natives):
    ring = FakeRing()
    x, staged, made, y = (np.full(3, i, np.float32) for i in range(4))
    pieces = [(a.ctypes.data, b.ctypes.data, 12) for a, b in ((staged, x), (y, made))]
    call = caller.Call(ring.address, slot(), pieces[:1], pieces[1:])
    ring.complete(0, Status.FAULT)
    call.run()
    assert (staged == x).all()
    assert (y == 3).all()
    ring.complete(1)
    call.run()
    assert (y == made).all()


def test_the_last_store_of_a_slot_is_its_status():
    """Seen in the order of the stores: words, flags, status. The tail comes behind."""
    body = inspect.getsource(caller.gpu_put)
    order = [body.index(text) for text in ("store32_release(to, EMPTY)", "to + OPCODE,", "to + i,", "to + FLAGS - 4,")]
    order += [body.index("store32_release(to, PUBLISHED)"), body.index("control + C_TAIL")]
    assert order == sorted(order)


def test_a_call_is_a_function_of_python_that_needs_no_ctypes():
    call = caller.Call(FakeRing().address, slot())
    assert type(call.run) is type(len)
    with pytest.raises(TypeError):
        call.run(1)
