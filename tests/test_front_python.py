"""Functions under @vyre.program: the same function, run by Python on each element, is what they are held against."""

import math
import pickle
import re
import subprocess
import sys
import textwrap
from pathlib import Path

import numpy as np
import pytest

import vyre
from vyre.engines.reference import execute
from vyre.errors import CompileError
from vyre.program.opcodes import FaultCode
from vyre.program.python import compile_function, program

DTYPES = {"i32": np.int32, "u32": np.uint32, "i64": np.int64, "u64": np.uint64, "f32": np.float32, "f64": np.float64, "bool": np.bool_,
          "u8": np.uint8, "i8": np.int8, "i16": np.int16, "u16": np.uint16, "f16": np.float16}  # fmt: skip
INTS = np.array([-100, -17, -8, -3, -2, -1, 0, 1, 2, 3, 5, 7, 10, 11, 12, 25, 40, 99], np.int64)
FLOATS = np.array([-4.5, -1.0, -0.25, 0.0, 0.1, 0.5, 1.0, 1.5, 2.0, 3.25, 10.0], np.float64)


def item(compiled, *inputs, tables=(), **params):
    """Run on the reference engine: inputs by position, parameters by name."""
    declared = compiled.program
    arrays = [np.asarray(x).astype(DTYPES[s.dtype.name]) for x, s in zip(inputs, declared.inputs, strict=True)]
    bits = []
    for p in declared.params:
        if p.name in params:
            value = np.asarray(params[p.name]).astype(DTYPES[p.dtype.name])
            bits.append(int.from_bytes(value.tobytes(), "little"))
        else:
            assert p.default is not None
            bits.append(p.default)
    return execute(compiled.verified, arrays, bits, list(tables), 0, len(arrays[0]))


def agrees(function, *inputs, **params):
    """The program gives for each element what the function gives in Python."""
    compiled = compile_function(function)
    result = item(compiled, *inputs, **params)
    assert result.fault is None, result.fault
    want = [function(*(x.item() for x in row), **params) for row in zip(*inputs, strict=True)]
    if isinstance(want[0], dict):
        for stream, got in zip(compiled.program.outputs, result.outputs, strict=True):
            assert got.tolist() == [w[stream.name] for w in want]
    else:
        assert result.outputs[0].tolist() == want
    return compiled


LIMIT = 5
RATE = 0.25


def collatz(n: vyre.i64) -> vyre.i64:
    steps = 0
    while n > 1:
        if n % 2 == 0:
            n //= 2
        else:
            n = 3 * n + 1
        steps += 1
    return steps


def early(n: vyre.i64) -> vyre.i64:
    if n < 0:
        return -n
    if n == 7:
        return 70
    n += LIMIT
    return n * 2


def grade(x: vyre.f64) -> vyre.i64:
    if x < 0:
        return 0
    elif x < 1:
        g = 1
    elif x < 2:
        g = 2
    else:
        g = 3
    return g * 10


def nested_jumps(n: vyre.i64) -> vyre.i64:
    total = 0
    for i in range(n):
        if i % 3 == 0:
            if i % 2 == 0:
                continue
            total += 100
        else:
            if i > 20:
                break
        for j in range(i, 0, -2):
            if j == 5:
                break
            if j % 4 == 0:
                continue
            total += j
            if total > 5000:
                return -total
        total += 1
    return total


def forever(n: vyre.i64) -> vyre.i64:
    k = 0
    while True:
        k += 1
        if k * k > n:
            break
        last = k
        if last == 4:
            return 444
    return k


def gcd(a: vyre.i64, b: vyre.i64) -> vyre.i64:
    a, b = abs(a), abs(b)
    while b != 0:
        a, b = b, a % b
    return a


def choose(x: vyre.f64, y: vyre.f64) -> vyre.f64:
    a = x if x > y else y
    b = (1 if x > 1 else 2) * 0.5
    return a + b if (a > 0 and not b > 0.75) or x == y else a - b * RATE


def ranges(n: vyre.i64, k: vyre.i64) -> vyre.i64:
    s = 0
    for i in range(n, n + 20, 7):
        s = s * 3 + i
    for i in range(k, n, -3):
        s += i * 2
    for i in range(4):
        for j in range(i):
            s ^= i + j
    for _ in range(0):
        s = 0
    for i in range(10, -10, -4):
        s += i
    return s


def by_step(n: vyre.i64, k: vyre.i64) -> vyre.i64:
    s = 0
    for i in range(-5, n, k):
        if s > 1000:
            break
        s += i + 100
    return s


def two_results(a: vyre.i64, b: vyre.i64) -> dict[str, int]:
    if a > b:
        return {"low": b, "high": a}
    return {"low": a, "high": b}


def carried(n: vyre.i64) -> vyre.i64:
    x = 0
    y = 1
    for _ in range(n):
        x, y = y, x + y
        if y > 10**6:
            y = 0
    t: vyre.i64 = x
    return t + y


def maybe_then_more(n: vyre.i64) -> vyre.i64:
    if n > 0:
        if n % 2 == 1:
            return 1
        m = n * 10
    else:
        m = -n
    m += 1
    if m > 50:
        if m > 500:
            return m
        m = 7
    return m + 2


def late_condition(n: vyre.i64) -> vyre.i64:
    i = 0
    while i < n and 100 // (i + 1) > 3:
        i += 1
        if i == 9:
            break
    else_value = i * 2
    return else_value


def masks(a: vyre.i64, b: vyre.i64) -> vyre.i64:
    return ((a & 0xFF) << 3 | b >> 2) ^ ~a + (a // 7 - b % 5) * (a % -3)


def of_bool(a: vyre.i64, b: vyre.i64) -> bool:
    p = a > b
    q = not p
    while q:
        a += 10
        q = a < b
    return p or a == b or (a - b) % 2 == 0


@pytest.mark.parametrize("function", [collatz, early, nested_jumps, carried, maybe_then_more, forever, late_condition])
def test_an_integer_function_gives_what_python_gives(function):
    agrees(function, INTS if function is not carried else np.abs(INTS))


@pytest.mark.parametrize("function", [gcd, ranges, two_results, masks, of_bool])
def test_an_integer_function_of_two_streams_gives_what_python_gives(function):
    a, b = np.repeat(INTS, len(INTS)), np.tile(INTS, len(INTS))
    agrees(function, a, b)


def test_a_step_known_at_run_time_counts_as_python_counts():
    a, b = np.repeat(INTS, len(INTS)), np.tile(INTS[INTS != 0], len(INTS) + 2)[: len(INTS) ** 2]
    agrees(by_step, a, b)
    fault = item(compile_function(by_step), [1, 1], [1, 0]).fault
    assert (fault.code, fault.element) == (FaultCode.divide_by_zero, 1)


def test_float_functions_give_what_python_gives():
    agrees(grade, FLOATS)
    agrees(choose, np.repeat(FLOATS, len(FLOATS)), np.tile(FLOATS, len(FLOATS)))


def test_many_early_returns_do_not_nest_beyond_the_limit(tmp_path):
    lines = ["import vyre", "def f(n: vyre.i64) -> vyre.i64:", "    s = 0"]
    for k in range(60):
        lines += [f"    if n == {k}:", f"        return {k * k % 17}", f"    s += n // {k + 1}"]
    path = tmp_path / "many.py"
    path.write_text("\n".join([*lines, "    return s", ""]))
    names = {}
    exec(compile(path.read_text(), str(path), "exec"), names)
    agrees(names["f"], np.arange(-5, 70))


def test_range_reaches_the_ends_of_its_type_without_wrapping():
    @program
    def near_the_end(x: vyre.i32) -> vyre.i64:
        n = 0
        for i in range(2147483600, 2147483647, 20):
            n += 1
            if i < x:
                n += 100
        for i in range(-2147483600, -2147483648, -25):
            n += 1000
            if i > x:
                n += 1
        for i in range(x - 3, x):
            n += vyre.i64(i > 0)
        return n

    big = 2147483647
    want = [sum(1 + 100 * (i < x) for i in range(2147483600, big, 20)) + sum(1000 + (i > x) for i in range(-2147483600, -big - 1, -25))
            + sum(i > 0 for i in range(x - 3, x)) for x in (0, 5, big, 2147483630)]  # fmt: skip
    assert item(near_the_end, [0, 5, big, 2147483630]).outputs[0].tolist() == want


def test_query_6_counts_and_sums_what_numpy_does():
    @vyre.program
    def q6(
        ship: vyre.i32,
        discount: vyre.f64,
        quantity: vyre.f64,
        price: vyre.f64,
        *,
        start: vyre.i32,
        end: vyre.i32 = 9131,
    ):
        if start <= ship < end and 0.05 <= discount <= 0.07 and quantity < 24:
            vyre.sum(revenue=price * discount)
            vyre.count(n=True)
            vyre.max(top=price, late=ship)

    rng = np.random.default_rng(1)
    ship = rng.integers(8000, 10000, 3000, dtype=np.int32)
    discount, quantity = rng.integers(0, 11, 3000) / 100, rng.integers(1, 51, 3000).astype(float)
    price = rng.uniform(1, 1000, 3000)
    keep = (ship >= 8766) & (ship < 9131) & (discount >= 0.05) & (discount <= 0.07) & (quantity < 24)
    revenue, n, top, late = item(q6, ship, discount, quantity, price, start=8766).accumulators
    assert n == keep.sum()
    assert math.isclose(revenue, (price * discount)[keep].sum(), rel_tol=1e-12)
    assert top == price[keep].max()
    assert late == ship[keep].max()
    assert late.dtype == np.int32
    assert [i.op for i in q6.program.code].count(q6.program.code[-2].op) == 1  # one if, closed once


def test_emit_keeps_elements_in_order_with_their_row():
    @vyre.program
    def big(x: vyre.f32, *, limit: vyre.f32 = 0.5):
        if x > limit:
            vyre.emit(row=vyre.index(), z=x * 2, small=vyre.u8(x * 100))

    x = np.random.default_rng(2).random(5000, np.float32)
    row, z, small = item(big, x).emits
    keep = np.flatnonzero(x > 0.5)
    assert np.array_equal(row, keep)
    assert np.array_equal(z, x[keep] * 2)
    assert small.dtype == np.uint8
    assert np.array_equal(small, (x[keep] * np.float32(100)).astype(np.uint8))


def test_histograms_of_bytes_and_of_wide_indices():
    @vyre.program
    def bytes_of(b: vyre.u8, w: vyre.i64):
        vyre.histogram(h=b, bins=256)
        if w >= 0:
            vyre.histogram(wide=w, bins=BINS)

    b = np.random.default_rng(3).integers(0, 256, 4000)
    h, wide = item(bytes_of, b, b % 7 - 1).accumulators
    assert np.array_equal(h, np.bincount(b, minlength=256))
    assert np.array_equal(wide, np.bincount((b % 7 - 1)[b % 7 > 0], minlength=BINS))
    assert item(bytes_of, [1, 2], [0, 2**32]).fault.element == 1


BINS = 6


def test_tables_are_read_and_atomic_ones_updated():
    @vyre.program
    def look(i: vyre.i32, t: vyre.table[vyre.f32], *, a: vyre.atomic[vyre.u32], m: vyre.atomic[vyre.u32]) -> vyre.f32:
        vyre.table_add(a, i % 3, 2)
        vyre.table_max(m, 0, vyre.u32(i))
        return t[i] + t[0] if i > 0 else 0.0

    t, a, m = np.array([0.5, 1, 2, 4], np.float32), np.zeros(3, np.uint32), np.zeros(1, np.uint32)
    result = item(look, [0, 1, 2, 3, 1], tables=[t, a, m])
    assert result.outputs[0].tolist() == [0, 1.5, 2.5, 4.5, 1.5]
    assert (a.tolist(), m.tolist()) == ([4, 4, 2], [3])
    assert item(look, [0, 1, 4], tables=[t, a, m]).fault.code == FaultCode.out_of_bounds


def test_the_right_side_of_and_runs_only_where_it_is_needed():
    @vyre.program
    def guarded(i: vyre.i32, d: vyre.i32, t: vyre.table[vyre.i32]) -> vyre.i32:
        n = 0
        if (0 <= i < 3 and t[i] > 1) or i == 77:
            n = 1
        if d != 0 and 10 // d > 2:
            n += 10
        n += t[i] if i < 3 else 1000
        return n

    result = item(guarded, [0, 1, 2, 77, 50], [0, 1, 5, 0, -3], tables=[np.array([1, 2, 3], np.int32)])
    assert result.fault is None
    assert result.outputs[0].tolist() == [1, 13, 4, 1001, 1000]


def test_a_variable_of_literals_takes_the_type_it_meets():
    @program
    def run(x: vyre.f32):
        total = 0.0
        k = 0
        n = 0
        while n < 3:
            total = total + x
            n += 1
            k = n if x > 0 else vyre.i32(4)
        return {"total": total, "k": k, "n": n, "half": 0.5}

    assert [s.dtype.name for s in run.program.outputs] == ["f32", "i64", "i64", "f64"]
    assert item(run, [2, -1]).outputs[0].tolist() == [6, -3]
    with pytest.raises(CompileError, match="f64 is returned, f32 is declared"):
        raise_of(wrong_mix)


def wrong_mix(x: vyre.f32) -> vyre.f32:
    n = 0
    n += 1
    return x * n


def raise_of(function, **options):
    compile_function(function, **options)


def test_narrow_results_are_stored_narrow():
    @program
    def narrow(x: vyre.i32, h: vyre.f16):
        return {"byte": vyre.u8(x), "half": vyre.f16(h * 2), "short": vyre.i16(x), "flag": x > 0}

    byte, half, short, flag = item(narrow, [-1, 300, 70000], [0.5, 1, 1024]).outputs
    assert (byte.dtype, byte.tolist()) == (np.uint8, [255, 44, 112])
    assert (half.dtype, half.tolist()) == (np.float16, [1, 2, 2048])
    assert (short.dtype, short.tolist()) == (np.int16, [-1, 300, 4464])
    assert (flag.dtype, flag.tolist()) == (np.bool_, [False, True, True])


def test_numbers_from_globals_closures_and_modules_are_captured_as_they_are():
    weight, step = np.float32(0.5), 3

    @program
    def scaled(x: vyre.f32):
        return x * weight + step * math.pi + np.pi * LIMIT

    x = np.array([1, 2], np.float32)
    got = item(scaled, x).outputs[0]
    pi = np.float32(np.pi * 5)
    assert got.tolist() == (x * weight + np.float32(3 * np.pi) + pi).tolist()


def test_fuel_and_name_are_arguments_of_the_decorator():
    @vyre.program(fuel=10, name="short_of_fuel")
    def loop(n: vyre.i64):
        i = 0
        while i < n:
            i += 1
        return i

    assert loop.program.fuel == 10
    assert loop.name == "short_of_fuel"
    assert item(loop, [10, 11]).fault is None
    fault = item(loop, [3, 12]).fault
    assert (fault.code, fault.element) == (FaultCode.out_of_fuel, 1)
    line = loop.program.line_of(fault.pc)
    assert Path(__file__).read_text().splitlines()[line - 1].strip().startswith("while i < n")


def test_a_fault_knows_the_line_of_the_file():
    @program
    def divide(a: vyre.i32, b: vyre.i32):
        c = a + 1
        d = c // b
        return d

    fault = item(divide, [1, 2], [1, 0]).fault
    assert divide.program.source == __file__
    assert "d = c // b" in Path(__file__).read_text().splitlines()[divide.program.line_of(fault.pc) - 1]


def test_a_compiled_function_keeps_its_name_pickles_and_is_not_called():
    compiled = compile_function(gcd)
    assert compiled.__name__ == "gcd"
    assert pickle.loads(pickle.dumps(compiled)) == compiled
    with pytest.raises(CompileError, match="run over arrays") as caught:
        compiled(1, 2)
    assert "vyre.run(gcd, a=a, b=b)" in caught.value.fix


REFUSED = {
    "an unannotated stream": ("def f(x):\n    return x", 1, 7, "no type"),
    "float as a type": ("def f(x: float):\n    return x", 1, 10, "no scalar type"),
    "a default of a stream": ("def f(x: vyre.f32 = 1):\n    return x", 1, 21, "no default"),
    "star arguments": ("def f(*x: vyre.f32):\n    return x", 1, 8, "'*'"),
    "a narrow parameter": ("def f(x: vyre.f32, *, k: vyre.u8):\n    return x", 1, 26, "type of arrays"),
    "a default that does not fit": ("def f(x: vyre.f32, *, k: vyre.i32 = 2**31):\n    return x", 1, 37, "does not fit"),
    "a float for an integer parameter": ("def f(x: vyre.f32, *, k: vyre.i32 = 1.5):\n    return x", 1, 37, "is no i32"),
    "two types of one variable": ("def f(x: vyre.f32):\n    y = x\n    y = vyre.f64(x)\n    return y", 3, 5, "one type per variable|f32 .line 2."),
    "a variable without a value": ("def f(x: vyre.f32):\n    if x > 0:\n        y = x\n    return y", 4, 12, "may have no value"),
    "a value on some paths only": ("def f(x: vyre.f32):\n    if x > 0:\n        return x", 3, 9, "not every path"),
    "an unknown name": ("def f(x: vyre.f32):\n    return x + zz", 2, 16, "unknown name 'zz'"),
    "an array from outside": ("def f(x: vyre.f32):\n    return x + ARRAY", 2, 16, "only numbers"),
    "a string": ("def f(x: vyre.f32):\n    return 'a'", 2, 12, "str"),
    "a number as condition": ("def f(x: vyre.f32):\n    if x:\n        return 1\n    return 2", 2, 8, "not bool"),
    "and of numbers": ("def f(x: vyre.f32):\n    return x and x", 2, 12, "takes bool"),
    "an attribute": ("def f(x: vyre.f32):\n    return x.real", 2, 12, "unknown name|attribute"),
    "a method": ("def f(x: vyre.f32):\n    return x.sum()", 2, 12, "unknown name|attribute"),
    "numpy's functions": ("def f(x: vyre.f32):\n    return np.sqrt(x)", 2, 12, "cannot be called"),
    "math's functions": ("def f(x: vyre.f32):\n    return math.sqrt(x)", 2, 12, "use vyre.sqrt"),
    "print": ("def f(x: vyre.f32):\n    print(x)\n    return x", 2, 5, "cannot be called"),
    "a list": ("def f(x: vyre.f32):\n    return [x]", 2, 12, "a list"),
    "a comprehension": ("def f(x: vyre.f32):\n    return sum(y for y in x)", 2, 12, "cannot be called|comprehension"),
    "a lambda": ("def f(x: vyre.f32):\n    g = lambda: x\n    return x", 2, 9, "lambda"),
    "an f-string": ("def f(x: vyre.f32):\n    return f'{x}'", 2, 12, "f-string"),
    "a walrus": ("def f(x: vyre.f32):\n    return (y := x)", 2, 13, "':='"),
    "with": ("def f(x: vyre.f32):\n    with x:\n        pass\n    return x", 2, 5, "with"),
    "try": ("def f(x: vyre.f32):\n    try:\n        y = x\n    finally:\n        pass\n    return x", 2, 5, "try"),
    "a function inside": ("def f(x: vyre.f32):\n    def g():\n        pass\n    return x", 2, 5, "function inside"),
    "import": ("def f(x: vyre.f32):\n    import os\n    return x", 2, 5, "import"),
    "a loop over a stream": ("def f(x: vyre.f32):\n    for y in x:\n        pass\n    return x", 2, 14, "range"),
    "else of a loop": ("def f(x: vyre.i32):\n    for y in range(x):\n        pass\n    else:\n        pass\n    return x", 2, 5, "'else'"),
    "range of floats": ("def f(x: vyre.f32):\n    for y in range(x):\n        pass\n    return x", 2, 14, "range of f32"),
    "a step of zero": ("def f(x: vyre.i32):\n    for y in range(0, x, 0):\n        pass\n    return x", 2, 14, "step of zero"),
    "a loop's variable after it": ("def f(x: vyre.i32):\n    for y in range(x):\n        pass\n    return y", 4, 12, "inside its loop"),
    "a loop's variable assigned": ("def f(x: vyre.i32):\n    for y in range(x):\n        y = 2\n    return x", 2, 9, "assigned elsewhere"),
    "emit in a loop": ("def f(x: vyre.i32):\n    for y in range(x):\n        vyre.emit(z=x)", 3, 9, "emit in a loop"),
    "emit twice": ("def f(x: vyre.i32):\n    vyre.emit(z=x)\n    vyre.emit(z=x)", 3, 17, "twice"),
    "one name for two results": ("def f(x: vyre.i32):\n    vyre.sum(z=x)\n    vyre.emit(z=x)", 3, 17, "accumulator too"),
    "two types of one accumulator": ("def f(x: vyre.i32):\n    vyre.sum(z=x)\n    vyre.sum(z=1.5)", 3, 16, "elsewhere"),
    "sum by position": ("def f(x: vyre.i32):\n    vyre.sum(x)", 2, 5, "names its result"),
    "sum as a value": ("def f(x: vyre.i32):\n    return vyre.sum(z=x)", 2, 12, "statement"),
    "a value that is dropped": ("def f(x: vyre.f32):\n    vyre.sqrt(x)", 2, 5, "not used"),
    "an expression that does nothing": ("def f(x: vyre.f32):\n    x + 1", 2, 5, "does nothing"),
    "a histogram without bins": ("def f(x: vyre.i32):\n    vyre.histogram(h=x)", 2, 5, "how many bins"),
    "bins that vary": ("def f(x: vyre.i32):\n    vyre.histogram(h=x, bins=x)", 2, 30, "no constant"),
    "a histogram of floats": ("def f(x: vyre.f32):\n    vyre.histogram(h=x, bins=8)", 2, 22, "index is f32"),
    "an index that is negative": ("def f(i: vyre.i32, t: vyre.table[vyre.f32]):\n    return t[-1]", 2, 14, "index -1"),
    "an index that is a float": ("def f(x: vyre.f32, t: vyre.table[vyre.f32]):\n    return t[x]", 2, 14, "index is f32"),
    "a slice": ("def f(i: vyre.i32, t: vyre.table[vyre.f32]):\n    return t[1:2]", 2, 12, "slice"),
    "a table assigned": ("def f(i: vyre.i32, t: vyre.table[vyre.f32]):\n    t[i] = 1.0", 2, 5, "plain name"),
    "an atomic table read": ("def f(i: vyre.i32, t: vyre.atomic[vyre.i32]):\n    return t[i]", 2, 12, "is atomic"),
    "a read-only table updated": ("def f(i: vyre.i32, t: vyre.table[vyre.i32]):\n    vyre.table_add(t, i, 1)", 2, 20, "read-only"),
    "a stream with an index": ("def f(x: vyre.f32):\n    return x[0]", 2, 12, "no table"),
    "outputs that differ": ("def f(x: vyre.f32):\n    if x > 0:\n        return {'a': x}\n    return {'b': x}", 4, 12, "another return has a"),
    "output types that differ": ("def f(x: vyre.f32, y: vyre.f64):\n    if x > 0:\n        return x\n    return y", 4, 12, "another return gives f32"),
    "u64 with signed": ("def f(x: vyre.i32, y: vyre.u64):\n    return x + y", 2, 12, "no integer type holds both"),
    "a literal that does not fit": ("def f(x: vyre.i32):\n    return x + 5000000000", 2, 12, "does not fit i32"),
    "del": ("def f(x: vyre.f32):\n    del x\n    return 1", 2, 5, "del"),
    "assert": ("def f(x: vyre.f32):\n    assert x > 0\n    return 1", 2, 5, "assert"),
    "global": ("def f(x: vyre.f32):\n    global y\n    return 1", 2, 5, "global"),
    "in": ("def f(x: vyre.f32):\n    return x in (1, 2)", 2, 12, "'in'"),
    "a star in a call": ("def f(x: vyre.f32):\n    return vyre.min(*x)", 2, 12, "'\\*'"),
    "async def": ("async def f(x: vyre.f32):\n    return x", 0, 1, "async def"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_does_not_compile_is_refused_with_file_line_column_and_reason(name, tmp_path):
    source, line, column, reason = REFUSED[name]
    file = tmp_path / "stranger.py"
    file.write_text(
        "import math\nimport numpy as np\nimport vyre\nARRAY = np.zeros(3)\n\n@vyre.program\n" + source + "\n"
    )
    with pytest.raises(CompileError) as caught:
        exec(compile(file.read_text(), str(file), "exec"), {"__name__": "stranger"})
    assert str(caught.value).startswith(f"{file}:{line + 6}:{column}: "), caught.value
    assert re.search(reason, str(caught.value)), caught.value


def test_without_a_source_the_error_names_the_way_out():
    code = textwrap.dedent("""
        import vyre
        @vyre.program
        def f(x: vyre.f32):
            return x
    """)
    for args, text in ((["-c", code], None), (["-"], code)):
        done = subprocess.run([sys.executable, *args], input=text, capture_output=True, text=True, check=False)
        assert done.returncode != 0
        assert "vyre.expression" in done.stderr
        assert "file" in done.stderr


def test_annotations_may_be_strings_and_bool():
    @program
    def f(x: "vyre.f32", keep: bool, t: "vyre.table[vyre.f32]"):
        return x if keep else t[0]

    assert [s.dtype.name for s in f.program.inputs] == ["f32", "bool"]
    assert item(f, [1, 2], [True, False], tables=[np.array([9], np.float32)]).outputs[0].tolist() == [1, 9]
