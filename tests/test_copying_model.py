"""The copiers' board, explored: the functions that run natively, executed under every schedule of few deviations.

The scenario also shows that it can fail: with one order or one look left out, the same exploration finds what goes wrong.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

from native_model import World, as_generators, explore
from vyre.stream import copying as c

BOARD, SLOTS, READS, POOL = 0x1000, 0x2000, 0x3000, 0x4000
FUNCTIONS = c.copying.functions


@pytest.fixture(autouse=True)
def no_spinning(monkeypatch):
    """Clocks of the model count accesses: a copier goes to sleep at its first look that finds nothing."""
    monkeypatch.setattr(c, "SPIN_NS", 1)


def two_laps(change: dict[str, Any] | None = None) -> Callable[[World], Callable[[World], None]]:
    """One slot of two reads, filled twice by two copiers; the producer reads it each time before it queues the next."""
    g = as_generators(FUNCTIONS, change)

    def scenario(world: World) -> Callable[[World], None]:
        world.constants += [(BOARD + c.BOARD_READS, BOARD + c.BOARD_SLOTS + 8)]
        world.poke(BOARD + c.BOARD_READS, READS)
        world.poke(BOARD + c.BOARD_MASK, 3)
        world.poke(BOARD + c.BOARD_SLOTS, SLOTS)
        world.system = lambda name, args: (args[2], [(args[1], args[3])])  # a read gives its offset
        seen: list[tuple[int, int]] = []

        def producer() -> Any:
            for lap in (1, 2):
                for k in range(2):
                    read = READS + c.READ_BYTES * (2 * (lap - 1) + k)
                    words = (7, c.NO_FD, POOL + 8 * k, 100 * lap + k, 8, 8, 2 * lap << 32, lap)
                    for i, word in enumerate(words):
                        yield "store64", (read + 8 * i, word)
                yield from g["queue_reads"](BOARD, 2 * lap, 2)
                while True:
                    filled = yield "load32_acquire", (BOARD + c.BOARD_FILLED,)
                    if (yield "load64_acquire", (SLOTS + c.SLOT_FULL,)) == lap:
                        break
                    yield from g["await_either"](BOARD, filled, 0, 0, 1 << 40, 0)
                seen.append(((yield "load64_acquire", (POOL,)), (yield "load64_acquire", (POOL + 8,))))
            yield "store64_release", (BOARD + c.BOARD_STOP, 1)
            yield from g["wake_copiers"](BOARD, 2)

        world.spawn("producer", producer())
        for name in ("one", "two"):
            world.spawn(name, g["copy_until_stopped"](BOARD))

        def finish(w: World) -> None:
            assert seen == [(100, 101), (200, 201)], f"the producer saw {seen}"
            assert w.peek(SLOTS + c.SLOT_ERROR) == 0
            assert w.peek(BOARD + c.BOARD_CACHED) == 32

        return finish

    return scenario


def test_a_slot_is_full_when_all_its_reads_are_done_and_nobody_sleeps_for_ever():
    assert explore(two_laps(), bound=1) > 100


@pytest.mark.parametrize(
    "change",
    [
        {"queue_reads": ("store64_release(board + BOARD_TAIL, tail)", "store64(board + BOARD_TAIL, tail)")},
        {"finish": ("== where >> 32:", "== (where >> 32) - 1:")},
        {"finish": ("fetch_add32(board + BOARD_FILLED, 1)", "fetch_add32(board + BOARD_FILLED, 0)")},
        {"sleep_until_queued": ("if ready == 0 and load64_acquire(board + BOARD_STOP) == 0:", "if ready == 0:")},
        {"wake_copiers": ("load64_seqcst(board + BOARD_SLEEPERS) != 0", "load64_seqcst(board + BOARD_SLEEPERS) > 2")},
    ],
    ids=["tail", "last read", "bell of the producer", "last look of a copier", "waking"],
)
def test_the_model_finds_what_is_left_out(change):
    with pytest.raises(AssertionError, match=r"saw|asleep|livelock|without"):
        explore(two_laps(change), bound=2, runs_max=5_000)
