"""Native helpers of ``straight``: scratch slots, uniforms, records, and what lies where.

Owns: the native twins of lowering.State's methods. Leaves to others: instructions (straight), the layout (straight_layout).
"""

from __future__ import annotations

from vyre.engines.cpu.abi import (
    OP_A,
    OP_AUX,
    OP_B,
    OP_BYTES,
    OP_C,
    OP_DST,
    OP_FN,
    OP_IMM,
    OP_MASK,
    OP_PC,
    OP_TARGET,
    PTR_INPUTS,
    PTR_OUTPUTS,
    SCRATCH_SLOTS,
)
from vyre.engines.cpu.straight_layout import (
    A_FREE4,
    A_FREE8,
    A_LOC,
    A_SIZE,
    A_TEMPORARY,
    A_UNIFORMS,
    A_USERS,
    ALL,
    H_COPY,
    H_FILL,
    N_FORWARD,
    S_BEFORE,
    S_FACTS,
    S_FAILED,
    S_FREE4,
    S_FREE8,
    S_HAVE,
    S_NEXT,
    S_OUT,
    S_PC,
    S_READS,
    S_TEMPORARY,
    S_TOP,
    S_UNIFORMS,
    UNIFORM,
    UNIFORM_SLOTS,
    UNIFORMS_MAX,
)
from vyre.native import Unit, load64, store32, store64

slots = Unit("slots")


@slots.function
def slots_alloc(w: int, size: int) -> int:
    """A slot, or two neighbours for 8-byte lanes, with one user."""
    four = load64(w + S_FREE4)
    eight = load64(w + S_FREE8)
    slot = 0
    if size == 4 and four:
        four = four - 1
        slot = load64(w + A_FREE4 + 8 * four)
        store64(w + S_FREE4, four)
    elif eight:
        eight = eight - 1
        slot = load64(w + A_FREE8 + 8 * eight)
        store64(w + S_FREE8, eight)
        if size == 4:
            store64(w + A_FREE4, slot + 1)  # the stack was empty
            store64(w + S_FREE4, 1)
    else:
        slot = load64(w + S_NEXT)
        next_ = slot + (size >> 2)
        if next_ > load64(w + S_TOP):
            store64(w + S_FAILED, 1)
            return 0
        store64(w + S_NEXT, next_)
    store64(w + A_USERS + 8 * slot, 1)
    return slot


@slots.function
def slots_release(w: int, slot: int, size: int) -> int:
    """One user less."""
    users = load64(w + A_USERS + 8 * slot) - 1
    store64(w + A_USERS + 8 * slot, users)
    if users == 0:
        if size == 4:
            four = load64(w + S_FREE4)
            store64(w + A_FREE4 + 8 * four, slot)
            store64(w + S_FREE4, four + 1)
        else:
            eight = load64(w + S_FREE8)
            store64(w + A_FREE8 + 8 * eight, slot)
            store64(w + S_FREE8, eight + 1)
    return 0


@slots.function
def slots_drop(w: int, registers: int) -> int:
    """Registers of the set whose values nobody needs any more."""
    registers = registers & load64(w + S_HAVE)
    if registers:
        store64(w + S_HAVE, load64(w + S_HAVE) ^ registers)
        register = 0
        while registers:
            if registers & 1:
                slots_release(w, load64(w + A_LOC + 8 * register), load64(w + A_SIZE + 8 * register))
            registers = registers >> 1
            register = register + 1
    return 0


@slots.function
def record_put(w: int, handler: int, dst: int, a: int, b: int, c: int, imm: int, aux: int) -> int:
    """Append a record to the body."""
    if handler == 0:
        store64(w + S_FAILED, 1)
    if a >= PTR_OUTPUTS or b >= PTR_OUTPUTS or c >= PTR_OUTPUTS:
        store64(w + S_READS, 1)
    at = load64(w + S_OUT)
    store64(at + OP_FN, handler)
    store32(at + OP_DST, dst)
    store32(at + OP_A, a)
    store32(at + OP_B, b)
    store32(at + OP_C, c)
    store64(at + OP_IMM, imm)
    store32(at + OP_MASK, 0)
    store32(at + OP_PC, load64(w + S_PC))
    store64(at + OP_TARGET, 0)
    store64(at + OP_AUX, aux)
    store64(at + OP_AUX + 8, 0)
    store64(w + S_OUT, at + OP_BYTES)
    return 0


@slots.function
def uniform_find(w: int, aux: int, size: int) -> int:
    """A parameter as a location."""
    count = load64(w + S_UNIFORMS)
    at = w + A_UNIFORMS
    number = 0
    while number < count:
        if load64(at + 8) == aux and load64(at + 16) == size:
            return UNIFORM + number
        at = at + 32
        number = number + 1
    return uniform_add(w, 0, aux, size)


@slots.function
def uniform_add(w: int, bits: int, aux: int, size: int) -> int:
    """A constant or parameter as a new location."""
    count = load64(w + S_UNIFORMS)
    at = w + A_UNIFORMS + 32 * count
    if count >= UNIFORMS_MAX:
        store64(w + S_FAILED, 1)
        return UNIFORM
    store64(at, bits)
    store64(at + 8, aux)
    store64(at + 16, size)
    store64(at + 24, ALL)
    store64(w + S_UNIFORMS, count + 1)
    return UNIFORM + count


@slots.function
def vector_of(w: int, location: int) -> int:
    """The entry where the lanes are; a uniform gets a splat that the prologue fills."""
    if location < UNIFORM:
        return location
    at = w + A_UNIFORMS + 32 * (location - UNIFORM)
    slot = load64(at + 24)
    if slot != ALL:
        return slot
    size = load64(at + 16)
    need = size >> 2
    top = load64(w + S_TOP)
    fill = load64(load64(w + S_FACTS) + H_FILL + 8 * (need - 1))
    if SCRATCH_SLOTS + need > UNIFORM_SLOTS + top or top < need + load64(w + S_NEXT):
        slot = slots_alloc(w, size)  # for this record only: filled in the body
        record_put(w, fill, slot, 0, 0, 0, load64(at), load64(at + 8))
        count = load64(w + S_TEMPORARY)
        store64(w + A_TEMPORARY + 16 * count, slot)
        store64(w + A_TEMPORARY + 16 * count + 8, size)
        store64(w + S_TEMPORARY, count + 1)
        return slot
    slot = top - need
    store64(w + S_TOP, slot)
    store64(at + 24, slot)
    out = load64(w + S_OUT)
    pc = load64(w + S_PC)
    store64(w + S_OUT, load64(w + S_BEFORE))
    store64(w + S_PC, 0)
    record_put(w, fill, slot, 0, 0, 0, load64(at), load64(at + 8))
    store64(w + S_BEFORE, load64(w + S_OUT))
    store64(w + S_OUT, out)
    store64(w + S_PC, pc)
    return slot


@slots.function
def temporaries_drop(w: int) -> int:
    """Slots that were filled for one record."""
    count = load64(w + S_TEMPORARY)
    i = 0
    while i < count:
        at = w + A_TEMPORARY + 16 * i
        slots_release(w, load64(at), load64(at + 8))
        i = i + 1
    store64(w + S_TEMPORARY, 0)
    return 0


@slots.function
def name_assign(w: int, register: int, size: int, location: int) -> int:
    """A register := what lies at a location, by name."""
    if location < SCRATCH_SLOTS:  # before the old value goes: it may be the same slot
        store64(w + A_USERS + 8 * location, load64(w + A_USERS + 8 * location) + 1)
    slots_drop(w, 1 << register)
    if location < SCRATCH_SLOTS:
        store64(w + S_HAVE, load64(w + S_HAVE) | (1 << register))
    store64(w + A_LOC + 8 * register, location)
    store64(w + A_SIZE + 8 * register, size)
    return 0


@slots.function
def virtual_set(w: int, virtual: int, location: int) -> int:
    """A value that waits for the end: by name unless it is an input."""
    size = load64(w + A_SIZE + 8 * virtual)
    old = load64(w + A_LOC + 8 * virtual)
    if location >= PTR_INPUTS and location < UNIFORM:
        if old < SCRATCH_SLOTS:
            slots_release(w, old, size)
        slot = slots_alloc(w, size)
        store64(w + A_LOC + 8 * virtual, slot)
        copier = load64(load64(w + S_FACTS) + H_COPY + 8 * ((size >> 2) - 1))
        record_put(w, copier, slot, location, 0, 0, 0, 0)
        return 0
    if location < SCRATCH_SLOTS:
        store64(w + A_USERS + 8 * location, load64(w + A_USERS + 8 * location) + 1)
    if old < SCRATCH_SLOTS:
        slots_release(w, old, size)
    store64(w + A_LOC + 8 * virtual, location)
    return 0


@slots.function
def target_define(w: int, dst: int, size: int, note: int) -> int:
    """Where a result goes that is never computed in place: an output, or fresh scratch."""
    target = PTR_OUTPUTS + (note >> N_FORWARD) - 1
    if note >> N_FORWARD:
        slots_drop(w, 1 << dst)
    else:
        target = slots_alloc(w, size)
        slots_drop(w, 1 << dst)
        store64(w + S_HAVE, load64(w + S_HAVE) | (1 << dst))
        store64(w + A_SIZE + 8 * dst, size)
    store64(w + A_LOC + 8 * dst, target)
    return target


@slots.function
def operand_free(w: int, register: int, size: int) -> int:
    """A register that is read for the last time; its place may take the result."""
    slot = load64(w + A_LOC + 8 * register)
    if slot < SCRATCH_SLOTS:
        store64(w + S_HAVE, load64(w + S_HAVE) & ((1 << register) ^ ALL))
        slots_release(w, slot, size)
    return 0
