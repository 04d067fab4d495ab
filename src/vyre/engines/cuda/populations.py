"""Populations on the GPU: thousands of programs verified, rewritten and placed at once, and run over the same inputs.

A population's images lie side by side in the arena and reach the device in one copy; so do its bindings, which are made
as one array. Inputs in host memory are copied to the device once for all programs.

Owns: arrays of images, bindings, slots and results. Leaves to others: verifying and rewriting (straight_form), the ring
(residency), single items (engine, bindings).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import PopulationResult
from vyre.engines.cuda import abi
from vyre.engines.cuda.bindings import NUMPY, fault_of, host_array
from vyre.engines.cuda.lower import is_float_sum, values_of_keys
from vyre.engines.cuda.memory import Chunk, Pool, address_of
from vyre.engines.fold import fold_rows
from vyre.errors import ArenaFull
from vyre.program.opcodes import TILE, AccKind
from vyre.program.population import Population
from vyre.ring.layout import PROGRAM_FIRST, SLOT_WORDS, Status

if TYPE_CHECKING:
    from vyre.engines.cuda.engine import CudaEngine

STAGING_BYTES: Final = 64 << 20  # of outputs and tile results that wait for the host at a time
_WORDS_PER_UNIT: Final = abi.UNIT // 8


@dataclass(slots=True, eq=False)
class ResidentPopulation:
    """A population in the arena.

    Attributes:
        opcodes: u32[programs], what slots call them.
        units: u32[programs], where their images are.
        at: offset of the first image in the arena.
    """

    population: Population
    opcodes: NDArray[np.uint32]
    units: NDArray[np.uint32]
    at: int
    closed: bool = False


def load(engine: CudaEngine, population: Population) -> ResidentPopulation:
    """Verify, rewrite and place all programs, or none. See ``CudaEngine.load_population``."""
    images, places = engine.lowering.images(population, engine.refuse_image, engine.shared_of_warp)
    declared = population.declarations
    with engine.residency.lock:
        arena = engine.arena
        at = arena.reserve(images.nbytes)
        try:
            numbers = engine.take_numbers(len(population))
        except ArenaFull:
            arena.release(at // arena.unit)
            raise
        opcodes = (numbers + PROGRAM_FIRST).astype(np.uint32)
        images.view(np.uint32)[places // 4 + 1] = opcodes
        units = ((places + at) // arena.unit).astype(np.uint32)
        arena.array[at : at + images.nbytes] = images.view(np.uint8)
        table = arena.array[: abi.TABLE_BYTES].view(np.uint32)
        table[numbers] = units
        # Nothing names this stretch yet, so the copy engine may write it beside the kernel.
        engine.device.to_device(engine.residency.arena_address + at, arena.address + at, images.nbytes)
        engine.lowering.keep(images)
        for first, last in _runs(numbers):
            arena.touch(4 * first, 4 * (last - first))
    sums = sum(map(is_float_sum, declared.accumulators))
    if sums:
        engine.residency.need_heap(4096 * sums)
    return ResidentPopulation(population, opcodes, units, at)


def unload(engine: CudaEngine, resident: ResidentPopulation) -> None:
    """Forget a population. No slot that names one of its programs may be unfinished."""
    with engine.residency.lock:
        if resident.closed or engine.closed:
            return
        resident.closed = True
        numbers = resident.opcodes.astype(np.int64) - PROGRAM_FIRST
        engine.arena.array[: abi.TABLE_BYTES].view(np.uint32)[numbers] = 0
        for first, last in _runs(numbers):
            engine.arena.touch(4 * first, 4 * (last - first))
        engine.arena.release(resident.at // engine.arena.unit)
        engine.give_numbers(numbers)


def _runs(numbers: NDArray[np.int64]) -> list[tuple[int, int]]:
    """Consecutive numbers as (first, last + 1)."""
    breaks = np.flatnonzero(np.diff(numbers) != 1) + 1
    starts = [0, *breaks.tolist()]
    ends = [*breaks.tolist(), len(numbers)]
    return [(int(numbers[a]), int(numbers[b - 1]) + 1) for a, b in zip(starts, ends, strict=True)]


def run(
    engine: CudaEngine,
    resident: ResidentPopulation,
    chosen: NDArray[np.int64],
    inputs: Sequence[Any],
    tables: Sequence[Any],
    params: Sequence[int],
    outputs: Sequence[Any],
    count: int,
    make_room: Callable[[], None],
) -> PopulationResult:
    """Run ``chosen`` programs over elements [0, count). See ``CudaEngine.run_population``."""
    return _Run(engine, resident, chosen, outputs, count).run(inputs, tables, params, make_room)


class _Half(NamedTuple):
    """Memory of a batch; two of them are under way.

    Attributes:
        chunk, at: pinned memory for outputs, and its place there.
        near: device memory for accumulators and tile sums.
        scratch: device memory for accumulators of items of many tiles.
    """

    chunk: Chunk
    at: int
    near: int
    scratch: int


class _Run:
    """One call on its way."""

    def __init__(
        self,
        engine: CudaEngine,
        resident: ResidentPopulation,
        chosen: NDArray[np.int64],
        outputs: Sequence[Any],
        count: int,
    ) -> None:
        self.engine = engine
        self.program = program = resident.population.declarations
        self.opcodes = resident.opcodes[chosen]
        self.units = resident.units[chosen]
        self.outputs = outputs
        self.count = count
        self.tiles = tiles = -(-count // TILE)
        self.sums = [i for i, a in enumerate(program.accumulators) if is_float_sum(a)]
        self.on_device = [not isinstance(o, np.ndarray) for o in outputs]
        # Accumulators and tile sums of a program go to device memory and come back by the copy engine: the bus takes
        # 15 million words a second one by one. Outputs for the host go to its share of a batch's pinned memory.
        self.near_words = len(program.accumulators) + len(self.sums) * tiles
        self.row_at: list[int] = []
        at = 0
        for (_, dtype), on_device in zip(program.outputs, self.on_device, strict=True):
            self.row_at.append(at)
            at += 0 if on_device else (count * NUMPY[dtype].itemsize + 127) // 128 * 128
        self.row_bytes = max(at, 128)
        most = STAGING_BYTES // max(self.row_bytes, 8 * self.near_words)
        self.batch = max(1, min(len(chosen), engine.residency.capacity // 2, most))
        self.pieces: list[tuple[Pool, int]] = []
        self.result = PopulationResult(list(outputs))
        self.words = np.zeros((len(chosen), self.near_words), np.uint64)

    def run(
        self, inputs: Sequence[Any], tables: Sequence[Any], params: Sequence[int], make_room: Callable[[], None]
    ) -> PopulationResult:
        engine, n = self.engine, len(self.opcodes)
        units = 0
        under_way: list[tuple[int, int, int]] = []  # first sequence, first program, half
        try:
            with engine.residency.lock:
                operands = self._operands(inputs, tables)
                width = 8 + len(operands) + 2 * len(self.program.accumulators) + len(params)
                width = -(-width // _WORDS_PER_UNIT) * _WORDS_PER_UNIT
                units = engine.arena.reserve(8 * width * self.batch * 2) // engine.arena.unit
                halves = [self._half() for _ in range(2)]
            step = width // _WORDS_PER_UNIT
            for i, first in enumerate(range(0, n, self.batch)):
                if len(under_way) == 2:
                    self._collect(halves, under_way)
                half = i % 2
                bindings = self._bindings(first, halves[half], operands, params, width)
                slots = self._slots(first, bindings, units + half * step * self.batch, step)
                sequence = engine.submit_batch(slots)
                while sequence is None:  # tickets of others are in the ring
                    if under_way:
                        self._collect(halves, under_way)
                    else:
                        make_room()
                    sequence = engine.submit_batch(slots)
                under_way.append((sequence, first, half))
            while under_way:
                self._collect(halves, under_way)
        finally:
            for sequence, first, _ in under_way:  # interrupted: items write to memory that is given back here
                engine.wait(sequence, min(self.batch, n - first))
                engine.completions(sequence, min(self.batch, n - first))
            with engine.residency.lock:
                if units:
                    engine.arena.release(units)
                engine.bindings.put(self.pieces)
        self._accumulators()
        return self.result

    def _half(self) -> _Half:
        """Memory of a batch."""
        engine = self.engine
        chunk, at = engine._pinned.cut(self.row_bytes * self.batch)
        self.pieces.append((engine._pinned, chunk.address + at))
        near = engine._device_pool.get(max(8 * self.near_words * self.batch, 16))
        self.pieces.append((engine._device_pool, near))
        scratch = 0
        if self.program.accumulators and self.tiles > 1:
            scratch = engine._device_pool.get(8 * len(self.program.accumulators) * self.batch)
            self.pieces.append((engine._device_pool, scratch))
        return _Half(chunk, at, near, scratch)

    def _operands(self, inputs: Sequence[Any], tables: Sequence[Any]) -> list[int]:
        """Words of inputs, outputs and tables; zeros where an output's address goes."""
        program, words = self.program, []
        for (name, dtype), value in zip(program.inputs, inputs, strict=True):
            address = self._near(value, NUMPY[dtype], self.count, name)
            words += [address, (address % 16 == 0) | (dtype | abi.IN_DEVICE_MEMORY) << 32]
        for _, dtype in program.outputs:
            words += [0, dtype << 32]
        for table, value in zip(program.tables, tables, strict=True):
            kind = NUMPY[table.dtype]
            words += [self._near(value, kind, value.size, table.name), value.size | table.dtype << 32]
        return words

    def _near(self, value: Any, kind: np.dtype[Any], count: int, name: str) -> int:
        """Address of an array in device memory: where it is, or a copy that lives as long as the run."""
        if not isinstance(value, np.ndarray):
            address = self.engine.bindings.in_place(value, kind, count, name)
            assert address is not None
            return address
        flat = host_array(value, kind, count, name)
        address = self.engine._device_pool.get(max(flat.nbytes, 16))
        self.pieces.append((self.engine._device_pool, address))
        if count:
            self.engine.device.to_device(address, address_of(flat), flat.nbytes)
        return address

    def _bindings(
        self, first: int, half: _Half, operands: list[int], params: Sequence[int], width: int
    ) -> NDArray[np.uint64]:
        """The batch's bindings, u64[programs, width]."""
        program, scratch = self.program, half.scratch
        last = min(first + self.batch, len(self.opcodes))
        row = np.arange(last - first, dtype=np.uint64)
        base = row * np.uint64(self.row_bytes) + np.uint64(half.chunk.device + half.at)
        near = row * np.uint64(8 * self.near_words) + np.uint64(half.near)
        made = np.zeros((last - first, width), np.uint64)
        accs = len(program.accumulators)
        made[:, 0] = self.opcodes[first:last].astype(np.uint64) << np.uint64(32) | np.uint64(abi.MAGIC_BINDING)
        made[:, 1] = self.units[first:last] | np.uint64(self.tiles << 32)
        made[:, 3] = self.count
        made[:, 4] = near
        made[:, 5] = row * np.uint64(8 * accs) + np.uint64(scratch) if scratch else 0
        made[:, 6] = near + np.uint64(8 * accs)
        made[:, 7] = near
        made[:, 8 : 8 + len(operands)] = operands
        for i, (_, dtype) in enumerate(program.outputs):
            size = NUMPY[dtype].itemsize
            where = 8 + 2 * (len(program.inputs) + i)
            if self.on_device[i]:
                row_bytes = self.count * size
                start = int(self.outputs[i].address)
                made[:, where] = row * np.uint64(row_bytes) + np.uint64(start + first * row_bytes)
            else:
                made[:, where] = base + np.uint64(self.row_at[i])
            made[:, where + 1] = (made[:, where] % np.uint64(16) == 0) | np.uint64(dtype << 32)
        made[:, 8 + len(operands) + 2 * accs : 8 + len(operands) + 2 * accs + len(params)] = np.array(params, np.uint64)
        return made

    def _slots(self, first: int, bindings: NDArray[np.uint64], unit: int, step: int) -> NDArray[np.uint32]:
        """Put the batch's bindings in place; its slots, ready to publish."""
        engine, n = self.engine, len(bindings)
        with engine.residency.lock:
            at = unit * engine.arena.unit
            engine.arena.array[at : at + bindings.nbytes] = bindings.reshape(-1).view(np.uint8)
            engine.device.to_device(engine.residency.arena_address + at, engine.arena.address + at, bindings.nbytes)
            engine.arena.touch(at, 16)  # so that the kernel hears that bindings have changed
        slots = np.zeros((n, SLOT_WORDS), np.uint32)
        slots[:, 1] = self.opcodes[first : first + n]
        slots[:, 3] = 2
        slots[:, 4] = unit + step * np.arange(n, dtype=np.uint32)
        slots[:, 7], slots[:, 8] = self.count & 0xFFFF_FFFF, self.count >> 32
        return slots

    def _collect(self, halves: list[_Half], under_way: list[tuple[int, int, int]]) -> None:
        """Wait for the oldest batch and take its results out of pinned memory, which the next one reuses.

        It stays under way until its records are read: an interrupt must not have its memory given back to others.
        """
        engine = self.engine
        sequence, first, half = under_way[0]
        n = min(self.batch, len(self.opcodes) - first)
        engine.wait(sequence, n)
        records = engine.completions(sequence, n)
        del under_way[0]
        chunk, at, near, _ = halves[half]
        rows = chunk.whole[at : at + n * self.row_bytes].reshape(n, self.row_bytes)
        bad = np.flatnonzero(records["status"] != Status.DONE)
        for i in bad.tolist():
            r = records[i]
            self.result.faults[first + i] = fault_of(int(r["code"]), int(r["pc"]), int(r["element"]))
        if self.near_words:
            words = self.words[first : first + n]
            engine.device.to_host(address_of(words), near, words.nbytes)
        for i, (_, dtype) in enumerate(self.program.outputs):
            if not self.on_device[i]:
                size = self.count * NUMPY[dtype].itemsize
                part = rows[:, self.row_at[i] : self.row_at[i] + size].view(NUMPY[dtype])
                self.outputs[i][first : first + n] = part
                self.outputs[i][first + bad] = 0

    def _accumulators(self) -> None:
        faulted = list(self.result.faults)
        accs = len(self.program.accumulators)
        for i, acc in enumerate(self.program.accumulators):
            kind = NUMPY[acc.dtype]
            if i in self.sums:
                at = accs + self.sums.index(i) * self.tiles
                values = fold_rows(self.words[:, at : at + self.tiles].view(np.float64)).astype(kind)
            else:
                words = self.words[:, i]
                if acc.kind in (AccKind.min, AccKind.max):
                    words = values_of_keys(acc.kind, acc.dtype, words)
                values = np.ascontiguousarray(words).view(np.uint8).reshape(-1, 8)[:, : kind.itemsize]
                values = np.ascontiguousarray(values).reshape(-1).view(kind)
            values[faulted] = 0
            self.result.accumulators.append(values)
