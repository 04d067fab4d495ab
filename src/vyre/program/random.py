"""Random valid programs and nasty inputs, so that engines can be compared where nobody thought of looking.

A seed gives the same program and the same inputs for ever on one version. Most programs run to their end; some trap,
on purpose, in elements that are often not the first.

Owns: what random programs and inputs look like, and the comparison of two results bit for bit. Leaves to others:
execution (engines) and the loop over seeds (engines/differential.py).
"""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.program.builder import Builder
from vyre.program.ir import Program
from vyre.program.opcodes import OPCODES, Access, AccKind, FaultCode, Group, Imm, MemType, Op, Type

if TYPE_CHECKING:
    from vyre.engines.base import ItemResult

TABLE_LENGTH: Final = 16  # the shortest table that random_inputs makes: guarded indices are below it
BINS: Final = 8  # the smallest histogram that random_program declares
PARAM_TYPES: Final = (MemType.bool, MemType.i32, MemType.u32, MemType.i64, MemType.u64, MemType.f32, MemType.f64)
INTEGERS: Final = (MemType.i32, MemType.u32, MemType.i64, MemType.u64)
SMALL_FUEL: Final = 40
MAX_DEPTH: Final = 4  # of blocks

NASTY: Final[dict[Type, tuple[int, ...]]] = {
    Type.i32: (
        0, 1, 2, 3, 31, 32, 33, 127, 128, 255, 0x7FFF, 0x8000, 0xFFFF, 1 << 24, (1 << 24) + 1, 0x7FFFFFFF, 0x80000000,
        0x80000001, 0xFFFFFF80, 0xFFFF8000, 0xFFFFFFFE, 0xFFFFFFFF,
    ),
    Type.i64: (
        0, 1, 2, 3, 63, 64, 65, 255, 0xFFFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 1 << 32, (1 << 53) + 1,
        0x7FFFFF4000000001, 0x7FFFFFFFFFFFFFFF, 1 << 63, (1 << 63) + 1, 0xFFFFFFFF80000000, 0xFFFFFFFFFFFFFFFE,
        0xFFFFFFFFFFFFFFFF,
    ),
    # zeros, subnormals, the border to normal, ones, halves, 2**24, 2**31, 2**32, 2**63, 2**64, largest, infinite, NaN
    Type.f32: (
        0, 0x80000000, 1, 0x80000001, 0x007FFFFF, 0x00800000, 0x80800000, 0x3F800000, 0xBF800000, 0x3F000000,
        0xBF000000, 0x3FC00000, 0x40200000, 0x4B800001, 0x4EFFFFFF, 0x4F000000, 0xCF000000, 0xCF000001, 0x4F800000,
        0x5F000000, 0x5F7FFFFF, 0x5F800000, 0xDF000000, 0x7F7FFFFF, 0xFF7FFFFF, 0x7F800000, 0xFF800000, 0x7FC00000,
        0xFFC00000, 0x7F800001, 0x7FA55555, 0xFFFFFFFF, 0x33000000, 0x33000001, 0x477FF000, 0x387FC000,
    ),
    Type.f64: (
        0, 1 << 63, 1, (1 << 63) + 1, 0x000FFFFFFFFFFFFF, 0x0010000000000000, 0x8010000000000000, 0x3FF0000000000000,
        0xBFF0000000000000, 0x3FE0000000000000, 0xBFE0000000000000, 0x3FF8000000000000, 0x4004000000000000,
        0x4340000000000001, 0x41DFFFFFFFC00000, 0x41E0000000000000, 0xC1E0000000000000, 0xC1E0000000200000,
        0x41F0000000000000, 0x43DFFFFFFFFFFFFF, 0x43E0000000000000, 0xC3E0000000000000, 0x43F0000000000000,
        0x36A0000000000000, 0x3690000000000001, 0x47EFFFFFF0000000, 0x47EFFFFFEFFFFFFF, 0x7FEFFFFFFFFFFFFF,
        0xFFEFFFFFFFFFFFFF, 0x7FF0000000000000, 0xFFF0000000000000, 0x7FF8000000000000, 0xFFF8000000000000,
        0x7FF0000000000001, 0x7FF4555555555555, 0xFFFFFFFFFFFFFFFF,
    ),
}  # fmt: skip
"""Bit patterns where implementations differ."""

_MOVES: Final = tuple(op for op in OPCODES if op.name.partition(".")[2] in ("mov", "select"))
_NUMERIC: Final = tuple(op for op in OPCODES if op.group is Group.numeric)
_FUNCTIONS: Final = tuple(op for op in OPCODES if op.group is Group.function)
_GATHER: Final = {op.result: op for op in OPCODES if op.name.endswith("table_get")}


def _updates(dtype: MemType) -> list[str]:
    """The atomic updates of a table: min and max of its own signedness."""
    other = "_u" if dtype in (MemType.i32, MemType.i64) else "_s"
    updates = (op for op in OPCODES if op.imm is Imm.table and op.result is None and op.args[1] is dtype.type)
    return [op.name for op in updates if not op.name.endswith(other)]


def random_program(
    seed: int, *, max_ops: int = 40, traps: bool = True, functions: bool = False, blocks: bool = True
) -> Program:
    """A valid program.

    Args:
        seed: the same seed and options give the same program.
        max_ops: about how many instructions there are between the loads and the stores.
        traps: some programs may trap (division, conversion, bounds, fuel, unreachable); False: none does.
        functions: elementary functions and rem may occur too.
        blocks: False, with traps False: no branch and no loop.
    """
    return _Writer(random.Random(f"program {seed}"), max_ops, traps, functions, blocks).write(seed)


class _Writer:
    """One program under construction: which registers may be read here, and what may still be done."""

    def __init__(self, rng: random.Random, max_ops: int, traps: bool, functions: bool, blocks: bool) -> None:
        self.rng, self.budget = rng, rng.randint(1, max_ops)
        self.may_trap = traps and rng.random() < 0.5
        self.ops = _NUMERIC + _MOVES + (_FUNCTIONS if functions else ())
        self.builder = Builder()
        self.known: dict[Type, list[int]] = {t: [] for t in Type}
        self.depth, self.loops = 0 if blocks else MAX_DEPTH, 0
        self.blocks = blocks
        self.emits_left: list[int] = []
        self.outputs: list[MemType] = []

    def write(self, seed: int) -> Program:
        b, rng = self.builder, self.rng
        b.name = f"random_{seed}" if seed >= 0 else "random"
        if self.may_trap and rng.random() < 0.4:
            b.fuel = rng.randint(1, SMALL_FUEL)
        self.declare()
        for i, dtype in enumerate(self.inputs):
            if rng.random() < 0.9:
                self.note(dtype.type, b.op(f"{dtype.type.name}.load", imm=i))
        while self.budget > 0:
            self.statement()
        for i, dtype in enumerate(self.outputs):
            b.op(f"{dtype.type.name}.store", self.value(dtype.type), imm=i)
        return b.build()

    def declare(self) -> None:
        b, rng = self.builder, self.rng
        every = tuple(MemType)
        self.inputs = [rng.choice(every) for _ in range(rng.choice((0, 1, 1, 2, 2, 3, 4)))]
        self.outputs = [rng.choice(every) for _ in range(rng.choice((0, 1, 1, 2, 3)))]
        self.emits = [rng.choice(every) for _ in range(rng.choice((0, 0, 1, 1, 2)))]
        self.params = [rng.choice(PARAM_TYPES) for _ in range(rng.choice((0, 0, 1, 2)))]
        self.tables = [
            (rng.choice(every), Access.read) if rng.random() < 0.5 else (rng.choice(INTEGERS), Access.atomic)
            for _ in range(rng.choice((0, 0, 1, 2)))
        ]
        # One kind of update per table: an add between two xors would leave their order in it.
        self.update = [rng.choice(_updates(dtype)) if access is Access.atomic else "" for dtype, access in self.tables]
        self.accumulators: list[tuple[AccKind, MemType, int]] = []
        for _ in range(rng.choice((0, 1, 1, 2, 3))):
            kind = rng.choice(list(AccKind))
            if kind is AccKind.sum:
                dtypes: tuple[MemType, ...] = (MemType.i64, MemType.u64, MemType.f64, MemType.f64)
            elif kind in (AccKind.min, AccKind.max):
                dtypes = (*INTEGERS, MemType.f32, MemType.f64)
            else:
                dtypes = (MemType.i64,)
            bins = rng.choice((BINS, 256, 300)) if kind is AccKind.histogram else 0
            self.accumulators.append((kind, rng.choice(dtypes), bins))
        for i, dtype in enumerate(self.inputs):
            b.input(f"x{i}", dtype)
        for i, dtype in enumerate(self.params):
            b.param(f"p{i}", dtype)
        for i, (dtype, access) in enumerate(self.tables):
            b.table(f"t{i}", dtype, access)
        for i, dtype in enumerate(self.outputs):
            b.output(f"y{i}", dtype)
        for i, (kind, dtype, bins) in enumerate(self.accumulators):
            b.accumulator(f"a{i}", kind, dtype, bins)
        for i, dtype in enumerate(self.emits):
            b.emit_stream(f"e{i}", dtype)
        self.emits_left = list(range(len(self.emits)))

    # --- values ---------------------------------------------------------------------------------------------------

    def note(self, t: Type, register: int) -> None:
        self.known[t].append(register)

    def value(self, t: Type) -> int:
        """A register of type t that holds something here: one of the latest, or a constant, parameter or index."""
        rng, known = self.rng, self.known[t]
        if known and rng.random() < 0.85:
            return known[-1 - min(int(rng.expovariate(0.3)), len(known) - 1)]
        fitting = [i for i, dtype in enumerate(self.params) if dtype.type is t]
        if fitting and rng.random() < 0.5:
            register: int = self.builder.op(f"{t.name}.param", imm=rng.choice(fitting))
        elif t is Type.i64 and rng.random() < 0.3:
            register = self.builder.op("index")
        else:
            register = self.builder.bits(t, self.constant(t))
        self.budget -= 1
        self.note(t, register)
        return register

    def constant(self, t: Type) -> int:
        if self.rng.random() < 0.6:
            return self.rng.choice(NASTY[t])
        return self.rng.getrandbits(8 * t.size) >> (0 if t.is_float else self.rng.randrange(8 * t.size))

    def i32(self, value: int) -> int:
        return self.builder.bits(Type.i32, value)

    def condition(self) -> int:
        """An i32 that is 0 in some elements and not in others, if all goes well."""
        rng = self.rng
        if rng.random() < 0.6:
            t = rng.choice(list(Type))
            verb = rng.choice(("lt", "gt", "le", "ge", "eq", "ne") if t.is_float else ("lt_s", "gt_u", "le_s", "ne"))
            result: int = self.builder.op(f"{t.name}.{verb}", self.value(t), self.value(t))
            return result
        if rng.random() < 0.5:
            return self.builder.op("i32.and", self.value(Type.i32), self.i32(1 << rng.randrange(4)))  # type: ignore[no-any-return]
        return self.value(Type.i32)

    def rare(self) -> int:
        """An i32 that is not 0 in few elements: those whose index has a certain end."""
        b, rng = self.builder, self.rng
        mask = (1 << rng.randint(4, 11)) - 1
        low = b.op("i64.and", b.op("index"), b.bits(Type.i64, mask))
        return b.op("i64.eq", low, b.bits(Type.i64, rng.randint(0, mask)))  # type: ignore[no-any-return]

    def below(self, t: Type, limit: int) -> int:
        """A register of integer type t with a value in [0, limit), limit a power of two."""
        return self.builder.op(f"{t.name}.and", self.value(t), self.builder.bits(t, limit - 1))  # type: ignore[no-any-return]

    # --- statements -----------------------------------------------------------------------------------------------

    def statement(self) -> None:
        self.budget -= 1
        possible: list[tuple[float, Callable[[], None]]] = [
            (10, self.numeric),
            (1, self.move),
            (0.3, self.store),
            (0.1, self.nop),
        ]
        if self.tables:
            possible.append((1.5, self.table))
        if self.accumulators:
            possible.append((1.2, self.accumulate))
        if self.emits_left and not self.loops:
            possible.append((1.2, self.emit))
        if self.depth < MAX_DEPTH and self.budget > 2:
            possible += [(1.2, self.branch), (0.5, self.join)]
            if self.loops < 2:
                possible.append((0.7, self.loop))
        if self.may_trap:
            possible.append((0.1, self.unreachable))
        weights, makers = zip(*possible, strict=True)
        self.rng.choices(makers, weights)[0]()

    def numeric(self) -> None:
        op = self.rng.choice(self.ops)
        operands = [self.value(t) for t in op.args]
        trapping = bool(op.traps) and self.may_trap and self.rng.random() < 0.5
        if op.traps and not trapping:
            operands = self.guarded(op, operands)
        elif trapping and not op.args[0].is_float and self.rng.random() < 0.4:
            operands[1] = self.builder.bits(op.args[1], 0)  # random divisors are seldom zero
        assert op.result is not None
        own = self.known[op.result]
        dst = self.rng.choice(own) if own and self.rng.random() < 0.3 else None
        if trapping and self.rng.random() < 0.7:
            self.within(self.rare(), lambda: self.builder.op(op.name, *operands, dst=dst))
            return
        result = self.builder.op(op.name, *operands, dst=dst)
        if dst is None:
            self.note(op.result, result)

    def guarded(self, op: Op, operands: list[int]) -> list[int]:
        """Operands near the given ones with which op does not trap."""
        b, t = self.builder, op.args[0]
        self.budget -= 3
        if not t.is_float:  # divisor 1 .. largest signed
            most = b.bits(t, (1 << 8 * t.size - 1) - 1)
            divisor = b.op(f"{t.name}.or", b.op(f"{t.name}.and", operands[1], most), b.bits(t, 1))
            return [operands[0], divisor]
        size = b.op(f"{t.name}.abs", operands[0])
        small = b.op(f"{t.name}.lt", size, b.const(t, 2.0**30))
        return [b.op(f"{t.name}.select", size, b.const(t, 1.5), small)]

    def move(self) -> None:
        """Copy into a variable, so that later joins and loops see it change."""
        t = self.rng.choice(list(Type))
        source, target = self.value(t), self.value(t)
        self.builder.op(f"{t.name}.mov", source, dst=target)

    def store(self) -> None:
        if self.outputs:
            i = self.rng.randrange(len(self.outputs))
            t = self.outputs[i].type
            self.builder.op(f"{t.name}.store", self.value(t), imm=i)

    def nop(self) -> None:
        self.builder.op("nop")

    def unreachable(self) -> None:
        self.within(self.rare(), lambda: self.builder.op("unreachable"))

    def table(self) -> None:
        imm = self.rng.randrange(len(self.tables))
        dtype, access = self.tables[imm]
        t = dtype.type
        wild = self.may_trap and self.rng.random() < 0.2
        index = self.value(Type.i64) if wild else self.below(Type.i64, TABLE_LENGTH)
        if access is Access.read:
            name = _GATHER[t].name
            if wild:
                self.within(self.rare(), lambda: self.builder.op(name, index, imm=imm))
            else:
                self.note(t, self.builder.op(name, index, imm=imm))
            return
        name, operand = self.update[imm], self.value(t)
        if wild:
            self.within(self.rare(), lambda: self.builder.op(name, index, operand, imm=imm))
        else:
            self.builder.op(name, index, operand, imm=imm)

    def accumulate(self) -> None:
        imm = self.rng.randrange(len(self.accumulators))
        kind, dtype, _ = self.accumulators[imm]
        t = dtype.type
        if kind is AccKind.count:
            self.builder.op("acc_count", self.condition(), imm=imm)
        elif kind is AccKind.histogram:
            wild = self.may_trap and self.rng.random() < 0.2
            self.builder.op("acc_histogram", self.value(Type.i32) if wild else self.below(Type.i32, BINS), imm=imm)
        elif kind is AccKind.sum:
            t = self.rng.choice((Type.f32, Type.f64)) if t.is_float else t
            self.builder.op(f"{t.name}.acc_sum", self.value(t), imm=imm)
        else:
            sign = "" if t.is_float else "_s" if dtype in (MemType.i32, MemType.i64) else "_u"
            self.builder.op(f"{t.name}.acc_{kind.name}{sign}", self.value(t), imm=imm)

    def emit(self) -> None:
        imm = self.emits_left.pop(self.rng.randrange(len(self.emits_left)))
        t = self.emits[imm].type
        value, other = self.value(t), self.value(t)
        form = self.rng.random()
        if form < 0.2 or not self.blocks:
            self.builder.op(f"{t.name}.emit", value, imm=imm)
            return
        self.builder.if_(self.condition())
        self.builder.op(f"{t.name}.emit", value, imm=imm)
        if form < 0.4:
            self.builder.else_()
            self.builder.op(f"{t.name}.emit", other, imm=imm)
        self.builder.end()

    # --- blocks ---------------------------------------------------------------------------------------------------

    def within(self, condition: int, body: Callable[[], Any]) -> None:
        self.builder.if_(condition)
        body()
        self.builder.end()

    def body(self, statements: int) -> None:
        """Some statements in a block of their own: what they make known is forgotten afterwards."""
        before = {t: list(known) for t, known in self.known.items()}
        self.depth += 1
        for _ in range(statements):
            self.statement()
        self.depth -= 1
        self.known = before

    def branch(self) -> None:
        self.builder.if_(self.condition())
        self.body(self.rng.randint(0, 4))
        if self.rng.random() < 0.5:
            self.builder.else_()
            self.body(self.rng.randint(0, 4))
        self.builder.end()

    def join(self) -> None:
        """A new variable, given one value in one branch and another in the other."""
        t = self.rng.choice(list(Type))
        condition, one, other, target = self.condition(), self.value(t), self.value(t), self.builder.reg(t)
        self.builder.if_(condition)
        self.body(self.rng.randint(0, 2))
        self.builder.op(f"{t.name}.mov", one, dst=target)
        self.builder.else_()
        self.builder.op(f"{t.name}.mov", other, dst=target)
        self.body(self.rng.randint(0, 2))
        self.builder.end()
        self.note(t, target)

    def loop(self) -> None:
        """A loop of few rounds, different ones in different elements; with traps perhaps of more than the fuel."""
        b, rng = self.builder, self.rng
        left = b.reg(Type.i32)  # not known to the statements, so that none changes it
        if rng.random() < 0.5:
            b.bits(Type.i32, rng.randint(1, 6), dst=left)
        else:
            b.op("i32.and", self.value(Type.i32), self.i32(7), dst=left)
        if self.may_trap and b.fuel <= SMALL_FUEL and rng.random() < 0.5:
            self.within(self.rare(), lambda: b.bits(Type.i32, 0x7FFFFFFF, dst=left))
        one = self.i32(1)
        b.loop()
        self.loops += 1
        self.body(rng.randint(1, 4))
        self.loops -= 1
        b.op("i32.sub", left, one, dst=left)
        b.br_if(b.op("i32.gt_s", left, self.i32(0)))
        b.end()


# --- inputs -------------------------------------------------------------------------------------------------------


def random_inputs(program: Program, seed: int, count: int) -> tuple[list[NDArray[Any]], list[int], list[NDArray[Any]]]:
    """Inputs of ``count`` elements each, parameters as 64 bits each, and tables, for ``execute`` of an engine.

    Some inputs are all friendly, some are mixed with patterns of NASTY, a few are random bits altogether.
    """
    rng = np.random.default_rng([abs(seed), seed < 0, 1])
    inputs = [_array(rng, declared.dtype, count) for declared in program.inputs]
    params = []
    for param in program.params:
        raw = _array(rng, param.dtype, 1).view(f"u{param.dtype.size}")
        params.append(int(raw[0]) & 1 if param.dtype is MemType.bool else int(raw[0]))
    tables = [_array(rng, table.dtype, int(rng.integers(TABLE_LENGTH, 200))) for table in program.tables]
    return inputs, params, tables


def _array(rng: np.random.Generator, dtype: MemType, count: int) -> NDArray[Any]:
    """Values in memory type; bf16 as its bits."""
    raw = f"u{dtype.size}"
    if dtype is MemType.bool:
        bytes_ = rng.choice(np.array([0, 0, 0, 1, 1, 1, 2, 255], np.uint8), count)  # any byte but 0 is true
        return bytes_.view(np.bool_)
    if dtype.type.is_float:
        friendly = np.where(rng.random(count) < 0.5, rng.normal(0, 10, count), rng.integers(-40, 40, count)).astype(
            np.float32
        )
        if dtype is MemType.bf16:
            values = (friendly.view(np.uint32) >> 16).astype(np.uint16)
        else:
            values = friendly.astype(f"f{dtype.size}").view(raw)
    else:
        values = rng.integers(-100, 100, count).astype(f"i{dtype.size}").view(raw)
    kind = rng.random()
    if kind < 0.3:
        nasty = np.zeros(count, np.bool_)
    else:
        nasty = rng.random(count) < rng.choice([0.02, 0.3])
    patterns = _nasty(dtype)
    values = np.where(nasty, patterns[rng.integers(0, len(patterns), count)], values)
    if kind > 0.8:
        wild = rng.random(count) < 0.5
        values = np.where(wild, rng.integers(0, 256, count * dtype.size, np.uint8).view(raw), values)
    if dtype is MemType.bf16:
        return values
    return values.view({"i": f"i{dtype.size}", "u": raw, "f": f"f{dtype.size}"}[dtype.name[0]])


def _nasty(dtype: MemType) -> NDArray[Any]:
    bits = NASTY[dtype.type]
    if dtype is MemType.f16:
        bits = (0, 0x8000, 1, 0x8001, 0x03FF, 0x0400, 0x3C00, 0xBC00, 0x7BFF, 0x7C00, 0xFC00, 0x7E00, 0x7C01, 0xFFFF)
    elif dtype is MemType.bf16:
        bits = tuple(b >> 16 for b in bits)
    return np.array([b & (1 << 8 * dtype.size) - 1 for b in bits], f"u{dtype.size}")


# --- comparison ---------------------------------------------------------------------------------------------------


def compare(
    a: ItemResult,
    b: ItemResult,
    tables: tuple[Sequence[NDArray[Any]], Sequence[NDArray[Any]]] = ((), ()),
) -> str | None:
    """The first difference between two results of one item, bit for bit, in words; None when there is none.

    Args:
        tables: what each run left in the tables; not looked at after a fault, which leaves them indeterminate.
    """
    if a.fault is not None or b.fault is not None:
        ours = None if a.fault is None else (a.fault.code, a.fault.pc, a.fault.element)
        theirs = None if b.fault is None else (b.fault.code, b.fault.pc, b.fault.element)
        return None if ours == theirs else f"fault: {_fault(a)} against {_fault(b)}"
    for what, ones, others in (
        ("output", a.outputs, b.outputs),
        ("emit", a.emits, b.emits),
        ("accumulator", a.accumulators, b.accumulators),
        ("table", tables[0], tables[1]),
    ):
        if len(ones) != len(others):
            return f"{what}s: {len(ones)} against {len(others)}"
        for i, (one, other) in enumerate(zip(ones, others, strict=True)):
            found = _difference(one, other)
            if found:
                return f"{what} {i}, {found}"
    if a.tile_sums and b.tile_sums and a.tile_sums.keys() != b.tile_sums.keys():
        return f"tile sums: of {sorted(a.tile_sums)} against {sorted(b.tile_sums)}"
    for i in a.tile_sums.keys() & b.tile_sums.keys():
        # A NaN's payload shows nowhere: the sum that it goes into is the canonical NaN.
        found = _difference(*(np.where(x != x, np.nan, x) for x in (a.tile_sums[i], b.tile_sums[i])))
        if found:
            return f"tile sums of accumulator {i}, {found}"
    return None


def _fault(result: ItemResult) -> str:
    fault = result.fault
    return "none" if fault is None else f"{FaultCode(fault.code).name} at pc {fault.pc}, element {fault.element}"


def _difference(a: NDArray[Any], b: NDArray[Any]) -> str | None:
    a, b = np.asarray(a), np.asarray(b)
    if a.shape != b.shape or a.dtype.itemsize != b.dtype.itemsize:
        return f"shape: {a.dtype}{list(a.shape)} against {b.dtype}{list(b.shape)}"
    raw = f"u{a.dtype.itemsize}"
    one, other = (np.ascontiguousarray(x).reshape(-1).view(raw) for x in (a, b))
    different = np.flatnonzero(one != other)
    if not different.size:
        return None
    i = int(different[0])
    width = 2 * a.dtype.itemsize
    values = f"{a.reshape(-1)[i]} (0x{int(one[i]):0{width}x}) against {b.reshape(-1)[i]} (0x{int(other[i]):0{width}x})"
    return f"entry {i}: {values}; {different.size} of {len(one)} differ"
