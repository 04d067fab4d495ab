"""Carries out a plan: keeps reads in flight into lent memory and hands over chunks as they become complete.

Owns: buffers of chunks from the first read to ``release``, what is in flight, which way each byte really took. Leaves to
others: which way that should be (plan), what happens to a chunk (whoever calls), order (the caller puts results in order).

One thread drives a reader: the one that calls ``submit`` first owns its ring. Nothing here needs Python of the user, so
that a native pump can stand in for this class: same chunks, same operands, same counters.
"""

from __future__ import annotations

import ctypes
import errno
import os
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final, NamedTuple, Self

from vyre.errors import StreamError
from vyre.ring.layout import OperandKind
from vyre.stream.plan import DEPTH_BYTES, DEPTH_READS, RING_ENTRIES, Plan, Rung
from vyre.stream.pool import PAGE, Buffer, Pool
from vyre.stream.pread import read_exactly, read_failed
from vyre.stream.source import Chunk, File, Piece, Source, shrank
from vyre.stream.uring import Ring

READ_BYTES_MAX: Final = 4 << 20  # a longer piece is read in parts, several at once
OUTSTANDING_MAX: Final = 64  # chunks between submit and release: bounds slots when no memory does
CLOSE_TIMEOUT_S: Final = 10.0
_POLL_S: Final = 0.05  # waits come back to Python so often, for Ctrl-C
_CANCEL: Final = 0xFFFF_FFFF_FFFF_FFFF
_DRAINED: Final = 0xFFFF_FFFF_FFFF_FFFE
_RETRY: Final = (errno.EINTR, errno.EAGAIN)
_DEMOTE: Final = (errno.EINVAL, errno.EOPNOTSUPP, errno.EFAULT)


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
        error: why it could not be read; ``columns`` is not to be used then.
    """

    chunk: Chunk
    columns: dict[str, Operand]
    error: StreamError | None = None
    _buffer: Buffer | None = None
    _reads: int = 0
    _hot: int = 0
    _reader: Reader | None = field(default=None, repr=False)

    def view(self, name: str) -> memoryview:
        """The bytes of a column that were read into memory of the pool. For tests and for engines in Python."""
        assert self._reader is not None
        assert self._buffer is not None
        start = self.columns[name].address - self._buffer.address
        return self._reader.pool.view(self._buffer)[start : start + self.columns[name].bytes]


@dataclass(slots=True, eq=False)
class _Read:
    """One read in flight: ``length`` bytes asked from ``offset`` on into ``address``, of which ``wanted`` must come.

    The last ``useful`` of them are the column's; what is before lies in the same block.
    """

    load: Loaded
    piece: Piece
    file: File
    rung: Rung
    address: int
    offset: int
    length: int
    wanted: int
    useful: int
    buffer: int | None
    at: int = 0  # bytes that have arrived: where the next request starts


class Reader:
    """Reads a source as its plan says.

    Attributes:
        taken: bytes by the way that they really took, in Rung's words.
        copied: bytes of memory that were put together because a chunk crosses from one array into the next.
        stalls: times that a chunk had to wait because the pool had no room: the consumer is the bottleneck then.
        finished: every chunk has been handed out and released.
    """

    def __init__(self, source: Source, plan: Plan, pool: Pool) -> None:
        self.source = source
        self.plan = plan
        self.pool = pool
        self.taken: dict[Rung, int] = {}
        self.stalls = 0
        self.copied = 0
        self._chunks = source.chunks(plan.chunk_elements)
        self._next = next(self._chunks, None)
        self._ring: Ring | None = None
        self._use_ring = any(decision.rung.is_uring for decision in plan.files)
        self._queue: deque[_Read] = deque()
        self._flying: dict[int, _Read] = {}
        self._blocking: deque[_Read] = deque()
        self._ready: list[Loaded] = []
        self._loading: set[int] = set()
        self._outstanding = 0
        self._bytes_in_flight = 0
        self._serial = 0
        self._closed = False
        if not plan.all_hot:
            pool.reserve(plan.pool_bytes)

    @property
    def finished(self) -> bool:
        return self._next is None and self._outstanding == 0

    @property
    def in_flight(self) -> int:
        """Reads that ``ready`` can wait for."""
        return len(self._flying) + len(self._queue) + len(self._blocking)

    def submit(self) -> int:
        """Start reads until enough are in flight, the pool is lent out, or the source is at its end.

        Returns:
            Chunks started by this call.
        Raises:
            StreamError: the ring cannot be used from here. Errors of single chunks come with ``ready``.
        """
        started = 0
        while self._next is not None and self._outstanding < OUTSTANDING_MAX:
            if self.in_flight >= DEPTH_READS and self._bytes_in_flight >= DEPTH_BYTES:
                break
            if len(self._loading) >= max(1, self.plan.chunks_in_flight):
                break
            if not self._start(self._next):
                break
            started += 1
            self._next = next(self._chunks, None)
        if self._queue:
            self._push()
        return started

    def ready(self, timeout_s: float = 0.0) -> list[Loaded]:
        """Hand over what is complete, in the order of completion.

        Args:
            timeout_s: seconds to wait for the first one while reads are in flight. 0 only looks.
        """
        until = time.monotonic() + timeout_s if timeout_s > 0 else 0.0
        while True:
            if self._flying or self._queue:
                wait = timeout_s > 0 and not self._ready
                self._collect(min(_POLL_S, until - time.monotonic()) if wait else 0.0)
            if self._blocking and not self._ready:
                self._read_blocking(self._blocking.popleft())
                continue
            if self._ready or not self.in_flight or timeout_s <= 0 or time.monotonic() >= until:
                found, self._ready = self._ready, []
                return found

    def release(self, load: Loaded) -> None:
        """Take a chunk back: nobody reads its operands any more."""
        if load._buffer is not None:
            self.pool.give_back(load._buffer)
            load._buffer = None
        if load._hot and load.error is None:
            self._count(Rung.HOT, load._hot)
        load._hot = 0
        self._outstanding -= 1

    def report(self) -> dict[str, int]:
        """Bytes by way, in words."""
        return {rung.value: count for rung, count in self.taken.items()}

    # --- starting --------------------------------------------------------------------------------------------------

    def _start(self, chunk: Chunk) -> bool:
        """Lay a chunk out and queue its reads. False: no memory for it now."""
        load = Loaded(chunk, {}, _reader=self)
        placed: list[tuple[str, list[Piece], int]] = []
        total = 0
        for name in self.source.strips:
            pieces = self.source.pieces(name, chunk.first, chunk.count)
            if len(pieces) == 1:
                piece = pieces[0]
                if piece.file is None:
                    load.columns[name] = Operand(OperandKind.MEMORY, piece.address, -1, 0, piece.bytes)
                    self._count(Rung.MEMORY, piece.bytes)
                    continue
                if self.plan.rung(piece.file) is Rung.HOT:
                    load.columns[name] = Operand(OperandKind.FILE, 0, piece.file.fd, piece.offset, piece.bytes)
                    load._hot += piece.bytes
                    continue
            placed.append((name, pieces, total))
            total += self._extent(pieces)
        if total:
            load._buffer = self._lend(total)
            if load._buffer is None:
                self.stalls += 1
                return False
            for name, pieces, at in placed:
                self._layout(load, name, pieces, load._buffer.address + at)
            if load._reads:
                self._loading.add(chunk.index)
        self._outstanding += 1
        if not load._reads:
            self._ready.append(load)
        return True

    def _extent(self, pieces: list[Piece]) -> int:
        """Pages that a column of a chunk takes in the pool."""
        if len(pieces) > 1:
            return -(-sum(piece.bytes for piece in pieces) // PAGE) * PAGE
        (piece,) = pieces
        align = piece.file.align if piece.file is not None else 0
        length = -(-(piece.offset % align + piece.bytes) // align) * align if align else piece.bytes
        return -(-length // PAGE) * PAGE

    def _lend(self, wanted: int) -> Buffer | None:
        buffer = self.pool.lend(wanted)
        if buffer is None and self.pool.bytes + wanted <= self.pool.limit and not self._loading:
            self.pool.reserve(self.pool.bytes + wanted)
            buffer = self.pool.lend(wanted)
        if buffer is None and self.pool.lent == 0:  # nothing will come back that could make room
            raise StreamError(
                f"a chunk needs {wanted} bytes in one piece, which a pool of {self.pool.limit} bytes does not have",
                fix="a shorter chunk, or a larger pool_bytes",
            )
        return buffer

    def _layout(self, load: Loaded, name: str, pieces: list[Piece], address: int) -> None:
        """Queue the reads of one column. Several pieces lie one behind the other, so none may be widened to blocks."""
        assert load._buffer is not None
        if len(pieces) > 1:
            data = address
            for piece in pieces:
                if piece.file is None:
                    ctypes.memmove(address, piece.address, piece.bytes)
                    self._count(Rung.MEMORY, piece.bytes)
                    self.copied += piece.bytes
                else:
                    rung = Rung.BUFFERED if self._use_ring else Rung.PREAD
                    self._split(load, piece, piece.file, rung, address, 0)
                address += piece.bytes
        else:
            (piece,) = pieces
            assert piece.file is not None
            rung = self.plan.rung(piece.file)
            head = piece.offset % piece.file.align if rung.is_direct else 0
            data = address + head
            self._split(load, piece, piece.file, rung, address, head)
        load.columns[name] = Operand(OperandKind.MEMORY, data, -1, 0, sum(piece.bytes for piece in pieces))

    def _split(self, load: Loaded, piece: Piece, file: File, rung: Rung, address: int, head: int) -> None:
        """Queue a piece as reads of at most READ_BYTES_MAX. ``head`` bytes before it are read with it."""
        assert load._buffer is not None
        offset, wanted = piece.offset - head, piece.bytes + head
        if rung is Rung.PREAD:
            os.posix_fadvise(file.fd, offset, wanted, os.POSIX_FADV_WILLNEED)
        for at in range(0, wanted, READ_BYTES_MAX):
            here = min(READ_BYTES_MAX, wanted - at)
            length = -(-here // file.align) * file.align if rung.is_direct else here
            read = _Read(
                load, piece, file, rung, address + at, offset + at, length, here, here - head, load._buffer.piece
            )
            head = 0
            load._reads += 1
            self._bytes_in_flight += read.useful
            (self._blocking if rung is Rung.PREAD else self._queue).append(read)

    # --- the ring --------------------------------------------------------------------------------------------------

    def _open_ring(self) -> Ring | None:
        """The ring, set up by the thread that drives; None when it is refused now although the plan had one."""
        if self._ring is None and self._use_ring:
            try:
                self._ring = Ring(RING_ENTRIES, kernel=self.plan.kernel)
            except StreamError as error:
                if self.plan.io != "auto":
                    raise
                self._use_ring = False
                self.plan.notes.append(f"preadv instead of io_uring: {error.message}")
                return None
            if any(decision.rung is Rung.DIRECT_REGISTERED for decision in self.plan.files):
                try:
                    self._ring.register_buffers(self.pool.pieces())
                except StreamError as error:
                    for decision in self.plan.files:
                        if decision.rung is Rung.DIRECT_REGISTERED:
                            self.plan.demote(decision.file, Rung.DIRECT, error.message)
        return self._ring

    def _push(self) -> None:
        """Move queued reads into the ring as far as it has room, and hand them to the kernel."""
        ring = self._open_ring()
        if ring is None:
            while self._queue:
                self._without_ring(self._queue.popleft())
            return
        while self._queue and ring.room() and len(self._flying) < ring.entries:
            read = self._queue.popleft()
            if read.rung is Rung.DIRECT_REGISTERED and (read.buffer is None or read.buffer >= ring.registered):
                read.rung = Rung.DIRECT
            fd = read.file.direct_fd if read.rung.is_direct else read.file.fd
            index = read.buffer if read.rung is Rung.DIRECT_REGISTERED else None
            self._serial += 1
            self._flying[self._serial] = read  # before the kernel may know of it, so that close() waits for it
            ring.read(fd, read.address + read.at, read.length - read.at, read.offset + read.at, self._serial, index)
        ring.submit()

    def _collect(self, timeout_s: float) -> None:
        """Take completions, wait up to ``timeout_s`` for one, and continue short reads."""
        if self._queue:
            self._push()
        ring = self._ring
        if ring is None:
            return
        found = ring.completions()
        if not found and self._flying:
            ring.submit(wait=1 if timeout_s > 0 else 0, timeout_s=timeout_s)
            found = ring.completions()
        for user_data, result in found:
            read = self._flying.pop(user_data, None)
            if read is not None:
                self._completed(read, result)
        if self._queue:
            self._push()

    def _completed(self, read: _Read, result: int) -> None:
        """One request came back: finish the read, continue it, send it another way, or fail its chunk."""
        if result < 0:
            code = -result
            if code in _RETRY:
                self._queue.append(read)
            elif read.rung.is_direct and code in _DEMOTE and self.plan.io == "auto":
                name = errno.errorcode[code]
                self.plan.demote(read.file, Rung.BUFFERED, f"{name} at offset {read.offset + read.at}")
                read.rung, read.length, read.at = Rung.BUFFERED, read.wanted, 0
                self._queue.append(read)
            else:
                self._finish(read, read_failed(read.file, read.offset + read.at, read.length - read.at, code))
            return
        arrived = read.at + result
        if arrived >= read.wanted:
            self._finish(read, None)
        elif read.rung.is_direct and (result == 0 or result % read.file.align):
            # Cut inside a block: the end of the file, or a device that cannot go on there. The page cache can.
            direct = max(0, arrived - (read.wanted - read.useful))
            self._count(read.rung, direct)
            self._bytes_in_flight -= direct
            read.useful -= direct
            read.rung, read.length, read.at = Rung.BUFFERED, read.wanted, arrived
            self._queue.append(read)
        elif result == 0:
            self._finish(read, shrank(read.file, read.piece.offset, read.piece.bytes))
        else:
            read.at = arrived
            self._queue.append(read)

    # --- without a ring --------------------------------------------------------------------------------------------

    def _without_ring(self, read: _Read) -> None:
        if self.plan.rung(read.file) is not Rung.PREAD and self.plan.rung(read.file) is not Rung.HOT:
            self.plan.demote(read.file, Rung.PREAD, "io_uring refused when the stream began")
        read.rung, read.length, read.at = Rung.PREAD, read.wanted, 0
        self._blocking.append(read)

    def _read_blocking(self, read: _Read) -> None:
        assert read.load._buffer is not None
        start = read.address - read.load._buffer.address
        try:
            with self.pool.view(read.load._buffer) as view:
                read_exactly(read.file, view[start : start + read.wanted], read.offset)
        except StreamError as error:
            self._finish(read, error)
        else:
            self._finish(read, None)

    # --- the end of a read, of a chunk, of everything --------------------------------------------------------------

    def _finish(self, read: _Read, error: StreamError | None) -> None:
        load = read.load
        self._bytes_in_flight -= read.useful
        if error is None:
            self._count(read.rung, read.useful)
        elif load.error is None:
            load.error = error
        load._reads -= 1
        if load._reads == 0:
            self._loading.discard(load.chunk.index)
            self._ready.append(load)

    def _count(self, rung: Rung, count: int) -> None:
        self.taken[rung] = self.taken.get(rung, 0) + count

    def close(self) -> None:
        """Cancel what is in flight, wait until the kernel writes no more, give memory back. Safe after Ctrl-C.

        Chunks that were handed out stay lent until ``release``. A pool into which the kernel may still write, because
        it gave no answer or because this is another thread than the ring's, is retired: it is never unmapped.
        """
        if self._closed:
            return
        self._closed, self._next = True, None
        lent = {id(read.load): read.load for read in (*self._flying.values(), *self._queue, *self._blocking)}
        lent.update((id(load), load) for load in self._ready)
        self._queue.clear()
        self._blocking.clear()
        drained = not self._flying
        if self._ring is not None:
            try:
                drained = self._drain(self._ring)
            finally:
                if not drained:
                    self.pool.retire()
                self._ring.close()
        for load in lent.values():
            load._hot = 0
            self.release(load)
        self._ready.clear()

    def _drain(self, ring: Ring) -> bool:
        """Wait for every read in flight. False when it cannot be known that none writes any more."""
        until = time.monotonic() + CLOSE_TIMEOUT_S
        try:
            if self._flying:
                ring.submit()
                if ring.room() < 2:
                    return False
                ring.cancel_all(_CANCEL)
                ring.nop(_DRAINED, last=True)
            while self._flying and time.monotonic() < until:
                ring.submit(wait=1, timeout_s=_POLL_S)
                for user_data, _ in ring.completions():
                    self._flying.pop(user_data, None)
                    if user_data == _DRAINED:  # also of a read that Ctrl-C kept from ever being queued
                        self._flying.clear()
        except StreamError:
            return False
        return not self._flying

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
