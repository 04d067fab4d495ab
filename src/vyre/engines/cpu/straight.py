"""Tile forms of programs without blocks, lowered by native code: what a formula never seen before pays for.

The same records as tileform's straight path gives, byte for byte, in a tenth of the time. Whatever this does not take,
a block, a float sum with two places, a handler that is not compiled yet, it leaves to tileform.

Owns: the native function, its table of facts and its workspace. Leaves to others: the facts (plan, analysis), the rules
of lowering (tileform's docstring), handlers.
"""

from __future__ import annotations

from vyre.engines.cpu import plan
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
from vyre.native import Unit, copy, load32, load64, store32, store64, zero
from vyre.program import analysis

CODE_MAX = 512  # instructions; longer programs take the other path
RECORDS_MAX = 1_024
STORES_MAX = 256
UNIFORMS_MAX = 192
UNIFORM_SLOTS = 40  # as in tileform
PROLOGUE_MAX = UNIFORM_SLOTS + 1

# Locations: an entry of the pointer table, UNIFORM + u for uniform u, UNSET.
UNIFORM = 1 << 20
UNSET = 1 << 19
ALL = 0xFFFF_FFFF_FFFF_FFFF
VIRTUAL = 64  # "registers" from here on: outputs that are written at the end

# --- facts: a header, then FACT_BYTES for each opcode, found by an index from opcode to byte offset, u32[65536] --------
H_INDEX = 0  # address of the index
H_RETURN = 8  # addresses of handlers; 0: not compiled yet
H_FILL = 32  # by bytes / 4 - 1
H_COPY = 48
H_IDENTITY = 64  # memory types that hold a register's bits: one bit each
H_SHOWN = 72  # memory types in which a store or emit of a float shows its bits
H_SIZES = 80  # bytes of the register for a memory type, one u64 each
H_LOAD = 208
H_STORE = 336
H_EMIT = 464
H_TABLE = 592
H_BYTES = 720

F_KIND = 0xFF
F_ARGS = 8  # shifts
F_SIZE = 12
F_RULE = 24
F_FAST = 1 << 16  # may take the place of an operand that dies: at most two operands as wide as the result
F_SAME = 1 << 17
F_SWAP = 1 << 18
F_UNIFORM_B = 1 << 19
F_UNIFORM_A = 1 << 20
F_UNIFORM_C = 1 << 21
F_NAN = 1 << 22
F_ONCE = 1 << 23  # a float sum: a second place needs partial sums
F_MINE = 1 << 28
FACT_NAMES = 8  # two addresses each: plain, then with the NaN fix-up
FACT_B = 24
FACT_A = 40
FACT_C = 56
FACT_BYTES = 72

# --- workspace ----------------------------------------------------------------------------------------------------------
S_NEXT = 0
S_TOP = 8
S_FREE4 = 16  # entries on each stack
S_FREE8 = 24
S_UNIFORMS = 32
S_TEMPORARY = 40
S_OUT = 48  # address of the next record of the body
S_BEFORE = 56  # and of the prologue
S_PC = 64
S_HAVE = 72  # registers that lie in scratch
S_FAILED = 80
S_FACTS = 88
A_LOC = 96
A_SIZE = A_LOC + 8 * (VIRTUAL + 256)
A_USERS = A_SIZE + 8 * (VIRTUAL + 256)
A_FREE4 = A_USERS + 8 * (SCRATCH_SLOTS + 8)
A_FREE8 = A_FREE4 + 8 * (SCRATCH_SLOTS + 8)
A_TEMPORARY = A_FREE8 + 8 * (SCRATCH_SLOTS + 8)  # slot, bytes
A_UNIFORMS = A_TEMPORARY + 16 * 8  # bits, aux, bytes, slot or ALL
A_TIMES = A_UNIFORMS + 32 * UNIFORMS_MAX  # stores of each output
A_VIRTUAL = A_TIMES + 8 * 256  # register in which an output waits, or 0
A_DEFERRED = A_VIRTUAL + 8 * 256  # outputs that wait, in the order of their registers
A_SUMS = A_DEFERRED + 8 * 256
A_STORES = A_SUMS + 8 * 256  # pcs, last first
A_LIVE = A_STORES + 8 * STORES_MAX
A_NOTES = A_LIVE + 8 * CODE_MAX
A_PROLOGUE = (A_NOTES + 8 * CODE_MAX + 63) & 0xFFFF_FFC0
A_BODY = A_PROLOGUE + OP_BYTES * 2 * PROLOGUE_MAX  # the prologue is moved to end here
WORKSPACE_BYTES = A_BODY + OP_BYTES * RECORDS_MAX
BODY_LAST = A_BODY + OP_BYTES * (RECORDS_MAX - 8)  # records of one instruction must start below

N_CANONICAL = 1
N_RESULT = 2
N_DST = 8  # shifts
N_FORWARD = 16  # output + 1

# --- what a program is, in u64 words: counts, then constants, memory types of streams and tables, bins -----------------
P_CODE = 0
P_CONSTANTS = 8
P_INPUTS = 16
P_OUTPUTS = 24
P_TABLES = 32
P_EMITS = 40
P_ACCS = 48
P_WORDS = 56

COMPUTE = plan.COMPUTE
RULE_MOVES_A = analysis.MOVES_A
RULE_MOVES_AB = analysis.MOVES_AB
RULE_COPYSIGN = analysis.COPYSIGN
RULE_SEES_A = analysis.SEES_A
RULE_STORES = analysis.STORES
RULE_EMITS = analysis.EMITS

straight = Unit("straight")


@straight.function
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


@straight.function
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


@straight.function
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


@straight.function
def record_put(w: int, handler: int, dst: int, a: int, b: int, c: int, imm: int, aux: int) -> int:
    """Append a record to the body."""
    if handler == 0:
        store64(w + S_FAILED, 1)
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


@straight.function
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


@straight.function
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


@straight.function
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


@straight.function
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


@straight.function
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


@straight.function
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


@straight.function
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


@straight.function
def operand_free(w: int, register: int, size: int) -> int:
    """A register that is read for the last time; its place may take the result."""
    slot = load64(w + A_LOC + 8 * register)
    if slot < SCRATCH_SLOTS:
        store64(w + S_HAVE, load64(w + S_HAVE) & ((1 << register) ^ ALL))
        slots_release(w, slot, size)
    return 0


@straight.function
def survey(w: int, facts: int, code: int, words: int) -> int:
    """Backwards over the code: what is read later, whose NaN must be canonical, which outputs wait. 0: not for us."""
    index = load64(facts + H_INDEX)
    shown = load64(facts + H_SHOWN)
    types = words + P_WORDS + 8 * load64(words + P_CONSTANTS) + 8 * load64(words + P_INPUTS)  # of outputs
    emits = types + 8 * load64(words + P_OUTPUTS) + 8 * load64(words + P_TABLES)
    live = 0
    seen = 0
    alias = 0  # registers that may be another name of an input
    after_load = 0  # pc after the last load
    stores = 0
    pc = load64(words + P_CODE)
    while pc:
        pc = pc - 1
        word = load64(code + 8 * pc)
        flags = load64(facts + load32(index + 4 * (word & 0xFFFF)))
        if flags & F_MINE == 0:
            return 0
        dst = word >> 16 & 0xFF
        a = 1 << (word >> 24 & 0xFF)
        b = 1 << (word >> 32 & 0xFF)
        imm = word >> 48
        kind = flags & F_KIND
        rule = flags >> F_RULE & 7
        args = flags >> F_ARGS & 3
        note = 0
        store64(w + A_LIVE + 8 * pc, live)
        if flags >> F_SIZE & 15:
            bit = 1 << dst
            note = N_RESULT | dst << N_DST
            live = live & (bit ^ ALL)
            if seen & bit:
                seen = seen ^ bit
                if flags & F_NAN:
                    note = note | N_CANONICAL
                elif rule == RULE_MOVES_A:
                    seen = seen | a
                elif rule == RULE_MOVES_AB:
                    seen = seen | a | b
                elif rule == RULE_COPYSIGN:
                    seen = seen | a
            if kind == plan.LOAD:
                alias = alias | bit
                if after_load == 0:
                    after_load = pc + 1
            elif kind == plan.MOV:
                alias = alias | bit
        store64(w + A_NOTES + 8 * pc, note)
        if args:
            live = live | a
            if args > 1:
                live = live | b
                if args > 2:
                    live = live | 1 << (word >> 40 & 0xFF)
        if rule == RULE_COPYSIGN:
            seen = seen | b
        elif rule == RULE_SEES_A:
            seen = seen | a
        elif rule == RULE_STORES:
            if shown >> load64(types + 8 * imm) & 1:
                seen = seen | a
        elif rule == RULE_EMITS and shown >> load64(emits + 8 * imm) & 1:
            seen = seen | a
        if kind == plan.STORE:
            if stores == STORES_MAX:
                return 0
            store64(w + A_STORES + 8 * stores, pc)
            stores = stores + 1
            store64(w + A_TIMES + 8 * imm, load64(w + A_TIMES + 8 * imm) + 1)
        elif flags & F_ONCE:
            if load64(w + A_SUMS + 8 * imm):
                return 0
            store64(w + A_SUMS + 8 * imm, 1)
    virtual = VIRTUAL
    i = stores
    while i:
        i = i - 1
        pc = load64(w + A_STORES + 8 * i)
        output = load64(code + 8 * pc) >> 48
        early = pc < after_load or load64(w + A_LIVE + 8 * pc) & alias
        if early and load64(w + A_VIRTUAL + 8 * output) == 0:
            store64(w + A_VIRTUAL + 8 * output, virtual)
            store64(w + A_DEFERRED + 8 * (virtual - VIRTUAL), output)
            store64(w + A_LOC + 8 * virtual, UNSET)
            store64(w + A_SIZE + 8 * virtual, load64(facts + H_SIZES + 8 * load64(types + 8 * output)))
            virtual = virtual + 1
    i = stores
    while i:
        i = i - 1
        pc = load64(w + A_STORES + 8 * i)
        output = load64(code + 8 * pc) >> 48
        waits = load64(w + A_VIRTUAL + 8 * output)
        same = load64(facts + H_IDENTITY) >> load64(types + 8 * output) & 1
        if load64(w + A_TIMES + 8 * output) == 1 and waits == 0 and same:
            forward_find(w, pc, output, load64(code + 8 * pc) >> 24 & 0xFF, after_load, alias)
    return virtual


@straight.function
def forward_find(w: int, pc: int, output: int, register: int, after_load: int, alias: int) -> int:
    """The result that this store stores may go to the output itself, when no later record reads an input."""
    while pc:
        pc = pc - 1
        note = load64(w + A_NOTES + 8 * pc)
        if note & N_RESULT and note >> N_DST & 0xFF == register:
            later = load64(w + A_LIVE + 8 * pc) & alias & ((1 << register) ^ ALL)
            if pc + 1 >= after_load and later == 0 and note >> N_FORWARD == 0:
                store64(w + A_NOTES + 8 * pc, note | (output + 1) << N_FORWARD)
            return 0
    return 0


@straight.function
def compute_put(w: int, pc: int, word: int, fact: int, flags: int) -> int:
    """A numeric instruction or function that does not trap."""
    dst = word >> 16 & 0xFF
    a = word >> 24 & 0xFF
    b = word >> 32 & 0xFF
    c = word >> 40 & 0xFF
    size = flags >> F_SIZE & 15
    args = flags >> F_ARGS & 3
    bit = 1 << dst
    wave = load64(w + A_LIVE + 8 * pc)
    note = load64(w + A_NOTES + 8 * pc)
    at = fact + FACT_NAMES
    la = load64(w + A_LOC + 8 * a)
    lb = 0
    lc = 0
    one = 0  # the uniform operand
    if args == 1:
        la = vector_of(w, la)
    elif args == 2:
        lb = load64(w + A_LOC + 8 * b)
        if la < UNIFORM and lb >= UNIFORM and flags & F_UNIFORM_B:
            one = lb
            lb = 0
            at = fact + FACT_B
        elif la >= UNIFORM and lb < UNIFORM and flags & F_UNIFORM_A:
            one = la
            at = fact + FACT_A
            la = 0
            if flags & F_SWAP:
                la = lb
                lb = 0
        elif flags & F_FAST:
            lb = vector_of(w, lb)
            la = vector_of(w, la)
        else:
            la = vector_of(w, la)
            lb = vector_of(w, lb)
    else:
        lb = load64(w + A_LOC + 8 * b)
        lc = load64(w + A_LOC + 8 * c)
        if la >= UNIFORM and lb < UNIFORM:  # a product: which factor is uniform does not matter
            one = la
            la = lb
            lb = one
            one = 0
        if lc >= UNIFORM and la < UNIFORM and lb < UNIFORM and flags & F_UNIFORM_C:
            one = lc
            lc = 0
            at = fact + FACT_C
        elif lb >= UNIFORM and la < UNIFORM and flags & F_UNIFORM_B:
            one = lb
            lb = 0
            lc = vector_of(w, lc)
            at = fact + FACT_B
        else:
            la = vector_of(w, la)
            lb = vector_of(w, lb)
            lc = vector_of(w, lc)
    imm = 0
    aux = 0
    if one:
        one = w + A_UNIFORMS + 32 * (one - UNIFORM)
        imm = load64(one)
        aux = load64(one + 8)
    handler = load64(at + 8 * (note & N_CANONICAL))
    target = PTR_OUTPUTS + (note >> N_FORWARD) - 1
    if flags & F_FAST:
        if args == 2 and b != a and (b == dst or wave >> b & 1 == 0):
            operand_free(w, b, size)
        if a == dst or wave >> a & 1 == 0:
            operand_free(w, a, size)
        slots_drop(w, bit)
        if note >> N_FORWARD == 0:
            target = slots_alloc(w, size)
            store64(w + S_HAVE, load64(w + S_HAVE) | bit)
    elif note >> N_FORWARD:
        slots_drop(w, bit)
    else:
        if flags & F_SAME:
            slots_drop(w, (wave ^ ALL) | bit)
            target = slots_alloc(w, size)
        else:
            target = slots_alloc(w, size)
            slots_drop(w, bit)
        store64(w + S_HAVE, load64(w + S_HAVE) | bit)
    store64(w + A_SIZE + 8 * dst, size)
    store64(w + A_LOC + 8 * dst, target)
    record_put(w, handler, target, la, lb, lc, imm, aux)
    return 0


@straight.function
def select_put(w: int, pc: int, word: int, fact: int, size: int) -> int:
    """Of two values one or the other."""
    la = load64(w + A_LOC + 8 * (word >> 24 & 0xFF))
    lb = load64(w + A_LOC + 8 * (word >> 32 & 0xFF))
    lc = vector_of(w, load64(w + A_LOC + 8 * (word >> 40 & 0xFF)))
    at = fact + FACT_NAMES
    one = 0
    if lb >= UNIFORM and la < UNIFORM:
        at = fact + FACT_B
        one = lb
        lb = 0
    elif la >= UNIFORM and lb < UNIFORM:
        at = fact + FACT_A
        one = la
        la = 0
    else:
        la = vector_of(w, la)
        lb = vector_of(w, lb)
    imm = 0
    aux = 0
    if one:
        one = w + A_UNIFORMS + 32 * (one - UNIFORM)
        imm = load64(one)
        aux = load64(one + 8)
    target = target_define(w, word >> 16 & 0xFF, size, load64(w + A_NOTES + 8 * pc))
    record_put(w, load64(at), target, la, lb, lc, imm, aux)
    return 0


@straight.function
def other_put(w: int, pc: int, word: int, fact: int, flags: int, words: int) -> int:
    """Everything that is not plain arithmetic."""
    facts = load64(w + S_FACTS)
    kind = flags & F_KIND
    size = flags >> F_SIZE & 15
    dst = word >> 16 & 0xFF
    imm = word >> 48
    note = load64(w + A_NOTES + 8 * pc)
    place = load64(w + A_LOC + 8 * (word >> 24 & 0xFF))  # of operand a, when there is one
    second = load64(w + A_LOC + 8 * (word >> 32 & 0xFF))
    constants = words + P_WORDS
    inputs = constants + 8 * load64(words + P_CONSTANTS)
    outputs = inputs + 8 * load64(words + P_INPUTS)
    tables = outputs + 8 * load64(words + P_OUTPUTS)
    emits = tables + 8 * load64(words + P_TABLES)
    bins = emits + 8 * load64(words + P_EMITS)
    handler = load64(fact + FACT_NAMES)
    if kind == plan.LOAD:
        dtype = load64(inputs + 8 * imm)
        if load64(facts + H_IDENTITY) >> dtype & 1:
            name_assign(w, dst, size, PTR_INPUTS + imm)
        else:
            target = target_define(w, dst, size, note)
            record_put(w, load64(facts + H_LOAD + 8 * dtype), target, PTR_INPUTS + imm, 0, 0, 0, 0)
    elif kind == plan.CONST:
        name_assign(w, dst, size, uniform_add(w, load64(constants + 8 * imm), 0, size))
    elif kind == plan.STORE:
        virtual = load64(w + A_VIRTUAL + 8 * imm)
        if virtual:
            virtual_set(w, virtual, place)
        elif place != PTR_OUTPUTS + imm:
            place = vector_of(w, place)
            record_put(w, load64(facts + H_STORE + 8 * load64(outputs + 8 * imm)), PTR_OUTPUTS + imm, place, 0, 0, 0, 0)
    elif kind == plan.SELECT:
        select_put(w, pc, word, fact, size)
    elif kind == plan.PARAM:
        name_assign(w, dst, size, uniform_find(w, imm + 1, size))
    elif kind == plan.MOV:
        if dst != word >> 24 & 0xFF:
            name_assign(w, dst, size, place)
    elif kind == plan.INDEX:
        record_put(w, handler, target_define(w, dst, size, note), 0, 0, 0, 0, 0)
    elif kind == plan.TRAPPING:
        place = vector_of(w, place)
        if flags >> F_ARGS & 3 > 1:
            second = vector_of(w, second)
        else:
            second = 0
        record_put(w, handler, target_define(w, dst, size, note), place, second, 0, 0, 0)
    elif kind == plan.ACC:
        record_put(w, handler, 0, vector_of(w, place), 0, 0, imm, load64(bins + 8 * imm))
    elif kind == plan.EMIT:
        handler = load64(facts + H_EMIT + 8 * load64(emits + 8 * imm))
        record_put(w, handler, 0, vector_of(w, place), 0, 0, imm, 0)
    elif kind == plan.TABLE_GET:
        place = vector_of(w, place)
        handler = load64(facts + H_TABLE + 8 * load64(tables + 8 * imm))
        record_put(w, handler, target_define(w, dst, size, note), place, 0, 0, imm, 0)
    elif kind == plan.ATOMIC:
        place = vector_of(w, place)
        second = vector_of(w, second)
        record_put(w, handler, 0, place, second, 0, imm, 0)
    elif kind == plan.UNREACHABLE:
        record_put(w, handler, 0, 0, 0, 0, 0, 0)
    return 0


@straight.function
def lower_straight(w: int, facts: int, code: int, words: int) -> int:
    """Lower a verified program into the workspace.

    Args:
        w: WORKSPACE_BYTES of memory that nobody else uses meanwhile.
        facts: the table that ``Facts`` makes.
        code: 8 bytes per instruction, as in a file.
        words: what P_WORDS says.
    Returns:
        Records of the body at A_BODY | records of the prologue, which end there << 16 | scratch slots << 32;
        0 when the program is not for us.
    """
    count = load64(words + P_CODE)
    if count > CODE_MAX:
        return 0
    zero(w, A_LOC)
    zero(w + A_TIMES, 8 * load64(words + P_OUTPUTS))
    zero(w + A_VIRTUAL, 8 * load64(words + P_OUTPUTS))
    zero(w + A_SUMS, 8 * load64(words + P_ACCS))
    store64(w + S_FACTS, facts)
    virtuals = survey(w, facts, code, words)
    if virtuals == 0:
        return 0
    store64(w + S_TOP, SCRATCH_SLOTS)
    store64(w + S_OUT, w + A_BODY)
    store64(w + S_BEFORE, w + A_PROLOGUE)
    index = load64(facts + H_INDEX)
    pc = 0
    while pc < count:
        word = load64(code + 8 * pc)
        fact = facts + load32(index + 4 * (word & 0xFFFF))
        flags = load64(fact)
        store64(w + S_PC, pc)
        if flags & F_KIND == COMPUTE:
            compute_put(w, pc, word, fact, flags)
        else:
            other_put(w, pc, word, fact, flags, words)
        if load64(w + S_TEMPORARY):
            temporaries_drop(w)
        slots_drop(w, load64(w + A_LIVE + 8 * pc) ^ ALL)
        if load64(w + S_FAILED) or load64(w + S_OUT) > w + BODY_LAST:
            return 0
        pc = pc + 1
    outputs = words + P_WORDS + 8 * load64(words + P_CONSTANTS) + 8 * load64(words + P_INPUTS)
    store64(w + S_PC, count - 1)
    virtual = VIRTUAL
    while virtual < virtuals:
        output = load64(w + A_DEFERRED + 8 * (virtual - VIRTUAL))
        handler = load64(facts + H_STORE + 8 * load64(outputs + 8 * output))
        place = vector_of(w, load64(w + A_LOC + 8 * virtual))
        record_put(w, handler, PTR_OUTPUTS + output, place, 0, 0, 0, 0)
        if load64(w + S_TEMPORARY) == 8 or load64(w + S_OUT) > w + BODY_LAST:
            return 0
        virtual = virtual + 1
    store64(w + S_PC, 0)
    record_put(w, load64(facts + H_RETURN), 0, 0, 0, 0, 0, 0)
    body = (load64(w + S_OUT) - w - A_BODY) // OP_BYTES
    store64(w + S_OUT, load64(w + S_BEFORE))
    record_put(w, load64(facts + H_RETURN), 0, 0, 0, 0, 0, 0)
    prologue = (load64(w + S_OUT) - w - A_PROLOGUE) // OP_BYTES
    copy(w + A_BODY - OP_BYTES * prologue, w + A_PROLOGUE, OP_BYTES * prologue)
    if load64(w + S_FAILED):
        return 0
    used = load64(w + S_NEXT)
    if prologue > 1:
        used = SCRATCH_SLOTS
    return body | prologue << 16 | used << 32
