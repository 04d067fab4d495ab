"""A program in the words that native functions read, whichever engine they belong to.

Owns: the order of those words, and where an opcode's entry lies in a table. Leaves to others: what native functions make
of them (straight_check, engines).
"""

from __future__ import annotations

import struct
from array import array
from collections.abc import Callable
from functools import cache
from operator import itemgetter
from typing import Any, Final

from vyre.program.ir import Program
from vyre.program.opcodes import OPCODES

# u64 words, by byte offset: counts, then in their order constants, streams' memory types, tables (access << 8 | memory
# type), memory types of emits, bins of accumulators, memory types of parameters, accumulators (kind << 8 | memory type),
# types of registers.
P_CODE = 0
P_CONSTANTS = 8
P_INPUTS = 16
P_OUTPUTS = 24
P_TABLES = 32
P_EMITS = 40
P_ACCS = 48
P_PARAMS = 56
P_REGISTERS = 64
P_WORDS = 72

_dtype: Final[Callable[[Any], int]] = itemgetter(1)  # of a Stream, Table or Param
_bins: Final[Callable[[Any], int]] = itemgetter(3)  # of an Accumulator


@cache
def _words(count: int) -> Callable[..., bytes]:
    return struct.Struct(f"<{count}Q").pack


def described(program: Program) -> bytes:
    """A program's declarations, constants and registers as P_CODE and what follows it say."""
    global _last
    known, found = _last
    if known is program:  # it is lowered right after it was verified, and that right after it was read
        return found
    constants, inputs, outputs = program.constants, program.inputs, program.outputs
    tables, emits, accs, params = program.tables, program.emits, program.accumulators, program.params
    registers = program.registers
    words = [
        program.instructions, len(constants), len(inputs), len(outputs), len(tables), len(emits), len(accs), len(params),
        len(registers), *constants, *map(_dtype, inputs), *map(_dtype, outputs),
    ]  # fmt: skip
    if tables or emits or accs or params:
        words += [t.access << 8 | t.dtype for t in tables]
        words += [*map(_dtype, emits), *map(_bins, accs), *map(_dtype, params)]
        words += [a.kind << 8 | a.dtype for a in accs]
    words += registers
    found = _words(len(words))(*words)
    _last = program, found
    return found


def described_from(program: Program, constants: bytes, registers: bytes) -> bytes:
    """``described`` of a program whose constants and registers are at hand as a file holds them."""
    if program.tables or program.emits or program.accumulators or program.params:
        return described(program)
    inputs, outputs = program.inputs, program.outputs
    counts = _words(9)(
        len(program.packed) // 8, len(constants) // 8, len(inputs), len(outputs), 0, 0, 0, 0, len(registers)
    )
    dtypes = _words(len(inputs) + len(outputs))(*map(_dtype, inputs), *map(_dtype, outputs))
    types = bytearray(8 * len(registers))
    types[::8] = registers
    return b"".join((counts, constants, dtypes, types))


def remember(program: Program, words: bytes) -> None:
    """Say what ``described`` will give. Only from who made the program of these words: see ``made_of_words``."""
    global _last, _made
    _last = program, words
    _made = program


def made_of_words(program: Program) -> bool:
    """Whether it was made of words just now, so that its registers are types and its constants have 64 bits."""
    return _made is program


_last: tuple[Program | None, bytes] = None, b""
_made: Program | None = None


@cache
def index_of_entries(start: int, entry_bytes: int) -> array[int]:
    """u32[65536]: byte offset of each opcode's entry in a table with one for each of OPCODES in their order.

    Behind them comes one more, for whatever is no opcode.
    """
    index = array("I", [start + entry_bytes * len(OPCODES)]) * 65_536
    for i, op in enumerate(OPCODES):
        index[op.code] = start + entry_bytes * i
    return index
