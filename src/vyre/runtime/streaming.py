"""A program over files, chunk by chunk: parts in order, totals at the end.

Owns: which chunks are out, order of parts. Leaves to others: how bytes come (stream), execution (engines), the fold of
totals (totals). Chunks complete in any order; parts are given in order; memory is bounded by the pool and by PARTS_AHEAD.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import Chunks, FileRange, ItemResult, Operands
from vyre.errors import BindError, Cancelled, EngineUnavailable, Fault, ProgramFault, StreamError, WaitTimeout
from vyre.program.ir import Program
from vyre.program.opcodes import FaultCode
from vyre.ring.layout import OperandKind
from vyre.runtime.operands import as_input, as_table
from vyre.runtime.result import Report, Result
from vyre.runtime.tickets import raise_for
from vyre.runtime.totals import Totals, is_float_sum
from vyre.stream.arrow import SUFFIXES
from vyre.stream.arrow_memory import Chunked, is_series, series_of
from vyre.stream.formats import Column, numpy_dtype
from vyre.stream.plan import SMALL_BYTES, Plan
from vyre.stream.pool import DEFAULT_POOL_BYTES, Pool
from vyre.stream.reader import Loaded as Arrived
from vyre.stream.reader import Reader
from vyre.stream.rows import take_field
from vyre.stream.sink import Sinks
from vyre.stream.source import Chunk, Source, open_columns

if TYPE_CHECKING:
    from vyre.runtime.aio import Driver
    from vyre.runtime.faults import OnFault
    from vyre.runtime.loaded import Loaded
    from vyre.runtime.session import Session
    from vyre.stream.compiled import PumpFunctions

RING_CAPACITY: Final = 128
_LOOK_S: Final = 0.05  # a thread that waits looks so often whether it is to stop
PARTS_AHEAD: Final = 4
"""Chunks that may be finished and not yet asked for: what bounds memory when the caller is slow."""


def _pump_of(engine: Any) -> PumpFunctions | None:
    """The compiled pump, or None: then Python executes it, which the engine without compiled code can do with."""
    if engine.name == "reference":
        return None
    try:
        from vyre.stream.compiled import pump_functions

        return pump_functions(getattr(engine, "store", None))
    except EngineUnavailable:
        return None


@dataclass(frozen=True, slots=True)
class Lost:
    """Elements [first, first + count) could not be read."""

    first: int
    count: int
    error: StreamError


class Stream:
    """An iterator of Results, one per chunk, in order. Use it in a ``with``, or run it to its end.

    Under asyncio: ``async with session.stream(...) as stream: async for part in stream: ...``.

    Attributes:
        source: the columns.
        plan: which way the bytes come; ``plan.explain()`` says why.
        report: bytes by way, seconds, notes; grows with the parts.
        partial: chunks that cannot be read are left out; else the first one ends the stream.
        lost: the chunks that were left out.
    """

    def __init__(
        self,
        session: Session,
        loaded: Loaded,
        named: Mapping[str, Any],
        chunk: int | None,
        io: str,
        progress: Callable[[int, int], None] | None,
        source: Source | None,
    ) -> None:
        from vyre.runtime.arguments import params_of, unknown_name

        self.session = session
        self._loaded = loaded
        program = loaded.program
        self._began = time.perf_counter()
        for name in named:
            if name not in loaded._names:
                raise unknown_name(loaded, name)
        self._params = params_of(loaded, named)
        self._tables = []
        for table in program.tables:
            if table.name not in named:
                raise BindError(f"program {program.name}: table {table.name} ({table.dtype.name}) is missing")
            self._tables.append(as_table(table, named[table.name]))
        self.report = Report(session.engine.name)
        self.source = source if source is not None else self._open(program, named)
        self._closed = False
        self.partial = False
        self.lost: list[Lost] = []
        self._progress = progress
        folds = any(is_float_sum(acc) for acc in program.accumulators)
        self.totals = Totals(program, getattr(session.engine, "fold_onto", None) if folds else None)
        self._done_elements = 0
        self._taken = 0  # bytes of fields of rows
        self._items: dict[int, tuple[Any, Arrived | None, Operands]] = {}
        self._finished: dict[int, tuple[Chunk, ItemResult]] = {}
        self._errors: dict[int, StreamError] = {}
        self._next = 0
        self._idle: list[Any] = []
        self._ring: Any = None
        self._give_up: float | None = None
        self._stopped = False  # the thread that waits for the next part is to leave
        self._driver: Driver | None = None  # of asyncio's side, once it is used
        self._pid = os.getpid()
        self.plan: Plan
        self._own: Chunks | None = None  # of an engine that has a way of its own for them
        self._folds = True  # parts are seen by themselves, not only their totals
        self._pool = Pool(session.pool_bytes or DEFAULT_POOL_BYTES)
        try:
            open_chunks = getattr(session.engine, "open_chunks", None)
            if open_chunks is not None:
                self._own = open_chunks(
                    loaded.opcode, self.source, io=io, chunk_elements=chunk, pool_bytes=session.pool_bytes,
                    tables=self._tables, params=self._params,
                )  # fmt: skip
            if self._own is not None:
                self.plan = self._own.plan
                self._announce()
                return
            if io in ("mapped", "cufile"):
                raise BindError(
                    f"io={io!r} is a way to a GPU, this is engine {session.engine.name}",
                    fix="open with engine='cuda', or leave io= out",
                )
            self.plan = Plan.choose(self.source, self._pool, io=io, chunk_elements=chunk)  # type: ignore[arg-type]
            self._announce()
            natives_ = None if self.source.bytes < SMALL_BYTES else _pump_of(session.engine)
            self._reader = Reader(self.source, self.plan, self._pool, natives=natives_)
            make_ring = getattr(session.engine, "new_ring", None)
            if make_ring is not None:
                self._ring = make_ring(RING_CAPACITY)
        except BaseException:
            self.close()
            raise

    def _open(self, program: Program, named: Mapping[str, Any]) -> Source:
        if not program.inputs:
            raise BindError(
                f"program {program.name} has no inputs, so there is nothing to stream", fix="run it with elements=N"
            )
        spec: dict[str, Any] = {}
        for stream in program.inputs:
            if stream.name not in named:
                raise BindError(f"program {program.name}: input {stream.name} ({stream.dtype.name}) is missing")
            value = named[stream.name]
            is_list = isinstance(value, (list, tuple)) and len(value) > 0 and isinstance(value[0], (str, os.PathLike))
            if is_series(value):
                value = series_of(stream.name, value)
            if not (is_list or isinstance(value, (str, Column, Chunked)) or hasattr(value, "__fspath__")):
                value = as_input(stream, value, self.report.notes).reshape(-1)
            spec[stream.name] = value
        return open_columns(spec, {s.name: s.dtype for s in program.inputs})

    # --- parts --------------------------------------------------------------------------------------------------

    @property
    def elements(self) -> int:
        """Elements of each column."""
        return self.source.count

    @property
    def done(self) -> int:
        """Elements of the parts given so far."""
        return self._done_elements

    def __iter__(self) -> Iterator[Result]:
        return self

    def __next__(self) -> Result:
        """The next part.

        Raises:
            StopIteration: that was the last one.
            ProgramFault: an element of the next chunk trapped. Every part before it has been given.
            StreamError: the next chunk could not be read.
        """
        while True:
            try:
                chunk, part = self._wait_for_next()
                if part.fault is not None:
                    self._raise(chunk, part.fault)
                break
            except StopIteration:
                self._finish()
                raise
            except StreamError as error:
                if not self.partial or error.elements is None:
                    self.close()
                    raise
                self._leave_out(Lost(*error.elements, error))
            except BaseException:
                self.close()
                raise
        self.totals.add(chunk.first, part)
        self._done_elements += chunk.count
        self._note()
        if self._progress is not None:
            self._progress(self._done_elements, self.source.count)
        return Result(self._loaded.program, part, self.report)

    def _leave_out(self, lost: Lost) -> None:
        """Go on without a chunk: its tiles count as absent."""
        self.lost.append(lost)
        self.totals.skip(lost.first, lost.count)
        self._done_elements += lost.count
        last = lost.first + lost.count - 1
        self.report.notes.append(f"elements {lost.first} to {last} were left out: {lost.error.message}")

    def __aiter__(self) -> Self:
        return self

    async def __anext__(self) -> Result:
        """The next part, while the event loop goes on. Errors are those of ``next``.

        When the task is cancelled, the stream is closed before CancelledError goes on.
        """
        part = await self._in_thread().next()
        if part is None:
            raise StopAsyncIteration
        return part

    def _in_thread(self) -> Driver:
        if self._driver is None:
            from vyre.runtime.aio import Driver

            self._driver = Driver(self)
        return self._driver

    def _wait_for_next(self) -> tuple[Chunk, ItemResult]:
        if self._closed:
            raise StopIteration
        if self.session.closed:
            raise self.session._closed_error()
        if self._own is not None:
            return self._take_from_engine()
        while self._next not in self._finished:
            if self.session.closed:
                raise self.session._closed_error()
            if self._stopped:
                raise Cancelled("the stream was closed while its next part was waited for")
            if self._give_up is not None and time.monotonic() >= self._give_up:
                raise WaitTimeout(f"the stream was not at its end in time, but at element {self._done_elements:,}")
            self._feed()
            if not self._items:
                if self._reader.finished and self._next not in self._finished:
                    raise StopIteration
                continue
            index = min(self._items)
            item, arrived, _ = self._items[index]
            # While reads are in flight look at them often; they only complete when we ask.
            if item.wait(1_000_000 if self._reader.in_flight else 50_000_000):
                self._take(index, item, arrived)
            for index in list(self._items):
                item, arrived, _ = self._items[index]
                if item.wait(0):
                    self._take(index, item, arrived)
        found = self._finished.pop(self._next)
        self._next += 1
        return found

    def _take_from_engine(self) -> tuple[Chunk, ItemResult]:
        from vyre.runtime.faults import described

        def describe(fault: Fault, operands: Operands) -> Fault:
            return described(fault, self._loaded, operands)

        assert self._own is not None
        while True:
            until = time.monotonic() + _LOOK_S
            give_up = until if self._give_up is None else min(until, self._give_up)
            try:
                found = self._own.take(folded=self._folds, give_up=give_up, describe=describe)
                break
            except WaitTimeout:
                if self._stopped:
                    raise Cancelled("the stream was closed while its next part was waited for") from None
                if self._give_up is not None and time.monotonic() >= self._give_up:
                    raise
        if found is None:
            raise StopIteration
        if isinstance(found, StreamError):
            raise found
        chunk, part = found
        return chunk, part

    def _feed(self) -> None:
        """Start reads, and hand chunks that have arrived to the engine, as far as memory allows."""
        if len(self._items) + len(self._finished) < self._ahead():
            self._reader.submit()
        # Always look: the read that everybody waits for may be behind others that have overtaken it.
        timeout_s = 0.0 if self._items else 0.05
        for arrived in self._reader.ready(timeout_s):
            if arrived.error is not None:
                self._unread(arrived)
            else:
                self._start(arrived)

    def _ahead(self) -> int:
        """Chunks out at a time: enough for all workers and the pool, no more than memory is meant for."""
        if self.plan.all_hot:
            return PARTS_AHEAD
        return min(RING_CAPACITY, max(PARTS_AHEAD, 2 * self.plan.chunks_in_flight))

    def _start(self, arrived: Arrived) -> None:
        program = self._loaded.program
        chunk = arrived.chunk
        operands = Operands(
            chunk.first,
            chunk.count,
            self._inputs(arrived),
            [np.empty(chunk.count, numpy_dtype(s.dtype)) for s in program.outputs],
            [np.empty(chunk.count, numpy_dtype(s.dtype)) for s in program.emits],
            self._tables,
            self._params,
        )
        if self._idle:
            item = self._idle.pop()
            item.retarget(operands)
        else:
            item = self.session.engine.item(self._loaded.opcode, operands, stream=self._ring)
        self._items[chunk.index] = (item, arrived, operands)
        while not item.start():  # pragma: no cover - the ring has room for more chunks than are ever out
            time.sleep(0)

    def _inputs(self, arrived: Arrived) -> list[NDArray[Any] | FileRange]:
        """The operands of a chunk that has arrived. Rows in a file are left to whoever runs the tiles."""
        chunk, source = arrived.chunk, self.source
        inputs: list[NDArray[Any] | FileRange] = []
        for stream in self._loaded.program.inputs:
            strip, inside, dtype = source.takes[stream.name]
            place = arrived.columns[strip]
            width = source.strips[strip].width
            fields = width != dtype.size
            self._taken += chunk.count * dtype.size if fields else 0
            if place.kind is OperandKind.FILE:
                inputs.append(
                    FileRange(place.fd, place.offset, width, inside) if fields else FileRange(place.fd, place.offset)
                )
            elif fields:
                inputs.append(take_field(arrived.view(strip), source, stream.name, chunk.count))
            elif (array := source.array(strip, chunk.first, chunk.count)) is not None:
                inputs.append(array)
            else:
                inputs.append(np.frombuffer(arrived.view(strip), numpy_dtype(stream.dtype)))
        return inputs

    def _unread(self, arrived: Arrived) -> None:
        """A chunk could not be read: its error is raised when its turn comes."""
        assert arrived.error is not None
        fault = Fault(int(FaultCode.io_error), str(arrived.error))
        self._errors[arrived.chunk.index] = arrived.error
        self._finished[arrived.chunk.index] = (arrived.chunk, ItemResult(fault=fault))
        self._reader.release(arrived)

    def _take(self, index: int, item: Any, arrived: Arrived | None) -> None:
        """An item is complete: keep its result until its turn comes, give buffer and binding back."""
        _, _, operands = self._items.pop(index)
        raw = item.result()
        assert arrived is not None
        if raw.fault is not None and raw.fault.code not in (FaultCode.io_error, FaultCode.file_shrank):
            from vyre.runtime.faults import described

            raw.fault = described(raw.fault, self._loaded, operands)
        self._finished[index] = (arrived.chunk, raw)
        operands.inputs = []
        self._reader.release(arrived)
        self._idle.append(item)

    def _raise(self, chunk: Chunk, fault: Fault) -> None:
        error = self._errors.get(chunk.index)
        if error is None:
            if fault.code == FaultCode.cancelled and self.session.closed:
                raise self.session._closed_error()
            if fault.code not in (FaultCode.io_error, FaultCode.file_shrank):
                raise_for(fault)
            error = self.source.read_error(chunk.first, chunk.count, int(fault.operands.get("errno", 0)))
        error.elements = chunk.first, chunk.count
        raise error

    def _announce(self) -> None:
        """Put the plan's lines into the report."""
        lines = self.plan.explain().splitlines()
        first = len(self.report.notes)
        self.report.notes += lines
        self._explained = slice(first, first + len(lines))

    def _finish(self) -> None:
        """The end was reached: bring the report to its final state, what had to change on the way included."""
        if self._closed:
            return
        changed = self.source.changed()
        self.close()
        self._note()
        self.report.notes[self._explained] = self.plan.explain().splitlines()
        self.report.notes += changed

    def _note(self) -> None:
        """Bring the report up to date."""
        report = self.report
        report.seconds = time.perf_counter() - self._began
        if not report.first_result_s:
            report.first_result_s = report.seconds
        report.elements = self._done_elements
        if self._own is not None:
            report.bytes_by_way = self._own.bytes_by_way()
            report.copies = self._own.copies()
            report.waits = self._own.waits()
            report.reader_cpu_s = self._own.reader_cpu_s()
            return
        report.bytes_by_way = self._reader.report()
        copies = {"fields taken out of rows": self._taken, "joined at the ends of arrays": self._reader.copied}
        report.copies = {what: count for what, count in copies.items() if count}

    # --- totals -------------------------------------------------------------------------------------------------

    def total(self) -> Result:
        """Accumulators over all parts given so far, by name."""
        program = self._loaded.program
        values = {a.name: v for a, v in zip(program.accumulators, self.totals.values(), strict=True)}
        return Result.of(program, {n: v if v.ndim else v[()] for n, v in values.items()}, self.report)

    def run_to_end(self, out: Any = None, on_fault: OnFault = "raise", timeout_s: float | None = None) -> Result:
        """Run every chunk and give totals; outputs and emits joined in memory, or written to paths.

        Args:
            out: where outputs and emits go: None joins them in arrays; a path, or paths by name, writes files that get
                their name once they are complete.
            timeout_s: give up after this; nothing is left under the final names then.
        Raises:
            WaitTimeout: it was not at its end in time.
        """
        self._give_up = None if timeout_s is None else time.monotonic() + timeout_s
        self._folds = False
        self.partial = False
        program = self._loaded.program
        results = (*program.outputs, *program.emits)
        paths = self._paths(out)
        joined: dict[str, list[NDArray[Any]]] = {s.name: [] for s in results if s.name not in paths}
        counts = {s.name: self.source.count for s in program.outputs}
        sinks: Sinks | None = None
        try:
            sinks = Sinks(paths, {s.name: s.dtype for s in results}, counts)
            for part in self:
                sinks.write({name: part[name] for name in paths})
                for name, kept in joined.items():
                    kept.append(part[name])
            sinks.commit()
        except BaseException as error:
            self.close()
            if sinks is not None:
                sinks.abort()
            if isinstance(error, ProgramFault) and on_fault == "report":
                return Result(program, ItemResult(fault=error.fault), self.report)
            raise
        values: dict[str, Any] = {}
        for s in results:
            dtype = numpy_dtype(s.dtype)
            parts = joined.get(s.name)
            values[s.name] = os.fspath(paths[s.name]) if parts is None else np.concatenate([np.empty(0, dtype), *parts])
        total = self.total()
        values.update({name: total[name] for name in total.keys() if name not in values})  # noqa: SIM118
        return Result.of(program, values, self.report)

    def _paths(self, out: Any) -> dict[str, Any]:
        program = self._loaded.program
        names = [s.name for s in (*program.outputs, *program.emits)]
        if out is None:
            return {}
        if not isinstance(out, Mapping):
            table = len(names) > 1 and isinstance(out, (str, os.PathLike)) and os.fspath(out).endswith(SUFFIXES)
            if table:
                return dict.fromkeys(names, out)
            if len(names) != 1:
                raise BindError(
                    f"out is one path, but program {program.name} writes {', '.join(names) or 'nothing'}",
                    fix="name each: out={'name': path}, or one that ends in .arrow" if names else "leave out away",
                )
            out = {names[0]: out}
        for name, path in out.items():
            if name not in names:
                raise BindError(
                    f"out names {name!r}, which program {program.name} does not write", fix=f"one of {', '.join(names)}"
                )
            if not isinstance(path, (str, os.PathLike)):
                raise BindError(
                    f"out for {name} is a {type(path).__name__}; results of a stream go to paths or, without out, to arrays"
                )
        return dict(out)

    # --- end ----------------------------------------------------------------------------------------------------

    def close(self) -> None:
        """Stop: cancel what is out, wait for it, give everything back. Calling it again does nothing."""
        if self._closed:
            return
        self._closed = True
        if os.getpid() != self._pid:  # a forked child: nothing of this is its own
            return
        if self._driver is not None:
            self._driver.leave()
        if self._own is not None:
            self._own.close()
        for item, _, _ in self._items.values():
            item.cancel()
        for item, _, _ in self._items.values():
            # Also when the session was closed: bytes may be given back once nobody is inside an item.
            self.session._settle(item)
            item.close()
        for item in self._idle:
            item.close()
        self._items.clear()
        self._idle.clear()
        self._finished.clear()
        reader = getattr(self, "_reader", None)  # not there when opening failed before it
        if reader is not None:
            reader.close()
        self._pool.close()
        self.source.close()
        if self._ring is not None:
            self.session.engine.release_ring(self._ring)  # type: ignore[attr-defined]

    def __del__(self) -> None:
        if not getattr(self, "_closed", True):
            self.close()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        await self._in_thread().close()
        return False

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> Literal[False]:
        self.close()
        return False
