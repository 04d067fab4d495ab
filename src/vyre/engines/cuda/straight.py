"""Images of programs without blocks and functions, made by native code: what a program never seen before pays for.

The same bytes as ``lower`` gives, in a hundredth of the time: ``lower`` is the definition, read it first. Whatever this
does not take it leaves to ``lower``.

Owns: the native functions. Leaves to others: facts (straight_form, from the tables of lower and analysis).
"""

from __future__ import annotations

from vyre.engines.cuda import abi, lower
from vyre.engines.cuda import straight_layout as s
from vyre.engines.cuda.handlers import FIXES, HANDLERS, LOADS, STORES
from vyre.engines.cuda.straight_layout import (
    A_ACC,
    A_ACTIVE,
    A_CANONICAL,
    A_EMIT,
    A_FIRST,
    A_FREE,
    A_LAST,
    A_LIVE,
    A_PARAMS,
    A_PLACE,
    A_POOL,
    A_ROWS,
    A_UNIFORM,
    A_VALUES,
    A_WIDE,
    A_WRITES,
    ALL,
    F_FIX,
    F_HANDLER,
    F_WHAT,
    H_ACC,
    H_HOT,
    H_INDEX,
    H_SHOWN,
    H_WIDE,
    NONE,
    S_ARGS,
    S_NAN,
    S_RESULT,
    S_RULE,
    S_SWAPPED,
    S_WIDE,
    W_FACTS,
    W_HEAVY,
    W_HELD,
    W_MADE,
    W_PARAMS,
    W_PLANES,
    W_POOL,
    W_QUICK,
    W_RECORDS,
    W_ROWS,
    W_SHARED,
    W_STORED,
    W_SUMS,
    W_VALUES,
)
from vyre.native import Unit, copy, load8, load32, load64, store32, store64, zero
from vyre.program import analysis
from vyre.program.opcodes import AccKind, MemType
from vyre.program.straight_check import check, check_straight
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
)

PLACE_A = abi.FLAGS["PLACE_A"]
PLACE_B = abi.FLAGS["PLACE_B"]
PLACE_C = abi.FLAGS["PLACE_C"]
PLACE_D = abi.FLAGS["PLACE_D"]
LOAD_A32, LOAD_A64 = lower.LOAD_A
STORE32, STORE64 = lower.STORE
ANY_LOAD = lower.ANY_LOAD
ANY_STORE = lower.ANY_STORE
LONG_WAY = lower.LONG_WAY
FIX_NAN32 = lower.FIX_NAN32
WIDE = abi.FLAGS["WIDE"]
H_POOL32, H_POOL64 = HANDLERS["POOL32"], HANDLERS["POOL64"]
H_SUM32, H_SUM64 = HANDLERS["ACC_FLOAT_SUM32"], HANDLERS["ACC_FLOAT_SUM64"]
H_EMIT = HANDLERS["EMIT"]
H_HEAVY = HANDLERS["HEAVY"]
H_PAGE = HANDLERS["PAGE"]
KIND_SUM = int(AccKind.sum)
KIND_HISTOGRAM = int(AccKind.histogram)
F64 = int(MemType.f64)
FIELD = 0xFFFF_FFFF
LOW = 0xFFFF
PAGE_RECORDS = abi.WINDOW - 1

straight = Unit("gpu straight", check)


@straight.function
def gpu_survey(w: int, facts: int, code: int, words: int) -> int:
    """Backwards over the code: what is read later, and whose NaN must be canonical. 0: not for us."""
    index = load64(facts + H_INDEX)
    shown = load64(facts + H_SHOWN)
    types = words + P_WORDS + 8 * load64(words + P_CONSTANTS) + 8 * load64(words + P_INPUTS)  # of outputs
    emits = types + 8 * load64(words + P_OUTPUTS) + 8 * load64(words + P_TABLES)
    live = 0
    seen = 0
    pc = load64(words + P_CODE)
    while pc:
        pc = pc - 1
        word = load64(code + 8 * pc)
        flags = load64(facts + load32(index + 4 * (word & LOW)) + F_WHAT)
        if flags & 0xFF == s.NOT_MINE:
            return 0
        a = 1 << (word >> 24 & 63)
        b = 1 << (word >> 32 & 63)
        rule = flags >> S_RULE & 7
        args = flags >> S_ARGS & 3
        canonical = 0
        store64(w + A_LIVE + 8 * pc, live)
        if flags >> S_RESULT & 3:
            bit = 1 << (word >> 16 & 63)
            live = live & (bit ^ ALL)
            if seen & bit:
                seen = seen ^ bit
                if flags >> S_NAN & 1:
                    canonical = 1
                elif rule == analysis.MOVES_A or rule == analysis.COPYSIGN:
                    seen = seen | a
                elif rule == analysis.MOVES_AB:
                    seen = seen | a | b
        store64(w + A_CANONICAL + 8 * pc, canonical)
        if args:
            live = live | a
            if args > 1:
                live = live | b
                if args > 2:
                    live = live | 1 << (word >> 40 & 63)
        imm = word >> 48
        if rule == analysis.COPYSIGN:
            seen = seen | b
        elif rule == analysis.SEES_A:
            seen = seen | a
        elif rule == analysis.STORES:
            if shown >> load64(types + 8 * imm) & 1:
                seen = seen | a
        elif rule == analysis.EMITS and shown >> load64(emits + 8 * imm) & 1:
            seen = seen | a
    return 1


@straight.function
def gpu_slot(table: int, count: int, value: int) -> int:
    """Where a value is in a table of ``count``, or ``count``."""
    i = 0
    while i < count and load64(table + 8 * i) != value:
        i = i + 1
    return i


@straight.function
def gpu_uniforms(w: int, facts: int, code: int, words: int) -> int:
    """Registers that one constant or parameter instruction writes, and nothing else."""
    index = load64(facts + H_INDEX)
    count = load64(words + P_CODE)
    zero(w + A_UNIFORM, 8 * 64)
    zero(w + A_WRITES, 8 * 64)
    pc = 0
    while pc < count:
        word = load64(code + 8 * pc)
        flags = load64(facts + load32(index + 4 * (word & LOW)) + F_WHAT)
        if flags >> S_RESULT & 3:
            at = w + A_WRITES + 8 * (word >> 16 & 63)
            store64(at, load64(at) + 1)
        pc = pc + 1
    values = 0
    params = 0
    pc = 0
    while pc < count:
        word = load64(code + 8 * pc)
        flags = load64(facts + load32(index + 4 * (word & LOW)) + F_WHAT)
        what = flags & 0xFF
        dst = word >> 16 & 63
        if (what == s.CONST or what == s.PARAM) and load64(w + A_WRITES + 8 * dst) == 1:
            wide = (flags >> S_RESULT & 3) - 1
            value = word >> 48 | wide << 32
            if what == s.CONST:
                value = load64(words + P_WORDS + 8 * (word >> 48))
                if wide == 0:
                    value = value | value << 32
                slot = gpu_slot(w + A_VALUES, values, value)
                if slot < values or values + params < abi.MAX_UNIFORM_SLOTS:
                    store64(w + A_VALUES + 8 * slot, value)
                    store64(w + A_UNIFORM + 8 * dst, abi.UNIFORM | slot)
                    if slot == values:
                        values = values + 1
            else:
                slot = gpu_slot(w + A_PARAMS, params, value)
                if slot < params or values + params < abi.MAX_UNIFORM_SLOTS:
                    store64(w + A_PARAMS + 8 * slot, value)
                    store64(w + A_UNIFORM + 8 * dst, (abi.UNIFORM | slot) << 16)  # until all constants are known
                    if slot == params:
                        params = params + 1
        pc = pc + 1
    register = 0
    while register < 64 and params > 0:
        slot = load64(w + A_UNIFORM + 8 * register)
        if slot >> 16:
            store64(w + A_UNIFORM + 8 * register, (slot >> 16) + values)
        register = register + 1
    store64(w + W_VALUES, values)
    store64(w + W_PARAMS, params)
    return 0


@straight.function
def gpu_store(w: int, wide: int) -> int:
    """Have the record that made the accumulator's value store it too."""
    row = w + A_ROWS + 16 * (load64(w + W_MADE + 8 * wide) - 1)
    register = load64(w + W_HELD + 8 * wide)
    flags = STORE32
    if wide:
        flags = STORE64
    store32(row, load32(row) | flags)
    store32(row + 8, load32(row + 8) | register << 16)
    store64(w + W_STORED, load64(w + W_STORED) | 1 << register)
    store64(w + W_MADE + 8 * wide, 0)
    return 0


@straight.function
def gpu_keep(w: int, wide: int, live: int, dst: int) -> int:
    """Store the accumulator's value when it is read later and its register does not get another one here."""
    if load64(w + W_MADE + 8 * wide):
        register = load64(w + W_HELD + 8 * wide)
        if live >> register & 1 and register != dst:
            gpu_store(w, wide)
    return 0


@straight.function
def gpu_clobber(w: int, wide: int, live: int, dst: int) -> int:
    """The accumulator of this width gets another value; store the old one if it is needed."""
    gpu_keep(w, wide, live, dst)
    store64(w + W_MADE + 8 * wide, 0)
    store64(w + W_HELD + 8 * wide, NONE)
    return 0


@straight.function
def gpu_need(w: int, register: int) -> int:
    """Raw place of an operand that must be in the file: its register number for now, or a uniform slot."""
    slot = load64(w + A_UNIFORM + 8 * register)
    if slot:
        return slot
    wide = load64(w + A_WIDE + 8 * register)
    if load64(w + W_HELD + 8 * wide) == register and load64(w + W_MADE + 8 * wide) != 0:
        gpu_store(w, wide)
    return register


@straight.function
def gpu_first(w: int, register: int, live: int, dst: int) -> int:
    """Flags << 32 | place that bring a register into its accumulator; 0 when it is there."""
    wide = load64(w + A_WIDE + 8 * register)
    if load64(w + W_HELD + 8 * wide) == register:
        return 0
    place = gpu_need(w, register)
    gpu_keep(w, wide, live, dst)
    store64(w + W_HELD + 8 * wide, register)
    store64(w + W_MADE + 8 * wide, 0)
    if wide:
        return LOAD_A64 << 32 | place
    return LOAD_A32 << 32 | place


@straight.function
def gpu_is_sum(handler: int) -> int:
    """Whether operand c of a record is the plane of a float sum."""
    return handler == H_SUM32 or handler == H_SUM64  # the language has no `in`


@straight.function
def gpu_row(w: int, x: int, y: int, z: int, last: int) -> int:
    """Append a record; its number + 1."""
    rows = load64(w + W_ROWS)
    at = w + A_ROWS + 16 * rows
    store32(at, x)
    store32(at + 4, y)
    store32(at + 8, z)
    store32(at + 12, last)
    store64(w + W_ROWS, rows + 1)
    return rows + 1


@straight.function
def gpu_result(w: int, wide: int, register: int, row: int) -> int:
    """The record has left this register's value in the accumulator."""
    store64(w + W_HELD + 8 * wide, register)
    store64(w + W_MADE + 8 * wide, row)
    return 0


@straight.function
def gpu_light(w: int, word: int, fact: int, live: int, shown: int, canonical: int) -> int:
    """What works in registers."""
    flags = load64(fact + F_WHAT)
    handlers = load64(fact + F_HANDLER)
    handler = handlers & LOW
    args = flags >> S_ARGS & 3
    result = (flags >> S_RESULT & 3) - 1
    dst = word >> 16 & 63
    a = word >> 24 & 63
    b = word >> 32 & 63
    x = 0
    y = 0
    z = 0
    last = shown
    if args:
        held = load64(w + W_HELD + 8 * (flags >> S_WIDE & 1))
        one = load64(w + A_UNIFORM + 8 * a) != 0 and load64(w + A_UNIFORM + 8 * b) == 0
        if handlers >> S_SWAPPED != 0 and held != a and (held == b or one):
            handler = (handlers >> S_SWAPPED) - 1
            b = a
            a = word >> 32 & 63
        if args > 1:
            y = gpu_need(w, b)
            x = PLACE_B
            if args > 2:
                last = last | gpu_need(w, word >> 40 & 63)
                x = x | PLACE_C
        first = gpu_first(w, a, live, dst)
        x = x | first >> 32
        z = first & LOW
    if canonical:
        x = x | load64(fact + F_FIX)
    gpu_clobber(w, result, live, dst)
    gpu_result(w, result, dst, gpu_row(w, x | handler, y, z, last))
    return 0


@straight.function
def gpu_other(w: int, word: int, fact: int, live: int, shown: int, words: int) -> int:
    """Everything that is not plain arithmetic."""
    facts = load64(w + W_FACTS)
    flags = load64(fact + F_WHAT)
    handlers = load64(fact + F_HANDLER)
    handler = handlers & LOW
    what = flags & 0xFF
    result = (flags >> S_RESULT & 3) - 1
    dst = word >> 16 & 63
    a = word >> 24 & 63
    b = word >> 32 & 63
    imm = word >> 48
    constants = words + P_WORDS
    inputs = constants + 8 * load64(words + P_CONSTANTS)
    outputs = inputs + 8 * load64(words + P_INPUTS)
    tables = outputs + 8 * load64(words + P_OUTPUTS)
    first = 0
    if what == s.LOAD:
        gpu_clobber(w, result, live, dst)
        handler = load64(facts + s.H_LOAD + 8 * load64(inputs + 8 * imm))
        gpu_result(w, result, dst, gpu_row(w, handler, 0, 0, shown | imm))
    elif what == s.CONST:
        if load64(w + A_UNIFORM + 8 * dst) == 0:
            value = load64(constants + 8 * imm)
            pool = load64(w + W_POOL)
            at = gpu_slot(w + A_POOL, pool, value)
            if at == pool:
                store64(w + A_POOL + 8 * at, value)
                store64(w + W_POOL, pool + 1)
            gpu_clobber(w, result, live, dst)
            gpu_result(w, result, dst, gpu_row(w, handler, 0, 0, shown | at))
    elif what == s.STORE:
        first = gpu_first(w, a, live, NONE)
        handler = load64(facts + s.H_STORE + 8 * load64(outputs + 8 * imm))
        gpu_row(w, first >> 32 | handler, 0, first & LOW, shown | (load64(words + P_INPUTS) + imm))
    elif what == s.PARAM:
        if load64(w + A_UNIFORM + 8 * dst) == 0:
            gpu_clobber(w, result, live, dst)
            gpu_result(w, result, dst, gpu_row(w, handler, 0, 0, shown | imm))
    elif what == s.MOVE:
        first = gpu_first(w, a, live, dst)
        gpu_clobber(w, result, live, dst)
        gpu_result(w, result, dst, gpu_row(w, first >> 32 | handler, 0, first & LOW, shown))
    elif what == s.HEAVY:
        x = H_HEAVY | PLACE_A | PLACE_D
        y = 0
        place = gpu_need(w, a)
        if flags >> S_ARGS & 3 > 1:
            y = gpu_need(w, b)
            x = x | PLACE_B
        gpu_clobber(w, 0, live, dst)
        gpu_clobber(w, 1, live, dst)
        gpu_row(w, x, y, place | dst << 16, shown | handler)
        store64(w + W_STORED, load64(w + W_STORED) | 1 << dst)
        store64(w + W_HELD + 8 * result, dst)
        store64(w + W_HEAVY, 1)
    elif what == s.TABLE_GET:
        first = gpu_first(w, a, live, dst)
        gpu_clobber(w, result, live, dst)
        handler = load64(facts + s.H_TABLE + 8 * (load64(tables + 8 * imm) & 0xFF))
        gpu_result(w, result, dst, gpu_row(w, first >> 32 | handler, 0, first & LOW, shown | imm))
    elif what == s.UPDATE:
        y = gpu_need(w, b)
        first = gpu_first(w, a, live, NONE)
        verb = handlers >> S_SWAPPED
        gpu_row(w, first >> 32 | handler | PLACE_B, y, first & LOW | verb << 16, shown | imm)
    elif what == s.ACC:
        first = gpu_first(w, a, live, NONE)
        x = first >> 32 | handler
        if gpu_is_sum(handler):
            x = x | PLACE_C
        gpu_row(w, x, 0, first & LOW, shown | imm)  # of a float sum: its number until its plane is known
    elif what == s.EMIT:
        first = gpu_first(w, a, live, NONE)
        x = first >> 32 | handler | PLACE_D
        if flags >> S_WIDE & 1:
            x = x | WIDE
        gpu_row(w, x, 0, first & LOW, shown | imm)
    elif what == s.OTHER:
        gpu_row(w, handler, 0, 0, shown)
    return 0


@straight.function
def gpu_places(w: int, facts: int, code: int, words: int) -> int:
    """A plane for each register that is ever in the file; how many planes that makes."""
    stored = load64(w + W_STORED)
    planes = 0
    register = 0
    while stored >> register != 0 and register < 64:
        if stored >> register & 1:
            store64(w + A_PLACE + 8 * register, planes)
            planes = planes + 1 + load64(w + A_WIDE + 8 * register)
            store64(w + A_FIRST + 8 * register, ALL)
        register = register + 1
    if planes <= lower.FEW_PLANES:
        return planes
    # In code without blocks a register's first mention is its first definition, its last the last of any kind.
    index = load64(facts + H_INDEX)
    count = load64(words + P_CODE)
    pc = 0
    while pc < count:
        word = load64(code + 8 * pc)
        flags = load64(facts + load32(index + 4 * (word & LOW)) + F_WHAT)
        args = flags >> S_ARGS & 3
        i = 0
        while i < args:
            store64(w + A_LAST + 8 * (word >> (24 + 8 * i) & 63), pc)
            i = i + 1
        if flags >> S_RESULT & 3:
            dst = word >> 16 & 63
            store64(w + A_LAST + 8 * dst, pc)
            if load64(w + A_FIRST + 8 * dst) == ALL:
                store64(w + A_FIRST + 8 * dst, pc)
        pc = pc + 1
    planes = 0
    active = 0
    narrow = 0  # planes on each stack
    wide = 0
    while stored:
        best = NONE
        register = 0
        while register < 64:
            from_ = load64(w + A_FIRST + 8 * register)
            if stored >> register & 1 != 0 and (best == NONE or from_ < load64(w + A_FIRST + 8 * best)):
                best = register
            register = register + 1
        stored = stored ^ 1 << best
        from_ = load64(w + A_FIRST + 8 * best)
        kept = 0
        i = 0
        while i < active:
            other = load64(w + A_ACTIVE + 8 * i)
            if load64(w + A_LAST + 8 * other) < from_:
                if load64(w + A_WIDE + 8 * other):
                    store64(w + A_FREE + 8 * 128 + 8 * wide, load64(w + A_PLACE + 8 * other))
                    wide = wide + 1
                else:
                    store64(w + A_FREE + 8 * narrow, load64(w + A_PLACE + 8 * other))
                    narrow = narrow + 1
            else:
                store64(w + A_ACTIVE + 8 * kept, other)
                kept = kept + 1
            i = i + 1
        place = planes
        if load64(w + A_WIDE + 8 * best):
            if wide:
                wide = wide - 1
                place = load64(w + A_FREE + 8 * 128 + 8 * wide)
            else:
                planes = planes + 2
        elif narrow:
            narrow = narrow - 1
            place = load64(w + A_FREE + 8 * narrow)
        elif wide:
            wide = wide - 1
            place = load64(w + A_FREE + 8 * 128 + 8 * wide)
            store64(w + A_FREE + 8 * narrow, place + 1)
            narrow = narrow + 1
        else:
            planes = planes + 1
        store64(w + A_PLACE + 8 * best, place)
        store64(w + A_ACTIVE + 8 * kept, best)
        active = kept + 1
    return planes


@straight.function
def gpu_operand(w: int, raw: int) -> int:
    """Plane of a register, or the uniform slot that it already is."""
    if raw & abi.UNIFORM:
        return raw
    return load64(w + A_PLACE + 8 * raw)


@straight.function
def gpu_records(w: int, hot: int, out: int) -> int:
    """Rows as the kernel reads them, pages padded; their end."""
    rows = load64(w + W_ROWS)
    paged = rows > abi.WINDOW
    i = 0
    room = PAGE_RECORDS
    while i < rows:
        if paged and room == 0:
            store64(out, H_PAGE << 8)
            store64(out + 8, 0)
            out = out + 16
            room = PAGE_RECORDS
        room = room - 1
        row = w + A_ROWS + 16 * i
        x = load32(row)
        y = load32(row + 4)
        z = load32(row + 8)
        last = load32(row + 12)
        handler = x & LOW
        if x & PLACE_B:
            y = gpu_operand(w, y)
        if x & PLACE_A:
            z = z & 0xFFFF_0000 | gpu_operand(w, z & LOW)
        if x & PLACE_D:
            if handler == H_EMIT:
                z = z | load64(w + A_EMIT + 8 * (last & LOW)) << 16
            else:
                z = z & LOW | load64(w + A_PLACE + 8 * (z >> 16)) << 16
        if x & PLACE_C:
            if gpu_is_sum(handler):
                last = last & 0xFFFF_0000 | load64(w + A_ACC + 8 * (last & LOW))
            else:
                last = last & 0xFFFF_0000 | gpu_operand(w, last & LOW)
        short = 0
        if x & LONG_WAY == 0:
            form = 0
            if x & ANY_LOAD:
                form = LOADS
            if x & ANY_STORE:
                form = form + STORES
            if x & FIX_NAN32:
                form = form + FIXES
            short = load8(hot + 8 * handler + form)
        store32(out, x & 0xFFFF_0000 | handler << 8 & LOW | short)
        store32(out + 4, y)
        store32(out + 8, z)
        store32(out + 12, last)
        out = out + 16
        i = i + 1
    return out


@straight.function
def gpu_finish(w: int, facts: int, code: int, words: int, fuel: int, out: int) -> int:
    """The image from the rows; its bytes."""
    inputs = load64(words + P_INPUTS)
    io = inputs + load64(words + P_OUTPUTS)
    n_tables = load64(words + P_TABLES)
    n_emits = load64(words + P_EMITS)
    n_accs = load64(words + P_ACCS)
    tables = words + P_WORDS + 8 * load64(words + P_CONSTANTS) + 8 * io
    emits = tables + 8 * n_tables
    bins = emits + 8 * n_emits
    accs = bins + 8 * n_accs + 8 * load64(words + P_PARAMS)
    planes = gpu_places(w, facts, code, words)
    values = load64(w + W_VALUES)
    slots = values + load64(w + W_PARAMS)
    at = out + 64
    copy(at, w + A_VALUES, 8 * values)
    copy(at + 8 * values, w + A_PARAMS, 8 * (slots - values))
    at = at + 8 * slots
    if slots & 1:
        store64(at, 0)
        at = at + 8
    sums = 0
    histograms = 0
    bins_at = n_accs
    i = 0
    while i < n_accs:
        key = load64(accs + 8 * i)
        fact = facts + H_ACC + 16 * ((key >> 8) * 16 + (key & 0xFF))
        place = 0
        if key >> 8 == KIND_HISTOGRAM:
            place = bins_at
            bins_at = bins_at + load64(bins + 8 * i)
            histograms = histograms + 1
        elif key == KIND_SUM << 8 | F64:
            place = planes
            store64(w + A_ACC + 8 * i, planes)
            planes = planes + 2
            sums = sums + 1
        store64(at, load64(fact) | place << 32)
        store64(at + 8, load64(fact + 8))
        at = at + 16
        i = i + 1
    i = 0
    while i < n_emits:
        dtype = load64(emits + 8 * i)
        store64(w + A_EMIT + 8 * i, planes)
        store64(at, planes | dtype << 32)
        planes = planes + 1 + (load64(facts + H_WIDE) >> dtype & 1)
        at = at + 8
        i = i + 1
    planes = planes + load64(w + W_HEAVY)
    pool = load64(w + W_POOL)
    copy(at, w + A_POOL, 8 * pool)
    at = at + 8 * pool
    if (at - out) & 8:
        store64(at, 0)
        at = at + 8
    end = gpu_records(w, load64(facts + H_HOT), at)
    records = (end - at) // 16
    quick = 0
    if records <= lower.QUICK_RECORDS and histograms == 0:
        quick = abi.PROGRAM_QUICK
    store32(out, abi.MAGIC_PROGRAM)
    store32(out + 4, 0)
    store32(out + 8, records)
    store32(out + 12, slots)
    store32(out + 16, values)
    store32(out + 20, planes)
    store32(out + 24, 0)
    store32(out + 28, fuel)
    store32(out + 32, abi.NO_PLANE)
    store32(out + 36, io)
    store32(out + 40, n_tables)
    store32(out + 44, n_accs)
    store32(out + 48, n_emits)
    store32(out + 52, sums)
    store32(out + 56, pool)
    store32(out + 60, quick | inputs << 8)
    window = records
    if window > abi.WINDOW:
        window = abi.WINDOW
    near = io
    if near > abi.IO_IN_SHARED:
        near = abi.IO_IN_SHARED
    kept = slots
    if kept == 0:
        kept = 1
    shared = abi.FRAME_BYTES + 16 * (window + 1) + 16 * kept + 16 * near + 256 * n_accs + abi.KEPT_BYTES * n_emits
    store64(w + W_PLANES, planes)
    store64(w + W_RECORDS, records)
    store64(w + W_QUICK, quick)
    store64(w + W_SHARED, shared + 32 * planes)
    store64(w + W_SUMS, sums)
    return end - out


@straight.function
def gpu_lower(w: int, facts: int, code: int, words: int, fuel: int, out: int) -> int:
    """Rewrite a verified program.

    Args:
        w: WORKSPACE_BYTES of memory that nobody else uses meanwhile.
        facts: the table that straight_form makes.
        code: 8 bytes per instruction, as in a file.
        words: what words.P_CODE and those after it say.
        fuel: the program's.
        out: where the image goes: IMAGE_MAX bytes of room, aligned to 8.
    Returns:
        Its bytes; what Image says besides is at W_SHARED and after it. 0 when the program is not for us.
    """
    count = load64(words + P_CODE)
    if count > s.CODE_MAX or gpu_survey(w, facts, code, words) == 0:
        return 0
    zero(w + W_MADE, W_FACTS - W_MADE)
    store64(w + W_HELD, NONE)
    store64(w + W_HELD + 8, NONE)
    store64(w + W_FACTS, facts)
    registers = load64(words + P_REGISTERS)
    types = words + P_WORDS + 8 * (
        load64(words + P_CONSTANTS) + load64(words + P_INPUTS) + load64(words + P_OUTPUTS) + load64(words + P_TABLES)
        + load64(words + P_EMITS) + 2 * load64(words + P_ACCS) + load64(words + P_PARAMS)
    )  # fmt: skip
    wides = load64(facts + H_WIDE)
    register = 0
    while register < registers:
        store64(w + A_WIDE + 8 * register, wides >> load64(types + 8 * register) & 1)
        register = register + 1
    gpu_uniforms(w, facts, code, words)
    index = load64(facts + H_INDEX)
    pc = 0
    while pc < count:
        word = load64(code + 8 * pc)
        fact = facts + load32(index + 4 * (word & LOW))
        live = load64(w + A_LIVE + 8 * pc)
        if load64(fact + F_WHAT) & 0xFF == s.LIGHT:
            gpu_light(w, word, fact, live, pc << 16, load64(w + A_CANONICAL + 8 * pc))
        else:
            gpu_other(w, word, fact, live, pc << 16, words)
        pc = pc + 1
    return gpu_finish(w, facts, code, words, fuel, out)


@straight.function
def gpu_check(w: int, rules: int, code: int, words: int) -> int:
    """check_straight, under a name that no other engine's compiled code has."""
    return check_straight(w, rules, code, words)


@straight.function
def gpu_admit(w: int, rules: int, facts: int, population: int, i: int) -> int:
    """Verify and rewrite the programs of a population from ``i`` on.

    Returns:
        The first that is not for us, invalid or not; the number of programs when there is none.
    """
    count = load64(population + s.M_COUNT)
    codes = load64(population + s.M_CODE)
    codes_at = load64(population + s.M_CODE_AT)
    constants = load64(population + s.M_CONSTANTS)
    constants_at = load64(population + s.M_CONSTANTS_AT)
    registers = load64(population + s.M_REGISTERS)
    registers_at = load64(population + s.M_REGISTERS_AT)
    declared_bytes = load64(population + s.M_DECLARED_BYTES)
    places = load64(population + s.M_PLACES)
    words = w + s.A_WORDS
    copy(words, load64(population + s.M_HEAD), P_WORDS)
    while i < count:
        code = codes + 8 * load64(codes_at + 8 * i)
        n_constants = load64(constants_at + 8 * i + 8) - load64(constants_at + 8 * i)
        first = registers + load64(registers_at + 8 * i)
        n_registers = load64(registers_at + 8 * i + 8) - load64(registers_at + 8 * i)
        if n_constants > s.WORDS_CONSTANTS_MAX or n_registers > s.WORDS_REGISTERS_MAX:
            return i
        store64(words + P_CODE, load64(codes_at + 8 * i + 8) - load64(codes_at + 8 * i))
        store64(words + P_CONSTANTS, n_constants)
        store64(words + P_REGISTERS, n_registers)
        at = words + P_WORDS
        copy(at, constants + 8 * load64(constants_at + 8 * i), 8 * n_constants)
        at = at + 8 * n_constants
        copy(at, load64(population + s.M_DECLARED), declared_bytes)
        at = at + declared_bytes
        register = 0
        while register < n_registers:
            store64(at + 8 * register, load8(first + register))
            register = register + 1
        if check_straight(w, rules, code, words) == 0:
            return i
        used = load64(population + s.M_OUT_AT)
        out = load64(population + s.M_OUT) + used
        size = gpu_lower(w, facts, code, words, load64(population + s.M_FUEL), out)
        if size == 0 or load64(w + W_SHARED) > load64(population + s.M_SHARED_MAX):
            return i
        store64(places + 8 * i, used)
        store64(population + s.M_OUT_AT, (used + size + abi.UNIT - 1) & (ALL ^ (abi.UNIT - 1)))
        i = i + 1
    return i
