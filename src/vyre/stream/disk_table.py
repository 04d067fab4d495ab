"""A table on disk that programs gather from: pages come into memory when an item has asked for them (decision 34).

An engine that meets a page which is not there leaves a request (ring/layout.py), drops the tile and ends the item with
FaultCode.load_miss. The host serves the requests and publishes the item again. Here is the host's side of that: what a
request may name, where pages lie, which go when others come, how they are read.

Pages leave in the order in which they came, but none that the item which is being run again has wanted. So what it needs
is all there at some time, if it fits at once.

Owns: files of tables, the capability table, frames and which page is in which. Leaves to others: when items run
(runtime/paging), how a program gathers (engines).
"""

from __future__ import annotations

import errno
import mmap
import os
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, Final, Self

import numpy as np
from numpy.typing import NDArray

from vyre.errors import BindError, StreamError
from vyre.program.opcodes import MemType
from vyre.ring.layout import (
    IO_REQUEST_BYTES,
    IO_REQUEST_DTYPE,
    PAGED_BASE,
    PAGED_BYTES,
    PAGED_COUNT,
    PAGED_FRAMES,
    PAGED_HANDLE,
    PAGED_REQUESTS,
    PAGED_SHIFT,
    PAGED_USED,
    REQUESTS_CAPACITY,
    REQUESTS_COUNT,
    REQUESTS_ENTRIES,
    Opcode,
    Right,
)
from vyre.stream.cached import cached
from vyre.stream.forking import not_inherited
from vyre.stream.formats import Column, PathLike, memtype, numpy_dtype
from vyre.stream.pool import PAGE, Buffer, Pool
from vyre.stream.source import ColumnSpec, Source, open_columns, shrank, type_in_files
from vyre.stream.syscalls import direct_alignment
from vyre.stream.uring import Ring, available

DEFAULT_POOL_BYTES: Final = 64 << 20
MAX_PAGES: Final = 1 << 20  # entries of a table's frame directory that a page size is chosen for: 8 MiB
MIN_PAGE_BYTES: Final = 4 << 10
MAX_PAGE_BYTES: Final = 1 << 20
HOT_FRACTION: Final = 0.5  # cached, from here on pages are read through the page cache
DEPTH: Final = 64  # reads in flight
SEE_OUT_S: Final = 5.0  # for reads in flight when a run is interrupted; then the table is closed, its memory kept
REQUESTS: Final = 1 << 15  # requests of one round that are kept; the others are made again


@dataclass(frozen=True, slots=True)
class Capability:
    """What a handle stands for: bytes [start, end) of a table's file, and what may be done with them."""

    table: DiskTable
    start: int
    end: int
    rights: Right


class Capabilities:
    """The host's table of handles: the only things that a request of an engine can name (behaviour 35)."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._granted: dict[int, Capability] = {}
        self._next = 1

    def grant(self, capability: Capability) -> int:
        """A handle, never given out before."""
        with self._lock:
            handle = self._next
            self._next += 1
            self._granted[handle] = capability
            return handle

    def revoke(self, handle: int) -> None:
        with self._lock:
            self._granted.pop(handle, None)

    def check(self, requests: NDArray[Any]) -> tuple[dict[DiskTable, NDArray[np.int64]], str | None]:
        """Pages that requests name, by table, each once; and what is wrong with the first request that may not be served.

        Args:
            requests: IO_REQUEST_DTYPE. Whatever they hold, nothing outside of what was granted is named in the answer.
        """
        wanted: dict[DiskTable, NDArray[np.int64]] = {}
        offsets = requests["offset_low"].astype(np.uint64) | requests["offset_high"].astype(np.uint64) << np.uint64(32)
        if len(bad := np.flatnonzero(requests["opcode"] != Opcode.LOAD_MISS)):
            return {}, f"request {bad[0]} has opcode {requests['opcode'][bad[0]]:#x}, which is no LOAD_MISS"
        for handle in np.unique(requests["handle"]):
            capability = self._granted.get(int(handle))
            if capability is None:
                return {}, f"handle {handle} was not granted"
            if not capability.rights & Right.READ:
                return {}, f"handle {handle} does not give the right to read"
            table = capability.table
            mine = requests["handle"] == handle
            found = np.unique(offsets[mine])
            first, last = capability.start // table.page_bytes, (capability.end - 1) // table.page_bytes
            pages, rest = np.divmod(found, np.uint64(table.page_bytes))
            outside = (rest != 0) | (pages < first) | (pages > last)
            if outside.any() or (requests["bytes"][mine] != table.page_bytes).any():
                at = int(found[int(outside.argmax())])
                return (
                    {},
                    f"handle {handle} is for bytes {capability.start} to {capability.end}, not for a page at {at}",
                )
            wanted[table] = pages.astype(np.int64)
        return wanted, None


class Requests:
    """The list that engines leave requests in while one item runs: words of memory that somebody else holds."""

    def __init__(self, memory: mmap.mmap, at: int, capacity: int) -> None:
        self._words = np.frombuffer(memory, np.uint64, REQUESTS_ENTRIES // 8, at)
        self._words[REQUESTS_CAPACITY // 8] = capacity
        self.capacity = capacity
        self.address: int = self._words.ctypes.data
        self._entries = np.frombuffer(memory, IO_REQUEST_DTYPE, capacity, at + REQUESTS_ENTRIES)

    def clear(self) -> None:
        """Before an item is published; the publish orders it before the engine's first look."""
        self._words[REQUESTS_COUNT // 8] = 0

    def take(self, count: int) -> NDArray[Any]:
        """Copies of the ``count`` requests that an item left, as far as they fitted; its completion has been seen."""
        return self._entries[: min(count, self.capacity)].copy()


class DiskTable:
    """A read-only table whose elements stay in a file, for binding to a table of a program. See ``vyre.disk_table``.

    Attributes:
        name: for messages: the path.
        size: elements.
        page_bytes: how much comes into memory at a time.
        loaded: pages read so far.
        way: how pages are read, in words.
    """

    def __init__(
        self,
        column: ColumnSpec,
        dtype: MemType,
        *,
        capabilities: Capabilities | None = None,
        pool_bytes: int | None = None,
        page_bytes: int | None = None,
        io: str = "auto",
    ) -> None:
        self.dtype = dtype
        self.capabilities = CAPABILITIES if capabilities is None else capabilities
        self._source: Source | None = open_columns({"table": column}, {"table": dtype})
        self._handle = 0
        self._lent: dict[object, Callable[[], None]] = {}
        self._ring: Ring | None = None
        self._pool: Pool | None = None
        try:
            self._open(self._source, pool_bytes or DEFAULT_POOL_BYTES, page_bytes, io)
        except BaseException:
            self.close()
            raise

    def _open(self, source: Source, pool_bytes: int, page_bytes: int | None, io: str) -> None:
        self.size = source.count
        pieces = source.pieces("table", 0, source.count) if source.count else []
        if len(pieces) != 1 or pieces[0].file is None:
            where = "no elements" if not pieces else f"{len(pieces)} pieces"
            raise BindError(
                f"a table on disk is one stretch of one file, and this has {where}",
                fix="concatenate the files, or pass an array",
            )
        piece = pieces[0]
        assert piece.file is not None
        self.file = piece.file
        self.name = self.file.path
        self._start, self._end = piece.offset, piece.offset + piece.bytes
        if piece.offset % self.dtype.size:
            raise BindError(
                f"{self.name}: its elements begin at byte {piece.offset}, no multiple of {self.dtype.size}, so some would "
                "lie in two pages",
                fix="write it as .npy",
            )
        self.page_bytes = page_bytes or _page_bytes(self.file.size)
        if not MIN_PAGE_BYTES <= self.page_bytes <= MAX_PAGE_BYTES or self.page_bytes & (self.page_bytes - 1):
            raise BindError(
                f"page_bytes={self.page_bytes}: it must be a power of two from {MIN_PAGE_BYTES} to {MAX_PAGE_BYTES}"
            )
        pages = -(-self.file.size // self.page_bytes)
        self.frames = min(pool_bytes // self.page_bytes, pages)
        if self.frames < 1:
            raise BindError(
                f"a pool of {pool_bytes} bytes has no room for a page of {self.page_bytes}", fix="give more pool_bytes"
            )
        self._pool = Pool(max(self.frames * self.page_bytes, PAGE))
        self._pool.reserve(self.frames * self.page_bytes)
        self._buffers: list[Buffer] = []
        for _ in range(self.frames):
            buffer = self._pool.lend(self.page_bytes)
            assert buffer is not None, "a frame lies in one piece: pieces are multiples of pages"
            self._buffers.append(buffer)
        # All that engines read or write besides the pages, on pages of its own: it may be registered with a device.
        at_requests = PAGED_BYTES
        at_directory = at_requests + REQUESTS_ENTRIES + REQUESTS * IO_REQUEST_BYTES
        at_used = at_directory + 8 * pages
        memory = self._shared = mmap.mmap(-1, -(-(at_used + pages) // PAGE) * PAGE)
        not_inherited(memory)
        self._block = np.frombuffer(memory, np.uint64, PAGED_BYTES // 8)
        self.requests = Requests(memory, at_requests, REQUESTS)
        self._directory = np.frombuffer(memory, np.uint64, pages, at_directory)
        self._used = np.frombuffer(memory, np.uint8, pages, at_used)
        self._page_of = np.full(self.frames, -1, np.int64)
        self._hand = 0
        self.loaded = 0
        self.address = int(self._block.ctypes.data)
        self._handle = self.capabilities.grant(Capability(self, self._start, self._end, Right.READ))
        for at, value in (
            (PAGED_FRAMES, self._directory.ctypes.data), (PAGED_SHIFT, self.page_bytes.bit_length() - 1),
            (PAGED_BASE, self._start), (PAGED_HANDLE, self._handle), (PAGED_USED, self._used.ctypes.data),
        ):  # fmt: skip
            self._block[at // 8] = value
        self.lock = threading.RLock()
        self.way = self._choose(io)

    def use(self, requests: Requests, counter: int = 0) -> None:
        """An item is run next that leaves its requests there. Hold ``lock`` until it is over, all its rounds included.

        Args:
            counter: address of the u64 that an engine counts them in; 0 takes the list's own.
        """
        self._block[PAGED_REQUESTS // 8] = requests.address
        self._block[PAGED_COUNT // 8] = counter or requests.address + REQUESTS_COUNT
        self._used[:] = 0

    def lend(self, to: object, take: Callable[[list[tuple[int, int]]], Callable[[], None]]) -> None:
        """Have an engine take what it must know of the table's memory, once, until the table is closed.

        Args:
            to: the engine.
            take: called with (address, bytes) of each stretch of whole pages; what it gives ends that again.
        """
        if to not in self._lent:
            assert self._pool is not None
            shared = int(self._block.ctypes.data), len(self._shared)
            self._lent[to] = take([shared, *self._pool.pieces()])

    @property
    def wanted(self) -> int:
        """Pages that the item has wanted so far, as far as its tiles came."""
        return int(np.count_nonzero(self._used))

    @property
    def resident(self) -> int:
        """Pages in memory now."""
        return int(np.count_nonzero(self._page_of >= 0))

    # --- reading --------------------------------------------------------------------------------------------------

    def _choose(self, io: str) -> str:
        """Open the ring and settle how pages are read; the answer says why."""
        if io not in ("auto", "uring", "uring-direct", "pread"):
            raise BindError(f"io={io!r} is no way of reading a table", fix="one of auto, uring, uring-direct, pread")
        self._direct = False
        blocked = "as asked" if io == "pread" else available()
        if blocked is not None:
            if io.startswith("uring"):
                raise StreamError(f"{self.name}: io_uring is impossible here: {blocked}", fix='io="auto"')
            return f"preadv page cache ({blocked})"
        share = cached(self.file.fd, self._start, self._end - self._start).fraction
        why = ""
        if io == "uring-direct" or (io == "auto" and share is not None and share < HOT_FRACTION):
            alignment = direct_alignment(self.file.fd)
            if alignment is None or max(alignment.memory, alignment.offset) > self.page_bytes:
                why = " (O_DIRECT refused: the file system has no direct I/O for such pages)"
                if io == "uring-direct":
                    raise StreamError(f"{self.name}: the file system has no direct I/O for such pages")
            else:
                self.file.direct_fd = os.open(f"/proc/self/fd/{self.file.fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
                self._direct = True
        self._owner = 0
        return f"io_uring {'O_DIRECT' if self._direct else 'page cache'}{why}"

    def _ring_of_this_thread(self) -> Ring | None:
        """A ring belongs to the thread that made it; another one that comes along makes its own."""
        if self.way.startswith("preadv"):
            return None
        me = threading.get_ident()
        if self._ring is not None and self._owner != me:
            self._ring.close()
            self._ring = None
        if self._ring is None:
            self._ring = Ring(DEPTH)
            self._owner = me
            assert self._pool is not None
            try:
                self._ring.register_buffers(self._pool.pieces())
            except StreamError:
                pass  # reads go without; nothing else changes
        return self._ring

    def fetch(self, pages: NDArray[np.int64]) -> None:
        """Bring pages into memory, in place of the oldest.

        Args:
            pages: numbers, each once. With what the item has wanted so far, no more than there are frames.
        Raises:
            StreamError: a page could not be read, or the file is shorter than it was. Other pages are as they were or
                in memory whole.
        """
        pages = pages[self._directory[pages] == 0]
        if not len(pages):
            return
        order = (self._hand + np.arange(self.frames)) % self.frames
        kept = self._used[self._page_of[order]] != 0
        taken = order[~(kept & (self._page_of[order] >= 0))][: len(pages)]
        assert len(taken) == len(pages), "what an item wants fits"
        old = self._page_of[taken]
        self._directory[old[old >= 0]] = 0
        self._page_of[taken] = -1
        self._hand = int(taken[-1] + 1) % self.frames
        self._read(pages, taken)
        self._page_of[taken] = pages
        self._directory[pages] = [self._buffers[frame].address for frame in taken]
        self.loaded += len(pages)

    def _length(self, page: int) -> int:
        return min(self.page_bytes, self.file.size - page * self.page_bytes)

    def _read(self, pages: NDArray[np.int64], frames: NDArray[np.int64]) -> None:
        ring = self._ring_of_this_thread()
        assert self._pool is not None
        if ring is None:
            for page, frame in zip(pages.tolist(), frames.tolist(), strict=True):
                self._blocking(page, self._buffers[frame])
            return
        fd = self.file.direct_fd if self._direct else self.file.fd
        queue = list(zip(pages.tolist(), frames.tolist(), strict=True))
        queue.reverse()
        flying: dict[int, tuple[int, int]] = {}
        failed: list[tuple[int, int]] = []
        try:
            while queue or flying:
                while queue and len(flying) < DEPTH and ring.room():
                    page, frame = queue.pop()
                    buffer = self._buffers[frame]
                    index = buffer.piece if buffer.piece < ring.registered else None
                    flying[frame] = page, frame
                    ring.read(fd, buffer.address, self.page_bytes, page * self.page_bytes, frame, index)
                ring.submit(wait=1, timeout_s=0.05)
                for frame, result in ring.completions():
                    page, _ = flying.pop(frame)
                    if result in (-errno.EINTR, -errno.EAGAIN):
                        queue.append((page, frame))
                    elif result < self._length(page):  # short, or refused: the blocking way finds out why
                        failed.append((page, frame))
        except BaseException:
            self._see_out(ring, flying)
            raise
        for page, frame in failed:
            self._blocking(page, self._buffers[frame])

    def _see_out(self, ring: Ring, flying: dict[int, tuple[int, int]]) -> None:
        """Interrupted: wait for what is in flight, so that no frame gets another page while the system writes to it."""
        until = time.monotonic() + SEE_OUT_S
        while flying and time.monotonic() < until:
            ring.submit(wait=1, timeout_s=0.05)
            for frame, _ in ring.completions():
                flying.pop(frame, None)
        if flying:
            assert self._pool is not None
            self._pool.retire()  # never unmapped (decision 32)
            self.close()

    def _blocking(self, page: int, buffer: Buffer) -> None:
        assert self._pool is not None
        view = self._pool.view(buffer)
        length, done, at = self._length(page), 0, page * self.page_bytes
        try:
            while done < length:
                try:
                    got = os.preadv(self.file.fd, [view[done:length]], at + done)
                except OSError as error:
                    name = errno.errorcode.get(error.errno or 0, str(error.errno))
                    raise StreamError(f"{self.name}: {name} ({error.strerror}) at offset {at + done}") from None
                if got == 0:
                    raise shrank(self.file, at + done, length - done)
                done += got
        finally:
            view.release()

    # --- the end --------------------------------------------------------------------------------------------------

    def array(self) -> NDArray[Any]:
        """All elements in memory, for an engine that knows no pages."""
        assert self._source is not None
        data = bytearray(self._end - self._start)
        view, done = memoryview(data), 0
        while done < len(data):
            got = os.preadv(self.file.fd, [view[done:]], self._start + done)
            if got == 0:
                raise shrank(self.file, self._start + done, len(data) - done)
            done += got
        return np.frombuffer(data, numpy_dtype(self.dtype))

    def close(self) -> None:
        """Give file and memory back. No item that uses it may be running. Calling it again does nothing."""
        self.capabilities.revoke(self._handle)
        try:
            while self._lent:
                self._lent.popitem()[1]()
        finally:
            self._give_back()

    def _give_back(self) -> None:
        if self._ring is not None:
            self._ring.close()
            self._ring = None
        if self._pool is not None:
            self._pool.close()
            self._pool = None
        if self._source is not None:
            self._source.close()
            self._source = None

    @property
    def closed(self) -> bool:
        return self._source is None

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def __fspath__(self) -> str:
        return self.name

    def __repr__(self) -> str:
        return f"<vyre table of {self.size:,} {self.dtype.name} in {self.name}>"


CAPABILITIES: Final = Capabilities()
"""Handles of this process."""


def disk_table(
    path: PathLike | Column,
    dtype: Any = None,
    *,
    pool_bytes: int = DEFAULT_POOL_BYTES,
    page_bytes: int | None = None,
    io: str = "auto",
) -> DiskTable:
    """A table that stays in its file; pages come into memory as programs gather from it, and stay for later runs.

    Give it to ``Session.run`` for a read-only table of a program whose inputs are arrays. A plain path does the same
    for one run.

    Args:
        path: one file: ``.npy``, Arrow IPC, or raw elements with ``dtype``; a Column names one of several columns.
        dtype: memory type of the elements, where the file does not say it.
        pool_bytes: host memory for pages, all of it taken now. A tile of 1,024 elements must find room for all pages
            that it gathers from.
        page_bytes: what is read at a time, a power of two from 4 KiB to 1 MiB; None takes the smallest with which the
            directory of pages stays below 8 MiB.
        io: "auto", or one of "uring-direct", "uring", "pread", which is then taken or refused.
    Raises:
        BindError: the file is no single stretch of such elements, or memory has no room for a page.
        StreamError: it cannot be opened, or not be read in the way asked for.
    """
    column = path if isinstance(path, Column) else Column(path)
    if dtype is not None and column.dtype is None:
        column = Column(column.paths, memtype(dtype))
    kind = type_in_files("table", column)
    if kind is None:
        raise BindError(
            f"{column.paths[0]}: nothing says what its elements are", fix="pass dtype, for instance vyre.f32"
        )
    return DiskTable(column, kind, pool_bytes=pool_bytes, page_bytes=page_bytes, io=io)


def _page_bytes(size: int) -> int:
    """The smallest page with which the directory stays small."""
    page = MIN_PAGE_BYTES
    while page < MAX_PAGE_BYTES and size // page > MAX_PAGES:
        page *= 2
    return page
