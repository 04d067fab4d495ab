"""What each numeric instruction computes, over arrays of elements. This is the meaning of VIR0's scalars.

A register is an array of bits, u32 for i32 and f32, u64 for i64 and f64. A body receives views of its operands: i32
and i64 as unsigned integers, f32 and f64 as floats; it returns an array of the result's width of any kind, or a bool
array for a comparison. ``compute`` does the viewing and makes computed NaNs canonical, so that no body need care.

Owns: numeric bodies, which operands trap, widening and narrowing of memory types. Leaves to others: control, masks,
faults, streams (reference) and elementary functions (program/functions.py).
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.program.opcodes import CANONICAL_NAN, FaultCode, MemType, Nan, Op, Type

Array = NDArray[Any]
Body = Callable[..., Array]

BITS: Final[dict[Type, Any]] = {Type.i32: np.uint32, Type.i64: np.uint64, Type.f32: np.uint32, Type.f64: np.uint64}
_VIEW: Final[dict[Type, Any]] = {Type.i32: np.uint32, Type.i64: np.uint64, Type.f32: np.float32, Type.f64: np.float64}
_SIGNED: Final[dict[Type, Any]] = {Type.i32: np.int32, Type.i64: np.int64}


def compute(op: Op, *operands: Array) -> Array:
    """Result bits of a numeric instruction on operands of which none traps.

    Args:
        operands: bits, u32[n] or u64[n] as the types of ``op.args`` say.
    Returns:
        u32[n] or u64[n], as the type of ``op.result`` says.
    """
    assert op.result is not None
    with np.errstate(all="ignore"):
        result = NUMERIC[op.name](*(x.view(_VIEW[t]) for x, t in zip(operands, op.args, strict=True)))
    bits = result.astype(np.uint32) if result.dtype == np.bool_ else result.view(BITS[op.result])
    return canonical(bits, op.result) if op.nan is Nan.canonical else bits


def traps(op: Op, *operands: Array) -> Array | None:
    """The ``FaultCode`` of each element (0: none) as u8[n], or None for an instruction that cannot trap."""
    body = TRAPS.get(op.name)
    if body is None:
        return None
    with np.errstate(all="ignore"):
        codes: Array = body(*(x.view(_VIEW[t]) for x, t in zip(operands, op.args, strict=True)))
    return codes


def canonical(bits: Array, t: Type) -> Array:
    """The same bits with every NaN replaced by the canonical one."""
    values = bits.view(_VIEW[t])
    result: Array = np.where(values != values, BITS[t](CANONICAL_NAN[t]), bits)
    return result


# --- integers -----------------------------------------------------------------------------------------------------


def _integers(t: Type) -> dict[str, Body]:
    u, s = BITS[t], _SIGNED[t]
    bits = 8 * t.size

    def signed(x: Array) -> Array:
        return x.view(s)

    def magnitude(x: Array) -> Array:
        return np.abs(signed(x)).view(u)  # the least value stays itself, and unsigned is its own magnitude

    def count(b: Array) -> Array:
        modulo: Array = b & u(bits - 1)
        return modulo

    def ones(x: Array) -> Array:
        return np.bitwise_count(x).astype(u)

    def clz(a: Array) -> Array:
        for shift in (1, 2, 4, 8, 16, 32)[: bits.bit_length() - 1]:
            a = a | a >> u(shift)
        return ones(~a)

    def div_s(a: Array, b: Array) -> Array:
        quotient = magnitude(a) // magnitude(b)
        return np.where(signed(a ^ b) < 0, -quotient, quotient)

    def rem_s(a: Array, b: Array) -> Array:
        rest = magnitude(a) % magnitude(b)
        return np.where(signed(a) < 0, -rest, rest)

    def rotl(a: Array, b: Array) -> Array:
        return a << count(b) | a >> count(-b)

    def bitrev(a: Array) -> Array:
        a = a.byteswap()
        for shift, mask in ((4, 0x0F), (2, 0x33), (1, 0x55)):
            low = u(mask * (((1 << bits) - 1) // 0xFF))
            a = (a & low) << u(shift) | a >> u(shift) & low
        return a

    def extend(width: int) -> Body:
        return lambda a: signed(a << u(bits - width)) >> s(bits - width)

    bodies: dict[str, Body] = {
        "eqz": lambda a: a == 0,
        "eq": lambda a, b: a == b,
        "ne": lambda a, b: a != b,
        "lt_s": lambda a, b: signed(a) < signed(b),
        "lt_u": lambda a, b: a < b,
        "gt_s": lambda a, b: signed(a) > signed(b),
        "gt_u": lambda a, b: a > b,
        "le_s": lambda a, b: signed(a) <= signed(b),
        "le_u": lambda a, b: a <= b,
        "ge_s": lambda a, b: signed(a) >= signed(b),
        "ge_u": lambda a, b: a >= b,
        "clz": clz,
        "ctz": lambda a: ones((a & -a) - u(1)),
        "popcnt": ones,
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div_s": div_s,
        "div_u": lambda a, b: a // b,
        "rem_s": rem_s,
        "rem_u": lambda a, b: a % b,
        "and": lambda a, b: a & b,
        "or": lambda a, b: a | b,
        "xor": lambda a, b: a ^ b,
        "shl": lambda a, b: a << count(b),
        "shr_s": lambda a, b: signed(a) >> signed(count(b)),
        "shr_u": lambda a, b: a >> count(b),
        "rotl": rotl,
        "rotr": lambda a, b: rotl(a, -b),
        "min_s": lambda a, b: np.minimum(signed(a), signed(b)),
        "min_u": np.minimum,
        "max_s": lambda a, b: np.maximum(signed(a), signed(b)),
        "max_u": np.maximum,
        "bitrev": bitrev,
        "bswap": lambda a: a.byteswap(),
        "extend8_s": extend(8),
        "extend16_s": extend(16),
    }
    if t is Type.i64:
        bodies["extend32_s"] = extend(32)
    return {f"{t.name}.{verb}": body for verb, body in bodies.items()}


def _integer_traps(t: Type) -> dict[str, Body]:
    least = BITS[t](1 << 8 * t.size - 1)
    minus_one = BITS[t]((1 << 8 * t.size) - 1)

    def by_zero(a: Array, b: Array) -> Array:
        return np.where(b == 0, np.uint8(FaultCode.divide_by_zero), np.uint8(0))

    def div_s(a: Array, b: Array) -> Array:
        return np.where((a == least) & (b == minus_one), np.uint8(FaultCode.overflow), by_zero(a, b))

    return {f"{t.name}.{verb}": by_zero for verb in ("div_u", "rem_s", "rem_u")} | {f"{t.name}.div_s": div_s}


# --- floats -------------------------------------------------------------------------------------------------------


def _floats(t: Type) -> dict[str, Body]:
    u, f = BITS[t], _VIEW[t]
    sign = u(1 << 8 * t.size - 1)

    def least(a: Array, b: Array) -> Array:
        equal = (a.view(u) | b.view(u)).view(f)  # the same bits, or zeros of which one may be -0
        return np.where((a != a) | (b != b), a + b, np.where(a < b, a, np.where(b < a, b, equal)))

    def greatest(a: Array, b: Array) -> Array:
        equal = (a.view(u) & b.view(u)).view(f)
        return np.where((a != a) | (b != b), a + b, np.where(a > b, a, np.where(b > a, b, equal)))

    bodies: dict[str, Body] = {
        "eq": lambda a, b: a == b,
        "ne": lambda a, b: a != b,
        "lt": lambda a, b: a < b,
        "gt": lambda a, b: a > b,
        "le": lambda a, b: a <= b,
        "ge": lambda a, b: a >= b,
        "abs": lambda a: a.view(u) & ~sign,
        "neg": lambda a: a.view(u) ^ sign,
        "ceil": np.ceil,
        "floor": np.floor,
        "trunc": np.trunc,
        "nearest": np.rint,
        "sqrt": np.sqrt,
        "add": lambda a, b: a + b,
        "sub": lambda a, b: a - b,
        "mul": lambda a, b: a * b,
        "div": lambda a, b: a / b,
        "min": least,
        "max": greatest,
        "copysign": lambda a, b: a.view(u) & ~sign | b.view(u) & sign,
        "fma": fma_f32 if t is Type.f32 else fma_f64,
    }
    return {f"{t.name}.{verb}": body for verb, body in bodies.items()}


def _two_sum(a: Array, b: Array) -> tuple[Array, Array]:
    """a + b rounded, and the exact rest (Knuth)."""
    s = a + b
    b_seen = s - a
    return s, (a - (s - b_seen)) + (b - b_seen)


def _add_to_odd(a: Array, b: Array) -> Array:
    """a + b in f64, rounded to odd: what was cut off shows in the last bit, so that one more rounding is harmless."""
    s, rest = _two_sum(a, b)
    even = s.view(np.uint64) & np.uint64(1) == 0
    return np.where(np.isfinite(s) & (rest != 0) & even, np.nextafter(s, np.copysign(np.inf, rest)), s)


def fma_f32(a: Array, b: Array, c: Array) -> Array:
    """a * b + c rounded once: the product of two f32 is exact in f64, the sum is rounded to odd there."""
    return _add_to_odd(a.astype(np.float64) * b.astype(np.float64), c.astype(np.float64)).astype(np.float32)


def fma_f64(a: Array, b: Array, c: Array) -> Array:
    """a * b + c rounded once.

    Where nothing can overflow or lose bits at the bottom, by error-free sums with one addition rounded to odd (Boldo,
    Melquiond: Emulation of FMA and correctly rounded sums, 2008); elsewhere exactly, element by element.
    """
    p = a * b
    a_high, b_high = _high_half(a), _high_half(b)
    a_low, b_low = a - a_high, b - b_high
    p_rest = ((a_high * b_high - p) + a_high * b_low + a_low * b_high) + a_low * b_low  # exact (Dekker)
    upper, upper_rest = _two_sum(c, p_rest)
    total, total_rest = _two_sum(p, upper)
    result = total + _add_to_odd(total_rest, upper_rest)
    safe = _between(a, -450, 450) & _between(b, -450, 450) & (_between(c, -900, 900) | (c == 0))
    for i in np.flatnonzero(~safe):
        result[i] = _fma_exact(float(a[i]), float(b[i]), float(c[i]))
    return result


def _high_half(x: Array) -> Array:
    """The upper 26 bits of x, so that products of halves are exact (Veltkamp)."""
    scaled = x * 134_217_729.0  # 2**27 + 1
    return scaled - (scaled - x)


def _between(x: Array, low: int, high: int) -> Array:
    return (np.abs(x) >= 2.0**low) & (np.abs(x) <= 2.0**high)


def _fma_exact(a: float, b: float, c: float) -> float:
    finite = math.isfinite(a) and math.isfinite(b)
    if finite and math.isinf(c):
        return c  # a * b may overflow, but is finite
    if not finite or a == 0 or b == 0 or c != c:
        return a * b + c  # nothing is rounded before the sum
    (an, ad), (bn, bd), (cn, cd) = (x.as_integer_ratio() for x in (a, b, c))
    numerator = an * bn * cd + cn * ad * bd
    if numerator == 0:
        return 0.0  # exact cancellation of non-zero values
    try:
        return numerator / (ad * bd * cd)  # a quotient of ints is correctly rounded, subnormals included
    except OverflowError:
        return float("inf") if numerator > 0 else float("-inf")


# --- conversions --------------------------------------------------------------------------------------------------


def _range(t: Type, sign: str) -> tuple[float, float]:
    """(low, high) such that a float, truncated, fits where low <= it < high. Both are exact in f64."""
    bits = 8 * t.size
    return (-(2.0 ** (bits - 1)), 2.0 ** (bits - 1)) if sign == "s" else (0.0, 2.0**bits)


def _truncate(t: Type, sign: str, saturate: bool) -> Body:
    low, high = _range(t, sign)
    to = _SIGNED[t] if sign == "s" else BITS[t]

    def body(a: Array) -> Array:
        whole = np.trunc(a.astype(np.float64))
        fits = (whole >= low) & (whole < high)
        result = np.where(fits, whole, 0.0).astype(to)
        if saturate:
            result = np.where(whole >= high, np.iinfo(to).max, np.where(whole < low, np.iinfo(to).min, result))
        return result.astype(to)

    return body


def _truncate_traps(t: Type, sign: str) -> Body:
    low, high = _range(t, sign)

    def body(a: Array) -> Array:
        whole = np.trunc(a.astype(np.float64))
        overflow = np.where((whole >= high) | (whole < low), np.uint8(FaultCode.overflow), np.uint8(0))
        return np.where(a != a, np.uint8(FaultCode.invalid_conversion), overflow)

    return body


def _conversions() -> dict[str, Body]:
    bodies: dict[str, Body] = {
        "i32.wrap_i64": lambda a: a.astype(np.uint32),
        "i64.extend_i32_s": lambda a: a.view(np.int32).astype(np.int64),
        "i64.extend_i32_u": lambda a: a.astype(np.uint64),
        "f32.demote_f64": lambda a: a.astype(np.float32),
        "f64.promote_f32": lambda a: a.astype(np.float64),
        "i32.reinterpret_f32": lambda a: a,
        "i64.reinterpret_f64": lambda a: a,
        "f32.reinterpret_i32": lambda a: a,
        "f64.reinterpret_i64": lambda a: a,
    }
    for i in (Type.i32, Type.i64):
        for f in (Type.f32, Type.f64):
            bodies[f"{f.name}.convert_{i.name}_s"] = lambda a, s=_SIGNED[i], f=_VIEW[f]: a.view(s).astype(f)
            bodies[f"{f.name}.convert_{i.name}_u"] = lambda a, f=_VIEW[f]: a.astype(f)
            for sign in "su":
                bodies[f"{i.name}.trunc_{f.name}_{sign}"] = _truncate(i, sign, False)
                bodies[f"{i.name}.trunc_sat_{f.name}_{sign}"] = _truncate(i, sign, True)
    return bodies


NUMERIC: Final[dict[str, Body]] = (
    _integers(Type.i32) | _integers(Type.i64) | _floats(Type.f32) | _floats(Type.f64) | _conversions()
)
"""Body of each instruction of Group.numeric."""

TRAPS: Final[dict[str, Body]] = (
    _integer_traps(Type.i32)
    | _integer_traps(Type.i64)
    | {
        f"{i.name}.trunc_{f.name}_{sign}": _truncate_traps(i, sign)
        for i in (Type.i32, Type.i64)
        for f in (Type.f32, Type.f64)
        for sign in "su"
    }
)
"""FaultCode of each element, for each numeric instruction that can trap."""


# --- memory types (decision 8) -------------------------------------------------------------------------------------


def widen(raw: Array, dtype: MemType) -> Array:
    """Register bits of values in memory.

    Args:
        raw: unsigned integers of ``dtype.size`` bytes.
    Returns:
        u32[n] or u64[n], as ``dtype.type`` says.
    """
    result: Array
    match dtype:
        case MemType.i8 | MemType.i16:
            result = raw.view(np.int8 if dtype is MemType.i8 else np.int16).astype(np.int32).view(np.uint32)
        case MemType.u8 | MemType.u16:
            result = raw.astype(np.uint32)
        case MemType.bool:
            result = (raw != 0).astype(np.uint32)
        case MemType.f16:
            result = canonical(raw.view(np.float16).astype(np.float32).view(np.uint32), Type.f32)
        case MemType.bf16:
            result = canonical(raw.astype(np.uint32) << np.uint32(16), Type.f32)
        case _:
            result = raw
    return result


def narrow(bits: Array, dtype: MemType) -> Array:
    """Values in memory, as unsigned integers of ``dtype.size`` bytes, of register bits. The inverse of ``widen``."""
    result: Array
    match dtype:
        case MemType.i8 | MemType.u8:
            result = bits.astype(np.uint8)
        case MemType.i16 | MemType.u16:
            result = bits.astype(np.uint16)
        case MemType.bool:
            result = (bits != 0).astype(np.uint8)
        case MemType.f16:
            values = bits.view(np.float32)
            with np.errstate(all="ignore"):
                halves = values.astype(np.float16).view(np.uint16)
            result = np.where(values != values, np.uint16(0x7E00), halves)
        case MemType.bf16:
            values = bits.view(np.float32)
            nearest = bits + np.uint32(0x7FFF) + (bits >> np.uint32(16) & np.uint32(1))  # ties to even
            result = np.where(values != values, np.uint16(0x7FC0), (nearest >> np.uint32(16)).astype(np.uint16))
        case _:
            result = bits
    return result
