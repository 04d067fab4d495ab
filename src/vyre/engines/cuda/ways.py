"""Which way a stream's bytes come to the GPU: the plan's choice for cold files, the GPU's own for hot ones.

Copier threads bring a hot file out of the page cache into the registered pool. Cold files come as the plan says, into
the registered pool, through the reader.

Owns: that choice and the lines that say so, the length of chunks. Leaves to others: the ladder for cold files (plan),
reading (feed, reader).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vyre.engines.cuda.feed import SLOTS_MAX, CopierFeed, Feed, ReaderFeed, frame_bytes
from vyre.engines.cuda.registered import DEFAULT_POOL_BYTES
from vyre.errors import StreamError
from vyre.program.ir import Program
from vyre.program.opcodes import SPAN, TILE
from vyre.stream.plan import Plan, Rung
from vyre.stream.pool import PAGE
from vyre.stream.source import Source

if TYPE_CHECKING:
    from vyre.engines.cuda.items import SessionCudaEngine

COPIED_CHUNK_BYTES: Final = 4 << 20  # of all columns together: an item in the ring costs as much as 0.5 MiB on the bus


def open_feed(
    engine: SessionCudaEngine,
    program: Program,
    source: Source,
    io: str,
    chunk_elements: int | None,
    pool_bytes: int | None,
) -> Feed:
    """Decide, and start reading.

    Raises:
        BindError: no such way. StreamError: the way asked for is impossible here.
    """
    limit = pool_bytes or DEFAULT_POOL_BYTES
    chunk = chunk_elements or default_chunk(source, limit)
    frame = frame_bytes(source, chunk)
    if frame > limit and chunk_elements:
        raise StreamError(
            f"a chunk of {chunk_elements:,} elements needs {frame:,} bytes, the pool has {limit:,}",
            fix="a shorter chunk, or a larger pool_bytes",
        )
    pool = engine.pools.take(_pool_size(source, frame, limit))
    try:
        plan = Plan.choose(source, pool, io=io, chunk_elements=chunk)  # type: ignore[arg-type]
        hot = [decision for decision in plan.files if decision.rung is Rung.HOT]
        if not hot and all(source.files[name] for name in source.strips):
            return ReaderFeed(source, plan, pool, engine.pools.give_back)
        for decision in hot:
            decision.rung = Rung.COPIED
        slots = max(1, min(SLOTS_MAX, pool.limit // frame))
        feed = CopierFeed(source, plan, pool, slots, engine.pools.give_back)
        plan.notes.append(
            f"{feed.copiers} copier threads into {slots} slots of {frame / (1 << 20):.1f} MiB, registered with CUDA and "
            "read there by the kernel"
        )
        return feed
    except BaseException:
        engine.pools.give_back(pool)
        raise


def default_chunk(source: Source, limit: int) -> int:
    """Elements of a chunk: about COPIED_CHUNK_BYTES of all columns, whole spans where that is possible, and so small that
    the pool holds several."""
    size = sum(strip.width for strip in source.strips.values())
    wanted = COPIED_CHUNK_BYTES // size
    while wanted > TILE and frame_bytes(source, wanted) * 4 > limit:
        wanted //= 2
    unit = SPAN * TILE if wanted >= SPAN * TILE else TILE
    return max(TILE, wanted // unit * unit)


def _pool_size(source: Source, frame: int, limit: int) -> int:
    """No more memory than the source has a use for: chunks, and three pages for each test read of a cold one."""
    return min(limit, max(frame * (-(-source.bytes // max(frame, 1)) + 2), 1 << 20) // PAGE * PAGE + PAGE)
