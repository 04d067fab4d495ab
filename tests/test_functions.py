"""Elementary functions and rem: error bounds against mpmath, special values, shape of the bodies, expansion into programs.

Bodies are executed by the reference engine. How many points a bound was really measured on (all 2**32 of them for f32) is said
in docs/functions.md; what is here is the share that runs in seconds: random, structured and hardest known points.
"""

from __future__ import annotations

import dataclasses
import math
import re
import subprocess
import sys
from fractions import Fraction
from pathlib import Path

import mpmath as mp
import numpy as np
import pytest

from vyre.engines.reference import execute
from vyre.program import function_bodies, function_tables
from vyre.program.builder import Builder
from vyre.program.function_trace import count_ops
from vyre.program.functions import BODIES, MAX_INLINE_REGISTERS, inline
from vyre.program.ir import Program
from vyre.program.opcodes import BY_CODE, BY_NAME, CANONICAL_NAN, OPCODES, FaultCode, Group, MemType, Type

INF, NAN = math.inf, math.nan
NAMES = [op.name for op in OPCODES if op.group is Group.function]
FLOAT = {"f32": np.float32, "f64": np.float64}
BITS = {"f32": np.uint32, "f64": np.uint64}
PRECISION = {"f32": (24, -149), "f64": (53, -1074)}  # bits of a significand, exponent of the least subnormal
BOUND = {"f32.exp": 0.51, "f32.log": 0.51, "f32.sin": 0.51, "f32.cos": 0.51, "f32.tanh": 0.51, "f32.pow": 0.51} | {
    "f64.exp": 1.0, "f64.log": 1.0, "f64.sin": 2.0, "f64.cos": 2.0,
}  # fmt: skip


def program_of(name: str) -> Program:
    """A program that is one call."""
    t = name[:3]
    b = Builder("one")
    args = [b.op(f"{t}.load", imm=b.input("xyz"[i], MemType[t])) for i in range(len(BY_NAME[name].args))]
    b.op(f"{t}.store", b.op(name, *args), imm=b.output("value", MemType[t]))
    return b.build()


def call(name: str, *operands: object) -> np.ndarray:
    """The function of arrays, by the reference engine."""
    arrays = [np.ascontiguousarray(x, FLOAT[name[:3]]) for x in np.broadcast_arrays(*operands)]
    return execute(program_of(name), arrays, [], [], 0, len(arrays[0])).outputs[0]


def ulps(t: str, got: float, exact: mp.mpf) -> float:
    """Distance in units of the last place that ``exact`` would have in type ``t``; infinity counts as 2**emax."""
    bits, least = PRECISION[t]
    if got == exact:
        return 0.0
    if math.isinf(got):
        got_exact = mp.ldexp(mp.sign(got), 128 if t == "f32" else 1024)
        if abs(exact) >= abs(got_exact):
            return 0.0 if mp.sign(exact) == mp.sign(got_exact) else INF
    else:
        got_exact = mp.mpf(got)
    unit = max(least, mp.frexp(exact)[1] - bits) if exact else least
    return float(abs(got_exact - exact) / mp.ldexp(1, unit))


def any_bits(t: str, count: int, seed: int) -> np.ndarray:
    """Random bit patterns that are finite numbers."""
    x = np.random.default_rng(seed).integers(0, np.iinfo(BITS[t]).max, 2 * count, BITS[t]).view(FLOAT[t])
    return x[np.isfinite(x)][:count]


def neighbours(t: str, *centers: float) -> np.ndarray:
    """Each center with the floats up to 3 steps around it, both signs."""
    found = []
    for center in centers:
        bits = int(FLOAT[t](center).view(BITS[t]))
        found += [b for b in range(bits - 3, bits + 4) if 0 <= b < np.iinfo(BITS[t]).max // 2]
    x = np.array(found, BITS[t]).view(FLOAT[t])
    x = x[np.isfinite(x)]
    return np.concatenate([x, -x])


def nearest_to_multiples_of_half_pi(t: str) -> np.ndarray:
    """For each exponent the m 2**e that come nearest to a multiple of pi/2: denominators of the convergents of 2**e 2/pi."""
    bits, least = PRECISION[t]
    hardest = []
    with mp.workprec(1400):
        turns = 2 / mp.pi
        for e in range(least + bits, (128 if t == "f32" else 1024) - bits + 1, 1 if t == "f32" else 7):
            x = mp.frac(mp.ldexp(turns, e))
            before, now = 0, 1
            while now < 1 << bits:
                hardest.append(math.ldexp(now, e))
                if x < mp.ldexp(1, -200):
                    break
                whole = int(mp.floor(1 / x))
                x = 1 / x - whole
                before, now = now, whole * now + before
    keep = sorted(set(hardest))
    return np.array(keep[:: max(1, len(keep) // 1500)] + [math.ldexp(6381956970095103, 797)] * (t == "f64"))


def points(name: str) -> np.ndarray:
    """Arguments for a function of one: anything, its interesting range, neighbourhoods of edges."""
    t, verb = name.split(".")
    rng = np.random.default_rng(7)
    edges = neighbours(t, 0.0, 1.0, 2.0, 0.5, 0.5**0.5, 2**0.5, 1e-3, 2.0**-126, 2.0**-149)
    ranges = {
        "exp": [(-1, 1), (-88, 89) if t == "f32" else (-708, 710), (-104, -86) if t == "f32" else (-746, -707)],
        "log": [(0.5, 2), (0, 100), (0.99, 1.01)],
        "tanh": [(-10, 10), (-1e-3, 1e-3)],
        "sin": [(-4, 4), (-1000, 1000), (-(2.0**34), 2.0**34), (2.0**39, 2.0**41)],
    }
    ranges["cos"] = ranges["sin"]
    parts = [any_bits(t, 700, 1), edges, *(rng.uniform(*r, 500) for r in ranges[verb])]
    if verb == "exp":
        top, bottom = (88.72284, -103.97208) if t == "f32" else (709.782712893384, -745.1332191019411)
        parts.append(neighbours(t, top, bottom, 87.33655 if t == "f32" else 708.3964185322641))
    if verb == "log":
        parts = [np.abs(p) for p in parts] + [1 + np.ldexp(rng.uniform(-1, 1, 500), -rng.integers(1, 40, 500))]
        parts.append(np.arange(1, 60, dtype=BITS[t]).view(FLOAT[t]))  # subnormals
    if verb in ("sin", "cos"):
        parts.append(nearest_to_multiples_of_half_pi(t))
    x = np.concatenate([np.asarray(p, FLOAT[t]) for p in parts])
    return x[x > 0] if verb == "log" else x


@pytest.mark.parametrize("name", [n for n in BOUND if n != "f32.pow"])
def test_a_function_of_one_stays_within_its_bound(name):
    t, verb = name.split(".")
    x = points(name)
    got = call(name, x)
    exact = getattr(mp, verb)
    with mp.workprec(1300 if verb in ("sin", "cos") else 160):
        errors = [ulps(t, float(g), exact(mp.mpf(float(a)))) for a, g in zip(x, got, strict=True)]
    worst = int(np.argmax(errors))
    assert max(errors) <= BOUND[name], (
        f"{name}({float(x[worst]).hex()}) = {float(got[worst]).hex()}: {errors[worst]} ulp"
    )


def pow_points() -> tuple[np.ndarray, np.ndarray]:
    """Positive bases with exponents that give results over the whole range; near 1; edges of overflow; exact results."""
    rng = np.random.default_rng(11)
    near_one = 1 + rng.integers(-1000, 1000, 1000) * 2.0**-24
    x = np.concatenate([np.abs(any_bits("f32", 1500, 5)), rng.uniform(0.5, 2, 1000), near_one]).astype(np.float32)
    x = x[(x > 0) & (x != 1)]
    exponent = np.where(
        rng.random(len(x)) < 0.8, rng.uniform(-152, 130, len(x)), rng.choice([128.0, -126.0, -149.5], len(x))
    )
    with np.errstate(over="ignore"):
        y = (exponent / np.log2(x.astype(np.float64))).astype(np.float32)
    small = np.array([(a, b) for a in (2, 3, 5, 0.5, 1.5, 10, 7) for b in range(-12, 13)], np.float32)
    x, y = np.concatenate([x, small[:, 0]]), np.concatenate([y, small[:, 1]])
    return x[np.isfinite(y)], y[np.isfinite(y)]


def test_pow_stays_within_its_bound():
    x, y = pow_points()
    got = call("f32.pow", x, y)
    worst = 0.0
    with mp.workprec(200):
        for a, b, g in zip(x, y, got, strict=True):
            worst = max(worst, ulps("f32", float(g), mp.power(mp.mpf(float(a)), mp.mpf(float(b)))))
    assert worst <= BOUND["f32.pow"]


@pytest.mark.parametrize("y", [-7.0, -2.0, -1.0, 3.0, 4.0, 16777215.0, 16777216.0, 8388607.5, 0.5, -0.25, 1e30])
def test_pow_of_a_negative_base_has_the_sign_of_an_odd_exponent_and_nan_for_a_broken_one(y):
    x = np.array([0.5, 1.0, 1.25, 3.0, 1e-3, 2.0**-149, 3e38], np.float32)
    positive, negative = call("f32.pow", x, y), call("f32.pow", -x, y)
    if not float(y).is_integer():
        assert np.isnan(negative).all()
    else:
        assert same_bits(negative, -positive if y % 2 else positive)


def same_bits(a: np.ndarray, b: np.ndarray) -> bool:
    kind = BITS["f32" if a.dtype == np.float32 else "f64"]
    return np.array_equal(np.asarray(a).view(kind), np.asarray(b, a.dtype).view(kind))


ONE_SPECIAL = [
    ("exp", -INF, 0.0), ("exp", INF, INF), ("exp", 0.0, 1.0), ("exp", -0.0, 1.0), ("exp", NAN, NAN),
    ("exp", 1e30, INF), ("exp", -1e30, 0.0),
    ("log", 0.0, -INF), ("log", -0.0, -INF), ("log", INF, INF), ("log", 1.0, 0.0), ("log", -1.0, NAN), ("log", -INF, NAN),
    ("log", -1e-45, NAN), ("log", -1e-320, NAN), ("log", NAN, NAN),
    ("sin", 0.0, 0.0), ("sin", -0.0, -0.0), ("sin", INF, NAN), ("sin", -INF, NAN), ("sin", NAN, NAN),
    ("cos", 0.0, 1.0), ("cos", -0.0, 1.0), ("cos", INF, NAN), ("cos", -INF, NAN), ("cos", NAN, NAN),
    ("tanh", 0.0, 0.0), ("tanh", -0.0, -0.0), ("tanh", INF, 1.0), ("tanh", -INF, -1.0), ("tanh", 9.5, 1.0),
    ("tanh", -1e30, -1.0), ("tanh", NAN, NAN),
]  # fmt: skip


ONE_SPECIAL_TYPED = [
    (f"{t}.{verb}", x, result)
    for verb, x, result in ONE_SPECIAL
    for t in FLOAT
    if f"{t}.{verb}" in NAMES and (x == 0 or FLOAT[t](x) != 0)
]


@pytest.mark.parametrize(("name", "x", "result"), ONE_SPECIAL_TYPED)
def test_a_special_argument_gives_its_stated_bits(name, x, result):
    got = call(name, [x])
    assert same_bits(got, np.array([result], got.dtype)), got


def test_pow_keeps_every_special_case_of_c99():
    rows = [
        (1.0, NAN, 1.0), (NAN, 0.0, 1.0), (NAN, -0.0, 1.0), (INF, 0.0, 1.0), (0.0, 0.0, 1.0), (-0.0, -0.0, 1.0),
        (-1.0, INF, 1.0), (-1.0, -INF, 1.0), (1.0, INF, 1.0), (1.0, -INF, 1.0), (-INF, 0.0, 1.0), (-2.0, -0.0, 1.0),
        (NAN, 1.0, NAN), (2.0, NAN, NAN), (-1.0, NAN, NAN), (0.0, NAN, NAN), (NAN, INF, NAN), (NAN, NAN, NAN),
        (0.0, 3.0, 0.0), (-0.0, 3.0, -0.0), (0.0, 2.0, 0.0), (-0.0, 2.0, 0.0), (-0.0, 2.5, 0.0), (0.0, 0.5, 0.0),
        (0.0, -3.0, INF), (-0.0, -3.0, -INF), (-0.0, -2.0, INF), (-0.0, -2.5, INF), (0.0, -1e-45, INF), (0.0, 1e-45, 0.0),
        (0.0, INF, 0.0), (-0.0, INF, 0.0), (0.0, -INF, INF), (-0.0, -INF, INF),
        (0.5, INF, 0.0), (-0.5, INF, 0.0), (2.0, INF, INF), (-2.0, INF, INF), (0.99999994, INF, 0.0), (1.0000001, INF, INF),
        (0.5, -INF, INF), (-0.5, -INF, INF), (2.0, -INF, 0.0), (-2.0, -INF, 0.0), (1.0000001, -INF, 0.0),
        (INF, 2.0, INF), (INF, 1e-45, INF), (INF, -1e-45, 0.0), (INF, -3.0, 0.0), (INF, INF, INF), (INF, -INF, 0.0),
        (-INF, 3.0, -INF), (-INF, 2.0, INF), (-INF, 2.5, INF), (-INF, -3.0, -0.0), (-INF, -2.0, 0.0), (-INF, -2.5, 0.0),
        (-INF, INF, INF), (-INF, -INF, 0.0), (-8.0, 1 / 3, NAN), (-1.0, 0.5, NAN), (-1e-45, -0.5, NAN), (-3e38, 8388607.5, NAN),
        (-1.0, 16777215.0, -1.0), (-1.0, 16777216.0, 1.0), (-1.0, 3.4e38, 1.0), (-2.0, 127.0, -(2.0**127)), (-2.0, 129.0, -INF),
        (-2.0, -149.0, -(2.0**-149)), (-2.0, -151.0, -0.0), (-2.0, 128.0, INF), (2.0, -150.0, 0.0), (4.0, 0.5, 2.0), (10.0, 2.0, 100.0),
    ]  # fmt: skip
    x, y, _ = (np.array(column, np.float32) for column in zip(*rows, strict=True))
    got = call("f32.pow", x, y)
    wrong = [(*row, g) for row, g in zip(rows, got, strict=True) if not same_bits(np.array([g]), np.array(row[2:]))]
    assert not wrong


def rem_pairs(t: str) -> tuple[np.ndarray, np.ndarray]:
    """Anything with anything, all special pairs, equal exponents, products and their neighbours, the largest quotients."""
    largest, least = float(np.finfo(FLOAT[t]).max), float(np.finfo(FLOAT[t]).smallest_subnormal)
    special = [0.0, 1.0, 3.0, 0.1, INF, NAN, largest, least, 3 * least, float(np.finfo(FLOAT[t]).tiny), 1e20, 1e-20]
    special += [-s for s in special]
    rng = np.random.default_rng(3)
    x, y = any_bits(t, 3000, 8), any_bits(t, 3000, 9)
    k = np.floor(np.ldexp(rng.random(1000), rng.integers(0, 60, 1000)))
    with np.errstate(over="ignore"):
        product = (y[:1000] * k).astype(FLOAT[t])
    tiny = np.arange(1, 400, dtype=BITS[t]).view(FLOAT[t])
    huge = np.full(399, largest, FLOAT[t]) * rng.uniform(0.25, 1, 399).astype(FLOAT[t])
    xs = [
        x,
        [a for a in special for _ in special],
        product,
        np.nextafter(product, FLOAT[t](0)),
        huge,
        x[:1000] * FLOAT[t](0) + x[0],
    ]
    ys = [y, special * len(special), y[:1000], y[:1000], tiny, rng.uniform(0.5, 2, 1000) * x[0]]
    return np.concatenate(xs).astype(FLOAT[t]), np.concatenate(ys).astype(FLOAT[t])


@pytest.mark.parametrize("t", ["f32", "f64"])
def test_rem_is_exact(t):
    x, y = rem_pairs(t)
    got = call(f"{t}.rem", x, y)
    for a, b, g in zip(x.tolist(), y.tolist(), got, strict=True):
        if math.isnan(a) or math.isnan(b) or math.isinf(a) or b == 0:
            expected = NAN
        elif math.isinf(b):
            expected = a
        else:
            rest = abs(Fraction(a)) % abs(Fraction(b))
            expected = math.copysign(float(rest), a)
            assert Fraction(abs(expected)) == rest, "every remainder is a float"
        assert same_bits(np.array([g]), np.array([expected], FLOAT[t])), f"{a.hex()} rem {b.hex()}: {g}, not {expected}"


@pytest.mark.parametrize("name", NAMES)
def test_any_nan_gives_the_canonical_one(name):
    t, count = name[:3], len(BY_NAME[name].args)
    canonical = CANONICAL_NAN[Type[t]]
    quiet = {
        "f32": [0x7FC00001, 0xFFC00000, 0x7F800001, 0xFF812345],
        "f64": [0x7FF8 << 48 | 5, 0xFFF8 << 48, 0x7FF0 << 48 | 1, 0xFFF1 << 48],
    }
    nans = np.array(quiet[t], BITS[t]).view(FLOAT[t])
    for place in range(count):
        operands = [nans if i == place else np.full(4, 2.5, FLOAT[t]) for i in range(count)]
        assert call(name, *operands).view(BITS[t]).tolist() == [canonical] * 4


# --- bodies ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NAMES)
def test_a_body_has_the_shape_that_engines_rely_on(name):
    f = BODIES[name]
    op = BY_NAME[name]
    code = f.program.code
    assert (f.args, f.result) == (op.args, op.result)
    assert f.program.registers[: len(f.args)] == f.args
    names = [BY_CODE[i.op].name for i in code]
    assert names[-1] == "return"
    assert "loop" not in names, "a loop would burn the caller's fuel"
    assert "else" not in names
    assert [n.endswith(".const") for n in names] == [i < f.constants for i in range(len(names))], "constants come first"
    written = [i.dst for i in code if BY_CODE[i.op].result is not None]
    assert min(written) >= len(f.args), "arguments are never written"
    assert code[-2].dst == f.result_register
    assert written.count(f.result_register) == 1
    assert all(written.count(i.dst) == 1 for i in code[: f.constants])
    assert not [n for n in names if BY_NAME[n].traps and not n.endswith("table_get")]
    assert len(f.tables) == len(f.program.tables)
    assert len(f.program.registers) <= 64


@pytest.mark.parametrize("name", NAMES)
def test_the_docstring_counts_the_instructions_of_the_body(name):
    stated = re.search(r"Ops: (\d+)(?:, and (?:up to )?(\d+) behind)?", function_bodies.BUILDERS[name].__doc__)
    assert stated, "how many instructions a call costs is part of what is said about a function"
    assert count_ops(BODIES[name]) == (int(stated[1]), int(stated[2] or 0))


def test_the_page_of_functions_states_their_counts_and_bounds():
    page = (Path(__file__).parents[1] / "docs" / "functions.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| `(f\d\d\.\w+)` \| (\d+) \| (\d+) \| ([\w.]+) \| ([\d.]+) \|", page, re.M)
    assert {row[0]: (int(row[1]), int(row[2])) for row in rows} == {name: count_ops(BODIES[name]) for name in NAMES}
    for name, _, _, bound, seen in rows:
        assert bound == "exact" or float(seen) <= float(bound) == BOUND[name]


def test_the_coefficients_are_what_the_tool_computes():
    tool = Path(__file__).parents[1] / "tools" / "function_tables.py"
    written = subprocess.run([sys.executable, tool], capture_output=True, text=True, check=True, timeout=120).stdout
    assert written == Path(function_tables.__file__).read_text(encoding="utf-8")


def test_no_algorithm_is_loaded_before_a_function_is_called():
    code = "import sys, vyre.program.functions as f; len(f.BODIES), list(f.BODIES); print('vyre.program.function_tables' in sys.modules)"
    answer = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, timeout=60).stdout
    assert answer.strip() == "False"


def test_a_name_that_is_no_function_has_no_body():
    assert "f64.add" not in BODIES
    with pytest.raises(KeyError):
        BODIES["f32.tan"]


def without_ifs(program: Program) -> Program:
    """The same code with every ``if`` taken."""
    always = [i for i in program.code if BY_CODE[i.op].name not in ("if", "end")]
    return dataclasses.replace(program, code=tuple(always))


@pytest.mark.parametrize("name", [n for n in NAMES if BODIES[n].tables])
def test_the_inside_of_an_if_may_be_computed_for_any_argument(name):
    t = name[:3]
    body = BODIES[name]
    x = np.concatenate([any_bits(t, 2000, 31), neighbours(t, 0.0), np.array([INF, -INF, NAN], FLOAT[t])])
    first, b = len(body.args), Builder("eager")
    b.op(f"{t}.store", b.op(f"{t}.load", imm=b.input("x", MemType[t])), imm=b.output("value", MemType[t]))
    shell = b.build()
    store = shell.code[-2]._replace(a=body.result_register)
    eager = without_ifs(body.program)
    eager = dataclasses.replace(
        eager,
        inputs=shell.inputs,
        outputs=shell.outputs,
        code=(shell.code[0]._replace(dst=first - 1), *eager.code[:-1], store, eager.code[-1]),
    )
    tables = [
        np.array(c, np.uint64).view(np.float64 if d.dtype is MemType.f64 else np.int64)
        for c, d in zip(body.tables, eager.tables, strict=True)
    ]
    assert execute(eager, [x], [], tables, 0, len(x)).fault is None


# --- expansion ------------------------------------------------------------------------------------------------------


def run_both(program: Program, inputs: list[np.ndarray], tables: list[np.ndarray], keep: frozenset[str] = frozenset()):
    """Results of a program and of its expansion."""
    count = len(inputs[0])
    expanded, origin, contents = inline(program, keep)
    assert len(origin) == len(expanded.code)
    assert len(expanded.tables) == len(program.tables) + len(contents)
    more = [
        np.array(c, np.uint64).view(np.float64 if d.dtype is MemType.f64 else np.int64)
        for c, d in zip(contents, expanded.tables[len(program.tables) :], strict=True)
    ]
    return execute(program, inputs, [], tables, 0, count), execute(expanded, inputs, [], [*tables, *more], 0, count)


@pytest.mark.parametrize("name", NAMES)
def test_an_expanded_call_gives_the_same_bits(name):
    t = name[:3]
    operands = [any_bits(t, 500, 20 + i) for i in range(len(BY_NAME[name].args))]
    plain, expanded = run_both(program_of(name), operands, [])
    assert same_bits(plain.outputs[0], expanded.outputs[0])


def busy_program() -> Program:
    """Calls inside a loop and both branches of an if, a result in its own operand's register, a table of its own."""
    b = Builder("busy")
    x = b.op("f64.load", imm=b.input("x", MemType.f64))
    table = b.table("weights", MemType.f64)
    n = b.op("i32.trunc_sat_f64_s", x)
    n = b.op("i32.rem_u", n, b.const(Type.i32, 3))
    b.op("f64.sin", x, dst=x)
    b.if_(n)
    b.op("f64.add", x, b.op("f64.cos", x), dst=x)
    b.else_()
    b.op("f64.rem", x, b.const(Type.f64, 0.3), dst=x)
    b.end()
    b.loop()
    b.op("f64.exp", x, dst=x)
    b.op("f64.log", b.op("f64.add", x, b.const(Type.f64, 1.0)), dst=x)
    b.op("i32.sub", n, b.const(Type.i32, 1), dst=n)
    b.br_if(b.op("i32.gt_s", n, b.const(Type.i32, 0)))
    b.end()
    index = b.op("i64.trunc_sat_f64_u", x)
    b.op("f64.mul", x, b.op("f64.table_get", index, imm=table), dst=x)
    b.op("f64.store", x, imm=b.output("value", MemType.f64))
    return b.build()


@pytest.mark.parametrize("keep", [frozenset(), frozenset({"f64.exp", "f64.cos"})])
def test_calls_in_branches_and_loops_expand_to_the_same_bits(keep):
    x = np.concatenate([any_bits("f64", 500, 1), np.random.default_rng(1).uniform(-20, 20, 500)])
    plain, expanded = run_both(busy_program(), [x], [np.linspace(1, 2, 64)], keep)
    assert plain.fault is None
    assert same_bits(plain.outputs[0], expanded.outputs[0])


def test_a_fault_behind_expanded_calls_maps_to_its_own_place():
    program = busy_program()
    x = np.random.default_rng(1).uniform(-20, 20, 100)
    plain, expanded = run_both(program, [x], [np.ones(1)])
    origin = inline(program)[1]
    assert plain.fault is not None
    assert expanded.fault is not None
    assert plain.fault.code == expanded.fault.code == FaultCode.out_of_bounds
    assert (plain.fault.pc, plain.fault.element) == (origin[expanded.fault.pc], expanded.fault.element)


def test_all_functions_together_fit_the_registers_of_an_expanded_program():
    b = Builder("all")
    values = {t: b.op(f"{t.name}.load", imm=b.input(t.name, MemType[t.name])) for t in (Type.f32, Type.f64)}
    for i, name in enumerate(NAMES):
        op = BY_NAME[name]
        assert op.result is not None
        result = b.op(name, *[values[t] for t in op.args])
        b.op(f"{op.result.name}.store", result, imm=b.output(f"o{i}", MemType[op.result.name]))
    program = b.build()
    inputs = [any_bits("f32", 200, 1), any_bits("f64", 200, 2)]
    plain, expanded = run_both(program, inputs, [])
    assert len(inline(program)[0].registers) <= MAX_INLINE_REGISTERS
    assert all(same_bits(a, b) for a, b in zip(plain.outputs, expanded.outputs, strict=True))


def test_a_program_without_calls_is_its_own_expansion():
    b = Builder("none")
    b.op("f64.store", b.op("f64.load", imm=b.input("x", MemType.f64)), imm=b.output("y", MemType.f64))
    program = b.build()
    expanded, origin, tables = inline(program)
    assert expanded is program
    assert origin == tuple(range(len(program.code)))
    assert tables == ()
