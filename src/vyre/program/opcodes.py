"""The only place where a VIR0 type, fault code or instruction exists.

Builder, listing, verifier, bytecode, the C header of the GPU engine and docs/format.md are computed from these
tables; an engine brings bodies of the same names, and one that lacks an instruction fails a test.

Scalar instructions have WebAssembly's names, semantics (deterministic profile) and binary codes; those with the
prefix 0xFC keep it as their high byte. What WebAssembly lacks starts at 0x0100. A retired code stays here, marked,
so that no code ever changes its meaning.

Owns: names, codes, operand types, faults and NaN rule of each instruction. Leaves to others: how a program is held
(ir), written (text, bytecode), judged (verifier) and executed (engines).
"""

from __future__ import annotations

import builtins
from dataclasses import dataclass
from enum import Enum, IntEnum
from typing import Final


class Type(IntEnum):
    """A compute type: what a register holds. The value is its code in a VIR0 file."""

    i32 = 1
    i64 = 2
    f32 = 3
    f64 = 4

    @property
    def size(self) -> int:
        """Bytes of one value in memory."""
        return 4 if self in (Type.i32, Type.f32) else 8

    @property
    def is_float(self) -> bool:
        return self in (Type.f32, Type.f64)


class MemType(IntEnum):
    """A memory type: what one element of a stream, table or parameter is. Codes 1 to 4 are those of ``Type``."""

    i32 = 1
    i64 = 2
    f32 = 3
    f64 = 4
    i8 = 5
    u8 = 6
    i16 = 7
    u16 = 8
    u32 = 9
    u64 = 10
    f16 = 11
    bf16 = 12
    bool = 13

    @property
    def size(self) -> int:
        """Bytes of one element."""
        return _MEMORY[self][0]

    @property
    def type(self) -> Type:
        """The compute type that a load widens to and a store narrows from."""
        return _MEMORY[self][1]

    @property
    def is_identity(self) -> builtins.bool:
        """True where memory and register hold the same bits, so that a load or store is a copy."""
        return self.size == self.type.size


_MEMORY: Final = {
    #             bytes  widens to
    MemType.i32: (4, Type.i32),
    MemType.i64: (8, Type.i64),
    MemType.f32: (4, Type.f32),
    MemType.f64: (8, Type.f64),
    MemType.i8: (1, Type.i32),
    MemType.u8: (1, Type.i32),
    MemType.i16: (2, Type.i32),
    MemType.u16: (2, Type.i32),
    MemType.u32: (4, Type.i32),
    MemType.u64: (8, Type.i64),
    MemType.f16: (2, Type.f32),
    MemType.bf16: (2, Type.f32),
    MemType.bool: (1, Type.i32),  # a byte: any but 0 loads as 1, any value but 0 is stored as 1
}


class FaultCode(IntEnum):
    """Why an item ended in FAULT. Codes below 16 are traps of a program and the same on every engine."""

    none = 0
    unreachable = 1
    divide_by_zero = 2
    overflow = 3
    invalid_conversion = 4
    out_of_bounds = 5
    out_of_fuel = 6
    # 16 and above: the engine or its surroundings refused; outside "same bits".
    unknown_opcode = 16
    bad_binding = 17
    rights = 18
    cancelled = 19
    deadline = 20
    io_error = 21
    file_shrank = 22
    stopped = 23
    load_miss = 24


FAULT_REASONS: Final[dict[FaultCode, str]] = {
    FaultCode.none: "no fault",
    FaultCode.unreachable: "unreachable",
    FaultCode.divide_by_zero: "integer divide by zero",
    FaultCode.overflow: "integer overflow",
    FaultCode.invalid_conversion: "invalid conversion to integer",
    FaultCode.out_of_bounds: "index out of bounds",
    FaultCode.out_of_fuel: "out of fuel",
    FaultCode.unknown_opcode: "opcode without a handler",
    FaultCode.bad_binding: "no such binding",
    FaultCode.rights: "operand without the right",
    FaultCode.cancelled: "cancelled",
    FaultCode.deadline: "deadline passed",
    FaultCode.io_error: "input/output error",
    FaultCode.file_shrank: "file shrank while it was read",
    FaultCode.stopped: "engine stopped",
    FaultCode.load_miss: "pages of a table on disk are not in memory yet",
}


class Imm(Enum):
    """What the 16-bit immediate of an instruction indexes."""

    none = "none"
    const = "constant pool"
    input = "inputs"
    output = "outputs"
    param = "parameters"
    table = "tables"
    acc = "accumulators"
    emit = "emits"
    target = "instructions"


class Group(Enum):
    """Where an instruction stands on the format page, and who brings its body."""

    control = "control"
    data = "data"  # constants, moves, streams, parameters, tables
    result = "results"  # accumulators and emits
    numeric = "numeric"  # one body per engine
    function = "functions"  # written once over numeric instructions, program/functions.py


class Nan(Enum):
    """What an instruction does with NaN (decision 7)."""

    none = "no float result"
    moves = "moves bits"
    canonical = "yields the canonical NaN"


class AccKind(IntEnum):
    """What an accumulator keeps. The value is its code in a VIR0 file."""

    sum = 1
    min = 2
    max = 3
    count = 4
    histogram = 5


class Access(IntEnum):
    """How a program uses a table. The value is its code in a VIR0 file."""

    read = 1
    atomic = 2


@dataclass(frozen=True, slots=True)
class Op:
    """One VIR0 instruction.

    Attributes:
        code: u16, as stored.
        name: as written in a listing.
        result: type of the register it writes, or None.
        args: types of the registers it reads, in the fields a, b, c.
        imm: what its immediate indexes.
        meaning: what it does, for the format page.
    """

    code: int
    name: str
    result: Type | None
    args: tuple[Type, ...]
    imm: Imm
    group: Group
    nan: Nan
    traps: tuple[FaultCode, ...]
    meaning: str


I32, I64, F32, F64 = Type.i32, Type.i64, Type.f32, Type.f64
_TYPES: Final = (I32, I64, F32, F64)
_DIV: Final = (FaultCode.divide_by_zero,)
_DIV_OVER: Final = (FaultCode.divide_by_zero, FaultCode.overflow)
_CONVERT: Final = (FaultCode.invalid_conversion, FaultCode.overflow)
_BOUNDS: Final = (FaultCode.out_of_bounds,)

MAX_REGISTERS: Final = 64
MAX_CODE: Final = 65_535
MAX_CONSTANTS: Final = 65_535
MAX_OPERANDS: Final = 255  # of each kind: inputs, outputs, parameters, tables, accumulators, emits
MAX_HISTOGRAM_BINS: Final = 65_536
MAX_BLOCK_DEPTH: Final = 32
MAX_ELEMENTS: Final = 1 << 44  # a fault packs element, pc and code into 64 bits
DEFAULT_FUEL: Final = 1 << 20
TILE: Final = 1_024  # elements; decision 1
SPAN: Final = 1_024  # tiles; decision 2
CANONICAL_NAN: Final = {F32: 0x7FC0_0000, F64: 0x7FF8_0000_0000_0000}


def _numeric(code: int, name: str, result: Type, args: tuple[Type, ...], meaning: str, **more: object) -> Op:
    moves = name.split(".")[1] in ("abs", "neg", "copysign") or "reinterpret" in name
    nan = Nan.none if not result.is_float else Nan.moves if moves else Nan.canonical
    traps: tuple[FaultCode, ...] = more.get("traps", ())  # type: ignore[assignment]
    group: Group = more.get("group", Group.numeric)  # type: ignore[assignment]
    return Op(code, name, result, args, Imm.none, group, nan, traps, meaning)


def _other(
    code: int,
    name: str,
    result: Type | None,
    args: tuple[Type, ...],
    imm: Imm,
    group: Group,
    meaning: str,
    traps: tuple[FaultCode, ...] = (),
) -> Op:
    nan = Nan.moves if result is not None and result.is_float else Nan.none
    return Op(code, name, result, args, imm, group, nan, traps, meaning)


def _control() -> list[Op]:
    c, none, to = Group.control, Imm.none, Imm.target
    return [
        _other(0x00, "unreachable", None, (), none, c, "trap", (FaultCode.unreachable,)),
        _other(0x01, "nop", None, (), none, c, "nothing"),
        _other(0x03, "loop", None, (), to, c, "run the body up to its br_if at least once; imm is the pc of the end"),
        _other(0x04, "if", None, (I32,), to, c, "if a != 0 run up to else or end, otherwise from imm: else's pc + 1, or end's pc"),
        _other(0x05, "else", None, (), to, c, "the other branch; imm is the pc of the end"),
        _other(0x0B, "end", None, (), none, c, "end of an if or a loop"),
        _other(
            0x0D, "br_if", None, (I32,), to, c,
            "if a != 0 burn one fuel and go to imm, the pc after the loop; stands right before the loop's end",
            (FaultCode.out_of_fuel,),
        ),
        _other(0x0F, "return", None, (), none, c, "the end of the program: its last instruction and nowhere else"),
    ]  # fmt: skip


def _data() -> list[Op]:
    ops = []
    d = Group.data
    for i, t in enumerate(_TYPES):
        n = t.name
        ops += [
            _other(0x41 + i, f"{n}.const", t, (), Imm.const, d, "constant imm of the pool, low bits first"),
            _other(0x0100 + i, f"{n}.mov", t, (t,), Imm.none, d, "a, bit for bit"),
            _other(0x0104 + i, f"{n}.select", t, (t, t, I32), Imm.none, d, "c != 0 ? a : b, bit for bit"),
            _other(0x0108 + i, f"{n}.load", t, (), Imm.input, d, "this element of input imm, widened"),
            _other(0x010C + i, f"{n}.store", None, (t,), Imm.output, d, "this element of output imm := a, narrowed"),
            _other(0x0110 + i, f"{n}.param", t, (), Imm.param, d, "parameter imm"),
            _other(
                0x0114 + i, f"{n}.table_get", t, (I64,), Imm.table, d,
                "element a (unsigned) of read-only table imm, widened", _BOUNDS,
            ),
        ]  # fmt: skip
    ops.append(_other(0x0118, "index", I64, (), Imm.none, d, "index of this element in the whole stream"))
    atomics = ("add", "and", "or", "xor", "min_s", "min_u", "max_s", "max_u")
    for i, t in enumerate((I32, I64)):
        for j, verb in enumerate(atomics):
            ops.append(
                _other(
                    0x0120 + 8 * i + j, f"{t.name}.table_{verb}", None, (I64, t), Imm.table, d,
                    f"atomic table imm: element a (unsigned) := {verb} of itself and b", _BOUNDS,
                )
            )  # fmt: skip
    return ops


def _results() -> list[Op]:
    r = Group.result
    ops = [
        _other(0x0140, "i64.acc_sum", None, (I64,), Imm.acc, r, "i64 sum imm += a, modulo 2**64"),
        _other(0x0141, "f32.acc_sum", None, (F32,), Imm.acc, r, "f64 sum imm += a, exact widening first"),
        _other(0x0142, "f64.acc_sum", None, (F64,), Imm.acc, r, "f64 sum imm += a"),
        _other(0x0143, "acc_count", None, (I32,), Imm.acc, r, "count imm += (a != 0)"),
        _other(
            0x0144, "acc_histogram", None, (I32,), Imm.acc, r, "histogram imm, bin a (unsigned) += 1", _BOUNDS
        ),
    ]  # fmt: skip
    code = 0x0148
    for t in (I32, I64):
        for verb in ("min_s", "min_u", "max_s", "max_u"):
            ops.append(
                _other(
                    code, f"{t.name}.acc_{verb}", None, (t,), Imm.acc, r, f"accumulator imm := {verb} of itself and a"
                )
            )
            code += 1
    for t in (F32, F64):
        for verb in ("min", "max"):
            ops.append(
                _other(
                    code,
                    f"{t.name}.acc_{verb}",
                    None,
                    (t,),
                    Imm.acc,
                    r,
                    f"accumulator imm := {verb} of itself and a, as {t.name}.{verb}",
                )
            )
            code += 1
    for i, t in enumerate(_TYPES):
        ops.append(
            _other(
                0x0158 + i,
                f"{t.name}.emit",
                None,
                (t,),
                Imm.emit,
                r,
                "next element of emit imm := a, narrowed; once per element, not in a loop",
            )
        )
    return ops


_COMPARE = {
    "eq": "a = b", "ne": "a != b", "lt": "a < b", "gt": "a > b", "le": "a <= b", "ge": "a >= b",
}  # fmt: skip


def _compares(first: int, t: Type) -> list[Op]:
    if t.is_float:
        names = ["eq", "ne", "lt", "gt", "le", "ge"]
    else:
        names = ["eq", "ne"] + [f"{v}_{s}" for v in ("lt", "gt", "le", "ge") for s in ("s", "u")]
    ops = []
    for i, n in enumerate(names):
        verb, _, sign = n.partition("_")
        how = {"s": ", signed", "u": ", unsigned", "": ", false with a NaN" if t.is_float and verb != "ne" else ""}[
            sign
        ]
        ops.append(_numeric(first + i, f"{t.name}.{n}", I32, (t, t), f"1 if {_COMPARE[verb]} else 0{how}"))
    return ops


def _integers(t: Type, first_compare: int, first: int) -> list[Op]:
    n, bits = t.name, 8 * t.size
    two, one = (t, t), (t,)
    rows: list[tuple[str, tuple[Type, ...], str, tuple[FaultCode, ...]]] = [
        ("clz", one, f"leading zero bits; {bits} for 0", ()),
        ("ctz", one, f"trailing zero bits; {bits} for 0", ()),
        ("popcnt", one, "one bits", ()),
        ("add", two, f"(a + b) mod 2**{bits}", ()),
        ("sub", two, f"(a - b) mod 2**{bits}", ()),
        ("mul", two, f"(a * b) mod 2**{bits}", ()),
        ("div_s", two, "a / b truncated, signed", _DIV_OVER),
        ("div_u", two, "a / b truncated, unsigned", _DIV),
        ("rem_s", two, "a - b * trunc(a / b), signed; 0 for the one overflowing quotient", _DIV),
        ("rem_u", two, "a mod b, unsigned", _DIV),
        ("and", two, "bitwise and", ()),
        ("or", two, "bitwise or", ()),
        ("xor", two, "bitwise exclusive or", ()),
        ("shl", two, f"a shifted left by b mod {bits}", ()),
        ("shr_s", two, f"a shifted right by b mod {bits}, sign filled", ()),
        ("shr_u", two, f"a shifted right by b mod {bits}, zero filled", ()),
        ("rotl", two, f"a rotated left by b mod {bits}", ()),
        ("rotr", two, f"a rotated right by b mod {bits}", ()),
    ]
    ops = [_numeric(first_compare, f"{n}.eqz", I32, one, "1 if a = 0 else 0")]
    ops += _compares(first_compare + 1, t)
    ops += [
        _numeric(first + i, f"{n}.{v}", t, args, meaning, traps=traps)
        for i, (v, args, meaning, traps) in enumerate(rows)
    ]
    return ops


def _floats(t: Type, first_compare: int, first: int) -> list[Op]:
    one, two = (t,), (t, t)
    rows: list[tuple[str, tuple[Type, ...], str]] = [
        ("abs", one, "a without its sign bit"),
        ("neg", one, "a with its sign bit flipped"),
        ("ceil", one, "least integral value >= a"),
        ("floor", one, "greatest integral value <= a"),
        ("trunc", one, "nearest integral value towards zero"),
        ("nearest", one, "nearest integral value, ties to even"),
        ("sqrt", one, "square root, correctly rounded"),
        ("add", two, "a + b, correctly rounded"),
        ("sub", two, "a - b, correctly rounded"),
        ("mul", two, "a * b, correctly rounded"),
        ("div", two, "a / b, correctly rounded"),
        ("min", two, "the smaller; NaN if either is; -0 < +0"),
        ("max", two, "the larger; NaN if either is; -0 < +0"),
        ("copysign", two, "a with the sign bit of b"),
    ]
    ops = _compares(first_compare, t)
    return ops + [_numeric(first + i, f"{t.name}.{v}", t, args, meaning) for i, (v, args, meaning) in enumerate(rows)]


def _conversions() -> list[Op]:
    def row(code: int, name: str, result: Type, arg: Type, meaning: str, traps: tuple[FaultCode, ...] = ()) -> Op:
        return _numeric(code, name, result, (arg,), meaning, traps=traps)

    ops = [row(0xA7, "i32.wrap_i64", I32, I64, "a mod 2**32")]
    for base, sat, t in ((0xA8, 0xFC00, I32), (0xAE, 0xFC04, I64)):
        i = 0
        for f in (F32, F64):
            for s in ("s", "u"):
                sign = "signed" if s == "s" else "unsigned"
                ops.append(row(base + i, f"{t.name}.trunc_{f.name}_{s}", t, f, f"a truncated to {sign}", _CONVERT))
                ops.append(
                    row(
                        sat + i,
                        f"{t.name}.trunc_sat_{f.name}_{s}",
                        t,
                        f,
                        f"a truncated to {sign}, saturating; NaN gives 0",
                    )
                )
                i += 1
    ops += [
        row(0xAC, "i64.extend_i32_s", I64, I32, "a, sign extended"),
        row(0xAD, "i64.extend_i32_u", I64, I32, "a, zero extended"),
    ]
    for base, f in ((0xB2, F32), (0xB7, F64)):
        for i, (source, s) in enumerate(((I32, "s"), (I32, "u"), (I64, "s"), (I64, "u"))):
            sign = "signed" if s == "s" else "unsigned"
            ops.append(row(base + i, f"{f.name}.convert_{source.name}_{s}", f, source, f"{sign} a, correctly rounded"))
    ops += [
        row(0xB6, "f32.demote_f64", F32, F64, "a, correctly rounded"),
        row(0xBB, "f64.promote_f32", F64, F32, "a, exact"),
        row(0xBC, "i32.reinterpret_f32", I32, F32, "the bits of a"),
        row(0xBD, "i64.reinterpret_f64", I64, F64, "the bits of a"),
        row(0xBE, "f32.reinterpret_i32", F32, I32, "the bits of a"),
        row(0xBF, "f64.reinterpret_i64", F64, I64, "the bits of a"),
        row(0xC0, "i32.extend8_s", I32, I32, "low 8 bits of a, sign extended"),
        row(0xC1, "i32.extend16_s", I32, I32, "low 16 bits of a, sign extended"),
        row(0xC2, "i64.extend8_s", I64, I64, "low 8 bits of a, sign extended"),
        row(0xC3, "i64.extend16_s", I64, I64, "low 16 bits of a, sign extended"),
        row(0xC4, "i64.extend32_s", I64, I64, "low 32 bits of a, sign extended"),
    ]
    return ops


def _additions() -> list[Op]:
    """Numeric instructions that WebAssembly lacks."""
    ops = []
    for i, t in enumerate((I32, I64)):
        base = 0x0160 + 8 * i
        for j, (verb, meaning) in enumerate(
            (
                ("min_s", "the smaller, signed"),
                ("min_u", "the smaller, unsigned"),
                ("max_s", "the larger, signed"),
                ("max_u", "the larger, unsigned"),
            )
        ):
            ops.append(_numeric(base + j, f"{t.name}.{verb}", t, (t, t), meaning))
        ops.append(_numeric(base + 4, f"{t.name}.bitrev", t, (t,), "bits of a in reverse order"))
        ops.append(_numeric(base + 5, f"{t.name}.bswap", t, (t,), "bytes of a in reverse order"))
    for i, t in enumerate((F32, F64)):
        ops.append(_numeric(0x0170 + i, f"{t.name}.fma", t, (t, t, t), "a * b + c, rounded once"))
    return ops


def _functions() -> list[Op]:
    """Elementary functions: bodies in program/functions.py, so the same bits on every engine."""
    ops = []
    for i, t in enumerate((F32, F64)):
        ops.append(
            _numeric(
                0x0180 + i, f"{t.name}.rem", t, (t, t), "a - b * trunc(a / b), exact (C's fmod)", group=Group.function
            )
        )
    for i, name in enumerate(("exp", "log", "sin", "cos", "tanh")):
        ops.append(
            _numeric(0x0188 + i, f"f32.{name}", F32, (F32,), f"{name} of a, within 0.51 ulp", group=Group.function)
        )
    ops.append(_numeric(0x018D, "f32.pow", F32, (F32, F32), "a to the power b, within 0.51 ulp", group=Group.function))
    for i, (name, ulp) in enumerate((("exp", 1), ("log", 1), ("sin", 2), ("cos", 2))):
        ops.append(
            _numeric(0x0190 + i, f"f64.{name}", F64, (F64,), f"{name} of a, within {ulp} ulp", group=Group.function)
        )
    return ops


OPCODES: Final[tuple[Op, ...]] = tuple(
    _control()
    + _data()
    + _results()
    + _integers(I32, 0x45, 0x67)
    + _integers(I64, 0x50, 0x79)
    + _floats(F32, 0x5B, 0x8B)
    + _floats(F64, 0x61, 0x99)
    + _conversions()
    + _additions()
    + _functions()
)
BY_NAME: Final[dict[str, Op]] = {op.name: op for op in OPCODES}
BY_CODE: Final[dict[int, Op]] = {op.code: op for op in OPCODES}
DENSE: Final[dict[int, int]] = {op.code: i for i, op in enumerate(OPCODES)}
"""Position of each code in the table: a small number for engines that switch on it."""

assert len(BY_NAME) == len(BY_CODE) == len(OPCODES), "an instruction is declared once"
