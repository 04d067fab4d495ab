"""The Python side of straight: its table of facts, its memory, and a program in the words that it reads.

Owns: when the table is made again, workspaces. Leaves to others: the facts themselves (plan, analysis, handlers).
"""

from __future__ import annotations

import ctypes
import platform
import struct
from array import array
from collections.abc import Callable
from functools import cache
from operator import itemgetter
from typing import Any, Final

from vyre.engines.cpu import jit, plan
from vyre.engines.cpu import straight as s
from vyre.engines.cpu.handlers import Form
from vyre.program import analysis
from vyre.program.ir import Program
from vyre.program.opcodes import OPCODES, MemType, Op

_MINE: Final = frozenset(plan.KINDS.values()) - {plan.IF, plan.ELSE, plan.END, plan.LOOP, plan.BR_IF}
_dtype: Final[Callable[[Any], int]] = itemgetter(1)  # of a Stream or Table
_bins: Final[Callable[[Any], int]] = itemgetter(3)  # of an Accumulator
_Native = Callable[[int, int, bytes, bytes], int]


def _names(op: Op) -> tuple[str, ...]:
    """Handlers of an instruction, two per form; "" where it has none or its memory type decides."""
    p = plan.PLANS[op.code]
    plain = p.names
    if p.kind in (plan.INDEX, plan.ACC, plan.UNREACHABLE):
        plain = (op.name, op.name)
    return (*plain, *p.uniform_b, *p.uniform_a, *p.uniform_c)


def _flags(op: Op) -> int:
    """What ``straight`` reads of an instruction in one word."""
    p = plan.PLANS[op.code]
    _, makes_nan, args, rule, _ = analysis.RULES[op.code]
    flags = p.kind | args << s.F_ARGS | p.size << s.F_SIZE | rule << s.F_RULE
    once = p.kind == plan.ACC and op.name.endswith("acc_sum") and op.args[0].is_float
    fast = p.kind == plan.COMPUTE and p.same and p.args < 3
    for bit, present in (
        (s.F_FAST, fast), (s.F_SAME, p.same), (s.F_SWAP, p.swap), (s.F_NAN, makes_nan),
        (s.F_UNIFORM_B, p.uniform_b[0]), (s.F_UNIFORM_A, p.uniform_a[0]), (s.F_UNIFORM_C, p.uniform_c[0]),
        (s.F_ONCE, once), (s.F_MINE, p.kind in _MINE),
    ):  # fmt: skip
        flags |= bit if present else 0
    return flags


@cache
def _layout() -> tuple[array[int], list[tuple[int, str]]]:
    """The table without addresses, and the word at which each handler's address belongs."""
    words = array("Q", bytes(s.H_BYTES + s.FACT_BYTES * len(OPCODES)))
    places = [(s.H_RETURN // 8, "return")]
    for i, size in enumerate((4, 8)):
        places += [(s.H_FILL // 8 + i, f"fill.{size}"), (s.H_COPY // 8 + i, f"copy.{size}")]
    for m in MemType:
        words[s.H_IDENTITY // 8] |= m.is_identity << m
        words[s.H_SHOWN // 8] |= (m in analysis.SHOWN) << m
        words[s.H_SIZES // 8 + m] = m.type.size
        if not m.is_identity:
            places.append((s.H_LOAD // 8 + m, f"load.{m.name}"))
        places.append((s.H_STORE // 8 + m, plan.store_name(m, masked=False)))
        places.append((s.H_EMIT // 8 + m, plan.emit_name(m, "all")))
        places.append((s.H_TABLE // 8 + m, f"table_get.{m.name}"))
    for i, op in enumerate(OPCODES):
        at = (s.H_BYTES + s.FACT_BYTES * i) // 8
        words[at] = _flags(op)
        places += [(at + 1 + j, name) for j, name in enumerate(_names(op)) if name]
    return words, places


@cache
def _index() -> array[int]:
    """Where the facts of each opcode are, in bytes from the table's start; those of op 0 for no opcode at all."""
    index = array("I", [s.H_BYTES]) * 65_536
    for i, op in enumerate(OPCODES):
        index[op.code] = s.H_BYTES + s.FACT_BYTES * i
    return index


@cache
def _words(count: int) -> Callable[..., bytes]:
    return struct.Struct(f"<{count}Q").pack


class Lowering:
    """Lowers programs with the handlers that are compiled. Thread-safe."""

    def __init__(self, addresses: dict[str, int], store: jit.ObjectStore | None) -> None:
        self._addresses = addresses
        self._known = -1
        self._table = array("Q")
        self._workspaces: list[tuple[ctypes.Array[ctypes.c_char], int, memoryview]] = []
        self._native = _compiled(store)  # type: ignore[arg-type]  # a store hashes by itself

    def lower(self, program: Program) -> Form | None:
        """Prologue, body, scratch slots, no fuel; None when the program is not one for ``straight``."""
        if self._native is None:
            return None
        addresses = self._addresses
        if len(addresses) != self._known:
            self._refresh()
        code, constants = program.code, program.constants
        inputs, outputs, tables = program.inputs, program.outputs, program.tables
        emits, accs = program.emits, program.accumulators
        words = [
            len(code), len(constants), len(inputs), len(outputs), len(tables), len(emits), len(accs), *constants,
            *map(_dtype, inputs), *map(_dtype, outputs),
        ]  # fmt: skip
        if tables or emits or accs:
            words += [*map(_dtype, tables), *map(_dtype, emits), *map(_bins, accs)]
        try:
            memory = self._workspaces.pop()
        except IndexError:
            memory = _workspace()
        table = self._table
        found = self._native(
            memory[1],
            table.buffer_info()[0],
            program.packed,
            _words(len(words))(*words),
        )
        form = None
        if found:
            bodies = memory[2]
            split = _BEFORE - 64 * (found >> 16 & 0xFFFF)
            form = (
                bytes(bodies[split:_BEFORE]),
                bytes(bodies[_BEFORE : _BEFORE + 64 * (found & 0xFFFF)]),
                found >> 32,
                False,
            )
        self._workspaces.append(memory)
        return form

    def _refresh(self) -> None:
        """The table with the addresses there are now. A new array: another thread may be reading the old one."""
        addresses = self._addresses
        known = len(addresses)
        layout, places = _layout()
        table = layout[:]
        for at, name in places:
            table[at] = addresses.get(name, 0)
        table[s.H_INDEX // 8] = _index().buffer_info()[0]
        self._table, self._known = table, known


_BEFORE: Final = s.A_BODY - s.A_PROLOGUE


def _workspace() -> tuple[ctypes.Array[ctypes.c_char], int, memoryview]:
    memory = (ctypes.c_char * (s.WORKSPACE_BYTES + 64))()
    address = ctypes.addressof(memory)
    skip = -address % 64
    return memory, address + skip, memoryview(memory).cast("B")[skip + s.A_PROLOGUE :]


@cache
def _compiled(store: jit.ObjectStore | None) -> _Native | None:
    """The native function; None on a machine that native functions are not written for."""
    arch = platform.machine()
    if arch not in ("x86_64", "aarch64"):
        return None
    name = s.lower_straight.__name__
    address = jit.compile_ir(s.straight.ir(arch, [name]), [name], store)[name]
    # It is over sooner than giving up the GIL and taking it back would be.
    kind = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_char_p)
    native: _Native = kind(address)
    return native
