"""Reads, from the moment they are queued until their bytes are there or they have failed. Native functions; see vyre.native.

Owns: requests on their way through io_uring or the queue of blocking reads, continued when short, sent another way when
refused. Leaves to others: which bytes are asked for (pump), what becomes of a chunk (handover), setting the ring up (uring).

The completion queue's tail is the kernel's, loaded with acquire order before its entries; the submission queue's tail is
ours, stored with release order after them (io_uring(7)).
"""

from __future__ import annotations

from vyre.native import (
    Unit,
    cas64,
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
    pread,
    signed_less,
    store32,
    store32_release,
    store64,
    store64_release,
)
from vyre.stream.frames import (
    BUFFERED,
    DIRECT_REGISTERED,
    F_ERROR,
    F_ERROR_BYTES,
    F_ERROR_FILE,
    F_ERROR_OFFSET,
    FILE_BYTES,
    L_ALIGN,
    L_DEMOTED,
    L_DEMOTED_AT,
    L_DIRECT_FD,
    L_FD,
    L_RUNG,
    NONE,
    P_BYTES,
    P_CACHED_RUNG,
    P_COPIERS,
    P_CQ_HEAD,
    P_CQ_MASK,
    P_CQ_TAIL,
    P_CQES,
    P_DEMOTES,
    P_DRAINED,
    P_ENTERS,
    P_FAILED,
    P_FILES,
    P_FLYING,
    P_LEAVE,
    P_QUEUE,
    P_QUEUE_HEAD,
    P_QUEUE_LOW,
    P_QUEUE_MASK,
    P_QUEUE_TAIL,
    P_QUEUED,
    P_REQUESTED,
    P_SQ_HEAD,
    P_SQ_MASK,
    P_SQ_TAIL,
    P_SQES,
    P_STOP,
    P_TAKEN,
    P_TIMESPEC,
    P_URING,
    P_WORK_BELL,
    P_WORK_SLEEPERS,
    PREAD,
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
    SHRANK,
)
from vyre.stream.handover import ALL, ECANCELED, HALF, free_request, handover, read_done, ring_bell

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
WORD = 0xFFFF_FFFF_FFFF_FFFF
SLEEP_NS = 50_000_000  # net below a lost wake-up

requests = Unit("requests", handover)


@requests.function
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


@requests.function
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


@requests.function
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


@requests.function
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


@requests.function
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


@requests.function
def unsubmitted(pump: int) -> int:
    """Entries that the kernel has not been told of."""
    return (load32(load64(pump + P_SQ_TAIL)) - load32_acquire(load64(pump + P_SQ_HEAD))) & HALF


@requests.function
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


@requests.function
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


@requests.function
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


@requests.function
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


@requests.function
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


@requests.function
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
