"""Which way a stream's bytes come to the GPU: the plan's choice for cold files, the GPU's own for hot ones.

Copier threads bring a hot file out of the page cache into the registered pool; when it is read again, it is registered
itself and read where it lies. Cold files come as the plan says, into the registered pool, through the reader.

Owns: that choice and the lines that say so, the length of chunks. Leaves to others: the ladder for cold files (plan),
reading (feed, mapped, reader).
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Final

from vyre.engines.cuda.copiers import CopierFeed
from vyre.engines.cuda.cufile_feed import RUNG_OF, CufileFeed
from vyre.engines.cuda.feed import SEATS_MAX, Feed, ReaderFeed, frame_bytes
from vyre.engines.cuda.mapped import AUTO_BYTES, AUTO_FRACTION, MappedFeed, MappedFiles
from vyre.engines.cuda.registered import DEFAULT_POOL_BYTES
from vyre.engines.cuda.staging import StagedFeed, loads_of, measured
from vyre.errors import StreamError
from vyre.program.ir import Program
from vyre.program.opcodes import SPAN, TILE
from vyre.stream import cufile
from vyre.stream.cached import cached
from vyre.stream.plan import Plan, Refusal, Rung
from vyre.stream.pool import PAGE, Pool
from vyre.stream.source import Source

if TYPE_CHECKING:
    from vyre.engines.cuda.items import SessionCudaEngine

MAPPED_CHUNK_BYTES: Final = 32 << 20
STAGED_BYTES: Final = 256 << 20  # from here on it is worth 0.1 s, once on a machine, to know whether staging is faster
_NOT_ASKED: Final = ('it works where io="cufile" says so, which takes a second to find out',)
COPIED_CHUNK_BYTES: Final = 8 << 20  # of all columns together: an item in the ring costs as much as 0.5 MiB on the bus


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
    if io == "cufile":
        return _cufile(engine, source, chunk_elements, limit)
    loads = loads_of(program)
    feed = _host_feed(engine, program, source, io, chunk_elements, limit)
    small = loads < 2 and source.bytes < STAGED_BYTES
    if small or source.fields() or not engine.residency.resident:
        return feed
    try:
        better, line = measured(engine, engine.store).choice(loads)
        feed.plan.notes.append(line)
        return StagedFeed(feed, engine.device, engine._device_pool, engine.residency.lock) if better else feed
    except BaseException:
        feed.close()
        feed.give_up()
        raise


def _host_feed(
    engine: SessionCudaEngine, program: Program, source: Source, io: str, chunk_elements: int | None, limit: int
) -> Feed:
    """Into host memory that the kernel sees, or where it is there already."""
    refusal = None
    if io in ("mapped", "auto"):
        reason, refusal = _mapped_reason(engine.mapped, source, io)
        if reason:
            try:
                return _mapped(engine, program, source, chunk_elements, reason)
            except StreamError as error:
                refusal = error.message
        if refusal and io == "mapped":
            raise StreamError(f"{Rung.MAPPED.value} is impossible here: {refusal}", fix='io="auto" takes another way')
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
            plan.notes.append(
                f"cuFile not taken: {'; '.join(cufile.obstacles() or cufile.lacks_direct() or _NOT_ASKED)}"
            )
            return ReaderFeed(source, plan, pool, engine.pools, engine.store)
        for decision in hot:
            decision.rung = Rung.COPIED
            if refusal:
                decision.refusals.append(Refusal(Rung.MAPPED, refusal))
        slots = max(1, min(SEATS_MAX, pool.limit // frame))
        feed = CopierFeed(source, plan, pool, slots, engine.pools, store=engine.store)
        plan.notes.append(
            f"{feed.copiers} copier threads into {slots} slots of {frame / (1 << 20):.1f} MiB, registered with CUDA and "
            "read there by the kernel"
        )
        return feed
    except BaseException:
        if not pool.retired:
            engine.pools.discard(pool)  # parts of it may be lent
        raise


def _mapped_reason(mapped: MappedFiles, source: Source, io: str) -> tuple[str, str | None]:
    """Why a source should be read in place, "" when it should not; and what stands in the way of it."""
    files = list(dict.fromkeys(file for handles in source.files.values() for file in handles))
    again = [mapped.was_read(file) for file in files]  # every file is noted
    if not all(source.files[name] for name in source.strips):
        return "", "some columns are in memory" if io == "mapped" else None
    if not files or not source.count:
        return "", "there is nothing to read" if io == "mapped" else None
    if io == "mapped":
        return "as asked", None
    if source.bytes < AUTO_BYTES or not all(again):
        return "", None
    if all(mapped.is_registered(file) for file in files):
        return "still registered from an earlier stream", None
    shares = [cached(file.fd, 0, file.size).fraction for file in files]
    if any(share is None or share < AUTO_FRACTION for share in shares):
        return "", None
    return "in the page cache, and not read for the first time", None


def _mapped(
    engine: SessionCudaEngine, program: Program, source: Source, chunk_elements: int | None, reason: str
) -> Feed:
    # Results of a chunk need memory, its inputs none: chunks are long only where results are numbers.
    long = not program.outputs and not program.emits
    size = MAPPED_CHUNK_BYTES if long else COPIED_CHUNK_BYTES
    chunk = chunk_elements or default_chunk(source, 16 * size, size)
    with Pool(PAGE) as none:
        plan = Plan.choose(source, none, io="hot", chunk_elements=chunk)
    feed = MappedFeed(source, plan, engine.mapped, engine._pinned, engine.residency.lock)
    for decision in plan.files:
        decision.rung, decision.reason = Rung.MAPPED, reason
    return feed


def _cufile(engine: SessionCudaEngine, source: Source, chunk_elements: int | None, limit: int) -> Feed:
    """Straight into device memory, when a real read of the first file has been right."""
    file = next((file for files in source.files.values() for file in files), None)
    if file is None or not all(source.files[name] for name in source.strips):
        raise StreamError("cuFile reads files, and some columns are in memory", fix='io="auto" takes another way')
    if source.fields():
        raise StreamError("cuFile reads whole columns, and some are fields of rows", fix='io="auto" takes another way')
    found = cufile.preflight(file.path)
    if found.mode == "refused":
        raise StreamError(f"{file.path}: {found}", fix='io="auto" takes another way')
    chunk = chunk_elements or default_chunk(source, limit)
    with Pool(PAGE) as none:
        plan = Plan.choose(source, none, io="hot", chunk_elements=chunk)
    slots = max(1, min(SEATS_MAX, limit // frame_bytes(source, chunk)))
    feed = CufileFeed(
        source, plan, engine.device, engine._device_pool, engine.residency.lock, slots, found.mode, cufile.bindings()
    )
    for decision in plan.files:
        decision.rung, decision.reason = RUNG_OF[found.mode], "; ".join((*found.facts, *found.causes))
    return feed


def default_chunk(source: Source, limit: int, chunk_bytes: int = 0) -> int:
    """Elements of a chunk: about so many bytes of all columns, whole spans where that is possible, and so small that
    a pool of ``limit`` bytes holds several."""
    size = sum(strip.width for strip in source.strips.values())
    wanted = (chunk_bytes or COPIED_CHUNK_BYTES) // size
    while wanted > TILE and frame_bytes(source, wanted) * 4 > limit:
        wanted //= 2
    unit = SPAN * TILE if wanted >= SPAN * TILE else TILE
    return max(TILE, wanted // unit * unit)


def _pool_size(source: Source, frame: int, limit: int) -> int:
    """No more memory than the source has a use for: chunks, and three pages for each test read of a cold one."""
    return min(limit, max(frame * (-(-source.bytes // max(frame, 1)) + 2), 1 << 20) // PAGE * PAGE + PAGE)
