"""Runs tile forms one record at a time through ctypes, with memory that NumPy owns and guards on both sides of it.

What the CPU engine's worker does natively, in Python and slowly, so that handlers and lowering can be tested by themselves.
"""

from __future__ import annotations

import ctypes
from collections.abc import Sequence
from typing import Any

import numpy as np

from vyre.engines.base import ItemResult
from vyre.engines.cpu import abi
from vyre.engines.cpu.handlers import Handlers, shared
from vyre.engines.cpu.tileform import TileForm, lower
from vyre.engines.fold import fold_spans
from vyre.errors import Fault
from vyre.program.ir import Accumulator, Program
from vyre.program.opcodes import FAULT_REASONS, TILE, AccKind, FaultCode, MemType
from vyre.stream.formats import numpy_dtype

_HANDLER = ctypes.CFUNCTYPE(ctypes.c_uint64, ctypes.c_uint64, ctypes.c_uint64)
_GUARD = 64
_called: dict[int, Any] = {}


def call(address: int, ctx: int, op: int) -> int:
    """One handler."""
    if address not in _called:
        _called[address] = _HANDLER(address)
    return _called[address](ctx, op)


def zeros(count: int, dtype: Any) -> np.ndarray:
    """``count`` elements that start on a cache line."""
    size = np.dtype(dtype).itemsize
    raw = np.zeros(count * size + 128, np.uint8)
    skip = -raw.ctypes.data % 64
    return raw[skip : skip + count * size].view(dtype)


def guarded(count: int, size: int) -> np.ndarray:
    """u8[count * size + 2 guards], filled with a pattern."""
    return np.full(count * size + 2 * _GUARD, 0xA5, np.uint8)


class Machine:
    """The memory of one worker."""

    def __init__(self, program: Program, form: TileForm, handlers: Handlers) -> None:
        self.program, self.form, self.handlers = program, form, handlers
        slots = abi.SCRATCH_SLOTS
        self.ctx = zeros(abi.CTX_BYTES // 8, np.uint64)
        self.ptrs = zeros(abi.PTR_COUNT, np.uint64)
        self.scratch = zeros(slots * abi.SCRATCH_STRIDE + 8192, np.uint8)
        self.scratch[:] = 0xCD
        self.masks = zeros(abi.MASK_DEPTHS * abi.LANES, np.uint8)
        self.masks[:] = 0xEE
        self.fuel_used = zeros(abi.LANES, np.uint32)
        accs = len(program.accumulators)
        self.accs = zeros(max(accs, 1), np.uint64)
        self.partials = zeros(max(accs, 1) * abi.PARTIAL_BYTES, np.uint8)
        self.partials[:] = 0xCD
        self.bins = [zeros(max(a.bins, 1), np.int64) for a in program.accumulators]
        self.bin_list = np.array([b.ctypes.data for b in self.bins] or [0], np.uint64)
        self.emits = zeros(2 * max(len(program.emits), 1), np.uint64)
        self.tables = zeros(2 * max(len(program.tables), 1), np.uint64)
        self.params = zeros(max(len(program.params), 1), np.uint64)
        self.ptrs[:slots] = self.scratch.ctypes.data + np.arange(slots, dtype=np.uint64) * abi.SCRATCH_STRIDE
        for offset, value in (
            (abi.CTX_PTRS, self.ptrs), (abi.CTX_MASKS, self.masks), (abi.CTX_FUEL_USED, self.fuel_used),
            (abi.CTX_PARAMS, self.params), (abi.CTX_TABLES, self.tables), (abi.CTX_ACCS, self.accs),
            (abi.CTX_PARTIALS, self.partials), (abi.CTX_BINS, self.bin_list), (abi.CTX_EMITS, self.emits),
        ):  # fmt: skip
            self.ctx[offset // 8] = value.ctypes.data
        self.ctx[abi.CTX_FUEL // 8] = program.fuel
        self.code = {
            name: zeros(len(code), np.uint8) for name, code in (("before", form.prologue), ("body", form.body))
        }
        self.code["before"][:] = np.frombuffer(form.prologue, np.uint8)
        self.code["body"][:] = np.frombuffer(form.body, np.uint8)

    def run(self, which: str) -> None:
        """All records of the prologue ("before") or the body."""
        op = start = self.code[which].ctypes.data
        records = self.code[which].view(np.uint64)
        while op:
            op = call(int(records[(op - start) // 8 + abi.OP_FN // 8]), self.ctx.ctypes.data, op)

    def names(self) -> list[str]:
        """Handlers of the body, in order."""
        records = self.code["body"].view(np.uint64).reshape(-1, abi.OP_BYTES // 8)
        return [self.handlers.name_of(int(address)) for address in records[:, 0]]


def identity(acc: Accumulator) -> int:
    """What a tile's result starts from, as 64 bits."""
    if acc.kind is AccKind.sum and acc.dtype is MemType.f64:
        return 1 << 63  # -0.0
    if acc.kind in (AccKind.sum, AccKind.count, AccKind.histogram):
        return 0
    dtype = numpy_dtype(acc.dtype)
    low = acc.kind is AccKind.max
    value = (
        np.array(-np.inf if low else np.inf, dtype)
        if acc.dtype.type.is_float
        else np.array(np.iinfo(dtype).min if low else np.iinfo(dtype).max, dtype)
    )
    return int.from_bytes(value.tobytes(), "little")


def execute(
    program: Program,
    inputs: Sequence[np.ndarray],
    params: Sequence[int],
    tables: Sequence[np.ndarray],
    first: int,
    count: int,
    *,
    handlers: Handlers | None = None,
    in_place: dict[int, int] | None = None,
) -> ItemResult:
    """As engines.reference.execute. ``in_place``: output -> input whose memory it shares."""
    own = handlers or shared()
    form = lower(program, own)
    machine = Machine(program, form, own)
    ctx = machine.ctx
    ins = [x.copy() for x in inputs]
    outs = [guarded(count, d.dtype.size) for d in program.outputs]
    shared_with = in_place or {}
    machine.params[: len(params)] = params
    for i, table in enumerate(tables):
        machine.tables[2 * i : 2 * i + 2] = table.ctypes.data, len(table)
    kept: list[list[np.ndarray]] = [[] for _ in program.emits]
    tiles: list[list[np.ndarray]] = [[] for _ in program.accumulators]
    fault: Fault | None = None
    ctx[abi.CTX_N // 8] = 0
    machine.run("before")
    for start in range(0, count, TILE):
        n = min(TILE, count - start)
        segments = [guarded(n, d.dtype.size) for d in program.emits]
        for i, x in enumerate(ins):
            machine.ptrs[abi.PTR_INPUTS + i] = x.ctypes.data + start * x.itemsize
        for i, d in enumerate(program.outputs):
            at = outs[i].ctypes.data + _GUARD if i not in shared_with else ins[shared_with[i]].ctypes.data
            machine.ptrs[abi.PTR_OUTPUTS + i] = at + start * d.dtype.size
        for i, segment in enumerate(segments):
            machine.emits[2 * i : 2 * i + 2] = segment.ctypes.data + _GUARD, 0
        for i, acc in enumerate(program.accumulators):
            machine.accs[i] = identity(acc)
        machine.fuel_used[:] = 0
        ctx[abi.CTX_N // 8], ctx[abi.CTX_FIRST // 8], ctx[abi.CTX_FAULT // 8] = n, first + start, abi.FAULT_NONE
        machine.run("body")
        word = int(ctx[abi.CTX_FAULT // 8])
        if word != abi.FAULT_NONE:
            code = FaultCode(word & 15)
            fault = Fault(int(code), FAULT_REASONS[code], word >> 4 & 0xFFFF, word >> abi.FAULT_ELEMENT_SHIFT)
            break
        for i, (segment, d) in enumerate(zip(segments, program.emits, strict=True)):
            many = int(machine.emits[2 * i + 1])
            assert many <= n, "more emitted than there are lanes"
            check_guards(segment, f"emit {i}")
            kept[i].append(segment[_GUARD : _GUARD + many * d.dtype.size].view(numpy_dtype(d.dtype)).copy())
        for i in range(len(program.accumulators)):
            tiles[i].append(machine.accs[i : i + 1].copy())
    for i, out in enumerate(outs):
        check_guards(out, f"output {i}")
    if fault is not None:
        return ItemResult(fault=fault)
    sums = {
        i: np.concatenate([np.zeros(0, np.uint64), *tiles[i]]).view(np.float64)
        for i, a in enumerate(program.accumulators)
        if a.kind is AccKind.sum and a.dtype is MemType.f64
    }
    results = []
    for i, acc in enumerate(program.accumulators):
        words = np.concatenate([np.zeros(0, np.uint64), *tiles[i]])
        results.append(machine.bins[i] if acc.kind is AccKind.histogram else _fold(acc, words, sums.get(i), first))
    return ItemResult(
        outputs=[
            ins[shared_with[i]] if i in shared_with else out[_GUARD:-_GUARD].view(numpy_dtype(d.dtype)).copy()
            for i, (out, d) in enumerate(zip(outs, program.outputs, strict=True))
        ],
        emits=[
            np.concatenate([np.zeros(0, numpy_dtype(d.dtype)), *x]) for x, d in zip(kept, program.emits, strict=True)
        ],
        accumulators=results,
        tile_sums=sums,
    )


def check_guards(memory: np.ndarray, what: str) -> None:
    assert (memory[:_GUARD] == 0xA5).all(), f"{what}: written before its first lane"
    assert (memory[-_GUARD:] == 0xA5).all(), f"{what}: written beyond its last lane"


def _fold(acc: Accumulator, words: np.ndarray, sums: np.ndarray | None, first: int) -> np.ndarray:
    dtype = numpy_dtype(acc.dtype)
    if sums is not None:
        return np.array(fold_spans(sums, first // TILE))
    if acc.kind in (AccKind.sum, AccKind.count):
        return np.array([words.sum(dtype=np.uint64)], np.uint64).view(dtype)[0:1].reshape(())
    bytes_ = np.concatenate([np.array([identity(acc)], np.uint64), words])
    values = bytes_.view(dtype)[:: 8 // np.dtype(dtype).itemsize]
    if acc.dtype.type.is_float and np.isnan(values).any():
        return np.array(np.nan, dtype)
    if not acc.dtype.type.is_float:
        return np.array(values.min() if acc.kind is AccKind.min else values.max(), dtype)
    best = min if acc.kind is AccKind.min else max
    return np.array(best(values, key=lambda v: (float(v), not np.signbit(v))), dtype)
