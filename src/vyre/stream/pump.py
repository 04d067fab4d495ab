"""Brings chunks into memory and hands them over, without the GIL. Native functions; see vyre.native.

One thread, the pump, does everything but blocking reads, which copier threads may share. It begins chunks in order as
frames and memory allow, queues their reads, takes completions in whatever order they come, and publishes or signals. Run
by Python (machine.py) the same text is the way that works without compiled code, and the model that the tests explore.

Owns: which chunk begins when and where its pieces go, the thread's life from the first turn to the end. Leaves to others:
reads (requests), frames and who waits for whom (handover), the tables (tables), what a chunk is for.
"""

from __future__ import annotations

from vyre.native import (
    Unit,
    copy,
    fetch_add32,
    futex_wait,
    futex_wake,
    load32,
    load32_acquire,
    load64,
    load64_acquire,
    now_ns,
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
    SESSION_STOP,
    STOP_NOW,
    OperandKind,
    Status,
)
from vyre.ring.producer import acknowledge, record_address, stop_address
from vyre.stream.frames import (
    ALIAS,
    BUFFERED,
    DIRTY,
    DONE,
    ENDED,
    EXACT,
    F_BUFFER,
    F_COUNT,
    F_ELEMENTS,
    F_ERROR,
    F_FIRST,
    F_HOT,
    F_INDEX,
    F_INPUTS,
    F_ORIGIN,
    F_READS,
    F_RECORD,
    F_SEQUENCE,
    F_STATE,
    FILE_BYTES,
    FREE,
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
    L_FD,
    L_RUNG,
    LOADED,
    LOADING,
    MEMORY,
    P_BELL,
    P_BUFFERS,
    P_BYTES,
    P_CACHED_RUNG,
    P_CHUNKS,
    P_COPIED,
    P_COPIERS,
    P_CPU_NS,
    P_DEPTH_BYTES,
    P_DEPTH_READS,
    P_DRAINED,
    P_FAILED,
    P_FILES,
    P_FLYING,
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
    P_QUEUED,
    P_READ_BYTES,
    P_REQUESTS,
    P_RING,
    P_RUN,
    P_RUN_AT,
    P_RUN_COUNT,
    P_RUNS,
    P_SESSION,
    P_STALL_NS,
    P_STALLS,
    P_STATE,
    P_STOP,
    P_TAKEN,
    P_WAITERS,
    P_WORK_BELL,
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
    SIGNAL,
    STARTS,
    TO_COPY,
)
from vyre.stream.handover import ALL, ECANCELED, frame_of, free_buffer, publish_frame, read_done, ring_bell
from vyre.stream.requests import (
    SLEEP_NS,
    cancel_reads,
    carry_out,
    claim_read,
    enter,
    reap,
    requests,
    send,
    take_reads,
    unsubmitted,
)

KIND_MEMORY = OperandKind.MEMORY
KIND_FILE = OperandKind.FILE
DESCRIPTOR_BYTES = 32
HOW_BITS = 8
RECORD_DONE = Status.DONE
AT_ONCE = 8  # of so many reads that are out, one more is waited for at once
LOOK_NS = 10_000_000  # a pump that waits for reads looks up this often: it may be asked to end
BUSY_NS = 1_000_000  # or this often while chunks are with the engine
HELD_NS = 200_000  # or this often while memory is all that it lacks
CLOSE_NS = 10_000_000_000  # how long the operating system may take to give memory back

pump_unit = Unit("pump", requests)


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
