"""The reference engine: what every instruction of VIR0 means, in NumPy and plain Python.

Short, complete and slow. Every other engine must give the same bits. A register is an array of bits with one entry
for each element; control flow passes on the list of elements ("lanes", ascending) that still take part.

Owns: control, fuel, traps, streams, tables, accumulators, emits. Leaves to others: numeric bodies and memory types
(scalars), elementary functions (program/functions.py), the order of float sums (fold), validity (verifier).
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import cache
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import ItemResult
from vyre.engines.fold import ABSENT, fold_spans, halve
from vyre.engines.scalars import BITS, compute, narrow, traps, widen
from vyre.errors import BindError, Fault
from vyre.program.functions import BODIES, Function
from vyre.program.ir import Accumulator, Instr, Program
from vyre.program.opcodes import BY_CODE, BY_NAME, FAULT_REASONS, TILE, AccKind, FaultCode, Group, MemType, Op, Type
from vyre.stream.formats import numpy_dtype

__all__ = ["execute", "fold_spans"]

Array = NDArray[Any]

_RAW: Final[dict[int, Any]] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
_CHUNK: Final = 64 * TILE  # elements worked on at once: bounds memory, changes no bit
_ELSE: Final = BY_NAME["else"].code


class _HasProgram(Protocol):
    @property
    def program(self) -> Program: ...


def execute(
    program: Program | _HasProgram,
    inputs: Sequence[Array],
    params: Sequence[int],
    tables: Sequence[Array],
    first: int,
    count: int,
) -> ItemResult:
    """Run a program over elements [first, first + count).

    Args:
        program: a valid program, or what the verifier made of one.
        inputs: by declaration order, ``count`` elements each in memory type; element 0 is element ``first``.
        params: by declaration order, 64 bits each in memory form, low bits first.
        tables: by declaration order, in memory type. Atomic ones are updated in place.
        first: global index of the first element, a multiple of 1,024.
        count: elements of this item.
    Returns:
        Fresh arrays; or only the fault, that of the lowest trapping element.
    Raises:
        BindError: operands that do not fit the declarations.
    """
    plain = program if isinstance(program, Program) else program.program
    item = _Item(plain, inputs, params, tables, first, count)
    for start in range(0, count, _CHUNK):
        _Chunk(item, start, min(_CHUNK, count - start)).run()
        if item.fault is not None:
            return ItemResult(fault=item.fault)
    return item.result()


class _Item:
    """Operands of one item, and what its elements have delivered so far."""

    def __init__(
        self,
        program: Program,
        inputs: Sequence[Array],
        params: Sequence[int],
        tables: Sequence[Array],
        first: int,
        count: int,
    ) -> None:
        for kind, given, declared in (
            ("inputs", inputs, program.inputs),
            ("parameters", params, program.params),
            ("tables", tables, program.tables),
        ):
            if len(given) != len(declared):
                raise BindError(f"{len(given)} {kind} given, program {program.name} declares {len(declared)}")
        self.program, self.first, self.count = program, first, count
        self.inputs = [_raw(x, d.dtype, d.name) for x, d in zip(inputs, program.inputs, strict=True)]
        self.tables = [_raw(x, d.dtype, d.name) for x, d in zip(tables, program.tables, strict=True)]
        self.params = params
        for x, d in zip(self.inputs, program.inputs, strict=True):
            if len(x) != count:
                raise BindError(f"input {d.name} has {len(x)} elements, the item {count}")
        self.outputs = [np.zeros(count, _RAW[d.dtype.size]) for d in program.outputs]
        self.emits: list[list[Array]] = [[np.zeros(0, _RAW[d.dtype.size])] for d in program.emits]
        self.accumulators = [_identity(a) for a in program.accumulators]
        self.tile_sums: dict[int, list[Array]] = {
            i: [] for i, a in enumerate(program.accumulators) if a.kind is AccKind.sum and a.dtype is MemType.f64
        }
        self.fault: Fault | None = None

    def result(self) -> ItemResult:
        declared = self.program
        sums = {i: _canonical(np.concatenate([np.zeros(0), *parts])) for i, parts in self.tile_sums.items()}
        for i, tile_sums in sums.items():
            self.accumulators[i] = np.array([fold_spans(tile_sums, self.first // TILE)])
        return ItemResult(
            outputs=[x.view(numpy_dtype(d.dtype)) for x, d in zip(self.outputs, declared.outputs, strict=True)],
            emits=[
                np.concatenate(x).view(numpy_dtype(d.dtype)) for x, d in zip(self.emits, declared.emits, strict=True)
            ],
            accumulators=[
                x.view(numpy_dtype(d.dtype))
                if d.kind is AccKind.histogram
                else x.view(numpy_dtype(d.dtype))[0:1].reshape(())
                for x, d in zip(self.accumulators, declared.accumulators, strict=True)
            ],
            tile_sums=sums,
        )


class _Chunk:
    """A run of elements on their way through the program, each with its registers, fuel and partial sums."""

    def __init__(self, item: _Item, start: int, count: int) -> None:
        self.item, self.start, self.count = item, start, count
        self.code = item.program.code
        self.registers: list[Array] = [np.zeros(count, BITS[t]) for t in item.program.registers]
        self.fuel_used = np.zeros(count, np.int64)
        self.partials = {i: np.full(-(-count // TILE) * TILE, ABSENT) for i in item.tile_sums}
        self.emitted = [(np.zeros(count, x[0].dtype), np.zeros(count, np.bool_)) for x in item.emits]
        self.lowest_trap = count

    def run(self) -> None:
        self.block(0, len(self.code), np.arange(self.count))
        for i, partial in self.partials.items():
            self.item.tile_sums[i].append(halve(partial.reshape(-1, TILE)))
        for (values, kept), emit in zip(self.emitted, self.item.emits, strict=True):
            emit.append(values[kept])

    # --- control --------------------------------------------------------------------------------------------------

    def block(self, pc: int, stop: int, lanes: Array) -> Array:
        """Execute code[pc:stop] for these lanes. Returns those that did not trap."""
        while pc < stop and lanes.size:
            instr = self.code[pc]
            op = BY_CODE[instr.op]
            if op.name == "if":
                taken = self.read(instr.a, lanes) != 0
                other = instr.imm
                has_else = other - 1 > pc and self.code[other - 1].op == _ELSE
                end = self.code[other - 1].imm if has_else else other
                lanes = _merge(
                    self.block(pc + 1, other - 1 if has_else else other, lanes[taken]),
                    self.block(other, end, lanes[~taken]),
                )
                pc = end + 1
            elif op.name == "loop":
                lanes = self.loop(pc + 1, instr.imm - 1, lanes)
                pc = instr.imm + 1
            else:
                lanes = self.step(pc, instr, op, lanes)
                pc += 1
        return lanes

    def loop(self, body: int, br_if: int, lanes: Array) -> Array:
        done: list[Array] = []
        while lanes.size:
            lanes = self.block(body, br_if, lanes)
            again = self.read(self.code[br_if].a, lanes) != 0
            done.append(lanes[~again])
            lanes = lanes[again]
            self.fuel_used[lanes] += 1
            empty = self.fuel_used[lanes] > self.item.program.fuel
            lanes = self.stop(lanes, np.where(empty, FaultCode.out_of_fuel, FaultCode.none), br_if)
        return _merge(*done)

    def stop(self, lanes: Array, codes: Array, pc: int) -> Array:
        """Note the traps (codes other than 0) of these lanes at pc. Returns the lanes that go on."""
        trapped = codes != 0
        if not trapped.any():
            return lanes
        lane, code = int(lanes[trapped][0]), FaultCode(int(codes[trapped][0]))
        if lane < self.lowest_trap:
            program, instr = self.item.program, self.code[pc]
            op = BY_CODE[instr.op]
            self.lowest_trap = lane
            self.item.fault = Fault(
                code=int(code),
                reason=FAULT_REASONS[code],
                pc=pc,
                element=self.item.first + self.start + lane,
                file=program.source or None,
                line=program.line_of(pc),
                operands={
                    field: _python_value(self.registers[register][lane : lane + 1], t, op)
                    for field, register, t in zip("abc", instr[2:5], op.args, strict=False)
                },
            )
        alive: Array = lanes[~trapped]
        return alive

    # --- everything else ------------------------------------------------------------------------------------------

    def read(self, register: int, lanes: Array) -> Array:
        bits: Array = self.registers[register][lanes]
        return bits

    def step(self, pc: int, instr: Instr, op: Op, lanes: Array) -> Array:
        """Execute one instruction that is not control for these lanes. Returns those that did not trap."""
        operands = [self.read(r, lanes) for r in instr[2 : 2 + len(op.args)]]
        codes = self.trap_codes(instr, op, operands, len(lanes))
        if codes is not None and codes.any():
            lanes, operands = self.stop(lanes, codes, pc), [x[codes == 0] for x in operands]
        if op.group is Group.numeric:
            self.registers[instr.dst][lanes] = compute(op, *operands)
        elif op.group is Group.function:
            self.registers[instr.dst][lanes] = _function(op, operands)
        elif op.group is Group.result:
            self.deliver(instr, op, operands, lanes)
        elif op.group is Group.data:
            result = self.data(instr, op, operands, lanes)
            if result is not None:
                self.registers[instr.dst][lanes] = result
        else:
            assert op.name in ("nop", "end", "return", "unreachable"), f"{op.name} at pc {pc}: block() steps over it"
        return lanes

    def trap_codes(self, instr: Instr, op: Op, operands: list[Array], n: int) -> Array | None:
        match op.traps:
            case (FaultCode.out_of_bounds,):
                histogram = op.name == "acc_histogram"
                length = len((self.item.accumulators if histogram else self.item.tables)[instr.imm])
                return np.where(operands[0] >= length, FaultCode.out_of_bounds, FaultCode.none)
            case (FaultCode.unreachable,):
                return np.full(n, FaultCode.unreachable)
            case _:
                return traps(op, *operands)

    def data(self, instr: Instr, op: Op, operands: list[Array], lanes: Array) -> Array | None:
        """Constants, moves, streams, parameters, tables. Returns the result's bits, or None without a result."""
        item, program, imm = self.item, self.item.program, instr.imm
        match op.name.rpartition(".")[2]:
            case "const":
                assert op.result is not None
                return np.full(len(lanes), program.constants[imm] & _ones(op.result.size), BITS[op.result])
            case "mov":
                return operands[0]
            case "select":
                return np.where(operands[2] != 0, operands[0], operands[1])
            case "index":
                return (item.first + self.start + lanes).astype(np.uint64)
            case "load":
                return widen(item.inputs[imm][self.start + lanes], program.inputs[imm].dtype)
            case "store":
                item.outputs[imm][self.start + lanes] = narrow(operands[0], program.outputs[imm].dtype)
                return None
            case "param":
                dtype = program.params[imm].dtype
                return widen(np.full(len(lanes), item.params[imm] & _ones(dtype.size), _RAW[dtype.size]), dtype)
            case "table_get":
                return widen(item.tables[imm][operands[0].astype(np.int64)], program.tables[imm].dtype)
            case atomic:
                _update(atomic.removeprefix("table_"), item.tables[imm], operands[0].astype(np.int64), operands[1])
                return None

    def deliver(self, instr: Instr, op: Op, operands: list[Array], lanes: Array) -> None:
        """Accumulators and emits."""
        imm, value = instr.imm, operands[0]
        kept = self.item.accumulators
        match op.name.rpartition(".")[2]:
            case "emit":
                values, emitted = self.emitted[imm]
                values[lanes] = narrow(value, self.item.program.emits[imm].dtype)
                emitted[lanes] = True
            case "acc_count":
                kept[imm] += np.count_nonzero(value)
            case "acc_histogram":
                kept[imm] += np.bincount(value, minlength=len(kept[imm]))
            case "acc_sum" if op.args[0].is_float:
                with np.errstate(all="ignore"):
                    self.partials[imm][lanes] += value.view(np.float32 if op.args[0] is Type.f32 else np.float64)
            case "acc_sum":
                kept[imm] += value.sum(dtype=np.uint64)
            case _:  # min and max, free of order
                combine = BY_NAME[op.name.replace("acc_", "")]
                values = np.concatenate([kept[imm], value])
                while len(values) > 1:
                    half = len(values) // 2
                    values = np.concatenate(
                        [compute(combine, values[:half], values[half : 2 * half]), values[2 * half :]]
                    )
                kept[imm] = compute(combine, values, values)  # also one value alone gives a canonical NaN


def _function(op: Op, operands: list[Array]) -> Array:
    """An elementary function: its VIR0 body, executed."""
    body, tables = _body(op.name)
    chunk = _Chunk(_Item(body.program, [], [], tables, 0, 0), 0, len(operands[0]))
    for register, operand in enumerate(operands):
        chunk.registers[register][:] = operand
    chunk.block(0, len(chunk.code), np.arange(chunk.count))
    result: Array = chunk.registers[body.result_register]
    return result


@cache
def _body(name: str) -> tuple[Function, list[Array]]:
    body = BODIES[name]
    declared = body.program.tables
    return body, [np.array(t, np.uint64).astype(_RAW[d.dtype.size]) for t, d in zip(body.tables, declared, strict=True)]


def _update(verb: str, table: Array, index: Array, value: Array) -> None:
    """Atomic updates of a table: each element's once, in any order."""
    signed = {np.uint32: np.int32, np.uint64: np.int64}[table.dtype.type]
    kind, _, sign = verb.partition("_")
    ufunc: Any = {
        "add": np.add,
        "and": np.bitwise_and,
        "or": np.bitwise_or,
        "xor": np.bitwise_xor,
        "min": np.minimum,
        "max": np.maximum,
    }[kind]
    if sign == "s":
        table, value = table.view(signed), value.view(signed)
    ufunc.at(table, index, value)


def _identity(a: Accumulator) -> Array:
    """Register bits of an accumulator that nothing was added to, as an array of one (histogram: of its bins)."""
    match a.kind:
        case AccKind.histogram:
            return np.zeros(a.bins, np.int64)
        case AccKind.count:
            return np.zeros(1, np.int64)
        case AccKind.sum:
            return np.zeros(1, np.uint64)
    dtype = numpy_dtype(a.dtype)
    if a.dtype.type.is_float:
        largest, smallest = np.array([np.inf, -np.inf], dtype)
    else:
        largest, smallest = np.array([np.iinfo(dtype).max, np.iinfo(dtype).min], dtype)
    return np.array([largest if a.kind is AccKind.min else smallest], dtype).view(BITS[a.dtype.type])


def _raw(x: Array, dtype: MemType, name: str) -> Array:
    """The same memory as unsigned integers of the memory type's size."""
    if x.ndim != 1 or x.itemsize != dtype.size or not x.flags.c_contiguous:
        raise BindError(
            f"{name} is {x.dtype}{list(x.shape)}; {dtype.name} takes a contiguous vector of {numpy_dtype(dtype)}"
        )
    return x.view(_RAW[dtype.size])


def _merge(*lanes: Array) -> Array:
    return np.sort(np.concatenate([np.zeros(0, np.intp), *lanes]))


def _ones(size: int) -> int:
    return (1 << 8 * size) - 1


def _canonical(values: Array) -> NDArray[np.float64]:
    return np.where(values != values, np.nan, values)


def _python_value(bits: Array, t: Type, op: Op) -> int | float:
    if t.is_float:
        return float(bits.view(np.float32 if t is Type.f32 else np.float64)[0])
    signed = np.int32 if t is Type.i32 else np.int64
    return int(bits[0] if op.name.endswith("_u") else bits.view(signed)[0])
