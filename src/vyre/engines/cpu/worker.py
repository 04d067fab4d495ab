"""What a thread of the CPU engine does: find work, run tiles, finish items. Native functions; see vyre.native.

A thread is a worker (resident, asleep when idle) or a waiter (a user's thread that runs work until its own is done);
both call ``work_once``. An item of few tiles is run by the thread that claimed it; a longer one becomes a job whose
tiles any thread takes, in index order. No thread ever waits for another: whoever finishes the last tile completes the
item.

Owns: execution of items. Leaves to others: the ring (vyre.ring), the lanes of a tile (handlers).
"""

from __future__ import annotations

from vyre.engines.cpu.abi import (
    CTX_BINS,
    CTX_FAULT,
    CTX_FIRST,
    CTX_FUEL,
    CTX_N,
    CTX_PARAMS,
    CTX_STREAM,
    CTX_TABLES,
    FAULT_ELEMENT_SHIFT,
    FAULT_NONE,
    FAULT_PC_SHIFT,
    LANES,
    PTR_INPUTS,
    PTR_OUTPUTS,
)
from vyre.engines.cpu.state import (
    B_BINS,
    B_ELEMENTS,
    B_EMITS,
    B_EMITTED,
    B_IMAGE,
    B_INPUTS,
    B_OPCODE,
    B_ORIGIN,
    B_OUTPUTS,
    B_PARAMS,
    B_RESULTS,
    B_TABLES,
    B_TILE_EMITS,
    B_TILE_RESULTS,
    E_ACTIVE,
    E_BINDING_CAPACITY,
    E_BINDINGS,
    E_BUSY,
    E_BYTES_READ,
    E_HANDLER_COUNT,
    E_HANDLERS,
    E_JOB_COUNT,
    E_JOBS,
    E_LIMIT,
    E_NULL,
    E_PROGRAM_CAPACITY,
    E_PROGRAMS,
    E_SPIN_TICKS,
    E_WORDS,
    E_WORKER_COUNT,
    E_WORKERS,
    FAULT_ENGINE,
    FAULT_IO,
    FOLD_ADD,
    FOLD_HISTOGRAM,
    FOLD_MAX_F32,
    FOLD_MAX_F64,
    FOLD_MAX_S32,
    FOLD_MAX_S64,
    FOLD_MAX_U32,
    FOLD_MAX_U64,
    FOLD_MIN_F32,
    FOLD_MIN_F64,
    FOLD_MIN_S32,
    FOLD_MIN_S64,
    FOLD_MIN_U32,
    FOLD_MIN_U64,
    FOLD_SUM,
    I_ACC_BINS,
    I_ACC_IDENTITIES,
    I_ACC_KINDS,
    I_ACCS,
    I_BODY,
    I_EMIT_SIZES,
    I_EMITS,
    I_FUEL,
    I_GRAIN,
    I_HISTOGRAMS,
    I_INPUT_SIZES,
    I_INPUTS,
    I_LANES,
    I_OUTPUT_SIZES,
    I_OUTPUTS,
    I_PARAMS,
    I_PROLOGUE,
    I_STREAM,
    I_USES_FUEL,
    INPUT_BYTES,
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
    W_ACCS,
    W_EMITS,
    W_FILE,
    W_FOLD,
    W_FUEL,
    W_HISTOGRAM,
    W_IN_USE,
    W_INDEX,
    W_PARAMS,
    W_PTRS,
    WORKER_BYTES,
)
from vyre.native import (
    Unit,
    call_handler,
    cas64,
    compare_swap32,
    copy,
    exchange32,
    f32_max,
    f32_min,
    f64_add,
    f64_max,
    f64_min,
    fence,
    fetch_add32,
    fetch_add64,
    fetch_min64,
    futex_wait,
    load32,
    load32_acquire,
    load32_relaxed,
    load64,
    load64_acquire,
    load64_relaxed,
    now_ns,
    pause,
    pread,
    restore_float_mode,
    set_float_mode,
    signed_less,
    store32_release,
    store64,
    store64_release,
    ticks,
    yield_cpu,
    zero,
)
from vyre.program.opcodes import FaultCode
from vyre.ring.consumer import claim, complete, is_complete
from vyre.ring.layout import (
    FLAG_INLINE_PARAMS,
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
    OperandKind,
    Status,
)
from vyre.ring.producer import acknowledge, lock_ring, publish, record_address, slot_address, stop_address, unlock_ring
from vyre.ring.waiting import SLEEP_NS, any_claimable, waiting, wake_workers

DONE = Status.DONE
FAULT = Status.FAULT
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
CANCELLED = FaultCode.cancelled
DEADLINE = FaultCode.deadline
IO_ERROR = FaultCode.io_error
FILE_SHRANK = FaultCode.file_shrank
IN_FILE = OperandKind.FILE
S_OPCODE = 4 * SLOT["opcode"].at
S_BINDING = 4 * SLOT["binding"].at
S_FIRST = 4 * SLOT["first_low"].at
S_SECOND = 4 * SLOT["first_high"].at
S_COUNT = 4 * SLOT["count_low"].at
S_FLAGS = 4 * SLOT["flags"].at
S_INLINE = 4 * SLOT["inline"].at
INLINE_PARAMS = 3
TILE_SHIFT = 10
SPAN_MASK = 1023
CACHE_LINE = 64
NEGATIVE_ZERO = 1 << 63
SIGN32 = 1 << 31

worker_unit = Unit("worker", waiting)


# --- programs and bindings --------------------------------------------------------------------------------------------


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


# --- tiles ------------------------------------------------------------------------------------------------------------


@worker_unit.function
def run_ops(worker: int, op: int) -> None:
    while op != 0:
        op = call_handler(load64(op), worker, op)


@worker_unit.function
def read_file(engine: int, fd: int, address: int, size: int, offset: int) -> int:
    """Bytes from a file through the page cache. 0, or the errno + 1; 1 when the file ended early."""
    done = 0
    while done < size:
        got = pread(fd, address + done, size - done, offset + done)
        if signed_less(got, 0):
            errno = 0 - got
            if errno != 4:  # EINTR
                return errno + 1
        else:
            if got == 0:
                return 1
            done += got
    fetch_add64(engine + E_BYTES_READ, size)
    return 0


@worker_unit.function
def locate_inputs(engine: int, worker: int, image: int, binding: int, element: int, total: int) -> int:
    """Point at ``total`` elements of each input from ``element`` on, reading those that lie in files.

    Returns FAULT_NONE or a packed input/output fault.
    """
    entry = worker + W_PTRS + 8 * PTR_INPUTS
    operand = load64(binding + B_INPUTS)
    sizes = load64(image + I_INPUT_SIZES)
    offset = element - load64(binding + B_ORIGIN)
    buffer = worker + W_FILE
    n = load64(image + I_INPUTS)
    i = 0
    while i < n:
        size = load64(sizes + 8 * i)
        place = load64(operand + 16) + offset * size
        if load64(operand) == IN_FILE:
            failed = read_file(engine, load64(operand + 8), buffer, total * size, place)
            if failed != 0:
                return element << FAULT_ELEMENT_SHIFT | (failed - 1) << FAULT_PC_SHIFT | FAULT_IO
            store64(entry, buffer)
            buffer += (total * size + 127) & (0 - 64)
        else:
            store64(entry, load64(operand + 8) + place)
        entry += 8
        operand += INPUT_BYTES
        i += 1
    return FAULT_NONE


@worker_unit.function
def clear_histograms(worker: int, image: int) -> None:
    bins = worker + W_HISTOGRAM
    i = 0
    n = load64(image + I_ACCS)
    while i < n:
        size = 8 * load64(load64(image + I_ACC_BINS) + 8 * i)
        store64(load64(worker + CTX_BINS) + 8 * i, bins)
        if size != 0:
            zero(bins, size)
        bins += size
        i += 1


@worker_unit.function
def merge_histograms(worker: int, image: int, binding: int) -> None:
    """Add this worker's counts to the item's; other workers do the same meanwhile."""
    i = 0
    n = load64(image + I_ACCS)
    while i < n:
        bins = load64(load64(image + I_ACC_BINS) + 8 * i)
        mine = load64(load64(worker + CTX_BINS) + 8 * i)
        sums = load64(load64(binding + B_BINS) + 8 * i)
        k = 0
        while k < bins:
            count = load64(mine + 8 * k)
            if count != 0:
                fetch_add64(sums + 8 * k, count)
            k += 1
        i += 1


@worker_unit.function
def first_lanes(worker: int, image: int, lanes: int) -> int:
    """Lanes up to the first cache line of output 0, or ``lanes`` when it starts one (or never will)."""
    size = load64(load64(image + I_OUTPUT_SIZES))
    gap = (0 - load64(worker + W_PTRS + 8 * PTR_OUTPUTS)) & (CACHE_LINE - 1)
    if gap == 0 or gap % size != 0:
        return lanes
    return gap // size


@worker_unit.function
def streams(worker: int, image: int, binding: int) -> int:
    """1 when outputs are to be written around the caches: the operands are larger, and no output is also an input."""
    if load64(binding + B_ELEMENTS) <= load64(image + I_STREAM):
        return 0
    i = 0
    while i < load64(image + I_OUTPUTS):
        k = 0
        while k < load64(image + I_INPUTS):
            if load64(worker + W_PTRS + 8 * (PTR_INPUTS + k)) == load64(worker + W_PTRS + 8 * (PTR_OUTPUTS + i)):
                return 0
            k += 1
        i += 1
    return 1


@worker_unit.function
def run_tiles(engine: int, worker: int, slot: int, image: int, binding: int, first: int, count: int) -> int:
    """Run elements [first, first + count) of a binding, first a multiple of 1,024. FAULT_NONE or a packed fault.

    Tile results and emit counts go to the binding, by tile number since its origin, so that several workers never
    write the same word.
    """
    fault = locate_inputs(engine, worker, image, binding, first, count)
    if fault != FAULT_NONE:
        return fault
    offset = first - load64(binding + B_ORIGIN)
    tile = offset >> TILE_SHIFT
    inputs = load64(image + I_INPUTS)
    outputs = load64(image + I_OUTPUTS)
    accs = load64(image + I_ACCS)
    emits = load64(image + I_EMITS)
    body = load64(image + I_BODY)
    i = 0
    while i < outputs:
        base = load64(load64(binding + B_OUTPUTS) + 8 * i)
        store64(worker + W_PTRS + 8 * (PTR_OUTPUTS + i), base + offset * load64(load64(image + I_OUTPUT_SIZES) + 8 * i))
        i += 1
    stream = streams(worker, image, binding)
    store64(worker + CTX_STREAM, stream)
    store64(worker + CTX_PARAMS, load64(binding + B_PARAMS))
    if slot != 0 and (load32(slot + S_FLAGS) & FLAG_INLINE_PARAMS) != 0:
        params = load64(image + I_PARAMS)
        copy(worker + W_PARAMS, load64(binding + B_PARAMS), 8 * params)
        if params > INLINE_PARAMS:
            params = INLINE_PARAMS
        copy(worker + W_PARAMS, slot + S_INLINE, 8 * params)
        store64(worker + CTX_PARAMS, worker + W_PARAMS)
    store64(worker + CTX_TABLES, load64(binding + B_TABLES))
    store64(worker + CTX_FUEL, load64(image + I_FUEL))
    histograms = load64(image + I_HISTOGRAMS)
    if histograms != 0:
        clear_histograms(worker, image)
    store64(worker + CTX_FIRST, first)
    store64(worker + CTX_FAULT, FAULT_NONE)
    # A program that keeps nothing in scratch takes the whole claim at once: a tile's end costs a memory-bound loop 30 ns.
    lanes = load64(image + I_LANES)
    n = count
    if n > LANES:
        n = LANES
    store64(worker + CTX_N, n)
    prologue = load64(image + I_PROLOGUE)
    if prologue != 0:
        run_ops(worker, prologue)
    if stream != 0 and count > LANES and accs + emits == 0:
        # Nothing depends on where tiles are cut: cut the first one so that stores fall on whole cache lines. They must to go
        # around the caches; a cut for the sake of stores into caches was not worth it.
        n = first_lanes(worker, image, lanes)
        if n > count:
            n = count
        store64(worker + CTX_N, n)
    done = 0
    while True:
        if accs != 0:
            copy(worker + W_ACCS, load64(image + I_ACC_IDENTITIES), 8 * accs)
        i = 0
        while i < emits:
            base = load64(load64(binding + B_EMITS) + 8 * i)
            size = load64(load64(image + I_EMIT_SIZES) + 8 * i)
            store64(worker + W_EMITS + 16 * i, base + (offset + done) * size)
            store64(worker + W_EMITS + 16 * i + 8, 0)
            i += 1
        if load64(image + I_USES_FUEL) != 0:
            zero(worker + W_FUEL, 4 * LANES)
        run_ops(worker, body)
        fault = load64(worker + CTX_FAULT)
        if fault != FAULT_NONE:
            if stream != 0:
                fence()
            return fault
        if accs != 0:
            copy(load64(binding + B_TILE_RESULTS) + 8 * accs * tile, worker + W_ACCS, 8 * accs)
        i = 0
        while i < emits:
            store64(load64(binding + B_TILE_EMITS) + 8 * (emits * tile + i), load64(worker + W_EMITS + 16 * i + 8))
            i += 1
        done += n
        step = n
        if done >= count:
            break
        tile += 1
        n = count - done
        if n > lanes:
            n = lanes
        store64(worker + CTX_N, n)
        store64(worker + CTX_FIRST, first + done)
        i = 0
        while i < inputs:
            entry = worker + W_PTRS + 8 * (PTR_INPUTS + i)
            store64(entry, load64(entry) + step * load64(load64(image + I_INPUT_SIZES) + 8 * i))
            i += 1
        i = 0
        while i < outputs:
            entry = worker + W_PTRS + 8 * (PTR_OUTPUTS + i)
            store64(entry, load64(entry) + step * load64(load64(image + I_OUTPUT_SIZES) + 8 * i))
            i += 1
    if stream != 0:
        # Such stores are not ordered by a release: they must be out before anybody can hear that the item is complete.
        fence()
    if histograms != 0:
        merge_histograms(worker, image, binding)
    return FAULT_NONE


# --- folding ----------------------------------------------------------------------------------------------------------


@worker_unit.function
def fold_span(x: int, n: int) -> int:
    """Halve f64[1,024] at x, of which n are present and the rest would be -0.0. Bits of the result. x is overwritten.

    x[i] += x[i + s] for s = 512 .. 1; adding the identity changes no bit, so absent partners are skipped.
    """
    s = 512
    while s != 0:
        i = 0
        while i < s and i + s < n:
            store64(x + 8 * i, f64_add(load64(x + 8 * i), load64(x + 8 * (i + s))))
            i += 1
        if n > s:
            n = s
        s = s >> 1
    return load64(x)


@worker_unit.function
def fold_tile_sums(scratch: int, sums: int, stride: int, tile: int, tiles: int, total: int) -> int:
    """Fold tile results, the first of which is global tile ``tile``, onto ``total``: spans by halving, left to right.

    Tiles of a span that are not among these count as absent. ``scratch`` is f64[1,024].
    """
    done = 0
    while done < tiles:
        start = (tile + done) & SPAN_MASK
        n = SPAN_MASK + 1 - start
        if n > tiles - done:
            n = tiles - done
        i = 0
        while i < start:
            store64(scratch + 8 * i, NEGATIVE_ZERO)
            i += 1
        i = 0
        while i < n:
            store64(scratch + 8 * (start + i), load64(sums + stride * (done + i)))
            i += 1
        total = f64_add(total, fold_span(scratch, start + n))
        done += n
    return total


@worker_unit.function
def fold_two(kind: int, a: int, b: int) -> int:
    """One step of a fold that is free of order. a and b are bits in memory form."""
    if kind == FOLD_ADD:
        return a + b
    if kind == FOLD_MIN_U32 or kind == FOLD_MIN_U64:
        if b < a:
            return b
        return a
    if kind == FOLD_MAX_U32 or kind == FOLD_MAX_U64:
        if b > a:
            return b
        return a
    if kind == FOLD_MIN_S32:
        if (b ^ SIGN32) < (a ^ SIGN32):
            return b
        return a
    if kind == FOLD_MAX_S32:
        if (b ^ SIGN32) > (a ^ SIGN32):
            return b
        return a
    if kind == FOLD_MIN_S64:
        if signed_less(b, a):
            return b
        return a
    if kind == FOLD_MAX_S64:
        if signed_less(a, b):
            return b
        return a
    if kind == FOLD_MIN_F32:
        return f32_min(a, b)
    if kind == FOLD_MAX_F32:
        return f32_max(a, b)
    if kind == FOLD_MIN_F64:
        return f64_min(a, b)
    if kind == FOLD_MAX_F64:
        return f64_max(a, b)
    return a


@worker_unit.function
def fold_results(worker: int, image: int, binding: int, first: int, tiles: int) -> None:
    accs = load64(image + I_ACCS)
    base = (first - load64(binding + B_ORIGIN)) >> TILE_SHIFT
    i = 0
    while i < accs:
        kind = load64(load64(image + I_ACC_KINDS) + 8 * i)
        results = load64(binding + B_TILE_RESULTS) + 8 * (accs * base + i)
        value = load64(load64(image + I_ACC_IDENTITIES) + 8 * i)
        if kind == FOLD_SUM:
            # Starts from +0.0, whatever the identity of a partial.
            value = fold_tile_sums(worker + W_FOLD, results, 8 * accs, first >> TILE_SHIFT, tiles, 0)
        elif kind != FOLD_HISTOGRAM:
            t = 0
            while t < tiles:
                value = fold_two(kind, value, load64(results + 8 * accs * t))
                t += 1
        store64(load64(binding + B_RESULTS) + 8 * i, value)
        i += 1


@worker_unit.function
def compact_emits(image: int, binding: int, first: int, tiles: int) -> None:
    """Move the segments of all tiles together, in tile order; a segment never moves up, so one pass does."""
    emits = load64(image + I_EMITS)
    base = (first - load64(binding + B_ORIGIN)) >> TILE_SHIFT
    e = 0
    while e < emits:
        size = load64(load64(image + I_EMIT_SIZES) + 8 * e)
        address = load64(load64(binding + B_EMITS) + 8 * e) + (base << TILE_SHIFT) * size
        kept = 0
        t = 0
        while t < tiles:
            n = load64(load64(binding + B_TILE_EMITS) + 8 * (emits * (base + t) + e))
            if n != 0:
                copy(address + kept * size, address + (t << TILE_SHIFT) * size, n * size)
            kept += n
            t += 1
        store64(load64(binding + B_EMITTED) + 8 * e, kept)
        e += 1


# --- items ------------------------------------------------------------------------------------------------------------


@worker_unit.function
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


@worker_unit.function
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
    """All tiles are done: fold, compact, complete."""
    opcode = load64(binding + B_OPCODE)
    if fault != FAULT_NONE:
        complete_fault(engine, worker, ring, sequence, fault, opcode, started)
        return
    tiles = (count + LANES - 1) >> TILE_SHIFT
    if load64(image + I_ACCS) != 0:
        fold_results(worker, image, binding, first, tiles)
    if load64(image + I_EMITS) != 0:
        compact_emits(image, binding, first, tiles)
    complete(engine, ring, sequence, DONE, 0, NO_PC, NO_ELEMENT, 0, opcode, started, load64(worker + W_INDEX))


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
def stopped(ring: int, sequence: int) -> int:
    """FAULT_NONE, or the packed fault of an item that was cancelled or is past its deadline."""
    stop_at = load64_relaxed(stop_address(ring, sequence))
    if stop_at == 0:
        return FAULT_NONE
    if stop_at == STOP_NOW:
        return CANCELLED << FAULT_PC_SHIFT | FAULT_ENGINE
    if now_ns() >= stop_at:
        return DEADLINE << FAULT_PC_SHIFT | FAULT_ENGINE
    return FAULT_NONE


@worker_unit.function
def run_item(engine: int, worker: int, ring: int, sequence: int, until: int) -> None:
    """Execute a claimed ticket, or turn it into a job and take part in it."""
    started = ticks()
    slot = slot_address(ring, sequence)
    opcode = load32(slot + S_OPCODE)
    if load64(engine + E_NULL) != 0:
        complete(engine, ring, sequence, DONE, 0, NO_PC, NO_ELEMENT, 0, opcode, started, load64(worker + W_INDEX))
        return
    fault = stopped(ring, sequence)
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
        fault = stopped(ring, sequence)
        if fault == FAULT_NONE:
            fault = run_tiles(engine, worker, slot, image, binding, first + done, n)
        done += n
    finish(engine, worker, ring, sequence, image, binding, first, count, fault, started)


# --- jobs: items that several threads share ---------------------------------------------------------------------------


@worker_unit.function
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


@worker_unit.function
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


@worker_unit.function
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


@worker_unit.function
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
            fault = stopped(ring, sequence)
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


# --- threads ----------------------------------------------------------------------------------------------------------


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
