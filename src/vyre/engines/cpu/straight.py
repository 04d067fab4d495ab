"""Tile forms of programs without blocks, lowered by native code: what a formula never seen before pays for.

The same records as tileform's straight path gives, byte for byte, in a tenth of the time. Whatever this does not take,
a block, a float sum with two places, a handler that is not compiled yet, it leaves to tileform.

Owns: the native function, its table of facts and its workspace. Leaves to others: the facts (plan, analysis), the rules
of lowering (tileform's docstring), handlers.
"""

from __future__ import annotations

from vyre.engines.cpu import plan
from vyre.engines.cpu.abi import OP_BYTES, PTR_INPUTS, PTR_OUTPUTS, SCRATCH_SLOTS
from vyre.engines.cpu.straight_layout import (
    A_BODY,
    A_DEFERRED,
    A_LIVE,
    A_LOC,
    A_NOTES,
    A_PROLOGUE,
    A_SIZE,
    A_STORES,
    A_SUMS,
    A_TIMES,
    A_UNIFORMS,
    A_VIRTUAL,
    ALL,
    BODY_LAST,
    CODE_MAX,
    F_ARGS,
    F_FAST,
    F_KIND,
    F_MINE,
    F_NAN,
    F_ONCE,
    F_RULE,
    F_SAME,
    F_SIZE,
    F_SWAP,
    F_UNIFORM_A,
    F_UNIFORM_B,
    F_UNIFORM_C,
    FACT_A,
    FACT_B,
    FACT_C,
    FACT_NAMES,
    H_EMIT,
    H_IDENTITY,
    H_INDEX,
    H_LOAD,
    H_RETURN,
    H_SHOWN,
    H_SIZES,
    H_STORE,
    H_TABLE,
    N_CANONICAL,
    N_DST,
    N_FORWARD,
    N_RESULT,
    S_BEFORE,
    S_FACTS,
    S_FAILED,
    S_HAVE,
    S_NEXT,
    S_OUT,
    S_PC,
    S_READS,
    S_TEMPORARY,
    S_TOP,
    STORES_MAX,
    UNIFORM,
    UNSET,
    VIRTUAL,
)
from vyre.engines.cpu.straight_slots import (
    name_assign,
    operand_free,
    record_put,
    slots,
    slots_alloc,
    slots_drop,
    target_define,
    temporaries_drop,
    uniform_add,
    uniform_find,
    vector_of,
    virtual_set,
)
from vyre.native import Unit, copy, load32, load64, store64, zero
from vyre.program import analysis
from vyre.program.words import P_ACCS, P_CODE, P_CONSTANTS, P_EMITS, P_INPUTS, P_OUTPUTS, P_TABLES, P_WORDS

COMPUTE = plan.COMPUTE
RULE_MOVES_A = analysis.MOVES_A
RULE_MOVES_AB = analysis.MOVES_AB
RULE_COPYSIGN = analysis.COPYSIGN
RULE_SEES_A = analysis.SEES_A
RULE_STORES = analysis.STORES
RULE_EMITS = analysis.EMITS

straight = Unit("straight", slots)


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
        handler = load64(facts + H_TABLE + 8 * (load64(tables + 8 * imm) & 0xFF))
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
        words: what words.P_CODE and those after it say.
    Returns:
        Records of the body at A_BODY | records of the prologue, which end there << 16 | scratch slots << 32 |
        whether a record reads an output << 63;
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
    return body | prologue << 16 | used << 32 | load64(w + S_READS) << 63
