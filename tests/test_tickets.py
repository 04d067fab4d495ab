"""Tickets: waiting, awaiting, deadlines, cancelling, rings that are full."""

from __future__ import annotations

import asyncio
import gc
import threading
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

import vyre
from vyre.errors import Cancelled, ProgramFault, RingFull, SessionClosed, WaitTimeout
from vyre.program.opcodes import FaultCode


@vyre.program
def double(x: vyre.i32):
    return 2 * x


@vyre.program
def slow(x: vyre.i32, *, turns: vyre.i32):
    """Takes turns times about a nanosecond an element."""
    left = turns + x * 0
    while left > 0:
        left -= 1
    return left


@vyre.program
def divide(x: vyre.i32, *, by: vyre.i32):
    return x // by


X = np.arange(3_000, dtype=np.int32)
LONG = np.zeros(1024 * 64, np.int32)


@pytest.fixture
def session() -> Iterator[vyre.Session]:
    with vyre.open("cpu", workers=2) as found:
        yield found


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_a_ticket_gives_its_result_as_often_as_it_is_asked(engine):
    with vyre.open(engine) as session:
        ticket = session.submit(double, x=X)
        for _ in range(3):
            np.testing.assert_array_equal(ticket.result(timeout_s=30).value, 2 * X)
        assert ticket.done()


def test_tickets_complete_without_anybody_waiting(session):
    ticket = session.submit(double, x=X)
    give_up = time.monotonic() + 10
    while session.engine.ring.completed == 0:
        assert time.monotonic() < give_up
        time.sleep(0.001)
    assert ticket.done()


def test_results_come_in_whatever_order_they_are_asked_for(session):
    tickets = [session.submit(double, x=X + i) for i in range(50)]
    for i in reversed(range(50)):
        np.testing.assert_array_equal(tickets[i].result().value, 2 * (X + i))


def test_collected_tickets_are_forgotten_by_the_session(session):
    for _ in range(100):
        session.submit(double, x=X).result()
    assert not session._outstanding


def test_abandoned_tickets_do_not_fill_the_ring():
    with vyre.open("cpu", workers=1, capacity=16) as session:
        for _ in range(500):
            session.submit(double, x=X[:10])
        np.testing.assert_array_equal(session.run(double, x=X).value, 2 * X)
        assert len(session._outstanding) <= 16


def test_tickets_of_a_small_ring_are_all_answered_though_nobody_asked_in_between():
    with vyre.open("cpu", workers=1, capacity=4) as session:
        tickets = [session.submit(double, x=X[i : i + 5]) for i in range(200)]
        for i, ticket in enumerate(tickets):
            assert ticket.result().value.tolist() == (2 * X[i : i + 5]).tolist()


def test_submit_nowait_gives_none_when_the_ring_is_full_and_it_is_counted():
    with vyre.open("cpu", workers=1, capacity=2, resident=False) as session:
        tickets = [session.submit_nowait(double, x=X) for _ in range(2)]
        assert session.submit_nowait(double, x=X) is None
        assert session.engine.ring.refused_full == 1
        assert len(session._outstanding) == 2
        assert all(t.result().value[1] == 2 for t in tickets)
        assert session.submit_nowait(double, x=X).result().value[2] == 4


def test_submit_raises_ring_full_when_no_slot_becomes_free_in_time():
    with vyre.open("cpu", workers=1, capacity=1, resident=False) as session:
        sequence = session.publish(0)  # nobody but its publisher may read this record
        with pytest.raises(RingFull, match="no slot of the session's ring became free in time"):
            session.submit(double, x=X, timeout_s=0.02)
        with pytest.raises(RingFull):
            session.run(double, x=X, timeout_s=0.02)
        assert not session._outstanding
        session.completions(sequence, 1)
        assert session.run(double, x=X).value[3] == 6


def test_a_wait_that_is_too_short_says_so_and_the_item_goes_on(session):
    ticket = session.submit(slow, x=LONG, turns=20_000)
    with pytest.raises(WaitTimeout, match=r"no result within 0.001 s; the item goes on"):
        ticket.result(timeout_s=0.001)
    assert isinstance(WaitTimeout("x"), TimeoutError)
    assert not ticket.result(timeout_s=60).value.any()


def test_an_item_past_its_deadline_ends_in_a_fault_that_says_so(session):
    began = time.monotonic()
    ticket = session.submit(slow, x=LONG, turns=100_000, timeout_s=0.05)
    with pytest.raises(ProgramFault, match="deadline passed") as caught:
        ticket.result()
    assert caught.value.fault.code == FaultCode.deadline
    assert time.monotonic() - began < 3
    assert ticket.result(on_fault="report").fault.code == FaultCode.deadline
    np.testing.assert_array_equal(session.run(double, x=X).value, 2 * X)


def test_a_deadline_that_is_met_changes_nothing(session):
    np.testing.assert_array_equal(session.submit(double, x=X, timeout_s=60).result().value, 2 * X)


def test_a_cancelled_item_ends_soon_and_says_that_it_was_cancelled(session):
    ticket = session.submit(slow, x=LONG, turns=100_000)
    time.sleep(0.02)
    began = time.monotonic()
    ticket.cancel()
    with pytest.raises(Cancelled):
        ticket.result()
    assert time.monotonic() - began < 2
    np.testing.assert_array_equal(session.run(double, x=X).value, 2 * X)


def test_cancelling_what_is_done_changes_nothing(session):
    ticket = session.submit(double, x=X)
    ticket.result()
    ticket.cancel()
    assert ticket.result().value[5] == 10


def test_a_run_that_is_not_done_in_time_is_cancelled_and_over(session):
    began = time.monotonic()
    out = np.full(len(LONG), 7, np.int32)
    with pytest.raises(WaitTimeout, match=r"no result within 0.05 s; the item was cancelled"):
        session.run(slow, x=LONG, turns=100_000, out=out, timeout_s=0.05)
    assert time.monotonic() - began < 3
    seen = out.copy()
    time.sleep(0.02)
    np.testing.assert_array_equal(out, seen, "nobody writes to it any more")
    bound = session.bind(slow, x=LONG, turns=100_000)
    with pytest.raises(WaitTimeout):
        bound.run(timeout_s=0.02)
    with pytest.raises(WaitTimeout):
        bound.run(timeout_s=0.02)


def test_a_fault_is_raised_each_time_it_is_asked_for_or_reported(session):
    ticket = session.submit(divide, x=X, by=0)
    for _ in range(2):
        with pytest.raises(ProgramFault, match="integer divide by zero"):
            ticket.result()
    reported = ticket.result(on_fault="report")
    assert reported.fault.element == 0
    with pytest.raises(ProgramFault):
        _ = reported["value"]


def test_faults_give_their_bindings_back():
    with vyre.open("cpu", workers=1) as session:
        free = len(session.engine._free_bindings)
        for _ in range(50):
            with pytest.raises(ProgramFault):
                session.run(divide, x=X, by=0)
            with pytest.raises(ProgramFault):
                session.submit(divide, x=X, by=0).result()
        assert free - len(session.engine._free_bindings) <= 8


def test_several_threads_may_wait_for_one_ticket(session):
    for _ in range(20):
        ticket = session.submit(double, x=LONG)
        with ThreadPoolExecutor(4) as pool:
            found = list(pool.map(lambda _, t=ticket: t.result().value, range(4)))
        assert all(not a.any() for a in found)


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_tickets_can_be_awaited_and_gathered(engine):
    async def main(session: vyre.Session) -> list[int]:
        one = await session.submit(double, x=X)
        assert one.value[7] == 14
        found = await asyncio.gather(*[session.submit(double, x=X + i) for i in range(100)])
        return [int(r.value[0]) for r in found]

    with vyre.open(engine) as session:
        assert asyncio.run(main(session)) == [2 * i for i in range(100)]


def test_awaiting_leaves_the_event_loop_free(session):
    async def main() -> int:
        ticks = 0
        task = asyncio.ensure_future(_waits(session.submit(slow, x=LONG, turns=10_000)))
        while not task.done():
            await asyncio.sleep(0.001)
            ticks += 1
        await task
        return ticks

    async def _waits(ticket: vyre.Ticket) -> None:
        await ticket

    assert asyncio.run(main()) >= 2


def test_cancelling_the_task_cancels_the_item(session):
    async def main() -> None:
        ticket = session.submit(slow, x=LONG, turns=100_000)

        async def wait() -> None:
            await ticket

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0.02)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(Cancelled):
            await ticket

    began = time.monotonic()
    asyncio.run(main())
    assert time.monotonic() - began < 5


def test_a_fault_comes_out_of_await(session):
    async def main() -> None:
        await session.submit(divide, x=X, by=0)

    with pytest.raises(ProgramFault, match="divide by zero"):
        asyncio.run(main())


def test_tickets_that_were_done_before_the_session_closed_keep_their_result_and_others_say_closed():
    session = vyre.open("cpu", workers=1)
    early = session.submit(double, x=X)
    early.result()
    late = session.submit(slow, x=LONG, turns=100_000)
    began = time.monotonic()
    session.close()
    assert time.monotonic() - began < 3
    assert early.result().value[1] == 2
    with pytest.raises((SessionClosed, Cancelled)):
        late.result()
    assert late.done()


def test_a_thread_that_waits_hears_that_the_session_was_closed():
    session = vyre.open("cpu", workers=1)
    ticket = session.submit(slow, x=LONG, turns=100_000)
    heard: list[BaseException] = []

    def wait() -> None:
        try:
            ticket.result()
        except (SessionClosed, Cancelled) as error:
            heard.append(error)

    waiter = threading.Thread(target=wait)
    waiter.start()
    time.sleep(0.05)
    session.close()
    waiter.join(5)
    assert len(heard) == 1


def test_arrays_of_an_item_live_as_long_as_it_does(session):
    ticket = session.submit(slow, x=np.zeros(1024 * 64, np.int32), turns=2_000)
    gc.collect()
    _ = [np.full(1024 * 64, 99, np.int32) for _ in range(10)]
    assert not ticket.result().value.any()


def test_an_idle_binding_does_not_keep_its_arrays_alive(session):
    import weakref

    x = np.zeros(100, np.int32)
    seen = weakref.ref(x)
    session.run(double, x=x)
    session.submit(double, x=x).result()
    del x
    gc.collect()
    assert seen() is None


def test_closing_does_not_wait_for_a_thousand_tickets_one_by_one():
    session = vyre.open("cpu", workers=1)
    tickets = [session.submit(slow, x=LONG[:1024], turns=20_000) for _ in range(1_000)]
    began = time.monotonic()
    session.close()
    assert time.monotonic() - began < 5
    for ticket in tickets:
        try:
            assert not ticket.result().value.any()
        except (SessionClosed, Cancelled):
            pass


def test_what_was_done_before_closing_keeps_its_result_though_nobody_had_asked():
    session = vyre.open("cpu", workers=1)
    ticket = session.submit(double, x=X)
    give_up = time.monotonic() + 10
    while session.engine.ring.completed == 0:
        assert time.monotonic() < give_up
        time.sleep(0.001)
    session.close()
    np.testing.assert_array_equal(ticket.result().value, 2 * X)
