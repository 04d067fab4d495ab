"""The native reader of formulas gives the program that program/expression gives, or no answer."""

import random
import subprocess
import sys

import pytest

from vyre.errors import CompileError
from vyre.program import expression, formula_form
from vyre.program.bytecode import encode
from vyre.program.expression import compile_expression
from vyre.program.opcodes import DEFAULT_FUEL
from vyre.program.words import described

TYPES = {
    "a": "f32", "b": "f32", "d": "f64", "e1": "f64", "i": "i32", "j": "i32", "u": "u32", "v": "u32", "l": "i64", "m": "u64", "p": "bool",
    "q": "bool", "h": "f16", "s": "i8", "a_name_of_many_characters": "f32", "a_name_of_many_letters": "f64", "min": "f32", "k": "f32",
    "n": "i64",
}  # fmt: skip
PARAMS = ("k", "n")
UNARY = ["-{}", "+{}", "~{}", "not {}", "- {}", "not({})", "-({})"]
BINARY = ["+", "-", "*", "/", "//", "%", "**", "<<", ">>", "&", "|", "^", "<", "<=", ">", ">=", "==", "!=", "and", "or"]
CALLS = ["sqrt({})", "exp({})", "tanh({})", "floor({})", "rint({})", "round( {} )", "abs({})", "absolute({})", "popcount({})", "clz({})",
         "f32({})", "f64({})", "double({})", "float ({})", "int({})", "i32({})", "u32({})", "i64({})", "u64({})", "bool({})", "bits({})",
         "from_bits({})", "u8({})", "i32_sat({})", "min({}, {})", "max({},{},{})", "maximum({}, {})", "minimum({} ,{})", "fmod({}, {})",
         "copysign({}, {})", "rotl({}, {})", "pow({}, {})", "where({}, {}, {})", "fma({}, {}, {})", "index()", "sum({})", "count({})"]  # fmt: skip
NUMBERS = ["0", "1", "2", "3", "7", "64", "2.5", "0.1", "1.", ".5", "1e3", "2.5e-3", "1E+2", "1e22", "1e23", "0.0", "-0.0", "4294967295",
           "4294967296", "2147483648", "9007199254740991", "9007199254740993", "18446744073709551615", "0x1F", "00", "07", "1e39",
           "3.4028234663852886e38", "3.4028235677973366e+38", "1e-45", "123456789.123456789", "0.30000000000000004", "True", "False"]  # fmt: skip
FLOATS = ["a", "b", "k", "a_name_of_many_characters", "2.5", "0.1", "3", "1.", ".5", "1e3", "1.25e-3"]
ALMOST = [
    "",
    " ",
    "(",
    ")",
    ",",
    "+",
    "**",
    "=",
    "==",
    ".",
    "e",
    "9",
    "x",
    "a",
    "\n",
    "\t",
    "_",
    "0",
    "not ",
    "and ",
    "\0",
    "\x1c",
    "!",
    "'",
    "<",
]


@pytest.fixture(scope="module")
def read():
    reader = formula_form.Reader(None)

    def run(text, types=TYPES, params=PARAMS):
        return reader.read(text, tuple(types.items()), params, "expression", DEFAULT_FUEL)

    return run


@pytest.fixture(autouse=True)
def alone():
    """compile_expression is Python's reader here, whatever engine another test has opened."""
    before, expression.quick.read = expression.quick.read, None
    yield
    expression.quick.read = before


def agrees(read, text, types=TYPES, params=PARAMS):
    """Whether native code gave a program; it is compared with Python's, words included."""
    got = read(text, types, params)
    try:
        want = compile_expression(text, types, params=params)
    except CompileError:
        assert got is None, f"{text!r} is refused"
        return False
    if got is None:
        return False
    words = described(got)
    assert got == want, text
    assert encode(got) == encode(want), text
    assert got.packed == want.packed, text
    assert described(want) == words, text
    return True


def of(rng, depth, leaves):
    if depth == 0 or rng.random() < 0.15:
        return rng.choice(leaves)
    kind = rng.random()
    if kind < 0.5:
        space = rng.choice(["", " ", " ", "  \n"])
        op = rng.choice(BINARY)
        text = f"{of(rng, depth - 1, leaves)} {op}{space}{of(rng, depth - 1, leaves)}"
        return f"({text})" if rng.random() < 0.6 else text
    if kind < 0.65:
        return rng.choice(UNARY).format(of(rng, depth - 1, leaves))
    call = rng.choice(CALLS)
    return call.format(*(of(rng, depth - 1, leaves) for _ in range(call.count("{}"))))


@pytest.mark.parametrize("block", range(4))
def test_random_texts_over_all_types_give_the_same_program_or_no_answer(read, block):
    rng = random.Random(block)
    leaves = [*TYPES, *NUMBERS]
    taken = sum(agrees(read, of(rng, rng.randint(1, 3), leaves)) for _ in range(2_500))
    assert taken > 300  # most of such texts mix types that do not go together


def test_every_float_formula_that_needs_no_folding_is_taken(read):
    rng = random.Random(7)

    def arithmetic(depth):
        if depth == 0 or rng.random() < 0.1:
            return rng.choice(["a", "b", "k", "a_name_of_many_characters"])
        kind = rng.random()
        if kind < 0.6:
            pair = [arithmetic(depth - 1), rng.choice([rng.choice(FLOATS), arithmetic(depth - 1)])]
            rng.shuffle(pair)
            return f"({pair[0]} {rng.choice('+-*/')} {pair[1]})"
        if kind < 0.7:
            return f"where({rng.choice(FLOATS)} < a, {arithmetic(depth - 1)}, b)"
        if kind < 0.8:
            return f"sqrt(abs(k - {arithmetic(depth - 1)}))"
        return f"(a * {rng.choice(FLOATS)} - {arithmetic(depth - 1)} ** 2 + b)"

    taken = 0
    for _ in range(1_500):
        text = f"a + {arithmetic(rng.randint(1, 5))}"
        program = compile_expression(text, TYPES, params=PARAMS)
        fits = program.instructions <= 64 + 2  # every instruction but the last two has a register of its own
        assert agrees(read, text) == fits, text
        taken += fits
    assert taken > 1_000


def test_a_text_with_a_character_changed_is_read_alike_or_not_at_all(read):
    rng = random.Random(3)
    seeds = [
        "a*2.5 + where(b > 0, sqrt(b), 0.1)",
        "-a**2 < b <= 3 < k and not p | q",
        "min(a, b, 1) // 2 + i % 7 - u*3",
        "f32(i) - abs(j) + (l >> 3)",
    ]
    for _ in range(4_000):
        text = rng.choice(seeds)
        at = rng.randrange(len(text) + 1)
        text = text[:at] + rng.choice(ALMOST) + text[at + rng.randint(0, 2) :]
        agrees(read, text)


@pytest.mark.parametrize("name", ["sum", "min", "max", "count", "minimum"])
def test_a_reduction_of_any_type_is_read_alike(read, name):
    types = {
        x: kind for x, kind in TYPES.items() if x != "min"
    }  # a column with the name of a function is left to Python
    taken = [
        agrees(read, text, types)
        for x in types
        for text in (f"{name}({x})", f" {name} ( {x} + a ) ", f"{name}({x} > 0.5)", f"{name}({x}) + 1", f"-{name}({x})", f"({name}({x}))",
                     f"{name}({x}, {x})", f"{name}(1 + 2)", f"{name}()", f"{name}({x}) {x}", f"sqrt({name}({x}))", f"{name}({name}({x}))")
    ]  # fmt: skip
    assert sum(taken) >= (len(types) if name != "count" else 2)


@pytest.mark.parametrize("number", NUMBERS)
def test_a_literal_has_the_bits_that_python_gives_it(read, number):
    for text in (
        f"a + {number}",
        f"d * {number}",
        f"{number} - a",
        f"d - -{number}",
        f"l + {number}",
        f"u < {number}",
        f"i * {number}",
    ):
        agrees(read, text)


def test_decimal_literals_are_rounded_once(read):
    rng = random.Random(11)
    taken = 0
    for _ in range(3_000):
        digits = str(rng.randrange(10 ** rng.randint(1, 18)))
        at = rng.randint(0, len(digits))
        text = f"{digits[:at]}.{digits[at:]}" + rng.choice(["", "", f"e{rng.randint(-30, 30)}"])
        taken += agrees(read, f"d * {text} + a * {text}")
    assert taken > 1_500


def test_texts_beyond_the_readers_room_are_left_to_python(read):
    for text in ("(" * 199 + "a" + ")" * 199, "(" * 250 + "a" + ")" * 250, " + ".join(f"a * {n}.5" for n in range(80)), "a" + " " * 9_000,
                 "+".join("a" for _ in range(3_000)), "min(" + ", ".join("abk"[i % 3] for i in range(70)) + ")", "-" * 500 + "a",
                 "a + " + " + ".join(str(n) for n in range(300))):  # fmt: skip
        agrees(read, text)
    assert agrees(read, "x255 + 1.5", {f"x{n}": "f32" for n in range(256)}, ())
    assert not agrees(read, "x256 + 1.5", {f"x{n}": "f32" for n in range(257)}, ())


def test_types_that_no_reader_knows_are_left_to_python_to_refuse(read):
    assert read("a + z", {"a": "f32", "z": "complex"}, ()) is None
    assert read("a + 1.5", {"a": "f32", "z": "complex"}, ()) is not None
    assert read("k + 1.5", {"k": "f16"}, ("k",)) is None
    assert read("a + 1.5", {"a": []}, ()) is None
    assert read("if + 1", {"if": "f32"}, ()) is None


def test_the_first_formula_of_a_process_does_not_wait_for_the_reader_to_be_loaded():
    code = """
import sys, numpy, vyre
x = numpy.ones(4, numpy.float32)
with vyre.open("cpu") as session:
    assert session.evaluate("x * 2 + 1", {"x": x})[0] == 3
    assert "vyre.program.formula" not in sys.modules
    assert session.evaluate("x * 4 + 1", {"x": x})[0] == 5
    assert "vyre.program.formula" in sys.modules
"""
    subprocess.run([sys.executable, "-c", code], check=True)
