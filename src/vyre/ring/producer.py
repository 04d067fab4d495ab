"""The host's side of a ring: publish, acknowledge. Native functions; see vyre.native.

Owns: what a producer stores and in which order. Leaves to others: who may publish what (engines), who sleeps (waiting).
"""

from __future__ import annotations

from vyre.native import (
    Unit,
    copy,
    exchange32,
    load32,
    load32_acquire,
    load64,
    pause,
    store32,
    store32_release,
    store64,
    store64_release,
    yield_cpu,
)
from vyre.ring.layout import (
    RING_FULL,
    RING_LOCK,
    RING_MASK,
    RING_RECORDS,
    RING_SHIFT,
    RING_SLOTS,
    RING_STOPS,
    RING_TAIL,
    SEQUENCE_NONE,
    SLOT,
    SLOT_BYTES,
    Status,
)

PUBLISHED = Status.PUBLISHED
EMPTY = Status.EMPTY
FLAGS = 4 * SLOT["flags"].at
RECORD_SHIFT = 6  # log2 of RECORD_BYTES

producer = Unit("producer")


@producer.function
def slot_address(ring: int, sequence: int) -> int:
    return load64(ring + RING_SLOTS) + (sequence & load64(ring + RING_MASK)) * SLOT_BYTES


@producer.function
def record_address(ring: int, sequence: int) -> int:
    return load64(ring + RING_RECORDS) + ((sequence & load64(ring + RING_MASK)) << RECORD_SHIFT)


@producer.function
def stop_address(ring: int, sequence: int) -> int:
    return load64(ring + RING_STOPS) + (sequence & load64(ring + RING_MASK)) * 8


@producer.function
def lock_ring(ring: int) -> None:
    """One producer at a time: user threads share the session's ring."""
    spins = 0
    while exchange32(ring + RING_LOCK, 1) != 0:
        spins += 1
        if spins & 63:
            pause()
        else:
            yield_cpu()


@producer.function
def unlock_ring(ring: int) -> None:
    # Pairs with the exchange in lock_ring: the next producer sees TAIL and the slots as this one left them.
    store32_release(ring + RING_LOCK, 0)


@producer.function
def publish(ring: int, items: int, n: int, stop_at: int) -> int:
    """Publish n slots (64 bytes each at ``items``, status and lap filled in here), all or none.

    Returns the first sequence, or SEQUENCE_NONE when fewer than n slots are free: then not a byte of the slots changed.
    ``stop_at`` is every item's deadline in CLOCK_MONOTONIC ns, or 0. The caller holds the ring's lock.
    """
    tail = load64(ring + RING_TAIL)
    if n > load64(ring + RING_MASK) + 1:
        store64(ring + RING_FULL, load64(ring + RING_FULL) + 1)
        return SEQUENCE_NONE
    i = 0
    while i < n:
        # Pairs with acknowledge: a slot that reads EMPTY has had its record read.
        if load32_acquire(slot_address(ring, tail + i)) != EMPTY:
            store64(ring + RING_FULL, load64(ring + RING_FULL) + 1)
            return SEQUENCE_NONE
        i += 1
    i = 0
    while i < n:
        slot = slot_address(ring, tail + i)
        source = items + i * SLOT_BYTES
        lap = ((tail + i) >> load64(ring + RING_SHIFT)) & 0xFFFF
        store64(stop_address(ring, tail + i), stop_at)
        copy(slot + 4, source + 4, SLOT_BYTES - 4)
        store32(slot + FLAGS, (load32(source + FLAGS) & 0xFFFF) | (lap << 16))
        # The status word last: whoever sees PUBLISHED sees the 15 words above.
        store32_release(slot, PUBLISHED)
        i += 1
    # Pairs with the acquire of TAIL in claim.
    store64_release(ring + RING_TAIL, tail + n)
    return tail


@producer.function
def acknowledge(ring: int, sequence: int) -> None:
    """Free the slot of an item whose record was read. FAULT and DONE alike."""
    # Pairs with the load of the status in publish.
    store32_release(slot_address(ring, sequence), EMPTY)
