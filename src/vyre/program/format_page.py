"""Prints docs/format.md from the tables: ``python -m vyre.program.format_page > docs/format.md``.

Owns: the page's words. Leaves to others: every fact on it: instructions and types (opcodes), layout (bytecode), rules
(verifier). A test compares the file with what this prints, so the page cannot fall behind.
"""

from __future__ import annotations

import sys
from collections.abc import Iterable, Sequence
from typing import Final

from vyre.program.bytecode import SECTIONS, SOURCE_BYTES_MAX, VERSION
from vyre.program.opcodes import (
    DEFAULT_FUEL,
    FAULT_REASONS,
    MAX_BLOCK_DEPTH,
    OPCODES,
    Access,
    AccKind,
    FaultCode,
    Group,
    Imm,
    MemType,
    Nan,
    Op,
    Type,
)
from vyre.program.verifier import ACC_TYPES, ATOMIC_TYPES, PARAM_TYPES, RULES

_HEAD: Final = f"""\
# VIR0, version {VERSION[0]}.{VERSION[1]}

*Printed from the tables in `src/vyre/program/` by `python -m vyre.program.format_page`. Do not edit: change a table and
print it again.*

A VIR0 program is data-parallel over elements. It declares inputs and outputs (typed streams with one value for each
element), parameters (uniform scalars), tables (memory with a length), accumulators (reductions) and emits (ordered
compactions). Its code is straight registers with structured control; it has no pointers and no recursion, every memory
operand is a declared name checked against its length, and every loop is under fuel.

Scalar instructions have the names, semantics (deterministic profile) and codes of WebAssembly's; those with the prefix
`0xFC` keep it as the high byte of their code. What WebAssembly lacks has codes from `0x0100` on.
"""

_FILE: Final = f"""\
## The file

All numbers are little-endian. Sections start at multiples of 8 in this order, without gaps but for zero padding, and
everything reserved is 0: a program has exactly one file. A reader refuses what deviates, and a file of another version,
before 1.0 also of another minor one: write it again from its source.

| offset | bytes | header |
|---|---|---|
| 0 | 4 | magic `VIR0` |
| 4 | 2 + 2 | version: major, minor |
| 8 | 4 | number of sections: {len(SECTIONS)} |
| 12 | 4 | 0 |
| 16 | 8 | length of the file |
| 24 | 32 | identity: BLAKE2b-256, personalised `VIR0`, over sections 1 to 4 with their padding |
| 56 | 8 | check: BLAKE2b-64, personalised `VIR0`, over sections 5 and 6 with their padding |
| 64 | 24 each | section table: u32 number, u32 0, u64 offset, u64 length without padding |
"""

_SECTIONS: Final = f"""\
Sections 1 to 4 say what the program does; the identity is of them alone. Names, source path and line map only describe.

**Declarations** start with 16 bytes: u8 numbers of inputs, outputs, parameters, tables, accumulators, emits and registers,
u8 0, u16 number of constants, u16 number of instructions, u32 fuel. Then 8 bytes for each declaration, in that order of
kinds: u8 memory type, u8 detail (a parameter: 1 when it has a default; a table: its access; an accumulator: its kind; else
0), u16 0, u32 number of bins of a histogram, else 0. Then for each parameter a u64, its default or 0.

**Names** are UTF-8 separated by one zero byte: program, source path (at most {SOURCE_BYTES_MAX} bytes, or empty), then each
declaration's, in the order of declarations. **Lines** are sorted by pc; an entry holds up to the next.

**An instruction** is 8 bytes: u16 code, u8 dst, u8 a, u8 b, u8 c, u16 imm. Fields that it does not use are 0.
"""

_TYPES: Final = """\
## Types

A register holds one of four compute types; memory also holds narrower ones, which loads widen and stores narrow.
Signedness is in the instruction, not in the register.
"""

_MEANING: Final = {
    MemType.i8: "sign extended; stores wrap",
    MemType.u8: "zero extended; stores wrap",
    MemType.i16: "sign extended; stores wrap",
    MemType.u16: "zero extended; stores wrap",
    MemType.f16: "exact, NaN canonical; stores round to nearest even, keep subnormals, overflow to infinity, NaN 0x7E00",
    MemType.bf16: "exact, NaN canonical; stores round to nearest even, keep subnormals, overflow to infinity, NaN 0x7FC0",
    MemType.bool: "any byte but 0 loads as 1; any value but 0 is stored as 1",
}

_SEMANTICS: Final = f"""\
## How a program runs

**Elements** are numbered over the whole stream. A tile is 1,024 elements from a multiple of 1,024 on, a span 1,024 tiles.

**Control** is structured, at most {MAX_BLOCK_DEPTH} blocks deep. `if` takes any i32 but 0 as true. `loop` runs its body,
whose last instruction is `br_if`, and again as long as that says so: a do-while. A `while` is an `if` around a `loop`.

**Fuel** is the number of taken `br_if` that one element may have, in all its loops together; the next one traps. It is
declared with the program, {DEFAULT_FUEL:,} unless said otherwise.

**Traps.** An element stops at its first trap. An item's fault is that of its lowest trapping element: code, pc, index of
the element. A faulted item delivers no output, emit or accumulator; tables that it updates are indeterminate.

**Sums.** An integer sum wraps. A float sum is in f64: each element has a partial that starts at -0.0 and takes its updates
in program order; a tile is halved (for s = 512, 256 .. 1: x[i] += x[i+s] for i < s), absent elements being -0.0; a span's
tiles likewise; spans are added from left to right, from +0.0. A NaN result is canonical.

**Min and max** of floats are those of the instructions `min` and `max`. Of nothing they are the identity: the largest or
smallest value, infinity for floats. A **count** is of values other than 0. A **histogram** traps on an index beyond its bins.

**Emits** come out in element order, at most one for each element and emit.

**Tables** are bound by name and have one dimension; an index is compared unsigned with the length, beyond it is a trap.
A read-only table is gathered from; an atomic one takes updates that commute and is not read by the program.

**NaN.** An instruction that computes a float yields the canonical NaN, `0x7FC00000` or `0x7FF8000000000000`; one that moves
bits keeps them. A store keeps them too where memory and register have the same type.
"""

_ENTRY_FORMS: Final = {
    Imm.none: "",
    Imm.const: "constant",
    Imm.input: "input",
    Imm.output: "output",
    Imm.param: "parameter",
    Imm.table: "table",
    Imm.acc: "accumulator",
    Imm.emit: "emit",
    Imm.target: "pc",
}

_GROUPS: Final = {
    Group.control: "Control",
    Group.data: "Constants, moves, streams, parameters, tables",
    Group.result: "Accumulators and emits",
    Group.numeric: "Numeric",
    Group.function: "Elementary functions",
}

_FUNCTIONS: Final = """\
These have one body each, written in the instructions above (`program/functions.py`), so that they give the same bits on
every engine. f32 ones are evaluated in f64.
"""

_LISTING: Final = """\
## The listing

A text form that `vyre dis` prints and `vyre asm` reads; both ways keep every bit. One declaration or instruction on a line,
`;` starts a comment, and all lines before the first instruction are optional:

    program q6
    fuel 1000
    input price f64
    param limit f64 = 2.5
    table weights f32 read
    output y f16
    accumulator total sum f64
    accumulator spread histogram i64 256
    emit row i64

        f64.load r0, price
        f64.param r1, limit
        f64.lt r2, r0, r1
        if r2
            f64.acc_sum total, r0
        end
        return

(The program above is shown for its forms: the verifier would ask where `y` is stored.) Operands are in the order: register
written; the input, output, parameter, table, accumulator or emit by name, or the constant as a literal; registers read.
Jump targets follow from the blocks. Float literals are decimal, hexadecimal (`0x1.8p+1`), `inf`, `nan` (the canonical one)
or `nan:0x1` (that payload), each with an optional sign.

A register has the type of its first mention and constants are pooled in order of appearance, unless the lines
`registers f32 i64` and `constants 0x1f 0x7` say otherwise. `source "q6.py"` and `@12` at the end of an instruction carry a
line map. `#3` is an operand by its index and `raw 0x0fff 0 0 0 0 0` an instruction by its fields, for what has no name.
"""


def _table(head: Sequence[str], rows: Iterable[Sequence[object]]) -> list[str]:
    lines = [f"| {' | '.join(head)} |", "|" + "---|" * len(head)]
    # A vertical bar in a cell would end it.
    lines += [f"| {' | '.join(str(cell).replace('|', chr(92) + '|') for cell in row)} |" for row in rows]
    return [*lines, ""]


def _names(members: Iterable[MemType]) -> str:
    return ", ".join(m.name for m in sorted(members))


def _instruction(op: Op) -> tuple[object, ...]:
    operands = [t.name for t in op.args]
    nan = {Nan.none: "", Nan.moves: "moves", Nan.canonical: "canonical"}[op.nan]
    return (
        f"`{op.code:#06x}`",
        f"`{op.name}`",
        op.result.name if op.result is not None else "",
        " ".join(operands),
        _ENTRY_FORMS[op.imm],
        nan,
        ", ".join(code.name for code in op.traps),
        op.meaning,
    )


def page() -> str:
    """The page in Markdown."""
    lines = [_HEAD, _FILE]
    lines += _table(("number", "section", "holds"), ((i, n, what) for i, (n, what) in enumerate(SECTIONS, 1)))
    lines += [_SECTIONS, _TYPES]
    lines += _table(
        ("code", "memory type", "bytes", "in a register", "loads and stores"),
        ((int(m), m.name, m.size, m.type.name, _MEANING.get(m, "the same bits")) for m in MemType),
    )
    lines += [f"Registers have the codes {', '.join(f'{int(t)} ({t.name})' for t in Type)}.", ""]
    lines += ["A parameter travels as 8 bytes, zeros above its type, and is one of " + _names(PARAM_TYPES) + ".", ""]
    lines += _table(("code", "access of a table", "types"), [
        (int(a), a.name, "all" if a is Access.read else _names(ATOMIC_TYPES)) for a in Access
    ])  # fmt: skip
    lines += _table(("code", "kind of accumulator", "types"), [(int(k), k.name, _names(ACC_TYPES[k])) for k in AccKind])
    lines += [_SEMANTICS, "## Faults", ""]
    lines += ["Codes below 16 are traps of the program and the same on every engine; the others are refusals.", ""]
    lines += _table(
        ("code", "name", "as conformance files say it"),
        ((int(c), c.name, FAULT_REASONS[c]) for c in FaultCode if c is not FaultCode.none),
    )
    lines += ["## Instructions", "", f"{len(OPCODES)} of them. Operands are the registers a, b, c, by type.", ""]
    for group, title in _GROUPS.items():
        lines += [f"### {title}", ""]
        if group is Group.function:
            lines.append(_FUNCTIONS)
        lines += _table(
            ("code", "name", "result", "operands", "imm", "NaN", "traps", "meaning"),
            (_instruction(op) for op in sorted(OPCODES, key=lambda op: op.code) if op.group is group),
        )
    lines += ["## Rules", "", "The verifier refuses a program that breaks one, by this name and with the place.", ""]
    lines += _table(("rule", "says"), ((f"`{rule}`", says) for rule, says in RULES.items()))
    return "\n".join([*lines, _LISTING])


if __name__ == "__main__":
    sys.stdout.write(page())
