"""A program as a listing that people read and write, and back.

Owns: the grammar of listings. Leaves to others: one instruction's spelling (show), numbers (literals), whether the
program is valid (verifier): a listing can say wrong programs too, so that the verifier's tests are listings.

    ; a comment goes to the end of its line
    program q6                          ; optional, as each line up to the first instruction
    fuel 1000
    input price f64                     ; also output, emit: a name and a memory type
    param limit f64 = 2.5               ; a default is optional
    table weights f32 read              ; or atomic
    accumulator total sum f64           ; or min, max, count
    accumulator spread histogram i64 256
        f64.load r0, price              ; the register written, then the operand by name, then the registers read
        f64.param r1, limit
        f64.lt r2, r0, r1
        if r2                           ; jump targets follow from the blocks
            f64.acc_sum total, r0
        end
        return

Registers have the type of their first mention, and constants are pooled in order of appearance, unless the lines
``registers f32 i64`` and ``constants 0x1f 0x7`` say otherwise. ``source "q6.py"`` and ``@12`` at the end of an
instruction carry a line map; a listing without them is its own. ``#3`` is an operand by index, and
``raw 0x0fff 0 0 0 0 0`` an instruction by its fields.
"""

from __future__ import annotations

import difflib
import json
import re
from collections.abc import Iterable, Sequence
from typing import Any, Final, NoReturn

from vyre.errors import ListingError
from vyre.program.ir import Accumulator, Instr, Line, Param, Program, Stream, Table
from vyre.program.literals import read_bits, read_param, show_param
from vyre.program.opcodes import (
    BY_CODE,
    BY_NAME,
    DEFAULT_FUEL,
    MAX_BLOCK_DEPTH,
    Access,
    AccKind,
    Imm,
    MemType,
    Op,
    Type,
)
from vyre.program.show import printable, raw, show, unused_fields

_NUMBER: Final = re.compile(r"\d{1,19}\Z", re.ASCII)
_REGISTER: Final = re.compile(r"r(\d{1,3})\Z", re.ASCII)
_INDEX: Final = re.compile(r"#(\d{1,5})\Z", re.ASCII)
_AT: Final = re.compile(r"\s@(\d{1,10})\Z", re.ASCII)
_WORD: Final = re.compile(r"(0[xX][0-9a-fA-F]{1,16}|\d{1,20})\Z", re.ASCII)
_IF, _ELSE, _END = (BY_NAME[name].code for name in ("if", "else", "end"))
_LOOP, _BR_IF = BY_NAME["loop"].code, BY_NAME["br_if"].code
_KINDS: Final = {
    Imm.input: "input",
    Imm.output: "output",
    Imm.param: "param",
    Imm.table: "table",
    Imm.acc: "accumulator",
    Imm.emit: "emit",
}
_DECLARATIONS: Final = ("program", "source", "fuel", *_KINDS.values(), "registers", "constants")


def targets(codes: Sequence[int]) -> list[int]:
    """The immediates that the block structure gives to if, else, loop and br_if; 0 for all others.

    Args:
        codes: the instructions' codes, balanced or not: a block that is never closed has target 0.
    """
    aims = [0] * len(codes)
    stack: list[int] = []
    loops: list[int] = []  # those of the stack that are loops
    for pc, code in enumerate(codes):
        if code in (_IF, _LOOP):
            stack.append(pc)
            if code == _LOOP:
                loops.append(pc)
        elif code == _BR_IF and loops:
            aims[pc] = loops[-1] + 1
        elif code in (_ELSE, _END) and stack:
            opened = stack.pop()
            aims[opened] = pc + (code == _ELSE)
            if codes[opened] == _LOOP:
                loops.pop()
            if code == _ELSE:
                stack.append(pc)
    return aims


# --- writing --------------------------------------------------------------------------------------------------


def format(program: Program, *, lines: bool = True, pcs: bool = False) -> str:
    """The listing of a program; parse() of it gives an equal program.

    Args:
        lines: write the line map, as ``@12`` behind instructions.
        pcs: write each instruction's index in a comment.
    """
    head = [f"program {program.name}"]
    if lines and program.source:
        head.append(f"source {json.dumps(printable(program.source), ensure_ascii=False)}")
    if program.fuel != DEFAULT_FUEL:
        head.append(f"fuel {program.fuel}")
    head += [f"input {s.name} {s.dtype.name}" for s in program.inputs]
    for p in program.params:
        default = "" if p.default is None else f" = {show_param(p.dtype, p.default)}"
        head.append(f"param {p.name} {p.dtype.name}{default}")
    head += [f"table {t.name} {t.dtype.name} {t.access.name}" for t in program.tables]
    head += [f"output {s.name} {s.dtype.name}" for s in program.outputs]
    for a in program.accumulators:
        bins = f" {a.bins}" if a.bins or a.kind is AccKind.histogram else ""
        head.append(f"accumulator {a.name} {a.kind.name} {a.dtype.name}{bins}")
    head += [f"emit {s.name} {s.dtype.name}" for s in program.emits]
    spelled = _spelled(program)
    if _inferred(program, spelled) != program.registers:
        head.append(" ".join(["registers", *(Type(t).name for t in program.registers)]))
    if _pooled(program, spelled) != program.constants:
        head.append(" ".join(["constants", *(f"{bits:#x}" for bits in program.constants)]))
    return "\n".join([*head, "", *_body(program, spelled, lines, pcs)]) + "\n"


def _spelled(program: Program) -> list[tuple[str, Op | None]]:
    """Each instruction as written, with its row when it is written by name and so mentions registers."""
    aims = targets([instr.op for instr in program.code])
    pool = program.constants
    first: dict[int, int] = {}
    for index, bits in enumerate(pool):
        first.setdefault(bits, index)
    spelled: list[tuple[str, Op | None]] = []
    for pc, instr in enumerate(program.code):
        op = BY_CODE.get(instr.op)
        if op is None or unused_fields(op, instr) or (op.imm is Imm.target and instr.imm != aims[pc]):
            spelled.append((raw(instr), None))
        elif op.imm is Imm.const and instr.imm < len(pool) and first[pool[instr.imm]] != instr.imm:
            spelled.append((f"{op.name} r{instr.dst}, #{instr.imm}", op))  # a literal means the first of these bits
        else:
            spelled.append((show(program, pc), op))
    return spelled


def _body(program: Program, spelled: list[tuple[str, Op | None]], lines: bool, pcs: bool) -> Iterable[str]:
    marks: dict[int, int] = dict(program.lines) if lines else {}
    depth = 1
    for pc, instr in enumerate(program.code):
        if instr.op in (_ELSE, _END) and depth > 1:
            depth -= 1
        line = "    " * min(depth, MAX_BLOCK_DEPTH + 1) + spelled[pc][0]
        if pc in marks:
            line = f"{line} @{marks[pc]}"
        yield f"{line:<40} ; {pc}" if pcs else line
        if instr.op in (_IF, _ELSE, _LOOP):
            depth += 1


def _inferred(program: Program, spelled: list[tuple[str, Op | None]]) -> tuple[Type, ...]:
    """The registers that a listing of this code declares by mentioning them."""
    types: dict[int, Type] = {}
    for instr, (_, op) in zip(program.code, spelled, strict=True):
        if op is not None:
            _mention(types, op, instr)
    return _dense(types)


def _mention(types: dict[int, Type], op: Op, instr: Instr) -> None:
    if op.result is not None:
        types.setdefault(instr.dst, op.result)
    for reg, type_ in zip(instr[2:], op.args, strict=False):
        types.setdefault(reg, type_)


def _dense(types: dict[int, Type]) -> tuple[Type, ...]:
    return tuple(types.get(reg, Type.i32) for reg in range(max(types, default=-1) + 1))


def _pooled(program: Program, spelled: list[tuple[str, Op | None]]) -> tuple[int, ...]:
    """The constant pool that a listing of this program has without a ``constants`` line."""
    pool: dict[int, None] = {}
    for instr, (_, op) in zip(program.code, spelled, strict=True):
        if op is not None and op.imm is Imm.const and instr.imm < len(program.constants) and op.result:
            bits = program.constants[instr.imm]
            if bits >> (8 * op.result.size):
                return ()  # no literal says such a constant
            pool[bits] = None
    return tuple(pool)


# --- reading --------------------------------------------------------------------------------------------------


def parse(text: str, source: str = "") -> Program:
    """The program that a listing says; not verified.

    Args:
        text: the listing.
        source: file that it comes from, for errors and for the line map.
    Raises:
        ListingError: a line that cannot be read; its message starts with ``file:line:``.
    """
    reader = _Reader(source)
    for number, line in enumerate(text.split("\n"), 1):
        reader.line(number, line)
    return reader.program()


class _Reader:
    """What has been read so far. One per listing."""

    def __init__(self, source: str) -> None:
        self.source = source
        self.number = 0
        self.name = "program"
        self.mapped: str | None = None  # the source line's path
        self.fuel = DEFAULT_FUEL
        self.declared: dict[str, list[Any]] = {kind: [] for kind in _KINDS.values()}
        self.index: dict[str, dict[str, int]] = {kind: {} for kind in _KINDS.values()}
        self.types: dict[int, Type] = {}
        self.registers: tuple[Type, ...] | None = None
        self.pool: dict[int, int] = {}
        self.constants: list[int] = []
        self.pool_given = False
        self.code: list[Instr] = []
        self.aimed: set[int] = set()  # pcs whose target the blocks give
        self.own: list[Line] = []
        self.marks: list[Line] = []
        self.seen: set[str] = set()

    def fail(self, why: str, fix: str = "") -> NoReturn:
        raise ListingError(f"{self.source or '<listing>'}:{self.number}: {why}", fix=fix)

    def suggest(self, word: str, known: Iterable[str]) -> str:
        near = difflib.get_close_matches(word, list(known), n=1) if len(word) <= 80 else []  # it takes quadratic time
        return f"did you mean {near[0]}?" if near else ""

    def line(self, number: int, text: str) -> None:
        """Take in one line."""
        self.number = number
        text = text.strip()
        if text.startswith("source") and text[6:7].isspace():
            self.declare("source", text[6:].strip())
            return
        text = text.partition(";")[0].rstrip()
        if not text:
            return
        word, _, rest = (text.replace("\t", " ") + " ").partition(" ")
        if word in _DECLARATIONS:
            self.declare(word, rest.strip())
        elif word == "raw":
            self.raw(rest)
        elif word in BY_NAME:
            self.instruction(BY_NAME[word], rest)
        else:
            self.fail(
                f"{_short(word)} is neither an instruction nor a declaration",
                self.suggest(word, (*BY_NAME, *_DECLARATIONS, "raw")),
            )

    # --- declarations

    def declare(self, word: str, rest: str) -> None:
        if self.code:
            self.fail(f"{word} stands after an instruction", "move it before the first instruction")
        if word not in self.declared:
            if word in self.seen:
                self.fail(f"a second {word} line")
            self.seen.add(word)
        parts = rest.split()
        if word == "source":
            self.mapped = self.quoted(rest)
        elif word == "program":
            self.name = self.identifier(self.only(word, parts, "a name"))
        elif word == "fuel":
            self.fuel = self.integer(self.only(word, parts, "a number"))
        elif word == "registers":
            self.registers = tuple(self.choice(Type, part, "a compute type") for part in parts)
        elif word == "constants":
            self.constants = [self.word(part) for part in parts]
            self.pool_given = True
            for index, bits in enumerate(self.constants):
                self.pool.setdefault(bits, index)
        elif word == "param":
            self.param(rest)
        else:
            self.stream(word, parts)

    def stream(self, word: str, parts: list[str]) -> None:
        form = {
            "table": "a name, a memory type, and read or atomic",
            "accumulator": "a name, a kind, a memory type, and for a histogram its number of bins",
        }.get(word, "a name and a memory type")
        if len(parts) not in {"table": (3,), "accumulator": (3, 4)}.get(word, (2,)):
            self.fail(f"{word} {_short(' '.join(parts))}: {word} takes {form}")
        name = self.identifier(parts[0])
        if word == "table":
            entry: Any = Table(name, self.mem_type(parts[1]), self.choice(Access, parts[2], "an access"))
        elif word == "accumulator":
            kind = self.choice(AccKind, parts[1], "an accumulator kind")
            entry = Accumulator(name, kind, self.mem_type(parts[2]), self.integer(parts[3]) if parts[3:] else 0)
        else:
            entry = Stream(name, self.mem_type(parts[1]))
        self.add(word, entry)

    def param(self, rest: str) -> None:
        left, equals, literal = rest.partition("=")
        parts = left.split()
        if len(parts) != 2:
            self.fail(f"param {_short(rest)}: param takes a name and a memory type, and = with a default")
        name, dtype = self.identifier(parts[0]), self.mem_type(parts[1])
        default = None
        if equals:
            try:
                default = read_param(dtype, literal.strip())
            except ValueError as error:
                self.fail(f"param {name}: {_short(str(error))}")
        self.add("param", Param(name, dtype, default))

    def add(self, kind: str, entry: Any) -> None:
        self.index[kind].setdefault(entry.name, len(self.declared[kind]))
        self.declared[kind].append(entry)

    # --- instructions

    def instruction(self, op: Op, rest: str) -> None:
        rest = self.marked(rest)
        parts = [part.strip() for part in rest.split(",")] if rest else []
        takes = [] if op.result is None else [f"a register ({op.result.name})"]
        named = op.imm not in (Imm.none, Imm.target)
        if named:
            takes.append("a literal" if op.imm is Imm.const else f"the name of one of the {op.imm.value}")
        takes += [f"a register ({type_.name})" for type_ in op.args]
        if len(parts) != len(takes):
            self.fail(f"{op.name} takes {', '.join(takes) or 'no operands'}; here are {len(parts)} operands")
        dst = 0 if op.result is None else self.register(parts.pop(0))
        imm = self.operand(op, parts.pop(0)) if named else 0
        a, b, c = (*map(self.register, parts), 0, 0, 0)[:3]
        instr = Instr(op.code, dst, a, b, c, imm)
        _mention(self.types, op, instr)
        if op.imm is Imm.target:
            self.aimed.add(len(self.code))
        self.append(instr)

    def raw(self, rest: str) -> None:
        parts = self.marked(rest).split()
        values = [self.word(part) for part in parts]
        if len(values) != 6 or values[0] > 0xFFFF or values[5] > 0xFFFF or max(values[1:5]) > 0xFF:
            self.fail("raw takes the six fields code dst a b c imm: two bytes, four times one byte, two bytes")
        self.append(Instr(*values))

    def append(self, instr: Instr) -> None:
        self.own.append(Line(len(self.code), self.number))
        self.code.append(instr)

    def marked(self, rest: str) -> str:
        """The operands, with the line mark at their end taken in and away."""
        rest = f" {rest.strip()}"
        match = _AT.search(rest)
        if match:
            self.marks.append(Line(len(self.code), int(match[1])))
            rest = rest[: match.start()]
        return rest.strip()

    def register(self, text: str) -> int:
        match = _REGISTER.match(text)
        if not match or int(match[1]) > 255:
            self.fail(f"{_short(text)} is no register", "registers are r0 to r63")
        return int(match[1])

    def operand(self, op: Op, text: str) -> int:
        match = _INDEX.match(text)
        if match and int(match[1]) <= 0xFFFF:
            return int(match[1])
        if op.imm is not Imm.const:
            kind = _KINDS[op.imm]
            found = self.index[kind].get(text)
            if found is None:
                elsewhere = next((other for other, names in self.index.items() if text in names), None)
                fix = f"it is declared as {elsewhere}" if elsewhere else self.suggest(text, self.index[kind])
                self.fail(f"{op.name}: no {kind} is called {_short(text)}", fix)
            return found
        assert op.result is not None, "a constant has a type"
        try:
            bits = read_bits(op.result, text)
        except ValueError as error:
            self.fail(f"{op.name}: {_short(str(error))}")
        if bits not in self.pool:
            if self.pool_given:
                self.fail(f"{op.name}: {_short(text)} is {bits:#x}, which the constants line does not have")
            self.pool[bits] = len(self.constants)
            self.constants.append(bits)
        if self.pool[bits] > 0xFFFF:
            self.fail(f"{op.name}: a pool of more than 65536 constants")
        return self.pool[bits]

    # --- words

    def only(self, word: str, parts: list[str], what: str) -> str:
        if len(parts) != 1:
            self.fail(f"{word} takes {what}, not {_short(' '.join(parts)) or 'nothing'}")
        return parts[0]

    def identifier(self, text: str) -> str:
        if not text.isidentifier():
            self.fail(f"{_short(text)} is no identifier", "use letters, digits and underscores")
        return text

    def integer(self, text: str) -> int:
        if not _NUMBER.match(text):
            self.fail(f"{_short(text)} is no number")
        return int(text)

    def word(self, text: str) -> int:
        if not _WORD.match(text) or int(text, 0 if text[:2].lower() == "0x" else 10) >= 1 << 64:
            self.fail(f"{_short(text)} is no number of at most 64 bits")
        return int(text, 0 if text[:2].lower() == "0x" else 10)

    def mem_type(self, text: str) -> MemType:
        found: MemType = self.choice(MemType, text, "a memory type")
        return found

    def choice(self, enum: Any, text: str, what: str) -> Any:
        if text not in enum.__members__:
            known = ", ".join(enum.__members__)
            self.fail(f"{_short(text)} is not {what}: {known}", self.suggest(text, enum.__members__))
        return enum[text]

    def quoted(self, rest: str) -> str:
        try:
            path, end = json.JSONDecoder().raw_decode(rest) if rest.startswith('"') else ("", 0)
        except ValueError:
            path, end = "", 0
        after = rest[end:].strip()
        if not path.isprintable() or (after and not after.startswith(";")):
            self.fail(f"source {_short(rest)}: source takes a path in double quotes, of printable characters")
        return path

    def program(self) -> Program:
        aims = targets([instr.op for instr in self.code])
        code = [instr._replace(imm=aims[pc]) if pc in self.aimed else instr for pc, instr in enumerate(self.code)]
        given = self.mapped is not None or bool(self.marks)
        return Program(
            name=self.name,
            inputs=tuple(self.declared["input"]),
            outputs=tuple(self.declared["output"]),
            params=tuple(self.declared["param"]),
            tables=tuple(self.declared["table"]),
            accumulators=tuple(self.declared["accumulator"]),
            emits=tuple(self.declared["emit"]),
            registers=_dense(self.types) if self.registers is None else self.registers,
            constants=tuple(self.constants),
            code=tuple(code),
            fuel=self.fuel,
            source=(self.mapped or "") if given else self.source,
            lines=tuple(self.marks if given else self.own),
        )


def _short(text: str) -> str:
    """Foreign text as it may stand in a message: printable and not endless."""
    return printable(text) if len(text) <= 120 else printable(text[:120]) + "..."


__all__ = ["ListingError", "format", "parse", "targets"]
