"""The engine's side of a ring: claim a ticket, complete it. Native functions; see vyre.native.

Owns: tickets and records. Leaves to others: what an item does (engines), who sleeps (waiting).
"""

from __future__ import annotations

from vyre.native import (
    Unit,
    cas64,
    fetch_add32,
    fetch_add64,
    futex_wake,
    load32,
    load32_seqcst,
    load64_acquire,
    store32,
    store64,
    store64_release,
    ticks,
)
from vyre.ring.layout import (
    RECORD_DTYPE,
    RING_COMPLETED,
    RING_HEAD,
    RING_TAIL,
    SESSION_DONE_BELL,
    SESSION_WAITERS,
    SLOT,
    Opcode,
)
from vyre.ring.producer import producer, record_address, slot_address

assert RECORD_DTYPE.fields is not None
(
    RECORD_STATUS,
    RECORD_CODE,
    RECORD_PC,
    RECORD_OPCODE,
    RECORD_ELEMENT,
    RECORD_VALUE,
    RECORD_STARTED,
    RECORD_FINISHED,
    RECORD_WORKER,
) = (
    int(RECORD_DTYPE.fields[name][1])
    for name in ("status", "code", "pc", "opcode", "element", "value", "started", "finished", "worker")
)
SLOT_OPCODE = 4 * SLOT["opcode"].at
BATCH_FENCE = Opcode.BATCH_FENCE
ALL = 0x7FFF_FFFF

consumer = Unit("consumer", producer)


@consumer.function
def claimable(ring: int) -> int:
    """1 when claim would find a ticket."""
    head = load64_acquire(ring + RING_HEAD)
    if head >= load64_acquire(ring + RING_TAIL):
        return 0
    if load32(slot_address(ring, head) + SLOT_OPCODE) == BATCH_FENCE and load64_acquire(ring + RING_COMPLETED) < head:
        return 0
    return 1


@consumer.function
def claim(ring: int) -> int:
    """Take the next ticket: its sequence + 1, or 0 when there is none to be had now.

    A fence is given out only when every item before it is complete, and nothing behind it is given out before the
    fence itself; nobody waits for it meanwhile.
    """
    head = load64_acquire(ring + RING_HEAD)
    # Pairs with publish: tickets below the tail have their slots written.
    while head < load64_acquire(ring + RING_TAIL):
        # The slot may be a later lap's by now; then HEAD has moved and the swap below fails.
        # The load of COMPLETED pairs with the add in complete: all effects of earlier items are visible behind a fence.
        opcode = load32(slot_address(ring, head) + SLOT_OPCODE)
        if opcode == BATCH_FENCE and load64_acquire(ring + RING_COMPLETED) < head:
            return 0
        if cas64(ring + RING_HEAD, head, head + 1):
            return head + 1
        head = load64_acquire(ring + RING_HEAD)
    return 0


@consumer.function
def complete(
    session: int,
    ring: int,
    sequence: int,
    status: int,
    code: int,
    pc: int,
    element: int,
    value: int,
    opcode: int,
    started: int,
    worker: int,
) -> None:
    """Write the completion record of a claimed ticket: body first, then its sequence, then the count."""
    record = record_address(ring, sequence)
    store32(record + RECORD_STATUS, status)
    store32(record + RECORD_CODE, code)
    store32(record + RECORD_PC, pc)
    store32(record + RECORD_OPCODE, opcode)
    store64(record + RECORD_ELEMENT, element)
    store64(record + RECORD_VALUE, value)
    store64(record + RECORD_STARTED, started)
    store64(record + RECORD_FINISHED, ticks())
    store64(record + RECORD_WORKER, worker)
    # Pairs with is_complete: who sees the sequence sees the record and everything the item wrote.
    store64_release(record, sequence + 1)
    # Pairs with the fence in claim. Sequentially consistent, so that it also stands between the record and the look
    # at WAITERS: a waiter either sees the record or is seen here.
    fetch_add64(ring + RING_COMPLETED, 1)
    if load32_seqcst(session + SESSION_WAITERS) != 0:
        fetch_add32(session + SESSION_DONE_BELL, 1)
        futex_wake(session + SESSION_DONE_BELL, ALL)


@consumer.function
def is_complete(ring: int, sequence: int) -> int:
    """1 once the record of ``sequence`` is there. Only for a ticket whose record was not acknowledged."""
    if load64_acquire(record_address(ring, sequence)) == sequence + 1:
        return 1
    return 0
