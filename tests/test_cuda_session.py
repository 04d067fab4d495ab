"""Sessions of the GPU engine on a stand-in device: what the host does, without a GPU."""

from __future__ import annotations

import asyncio
import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest

import vyre
from fake_gpu import open_fake
from vyre.errors import Cancelled, Paused, ProgramFault, WaitTimeout
from vyre.geometry import DispatchConfig
from vyre.program.opcodes import FaultCode
from vyre.ring.layout import FLAG_INLINE_PARAMS, SLOT_DTYPE, Status

PLUS = vyre.expression("x + 1", {"x": vyre.i32})
DIVIDE = vyre.expression("100 // x", {"x": vyre.i32})
X = np.arange(3_000, dtype=np.int32)


@pytest.fixture
def session(monkeypatch: pytest.MonkeyPatch) -> Iterator[vyre.Session]:
    with open_fake(monkeypatch) as found:
        yield found


@pytest.fixture
def slow(monkeypatch: pytest.MonkeyPatch) -> Iterator[vyre.Session]:
    """Each item takes 0.3 s unless it is stopped."""
    with open_fake(monkeypatch, work_s=0.3) as found:
        yield found


def test_the_session_says_that_the_kernel_is_fed_while_it_runs(session):
    assert session.choice == "engine cuda, device 0, as asked"
    assert session.engine.residency.resident
    np.testing.assert_array_equal(session.run(PLUS, x=X).value, X + 1)


def test_where_a_resident_kernel_hears_nothing_the_session_works_in_finite_launches_and_says_so(monkeypatch):
    with open_fake(monkeypatch, live=False) as session:
        assert "in finite launches, because a slot published while the kernel was there" in session.choice
        for i in range(20):
            np.testing.assert_array_equal(session.run(PLUS, x=X + i).value, X + i + 1)
        tickets = [session.submit(PLUS, x=X + i) for i in range(20)]
        for i, ticket in enumerate(tickets):
            np.testing.assert_array_equal(ticket.result(10).value, X + i + 1)


def test_a_session_that_is_not_resident_leaves_the_gpu_as_soon_as_its_work_is_done(monkeypatch):
    with open_fake(monkeypatch, resident=False) as session:
        assert session.engine.device.launches == []
        for i in range(5):
            np.testing.assert_array_equal(session.run(PLUS, x=X + i).value, X + i + 1)
            session.engine.device.wait_for(session.engine.device.stream)
            assert not session.engine.residency.is_here
        assert len(session.engine.device.launches) == 5


# --- ending items early ---------------------------------------------------------------------------------------------


def test_a_cancelled_item_that_has_not_begun_does_not_begin(slow):
    first, second = slow.submit(PLUS, x=X), slow.submit(PLUS, x=X)
    second.cancel()
    with pytest.raises(Cancelled):
        second.result()
    np.testing.assert_array_equal(first.result().value, X + 1)


def test_a_cancelled_item_that_runs_ends_soon(monkeypatch):
    with open_fake(monkeypatch, work_s=20.0) as session:
        ticket = session.submit(PLUS, x=X)
        time.sleep(0.05)
        began = time.monotonic()
        ticket.cancel()
        with pytest.raises(Cancelled):
            ticket.result()
        assert time.monotonic() - began < 2


def test_cancelling_what_is_done_changes_nothing_and_does_not_reach_who_has_its_slot_now(monkeypatch):
    with open_fake(monkeypatch, capacity=2) as session:
        ticket = session.submit(PLUS, x=X)
        ticket.result()
        ticket.cancel()
        session.engine.residency.stop(0, 1, FaultCode.cancelled)
        assert ticket.result().value[5] == 6
        for _ in range(5):
            np.testing.assert_array_equal(session.run(PLUS, x=X).value, X + 1)


def test_an_item_past_its_deadline_ends_in_a_fault_that_says_so(monkeypatch):
    with open_fake(monkeypatch, work_s=20.0) as session:
        began = time.monotonic()
        ticket = session.submit(PLUS, x=X, timeout_s=0.05)
        with pytest.raises(ProgramFault, match="deadline passed") as caught:
            ticket.result()
        assert caught.value.fault.code == FaultCode.deadline
        assert time.monotonic() - began < 2


def test_an_item_whose_deadline_is_over_when_it_is_published_does_not_begin(session):
    launches = session.engine.device
    launches.work_s = 5.0
    began = time.monotonic()
    with pytest.raises(ProgramFault, match="deadline passed"):
        session.submit(PLUS, x=X, timeout_s=0.0).result()
    assert time.monotonic() - began < 2


def test_deadlines_that_were_met_are_forgotten(monkeypatch):
    with open_fake(monkeypatch, capacity=8) as session:
        for _ in range(100):
            session.submit(PLUS, x=X, timeout_s=60).result()
        assert len(session.engine.residency._deadlines) <= 2 * 8 + 1


def test_a_run_that_is_not_done_in_time_is_cancelled_and_over(monkeypatch):
    with open_fake(monkeypatch, work_s=20.0) as session:
        began = time.monotonic()
        with pytest.raises(WaitTimeout, match=r"no result within 0.05 s; the item was cancelled"):
            session.run(PLUS, x=X, timeout_s=0.05)
        assert time.monotonic() - began < 2
        session.engine.device.work_s = 0.0
        np.testing.assert_array_equal(session.run(PLUS, x=X).value, X + 1)


def test_tickets_can_be_awaited_and_cancelling_the_task_cancels_the_item(slow):
    async def main() -> None:
        assert (await slow.submit(PLUS, x=X)).value[7] == 8
        ticket = slow.submit(PLUS, x=X)

        async def wait() -> None:
            await ticket

        task = asyncio.ensure_future(wait())
        await asyncio.sleep(0.05)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        with pytest.raises(Cancelled):
            await ticket

    asyncio.run(main())


def test_a_thread_that_waits_long_leaves_the_processor_to_others(monkeypatch):
    with open_fake(monkeypatch, work_s=0.5) as session:
        session.run(PLUS, x=X)
        ticket = session.submit(PLUS, x=X)
        before = time.thread_time()
        assert ticket.result().value[0] == 1
        assert time.thread_time() - before < 0.15


def test_closing_cancels_what_is_not_done(monkeypatch):
    with open_fake(monkeypatch, work_s=20.0) as session:
        tickets = [session.submit(PLUS, x=X) for _ in range(10)]
        began = time.monotonic()
        session.close()
        assert time.monotonic() - began < 3
        for ticket in tickets:
            with pytest.raises((Cancelled, vyre.SessionClosed)):
                ticket.result()


# --- finite dispatch ------------------------------------------------------------------------------------------------


def test_a_batch_of_programs_is_launched_with_the_geometrys_grid(session):
    before = len(session.engine.device.launches)
    config = DispatchConfig(None, (7, 1, 1), (96, 1, 1))
    bound = session.bind(PLUS, x=X + 100)
    results = session.dispatch([(PLUS, {"x": X + i}) for i in range(20)] + [bound], config)
    for i, result in enumerate(results[:-1]):
        np.testing.assert_array_equal(result.value, X + i + 1)
        assert not any("without a finite launch" in note for note in result.report.notes)
    np.testing.assert_array_equal(results[-1].value, X + 101)
    assert session.engine.device.launches[before:] == [(7, 96)]
    np.testing.assert_array_equal(bound.run().value, X + 101)


def test_without_a_config_a_batch_gets_as_many_groups_as_the_gpu_holds_at_once(session):
    before = len(session.engine.device.launches)
    session.dispatch([(PLUS, {"x": X[:10] + i}) for i in range(600)])
    blocks = session.engine.residency.blocks
    assert {groups for groups, _ in session.engine.device.launches[before:]} == {blocks}


def test_a_batch_that_the_ring_has_no_room_for_takes_several_launches(monkeypatch):
    with open_fake(monkeypatch, capacity=16) as session:
        ticket = session.submit(PLUS, x=X)  # takes one slot until somebody asks
        before = len(session.engine.device.launches)
        results = session.dispatch([(PLUS, {"x": X + i}) for i in range(50)])
        assert [int(r.value[0]) for r in results] == [i + 1 for i in range(50)]
        assert len(session.engine.device.launches) - before >= 4
        assert ticket.result().value[0] == 1


def test_a_fault_is_raised_after_the_others_ran_or_reported_in_its_place(session):
    good, bad = np.ones(5, np.int32), np.array([1, 0], np.int32)
    batch = [(DIVIDE, {"x": good}), (DIVIDE, {"x": bad}), (DIVIDE, {"x": good})]
    with pytest.raises(ProgramFault, match="element 1"):
        session.dispatch(batch)
    results = session.dispatch(batch, on_fault="report")
    assert [r.fault is None for r in results] == [True, False, True]
    assert results[2].value.tolist() == [100] * 5


def test_items_that_have_not_begun_at_the_timeout_end_in_fault(slow):
    began = time.monotonic()
    results = slow.dispatch([(PLUS, {"x": X})] * 50, DispatchConfig(0.05, (1, 1, 1), (64, 1, 1)), on_fault="report")
    assert time.monotonic() - began < 5
    assert results[-1].fault.code == FaultCode.deadline


def test_a_slot_may_bring_its_own_first_three_parameters(session):
    program = vyre.expression("a*x + b*x*x + c - d", dict.fromkeys("xabcd", vyre.f32), params=list("abcd"))
    x = np.arange(2_000, dtype=np.float32)
    item = session.bind(program, x=x, a=1.0, b=2.0, c=3.0, d=4.0)._item
    plain = np.frombuffer(item.prepared(), SLOT_DTYPE).copy()
    own = plain.copy()
    own["flags"] = FLAG_INLINE_PARAMS
    bits = np.zeros(6, np.uint32)
    bits[::2] = np.array([10, 20, 30], np.float32).view(np.uint32)
    own["inline"] = bits
    for slot, (a, b, c) in ((plain, (1, 2, 3)), (own, (10, 20, 30)), (plain, (1, 2, 3))):
        record = session.dispatch(slot)[0]
        assert record["status"] == Status.DONE
        found = item._binding.outputs[0]
        np.testing.assert_array_equal(found, (a * x + b * x * x + np.float32(c) - 4).astype(found.dtype))


# --- pause ----------------------------------------------------------------------------------------------------------


def test_inside_a_pause_the_kernel_is_away_and_what_others_hand_over_waits(session):
    session.run(PLUS, x=X)
    found = []
    with session.pause():
        assert not session.engine.residency.is_here
        other = threading.Thread(target=lambda: found.append(session.run(PLUS, x=X).value))
        other.start()
        ticket = session.submit(PLUS, x=X)
        time.sleep(0.05)
        assert not session.engine.residency.is_here
        assert found == []
        assert not ticket.done()
    other.join(10)
    np.testing.assert_array_equal(found[0], X + 1)
    np.testing.assert_array_equal(ticket.result().value, X + 1)


def test_waiting_inside_ones_own_pause_is_refused_instead_of_hanging(session):
    bound = session.bind(PLUS, x=X)
    with session.pause(), session.pause():
        ticket = session.submit(PLUS, x=X)
        for wait in (lambda: session.run(PLUS, x=X), bound.run, ticket.result, lambda: session.dispatch([bound])):
            with pytest.raises(Paused, match="this thread holds"):
                wait()
    np.testing.assert_array_equal(ticket.result().value, X + 1)
    np.testing.assert_array_equal(bound.run().value, X + 1)


def test_pausing_an_engine_of_the_host_changes_nothing():
    with vyre.open("reference") as session, session.pause():
        np.testing.assert_array_equal(session.run(PLUS, x=X).value, X + 1)


def test_a_closed_session_has_given_everything_back(monkeypatch, tmp_path):
    np.save(tmp_path / "x.npy", X)
    total = vyre.expression("sum(x)", {"x": vyre.i32})
    for i in range(20):
        with open_fake(monkeypatch, capacity=64) as session:
            device, keeper = session.engine.device, session.engine.residency._keeper
            session.run(PLUS, x=X)
            assert session.run(total, x=tmp_path / "x.npy").value == X.sum()
            session.dispatch([(PLUS, {"x": X})])
            session.submit(PLUS, x=X, timeout_s=60)
            with session.pause():
                session.submit(PLUS, x=X)
        assert device.mappings == {}, f"memory that nobody has given back after {i + 1} sessions"
        assert device.registered == {}
        keeper.join(5)
        assert not keeper.is_alive()
