"""Expressions: what they compute (against NumPy), what types they have, and what a stranger's text can do: nothing."""

import pickle
import time
import warnings

import numpy as np
import pytest

from vyre.engines.reference import execute
from vyre.errors import CompileError
from vyre.program import types as vyre
from vyre.program.expression import MAX_DEPTH, MAX_TEXT, compile_expression, expression
from vyre.program.opcodes import FaultCode, MemType
from vyre.program.types import infer_types, memory_type
from vyre.program.verifier import verify

F = np.array([-3.5, -2, -1.25, -0.0, 0.0, 0.5, 1, 2, 3.75, 100], np.float32)
G = np.array([2, -2, 0.5, 3, -0.0, 0.25, -7, 2, 1e-3, -3], np.float32)
I = np.array([-(2**31), -100, -7, -1, 0, 1, 7, 8, 99, 2**31 - 1], np.int32)  # noqa: E741
J = np.array([3, -7, 2, -2, 5, 9, -3, 4, 10, 7], np.int32)


def item(text, arrays, **options):
    program = verify(expression(text, infer_types(arrays), **options).program).program
    count = len(next(iter(arrays.values())))
    return execute(program, [arrays[s.name] for s in program.inputs], [], [], 0, count)


def value(text, **arrays):
    result = item(text, arrays)
    assert result.fault is None, result.fault
    return result.outputs[0] if result.outputs else result.accumulators[0]


def same(got, want):
    want = np.asarray(want)
    assert got.dtype == want.dtype
    np.testing.assert_array_equal(got, want)
    if want.dtype.kind == "f":
        numbers = ~np.isnan(want)
        np.testing.assert_array_equal(np.signbit(got)[numbers], np.signbit(want)[numbers])


FLOAT_FORMULAS = [
    "f + g", "f - g", "f * g", "f / g", "-f", "+f", "f // g", "f % g", "f < g", "f <= g", "f == g", "f != g", "f > g", "f >= g",
    "2*f + 1", "f*f*f - 2.5*g", "(f - g) / (f*f + 1)", "1 / f", "f - 0.1", "-f*g - -g", "f**2", "f**0", "f**1", "f**-1", "f**3.0",
    "(f > 0) & (g > 0)", "(f > 0) | (g > 0)", "(f > 0) ^ (g > 0)", "~(f > g)", "(f > 0) == (g > 0)",
    "2*f + where(g > 0, sqrt(abs(g)), 0)", "where(f > g, f, g)", "where(f > 0, 1, 2) * g", "f // 0.5", "f % 3", "f % -3",
]  # fmt: skip


@pytest.mark.parametrize("text", FLOAT_FORMULAS)
@pytest.mark.parametrize("dtype", [np.float32, np.float64])
def test_a_float_formula_gives_numpys_bits(text, dtype):
    f, g = F.astype(dtype), G.astype(dtype)

    def where(c, a, b):
        return np.where(c, *(np.asarray(x, dtype) for x in (a, b)))

    with np.errstate(all="ignore"):
        want = eval(text, {"f": f, "g": g, "where": where, "sqrt": np.sqrt, "abs": np.abs})
    same(value(text, f=f, g=g), want)


@pytest.mark.parametrize(
    "text",
    ["i + j", "i - j", "i * j", "i & j", "i | j", "i ^ j", "~i", "-i", "i // j", "i % j", "i / j", "i // 7", "i % 7", "i // 8",
     "i % 8", "i // -7", "i % -7", "i % 1", "i // 1", "i << 3", "i >> 3", "i**2", "i**5", "i < j", "i == 7", "i + 2.5", "i / 2",
     "i // 2 + j % 3", "min(i, j)", "max(i, j)", "i >= -7"],
)  # fmt: skip
@pytest.mark.parametrize("dtype", [np.int32, np.int64])
def test_an_integer_formula_gives_numpys_bits(text, dtype):
    i, j = I.astype(dtype), J.astype(dtype)
    with np.errstate(all="ignore"):
        want = eval(text, {"i": i, "j": j, "min": np.minimum, "max": np.maximum})
    same(value(text, i=i, j=j), want)


@pytest.mark.parametrize(
    "text", ["i // j", "i % j", "i / j", "i < j", "i >> 3", "i * j + 1", "min(i, j)", "-i", "i + 0.5", "i % 10"]
)
@pytest.mark.parametrize("dtype", [np.uint32, np.uint64])
def test_unsigned_integers_are_divided_compared_and_shifted_as_unsigned(text, dtype):
    i, j = I.astype(dtype), J.astype(dtype)
    same(value(text, i=i, j=j), eval(text, {"i": i, "j": j, "min": np.minimum}))


NUMPY = {"b": "bool", "i": "int32", "u": "uint32", "l": "int64", "m": "uint64", "f": "float32", "d": "float64"}


@pytest.mark.parametrize(
    ("text", "result"),
    [
        ("f + 2.5", "f"), ("2.5 * f", "f"), ("f + 1", "f"), ("f * d", "d"), ("i + f", "d"), ("u + f", "d"), ("l + f", "d"),
        ("m + d", "d"), ("i / i", "d"), ("u / 2", "d"), ("i + u", "l"), ("i + l", "l"), ("u + l", "l"), ("u + m", "m"), ("i + 1", "i"),
        ("m + 1", "m"), ("i * 0.5", "d"), ("f > 1", "b"), ("i < d", "b"), ("where(b, i, f)", "d"), ("where(b, 1, f)", "f"), ("1 + 2", "l"),
        ("1 + 2.0", "d"), ("sqrt(i)", "d"), ("abs(u)", "u"), ("floor(i)", "i"), ("f32(i)", "f"), ("i32(f)", "i"), ("u32(i)", "u"),
        ("bits(f)", "u"), ("from_bits(l)", "d"), ("popcount(l)", "l"), ("index()", "l"), ("where(b, 1, 0) * f", "f"), ("bool(i)", "b"),
        ("fma(i, i, i)", "d"), ("i % 7", "i"), ("i // u", "l"), ("min(f, 1)", "f"), ("copysign(f, d)", "d"), ("u8(i)", "i"),
    ],
)  # fmt: skip
def test_the_type_of_a_result_follows_decision_12(text, result):
    program = compile_expression(text, NUMPY)
    verify(program)
    assert program.outputs[0].dtype is memory_type(NUMPY[result])


@pytest.mark.parametrize("text", ["m + i", "m < l", "where(b, m, l)", "i + b", "-b", "b * 2", "f & f", "f << 1", "not f", "f and b", "~f",
                                  "where(f, 1, 2)", "i ** i", "d ** d", "d ** 0.5", "tanh(d)", "popcount(f)", "bits(i)", "i32_sat(i)",
                                  "b < b", "abs(b)", "sqrt(b)", "f16(f)", "i ** -1", "i << 32", "i >> -1", "i + 3000000000", "u + -1",
                                  "u < -1", "i * 2**40", "f + 1e39", "i % 2147483648", "1 / 0", "1 % 0", "2 ** 65", "2 ** 2 ** 2 ** 2 ** 2"])  # fmt: skip
def test_what_has_no_type_is_refused_with_its_column(text):
    with pytest.raises(CompileError, match=r"^<expression>:1:\d+: "):
        compile_expression(text, NUMPY)


def test_a_refusal_names_the_column_of_the_operator_to_blame():
    for text, column in [
        ("f + (i & f) * 2", 8),
        ("i * 2 - b", 7),
        ("f + sqrt(b)", 5),
        ("f < x", 5),
        ("f +", 4),
        ("-b + f", 1),
        ("i*3 ** i", 5),
    ]:
        with pytest.raises(CompileError, match=rf"^<expression>:1:{column}: "):
            compile_expression(text, NUMPY)


def test_int64_beside_a_float_is_rounded_once_like_numpy():
    big = np.array([2**53 + 1, 2**62 + 257, -(2**63), 2**63 - 1], np.int64)
    f = np.array([0.5, 1, 2, 3], np.float32)
    same(value("big + f", big=big, f=f), big + f)
    same(value("big / 3", big=big), big / 3)
    same(value("m / 3", m=big.astype(np.uint64)), big.astype(np.uint64) / 3)


def test_a_large_integer_literal_becomes_the_nearest_f32_in_one_rounding():
    f = np.zeros(1, np.float32)
    for literal in (2**24 + 1, 2**60 + 2**36 + 1, 2**63 - 1, 2**54 + 2**30 + 1):
        exact = min((abs(int(c) - literal), int(c) // 2**0 % 2, c) for c in _neighbours(literal))[2]
        assert value(f"f + {literal}", f=f)[0] == exact


def _neighbours(number):
    near = np.float32(number)
    return [np.nextafter(near, np.float32(-np.inf)), near, np.nextafter(near, np.float32(np.inf))]


@pytest.mark.parametrize("text", ["i // j", "i % j", "i // 0", "i % 0"])
def test_integer_division_by_zero_traps(text):
    i, j = I.copy(), J.copy()
    j[4] = 0
    fault = item(text, {"i": i, "j": j}).fault
    assert (fault.code, fault.element) == (FaultCode.divide_by_zero, 4 if "j" in text else 0)


@pytest.mark.parametrize("text", ["i // j", "i % j", "i // -1"])
def test_the_one_overflow_of_signed_division_traps(text):
    i, j = I.copy(), np.full_like(J, -1)
    assert item(text, {"i": i, "j": j}).fault.code == FaultCode.overflow


def test_casts_wrap_integers_round_floats_and_trap_outside():
    i = np.array([300, -1, 70000, 128], np.int32)
    same(value("u8(i)", i=i), (i & 255).astype(np.int32))
    same(value("i8(i)", i=i), i.astype(np.int8).astype(np.int32))
    same(value("i16(i)", i=i), i.astype(np.int16).astype(np.int32))
    same(value("u32(i)", i=i), i.astype(np.uint32))
    same(value("u64(i)", i=i), i.astype(np.uint64))
    same(value("i32(l)", l=np.array([2**32 + 5], np.int64)), np.array([5], np.int32))
    same(value("i32(f)", f=np.array([-2.9, 2.9], np.float32)), np.array([-2, 2], np.int32))
    assert item("i32(f)", {"f": np.array([1, 3e9], np.float32)}).fault.code == FaultCode.overflow
    assert item("i32(f)", {"f": np.array([np.nan], np.float32)}).fault.code == FaultCode.invalid_conversion
    same(value("i32_sat(f)", f=np.array([3e9, -3e9, np.nan], np.float32)), np.array([2**31 - 1, -(2**31), 0], np.int32))
    same(value("f32(d)", d=np.array([0.1, 1e300])), np.array([0.1, np.inf], np.float32))
    same(value("bool(d)", d=np.array([0.0, -0.0, np.nan, 2])), np.array([False, False, True, True]))


def test_min_and_max_propagate_nan():
    f, g = np.array([1, np.nan, 3], np.float32), np.array([np.nan, 2, 4], np.float32)
    assert np.isnan(value("min(f, g)", f=f, g=g)[:2]).all()
    assert value("max(f, g, 10)", f=f, g=g)[2] == 10


def test_comparisons_chain_as_in_python():
    f = np.arange(-3, 4, dtype=np.float32)
    same(value("-2 < f <= 1 != 0 and f != 0", f=f), (f > -2) & (f <= 1) & (f != 0))
    same(value("not 0 < f < 3", f=f), ~((f > 0) & (f < 3)))


PRECEDENCE = ["-f**2", "2**-f**2" , "f - g - f", "f / g / 2", "f - g * f + g", "-f * -g", "2 + 3 * f ** 2 - 1", "f + g < g - f",
              "(f > 0) & (g > 0) | (f < g)", "not f > g", "1 - -f", "~(f > g) ^ (f > 0)", "f ** 2 ** 1", "(((f)))"]  # fmt: skip


@pytest.mark.parametrize("text", PRECEDENCE)
def test_operators_bind_as_in_python(text):
    f, g = np.array([0.5, 1, 2, 4], np.float32), np.array([0.25, -7, 2, 0.5], np.float32)
    want = eval(text.replace("not f > g", "~(f > g)"), {"f": f.astype(np.float64), "g": g.astype(np.float64)})
    got = value(text, f=f, g=g)
    np.testing.assert_allclose(got.astype(np.float64), np.asarray(want, np.float64), rtol=1e-5)


def test_reductions_are_the_whole_expression():
    f = np.arange(10, dtype=np.float32)
    assert value("sum(f * f)", f=f) == (f.astype(np.float64) ** 2).sum()
    assert value("min(f - 3)", f=f) == -3
    assert value("max(f)", f=f).dtype == np.float32
    assert value("count(f > 3)", f=f) == 6
    assert value("sum(f > 3)", f=f) == 6
    for text in ("1 + sum(f)", "sum(sum(f))", "sum(f) * 2", "(sum(f))", "sum()", "sum(f, f)", "prod(f)"):
        with pytest.raises(CompileError):
            expression(text, {"f": "f32"})


def test_equal_subexpressions_are_computed_once():
    program = compile_expression("sqrt(a*a + b*b) / (a*a + b*b) + 2.0*a + 2*b", {"a": "f32", "b": "f32"})
    names = [instr.op for instr in program.code]
    assert (
        len(program.code) == 2 + 2 + 1 + 1 + 2 + 1 + 1 + 1 + 1 + 2
    )  # loads, products, +, sqrt, /, 2.0, 2*, +, +, store, return
    assert len(set(names)) < len(names)


def test_an_instruction_shared_by_two_types_keeps_the_type_of_each():
    u, v = np.array([2**32 - 1], np.uint32), np.zeros(1, np.uint32)
    same(value("f64(u + v) - f64(i32(u) + i32(v))", u=u, v=v), np.array([2.0**32]))
    b, c = np.array([True]), np.array([True])
    same(value("where(b & c, 2, 3) * (i32(b) & i32(c))", b=b, c=c), np.array([2], np.int32))


def test_many_values_fit_into_64_registers_or_are_refused():
    many = " + ".join(f"sqrt(a + {n})" for n in range(300))
    program = compile_expression(many, {"a": "f64"})
    assert len(program.registers) <= 64
    verify(program)
    deep = "".join(f"(a + {n}) * (" for n in range(150)) + "a" + ")" * 150
    with pytest.raises(CompileError, match="registers"):
        compile_expression(deep, {"a": "f64"})


def test_parameters_and_memory_types():
    program = compile_expression("k * x + h", {"k": "f32", "x": np.float32, "h": vyre.f16}, params=("k",))
    assert [p.name for p in program.params] == ["k"]
    assert [(s.name, s.dtype) for s in program.inputs] == [("x", MemType.f32), ("h", MemType.f16)]
    with pytest.raises(CompileError, match="parameter 'k' is f16"):
        compile_expression("k + 1", {"k": "f16"}, params=("k",))
    assert compile_expression("a + b").outputs[0].dtype is MemType.f64


def test_infer_types_takes_dtypes_and_refuses_others():
    found = infer_types({"a": np.zeros(1, np.uint16), "b": 2.0, "c": True, "d": 3})
    assert found == {"a": MemType.u16, "b": MemType.f64, "c": MemType.bool, "d": MemType.i64}
    for wrong in (np.zeros(1, complex), np.zeros(1, ">f4"), "text", np.array(["x"])):
        with pytest.raises(CompileError, match="not a type of vyre"):
            infer_types({"a": wrong})


NASTY = [
    "__import__('os').system('true')", "().__class__", "a.__class__", "a.real", "lambda: a", "[a for a in b]", "{a: a}", "{a}", "[a]",
    "a[0]", "(a, b)", "a if b else a", "(a := 1)", "f'{a}'", "'a'", '"a"', "b'a'", "await a", "yield a", "*a", "**a", "a, b", "a;b",
    "a\nimport os", "a#b", "a\\", "print(a)", "exec('1')", "open('x')", "eval(a)", "abs", "sqrt", "sqrt(x=a)", "sqrt(*a)", "a.b(c)",
    "a is b", "a in b", "not", "None", "...", "a @ b", "a = b", "a == = b", "a b", "a 1", "1 a", "1.2.3", "1_0", "0x", "0b12", "07",
    "1e", "1e999", "1j", "9" * 65, "9" * 5000, "10**10**10", "2**64", "1 << 64", "(" * 5000, ")" * 5000, "(" * 5000 + ")" * 5000,
    "-" * 5000, "a" * 5000, "a+" * 5000, "sqrt(" * 5000, "a\0", "\0", "", " ", "\n", "\u00a0", "ａ", "a\u200b", "а + 1", "\ud800", "a\u2028b",
    ",", "()", "sqrt()", "sqrt(,)", "sqrt(a,)", "where(a,,b)", "min(a,b", "a)", "a(b)", "1(a)", "(a)(b)", "!a", "a !", "a ? b : c",
    "$a", "a`", "index(a)", "not not", "a not b", "a and", "~", "a <> b", "a === b", "a -> b", "a ** ", "%", "a//", "if", "True.real",
    "f32", "count(", "self", "os", "vyre", "numpy",
]  # fmt: skip


@pytest.mark.parametrize("text", NASTY, ids=[ascii(t)[:30] for t in NASTY])
def test_a_strangers_text_is_refused_with_a_place_and_runs_nothing(text):
    started = time.perf_counter()
    with pytest.raises(CompileError, match=r"^<expression>:\d+:\d+: ") as caught:
        expression(text, {"a": "f32", "b": "f32"})
    assert time.perf_counter() - started < 0.5
    assert len(str(caught.value)) < 2_000


def test_a_text_beyond_its_bounds_is_refused():
    with pytest.raises(CompileError, match=f"at most {MAX_TEXT}"):
        expression("a" * (MAX_TEXT + 1), {"a": "f32"})
    with pytest.raises(CompileError, match=f"more than {MAX_DEPTH} open"):
        expression("(" * (MAX_DEPTH + 1) + "a" + ")" * (MAX_DEPTH + 1), {"a": "f32"})
    assert expression("(" * MAX_DEPTH + "a" + ")" * MAX_DEPTH, {"a": "f32"}).program
    with pytest.raises(CompileError, match="8 instructions; at most 6"):
        expression("a * b + a * 2", {"a": "f32", "b": "f32"}, max_instructions=6)
    with pytest.raises(CompileError, match="str"):
        expression(7, {})


def test_the_longest_text_is_compiled_or_refused_in_little_time():
    for text in (
        "a+" * 32_000 + "a",
        "a//" * 20_000 + "a",
        "a%b//" * 12_000 + "a",
        "-" * 65_000 + "a",
        "where(a>0,1," * 190 + "2" + ")" * 190,
    ):
        started = time.perf_counter()
        try:
            expression(text, {"a": "f32", "b": "f32"})
        except CompileError:
            pass
        assert time.perf_counter() - started < 10


def test_names_of_functions_may_be_names_of_columns():
    f = np.arange(4, dtype=np.float32)
    same(value("count + abs(sum) * min", count=f, sum=-f, min=f), f + f * f)


def test_a_compiled_expression_pickles_compares_and_says_how_to_run_it():
    a, b = expression("x + 1", {"x": "f32"}), expression("x+1", {"x": "f32"})
    assert a == b
    assert hash(a) == hash(b)
    assert pickle.loads(pickle.dumps(a)) == a
    assert a != expression("x + 2", {"x": "f32"})
    assert a.inputs == ("x",)
    with pytest.raises(CompileError, match="run over arrays") as caught:
        a(1.0)
    assert "vyre.run(" in caught.value.fix


def test_the_same_text_and_types_are_compiled_once():
    assert expression("x * 3 + 1", {"x": "f32"}) is expression("x * 3 + 1", {"x": "f32"})
    assert expression("x * 3 + 1", {"x": "f64"}) is not expression("x * 3 + 1", {"x": "f32"})


def test_functions_of_vyre_cannot_be_called_outside_a_program():
    for name in (*vyre.FUNCTIONS, *vyre.TYPES):
        with pytest.raises((CompileError, TypeError)), warnings.catch_warnings():
            getattr(vyre, name)(1)
    with pytest.raises(CompileError, match="outside a program"):
        vyre.sqrt(2.0)
    with pytest.raises(CompileError, match="outside a program"):
        vyre.f32(2.0)
