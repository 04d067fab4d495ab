"""From a verified program to the CPU engine's tile form: op records that a worker runs tile by tile.

Owns: the order of things, arithmetic, the packed form. Leaves to others: other instructions (instructions), what lies where
(lowering), what has to be known beforehand (survey), facts about the
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
from functools import cache
from typing import Final, NamedTuple

from vyre.engines.cpu import plan as p
from vyre.engines.cpu.abi import LANES, OP_BYTES, PTR_INPUTS, PTR_OUTPUTS, SCRATCH_SLOTS
from vyre.engines.cpu.handlers import Handlers, shared
from vyre.engines.cpu.instructions import OTHERS
from vyre.engines.cpu.lowering import FIELDS, IDENTITY, VIRTUAL, OutOfScratch, State
from vyre.engines.cpu.survey import survey
from vyre.errors import EngineUnavailable
from vyre.jit import ObjectStore
from vyre.program.analysis import HasProgram, analyse
from vyre.program.ir import Instr, Program

_RECORD: Final = "QIIIIQIIqQ8x"
_CONSTS: Final = (p.CONST_BYTES + 4, p.CONST_BYTES + 8)
assert struct.calcsize("<" + _RECORD) == OP_BYTES


class TileForm(NamedTuple):
    """A program as op records.

    Attributes:
        prologue: run once per claimed item and worker: fills splats.
        body: run per tile. Both end with the record of ``return``.
        scratch_slots: entries of the pointer table that must point at scratch: 0 .. scratch_slots - 1.
        uses_fuel: the program has a loop.
        in_place: an output may be the same memory as an input. False only for programs with more early stores than there
            is scratch for.
        reads_outputs: a record reads an output that another one wrote.
    """

    prologue: bytes
    body: bytes
    scratch_slots: int
    uses_fuel: bool
    in_place: bool = True
    reads_outputs: bool = False


def lower(
    verified: HasProgram | Program,
    handlers: Handlers | ObjectStore | None = None,
    paged: frozenset[int] = frozenset(),
) -> TileForm:
    """Tile form of a verified program; compiles the handlers that it is the first to need.

    Args:
        handlers: where handlers come from; a store or None means the process's own.
        paged: numbers of the tables that will be bound as tables on disk.
    Raises:
        EngineUnavailable: llvmlite is missing, or the program needs more scratch than a worker has.
    """
    program = verified if isinstance(verified, Program) else verified.program
    own = handlers if isinstance(handlers, Handlers) else shared(handlers)
    if not paged and (quick := own.straight(program)) is not None:
        return TileForm(*quick)
    facts = analyse(program)
    try:
        return _Lowering(program, facts, own, early_stores_wait=True, paged=paged).run()
    except OutOfScratch:
        pass
    try:
        return _Lowering(program, facts, own, early_stores_wait=False, paged=paged).run()
    except OutOfScratch:
        raise EngineUnavailable(
            f"program {program.name!r} needs more than the {SCRATCH_SLOTS} scratch slots of a worker",
            fix="emit from fewer places, or split the program",
        ) from None


@cache
def _packer(records: int) -> struct.Struct:
    return struct.Struct("<" + _RECORD * records)


class _Lowering(State):
    """One run over one program."""

    def run(self) -> TileForm:
        survey(self)
        for acc in self.partial:
            self.emit("sum.open", imm=acc)
        for virtual in range(VIRTUAL, len(self.loc)):
            if self.pinned >> virtual & 1:
                self.home(virtual, self.size[virtual])
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
                elif kind == p.LOAD and IDENTITY[inputs[number].dtype]:
                    location = PTR_INPUTS + number
                else:
                    self.pc, self.have = pc, have
                    instruction, plan = self.program.code[pc], plans[op]
                    if plan.kind:
                        OTHERS[plan.kind](self, instruction, plan, wave | keep)
                        if temporary:
                            self.drop_temporary()
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
                self.drop_temporary()
            if not wave & bit:
                self.have = have
                self.drop(bit)
                have = self.have

    def uniform_operands(self, plan: p.Plan, la: int, lb: int) -> tuple[tuple[str, str], int, int, int, int]:
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
            elif instruction.op in p.SUM_OF and self._goes_into_a_sum(pc, instruction):
                self.factors[pc + 1] = self.loc[instruction.a], self.loc[instruction.b]
                self.drop(1 << instruction.dst)
            elif plan.kind:
                OTHERS[plan.kind](self, instruction, plan, wave)
            else:
                self._compute(pc, instruction, plan, wave)
            if self.temporary:
                self.drop_temporary()
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

    def _goes_into_a_sum(self, pc: int, product: Instr) -> bool:
        """Whether the next instruction sums this product, nobody else reads it, and both factors have lanes."""
        following = self.program.code[pc + 1]
        if following.op != p.SUM_OF[product.op] or following.a != product.dst or following.imm in self.partial:
            return False
        needed = self.facts.live_out[pc + 1] | self.facts.held[pc + 1] | self.pinned
        return not needed >> product.dst & 1 and self.loc[product.a] >= 0 and self.loc[product.b] >= 0

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
            target = self.home(dst, size)
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
            self.emit(f"blend.{size}", self.home(dst, size), target)
            self.release(target, size)
        if self.temporary:
            self.drop_temporary()
        if self.have & ~wave:
            self.drop(~wave)

    def _operands(self, plan: p.Plan, la: int, lb: int) -> tuple[tuple[str, str], int, int, int, int]:
        if la < 0 or lb < 0:
            return self.uniform_operands(plan, la, lb)
        return plan.names, la, lb, 0, 0

    def _finish(self) -> TileForm:
        end = self.addresses.get("return") or self.address("return"), 0, 0, 0, 0, 0, 0, 0, 0, 0
        body, before = self.out, self.before
        body += end
        before += end
        used = self.next if self.top == SCRATCH_SLOTS else SCRATCH_SLOTS
        return TileForm(
            _packer(len(before) // FIELDS).pack(*before),
            _packer(len(body) // FIELDS).pack(*body),
            used,
            self.uses_fuel,
            self.wait,
            any(max(body[at::FIELDS]) >= PTR_OUTPUTS for at in (2, 3, 4)),
        )
