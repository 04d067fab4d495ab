"""Chunks of a stream through the resident kernel: full slots become items, records become results in order.

A seat is a binding made once and used again and again: its inputs are a slot of the pool, read by the kernel where it
lies, its results are pinned memory that is read when the chunk's turn comes. So a chunk costs a slot in the ring, not a
binding. Programs that ask for the index of an element have the binding's base rewritten, others run as if each chunk were
the first and have element numbers put right here.

Owns: seats, order of results, back-pressure (a slot goes back to the feed when its result was taken). Leaves to others:
how bytes come (feed), registering (registered), totals and what the caller sees (runtime).
"""

from __future__ import annotations

import os
import struct
import time
from collections import deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import ItemResult, Operands
from vyre.engines.cuda import abi
from vyre.engines.cuda.bindings import NUMPY, Binding, fault_of
from vyre.engines.cuda.feed import Arrived, Feed
from vyre.engines.cuda.lower import value_of_key
from vyre.engines.cuda.memory import array_at, view
from vyre.engines.fold import fold_spans
from vyre.errors import DeviceLost, Fault, SessionClosed, StreamError, WaitTimeout
from vyre.program.ir import Program
from vyre.program.opcodes import BY_NAME, TILE, Access, AccKind, FaultCode
from vyre.ring.layout import RECORD_BYTES, SLOT_DTYPE, Status
from vyre.stream.plan import Plan
from vyre.stream.source import Chunk

if TYPE_CHECKING:
    from vyre.engines.cuda.items import SessionCudaEngine

_LOOK_NS: Final = 200_000  # while items run: how long until somebody looks whether the stay is over
_INDEX: Final = BY_NAME["index"].code
_IDLE_NS: Final = 50_000_000  # while only reads are out: back to Python for Ctrl-C
_BASE_AT: Final = abi.BINDING_HEADER.fields["base"][1]  # type: ignore[index]


@dataclass(slots=True, eq=False)
class _Seat:
    """A binding and what it points at now; ``fields`` is memory for inputs taken out of rows: (host, device)."""

    binding: Binding
    slot: NDArray[Any]
    addresses: list[int]
    fields: dict[int, tuple[int, int]]
    base: int = 0
    count: int = 0


@dataclass(slots=True, eq=False)
class _Run:
    """A chunk between publish and the taking of its result."""

    arrived: Arrived
    seat: _Seat
    sequence: int
    fault: Fault | None = None


class DeviceMemory:
    """Memory by its device address, as ``bind`` takes it."""

    def __init__(self, address: int, kind: np.dtype[Any], count: int, stream: int) -> None:
        self.shape = (count,)
        self.__cuda_array_interface__ = {
            "shape": (count,), "typestr": kind.str, "data": (address, False), "version": 3, "stream": stream,
        }  # fmt: skip


class ChunkStream:
    """Results of one program over the chunks of a feed, in order.

    Args:
        engine: where ``opcode`` is loaded.
        feed: chunks in memory that is registered with the engine. Closed with this object.
        tables, params: as an item's. Tables are staged in device memory; atomic ones are copied back at the end.
    """

    def __init__(
        self,
        engine: SessionCudaEngine,
        opcode: int,
        feed: Feed,
        tables: Sequence[Any],
        params: Sequence[int],
    ) -> None:
        self._engine = engine
        self._opcode = opcode
        self._feed = feed
        self._source = feed.source
        self.program: Program = engine.program(opcode)
        strips = list(self._source.strips)
        takes = self._source.takes
        self._strip_of = [strips.index(takes[s.name].strip) for s in self.program.inputs]
        self._fields = {
            i: takes[s.name]
            for i, s in enumerate(self.program.inputs)
            if self._source.strips[takes[s.name].strip].width != s.dtype.size
        }
        self.copied = 0
        self._near = abi.IN_DEVICE_MEMORY if feed.in_device_memory else 0
        assert not (feed.in_device_memory and self._fields), "fields are taken out of rows by the host"
        self._params = list(params)
        self._tables = list(tables)
        self._count = -(-feed.chunk_elements // TILE) * TILE
        self._free: list[_Seat] = []
        self._by_slot: dict[int, _Seat] = {}
        self._seats: list[_Seat] = []
        self._uses_index = any(instruction.op == _INDEX for instruction in self.program.code)
        self._full: deque[Arrived] = deque()
        self._running: deque[_Run] = deque()
        self._done: dict[int, _Run] = {}
        self._next = 0
        self._closed = False
        self._staged: list[tuple[int, NDArray[Any] | None]] = []
        self._device_tables = [self._stage_table(i, table) for i, table in enumerate(tables)]

    def _stage_table(self, i: int, table: Any) -> Any:
        if not isinstance(table, np.ndarray):
            return table
        flat = np.ascontiguousarray(table).reshape(-1)
        engine = self._engine
        with engine.residency.lock:
            address = engine._device_pool.get(max(flat.nbytes, 16))
        written = self.program.tables[i].access is Access.atomic
        self._staged.append((address, table if written else None))
        if flat.nbytes:
            engine.device.to_device(address, flat.ctypes.data, flat.nbytes)
        return DeviceMemory(address, NUMPY[self.program.tables[i].dtype], flat.size, int(engine.device.copies))

    @property
    def plan(self) -> Plan:
        """Which way the bytes come; ``explain()`` says why."""
        return self._feed.plan

    def bytes_by_way(self) -> dict[str, int]:
        """Bytes so far by the way that they took."""
        return self._feed.bytes_by_way()

    # --- results ------------------------------------------------------------------------------------------------

    def waits(self) -> dict[str, float]:
        """Not measured here."""
        return {}

    def reader_cpu_s(self) -> float:
        """Not measured here: 0."""
        return 0.0

    def copies(self) -> dict[str, int]:
        """Bytes that the host copied on the way, by what for."""
        return {"fields taken out of rows": self.copied} if self.copied else {}

    def take(
        self,
        *,
        folded: bool = True,
        give_up: float | None = None,
        describe: Callable[[Fault, Operands], Fault] | None = None,
    ) -> tuple[Chunk, ItemResult] | StreamError | None:
        """The next chunk in order and what it delivered, the error that kept it from being read, or None at the end.

        Args:
            folded: fold each chunk's own float sums. False leaves them to whoever folds tile sums over all chunks, and
                lends the tile sums until the next call instead of copying them.
            give_up: time.monotonic() after which WaitTimeout is raised.
            describe: completes a fault while the chunk's inputs are still in place.
        Raises:
            DeviceLost: the kernel died. SessionClosed.
        """
        looked = 0.0
        while True:
            if self._engine.closed:
                raise SessionClosed("this engine is closed", fix="open a new session")
            self._retire()
            self._publish()  # before a result is handed out: the kernel works while Python does
            run = self._done.pop(self._next, None)
            if run is not None:
                return self._deliver(run, folded, describe)
            self._feed.more()
            if not self._running and not self._full and self._feed.finished:
                return None
            head = self._running[0] if self._running else None
            if head is None:
                self._feed.wait(0, 0, _IDLE_NS)
                looked = 0.0
            else:
                residency = self._engine.residency
                residency.look()
                with self._engine.residency.looking():
                    self._feed.wait(self._record_of(head.sequence), head.sequence + 1, _LOOK_NS)
                now = time.monotonic()
                if not looked:
                    looked = now
                elif now - looked > 1.0:
                    looked = now
                    if residency.is_here:
                        residency._check_alive()
            if give_up is not None and time.monotonic() >= give_up:
                raise WaitTimeout(f"the stream was not at its end in time, but at chunk {self._next:,}")

    def _record_of(self, sequence: int) -> int:
        residency = self._engine.residency
        return int(residency.records.ctypes.data) + RECORD_BYTES * (sequence & (residency.capacity - 1))

    def _retire(self) -> None:
        """Collect records, in the order of publishing. Items that overtake wait for those before them."""
        residency, running = self._engine.residency, self._running
        while running and residency.is_done(running[0].sequence):
            run = running.popleft()
            status, code, pc, element, _ = residency.collect_one(run.sequence)
            if status != Status.DONE:
                run.fault = fault_of(code, pc, element)
                if run.fault.element is not None and run.seat.base != run.arrived.chunk.first:
                    run.fault = replace(run.fault, element=run.fault.element + run.arrived.chunk.first)
            self._done[run.arrived.chunk.index] = run

    def _publish(self) -> None:
        """Full slots into the ring, as far as there are seats and the ring has room."""
        self._full.extend(self._feed.full())
        if not self._full:
            return
        ready: list[tuple[Arrived, _Seat]] = []
        while self._full:
            arrived = self._full[0]
            if arrived.error is not None:
                self._full.popleft()
                self._done[arrived.chunk.index] = _Run(arrived, _NO_SEAT, -1)
                continue
            seat = self._seat(arrived)
            if seat is None:
                break
            self._full.popleft()
            self._point(seat, arrived)
            ready.append((arrived, seat))
        if not ready:
            return
        residency = self._engine.residency
        if len(ready) == 1:
            sequence = residency.publish(ready[0][1].slot.tobytes())
        else:
            slots = b"".join([seat.slot.tobytes() for _, seat in ready])
            sequence = residency.publish_batch(np.frombuffer(slots, SLOT_DTYPE))
        if sequence is None:  # others have the ring full: again at the next look
            for arrived, seat in reversed(ready):
                self._full.appendleft(arrived)
                if arrived.slot < 0:
                    self._free.append(seat)
            return
        for i, (arrived, seat) in enumerate(ready):
            self._running.append(_Run(arrived, seat, sequence + i))
        if not residency.resident:
            residency.finite(residency.blocks)

    def _seat(self, arrived: Arrived) -> _Seat | None:
        if arrived.slot >= 0:
            seat = self._by_slot.get(arrived.slot)
            if seat is None:
                seat = self._by_slot[arrived.slot] = self._make(arrived)
            return seat
        if self._free:
            return self._free.pop()
        return self._make(arrived) if len(self._seats) < self._feed.seats else None

    def _make(self, arrived: Arrived) -> _Seat:
        engine = self._engine
        # Bound for a whole chunk, whatever the first one is: its slot says how many elements count. Where they are is
        # written by `_point`, before anything is published.
        anywhere = [
            DeviceMemory(arrived.addresses[strip], NUMPY[s.dtype], self._count, int(engine.device.copies))
            for s, strip in zip(self.program.inputs, self._strip_of, strict=True)
        ]
        binding = engine.bind(self._opcode, anywhere, self._device_tables, self._params, None, self._count, 0)
        fields = {}
        with engine.residency.lock:
            for i, take in self._fields.items():
                piece, at = engine._pinned.cut(self._count * take.dtype.size)
                fields[i] = (piece.address + at, piece.device + at)
        seat = _Seat(binding, np.frombuffer(bytearray(binding.slot), SLOT_DTYPE), [], fields)
        self._seats.append(seat)
        return seat

    def _take_fields(self, seat: _Seat, arrived: Arrived) -> list[int]:
        """Where each input is: in its strip, or where its field has now been copied to, out of the rows."""
        found = [arrived.addresses[strip] for strip in self._strip_of]
        count = arrived.chunk.count
        for i, take in self._fields.items():
            width = self._source.strips[take.strip].width
            rows = view(arrived.addresses[self._strip_of[i]], count * width)
            kind = NUMPY[take.dtype]
            array_at(seat.fields[i][0], kind, count)[:] = np.ndarray((count,), kind, rows, take.offset, (width,))
            found[i] = seat.fields[i][0]
            self.copied += count * kind.itemsize
        return found

    def _point(self, seat: _Seat, arrived: Arrived) -> None:
        """Have a seat name this chunk: what has changed since its last one is rewritten."""
        engine, binding = self._engine, seat.binding
        at = binding.number * abi.UNIT
        addresses = self._take_fields(seat, arrived)
        if seat.addresses != addresses:
            with engine.residency.lock:
                for i, (stream, address) in enumerate(zip(self.program.inputs, addresses, strict=True)):
                    device = seat.fields[i][1] if i in seat.fields else self._feed.device_address(address)
                    operand = struct.pack("<QII", device, int(device % 16 == 0), int(stream.dtype) | self._near)
                    engine.arena.write(at + abi.BINDING_HEADER.itemsize + i * abi.OPERAND.itemsize, operand)
            seat.addresses = addresses
        first = arrived.chunk.first if self._uses_index else 0
        if seat.base != first:
            with engine.residency.lock:
                engine.arena.write(at + _BASE_AT, first.to_bytes(8, "little"))
            seat.base = first
            seat.slot["first_low"], seat.slot["first_high"] = first & 0xFFFF_FFFF, first >> 32
        count = arrived.chunk.count
        if seat.count != count:
            seat.slot["count_low"], seat.slot["count_high"] = count & 0xFFFF_FFFF, count >> 32
            seat.count = count

    def _deliver(
        self, run: _Run, folded: bool, describe: Callable[[Fault, Operands], Fault] | None
    ) -> tuple[Chunk, ItemResult] | StreamError:
        chunk = run.arrived.chunk
        self._next += 1
        if run.arrived.error is None:
            run.arrived.error = self._feed.verify(run.arrived)
        if run.arrived.error is not None:
            self._feed.release(run.arrived)
            return run.arrived.error
        if run.fault is not None:
            found = ItemResult(fault=run.fault)
            if describe is not None:
                operands = self._operands(run)
                found.fault = run.fault if operands is None else describe(run.fault, operands)
        else:
            found = self._result(run, folded)
        self._feed.release(run.arrived)
        if run.arrived.slot < 0:
            self._free.append(run.seat)
        return chunk, found

    def _operands(self, run: _Run) -> Operands | None:
        """What a chunk's inputs were, for the values at its fault; None when they cannot be had again."""
        chunk, arrived = run.arrived.chunk, run.arrived
        inputs: list[Any] = []
        for i, (stream, address) in enumerate(zip(self.program.inputs, run.seat.addresses, strict=True)):
            kind = NUMPY[stream.dtype]
            if arrived.pieces and i not in run.seat.fields:
                # Read again: touching a mapping of a file that has been cut would end the process.
                strip = list(self._source.strips)[self._strip_of[i]]
                data = bytearray()
                for piece in self._source.pieces(strip, chunk.first, chunk.count):
                    if piece.file is None:
                        data += view(piece.address, piece.bytes)
                    else:
                        data += os.pread(piece.file.fd, piece.bytes, piece.offset)
                if len(data) < chunk.count * kind.itemsize:
                    return None
                inputs.append(np.frombuffer(data, kind))
            else:
                inputs.append(array_at(address, kind, chunk.count))
        return Operands(chunk.first, chunk.count, inputs, [], [], self._tables, self._params)

    def _result(self, run: _Run, folded: bool) -> ItemResult:
        """Copies of what a chunk delivered: its memory is the next one's."""
        binding, chunk = run.seat.binding, run.arrived.chunk
        count, tiles = chunk.count, -(-chunk.count // TILE)
        found = ItemResult()
        found.outputs = [a[:count].copy() for a in binding.outputs]
        for counts, segment in zip(binding.emit_counts, binding.emits, strict=True):
            parts = [segment[t * TILE : t * TILE + n] for t, n in enumerate(counts[:tiles].tolist()) if n]
            found.emits.append(np.concatenate(parts) if parts else segment[:0].copy())
        accs = self.program.accumulators
        bins_at = len(accs)
        for i, acc in enumerate(accs):
            kind = NUMPY[acc.dtype]
            if acc.kind is AccKind.histogram:
                found.accumulators.append(binding.results[bins_at : bins_at + acc.bins].view(np.int64).copy())
                bins_at += acc.bins
            elif i in binding.float_sums:
                sums = binding.tile_sums[binding.float_sums.index(i), :tiles]
                if folded:
                    sums = sums.copy()
                found.tile_sums[i] = sums
                found.accumulators.append(np.array(fold_spans(sums, chunk.first // TILE)) if folded else _NOT_FOLDED)
            else:
                word = int(binding.results[i])
                if acc.kind in (AccKind.min, AccKind.max):
                    word = value_of_key(acc.kind, acc.dtype, word)
                found.accumulators.append(np.frombuffer(word.to_bytes(8, "little"), kind, 1).reshape(()).copy())
        return found

    # --- the end --------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop reading, see running items out, give everything back. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        engine = self._engine
        try:
            self._feed.close()
        finally:
            try:
                if not engine.closed:
                    self._settle()
            except (DeviceLost, SessionClosed):  # then nobody reads the chunks' memory any more
                self._feed.give_up()
                raise
            self._feed.give_up()  # an interrupt above leaves it: items may still be reading

    def _settle(self) -> None:
        engine = self._engine
        for run in self._running:
            engine.residency.stop(run.sequence, 1, FaultCode.cancelled)
        while self._running:  # one at a time, so that it can be gone on with after an interrupt
            run = self._running[0]
            engine.residency.wait(run.sequence, 1, None)
            engine.residency.collect_one(run.sequence)
            self._running.popleft()
        self._done.clear()
        for address, table in self._staged:
            if table is not None and table.size:  # atomic tables are the caller's again
                if table.flags.c_contiguous:
                    engine.device.to_host(table.ctypes.data, address, table.nbytes)
                else:
                    flat = np.empty(table.size, table.dtype)
                    engine.device.to_host(flat.ctypes.data, address, flat.nbytes)
                    table[...] = flat.reshape(table.shape)
        for seat in self._seats:
            engine.unbind(seat.binding)
            with engine.residency.lock:
                for address, _ in seat.fields.values():
                    engine._pinned.put(address)
        self._seats.clear()
        self._free.clear()
        self._by_slot.clear()
        with engine.residency.lock:
            for address, _ in self._staged:
                engine._device_pool.put(address)
        self._staged.clear()


_NO_SEAT: Final[Any] = None
_NOT_FOLDED: Final = np.array(np.nan)
