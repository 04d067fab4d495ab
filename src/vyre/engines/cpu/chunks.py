"""Chunks of a stream through the CPU engine: a pump publishes them, workers run them, results are taken in order.

A frame is an item made once and used again and again: the pump writes origin, count and inputs into its binding and
publishes its slot, without Python. What the user's thread does, or does not do for lack of the GIL, holds nothing up until
every frame has a result that nobody has taken.

Owns: frames, and what a record means for the chunk in one. Leaves to others: bytes and slots (vyre.stream), execution
(worker), totals and what the caller sees (runtime).
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import time
from collections.abc import Callable, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import FileRange, ItemResult, Operands
from vyre.engines.cpu import state
from vyre.engines.cpu.engine import FILE, CpuEngine
from vyre.engines.cpu.items import RECORD, CpuItem
from vyre.errors import EngineUnavailable, Fault, SessionClosed, StreamError, WaitTimeout
from vyre.program.ir import Program
from vyre.program.opcodes import FaultCode
from vyre.ring.layout import SESSION_DONE_BELL, SESSION_WAITERS
from vyre.ring.memory import Ring
from vyre.stream import frames as f
from vyre.stream.compiled import pump_functions
from vyre.stream.formats import numpy_dtype
from vyre.stream.plan import SMALL_BYTES, Plan
from vyre.stream.pool import DEFAULT_POOL_BYTES, Pool
from vyre.stream.reader import Reader
from vyre.stream.source import Chunk, Source
from vyre.stream.tables import Field, FramePlace, Publish

RING_CAPACITY: Final = 128
FRAMES_MAX: Final = RING_CAPACITY  # so that the ring always has room
FRAMES_MIN: Final = 4
"""Chunks that may be finished and not yet asked for where each has outputs: what bounds memory when the caller is slow."""
LARGER: Final = 4
"""How many times as long chunks of hot files are where they have no outputs, if there are enough of them then."""
_LEFT: Final[list[object]] = []  # rings and frames of pumps that could not be seen to end
_WAIT_NS: Final = 50_000_000


class CpuFrame(CpuItem):
    """An item that the pump publishes, for one chunk of at most ``operands.count`` elements after the other."""

    __slots__ = ()

    @property
    def place(self) -> FramePlace:
        """Where the pump writes: slot, origin, elements, descriptors of the inputs."""
        block = self._block.address
        inputs = block + 8 * state.BINDING_WORDS
        return FramePlace(self._words[2], block + state.B_ORIGIN, block + state.B_ELEMENTS, inputs)

    def delivered(self, record: memoryview, count: int, *, sums: bool) -> ItemResult:
        """What a chunk of ``count`` elements gave, from its record (u64[8]).

        Outputs, emits and accumulators are the caller's. Tile sums are views, which ``renew`` makes invalid.
        """
        words = self._words
        for i, word in enumerate(record):
            words[RECORD + i] = word
        if self._faulted():
            return ItemResult(fault=self._fault())
        given = self._operands
        result = ItemResult(given.outputs, [], [], {}, None)
        if count < given.count:
            result.outputs = [a[:count] for a in given.outputs]
        if given.emits:
            result.emits = [a[:n] for a, n in zip(given.emits, self._block.emitted, strict=True)]
        if self._program.accumulators:
            result.accumulators = self._accumulators()
            if sums and self._image.float_sums:
                assert self._block.tile_results is not None
                tiles = self._block.tile_results[: (count + 1023) >> 10].view(np.float64)
                result.tile_sums = {i: tiles[:, i] for i in self._image.float_sums}
        return result

    def operands_of(self, first: int, count: int) -> Operands:
        """The operands of the chunk that is here, for the description of a fault. Only until ``renew``."""
        given = self._operands
        inputs: list[Any] = []
        at = self._block.address + 8 * state.BINDING_WORDS
        for stream in self._program.inputs:
            word, place, offset = (ctypes.c_uint64.from_address(at + 8 * k).value for k in range(3))
            dtype = numpy_dtype(stream.dtype)
            width = word >> state.ROW_WIDTH_SHIFT & state.ROW_WIDTH_MAX
            inside = word >> state.ROW_INSIDE_SHIFT
            if word & 0xFF == FILE:
                inputs.append(FileRange(place, offset, width, inside) if width else FileRange(place, offset))
            else:
                step = width or dtype.itemsize
                memory = (ctypes.c_char * (count * step)).from_address(place + offset)
                inputs.append(np.ndarray((count,), dtype, memoryview(memory).cast("B"), inside, (step,)))
            at += state.INPUT_BYTES
        return Operands(first, count, inputs, given.outputs, given.emits, given.tables, given.params)

    def renew(self) -> None:
        """Make ready for the next chunk: outputs and emits of its own, histograms at zero."""
        given = self._operands
        if given.outputs or given.emits:
            given.outputs = [np.empty_like(a) for a in given.outputs]
            given.emits = [np.empty_like(a) for a in given.emits]
            self._block.point(given.outputs, given.emits)
        if self._block.bins:
            self._block.clear_bins()


class CpuChunks:
    """The chunks of a source through a program, in order. One thread at a time.

    Attributes:
        plan: which way the bytes come.
    """

    def __init__(
        self,
        engine: CpuEngine,
        opcode: int,
        source: Source,
        plan: Plan,
        pool: Pool,
        tables: Sequence[NDArray[Any]],
        params: Sequence[int],
    ) -> None:
        self._engine, self._source, self.plan, self._pool = engine, source, plan, pool
        self._program: Program = engine.image(opcode).program
        self._closed = False
        self._pid = os.getpid()
        self._next = 0
        self._elements = 0
        self._frames: list[CpuFrame] = []
        self._reader: Reader | None = None
        self._ring: Ring = engine.new_ring(RING_CAPACITY)
        try:
            for _ in range(self._wanted()):
                self._frames.append(CpuFrame(engine, self._ring, opcode, self._room(list(tables), list(params))))
            at = engine.address
            publish = Publish(self._ring.address, at, at + SESSION_DONE_BELL, at + SESSION_WAITERS, engine.workers)
            places = [frame.place for frame in self._frames]
            self._natives = pump_functions(engine.store)
            fields = [_field(source, stream.name) for stream in self._program.inputs]
            self._taken = sum(
                stream.dtype.size for stream, field in zip(self._program.inputs, fields, strict=True) if field.layout
            )
            self._reader = Reader(
                source, plan, pool, natives=self._natives, publish=publish, places=places, fields=fields
            )
            self._words = [self._reader.frame_words(i) for i in range(len(self._frames))]
            self._addresses = [self._reader.frame_address(i) for i in range(len(self._frames))]
            self._pump = self._reader.address
            self._reader.start()
            self._chunks = self._reader.chunks
        except BaseException:
            self.close()
            raise

    def _wanted(self) -> int:
        """Frames: enough that a caller without the GIL holds nothing up, no more than results are meant to take."""
        plan, program = self.plan, self._program
        cuts = sum(max(0, len(strip.segments) - 1) for strip in self._source.strips.values())
        chunks = -(-self._source.count // plan.chunk_elements) + 2 * cuts
        wanted = FRAMES_MAX
        if program.outputs or program.emits:
            wanted = FRAMES_MIN if plan.all_hot else max(FRAMES_MIN, 2 * plan.chunks_in_flight)
        return max(1, min(wanted, chunks, FRAMES_MAX))

    def _room(self, tables: list[NDArray[Any]], params: list[int]) -> Operands:
        program, count = self._program, min(self.plan.chunk_elements, self._source.count)
        return Operands(
            0,
            count,
            [FileRange(0, 0) for _ in program.inputs],  # the pump writes them
            [np.empty(count, numpy_dtype(s.dtype)) for s in program.outputs],
            [np.empty(count, numpy_dtype(s.dtype)) for s in program.emits],
            tables,
            params,
        )

    @property
    def reader(self) -> Reader:
        """What drives the pump: counters, stalls."""
        assert self._reader is not None
        return self._reader

    def waits(self) -> dict[str, float]:
        """Seconds that the pump slept, by what it waited for."""
        return {"storage": self.reader.hungry_s, "engine": self.reader.stall_s}

    def reader_cpu_s(self) -> float:
        """Processor seconds of the pump, known after ``close``."""
        return self.reader.cpu_s

    def copies(self) -> dict[str, int]:
        """Bytes that were copied on the way, by what for."""
        copies = {
            "fields taken out of rows": self._taken * self._elements,
            "joined at the ends of arrays": self.reader.copied,
        }
        return {what: count for what, count in copies.items() if count}

    def bytes_by_way(self) -> dict[str, int]:
        """Bytes by the way that they really took, in words."""
        return self.reader.report()

    def take(
        self,
        *,
        folded: bool = True,
        give_up: float | None = None,
        describe: Callable[[Fault, Operands], Fault] | None = None,
    ) -> tuple[Chunk, ItemResult] | StreamError | None:
        """The next chunk in order and what it delivered, the error that kept it from being read, or None at the end.

        Tile sums of the last chunk are valid until the next call.

        Args:
            folded: ignored: workers fold each chunk in any case.
            give_up: time.monotonic() after which WaitTimeout is raised.
            describe: completes a fault while the chunk's inputs are still in place.
        """
        self._give_back()
        index = self._next
        if index == self._chunks:
            return None
        at = index % len(self._frames)
        words = self._words[at]
        # No call that gives up the GIL while results are there: beside a busy thread it costs 5 ms to get it back.
        while words[0] & 0xFFFF_FFFF < f.DONE or words[f.F_INDEX // 8] != index:
            self._wait(self._addresses[at], give_up)
        self._next = index + 1
        chunk = Chunk(index, words[f.F_FIRST // 8], words[f.F_COUNT // 8])
        self._elements = chunk.first + chunk.count
        if words[0] & 0xFFFF_FFFF == f.FAILED:
            error = self.reader.error_of(words)
            error.elements = chunk.first, chunk.count
            return error
        frame = self._frames[at]
        result = frame.delivered(words[f.F_RECORD // 8 : f.FRAME_BYTES // 8], chunk.count, sums=True)
        fault = result.fault
        unread = (FaultCode.io_error, FaultCode.file_shrank)
        if fault is not None and describe is not None and fault.code not in unread:
            result.fault = describe(fault, frame.operands_of(chunk.first, chunk.count))
        return chunk, result

    def _give_back(self) -> None:
        """The frame of the chunk that was taken last is free: its results are the caller's or folded by now."""
        if self._next:
            at = (self._next - 1) % len(self._frames)
            if self._words[at][0] & 0xFFFF_FFFF >= f.DONE and self._words[at][f.F_INDEX // 8] == self._next - 1:
                self._frames[at].renew()
                self._natives.give_back(self._pump, self._addresses[at])

    def _wait(self, frame: int, give_up: float | None) -> None:
        if self._engine.closed:
            raise SessionClosed("this engine is closed", fix="open a new session")
        if give_up is not None and time.monotonic() >= give_up:
            raise WaitTimeout(f"the stream was not at its end in time, but at element {self._elements:,}")
        self.reader.check()
        self._natives.wait_frame(self._pump, frame, _WAIT_NS)

    def close(self) -> None:
        """End the pump, and give frames, ring and pool back. Nobody is inside a chunk any more when it returns."""
        if self._closed or os.getpid() != self._pid:  # in a forked child none of this is there
            return
        self._closed = True
        if self._engine.closed:
            self._engine.close()  # returns once nobody is inside an item
        if self._reader is not None:
            self._reader.close()
            self._reader.note_demotions()
            if self._reader.abandoned:  # the pump may still look at ring and frames: they stay with it
                _LEFT.append((self._ring, self._frames))
                return
        for frame in self._frames:
            frame.close()
        self._pool.close()
        self._engine.release_ring(self._ring)

    def __del__(self) -> None:
        # The pump writes into frames: it has to end before they go, whatever order they would go in by themselves.
        if hasattr(self, "_ring"):
            self.close()


def _field(source: Source, name: str) -> Field:
    """Where an input's elements are, as descriptors say it."""
    strip, inside, dtype = source.takes[name]
    width = source.strips[strip].width
    layout = width << state.ROW_WIDTH_SHIFT | inside << state.ROW_INSIDE_SHIFT if width != dtype.size else 0
    return Field(strip, layout)


def open_chunks(
    engine: CpuEngine,
    opcode: int,
    source: Source,
    *,
    io: str,
    chunk_elements: int | None,
    pool_bytes: int | None,
    tables: Sequence[NDArray[Any]],
    params: Sequence[int],
) -> CpuChunks | None:
    """A pump for a source; None where items made one by one do better, or where nobody would run what it publishes.

    Those are: sources that are read before a thread has started, and an engine without resident workers.
    """
    program: Program = engine.image(opcode).program
    small = source.bytes < SMALL_BYTES and chunk_elements is None
    if small or not engine.resident or any(stream.name not in source.takes for stream in program.inputs):
        return None
    with contextlib.ExitStack() as undo:
        try:
            pump_functions(engine.store)
        except EngineUnavailable:
            return None
        pool = undo.enter_context(Pool(pool_bytes or DEFAULT_POOL_BYTES))
        plan = Plan.choose(source, pool, io=io, chunk_elements=chunk_elements)  # type: ignore[arg-type]
        if chunk_elements is None and plan.all_hot and not (program.outputs or program.emits):
            # Nothing is waited for but totals: fewer parts leave Python less to do, and whoever shares its cores.
            plan.chunk_elements *= max(1, min(LARGER, source.count // (LARGER * plan.chunk_elements)))
        found = CpuChunks(engine, opcode, source, plan, pool, tables, params)
        undo.pop_all()
        return found
