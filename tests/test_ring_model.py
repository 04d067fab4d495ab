"""The ring's protocol, explored: the functions that run natively, executed under every schedule of few deviations.

Each scenario also shows that it can fail: with one order weakened, the same exploration finds what goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from native_model import World, as_generators, explore
from vyre.engines.cpu import state
from vyre.engines.cpu.abi import FAULT_ELEMENT_SHIFT
from vyre.engines.cpu.worker import worker_unit
from vyre.ring.layout import (
    RECORD_BYTES,
    RING_COMPLETED,
    RING_CONTROL_BYTES,
    RING_HEAD,
    RING_MASK,
    RING_RECORDS,
    RING_SHIFT,
    RING_SLOTS,
    RING_STOPS,
    RING_TAIL,
    SEQUENCE_NONE,
    SESSION_BLOCK_BYTES,
    SESSION_RING_COUNT,
    SESSION_RING_LIST,
    SESSION_STOP,
    SLOT_BYTES,
    Opcode,
)

RING, ENGINE, ITEMS, OUT, WORKERS = 0x1000, 0x10_000, 0x20_000, 0x30_000, 0x100_000
FUNCTIONS = worker_unit.functions
PLAIN = as_generators(FUNCTIONS)


def lay_out_ring(world: World, capacity: int) -> None:
    world.constants += [(RING + RING_MASK, RING + RING_CONTROL_BYTES), (ITEMS, OUT)]
    slots = RING + RING_CONTROL_BYTES
    records = slots + capacity * SLOT_BYTES
    world.poke(RING + RING_MASK, capacity - 1)
    world.poke(RING + RING_SHIFT, capacity.bit_length() - 1)
    world.poke(RING + RING_SLOTS, slots)
    world.poke(RING + RING_RECORDS, records)
    world.poke(RING + RING_STOPS, records + capacity * RECORD_BYTES)


def lay_out_engine(world: World, workers: int) -> None:
    world.constants.append((ENGINE + state.E_LIMIT, ENGINE + state.E_BYTES_READ))
    world.constants.append((ENGINE + SESSION_RING_COUNT, ENGINE + SESSION_BLOCK_BYTES))
    world.poke(ENGINE + state.E_NULL, 1)
    world.poke(ENGINE + state.E_LIMIT, workers)
    world.poke(ENGINE + state.E_WORKERS, WORKERS)
    world.poke(ENGINE + state.E_WORKER_COUNT, workers + 2)
    world.poke(ENGINE + SESSION_RING_LIST, RING)
    world.poke(ENGINE + SESSION_RING_COUNT, 1)


def item(world: World, number: int, opcode: int, value: int) -> None:
    for word in range(1, 16):
        world.poke(ITEMS + SLOT_BYTES * number + 4 * word, value, 4)
    world.poke(ITEMS + SLOT_BYTES * number + 4, opcode, 4)
    world.poke(ITEMS + SLOT_BYTES * number + 36, value & 0xFFFF, 4)


def laps(change: dict[str, Any] | None = None) -> Callable[[World], Callable[[World], None]]:
    """Capacity 1: publish, claim and read, complete, read the record, acknowledge; twice over the same slot."""

    g = as_generators(FUNCTIONS, change)

    def scenario(world: World) -> Callable[[World], None]:
        lay_out_ring(world, 1)
        item(world, 0, Opcode.NOP, 7)
        item(world, 1, Opcode.NOP, 9)
        seen: list[list[int]] = []
        records: list[int] = []

        def host() -> Any:
            for lap in range(2):
                yield from g["lock_ring"](RING)
                sequence = yield from g["publish"](RING, ITEMS + SLOT_BYTES * lap, 1, 0)
                yield from g["unlock_ring"](RING)
                assert sequence == lap
                while not (yield from g["is_complete"](RING, sequence)):
                    yield "pause", ()
                address = yield from g["record_address"](RING, sequence)
                records.append((yield "load64", (address + 32,)))
                yield from g["acknowledge"](RING, sequence)

        def engine() -> Any:
            for _ in range(2):
                ticket = 0
                while not ticket:
                    ticket = yield from g["claim"](RING)
                    if not ticket:
                        yield "pause", ()
                slot = yield from g["slot_address"](RING, ticket - 1)
                words = []
                for w in (2, 8, 15):
                    words.append((yield "load32", (slot + 4 * w,)))
                seen.append(words)
                yield from g["complete"](ENGINE, RING, ticket - 1, 3, 0, 0, 0, words[0] + 100, 0, 0, 0)

        world.spawn("host", host())
        world.spawn("engine", engine())

        def count_behind_records(w: World) -> None:
            completed = w.peek(RING + RING_COMPLETED)
            if completed:
                first = RING + RING_CONTROL_BYTES + SLOT_BYTES
                assert w.peek(first) >= completed, "the count of completions ran ahead of the records"

        world.check = count_behind_records

        def finish(w: World) -> None:
            assert seen == [[7, 7, 7], [9, 9, 9]], f"the engine saw {seen}"
            assert records == [107, 109], f"the host saw records {records}"

        return finish

    return scenario


def test_a_slot_is_read_as_it_was_published_and_a_record_as_it_was_completed_over_two_laps():
    assert explore(laps(), bound=2) > 100


@pytest.mark.parametrize(
    "change",
    [
        {"publish": ("store64_release(ring + RING_TAIL, tail + n)", "store64(ring + RING_TAIL, tail + n)")},
        {"complete": ("store64_release(record, sequence + 1)", "store64(record, sequence + 1)")},
    ],
    ids=["tail", "record"],
)
def test_the_model_finds_what_a_missing_release_does(change):
    with pytest.raises(AssertionError, match="saw"):
        explore(laps(change), bound=2)


def two_claimers(world: World) -> Callable[[World], None]:
    g = PLAIN
    lay_out_ring(world, 2)
    item(world, 0, Opcode.NOP, 1)
    item(world, 1, Opcode.NOP, 2)
    taken: list[int] = []

    def host() -> Any:
        for i in range(2):
            assert (yield from g["publish"](RING, ITEMS + SLOT_BYTES * i, 1, 0)) == i

    def claimer() -> Any:
        ticket = yield from g["claim"](RING)
        while not ticket:
            yield "pause", ()
            ticket = yield from g["claim"](RING)
        taken.append(ticket - 1)

    world.spawn("host", host())
    world.spawn("one", claimer())
    world.spawn("two", claimer())

    def finish(_: World) -> None:
        assert sorted(taken) == [0, 1], f"tickets {taken}"

    return finish


def test_two_workers_never_take_one_ticket_and_none_is_lost():
    assert explore(two_claimers, bound=2) > 100


def fenced(world: World) -> Callable[[World], None]:
    """Two increments, a fence, a check, on two workers."""
    g = PLAIN
    lay_out_ring(world, 4)
    for i, opcode in enumerate((Opcode.ATOMIC_ADD, Opcode.ATOMIC_ADD, Opcode.BATCH_FENCE, Opcode.LOAD_U32)):
        item(world, i, opcode, 1)
    word = OUT
    read: list[int] = []

    def host() -> Any:
        yield from g["publish"](RING, ITEMS, 4, 0)

    def worker() -> Any:
        while (yield "load64_acquire", (RING + RING_HEAD,)) < 4:
            ticket = yield from g["claim"](RING)
            if not ticket:
                yield "pause", ()
                continue
            slot = yield from g["slot_address"](RING, ticket - 1)
            opcode = yield "load32", (slot + 4,)
            if opcode == Opcode.ATOMIC_ADD:
                yield "fetch_add32", (word, 1)
            elif opcode == Opcode.LOAD_U32:
                read.append((yield "load32_acquire", (word,)))
            yield from g["complete"](ENGINE, RING, ticket - 1, 3, 0, 0, 0, 0, 0, 0, 0)

    world.spawn("host", host())
    world.spawn("one", worker())
    world.spawn("two", worker())

    def finish(_: World) -> None:
        assert read == [2], f"behind the fence {read} was read"

    return finish


def test_nothing_behind_a_fence_begins_before_everything_in_front_of_it_is_complete():
    assert explore(fenced, bound=1) > 100


def sleeping(change: dict[str, Any] | None = None) -> Callable[[World], Callable[[World], None]]:
    """The real worker loop, submit with a wake, and wait: the whole of them, with an engine that executes nothing."""

    g = as_generators(FUNCTIONS, change)

    def scenario(world: World) -> Callable[[World], None]:
        lay_out_ring(world, 2)
        lay_out_engine(world, 1)
        item(world, 0, Opcode.NOP, 1)

        def worker() -> Any:
            yield from g["worker_loop"](ENGINE, (yield from g["take_worker"](ENGINE)))

        def host() -> Any:
            sequence = yield from g["submit"](ENGINE, RING, ITEMS, 1, 0, 1)
            assert sequence != SEQUENCE_NONE
            bell = 0
            # A reader that only sleeps: the worker has to do it.
            while not (yield from g["is_complete"](RING, sequence)):
                bell = yield "load32_acquire", (ENGINE + 128,)
                yield "fetch_add32", (ENGINE + 192, 1)
                if not (yield from g["is_complete"](RING, sequence)):
                    yield "futex_wait", (ENGINE + 128, bell, 0)
                yield "fetch_add32", (ENGINE + 192, -1)
            yield "store32_release", (ENGINE + SESSION_STOP, 1)
            yield "fetch_add32", (ENGINE, 1)
            yield from g["wake_workers"](ENGINE, 1)

        world.spawn("worker", worker())
        world.spawn("host", host())

        def finish(w: World) -> None:
            assert w.peek(RING + RING_COMPLETED) == 1
            assert w.peek(RING + RING_TAIL) == 1

        return finish

    return scenario


def test_a_worker_about_to_sleep_does_not_miss_a_publish_nor_the_end():
    assert explore(sleeping(), bound=2) > 100


@pytest.mark.parametrize(
    "change",
    [
        {
            "wake_workers": (
                "fence()\n    if load32_seqcst(session + SESSION_SLEEPERS) != 0:",
                "if load32_relaxed(session + SESSION_SLEEPERS) != 0:",
            )
        },
        {"worker_loop": ("if has_work(engine) == 0 and load32_acquire", "if load32_acquire")},
    ],
    ids=["no fence before the look at sleepers", "no last look before sleeping"],
)
def test_the_model_finds_a_lost_wake_up(change):
    with pytest.raises(AssertionError, match="asleep for ever"):
        explore(sleeping(change), bound=3, runs_max=100_000)


RAN: list[int] = []
ENDED: list[int] = []


def _run_tiles(engine: int, worker: int, slot: int, image: int, binding: int, first: int, count: int) -> Any:
    RAN.append(first // 1024)
    yield "pause", ()
    return SEQUENCE_NONE


def _finish(*args: int) -> Any:
    ENDED.append(len(RAN))
    yield "pause", ()
    return 0


def _no_wake(*args: int) -> Any:
    return 0
    yield


JOBS = as_generators(FUNCTIONS, {"run_tiles": _run_tiles, "finish": _finish, "wake_workers": _no_wake})


JOB, IMAGE = 0x40_000, 0x50_000


def lay_out_job(world: World) -> None:
    lay_out_ring(world, 2)
    lay_out_engine(world, 2)
    world.poke(ENGINE + state.E_JOBS, JOB)
    world.poke(ENGINE + state.E_JOB_COUNT, 1)
    world.poke(IMAGE + state.I_GRAIN, 1)


def shared_job(world: World) -> Callable[[World], None]:
    """One item of three tiles, two threads: each tile once, the end once, after all tiles."""
    g = JOBS
    RAN.clear()
    ENDED.clear()
    lay_out_job(world)
    jobs, image = JOB, IMAGE

    def owner() -> Any:
        job = yield from g["open_job"](ENGINE, RING, 0, image, 0x60_000, 0, 3 * 1024, 0)
        assert job == jobs
        yield from g["work_on"](ENGINE, 0, job, 0)

    def helper() -> Any:
        for _ in range(2):
            yield from g["help_job"](ENGINE, 0, 0)
            yield "pause", ()

    world.spawn("owner", owner())
    world.spawn("helper", helper())

    def finish(w: World) -> None:
        assert sorted(RAN) == [0, 1, 2], f"tiles {RAN}"
        assert ENDED == [3], f"ended after {ENDED} tiles"
        assert w.peek(jobs + state.J_STATE) & 0xFFFF_FFFF == 0, "the entry is free again"
        assert w.peek(ENGINE + state.E_ACTIVE) == 0
        assert w.peek(ENGINE + state.E_BUSY) == 0

    return finish


def test_tiles_of_a_shared_item_run_once_each_and_whoever_is_last_ends_it():
    assert explore(shared_job, bound=2) > 100


FAULTS: list[int] = []


def _trap_in_tiles_1_and_2(
    engine: int, worker: int, slot: int, image: int, binding: int, first: int, count: int
) -> Any:
    yield "pause", ()
    return SEQUENCE_NONE if first == 0 else (first + 94) << FAULT_ELEMENT_SHIFT | 6


def _finish_with_fault(*args: int) -> Any:
    FAULTS.append(args[8] >> FAULT_ELEMENT_SHIFT)
    return 0
    yield


def trapping_job(change: dict[str, Any] | None = None) -> Callable[[World], Callable[[World], None]]:
    """Tiles 1 and 2 of three trap, whoever runs them first."""
    stubs = {"run_tiles": _trap_in_tiles_1_and_2, "finish": _finish_with_fault, "wake_workers": _no_wake}
    g = as_generators(FUNCTIONS, stubs | (change or {}))

    def scenario(world: World) -> Callable[[World], None]:
        FAULTS.clear()
        lay_out_job(world)

        def owner() -> Any:
            job = yield from g["open_job"](ENGINE, RING, 0, IMAGE, 0x60_000, 0, 3 * 1024, 0)
            yield from g["work_on"](ENGINE, 0, job, 0)

        def helper() -> Any:
            for _ in range(2):
                yield from g["help_job"](ENGINE, 0, 0)
                yield "pause", ()

        world.spawn("owner", owner())
        world.spawn("helper", helper())

        def finish(_: World) -> None:
            assert FAULTS == [1024 + 94], f"the item's fault is at element {FAULTS}"

        return finish

    return scenario


def test_the_fault_of_a_shared_item_is_that_of_its_lowest_element_whichever_tile_is_first():
    assert explore(trapping_job(), bound=2) > 100


def test_the_model_finds_a_tile_that_is_skipped_for_a_fault_behind_it():
    skip_for_any = "load64_relaxed(job + J_FAULT) == FAULT_NONE"
    change = {"work_on": ("known >= first + (tile << TILE_SHIFT)", skip_for_any)}
    with pytest.raises(AssertionError, match="at element"):
        explore(trapping_job(change), bound=2)
