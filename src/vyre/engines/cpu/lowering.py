"""What is known while a program is lowered: where registers lie, which scratch is free, the records so far.

Owns: scratch slots and their users, uniforms and their splats, the list of records. Leaves to others: what to do about an
instruction (tileform, instructions) and what has to be known beforehand (survey).
"""

from __future__ import annotations

from typing import Final

from vyre.engines.cpu.abi import OP_BYTES, SCRATCH_SLOTS
from vyre.engines.cpu.handlers import Handlers
from vyre.program.analysis import Analysis
from vyre.program.ir import Program
from vyre.program.opcodes import MemType, Type

FIELDS: Final = 10
"""Numbers of a record, in the order of ``State.emit``."""
BYTES: Final = {t: t.size for t in Type}
IDENTITY: Final = (False, *(t.is_identity for t in MemType))
"""Whether a register's bits are the memory's, by the code of a memory type."""
VIRTUAL: Final = 64
"""Registers from here on are outputs that are written at the end, then emits of several places."""
UNIFORM_SLOTS: Final = 40
"""At most so many slots hold constants for the whole claim."""


class OutOfScratch(Exception):
    """The program needs more slots than a worker has."""


class State:
    """Of one run over one program."""

    def __init__(
        self,
        program: Program,
        facts: Analysis,
        handlers: Handlers,
        early_stores_wait: bool,
        paged: frozenset[int] = frozenset(),
    ) -> None:
        self.program = program
        self.paged = paged  # tables that are on disk
        self.facts = facts
        self.handlers = handlers
        self.wait = early_stores_wait
        self.addresses = handlers.addresses
        self.out: list[int] = []
        self.before: list[int] = []  # records of the prologue
        self.loc: list[int] = [-1 << 30] * VIRTUAL  # pointer table entry; ~u for uniform u
        self.size: list[int] = [BYTES[t] for t in program.registers]
        self.size += [8] * (VIRTUAL - len(self.size))
        self.have = 0  # registers that lie in scratch
        self.users: list[int] = [0] * SCRATCH_SLOTS
        self.free4: list[int] = []
        self.free8: list[int] = []
        self.next = 0
        self.top = SCRATCH_SLOTS
        self.uniforms: list[list[int]] = []  # bits, aux, bytes, slot or -1
        self.known: dict[tuple[int, int, int], int] = {}
        self.pinned = 0
        self.last_load = -1
        self.alias = 0  # registers that may be another name of an input
        self.forward: dict[int, int] = {}  # pc -> output that its result may be written to
        self.deferred: dict[int, int] = {}  # output -> virtual register
        self.flags: dict[int, tuple[int, int]] = {}  # emit -> virtual registers of value and flag
        self.partial: dict[int, bool] = {}  # float sums with partials
        self.keep = 0  # virtual registers, live to the end
        self.uses_fuel = False
        self.carried: dict[int, int] = {}  # loop's pc -> registers that it assigns and that its next round reads
        self.homes: dict[int, int] = {}  # loop's pc -> pinned registers that it assigns and that live on after it
        self.reserved: list[int] = [0]  # registers carried by the loops that are open, innermost last
        self.direct: dict[int, str] = {}  # pc -> what becomes of an instruction that only decides an if: see _decide
        self.factors: dict[int, tuple[int, int]] = {}  # pc of a sum -> where the factors of its operand lie
        self.blocks: list[tuple[int, int]] = []  # record that opened it; 1 for a loop
        self.temporary: list[tuple[int, int]] = []  # slots that are free again after this instruction
        self.mask = 0
        self.pc = 0

    # --- scratch ------------------------------------------------------------------------------------------------------

    def alloc(self, size: int) -> int:
        """A slot, or two neighbours for 8-byte lanes, with one user."""
        if size == 4:
            if self.free4:
                slot = self.free4.pop()
            elif self.free8:
                slot = self.free8.pop()
                self.free4.append(slot + 1)
            else:
                slot = self.next
                self.next = slot + 1
        elif self.free8:
            slot = self.free8.pop()
        else:
            slot = self.next
            self.next = slot + 2
        if self.next > self.top:
            self.next -= 1 if size == 4 else 2
            slot = self._join()
        self.users[slot] = 1
        return slot

    def _join(self) -> int:
        """Two free neighbours as one place for 8-byte lanes."""
        self.free4.sort()
        for left, right in zip(self.free4, self.free4[1:], strict=False):
            if left + 1 == right:
                self.free4.remove(left)
                self.free4.remove(right)
                return left
        raise OutOfScratch

    def release(self, slot: int, size: int) -> None:
        """One user less."""
        self.users[slot] -= 1
        if not self.users[slot]:
            (self.free4 if size == 4 else self.free8).append(slot)

    def drop(self, registers: int) -> None:
        """Registers of the set whose values nobody needs any more."""
        registers &= self.have
        self.have &= ~registers
        while registers:
            low = registers & -registers
            registers ^= low
            register = low.bit_length() - 1
            self.release(self.loc[register], self.size[register])

    def uniform(self, bits: int, aux: int, size: int) -> int:
        """A constant or parameter as a location: ~(its number)."""
        key = (bits, aux, size)
        number = self.known.get(key)
        if number is None:
            number = self.known[key] = len(self.uniforms)
            self.uniforms.append([bits, aux, size, -1])
        return ~number

    def vector(self, location: int) -> int:
        """The entry where the lanes are; a uniform gets a splat that the prologue fills."""
        if location >= 0:
            return location
        one = self.uniforms[~location]
        bits, aux, size, slot = one
        if slot < 0:
            need = 1 if size == 4 else 2
            if SCRATCH_SLOTS - self.top + need > UNIFORM_SLOTS or self.top - need < self.next:
                slot = self.alloc(size)  # for this record only: filled in the body
                self.emit(f"fill.{size}", slot, imm=bits, aux=aux, mask=0)
                self.temporary.append((slot, size))
                return slot
            self.top -= need
            slot = one[3] = self.top
            self.before += (self.address(f"fill.{size}"), slot, 0, 0, 0, bits, 0, 0, 0, aux)
        return slot

    # --- records ------------------------------------------------------------------------------------------------------

    def address(self, name: str) -> int:
        return self.addresses.get(name) or self.handlers.address(name)

    def emit(
        self, name: str, dst: int = 0, a: int = 0, b: int = 0, c: int = 0, imm: int = 0, aux: int = 0, mask: int = -1
    ) -> int:
        """Append a record; returns its number."""
        out = self.out
        number = len(out) // FIELDS
        address = self.addresses.get(name) or self.handlers.address(name)
        out += (address, dst, a, b, c, imm, self.mask if mask < 0 else mask, self.pc, 0, aux)
        return number

    def aim(self, record: int, to: int) -> None:
        self.out[FIELDS * record + 8] = (to - record) * OP_BYTES

    def virtual(self, size: int) -> int:
        number = len(self.loc)
        self.loc.append(-1 << 30)
        self.size.append(size)
        self.keep |= 1 << number
        return number

    def drop_temporary(self) -> None:
        for slot, size in self.temporary:
            self.release(slot, size)
        self.temporary.clear()

    def home(self, register: int, size: int) -> int:
        """The slot of a pinned register."""
        if not self.have >> register & 1:
            self.loc[register] = self.alloc(size)
            self.have |= 1 << register
        return self.loc[register]
