"""From a verified program to the CPU engine's tile form: op records that a worker runs tile by tile.

Owns: where each register's lanes lie, which handler runs, when an output may be written. Leaves to others: facts about the
program (analysis), handlers, and everything about tiles, claims and results (worker).

Rules that everything here follows:

* Records run in the order of the listing, also those of branches whose lanes are all inactive (or are jumped over). A register
  that some inactive lane still needs (``Analysis.held``) is written under the mask; every other write may go to fresh scratch.
* A register that is written under a mask, or carried around a loop, is *pinned*: it owns one slot and nothing shares it. All
  others are as good as single assignments: a constant or parameter stays a uniform operand, a load of identity type is the
  input itself, a move is another name.
* An output may be the same memory as an input. So an output is written only when no later record reads an input; stores that
  come too early, or in a loop, go to scratch and are copied at the end.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from functools import cache
from typing import Final

from vyre.engines.cpu import plan as p
from vyre.engines.cpu.abi import LANES, OP_BYTES, PTR_INPUTS, PTR_OUTPUTS, SCRATCH_SLOTS
from vyre.engines.cpu.handlers import Handlers, shared
from vyre.engines.cpu.jit import ObjectStore
from vyre.errors import EngineUnavailable
from vyre.program.analysis import Analysis, HasProgram, analyse
from vyre.program.ir import Instr, Program
from vyre.program.opcodes import AccKind, MemType, Type

_FIELDS: Final = 10
_RECORD: Final = "QIIIIQIIqQ8x"
_UNIFORM_SLOTS: Final = 40  # at most so many slots hold constants for the whole claim
_BYTES: Final = {t: t.size for t in Type}
_IDENTITY: Final = (False, *(t.is_identity for t in MemType))  # by the code of a memory type
_VIRTUAL: Final = 64  # "registers" from here on: outputs that are written at the end, then emits of several places
_CONSTS: Final = (p.CONST_BYTES + 4, p.CONST_BYTES + 8)
assert struct.calcsize("<" + _RECORD) == OP_BYTES


@dataclass(frozen=True, slots=True)
class TileForm:
    """A program as op records.

    Attributes:
        prologue: run once per claimed item and worker: fills splats.
        body: run per tile. Both end with the record of ``return``.
        scratch_slots: entries of the pointer table that must point at scratch: 0 .. scratch_slots - 1.
        uses_fuel: the program has a loop.
        in_place: an output may be the same memory as an input. False only for programs with more early stores than there
            is scratch for.
    """

    prologue: bytes
    body: bytes
    scratch_slots: int
    uses_fuel: bool
    in_place: bool = True


class _OutOfScratch(Exception):
    pass


def lower(verified: HasProgram | Program, handlers: Handlers | ObjectStore | None = None) -> TileForm:
    """Tile form of a verified program; compiles the handlers that it is the first to need.

    Args:
        handlers: where handlers come from; a store or None means the process's own.
    Raises:
        EngineUnavailable: llvmlite is missing, or the program needs more scratch than a worker has.
    """
    program = verified if isinstance(verified, Program) else verified.program
    own = handlers if isinstance(handlers, Handlers) else shared(handlers)
    if (quick := own.straight(program)) is not None:
        return TileForm(*quick)
    facts = analyse(program)
    try:
        return _Lowering(program, facts, own, early_stores_wait=True).run()
    except _OutOfScratch:
        pass
    try:
        return _Lowering(program, facts, own, early_stores_wait=False).run()
    except _OutOfScratch:
        raise EngineUnavailable(
            f"program {program.name!r} needs more than the {SCRATCH_SLOTS} scratch slots of a worker",
            fix="emit from fewer places, or split the program",
        ) from None


@cache
def _packer(records: int) -> struct.Struct:
    return struct.Struct("<" + _RECORD * records)


class _Lowering:
    """One run over one program."""

    def __init__(self, program: Program, facts: Analysis, handlers: Handlers, early_stores_wait: bool) -> None:
        self.program = program
        self.facts = facts
        self.handlers = handlers
        self.wait = early_stores_wait
        self.addresses = handlers.addresses
        self.out: list[int] = []
        self.before: list[int] = []  # records of the prologue
        self.loc: list[int] = [-1 << 30] * _VIRTUAL  # pointer table entry; ~u for uniform u
        self.size: list[int] = [_BYTES[t] for t in program.registers]
        self.size += [8] * (_VIRTUAL - len(self.size))
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
        self.blocks: list[tuple[int, int]] = []  # record that opened it; 1 for a loop
        self.temporary: list[tuple[int, int]] = []  # slots that are free again after this instruction
        self.mask = 0
        self.pc = 0

    # --- before the first record ------------------------------------------------------------------------------------

    def survey(self) -> None:
        """What has to be known of later instructions: stores, loads, loops, sums and emits."""
        program, facts = self.program, self.facts
        if not facts.has_blocks:
            self._survey_straight()
            return
        stores: list[tuple[int, int, int, int, bool]] = []
        sums: dict[int, int] = {}
        emits: dict[int, int] = {}
        loops: list[list[int]] = []
        depth = 0
        blend = facts.blend
        alias = pinned = 0
        for pc, (op, dst, a, _, _, imm) in enumerate(program.code):
            plan = p.PLANS[op]
            kind = plan.kind
            if loops and plan.size:
                for loop in loops:
                    loop[1] |= 1 << dst
            if blend[pc]:
                pinned |= 1 << dst
            if kind == p.COMPUTE:
                continue
            if kind == p.LOAD:
                self.last_load = loops[0][2] if loops else pc
                alias |= 1 << dst
            elif kind == p.MOV:
                alias |= 1 << dst
            elif kind == p.STORE:
                stores.append((pc, imm, a, depth, bool(loops)))
            elif kind == p.ACC:
                if plan.op.args[0].is_float and program.accumulators[imm].kind is AccKind.sum:
                    sums[imm] = sums.get(imm, 0) + (2 if loops else 1)
            elif kind == p.EMIT:
                emits[imm] = emits.get(imm, 0) + 1
            elif kind == p.IF:
                depth += 1
                self._decide(pc, a)
            elif kind == p.LOOP:
                depth += 1
                self.uses_fuel = True
                loops.append([pc, 0, imm])
            elif kind == p.END:
                depth -= 1
                if loops and loops[-1][2] == pc:
                    start, assigned, _ = loops.pop()
                    self.carried[start] = facts.live_out[start] & assigned
                    pinned |= self.carried[start]
                    self.homes[start] = facts.live_out[pc] & assigned
        self.alias, self.pinned = alias & ~pinned, pinned
        for acc, times in sums.items():
            if times > 1:
                self.partial[acc] = True
        for stream, times in emits.items():
            if times > 1:
                size = program.emits[stream].dtype.type.size
                self.flags[stream] = self._virtual(size), self._virtual(4)
                self.pinned |= 1 << self.flags[stream][0] | 1 << self.flags[stream][1]
        self._survey_stores(stores)

    def _decide(self, pc: int, condition: int) -> None:
        """Comparisons that do nothing but decide this if, alone or joined by ``and``, go straight into its mask.

        A lane's mask is a byte where a register's lane is four or eight, and the joins vanish.
        """
        code, facts = self.program.code, self.facts
        if (facts.live_out[pc] | facts.held[pc]) >> condition & 1:
            return
        wanted = {condition}
        found: dict[int, str] = {pc: "test"}
        first = at = pc
        while wanted:
            at -= 1
            if at < 0:
                return
            op, dst, a, b, _, _ = code[at]
            plan = p.PLANS[op]
            if plan.size and dst in wanted:
                wanted.remove(dst)
                if facts.blend[at]:
                    return
                if op in p.COMPARES:
                    found[at] = ".mask.and"
                    first = at
                    continue
                after = facts.live_out[at] | facts.held[at]
                if op != p.AND or a == b or a in wanted or b in wanted or after >> a & 1 or after >> b & 1:
                    return
                found[at] = ""
                wanted |= {a, b}
            elif p.IF <= plan.kind <= p.BR_IF or not wanted.isdisjoint(code[at][2 : 2 + plan.args]):
                return
        found[first] = ".mask"
        self.direct.update(found)

    def _survey_straight(self) -> None:
        """The same for a program without blocks: what nearly every formula is."""
        program, kinds = self.program, p.KINDS
        stores: list[tuple[int, int, int, int, bool]] = []
        alias = 0
        for pc, instruction in enumerate(program.code):
            kind = kinds[instruction[0]]
            if not kind:
                continue
            if kind == p.LOAD:
                self.last_load = pc
                alias |= 1 << instruction[1]
            elif kind == p.STORE:
                stores.append((pc, instruction[5], instruction[2], 0, False))
            elif kind == p.MOV:
                alias |= 1 << instruction[1]
            elif kind == p.ACC:
                acc = instruction[5]
                if p.PLANS[instruction[0]].op.args[0].is_float and program.accumulators[acc].kind is AccKind.sum:
                    if acc in self.partial:
                        self.partial[acc] = True
                    else:
                        self.partial[acc] = False
        self.alias = alias
        self.partial = {acc: True for acc, twice in self.partial.items() if twice}
        self._survey_stores(stores)

    def _survey_stores(self, stores: list[tuple[int, int, int, int, bool]]) -> None:
        facts = self.facts
        times: dict[int, int] = {}
        deep = {output for _, output, _, depth, _ in stores if depth}
        for pc, output, _, _, in_loop in stores:
            times[output] = times.get(output, 0) + 1
            late = pc > self.last_load and not (facts.live_out[pc] | facts.held[pc]) & self.alias
            if self.wait and (in_loop or not late) and output not in self.deferred:
                virtual = self.deferred[output] = self._virtual(self.program.outputs[output].dtype.type.size)
                if output in deep:
                    self.pinned |= 1 << virtual
        for pc, output, register, depth, _ in stores:
            if depth or times[output] > 1 or output in self.deferred or self.pinned >> register & 1:
                continue
            if _IDENTITY[self.program.outputs[output].dtype]:
                self._find_forward(pc, output, register)

    def _find_forward(self, pc: int, output: int, register: int) -> None:
        """The result that this store stores may go to the output itself, when no later record reads an input."""
        code, facts = self.program.code, self.facts
        bit = 1 << register
        while pc > 0:
            pc -= 1
            plan = p.PLANS[code[pc].op]
            if p.IF <= plan.kind <= p.BR_IF:
                return
            if plan.size and code[pc].dst == register:
                late = pc >= self.last_load and not facts.live_out[pc] & self.alias & ~bit
                if late and pc not in self.forward:
                    self.forward[pc] = output
                return

    def _virtual(self, size: int) -> int:
        number = len(self.loc)
        self.loc.append(-1 << 30)
        self.size.append(size)
        self.keep |= 1 << number
        return number

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
        raise _OutOfScratch

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
            if SCRATCH_SLOTS - self.top + need > _UNIFORM_SLOTS or self.top - need < self.next:
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
        number = len(out) // _FIELDS
        address = self.addresses.get(name) or self.handlers.address(name)
        out += (address, dst, a, b, c, imm, self.mask if mask < 0 else mask, self.pc, 0, aux)
        return number

    def aim(self, record: int, to: int) -> None:
        self.out[_FIELDS * record + 8] = (to - record) * OP_BYTES

    # --- the run ------------------------------------------------------------------------------------------------------

    def run(self) -> TileForm:
        self.survey()
        for acc in self.partial:
            self.emit("sum.open", imm=acc)
        for virtual in range(_VIRTUAL, len(self.loc)):
            if self.pinned >> virtual & 1:
                self._home(virtual, self.size[virtual])
        for _, flag in self.flags.values():
            self.emit("fill.4", self.loc[flag])
        if self.facts.has_blocks:
            self._run_blocks()
        else:
            self._run_straight()
        return self._finish()

    def _run_straight(self) -> None:
        """Records of a program without blocks. Nothing is pinned, held or blended, and only operands can die.

        Every program that a session loads passes here while somebody waits, so what is frequent is written out.
        """
        facts, keep = self.facts, self.keep
        fast, loc, forward, out, users = p.FAST, self.loc, self.forward, self.out, self.users
        free4, free8 = self.free4, self.free8
        addresses, plans, uniforms, temporary = self.addresses, p.PLANS, self.uniforms, self.temporary
        constants, inputs = self.program.constants, self.program.inputs
        have = self.have  # kept in self.have wherever a method looks at it
        pc = -1
        for (op, dst, a, b, _, number), wave, fix in zip(
            self.program.code, facts.live_out, facts.canonical, strict=True
        ):
            pc += 1
            narrow, binary, names, uniform_b, uniform_a, swap, kind = fast[op]
            bit = 1 << dst
            if kind:
                if kind in _CONSTS:
                    location = ~len(uniforms)
                    uniforms.append([constants[number], 0, kind - p.CONST_BYTES, -1])
                elif kind == p.LOAD and _IDENTITY[inputs[number].dtype]:
                    location = PTR_INPUTS + number
                else:
                    self.pc, self.have = pc, have
                    instruction, plan = self.program.code[pc], plans[op]
                    if plan.kind:
                        _OTHERS[plan.kind](self, instruction, plan, wave | keep)
                        if temporary:
                            self._drop_temporary()
                        if self.have & ~(wave | keep):
                            self.drop(~(wave | keep))
                    else:
                        self._compute(pc, instruction, plan, wave | keep)
                    have = self.have
                    continue
                if have & bit:
                    self.have = have
                    self.drop(bit)
                    have = self.have
                loc[dst] = location
                continue
            la = slot_a = loc[a]
            lb = imm = aux = 0
            if binary:
                lb = slot_b = loc[b]
                if lb < 0:
                    if la >= 0 and uniform_b is not None:
                        names = uniform_b
                        imm, aux, _, _ = uniforms[~lb]
                        lb = 0
                    else:
                        self.pc = pc
                        lb, la = self.vector(lb), self.vector(la)
                elif la < 0:
                    if uniform_a is not None:
                        names = uniform_a
                        imm, aux, _, _ = uniforms[~la]
                        la = 0
                        if swap:
                            la, lb = lb, 0
                    else:
                        self.pc = pc
                        la = self.vector(la)
                if 0 <= slot_b < SCRATCH_SLOTS and b != a and (b == dst or not wave >> b & 1):
                    have &= ~(1 << b)
                    users[slot_b] -= 1
                    if not users[slot_b]:
                        (free4 if narrow else free8).append(slot_b)
            elif la < 0:
                self.pc = pc
                la = self.vector(la)
            if 0 <= slot_a < SCRATCH_SLOTS and (a == dst or not wave >> a & 1):
                have &= ~(1 << a)
                users[slot_a] -= 1
                if not users[slot_a]:
                    (free4 if narrow else free8).append(slot_a)
            if have & bit:
                self.have = have
                self.drop(bit)
                have = self.have
            if pc in forward:
                target = PTR_OUTPUTS + forward[pc]
            else:
                if narrow:
                    target = free4.pop() if free4 else self.alloc(4)
                else:
                    target = free8.pop() if free8 else self.alloc(8)
                users[target] = 1
                have |= bit
            loc[dst] = target
            name = names[fix]
            out += (addresses.get(name) or self.address(name), target, la, lb, 0, imm, 0, pc, 0, aux)
            if temporary:
                self._drop_temporary()
            if not wave & bit:
                self.have = have
                self.drop(bit)
                have = self.have

    def _uniform_operands(self, plan: p.Plan, la: int, lb: int) -> tuple[tuple[str, str], int, int, int, int]:
        """Handlers and operands of a binary instruction with a uniform operand, or two."""
        if lb < 0 <= la and plan.uniform_b[0]:
            imm, aux, _, _ = self.uniforms[~lb]
            return plan.uniform_b, la, 0, imm, aux
        if la < 0 <= lb and plan.uniform_a[0]:
            imm, aux, _, _ = self.uniforms[~la]
            return (plan.uniform_a, lb, 0, imm, aux) if plan.swap else (plan.uniform_a, 0, lb, imm, aux)
        return plan.names, self.vector(la), self.vector(lb), 0, 0

    def _run_blocks(self) -> None:
        """Records of any program."""
        live_out, held, keep = self.facts.live_out, self.facts.held, self.keep
        plans = p.PLANS
        for pc, instruction in enumerate(self.program.code):
            plan = plans[instruction.op]
            self.pc = pc
            # What a loop carries keeps its place also where nobody needs it: the next round looks for it there.
            wave = live_out[pc] | held[pc] | keep | self.reserved[-1]
            if pc in self.direct and not plan.kind:
                self._compare_to_mask(self.direct[pc], instruction, plan)
            elif plan.kind:
                _OTHERS[plan.kind](self, instruction, plan, wave)
            else:
                self._compute(pc, instruction, plan, wave)
            if self.temporary:
                self._drop_temporary()
            if self.have & ~wave:
                self.drop(~wave)

    def _compare_to_mask(self, form: str, instruction: Instr, plan: p.Plan) -> None:
        """A comparison that goes into the mask of the next block; nothing for the ``and`` that joins two."""
        if form:
            la, lb, imm, aux = self.loc[instruction.a], 0, 0, 0
            names = plan.names
            if plan.args == 1:
                la = self.vector(la)
            else:
                names, la, lb, imm, aux = self._operands(plan, la, self.loc[instruction.b])
            self.emit(names[0] + form, 0, la, lb, 0, imm, aux, self.mask + LANES)
        bit = 1 << instruction.dst
        self.drop(bit)

    def _compute(self, pc: int, instruction: Instr, plan: p.Plan, wave: int) -> None:
        """A numeric instruction or function that does not trap."""
        loc, dst, size = self.loc, instruction.dst, plan.size
        names = plan.names
        imm = aux = lb = lc = 0
        bit = 1 << dst
        la = loc[instruction.a]
        if plan.args == 1:
            la = self.vector(la)
        elif plan.args == 2:
            names, la, lb, imm, aux = self._operands(plan, la, loc[instruction.b])
        else:
            lb, lc = loc[instruction.b], loc[instruction.c]
            if la < 0 <= lb:  # a product: which factor is uniform does not matter
                la, lb = lb, la
            if lc < 0 <= la and lb >= 0 and plan.uniform_c[0]:
                names = plan.uniform_c
                imm, aux, _, _ = self.uniforms[~lc]
                lc = 0
            elif lb < 0 <= la and plan.uniform_b[0]:
                names = plan.uniform_b
                imm, aux, _, _ = self.uniforms[~lb]
                lb, lc = 0, self.vector(lc)
            else:
                la, lb, lc = self.vector(la), self.vector(lb), self.vector(lc)
        name = names[self.facts.canonical[pc]]
        blend = self.facts.blend[pc]
        if blend:
            target = self.alloc(size)
        elif self.pinned & bit:
            target = self._home(dst, size)
        elif pc in self.forward:
            self.drop(bit)
            target = loc[dst] = PTR_OUTPUTS + self.forward[pc]
        else:
            if plan.same:
                self.drop(~wave | bit)
                target = self.alloc(size)
            else:
                target = self.alloc(size)
                self.drop(bit)
            self.have |= bit
            loc[dst] = target
        self.emit(name, target, la, lb, lc, imm, aux, 0)
        if blend:
            self.emit(f"blend.{size}", self._home(dst, size), target)
            self.release(target, size)
        if self.temporary:
            self._drop_temporary()
        if self.have & ~wave:
            self.drop(~wave)

    def _operands(self, plan: p.Plan, la: int, lb: int) -> tuple[tuple[str, str], int, int, int, int]:
        if la < 0 or lb < 0:
            return self._uniform_operands(plan, la, lb)
        return plan.names, la, lb, 0, 0

    def _drop_temporary(self) -> None:
        for slot, size in self.temporary:
            self.release(slot, size)
        self.temporary.clear()

    def _home(self, register: int, size: int) -> int:
        """The slot of a pinned register."""
        if not self.have >> register & 1:
            self.loc[register] = self.alloc(size)
            self.have |= 1 << register
        return self.loc[register]

    def _finish(self) -> TileForm:
        end = self.addresses.get("return") or self.address("return"), 0, 0, 0, 0, 0, 0, 0, 0, 0
        body, before = self.out, self.before
        body += end
        before += end
        used = self.next if self.top == SCRATCH_SLOTS else SCRATCH_SLOTS
        return TileForm(
            _packer(len(before) // _FIELDS).pack(*before),
            _packer(len(body) // _FIELDS).pack(*body),
            used,
            self.uses_fuel,
            self.wait,
        )


# --- instructions that are not plain arithmetic -----------------------------------------------------------------------


def _define(
    low: _Lowering,
    dst: int,
    plan: p.Plan,
    wave: int,
    name: str,
    a: int = 0,
    b: int = 0,
    c: int = 0,
    imm: int = 0,
    aux: int = 0,
) -> None:
    """A record that computes ``dst``: into fresh scratch, its home, an output, or under the mask. Never in place."""
    size, pc = plan.size, low.pc
    bit = 1 << dst
    if low.facts.blend[pc]:
        temporary = low.alloc(size)
        low.emit(name, temporary, a, b, c, imm, aux)
        low.emit(f"blend.{size}", low._home(dst, size), temporary)
        low.release(temporary, size)
        return
    if low.pinned & bit:
        target = low._home(dst, size)
    elif pc in low.forward:
        low.drop(bit)
        target = low.loc[dst] = PTR_OUTPUTS + low.forward[pc]
    else:
        target = low.alloc(size)
        low.drop(bit)
        low.have |= bit
        low.loc[dst] = target
    low.emit(name, target, a, b, c, imm, aux)


def _assign(low: _Lowering, dst: int, size: int, location: int) -> None:
    """``dst`` := what lies at ``location``, by name where that is possible."""
    bit = 1 << dst
    if low.pinned & bit and dst < _VIRTUAL:
        blended = low.facts.blend[low.pc]
        target = low._home(dst, size)
        if location < 0:
            bits, aux, _, _ = low.uniforms[~location]
            low.emit(f"blend.u.{size}" if blended else f"fill.{size}", target, imm=bits, aux=aux)
        elif location != target:
            low.emit(f"{'blend' if blended else 'copy'}.{size}", target, location)
        return
    if 0 <= location < SCRATCH_SLOTS:
        low.users[location] += 1  # before the old value goes: it may be the same slot
        low.drop(bit)
        low.have |= bit
    else:
        low.drop(bit)
    low.loc[dst] = location


def _trapping(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, a, b, _, _ = instruction
    la = low.vector(low.loc[a])
    lb = low.vector(low.loc[b]) if plan.args > 1 else 0
    _define(low, dst, plan, wave, plan.names[0] + (".masked" if low.mask else ""), la, lb)


def _load(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, _, _, _, imm = instruction
    dtype = low.program.inputs[imm].dtype
    if dtype.is_identity:
        _assign(low, dst, plan.size, PTR_INPUTS + imm)
    else:
        _define(low, dst, plan, wave, f"load.{dtype.name}", PTR_INPUTS + imm)


def _store(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, _, a, _, _, imm = instruction
    virtual = low.deferred.get(imm)
    location = low.loc[a]
    if virtual is not None:
        _set_virtual(low, virtual, location, a)
    elif location != PTR_OUTPUTS + imm:
        dtype = low.program.outputs[imm].dtype
        low.emit(p.store_name(dtype, low.mask > 0), PTR_OUTPUTS + imm, low.vector(location))


def _set_virtual(low: _Lowering, virtual: int, location: int, register: int) -> None:
    """A value that waits for the end: under the mask into its home, else by name unless it may change or be an input."""
    size, bit = low.size[virtual], 1 << virtual
    if low.pinned & bit:
        if location < 0:
            bits, aux, _, _ = low.uniforms[~location]
            low.emit(f"blend.u.{size}" if low.mask else f"fill.{size}", low._home(virtual, size), imm=bits, aux=aux)
        else:
            low.emit(f"{'blend' if low.mask else 'copy'}.{size}", low._home(virtual, size), location)
    elif location >= PTR_INPUTS or low.pinned >> register & 1:
        low.drop(bit)
        low.loc[virtual] = low.alloc(size)
        low.have |= bit
        low.emit(f"copy.{size}", low.loc[virtual], location)
    else:
        _assign(low, virtual, size, location)


def _const(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, _, _, _, imm = instruction
    _assign(low, dst, plan.size, low.uniform(low.program.constants[imm], 0, plan.size))


def _param(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, _, _, _, imm = instruction
    _assign(low, dst, plan.size, low.uniform(0, imm + 1, plan.size))


def _mov(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, a, _, _, _ = instruction
    location = low.loc[a]
    if low.pinned >> a & 1 and not low.pinned >> dst & 1:
        _define(low, dst, plan, wave, f"copy.{plan.size}", location)
    elif dst != a:
        _assign(low, dst, plan.size, location)


def _select(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, a, b, c, _ = instruction
    la, lb, lc = low.loc[a], low.loc[b], low.vector(low.loc[c])
    imm = aux = 0
    name = plan.names[0]
    if lb < 0 <= la:
        name = plan.uniform_b[0]
        imm, aux, _, _ = low.uniforms[~lb]
        lb = 0
    elif la < 0 <= lb:
        name = plan.uniform_a[0]
        imm, aux, _, _ = low.uniforms[~la]
        la = 0
    else:
        la, lb = low.vector(la), low.vector(lb)
    _define(low, dst, plan, wave, name, la, lb, lc, imm, aux)


def _table_get(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, dst, a, _, _, imm = instruction
    name = f"table_get.{low.program.tables[imm].dtype.name}" + (".masked" if low.mask else "")
    _define(low, dst, plan, wave, name, low.vector(low.loc[a]), imm=imm)


def _index(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _define(low, instruction[1], plan, wave, "index")


def _atomic(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, _, a, b, _, imm = instruction
    la, lb = low.vector(low.loc[a]), low.vector(low.loc[b])
    low.emit(plan.names[0] + (".masked" if low.mask else ""), 0, la, lb, imm=imm)


def _acc(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, _, a, _, _, imm = instruction
    acc = low.program.accumulators[imm]
    name = plan.op.name + (".update" if imm in low.partial else "") + (".masked" if low.mask else "")
    aux = acc.bins if acc.kind is AccKind.histogram else 0
    low.emit(name, 0, low.vector(low.loc[a]), imm=imm, aux=aux)


def _emit(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    _, _, a, _, _, imm = instruction
    waiting = low.flags.get(imm)
    if waiting is None:
        dtype = low.program.emits[imm].dtype
        low.emit(p.emit_name(dtype, "masked" if low.mask else "all"), 0, low.vector(low.loc[a]), imm=imm)
        return
    value, flag = waiting
    _set_virtual(low, value, low.loc[a], a)
    low.emit("blend.u.4" if low.mask else "fill.4", low.loc[flag], imm=1)


def _if(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    nested = low.mask > 0
    low.mask += LANES
    if low.pc in low.direct:
        record = low.emit("test.nested" if nested else "test")
    else:
        record = low.emit("if.nested" if nested else "if", 0, low.vector(low.loc[instruction[2]]))
    low.blocks.append((record, 0))


def _else(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    opener, _ = low.blocks.pop()
    record = low.emit("else.nested" if low.mask > LANES else "else")
    low.aim(opener, record)
    low.blocks.append((record, 0))


def _loop(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    nested = low.mask > 0
    low.mask += LANES
    homes = (
        low.homes[low.pc] & ~low.have
    )  # a slot taken further on may be scratch of an earlier instruction of the body
    while homes:
        register = homes.bit_length() - 1
        homes ^= 1 << register
        low._home(register, low.size[register])
    record = low.emit("loop.nested" if nested else "loop")
    low.blocks.append((record, 1))
    low.reserved.append(low.reserved[-1] | low.carried[low.pc])


def _br_if(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    record = low.emit("br_if", 0, low.vector(low.loc[instruction[2]]))
    low.aim(record, low.blocks[-1][0] + 1)


def _end(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    opener, loop = low.blocks.pop()
    low.mask -= LANES
    if loop:
        low.reserved.pop()
    else:
        low.aim(opener, len(low.out) // _FIELDS)


def _unreachable(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    low.emit("unreachable.masked" if low.mask else "unreachable")


def _nothing(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    pass


def _return(low: _Lowering, instruction: tuple[int, ...], plan: p.Plan, wave: int) -> None:
    for acc in low.partial:
        low.emit("sum.close", imm=acc)
    for stream, (value, flag) in low.flags.items():
        dtype: MemType = low.program.emits[stream].dtype
        low.emit(p.emit_name(dtype, "flagged"), 0, low.loc[value], low.loc[flag], imm=stream)
    for output, virtual in low.deferred.items():
        dtype = low.program.outputs[output].dtype
        low.emit(p.store_name(dtype, False), PTR_OUTPUTS + output, low.vector(low.loc[virtual]))


_OTHERS: Final = {
    p.TRAPPING: _trapping, p.LOAD: _load, p.STORE: _store, p.CONST: _const, p.PARAM: _param, p.MOV: _mov, p.SELECT: _select,
    p.TABLE_GET: _table_get, p.INDEX: _index, p.ATOMIC: _atomic, p.ACC: _acc, p.EMIT: _emit, p.IF: _if, p.ELSE: _else,
    p.END: _end, p.LOOP: _loop, p.BR_IF: _br_if, p.UNREACHABLE: _unreachable, p.NOTHING: _nothing, p.RETURN: _return,
}  # fmt: skip
