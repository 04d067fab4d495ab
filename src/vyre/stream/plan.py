"""Which way the bytes of each file come in, and why: asked, tried, announced.

Owns: the ladder, the test read before a rung is trusted, the lines that say what was chosen and what was refused.
Leaves to others: the reads themselves (reader), what a refusal of io_uring means (uring).

A file that is in the page cache is left to the worker that runs its tiles, which reads it into its own cache (one copy
at 31 GB/s a core; io_uring gains nothing there). A cold file is read around the page cache by io_uring, where the file
system vouches for direct I/O; else through it.
"""

from __future__ import annotations

import errno
import os
from dataclasses import dataclass, field
from enum import Enum
from typing import Final, Literal, NamedTuple, get_args

from vyre.errors import BindError, StreamError
from vyre.stream.cached import Cached, cached
from vyre.stream.pool import PAGE, Pool
from vyre.stream.source import TILE, Extent, File, Source
from vyre.stream.syscalls import KERNEL, Kernel, direct_alignment
from vyre.stream.uring import Ring, available

Io = Literal["auto", "uring", "uring-direct", "pread", "hot"]

HOT_FRACTION: Final = 0.5  # cached, from here on a file is read through the page cache
SMALL_BYTES: Final = 4 << 20  # a source smaller than this is read before a ring would be set up
DEPTH_BYTES: Final = 8 << 20  # in flight, at least (decision 32)
DEPTH_READS: Final = 8
RING_ENTRIES: Final = 64
TEST_BYTES: Final = 1 << 16  # of each of the three test reads
TEST_TIMEOUT_S: Final = 5.0


class Rung(Enum):
    """A way in. The value is what plans and reports call it."""

    DIRECT_REGISTERED = "io_uring O_DIRECT registered"
    DIRECT = "io_uring O_DIRECT"
    BUFFERED = "io_uring page cache"
    PREAD = "preadv page cache"
    HOT = "worker page cache"
    MEMORY = "in memory"
    # A GPU's own, which the pump does not know:
    COPIED = "preadv threads page cache"  # into memory that a GPU reads
    MAPPED = "mapped, read in place"  # by a GPU, out of the page cache
    CUFILE = "cuFile GPUDirect"
    CUFILE_COMPAT = "cuFile compat mode"  # through host memory, whatever its name promises

    def __init__(self, words: str) -> None:
        self.is_direct = "O_DIRECT" in words  # around the page cache
        self.is_uring = words.startswith("io_uring")
        self.copies = "page cache" in words or "compat" in words  # a processor copies every byte once


_COLD: Final = (Rung.DIRECT_REGISTERED, Rung.DIRECT, Rung.BUFFERED, Rung.PREAD)
_LADDERS: Final[dict[str, tuple[Rung, ...]]] = {
    "auto": _COLD,
    "uring": (Rung.BUFFERED,),
    "uring-direct": (Rung.DIRECT_REGISTERED, Rung.DIRECT),
    "pread": (Rung.PREAD,),
    "hot": (Rung.HOT,),
}


class Refusal(NamedTuple):
    """A rung that was tried and not taken."""

    rung: Rung
    cause: str


@dataclass(slots=True, eq=False)
class FilePlan:
    """The decision for what one strip has in one file."""

    strip: str
    extent: Extent
    cached: Cached
    rung: Rung
    reason: str
    refusals: list[Refusal] = field(default_factory=list)

    @property
    def file(self) -> File:
        return self.extent.file


class Plan:
    """How a source is read.

    Attributes:
        files: one decision a file, in the order of columns and files.
        chunk_elements: longest chunk.
        frame_bytes: memory that one chunk needs at most.
        chunks_in_flight: chunks whose reads are outstanding at a time, at most.
        notes: what else a reader of ``explain()`` should know.
    """

    def __init__(self, source: Source, io: Io, kernel: Kernel) -> None:
        self.io = io
        self.kernel = kernel
        self.files: list[FilePlan] = []
        self.chunk_elements = TILE
        self.frame_bytes = 0
        self.chunks_in_flight = 1
        self.notes = list(source.notes)
        self._source = source
        self._rungs: dict[File, FilePlan] = {}

    @classmethod
    def choose(
        cls,
        source: Source,
        pool: Pool,
        *,
        io: Io = "auto",
        chunk_elements: int | None = None,
        kernel: Kernel = KERNEL,
    ) -> Plan:
        """Decide for every file, trying each rung that is taken.

        Args:
            pool: what chunks will be read into; mapped here as far as cold files need it.
            io: "auto" asks the page cache; any other name is taken or refused with the reason, never replaced.
                "uring" reads through the page cache, "uring-direct" around it, "pread" without io_uring, "hot" leaves
                the files to the workers.
            chunk_elements: longest chunk, rounded up to a multiple of 1,024; None chooses.
        Raises:
            BindError: no such way, or a chunk that cannot be.
            StreamError: the way asked for is impossible here, or a chunk does not fit into the pool.
        """
        if io not in get_args(Io):
            raise BindError(f"io={io!r} is no way of reading", fix=f"one of {', '.join(get_args(Io))}")
        if chunk_elements is not None and chunk_elements < 1:
            raise BindError(f"a chunk of {chunk_elements} elements", fix="give at least 1; 1,024 is the smallest cut")
        plan = cls(source, io, kernel)
        asked = [
            (name, extent, cached(extent.file.fd, extent.offset, extent.end - extent.offset))
            for name, strip in source.strips.items()
            for extent in strip.extents()
        ]
        hot = {extent.file: reason for _, extent, found in asked if (reason := _hot_reason(io, source, found))}
        cold = [name for name, extent, _ in asked if extent.file not in hot]
        plan._size(pool, len(hot) == len(asked), chunk_elements)
        with _Trial(pool, kernel, plan.pool_bytes if cold else 0) as trial:
            for name, extent, found in asked:
                reason = hot.get(extent.file)
                if reason is not None:
                    decision = FilePlan(name, extent, found, Rung.HOT, reason)
                else:
                    decision = _climb(name, extent, found, source, _LADDERS[io], trial)
                plan.files.append(decision)
                plan._rungs[extent.file] = decision
        plan._note_seams()
        return plan

    def _note_seams(self) -> None:
        """Say what a direct way cannot take: blocks that two pieces of a column would have to share."""
        direct = {decision.strip for decision in self.files if decision.rung.is_direct}
        for name in direct:
            strip = self._source.strips[name]
            if strip.scattered:
                block = max((segment.file.align for segment in strip.segments if segment.file is not None), default=1)
                bent = sum(1 for s in strip.segments if s.offset % block or s.elements * strip.width % block)
                if bent:
                    self.notes.append(
                        f"{name}: {bent} of {len(strip.segments)} ranges do not begin and end at blocks of {block} bytes: "
                        "they and what follows them in a chunk come through the page cache"
                    )
        if any(len(self._source.files[name]) > 1 and not self._source.strips[name].scattered for name in direct):
            self.notes.append("around the ends of files inside a column: page cache, blocks of two files cannot meet")

    def _size(self, pool: Pool, all_hot: bool, chunk_elements: int | None) -> None:
        """Settle the length of a chunk and how many are in flight."""
        source = self._source
        wanted = chunk_elements or source.chunk_elements(hot=all_hot)
        self.chunk_elements = max(TILE, -(-wanted // TILE) * TILE)
        share = 1 if chunk_elements else 4  # a chosen length leaves room to read ahead
        while self._frame() * share > pool.limit and not chunk_elements and self.chunk_elements > TILE:
            self.chunk_elements = max(TILE, self.chunk_elements // 2 // TILE * TILE)
        self.frame_bytes = self._frame()
        if not all_hot and self.frame_bytes > pool.limit:
            raise StreamError(
                f"a chunk of {self.chunk_elements} elements needs {self.frame_bytes} bytes, the pool has {pool.limit}",
                fix="a shorter chunk, or a larger pool_bytes",
            )
        columns = max(1, sum(1 for files in source.files.values() if files))
        wanted_chunks = max(-(-DEPTH_BYTES // max(1, self.frame_bytes)), -(-DEPTH_READS // columns))
        self.chunks_in_flight = max(1, min(wanted_chunks, pool.limit // max(1, self.frame_bytes)))

    def _frame(self) -> int:
        """Bytes of one chunk in the pool: each strip that has files, widened at both ends to whole blocks."""
        total = 0
        for name, strip in self._source.strips.items():
            if self._source.files[name]:
                count = min(self.chunk_elements, self._source.count)
                total += -(-count * strip.width // PAGE) * PAGE + 2 * PAGE
        return total

    @property
    def pool_bytes(self) -> int:
        """What the pool should hold."""
        return self.frame_bytes * self.buffers

    @property
    def buffers(self) -> int:
        """Chunks that the pool should have room for: those in flight and as many again at work, or all there are."""
        return min(2 * self.chunks_in_flight, -(-self._source.count // self.chunk_elements) + 2)

    def rung(self, file: File) -> Rung:
        """The way that was chosen for a file of this source."""
        return self._rungs[file].rung

    def demote(self, file: File, rung: Rung, cause: str) -> None:
        """Take a lower rung for the rest of a file because a read was refused, and keep the reason."""
        decision = self._rungs[file]
        decision.refusals.append(Refusal(decision.rung, f"while reading: {cause}"))
        decision.rung = rung

    @property
    def all_hot(self) -> bool:
        """True where no file is read but by workers."""
        return all(decision.rung is Rung.HOT for decision in self.files)

    def explain(self) -> str:
        """What was chosen for each file and why, one line each; files decided alike are counted on one line."""
        groups: dict[tuple[str, Rung, str, tuple[Refusal, ...]], list[FilePlan]] = {}
        for decision in self.files:
            key = (decision.strip, decision.rung, decision.reason, tuple(decision.refusals))
            groups.setdefault(key, []).append(decision)
        lines = []
        for decisions in groups.values():
            if len(decisions) > 4:
                lines.append(self._line(decisions))
            else:
                lines.extend(self._line([decision]) for decision in decisions)
        for name in self._source.strips:
            if not self._source.files[name]:
                lines.append(f"{name}: in memory, read where it is")
        return "\n".join(lines + self.notes)

    def _line(self, decisions: list[FilePlan]) -> str:
        first = decisions[0]
        size = sum(d.extent.bytes for d in decisions)
        who = first.file.path if len(decisions) == 1 else f"{first.file.path} and {len(decisions) - 1} more files"
        if any(d.file.path == first.file.path and d.strip != first.strip for d in self.files):
            who = f"{first.strip}: {who}"  # several columns of one file
        how = first.rung.value
        if first.rung in _COLD:
            chunk = min(self.chunk_elements, max(self._source.count, 1)) * self._source.strips[first.strip].width
            how += f" {self.chunks_in_flight}x{_bytes(chunk)}"
        else:
            how += f" ({first.reason})"
        refused: dict[str, list[str]] = {}
        for rung, cause in first.refusals:
            refused.setdefault(cause, []).append(rung.value)
        why = "; ".join(f"{', '.join(rungs)} refused: {cause}" for cause, rungs in refused.items())
        share = f"{first.cached}" if len(decisions) == 1 else _shares(decisions)
        return f"{who} {_bytes(size)}, {share}: {how}" + (f" ({why})" if why else "")


def _shares(decisions: list[FilePlan]) -> str:
    known = [d.cached.fraction for d in decisions if d.cached.fraction is not None]
    return f"{100 * min(known):.0f} to {100 * max(known):.0f} % cached" if known else str(decisions[0].cached)


def _bytes(count: int) -> str:
    for unit, size in (("GiB", 1 << 30), ("MiB", 1 << 20), ("KiB", 1 << 10)):
        if count >= size:
            return f"{count // size} {unit}" if count % size == 0 and unit != "GiB" else f"{count / size:.1f} {unit}"
    return f"{count} bytes"


def _hot_reason(io: Io, source: Source, found: Cached) -> str | None:
    """Why the workers should read this file themselves, or None when they should not."""
    if io == "hot":
        return "as asked"
    if io != "auto":
        return None
    if source.bytes < SMALL_BYTES:
        return f"all columns together are smaller than {_bytes(SMALL_BYTES)}"
    if found.fraction is None:
        return "through the page cache is never far slower"
    return "in the page cache" if found.fraction >= HOT_FRACTION else None


def _climb(
    name: str, extent: Extent, found: Cached, source: Source, ladder: tuple[Rung, ...], trial: _Trial
) -> FilePlan:
    """Take the first rung of ``ladder`` that works for this file; keep why the others did not."""
    alignment = source.strips[name].alignment
    refusals: list[Refusal] = []
    for rung in ladder:
        cause = trial.refuses(rung, extent, alignment)
        if cause is None:
            return FilePlan(name, extent, found, rung, "", refusals)
        refusals.append(Refusal(rung, cause))
    causes = "; ".join(dict.fromkeys(f"{refusal.cause}" for refusal in refusals))
    raise StreamError(
        f"{extent.file.path}: {ladder[-1].value} is impossible here: {causes}", fix='io="auto" takes another way'
    )


_TRUSTED: Final[set[tuple[int, Rung]]] = set()  # devices whose test read was right on this rung, in this process


class _Trial:
    """One ring and a few buffers to try rungs with."""

    def __init__(self, pool: Pool, kernel: Kernel, pool_bytes: int) -> None:
        self._pool = pool
        self._kernel = kernel
        self._pool_bytes = pool_bytes
        self._ring: Ring | None = None
        self._blocked: str | None = None
        self._unregistered: str | None = None
        self._drained = True

    def __enter__(self) -> _Trial:
        if self._pool_bytes:
            self._pool.reserve(max(self._pool_bytes, 4 * TEST_BYTES))
        return self

    def __exit__(self, *_: object) -> None:
        if not self._drained:
            self._pool.retire()
        if self._ring is not None:
            self._ring.close()

    def refuses(self, rung: Rung, extent: Extent, alignment: int) -> str | None:
        """Why a rung cannot be taken for a file whose elements have to be aligned so, or None."""
        if rung is Rung.PREAD:
            return None
        self._set_up()
        if self._ring is None:
            return self._blocked or "io_uring is blocked"
        if rung.is_direct:
            cause = _open_direct(extent, alignment)
            if cause is not None:
                return cause
        if rung is Rung.DIRECT_REGISTERED and self._unregistered is not None:
            return self._unregistered
        key = (extent.file.device, rung)
        if self._kernel is KERNEL and key in _TRUSTED:
            return None
        cause = self._test_read(self._ring, rung, extent.file)
        if cause is None and self._kernel is KERNEL:
            _TRUSTED.add(key)
        return cause

    def _set_up(self) -> None:
        if self._ring is not None or self._blocked is not None:
            return
        self._blocked = available(self._kernel)
        if self._blocked is not None:
            return
        self._ring = Ring(8, kernel=self._kernel)
        try:
            self._ring.register_buffers(self._pool.pieces())
        except StreamError as error:
            self._unregistered = error.message

    def _test_read(self, ring: Ring, rung: Rung, file: File) -> str | None:
        """Read the beginning, the middle and the end at once and compare with ``os.pread``.

        The second and third buffer start one page into a registered buffer and behind others: Linux 6.5 read wrong
        bytes there (liburing issue 994).
        """
        buffer = self._pool.lend(4 * TEST_BYTES)
        if buffer is None:
            return "the pool has no room for a test read"
        fd, align = (file.direct_fd, file.align) if rung.is_direct else (file.fd, 1)
        last = max(0, file.size - 1) // align * align
        places = [0, file.size // 2 // align * align, max(0, last - TEST_BYTES // align * align // 2)]
        index = buffer.piece if rung is Rung.DIRECT_REGISTERED else None
        targets = [PAGE + at * TEST_BYTES for at in range(3)]
        results: dict[int, int] = {}
        try:
            self._drained = False
            for at, (place, target) in enumerate(zip(places, targets, strict=True)):
                ring.read(fd, buffer.address + target, TEST_BYTES, place, at, index)
            for _ in range(100):
                ring.submit(wait=3 - len(results), timeout_s=TEST_TIMEOUT_S / 100)
                results.update(ring.completions())
                if len(results) == 3:
                    break
            else:
                return f"test read: no answer within {TEST_TIMEOUT_S:.0f} s"
            self._drained = True
        except StreamError as error:
            self._drained = not results and ring.room() == ring.entries - 3  # refused before the kernel took one
            return error.message
        view = self._pool.view(buffer)
        try:
            for at, (place, target) in enumerate(zip(places, targets, strict=True)):
                if results[at] < 0:
                    code = -results[at]
                    return f"test read: {errno.errorcode.get(code, code)} ({os.strerror(code)}) at offset {place}"
                try:
                    expected = os.pread(file.fd, results[at], place)
                except OSError as error:
                    return f"test read: preadv gave {errno.errorcode.get(error.errno or 0, error.errno)}"
                if (results[at] == 0 and place < file.size) or view[target : target + results[at]] != expected:
                    return f"test read: other bytes than preadv's at offset {place}"
        finally:
            view.release()
            self._pool.give_back(buffer)
        return None


def _open_direct(extent: Extent, alignment: int) -> str | None:
    """Open a file's second descriptor for direct I/O. Returns why it has none, or None."""
    file = extent.file
    if extent.offset % alignment:
        return (
            f"its elements begin at byte {extent.offset}, no multiple of {alignment}: whole blocks would misalign them"
        )
    if file.direct_fd >= 0:
        return None
    blocks = direct_alignment(file.fd)
    if blocks is None:
        return "statx reports no DIOALIGN: the file system has no direct I/O"
    if blocks.memory > PAGE:
        return f"direct I/O wants memory aligned to {blocks.memory} bytes, pages have {PAGE}"
    try:
        # Through /proc, so that it is the same file even when the path has been replaced.
        file.direct_fd = os.open(f"/proc/self/fd/{file.fd}", os.O_RDONLY | os.O_DIRECT | os.O_CLOEXEC)
    except OSError as error:
        return f"opening with O_DIRECT: {errno.errorcode.get(error.errno or 0, error.errno)}"
    file.align = max(blocks.offset, PAGE)
    return None
