"""Brings chunks into memory and hands them over, without the GIL. Native functions; see vyre.native.

One thread, the pump, does everything but blocking reads, which copier threads may share. It begins chunks in order as
frames and memory allow, queues their reads, takes completions in whatever order they come, and publishes or signals. Run
by Python (machine.py) the same text is the way that works without compiled code, and the model that the tests explore.

Owns: every word of frames.py once the pump runs, but for those that name another writer. Leaves to others: the tables
(tables.py), which rung a file begins on (plan), what a chunk is for.

The completion queue's tail is the kernel's, loaded with acquire order before its entries; the submission queue's tail is
ours, stored with release order after them (io_uring(7)).
"""

from __future__ import annotations

from vyre.native import (
    Unit,
    cas64,
    copy,
    fence,
    fetch_add32,
    futex_wait,
    futex_wake,
    io_uring_enter,
    load32,
    load32_acquire,
    load32_seqcst,
    load64,
    load64_acquire,
    load64_seqcst,
    now_ns,
    pread,
    signed_less,
    store32,
    store32_release,
    store64,
    store64_release,
    thread_ns,
    will_need,
)
from vyre.ring.consumer import RECORD_STATUS, is_complete
from vyre.ring.layout import (
    RECORD_BYTES,
    SEQUENCE_NONE,
    SESSION_STOP,
    SLOT,
    STOP_NOW,
    OperandKind,
    Status,
)
from vyre.ring.producer import acknowledge, publish, record_address, stop_address
from vyre.ring.waiting import waiting, wake_workers
from vyre.stream.frames import (
    ALIAS,
    BUFFERED,
    DIRECT_REGISTERED,
    DIRTY,
    DONE,
    ENDED,
    EXACT,
    F_BUFFER,
    F_COUNT,
    F_ELEMENTS,
    F_ERROR,
    F_ERROR_BYTES,
    F_ERROR_FILE,
    F_ERROR_OFFSET,
    F_FIRST,
    F_HOT,
    F_INDEX,
    F_INPUTS,
    F_ORIGIN,
    F_READS,
    F_RECORD,
    F_SEQUENCE,
    F_SLOT,
    F_STATE,
    FAILED,
    FILE_BYTES,
    FRAME_BYTES,
    FREE,
    FULL,
    HOT,
    HOW_MASK,
    IN_FILE,
    IN_MEMORY,
    K_COLUMN,
    K_FILE,
    K_HOW,
    K_KIND,
    K_OFFSET,
    K_PLACE,
    K_SIZE,
    K_STEP,
    L_ALIGN,
    L_DEMOTED,
    L_DEMOTED_AT,
    L_DIRECT_FD,
    L_FD,
    L_RUNG,
    LOADED,
    LOADING,
    MEMORY,
    NONE,
    P_BELL,
    P_BUFFERS,
    P_BYTES,
    P_CACHED_RUNG,
    P_CHUNKS,
    P_COPIED,
    P_COPIERS,
    P_CPU_NS,
    P_CQ_HEAD,
    P_CQ_MASK,
    P_CQ_TAIL,
    P_CQES,
    P_DEMOTES,
    P_DEPTH_BYTES,
    P_DEPTH_READS,
    P_DRAINED,
    P_ENTERS,
    P_FAILED,
    P_FILES,
    P_FLYING,
    P_FRAME_COUNT,
    P_FRAMES,
    P_FREE_BUFFERS,
    P_FREE_REQUESTS,
    P_HELD,
    P_HUNGRY_NS,
    P_LAY_AT,
    P_LAY_FRAME,
    P_LAY_K,
    P_LAY_PIECE,
    P_LAY_RUN,
    P_LEAVE,
    P_LOADING,
    P_LOADING_MAX,
    P_MODE,
    P_NEXT,
    P_OLDEST,
    P_OUT,
    P_QUEUE,
    P_QUEUE_HEAD,
    P_QUEUE_LOW,
    P_QUEUE_MASK,
    P_QUEUE_TAIL,
    P_QUEUED,
    P_READ_BYTES,
    P_REQUESTED,
    P_REQUESTS,
    P_RING,
    P_RUN,
    P_RUN_AT,
    P_RUN_COUNT,
    P_RUNS,
    P_SESSION,
    P_SQ_HEAD,
    P_SQ_MASK,
    P_SQ_TAIL,
    P_SQES,
    P_STALL_NS,
    P_STALLS,
    P_STATE,
    P_STOP,
    P_TAKEN,
    P_TIMESPEC,
    P_URING,
    P_WAITERS,
    P_WAKE,
    P_WORK_BELL,
    P_WORK_SLEEPERS,
    PIECE_BYTES,
    PREAD,
    PUBLISHED,
    Q_ADDRESS,
    Q_AT,
    Q_DONE,
    Q_FILE,
    Q_FRAME,
    Q_INDEX,
    Q_LENGTH,
    Q_OFFSET,
    Q_PIECE,
    Q_PIECE_SIZE,
    Q_RESULT,
    Q_RUNG,
    Q_USEFUL,
    Q_WANTED,
    R_CHUNKS,
    R_COUNT,
    R_FIRST,
    R_NEEDS,
    R_PIECE_COUNT,
    R_PIECES,
    RETURNED,
    RUN_BYTES,
    SHRANK,
    SIGNAL,
    STARTS,
    TO_COPY,
)

KIND_MEMORY = OperandKind.MEMORY
KIND_FILE = OperandKind.FILE
DESCRIPTOR_BYTES = 32
HOW_BITS = 8
RECORD_DONE = Status.DONE
S_FIRST_LOW = 4 * SLOT["first_low"].at
S_FIRST_HIGH = 4 * SLOT["first_high"].at
S_COUNT_LOW = 4 * SLOT["count_low"].at
S_COUNT_HIGH = 4 * SLOT["count_high"].at

READ_FIXED = 4
READ = 22
ASYNC_CANCEL = 14
NOP = 0
DRAIN_FLAG = 1 << 1  # of an entry: not before all earlier ones
CANCEL_ALL_ANY = (1 << 0) | (1 << 2)
NO_FD = 0xFFFF_FFFF
USER_CANCEL = 1  # user_data of entries that are no request; requests have addresses
USER_DRAINED = 2
GETEVENTS = 1 << 0
EXT_ARG = 1 << 3
ARGUMENT_BYTES = 24

EINTR = 4
EAGAIN = 11
EFAULT = 14
EBUSY = 16
EINVAL = 22
ETIME = 62
EOPNOTSUPP = 95
ECANCELED = 125

WORD = 0xFFFF_FFFF_FFFF_FFFF
HALF = 0xFFFF_FFFF
ALL = 0x7FFF_FFFF
AT_ONCE = 8  # of so many reads that are out, one more is waited for at once
LOOK_NS = 10_000_000  # a pump that waits for reads looks up this often: it may be asked to end
BUSY_NS = 1_000_000  # or this often while chunks are with the engine
HELD_NS = 200_000  # or this often while memory is all that it lacks
SLEEP_NS = 50_000_000  # net below a lost wake-up
CLOSE_NS = 10_000_000_000  # how long the operating system may take to give memory back

pump_unit = Unit("pump", waiting)


@pump_unit.function
def ring_bell(pump: int) -> None:
    """Wake whoever sleeps on the bell, after a change of a frame's state."""
    # Stands between that store and the look at WAITERS; pairs with the add of a sleeper before his last look.
    fence()
    if load32_seqcst(load64(pump + P_WAITERS)) != 0:
        fetch_add32(load64(pump + P_BELL), 1)
        futex_wake(load64(pump + P_BELL), ALL)


@pump_unit.function
def frame_of(pump: int, index: int) -> int:
    return load64(pump + P_FRAMES) + FRAME_BYTES * (index % load64(pump + P_FRAME_COUNT))


@pump_unit.function
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


@pump_unit.function
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


@pump_unit.function
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


# --- memory -------------------------------------------------------------------------------------------------------------


@pump_unit.function
def free_buffer(pump: int, frame: int) -> None:
    """The frame's memory may be lent again."""
    buffer = load64(frame + F_BUFFER)
    if buffer != 0:
        n = load64(pump + P_FREE_BUFFERS)
        store64(load64(pump + P_BUFFERS) + 8 * n, buffer)
        store64(pump + P_FREE_BUFFERS, n + 1)
        store64(frame + F_BUFFER, 0)


@pump_unit.function
def free_request(pump: int, request: int) -> None:
    n = load64(pump + P_FREE_REQUESTS)
    store64(load64(pump + P_REQUESTS) + 8 * n, request)
    store64(pump + P_FREE_REQUESTS, n + 1)


# --- a chunk that is loaded -----------------------------------------------------------------------------------------------


@pump_unit.function
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


@pump_unit.function
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


# --- requests -------------------------------------------------------------------------------------------------------------


@pump_unit.function
def send(pump: int, request: int) -> None:
    """Queue a request, from its Q_AT on, where its rung goes."""
    rung = load64(request + Q_RUNG)
    at = load64(request + Q_AT)
    file = load64(request + Q_FILE)
    store64(pump + P_REQUESTED, load64(pump + P_REQUESTED) + 1)
    if rung == PREAD:
        tail = load64(pump + P_QUEUE_TAIL)
        store32(request + Q_DONE, 0)
        store64(load64(pump + P_QUEUE) + 8 * (tail & load64(pump + P_QUEUE_MASK)), request)
        # Pairs with the acquire in claim_read: who sees the tail sees entry and request.
        store64_release(pump + P_QUEUE_TAIL, tail + 1)
        store64(pump + P_QUEUED, load64(pump + P_QUEUED) + 1)
        if load64(pump + P_COPIERS) != 0:
            fence()
            if load32_seqcst(pump + P_WORK_SLEEPERS) != 0:
                fetch_add32(pump + P_WORK_BELL, 1)
                futex_wake(pump + P_WORK_BELL, 1)
        return
    fd = load64(file + L_FD)
    if rung != BUFFERED:
        fd = load64(file + L_DIRECT_FD)
    opcode = READ
    index = 0
    if rung == DIRECT_REGISTERED:
        opcode = READ_FIXED
        index = load64(request + Q_INDEX)
    # There are no more requests than entries, so there is room.
    tail = load32(load64(pump + P_SQ_TAIL))
    entry = load64(pump + P_SQES) + 64 * (tail & load64(pump + P_SQ_MASK))
    store64(entry, opcode | fd << 32)
    store64(entry + 8, load64(request + Q_OFFSET) + at)
    store64(entry + 16, load64(request + Q_ADDRESS) + at)
    store64(entry + 24, load64(request + Q_LENGTH) - at)
    store64(entry + 32, request)
    store64(entry + 40, index)
    store64(entry + 48, 0)
    store64(entry + 56, 0)
    # Counted before the kernel can know of it, so that the end waits for it.
    store64(pump + P_FLYING, load64(pump + P_FLYING) + 1)
    store32_release(load64(pump + P_SQ_TAIL), (tail + 1) & HALF)


@pump_unit.function
def finish_read(pump: int, request: int, error: int) -> None:
    """A request has ended: well, or with errno or SHRANK."""
    frame = load64(request + Q_FRAME)
    useful = load64(request + Q_USEFUL)
    store64(pump + P_BYTES, load64(pump + P_BYTES) - useful)
    if error == 0:
        taken = pump + P_TAKEN + 8 * load64(request + Q_RUNG)
        store64(taken, load64(taken) + useful)
    elif load64(frame + F_ERROR) == 0:
        at = load64(request + Q_AT)
        store64(frame + F_ERROR, error)
        store64(frame + F_ERROR_FILE, (load64(request + Q_FILE) - load64(pump + P_FILES)) // FILE_BYTES)
        store64(frame + F_ERROR_OFFSET, load64(request + Q_OFFSET) + at)
        store64(frame + F_ERROR_BYTES, load64(request + Q_LENGTH) - at)
        if error == SHRANK:
            store64(frame + F_ERROR_OFFSET, load64(request + Q_PIECE))
            store64(frame + F_ERROR_BYTES, load64(request + Q_PIECE_SIZE))
    free_request(pump, request)
    read_done(pump, frame)


@pump_unit.function
def demote(pump: int, request: int, error: int) -> None:
    """A direct read was refused: this file goes through the page cache from here on."""
    file = load64(request + Q_FILE)
    store64(request + Q_RUNG, load64(pump + P_CACHED_RUNG))
    store64(request + Q_LENGTH, load64(request + Q_WANTED))
    if load64(file + L_DEMOTED) == 0:
        store64(file + L_RUNG, load64(pump + P_CACHED_RUNG))
        store64(file + L_DEMOTED_AT, load64(request + Q_OFFSET) + load64(request + Q_AT))
        # Pairs with the host's look, which then reads the place.
        store64_release(file + L_DEMOTED, error)
    store64(request + Q_AT, 0)
    send(pump, request)


@pump_unit.function
def completed(pump: int, request: int, result: int) -> None:
    """The kernel has answered a request with ``result`` (i32): end it, continue it, or send it another way."""
    direct = 0
    if load64(request + Q_RUNG) < BUFFERED:
        direct = 1
    stopping = load32_acquire(pump + P_STOP)
    if result > ALL:
        error = HALF + 1 - result
        if (error == EINTR or error == EAGAIN) and stopping == 0:
            send(pump, request)
        elif (
            direct != 0
            and load64(pump + P_DEMOTES) != 0
            and (error == EINVAL or error == EOPNOTSUPP or error == EFAULT)
        ):
            demote(pump, request, error)
        else:
            finish_read(pump, request, error)
        return
    arrived = load64(request + Q_AT) + result
    wanted = load64(request + Q_WANTED)
    if arrived >= wanted:
        finish_read(pump, request, 0)
    elif stopping != 0:
        finish_read(pump, request, ECANCELED)
    elif direct != 0 and (result == 0 or result % load64(load64(request + Q_FILE) + L_ALIGN) != 0):
        # Cut inside a block: the end of the file, or a device that cannot go on there. The page cache can.
        head = wanted - load64(request + Q_USEFUL)
        if arrived > head:
            taken = pump + P_TAKEN + 8 * load64(request + Q_RUNG)
            store64(taken, load64(taken) + arrived - head)
            store64(request + Q_USEFUL, wanted - arrived)
            store64(pump + P_BYTES, load64(pump + P_BYTES) - (arrived - head))
        store64(request + Q_RUNG, load64(pump + P_CACHED_RUNG))
        store64(request + Q_LENGTH, wanted)
        store64(request + Q_AT, arrived)
        send(pump, request)
    elif result == 0:
        finish_read(pump, request, SHRANK)
    else:
        store64(request + Q_AT, arrived)
        send(pump, request)


# --- io_uring ---------------------------------------------------------------------------------------------------------------


@pump_unit.function
def reap(pump: int) -> int:
    """Take what has completed, in whatever order. How many."""
    if load64(pump + P_URING) == NONE:
        return 0
    head = load32(load64(pump + P_CQ_HEAD))
    found = 0
    while head != load32_acquire(load64(pump + P_CQ_TAIL)):
        entry = load64(pump + P_CQES) + 16 * (head & load64(pump + P_CQ_MASK))
        user = load64(entry)
        result = load32(entry + 8)
        head = (head + 1) & HALF
        # Only now may the kernel write over the entry.
        store32_release(load64(pump + P_CQ_HEAD), head)
        if user > USER_DRAINED:
            store64(pump + P_FLYING, load64(pump + P_FLYING) - 1)
            completed(pump, user, result)
        elif user == USER_DRAINED:
            store64(pump + P_DRAINED, 1)
        found += 1
    return found


@pump_unit.function
def unsubmitted(pump: int) -> int:
    """Entries that the kernel has not been told of."""
    return (load32(load64(pump + P_SQ_TAIL)) - load32_acquire(load64(pump + P_SQ_HEAD))) & HALF


@pump_unit.function
def enter(pump: int, wait: int, timeout_ns: int) -> None:
    """Submit what is queued, and wait for ``wait`` completions for at most so long."""
    flags = GETEVENTS
    argument = 0
    size = 0
    if wait != 0:
        argument = load64(pump + P_TIMESPEC)
        store64(argument + ARGUMENT_BYTES, timeout_ns // 1_000_000_000)
        store64(argument + ARGUMENT_BYTES + 8, timeout_ns % 1_000_000_000)
        flags = GETEVENTS | EXT_ARG
        size = ARGUMENT_BYTES
    store64(pump + P_ENTERS, load64(pump + P_ENTERS) + 1)
    result = io_uring_enter(load64(pump + P_URING), unsubmitted(pump), wait, flags, argument, size)
    if signed_less(result, 0):
        error = (0 - result) & WORD
        # EBUSY and EAGAIN: the kernel has no room just now; what is queued stays and goes with the next call.
        if error != EINTR and error != ETIME and error != EBUSY and error != EAGAIN:
            store64(pump + P_FAILED, error)


# --- blocking reads -----------------------------------------------------------------------------------------------------------


@pump_unit.function
def claim_read(pump: int) -> int:
    """A request of the queue that is now the caller's to carry out, or 0."""
    head = load64_acquire(pump + P_QUEUE_HEAD)
    while head < load64_acquire(pump + P_QUEUE_TAIL):
        # The entry is written again only when HEAD has moved on, and then the swap fails.
        request = load64(load64(pump + P_QUEUE) + 8 * (head & load64(pump + P_QUEUE_MASK)))
        if cas64(pump + P_QUEUE_HEAD, head, head + 1):
            return request
        head = load64_acquire(pump + P_QUEUE_HEAD)
    return 0


@pump_unit.function
def carry_out(request: int) -> None:
    """Read through the page cache: short reads are continued, EINTR is retried."""
    fd = load64(load64(request + Q_FILE) + L_FD)
    at = load64(request + Q_AT)
    wanted = load64(request + Q_WANTED)
    error = 0
    while at < wanted and error == 0:
        got = pread(fd, load64(request + Q_ADDRESS) + at, wanted - at, load64(request + Q_OFFSET) + at)
        if signed_less(got, 0):
            error = (0 - got) & WORD
            if error == EINTR:
                error = 0
        elif got == 0:
            error = SHRANK
        else:
            at += got
    store64(request + Q_AT, at)
    store64(request + Q_RESULT, error)
    # Pairs with take_reads: result and bytes.
    store32_release(request + Q_DONE, 1)


@pump_unit.function
def take_reads(pump: int) -> int:
    """End the blocking reads that were carried out. How many."""
    found = 0
    low = load64(pump + P_QUEUE_LOW)
    i = low
    head = load64_acquire(pump + P_QUEUE_HEAD)
    while i < head:
        entry = load64(pump + P_QUEUE) + 8 * (i & load64(pump + P_QUEUE_MASK))
        request = load64(entry)
        if request != 0 and load32_acquire(request + Q_DONE) != 0:
            store64(entry, 0)
            store64(pump + P_QUEUED, load64(pump + P_QUEUED) - 1)
            finish_read(pump, request, load64(request + Q_RESULT))
            found += 1
        if load64(entry) == 0 and i == low:
            low += 1
        i += 1
    store64(pump + P_QUEUE_LOW, low)
    return found


@pump_unit.function
def copier_loop(pump: int) -> None:
    """A thread that carries out blocking reads until it is asked to leave."""
    while load32_acquire(pump + P_LEAVE) == 0:
        request = claim_read(pump)
        if request == 0:
            bell = load32_acquire(pump + P_WORK_BELL)
            fetch_add32(pump + P_WORK_SLEEPERS, 1)
            request = claim_read(pump)
            if request == 0 and load32_acquire(pump + P_LEAVE) == 0:
                futex_wait(pump + P_WORK_BELL, bell, SLEEP_NS)
            fetch_add32(pump + P_WORK_SLEEPERS, 0 - 1)
        if request != 0:
            carry_out(request)
            ring_bell(pump)


# --- chunks -------------------------------------------------------------------------------------------------------------------


@pump_unit.function
def attend(pump: int) -> int:
    """Take records of published chunks and frames that were given back. How many."""
    found = 0
    i = load64(pump + P_OLDEST)
    next_ = load64(pump + P_NEXT)
    oldest = i
    while i < next_:
        frame = frame_of(pump, i)
        # Pairs with give_back.
        state = load32_acquire(frame + F_STATE)
        if state == PUBLISHED and is_complete(load64(pump + P_RING), load64(frame + F_SEQUENCE)) != 0:
            record = record_address(load64(pump + P_RING), load64(frame + F_SEQUENCE))
            copy(frame + F_RECORD, record, RECORD_BYTES)
            acknowledge(load64(pump + P_RING), load64(frame + F_SEQUENCE))
            store64(pump + P_OUT, load64(pump + P_OUT) - 1)
            if load32(frame + F_RECORD + RECORD_STATUS) == RECORD_DONE:
                store64(pump + P_TAKEN + 8 * HOT, load64(pump + P_TAKEN + 8 * HOT) + load64(frame + F_HOT))
                # After a fault the consumer looks at the operands of the element that trapped.
                free_buffer(pump, frame)
            # Pairs with the consumer's look: the record and every byte that the item wrote.
            store32_release(frame + F_STATE, DONE)
            ring_bell(pump)
            found += 1
        elif state == LOADED and load32_acquire(pump + P_STOP) == 0:
            found += publish_frame(pump, frame)
        elif state == RETURNED:
            if load64(pump + P_MODE) == SIGNAL and load64(frame + F_ERROR) == 0:
                store64(pump + P_OUT, load64(pump + P_OUT) - 1)
                store64(pump + P_TAKEN + 8 * HOT, load64(pump + P_TAKEN + 8 * HOT) + load64(frame + F_HOT))
            free_buffer(pump, frame)
            store32(frame + F_STATE, FREE)
            state = FREE
            found += 1
        if state == FREE and i == oldest:
            oldest += 1
        i += 1
    store64(pump + P_OLDEST, oldest)
    return found


@pump_unit.function
def hold(pump: int) -> int:
    """The next chunk waits for the consumer."""
    if load64(pump + P_HELD) == 0:
        store64(pump + P_STALLS, load64(pump + P_STALLS) + 1)
    store64(pump + P_HELD, 1)
    return 0


@pump_unit.function
def begin(pump: int) -> int:
    """Give the next chunk its frame and memory. 0 when there is none, or enough is under way."""
    index = load64(pump + P_NEXT)
    number = load64(pump + P_RUN)
    # The acquire pairs with the host's release of RUN_COUNT: runs below it are laid out.
    if index == load64(pump + P_CHUNKS) or number >= load64_acquire(pump + P_RUN_COUNT):
        store64(pump + P_HELD, 0)
        return 0
    run = load64(pump + P_RUNS) + RUN_BYTES * number
    needs = load64(run + R_NEEDS)
    if needs != 0:
        out = load64(pump + P_FLYING) + load64(pump + P_QUEUED)
        if (out >= load64(pump + P_DEPTH_READS) and load64(pump + P_BYTES) >= load64(pump + P_DEPTH_BYTES)) or load64(
            pump + P_LOADING
        ) >= load64(pump + P_LOADING_MAX):
            store64(pump + P_HELD, 0)
            return 0
    frame = frame_of(pump, index)
    # Only the pump makes a frame FREE.
    if load32(frame + F_STATE) != FREE:
        return hold(pump)
    if needs != 0:
        n = load64(pump + P_FREE_BUFFERS)
        if n == 0:
            return hold(pump)
        store64(pump + P_FREE_BUFFERS, n - 1)
        store64(frame + F_BUFFER, load64(load64(pump + P_BUFFERS) + 8 * (n - 1)))
        store64(pump + P_LOADING, load64(pump + P_LOADING) + 1)
    store64(pump + P_HELD, 0)
    k = load64(pump + P_RUN_AT)
    first = load64(run + R_FIRST) + k * load64(run + R_COUNT)
    store64(frame + F_INDEX, index)
    store64(frame + F_FIRST, first)
    store64(frame + F_COUNT, load64(run + R_COUNT))
    store64(load64(frame + F_ORIGIN), first)
    store64(load64(frame + F_ELEMENTS), load64(run + R_COUNT))
    store64(frame + F_HOT, 0)
    store64(frame + F_ERROR, 0)
    store64(frame + F_READS, 1)
    store32(frame + F_STATE, LOADING)
    store64(pump + P_LAY_FRAME, frame)
    store64(pump + P_LAY_RUN, run)
    store64(pump + P_LAY_K, k)
    store64(pump + P_LAY_PIECE, 0)
    store64(pump + P_LAY_AT, 0)
    store64(pump + P_NEXT, index + 1)
    store64(pump + P_RUN_AT, k + 1)
    if k + 1 == load64(run + R_CHUNKS):
        store64(pump + P_RUN, number + 1)
        store64(pump + P_RUN_AT, 0)
    return 1


@pump_unit.function
def layout_of(piece: int) -> int:
    """What the first word of a descriptor has above its kind."""
    return load64(piece + K_HOW) >> HOW_BITS << HOW_BITS


@pump_unit.function
def lay_reads(pump: int, frame: int, piece: int, offset: int) -> int:
    """Queue the reads of one piece. 0 when requests ran out: P_LAY_AT says where to go on."""
    file = load64(pump + P_FILES) + FILE_BYTES * load64(piece + K_FILE)
    size = load64(piece + K_SIZE)
    rung = load64(file + L_RUNG)
    align = load64(file + L_ALIGN)
    if rung == HOT:  # a worker reads one place of one file; this column is in several
        rung = load64(pump + P_CACHED_RUNG)
    if load64(piece + K_HOW) & EXACT != 0:
        align = 1
        if rung < BUFFERED:
            rung = load64(pump + P_CACHED_RUNG)
    # A block that begins before the piece is read as a whole; the buffer has room for that.
    head = offset % align
    if rung >= BUFFERED:
        align = 1
    buffer = load64(frame + F_BUFFER)
    base = load64(buffer) + load64(piece + K_PLACE)
    if load64(piece + K_HOW) & STARTS != 0:
        descriptor = load64(frame + F_INPUTS) + DESCRIPTOR_BYTES * load64(piece + K_COLUMN)
        store64(descriptor, KIND_MEMORY | layout_of(piece))
        store64(descriptor + 8, base + head)
        store64(descriptor + 16, 0)
    wanted = head + size
    at = load64(pump + P_LAY_AT)
    if rung == PREAD and at == 0:
        will_need(load64(file + L_FD), offset, size)
    while at < wanted:
        n = load64(pump + P_FREE_REQUESTS)
        if n == 0:
            store64(pump + P_LAY_AT, at)
            return 0
        request = load64(load64(pump + P_REQUESTS) + 8 * (n - 1))
        store64(pump + P_FREE_REQUESTS, n - 1)
        here = load64(pump + P_READ_BYTES)
        if here > wanted - at:
            here = wanted - at
        useful = here
        if at == 0:
            useful = here - head
        store64(request + Q_FRAME, frame)
        store64(request + Q_FILE, file)
        store64(request + Q_RUNG, rung)
        store64(request + Q_ADDRESS, base + at)
        store64(request + Q_OFFSET, offset - head + at)
        store64(request + Q_LENGTH, (here + align - 1) // align * align)
        store64(request + Q_WANTED, here)
        store64(request + Q_USEFUL, useful)
        store64(request + Q_AT, 0)
        store64(request + Q_INDEX, load64(buffer + 8))
        store64(request + Q_PIECE, offset)
        store64(request + Q_PIECE_SIZE, size)
        store64(frame + F_READS, load64(frame + F_READS) + 1)
        store64(pump + P_BYTES, load64(pump + P_BYTES) + useful)
        send(pump, request)
        at += here
    store64(pump + P_LAY_AT, 0)
    return 1


@pump_unit.function
def join(pump: int, frame: int, piece: int, address: int) -> None:
    """Copy a piece of memory to where its neighbours are."""
    to = load64(load64(frame + F_BUFFER)) + load64(piece + K_PLACE)
    size = load64(piece + K_SIZE)
    if load64(piece + K_HOW) & STARTS != 0:
        descriptor = load64(frame + F_INPUTS) + DESCRIPTOR_BYTES * load64(piece + K_COLUMN)
        store64(descriptor, KIND_MEMORY | layout_of(piece))
        store64(descriptor + 8, to)
        store64(descriptor + 16, 0)
    copy(to, address, size)
    taken = pump + P_TAKEN + 8 * MEMORY
    store64(taken, load64(taken) + size)
    store64(pump + P_COPIED, load64(pump + P_COPIED) + size)


@pump_unit.function
def lay(pump: int) -> int:
    """Describe and queue the pieces of the chunk that has begun. 0 when requests ran out before its end."""
    frame = load64(pump + P_LAY_FRAME)
    run = load64(pump + P_LAY_RUN)
    i = load64(pump + P_LAY_PIECE)
    while i < load64(run + R_PIECE_COUNT):
        piece = load64(run + R_PIECES) + PIECE_BYTES * i
        kind = load64(piece + K_KIND)
        offset = load64(piece + K_OFFSET) + load64(pump + P_LAY_K) * load64(piece + K_STEP)
        descriptor = load64(frame + F_INPUTS) + DESCRIPTOR_BYTES * load64(piece + K_COLUMN)
        if kind == IN_MEMORY:
            store64(descriptor, KIND_MEMORY | layout_of(piece))
            store64(descriptor + 8, offset)
            store64(descriptor + 16, 0)
            taken = pump + P_TAKEN + 8 * MEMORY
            store64(taken, load64(taken) + load64(piece + K_SIZE))
        elif kind == IN_FILE:
            file = load64(pump + P_FILES) + FILE_BYTES * load64(piece + K_FILE)
            store64(descriptor, KIND_FILE | layout_of(piece))
            store64(descriptor + 8, load64(file + L_FD))
            store64(descriptor + 16, offset)
            store64(frame + F_HOT, load64(frame + F_HOT) + load64(piece + K_SIZE))
        elif kind == TO_COPY:
            join(pump, frame, piece, offset)
        elif kind == ALIAS:
            first = load64(frame + F_INPUTS) + DESCRIPTOR_BYTES * load64(piece + K_OFFSET)
            store64(descriptor, load64(first) & HOW_MASK | layout_of(piece))
            store64(descriptor + 8, load64(first + 8))
            store64(descriptor + 16, load64(first + 16))
        elif lay_reads(pump, frame, piece, offset) == 0:
            store64(pump + P_LAY_PIECE, i)
            return 0
        i += 1
    store64(pump + P_LAY_FRAME, 0)
    read_done(pump, frame)
    return 1


@pump_unit.function
def begin_chunks(pump: int) -> int:
    """Begin chunks and queue their reads as far as frames, memory and requests allow. How many steps that were."""
    steps = 0
    while load32_acquire(pump + P_STOP) == 0:
        if load64(pump + P_LAY_FRAME) == 0:
            if begin(pump) == 0:
                break
            steps += 1
        if lay(pump) == 0:
            break
    return steps


# --- the pump -------------------------------------------------------------------------------------------------------------------


@pump_unit.function
def advance(pump: int) -> int:
    """Everything that can be done now without waiting, but for telling the kernel. How much that was."""
    found = reap(pump) + take_reads(pump)
    return found + attend(pump) + begin_chunks(pump)


@pump_unit.function
def pump_turn(pump: int, wait_ns: int) -> int:
    """One look at everything, then a wait of at most so long when there was nothing to do. How much was done."""
    done = advance(pump)
    if load64(pump + P_FLYING) != 0:
        if done == 0 and wait_ns != 0:
            limit = LOOK_NS
            if load64(pump + P_HELD) != 0:
                limit = HELD_NS
            elif load64(pump + P_OUT) != 0:
                limit = BUSY_NS
            if limit > wait_ns:
                limit = wait_ns
            before = now_ns()
            # A few completions at a time: what begins in their place is handed to the device with one call, and the rest
            # keeps it busy meanwhile.
            enter(pump, 1 + load64(pump + P_FLYING) // AT_ONCE, limit)
            account(pump, now_ns() - before)
        elif done == 0 or unsubmitted(pump) != 0:
            enter(pump, 0, 0)
        return done + reap(pump)
    if done == 0:
        # No thread is better at waiting for a copier than one that copies.
        request = claim_read(pump)
        if request != 0:
            carry_out(request)
            return take_reads(pump)
        if wait_ns != 0:
            rest(pump, wait_ns, 0)
    return done


@pump_unit.function
def account(pump: int, slept: int) -> None:
    """Who was waited for."""
    if load64(pump + P_HELD) != 0:
        store64(pump + P_STALL_NS, load64(pump + P_STALL_NS) + slept)
    elif load64(pump + P_OUT) == 0 and load64(pump + P_BYTES) != 0:
        store64(pump + P_HUNGRY_NS, load64(pump + P_HUNGRY_NS) + slept)


@pump_unit.function
def rest(pump: int, wait_ns: int, stopping: int) -> None:
    """Sleep until somebody rings, unless there is something to do after all, P_STOP not being ``stopping`` included."""
    # Whoever gives a frame back rings for a pump that is held up. So this one sleeps only if it has said so before its
    # announcement: a look that finds no frame and only then says so could miss one in between.
    held = load64(pump + P_HELD)
    bell = load32_acquire(load64(pump + P_BELL))
    fetch_add32(load64(pump + P_WAITERS), 1)
    if advance(pump) == 0 and load64(pump + P_HELD) == held and load32_acquire(pump + P_STOP) == stopping:
        before = now_ns()
        futex_wait(load64(pump + P_BELL), bell, wait_ns)
        account(pump, now_ns() - before)
    fetch_add32(load64(pump + P_WAITERS), 0 - 1)


@pump_unit.function
def pump_loop(pump: int) -> None:
    """The pump's thread, until it is asked to stop and the operating system writes no more."""
    while load32_acquire(pump + P_STOP) == 0 and load64(pump + P_FAILED) == 0:
        pump_turn(pump, SLEEP_NS)
    pump_end(pump, CLOSE_NS)
    store64(pump + P_CPU_NS, thread_ns())
    state = ENDED
    if load64(pump + P_FLYING) != 0 or load64(pump + P_QUEUED) != 0:
        state = DIRTY
    # Pairs with whoever waits for a frame, or for the end: counters and frames are final.
    store32_release(pump + P_STATE, state)
    ring_bell(pump)


@pump_unit.function
def cancel_reads(pump: int) -> None:
    """Ask the kernel to end every read, and to say when none is left."""
    tail = load32(load64(pump + P_SQ_TAIL))
    entry = load64(pump + P_SQES) + 64 * (tail & load64(pump + P_SQ_MASK))
    store64(entry, ASYNC_CANCEL | NO_FD << 32)
    store64(entry + 8, 0)
    store64(entry + 16, 0)
    store64(entry + 24, CANCEL_ALL_ANY << 32)
    store64(entry + 32, USER_CANCEL)
    store64(entry + 40, 0)
    tail = (tail + 1) & HALF
    entry = load64(pump + P_SQES) + 64 * (tail & load64(pump + P_SQ_MASK))
    store64(entry, NOP | DRAIN_FLAG << 8 | NO_FD << 32)
    store64(entry + 8, 0)
    store64(entry + 16, 0)
    store64(entry + 24, 0)
    store64(entry + 32, USER_DRAINED)
    store64(entry + 40, 0)
    store32_release(load64(pump + P_SQ_TAIL), (tail + 1) & HALF)


@pump_unit.function
def ask_items_to_end(pump: int) -> None:
    """Cancel every published chunk; it completes all the same."""
    i = load64(pump + P_OLDEST)
    while i < load64(pump + P_NEXT):
        frame = frame_of(pump, i)
        if load32(frame + F_STATE) == PUBLISHED:
            store64_release(stop_address(load64(pump + P_RING), load64(frame + F_SEQUENCE)), STOP_NOW)
        i += 1


@pump_unit.function
def pump_end(pump: int, timeout_ns: int) -> None:
    """Wind down: no chunk begins any more, reads are cancelled and waited for, published chunks asked to end."""
    store32_release(pump + P_STOP, 1)
    until = now_ns() + timeout_ns
    frame = load64(pump + P_LAY_FRAME)
    if frame != 0:
        store64(pump + P_LAY_FRAME, 0)
        read_done(pump, frame)
    request = claim_read(pump)
    while request != 0:
        store64(request + Q_RESULT, ECANCELED)
        store32_release(request + Q_DONE, 1)
        request = claim_read(pump)
    if load64(pump + P_MODE) != SIGNAL:
        ask_items_to_end(pump)
    take_reads(pump)
    if load64(pump + P_COPIERS) == 0:
        # Whatever an interrupt has left in the queue, nobody is carrying it out.
        store64(pump + P_QUEUED, 0)
    if load64(pump + P_FLYING) != 0:
        enter(pump, 0, 0)
        cancel_reads(pump)
    while now_ns() < until and load64(pump + P_FAILED) == 0:
        reap(pump)
        take_reads(pump)
        if load64(pump + P_DRAINED) != 0:
            # Also of a read that an interrupt kept from ever being queued.
            store64(pump + P_FLYING, 0)
        if load64(pump + P_FLYING) != 0:
            enter(pump, 1, LOOK_NS)
        elif load64(pump + P_QUEUED) != 0:
            rest(pump, BUSY_NS, 1)
        else:
            break
    attend(pump)
    if load64(pump + P_MODE) != SIGNAL:
        collect_last(pump)
    store32_release(pump + P_LEAVE, 1)
    fetch_add32(pump + P_WORK_BELL, 1)
    futex_wake(pump + P_WORK_BELL, ALL)


@pump_unit.function
def collect_last(pump: int) -> None:
    """Wait for the items that are with the engine. An engine that stops leaves some where they are."""
    while load64(pump + P_OUT) != 0 and load32_acquire(load64(pump + P_SESSION) + SESSION_STOP) == 0:
        rest(pump, BUSY_NS, 1)
