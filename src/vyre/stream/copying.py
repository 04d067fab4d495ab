"""Copier threads: several at once fill buffers from the page cache, or around it, and never hold the GIL.

Native functions; see vyre.native. A board is one block of words: a queue of reads, and for each slot of a pool a line
that says how often it has been filled. One thread produces: it queues the reads of a slot whose buffer nobody reads any
more. Any number of copiers take reads in order; whoever finishes the last one of a slot says that it is full.

Owns: the words of a board, what a copier does. Leaves to others: starting the threads, which bytes go where, what
happens to a full slot.
"""

from __future__ import annotations

from typing import Final

from vyre.native import (
    Unit,
    cas64,
    copy,
    fence,
    fetch_add32,
    fetch_add64,
    futex_wait,
    futex_wake,
    load32_acquire,
    load32_seqcst,
    load64,
    load64_acquire,
    load64_seqcst,
    now_ns,
    pause,
    pread,
    store64_release,
)

# --- the head of a board; one line per writer ------------------------------------------------------------------------
BOARD_TAIL: Final = 0  # u64, producer: reads queued; stored last, with release
BOARD_STOP: Final = 8  # u64, producer: copiers leave
BOARD_READS: Final = 16  # u64, constant: address of the queue
BOARD_MASK: Final = 24  # u64, constant: its length - 1
BOARD_SLOTS: Final = 32  # u64, constant: address of the slots' lines
BOARD_QUEUED: Final = 64  # u32, producer: moves when reads are queued; copiers sleep on it
BOARD_SLEEPERS: Final = 128  # u64, copiers asleep on BOARD_QUEUED
BOARD_HEAD: Final = 192  # u64, copiers: next read
BOARD_FILLED: Final = 256  # u32, copiers: moves when a slot becomes full; the producer sleeps on it
BOARD_WATCHED: Final = 320  # u64, producer: asleep on BOARD_FILLED
BOARD_CACHED: Final = 384  # u64, copiers: bytes through the page cache
BOARD_DIRECT: Final = 392  # u64, copiers: bytes around it
BOARD_MEMORY: Final = 400  # u64, copiers: bytes copied from memory
BOARD_WAITED_NS: Final = 448  # u64, copiers: time spent without a read: the consumer is the bottleneck
BOARD_BYTES: Final = 512

# --- a read: 64 bytes, written by the producer before BOARD_TAIL -------------------------------------------------------
READ_FD: Final = 0  # u64: descriptor to read, or NO_FD: the source is memory
READ_CACHED_FD: Final = 8  # u64: descriptor that goes on where a direct read stops, or NO_FD
READ_ADDRESS: Final = 16  # where to
READ_SOURCE: Final = 24  # offset in the file, or address
READ_WANTED: Final = 32  # bytes that must come
READ_LENGTH: Final = 40  # bytes to ask for: WANTED, or more to end on a block
READ_SLOT: Final = 48  # u32 slot, u32 of reads of this slot that are done when it is full
READ_LAP: Final = 56  # how often the slot has been filled when this is done
READ_BYTES: Final = 64
NO_FD: Final = 0xFFFF_FFFF

# --- a slot ------------------------------------------------------------------------------------------------------------
SLOT_FULL: Final = 0  # u64, copiers: how often it has been filled; stored last, with release
SLOT_DONE: Final = 8  # u32, copiers: reads done, over all laps
SLOT_ERROR: Final = 16  # u64, copiers: 0, or (1 + index of the read) << 16 | errno; ENDED: the file ended early
SLOT_LINE: Final = 64
ENDED: Final = 0xFFFF

SPIN_NS: Final = 20_000
SLEEP_NS: Final = 50_000_000  # net below a lost wake-up
STEP_BYTES: Final = 1 << 20  # asked of the file system at a time

copying = Unit("copying")


@copying.function
def wake_copiers(board: int, count: int) -> None:
    """Wake up to ``count`` copiers, after reads were queued."""
    # Between the stores that made work visible and the look at SLEEPERS; pairs with the sequentially consistent add of
    # a sleeper before its last look: one of the two sees the other.
    fence()
    if load64_seqcst(board + BOARD_SLEEPERS) != 0:
        fetch_add32(board + BOARD_QUEUED, 1)
        futex_wake(board + BOARD_QUEUED, count)


@copying.function
def queue_reads(board: int, tail: int, count: int) -> None:
    """The producer says that reads up to ``tail`` are written, ``count`` of them new."""
    # Pairs with the acquire in take_read: the reads are written, and nobody reads the buffers that they fill.
    store64_release(board + BOARD_TAIL, tail)
    wake_copiers(board, count)


@copying.function
def take_read(board: int) -> int:
    """Address of the next read, or 0 when none is queued."""
    while True:
        head = load64_seqcst(board + BOARD_HEAD)
        # Pairs with the producer's release of TAIL: the read is written.
        if head >= load64_acquire(board + BOARD_TAIL):
            return 0
        if cas64(board + BOARD_HEAD, head, head + 1):
            return load64(board + BOARD_READS) + (head & load64(board + BOARD_MASK)) * READ_BYTES


@copying.function
def sleep_until_queued(board: int) -> None:
    """Wait for a read to be queued. May return early."""
    since = now_ns()
    ready = 0
    while ready == 0:
        ready = load64_seqcst(board + BOARD_HEAD) < load64_acquire(board + BOARD_TAIL)
        if ready == 0:
            if load64_acquire(board + BOARD_STOP) != 0:
                ready = 1
            elif now_ns() - since < SPIN_NS:
                pause()
            else:
                bell = load32_seqcst(board + BOARD_QUEUED)
                fetch_add64(board + BOARD_SLEEPERS, 1)
                ready = load64_seqcst(board + BOARD_HEAD) < load64_acquire(board + BOARD_TAIL)
                if ready == 0 and load64_acquire(board + BOARD_STOP) == 0:
                    futex_wait(board + BOARD_QUEUED, bell, SLEEP_NS)
                fetch_add64(board + BOARD_SLEEPERS, 0xFFFF_FFFF_FFFF_FFFF)
    fetch_add64(board + BOARD_WAITED_NS, now_ns() - since)


@copying.function
def failed(result: int) -> int:
    """Whether pread's answer is minus an errno."""
    return result >= 0xFFFF_FFFF_FFFF_0000


@copying.function
def fill(board: int, read: int) -> int:
    """Do one read. 0, an errno, or ENDED."""
    fd = load64(read + READ_FD)
    address = load64(read + READ_ADDRESS)
    source = load64(read + READ_SOURCE)
    wanted = load64(read + READ_WANTED)
    if fd == NO_FD:
        copy(address, source, wanted)
        fetch_add64(board + BOARD_MEMORY, wanted)
        return 0
    other = load64(read + READ_CACHED_FD)
    length = load64(read + READ_LENGTH)
    got = 0
    direct = 0
    while got < wanted:
        if load64_acquire(board + BOARD_STOP) != 0:
            return 125  # ECANCELED: nobody will look at it
        step = length - got
        if step > STEP_BYTES and other == NO_FD:
            step = STEP_BYTES
        n = pread(fd, address + got, step, source + got)
        if failed(n):
            code = 0 - n
            if code == 4:  # EINTR
                continue
            if other == NO_FD:
                return code
            n = 0
        elif n == 0 and other == NO_FD:
            return ENDED
        got += n
        if other != NO_FD:
            direct = got
            if got < wanted and (n == 0 or (source + got) & 511 != 0):
                # Stopped inside a block, or refused: the page cache goes on where direct I/O cannot.
                fd = other
                other = NO_FD
                length = wanted
    if direct > wanted:
        direct = wanted
    fetch_add64(board + BOARD_DIRECT, direct)
    fetch_add64(board + BOARD_CACHED, wanted - direct)
    return 0


@copying.function
def finish(board: int, read: int, code: int) -> None:
    """Note what became of a read; whoever finishes a slot's last one says that it is full."""
    where = load64(read + READ_SLOT)
    slot = load64(board + BOARD_SLOTS) + (where & 0xFFFF_FFFF) * SLOT_LINE
    if code != 0:
        index = (read - load64(board + BOARD_READS)) // READ_BYTES + 1
        cas64(slot + SLOT_ERROR, 0, index << 16 | code)  # the first one stays
    # Sequentially consistent, so that the last one has the bytes of the others before it.
    if ((fetch_add32(slot + SLOT_DONE, 1) + 1) & 0xFFFF_FFFF) == where >> 32:
        # Pairs with the producer's acquire of FULL: the bytes are there, and the error if there is one.
        store64_release(slot + SLOT_FULL, load64(read + READ_LAP))
        fetch_add32(board + BOARD_FILLED, 1)
        # The add above stands between FULL and this look; pairs with the producer's add before its last look.
        if load64_seqcst(board + BOARD_WATCHED) != 0:
            futex_wake(board + BOARD_FILLED, 1)


@copying.function
def copy_until_stopped(board: int) -> None:
    """The life of a copier thread."""
    while load64_acquire(board + BOARD_STOP) == 0:
        read = take_read(board)
        if read == 0:
            sleep_until_queued(board)
        else:
            finish(board, read, fill(board, read))


@copying.function
def await_either(board: int, seen: int, record: int, expected: int, timeout_ns: int, spin_ns: int) -> int:
    """Wait until BOARD_FILLED is not ``seen``, or the u64 at ``record`` (unless 0) is ``expected``. 1: one of them is.

    A full slot wakes the sleeper. A record, which a GPU writes, can only be looked at: all the time for ``spin_ns``, then
    every 30 us.
    """
    since = now_ns()
    while True:
        if load32_acquire(board + BOARD_FILLED) != seen:
            return 1
        if record != 0 and load64_acquire(record) == expected:
            return 1
        passed = now_ns() - since
        if passed >= timeout_ns:
            return 0
        if record != 0 and passed < spin_ns:
            pause()
            continue
        left = timeout_ns - passed
        if record != 0 and left > 30_000:
            left = 30_000
        fetch_add64(board + BOARD_WATCHED, 1)
        if load32_seqcst(board + BOARD_FILLED) == seen:
            futex_wait(board + BOARD_FILLED, seen, left)
        fetch_add64(board + BOARD_WATCHED, 0xFFFF_FFFF_FFFF_FFFF)


EXPORTS: Final = {"copy_until_stopped": 1, "await_either": 6, "queue_reads": 3, "wake_copiers": 2}
"""Functions that Python calls, with their number of arguments."""
