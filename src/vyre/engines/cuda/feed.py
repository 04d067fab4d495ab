"""Chunks of a stream on their way into registered memory: by copier threads here, or by the reader.

Owns: which bytes of which file go where in a slot of the pool, the copier threads of one stream. Leaves to others: the
reading itself (stream/copying, stream/reader), which way each file comes (plan), what happens to a full slot (chunks).
"""

from __future__ import annotations

import ctypes
import platform
import signal
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, Final, Protocol

import numpy as np
from numpy.typing import NDArray

from vyre.cores import available_cores
from vyre.errors import StreamError
from vyre.jit import ObjectStore, compile_ir
from vyre.ring.memory import Region
from vyre.store import Store
from vyre.stream import copying
from vyre.stream.compiled import pump_functions
from vyre.stream.plan import Plan
from vyre.stream.pool import PAGE, Buffer, Pool
from vyre.stream.pread import read_failed
from vyre.stream.reader import Loaded, Reader
from vyre.stream.source import Chunk, File, Source, shrank

SLOTS_MAX: Final = 64
READ_BYTES_MAX: Final = 4 << 20  # a longer piece is read by several copiers
AHEAD: Final = 2  # laps of the pool for which reads are queued: what copiers find while Python waits for the GIL
JOIN_S: Final = 10.0
CACHED_WAY: Final = "preadv threads, page cache"
DIRECT_WAY: Final = "preadv threads, O_DIRECT"
MEMORY_WAY: Final = "copied from memory"
_NOT_AWAITED: Final = 1 << 63


@dataclass(slots=True, eq=False)
class Arrived:
    """A chunk whose bytes are in registered memory, until ``release``.

    Attributes:
        addresses: host address of element ``chunk.first`` of each strip, in order.
        slot: of the pool, or -1 where the memory is lent piece by piece.
        error: why it could not be read; the addresses are not to be used then.
    """

    chunk: Chunk
    addresses: list[int]
    slot: int = -1
    error: StreamError | None = None
    _loaded: Loaded | None = None


class Feed(Protocol):
    """Where chunks come from. One thread drives it.

    Attributes:
        plan: what was chosen and why.
        chunk_elements: longest chunk.
        seats: chunks that may be full and not released, at most.
    """

    source: Source
    plan: Plan

    @property
    def chunk_elements(self) -> int: ...

    @property
    def seats(self) -> int: ...

    def more(self) -> None:
        """Start as many reads as there is memory for."""

    def full(self) -> list[Arrived]:
        """Chunks that became full since the last call."""

    def release(self, arrived: Arrived) -> None:
        """Nobody reads the chunk's memory any more."""

    def wait(self, record: int, expected: int, timeout_ns: int) -> None:
        """Until a chunk is full, or the u64 at ``record`` (unless 0) is ``expected``, or time is up."""

    @property
    def finished(self) -> bool:
        """Every chunk has been full and was given out."""

    def bytes_by_way(self) -> dict[str, int]: ...

    def close(self) -> None:
        """Stop reading. Afterwards nobody writes into the memory of chunks, or it is retired."""

    def give_up(self) -> None:
        """After ``close``: the engine reads no chunk any more. Give the memory back."""


@dataclass(slots=True)
class _Natives:
    copy_until_stopped: Any
    await_either: Any
    hand_back: Any
    queue_reads: Any
    wake_copiers: Any


_natives: list[_Natives] = []


def natives(store: ObjectStore | None = None) -> _Natives:
    """The copiers' functions, compiled once in a process.

    Those that are over at once keep the GIL: getting it back would cost a turn behind every other thread, 5 ms each.
    """
    if not _natives:
        ir = copying.copying.ir(platform.machine(), copying.EXPORTS)
        found = compile_ir(ir, list(copying.EXPORTS), store)
        word = ctypes.c_uint64
        made = {}
        for name, count in copying.EXPORTS.items():
            kind = ctypes.CFUNCTYPE if name in ("copy_until_stopped", "await_either") else ctypes.PYFUNCTYPE
            made[name] = kind(word, *[word] * count)(found[name])
        _natives.append(_Natives(**made))
    return _natives[0]


@dataclass(slots=True, eq=False)
class _Queued:
    """A chunk whose reads are queued or done."""

    arrived: Arrived
    first_read: int
    reads: list[tuple[File, int, int, int]] = field(default_factory=list)  # file, offset, bytes, of the piece


class CopierFeed:
    """Slots of a pool filled in turn by copier threads that never hold the GIL.

    Args:
        source, plan: what is read and which files around the page cache.
        pool: registered with the engine; its slots are lent for as long as this object lives.
        slots: chunks that have memory at a time.
        done: called with the pool when nobody fills or reads it any more.
        copiers: threads; 0 takes one for each core.
    """

    def __init__(
        self,
        source: Source,
        plan: Plan,
        pool: Pool,
        slots: int,
        done: Callable[[Pool], None],
        copiers: int = 0,
        store: ObjectStore | None = None,
    ) -> None:
        self.source = source
        self.plan = plan
        self._pool = pool
        self._give_back = done
        self._natives = natives(store)
        frame = frame_bytes(source, plan.chunk_elements)
        self._buffers: list[Buffer] = []
        for _ in range(slots):
            buffer = pool.lend(frame)
            if buffer is None:
                break
            self._buffers.append(buffer)
        if not self._buffers:
            raise StreamError(
                f"a chunk needs {frame:,} bytes, which a pool of {pool.limit:,} bytes does not have in one piece",
                fix="a shorter chunk, or a larger pool_bytes",
            )
        self.slots = len(self._buffers)
        segments = sum(len(strip.segments) for strip in source.strips.values())
        per_chunk = len(source.strips) * (2 + frame // READ_BYTES_MAX)
        room = AHEAD * self.slots * per_chunk + 2 * segments + 16
        self._reads_max = 1 << (room - 1).bit_length()
        lines_at = copying.BOARD_BYTES
        reads_at = lines_at + self.slots * copying.SLOT_LINE
        self._region = Region(reads_at + self._reads_max * copying.READ_BYTES)
        self._board = board = self._region.address
        self._words = words = self._region.words
        words[copying.BOARD_READS // 8] = board + reads_at
        words[copying.BOARD_MASK // 8] = self._reads_max - 1
        words[copying.BOARD_SLOTS // 8] = board + lines_at
        reads = self._region.bytes[reads_at:].view(np.uint64)
        self._reads: NDArray[np.uint64] = reads.reshape(self._reads_max, copying.READ_BYTES // 8)
        lines = self._region.bytes[lines_at:reads_at].view(np.uint64).reshape(self.slots, copying.SLOT_LINE // 8)
        self._full: NDArray[np.uint64] = lines[:, copying.SLOT_FULL // 8]
        self._errors: NDArray[np.uint64] = lines[:, copying.SLOT_ERROR // 8]
        lines[:, copying.SLOT_FREE // 8] = 1
        self._want: NDArray[np.uint64] = np.full(self.slots, _NOT_AWAITED, np.uint64)
        self._done_target = [0] * self.slots
        self._waiting: list[deque[_Queued]] = [deque() for _ in range(self.slots)]
        self._out: dict[int, _Queued] = {}  # by chunk: given out and not released
        self._order: deque[_Queued] = deque()  # not released, oldest first: entries of the queue that are in use
        self._released: set[int] = set()
        self._tail = 0
        self._pending = 0
        self._chunks = source.chunks(plan.chunk_elements)
        self._next = next(self._chunks, None)
        self._seen = 0
        self._closed = False
        wanted = copiers or available_cores()
        most = max(1, -(-source.bytes // (1 << 20)))
        self._threads = [
            threading.Thread(target=_live, args=(self._natives, self._region), name=f"vyre-copier-{i}", daemon=True)
            for i in range(min(wanted, most, AHEAD * self.slots * len(source.strips)))
        ]
        self.more()
        for thread in self._threads:
            thread.start()

    @property
    def chunk_elements(self) -> int:
        return self.plan.chunk_elements

    @property
    def seats(self) -> int:
        return self.slots

    @property
    def copiers(self) -> int:
        """Threads that fill slots."""
        return len(self._threads)

    @property
    def finished(self) -> bool:
        return self._next is None and self._pending == 0

    def more(self) -> None:
        queued = self._tail
        while self._next is not None:
            slot = self._next.index % self.slots
            if len(self._waiting[slot]) >= AHEAD or not self._queue(self._next, slot):
                break
            self._next = next(self._chunks, None)
        if self._tail != queued:
            self._natives.queue_reads(self._board, self._tail, self._tail - queued)

    def _queue(self, chunk: Chunk, slot: int) -> bool:
        """Lay a chunk out in its slot and write its reads. False: the queue has no room."""
        oldest = self._order[0].first_read if self._order else self._tail
        rows: list[list[int]] = []
        reads: list[tuple[File, int, int, int]] = []
        addresses = []
        at = self._buffers[slot].address
        for name in self.source.strips:
            pieces = self.source.pieces(name, chunk.first, chunk.count)
            single = len(pieces) == 1
            data = at
            for piece in pieces:
                if piece.file is None:
                    rows.append([copying.NO_FD, copying.NO_FD, at, piece.address, piece.bytes, piece.bytes])
                    reads.append((_NOWHERE, 0, 0, 0))
                    at += piece.bytes
                    continue
                file = piece.file
                head = 0
                fd, other, block = file.fd, copying.NO_FD, 1
                if single and file.direct_fd >= 0 and self.plan.rung(file).is_direct:
                    head = piece.offset % file.align
                    fd, other, block = file.direct_fd, file.fd, file.align
                    data = at + head
                offset, wanted = piece.offset - head, piece.bytes + head
                for part in range(0, wanted, READ_BYTES_MAX):
                    here = min(READ_BYTES_MAX, wanted - part)
                    length = -(-here // block) * block
                    rows.append([fd, other, at + part, offset + part, here, length])
                    reads.append((file, piece.offset, piece.bytes, offset + part))
                at += -(-wanted // block) * block
            addresses.append(data)
            at = -(-at // PAGE) * PAGE
        if self._tail + len(rows) - oldest > self._reads_max:
            return False
        target = self._done_target[slot] = (self._done_target[slot] + len(rows)) & 0xFFFF_FFFF
        lap = chunk.index // self.slots + 1
        where = slot | target << 32
        block_of = np.array([[*row, where, lap] for row in rows], np.uint64)
        for i, row in enumerate(block_of):
            self._reads[(self._tail + i) & (self._reads_max - 1)] = row
        queued = _Queued(Arrived(chunk, addresses, slot), self._tail, reads)
        self._tail += len(rows)
        self._pending += 1
        waiting = self._waiting[slot]
        waiting.append(queued)
        if len(waiting) == 1:
            self._want[slot] = lap
        self._order.append(queued)
        return True

    def full(self) -> list[Arrived]:
        self._seen = int(self._words[copying.BOARD_FILLED // 8] & 0xFFFF_FFFF)  # before the look at the slots
        found = []
        for slot in np.flatnonzero(self._full == self._want).tolist():
            queued = self._waiting[slot].popleft()
            self._want[slot] = _NOT_AWAITED if not self._waiting[slot] else self._want[slot] + np.uint64(1)
            self._pending -= 1
            error = int(self._errors[slot])
            if error:
                self._errors[slot] = 0
                queued.arrived.error = self._error(queued, error)
            self._out[queued.arrived.chunk.index] = queued
            found.append(queued.arrived)
        found.sort(key=lambda a: a.chunk.index)
        return found

    def _error(self, queued: _Queued, word: int) -> StreamError:
        """What a copier noted: (1 + index of the read) << 16 | errno."""
        index = (word >> 16) - 1
        at = (index - queued.first_read) & (self._reads_max - 1)
        file, offset, length, place = queued.reads[at]
        code = word & 0xFFFF
        if code == copying.ENDED:
            return shrank(file, offset, length)
        return read_failed(file, place, length - max(0, place - offset), code)

    def release(self, arrived: Arrived) -> None:
        queued = self._out.pop(arrived.chunk.index)
        self._released.add(arrived.chunk.index)
        while self._order and self._order[0].arrived.chunk.index in self._released:
            self._released.discard(self._order.popleft().arrived.chunk.index)
        self._natives.hand_back(self._board, arrived.slot, queued.arrived.chunk.index // self.slots + 2)

    def wait(self, record: int, expected: int, timeout_ns: int) -> None:
        self._natives.await_either(self._board, self._seen, record, expected, timeout_ns)

    def bytes_by_way(self) -> dict[str, int]:
        words = self._words
        ways = (
            (CACHED_WAY, copying.BOARD_CACHED),
            (DIRECT_WAY, copying.BOARD_DIRECT),
            (MEMORY_WAY, copying.BOARD_MEMORY),
        )
        return {way: int(words[at // 8]) for way, at in ways if words[at // 8]}

    @property
    def waited_s(self) -> float:
        """Seconds that copiers, added up, had no slot to fill."""
        return float(self._words[copying.BOARD_WAITED_NS // 8]) / 1e9

    def close(self) -> None:
        if self._closed:
            return
        self._closed = True
        self._next = None
        self._words[copying.BOARD_STOP // 8] = 1
        until = time.monotonic() + JOIN_S
        for thread in self._threads:
            while thread.is_alive() and time.monotonic() < until:
                self._natives.wake_copiers(self._board, len(self._threads))
                thread.join(0.05)
        if any(thread.is_alive() for thread in self._threads):
            self._pool.retire()  # a read that does not come back may still write there (decision 32)
            _KEPT.append(self._region)

    def give_up(self) -> None:
        if not self._pool.retired:
            for buffer in self._buffers:
                self._pool.give_back(buffer)
        self._buffers.clear()
        self._give_back(self._pool)


_KEPT: Final[list[Region]] = []
_NOWHERE: Final = File("memory", -1, 0, 0, 0, 0)


def _live(functions: _Natives, region: Region) -> None:
    """A copier thread. It holds its board, blocks signals, and never has the GIL while it works."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    functions.copy_until_stopped(region.address)


class ReaderFeed:
    """Chunks from the reader, whose memory is registered: io_uring, around the page cache or through it."""

    def __init__(
        self, source: Source, plan: Plan, pool: Pool, done: Callable[[Pool], None], store: Store | None = None
    ) -> None:
        self.source = source
        self.plan = plan
        self.seats = SLOTS_MAX
        self._pool = pool
        self._give_back = done
        self._reader = Reader(source, plan, pool, natives=pump_functions(store))
        self._ready: list[Loaded] = []
        self._out: dict[int, Loaded] = {}
        self._given = 0

    @property
    def chunk_elements(self) -> int:
        return self.plan.chunk_elements

    def more(self) -> None:
        self._reader.submit()

    def full(self) -> list[Arrived]:
        found = self._ready + self._reader.ready(0.0)
        self._ready = []
        self._given += len(found)
        self._out |= {load.chunk.index: load for load in found}
        return [
            Arrived(
                load.chunk,
                [load.columns[name].address for name in self.source.strips] if load.error is None else [],
                -1,
                load.error,
                load,
            )
            for load in found
        ]

    @property
    def finished(self) -> bool:
        return self._given == self._reader.chunks

    def release(self, arrived: Arrived) -> None:
        assert arrived._loaded is not None
        del self._out[arrived.chunk.index]
        self._reader.release(arrived._loaded)

    def wait(self, record: int, expected: int, timeout_ns: int) -> None:
        # A record can only be looked at: at storage's pace, a look every 50 us costs nothing that anybody notices.
        self._ready += self._reader.ready(min(timeout_ns, 50_000) / 1e9 if record else timeout_ns / 1e9)

    def bytes_by_way(self) -> dict[str, int]:
        return self._reader.report()

    def close(self) -> None:
        self._reader.close()

    def give_up(self) -> None:
        for load in (*self._ready, *self._out.values()):
            self._reader.release(load)
        self._ready.clear()
        self._out.clear()
        self._give_back(self._pool)


def frame_bytes(source: Source, chunk_elements: int) -> int:
    """Memory that a slot needs: every strip, of files and arrays alike, widened at both ends to whole blocks."""
    count = min(chunk_elements, max(source.count, 1))
    return sum(-(-count * strip.width // PAGE) * PAGE + 2 * PAGE for strip in source.strips.values())
