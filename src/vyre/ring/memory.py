"""Memory that host and engine share: anonymous, zeroed, page aligned, not inherited by forked children.

Owns: allocation and views. Leaves to others: what the words mean (layout) and who writes them when (producer, consumer).
"""

from __future__ import annotations

import ctypes
import mmap
import os
import weakref
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.ring.layout import (
    MAX_CAPACITY,
    MIN_CAPACITY,
    RECORD_BYTES,
    RECORD_DTYPE,
    RING_COMPLETED,
    RING_CONTROL_BYTES,
    RING_FULL,
    RING_HEAD,
    RING_MASK,
    RING_RECORDS,
    RING_SHIFT,
    RING_SLOTS,
    RING_STOPS,
    RING_TAIL,
    SLOT_BYTES,
    SLOT_DTYPE,
)

_NORESERVE: Final = getattr(mmap, "MAP_NORESERVE", 0x4000)


_REGIONS: Final[weakref.WeakSet[Region]] = weakref.WeakSet()
_LOST: Final[list[Region]] = []
_PROT_NONE: Final = 0
_FIXED_NOREPLACE: Final = 0x10_0000


def _keep_places() -> None:
    """In a forked child: put nothing where the regions were, so that nothing else comes to be there.

    The child has the objects but not the pages. If its own mappings took these places, freeing an object that was
    inherited would unmap them.
    """
    flags = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE | _FIXED_NOREPLACE
    for region in list(_REGIONS):
        size = len(region.bytes)
        if _mmap(region.address, size, _PROT_NONE, flags, -1, 0) != region.address:
            _LOST.append(region)  # something is there already: never free it


def _raw_mmap() -> Any:
    found = ctypes.CDLL(None).mmap
    found.restype = ctypes.c_void_p
    found.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.c_long)
    return found


if hasattr(mmap, "MADV_DONTFORK"):
    _mmap: Final = _raw_mmap()  # looked up before any fork
    os.register_at_fork(after_in_child=_keep_places)


class Region:
    """``size`` zero bytes. Pages cost memory once they are touched. Lives as long as this object.

    A forked child does not have these pages (decision 33): its session is closed before it could look.
    """

    def __init__(self, size: int) -> None:
        self._map = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS | _NORESERVE)
        if hasattr(mmap, "MADV_DONTFORK"):
            self._map.madvise(mmap.MADV_DONTFORK)
        if hasattr(mmap, "MADV_NOHUGEPAGE"):
            # A touched byte should cost a page, not two megabytes: most of a worker's memory is never used.
            self._map.madvise(mmap.MADV_NOHUGEPAGE)
        self.bytes: NDArray[np.uint8] = np.frombuffer(self._map, np.uint8)
        self.address: int = self.bytes.ctypes.data
        _REGIONS.add(self)
        self.words: memoryview = memoryview(self._map).cast("B").cast("Q")
        """u64 view: a plain store here is a release on x86-64 (decision 23)."""


class Ring:
    """One submission ring with its completion records, empty.

    Args:
        capacity: slots; a power of two, 1 to 1,048,576.
    Raises:
        ValueError: capacity is not one of those.
    """

    def __init__(self, capacity: int) -> None:
        if not MIN_CAPACITY <= capacity <= MAX_CAPACITY or capacity & (capacity - 1):
            raise ValueError(
                f"ring capacity {capacity}: it must be a power of two from {MIN_CAPACITY} to {MAX_CAPACITY}"
            )
        slots = RING_CONTROL_BYTES
        records = slots + capacity * SLOT_BYTES
        stops = records + capacity * RECORD_BYTES
        self._region = Region(stops + 8 * capacity)
        base = self.address = self._region.address
        self.capacity = capacity
        self.slots = self._region.bytes[slots:records].view(SLOT_DTYPE)
        self.records = self._region.bytes[records:stops].view(RECORD_DTYPE)
        words = self._region.words
        words[RING_MASK // 8] = capacity - 1
        words[RING_SHIFT // 8] = capacity.bit_length() - 1
        words[RING_SLOTS // 8] = base + slots
        words[RING_RECORDS // 8] = base + records
        words[RING_STOPS // 8] = base + stops

    @property
    def published(self) -> int:
        """Items ever published."""
        return int(self._region.words[RING_TAIL // 8])

    @property
    def claimed(self) -> int:
        """Items ever taken by a worker."""
        return int(self._region.words[RING_HEAD // 8])

    @property
    def completed(self) -> int:
        """Items ever completed; never ahead of the records."""
        return int(self._region.words[RING_COMPLETED // 8])

    @property
    def refused_full(self) -> int:
        """Publishes that found the ring full."""
        return int(self._region.words[RING_FULL // 8])
