"""What a frame goes through when its bytes have come: handed over, given back. Native functions; see vyre.native.

Owns: who says when a chunk is whose, who sleeps and who rings, the stacks of memory and requests. Leaves to others: reads
(requests), which chunk begins when (pump), the words (frames).
"""

from __future__ import annotations

from vyre.native import (
    Unit,
    fence,
    fetch_add32,
    futex_wait,
    futex_wake,
    load32_acquire,
    load32_seqcst,
    load64,
    load64_seqcst,
    now_ns,
    store32,
    store32_release,
    store64,
)
from vyre.ring.layout import (
    SEQUENCE_NONE,
    SLOT,
)
from vyre.ring.producer import publish
from vyre.ring.waiting import waiting, wake_workers
from vyre.stream.frames import (
    DONE,
    F_BUFFER,
    F_COUNT,
    F_ERROR,
    F_FIRST,
    F_READS,
    F_SEQUENCE,
    F_SLOT,
    F_STATE,
    FAILED,
    FRAME_BYTES,
    FULL,
    LOADED,
    P_BELL,
    P_BUFFERS,
    P_FRAME_COUNT,
    P_FRAMES,
    P_FREE_BUFFERS,
    P_FREE_REQUESTS,
    P_HELD,
    P_LOADING,
    P_MODE,
    P_OUT,
    P_REQUESTS,
    P_RING,
    P_SESSION,
    P_STATE,
    P_STOP,
    P_WAITERS,
    P_WAKE,
    PUBLISHED,
    RETURNED,
    SIGNAL,
)

S_FIRST_LOW = 4 * SLOT["first_low"].at
S_FIRST_HIGH = 4 * SLOT["first_high"].at
S_COUNT_LOW = 4 * SLOT["count_low"].at
S_COUNT_HIGH = 4 * SLOT["count_high"].at
ECANCELED = 125
HALF = 0xFFFF_FFFF
ALL = 0x7FFF_FFFF

handover = Unit("handover", waiting)


@handover.function
def ring_bell(pump: int) -> None:
    """Wake whoever sleeps on the bell, after a change of a frame's state."""
    # Stands between that store and the look at WAITERS; pairs with the add of a sleeper before his last look.
    fence()
    if load32_seqcst(load64(pump + P_WAITERS)) != 0:
        fetch_add32(load64(pump + P_BELL), 1)
        futex_wake(load64(pump + P_BELL), ALL)


@handover.function
def frame_of(pump: int, index: int) -> int:
    return load64(pump + P_FRAMES) + FRAME_BYTES * (index % load64(pump + P_FRAME_COUNT))


@handover.function
def give_back(pump: int, frame: int) -> None:
    """A consumer has done with a frame: nobody reads its memory, its results were taken."""
    # Pairs with attend: who sees RETURNED may write into the memory.
    store32_release(frame + F_STATE, RETURNED)
    # Stands between that store and the looks at HELD and OUT; pairs with the pump's announcement of its sleep between its
    # stores to them and its last look at the frames. A pump that lacks nothing, or that a record will wake, is left alone.
    fence()
    if load64_seqcst(pump + P_HELD) != 0:
        if load64(pump + P_MODE) == SIGNAL or load64_seqcst(pump + P_OUT) == 0:
            ring_bell(pump)


@handover.function
def wait_frame(pump: int, frame: int, timeout_ns: int) -> int:
    """Sleep until a frame is the consumer's (DONE, FULL, FAILED), the pump has ended, or the time is over. Its state."""
    until = now_ns() + timeout_ns
    state = load32_acquire(frame + F_STATE)
    while state < DONE and load32_acquire(pump + P_STATE) == 0:
        bell = load32_acquire(load64(pump + P_BELL))
        fetch_add32(load64(pump + P_WAITERS), 1)
        now = now_ns()
        state = load32_acquire(frame + F_STATE)
        if state < DONE and now < until and load32_acquire(pump + P_STATE) == 0:
            futex_wait(load64(pump + P_BELL), bell, until - now)
            state = load32_acquire(frame + F_STATE)
        fetch_add32(load64(pump + P_WAITERS), 0 - 1)
        if now_ns() >= until:
            break
    return state


@handover.function
def wait_end(pump: int, timeout_ns: int) -> int:
    """Sleep until a pump that was asked to stop has ended, or the time is over. Its state."""
    until = now_ns() + timeout_ns
    ring_bell(pump)
    while load32_acquire(pump + P_STATE) == 0 and now_ns() < until:
        bell = load32_acquire(load64(pump + P_BELL))
        fetch_add32(load64(pump + P_WAITERS), 1)
        now = now_ns()
        if load32_acquire(pump + P_STATE) == 0 and now < until:
            futex_wait(load64(pump + P_BELL), bell, until - now)
        fetch_add32(load64(pump + P_WAITERS), 0 - 1)
    return load32_acquire(pump + P_STATE)


@handover.function
def free_buffer(pump: int, frame: int) -> None:
    """The frame's memory may be lent again."""
    buffer = load64(frame + F_BUFFER)
    if buffer != 0:
        n = load64(pump + P_FREE_BUFFERS)
        store64(load64(pump + P_BUFFERS) + 8 * n, buffer)
        store64(pump + P_FREE_BUFFERS, n + 1)
        store64(frame + F_BUFFER, 0)


@handover.function
def free_request(pump: int, request: int) -> None:
    n = load64(pump + P_FREE_REQUESTS)
    store64(load64(pump + P_REQUESTS) + 8 * n, request)
    store64(pump + P_FREE_REQUESTS, n + 1)


@handover.function
def publish_frame(pump: int, frame: int) -> int:
    """Publish the slot of a chunk that is loaded. 0 when the ring has no room now."""
    first = load64(frame + F_FIRST)
    count = load64(frame + F_COUNT)
    slot = load64(frame + F_SLOT)
    store32(slot + S_FIRST_LOW, first & HALF)
    store32(slot + S_FIRST_HIGH, first >> 32)
    store32(slot + S_COUNT_LOW, count & HALF)
    store32(slot + S_COUNT_HIGH, count >> 32)
    # The pump is the only producer of this ring, so it takes no lock. Its release of the slot's status and of TAIL
    # also carries the descriptors of the binding, and what the kernel or a copier has written.
    sequence = publish(load64(pump + P_RING), slot, 1, 0)
    if sequence == SEQUENCE_NONE:
        store32(frame + F_STATE, LOADED)
        return 0
    store64(frame + F_SEQUENCE, sequence)
    store32(frame + F_STATE, PUBLISHED)
    store64(pump + P_OUT, load64(pump + P_OUT) + 1)
    wake_workers(load64(pump + P_SESSION), load64(pump + P_WAKE))
    return 1


@handover.function
def read_done(pump: int, frame: int) -> None:
    """One request of a frame has ended. The last one hands the chunk over."""
    left = load64(frame + F_READS) - 1
    store64(frame + F_READS, left)
    if left != 0:
        return
    if load64(frame + F_BUFFER) != 0:
        store64(pump + P_LOADING, load64(pump + P_LOADING) - 1)
    if load64(frame + F_ERROR) == 0 and load32_acquire(pump + P_STOP) != 0:
        store64(frame + F_ERROR, ECANCELED)
    if load64(frame + F_ERROR) != 0:
        free_buffer(pump, frame)
        # Pairs with the consumer's look: F_ERROR and its like.
        store32_release(frame + F_STATE, FAILED)
        ring_bell(pump)
    elif load64(pump + P_MODE) == SIGNAL:
        # Pairs with the consumer's look: descriptors and the bytes that they name.
        store32_release(frame + F_STATE, FULL)
        store64(pump + P_OUT, load64(pump + P_OUT) + 1)
        ring_bell(pump)
    else:
        publish_frame(pump, frame)
