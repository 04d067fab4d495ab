"""Drives a pump: lays its tables out, gives it a thread, an io_uring and memory, and turns its words into chunks.

Owns: the life of the pump and its threads, the way from frames to chunks and from errno to errors. Leaves to others:
every read (pump), which way it should be (plan), what happens to a chunk (whoever calls).

With compiled functions the pump runs in a thread of its own, which never holds the GIL. Without them, or with another
kernel than the real one, the thread that calls ``submit`` and ``ready`` is the pump, and Python executes its functions.
"""

from __future__ import annotations

import errno
import os
import signal
import threading
import time
import weakref
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Protocol, Self

from vyre.errors import StreamError
from vyre.ring.layout import OperandKind
from vyre.stream import frames as f
from vyre.stream import handover, pump, requests
from vyre.stream.machine import PythonMachine
from vyre.stream.plan import RING_ENTRIES, Plan, Rung
from vyre.stream.pool import Buffer, Pool
from vyre.stream.pread import read_failed
from vyre.stream.source import Chunk, Source, shrank
from vyre.stream.syscalls import KERNEL
from vyre.stream.tables import RUNG_OF, RUNS_AT_ONCE, Field, FramePlace, Publish, Tables
from vyre.stream.threads import NativeThread, name_this_thread
from vyre.stream.uring import Ring, refused

CLOSE_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.05  # waits come back to Python so often, for Ctrl-C
_LOOKS_S: Final = 0.000_2  # at a pump that was asked to end, before the GIL is given up for its sake
_ABANDONED: Final[list[_Pump]] = []  # pumps whose threads could not be seen to end
_REQUESTS: Final = RING_ENTRIES - 2  # two entries are for the end


class PumpNatives(Protocol):
    """The compiled pump: functions of u64 that release the GIL, but for the short ones, ``give_back`` and ``ring_bell``."""

    @property
    def pump_loop(self) -> Callable[[int], int]: ...

    @property
    def pump_address(self) -> int: ...

    @property
    def copier_address(self) -> int: ...

    @property
    def wait_frame(self) -> Callable[[int, int, int], int]: ...

    @property
    def wait_end(self) -> Callable[[int, int], int]: ...

    @property
    def give_back(self) -> Callable[[int, int], int]: ...

    @property
    def ring_bell(self) -> Callable[[int], int]: ...


class Operand(NamedTuple):
    """Where one column of a chunk is: MEMORY at ``address``, or FILE: ``bytes`` of ``fd`` from ``offset`` on."""

    kind: OperandKind
    address: int
    fd: int
    offset: int
    bytes: int


@dataclass(slots=True, eq=False)
class Loaded:
    """A chunk whose bytes are where ``columns`` says, until ``Reader.release``.

    Attributes:
        chunk: its index, first element and count.
        columns: operand by name of the strip. Memory is aligned as the strip wants it, and no more.
        error: why it could not be read; ``columns`` is empty then.
    """

    chunk: Chunk
    columns: dict[str, Operand]
    error: StreamError | None = None
    _frame: int = 0
    _buffer: Buffer | None = None
    _reader: Reader | None = field(default=None, repr=False)

    def view(self, name: str) -> memoryview:
        """The bytes of a column that were read into memory of the pool. For tests and for engines in Python."""
        assert self._reader is not None
        assert self._buffer is not None
        start = self.columns[name].address - self._buffer.address
        return self._reader.pool.view(self._buffer)[start : start + self.columns[name].bytes]


class Reader:
    """Reads a source as its plan says.

    Attributes:
        source, plan, pool: as given.
        frames: how many chunks may be out at a time.
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        pool: Pool,
        *,
        natives: PumpNatives | None = None,
        publish: Publish | None = None,
        places: Sequence[FramePlace] | None = None,
        fields: Sequence[Field] | None = None,
        copiers: int = 0,
    ) -> None:
        """Lay everything out; the first ``submit`` starts the pump.

        Args:
            natives: the compiled pump; None has Python execute it in the calling thread.
            publish: where full chunks are published; None tells the caller (``ready``).
            places: the engine's words for each frame; given with ``publish``.
            fields: the engine's inputs, where they are not the strips one by one; given with ``publish``.
            copiers: threads beside the pump that read through the page cache. Only with ``natives``.
        Raises:
            StreamError: a chunk does not fit into the pool.
        """
        self.source = source
        self.plan = plan
        self.pool = pool
        self._natives = natives if plan.kernel is KERNEL else None
        assert publish is None or self._natives is not None, "only a compiled pump publishes"
        self._tables = Tables(source, plan, pool, _REQUESTS, publish, places, copiers if self._natives else 0, fields)
        self.frames = self._tables.frame_count
        self._machine = PythonMachine(plan.kernel)
        self._pump = _Pump(self._tables, plan, pool, self._natives, copiers)
        # Also at the end of the interpreter, before threads that want the GIL can no longer have it.
        self._finalizer = weakref.finalize(self, self._pump.stop)
        self._handed = 0  # every chunk before it was handed out
        self._early: set[int] = set()  # handed out out of turn
        self._lent: dict[int, Loaded] = {}
        self._buffers = {buffer.address: buffer for buffer in self._tables.buffers}
        self._noted: set[int] = set()
        self._begun = False
        self._closed = False

    # --- what the pump says -----------------------------------------------------------------------------------------

    def _word(self, place: int) -> int:
        return self._tables.words[place // 8]

    @property
    def finished(self) -> bool:
        """Every chunk was handed out and released."""
        return self._closed or (
            self._tables.complete and self._handed == self._tables.chunks and not self._lent and not self._early
        )

    @property
    def chunks(self) -> int:
        """Chunks of the whole source."""
        self._lay_out_all()
        return self._tables.chunks

    @property
    def in_flight(self) -> int:
        """Reads that are out."""
        return self._word(f.P_FLYING) + self._word(f.P_QUEUED)

    @property
    def taken(self) -> dict[Rung, int]:
        """Bytes by the way that they really took."""
        first = f.P_TAKEN // 8
        found = self._tables.words[first : first + f.RUNGS].tolist()
        return {rung: count for rung, count in zip(RUNG_OF, found, strict=True) if count}

    @property
    def copied(self) -> int:
        """Bytes of memory that were put together because a chunk crosses from one array into the next."""
        return self._word(f.P_COPIED)

    @property
    def stalls(self) -> int:
        """Times that a chunk had to wait for a frame or memory: the consumer is the bottleneck then."""
        return self._word(f.P_STALLS)

    @property
    def stall_s(self) -> float:
        """Seconds that the pump slept because the consumer was behind."""
        return self._word(f.P_STALL_NS) / 1e9

    @property
    def hungry_s(self) -> float:
        """Seconds that reads were out and no chunk was with the engine: storage is the bottleneck then."""
        return self._word(f.P_HUNGRY_NS) / 1e9

    @property
    def cpu_s(self) -> float:
        """Processor seconds of the pump's thread; known once it has ended."""
        return self._word(f.P_CPU_NS) / 1e9

    def report(self) -> dict[str, int]:
        """Bytes by way, in words."""
        return {rung.value: count for rung, count in self.taken.items()}

    def note_demotions(self) -> None:
        """Bring the plan up to date with what the pump had to change."""
        for number, file in enumerate(self._tables.files):
            code, offset = self._tables.demoted(file)
            if code and number not in self._noted:
                self._noted.add(number)
                name = errno.errorcode.get(code, str(code))
                self.plan.demote(file, self._pump.cached_rung, f"{name} at offset {offset}")

    @property
    def address(self) -> int:
        """Of the pump block."""
        return self._tables.address

    @property
    def abandoned(self) -> bool:
        """After ``close``: a thread of the pump could not be seen to end, so nothing that it knows may be used again."""
        return self._pump in _ABANDONED

    def frame_address(self, index: int) -> int:
        """Address of the frame of a chunk."""
        return self._word(f.P_FRAMES) + f.FRAME_BYTES * (index % self.frames)

    def frame_words(self, index: int) -> memoryview:
        """u64 view of the frame of a chunk, see frames.py; the lower half of word 0 is its state."""
        return self._tables.frame_words(index % self.frames)

    # --- driving ----------------------------------------------------------------------------------------------------

    def submit(self) -> int:
        """Start reads until enough are out, memory is lent, or the source is at its end.

        Returns:
            Chunks started by this call; 0 with a thread, which starts them by itself.
        Raises:
            StreamError: the ring cannot be used from here. Errors of single chunks come with ``ready``.
        """
        self._begin()
        self._lay_out_all()
        if self._natives is not None:
            return 0
        before = self._word(f.P_NEXT)
        with self._machine.running():
            pump.begin_chunks(self._tables.address)
            if self._word(f.P_FLYING) and requests.unsubmitted(self._tables.address):
                requests.enter(self._tables.address, 0, 0)
        self._check()
        return self._word(f.P_NEXT) - before

    def ready(self, timeout_s: float = 0.0) -> list[Loaded]:
        """Hand over what is complete, in the order of the chunks as far as it is.

        Args:
            timeout_s: seconds to wait for the first one while reads are in flight. 0 only looks.
        """
        self._begin()
        until = time.monotonic() + timeout_s if timeout_s > 0 else 0.0
        while True:
            if self._natives is None:
                with self._machine.running():
                    pump.pump_turn(self._tables.address, 0 if timeout_s <= 0 else int(_POLL_S * 1e9))
            found = self._full()
            self.note_demotions()
            self._check()
            left = until - time.monotonic()
            if found or timeout_s <= 0 or left <= 0:
                return found
            if self._natives is not None:
                if self._handed == self._tables.chunks and self._tables.complete:
                    return found
                address = self.frame_address(self._handed)
                self._natives.wait_frame(self._tables.address, address, int(min(_POLL_S, left) * 1e9))
            elif not self.in_flight and not self._word(f.P_LAY_FRAME):
                return self._full()

    def _full(self) -> list[Loaded]:
        """Frames that became the caller's since the last look."""
        found = []
        index = self._handed
        next_ = self._word(f.P_NEXT)
        while index < next_:
            if index in self._early:
                if index == self._handed:
                    self._early.discard(index)
                    self._handed += 1
            else:
                words = self.frame_words(index)
                state = words[0] & 0xFFFF_FFFF
                if state in (f.FULL, f.FAILED) and words[f.F_INDEX // 8] == index:
                    found.append(self._loaded(index, words, state))
                    if index == self._handed:
                        self._handed += 1
                    else:
                        self._early.add(index)
            index += 1
        return found

    def _loaded(self, index: int, words: memoryview, state: int) -> Loaded:
        chunk = Chunk(index, words[f.F_FIRST // 8], words[f.F_COUNT // 8])
        load = Loaded(chunk, {}, _frame=self.frame_address(index), _reader=self)
        self._lent[index] = load
        if state == f.FAILED:
            load.error = self.error_of(words)
            return load
        buffer = words[f.F_BUFFER // 8]
        if buffer:
            load._buffer = self._buffers[self._tables.word_at(buffer)]
        at = words[f.F_INPUTS // 8]
        for name, strip in self.source.strips.items():
            kind, place, offset = (self._tables.word_at(at + 8 * k) for k in range(3))
            size = chunk.count * strip.width
            if kind == OperandKind.FILE:
                load.columns[name] = Operand(OperandKind.FILE, 0, place, offset, size)
            else:
                load.columns[name] = Operand(OperandKind.MEMORY, place + offset, -1, 0, size)
            at += 32
        return load

    def error_of(self, words: memoryview) -> StreamError:
        """The error of a frame that failed."""
        code, number, offset, expected = words[f.F_ERROR // 8 : f.F_ERROR // 8 + 4].tolist()
        file = self._tables.files[number]
        if code == f.SHRANK:
            return shrank(file, offset, expected)
        return read_failed(file, offset, expected, code)

    def release(self, load: Loaded) -> None:
        """Take a chunk back: nobody reads its operands any more."""
        if self._lent.pop(load.chunk.index, None) is None:
            return
        if self._closed:
            if load._buffer is not None:
                self.pool.give_back(load._buffer)
        elif self._natives is not None:
            self._natives.give_back(self._tables.address, load._frame)
        else:
            with self._machine.running():
                handover.give_back(self._tables.address, load._frame)
                pump.attend(self._tables.address)

    # --- beginning and end ------------------------------------------------------------------------------------------

    def _begin(self) -> None:
        if self._pump.is_elsewhere:
            raise StreamError(
                "the reader belongs to the parent process: its memory does not survive fork",
                fix="open the stream after fork, or start processes with spawn",
            )
        if self._begun:
            return
        self._begun = True
        if self._natives is None:
            self._pump.open_ring()
        else:
            self._pump.start()

    start = _begin

    def _lay_out_all(self) -> None:
        while not self._tables.complete:
            self._tables.lay_out(RUNS_AT_ONCE)
            if self._natives is not None and self._begun:
                self._natives.ring_bell(self._tables.address)

    def _check(self) -> None:
        """Raise what ended the pump."""
        if self._pump.error is not None:
            raise self._pump.error
        code = self._word(f.P_FAILED)
        if code:
            raise refused("io_uring_enter", code)

    check = _check

    def close(self) -> None:
        """Cancel what is in flight, wait until the kernel writes no more, give memory back. Safe after Ctrl-C.

        Chunks that were handed out stay lent until ``release``. A pool into which the kernel may still write, because
        it gave no answer or because this is another thread than the ring's, is retired: it is never unmapped.
        """
        if self._closed or self._pump.is_elsewhere:
            return
        self._closed = True
        if self._begun:
            if self._natives is not None:
                self._finalizer()
            else:
                self._end_here()
        self._finalizer.detach()
        kept = {load._buffer.address for load in self._lent.values() if load._buffer is not None}
        for address, buffer in self._buffers.items():
            if address not in kept:
                self.pool.give_back(buffer)

    def _end_here(self) -> None:
        """Wind the pump down in this thread."""
        with self._machine.running():
            pump.pump_end(self._tables.address, int(CLOSE_TIMEOUT_S * 1e9))
        if self.in_flight:
            self.pool.retire()
        self._pump.close_ring()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class _Pump:
    """What the pump's threads hold: not the reader, so that a reader that nobody holds any more can end them."""

    def __init__(self, tables: Tables, plan: Plan, pool: Pool, natives: PumpNatives | None, copiers: int) -> None:
        self.tables = tables
        self.plan = plan
        self.pool = pool
        self.natives = natives
        self.copiers = copiers
        self.error: BaseException | None = None
        self.cached_rung = Rung.PREAD
        self._ring: Ring | None = None
        self._thread: threading.Thread | None = None
        self._native: list[NativeThread] = []
        self._pid = os.getpid()

    @property
    def is_elsewhere(self) -> bool:
        """In a forked child: tables, threads and ring are the parent's."""
        return os.getpid() != self._pid

    def start(self) -> None:
        """Start the threads. Only one that has to set an io_uring up begins in Python."""
        natives, address = self.natives, self.tables.address
        assert natives is not None
        if any(decision.rung.is_uring for decision in self.plan.files):
            self._thread = threading.Thread(target=_pump_thread, args=(self,), name="vyre-pump", daemon=True)
            self._thread.start()
        else:
            self._native.append(NativeThread("vyre-pump", natives.pump_address, address))
        for number in range(self.copiers):
            self._native.append(NativeThread(f"vyre-copier-{number}", natives.copier_address, address))

    def stop(self) -> None:
        """Ask the threads to end and join them."""
        if self.natives is None or self.is_elsewhere or not (self._thread or self._native):
            return
        words, address = self.tables.words, self.tables.address
        words[f.P_STOP // 8] = 1
        self.natives.ring_bell(address)
        began = time.monotonic()
        while words[f.P_STATE // 8] & 0xFFFF_FFFF == f.RUNNING:
            if time.monotonic() - began > _LOOKS_S:
                self.natives.wait_end(address, int(_POLL_S * 1e9))
            if time.monotonic() - began > 2 * CLOSE_TIMEOUT_S:
                break
        if words[f.P_STATE // 8] & 0xFFFF_FFFF != f.ENDED:
            # A thread sits in a read that its device does not end. It is left alone, and so is all that it may write into.
            _ABANDONED.append(self)
            self.pool.retire()
            return
        if self._thread is not None:
            self._thread.join()
        for thread in self._native:
            thread.join(ending=self.copiers == 0)
        self._native.clear()

    def open_ring(self) -> None:
        """Set the io_uring up in the thread that will drive it; another way in when it is refused now."""
        plan, tables = self.plan, self.tables
        if any(decision.rung.is_uring for decision in plan.files):
            try:
                self._ring = ring = Ring(RING_ENTRIES, kernel=plan.kernel)
            except StreamError as error:
                if plan.io != "auto":
                    raise
                plan.notes.append(f"preadv instead of io_uring: {error.message}")
                for decision in plan.files:
                    if decision.rung.is_uring:
                        plan.demote(decision.file, Rung.PREAD, "io_uring refused when the stream began")
                        tables.set_rung(decision.file, Rung.PREAD)
                return
            self.cached_rung = Rung.BUFFERED
            tables.words[f.P_CACHED_RUNG // 8] = f.BUFFERED
            for place, value in ring.places().items():
                tables.words[place // 8] = value
            if any(decision.rung is Rung.DIRECT_REGISTERED for decision in plan.files):
                try:
                    ring.register_buffers(self.pool.pieces())
                except StreamError as error:
                    for decision in plan.files:
                        if decision.rung is Rung.DIRECT_REGISTERED:
                            plan.demote(decision.file, Rung.DIRECT, error.message)
                            tables.set_rung(decision.file, Rung.DIRECT)

    def close_ring(self) -> None:
        if self._ring is not None:
            self._ring.close()


def _pump_thread(state: _Pump) -> None:
    """The pump: signals are the main thread's, the GIL nobody's once the ring is there."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    assert state.natives is not None
    tables = state.tables
    try:
        name_this_thread("vyre-pump")
        state.open_ring()
        state.natives.pump_loop(tables.address)
        state.close_ring()
    except BaseException as error:
        state.error = error
        tables.words[f.P_STATE // 8] = f.ENDED
        state.natives.ring_bell(tables.address)
