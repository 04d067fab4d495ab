"""The end of an item, and items that several threads share. Native functions; see vyre.native.

A long item becomes a job: an entry in a short table with a cursor that hands out tiles in index order. Whoever finishes
the last tile completes the item; nobody waits for anybody.

Owns: job entries, completion of items. Leaves to others: tickets (vyre.ring), tiles, and who looks for work (worker).
"""

from __future__ import annotations

from vyre.engines.cpu.abi import FAULT_ELEMENT_SHIFT, FAULT_NONE, FAULT_PC_SHIFT, LANES
from vyre.engines.cpu.folding import compact_emits, fold_results, fold_unit
from vyre.engines.cpu.state import (
    B_OPCODE,
    B_REQUESTS,
    E_ACTIVE,
    E_BUSY,
    E_JOB_COUNT,
    E_JOBS,
    E_LIMIT,
    FAULT_ENGINE,
    FAULT_IO,
    I_ACCS,
    I_EMITS,
    I_GRAIN,
    J_BINDING,
    J_COUNT,
    J_CURSOR,
    J_DONE,
    J_FAULT,
    J_FIRST,
    J_GRAIN,
    J_IMAGE,
    J_RING,
    J_SEQUENCE,
    J_STARTED,
    J_STATE,
    J_TILES,
    JOB_BYTES,
    JOB_OPEN,
    W_INDEX,
)
from vyre.engines.cpu.tiles import TILE_SHIFT, run_tiles
from vyre.native import (
    Unit,
    cas64,
    fetch_add64,
    fetch_min64,
    load32_relaxed,
    load64,
    load64_acquire,
    load64_relaxed,
    now_ns,
    store64,
)
from vyre.program.opcodes import FaultCode
from vyre.ring.consumer import complete
from vyre.ring.layout import NO_ELEMENT, NO_PC, REQUESTS_COUNT, SESSION_STOP, STOP_ITEMS, STOP_NOW, Status
from vyre.ring.producer import slot_address, stop_address

DONE = Status.DONE
FAULT = Status.FAULT
CANCELLED = FaultCode.cancelled
DEADLINE = FaultCode.deadline
IO_ERROR = FaultCode.io_error
FILE_SHRANK = FaultCode.file_shrank
LOAD_MISS = FaultCode.load_miss

job_unit = Unit("jobs", fold_unit)


@job_unit.function
def complete_fault(engine: int, worker: int, ring: int, sequence: int, fault: int, opcode: int, started: int) -> None:
    """Record a packed fault."""
    code = fault & 15
    detail = fault >> FAULT_PC_SHIFT & 0xFFFF
    element = fault >> FAULT_ELEMENT_SHIFT
    pc = detail
    value = 0
    if code == FAULT_IO:
        code = IO_ERROR
        if detail == 0:
            code = FILE_SHRANK
        value = detail
        pc = NO_PC
    elif code == FAULT_ENGINE:
        code = detail
        element = NO_ELEMENT
        pc = NO_PC
    complete(engine, ring, sequence, FAULT, code, pc, element, value, opcode, started, load64(worker + W_INDEX))


@job_unit.function
def finish(
    engine: int,
    worker: int,
    ring: int,
    sequence: int,
    image: int,
    binding: int,
    first: int,
    count: int,
    fault: int,
    started: int,
) -> None:
    """All tiles are done: fold, compact, complete; or say that pages are missing."""
    opcode = load64(binding + B_OPCODE)
    requests = load64(binding + B_REQUESTS)
    if requests != 0 and load64_relaxed(requests + REQUESTS_COUNT) != 0:
        # Tiles were dropped: what trapped in the others is not the item's fault yet. The adds of the tiles' ends order
        # the requests before the count is read here, as they order results.
        missing = load64_relaxed(requests + REQUESTS_COUNT)
        complete(
            engine,
            ring,
            sequence,
            FAULT,
            LOAD_MISS,
            NO_PC,
            NO_ELEMENT,
            missing,
            opcode,
            started,
            load64(worker + W_INDEX),
        )
        return
    if fault != FAULT_NONE:
        complete_fault(engine, worker, ring, sequence, fault, opcode, started)
        return
    tiles = (count + LANES - 1) >> TILE_SHIFT
    if load64(image + I_ACCS) != 0:
        fold_results(worker, image, binding, first, tiles)
    if load64(image + I_EMITS) != 0:
        compact_emits(image, binding, first, tiles)
    complete(engine, ring, sequence, DONE, 0, NO_PC, NO_ELEMENT, 0, opcode, started, load64(worker + W_INDEX))


@job_unit.function
def stopped(engine: int, ring: int, sequence: int) -> int:
    """FAULT_NONE, or the packed fault of an item that was cancelled, is past its deadline, or whose engine closes."""
    if load32_relaxed(engine + SESSION_STOP) & STOP_ITEMS != 0:
        return CANCELLED << FAULT_PC_SHIFT | FAULT_ENGINE
    stop_at = load64_relaxed(stop_address(ring, sequence))
    if stop_at == 0:
        return FAULT_NONE
    if stop_at == STOP_NOW:
        return CANCELLED << FAULT_PC_SHIFT | FAULT_ENGINE
    if now_ns() >= stop_at:
        return DEADLINE << FAULT_PC_SHIFT | FAULT_ENGINE
    return FAULT_NONE


@job_unit.function
def open_job(
    engine: int, ring: int, sequence: int, image: int, binding: int, first: int, count: int, started: int
) -> int:
    """A job entry with the caller as its first user, or 0 when all are taken."""
    i = 0
    while i < load64(engine + E_JOB_COUNT):
        job = load64(engine + E_JOBS) + JOB_BYTES * i
        state = load64_acquire(job + J_STATE)
        # Free: not open and nobody inside. Users of the entry's last job may still be on their way out.
        if state & 0xFFFF_FFFF == 0 and cas64(job + J_STATE, state, ((state >> 32) + 1 << 32) + 1):
            store64(job + J_RING, ring)
            store64(job + J_SEQUENCE, sequence)
            store64(job + J_IMAGE, image)
            store64(job + J_BINDING, binding)
            store64(job + J_FIRST, first)
            store64(job + J_COUNT, count)
            store64(job + J_TILES, (count + LANES - 1) >> TILE_SHIFT)
            store64(job + J_GRAIN, load64(image + I_GRAIN))
            store64(job + J_STARTED, started)
            store64(job + J_CURSOR, 0)
            store64(job + J_DONE, 0)
            store64(job + J_FAULT, FAULT_NONE)
            # Pairs with the swap in help: who gets in sees the fields above.
            fetch_add64(job + J_STATE, JOB_OPEN)
            fetch_add64(engine + E_ACTIVE, 1)
            return job
        i += 1
    return 0


@job_unit.function
def help_job(engine: int, worker: int, until: int) -> int:
    """Take part in some open job that has tiles left. 1 when it ran at least one tile."""
    i = 0
    while i < load64(engine + E_JOB_COUNT):
        job = load64(engine + E_JOBS) + JOB_BYTES * i
        state = load64_acquire(job + J_STATE)
        # Only users may read the fields: they change when the entry is given to another job.
        while state & JOB_OPEN != 0:
            if cas64(job + J_STATE, state, state + 1):
                if work_on(engine, worker, job, until) != 0:
                    return 1
                break
            state = load64_acquire(job + J_STATE)
        i += 1
    return 0


@job_unit.function
def has_tiles(engine: int) -> int:
    """1 when an open job may have tiles left that this thread would be allowed to take."""
    if load64_relaxed(engine + E_ACTIVE) == 0 or load64_relaxed(engine + E_BUSY) >= load64(engine + E_LIMIT):
        return 0
    i = 0
    while i < load64(engine + E_JOB_COUNT):
        job = load64(engine + E_JOBS) + JOB_BYTES * i
        if load64_acquire(job + J_STATE) & JOB_OPEN != 0:
            if load64_relaxed(job + J_CURSOR) < load64_relaxed(job + J_TILES):
                return 1
        i += 1
    return 0


@job_unit.function
def work_on(engine: int, worker: int, job: int, until: int) -> int:
    """Run tiles of a job whose user this thread is, until none is left or ``until`` (ns, 0: no limit); leave it.

    Returns 1 when it ran at least one tile.
    """
    ran = 0
    if fetch_add64(engine + E_BUSY, 1) < load64(engine + E_LIMIT):
        ring = load64(job + J_RING)
        sequence = load64(job + J_SEQUENCE)
        image = load64(job + J_IMAGE)
        binding = load64(job + J_BINDING)
        first = load64(job + J_FIRST)
        count = load64(job + J_COUNT)
        tiles = load64(job + J_TILES)
        grain = load64(job + J_GRAIN)
        slot = slot_address(ring, sequence)
        # One claim at least: a caller who only ever looks must get on where there is nobody else.
        while ran == 0 or until == 0 or now_ns() < until:
            tile = fetch_add64(job + J_CURSOR, grain)
            if tile >= tiles:
                break
            ran = 1
            n = grain
            if n > tiles - tile:
                n = tiles - tile
            fault = stopped(engine, ring, sequence)
            # A fault further on does not excuse this tile: the item's fault is that of its lowest element.
            known = load64_relaxed(job + J_FAULT) >> FAULT_ELEMENT_SHIFT
            if fault == FAULT_NONE and known >= first + (tile << TILE_SHIFT):
                elements = n << TILE_SHIFT
                if elements > count - (tile << TILE_SHIFT):
                    elements = count - (tile << TILE_SHIFT)
                fault = run_tiles(engine, worker, slot, image, binding, first + (tile << TILE_SHIFT), elements)
            if fault != FAULT_NONE:
                fetch_min64(job + J_FAULT, fault)
            # The add orders this thread's tile results before the fold of whoever is last.
            if fetch_add64(job + J_DONE, n) + n == tiles:
                # Closed first: the item's owner may reuse binding and slot as soon as it is complete.
                fetch_add64(engine + E_ACTIVE, 0 - 1)
                fetch_add64(job + J_STATE, 0 - JOB_OPEN)
                finish(
                    engine,
                    worker,
                    ring,
                    sequence,
                    image,
                    binding,
                    first,
                    count,
                    load64_acquire(job + J_FAULT),
                    load64(job + J_STARTED),
                )
                break
    fetch_add64(engine + E_BUSY, 0 - 1)
    fetch_add64(job + J_STATE, 0 - 1)
    return ran
