"""Memory that host and device share, cut into pieces: pools that grow, and an arena of fixed size.

Nothing is given back to the driver before the engine closes, because a free waits for the resident kernel to leave.

Owns: first-fit cutting and joining. Leaves to others: where memory comes from (driver), what is in it (engine).
"""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Callable
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.errors import ArenaFull

ALIGN: Final = 256
WAITING: Final = 32
"""Pieces of one size that are not joined at once, and how large they are at the most."""
WAITING_BYTES: Final = 16 << 10
_Byte: Final = ctypes.c_ubyte


class Pieces:
    """A range of bytes from which pieces are cut.

    Free pieces are kept sorted and joined with their neighbours; but the last few of each size that came back wait for the
    next one who wants that size, which is the common case of small ones.
    """

    def __init__(self, size: int, align: int = ALIGN) -> None:
        self.align = align
        self.free: list[tuple[int, int]] = [(0, size)]
        self.taken: dict[int, int] = {}
        self._waiting: dict[int, list[int]] = {}

    def cut(self, size: int) -> int | None:
        """Offset of a piece of at least ``size`` bytes, or None."""
        size = -(-size // self.align) * self.align or self.align
        waiting = self._waiting.get(size)
        if waiting:
            at = waiting.pop()
            self.taken[at] = size
            return at
        found = self._cut(size)
        if found is None and self._waiting:
            self.settle()
            found = self._cut(size)
        return found

    def _cut(self, size: int) -> int | None:
        for i, (at, room) in enumerate(self.free):
            if room >= size:
                if room == size:
                    del self.free[i]
                else:
                    self.free[i] = (at + size, room - size)
                self.taken[at] = size
                return at
        return None

    def give_back(self, at: int) -> None:
        size = self.taken.pop(at)
        waiting = self._waiting.get(size)
        if size > WAITING_BYTES:
            self._join(at, size)
        elif waiting is None:
            self._waiting[size] = [at]
        elif len(waiting) < WAITING:
            waiting.append(at)
        else:
            self._join(at, size)

    def settle(self) -> None:
        """Join all pieces that wait with their neighbours."""
        for size, places in self._waiting.items():
            for at in places:
                self._join(at, size)
        self._waiting.clear()

    def _join(self, at: int, size: int) -> None:
        i = bisect.bisect(self.free, (at, 0))
        if i < len(self.free) and self.free[i][0] == at + size:
            size += self.free.pop(i)[1]
        if i and self.free[i - 1][0] + self.free[i - 1][1] == at:
            before, room = self.free[i - 1]
            self.free[i - 1] = (before, room + size)
        else:
            self.free.insert(i, (at, size))


class Chunk:
    """Memory from the driver, and the pieces it is cut into.

    Attributes:
        address: the host's address, or the device's of memory that the host does not see.
        device: the device's.
        size: in bytes.
        whole: u8[size] over memory that the host sees; arrays made over its pieces have it as their base.
    """

    __slots__ = ("address", "device", "pieces", "size", "whole")

    def __init__(self, address: int, device: int, size: int, seen: bool) -> None:
        self.address = address
        self.device = device
        self.size = size
        self.pieces = Pieces(size)
        self.whole: NDArray[np.uint8] = array_at(address, np.uint8, size if seen else 0)

    def array(self, at: int, kind: np.dtype[Any], count: int) -> NDArray[Any]:
        """An array over the bytes from offset ``at`` on."""
        return np.ndarray((count,), kind, self.whole, at)


class Pool:
    """Pieces of memory by address, from chunks that are asked for when they are needed.

    Args:
        take: gives (address, other address) of a chunk of so many bytes; for pinned memory host and device address, for
            device memory the same twice.
        seen: the host sees it.
    """

    def __init__(self, take: Callable[[int], tuple[int, int]], chunk_bytes: int, *, seen: bool) -> None:
        self._take = take
        self._chunk_bytes = chunk_bytes
        self._seen = seen
        self._chunks: list[Chunk] = []

    def cut(self, size: int) -> tuple[Chunk, int]:
        """A piece of at least ``size`` bytes, aligned to 256: its chunk, and its offset there."""
        for chunk in self._chunks:
            at = chunk.pieces.cut(size)
            if at is not None:
                return chunk, at
        room = max(self._chunk_bytes, -(-size // (1 << 20)) << 20)
        address, device = self._take(room)
        chunk = Chunk(address, device, room, self._seen)
        self._chunks.append(chunk)
        at = chunk.pieces.cut(size)
        assert at is not None
        return chunk, at

    def get(self, size: int) -> int:
        """Address of at least ``size`` bytes, aligned to 256."""
        chunk, at = self.cut(size)
        return chunk.address + at

    def put(self, address: int) -> None:
        for chunk in self._chunks:
            if chunk.address <= address < chunk.address + chunk.size:
                chunk.pieces.give_back(address - chunk.address)
                return
        raise AssertionError(f"{address:#x} is not from this pool")

    def device_address(self, array: NDArray[Any]) -> int | None:
        """The device's address of an array over a piece of this pool, None of another array."""
        base = array.base
        if base is None:
            return None
        for chunk in self._chunks:
            if base is chunk.whole:
                return address_of(array) - chunk.address + chunk.device
        return None

    @property
    def chunks(self) -> list[int]:
        return [chunk.address for chunk in self._chunks]


def view(address: int, size: int) -> memoryview:
    """Bytes at an address. The caller keeps them alive."""
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


def address_of(array: NDArray[Any]) -> int:
    """Address of a contiguous array's first element."""
    try:
        return ctypes.addressof(_Byte.from_buffer(array))  # type: ignore[arg-type]  # a fifth of the time of array.ctypes
    except (TypeError, ValueError):  # read-only, or without elements
        return int(array.ctypes.data)


def array_at(address: int, dtype: Any, count: int) -> NDArray[Any]:
    """An array over memory that the caller keeps alive."""
    kind = np.dtype(dtype)
    if count == 0:
        return np.empty(0, kind)
    return np.frombuffer((ctypes.c_ubyte * (count * kind.itemsize)).from_address(address), kind)


class Arena:
    """Programs and bindings: a host copy that is written here, and a device copy that the kernel brings up to date.

    ``dirty`` collects what was written since it was last handed to the kernel, as (offset, size) in order.
    """

    def __init__(self, host: int, size: int, unit: int, reserved: int) -> None:
        self.address = host
        self.bytes = view(host, size)
        self.array: NDArray[np.uint8] = array_at(host, np.uint8, size)
        self.words = self.bytes.cast("I")
        self.size = size
        self.unit = unit
        self.dirty: list[tuple[int, int]] = []
        self._pieces = Pieces(size, unit)
        self._pieces.cut(reserved)

    def place(self, data: bytes, *, before: tuple[int, int] | None = None) -> int:
        """Write ``data`` somewhere; its unit number.

        Args:
            before: (offset, size) of words that the caller writes too, handed to the kernel before the data.
        Raises:
            ArenaFull: there is no room.
        """
        at = self.reserve(len(data))
        if before is not None:
            self.touch(*before)
        self.write(at, data)
        return at // self.unit

    def reserve(self, size: int) -> int:
        """Offset of room for so many bytes, which the caller writes.

        Raises:
            ArenaFull: there is no room.
        """
        at = self._pieces.cut(size)
        if at is None:
            raise ArenaFull(
                f"the engine's arena of {self.size:,} bytes for programs and bindings has no {size:,} bytes left in a row",
                fix="close programs and bindings that are no longer used, or open with a larger arena_bytes",
            )
        return at

    def write(self, at: int, data: bytes) -> None:
        self.bytes[at : at + len(data)] = data
        self.touch(at, len(data))

    def touch(self, at: int, size: int) -> None:
        """These bytes were or will be written before the next slot is published."""
        end = (at + size + 15) & -16
        at &= -16
        size = end - at
        dirty = self.dirty
        if dirty:
            before, room = dirty[-1]
            if before <= at <= before + room + self.unit:
                if end > before + room:
                    dirty[-1] = (before, end - before)
                return
        dirty.append((at, size))

    def release(self, unit: int) -> None:
        self._pieces.give_back(unit * self.unit)
