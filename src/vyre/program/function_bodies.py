"""The algorithms of exp, log, sin, cos, tanh, pow and rem, each written once over exactly specified instructions.

Every step is an IEEE 754 operation with one rounding, an integer operation or a gather from a constant table, so each
engine gives the same bits. f32 functions are evaluated in f64 and rounded to f32 at the end. "Ops" in a docstring counts base
instructions that every call executes, without constants; "behind an if" are those that rare arguments add.

The idioms that recur:

* Rounding by addition: x + 1.5 * 2**52 has the nearest integer of x in its low bits, and subtracting the constant again gives
  it as a float. With 1,023 more in the constant, the low bits shifted left by 52 are 2**integer.
* Cody-Waite reduction (Cody and Waite, Software Manual for the Elementary Functions, 1980): r = x - k*c for a constant c held as
  a sum of f64 values; with fma the first step is exact as long as r has no more bits below the point than x and c have.
* log by z in [sqrt(1/2), sqrt(2)), f = z - 1, s = f / (2 + f), log(z) = 2 atanh(s): the series in s**2 converges fast (Tang,
  "Table-driven implementation of the logarithm function", ACM TOMS 16, 1990, discusses it beside tables).

Coefficients: tools/function_tables.py. Measured errors: docs of each function, tests/test_functions.py.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

from vyre.program import function_tables as t
from vyre.program.function_trace import Body, Value, bits_of, fma, horner, select
from vyre.program.functions import Function
from vyre.program.opcodes import MemType, Type

F64, I64 = Type.f64, Type.i64
NAN, INFINITY = float("nan"), float("inf")
ROUND: Final = 1.5 * 2.0**52
EXPONENT_BIAS: Final = 1_023
SQRT_HALF_BITS: Final = bits_of(F64, 0.5**0.5)
ONE_BITS: Final = EXPONENT_BIAS << 52
SIGN: Final = 1 << 63
EXPONENT_MASK: Final = 0x7FF << 52
MANTISSA_MASK: Final = (1 << 52) - 1


def _power_of_two(low_bits: Value) -> Value:
    """The float whose exponent field is the low bits of an f64 rounded with ROUND + EXPONENT_BIAS."""
    return (low_bits << 52).to("f64.reinterpret_i64")


def exp_f32(b: Body) -> Value:
    """e**x as 2**k * 2**r, k = nearest(x log2 e), |r| <= 1/2, 2**r by a polynomial of degree 7.

    Ops: 18. The clamp at +-200 makes f32 infinity, zero and subnormals come out of the last rounding.
    """
    (x,) = b.arguments()
    wide = x.to("f64.promote_f32").min(200.0).max(-200.0)
    log2_e = t.LOG2_E[0]
    rounded = fma(wide, log2_e, ROUND + EXPONENT_BIAS)
    r = fma(wide, log2_e, (ROUND + EXPONENT_BIAS) - rounded)
    scale = _power_of_two(rounded.to("i64.reinterpret_f64"))
    return (horner(r, t.EXP2) * scale).to("f32.demote_f64")


def exp_f64(b: Body) -> Value:
    """e**x = 2**k * e**r, |r| <= ln(2)/2. The leading r is exact, the tail of k ln 2 is added with the small terms.

    e**r = 1 + (r + (tail + r**2 P(r))), P of degree 10. 2**k is applied as two factors whose exponents are the halves
    of k, so that the ends of the range overflow or lose bits in the last multiplication only: one rounding more for
    subnormal results and none for others. Ops: 30.
    """
    (x,) = b.arguments()
    x = x.min(710.0).max(-746.0)
    bias = 2 * EXPONENT_BIAS
    rounded = fma(x, t.LOG2_E[0], ROUND + bias)
    k = rounded - (ROUND + bias)
    lead = fma(k, -t.LN2[0], x)  # exact: both are multiples of 2**-54 and the difference is below 1/2
    tail = k * -t.LN2[1]
    r = lead + tail
    result = (lead + fma(r * r, horner(r, t.EXP), tail)) + 1.0
    low = rounded.to("i64.reinterpret_f64")
    half = low >> 1
    return result * _power_of_two(half) * _power_of_two(low - half)


def _split_exponent(x: Value) -> tuple[Value, Value]:
    """k as f64 and z in [sqrt(1/2), sqrt(2)) with x = 2**k z, for a positive normal x. 7 ops.

    Other arguments give numbers without meaning, and no trap.
    """
    bits = x.to("i64.reinterpret_f64")
    offset = bits - SQRT_HALF_BITS
    z = (bits - (offset & (0xFFF << 52))).to("f64.reinterpret_i64")
    return offset.shr_s(52).to("f64.convert_i64_s"), z


def log_f32(b: Body) -> Value:
    """k ln 2 + s P(s**2), P of degree 4. f32 subnormals are normal in f64, so nothing is rescaled.

    x 2**-1000 in the sum changes nothing for finite x and carries infinity and NaN through. Ops: 24.
    """
    (x,) = b.arguments()
    wide = x.to("f64.promote_f32")
    k, z = _split_exponent(wide)
    f = z - 1.0
    s = f / (f + 2.0)
    result = fma(k, t.LN2[0], fma(horner(s * s, t.LOG_SHORT), s, wide * 2.0**-1000))
    special = select(wide.eq(0.0), -INFINITY, NAN)
    return select(wide.gt(0.0), result, special).to("f32.demote_f64")


def log_f64(b: Body) -> Value:
    """k ln 2 + log(1 + f) with log(1 + f) = f - (f**2/2 - s (f**2/2 + w P(w))), w = s**2, P of degree 6.

    f is exact, so the rounding errors are those of terms far smaller than the result (the arrangement of terms is that
    of W. Kahan's and K. C. Ng's note "Argument reduction for log", 1986). A subnormal argument is scaled by 2**54 first.
    Ops: 36.
    """
    (x,) = b.arguments()
    small = x.lt(2.0**-1022)
    k, z = _split_exponent(select(small, x * 2.0**54, x))
    k = select(small, k - 54.0, k)
    f = z - 1.0
    s = f / (f + 2.0)
    w = s * s
    half_square = f * 0.5 * f
    inner = fma(s, fma(horner(w, t.LOG), w, half_square), k * t.LN2[1])
    result = fma(k, t.LN2[0], f - (half_square - inner))
    result = select(x.lt(INFINITY), result, x)
    return select(x.gt(0.0), result, select(x.eq(0.0), -INFINITY, NAN))


HUGE_F32: Final = 40
"""|x| >= 2**40: the f32 sine takes x mod 2 pi from a table of 2**e mod 2 pi. Below, 53 + 53 bits of pi are enough."""


def _turns_f32() -> tuple[tuple[int, ...], tuple[int, ...]]:
    """(2**(e-23) / pi) mod 2, moved to [-1, 1], for e = 1 .. 128, as a sum of two f64: two tables of bits."""
    digits = int("".join(t.ONE_OVER_PI_DIGITS), 16)
    high, low = [], []
    for e in range(1, 129):
        places = t.PI_BITS - (e - 23)
        turns = digits & ((2 << places) - 1)
        if turns >> places:
            turns -= 2 << places
        first = turns / (1 << places)
        numerator, denominator = first.as_integer_ratio()
        rest = turns - numerator * ((1 << places) // denominator)
        high.append(bits_of(F64, first))
        low.append(bits_of(F64, rest / (1 << places)))
    return tuple(high), tuple(low)


def _sine_f32(b: Body, cosine: bool) -> Value:
    """(-1)**k sin(r), r = x - k pi for the sine, r = x - (k - 1/2) pi for the cosine: |r| <= pi/2, sin(r) = r P(r**2).

    One polynomial of degree 5 serves both, and no quadrant is chosen. The nearest multiple of pi/2 to any f32 is 2**-30
    away, which leaves f64 more than 30 good bits of r. For |x| >= 2**40, x = m 2**(e-23) with an integer m of 24 bits, and m
    times (2**(e-23) / pi mod 2), held to 106 bits, has the same sine (the idea of Payne and Hanek, "Radian reduction
    for trigonometric functions", SIGNUM Newsletter 18, 1983, with the table made per exponent). NaN for infinity.
    """
    (x,) = b.arguments()
    wide = x.to("f64.promote_f32")
    turns = fma(wide, t.ONE_OVER_PI[0], 0.5) if cosine else None
    rounded = turns + ROUND if turns is not None else fma(wide, t.ONE_OVER_PI[0], ROUND)
    k = rounded - ROUND
    if cosine:
        k = k - 0.5
    r = fma(k, -t.PI[1], fma(k, -t.PI[0], wide))
    tables = [b.table(MemType.f64, bits) for bits in _turns_f32()]
    with b.when(x.abs().ge(2.0**HUGE_F32)):
        bits = wide.to("i64.reinterpret_f64")
        index = (bits >> 52) & 0x7F  # e - 1 for 1 <= e <= 128; in range for anything
        m = ((bits & (SIGN | MANTISSA_MASK)) | ((EXPONENT_BIAS + 23) << 52)).to("f64.reinterpret_i64")
        high = b.get(tables[0], index)
        p = m * high
        rest = fma(m, b.get(tables[1], index), fma(m, high, p.neg()))
        b.assign(rounded, (p + 0.5 if cosine else p) + ROUND)
        p = p - (rounded - ROUND)  # exact, as is what follows
        rest = (p + 0.5 if cosine else p) + rest
        b.assign(r, fma(rest, t.PI[0], wide - wide))
    sine = horner(r * r, t.SIN_SHORT) * r
    sign = ((rounded.to("i64.reinterpret_f64") << 63) | ONE_BITS).to("f64.reinterpret_i64")
    return (sine * sign).to("f32.demote_f64")


def sin_f32(b: Body) -> Value:
    """See ``_sine_f32``. Ops: 21, and 18 behind an if for |x| >= 2**40."""
    return _sine_f32(b, cosine=False)


def cos_f32(b: Body) -> Value:
    """See ``_sine_f32``. Ops: 23, and 20 behind an if for |x| >= 2**40."""
    return _sine_f32(b, cosine=True)


HUGE_F64: Final = 32
"""|x| >= 2**32: the f64 sine multiplies by 2/pi in fixed point. Below, 159 bits of pi/2 are enough."""


def _places_of_two_over_pi() -> tuple[int, ...]:
    """Word i: the 64 places of 2/pi down to place 8 i + 11; words 8 apart are neighbours. 8 i + 11 = (8 i + 1) - 52 + 62."""
    digits = int("".join(t.ONE_OVER_PI_DIGITS), 16)  # PI_BITS places of 1/pi, one fewer of 2/pi
    return tuple((digits >> (t.PI_BITS - 1 - (8 * i + 11))) & ((1 << 64) - 1) for i in range(128 + 16))


def _high_product(a_low: Value, a_high: Value, c: Value) -> Value:
    """Bits 64 and up of a c, a = a_high 2**32 + a_low < 2**60, by four products of 32 bits. 12 ops."""
    c_low, c_high = c & 0xFFFF_FFFF, c >> 32
    middle = a_high * c_low + ((a_low * c_low) >> 32)
    other = a_low * c_high + (middle & 0xFFFF_FFFF)
    return a_high * c_high + (middle >> 32) + (other >> 32)


def _reduce_huge_f64(b: Body, x: Value, table: int) -> tuple[Value, Value, Value]:
    """Quadrant of x (modulo 4, low bits) and r + tail = x - quadrant pi/2 to 2**-116, for |x| >= 2**32. NaN for infinity.

    Payne and Hanek: |x| = m 2**(8 i + s + 1 - 52), m < 2**53, s < 8. (m 2**s) times the 192 bits of 2/pi from the table,
    modulo 2**192, is x 2/pi modulo 4 with 190 places, of which the upper 126 are computed. No f64 is nearer to a multiple of
    pi/2 than 2**-61 (6381956970095103 * 2**797 is that near), so at least 64 good bits are left.
    """
    bits = x.to("i64.reinterpret_f64")
    exponent = (bits >> 52) & 0x3FF  # less 1, for |x| >= 2; in range for anything
    index = exponent >> 3
    m = ((bits & MANTISSA_MASK) | (1 << 52)) << (exponent & 7)
    m_low, m_high = m & 0xFFFF_FFFF, m >> 32
    first, second, third = (b.get(table, index + offset if offset else index) for offset in (0, 8, 16))
    under = m * second
    middle = under + _high_product(m_low, m_high, third)
    carry = middle.lt_u(under).to("i64.extend_i32_u")
    top = m * first + _high_product(m_low, m_high, second) + carry
    sign = bits.shr_s(63)
    quadrant = (top + (1 << 61)) >> 62
    places = top - (quadrant << 62)  # signed distance from that quadrant's middle, unit 2**-62
    quadrant = (quadrant ^ sign) - sign
    high = places.to("f64.convert_i64_s")
    left = (places - high.to("i64.trunc_sat_f64_s")).to("f64.convert_i64_s")
    low = fma(middle.to("f64.convert_i64_u"), 2.0**-64, left)
    turns = high + low
    low = (high - turns) + low
    unit = b.const(F64, t.HALF_PI[0] * 2.0**-62).copysign(x)
    r = turns * unit
    tail = fma(low, unit, fma(turns, unit, r.neg()))
    tail = fma(turns, b.const(F64, t.HALF_PI[1] * 2.0**-62).copysign(x), tail)
    total = r + tail
    return quadrant, total + (x - x), (r - total) + tail


def _sine_f64(b: Body, cosine: bool) -> Value:
    """sin or cos of r + tail by the quadrant of x, |r| <= pi/4; both are computed and one is selected.

    Below 2**32, r and tail come from pi/2 as a sum of three f64: x - k c1 is exact (both are multiples of 2**-53 and the
    difference is below 1), the next step's rounding error is recovered exactly by Dekker's fast sum (x - k c1 is a multiple
    of the last bit of k c2), and the third part goes into the tail. Above, ``_reduce_huge_f64``.
    sin(r + tail) = r + (r w P(w) + tail); cos = 1 - w/2 + (w**2 Q(w) - r tail) with the rounding error of 1 - w/2 added back.
    """
    (x,) = b.arguments()
    bias = 1.0 if cosine else 0.0  # cos(x) is sin one quadrant further
    rounded = fma(x, t.TWO_OVER_PI[0], ROUND + bias)
    k = rounded - (ROUND + bias)
    lead = fma(k, -t.HALF_PI[0], x)
    r = lead + k * -t.HALF_PI[1]
    tail = fma(k, -t.HALF_PI[2], fma(k, -t.HALF_PI[1], lead - r))
    quadrant = rounded.to("i64.reinterpret_f64")
    table = b.table(MemType.i64, _places_of_two_over_pi())
    with b.when(x.abs().ge(2.0**HUGE_F64)):
        q, huge_r, huge_tail = _reduce_huge_f64(b, x, table)
        b.assign(r, huge_r)
        b.assign(tail, huge_tail)
        b.assign(quadrant, q + 1 if cosine else q)
    w = r * r
    sine = r + fma(r * w, horner(w, t.SIN), tail)
    if not cosine:
        sine = sine.copysign(r)  # for -0, which the sum above loses
    flat = fma(w, -0.5, 1.0)
    rest = fma(w, -0.5, 1.0 - flat)
    cos = flat + (fma(w * w, horner(w, t.COS), rest) - r * tail)
    odd = quadrant.to("i32.wrap_i64") & 1
    sign = (((quadrant << 62) & SIGN) | ONE_BITS).to("f64.reinterpret_i64")
    return select(odd, cos, sine) * sign


def sin_f64(b: Body) -> Value:
    """See ``_sine_f64``. Ops: 43, and 78 behind an if for |x| >= 2**32."""
    return _sine_f64(b, cosine=False)


def cos_f64(b: Body) -> Value:
    """See ``_sine_f64``. Ops: 42, and 79 behind an if for |x| >= 2**32."""
    return _sine_f64(b, cosine=True)


def tanh_f32(b: Body) -> Value:
    """E / (E + 2) with E = e**(2x) - 1 = 2**k (2**r - 1) + (2**k - 1), which keeps its relative accuracy near 0.

    2**r - 1 = r P(r), P of degree 7. Clamped at +-20, where the quotient rounds to +-1. Ops: 23.
    """
    (x,) = b.arguments()
    wide = x.to("f64.promote_f32").min(20.0).max(-20.0)
    scale = 2.0 * t.LOG2_E[0]
    rounded = fma(wide, scale, ROUND + EXPONENT_BIAS)
    r = fma(wide, scale, (ROUND + EXPONENT_BIAS) - rounded)
    power = _power_of_two(rounded.to("i64.reinterpret_f64"))
    e = fma(power, horner(r, t.EXP2M1) * r, power - 1.0)
    return (e / (e + 2.0)).copysign(wide).to("f32.demote_f64")


def pow_f32(b: Body) -> Value:
    """2**(y log2 |x|) with the sign and the special cases of C99 (annex F.10.4.4).

    log2 by the series of ``log_f32`` with one term more: its error of 2**-45 grows to at most 2**-37 in the exponent.
    y is clamped to +-1e40, beyond every f32, so that (-1)**inf is 1**1e40; log2(0) is -inf, log2(inf) inf. What is left is
    pow(x, 0) = pow(1, y) = 1 even for NaN, the sign of an odd y, and NaN for negative finite x with y no integer.
    Ops: 61.
    """
    x, y = b.arguments()
    base = x.to("f64.promote_f32")
    size = base.abs()
    power = y.to("f64.promote_f32").min(1e40).max(-1e40)
    k, z = _split_exponent(size)
    f = z - 1.0
    s = f / (f + 2.0)
    log2 = fma(horner(s * s, t.LOG2), s, fma(size, 2.0**-1000, k))
    log2 = select(size.eq(0.0), -INFINITY, log2)
    exponent = (log2 * power).min(200.0).max(-200.0)
    rounded = exponent + (ROUND + EXPONENT_BIAS)
    r = exponent - (rounded - (ROUND + EXPONENT_BIAS))
    scale = _power_of_two(rounded.to("i64.reinterpret_f64"))
    half = power * 0.5
    broken = power.nearest().ne(power)
    odd = half.nearest().ne(half).gt_u(broken)
    sign = select(odd, b.const(F64, 1.0).copysign(base), 1.0)
    undefined = base.lt(0.0) & base.gt(-INFINITY) & broken
    result = horner(r, t.EXP2) * scale * select(undefined, NAN, sign)
    return select(power.eq(0.0) | base.eq(1.0), 1.0, result).to("f32.demote_f64")


def _step(r: Value, y: Value, negative_y: Value) -> Value:
    """r - trunc(r / y) y. 3 ops. Exact: with q = trunc of the rounded quotient, r - q y is a multiple of the last place of
    q times that of y (of that of y alone while q < 2**53) and at most half of the former times y, thus no longer than y."""
    return fma((r / y).trunc(), negative_y, r)


def rem_f32(b: Body) -> Value:
    """C's fmod in f64, by quotients of 53 bits; exact.

    Each step leaves |r| <= 2**-53 |r| or |r| < |y|, possibly of the wrong sign, which the last addition repairs. One step does
    for quotients below 2**53; five more do for the largest, 2**277. An infinite y counts as 2**200.
    Ops: 17, and 15 behind an if for |x/y| >= 2**53.
    """
    x, y = b.arguments()
    wide = x.to("f64.promote_f32")
    size = y.to("f64.promote_f32").abs().min(2.0**200)
    minus = size.neg()
    r = _step(wide.abs(), size, minus)
    with b.when(r.abs().ge(size)):
        more = r
        for _ in range(5):
            more = _step(more, size, minus)
        b.assign(r, more)
    positive = select(r.lt(0.0), r + size, r)
    return positive.copysign(wide).to("f32.demote_f64")


def rem_f64(b: Body) -> Value:
    """C's fmod by quotients of 53 bits, as ``rem_f32``; exact.

    One step does for quotients below 2**53. The largest, 2**2098, is no f64: so x is taken modulo y 2**1590, y 2**1060, y 2**530
    and y in turn (a modulus that overflows to infinity changes nothing), each time with a quotient of at most 2**530, which
    11 steps bring below 1. There is no loop, because a loop would burn the caller's fuel.
    Ops: 15, and up to 168 behind ifs for |x/y| >= 2**53.
    """
    x, y = b.arguments()
    largest = float.fromhex("0x1.fffffffffffffp+1023")
    size = y.abs()
    whole = x.abs()
    r = _step(whole, size, size.min(largest).neg())
    with b.when(r.abs().ge(size)):
        b.assign(r, b.op("f64.mov", whole))
        moduli = [size]
        for _ in range(3):
            moduli.append(moduli[-1] * 2.0**530)
        for modulus in reversed(moduli):
            minus = modulus.min(largest).neg()
            for steps in (6, 5):
                with b.when(r.abs().ge(modulus)):
                    more = r
                    for _ in range(steps):
                        more = _step(more, modulus, minus)
                    b.assign(r, more)
    return select(r.lt(0.0), r + size, r) * b.const(F64, 1.0).copysign(x)


BUILDERS: Final[dict[str, Callable[[Body], Value]]] = {
    "f32.rem": rem_f32,
    "f64.rem": rem_f64,
    "f32.exp": exp_f32,
    "f32.log": log_f32,
    "f32.sin": sin_f32,
    "f32.cos": cos_f32,
    "f32.tanh": tanh_f32,
    "f32.pow": pow_f32,
    "f64.exp": exp_f64,
    "f64.log": log_f64,
    "f64.sin": sin_f64,
    "f64.cos": cos_f64,
}


def build(name: str) -> Function:
    """Write the body of one function instruction. About 0.3 ms."""
    body = Body(name)
    return body.finish(BUILDERS[name](body))
