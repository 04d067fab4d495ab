"""Scalar semantics a second time, one element at a time: Python integers and fractions, no floating-point arithmetic.

Shares nothing with the reference engine but the instruction table, so that a slip in one shows beside the other.
``expected(op, operands)`` takes and gives bit patterns; a trap is given as its reason.
"""

from __future__ import annotations

import math
import operator
from fractions import Fraction

from vyre.program.opcodes import CANONICAL_NAN, FAULT_REASONS, FaultCode, Op, Type

PRECISION = {Type.f32: 24, Type.f64: 53}
LARGEST_EXPONENT = {Type.f32: 127, Type.f64: 1023}
NAN = "nan"


class Float:
    """A decoded float: sign (0 or 1) and magnitude, a Fraction, or inf, or NAN."""

    def __init__(self, sign, magnitude):
        self.sign, self.magnitude = sign, magnitude

    @property
    def finite(self):
        return isinstance(self.magnitude, Fraction)

    @property
    def value(self):
        return -self.magnitude if self.sign else self.magnitude


def decode(bits, t):
    fraction_bits = PRECISION[t] - 1
    exponent_bits = 8 * t.size - 1 - fraction_bits
    sign = bits >> (8 * t.size - 1)
    exponent = bits >> fraction_bits & ((1 << exponent_bits) - 1)
    fraction = bits & ((1 << fraction_bits) - 1)
    if exponent == (1 << exponent_bits) - 1:
        return Float(sign, NAN if fraction else math.inf)
    if exponent:
        fraction |= 1 << fraction_bits
    return Float(sign, fraction * Fraction(2) ** (max(exponent, 1) - LARGEST_EXPONENT[t] - fraction_bits))


def encode(x, t, zero_sign=0):
    """Bits of a Float, or of a Fraction rounded to nearest even (an exact zero gets zero_sign)."""
    fraction_bits = PRECISION[t] - 1
    largest = LARGEST_EXPONENT[t]
    if isinstance(x, Float):
        if x.magnitude is NAN:
            return CANONICAL_NAN[t]
        sign, magnitude = x.sign, x.magnitude
    else:
        sign, magnitude = int(x < 0) if x else zero_sign, abs(x)
    top = sign << (8 * t.size - 1)
    infinity = (2 * largest + 1) << fraction_bits
    if magnitude == math.inf:
        return top | infinity
    if magnitude == 0:
        return top
    exponent = magnitude.numerator.bit_length() - magnitude.denominator.bit_length()
    exponent -= magnitude < Fraction(2) ** exponent
    exponent = max(exponent, 1 - largest)
    units = round(magnitude / Fraction(2) ** (exponent - fraction_bits))  # half to even
    # Adding lets a carry run into the exponent, and a subnormal become normal, as in the format itself.
    return top | min(units + ((exponent + largest - 1) << fraction_bits), infinity)


def signed(x, width):
    return x - (1 << width) if x >> (width - 1) else x


def _truncated(a, b):
    quotient = abs(a) // abs(b)
    return -quotient if (a < 0) != (b < 0) else quotient


def _integer(verb, width, x):
    """Result of an integer instruction on unsigned operands, any integer congruent to it, or a FaultCode."""
    a, b = x[0], x[-1]
    sa, sb = signed(a, width), signed(b, width)
    bits = format(a, f"0{width}b")
    shift = b % width
    if verb.startswith("extend"):
        narrow = int(verb.removeprefix("extend").removesuffix("_s"))
        return signed(a % (1 << narrow), narrow)
    if verb[:3] in ("div", "rem"):
        if b == 0:
            return FaultCode.divide_by_zero
        p, q = (sa, sb) if verb.endswith("_s") else (a, b)
        quotient = _truncated(p, q)
        if verb == "div_s" and quotient == 1 << (width - 1):
            return FaultCode.overflow
        return quotient if verb.startswith("div") else p - q * quotient
    p, q = (a, b) if verb.endswith("_u") else (sa, sb)
    return {
        "eqz": lambda: a == 0,
        "eq": lambda: a == b,
        "ne": lambda: a != b,
        "lt": lambda: p < q,
        "gt": lambda: p > q,
        "le": lambda: p <= q,
        "ge": lambda: p >= q,
        "clz": lambda: width - a.bit_length(),
        "ctz": lambda: width - len(bits.rstrip("0")) if a else width,
        "popcnt": lambda: bits.count("1"),
        "add": lambda: a + b,
        "sub": lambda: a - b,
        "mul": lambda: a * b,
        "and": lambda: a & b,
        "or": lambda: a | b,
        "xor": lambda: a ^ b,
        "shl": lambda: a << shift,
        "shr": lambda: p >> shift,
        "rotl": lambda: int(bits[shift:] + bits[:shift], 2),
        "rotr": lambda: int(bits[width - shift :] + bits[: width - shift], 2),
        "min": lambda: min(p, q),
        "max": lambda: max(p, q),
        "bitrev": lambda: int(bits[::-1], 2),
        "bswap": lambda: int.from_bytes(a.to_bytes(width // 8, "little"), "big"),
    }[verb.removesuffix("_s").removesuffix("_u")]()


def _sum(a, b, t):
    if NAN in (a.magnitude, b.magnitude):
        return CANONICAL_NAN[t]
    if not (a.finite and b.finite):
        infinite = [x for x in (a, b) if not x.finite]
        return CANONICAL_NAN[t] if len({x.sign for x in infinite}) == 2 else encode(infinite[0], t)
    return encode(a.value + b.value, t, zero_sign=a.sign & b.sign if a.magnitude == b.magnitude == 0 else 0)


def _product(a, b):
    if NAN in (a.magnitude, b.magnitude):
        return Float(0, NAN)
    if not (a.finite and b.finite):
        return Float(a.sign ^ b.sign, NAN if 0 in (a.magnitude, b.magnitude) else math.inf)
    return Float(a.sign ^ b.sign, a.magnitude * b.magnitude)


def _quotient(a, b):
    if NAN in (a.magnitude, b.magnitude) or (not a.finite and not b.finite) or a.magnitude == b.magnitude == 0:
        return Float(0, NAN)
    sign = a.sign ^ b.sign
    if not a.finite or b.magnitude == 0:
        return Float(sign, math.inf)
    return Float(sign, Fraction(0) if not b.finite else a.magnitude / b.magnitude)


def _root(a):
    if a.magnitude is NAN or (a.sign and a.magnitude != 0):
        return Float(0, NAN)
    if not a.finite or a.magnitude == 0:
        return a
    scale = 1 << 1300
    square = a.magnitude * scale * scale
    root = math.isqrt(int(square))
    rest = root * root != square  # far below the last bit: only says that the root is not exact
    return Float(0, Fraction(2 * root + rest, 2 * scale))


def _rounded(a, verb):
    if not a.finite:
        return a
    whole = {"ceil": math.ceil, "floor": math.floor, "trunc": math.trunc, "nearest": round}[verb](a.value)
    return Float(a.sign, Fraction(abs(whole)))


def _float(verb, t, bits):
    a, b = decode(bits[0], t), decode(bits[-1], t)
    sign = 1 << (8 * t.size - 1)
    nan = NAN in (a.magnitude, b.magnitude)
    if verb in ("eq", "ne", "lt", "gt", "le", "ge"):
        if nan:
            return int(verb == "ne")
        return int(getattr(operator, verb)(a.value, b.value))
    if verb in ("min", "max"):
        if nan:
            return CANONICAL_NAN[t]
        below = (a.value, -a.sign) < (b.value, -b.sign)  # the sign orders the zeros
        return encode(a if below == (verb == "min") else b, t)
    match verb:
        case "abs":
            return bits[0] % sign
        case "neg":
            return bits[0] ^ sign
        case "copysign":
            return bits[0] % sign | bits[1] & sign
        case "add":
            return _sum(a, b, t)
        case "sub":
            return _sum(a, b if b.magnitude is NAN else Float(1 - b.sign, b.magnitude), t)
        case "mul":
            return encode(_product(a, b), t)
        case "div":
            return encode(_quotient(a, b), t)
        case "sqrt":
            return encode(_root(a), t)
        case "fma":
            return _sum(_product(a, decode(bits[1], t)), b, t)
        case _:
            return encode(_rounded(a, verb), t)


def _conversion(op, bits):
    verb, source = op.name.split(".")[1], op.args[0]
    t = op.result
    if "reinterpret" in verb:
        return bits
    if not source.is_float:
        value = signed(bits, 8 * source.size) if verb.endswith("_s") else bits
        return encode(Fraction(value), t) if t.is_float else value
    a = decode(bits, source)
    if t.is_float:
        return encode(a, t)
    width = 8 * t.size
    low, high = (-(1 << (width - 1)), (1 << (width - 1)) - 1) if verb.endswith("_s") else (0, (1 << width) - 1)
    saturates = "sat" in verb
    if a.magnitude is NAN:
        return 0 if saturates else FaultCode.invalid_conversion
    whole = math.trunc(a.value) if a.finite else -(1 << 2000) if a.sign else 1 << 2000
    if not low <= whole <= high and not saturates:
        return FaultCode.overflow
    return min(max(whole, low), high)


def expected(op: Op, bits: tuple[int, ...]) -> int | str:
    """Bits that a numeric instruction gives for operand bits, or the reason of its trap."""
    verb, t = op.name.split(".")[1], op.args[0]
    if any(word in verb for word in ("trunc_", "convert", "wrap", "extend_i32", "promote", "demote", "reinterpret")):
        result = _conversion(op, bits[0])
    elif t.is_float:
        result = _float(verb, t, bits)
    else:
        result = _integer(verb, 8 * t.size, bits)
    return FAULT_REASONS[result] if isinstance(result, FaultCode) else int(result) % (1 << 8 * op.result.size)
