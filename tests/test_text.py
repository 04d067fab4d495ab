import json
import math
import random
import struct
import time
from dataclasses import replace
from fractions import Fraction

import pytest

import vir_files
from vyre.errors import ListingError, VerifyError
from vyre.program import literals, text
from vyre.program.builder import Builder
from vyre.program.ir import Accumulator, Instr, Line, Param, Program, Stream, Table
from vyre.program.opcodes import BY_NAME, OPCODES, Access, AccKind, Imm, MemType, Type
from vyre.program.show import show
from vyre.program.verifier import verify

VALID = {file.path.stem: file.program for file in map(vir_files.read, vir_files.paths()) if file.program}


def same(program, back):
    assert back == program
    assert (back.lines, back.source) == (program.lines, program.source)


@pytest.mark.parametrize("program", VALID.values(), ids=VALID)
def test_a_listing_of_a_program_reads_back_as_that_program(program):
    same(program, text.parse(text.format(program)))
    assert text.parse(text.format(program, lines=False)) == program
    same(program, text.parse(text.format(program, pcs=True)))


@pytest.mark.parametrize("op", OPCODES, ids=lambda op: op.name)
def test_every_instruction_reads_back(op):
    program = Program(
        inputs=(Stream("a", MemType.f32),),
        outputs=(Stream("b", MemType.f32),),
        params=(Param("c", MemType.f32),),
        tables=(Table("d", MemType.f32, Access.read),),
        accumulators=(Accumulator("e", AccKind.count, MemType.i64),),
        emits=(Stream("f", MemType.f32),),
        registers=(Type.i32, Type.f64, Type.i64, Type.f32, Type.f32),
        constants=(3,),
        code=(Instr(op.code, *([4] if op.result else [0]), *(1, 2, 3)[: len(op.args)]),),
    )
    assert text.parse(text.format(program)) == program
    assert show(program, 0).startswith(op.name)


@pytest.mark.parametrize("seed", range(300))
def test_any_program_with_names_reads_back_valid_or_not(seed):
    rng = random.Random(seed)
    code = []
    for _ in range(rng.randrange(12)):
        op = rng.choice(OPCODES).code if rng.random() < 0.9 else rng.randrange(1 << 16)
        few = rng.random() < 0.8
        fields = [rng.randrange(4 if few else 256) * (rng.random() < 0.7) for _ in range(4)]
        code.append(Instr(op, *fields, rng.randrange(3 if few else 1 << 16)))
    program = Program(
        name=rng.choice(("p", "größe", "program", "r0", "if")),
        inputs=tuple(Stream(n, rng.choice(list(MemType))) for n in rng.choices(("x", "y", "r1", "f32"), k=2)),
        outputs=tuple(Stream(n, rng.choice(list(MemType))) for n in rng.choices(("x", "z"), k=1)),
        params=tuple(Param(n, t, rng.choice((None, 0, 1))) for n, t in (("k", MemType.f32), ("m", MemType.bool))),
        tables=(Table("t", rng.choice(list(MemType)), rng.choice(list(Access))),),
        accumulators=(Accumulator("a", rng.choice(list(AccKind)), rng.choice(list(MemType)), rng.randrange(3)),),
        emits=(Stream("e", rng.choice(list(MemType))),),
        registers=tuple(rng.choice(list(Type)) for _ in range(rng.randrange(5))),
        constants=tuple(rng.choice((0, 1, 1, 1 << 40, 0x7FC0_0001, 2**64 - 1)) for _ in range(rng.randrange(4))),
        code=tuple(code),
        fuel=rng.choice((1, 1 << 20)),
        source=rng.choice(("", 'a "b";c\\ ü.py')),
        lines=tuple(Line(pc, rng.randrange(1, 1000)) for pc in range(len(code)) if rng.random() < 0.5),
    )
    listing = text.format(program)
    back = text.parse(listing)
    assert back == program, listing
    assert program.lines == () or (back.lines, back.source) == (program.lines, program.source)


def test_a_listing_without_a_line_map_is_its_own():
    program = text.parse("input x f32\n\n  f32.load r0, x ; first\n\n  return", "rule.vir")
    assert program.source == "rule.vir"
    assert program.lines == (Line(0, 3), Line(1, 5))


def test_a_listing_is_written_as_people_would():
    b = Builder("scale", fuel=100)
    x, y = b.input("x", MemType.f32), b.output("y", MemType.f16)
    k = b.param("k", MemType.f32, 0x40200000)
    total = b.accumulator("total", AccKind.sum, MemType.f64)
    v = b.op("f32.mul", b.op("f32.load", imm=x), b.op("f32.param", imm=k))
    b.op("f32.store", v, imm=y)
    b.if_(b.op("f32.gt", v, b.const(Type.f32, 0.1)))
    b.op("f32.acc_sum", v, imm=total)
    b.end()
    assert text.format(b.build()) == (
        "program scale\n"
        "fuel 100\n"
        "input x f32\n"
        "param k f32 = 2.5\n"
        "output y f16\n"
        "accumulator total sum f64\n"
        "\n"
        "    f32.load r0, x\n"
        "    f32.param r1, k\n"
        "    f32.mul r2, r0, r1\n"
        "    f32.store y, r2\n"
        "    f32.const r3, 0.1\n"
        "    f32.gt r4, r2, r3\n"
        "    if r4\n"
        "        f32.acc_sum total, r2\n"
        "    end\n"
        "    return\n"
    )


@pytest.mark.parametrize(
    ("listing", "message"),
    [
        (
            "f32.lod r0, x",
            "p.vir:1: f32.lod is neither an instruction nor a declaration\n  fix: did you mean f32.load?",
        ),
        ("\ninput x f33", "p.vir:2: f33 is not a memory type: i32, i64,"),
        ("input x", "p.vir:1: input x: input takes a name and a memory type"),
        ("input 3x f32", "p.vir:1: 3x is no identifier"),
        ("table t f32", "table takes a name, a memory type, and read or atomic"),
        ("table t f32 reed", "reed is not an access: read, atomic\n  fix: did you mean read?"),
        ("accumulator t summ f64", "summ is not an accumulator kind"),
        ("accumulator t sum f64 x", "x is no number"),
        ("param k f32 = x", "param k: 'x' is not a number"),
        ("param k f32 = 1e39", "param k: 1e39 is beyond the range of f32"),
        ("param k i32 = 4294967296", "param k: 4294967296 does not fit i32"),
        ("param k bool = 2", "param k: 2 does not fit bool: 0 to 1"),
        ("param k i8 = 2", "param k: a parameter of i8 has no default"),
        ("fuel many", "many is no number"),
        ("fuel 1\nfuel 2", "p.vir:2: a second fuel line"),
        ("source x.py", "source takes a path in double quotes"),
        ('source "\\u001b[31m"', "source takes a path in double quotes, of printable characters"),
        ("source " + "[" * 100_000, "source takes a path in double quotes"),
        ("x" * 100_000, "x... is neither an instruction nor a declaration"),
        ('source "x.py" y', "source takes a path in double quotes"),
        ("nop\ninput x f32", "p.vir:2: input stands after an instruction"),
        ("input price f32\nf32.load r0, prize", "no input is called prize\n  fix: did you mean price?"),
        ("output price f32\nf32.load r0, price", "no input is called price\n  fix: it is declared as output"),
        ("i32.add r0, r1", "i32.add takes a register (i32), a register (i32), a register (i32); here are 2 operands"),
        ("nop r0", "nop takes no operands; here are 1 operands"),
        ("i32.eqz r0, x1", "x1 is no register"),
        ("i32.eqz r0, r256", "r256 is no register"),
        ("i32.const r0, 1.5", "i32.const: '1.5' is not an integer"),
        ("i32.const r0, 0x1ffffffff", "does not fit i32"),
        ("f64.const r0, nan:0x0", "the payload of a f64 NaN is 1 to"),
        ("constants 1\ni32.const r0, 2", "which the constants line does not have"),
        ("raw 1 2 3", "raw takes the six fields"),
        ("raw 1 2 3 4 5 65536", "raw takes the six fields"),
        ("registers i32 u32", "u32 is not a compute type"),
        ("i32.const r0, " + "9" * 5000, "a number of 5000 characters; at most 400"),
        ("\x1b[31mred", "p.vir:1: ?[31mred is neither"),
    ],
)
def test_a_listing_that_cannot_be_read_is_refused_with_line_rule_and_value(listing, message):
    with pytest.raises(ListingError) as caught:
        text.parse(listing, "p.vir")
    assert message in str(caught.value)
    assert str(caught.value).startswith("p.vir:")


@pytest.mark.parametrize("seed", range(8))
def test_a_damaged_listing_is_refused_or_a_program_and_never_crashes(seed):
    rng = random.Random(seed)
    names = sorted(VALID)
    for _ in range(150):
        listing = list(text.format(VALID[rng.choice(names)]))
        for _ in range(rng.randrange(1, 5)):
            at = rng.randrange(len(listing))
            listing[at : at + rng.randrange(3)] = rng.choice(
                ["", " ", "\n", ",", ";", "@1", "#9", "r99", "end", "0x", "é", "\0", "nan:0x", "1e999999999", '"', "-"]
            )
        try:
            program = text.parse("".join(listing))
            verify(program)
        except (ListingError, VerifyError):
            continue
        assert text.parse(text.format(program)) == program


# --- numbers


def bits_of(type_, count, rng):
    special = [
        0,
        1,
        0x7F80_0000,
        0xFF80_0000,
        0x7FC0_0000,
        0xFFC0_0000,
        0x7F80_0001,
        0x7F7F_FFFF,
        0x0080_0000,
        0x8000_0000,
    ]
    if type_ in (Type.i64, Type.f64):
        special += [0x7FF0 << 48, 0x7FF8 << 48, (0x7FF0 << 48) + 1, 0xFFF8 << 48, 1 << 63, (1 << 64) - 1, 0x7FEF << 48]
    return special + [rng.getrandbits(8 * type_.size) for _ in range(count)]


@pytest.mark.parametrize("type_", Type)
def test_every_bit_pattern_has_a_literal(type_):
    for bits in bits_of(type_, 3000, random.Random(2)):
        shown = literals.show_bits(type_, bits)
        assert literals.read_bits(type_, shown) == bits, shown


def nearest_f32(exact):
    """The f32 nearest to a fraction, by search among neighbours."""
    value = struct.unpack("<f", struct.pack("<f", float(exact)))[0]
    bits = int.from_bytes(struct.pack("<f", abs(value)), "little")
    around = [b for b in (bits - 1, bits, bits + 1) if 0 <= b < 0x7F80_0000]
    magnitude = abs(exact)

    def distance(b):
        return abs(Fraction(struct.unpack("<f", b.to_bytes(4, "little"))[0]) - magnitude), b & 1

    return min(around, key=distance) | (0x8000_0000 if exact < 0 else 0)


def test_decimal_and_hexadecimal_literals_of_f32_are_rounded_once():
    assert literals.read_bits(Type.f32, "1.00000005960464477540") == 0x3F80_0001  # through f64 it would be 1.0
    rng = random.Random(3)
    for _ in range(400):
        low = rng.getrandbits(23) | rng.choice((0, 1, 100, 127, 200, 253)) << 23
        a, b = (Fraction(struct.unpack("<f", (low + i).to_bytes(4, "little"))[0]) for i in (0, 1))
        exact = (a + b) / 2 + rng.choice((0, 1, -1)) * (b - a) / (1 << 40)
        digits = 0
        while exact * 10**digits % 1:
            digits += 1
        whole = str(int(exact * 10**digits)).rjust(digits + 1, "0")
        decimal = f"{whole[: len(whole) - digits]}.{whole[len(whole) - digits :]}"
        if len(decimal) <= 400:
            assert literals.read_bits(Type.f32, decimal) == nearest_f32(exact), decimal
        power = 0
        while (exact * 2**power) % 1:
            power += 1
        assert literals.read_bits(Type.f32, f"{int(exact * 2**power):#x}p-{power}") == nearest_f32(exact)


@pytest.mark.parametrize(
    ("literal", "value"),
    [
        ("0x1.8p+1", 3.0),
        ("1e3", 1000.0),
        (".5", 0.5),
        ("1.", 1.0),
        ("-0.0", -0.0),
        ("inf", math.inf),
        ("1_000.5", 1000.5),
    ],
)
def test_float_literals_have_these_forms(literal, value):
    assert literals.read_bits(Type.f64, literal) == int.from_bytes(struct.pack("<d", value), "little")


@pytest.mark.parametrize(
    "literal",
    ["", "-", ".", "e5", "0x", "0xp1", "infinity", "NaN", "1e", "1__0", "1,0", "1e999", "0x1p9999", " 1", "١"],
)
@pytest.mark.parametrize("type_", [Type.f32, Type.f64])
def test_what_is_no_float_literal_is_refused(literal, type_):
    with pytest.raises(ValueError, match=r"not a number|beyond the range"):
        literals.read_bits(type_, literal)


@pytest.mark.parametrize("literal", ["1e-999999999", "0x1p-9999", "-1e-60"])
def test_tiny_literals_are_zero_at_once(literal):
    assert literals.read_bits(Type.f32, literal) & 0x7FFF_FFFF == 0


def test_names_in_a_source_line_are_json():
    program = replace(text.parse("nop"), source='a "b" \\ ü;.py', lines=(Line(0, 3),))
    listing = text.format(program)
    assert json.dumps(program.source, ensure_ascii=False) in listing
    same(program, text.parse(listing))


def test_a_listing_shows_no_control_characters_of_a_path():
    assert "\x1b" not in text.format(replace(text.parse("nop"), source="\x1b[31m.py"))


def test_a_large_program_is_written_and_read_in_seconds():
    codes = [BY_NAME[name].code for name in ("if", "br_if")]
    nested = Program(code=tuple(Instr(codes[i & 1]) for i in range(60_000)))
    const = BY_NAME["i64.const"].code
    pooled = Program(
        registers=(Type.i64,), constants=tuple(range(30_000)), code=tuple(Instr(const, imm=i) for i in range(30_000))
    )
    start = time.monotonic()
    for program in (nested, pooled):
        assert text.parse(text.format(program)) == program
    assert time.monotonic() - start < 20


def test_targets_follow_from_the_blocks():
    codes = [
        BY_NAME[n].code
        for n in ("loop", "if", "else", "end", "if", "end", "br_if", "end", "return", "end", "if", "br_if")
    ]
    assert text.targets(codes) == [7, 3, 3, 0, 5, 0, 1, 0, 0, 0, 0, 0]
    assert all(op.name in ("if", "else", "loop", "br_if") for op in OPCODES if op.imm is Imm.target)
