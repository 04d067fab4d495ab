"""The types of the Python surface: their promotion, casts and literals (decision 12), as tables.

Owns: kinds, which instruction does an operator or a cast between two of them, bits of literals. Leaves to others:
what operators without one instruction become (lower).
"""

from __future__ import annotations

import math
import struct
from typing import Final

from vyre.program.opcodes import BY_NAME, MemType, Type

BOOL, I32, U32, I64, U64, F32, F64 = range(1, 8)
WEAK_INT, WEAK_FLOAT = 8, 9
"""Kinds: bool is apart from the integers, u32 and u64 live in i32 and i64 registers, literals have no type yet."""

KIND_NAME: Final = {
    BOOL: "bool", I32: "i32", U32: "u32", I64: "i64", U64: "u64", F32: "f32", F64: "f64",
    WEAK_INT: "an integer literal", WEAK_FLOAT: "a float literal",
}  # fmt: skip
KIND_TYPE: Final = {
    BOOL: Type.i32,
    I32: Type.i32,
    U32: Type.i32,
    I64: Type.i64,
    U64: Type.i64,
    F32: Type.f32,
    F64: Type.f64,
}
KIND_MEMORY: Final = {
    BOOL: MemType.bool, I32: MemType.i32, U32: MemType.u32, I64: MemType.i64, U64: MemType.u64, F32: MemType.f32,
    F64: MemType.f64,
}  # fmt: skip
MEMORY_KIND: Final = {memory: kind for kind, memory in KIND_MEMORY.items()} | {
    MemType.i8: I32, MemType.u8: I32, MemType.i16: I32, MemType.u16: I32, MemType.f16: F32, MemType.bf16: F32,
}  # fmt: skip
"""What a load of each memory type gives: narrow integers fit i32 whole, f16 and bf16 widen to f32."""

SIGNED: Final = (I32, I64)
UNSIGNED: Final = (U32, U64)
INTS: Final = (I32, U32, I64, U64)
FLOATS: Final = (F32, F64)
DEFAULT_KIND: Final = {WEAK_INT: I64, WEAK_FLOAT: F64}
_RANGE: Final = {I32: (-(1 << 31), (1 << 31) - 1), U32: (0, (1 << 32) - 1), I64: (-(1 << 63), (1 << 63) - 1), U64: (0, (1 << 64) - 1)}  # fmt: skip
MAX_EXPANDED_POWER: Final = 64
MAX_EXPANDED_POWER_F32: Final = 4
"""``x ** n`` with a whole literal n up to this is multiplied out by squaring; beyond it f32 has pow, which is more exact."""
MAX_LITERAL: Final = 1 << 64


class Refusal(Exception):
    """What was asked for has no meaning in a program. The front end adds the place and raises CompileError."""

    def __init__(self, reason: str, fix: str = "") -> None:
        super().__init__(reason)
        self.reason = reason
        self.fix = fix


def code_of(name: str) -> int:
    """The code of the instruction ``name``."""
    return BY_NAME[name].code


SELECT: Final = {k: code_of(f"{t.name}.select") for k, t in KIND_TYPE.items()}
CONST: Final = {k: code_of(f"{t.name}.const") for k, t in KIND_TYPE.items()}
LOAD: Final = {k: code_of(f"{t.name}.load") for k, t in KIND_TYPE.items()}
STORE: Final = {k: code_of(f"{t.name}.store") for k, t in KIND_TYPE.items()}
PARAM: Final = {k: code_of(f"{t.name}.param") for k, t in KIND_TYPE.items()}
MOV: Final = {k: code_of(f"{t.name}.mov") for k, t in KIND_TYPE.items()}
INDEX: Final = code_of("index")


def _tables() -> dict[str, list[tuple[int, int] | None]]:
    """For each operator, by ``left kind << 4 | right kind``: the one instruction that does it, and its result's kind."""
    tables: dict[str, list[tuple[int, int] | None]] = {}

    def row(symbol: str, verb: str, kinds: tuple[int, ...], result: int = 0) -> None:
        table = tables.setdefault(symbol, [None] * 256)
        for k in kinds:
            name = f"{KIND_TYPE[k].name}.{verb}"
            if name not in BY_NAME:
                name += "_u" if k in UNSIGNED else "_s"
            table[k << 4 | k] = (code_of(name), result or k)

    for symbol, verb in (("+", "add"), ("-", "sub"), ("*", "mul")):
        row(symbol, verb, INTS + FLOATS)
    row("/", "div", FLOATS)
    for symbol, verb in (("&", "and"), ("|", "or"), ("^", "xor")):
        row(symbol, verb, (BOOL, *INTS))
    row("and", "and", (BOOL,))
    row("or", "or", (BOOL,))
    for symbol, verb in (("<<", "shl"), (">>", "shr"), ("rotl", "rotl"), ("rotr", "rotr")):
        row(symbol, verb, INTS)
    for symbol, verb in (("<", "lt"), (">", "gt"), ("<=", "le"), (">=", "ge")):
        row(symbol, verb, INTS + FLOATS, BOOL)
    for symbol, verb in (("==", "eq"), ("!=", "ne")):
        row(symbol, verb, (BOOL, *INTS, *FLOATS), BOOL)
    for symbol in ("min", "max"):
        row(symbol, symbol, INTS + FLOATS)
    row("fmod", "rem", INTS + FLOATS)
    row("copysign", "copysign", FLOATS)
    row("//", "div_u", UNSIGNED)
    row("%", "rem_u", UNSIGNED)
    tables["**"] = [None] * 256
    return tables


BINARY: Final = _tables()
COMPARES: Final = ("<", ">", "<=", ">=", "==", "!=")


def _promotions() -> dict[tuple[int, int], int]:
    found = {(k, k): k for k in KIND_TYPE}

    def both(a: int, b: int, result: int) -> None:
        found[a, b] = found[b, a] = result

    both(I32, U32, I64)
    both(I32, I64, I64)
    both(U32, I64, I64)
    both(U32, U64, U64)
    for i in INTS:
        both(i, F32, F64)
        both(i, F64, F64)
        both(i, WEAK_INT, i)
        both(i, WEAK_FLOAT, F64)
    both(F32, F64, F64)
    for f in FLOATS:
        both(f, WEAK_INT, f)
        both(f, WEAK_FLOAT, f)
    both(WEAK_INT, WEAK_FLOAT, WEAK_FLOAT)
    both(WEAK_INT, WEAK_INT, WEAK_INT)
    both(WEAK_FLOAT, WEAK_FLOAT, WEAK_FLOAT)
    return found


PROMOTE: Final = _promotions()
"""The kind that operands of two kinds are converted to, where there is one."""


def promote(a: int, b: int, what: str) -> int:
    """The kind that operands of kinds ``a`` and ``b`` are converted to. ``what`` names the operation in a refusal."""
    kind = PROMOTE.get((a, b))
    if kind is None:
        names = f"{KIND_NAME[a]} and {KIND_NAME[b]}"
        if BOOL in (a, b):
            raise Refusal(f"{what} of {names}", "bool is no number here: write i32(x), or where(x, 1, 0)")
        raise Refusal(
            f"{what} of {names}: no integer type holds both", "cast one: i64(x) or u64(x) wraps, f64(x) rounds"
        )
    return kind


def _casts() -> dict[tuple[int, int], str | None]:
    """The instruction of a cast, or None where the register already holds the result."""
    casts: dict[tuple[int, int], str | None] = {(I32, U32): None, (U32, I32): None, (I64, U64): None, (U64, I64): None}
    for wide in (I64, U64):
        casts[I32, wide] = "i64.extend_i32_s"
        casts[U32, wide] = casts[BOOL, wide] = "i64.extend_i32_u"
        for narrow in (I32, U32):
            casts[wide, narrow] = "i32.wrap_i64"
    casts[BOOL, I32] = casts[BOOL, U32] = None
    for f in FLOATS:
        name = KIND_NAME[f]
        casts[BOOL, f] = f"{name}.convert_i32_u"
        for i in INTS:
            sign = "u" if i in UNSIGNED else "s"
            casts[i, f] = f"{name}.convert_{KIND_TYPE[i].name}_{sign}"
            casts[f, i] = f"{KIND_TYPE[i].name}.trunc_{name}_{sign}"
    casts[F32, F64] = "f64.promote_f32"
    casts[F64, F32] = "f32.demote_f64"
    return casts


CAST: Final = {pair: None if name is None else code_of(name) for pair, name in _casts().items()}
SATURATING: Final = {
    (f, i): code_of(f"{KIND_TYPE[i].name}.trunc_sat_{KIND_NAME[f]}_{'u' if i in UNSIGNED else 's'}")
    for f in FLOATS
    for i in INTS
}
NARROW: Final = {"i8": ("i32.extend8_s", 0), "i16": ("i32.extend16_s", 0), "u8": ("", 0xFF), "u16": ("", 0xFFFF)}
ROUNDINGS: Final = ("floor", "ceil", "trunc", "nearest")
_FLOAT_FUNCTIONS: Final = ("sqrt", "exp", "log", "sin", "cos", "tanh", *ROUNDINGS)
BIT_FUNCTIONS: Final = {"popcount": "popcnt", "clz": "clz", "ctz": "ctz", "bitrev": "bitrev", "bswap": "bswap"}
UNARY: Final = {
    name: {k: code_of(f"{KIND_NAME[k]}.{name}") for k in FLOATS if f"{KIND_NAME[k]}.{name}" in BY_NAME}
    for name in _FLOAT_FUNCTIONS
} | {name: {k: code_of(f"{KIND_TYPE[k].name}.{verb}") for k in INTS} for name, verb in BIT_FUNCTIONS.items()}
"""One instruction on one operand, by function and kind; the result has the operand's kind."""
ARITY: Final = {
    **dict.fromkeys(UNARY, (1, 1)),
    **dict.fromkeys(("abs", "bits", "from_bits", "i32_sat", "u32_sat", "i64_sat", "u64_sat"), (1, 1)),
    **dict.fromkeys(("pow", "fmod", "copysign", "rotl", "rotr"), (2, 2)),
    **dict.fromkeys(("where", "fma"), (3, 3)),
    **dict.fromkeys(("min", "max"), (2, 64)),
    **dict.fromkeys(("f32", "f64", "i32", "u32", "i64", "u64", "i8", "u8", "i16", "u16", "f16", "bf16", "bool"), (1, 1)),
    "index": (0, 0),
}  # fmt: skip
"""Every function of values: least and greatest number of arguments."""
NAMED_KIND: Final = {"f32": F32, "f64": F64, "i32": I32, "u32": U32, "i64": I64, "u64": U64, "bool": BOOL}


def f32_bits(value: int | float) -> int:
    """Bits of the nearest f32, rounded once, also from an integer beyond 2**53.

    Raises:
        Refusal: a finite value beyond f32's range.
    """
    if isinstance(value, int) and abs(value) >= 1 << 53:
        # float(value) would round a first time. Keep 53 bits, the lowest sticky, so that the second rounding is right.
        drop = abs(value).bit_length() - 53
        kept = abs(value) >> drop
        kept |= (kept << drop) != abs(value)
        value = math.copysign(float(kept << drop), value)
    try:
        return int.from_bytes(struct.pack("<f", value), "little")
    except OverflowError:
        raise Refusal(f"literal {value!r} is beyond the range of f32", "cast the other operand: f64(x)") from None


def constant_bits(kind: int, value: int | float) -> int:
    """Bits of a literal as a constant of ``kind``, zeros above 32 bits for 32-bit kinds.

    Raises:
        Refusal: an integer that does not fit, or a fraction where an integer is needed.
    """
    if kind == F64:
        try:
            return int.from_bytes(struct.pack("<d", value), "little")
        except OverflowError:
            raise Refusal(f"literal {value} is beyond the range of f64") from None
    if kind == F32:
        return f32_bits(value)
    if kind == BOOL:
        return int(value)
    low, high = _RANGE[kind]
    if not isinstance(value, int):
        raise Refusal(
            f"float literal {value!r} where {KIND_NAME[kind]} is needed", f"cast it: {KIND_NAME[kind]}({value!r})"
        )
    if not low <= value <= high:
        raise Refusal(
            f"literal {value} does not fit {KIND_NAME[kind]} ({low}..{high})", "cast the other operand to a wider type"
        )
    return value & (0xFFFF_FFFF if KIND_TYPE[kind] is Type.i32 else 0xFFFF_FFFF_FFFF_FFFF)
