"""A program as an immutable value: declarations, registers, constants, code.

Owns: the shape of a program in memory. Leaves to others: whether it is valid (verifier), how it is written down
(text, bytecode), what an instruction means (opcodes).
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import lru_cache, partial
from itertools import chain
from typing import NamedTuple

from vyre.program.opcodes import DEFAULT_FUEL, Access, AccKind, MemType, Type


class Instr(NamedTuple):
    """One instruction, eight bytes in a file: u16 op, u8 dst, u8 a, u8 b, u8 c, u16 imm. Unused fields are 0."""

    op: int
    dst: int = 0
    a: int = 0
    b: int = 0
    c: int = 0
    imm: int = 0


_INSTR = struct.Struct("<HBBBBH")


@lru_cache
def _packer(count: int) -> Callable[..., bytes]:
    return struct.Struct("<" + "HBBBBH" * count).pack


def packed(code: Sequence[tuple[int, ...]]) -> bytes:
    """Instructions as a file holds them, 8 bytes each.

    Raises:
        struct.error: a number that has no room in its field.
    """
    return _packer(len(code))(*chain.from_iterable(code))


class Stream(NamedTuple):
    """An input, output or emit: one value of ``dtype`` per element (an emit: per kept element)."""

    name: str
    dtype: MemType


class Param(NamedTuple):
    """A uniform scalar. ``default`` is its 64 bits in memory form, low bits first, or None when it must be given.

    A parameter travels as 8 bytes: its ``dtype`` in the low bytes, zeros above. dtype is one of bool (0 or 1), i32,
    u32, i64, u64, f32, f64.
    """

    name: str
    dtype: MemType
    default: int | None = None


class Table(NamedTuple):
    """One-dimensional memory bound by name: gathered from (read) or updated (atomic: i32, u32, i64, u64 only)."""

    name: str
    dtype: MemType
    access: Access


class Accumulator(NamedTuple):
    """A reduction over all elements.

    dtype is what the result is: sum i64, u64 or f64; min and max i32, u32, i64, u64, f32 or f64; count i64;
    histogram i64 with ``bins`` entries. ``bins`` is 0 for the others.
    """

    name: str
    kind: AccKind
    dtype: MemType
    bins: int = 0


class Line(NamedTuple):
    """Where instructions from ``pc`` on were written, up to the next entry of the line map."""

    pc: int
    line: int


@dataclass(frozen=True)
class Program:
    """A data-parallel program over elements.

    Names, ``source`` and ``lines`` describe; they are no part of the identity. Everything else is.

    Attributes:
        name: what a person calls it; an identifier.
        registers: declared type of each register, at most 64.
        constants: pool of u64 bit patterns; an i32 or f32 constant has zeros above its 32 bits.
        code: instructions; the last one is ``return``.
        fuel: loop back-edges that one element may take, all its loops together.
        source: file that the lines refer to, "" when there is none.
        lines: sorted by pc.
    """

    name: str = "program"
    inputs: tuple[Stream, ...] = ()
    outputs: tuple[Stream, ...] = ()
    params: tuple[Param, ...] = ()
    tables: tuple[Table, ...] = ()
    accumulators: tuple[Accumulator, ...] = ()
    emits: tuple[Stream, ...] = ()
    registers: tuple[Type, ...] = ()
    constants: tuple[int, ...] = ()
    code: tuple[Instr, ...] = ()
    fuel: int = DEFAULT_FUEL
    source: str = field(default="", compare=False)
    lines: tuple[Line, ...] = field(default=(), compare=False)

    @property
    def packed(self) -> bytes:
        """The code as a file holds it, 8 bytes per instruction; made once.

        Raises:
            struct.error: a number that has no room in its field.
        """
        found: bytes | None = self.__dict__.get("_packed")
        if found is None:
            found = self.__dict__["_packed"] = packed(self.code)
        return found

    @property
    def instructions(self) -> int:
        """How many there are."""
        code = self.__dict__.get("code")
        return len(self.packed) // 8 if code is None else len(code)

    def line_of(self, pc: int) -> int | None:
        """Source line of instruction ``pc``, or None when the program has no map for it."""
        found = None
        for entry in self.lines:
            if entry.pc > pc:
                break
            found = entry.line
        return found


class _Unpacked:
    """``code`` of a program that has it packed only, as it came from a file: made when somebody first looks."""

    def __get__(self, program: Program | None, owner: type[Program]) -> tuple[Instr, ...]:
        if program is None:
            return ()
        new = partial(tuple.__new__, Instr)  # a NamedTuple's own constructor is Python code and costs twice as much
        found: tuple[Instr, ...] = tuple(map(new, _INSTR.iter_unpack(program.packed)))
        program.__dict__["code"] = found
        return found


Program.code = _Unpacked()  # type: ignore[assignment]  # no data descriptor: an instance's own code comes first
