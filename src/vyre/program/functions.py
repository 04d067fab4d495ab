"""Elementary functions and rem as VIR0: handed out as bodies, or expanded into a program.

A function instruction means its body, on every engine. An engine either compiles the body into one handler or runs the
program that ``inline`` makes, where only base instructions are left. Owns: the expansion. Leaves to others: algorithms
(function_bodies), their notation (function_trace), constants (function_tables), execution (engines).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Final

from vyre.program.ir import Instr, Line, Program, Table
from vyre.program.opcodes import BY_NAME, OPCODES, Group, Imm, Type

__all__ = ["BODIES", "MAX_INLINE_REGISTERS", "Function", "inline"]

FUNCTION_NAMES: Final[dict[int, str]] = {op.code: op.name for op in OPCODES if op.group is Group.function}
"""Name of each function instruction by its code."""

MAX_INLINE_REGISTERS: Final = 250
"""Registers are u8 in an instruction; an expanded program uses at most this many."""

_NO_RESULT: Final = frozenset(op.code for op in OPCODES if op.result is None)
_HAS_TARGET: Final = frozenset(op.code for op in OPCODES if op.imm is Imm.target)
_HAS_TABLE: Final = frozenset(op.code for op in OPCODES if op.imm is Imm.table)
_ARITY: Final = {op.code: len(op.args) for op in OPCODES}
_CONST: Final = {t: BY_NAME[f"{t.name}.const"].code for t in Type}


@dataclass(frozen=True)
class Function:
    """The body of one function instruction.

    Attributes:
        name: of the instruction, as in opcodes.
        args: types of its operands; they are registers 0 to n - 1 and are never written.
        result: type of what it yields.
        program: code over base instructions that ends with return; no streams, parameters or accumulators.
        result_register: written by the last instruction before return and by no other.
        tables: u64 bit patterns of each declared table of ``program``, low bits first. Every index is in range for every
            argument, even where an engine computes the inside of an ``if`` that is not taken.
    """

    name: str
    args: tuple[Type, ...]
    result: Type
    program: Program
    result_register: int
    tables: tuple[tuple[int, ...], ...]

    @property
    def constants(self) -> int:
        """How many instructions at the start of the code are constants; no other instruction is one."""
        return len(self.program.constants)


class _Bodies(Mapping[str, Function]):
    """Bodies by instruction name, each written when it is first asked for (0.2 to 2 ms) and kept."""

    def __init__(self) -> None:
        self._built: dict[str, Function] = {}

    def __getitem__(self, name: str) -> Function:
        if name not in self._built:
            if name not in FUNCTION_NAMES.values():
                raise KeyError(name)
            from vyre.program.function_bodies import (
                build,
            )  # algorithms and coefficients: only for programs that call them

            self._built[name] = build(name)
        return self._built[name]

    def __iter__(self) -> Iterator[str]:
        return iter(FUNCTION_NAMES.values())

    def __len__(self) -> int:
        return len(FUNCTION_NAMES)


BODIES: Final[Mapping[str, Function]] = _Bodies()
"""The body of every function instruction, by its name."""


def inline(
    program: Program, keep: frozenset[str] = frozenset()
) -> tuple[Program, tuple[int, ...], tuple[tuple[int, ...], ...]]:
    """Expand function instructions into base instructions.

    What comes out is a form for engines, not a program to store: it may have up to ``MAX_INLINE_REGISTERS`` registers, and
    blocks two deeper than the verifier allows. Calls share scratch registers. Constants of bodies stand at the start, once
    each, in registers that nothing else writes (where those would be too many: in front of each call). Bodies have no
    loops and no traps, so fuel and faults are those of ``program``.

    Args:
        program: a valid program.
        keep: names of function instructions to leave as they are.
    Returns:
        The expanded program; the pc in ``program`` of each of its instructions (constants at the start: 0); the contents
        of the tables that it declares after the program's own, as u64 bit patterns. Without function instructions, the same
        program, its own pcs and no tables.
    """
    calls = dict.fromkeys(FUNCTION_NAMES[i.op] for i in program.code if i.op in FUNCTION_NAMES)
    used = [BODIES[name] for name in calls if name not in keep]
    if not used:
        return program, tuple(range(len(program.code))), ()
    layout = _Layout(program, used)
    code: list[Instr] = list(layout.prologue)
    origin = [0] * len(code)
    moved: list[int] = []  # new pc of each old one
    for pc, instr in enumerate(program.code):
        moved.append(len(code))
        name = FUNCTION_NAMES.get(instr.op)
        if name is None or name in keep:
            code.append(instr)
        else:
            code += layout.expand(name, instr, len(code))
        origin += [pc] * (len(code) - len(origin))
    for pc, instr in enumerate(program.code):
        if instr.op in _HAS_TARGET:
            code[moved[pc]] = instr._replace(imm=moved[instr.imm])
    expanded = Program(
        name=program.name,
        inputs=program.inputs,
        outputs=program.outputs,
        params=program.params,
        tables=program.tables + tuple(layout.tables),
        accumulators=program.accumulators,
        emits=program.emits,
        registers=tuple(layout.registers),
        constants=tuple(layout.constants),
        code=tuple(code),
        fuel=program.fuel,
        source=program.source,
        lines=tuple(Line(moved[line.pc], line.line) for line in program.lines),
    )
    return expanded, tuple(origin), tuple(layout.contents)


class _Layout:
    """Where the registers, constants and tables of the used bodies lie in the expanded program."""

    def __init__(self, program: Program, used: list[Function]) -> None:
        self.registers = list(program.registers)
        self.constants = list(program.constants)
        self.tables: list[Table] = []
        self.contents: list[tuple[int, ...]] = []
        self.prologue: list[Instr] = []
        self._functions = {f.name: f for f in used}
        self._first_table: dict[str, int] = {}
        self._pool = {bits: i for i, bits in enumerate(self.constants)}
        for f in used:
            self._first_table[f.name] = len(program.tables) + len(self.tables)
            self.tables += f.program.tables
            self.contents += f.tables
        shared: dict[tuple[Type, int], int] = {}
        for f in used:
            for instr in f.program.code[: f.constants]:
                shared.setdefault((f.program.registers[instr.dst], f.program.constants[instr.imm]), 0)
        scratch = {f.name: self._scratch_of(f, f.constants) for f in used}
        places = self._places(scratch)
        self.hoisted = len(self.registers) + sum(map(len, places.values())) + len(shared) <= MAX_INLINE_REGISTERS
        if not self.hoisted:
            scratch = {f.name: self._scratch_of(f, 0) for f in used}
            places = self._places(scratch)
        first = len(self.registers)
        for t, numbers in places.items():
            places[t] = [first + i for i in range(len(numbers))]
            self.registers += [t] * len(numbers)
            first += len(numbers)
        if self.hoisted:
            for t, bits in shared:
                shared[t, bits] = len(self.registers)
                self.prologue.append(Instr(_CONST[t], len(self.registers), imm=self._constant(bits)))
                self.registers.append(t)
        assert len(self.registers) <= MAX_INLINE_REGISTERS, "bodies reuse scratch registers and need fewer"
        self._map: dict[str, list[int]] = {}
        for f in used:
            place = [0] * len(f.program.registers)
            for t, numbers in scratch[f.name].items():
                for number, target in zip(numbers, places[t], strict=False):
                    place[number] = target
            if self.hoisted:
                for instr in f.program.code[: f.constants]:
                    place[instr.dst] = shared[f.program.registers[instr.dst], f.program.constants[instr.imm]]
            self._map[f.name] = place

    @staticmethod
    def _scratch_of(f: Function, constants: int) -> dict[Type, list[int]]:
        """Registers of a body that need scratch, by type: all but arguments, result and its first ``constants`` constants."""
        elsewhere = {*range(len(f.args)), f.result_register, *(i.dst for i in f.program.code[:constants])}
        found: dict[Type, list[int]] = {t: [] for t in Type}
        for number, t in enumerate(f.program.registers):
            if number not in elsewhere:
                found[t].append(number)
        return found

    @staticmethod
    def _places(scratch: dict[str, dict[Type, list[int]]]) -> dict[Type, list[int]]:
        """As many places of each type as the body with most of them needs."""
        return {t: max((numbers[t] for numbers in scratch.values()), key=len) for t in Type}

    def _constant(self, bits: int) -> int:
        if bits not in self._pool:
            self._pool[bits] = len(self.constants)
            self.constants.append(bits)
        return self._pool[bits]

    def expand(self, name: str, call: Instr, start: int) -> list[Instr]:
        """The body for one call. Its last instruction alone writes the call's dst, so dst may be one of the operands."""
        f = self._functions[name]
        place = self._map[name]
        place[: len(f.args)] = (call.a, call.b, call.c)[: len(f.args)]
        place[f.result_register] = call.dst
        skip = f.constants if self.hoisted else 0
        tables = self._first_table[name]
        out = []
        for op, dst, a, b, c, imm in f.program.code[skip:-1]:
            count = _ARITY[op]
            if op in _HAS_TARGET:
                imm += start - skip
            elif op in _HAS_TABLE:
                imm += tables
            elif op in _CONST.values():
                imm = self._constant(f.program.constants[imm])
            out.append(
                Instr(
                    op,
                    0 if op in _NO_RESULT else place[dst],
                    place[a] if count > 0 else 0,
                    place[b] if count > 1 else 0,
                    place[c] if count > 2 else 0,
                    imm,
                )
            )
        return out
