"""Tiles of one item: operands found or read from files, handlers called, results left by tile number. Native functions.

Owns: what happens between taking some tiles of an item and having run them. Leaves to others: who takes which (jobs,
worker), the lanes (handlers), what becomes of the results (folding).
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
    B_INPUTS,
    B_ORIGIN,
    B_OUTPUTS,
    B_PARAMS,
    B_TABLES,
    B_TILE_EMITS,
    B_TILE_RESULTS,
    E_BYTES_READ,
    FAULT_IO,
    I_ACC_BINS,
    I_ACC_IDENTITIES,
    I_ACCS,
    I_BODY,
    I_EMIT_SIZES,
    I_EMITS,
    I_FUEL,
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
    ROW_INSIDE_SHIFT,
    ROW_WIDTH_MAX,
    ROW_WIDTH_SHIFT,
    ROWS_BYTES,
    W_ACCS,
    W_EMITS,
    W_FILE,
    W_FUEL,
    W_HISTOGRAM,
    W_PARAMS,
    W_PTRS,
    W_ROWS,
)
from vyre.native import Unit, call_handler, copy, fence, fetch_add64, load32, load64, pread, signed_less, store64, zero
from vyre.ring.layout import FLAG_INLINE_PARAMS, INLINE_PARAMS, SLOT, OperandKind
from vyre.ring.waiting import waiting

IN_FILE = OperandKind.FILE
IN_MEMORY = OperandKind.MEMORY
KIND_MASK = (1 << ROW_WIDTH_SHIFT) - 1
S_FLAGS = 4 * SLOT["flags"].at
S_INLINE = 4 * SLOT["inline"].at
TILE_SHIFT = 10
CACHE_LINE = 64

tile_unit = Unit("tiles", waiting)


@tile_unit.function
def run_ops(worker: int, op: int) -> None:
    while op != 0:
        op = call_handler(load64(op), worker, op)


@tile_unit.function
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


@tile_unit.function
def take_field(target: int, source: int, size: int, width: int, count: int) -> None:
    """Put ``count`` elements of ``size`` bytes, ``width`` bytes apart and aligned to nothing, one behind the other."""
    end = target + count * size
    if size == 4:
        while target < end:
            copy(target, source, 4)
            target += 4
            source += width
    elif size == 8:
        while target < end:
            copy(target, source, 8)
            target += 8
            source += width
    elif size == 2:
        while target < end:
            copy(target, source, 2)
            target += 2
            source += width
    else:
        while target < end:
            copy(target, source, 1)
            target += 1
            source += width


@tile_unit.function
def same_rows(a: int, b: int) -> int:
    """1 when two inputs are fields of the same rows of one file, or of one chunk in memory."""
    layout = (1 << ROW_INSIDE_SHIFT) - 1
    if load64(a) & layout != load64(b) & layout:
        return 0
    if load64(a + 8) != load64(b + 8) or load64(a + 16) != load64(b + 16):
        return 0
    return 1


@tile_unit.function
def read_far_fields(engine: int, worker: int, image: int, operand: int, i: int, place: int, total: int) -> int:
    """The same where a row is longer than memory for rows: element by element."""
    width = load64(operand) >> ROW_WIDTH_SHIFT & ROW_WIDTH_MAX
    n = load64(image + I_INPUTS)
    other = operand
    while i < n:
        if same_rows(operand, other) != 0:
            size = load64(load64(image + I_INPUT_SIZES) + 8 * i)
            target = load64(worker + W_PTRS + 8 * (PTR_INPUTS + i))
            source = place + (load64(other) >> ROW_INSIDE_SHIFT)
            k = 0
            while k < total:
                failed = read_file(engine, load64(operand + 8), target + k * size, size, source + k * width)
                if failed != 0:
                    return failed
                k += 1
        i += 1
        other += INPUT_BYTES
    return 0


@tile_unit.function
def read_rows(engine: int, worker: int, image: int, binding: int, i: int, offset: int, total: int) -> int:
    """Take input i, and all later ones of the same rows, out of ``total`` rows from ``offset`` on. As for read_file."""
    operand = load64(binding + B_INPUTS) + INPUT_BYTES * i
    width = load64(operand) >> ROW_WIDTH_SHIFT & ROW_WIDTH_MAX
    sizes = load64(image + I_INPUT_SIZES)
    place = load64(operand + 16) + offset * width
    n = load64(image + I_INPUTS)
    rows = worker + W_ROWS
    if load64(operand) & KIND_MASK == IN_MEMORY:
        # A pump has read the rows; they are in the memory of its chunk.
        k = i
        other = operand
        while k < n:
            if same_rows(operand, other) != 0:
                source = load64(operand + 8) + place + (load64(other) >> ROW_INSIDE_SHIFT)
                size = load64(sizes + 8 * k)
                take_field(load64(worker + W_PTRS + 8 * (PTR_INPUTS + k)), source, size, width, total)
            k += 1
            other += INPUT_BYTES
        return 0
    if width > ROWS_BYTES:
        return read_far_fields(engine, worker, image, operand, i, place, total)
    at_once = ROWS_BYTES // width
    done = 0
    while done < total:
        here = total - done
        if here > at_once:
            here = at_once
        failed = read_file(engine, load64(operand + 8), rows, here * width, place + done * width)
        if failed != 0:
            return failed
        k = i
        other = operand
        while k < n:
            if same_rows(operand, other) != 0:
                size = load64(sizes + 8 * k)
                target = load64(worker + W_PTRS + 8 * (PTR_INPUTS + k)) + done * size
                take_field(target, rows + (load64(other) >> ROW_INSIDE_SHIFT), size, width, here)
            k += 1
            other += INPUT_BYTES
        done += here
    return 0


@tile_unit.function
def locate_rows(engine: int, worker: int, image: int, binding: int, offset: int, total: int) -> int:
    """Read every input that is a field of rows; rows that several inputs share are read once. As for read_file."""
    first = load64(binding + B_INPUTS)
    n = load64(image + I_INPUTS)
    i = 0
    while i < n:
        operand = first + INPUT_BYTES * i
        if load64(operand) > KIND_MASK:
            taken = 0
            other = first
            while other < operand and taken == 0:
                taken = same_rows(operand, other)
                other += INPUT_BYTES
            if taken == 0:
                failed = read_rows(engine, worker, image, binding, i, offset, total)
                if failed != 0:
                    return failed
        i += 1
    return 0


@tile_unit.function
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
    rows = 0
    i = 0
    while i < n:
        size = load64(sizes + 8 * i)
        place = load64(operand + 16) + offset * size
        if load64(operand) > KIND_MASK:
            rows = 1
            store64(entry, buffer)
            buffer += (total * size + 127) & (0 - 64)
        elif load64(operand) == IN_FILE:
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
    if rows != 0:
        failed = locate_rows(engine, worker, image, binding, offset, total)
        if failed != 0:
            return element << FAULT_ELEMENT_SHIFT | (failed - 1) << FAULT_PC_SHIFT | FAULT_IO
    return FAULT_NONE


@tile_unit.function
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


@tile_unit.function
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


@tile_unit.function
def first_lanes(worker: int, image: int, lanes: int) -> int:
    """Lanes up to the first cache line of output 0, or ``lanes`` when it starts one (or never will)."""
    size = load64(load64(image + I_OUTPUT_SIZES))
    gap = (0 - load64(worker + W_PTRS + 8 * PTR_OUTPUTS)) & (CACHE_LINE - 1)
    if gap == 0 or gap % size != 0:
        return lanes
    return gap // size


@tile_unit.function
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


@tile_unit.function
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
