"""Appends instructions one by one and gives a ``Program``: what front ends, tests and the listing reader build with.

Owns: register numbers, the constant pool, jump targets, the line map, and the fit of many virtual registers into
the 64 of VIR0. Leaves to others: whether the program is valid (verifier): a builder accepts what can be written down
and refuses only what cannot.
"""

from __future__ import annotations

import difflib
import heapq
import struct
from dataclasses import replace
from typing import Any, Final, NoReturn

from vyre.errors import VerifyError
from vyre.program.ir import Accumulator, Instr, Line, Param, Program, Stream, Table
from vyre.program.opcodes import (
    BY_NAME,
    DEFAULT_FUEL,
    MAX_REGISTERS,
    OPCODES,
    Access,
    AccKind,
    Group,
    MemType,
    Type,
)

_METHOD: Final = {"if": "if_", "else": "else_", "end": "end", "loop": "loop", "br_if": "br_if", "return": "build"}
_SHAPE: Final = {
    # Control instructions have targets, so they have methods of their own: -1 sends op() to its refusal.
    op.name: (op.code, op.result, -1 if op.name in _METHOD else len(op.args))
    for op in OPCODES
}
_FIELDS: Final = {op.code: (op.result is not None, len(op.args)) for op in OPCODES}
_CONST: Final = {t: BY_NAME[f"{t.name}.const"].code for t in Type}
_IF, _ELSE, _END = (BY_NAME[name].code for name in ("if", "else", "end"))
_LOOP, _BR_IF, _RETURN = (BY_NAME[name].code for name in ("loop", "br_if", "return"))
_new = tuple.__new__  # a NamedTuple's own constructor is Python code and costs twice as much
_PACK_F32, _PACK_F64 = struct.Struct("<f").pack, struct.Struct("<d").pack


def const_bits(type_: Type, value: int | float) -> int:
    """Bits of a Python value as a constant of ``type_``: zeros above 32 bits for i32 and f32.

    Args:
        value: for i32 and i64 an int, signed or unsigned; for f32 and f64 a number, rounded to nearest even.
    Raises:
        VerifyError: the value does not fit, or is of the wrong kind.
    """
    if type_ is Type.f64:
        return int.from_bytes(_PACK_F64(value), "little")
    if type_ is Type.f32:
        try:
            return int.from_bytes(_PACK_F32(value), "little")
        except OverflowError:
            raise VerifyError(f"constant {value!r} is beyond the range of f32", rule="constant") from None
    width = 8 * type_.size
    if not isinstance(value, int) or not -(1 << (width - 1)) <= value < 1 << width:
        raise VerifyError(f"constant {value!r} does not fit {type_.name}", rule="constant")
    return value & ((1 << width) - 1)


class Builder:
    """A program under construction. Not thread-safe; build() may be called once.

    Declarations return their index, which is the ``imm`` of the instructions that use them; instructions return the
    register that they write. Registers are virtual and unlimited: build() maps them to 64 when there are more.

    Example:
        b = Builder("double")
        x, y = b.input("x", MemType.f32), b.output("y", MemType.f32)
        v = b.op("f32.load", imm=x)
        b.op("f32.store", b.op("f32.add", v, v), imm=y)
        program = b.build()
    """

    __slots__ = (
        "_accumulators", "_blocks", "_code", "_constants", "_emits", "_inputs", "_line", "_lines", "_outputs",
        "_params", "_pool", "_registers", "_tables", "fuel", "name", "source",
    )  # fmt: skip

    def __init__(self, name: str = "program", *, fuel: int = DEFAULT_FUEL, source: str = "") -> None:
        self.name = name
        self.fuel = fuel
        self.source = source
        self._inputs: list[Stream] = []
        self._outputs: list[Stream] = []
        self._params: list[Param] = []
        self._tables: list[Table] = []
        self._accumulators: list[Accumulator] = []
        self._emits: list[Stream] = []
        self._registers: list[Type] = []
        self._constants: list[int] = []
        self._pool: dict[int, int] = {}
        self._code: list[Instr] = []
        self._blocks: list[int] = []
        self._lines: list[Line] = []
        self._line = 0

    # --- declarations -----------------------------------------------------------------------------------------

    def input(self, name: str, dtype: MemType) -> int:
        """Declare an input stream; its index is the imm of a load."""
        self._inputs.append(Stream(name, dtype))
        return len(self._inputs) - 1

    def output(self, name: str, dtype: MemType) -> int:
        """Declare an output stream; its index is the imm of a store."""
        self._outputs.append(Stream(name, dtype))
        return len(self._outputs) - 1

    def param(self, name: str, dtype: MemType, default: int | None = None) -> int:
        """Declare a uniform scalar. ``default`` is its 64 bits in memory form, or None when it must be given."""
        self._params.append(Param(name, dtype, default))
        return len(self._params) - 1

    def table(self, name: str, dtype: MemType, access: Access = Access.read) -> int:
        """Declare a table; its index is the imm of table_get or of an atomic update."""
        self._tables.append(Table(name, dtype, access))
        return len(self._tables) - 1

    def accumulator(self, name: str, kind: AccKind, dtype: MemType, bins: int = 0) -> int:
        """Declare a reduction over all elements; ``bins`` is for a histogram only."""
        self._accumulators.append(Accumulator(name, kind, dtype, bins))
        return len(self._accumulators) - 1

    def emit_stream(self, name: str, dtype: MemType) -> int:
        """Declare an ordered compaction; its index is the imm of an emit."""
        self._emits.append(Stream(name, dtype))
        return len(self._emits) - 1

    # --- instructions -----------------------------------------------------------------------------------------

    @property
    def pc(self) -> int:
        """Index of the next instruction."""
        return len(self._code)

    def at(self, line: int) -> None:
        """Say that the instructions from here on were written in source line ``line`` (from 1)."""
        if line != self._line:
            pc = len(self._code)
            if self._lines and self._lines[-1].pc == pc:
                self._lines.pop()
            self._lines.append(Line(pc, line))
            self._line = line

    def reg(self, type_: Type) -> int:
        """A new register of ``type_``, for a variable that several instructions write (``dst=``)."""
        self._registers.append(type_)
        return len(self._registers) - 1

    def type_of(self, reg: int) -> Type:
        """The declared type of a register."""
        return self._registers[reg]

    def op(self, name: str, *regs: int, imm: int = 0, dst: int | None = None) -> Any:
        """Append one instruction.

        Args:
            name: any instruction but those of control, which have methods of their own.
            regs: registers in the order of the instruction's operands.
            imm: index of a declaration or of a constant.
            dst: register to write; a new one of the right type when None.
        Returns:
            The register written (int), or None for an instruction without a result.
        Raises:
            VerifyError: no such instruction, or another number of registers.
        """
        shape = _SHAPE.get(name)
        if shape is None:
            self._unknown(name)
        code, result, arity = shape
        if result is None:
            dst = None
            d = 0
        elif dst is None:
            registers = self._registers
            d = dst = len(registers)
            registers.append(result)
        else:
            d = dst
        if len(regs) != arity:
            self._miscounted(name, len(regs))
        fields: tuple[int, ...]
        if arity == 2:
            fields = (code, d, regs[0], regs[1], 0, imm)
        elif arity == 1:
            fields = (code, d, regs[0], 0, 0, imm)
        elif arity == 0:
            fields = (code, d, 0, 0, 0, imm)
        else:
            fields = (code, d, *regs, imm)
        self._code.append(_new(Instr, fields))
        return dst

    def const(self, type_: Type, value: int | float, *, dst: int | None = None) -> int:
        """Append a constant given as a Python value; see ``const_bits`` for what fits. Returns its register.

        A float type takes a float. An int is refused there, because it could mean a value or a bit pattern: write
        ``float(value)``, or use ``bits``.
        """
        if type_.is_float and not isinstance(value, float):
            raise VerifyError(
                f"constant {value!r} for {type_.name} is an {type(value).__name__}",
                rule="constant",
                fix=f"b.const(Type.{type_.name}, float(...)) for a value, b.bits(Type.{type_.name}, ...) for a bit pattern",
            )
        return self.bits(type_, const_bits(type_, value), dst=dst)

    def bits(self, type_: Type, bits: int, *, dst: int | None = None) -> int:
        """Append a constant given as its bit pattern, below 2**32 for i32 and f32. Returns its register."""
        pool = self._pool
        index = pool.get(bits)
        if index is None:
            index = pool[bits] = len(self._constants)
            self._constants.append(bits)
        if dst is None:
            dst = len(self._registers)
            self._registers.append(type_)
        self._code.append(_new(Instr, (_CONST[type_], dst, 0, 0, 0, index)))
        return dst

    def if_(self, cond: int) -> None:
        """Open a block that runs where i32 ``cond`` is not 0."""
        self._blocks.append(len(self._code))
        self._code.append(Instr(_IF, 0, cond))

    def else_(self) -> None:
        """Begin the other branch of the open ``if``."""
        if not self._blocks or self._code[self._blocks[-1]].op != _IF:
            raise VerifyError(f"else at pc {self.pc} without an open if", rule="control", pc=self.pc)
        start = self._blocks.pop()
        self._code[start] = self._code[start]._replace(imm=self.pc + 1)
        self._blocks.append(self.pc)
        self._code.append(Instr(_ELSE))

    def loop(self) -> None:
        """Open a loop: a do-while, closed by br_if() and end()."""
        self._blocks.append(len(self._code))
        self._code.append(Instr(_LOOP))

    def br_if(self, cond: int) -> None:
        """Go round the innermost open loop again where i32 ``cond`` is not 0; end() must follow."""
        loop = self._blocks[-1] if self._blocks else 0
        self._code.append(Instr(_BR_IF, 0, cond, 0, 0, loop + 1))

    def end(self) -> None:
        """Close the innermost open block."""
        if not self._blocks:
            raise VerifyError(f"end at pc {self.pc} without an open block", rule="control", pc=self.pc)
        start = self._blocks.pop()
        self._code[start] = self._code[start]._replace(imm=self.pc)
        self._code.append(Instr(_END))

    # --- the end ----------------------------------------------------------------------------------------------

    def build(self) -> Program:
        """Append ``return`` and give the program, not yet verified.

        Raises:
            VerifyError: more than 64 registers hold values that are still needed at one point, or a block is open.
        """
        code = self._code
        if self._blocks:
            opened = code[self._blocks[-1]]
            word = {_IF: "if", _ELSE: "else", _LOOP: "loop"}[opened.op]
            raise VerifyError(
                f"{word} at pc {self._blocks[-1]} is not closed", rule="control", pc=self._blocks[-1], fix="add an end"
            )
        code.append(_new(Instr, (_RETURN, 0, 0, 0, 0, 0)))
        program = Program(
            name=self.name,
            inputs=tuple(self._inputs),
            outputs=tuple(self._outputs),
            params=tuple(self._params),
            tables=tuple(self._tables),
            accumulators=tuple(self._accumulators),
            emits=tuple(self._emits),
            registers=tuple(self._registers),
            constants=tuple(self._constants),
            code=tuple(code),
            fuel=self.fuel,
            source=self.source,
            lines=tuple(self._lines),
        )
        return program if len(self._registers) <= MAX_REGISTERS else fit_registers(program)

    def _unknown(self, name: str) -> NoReturn:
        near = difflib.get_close_matches(name, _SHAPE, n=1)
        raise VerifyError(
            f"unknown instruction {name!r} at pc {self.pc}",
            rule="opcode",
            pc=self.pc,
            fix=f"did you mean {near[0]!r}?" if near else "",
        )

    def _miscounted(self, name: str, count: int) -> NoReturn:
        if name in _METHOD:
            raise VerifyError(f"{name} is no plain instruction", rule="control", fix=f"use Builder.{_METHOD[name]}()")
        raise VerifyError(
            f"{name} at pc {self.pc} takes {len(BY_NAME[name].args)} registers, not {count}",
            rule="operand",
            pc=self.pc,
        )


def fit_registers(program: Program) -> Program:
    """The same program with its registers shared by values that are never needed at the same time.

    A value lives from its first to its last mention; one that is older than a loop and mentioned in it lives to the
    loop's end, for the next round. Registers keep one type each, so values of different types never share.

    Raises:
        VerifyError: 64 registers are not enough, or a register is read before it is assigned (sharing would hide it).
    Source:
        Linear scan: Poletto and Sarkar, "Linear Scan Register Allocation", TOPLAS 1999.
    """
    from vyre.program.verifier import check_code  # not at the top: the verifier is needed on this rare path only

    check_code(program)
    first: dict[int, int] = {}
    last: dict[int, int] = {}
    loops: list[tuple[int, int]] = []
    for pc, instr in enumerate(program.code):
        has_result, arity = _FIELDS[instr.op]
        for reg in (*instr[2 : 2 + arity], *((instr.dst,) if has_result else ())):
            first.setdefault(reg, pc)
            last[reg] = pc
        if instr.op == _LOOP:
            loops.append((instr.imm, pc))
    for end, start in sorted(loops):  # inner loops first: an outer one extends what they extended
        for reg, at in last.items():
            if first[reg] < start <= at < end:
                last[reg] = end
    types: list[Type] = []
    place: dict[int, int] = {}
    free: dict[Type, list[int]] = {t: [] for t in Type}
    active: list[tuple[int, int]] = []
    for reg in sorted(first, key=first.__getitem__):
        while active and active[0][0] <= first[reg]:  # an instruction reads before it writes
            done = heapq.heappop(active)[1]
            free[types[done]].append(done)
        type_ = Type(program.registers[reg])
        if free[type_]:
            place[reg] = free[type_].pop()
        else:
            place[reg] = len(types)
            types.append(type_)
        heapq.heappush(active, (last[reg], place[reg]))
        if len(types) > MAX_REGISTERS:
            raise VerifyError(
                f"more than {MAX_REGISTERS} registers are needed at pc {first[reg]}, where {len(active)} values are live",
                rule="limit",
                pc=first[reg],
                fix="use values sooner after they are computed, or split the program",
            )
    code = []
    for instr in program.code:
        has_result, arity = _FIELDS[instr.op]
        a, b, c = (*(place[reg] for reg in instr[2 : 2 + arity]), 0, 0, 0)[:3]
        code.append(Instr(instr.op, place[instr.dst] if has_result else 0, a, b, c, instr.imm))
    return replace(program, registers=tuple(types), code=tuple(code))


assert all(op.group is Group.control for op in OPCODES if op.name in _METHOD)
