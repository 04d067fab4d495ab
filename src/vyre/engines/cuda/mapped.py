"""Files that the kernel reads where they lie, in the page cache: mapped, registered read-only, and kept registered.

Registering costs 20 to 36 ms a GiB, copying with every core about as long; so the first read of a file is copied and the
next ones are mapped, at the rate of the bus and with no core at work. Unregistering would wait for the stay to end, so
windows stay registered until the engine closes or other files need the room.

Nobody but the GPU touches the mapping: it reads pinned pages, so a file that is cut meanwhile raises no signal. Its old
pages are read then, and its length is compared before a result is given out.

Owns: mappings and their registration, which files are still the same. Leaves to others: when a file is mapped (ways),
what chunks become (chunks).
"""

from __future__ import annotations

import mmap
import os
import threading
import time
from collections import deque
from dataclasses import dataclass, field
from typing import Final

import numpy as np

from vyre.engines.cuda.driver import Device
from vyre.engines.cuda.feed import Arrived
from vyre.engines.cuda.memory import Pool, view
from vyre.errors import StreamError
from vyre.stream.forking import not_inherited
from vyre.stream.plan import Plan, Rung
from vyre.stream.pread import read_exactly
from vyre.stream.source import File, Piece, Source, shrank

WINDOW_BYTES: Final = 64 << 20  # registered at a time: 1 to 4 ms
AUTO_BYTES: Final = 16 << 20  # a smaller file is copied, however often it is read
AUTO_FRACTION: Final = 0.95  # cached, from here on; registering would read the rest page by page
SHARE: Final = 4  # at most one part in so many of this machine's memory is kept registered
SEATS: Final = 4  # chunks with the kernel at a time; with more of them its address translations get in each other's way
_SETTLED_NS: Final = (
    100_000_000  # a file written to just before may have been cut and grown within one tick of its clock
)
_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)


@dataclass(frozen=True, slots=True)
class _Version:
    """What a file was when it was mapped. Any difference may mean other pages."""

    size: int
    modified_ns: int
    changed_ns: int


@dataclass(slots=True, eq=False)
class _Mapping:
    """One file, mapped as a whole, with the windows that are registered."""

    map: mmap.mmap
    address: int
    version: _Version
    made_ns: int
    windows: set[int] = field(default_factory=set)
    users: int = 0
    used: int = 0

    @property
    def registered_bytes(self) -> int:
        return sum(min(WINDOW_BYTES, self.version.size - w * WINDOW_BYTES) for w in self.windows)


class MappedFiles:
    """The mapped files of one engine. Thread-safe."""

    def __init__(self, device: Device, limit_bytes: int | None = None) -> None:
        self._device = device
        self.limit_bytes = limit_bytes or os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") // SHARE
        self._lock = threading.RLock()
        self._files: dict[tuple[int, int], _Mapping] = {}
        self._seen: dict[tuple[int, int], _Version] = {}
        self._clock = 0

    @property
    def registered_bytes(self) -> int:
        with self._lock:
            return sum(mapping.registered_bytes for mapping in self._files.values())

    def was_read(self, file: File) -> bool:
        """Whether this same version of a file was read, or mapped, before. Notes that it is now."""
        key, version = (file.device, file.inode), _version(file.fd)
        with self._lock:
            before = self._seen.get(key)
            if len(self._seen) > 4096:
                self._seen.clear()
            self._seen[key] = version
            return before == version

    def is_registered(self, file: File) -> bool:
        """Whether all of it is registered, and is still what it was."""
        with self._lock:
            mapping = self._files.get((file.device, file.inode))
            return (
                mapping is not None
                and _is_still(mapping, _version(file.fd))
                and len(mapping.windows) == -(-mapping.version.size // WINDOW_BYTES)
            )

    def open(self, file: File) -> _Mapping:
        """A file's mapping, until ``give_back``: the one that is kept, or a new one.

        Raises:
            StreamError: there is no room among the registered files.
        """
        key, version = (file.device, file.inode), _version(file.fd)
        with self._lock:
            mapping = self._files.get(key)
            if mapping is not None and not _is_still(mapping, version):
                if mapping.users:
                    raise StreamError(f"{file.path}: was changed while another stream reads it in place")
                self._drop(key)
                mapping = None
            if mapping is None:
                self._make_room(version.size)
                made = mmap.mmap(file.fd, version.size, mmap.MAP_SHARED | _NORESERVE, mmap.PROT_READ)
                not_inherited(made)
                address = int(np.frombuffer(made, np.uint8).ctypes.data)
                mapping = self._files[key] = _Mapping(made, address, version, time.time_ns())
            mapping.users += 1
            self._clock += 1
            mapping.used = self._clock
            return mapping

    def _make_room(self, size: int) -> None:
        idle = sorted((m.used, key) for key, m in self._files.items() if not m.users)
        while idle and self.registered_bytes + size > self.limit_bytes:
            self._drop(idle.pop(0)[1])
        if self.registered_bytes + size > self.limit_bytes:
            raise StreamError(
                f"{size:,} bytes more would be registered than the {self.limit_bytes:,} that are allowed: a {SHARE}th of "
                "this machine's memory"
            )

    def register(self, mapping: _Mapping, window: int) -> None:
        """Register one window, if it is not.

        Raises:
            StreamError: CUDA refuses.
        """
        if window in mapping.windows:
            return
        at = window * WINDOW_BYTES
        size = min(WINDOW_BYTES, mapping.version.size - at)
        whole = -(-size // mmap.PAGESIZE) * mmap.PAGESIZE
        device = self._device.register(mapping.address + at, whole, read_only=True)
        if device != mapping.address + at:  # windows would not lie side by side for the kernel
            self._device.unregister(mapping.address + at)
            raise StreamError("this device sees registered memory at other addresses than the host")
        with self._lock:
            mapping.windows.add(window)

    def give_back(self, mapping: _Mapping) -> None:
        """A stream is done with it. It stays registered."""
        with self._lock:
            mapping.users -= 1

    def _drop(self, key: tuple[int, int]) -> None:
        mapping = self._files.pop(key)
        for window in mapping.windows:
            self._device.unregister(mapping.address + window * WINDOW_BYTES)
        mapping.map.close()

    def close(self) -> None:
        """The kernel has left."""
        with self._lock:
            for key, mapping in list(self._files.items()):
                if not mapping.users:
                    self._drop(key)


class MappedFeed:
    """Chunks of files that are read in place: full as soon as their windows are registered.

    Args:
        pinned, lock: memory for chunks that cross from one file into the next, which are put together there.
    Raises:
        StreamError: the first window is refused; the message says by whom and why.
    """

    in_device_memory = False

    def __init__(self, source: Source, plan: Plan, files: MappedFiles, pinned: Pool, lock: threading.RLock) -> None:
        self.source = source
        self.plan = plan
        self.seats = SEATS
        self._files = files
        self._pinned = pinned
        self._lock = lock
        self._mappings: dict[File, _Mapping] = {}
        self._ready: deque[Arrived] = deque()
        self._changed = threading.Condition()
        self._complete = False
        self._stop = False
        self._bytes = {Rung.MAPPED: 0, Rung.COPIED: 0}
        self._joined: dict[int, list[int]] = {}  # by chunk: addresses of pieces put together
        self._devices: dict[int, int] = {}  # where the kernel sees them
        self._failed: BaseException | None = None
        self.registered_s = 0.0
        try:
            for handles in source.files.values():
                for file in handles:
                    if file not in self._mappings:
                        self._mappings[file] = files.open(file)
            first = next(source.chunks(plan.chunk_elements), None)
            if first is not None:
                for name in source.strips:
                    self._register(source.pieces(name, first.first, first.count)[0])
        except BaseException:
            self._give_back()
            raise
        self._thread = threading.Thread(target=self._run, name="vyre-registrar", daemon=True)
        self._thread.start()

    @property
    def chunk_elements(self) -> int:
        return self.plan.chunk_elements

    @property
    def finished(self) -> bool:
        return self._complete and not self._ready

    def _register(self, piece: Piece) -> None:
        assert piece.file is not None
        mapping = self._mappings[piece.file]
        since = time.perf_counter()
        for window in range(piece.offset // WINDOW_BYTES, (piece.offset + piece.bytes - 1) // WINDOW_BYTES + 1):
            if window not in mapping.windows:
                self._files.register(mapping, window)
        self.registered_s += time.perf_counter() - since

    def _run(self) -> None:
        try:
            for chunk in self.source.chunks(self.plan.chunk_elements):
                if self._stop:
                    return
                arrived = Arrived(chunk, [])
                for name in self.source.strips:
                    pieces = self.source.pieces(name, chunk.first, chunk.count)
                    try:
                        arrived.addresses.append(self._place(arrived, pieces))
                    except StreamError as error:
                        arrived.error = error
                        break
                with self._changed:
                    self._ready.append(arrived)
                    self._changed.notify()
        except BaseException as error:
            self._failed = error
        finally:
            with self._changed:
                self._complete = True
                self._changed.notify()

    def _place(self, arrived: Arrived, pieces: list[Piece]) -> int:
        """Where a strip of a chunk lies for the kernel."""
        if len(pieces) == 1:
            (piece,) = pieces
            assert piece.file is not None
            arrived.pieces.append(piece)
            mapping = self._mappings[piece.file]
            if piece.offset + piece.bytes > mapping.version.size:
                raise shrank(piece.file, piece.offset, piece.bytes)
            try:
                self._register(piece)
            except StreamError:
                if os.fstat(piece.file.fd).st_size < piece.offset + piece.bytes:
                    raise shrank(piece.file, piece.offset, piece.bytes) from None
                raise
            return mapping.address + piece.offset
        return self._join(arrived, pieces)

    def _join(self, arrived: Arrived, pieces: list[Piece]) -> int:
        """Several pieces, one behind the other in pinned memory."""
        total = sum(piece.bytes for piece in pieces)
        with self._lock:
            chunk, at = self._pinned.cut(total)
        address = chunk.address + at
        self._joined.setdefault(arrived.chunk.index, []).append(address)
        self._devices[address] = chunk.device + at
        to = view(address, total)
        for piece in pieces:
            assert piece.file is not None
            read_exactly(piece.file, to[: piece.bytes], piece.offset)
            to = to[piece.bytes :]
        self._bytes[Rung.COPIED] += total
        return address

    # --- as a Feed ------------------------------------------------------------------------------------------------

    def more(self) -> None:
        """Nothing: the registrar goes on by itself."""

    def full(self) -> list[Arrived]:
        with self._changed:
            found, failed = list(self._ready), self._failed
            self._ready.clear()
        if failed is not None:
            raise failed
        return found

    def wait(self, record: int, expected: int, timeout_ns: int) -> None:
        # A record can only be looked at. A chunk takes longer on the bus than these 30 us.
        with self._changed:
            if not self._ready and not (record and self._complete):
                self._changed.wait(min(timeout_ns, 30_000) / 1e9 if record else timeout_ns / 1e9)
                return
        if record:
            time.sleep(30e-6)

    def device_address(self, address: int) -> int:
        return self._devices.get(address, address)

    def verify(self, arrived: Arrived) -> StreamError | None:
        for piece in arrived.pieces:
            assert piece.file is not None
            if os.fstat(piece.file.fd).st_size < piece.offset + piece.bytes:
                return shrank(piece.file, piece.offset, piece.bytes)
        self._bytes[Rung.MAPPED] += sum(piece.bytes for piece in arrived.pieces)
        return None

    def release(self, arrived: Arrived) -> None:
        with self._lock:
            for address in self._joined.pop(arrived.chunk.index, ()):
                del self._devices[address]
                self._pinned.put(address)

    def bytes_by_way(self) -> dict[str, int]:
        return {rung.value: count for rung, count in self._bytes.items() if count}

    def close(self) -> None:
        self._stop = True
        self._thread.join()

    def give_up(self) -> None:
        with self._lock:
            for addresses in self._joined.values():
                for address in addresses:
                    self._pinned.put(address)
            self._joined.clear()
        self._give_back()

    def _give_back(self) -> None:
        for mapping in self._mappings.values():
            self._files.give_back(mapping)
        self._mappings.clear()


def _version(fd: int) -> _Version:
    status = os.fstat(fd)
    return _Version(status.st_size, status.st_mtime_ns, status.st_ctime_ns)


def _is_still(mapping: _Mapping, version: _Version) -> bool:
    """Whether a file's pages are those that were mapped, as far as its times can tell."""
    return mapping.version == version and mapping.made_ns - version.changed_ns > _SETTLED_NS
