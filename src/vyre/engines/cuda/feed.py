"""Chunks of a stream on their way to the kernel: what every way in looks like, and the way through the reader.

Owns: the verbs between a way in and the items that are made of its chunks. Leaves to others: copier threads (copiers),
files that are read in place (mapped), which way is taken (ways), what happens to a full chunk (chunks).
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Final, Protocol

from vyre.engines.cuda.registered import RegisteredPools
from vyre.errors import StreamError
from vyre.store import Store
from vyre.stream.compiled import pump_functions
from vyre.stream.plan import Plan
from vyre.stream.pool import PAGE, Pool
from vyre.stream.reader import Loaded, Reader
from vyre.stream.source import Chunk, Piece, Source

SEATS_MAX: Final = 64


@dataclass(slots=True, eq=False)
class Arrived:
    """A chunk whose bytes are where the kernel can read them, until ``release``.

    Attributes:
        addresses: host address of element ``chunk.first`` of each strip, in order.
        slot: of the pool, or -1 where the memory is lent piece by piece.
        error: why it could not be read; the addresses are not to be used then.
        pieces: what is read in place, out of mapped files. The host must not touch it: the file may have been cut.
    """

    chunk: Chunk
    addresses: list[int]
    slot: int = -1
    error: StreamError | None = None
    pieces: list[Piece] = field(default_factory=list)
    _loaded: Loaded | None = None


class Feed(Protocol):
    """Where chunks come from. One thread drives it.

    Attributes:
        plan: what was chosen and why.
        in_device_memory: addresses are the GPU's own memory, which the host cannot read.
    """

    source: Source
    plan: Plan
    in_device_memory: bool

    @property
    def chunk_elements(self) -> int:
        """Longest chunk."""

    @property
    def seats(self) -> int:
        """Chunks that may be full and not released, at most."""

    @property
    def finished(self) -> bool:
        """Every chunk has been full and was given out."""

    def more(self) -> None:
        """Start as many reads as there is memory for."""

    def full(self) -> list[Arrived]:
        """Chunks that became full since the last call."""

    def release(self, arrived: Arrived) -> None:
        """Nobody reads the chunk's memory any more."""

    def wait(self, record: int, expected: int, timeout_ns: int) -> None:
        """Until a chunk is full, or the u64 at ``record`` (unless 0) is ``expected``, or time is up."""

    def device_address(self, address: int) -> int:
        """Where the kernel sees memory of a chunk."""

    def verify(self, arrived: Arrived) -> StreamError | None:
        """Why what the kernel has read of a chunk may not be what the files hold, or None."""

    def bytes_by_way(self) -> dict[str, int]:
        """Bytes so far by the way that they took."""

    def close(self) -> None:
        """Stop reading. Afterwards nobody writes into the memory of chunks, or it is retired."""

    def give_up(self) -> None:
        """After ``close``: the engine reads no chunk any more. Give the memory back."""


class ReaderFeed:
    """Chunks from the reader, whose memory is registered: io_uring, around the page cache or through it."""

    in_device_memory = False

    def __init__(
        self, source: Source, plan: Plan, pool: Pool, pools: RegisteredPools, store: Store | None = None
    ) -> None:
        self.source = source
        self.plan = plan
        self.seats = SEATS_MAX
        self._pool = pool
        self._pools = pools
        self._reader = Reader(source, plan, pool, natives=pump_functions(store))
        self._ready: list[Loaded] = []
        self._out: dict[int, Loaded] = {}
        self._given = 0

    @property
    def chunk_elements(self) -> int:
        return self.plan.chunk_elements

    @property
    def finished(self) -> bool:
        return self._given == self._reader.chunks

    def more(self) -> None:
        self._reader.submit()

    def full(self) -> list[Arrived]:
        found = self._ready + self._reader.ready(0.0)
        self._ready = []
        self._given += len(found)
        self._out |= {load.chunk.index: load for load in found}
        return [self._arrived(load) for load in found]

    def _arrived(self, load: Loaded) -> Arrived:
        there = load.error is None
        addresses = [load.columns[name].address for name in self.source.strips] if there else []
        return Arrived(load.chunk, addresses, error=load.error, _loaded=load)

    def release(self, arrived: Arrived) -> None:
        assert arrived._loaded is not None
        del self._out[arrived.chunk.index]
        self._reader.release(arrived._loaded)

    def wait(self, record: int, expected: int, timeout_ns: int) -> None:
        # A record can only be looked at: at storage's pace, a look every 50 us costs nothing that anybody notices.
        self._ready += self._reader.ready(min(timeout_ns, 50_000) / 1e9 if record else timeout_ns / 1e9)

    def device_address(self, address: int) -> int:
        return self._pools.device_address(address)

    def verify(self, arrived: Arrived) -> StreamError | None:
        return None  # what came into the pool stays as it came

    def bytes_by_way(self) -> dict[str, int]:
        return self._reader.report()

    def close(self) -> None:
        self._reader.close()

    def give_up(self) -> None:
        for load in (*self._ready, *self._out.values()):
            self._reader.release(load)
        self._ready.clear()
        self._out.clear()
        self._pools.give_back(self._pool)


def frame_bytes(source: Source, chunk_elements: int) -> int:
    """Memory that a chunk needs: every strip, of files and arrays alike, widened at both ends to whole blocks."""
    count = min(chunk_elements, max(source.count, 1))
    return sum(-(-count * strip.width // PAGE) * PAGE + 2 * PAGE for strip in source.strips.values())
