"""Numeric instructions of the reference engine beside exact arithmetic on Python integers and fractions."""

from __future__ import annotations

import itertools
import random
import struct

import numpy as np
import pytest

from exact import decode, encode, expected
from vyre.engines.scalars import BITS, NUMERIC, TRAPS, compute, narrow, traps, widen
from vyre.program.opcodes import FAULT_REASONS, OPCODES, FaultCode, Group, MemType, Type

NUMERIC_OPS = [op for op in OPCODES if op.group is Group.numeric]
NASTY = {
    Type.i32: [0, 1, 2, 3, 7, 31, 32, 33, 0x7F, 0x80, 0xFFFF, 0x8000, 1 << 24, (1 << 24) + 1, 0x7FFFFFFF, 0x80000000, 0x80000001, 0xFFFFFFFE, 0xFFFFFFFF, 0xDEADBEEF],
    Type.i64: [0, 1, 2, 3, 63, 64, 65, 0x80, 0x8000, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 53) + 1, (1 << 54) + 3, 0x7FFFFFFFFFFFFFFF, 0x7FFFFFBFFFFFFFFF, 0x8000004000000001, 1 << 63, (1 << 63) + 1, (1 << 64) - 2, (1 << 64) - 1, 0xFFFFFF7FFFFFFFFF, 0x0123456789ABCDEF],
}  # fmt: skip
for _t, _fraction, _exponents in ((Type.f32, 23, (1, 2, 63, 103, 104, 126, 127, 128, 150, 151, 157, 158, 159, 189, 190, 191, 254)),
                                  (Type.f64, 52, (1, 2, 511, 969, 970, 1022, 1023, 1024, 1054, 1055, 1075, 1076, 1085, 1086, 1087, 1533, 2046))):  # fmt: skip
    _ones = (1 << _fraction) - 1
    _infinity = (256 if _t is Type.f32 else 2048) - 1 << _fraction
    _positive = [0, 1, 2, _ones, _infinity, _infinity + 1, _infinity | 1 << _fraction - 1, _infinity | _ones]
    _positive += [e << _fraction | f for e in _exponents for f in (0, 1, _ones)]
    NASTY[_t] = [bits | sign << 8 * _t.size - 1 for bits in _positive for sign in (0, 1)]


def patterns(op, count, seed):
    """Operand tuples: nasty ones with each other, random bits, and floats of exponents that are near each other."""
    rng = random.Random(f"{op.name} {seed}")

    def friendly(t):
        if not t.is_float:
            return rng.getrandbits(8 * t.size) >> rng.randrange(8 * t.size)
        fraction, bias = (23, 127) if t is Type.f32 else (52, 1023)
        exponent = bias + rng.randint(-40, 40)
        tail = rng.getrandbits(fraction) & -1 << rng.randrange(fraction)
        return rng.getrandbits(1) << 8 * t.size - 1 | exponent << fraction | tail

    pools = [NASTY[t] for t in op.args]
    nasty = list(itertools.product(*pools))
    chosen = nasty if len(nasty) <= count // 2 else rng.sample(nasty, count // 2)
    chosen += [tuple(rng.getrandbits(8 * t.size) for t in op.args) for _ in range(count // 4)]
    chosen += [tuple(friendly(t) for t in op.args) for _ in range(count // 4)]
    return chosen


def evaluate(op, cases):
    columns = [np.array(column, BITS[t]) for column, t in zip(zip(*cases, strict=True), op.args, strict=True)]
    codes = traps(op, *columns)
    codes = np.zeros(len(cases), np.uint8) if codes is None else codes
    good = codes == 0
    values = iter(compute(op, *(column[good] for column in columns)).tolist())
    return [FAULT_REASONS[FaultCode(int(code))] if code else next(values) for code in codes]


def test_every_numeric_instruction_has_a_body_and_every_trapping_one_a_rule():
    assert set(NUMERIC) == {op.name for op in NUMERIC_OPS}
    assert set(TRAPS) == {op.name for op in NUMERIC_OPS if op.traps}


@pytest.mark.parametrize("op", NUMERIC_OPS, ids=lambda op: op.name)
def test_a_numeric_instruction_agrees_with_exact_arithmetic(op):
    cases = patterns(op, 2000, seed=1)
    for case, got in zip(cases, evaluate(op, cases), strict=True):
        want = expected(op, case)
        assert got == want, (
            f"{op.name} of {[hex(x) for x in case]}: {got if isinstance(got, str) else hex(got)}, not {want if isinstance(want, str) else hex(want)}"
        )


@pytest.mark.parametrize("name", ["f32.fma", "f64.fma"])
def test_fma_rounds_once_where_product_and_sum_nearly_cancel_or_tie(name):
    op = next(op for op in NUMERIC_OPS if op.name == name)
    t = op.result
    fraction = 23 if t is Type.f32 else 52
    bias = 127 if t is Type.f32 else 1023
    rng = random.Random(5)
    cases = []
    for _ in range(1500):
        a, b = (
            rng.getrandbits(1) << 8 * t.size - 1 | (bias + rng.randint(-3, 3)) << fraction | rng.getrandbits(fraction)
            for _ in range(2)
        )
        product = decode(a, t).value * decode(b, t).value
        near = encode(-product, t) + rng.randint(-1, 1)  # the sum is the rounding error of the product
        tie = encode(product, t) & ~0 << rng.randrange(fraction)  # many low zeros: halfway cases
        far = near - (rng.randint(fraction - 2, 2 * fraction) << fraction)  # a nudge near or below half an ulp
        cases += [(a, b, near), (a, b, tie), (a, b, far % (1 << 8 * t.size))]
        low = (rng.randint(1, 3 * fraction)) << fraction | rng.getrandbits(fraction)  # subnormal products and sums
        cases.append(
            (low, (bias - rng.randint(0, bias - 1)) << fraction | rng.getrandbits(fraction), rng.getrandbits(fraction))
        )
    for case, got in zip(cases, evaluate(op, cases), strict=True):
        assert got == expected(op, case), f"{name} of {[hex(x) for x in case]}: {hex(got)}"


def test_f16_loads_exactly_and_makes_every_nan_canonical():
    raw = np.arange(1 << 16, dtype=np.uint16)
    got = widen(raw, MemType.f16)
    for bits, value in zip(raw.tolist(), got.tolist(), strict=True):
        (half,) = struct.unpack("<e", bits.to_bytes(2, "little"))
        want = 0x7FC00000 if half != half else int.from_bytes(struct.pack("<f", half), "little")
        assert value == want, hex(bits)


def test_f16_stores_round_to_nearest_even_with_subnormals_and_overflow_to_infinity():
    rng = random.Random(2)
    bits = [rng.getrandbits(32) for _ in range(2000)]
    bits += [
        rng.getrandbits(1) << 31 | rng.randint(100, 145) << 23 | rng.getrandbits(23) & -1 << rng.randrange(23)
        for _ in range(6000)
    ]
    bits += [0x477FEFFF, 0x477FF000, 0x33000000, 0x33000001, 0xB3000000, 0x7F800001, 0xFFFFFFFF, 0x80000000, 0xFF800000]
    for given, got in zip(bits, narrow(np.array(bits, np.uint32), MemType.f16).tolist(), strict=True):
        (value,) = struct.unpack("<f", given.to_bytes(4, "little"))
        try:
            want = int.from_bytes(struct.pack("<e", value), "little") if value == value else 0x7E00
        except OverflowError:
            want = 0x7C00 | given >> 31 << 15
        assert got == want, hex(given)


def test_bf16_stores_round_to_nearest_even_and_load_the_same_value_back():
    every = np.arange(1 << 16, dtype=np.uint16)
    wide = widen(every, MemType.bf16)
    nan = (every & 0x7FFF) > 0x7F80
    assert np.array_equal(wide, np.where(nan, 0x7FC00000, every.astype(np.uint32) << 16))
    assert np.array_equal(narrow(wide, MemType.bf16), np.where(nan, 0x7FC0, every))
    halfway = every[~nan].astype(np.uint32) << 16 | 0x8000
    above = every[~nan].astype(np.uint32)
    finite = (above & 0x7F80) != 0x7F80
    assert np.array_equal(narrow(halfway[finite], MemType.bf16), above[finite] + (above[finite] & 1))
    assert np.array_equal(narrow(halfway[finite] - 1, MemType.bf16), above[finite])
    assert np.array_equal(narrow(halfway[finite] + 1, MemType.bf16), above[finite] + 1)
    assert narrow(np.array([0x7F800001, 0xFFC00001], np.uint32), MemType.bf16).tolist() == [0x7FC0, 0x7FC0]


@pytest.mark.parametrize(("dtype", "raw", "register"), [
    (MemType.i8, 0x80, 0xFFFFFF80),
    (MemType.u8, 0x80, 0x80),
    (MemType.i16, 0x8001, 0xFFFF8001),
    (MemType.u16, 0x8001, 0x8001),
    (MemType.bool, 0x40, 1),
])  # fmt: skip
def test_a_narrow_integer_extends_on_load(dtype, raw, register):
    assert widen(np.array([raw], {1: np.uint8, 2: np.uint16}[dtype.size]), dtype).tolist() == [register]


@pytest.mark.parametrize(("dtype", "register", "raw"), [
    (MemType.i8, 0x1FF, 0xFF),
    (MemType.u8, 0xFFFFFF01, 0x01),
    (MemType.i16, 0x18000, 0x8000),
    (MemType.u16, 0xFFFFFFFF, 0xFFFF),
    (MemType.bool, 0x100, 1),
    (MemType.bool, 0, 0),
])  # fmt: skip
def test_a_narrow_integer_wraps_on_store_and_a_bool_keeps_whether_it_was_zero(dtype, register, raw):
    assert narrow(np.array([register], np.uint32), dtype).tolist() == [raw]
