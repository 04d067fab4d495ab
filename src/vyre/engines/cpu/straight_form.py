"""The Python side of straight: its table of facts and its memory.

Owns: when the table is made again, workspaces. Leaves to others: the facts themselves (plan, analysis, handlers), rules (program/straight_check).
"""

from __future__ import annotations

import ctypes
import platform
import struct
from array import array
from collections.abc import Callable
from functools import cache
from typing import Final

from vyre import jit
from vyre.engines.cpu import plan
from vyre.engines.cpu import straight_layout as s
from vyre.engines.cpu.handlers import Form
from vyre.engines.cpu.straight import lower_straight, straight
from vyre.kept import kept_ir
from vyre.native import Unit
from vyre.program import analysis, verifier
from vyre.program.formula_later import read_natively
from vyre.program.ir import Instr, Program
from vyre.program.opcodes import OPCODES, MemType, Op
from vyre.program.straight_check import check, check_straight, rules_table
from vyre.program.words import described, index_of_entries

_MINE: Final = frozenset(plan.KINDS.values()) - {plan.IF, plan.ELSE, plan.END, plan.LOOP, plan.BR_IF}
_Native = Callable[[int, int, bytes, bytes], int]
_INSTR_CLASS: Final = {Instr}


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
    words = array("Q", bytes(s.H_BYTES + s.FACT_BYTES * (len(OPCODES) + 1)))  # the last ones are of what is no opcode
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


class Lowering:
    """Verifies and lowers programs natively, with the handlers that are compiled. Thread-safe."""

    def __init__(self, addresses: dict[str, int], store: jit.ObjectStore | None) -> None:
        self._addresses = addresses
        self._known = -1
        self._table = array("Q")
        self._rules = rules_table().buffer_info()[0]
        self._workspaces: list[tuple[ctypes.Array[ctypes.c_char], int, memoryview]] = []
        self._natives = _compiled(store)  # type: ignore[arg-type]  # a store hashes by itself
        if self._natives is not None:
            verifier.quick.check = self.check
            read_natively(store)

    def check(self, program: Program) -> bool:
        """True only when the code keeps every rule; its declarations do."""
        code = program.__dict__.get("code")
        try:
            if code is not None and set(map(type, code)) != _INSTR_CLASS:
                return False
            words, packed = described(program), program.packed
        except (struct.error, TypeError):  # a number that has no room: the verifier says where
            return False
        assert self._natives is not None
        try:
            memory = self._workspaces.pop()
        except IndexError:
            memory = _workspace()
        fine = bool(self._natives[0](memory[1], self._rules, packed, words))
        self._workspaces.append(memory)
        return fine

    def lower(self, program: Program) -> Form | None:
        """Prologue, body and what else a tile form has; None when the program is not one for ``straight``."""
        if self._natives is None:
            return None
        if len(self._addresses) != self._known:
            self._refresh()
        try:
            memory = self._workspaces.pop()
        except IndexError:
            memory = _workspace()
        table = self._table
        found = self._natives[1](memory[1], table.buffer_info()[0], program.packed, described(program))
        form = None
        if found:
            bodies = memory[2]
            split = _BEFORE - 64 * (found >> 16 & 0xFFFF)
            body = bytes(bodies[_BEFORE : _BEFORE + 64 * (found & 0xFFFF)])
            form = bytes(bodies[split:_BEFORE]), body, found >> 32 & 0x7FFF_FFFF, False, True, bool(found >> 63)
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
        table[s.H_INDEX // 8] = index_of_entries(s.H_BYTES, s.FACT_BYTES).buffer_info()[0]
        self._table, self._known = table, known


_BEFORE: Final = s.A_BODY - s.A_PROLOGUE


def _workspace() -> tuple[ctypes.Array[ctypes.c_char], int, memoryview]:
    memory = (ctypes.c_char * (s.WORKSPACE_BYTES + 64))()
    address = ctypes.addressof(memory)
    skip = -address % 64
    return memory, address + skip, memoryview(memory).cast("B")[skip + s.A_PROLOGUE :]


@cache
def _compiled(store: jit.ObjectStore | None) -> tuple[_Native, _Native] | None:
    """check_straight and lower_straight; None on a machine that native functions are not written for."""
    arch = platform.machine()
    if arch not in ("x86_64", "aarch64"):
        return None
    names = [check_straight.__name__, lower_straight.__name__]
    addresses = jit.compile_ir(kept_ir(lambda: Unit("first use", check, straight), arch, names, store), names, store)
    # They are over sooner than giving up the GIL and taking it back would be.
    kind = ctypes.PYFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64, ctypes.c_char_p, ctypes.c_char_p)
    checks: _Native = kind(addresses[names[0]])
    lowers: _Native = kind(addresses[names[1]])
    return checks, lowers
