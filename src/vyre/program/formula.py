"""A native reader of formulas: what a text never seen before pays for.

The same program as program/expression gives, instruction for instruction, in a twentieth of the time. It takes what most
formulas are made of; whatever it does not take, and every text that is to be refused, is left to Python, which stays the
definition.

Owns: the native function that reads. Leaves to others: values and instructions (formula_values), Python's side (formula_form).
"""

from __future__ import annotations

from vyre.native import Unit, copy, f64_div, f64_mul, f64_of, load8, load64, store64, zero
from vyre.program.formula_layout import (
    A_CODE,
    A_CONSTANTS,
    A_INPUTS,
    A_PARAMS,
    A_REGISTERS,
    A_SEEN,
    A_STACK,
    A_VALUES,
    A_WORDS,
    BINARY,
    BOTTOM,
    C_DIGIT,
    C_LETTER,
    C_POINT,
    C_SPACE,
    CALL,
    CHAIN,
    CHAIN_ENTRY,
    CLOSE,
    COMMA,
    COMPARE,
    D_REDUCES,
    E_CALL,
    E_FIRST,
    E_LEAST,
    E_ROW,
    E_WHAT,
    END_ENTRY,
    EXACT,
    EXPONENT_MAX,
    FN_BYTES,
    FN_INDEX,
    K_LOAD,
    K_PARAM,
    K_STORE,
    K_STORED,
    KIND_BYTES,
    N_COUNT,
    N_INFO,
    N_NAMES,
    N_REST,
    N_SIZE,
    N_START,
    NAME_BYTES,
    NOT,
    ONE_BOTH,
    ONE_INDEX,
    PAREN,
    R_AND,
    R_OR,
    ROW_BYTES,
    S_AT,
    S_CODE,
    S_CONSTANTS,
    S_INPUTS,
    S_KIND,
    S_PARAMS,
    S_REDUCES,
    S_REGISTERS,
    T_CHARS,
    T_DOUBLE,
    T_EQUALS,
    T_FUNCTIONS,
    T_KINDS,
    T_ONE,
    T_POWERS,
    T_REDUCE,
    UNARY,
    VALUES_MAX,
)
from vyre.program.formula_values import (
    value_binary,
    value_call,
    value_convert,
    value_emit,
    value_invert,
    value_literal,
    value_negate,
    value_new,
    values,
)
from vyre.program.kinds import BOOL, I64, WEAK_FLOAT, WEAK_INT, code_of
from vyre.program.words import (
    P_ACCS,
    P_CODE,
    P_CONSTANTS,
    P_INPUTS,
    P_OUTPUTS,
    P_PARAMS,
    P_REGISTERS,
    P_WORDS,
)

RETURN = code_of("return")
WORD_NOT = int.from_bytes(b"not", "little")
WORD_AND = int.from_bytes(b"and", "little")
WORD_OR = int.from_bytes(b"or", "little")
OPEN = ord("(")
SHUT = ord(")")
PLUS = ord("+")
MINUS = ord("-")
TILDE = ord("~")
ZERO = ord("0")
SMALL_E = ord("e")
BIG_E = ord("E")

formula = Unit("formula", values)


@formula.function
def text_skip(facts: int, at: int) -> int:
    """Past white space."""
    while load64(facts + T_CHARS + 8 * load8(at)) & 0xFF == C_SPACE:
        at = at + 1
    return at


@formula.function
def name_find(names: int, start: int, size: int, word: int) -> int:
    """Number + 1 of a name that has a type."""
    count = load64(names + N_COUNT)
    at = names + N_NAMES
    number = 0
    while number < count:
        number = number + 1
        if load64(at + N_START) == word and load64(at + N_SIZE) == size:
            i = 8
            rest = names + load64(at + N_REST)
            while i < size and load8(rest + i) == load8(start + i):
                i = i + 1
            if i >= size:
                return number
        at = at + NAME_BYTES
    return 0


@formula.function
def name_value(w: int, facts: int, names: int, number: int) -> int:
    """The value of a name: loaded when it is met for the first time."""
    seen = w + A_SEEN + 8 * number
    value = load64(seen)
    if value:
        return value
    info = load64(names + N_NAMES + NAME_BYTES * number + N_INFO)
    kind = info & 0xFF
    at = facts + T_KINDS + KIND_BYTES * kind
    if info >> 16:
        index = load64(w + S_PARAMS)
        value = value_new(w, facts, load64(at + K_PARAM) | index << 48, kind)
        if value == 0:
            return 0
        store64(w + S_PARAMS, index + 1)
        store64(w + A_PARAMS + 8 * index, number)
    else:
        index = load64(w + S_INPUTS)
        value = value_new(w, facts, load64(at + K_LOAD) | index << 48, kind)
        if value == 0:
            return 0
        store64(w + S_INPUTS, index + 1)
        store64(w + A_INPUTS + 8 * index, number)
    store64(seen, value)
    return value


@formula.function
def function_find(facts: int, word: int) -> int:
    """Number + 1 of a function whose name has at most eight characters."""
    at = facts + T_FUNCTIONS
    number = 0
    while load64(at):
        number = number + 1
        if load64(at) == word:
            return number
        at = at + FN_BYTES
    return 0


@formula.function
def number_read(w: int, facts: int, start: int) -> int:
    """A literal that f64 or 53 bits hold exactly, or that is one rounding away (Clinger 1990); S_AT says where it ends."""
    at = start
    whole = 0
    power = 0
    point = 0
    digits = 0
    while True:
        c = load8(at)
        kind = load64(facts + T_CHARS + 8 * c) & 0xFF
        if kind == C_DIGIT:
            whole = 10 * whole + c - ZERO
            if whole >= EXACT:
                return 0
            power = power + point
            digits = digits + 1
        elif kind == C_POINT and point == 0:
            point = 1
        else:
            break
        at = at + 1
    if digits == 0 or at > start + 40:
        return 0
    c = load8(at)
    scale = 0
    minus = 0
    exponent = c == SMALL_E or c == BIG_E
    if exponent:
        at = at + 1
        c = load8(at)
        if c == MINUS or c == PLUS:
            minus = c == MINUS
            at = at + 1
        first = at
        c = load8(at)
        while load64(facts + T_CHARS + 8 * c) & 0xFF == C_DIGIT:
            scale = 10 * scale + c - ZERO
            at = at + 1
            c = load8(at)
        if at == first or at > first + 4:
            return 0
    kind = load64(facts + T_CHARS + 8 * c) & 0xFF
    if kind == C_LETTER or kind == C_DIGIT or kind == C_POINT:
        return 0
    store64(w + S_AT, at)
    if exponent == 0 and point == 0:
        if load8(start) == ZERO and digits > 1:
            return 0
        return value_literal(w, WEAK_INT, whole)
    bits = f64_of(whole)
    if whole == 0:
        return value_literal(w, WEAK_FLOAT, bits)
    if minus:
        power = power + scale
    elif scale >= power:
        scale = scale - power
        if scale > EXPONENT_MAX:
            return 0
        return value_literal(w, WEAK_FLOAT, f64_mul(bits, load64(facts + T_POWERS + 8 * scale)))
    else:
        power = power - scale
    if power > EXPONENT_MAX:
        return 0
    return value_literal(w, WEAK_FLOAT, f64_div(bits, load64(facts + T_POWERS + 8 * power)))


@formula.function
def operator_apply(w: int, facts: int, top: int, a: int, value: int) -> int:
    """An operator from the stack on what stands before and behind it."""
    what = top >> E_WHAT & 0xFF
    row = top >> E_ROW & 0xFF
    if what == BINARY:
        return value_binary(w, facts, row, a, value)
    if what == CHAIN:
        return both(w, facts, a, value)
    if row == MINUS:
        return value_negate(w, facts, value)
    kind = value & 15
    if row == PLUS:
        if kind == BOOL:
            return 0
        return value
    if row == NOT and kind != BOOL:
        return 0
    return value_invert(w, facts, value)


@formula.function
def both(w: int, facts: int, a: int, b: int) -> int:
    """Both of two bools."""
    return value_emit(w, facts, load64(facts + T_ONE + ROW_BYTES * ONE_BOTH + 8 * BOOL), BOOL, a, b, 0)


@formula.function
def read_formula(w: int, facts: int, text: int, length: int, names: int) -> int:
    """Read a text.

    Args:
        w: workspace, WORKSPACE_BYTES.
        facts: of operators, functions and kinds.
        text: ASCII, a zero byte behind it.
        length: at most TEXT_MAX.
        names: those that have a type.
    Returns:
        1 when the program is in the workspace; 0 when Python is to read the text.
    """
    zero(w, A_CODE)
    zero(w + A_SEEN, 8 * load64(names + N_COUNT))
    end = text + length
    at = text
    top = BOTTOM
    entries = 0
    count = 0
    value = 0
    wants = 1
    while True:
        c = load8(at)
        char = load64(facts + T_CHARS + 8 * c)
        class_ = char & 0xFF
        if class_ == C_SPACE:
            at = at + 1
            continue
        if entries >= VALUES_MAX or count >= VALUES_MAX:
            return 0
        word = 0
        start = at
        if class_ == C_LETTER:
            shift = 0
            while class_ == C_LETTER or class_ == C_DIGIT:
                if shift < 64:
                    word = word | c << shift
                    shift = shift + 8
                at = at + 1
                c = load8(at)
                class_ = load64(facts + T_CHARS + 8 * c) & 0xFF
            class_ = C_LETTER
        size = at - start
        if wants:
            entry = 0
            if class_ == C_LETTER and size == 3 and word == WORD_NOT:
                if top & 0xFF > NOT:
                    return 0
                entry = NOT | UNARY << E_WHAT | NOT << E_ROW
            elif class_ == C_LETTER:
                number = name_find(names, start, size, word)
                following = text_skip(facts, at)
                if load8(following) != OPEN:
                    if number == 0:
                        return 0
                    value = name_value(w, facts, names, number - 1)
                else:
                    function = 0
                    if size <= 8 and number == 0:
                        function = function_find(facts, word)
                    if function == 0:
                        return 0
                    at = text_skip(facts, following + 1)
                    entry = 1 | CALL << E_WHAT | count << E_FIRST | (function - 1) << E_CALL
                    if load8(at) == SHUT:
                        if load64(facts + T_FUNCTIONS + FN_BYTES * (function - 1) + 8) != FN_INDEX:
                            return 0
                        at = at + 1
                        entry = 0
                        value = value_emit(
                            w, facts, load64(facts + T_ONE + ROW_BYTES * ONE_INDEX + 8 * I64), I64, 0, 0, 0
                        )
            elif class_ == C_DIGIT or class_ == C_POINT:
                value = number_read(w, facts, at)
                at = load64(w + S_AT)
            elif c == OPEN:
                entry = 1 | PAREN << E_WHAT
                at = at + 1
            elif c == MINUS or c == PLUS or c == TILDE:
                entry = 12 | UNARY << E_WHAT | c << E_ROW
                at = at + 1
            else:
                return 0
            if entry:
                store64(w + A_STACK + 8 * entries, top)
                entries = entries + 1
                top = entry
            elif value == 0:
                return 0
            else:
                wants = 0
            continue

        entry = END_ENTRY
        if class_ == C_LETTER:
            if size == 3 and word == WORD_AND:
                entry = 3 | BINARY << E_WHAT | R_AND << E_ROW | 3 << E_LEAST
            elif size == 2 and word == WORD_OR:
                entry = 2 | BINARY << E_WHAT | R_OR << E_ROW | 2 << E_LEAST
            else:
                return 0
        elif at != end:
            entry = char >> 8
            second = load8(at + 1)
            longer = 0
            if second == c:
                longer = load64(facts + T_DOUBLE + 8 * c)
            if longer == 0 and second == 0x3D:  # =
                longer = load64(facts + T_EQUALS + 8 * c)
            at = at + 1
            if longer:
                entry = longer
                at = at + 1
            if entry == 0:
                return 0
        least = entry >> E_LEAST & 0xFF
        while top & 0xFF >= least:
            a = 0
            if top >> E_WHAT & 0xFF != UNARY:
                count = count - 1
                a = load64(w + A_VALUES + 8 * count)
            value = operator_apply(w, facts, top, a, value)
            if value == 0:
                return 0
            entries = entries - 1
            top = load64(w + A_STACK + 8 * entries)
        what = entry >> E_WHAT & 0xFF
        if what == BINARY:
            if top & 0xFF == COMPARE and entry & 0xFF == COMPARE:
                # a < b before another comparison: remember its truth, and keep b for the next.
                count = count - 1
                truth = operator_apply(w, facts, top, load64(w + A_VALUES + 8 * count), value)
                if truth == 0:
                    return 0
                entries = entries - 1
                top = load64(w + A_STACK + 8 * entries)
                if top == CHAIN_ENTRY:
                    count = count - 1
                    truth = both(w, facts, load64(w + A_VALUES + 8 * count), truth)
                    if truth == 0:
                        return 0
                    entries = entries - 1
                    top = load64(w + A_STACK + 8 * entries)
                store64(w + A_VALUES + 8 * count, truth)
                count = count + 1
                store64(w + A_STACK + 8 * entries, top)
                entries = entries + 1
                top = CHAIN_ENTRY
            store64(w + A_VALUES + 8 * count, value)
            count = count + 1
            store64(w + A_STACK + 8 * entries, top)
            entries = entries + 1
            top = entry
            wants = 1
        elif what == CLOSE:
            inside = top >> E_WHAT & 0xFF
            if inside == CALL:
                store64(w + A_VALUES + 8 * count, value)
                first = top >> E_FIRST & 0xFFFF
                reduces = load64(facts + T_FUNCTIONS + FN_BYTES * (top >> E_CALL) + 16) >> D_REDUCES
                if reduces != 0 and count == first:
                    if entries != 1 or text_skip(facts, at) != end:
                        return 0
                    store64(w + S_REDUCES, reduces)
                else:
                    args = w + A_VALUES + 8 * first
                    value = value_call(w, facts, top >> E_CALL, args, count + 1 - first)
                    if value == 0:
                        return 0
                count = first
            elif inside != PAREN:
                return 0
            entries = entries - 1
            top = load64(w + A_STACK + 8 * entries)
        elif what == COMMA:
            if top >> E_WHAT & 0xFF != CALL:
                return 0
            store64(w + A_VALUES + 8 * count, value)
            count = count + 1
            wants = 1
        else:
            if top != BOTTOM:
                return 0
            return formula_finish(w, facts, names, value)


@formula.function
def formula_finish(w: int, facts: int, names: int, value: int) -> int:
    """Store or reduce the value; then the program in the words that native functions read (words)."""
    kind = value & 15
    if kind >= WEAK_INT:
        return 0
    reduces = load64(w + S_REDUCES)
    op = load64(facts + T_KINDS + KIND_BYTES * kind + K_STORE)
    if reduces:
        reduces = load64(facts + T_REDUCE + ROW_BYTES * (reduces - 1) + 8 * kind)
        if reduces == 0:
            return 0
        op = reduces & 0xFFFF
        value = value_convert(w, facts, value, reduces >> 32 & 0xFF)
        if value == 0:
            return 0
    n = load64(w + S_CODE)
    store64(w + A_CODE + 8 * n, op | (value >> 4) << 24)
    store64(w + A_CODE + 8 * n + 8, RETURN)
    store64(w + S_CODE, n + 2)
    store64(w + S_KIND, kind)
    constants = load64(w + S_CONSTANTS)
    inputs = load64(w + S_INPUTS)
    params = load64(w + S_PARAMS)
    registers = load64(w + S_REGISTERS)
    words = w + A_WORDS
    zero(words, P_WORDS)
    store64(words + P_CODE, n + 2)
    store64(words + P_CONSTANTS, constants)
    store64(words + P_INPUTS, inputs)
    if reduces:
        store64(words + P_ACCS, 1)
    else:
        store64(words + P_OUTPUTS, 1)
    store64(words + P_PARAMS, params)
    store64(words + P_REGISTERS, registers)
    to = words + P_WORDS
    copy(to, w + A_CONSTANTS, 8 * constants)
    to = to + 8 * constants
    i = 0
    while i < inputs:
        store64(to, load64(names + N_NAMES + NAME_BYTES * load64(w + A_INPUTS + 8 * i) + N_INFO) >> 8 & 0xFF)
        to = to + 8
        i = i + 1
    if reduces:
        store64(to, 0)  # bins
    else:
        store64(to, load64(facts + T_KINDS + KIND_BYTES * kind + K_STORED))
    to = to + 8
    i = 0
    while i < params:
        store64(to, load64(names + N_NAMES + NAME_BYTES * load64(w + A_PARAMS + 8 * i) + N_INFO) >> 8 & 0xFF)
        to = to + 8
        i = i + 1
    if reduces:
        store64(to, reduces >> 40 << 8 | reduces >> 16 & 0xFFFF)
        to = to + 8
    copy(to, w + A_REGISTERS, 8 * registers)
    return 1
