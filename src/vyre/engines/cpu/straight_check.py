"""Native verification of programs without blocks: says yes where the verifier would, in a twentieth of the time.

Owns: the function. Leaves to others: the rules and their words (program/verifier), every program that it does not say yes to.
"""

from __future__ import annotations

from vyre.engines.cpu import plan
from vyre.engines.cpu.straight_layout import (
    F_KIND,
    F_MINE,
    FACT_FITS,
    FACT_TYPES,
    FACT_ZERO,
    H_INDEX,
    HOW_CONST,
    HOW_DECLARED,
    P_ACCS,
    P_CODE,
    P_CONSTANTS,
    P_EMITS,
    P_INPUTS,
    P_OUTPUTS,
    P_PARAMS,
    P_REGISTERS,
    P_TABLES,
    P_WORDS,
    T_HOW,
    T_SPACE,
    V_EMITTED,
    V_HAVE,
    V_SPACES,
    V_STORED,
    V_UPDATES,
)
from vyre.native import Unit, load32, load64, store64, zero

check = Unit("check")


@check.function
def check_straight(w: int, facts: int, code: int, words: int) -> int:
    """Whether the code of a program whose declarations are valid, and that has no blocks, keeps every rule of VIR0.

    Args:
        w, facts, code, words: as for ``lower_straight``.
    Returns:
        1 when it does; 0 when it does not or has blocks: the verifier itself then says which.
    """
    index = load64(facts + H_INDEX)
    count = load64(words + P_CODE)
    constants = words + P_WORDS
    n_constants = load64(words + P_CONSTANTS)
    n_outputs = load64(words + P_OUTPUTS)
    n_registers = load64(words + P_REGISTERS)
    n_tables = load64(words + P_TABLES)
    n_emits = load64(words + P_EMITS)
    n_accs = load64(words + P_ACCS)
    inputs = constants + 8 * n_constants
    outputs = inputs + 8 * load64(words + P_INPUTS)
    tables = outputs + 8 * n_outputs
    emits = tables + 8 * n_tables
    params = emits + 8 * n_emits + 8 * n_accs
    accs = params + 8 * load64(words + P_PARAMS)
    registers = accs + 8 * n_accs
    store64(w + V_SPACES, inputs)
    store64(w + V_SPACES + 8, load64(words + P_INPUTS))
    store64(w + V_SPACES + 16, outputs)
    store64(w + V_SPACES + 24, n_outputs)
    store64(w + V_SPACES + 32, params)
    store64(w + V_SPACES + 40, load64(words + P_PARAMS))
    store64(w + V_SPACES + 48, tables)
    store64(w + V_SPACES + 56, n_tables)
    store64(w + V_SPACES + 64, accs)
    store64(w + V_SPACES + 72, n_accs)
    store64(w + V_SPACES + 80, emits)
    store64(w + V_SPACES + 88, n_emits)
    zero(w + V_HAVE, 8 * n_registers)
    zero(w + V_STORED, 8 * n_outputs)
    zero(w + V_EMITTED, 8 * n_emits)
    zero(w + V_UPDATES, 8 * n_tables)
    pc = 0
    while pc < count:
        word = load64(code + 8 * pc)
        fact = facts + load32(index + 4 * (word & 0xFFFF))
        flags = load64(fact)
        kind = flags & F_KIND
        if flags & F_MINE == 0 or word & load64(fact + FACT_ZERO) != 0:
            return 0
        types = load64(fact + FACT_TYPES)
        dst = word >> 16 & 0xFF
        a = word >> 24 & 0xFF
        b = word >> 32 & 0xFF
        c = word >> 40 & 0xFF
        imm = word >> 48
        need = types >> 8 & 0xFF
        if need != 0 and (a >= n_registers or load64(w + V_HAVE + 8 * a) != need):
            return 0
        need = types >> 16 & 0xFF
        if need != 0 and (b >= n_registers or load64(w + V_HAVE + 8 * b) != need):
            return 0
        need = types >> 24 & 0xFF
        if need != 0 and (c >= n_registers or load64(w + V_HAVE + 8 * c) != need):
            return 0
        need = types & 0xFF
        if need != 0 and (dst >= n_registers or load64(registers + 8 * dst) != need):
            return 0
        how = types >> T_HOW & 3
        if how == HOW_CONST:
            if imm >= n_constants or (need & 1 != 0 and load64(constants + 8 * imm) >> 32 != 0):  # 32-bit types are odd
                return 0
        elif how == HOW_DECLARED:
            space = w + V_SPACES + 16 * (types >> T_SPACE & 7)
            if imm >= load64(space + 8):
                return 0
            key = load64(load64(space) + 8 * imm)
            fits = load64(fact + FACT_FITS)
            if key >> 8 != fits >> 16 or fits >> (key & 15) & 1 == 0:
                return 0
            if kind == plan.STORE:
                store64(w + V_STORED + 8 * imm, 1)
            elif kind == plan.EMIT:
                if load64(w + V_EMITTED + 8 * imm):
                    return 0
                store64(w + V_EMITTED + 8 * imm, 1)
            elif kind == plan.ATOMIC:
                before = load64(w + V_UPDATES + 8 * imm)
                if before != 0 and before != word & 0xFFFF:
                    return 0
                store64(w + V_UPDATES + 8 * imm, word & 0xFFFF)
        if need:
            store64(w + V_HAVE + 8 * dst, need)
        pc = pc + 1
        if kind == plan.RETURN:
            output = 0
            while output < n_outputs:
                if load64(w + V_STORED + 8 * output) == 0:
                    return 0
                output = output + 1
            return pc == count
    return 0
