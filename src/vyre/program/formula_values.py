"""Native twins of program/lower: instructions of operators and functions on the values of a formula.

A value is register << 4 | kind, of a literal its number << 4 | kind, as there; 0 is the answer of all that is left to
Python: folding of literals, flooring division of signed integers and of floats, and every refusal.

Owns: the native functions. Leaves to others: which instruction does what (program/kinds, through the facts), syntax (formula).
"""

from __future__ import annotations

from vyre.native import Unit, f32_of, f64_of, load64, store64
from vyre.program.formula_layout import (
    A_CODE,
    A_CONSTANTS,
    A_KNOWN,
    A_LITERALS,
    A_REGISTERS,
    ALL,
    CAST_FREE,
    D_MOST,
    F32_MAX,
    FN_ABS,
    FN_BYTES,
    FN_CAST,
    FN_FMA,
    FN_FOLD,
    FN_ONE,
    FN_POWER,
    FN_ROUND,
    FN_WHERE,
    K_CONST,
    K_FMA,
    K_NEGATE,
    K_SELECT,
    K_TYPE,
    KIND_BYTES,
    LITERALS_MAX,
    ONE_ABS,
    ONE_NOT,
    R_COPYSIGN,
    R_DIVIDE,
    R_FLOOR,
    R_FLOOR_LAST,
    R_MAX,
    R_MULTIPLY,
    R_POWER,
    R_SHIFT,
    R_SHIFT_LAST,
    R_SUBTRACT,
    R_XOR,
    REGISTERS_MAX,
    ROW_BYTES,
    S_CODE,
    S_CONSTANTS,
    S_KNOWN,
    S_LITERALS,
    S_REGISTERS,
    SIGN,
    T_CAST,
    T_FUNCTIONS,
    T_KINDS,
    T_ONE,
    T_PROMOTE,
    T_ROWS,
)
from vyre.program.kinds import (
    BOOL,
    F32,
    F64,
    I32,
    I64,
    MAX_EXPANDED_POWER,
    MAX_EXPANDED_POWER_F32,
    U32,
    U64,
    WEAK_FLOAT,
    WEAK_INT,
)

ONE_F32 = 0x3F80_0000
ONE_F64 = 0x3FF0_0000_0000_0000
DST = 0xFF << 16

values = Unit("values")


@values.function
def value_new(w: int, facts: int, op: int, kind: int) -> int:
    """Append an instruction that has all but its result; the new register's value. 0: there are too many."""
    register = load64(w + S_REGISTERS)
    if register == REGISTERS_MAX:
        return 0
    store64(w + S_REGISTERS, register + 1)
    store64(w + A_REGISTERS + 8 * register, load64(facts + T_KINDS + KIND_BYTES * kind + K_TYPE))
    count = load64(w + S_CODE)
    store64(w + S_CODE, count + 1)
    store64(w + A_CODE + 8 * count, op | register << 16)
    return register << 4 | kind


@values.function
def value_emit(w: int, facts: int, op: int, kind: int, a: int, b: int, c: int) -> int:
    """_Emitter.emit: an instruction that is there already is not appended again."""
    key = op | (a >> 4) << 24 | (b >> 4) << 32 | (c >> 4) << 40
    at = w + A_CODE
    end = at + 8 * load64(w + S_CODE)
    while at < end:
        word = load64(at)
        if word & (DST ^ ALL) == key:
            return (word >> 16 & 0xFF) << 4 | kind
        at = at + 8
    return value_new(w, facts, key, kind)


@values.function
def value_constant(w: int, facts: int, kind: int, bits: int) -> int:
    """_Emitter.constant."""
    at = w + A_KNOWN
    known = load64(w + S_KNOWN)
    end = at + 24 * known
    while at < end:
        if load64(at) == kind and load64(at + 8) == bits:
            return load64(at + 16)
        at = at + 24
    count = load64(w + S_CONSTANTS)
    index = 0
    while index < count and load64(w + A_CONSTANTS + 8 * index) != bits:
        index = index + 1
    op = load64(facts + T_KINDS + KIND_BYTES * kind + K_CONST)
    value = value_new(w, facts, op | index << 48, kind)
    if value == 0:
        return 0
    if index == count:
        store64(w + A_CONSTANTS + 8 * index, bits)
        store64(w + S_CONSTANTS, count + 1)
    store64(at, kind)
    store64(at + 8, bits)
    store64(at + 16, value)
    store64(w + S_KNOWN, known + 1)
    return value


@values.function
def value_literal(w: int, kind: int, bits: int) -> int:
    """A weak value: the bits of an f64, or a signed integer of less than 2**53."""
    count = load64(w + S_LITERALS)
    if count == LITERALS_MAX:
        return 0
    store64(w + S_LITERALS, count + 1)
    store64(w + A_LITERALS + 8 * count, bits)
    return count << 4 | kind


@values.function
def value_convert(w: int, facts: int, value: int, kind: int) -> int:
    """Lowering.convert to a kind that promotion chose."""
    have = value & 15
    if have == kind:
        return value
    if have >= WEAK_INT:
        weak = load64(w + A_LITERALS + 8 * (value >> 4))
        if kind == F32 or kind == F64:
            if have == WEAK_INT:
                weak = f64_of(weak)
            if kind == F64:
                return value_constant(w, facts, kind, weak)
            if weak & (SIGN ^ ALL) > F32_MAX:
                return 0
            return value_constant(w, facts, kind, f32_of(weak))
        if have == WEAK_FLOAT:
            return 0
        if kind == I32:
            if weak + 0x8000_0000 > 0xFFFF_FFFF:
                return 0
            return value_constant(w, facts, kind, weak & 0xFFFF_FFFF)
        if kind == U32:
            if weak > 0xFFFF_FFFF:
                return 0
            return value_constant(w, facts, kind, weak)
        if kind == I64 or (kind == U64 and weak < SIGN):
            return value_constant(w, facts, kind, weak)
        return 0
    op = load64(facts + T_CAST + 8 * (have << 4 | kind))
    if op == CAST_FREE:
        return value ^ have | kind
    if op == 0:
        return 0
    return value_emit(w, facts, op, kind, value, 0, 0)


@values.function
def value_apply(w: int, facts: int, row: int, a: int, b: int) -> int:
    """The one instruction of a binary row on two values of one kind."""
    kind = a & 15
    if kind != b & 15 or kind >= WEAK_INT:
        return 0
    hit = load64(facts + T_ROWS + ROW_BYTES * row + 8 * kind)
    if hit == 0:
        return 0
    return value_emit(w, facts, hit & 0xFFFF, hit >> 16, a, b, 0)


@values.function
def value_binary(w: int, facts: int, row: int, a: int, b: int) -> int:
    """Lowering.binary."""
    found = value_apply(w, facts, row, a, b)
    if found:
        return found
    if row == R_POWER:
        return value_power(w, facts, a, b)
    kind = load64(facts + T_PROMOTE + 8 * ((a & 15) << 4 | b & 15))
    if kind == 0 or kind == BOOL or kind >= WEAK_INT:
        return 0
    whole = kind != F32 and kind != F64
    if whole and (row == R_DIVIDE or row == R_COPYSIGN):
        kind = F64
    elif row >= R_FLOOR and row <= R_FLOOR_LAST and (kind == I32 or kind == I64):
        return 0
    if row >= R_SHIFT and row <= R_SHIFT_LAST and b & 15 == WEAK_INT:
        width = 64
        if kind == I32 or kind == U32:
            width = 32
        if load64(w + A_LITERALS + 8 * (b >> 4)) >= width:
            return 0
    if load64(facts + T_ROWS + ROW_BYTES * row + 8 * kind) == 0:
        return 0
    a = value_convert(w, facts, a, kind)
    if a == 0:
        return 0
    b = value_convert(w, facts, b, kind)
    if b == 0:
        return 0
    return value_apply(w, facts, row, a, b)


@values.function
def value_power(w: int, facts: int, a: int, b: int) -> int:
    """Lowering.power where it multiplies out: the exponent is a whole literal."""
    kind = a & 15
    if kind == BOOL or kind >= WEAK_INT or b & 15 != WEAK_INT:
        return 0
    n = load64(w + A_LITERALS + 8 * (b >> 4))
    negative = n >= SIGN
    if negative:
        n = 0 - n
    one = 1
    most = MAX_EXPANDED_POWER
    if kind == F32:
        one = ONE_F32
        most = MAX_EXPANDED_POWER_F32
    elif kind == F64:
        one = ONE_F64
    elif negative:
        return 0
    if n > most:
        return 0
    if n == 0:
        return value_constant(w, facts, kind, one)
    result = 0
    square = a
    while n:
        if n & 1:
            if result:
                result = value_apply(w, facts, R_MULTIPLY, result, square)
                if result == 0:
                    return 0
            else:
                result = square
        n = n >> 1
        if n:
            square = value_apply(w, facts, R_MULTIPLY, square, square)
            if square == 0:
                return 0
    if negative:
        first = value_constant(w, facts, kind, one)
        if first == 0:
            return 0
        return value_apply(w, facts, R_DIVIDE, first, result)
    return result


@values.function
def value_negate(w: int, facts: int, value: int) -> int:
    """``-x``."""
    kind = value & 15
    if kind == BOOL:
        return 0
    if kind >= WEAK_INT:
        weak = load64(w + A_LITERALS + 8 * (value >> 4))
        if kind == WEAK_INT:
            return value_literal(w, kind, 0 - weak)
        return value_literal(w, kind, weak ^ SIGN)
    if kind == F32 or kind == F64:
        return value_emit(w, facts, load64(facts + T_KINDS + KIND_BYTES * kind + K_NEGATE), kind, value, 0, 0)
    nought = value_constant(w, facts, kind, 0)
    if nought == 0:
        return 0
    return value_apply(w, facts, R_SUBTRACT, nought, value)


@values.function
def value_invert(w: int, facts: int, value: int) -> int:
    """``~x``, and ``not x`` of what is bool."""
    kind = value & 15
    if kind == BOOL:
        return value_emit(w, facts, load64(facts + T_ONE + ROW_BYTES * ONE_NOT + 8 * BOOL), BOOL, value, 0, 0)
    ones = ALL
    if kind == I32 or kind == U32:
        ones = 0xFFFF_FFFF
    elif kind != I64 and kind != U64:
        return 0
    mask = value_constant(w, facts, kind, ones)
    if mask == 0:
        return 0
    return value_apply(w, facts, R_XOR, value, mask)


@values.function
def value_one(w: int, facts: int, row: int, round_: int, value: int) -> int:
    """Lowering._unary_function of a value with a type."""
    kind = value & 15
    if kind == BOOL or kind >= WEAK_INT:
        return 0
    op = load64(facts + T_ONE + ROW_BYTES * row + 8 * kind)
    if op:
        return value_emit(w, facts, op, kind, value, 0, 0)
    if kind == F32 or kind == F64:
        return 0
    if round_:
        return value
    op = load64(facts + T_ONE + ROW_BYTES * row + 8 * F64)
    if op == 0:
        return 0
    value = value_convert(w, facts, value, F64)
    if value == 0:
        return 0
    return value_emit(w, facts, op, F64, value, 0, 0)


@values.function
def value_abs(w: int, facts: int, value: int) -> int:
    """Lowering._abs of a value with a type."""
    kind = value & 15
    if kind == U32 or kind == U64:
        return value
    if kind == F32 or kind == F64:
        return value_emit(w, facts, load64(facts + T_ONE + ROW_BYTES * ONE_ABS + 8 * kind), kind, value, 0, 0)
    if kind != I32 and kind != I64:
        return 0
    other = value_negate(w, facts, value)
    if other == 0:
        return 0
    return value_apply(w, facts, R_MAX, value, other)


@values.function
def value_where(w: int, facts: int, condition: int, a: int, b: int) -> int:
    """Lowering.where, unless both are literals."""
    kind = load64(facts + T_PROMOTE + 8 * ((a & 15) << 4 | b & 15))
    if condition & 15 != BOOL or kind == 0 or kind >= WEAK_INT:
        return 0
    a = value_convert(w, facts, a, kind)
    if a == 0:
        return 0
    b = value_convert(w, facts, b, kind)
    if b == 0:
        return 0
    return value_emit(w, facts, load64(facts + T_KINDS + KIND_BYTES * kind + K_SELECT), kind, a, b, condition)


@values.function
def value_fma(w: int, facts: int, a: int, b: int, c: int) -> int:
    """fma()."""
    kind = load64(facts + T_PROMOTE + 8 * ((a & 15) << 4 | b & 15))
    if kind == 0:
        return 0
    kind = load64(facts + T_PROMOTE + 8 * (kind << 4 | c & 15))
    if kind == 0 or kind == BOOL:
        return 0
    if kind != F32:
        kind = F64
    a = value_convert(w, facts, a, kind)
    if a == 0:
        return 0
    b = value_convert(w, facts, b, kind)
    if b == 0:
        return 0
    c = value_convert(w, facts, c, kind)
    if c == 0:
        return 0
    return value_emit(w, facts, load64(facts + T_KINDS + KIND_BYTES * kind + K_FMA), kind, a, b, c)


@values.function
def value_call(w: int, facts: int, function: int, args: int, count: int) -> int:
    """Lowering.call of the arguments that lie at ``args``, at least one."""
    at = facts + T_FUNCTIONS + FN_BYTES * function
    what = load64(at + 8)
    detail = load64(at + 16)
    first = load64(args)
    if what == FN_FOLD:
        if count < 2 or count > detail >> D_MOST & 0xFFFF:
            return 0
        i = 1
        while i < count:
            first = value_binary(w, facts, detail & 0xFFFF, first, load64(args + 8 * i))
            if first == 0:
                return 0
            i = i + 1
        return first
    if what == FN_WHERE or what == FN_FMA:
        if count != 3:
            return 0
        if what == FN_WHERE:
            return value_where(w, facts, first, load64(args + 8), load64(args + 16))
        return value_fma(w, facts, first, load64(args + 8), load64(args + 16))
    if what == FN_POWER:
        if count != 2:
            return 0
        return value_power(w, facts, first, load64(args + 8))
    if count != 1:
        return 0
    if what == FN_ONE or what == FN_ROUND:
        return value_one(w, facts, detail, what == FN_ROUND, first)
    if what == FN_ABS:
        return value_abs(w, facts, first)
    if what == FN_CAST:
        if first & 15 == WEAK_FLOAT and detail != F32 and detail != F64:
            return 0
        return value_convert(w, facts, first, detail)
    return 0
