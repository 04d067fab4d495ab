"""Hot files into registered memory by copier threads: 4 to 5 GB/s a core, several cores at once, none with the GIL.

Owns: which bytes of which file go where in a slot of the pool, the copier threads of one stream. Leaves to others: the
copying (stream/copying), what happens to a full slot (chunks).
"""

from __future__ import annotations

import ctypes
import platform
import signal
import threading
import time
from array import array
from collections import deque
from dataclasses import dataclass
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vyre.cores import available_cores
from vyre.engines.cuda.feed import Arrived, frame_bytes
from vyre.engines.cuda.registered import RegisteredPools
from vyre.errors import StreamError
from vyre.jit import compile_ir
from vyre.ring.memory import Region
from vyre.store import Store
from vyre.stream import copying
from vyre.stream.plan import Plan
from vyre.stream.pool import PAGE, Buffer, Pool
from vyre.stream.pread import read_failed
from vyre.stream.source import Chunk, File, Source, shrank

READ_BYTES_MAX: Final = 1 << 20  # a longer piece is read by several copiers
SPIN_NS: Final = 20_000  # that a record of the GPU is looked at without a pause
JOIN_S: Final = 10.0
CACHED_WAY: Final = "preadv threads, page cache"
DIRECT_WAY: Final = "preadv threads, O_DIRECT"
MEMORY_WAY: Final = "copied from memory"
_NOT_AWAITED: Final = 1 << 63
_BLOCKING: Final = ("copy_until_stopped", "await_either")
_READ_WORDS: Final = copying.READ_BYTES // 8
_KEPT: Final[list[Region]] = []  # boards of copiers that never came back


@dataclass(slots=True)
class _Natives:
    copy_until_stopped: Any
    await_either: Any
    queue_reads: Any
    wake_copiers: Any


_natives: list[_Natives] = []


def natives(store: Store | None = None) -> _Natives:
    """The copiers' functions, compiled once in a process.

    Those that are over at once keep the GIL: getting it back would cost a turn behind every other thread, 5 ms each.
    """
    if not _natives:
        ir = copying.copying.ir(platform.machine(), copying.EXPORTS)
        found = compile_ir(ir, list(copying.EXPORTS), store)
        word = ctypes.c_uint64
        made = {}
        for name, count in copying.EXPORTS.items():
            kind = ctypes.CFUNCTYPE if name in _BLOCKING else ctypes.PYFUNCTYPE
            made[name] = kind(word, *[word] * count)(found[name])
        _natives.append(_Natives(**made))
    return _natives[0]


class _Read(NamedTuple):
    """For messages: a read begins at ``offset`` and belongs to a piece of ``piece_bytes`` at ``piece_offset``."""

    file: File | None
    piece_offset: int
    piece_bytes: int
    offset: int


@dataclass(slots=True, eq=False)
class _Queued:
    """A chunk whose reads are queued or done."""

    arrived: Arrived
    first_read: int
    reads: list[_Read]
    done: bool = False


class CopierFeed:
    """Slots of a pool filled by copier threads.

    The slot that came back last is filled first: what fits into the processor's cache stays there.

    Args:
        source, plan: what is read and which files around the page cache.
        pool: registered with the engine; its slots are lent for as long as this object lives.
        slots: chunks that have memory at a time.
        pools: where the pool is from, and goes when nobody fills or reads it any more.
        copiers: threads; 0 takes three for every four cores: somebody has to publish, too.
    """

    in_device_memory = False

    def __init__(
        self,
        source: Source,
        plan: Plan,
        pool: Pool,
        slots: int,
        pools: RegisteredPools,
        copiers: int = 0,
        store: Store | None = None,
    ) -> None:
        self.source = source
        self.plan = plan
        self._pool = pool
        self._pools = pools
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
        room = self.slots * len(source.strips) * (2 + frame // READ_BYTES_MAX) + 2 * segments + 16
        self._reads_max = 1 << (room - 1).bit_length()
        lines_at = copying.BOARD_BYTES
        reads_at = lines_at + self.slots * copying.SLOT_LINE
        self._region = Region(reads_at + self._reads_max * copying.READ_BYTES)
        self._board = board = self._region.address
        self._words = words = self._region.words
        words[copying.BOARD_READS // 8] = board + reads_at
        words[copying.BOARD_MASK // 8] = self._reads_max - 1
        words[copying.BOARD_SLOTS // 8] = board + lines_at
        self._reads_at = reads_at // 8
        lines = self._region.bytes[lines_at:reads_at].view(np.uint64).reshape(self.slots, copying.SLOT_LINE // 8)
        self._full: NDArray[np.uint64] = lines[:, copying.SLOT_FULL // 8]
        self._errors: NDArray[np.uint64] = lines[:, copying.SLOT_ERROR // 8]
        self._want: NDArray[np.uint64] = np.full(self.slots, _NOT_AWAITED, np.uint64)
        self._reads_of = [0] * self.slots  # that were ever queued
        self._laps = [0] * self.slots
        self._free = list(range(self.slots))  # a stack
        self._loading: dict[int, _Queued] = {}  # by slot
        self._order: deque[_Queued] = deque()  # queued, oldest first: their entries of the queue are in use until done
        self._tail = 0
        self._chunks = source.chunks(plan.chunk_elements)
        self._next = next(self._chunks, None)
        self._seen = 0
        self._closed = False
        most = max(1, -(-source.bytes // READ_BYTES_MAX))
        self._threads = [
            threading.Thread(target=_live, args=(self._natives, self._region), name=f"vyre-copier-{i}", daemon=True)
            for i in range(min(copiers or max(1, available_cores() * 3 // 4), most))
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
        return self._next is None and not self._loading

    def more(self) -> None:
        queued = self._tail
        while self._next is not None and self._free and self._queue(self._next, self._free[-1]):
            self._free.pop()
            self._next = next(self._chunks, None)
        if self._tail != queued:
            self._natives.queue_reads(self._board, self._tail, self._tail - queued)

    def _queue(self, chunk: Chunk, slot: int) -> bool:
        """Lay a chunk out in its slot and write its reads. False: the queue has no room."""
        while self._order and self._order[0].done:
            self._order.popleft()
        oldest = self._order[0].first_read if self._order else self._tail
        rows: list[tuple[int, ...]] = []
        reads: list[_Read] = []
        addresses = []
        at = self._buffers[slot].address
        for name in self.source.strips:
            pieces = self.source.pieces(name, chunk.first, chunk.count)
            data = at
            for piece in pieces:
                file = piece.file
                if file is None:
                    rows.append((copying.NO_FD, copying.NO_FD, at, piece.address, piece.bytes, piece.bytes))
                    reads.append(_Read(None, 0, 0, 0))
                    at += piece.bytes
                    continue
                head = 0
                fd, other, block = file.fd, copying.NO_FD, 1
                if len(pieces) == 1 and file.direct_fd >= 0 and self.plan.rung(file).is_direct:
                    head = piece.offset % file.align
                    fd, other, block = file.direct_fd, file.fd, file.align
                    data = at + head
                offset, wanted = piece.offset - head, piece.bytes + head
                for part in range(0, wanted, READ_BYTES_MAX):
                    here = min(READ_BYTES_MAX, wanted - part)
                    rows.append((fd, other, at + part, offset + part, here, -(-here // block) * block))
                    reads.append(_Read(file, piece.offset, piece.bytes, offset + part))
                at += -(-wanted // block) * block
            addresses.append(data)
            at = -(-at // PAGE) * PAGE
        if self._tail + len(rows) - oldest > self._reads_max:
            return False
        target = self._reads_of[slot] = (self._reads_of[slot] + len(rows)) & 0xFFFF_FFFF
        lap = self._laps[slot] = self._laps[slot] + 1
        where = slot | target << 32
        for i, row in enumerate(rows):
            word = self._reads_at + ((self._tail + i) & (self._reads_max - 1)) * _READ_WORDS
            self._words[word : word + _READ_WORDS] = memoryview(array("Q", (*row, where, lap)))
        queued = self._loading[slot] = _Queued(Arrived(chunk, addresses, slot), self._tail, reads)
        self._order.append(queued)
        self._tail += len(rows)
        self._want[slot] = lap
        return True

    def full(self) -> list[Arrived]:
        self._seen = self._words[copying.BOARD_FILLED // 8] & 0xFFFF_FFFF  # before the look at the slots
        found = []
        for slot in np.flatnonzero(self._full == self._want).tolist():
            queued = self._loading.pop(slot)
            queued.done = True
            self._want[slot] = _NOT_AWAITED
            error = int(self._errors[slot])
            if error:
                self._errors[slot] = 0
                queued.arrived.error = self._error(queued, error)
            found.append(queued.arrived)
        found.sort(key=lambda arrived: arrived.chunk.index)
        return found

    def _error(self, queued: _Queued, word: int) -> StreamError:
        """What a copier noted: (1 + index of the read) << 16 | errno."""
        read = queued.reads[((word >> 16) - 1 - queued.first_read) & (self._reads_max - 1)]
        code = word & 0xFFFF
        assert read.file is not None, "copies of memory do not fail"
        if code == copying.ENDED:
            return shrank(read.file, read.piece_offset, read.piece_bytes)
        left = read.piece_offset + read.piece_bytes - read.offset
        return read_failed(read.file, read.offset, left, code)

    def release(self, arrived: Arrived) -> None:
        self._free.append(arrived.slot)
        self.more()

    def wait(self, record: int, expected: int, timeout_ns: int) -> None:
        self._natives.await_either(self._board, self._seen, record, expected, timeout_ns, SPIN_NS)

    def device_address(self, address: int) -> int:
        return self._pools.device_address(address)

    def verify(self, arrived: Arrived) -> StreamError | None:
        return None  # what came into the pool stays as it came

    def bytes_by_way(self) -> dict[str, int]:
        words = self._words
        ways = {
            CACHED_WAY: copying.BOARD_CACHED,
            DIRECT_WAY: copying.BOARD_DIRECT,
            MEMORY_WAY: copying.BOARD_MEMORY,
        }
        return {way: words[at // 8] for way, at in ways.items() if words[at // 8]}

    @property
    def waited_s(self) -> float:
        """Seconds that copiers, added up, had nothing to read: the consumer is the bottleneck then."""
        return self._words[copying.BOARD_WAITED_NS // 8] / 1e9

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
        self._pools.give_back(self._pool)


def _live(functions: _Natives, region: Region) -> None:
    """A copier thread. It holds its board, blocks signals, and never has the GIL while it works."""
    signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    functions.copy_until_stopped(region.address)
