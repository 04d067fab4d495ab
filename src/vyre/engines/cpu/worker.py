"""What a thread of the CPU engine does: find work, run items, sleep. Native functions; see vyre.native.

A thread is a worker (resident, asleep when idle) or a waiter (a user's thread that runs work until its own is done);
both call ``work_once``. An item of few tiles is run by the thread that claimed it; a longer one becomes a job whose
tiles any thread takes. No thread ever waits for another.

Owns: the way from a ticket to its execution, and the life of threads. Leaves to others: the ring (vyre.ring), shared
items (jobs), tiles.
"""

from __future__ import annotations

from vyre.engines.cpu.abi import FAULT_NONE, FAULT_PC_SHIFT, LANES
from vyre.engines.cpu.jobs import (
    DONE,
    FAULT,
    complete_fault,
    finish,
    has_tiles,
    help_job,
    job_unit,
    open_job,
    stopped,
    work_on,
)
from vyre.engines.cpu.state import (
    B_ELEMENTS,
    B_IMAGE,
    B_ORIGIN,
    E_ACTIVE,
    E_BINDING_CAPACITY,
    E_BINDINGS,
    E_HANDLER_COUNT,
    E_HANDLERS,
    E_LIMIT,
    E_NULL,
    E_PROGRAM_CAPACITY,
    E_PROGRAMS,
    E_SPIN_TICKS,
    E_WORDS,
    E_WORKER_COUNT,
    E_WORKERS,
    FAULT_ENGINE,
    I_GRAIN,
    W_IN_USE,
    W_INDEX,
    WORKER_BYTES,
)
from vyre.engines.cpu.tiles import TILE_SHIFT, run_tiles
from vyre.native import (
    Unit,
    compare_swap32,
    copy,
    exchange32,
    fetch_add32,
    futex_wait,
    load32,
    load32_acquire,
    load32_relaxed,
    load64,
    load64_acquire,
    now_ns,
    pause,
    restore_float_mode,
    set_float_mode,
    store32_release,
    store64,
    store64_release,
    ticks,
    yield_cpu,
)
from vyre.program.opcodes import FaultCode
from vyre.ring.consumer import claim, complete, is_complete
from vyre.ring.layout import (
    NATIVE_FIRST,
    NO_ELEMENT,
    NO_PC,
    PROGRAM_FIRST,
    PROGRAM_LAST,
    RECORD_BYTES,
    SEQUENCE_NONE,
    SESSION_DONE_BELL,
    SESSION_RING_COUNT,
    SESSION_RING_LIST,
    SESSION_SLEEPERS,
    SESSION_STOP,
    SESSION_WAITERS,
    SESSION_WORDS,
    SESSION_WORK_BELL,
    SLOT,
    SLOT_BYTES,
    STOP_NOW,
    Opcode,
)
from vyre.ring.producer import acknowledge, lock_ring, publish, record_address, slot_address, stop_address, unlock_ring
from vyre.ring.waiting import SLEEP_NS, any_claimable, wake_workers

NOP = Opcode.NOP
STORE_U32 = Opcode.STORE_U32
ATOMIC_ADD = Opcode.ATOMIC_ADD
LOAD_U32 = Opcode.LOAD_U32
COMPARE_SWAP = Opcode.COMPARE_SWAP
BATCH_FENCE = Opcode.BATCH_FENCE
DFA_STEP = Opcode.DFA_STEP
UNKNOWN_OPCODE = FaultCode.unknown_opcode
BAD_BINDING = FaultCode.bad_binding
OUT_OF_BOUNDS = FaultCode.out_of_bounds
S_OPCODE = 4 * SLOT["opcode"].at
S_BINDING = 4 * SLOT["binding"].at
S_FIRST = 4 * SLOT["first_low"].at
S_SECOND = 4 * SLOT["first_high"].at
S_COUNT = 4 * SLOT["count_low"].at

worker_unit = Unit("worker", job_unit)


@worker_unit.function
def image_of(engine: int, opcode: int) -> int:
    """Image of the program behind an opcode, or 0."""
    if opcode >= PROGRAM_FIRST and opcode <= PROGRAM_LAST:
        n = opcode - PROGRAM_FIRST
        if n < load64(engine + E_PROGRAM_CAPACITY):
            image = load64_acquire(load64(engine + E_PROGRAMS) + 8 * n)
            if image != 0:
                return image
    i = 0
    while i < load64_acquire(engine + E_HANDLER_COUNT):
        entry = load64(engine + E_HANDLERS) + 16 * i
        if load64_acquire(entry) == opcode:
            return load64_acquire(entry + 8)
        i += 1
    return 0


@worker_unit.function
def accepts(engine: int, opcode: int) -> int:
    """1 when a slot of this opcode may be published: a built-in, or a program or handler that is there.

    DFA_STEP keeps its number and ends in FAULT until something implements it (decision 17).
    """
    if opcode <= COMPARE_SWAP or opcode == BATCH_FENCE or opcode == DFA_STEP:
        return 1
    if opcode < NATIVE_FIRST:
        return 0
    if image_of(engine, opcode) != 0:
        return 1
    return 0


@worker_unit.function
def refused(engine: int, items: int, n: int) -> int:
    """Index of the first of n slots whose opcode is not accepted, or n."""
    i = 0
    known = 0
    while i < n:
        opcode = load32(items + i * SLOT_BYTES + S_OPCODE)
        if opcode + 1 != known:
            if accepts(engine, opcode) == 0:
                return i
            known = opcode + 1
        i += 1
    return n


@worker_unit.function
def control(engine: int, worker: int, ring: int, sequence: int, opcode: int, started: int) -> None:
    """NOP, fences, and the items that work on the session's words."""
    slot = slot_address(ring, sequence)
    value = 0
    if opcode != NOP and opcode != BATCH_FENCE:
        index = load32(slot + S_BINDING)
        if opcode > COMPARE_SWAP:
            complete_fault(
                engine, worker, ring, sequence, UNKNOWN_OPCODE << FAULT_PC_SHIFT | FAULT_ENGINE, opcode, started
            )
            return
        if index >= SESSION_WORDS:
            complete(
                engine, ring, sequence, FAULT, OUT_OF_BOUNDS, NO_PC, index, 0, opcode, started, load64(worker + W_INDEX)
            )
            return
        word = load64(engine + E_WORDS) + 4 * index
        operand = load32(slot + S_FIRST)
        if opcode == STORE_U32:
            store32_release(word, operand)
        elif opcode == ATOMIC_ADD:
            value = fetch_add32(word, operand)
        elif opcode == LOAD_U32:
            value = load32_acquire(word)
        else:
            value = compare_swap32(word, operand, load32(slot + S_SECOND))
    complete(engine, ring, sequence, DONE, 0, NO_PC, NO_ELEMENT, value, opcode, started, load64(worker + W_INDEX))


@worker_unit.function
def run_item(engine: int, worker: int, ring: int, sequence: int, until: int) -> None:
    """Execute a claimed ticket, or turn it into a job and take part in it."""
    started = ticks()
    slot = slot_address(ring, sequence)
    opcode = load32(slot + S_OPCODE)
    if load64(engine + E_NULL) != 0:
        complete(engine, ring, sequence, DONE, 0, NO_PC, NO_ELEMENT, 0, opcode, started, load64(worker + W_INDEX))
        return
    fault = stopped(engine, ring, sequence)
    if fault != FAULT_NONE:
        complete_fault(engine, worker, ring, sequence, fault, opcode, started)
        return
    if opcode < NATIVE_FIRST:
        control(engine, worker, ring, sequence, opcode, started)
        return
    image = image_of(engine, opcode)
    if image == 0:
        complete_fault(engine, worker, ring, sequence, UNKNOWN_OPCODE << FAULT_PC_SHIFT | FAULT_ENGINE, opcode, started)
        return
    binding = 0
    number = load32(slot + S_BINDING)
    if number < load64(engine + E_BINDING_CAPACITY):
        binding = load64_acquire(load64(engine + E_BINDINGS) + 8 * number)
    first = load32(slot + S_FIRST) | load32(slot + S_SECOND) << 32
    count = load32(slot + S_COUNT) | load32(slot + S_COUNT + 4) << 32
    good = 0
    if binding != 0:
        origin = load64(binding + B_ORIGIN)
        elements = load64(binding + B_ELEMENTS)
        # The image, not the opcode: an opcode may have been given to another program since the slot was published.
        if load64(binding + B_IMAGE) == image and first >= origin and first - origin <= elements:
            if count <= elements - (first - origin) and (first & (LANES - 1)) == 0:
                good = 1
    if good == 0:
        complete_fault(engine, worker, ring, sequence, BAD_BINDING << FAULT_PC_SHIFT | FAULT_ENGINE, opcode, started)
        return
    if count == 0:
        finish(engine, worker, ring, sequence, image, binding, first, 0, FAULT_NONE, started)
        return
    if count <= load64(image + I_GRAIN) << TILE_SHIFT:
        fault = run_tiles(engine, worker, slot, image, binding, first, count)
        finish(engine, worker, ring, sequence, image, binding, first, count, fault, started)
        return
    job = open_job(engine, ring, sequence, image, binding, first, count, started)
    if job != 0:
        if load64(engine + E_LIMIT) > 1:
            wake_workers(engine, load64(engine + E_LIMIT) - 1)
        work_on(engine, worker, job, until)
        return
    # Every job entry is taken: this thread does the item alone.
    run_alone(engine, worker, ring, sequence, image, binding, first, count, started)


@worker_unit.function
def run_alone(
    engine: int,
    worker: int,
    ring: int,
    sequence: int,
    image: int,
    binding: int,
    first: int,
    count: int,
    started: int,
) -> None:
    slot = slot_address(ring, sequence)
    step = load64(image + I_GRAIN) << TILE_SHIFT
    fault = FAULT_NONE
    done = 0
    while done < count and fault == FAULT_NONE:
        n = count - done
        if n > step:
            n = step
        fault = stopped(engine, ring, sequence)
        if fault == FAULT_NONE:
            fault = run_tiles(engine, worker, slot, image, binding, first + done, n)
        done += n
    finish(engine, worker, ring, sequence, image, binding, first, count, fault, started)


@worker_unit.function
def work_once(engine: int, worker: int, until: int) -> int:
    """Run one item, or tiles of a shared one. 1 when there was something to do."""
    if load64_acquire(engine + E_ACTIVE) != 0 and has_tiles(engine) != 0 and help_job(engine, worker, until) != 0:
        return 1
    i = 0
    n = load64_acquire(engine + SESSION_RING_COUNT)
    while i < n:
        ring = load64_acquire(engine + SESSION_RING_LIST + 8 * i)
        if ring != 0:
            ticket = claim(ring)
            if ticket != 0:
                run_item(engine, worker, ring, ticket - 1, until)
                return 1
        i += 1
    return 0


@worker_unit.function
def has_work(engine: int) -> int:
    if any_claimable(engine) != 0:
        return 1
    return has_tiles(engine)


@worker_unit.function
def worker_loop(engine: int, worker: int) -> None:
    """Life of a resident thread: until STOP."""
    mode = set_float_mode()
    spin = load64(engine + E_SPIN_TICKS)
    while load32_acquire(engine + SESSION_STOP) == 0:
        if work_once(engine, worker, 0) == 0:
            began = ticks()
            while has_work(engine) == 0 and load32_relaxed(engine + SESSION_STOP) == 0 and ticks() - began < spin:
                pause()
            # The bell is read before the announcement and the last look: a ring of it in between ends the sleep.
            bell = load32_acquire(engine + SESSION_WORK_BELL)
            fetch_add32(engine + SESSION_SLEEPERS, 1)
            if has_work(engine) == 0 and load32_acquire(engine + SESSION_STOP) == 0:
                futex_wait(engine + SESSION_WORK_BELL, bell, SLEEP_NS)
            fetch_add32(engine + SESSION_SLEEPERS, 0 - 1)
    restore_float_mode(mode)
    leave_worker(worker)


@worker_unit.function
def leave_worker(worker: int) -> None:
    # Pairs with the exchange in take_worker.
    store32_release(worker + W_IN_USE, 0)


@worker_unit.function
def take_worker(engine: int) -> int:
    """A worker block that no other thread has."""
    while True:
        i = 0
        while i < load64(engine + E_WORKER_COUNT):
            worker = load64(engine + E_WORKERS) + WORKER_BYTES * i
            if load32_relaxed(worker + W_IN_USE) == 0 and exchange32(worker + W_IN_USE, 1) == 0:
                return worker
            i += 1
        yield_cpu()


@worker_unit.function
def may_sleep(engine: int) -> int:
    """1 when a waiter finds nothing that it should do instead."""
    if has_work(engine) != 0 or load32_acquire(engine + SESSION_STOP) != 0:
        return 0
    return 1


@worker_unit.function
def wait(engine: int, ring: int, first: int, n: int, timeout_ns: int) -> int:
    """Wait for n items from ``first`` on, running whatever is there meanwhile: the waiter is a worker.

    Returns how many of them, counted from the first, are complete: n, or fewer after timeout_ns or once the engine is
    asked to stop. At least one look is taken. With timeout_ns = 0 at most one item is run.
    """
    i = 0
    while i < n and is_complete(ring, first + i) != 0:
        i += 1
    if i == n:
        return n
    worker = take_worker(engine)
    mode = set_float_mode()
    until = now_ns() + timeout_ns
    spin = load64(engine + E_SPIN_TICKS)
    turn = 0
    while True:
        while i < n and is_complete(ring, first + i) != 0:
            i += 1
        if i == n:
            break
        # Nobody may be inside an item any more when close() returns: the memory of items is given back then.
        if load32_acquire(engine + SESSION_STOP) != 0:
            break
        turn += 1
        # Not before the first piece of work, which is most often the only one; a piece may be a tile of a long loop.
        if turn > 1 and now_ns() >= until:
            break
        ran = work_once(engine, worker, until)
        if timeout_ns == 0:
            while i < n and is_complete(ring, first + i) != 0:
                i += 1
            break
        if ran == 0:
            began = ticks()
            while is_complete(ring, first + i) == 0 and has_work(engine) == 0 and ticks() - began < spin:
                pause()
            bell = load32_acquire(engine + SESSION_DONE_BELL)
            fetch_add32(engine + SESSION_WAITERS, 1)
            now = now_ns()
            if now < until and is_complete(ring, first + i) == 0 and may_sleep(engine) != 0:
                futex_wait(engine + SESSION_DONE_BELL, bell, until - now)
            fetch_add32(engine + SESSION_WAITERS, 0 - 1)
            if now_ns() >= until and is_complete(ring, first + i) == 0:
                break
    restore_float_mode(mode)
    leave_worker(worker)
    # This thread may have been the only one awake: what it leaves behind must not wait for somebody's next look.
    if has_work(engine) != 0:
        wake_workers(engine, 1)
    return i


@worker_unit.function
def submit(engine: int, ring: int, items: int, n: int, stop_at: int, wake: int) -> int:
    """Publish n checked slots under the ring's lock and wake up to ``wake`` workers. First sequence or SEQUENCE_NONE."""
    lock_ring(ring)
    sequence = publish(ring, items, n, stop_at)
    unlock_ring(ring)
    if sequence != SEQUENCE_NONE and wake != 0:
        wake_workers(engine, wake)
    return sequence


@worker_unit.function
def collect(ring: int, first: int, n: int, out: int) -> None:
    """Copy n complete records to ``out`` and free their slots."""
    i = 0
    while i < n:
        copy(out + i * RECORD_BYTES, record_address(ring, first + i), RECORD_BYTES)
        acknowledge(ring, first + i)
        i += 1


@worker_unit.function
def call(frame: int) -> int:
    """Publish one slot, wait for it and collect its record: the fast path of a bound program.

    frame: u64[9] {engine, ring, address of the slot, timeout ns, address for the record, sequence, stop at, wake, 1 when
    ``take`` has collected a record that nobody has read yet}.
    The sequence is SEQUENCE_NONE whenever the item is not published or its record was collected, whatever happens to
    the Python that called: an interrupt may come right behind this call. Returns the status, 0 when the ring is full,
    EMPTY + 16 when the time is over.
    """
    engine = load64(frame)
    ring = load64(frame + 8)
    sequence = submit(engine, ring, load64(frame + 16), 1, 0, 0)
    store64(frame + 40, sequence)
    if sequence == SEQUENCE_NONE:
        return 0
    if wait(engine, ring, sequence, 1, load64(frame + 24)) == 0:
        return 16
    record = load64(frame + 32)
    collect(ring, sequence, 1, record)
    store64(frame + 40, SEQUENCE_NONE)
    return load32(record + 8)


@worker_unit.function
def start(frame: int) -> int:
    """Publish the slot of a frame (see ``call``). Returns 0 when the ring is full."""
    sequence = submit(load64(frame), load64(frame + 8), load64(frame + 16), 1, load64(frame + 48), load64(frame + 56))
    store64(frame + 64, 0)
    store64(frame + 40, sequence)
    if sequence == SEQUENCE_NONE:
        return 0
    return 1


@worker_unit.function
def take(frame: int) -> None:
    """Collect the record of a frame's item, which is complete."""
    collect(load64(frame + 8), load64(frame + 40), 1, load64(frame + 32))
    store64(frame + 64, 1)
    store64(frame + 40, SEQUENCE_NONE)


@worker_unit.function
def cancel(ring: int, sequence: int) -> None:
    """Ask that an item end as soon as it can; it completes all the same."""
    store64_release(stop_address(ring, sequence), STOP_NOW)


@worker_unit.function
def drain(engine: int, ring: int) -> None:
    """One workgroup of a finite dispatch: take tickets of ``ring`` until none is left, then leave."""
    worker = take_worker(engine)
    mode = set_float_mode()
    ticket = claim(ring)
    while ticket != 0:
        run_item(engine, worker, ring, ticket - 1, 0)
        ticket = 0
        if load32_acquire(engine + SESSION_STOP) == 0:
            ticket = claim(ring)
    restore_float_mode(mode)
    leave_worker(worker)
