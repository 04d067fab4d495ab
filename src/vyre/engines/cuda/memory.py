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


class Pieces:
    """A range of bytes from which pieces are cut. Free pieces are kept sorted and joined with their neighbours."""

    def __init__(self, size: int, align: int = ALIGN) -> None:
        self.align = align
        self.free: list[tuple[int, int]] = [(0, size)]
        self.taken: dict[int, int] = {}

    def cut(self, size: int) -> int | None:
        """Offset of a piece of at least ``size`` bytes, or None."""
        size = max(-(-size // self.align), 1) * self.align
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
        i = bisect.bisect(self.free, (at, 0))
        if i < len(self.free) and self.free[i][0] == at + size:
            size += self.free.pop(i)[1]
        if i and self.free[i - 1][0] + self.free[i - 1][1] == at:
            before, room = self.free[i - 1]
            self.free[i - 1] = (before, room + size)
        else:
            self.free.insert(i, (at, size))


class Pool:
    """Pieces of memory by address, from chunks that are asked for when they are needed.

    Args:
        take: gives (address, other address) of a chunk of so many bytes; for pinned memory host and device address, for
            device memory the same twice.
    """

    def __init__(self, take: Callable[[int], tuple[int, int]], chunk_bytes: int) -> None:
        self._take = take
        self._chunk_bytes = chunk_bytes
        self._chunks: list[tuple[int, int, int, Pieces]] = []  # address, device address, size, pieces

    def get(self, size: int) -> int:
        """Address of at least ``size`` bytes, aligned to 256."""
        for address, _, _, pieces in self._chunks:
            at = pieces.cut(size)
            if at is not None:
                return address + at
        room = max(self._chunk_bytes, -(-size // (1 << 20)) << 20)
        address, device = self._take(room)
        pieces = Pieces(room)
        self._chunks.append((address, device, room, pieces))
        at = pieces.cut(size)
        assert at is not None
        return address + at

    def put(self, address: int) -> None:
        for base, _, room, pieces in self._chunks:
            if base <= address < base + room:
                pieces.give_back(address - base)
                return
        raise AssertionError(f"{address:#x} is not from this pool")

    def device_address(self, address: int, size: int = 1) -> int | None:
        """The device's address of host memory that lies in this pool, None of other memory."""
        for base, device, room, _ in self._chunks:
            if base <= address and address + size <= base + room:
                return device + address - base
        return None

    @property
    def chunks(self) -> list[int]:
        return [chunk[0] for chunk in self._chunks]


def view(address: int, size: int) -> memoryview:
    """Bytes at an address. The caller keeps them alive."""
    return memoryview((ctypes.c_ubyte * size).from_address(address)).cast("B")


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
        self.bytes = view(host, size)
        self.words = self.bytes.cast("I")
        self.size = size
        self.unit = unit
        self.dirty: list[tuple[int, int]] = []
        self._pieces = Pieces(size, unit)
        self._pieces.cut(reserved)

    def place(self, data: bytes) -> int:
        """Write ``data`` somewhere; its unit number.

        Raises:
            ArenaFull: there is no room.
        """
        at = self._pieces.cut(len(data))
        if at is None:
            raise ArenaFull(
                f"the engine's arena of {self.size:,} bytes for programs and bindings is full",
                fix="close programs and bindings that are no longer used, or open with a larger arena_bytes",
            )
        self.write(at, data)
        return at // self.unit

    def write(self, at: int, data: bytes) -> None:
        self.bytes[at : at + len(data)] = data
        end = -(-(at + len(data)) // 16) * 16
        at = at // 16 * 16
        size = end - at
        if self.dirty and self.dirty[-1][0] <= at and at <= self.dirty[-1][0] + self.dirty[-1][1] + self.unit:
            before, room = self.dirty[-1]
            self.dirty[-1] = (before, max(room, at + size - before))
        else:
            self.dirty.append((at, size))

    def release(self, unit: int) -> None:
        self._pieces.give_back(unit * self.unit)
