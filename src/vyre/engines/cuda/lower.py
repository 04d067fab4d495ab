"""A verified program rewritten for the GPU: records in accumulator form, constants named by operands, planes allotted.

One forward pass. A result stays in the accumulator of its width (32 or 64 bits); the record that made it is told to
store it only when somebody turns out to need it from the register file. Constants and parameters that are written once
become uniform slots that operands name directly. Liveness, NaN fix-ups and blends come from program/analysis.

Owns: the program image (abi.PROGRAM_HEADER and what follows). Leaves to others: facts (analysis), function bodies
(program/functions), execution (kernel/).
"""

from __future__ import annotations

import struct
from array import array
from dataclasses import dataclass
from operator import itemgetter
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.engines.cuda import abi
from vyre.engines.cuda.handlers import FIXES, HANDLERS, HEAVY, LOADS, STORES, short_cut
from vyre.program.analysis import Analysis, analyse
from vyre.program.functions import FUNCTION_NAMES, inline
from vyre.program.ir import Accumulator, Program
from vyre.program.opcodes import CANONICAL_NAN, OPCODES, AccKind, Group, MemType, Nan, Op, Type

_F: Final = abi.FLAGS
LOAD_A: Final = (_F["LOAD_A32"] | _F["PLACE_A"], _F["LOAD_A64"] | _F["PLACE_A"])
STORE: Final = (_F["STORE32"] | _F["PLACE_D"], _F["STORE64"] | _F["PLACE_D"])
_FIX: Final = {Type.f32: _F["FIX_NAN32"], Type.f64: _F["FIX_NAN64"]}
_PLACE_A, _PLACE_B, _PLACE_C, _PLACE_D = _F["PLACE_A"], _F["PLACE_B"], _F["PLACE_C"], _F["PLACE_D"]
_BLEND: Final = _F["BLEND"]
LONG_WAY: Final = _BLEND | _F["FIX_NAN64"]
FIX_NAN32: Final = _F["FIX_NAN32"]
ANY_LOAD: Final = _F["LOAD_A32"] | _F["LOAD_A64"]
ANY_STORE: Final = _F["STORE32"] | _F["STORE64"]
QUICK_RECORDS: Final = 512
FEW_PLANES: Final = 8  # planes that fit at full width in any case: no sharing of planes is tried

_SWAPPED: Final = {"lt": "gt", "gt": "lt", "le": "ge", "ge": "le"}
_COMMUTES: Final = frozenset(("add", "mul", "and", "or", "xor", "eq", "ne", "min", "max"))
UPDATES: Final = ("add", "and", "or", "xor", "min_s", "min_u", "max_s", "max_u")


def width_of(t: Type) -> int:
    return int(t in (Type.i64, Type.f64))


def _swap_of(op: Op) -> int:
    """Handler that gives the same with operands exchanged, or -1."""
    kind, _, verb = op.name.partition(".")
    stem, _, sign = verb.partition("_")
    if len(op.args) != 2:
        return -1
    if stem in _SWAPPED:
        return HANDLERS[f"{kind}_{_SWAPPED[stem]}{'_' + sign if sign else ''}"]
    return HANDLERS[f"{kind}_{verb}"] if stem in _COMMUTES else -1


_WIDE: Final = {t: width_of(t) for t in Type}


@dataclass(frozen=True, slots=True)
class Plan:
    """What is known of an instruction before any program is seen."""

    what: str  # which branch of the pass it takes
    handler: int
    swapped: int
    args: tuple[int, ...]  # width of each operand, 0 or 1
    result: int  # width of the result, -1 when there is none
    fix: int


def _plan(op: Op) -> Plan:
    kind, _, verb = op.name.partition(".")
    what, handler, swapped = "other", -1, -1
    if op.group is Group.numeric:
        if "reinterpret" in verb:
            what, handler = "move", HANDLERS["NOP"]
        else:
            what = "heavy" if op.name in HEAVY else "light"
            handler = HANDLERS[op.name.replace(".", "_")]
            swapped = _swap_of(op) if what == "light" else -1
    elif op.group is Group.data:
        what = "update" if verb.startswith("table_") and verb != "table_get" else verb or op.name
        if what == "mov":
            what, handler = "move", HANDLERS["NOP"]
        elif what == "select":
            what, handler = "light", HANDLERS["SELECT64" if kind in ("i64", "f64") else "SELECT32"]
        elif what == "index":
            what, handler = "light", HANDLERS["INDEX"]
    elif op.group is Group.control:
        what = op.name
    elif op.group is Group.result:
        what = "emit" if verb == "emit" else "acc"
    fix = _FIX[op.result] if op.nan is Nan.canonical and op.result in _FIX else 0
    return Plan(
        what,
        handler,
        swapped,
        tuple(width_of(t) for t in op.args),
        -1 if op.result is None else width_of(op.result),
        fix,
    )


FUNCTIONS: Final = frozenset(FUNCTION_NAMES)
PLANS: Final = {op.code: _plan(op) for op in OPCODES}
NAMES: Final = {op.code: op.name for op in OPCODES}
_CONST: Final = frozenset(op.code for op in OPCODES if op.name.endswith(".const"))
_PARAM: Final = frozenset(op.code for op in OPCODES if op.name.endswith(".param"))
ACC_HANDLER: Final[dict[str, int]] = {
    "i64.acc_sum": HANDLERS["ACC_SUM"],
    "f32.acc_sum": HANDLERS["ACC_FLOAT_SUM32"],
    "f64.acc_sum": HANDLERS["ACC_FLOAT_SUM64"],
    "acc_count": HANDLERS["ACC_COUNT"],
    "acc_histogram": HANDLERS["ACC_HISTOGRAM"],
} | {
    f"{t}.acc_{verb}_{s}": HANDLERS[f"ACC_{verb.upper()}_{'I' if s == 's' else 'U'}{t[1:]}"]
    for t in ("i32", "i64")
    for verb in ("min", "max")
    for s in ("s", "u")
} | {f"{t}.acc_{verb}": HANDLERS[f"ACC_{verb.upper()}_{t.upper()}"] for t in ("f32", "f64") for verb in ("min", "max")}  # fmt: skip

_KEYS: Final = {MemType.i32: 1 << 31, MemType.i64: 1 << 63, MemType.u32: 0, MemType.u64: 0}
_BITS: Final = {MemType.i32: 32, MemType.u32: 32, MemType.i64: 64, MemType.u64: 64, MemType.f32: 32, MemType.f64: 64}
_INFINITY: Final = {MemType.f32: 0x7F80_0000, MemType.f64: 0x7FF0_0000_0000_0000}
NAN_KEYS: Final = {AccKind.min: 0, AccKind.max: (1 << 64) - 1}


def identity_key(kind: AccKind, dtype: MemType) -> int:
    """Key of the identity of a minimum or maximum: what an accumulator starts with."""
    bits = _BITS[dtype]
    if dtype in _INFINITY:
        high = 1 << bits - 1
        return (_INFINITY[dtype] | high) if kind is AccKind.min else ~(_INFINITY[dtype] | high) & ((1 << bits) - 1)
    return (1 << bits) - 1 if kind is AccKind.min else 0


def is_float_sum(acc: Accumulator) -> bool:
    """Whether it is kept in a plane of its own, one partial sum per element."""
    return acc.kind is AccKind.sum and acc.dtype is MemType.f64


def start_of(kind: AccKind, dtype: MemType) -> tuple[int, int]:
    """How the kernel folds an accumulator (abi.ACC_KINDS), and the key that it starts with."""
    if kind is AccKind.histogram:
        return abi.ACC_KINDS["HISTOGRAM"], 0
    if kind is AccKind.sum and dtype is MemType.f64:
        return abi.ACC_KINDS["FLOAT_SUM"], 0
    if kind in (AccKind.min, AccKind.max):
        return abi.ACC_KINDS[kind.name.upper()], identity_key(kind, dtype)
    return abi.ACC_KINDS["ADD"], 0


def value_of_key(kind: AccKind, dtype: MemType, key: int) -> int:
    """Bits of the value that a key of the kernel stands for."""
    bits = _BITS[dtype]
    if dtype in _INFINITY:
        if key == NAN_KEYS[kind]:
            return CANONICAL_NAN[dtype.type]
        sign = 1 << bits - 1
        return key ^ sign if key & sign else ~key & ((1 << bits) - 1)
    return key ^ _KEYS[dtype]


def values_of_keys(kind: AccKind, dtype: MemType, keys: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """``value_of_key`` of many."""
    u = np.uint64
    bits = _BITS[dtype]
    if dtype not in _INFINITY:
        return keys ^ u(_KEYS[dtype])
    sign = u(1 << bits - 1)
    values = np.where(keys & sign != 0, keys ^ sign, ~keys & u((1 << bits) - 1))
    return np.where(keys == u(NAN_KEYS[kind]), u(CANONICAL_NAN[dtype.type]), values)


@dataclass(slots=True)
class Image:
    """A program as the kernel reads it.

    Attributes:
        data: everything behind the header's opcode; the opcode is put in when a place is known.
        shared_bytes: what a warp needs at the least.
        heap_bytes: device memory that a warp needs for float sums.
        float_sums: accumulator indices of the float sums, in order.
    """

    data: bytes
    shared_bytes: int
    heap_bytes: int
    quick: bool
    float_sums: tuple[int, ...]
    planes: int
    records: int


class _Records:
    """Records that are being made. A record is a list of x, y, z, w."""

    __slots__ = ("rows",)

    def __init__(self) -> None:
        self.rows: list[list[int]] = []

    def add(self, x: int, y: int = 0, z: int = 0, w: int = 0) -> int:
        self.rows.append([x, y, z, w])
        return len(self.rows) - 1


def lower(program: Program) -> Image:
    """The image of a valid program."""
    function_tables = len(program.tables)
    origin: Any = None
    extra: tuple[tuple[int, ...], ...] = ()
    if not FUNCTIONS.isdisjoint(map(itemgetter(0), program.code)):
        program, origin, extra = inline(program)
    return _Pass(program, analyse(program), origin, function_tables, extra).run()


class _Pass:
    """One program on its way through."""

    def __init__(
        self, program: Program, facts: Analysis, origin: Any, tables: int, extra: tuple[tuple[int, ...], ...]
    ) -> None:
        self.program = program
        self.facts = facts
        self.origin = origin
        self.tables = tables
        self.pool: list[int] = []
        self.pool_at: dict[int, int] = {}
        self.table_at = []
        for contents in extra:
            self.table_at.append(len(self.pool))
            self.pool += contents
        self.wide = [_WIDE[t] for t in program.registers]
        self.records = _Records()
        # By width: register in the accumulator, and the record and pc that left it there unstored (-1: it is stored).
        self.held = [-1, -1]
        self.made = [-1, -1]
        self.made_pc = [0, 0]
        self.stored: set[int] = set()
        self.uniform: dict[int, int] = {}
        self.slots: list[int] = []
        self.params: list[int] = []
        self.relocate: list[tuple[int, int]] = []  # record, field: targets that are still pcs
        self.has_loop = False
        self.depth = self.blocks = 0
        self.heavy = False

    # --- places ---------------------------------------------------------------------------------------------------

    def find_uniforms(self) -> None:
        """Registers that one constant or parameter instruction writes, and nothing else."""
        code, constants = self.program.code, self.program.constants
        writes: dict[int, int] = {}
        found: list[tuple[int, int, bool]] = []
        for instr in code:
            plan = PLANS[instr.op]
            if plan.result >= 0:
                writes[instr.dst] = writes.get(instr.dst, 0) + 1
                if plan.what == "const":
                    found.append((instr.dst, instr.imm, False))
                elif plan.what == "param":
                    found.append((instr.dst, instr.imm, True))
        by_value: dict[int, int] = {}
        params: dict[tuple[int, int], int] = {}
        waiting: list[tuple[int, tuple[int, int]]] = []
        for register, imm, is_param in found:
            if writes[register] != 1:
                continue
            wide = self.wide[register]
            if is_param:
                if (imm, wide) not in params:
                    if len(by_value) + len(params) >= abi.MAX_UNIFORM_SLOTS:
                        continue
                    params[imm, wide] = len(params)
                waiting.append((register, (imm, wide)))
                continue
            value = constants[imm]
            if not wide:
                value |= value << 32
            slot = by_value.get(value)
            if slot is None:
                if len(by_value) + len(params) >= abi.MAX_UNIFORM_SLOTS:
                    continue
                slot = by_value[value] = len(by_value)
            self.uniform[register] = abi.UNIFORM | slot
        self.slots = list(by_value)
        self.params = [imm | wide << 32 for imm, wide in params]
        for register, key in waiting:
            self.uniform[register] = abi.UNIFORM | (len(by_value) + params[key])

    def need(self, register: int, pc: int) -> int:
        """Raw place of an operand that must be in the file: its register number for now, or a uniform slot."""
        slot = self.uniform.get(register)
        if slot is not None:
            return slot
        w = self.wide[register]
        if self.held[w] == register and self.made[w] >= 0:
            self.store(w)
        return register

    def store(self, w: int) -> None:
        """Have the record that made the accumulator's value store it too."""
        row = self.records.rows[self.made[w]]
        register = self.held[w]
        row[0] |= STORE[w] | (_BLEND if self.facts.blend[self.made_pc[w]] else 0)
        row[2] |= register << 16
        self.stored.add(register)
        self.made[w] = -1

    def clobber(self, w: int, pc: int, dst: int) -> None:
        """The accumulator of this width gets another value at pc; store the old one if it is needed."""
        if self.made[w] >= 0:
            register = self.held[w]
            later = self.facts.live_out[pc] | self.facts.held[pc]
            if later >> register & 1 and (register != dst or self.facts.held[pc] >> register & 1):
                self.store(w)
            self.made[w] = -1
        self.held[w] = -1

    def leave(self, pc: int, keep: bool) -> None:
        """A block begins or ends at pc: what is needed on other paths goes to the file."""
        later = self.facts.live_out[pc] | self.facts.held[pc]
        for w in (0, 1):
            if self.made[w] >= 0 and later >> self.held[w] & 1:
                self.store(w)
            if not keep:
                self.held[w] = self.made[w] = -1

    def result(self, w: int, register: int, record: int, pc: int) -> None:
        self.held[w], self.made[w], self.made_pc[w] = register, record, pc

    def first_operand(self, register: int, pc: int, dst: int = -1) -> tuple[int, int]:
        """Flags and place that bring ``register`` into its accumulator; nothing when it is there."""
        w = self.wide[register]
        if self.held[w] == register:
            return 0, 0
        place = self.need(register, pc)
        if self.made[w] >= 0:
            waiting = self.held[w]
            later = self.facts.live_out[pc] | self.facts.held[pc]
            if later >> waiting & 1 and (waiting != dst or self.facts.held[pc] >> waiting & 1):
                self.store(w)
        self.held[w], self.made[w] = register, -1
        return LOAD_A[w], place

    # --- the pass -------------------------------------------------------------------------------------------------

    def run(self) -> Image:
        program = self.program
        self.find_uniforms()
        at: list[int] = []
        methods = _METHODS
        for pc, instr in enumerate(program.code):
            at.append(len(self.records.rows))
            plan = PLANS[instr.op]
            shown = pc if self.origin is None else self.origin[pc]
            methods[instr.op](self, pc, shown << 16, instr, plan)
        return self.finish(at)

    def on_light(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        args = plan.args
        handler, a, b = plan.handler, instr.a, instr.b
        x = y = z = 0
        w = shown
        if args:
            if (
                plan.swapped >= 0
                and self.held[args[0]] != a
                and (self.held[args[0]] == b or (a in self.uniform and b not in self.uniform))
            ):
                handler, a, b = plan.swapped, b, a
            if len(args) > 1:
                y = self.need(b, pc)
                x |= _PLACE_B
                if len(args) > 2:
                    w |= self.need(instr.c, pc)
                    x |= _PLACE_C
            flags, z = self.first_operand(a, pc, instr.dst)
            x |= flags
        if plan.fix and self.facts.canonical[pc]:
            x |= plan.fix
        self.clobber(plan.result, pc, instr.dst)
        self.result(plan.result, instr.dst, self.records.add(x | handler, y, z, w), pc)

    def on_move(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        flags, z = self.first_operand(instr.a, pc, instr.dst)
        self.clobber(plan.result, pc, instr.dst)
        self.result(plan.result, instr.dst, self.records.add(flags | plan.handler, 0, z, shown), pc)

    def on_heavy(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        x = HANDLERS["HEAVY"] | _PLACE_A | _PLACE_D
        y = 0
        a = self.need(instr.a, pc)
        if len(plan.args) > 1:
            y = self.need(instr.b, pc)
            x |= _PLACE_B
        self.clobber(0, pc, instr.dst)
        self.clobber(1, pc, instr.dst)
        self.records.add(x, y, a | instr.dst << 16, shown | plan.handler)
        self.stored.add(instr.dst)
        self.held[plan.result] = instr.dst
        self.heavy = True

    def on_const(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        if instr.dst in self.uniform:
            return
        value = self.program.constants[instr.imm]
        at = self.pool_at.get(value)
        if at is None:
            at = self.pool_at[value] = len(self.pool)
            self.pool.append(value)
        self.clobber(plan.result, pc, instr.dst)
        name = "POOL64" if plan.result else "POOL32"
        self.result(plan.result, instr.dst, self.records.add(HANDLERS[name], 0, 0, shown | at), pc)

    def on_param(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        if instr.dst in self.uniform:
            return
        self.clobber(plan.result, pc, instr.dst)
        name = "PARAM64" if plan.result else "PARAM32"
        self.result(plan.result, instr.dst, self.records.add(HANDLERS[name], 0, 0, shown | instr.imm), pc)

    def on_load(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        self.clobber(plan.result, pc, instr.dst)
        name = by_size("STREAM_LOAD", self.program.inputs[instr.imm].dtype)
        self.result(plan.result, instr.dst, self.records.add(HANDLERS[name], 0, 0, shown | instr.imm), pc)

    def on_store(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        flags, z = self.first_operand(instr.a, pc)
        name = by_size("STREAM_STORE", self.program.outputs[instr.imm].dtype)
        self.records.add(flags | HANDLERS[name], 0, z, shown | (len(self.program.inputs) + instr.imm))

    def on_table_get(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        flags, z = self.first_operand(instr.a, pc, instr.dst)
        self.clobber(plan.result, pc, instr.dst)
        if instr.imm >= self.tables:
            assert plan.result == 1, "tables of functions have 64-bit elements"
            x, imm = HANDLERS["POOL_GET64"], self.table_at[instr.imm - self.tables]
        else:
            x, imm = HANDLERS[by_size("TABLE_GET", self.program.tables[instr.imm].dtype)], instr.imm
        self.result(plan.result, instr.dst, self.records.add(flags | x, 0, z, shown | imm), pc)

    def on_update(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        verb = UPDATES.index(NAMES[instr.op].partition(".table_")[2])
        y = self.need(instr.b, pc)
        flags, z = self.first_operand(instr.a, pc)
        x = HANDLERS["TABLE_UPDATE64" if plan.args[1] else "TABLE_UPDATE32"]
        self.records.add(flags | x | _PLACE_B, y, z | verb << 16, shown | instr.imm)

    def on_acc(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        flags, z = self.first_operand(instr.a, pc)
        handler = ACC_HANDLER[NAMES[instr.op]]
        imm = instr.imm
        if is_float_sum(self.program.accumulators[imm]):
            flags |= _PLACE_C
            self.relocate.append((len(self.records.rows), -1 - imm))
            imm = 0
        self.records.add(flags | handler, 0, z, shown | imm)

    def on_emit(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        flags, z = self.first_operand(instr.a, pc)
        flags |= _F["WIDE"] if plan.args[0] else 0
        self.relocate.append((len(self.records.rows), -1001 - instr.imm))
        self.records.add(flags | HANDLERS["EMIT"] | _PLACE_D, 0, z, shown | instr.imm)

    def on_nop(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        pass

    def on_unreachable(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        self.records.add(HANDLERS["UNREACHABLE"], 0, 0, shown)

    def on_return(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        self.records.add(HANDLERS["RETURN"], 0, 0, shown)

    def open_block(self) -> None:
        self.blocks += 1
        self.depth = max(self.depth, self.blocks)

    def on_if(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        self.open_block()
        flags, z = self.first_operand(instr.a, pc)
        self.leave(pc, True)
        to = instr.imm
        if NAMES[self.program.code[to - 1].op] == "else" and to - 1 > pc:
            to -= 1
        self.relocate.append((len(self.records.rows), to))
        self.records.add(flags | HANDLERS["IF"], 0, z, shown)

    def on_else(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        self.leave(pc, False)
        self.relocate.append((len(self.records.rows), instr.imm))
        self.records.add(HANDLERS["ELSE"], 0, 0, shown)

    def on_end(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        self.blocks -= 1
        self.leave(pc, False)
        self.records.add(HANDLERS["END"], 0, 0, shown)

    def on_loop(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        self.has_loop = True
        self.open_block()
        self.leave(pc, False)
        self.records.add(HANDLERS["LOOP"], 0, 0, shown)

    def on_br(self, pc: int, shown: int, instr: Any, plan: Plan) -> None:
        flags, z = self.first_operand(instr.a, pc)
        self.leave(pc, True)
        self.relocate.append((len(self.records.rows), instr.imm))
        self.records.add(flags | HANDLERS["BR_IF"], 0, z, shown)

    # --- putting it together --------------------------------------------------------------------------------------

    def allot(self) -> tuple[dict[int, int], int]:
        """Plane of each register that is ever in the file, and how many planes that makes."""
        wide = self.wide
        used = sorted(self.stored)
        total = sum(1 + wide[r] for r in used)
        if total <= FEW_PLANES:
            places = {}
            at = 0
            for r in used:
                places[r] = at
                at += 1 + wide[r]
            return places, at
        first: dict[int, int] = {}
        last: dict[int, int] = {}
        mask = sum(1 << r for r in used)
        code, facts = self.program.code, self.facts
        previous = 0
        for pc, instr in enumerate(code):
            plan = PLANS[instr.op]
            now = (facts.live_out[pc] | facts.held[pc]) & mask
            for r in (instr.a, instr.b, instr.c)[: len(plan.args)]:
                if mask >> r & 1:
                    last[r] = pc
            if plan.result >= 0 and mask >> instr.dst & 1:
                first.setdefault(instr.dst, pc)
                last[instr.dst] = pc
            changed = now | previous
            previous = now
            while changed:
                r = (changed & -changed).bit_length() - 1
                changed &= changed - 1
                first.setdefault(r, pc)
                if now >> r & 1 or r not in last:
                    last[r] = pc
        places = {}
        free: list[list[int]] = [[], []]
        active: list[tuple[int, int]] = []
        planes = 0
        for r in sorted(used, key=lambda r: first[r]):
            keep = []
            for end, other in active:
                # An operand's plane may be the result's: operands are read before the store. Not for heavy ones.
                if end < first[r]:
                    free[wide[other]].append(places[other])
                else:
                    keep.append((end, other))
            active = keep
            w = wide[r]
            if free[w]:
                places[r] = free[w].pop()
            elif not w and free[1]:
                at = free[1].pop()
                places[r] = at
                free[0].append(at + 1)
            else:
                places[r] = planes
                planes += 1 + w
            active.append((last[r], r))
        return places, planes

    def finish(self, at: list[int]) -> Image:
        program = self.program
        rows = self.records.rows
        places, planes = self.allot()
        fuel_plane = abi.NO_PLANE
        if self.has_loop:
            fuel_plane, planes = planes, planes + 1
        accs = []
        acc_planes: dict[int, int] = {}
        float_sums = []
        bins_at = len(program.accumulators)  # where counts lie among the results, behind one word per accumulator
        for i, acc in enumerate(program.accumulators):
            place = 0
            kind, identity = start_of(acc.kind, acc.dtype)
            if acc.kind is AccKind.histogram:
                place = bins_at
                bins_at += acc.bins
            elif is_float_sum(acc):
                place = acc_planes[i] = planes
                planes += 2
                float_sums.append(i)
            accs.append((kind, place, identity))
        emits = []
        for stream in program.emits:
            emits.append((planes, int(stream.dtype)))
            planes += 1 + width_of(stream.dtype.type)
        if self.heavy:
            planes += 1  # the wider accumulator is read too, one plane beyond a narrow result
        paged = len(rows) > abi.WINDOW
        page = abi.WINDOW - 1
        for record, target in self.relocate:
            row = rows[record]
            if target <= -1001:
                row[2] |= emits[-1001 - target][0] << 16
            elif target < 0:
                row[3] |= acc_planes[-1 - target]
            else:
                to = at[target]
                if paged:
                    to += to // page
                row[2] |= (to & 0xFFFF) << 16
                row[3] |= to >> 16
        # Operand fields hold register numbers so far.
        place_b, place_a, place_d, place_c = _PLACE_B, _PLACE_A, _PLACE_D, _PLACE_C
        sums = frozenset((HANDLERS["ACC_FLOAT_SUM32"], HANDLERS["ACC_FLOAT_SUM64"]))
        emit = HANDLERS["EMIT"]
        uniform = abi.UNIFORM
        for row in rows:
            x = row[0]
            row[0] = x & ~0xFFFF | (x & 0xFF) << 8
            if not x & LONG_WAY:
                form = LOADS if x & ANY_LOAD else 0
                form |= STORES if x & ANY_STORE else 0
                row[0] |= short_cut(x & 0xFF, form | FIXES if x & FIX_NAN32 else form)
            if x & place_b and not row[1] & uniform:
                row[1] = places[row[1]]
            if x & place_a and not row[2] & uniform:
                row[2] = row[2] & 0xFFFF_0000 | places[row[2] & 0xFFFF]
            if x & place_d and x & 0xFFFF != emit:
                row[2] = row[2] & 0xFFFF | places[row[2] >> 16] << 16
            if x & place_c and not row[3] & uniform and x & 0xFFFF not in sums:
                row[3] = row[3] & 0xFFFF_0000 | places[row[3] & 0xFFFF]
        if paged:
            padded = []
            for i in range(0, len(rows), page):
                padded += rows[i : i + page]
                if i + page < len(rows):
                    padded.append([HANDLERS["PAGE"] << 8, 0, 0, 0])
            rows = padded
        quick = not self.has_loop and len(rows) <= QUICK_RECORDS and not any(a.bins for a in program.accumulators)
        slots = len(self.slots) + len(self.params)
        io = len(program.inputs) + len(program.outputs)
        data = struct.pack(
            "<16I",
            abi.MAGIC_PROGRAM, 0, len(rows), slots, len(self.slots), planes, self.depth, program.fuel, fuel_plane, io,
            self.tables, len(accs), len(emits), len(float_sums), len(self.pool),
            (abi.PROGRAM_QUICK if quick else 0) | len(program.inputs) << 8,
        )  # fmt: skip
        data += array("Q", [*self.slots, *self.params, *[0] * (slots & 1)]).tobytes()
        data += b"".join(struct.pack("<IIQ", *a) for a in accs)
        data += b"".join(struct.pack("<II", *e) for e in emits)
        data += array("Q", self.pool).tobytes()
        data += bytes(-len(data) % 16)
        data += array("I", [word for row in rows for word in row]).tobytes()
        fixed = (
            abi.FRAME_BYTES
            + 16 * (min(len(rows), abi.WINDOW) + 1)
            + 16 * max(slots, 1)
            + 16 * min(io, abi.IO_IN_SHARED)
            + 64 * self.depth
            + 256 * len(accs)
            + abi.KEPT_BYTES * len(emits)
        )
        return Image(
            data, fixed + 32 * planes, 4096 * len(float_sums), quick, tuple(float_sums), planes, len(rows),
        )  # fmt: skip


def by_size(stem: str, dtype: MemType) -> str:
    if not dtype.is_identity:
        return f"{stem}_NARROW"
    return f"{stem}{8 * dtype.size}"


_METHODS: Final = {
    code: getattr(_Pass, "on_" + plan.what.replace("br_if", "br"))
    for code, plan in PLANS.items()
    if code not in FUNCTIONS  # those are expanded before
}
