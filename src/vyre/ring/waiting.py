"""Who sleeps and who wakes whom. Native functions; see vyre.native.

A worker spins for at most SPIN_TICKS, then sleeps on WORK_BELL; a waiter likewise on DONE_BELL. Sleeping is
announced before the last look, and a look at the announcement follows every store that could end the sleep, so no
wake-up is lost; the time limit on each sleep is a net below that, not part of the argument.
"""

from __future__ import annotations

from vyre.native import (
    Unit,
    fence,
    fetch_add32,
    futex_wake,
    load32_seqcst,
    load64_acquire,
)
from vyre.ring.consumer import claimable, consumer
from vyre.ring.layout import (
    SESSION_RING_COUNT,
    SESSION_RING_LIST,
    SESSION_SLEEPERS,
    SESSION_WORK_BELL,
)

SLEEP_NS = 100_000_000  # net below a lost wake-up; an idle worker wakes ten times a second
SPIN_NS = 2_000

waiting = Unit("waiting", consumer)


@waiting.function
def wake_workers(session: int, count: int) -> None:
    """Wake up to ``count`` sleeping workers, after a publish or when there is work left that one could share."""
    # Stands between the store that made the work visible and the look at SLEEPERS; pairs with the sequentially
    # consistent add of a sleeper before its last look: one of the two sees the other.
    fence()
    if load32_seqcst(session + SESSION_SLEEPERS) != 0:
        fetch_add32(session + SESSION_WORK_BELL, 1)
        futex_wake(session + SESSION_WORK_BELL, count)


@waiting.function
def any_claimable(session: int) -> int:
    """1 when some ring has a ticket to give."""
    i = 0
    n = load64_acquire(session + SESSION_RING_COUNT)
    while i < n:
        ring = load64_acquire(session + SESSION_RING_LIST + 8 * i)
        if ring != 0 and claimable(ring) != 0:
            return 1
        i += 1
    return 0
