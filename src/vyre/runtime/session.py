"""A session: one engine kept resident, programs loaded into it, work handed to it.

Owns: joining of programs, operands, engine and results; the lifetime of each. Leaves to others: what a call gives
(arguments), what may be bound (operands), execution (engines), files (streaming).
"""

from __future__ import annotations

import contextlib
import threading
import time
from collections import OrderedDict
from collections.abc import Callable, Iterator, Mapping, Sequence
from functools import cache
from types import TracebackType
from typing import TYPE_CHECKING, Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import ItemResult, Operands
from vyre.errors import BindError, Paused, RingFull, SessionClosed, WaitTimeout
from vyre.program.opcodes import FaultCode
from vyre.ring.layout import Priority
from vyre.runtime import batches
from vyre.runtime.arguments import any_in_chunks, any_in_files, operands_of, plain_operands, with_inputs
from vyre.runtime.faults import OnFault, described
from vyre.runtime.loaded import Bound, Loaded
from vyre.runtime.programs import ProgramLike, verified_of
from vyre.runtime.result import Result
from vyre.runtime.tickets import Ticket, raise_for
from vyre.stream.formats import is_file
from vyre.stream.source import Source

if TYPE_CHECKING:
    from vyre.geometry import DispatchConfig
    from vyre.runtime.dispatch import Batch
    from vyre.runtime.populations import LoadedPopulation, ManyResult, PopulationLike
    from vyre.runtime.streaming import Stream

EngineName = Literal["auto", "cpu", "cuda", "null", "reference"]
FORMULAS: Final = 4_096
"""Expressions that ``evaluate`` keeps resident; the oldest goes first."""
IDLE_ITEMS: Final = 8
"""Bindings of one program that are kept for reuse when a run is over."""


class Session:
    """See ``vyre.open``."""

    def __init__(
        self,
        engine: EngineName = "auto",
        *,
        device: int = 0,
        workers: int | None = None,
        pool_bytes: int | None = None,
        io: str = "auto",
        capacity: int | None = None,
        resident: bool = True,
        idle_s: float | None = None,
        stay_s: float | None = None,
        store: bool = True,
    ) -> None:
        from vyre.runtime.selection import make_engine

        self.engine, self.choice = make_engine(
            engine,
            device=device,
            workers=workers,
            capacity=capacity,
            resident=resident,
            idle_s=idle_s,
            stay_s=stay_s,
            store=store,
        )
        self._device_stream: int | None = getattr(self.engine, "device_stream", None)
        """Where the engine takes arrays in device memory: the stream that their producers' work is put before."""
        self.pool_bytes = pool_bytes
        self.io = io
        self._lock = threading.Lock()
        self._paused_by: dict[int, int] = {}  # thread: how often
        self._outstanding: dict[Ticket, None] = {}  # published and not collected, oldest first
        self._loaded: dict[int, Loaded] = {}
        self._known: dict[int, tuple[object, Loaded]] = {}
        self._by_identity: dict[bytes, Loaded] = {}
        self._formulas: OrderedDict[tuple[object, ...], Loaded] = OrderedDict()

    # --- programs -----------------------------------------------------------------------------------------------

    def load(self, program: ProgramLike) -> Loaded:
        """Verify a program and make it resident.

        Args:
            program: a function of ``@vyre.program``, an expression, a Program, bytecode, or what ``load`` gave.
        Raises:
            ProgramError: it is not valid; the message says where and why.
            ArenaFull: the engine's program store has no room.
        """
        if self.engine.closed:
            raise self._closed_error()
        if isinstance(program, Loaded):
            if program.session is not self:
                return self._resident(program.verified)
            if program.opcode < 0:
                raise BindError(f"program {program.program.name} was closed", fix="load it again")
            return program
        verified = verified_of(program)
        loaded = Loaded(self, verified, self.engine.load(verified))
        self._loaded[loaded.opcode] = loaded
        return loaded

    def _resident(self, program: ProgramLike) -> Loaded:
        """What a program was loaded as by an earlier call, or now."""
        known = self._known.get(id(program))
        if known is not None and known[0] is program:
            return known[1]
        if isinstance(program, Loaded):
            return self.load(program)
        verified = verified_of(program)
        loaded = self._by_identity.get(verified.identity)
        # Identity is without names: two programs that differ in names alone must not answer to each other's.
        if loaded is None or loaded.program != verified.program:
            loaded = self.load(verified)
            self._by_identity[verified.identity] = loaded
        if not isinstance(program, (bytearray, memoryview)):  # which may hold another program next time
            if len(self._known) >= 2 * FORMULAS:
                self._known.clear()
            self._known[id(program)] = (program, loaded)
        return loaded

    def _unload(self, loaded: Loaded) -> None:
        with self._lock:
            if self._loaded.pop(loaded.opcode, None) is None:
                return
            # Copies first: other threads look things up and add meanwhile.
            for identity, one in list(self._by_identity.items()):
                if one is loaded:
                    self._by_identity.pop(identity, None)
            for number, pair in list(self._known.items()):
                if pair[1] is loaded:
                    self._known.pop(number, None)
            for key, one in list(self._formulas.items()):
                if one is loaded:
                    self._formulas.pop(key, None)
        loaded._free()

    def load_many(self, programs: PopulationLike) -> LoadedPopulation:
        """Verify many programs and make them resident, all or none.

        Args:
            programs: a ``vyre.Population``, the quick way; or a sequence of what ``load`` takes. All declare the same
                inputs, outputs, parameters, tables, accumulators and fuel.
        Raises:
            VerifyError: of the first program that is not valid: its number in ``program``, then place, rule and value.
            ProgramError: two programs declare different things.
            ArenaFull: the engine's program store has no room for all of them.
        """
        from vyre.runtime.populations import load_many

        if self.engine.closed:
            raise self._closed_error()
        return load_many(self, programs)

    def run_many(
        self,
        population: LoadedPopulation,
        inputs: Any = None,
        /,
        *,
        programs: Any = None,
        out: Any = None,
        elements: int | None = None,
        **named: Any,
    ) -> ManyResult:
        """Run the programs of a population over the same inputs and wait for all of them.

        Args:
            population: what ``load_many`` gave.
            inputs, elements, named: as for ``run``; arrays only.
            programs: which of them, numbers or a bool for each, and the order of the results; None takes all.
            out: array [programs, elements] (or arrays by name) to write outputs to instead of fresh ones.
        Returns:
            Outputs as arrays [programs, elements], accumulators as arrays [programs]. A program that faulted has zeros
            there (in an ``out`` on the device, whatever it had written), a True in ``faulted`` and its fault in ``faults``;
            the others are not affected.
        Raises:
            BindError: names, types or lengths that do not fit, or results without a row per program (emits, histograms,
                atomic tables); nothing was run.
        """
        from vyre.runtime.populations import run_many

        if self.engine.closed:
            raise self._closed_error()
        return run_many(self, population, inputs, named, programs, out, elements)

    # --- running ------------------------------------------------------------------------------------------------

    def run(
        self,
        program: ProgramLike,
        inputs: Any = None,
        /,
        *,
        out: Any = None,
        elements: int | None = None,
        timeout_s: float | None = None,
        on_fault: OnFault = "raise",
        chunk: int | None = None,
        io: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        **named: Any,
    ) -> Result:
        """Run a program over arrays or files and wait for its results.

        Args:
            program: what ``load`` takes.
            inputs: streams and tables by name, or the only input itself; names may also be given as keywords.
            out: array (or arrays by name) to write outputs to instead of fresh ones.
            elements: how many, for a program without inputs.
            timeout_s: give up waiting after this; the item is then cancelled.
            on_fault: "raise" ProgramFault, or "report" it in ``result.fault``.
            chunk, io, progress: for files, see ``stream``; the result holds totals.
            named: streams, tables and parameters by name.
        Raises:
            BindError: names, types, lengths or parameters that do not fit; nothing was run.
            ProgramFault: the program trapped; nothing was delivered.
            StreamError: a file could not be read.
        """
        if self.engine.closed:
            raise self._closed_error()
        known = self._known.get(id(program))
        loaded: Loaded = known[1] if known is not None and known[0] is program else self._resident(program)
        if inputs is not None:
            if isinstance(inputs, Source):
                with self._stream(loaded, named, chunk, io, progress, inputs) as stream:
                    return stream.run_to_end(out, on_fault, timeout_s)
            named = with_inputs(loaded, inputs, named)
        plain = plain_operands(loaded, named) if out is None and elements is None else None
        if plain is not None:
            operands, shape = plain
            return self._run_bound(loaded, operands, shape, [], timeout_s, on_fault)
        if loaded.program.tables and any(is_file(named.get(t.name)) for t in loaded.program.tables):
            from vyre.runtime.paging import run_paged

            if any_in_files(loaded, named):
                raise BindError(
                    "a table on disk goes with inputs in memory, and some of these are files",
                    fix="pass the inputs as arrays, or the table",
                )
            return run_paged(self, loaded, named, out, elements, timeout_s, on_fault)
        if any_in_files(loaded, named) or (out is None and any_in_chunks(loaded, named)):
            if elements is not None:
                raise BindError(f"elements={elements} given, but files say themselves how many", fix="leave it out")
            with self._stream(loaded, named, chunk, io, progress) as stream:
                return stream.run_to_end(out, on_fault, timeout_s)
        return self._run(loaded, named, out, elements, timeout_s, on_fault)

    def _run(
        self,
        loaded: Loaded,
        named: Mapping[str, Any],
        out: Any,
        elements: int | None,
        timeout_s: float | None,
        on_fault: OnFault,
    ) -> Result:
        """``run`` over arrays."""
        notes: list[str] = []
        operands, shape = operands_of(loaded, named, out, elements, notes, self._device_stream)
        return self._run_bound(loaded, operands, shape, notes, timeout_s, on_fault)

    def _run_bound(
        self,
        loaded: Loaded,
        operands: Operands,
        shape: tuple[int, ...],
        notes: list[str],
        timeout_s: float | None = None,
        on_fault: OnFault = "raise",
    ) -> Result:
        """``run`` over operands."""
        began = time.perf_counter()
        item = self._item(loaded, operands)
        try:
            raw = self._execute(item, timeout_s)
        except BaseException:
            self._abandon(item)
            raise
        if len(loaded._idle) < IDLE_ITEMS:
            item.forget()
            loaded._idle.append(item)
        else:
            item.close()
        if raw.fault is not None:
            raw = self._fault(raw, loaded, operands, on_fault)
        count = operands.count
        facts = (self.engine.name, count, count * loaded._bytes, time.perf_counter() - began, notes)
        return Result(loaded.program, raw, facts, shape)

    def evaluate(self, text: str, arrays: Mapping[str, Any], *, out: Any = None) -> Any:
        """See ``vyre.evaluate``: the value of an expression over arrays by name; Python numbers are parameters."""
        if self.engine.closed:
            raise self._closed_error()
        parts: list[object] = [text]
        plain = True
        for name, value in arrays.items():
            if type(value) is np.ndarray and value.ndim:
                parts += (name, value.dtype)
            else:
                scalar = not getattr(value, "ndim", 0) and not hasattr(value, "__len__")
                parts += (name, getattr(value, "dtype", type(value)), scalar)
                plain = plain and scalar
        key = tuple(parts)
        loaded = self._formulas.get(key) if type(text) is str else None
        if loaded is None:
            loaded = self._new_formula(text, key, arrays)
        named = arrays if len(arrays) == len(loaded._names) else {n: arrays[n] for n in arrays if n in loaded._names}
        if plain:
            common = plain_operands(loaded, named) if out is None else None
            if common is None:
                return self._run(loaded, named, out, None, None, "raise").value
            operands, shape = common
            return self._run_bound(loaded, operands, shape, []).value
        return self.run(loaded, out=out, **named).value

    def _new_formula(self, text: str, key: tuple[object, ...], arrays: Mapping[str, Any]) -> Loaded:
        """Compile and load an expression over arrays like these, for ``evaluate``."""
        compile_, infer = _front_end()
        scalars = [n for n, value in arrays.items() if not getattr(value, "ndim", 0) and not hasattr(value, "__len__")]
        program = compile_(text, infer(arrays), params=scalars)
        if len(self._formulas) >= FORMULAS:
            self._let_go_of_oldest()
        loaded = self._formulas[key] = self.load(program)
        return loaded

    def _let_go_of_oldest(self) -> None:
        """Drop the oldest formula. Other threads may be running it: it is unloaded when the last of them has let go."""
        with self._lock:
            _, oldest = self._formulas.popitem(last=False)
            self._loaded.pop(oldest.opcode, None)

    def bind(
        self, program: ProgramLike, inputs: Any = None, /, *, out: Any = None, elements: int | None = None, **named: Any
    ) -> Bound:
        """Fix a program's operands once, to run it many times. Arguments as for ``run``; arrays only."""
        if self.engine.closed:
            raise self._closed_error()
        loaded = self._resident(program)
        if inputs is not None:
            named = with_inputs(loaded, inputs, named)
        if any_in_files(loaded, named):
            raise BindError("bind takes arrays; files are streamed", fix="use session.stream or session.run")
        notes: list[str] = []
        operands, shape = operands_of(loaded, named, out, elements, notes, self._device_stream)
        report = (self.engine.name, operands.count, operands.count * loaded._bytes, 0.0, notes)
        return Bound(self, loaded, self.engine.item(loaded.opcode, operands), shape, report)

    def submit(
        self,
        program: ProgramLike,
        inputs: Any = None,
        /,
        *,
        out: Any = None,
        elements: int | None = None,
        timeout_s: float | None = None,
        **named: Any,
    ) -> Ticket:
        """Hand work over and return at once. The ticket has the result, later; arrays must stay as they are until then.

        Args:
            timeout_s: the item's own deadline from now: past it, it ends in FAULT (deadline passed).
        Raises:
            RingFull: no slot became free within ``timeout_s`` (or 60 s).
        """
        ticket = self._ticket(program, inputs, out, elements, timeout_s, named)
        # Noted before it is published: an interrupt must not leave a record that nobody will ever read.
        try:
            self._outstanding[ticket] = None
            self._start_when_free(ticket._start, timeout_s)
        except BaseException:
            self._drop(ticket)
            raise
        return ticket

    def submit_nowait(
        self,
        program: ProgramLike,
        inputs: Any = None,
        /,
        *,
        out: Any = None,
        elements: int | None = None,
        timeout_s: float | None = None,
        **named: Any,
    ) -> Ticket | None:
        """``submit`` that gives None instead of waiting when the ring is full (which the engine counts)."""
        ticket = self._ticket(program, inputs, out, elements, timeout_s, named)
        try:
            self._outstanding[ticket] = None
            started = ticket._start()
        except BaseException:
            self._drop(ticket)
            raise
        if not started:
            self._drop(ticket)
            return None
        return ticket

    def _drop(self, ticket: Ticket) -> None:
        """Forget a ticket that the caller never got."""
        self._outstanding.pop(ticket, None)
        self._abandon(ticket._item)

    def _ticket(
        self,
        program: ProgramLike,
        inputs: Any,
        out: Any,
        elements: int | None,
        timeout_s: float | None,
        named: dict[str, Any],
    ) -> Ticket:
        if self.engine.closed:
            raise self._closed_error()
        loaded = self._resident(program)
        if inputs is not None:
            named = with_inputs(loaded, inputs, named)
        if any_in_files(loaded, named):
            raise BindError("submit takes arrays; files are streamed", fix="use session.stream or session.run")
        notes: list[str] = []
        operands, shape = operands_of(loaded, named, out, elements, notes, self._device_stream)
        report = (self.engine.name, operands.count, operands.count * loaded._bytes, 0.0, notes)
        deadline = 0 if timeout_s is None else time.monotonic_ns() + max(0, int(timeout_s * 1e9))
        return Ticket(self, loaded, self._item(loaded, operands), shape, report, deadline)

    def stream(
        self,
        program: ProgramLike,
        source: Any = None,
        /,
        *,
        chunk: int | None = None,
        io: str | None = None,
        progress: Callable[[int, int], None] | None = None,
        partial: bool = False,
        **named: Any,
    ) -> Stream:
        """Run a program over files (or arrays), chunk by chunk: an iterator of parts in order, with totals at the end.

        Args:
            source: a Source, or columns by name: paths, lists of paths, Columns or arrays; or the only input itself.
            chunk: elements of a chunk, rounded up to a multiple of 1,024; None chooses.
            io: "auto", "hot", "uring-direct", "uring" or "pread", on the GPU "mapped" and "cufile" too; None takes the
                session's.
            progress: called with (elements done, elements in all) after each part.
            partial: leave out chunks that cannot be read, instead of ending at the first one: ``Stream.lost`` lists them,
                the report names each, and totals are of the rest.
            named: columns, tables and parameters by name.
        """
        if self.engine.closed:
            raise self._closed_error()
        loaded = self._resident(program)
        if source is not None and not isinstance(source, Source):
            named = with_inputs(loaded, source, named)
            source = None
        stream = self._stream(loaded, named, chunk, io, progress, source)
        stream.partial = partial
        return stream

    def _stream(
        self,
        loaded: Loaded,
        named: Mapping[str, Any],
        chunk: int | None,
        io: str | None,
        progress: Callable[[int, int], None] | None,
        source: Source | None = None,
    ) -> Stream:
        from vyre.runtime.streaming import Stream

        return Stream(self, loaded, named, chunk, io or self.io, progress, source)

    # --- slots by hand, and finite dispatch ---------------------------------------------------------------------

    def publish(
        self,
        opcode: int,
        args: Sequence[int] | NDArray[Any] = (),
        *,
        priority: int = Priority.NORMAL,
        timeout_s: float | None = None,
    ) -> int:
        """Hand one slot to the engine and return its sequence. Most callers want ``run`` or ``submit``.

        Args:
            opcode: a control item, an installed handler or a loaded program.
            args: up to 12 words of u32; the others are zero.
            timeout_s: seconds to wait for a free slot; None waits until close().
        Raises:
            RingFull: no slot became free in time. Nothing was published.
            ProgramError: the opcode is reserved or has no handler. Nothing was published.
            BindError: more than 12 words, or one that does not fit.
        """
        return batches.submit(self, batches.slot_of(opcode, args, priority), timeout_s)

    def publish_nowait(
        self, opcode: int, args: Sequence[int] | NDArray[Any] = (), *, priority: int = Priority.NORMAL
    ) -> int | None:
        """``publish`` that gives None instead of waiting when the ring is full, which the ring counts."""
        engine = batches.ring_engine(self)
        return engine.submit(engine.ring, batches.slot_of(opcode, args, priority), wake=1)

    def submit_batch(self, items: NDArray[Any], *, timeout_s: float | None = None) -> int:
        """Publish u32[n, 16], all or none; status word and lap are filled in. Returns the first sequence.

        Raises:
            As for ``publish``; then no slot was published and no byte of the ring changed.
        """
        return batches.submit(self, batches.slots_of(items), timeout_s)

    def completions(self, first: int, n: int, *, timeout_s: float | None = None) -> NDArray[np.void]:
        """Wait for n items published by hand and read their records (RECORD_DTYPE), which frees their slots.

        Read each once. A record is there only when everything its item wrote is.

        Raises:
            WaitTimeout: they were not all complete; nothing was read.
        """
        return batches.completions(self, first, n, timeout_s)

    def dispatch(self, batch: Batch, config: DispatchConfig | None = None, *, on_fault: OnFault = "raise") -> Any:
        """Run exactly these items on workgroups of their own that leave when nothing is left.

        Any geometry covers every item, because workgroups loop over tickets.

        Args:
            batch: (program, {name: value}) pairs or what ``bind`` gave; or slots, u32[n, 16].
            config: grid and timeout, from ``vyre.geometry``; None takes the standard geometry for so many items. Items
                that have not begun when its timeout is over end in FAULT.
        Returns:
            A list of Results in the order of the batch; for slots their records.
        Raises:
            ProgramFault: an item trapped (unless on_fault is "report"); the others ran all the same.
        """
        from vyre.runtime.dispatch import dispatch

        if self.engine.closed:
            raise self._closed_error()
        self._check_not_paused()
        return dispatch(self, batch, config, on_fault)

    @contextlib.contextmanager
    def pause(self) -> Iterator[None]:
        """Inside the ``with`` block nothing of this session is on the GPU: for those who need it to themselves.

        Work that other threads hand over waits until the block is left. Engines of the host have nothing on a GPU, and go
        on. It takes what the engine needs to leave: the longest tile at hand, usually a fraction of a millisecond.
        """
        if self.engine.closed:
            raise self._closed_error()
        pause = getattr(self.engine, "pause", None)
        if pause is None:
            yield
            return
        thread = threading.get_ident()
        with pause():
            self._paused_by[thread] = self._paused_by.get(thread, 0) + 1
            try:
                yield
            finally:
                self._paused_by[thread] -= 1
                if not self._paused_by[thread]:
                    del self._paused_by[thread]

    def _check_not_paused(self) -> None:
        if self._paused_by and threading.get_ident() in self._paused_by:
            raise Paused(
                "this thread holds session.pause(), and waits for what cannot run before that is over",
                fix="leave the with block first; submit hands work over without waiting",
            )

    # --- items --------------------------------------------------------------------------------------------------

    def _item(self, loaded: Loaded, operands: Operands) -> Any:
        if not loaded._idle:  # a program that is new; asking first is cheaper than an exception
            return self.engine.item(loaded.opcode, operands)
        try:
            item = loaded._idle.pop()
        except IndexError:  # another thread was quicker
            return self.engine.item(loaded.opcode, operands)
        try:
            item.retarget(operands)
        except BaseException:
            item.close()
            raise
        return item

    def _execute(self, item: Any, timeout_s: float | None) -> ItemResult:
        """Start an item and wait for its result.

        Raises:
            WaitTimeout: it was not there within timeout_s; the item is cancelled and over.
        """
        if self._paused_by:
            self._check_not_paused()
        call = getattr(item, "call", None)
        if call is not None and (timeout_s is None or timeout_s >= 0.05):
            if call():
                return item.collected()  # type: ignore[no-any-return]
            if item.sequence is None:
                self._start_when_free(lambda: bool(item.start(wake=False)), timeout_s)
        else:
            self._start_when_free(lambda: bool(item.start(wake=False)), timeout_s)
        give_up = None if timeout_s is None else time.monotonic() + timeout_s
        slice_ns = 50_000_000 if timeout_s is None else min(50_000_000, max(0, int(timeout_s * 1e9)))
        while not item.wait(slice_ns):
            if self.engine.closed:
                raise self._closed_error()
            if give_up is not None and time.monotonic() >= give_up:
                item.cancel()
                while not item.wait(50_000_000):
                    if self.engine.closed:
                        raise self._closed_error()
                raw: ItemResult = item.result()
                if raw.fault is not None and raw.fault.code == FaultCode.cancelled:
                    raise WaitTimeout(f"no result within {timeout_s} s; the item was cancelled")
                return raw
        return item.result()  # type: ignore[no-any-return]

    def _start_when_free(self, start: Callable[[], bool], timeout_s: float | None) -> None:
        give_up = time.monotonic() + (60.0 if timeout_s is None else timeout_s)
        while not start():
            if self.engine.closed:
                raise self._closed_error()
            self._reap()
            if time.monotonic() >= give_up:
                raise RingFull(
                    "no slot of the session's ring became free in time",
                    fix="collect results, or open with a larger capacity",
                )

    def _reap(self) -> None:
        """The ring is full: collect what is complete of older tickets, waiting for the oldest if nothing is.

        A ticket may not be published yet, because its thread waits for a slot like this one: it is passed over.
        """
        idle = True
        for ticket in list(self._outstanding):
            if getattr(ticket._item, "sequence", None) is None:
                ticket._collected_or_collect(0)
                continue
            ticket._collected_or_collect(10_000_000 if idle else 0)
            idle = False
        if idle:  # the slots are those of runs in other threads
            time.sleep(0.000_05)

    def _abandon(self, item: Any) -> None:
        """A run was interrupted: end its item and give its binding back."""
        self._settle(item)
        item.close()

    def _settle(self, item: Any) -> None:
        """Cancel an item and wait for its end, so that the caller's arrays are the caller's."""
        if self.engine.closed:
            self.engine.close()  # returns once nobody is inside an item
        elif getattr(item, "sequence", None) is not None:
            item.cancel()
            while not item.wait(50_000_000):
                if self.engine.closed:
                    self.engine.close()
                    break
            else:
                item.result()

    def _fault(self, raw: ItemResult, loaded: Loaded, operands: Operands, on_fault: OnFault) -> ItemResult:
        assert raw.fault is not None
        if raw.fault.code == FaultCode.cancelled and self.engine.closed:
            raise self._closed_error()
        fault = described(raw.fault, loaded, operands)
        if on_fault == "raise":
            raise_for(fault)
        raw.fault = fault
        return raw

    # --- end ----------------------------------------------------------------------------------------------------

    @property
    def closed(self) -> bool:
        """True after close(), and in a forked child."""
        return self.engine.closed

    def close(self) -> None:
        """Cancel what is not done, stop the engine and free its memory. Calling it again does nothing."""
        if self.engine.closed:
            return
        for ticket in list(self._outstanding):
            ticket.cancel()
        give_up = time.monotonic() + 1.0
        for ticket in list(self._outstanding):
            # So that tickets which were done keep their results; the others say that the session was closed.
            ticket._collected_or_collect(50_000_000 if time.monotonic() < give_up else 0)
        self.engine.close()
        self._outstanding.clear()

    def _closed_error(self) -> SessionClosed:
        """What to raise, once no thread is inside an item any more: then arrays are their owners' again."""
        self.engine.close()
        return SessionClosed("this session is closed", fix="open a new one with vyre.open()")

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def __repr__(self) -> str:
        return f"<vyre session, {self.choice}{', closed' if self.closed else ''}>"


@cache
def _front_end() -> tuple[Any, Any]:
    """What ``evaluate`` compiles with: imported when the first text comes, and asked for by no import statement after it."""
    from vyre.program.expression import compile_expression
    from vyre.program.types import infer_types

    return compile_expression, infer_types
