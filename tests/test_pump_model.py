"""The pump's protocol, explored: pump, copier, engine and consumer under every schedule of few deviations.

The functions are those that run natively (vyre.stream.pump). Each scenario also shows that it can fail: with one order
weakened, the same exploration finds what goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from native_model import World, as_generators, explore
from test_ring_model import ENGINE, RING, lay_out_ring
from vyre.ring.layout import RING_RECORDS, SESSION_DONE_BELL, SESSION_WAITERS, SLOT_BYTES, Status
from vyre.stream import frames as f
from vyre.stream.pump import pump_unit

FUNCTIONS = pump_unit.functions
PLAIN = as_generators(FUNCTIONS)
PUMP, FRAMES, FILES, RUNS, PIECES, REQUESTS = 0x200_000, 0x210_000, 0x220_000, 0x230_000, 0x240_000, 0x250_000
STACKS, QUEUE, BUFFERS, DESCRIPTORS, SLOTS, DATA = 0x260_000, 0x270_000, 0x280_000, 0x290_000, 0x2A0_000, 0x300_000
FOR_EVER = 1 << 60
CHUNK = 8  # bytes and elements of a chunk: one word, which says where in the file it was read


def lay_out(world: World, *, mode: int, chunks: int, frames: int, buffers: int, copiers: int) -> None:
    """One file of ``chunks`` words, one run, each chunk one read through the queue."""
    words = {
        f.P_MODE: mode,
        f.P_RING: RING,
        f.P_SESSION: ENGINE,
        f.P_BELL: PUMP + f.P_OWN_BELL if mode == f.SIGNAL else ENGINE + SESSION_DONE_BELL,
        f.P_WAITERS: PUMP + f.P_OWN_WAITERS if mode == f.SIGNAL else ENGINE + SESSION_WAITERS,
        f.P_FRAMES: FRAMES,
        f.P_FRAME_COUNT: frames,
        f.P_FILES: FILES,
        f.P_RUNS: RUNS,
        f.P_CHUNKS: chunks,
        f.P_REQUESTS: STACKS,
        f.P_QUEUE: QUEUE,
        f.P_QUEUE_MASK: 1,
        f.P_BUFFERS: STACKS + 64,
        f.P_DEPTH_BYTES: 1,
        f.P_DEPTH_READS: 2,
        f.P_LOADING_MAX: 2,
        f.P_READ_BYTES: 1 << 20,
        f.P_CACHED_RUNG: f.PREAD,
        f.P_COPIERS: copiers,
        f.P_URING: f.NONE,
        f.P_RUN_COUNT: 1,
        f.P_FREE_REQUESTS: 2,
        f.P_FREE_BUFFERS: buffers,
    }
    for place, value in words.items():
        world.poke(PUMP + place, value)
    for at in range(frames):
        frame = FRAMES + f.FRAME_BYTES * at
        world.poke(frame + f.F_SLOT, SLOTS + SLOT_BYTES * at)
        world.poke(frame + f.F_ORIGIN, DESCRIPTORS + 64 * at)
        world.poke(frame + f.F_ELEMENTS, DESCRIPTORS + 64 * at + 8)
        world.poke(frame + f.F_INPUTS, DESCRIPTORS + 64 * at + 16)
        world.poke(SLOTS + SLOT_BYTES * at + 16, at, 4)  # the binding
    world.poke(FILES + f.L_FD, 3)
    world.poke(FILES + f.L_ALIGN, 1)
    world.poke(FILES + f.L_RUNG, f.PREAD)
    for place, value in (
        (f.R_COUNT, CHUNK),
        (f.R_CHUNKS, chunks),
        (f.R_PIECES, PIECES),
        (f.R_PIECE_COUNT, 1),
        (f.R_NEEDS, 1),
    ):
        world.poke(RUNS + place, value)
    for place, value in ((f.K_KIND, f.TO_READ), (f.K_STEP, CHUNK), (f.K_SIZE, CHUNK), (f.K_HOW, f.STARTS)):
        world.poke(PIECES + place, value)
    for at in range(2):
        world.poke(STACKS + 8 * at, REQUESTS + f.REQUEST_BYTES * at)
    for at in range(buffers):
        world.poke(STACKS + 64 + 8 * at, BUFFERS + 16 * at)
        world.poke(BUFFERS + 16 * at, DATA + 64 * at)
    # What only the pump reads, and what nobody changes, cannot be noticed by others.
    world.constants += [
        (PUMP, PUMP + f.P_STOP), (PUMP + f.P_RUN_COUNT, PUMP + f.P_OUT), (FILES, PIECES + 64),
        (PUMP + f.P_QUEUE_LOW, PUMP + f.P_QUEUE_TAIL), (STACKS, STACKS + 128), (BUFFERS, BUFFERS + 64), (PUMP + f.P_TAKEN, PUMP + f.P_TAKEN + 128),
    ]  # fmt: skip
    for at in range(frames):
        frame = FRAMES + f.FRAME_BYTES * at
        world.constants += [(frame + f.F_INDEX, frame + f.F_ERROR), (frame + f.F_SLOT, frame + f.F_RECORD)]
    if not copiers:
        world.constants += [(REQUESTS, REQUESTS + 2 * f.REQUEST_BYTES), (QUEUE, QUEUE + 16)]
        world.constants += [(PUMP + f.P_QUEUE_TAIL, PUMP + f.P_STATE), (PUMP + f.P_QUEUE_HEAD, PUMP + f.P_OWN_BELL)]

    def system(name: str, args: tuple[int, ...]) -> tuple[int, list[tuple[int, int]]]:
        """The file system: every word of the file says its own offset."""
        if name == "pread":
            fd, address, size, offset = args
            assert (fd, size) == (3, CHUNK), f"read of {size} bytes from descriptor {fd}"
            return size, [(address, 1000 + offset)]
        return 0, []

    world.system = system


def told(
    change: dict[str, Any] | None = None, copiers: int = 1, chunks: int = 2
) -> Callable[[World], Callable[[World], None]]:
    """A consumer who is told: chunks over one frame and one buffer; then he stops the pump."""

    g = as_generators(FUNCTIONS, change)

    def scenario(world: World) -> Callable[[World], None]:
        lay_out(world, mode=f.SIGNAL, chunks=chunks, frames=1, buffers=1, copiers=copiers)
        seen: list[tuple[int, int]] = []

        def consumer() -> Any:
            for _ in range(chunks):
                frame = FRAMES
                state = 0
                while state != f.FULL:
                    state = yield from g["wait_frame"](PUMP, frame, FOR_EVER)
                    if state != f.FULL:
                        yield "pause", ()
                address = yield "load64", (DESCRIPTORS + 24,)
                seen.append(((yield "load64", (DESCRIPTORS,)), (yield "load64", (address,))))
                yield from g["give_back"](PUMP, frame)
            yield "store32_release", (PUMP + f.P_STOP, 1)
            yield from g["ring_bell"](PUMP)

        world.spawn("pump", g["pump_loop"](PUMP))
        world.spawn("consumer", consumer())
        for _ in range(copiers):
            world.spawn("copier", g["copier_loop"](PUMP))

        def finish(w: World) -> None:
            assert seen == [(8 * i, 1000 + 8 * i) for i in range(chunks)], f"the consumer saw {seen}"
            assert w.peek(PUMP + f.P_STATE, 4) == f.ENDED
            assert w.peek(PUMP + f.P_TAKEN + 8 * f.PREAD) == chunks * CHUNK
            assert w.peek(PUMP + f.P_FREE_REQUESTS) == 2
            assert w.peek(PUMP + f.P_FREE_BUFFERS) == 1

        return finish

    return scenario


def published(change: dict[str, Any] | None = None, chunks: int = 2) -> Callable[[World], Callable[[World], None]]:
    """An engine that polls the ring, a consumer of results: two frames, one buffer, so memory goes round at once."""

    g = as_generators(FUNCTIONS, change)

    def scenario(world: World) -> Callable[[World], None]:
        lay_out_ring(world, 2)
        lay_out(world, mode=f.PUBLISH, chunks=chunks, frames=2, buffers=1, copiers=0)
        ran: list[tuple[int, int]] = []
        results: list[int] = []

        def engine() -> Any:
            for _ in range(chunks):
                ticket = 0
                while not ticket:
                    ticket = yield from g["claim"](RING)
                    if not ticket:
                        yield "pause", ()
                slot = yield from g["slot_address"](RING, ticket - 1)
                binding = yield "load32", (slot + 16,)
                first = yield "load32", (slot + 20,)
                address = yield "load64", (DESCRIPTORS + 64 * binding + 24,)
                origin = yield "load64", (DESCRIPTORS + 64 * binding,)
                assert origin == first, f"slot {ticket - 1} names element {first}, its binding {origin}"
                ran.append((first, (yield "load64", (address,))))
                yield from g["complete"](ENGINE, RING, ticket - 1, 3, 0, 0, 0, 100 + first, 0, 0, 0)

        def consumer() -> Any:
            for index in range(chunks):
                frame = FRAMES + f.FRAME_BYTES * (index % 2)
                state = 0
                while state != f.DONE:
                    state = yield from g["wait_frame"](PUMP, frame, FOR_EVER)
                    if state != f.DONE:
                        yield "pause", ()
                results.append((yield "load64", (frame + f.F_RECORD + 32,)))
                yield from g["give_back"](PUMP, frame)
            yield "store32_release", (PUMP + f.P_STOP, 1)
            yield from g["ring_bell"](PUMP)

        world.spawn("pump", g["pump_loop"](PUMP))
        world.spawn("engine", engine())
        world.spawn("consumer", consumer())

        def finish(w: World) -> None:
            assert ran == [(8 * i, 1000 + 8 * i) for i in range(chunks)], f"the engine saw {ran}"
            assert results == [100 + 8 * i for i in range(chunks)], f"the consumer saw {results}"
            assert w.peek(PUMP + f.P_STATE, 4) == f.ENDED
            assert w.peek(PUMP + f.P_OUT) == 0
            assert w.peek(PUMP + f.P_FREE_BUFFERS) == 1

        return finish

    return scenario


def stopped_early(world: World) -> Callable[[World], None]:
    """Whoever stops the pump takes nothing, and the engine runs what was published: the pump collects it and ends."""
    g = PLAIN
    lay_out_ring(world, 2)
    lay_out(world, mode=f.PUBLISH, chunks=3, frames=2, buffers=2, copiers=0)

    def engine() -> Any:
        while True:
            ticket = yield from g["claim"](RING)
            if ticket:
                yield from g["complete"](ENGINE, RING, ticket - 1, 3, 0, 0, 0, 0, 0, 0, 0)
            elif (yield "load32_acquire", (PUMP + f.P_STATE,)) != f.RUNNING:
                return
            else:
                yield "pause", ()

    def closer() -> Any:
        yield "store32_release", (PUMP + f.P_STOP, 1)
        yield from g["ring_bell"](PUMP)

    world.spawn("pump", g["pump_loop"](PUMP))
    world.spawn("engine", engine())
    world.spawn("closer", closer())

    def finish(w: World) -> None:
        assert w.peek(PUMP + f.P_STATE, 4) == f.ENDED
        assert w.peek(PUMP + f.P_OUT) == 0
        assert w.peek(PUMP + f.P_QUEUED) == 0

    return finish


def test_a_consumer_sees_every_chunk_as_it_was_read_and_memory_goes_round():
    assert explore(told(), bound=1) > 100


def test_the_pump_reads_by_itself_where_there_is_no_copier():
    assert explore(told(copiers=0), bound=1) > 50


def test_the_engine_sees_the_descriptors_and_bytes_of_the_slot_that_it_took_and_results_come_in_order():
    assert explore(published(), bound=1) > 100


def test_a_pump_that_is_stopped_ends_whatever_is_under_way():
    assert explore(stopped_early, bound=1) > 50


# --- single moves, small enough that two deviations go through quickly; each is shown to find what it is there for ------

FRAME, REQUEST = FRAMES, REQUESTS


def handed_over(change: dict[str, Any] | None = None) -> Callable[[World], Callable[[World], None]]:
    """The last read of a chunk ends; whoever sees FULL sees descriptors and bytes."""
    g = as_generators(FUNCTIONS, change)

    def scenario(world: World) -> Callable[[World], None]:
        lay_out(world, mode=f.SIGNAL, chunks=1, frames=1, buffers=1, copiers=0)
        world.poke(FRAME + f.F_READS, 1)

        def pump() -> Any:
            yield "store64", (DATA, 1000)
            yield "store64", (DESCRIPTORS + 24, DATA)
            yield from g["read_done"](PUMP, FRAME)

        def consumer() -> Any:
            if (yield "load32_acquire", (FRAME + f.F_STATE,)) == f.FULL:
                address = yield "load64", (DESCRIPTORS + 24,)
                assert address == DATA, f"the consumer saw descriptor {address}"
                assert (yield "load64", (address,)) == 1000, "the consumer saw old bytes"

        world.spawn("pump", pump())
        world.spawn("consumer", consumer())
        return lambda w: None

    return scenario


def taken(change: dict[str, Any] | None = None) -> Callable[[World], Callable[[World], None]]:
    """A record is taken; whoever sees DONE sees all of it."""
    g = as_generators(FUNCTIONS, change)

    def scenario(world: World) -> Callable[[World], None]:
        lay_out_ring(world, 2)
        lay_out(world, mode=f.PUBLISH, chunks=1, frames=1, buffers=1, copiers=0)
        world.poke(FRAME + f.F_STATE, f.PUBLISHED, 4)
        world.poke(PUMP + f.P_NEXT, 1)
        world.poke(PUMP + f.P_OUT, 1)
        record = world.peek(RING + RING_RECORDS)
        world.poke(record, 1)
        world.poke(record + 8, Status.DONE, 4)
        world.poke(record + 32, 77)

        def consumer() -> Any:
            if (yield "load32_acquire", (FRAME + f.F_STATE,)) == f.DONE:
                assert (yield "load64", (FRAME + f.F_RECORD + 32,)) == 77, "the consumer saw another record"

        world.spawn("pump", g["attend"](PUMP))
        world.spawn("consumer", consumer())
        return lambda w: None

    return scenario


def copied(change: dict[str, Any] | None = None) -> Callable[[World], Callable[[World], None]]:
    """A copier has read; the pump hands over what it read."""
    g = as_generators(FUNCTIONS, change)

    def scenario(world: World) -> Callable[[World], None]:
        lay_out(world, mode=f.SIGNAL, chunks=1, frames=1, buffers=1, copiers=1)
        for place, value in ((f.Q_FRAME, FRAME), (f.Q_FILE, FILES), (f.Q_RUNG, f.PREAD), (f.Q_ADDRESS, DATA),
                             (f.Q_WANTED, CHUNK), (f.Q_USEFUL, CHUNK)):  # fmt: skip
            world.poke(REQUEST + place, value)
        world.poke(FRAME + f.F_READS, 1)
        world.poke(PUMP + f.P_BYTES, CHUNK)
        world.poke(PUMP + f.P_QUEUED, 1)
        world.poke(QUEUE, REQUEST)
        world.poke(PUMP + f.P_QUEUE_TAIL, 1)
        world.poke(PUMP + f.P_QUEUE_HEAD, 1)

        def pump() -> Any:
            if (yield from g["take_reads"](PUMP)):
                assert (yield "load64", (DATA,)) == 1000, "the pump handed over old bytes"

        world.spawn("copier", g["carry_out"](REQUEST))
        world.spawn("pump", pump())
        return lambda w: None

    return scenario


def queued(change: dict[str, Any] | None = None) -> Callable[[World], Callable[[World], None]]:
    """A request is queued; whoever claims it finds it written."""
    g = as_generators(FUNCTIONS, change)

    def scenario(world: World) -> Callable[[World], None]:
        lay_out(world, mode=f.SIGNAL, chunks=1, frames=1, buffers=1, copiers=1)

        def pump() -> Any:
            yield "store64", (REQUEST + f.Q_RUNG, f.PREAD)
            yield "store64", (REQUEST + f.Q_OFFSET, 4096)
            yield from g["send"](PUMP, REQUEST)

        def copier() -> Any:
            request = yield from g["claim_read"](PUMP)
            if (yield "load64_acquire", (PUMP + f.P_QUEUE_HEAD,)):
                assert request == REQUEST, f"the copier saw request {request}"
                assert (yield "load64", (request + f.Q_OFFSET,)) == 4096, "the copier saw an old request"

        world.spawn("pump", pump())
        world.spawn("copier", copier())
        return lambda w: None

    return scenario


def woken(change: dict[str, Any] | None = None) -> Callable[[World], Callable[[World], None]]:
    """A pump that lacks a frame is about to sleep while the consumer gives one back."""
    g = as_generators(FUNCTIONS, change)

    def scenario(world: World) -> Callable[[World], None]:
        lay_out(world, mode=f.SIGNAL, chunks=2, frames=1, buffers=1, copiers=1)
        world.poke(FRAME + f.F_STATE, f.FULL, 4)
        world.poke(PUMP + f.P_NEXT, 1)
        world.poke(PUMP + f.P_OUT, 1)

        def pump() -> Any:
            while (yield "load64", (PUMP + f.P_NEXT,)) < 2:
                yield from g["rest"](PUMP, FOR_EVER, 0)

        world.spawn("pump", pump())
        world.spawn("consumer", g["give_back"](PUMP, FRAME))
        return lambda w: None

    return scenario


MOVES = {
    "handed over": (handed_over, "read_done", "store32_release(frame + F_STATE, FULL)", "store32(frame + F_STATE, FULL)"),
    "taken": (taken, "attend", "store32_release(frame + F_STATE, DONE)", "store32(frame + F_STATE, DONE)"),
    "copied": (copied, "carry_out", "store32_release(request + Q_DONE, 1)", "store32(request + Q_DONE, 1)"),
    "queued": (
        queued, "send", "store64_release(pump + P_QUEUE_TAIL, tail + 1)", "store64(pump + P_QUEUE_TAIL, tail + 1)"
    ),
    "woken by a fence": (woken, "give_back", "fence()\n    if load64_seqcst", "if load64_acquire"),
    "woken because it said before that it was held up": (
        woken, "rest", "load64(pump + P_HELD) == held and ", ""
    ),
    "woken by a last look": (woken, "rest", "if advance(pump) == 0 and load64", "if load64"),
}  # fmt: skip


@pytest.mark.parametrize("move", MOVES.values(), ids=MOVES)
def test_a_move_is_seen_as_it_was_made_and_the_model_finds_the_order_that_makes_it_so(move):
    scenario, function, right, weakened = move
    assert explore(scenario(), bound=1 if scenario is woken else 2) > 10
    with pytest.raises(AssertionError, match=r"saw|handed over old|asleep for ever"):
        explore(scenario({function: (right, weakened)}), bound=2)
