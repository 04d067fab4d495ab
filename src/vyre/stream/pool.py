"""Memory that chunks arrive in: mapped and faulted once, lent and given back, bounded.

Owns: the mappings and which pages are lent. Leaves to others: registering them (uring through reader), filling them.

Fresh pages cost more than reading into them (1.7 GB/s against 31 to 39 GB/s), so the pool faults them before the first
read and lends the same ones again. Its size is a stream's back-pressure.
"""

from __future__ import annotations

import bisect
import mmap
import threading
from typing import Final, NamedTuple, Self

import numpy as np

from vyre.errors import StreamError
from vyre.stream.forking import generation, not_inherited

PAGE: Final = mmap.PAGESIZE
PIECE_MAX: Final = 1 << 30  # what the kernel registers as one buffer
DEFAULT_POOL_BYTES: Final = 32 << 20
_MADV_POPULATE_WRITE: Final = 23  # Linux 5.14
_RETIRED: Final[list[mmap.mmap]] = []  # mappings that live as long as the process


class Buffer(NamedTuple):
    """Lent memory: ``bytes`` from ``address`` on, whole pages, inside piece number ``piece`` of the pool."""

    address: int
    bytes: int
    piece: int
    offset: int


class Pool:
    """At most ``pool_bytes`` of anonymous memory, mapped when first needed, not inherited by forked children.

    Thread-safe. Attributes: limit: bytes, rounded down to pages; bytes: mapped so far; lent: lent now.
    """

    def __init__(self, pool_bytes: int = DEFAULT_POOL_BYTES) -> None:
        if pool_bytes < PAGE:
            raise StreamError(
                f"a pool of {pool_bytes} bytes has no room for a page of {PAGE}", fix="give more pool_bytes"
            )
        self.limit = pool_bytes // PAGE * PAGE
        self.bytes = 0
        self.lent = 0
        self._generation = generation()
        self._lock = threading.Lock()
        self._pieces: list[mmap.mmap] = []
        self._addresses: list[int] = []
        self._retired = 0  # the first so many pieces are no longer lent
        self._free: list[list[tuple[int, int]]] = []  # per piece: sorted (offset, bytes), never touching

    def reserve(self, wanted: int) -> None:
        """Map and fault memory until ``wanted`` bytes, or the limit, are there.

        Raises:
            StreamError: the machine has no memory for it.
        """
        with self._lock:
            wanted = min(-(-wanted // PAGE) * PAGE, self.limit)
            while self.bytes < wanted:
                length = min(wanted - self.bytes, PIECE_MAX)
                try:
                    piece = mmap.mmap(-1, length, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
                except OSError as error:
                    raise StreamError(
                        f"no memory for a pool of {wanted >> 20} MiB: {error.strerror}", fix="give a smaller pool_bytes"
                    ) from None
                not_inherited(piece)
                _advise(piece, getattr(mmap, "MADV_HUGEPAGE", 14))
                if not _advise(piece, _MADV_POPULATE_WRITE):
                    np.frombuffer(piece, np.uint8)[::PAGE] = 0
                self._pieces.append(piece)
                self._addresses.append(np.frombuffer(piece, np.uint8).__array_interface__["data"][0])
                self._free.append([(0, length)])
                self.bytes += length

    def pieces(self) -> list[tuple[int, int]]:
        """(address, bytes) of each mapping: what is registered with a ring, in the order of ``Buffer.piece``."""
        with self._lock:
            return [(address, len(piece)) for address, piece in zip(self._addresses, self._pieces, strict=True)]

    def lend(self, wanted: int) -> Buffer | None:
        """Lend ``wanted`` bytes, rounded up to pages, or None when there are none now. Nothing is cleared."""
        wanted = -(-wanted // PAGE) * PAGE
        with self._lock:
            for piece, free in enumerate(self._free):
                for at, (offset, length) in enumerate(free):
                    if length >= wanted:
                        free[at : at + 1] = [(offset + wanted, length - wanted)] if length > wanted else []
                        self.lent += wanted
                        return Buffer(self._addresses[piece] + offset, wanted, piece, offset)
        return None

    def give_back(self, buffer: Buffer) -> None:
        """Take a lent buffer back. Nobody may touch it any more."""
        with self._lock:
            if buffer.piece < self._retired:
                return
            free = self._free[buffer.piece]
            start, end = buffer.offset, buffer.offset + buffer.bytes
            at = bisect.bisect_left(free, (start, 0))
            if at < len(free):
                after, length = free[at]
                assert end <= after, "given back twice"
                if end == after:
                    end += length
                    del free[at]
            if at:
                before, length = free[at - 1]
                assert before + length <= start, "given back twice"
                if before + length == start:
                    start, at = before, at - 1
                    del free[at]
            free.insert(at, (start, end - start))
            self.lent -= buffer.bytes

    def view(self, buffer: Buffer) -> memoryview:
        """The bytes of a lent buffer, writable. The mapping lives as long as any view of it."""
        return memoryview(self._pieces[buffer.piece])[buffer.offset : buffer.offset + buffer.bytes]

    def retire(self) -> None:
        """Never lend nor unmap what is mapped now: the operating system may still write into it (decision 32).

        ``reserve`` maps new memory in its place.
        """
        with self._lock:
            _RETIRED.extend(self._pieces)
            self._retired = len(self._pieces)
            self._free = [[] for _ in self._free]
            self.bytes = self.lent = 0

    @property
    def retired(self) -> bool:
        """Whether memory of it was retired."""
        return self._retired > 0

    def close(self) -> None:
        """Unmap. No read may be in flight. A mapping with a view alive goes when that view goes."""
        if self._generation != generation():
            return
        with self._lock:
            pieces, self._pieces, self._addresses, self._free = self._pieces[self._retired :], [], [], []
            self.bytes = self.lent = self._retired = 0
        for piece in pieces:
            try:
                piece.close()
            except BufferError:
                pass

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _advise(piece: mmap.mmap, advice: int) -> bool:
    try:
        piece.madvise(advice)
    except (OSError, ValueError):
        return False
    return True
