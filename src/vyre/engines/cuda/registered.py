"""Pools of a stream whose pages are registered with CUDA: filled by reads, read by the resident kernel where they lie.

Registering costs 20 ms a GiB and waits for nobody; unregistering may wait for a stay to end, and a pool's pages have to be
faulted again. So a pool that a stream is done with is kept for the next one, one at a time, until the engine closes.

Owns: registering piece by piece and undoing it, the pool that is kept. Leaves to others: the pages (stream/pool), what
is read into them (feed).
"""

from __future__ import annotations

import threading
from typing import Final

from vyre.engines.cuda.driver import Device
from vyre.errors import StreamError
from vyre.stream.pool import Pool

DEFAULT_POOL_BYTES: Final = 64 << 20
"""For streams on the GPU, where the session says nothing: what stays in a large processor's cache between a copier that
writes it and the GPU that reads it. Twice as much is slower: 41 and 38 GB/s were seen, 28 with four times as much."""


class RegisteredPools:
    """Pools of one engine, registered while they are in use or kept."""

    def __init__(self, device: Device) -> None:
        self._device = device
        self._lock = threading.Lock()
        self._kept: Pool | None = None
        self._registered: dict[int, tuple[int, int]] = {}  # address of a piece: its device address and size
        self._alive: list[Pool] = []  # a registered mapping must not be unmapped

    def take(self, pool_bytes: int) -> Pool:
        """A pool of at least ``pool_bytes``, faulted and registered; the caller's until ``give_back``.

        Raises:
            StreamError: the machine has no memory, or CUDA does not register it. Nothing stays registered.
        """
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            if kept.limit >= pool_bytes:
                return kept
            self.discard(kept)
        pool = Pool(pool_bytes)
        try:
            pool.reserve(pool.limit)
            self.register(pool)
        except BaseException:
            pool.close()
            raise
        return pool

    def register(self, pool: Pool) -> None:
        """Register every piece of a pool, or none."""
        done: dict[int, tuple[int, int]] = {}
        pieces = pool.pieces()
        try:
            for address, size in pieces:
                done[address] = (self._device.register(address, size), size)
        except StreamError as error:
            for address in done:
                self._device.unregister(address)
            raise StreamError(
                f"{error.message} ({len(done)} of {len(pieces)} pieces had been, and were given back)",
                fix="a smaller pool_bytes: open(pool_bytes=...)",
            ) from None
        with self._lock:
            self._registered |= done
            self._alive.append(pool)

    def device_address(self, address: int) -> int:
        """Where the kernel sees registered memory."""
        for base, (device, size) in self._registered.items():
            if base <= address < base + size:
                return device + address - base
        raise AssertionError(f"{address:#x} is not registered")

    def give_back(self, pool: Pool) -> None:
        """Nobody reads or fills it. It is kept for the next stream, or given up where another one is."""
        if pool.retired:
            return  # the operating system may still write into it: it stays as it is (decision 32)
        with self._lock:
            drop, self._kept = self._kept, pool
        if drop is not None:
            self.discard(drop)

    def discard(self, pool: Pool) -> None:
        """Unregister and unmap a pool that nobody reads or fills any more."""
        for address, _ in pool.pieces():
            with self._lock:
                del self._registered[address]
            self._device.unregister(address)
        with self._lock:
            self._alive.remove(pool)
        pool.close()

    def close(self) -> None:
        """The kernel has left. Pools in use are unregistered when the device is closed."""
        with self._lock:
            kept, self._kept = self._kept, None
        if kept is not None:
            self.discard(kept)
