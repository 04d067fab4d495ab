"""Native verification of programs without blocks: says yes where the verifier would, in a twentieth of the time.

Owns: the function and its table of rules. Leaves to others: the rules and their words (verifier), every program that it
does not say yes to.
"""

from __future__ import annotations

from array import array
from functools import cache
from typing import Final

from vyre.native import Unit, load32, load64, store64, zero
from vyre.program import verifier
from vyre.program.opcodes import BY_NAME, OPCODES, Imm, Op
from vyre.program.words import (
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
    index_of_entries,
)

# --- rules: the address of an index from opcode to byte offset (words.index_of_entries), then an entry for each opcode ---
R_INDEX = 0
R_BYTES = 8
R_WHAT = 0  # one of the numbers below; 0: not for this function
R_TYPES = 8  # of dst, a, b, c as numbers, 0 for an unused one, 8 bits each; T_SPACE and T_HOW
R_ZERO = 16  # bits of the instruction that must be 0
R_FITS = 24  # group << 16 | memory types that the immediate's declaration may have
R_ENTRY = 32
WHAT_PLAIN = 1
WHAT_STORE = 2
WHAT_EMIT = 3
WHAT_UPDATE = 4
WHAT_RETURN = 5
T_SPACE = 32  # shifts
T_HOW = 40
HOW_CONST = 1
HOW_DECLARED = 2
ALL = 0xFFFF_FFFF_FFFF_FFFF

# --- workspace ----------------------------------------------------------------------------------------------------------
V_HAVE = 0  # types of registers that are assigned
V_SPACES = V_HAVE + 8 * 64  # address and count of each kind of declaration, in the verifier's order
V_STORED = V_SPACES + 16 * 6
V_EMITTED = V_STORED + 8 * 256
V_UPDATES = V_EMITTED + 8 * 256
CHECK_BYTES = V_UPDATES + 8 * 256

check = Unit("check")


@check.function
def check_straight(w: int, rules: int, code: int, words: int) -> int:
    """Whether the code of a program whose declarations are valid, and that has no blocks, keeps every rule of VIR0.

    Args:
        w: CHECK_BYTES of memory that nobody else uses meanwhile.
        rules: the table that ``rules_table`` makes.
        code: 8 bytes per instruction, as in a file.
        words: what words.P_CODE and those after it say.
    Returns:
        1 when it does; 0 when it does not or has blocks: the verifier itself then says which.
    """
    index = load64(rules + R_INDEX)
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
        rule = rules + load32(index + 4 * (word & 0xFFFF))
        what = load64(rule + R_WHAT)
        if what == 0 or word & load64(rule + R_ZERO) != 0:
            return 0
        types = load64(rule + R_TYPES)
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
            fits = load64(rule + R_FITS)
            if key >> 8 != fits >> 16 or fits >> (key & 15) & 1 == 0:
                return 0
            if what == WHAT_STORE:
                store64(w + V_STORED + 8 * imm, 1)
            elif what == WHAT_EMIT:
                if load64(w + V_EMITTED + 8 * imm):
                    return 0
                store64(w + V_EMITTED + 8 * imm, 1)
            elif what == WHAT_UPDATE:
                before = load64(w + V_UPDATES + 8 * imm)
                if before != 0 and before != word & 0xFFFF:
                    return 0
                store64(w + V_UPDATES + 8 * imm, word & 0xFFFF)
        if need:
            store64(w + V_HAVE + 8 * dst, need)
        pc = pc + 1
        if what == WHAT_RETURN:
            output = 0
            while output < n_outputs:
                if load64(w + V_STORED + 8 * output) == 0:
                    return 0
                output = output + 1
            return pc == count
    return 0


_BLOCKS: Final = frozenset(BY_NAME[n].code for n in ("if", "else", "end", "loop", "br_if"))


def _what(op: Op) -> int:
    if op.code in _BLOCKS:
        return 0
    if op.name == "return":
        return WHAT_RETURN
    if op.imm is Imm.output:
        return WHAT_STORE
    if op.imm is Imm.emit:
        return WHAT_EMIT
    return WHAT_UPDATE if op.imm is Imm.table and op.result is None else WHAT_PLAIN


def _entry(op: Op) -> tuple[int, int, int, int]:
    _, *types, space, fits = verifier.NEEDS[op.code]
    words = sum(t << 8 * i for i, t in enumerate(types))
    used = 0xFFFF
    for i, t in enumerate(types):
        used |= 0xFF << 16 + 8 * i if t else 0
    if op.imm is Imm.const:
        words |= HOW_CONST << T_HOW
    elif fits:
        words |= HOW_DECLARED << T_HOW | space << T_SPACE
    if op.imm is not Imm.none:
        used |= 0xFFFF << 48
    groups = {key >> 8 for key in fits} or {0}
    assert len(groups) == 1, f"{op.name} goes with one kind of accumulator or access"
    return _what(op), words, used ^ ALL, groups.pop() << 16 | sum(1 << (key & 0xFF) for key in fits)


@cache
def rules_table() -> array[int]:
    """What ``check_straight`` reads; made once, and never moved."""
    table = array("Q", [index_of_entries(R_BYTES, R_ENTRY).buffer_info()[0]])
    for op in OPCODES:
        table.extend(_entry(op))
    table.extend([0] * (R_ENTRY // 8))
    return table
