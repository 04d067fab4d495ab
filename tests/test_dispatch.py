"""Finite dispatch: any geometry covers every item, and the groups leave (decision 31, behaviour 44)."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

import vyre
from vyre.errors import BindError, ProgramError, ProgramFault, SessionClosed
from vyre.geometry import DispatchConfig, LaunchGeometry
from vyre.program.opcodes import FaultCode
from vyre.ring.layout import Opcode, Status


@vyre.program
def double(x: vyre.i32):
    vyre.sum(total=x)
    return 2 * x


@vyre.program
def divide(x: vyre.i32):
    return 100 // x


@vyre.program
def slow(x: vyre.i32, *, turns: vyre.i32):
    left = turns + x * 0
    while left > 0:
        left -= 1
    return left


@pytest.fixture(scope="module")
def session() -> Iterator[vyre.Session]:
    with vyre.open("cpu", workers=2) as found:
        yield found


def adds(n: int, word: int = 0) -> np.ndarray:
    items = np.zeros((n, 16), np.uint32)
    items[:, 1], items[:, 4], items[:, 5] = Opcode.ATOMIC_ADD, word, 1
    return items


@pytest.mark.parametrize("options", [{}, {"workers": 1}, {"workers": 3}, {"resident": False}], ids=str)
def test_65536_slots_with_64_workers_of_width_256_are_all_executed(options):
    geometry = LaunchGeometry.from_slots(65_536, 64, 256)
    with vyre.open("cpu", **options) as session:
        records = session.dispatch(adds(65_536), geometry.dispatch_config())
        assert session.engine.session_words[0] == 65_536
    assert (records["status"] == Status.DONE).all()
    assert sorted(records["value"].tolist()) == list(range(65_536))


@settings(max_examples=40, deadline=None)
@given(
    items=st.integers(0, 300),
    grid=st.tuples(st.integers(0, 70), st.integers(0, 3), st.integers(0, 3)),
    width=st.integers(0, 1_024),
)
def test_coverage_never_depends_on_geometry(session, items, grid, width):
    before = int(session.engine.session_words[1])
    records = session.dispatch(adds(items, word=1), DispatchConfig(None, grid, (width, 1, 1)))
    assert len(records) == items
    assert (records["status"] == Status.DONE).all()
    assert session.engine.session_words[1] - before == items


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_a_batch_of_programs_gives_its_results_in_order(engine):
    with vyre.open(engine) as session:
        x = np.arange(2_000, dtype=np.int32)
        bound = session.bind(double, x=x + 100)
        results = session.dispatch([(double, {"x": x + i}) for i in range(20)] + [bound])
        assert len(results) == 21
        for i, r in enumerate([*results[:-1]]):
            np.testing.assert_array_equal(r["value"], 2 * (x + i))
            assert r["total"] == (x + i).sum()
        np.testing.assert_array_equal(results[-1]["value"], 2 * (x + 100))
        np.testing.assert_array_equal(bound.run()["value"], 2 * (x + 100))
        assert session.dispatch([]) == []


@pytest.mark.parametrize("groups", [1, 2, 64])
@pytest.mark.parametrize("options", [{}, {"resident": False}], ids=str)
def test_long_items_that_resident_workers_help_with_are_waited_for(options, groups):
    x = np.ones(3_000_000, np.int32)
    with vyre.open("cpu", workers=2, **options) as session:
        for _ in range(5):
            results = session.dispatch([(double, {"x": x})] * 3, DispatchConfig(None, (groups, 1, 1), (1, 1, 1)))
            assert [r["total"] for r in results] == [3_000_000] * 3


def test_a_fence_behind_a_long_item_is_not_left_behind(session):
    x = np.ones(2_000_000, np.int32)
    bound = session.bind(double, x=x)
    for _ in range(10):
        items = np.zeros((3, 16), np.uint32)
        items[0] = bound._item.prepared().view(np.uint32)
        items[1, 1] = Opcode.BATCH_FENCE
        items[2, 1] = Opcode.NOP
        records = session.dispatch(items)
        assert records["status"].tolist() == [Status.DONE] * 3
        assert records["finished"][0] <= records["started"][2]


def test_a_fault_is_raised_after_the_others_ran_or_reported_in_its_place(session):
    good, bad = np.ones(5, np.int32), np.array([1, 0], np.int32)
    batch = [(divide, {"x": good}), (divide, {"x": bad}), (divide, {"x": good})]
    with pytest.raises(ProgramFault, match="element 1"):
        session.dispatch(batch)
    results = session.dispatch(batch, on_fault="report")
    assert [r.fault is None for r in results] == [True, False, True]
    assert results[2].value.tolist() == [100] * 5


def test_items_that_have_not_begun_at_the_timeout_end_in_fault(session):
    x = np.zeros(64 * 1024, np.int32)
    config = LaunchGeometry.from_item_count(50, 2, 256).dispatch_config(0.05)
    began = time.monotonic()
    results = session.dispatch([(slow, {"x": x, "turns": 20_000})] * 50, config, on_fault="report")
    assert time.monotonic() - began < 5
    assert results[-1].fault.code == FaultCode.deadline


@pytest.mark.parametrize(
    ("batch", "words"),
    [
        ([3], "item 0 of the batch is a int"),
        ([("only one",)], "item 0 of the batch is a tuple"),
        ([(double, {"y": 1})], "declares no 'y'"),
        (np.zeros((3, 4), np.uint32), r"a batch is u32\[n, 16\]"),
    ],
)
def test_what_is_no_batch_is_refused_and_keeps_no_binding(session, batch, words):
    before = len(session.engine._blocks)
    with pytest.raises(BindError, match=words):
        session.dispatch(batch)
    assert len(session.engine._blocks) == before


def test_what_is_bound_elsewhere_or_twice_is_refused(session):
    x = np.ones(5, np.int32)
    bound = session.bind(double, x=x)
    with pytest.raises(BindError, match="item 1 of the batch is there twice"):
        session.dispatch([bound, bound])
    with (
        vyre.open("cpu", workers=1) as other,
        pytest.raises(BindError, match="item 0 of the batch is bound in another session"),
    ):
        other.dispatch([bound])


def test_an_opcode_without_a_handler_refuses_the_whole_batch(session):
    items = adds(10, word=2)
    items[7, 1] = 0x3FFF_0000
    with pytest.raises(ProgramError, match="item 7 of 10: opcode 0x3fff0000 has no handler"):
        session.dispatch(items)
    assert session.engine.session_words[2] == 0


def test_a_session_without_residents_keeps_no_thread_and_answers_all_the_same():
    before = threading.active_count()
    x = np.arange(200_000, dtype=np.int32)
    with vyre.open("cpu", resident=False) as session:
        assert threading.active_count() == before
        np.testing.assert_array_equal(session.run(double, x=x)["value"], 2 * x)
        tickets = [session.submit(double, x=x + i) for i in range(5)]
        assert [int(t.result()["value"][0]) for t in tickets] == [0, 2, 4, 6, 8]
        ticket = session.submit(double, x=x)
        while not ticket.done():
            pass
        np.testing.assert_array_equal(session.dispatch([(double, {"x": x})])[0]["value"], 2 * x)
        assert threading.active_count() == before


def test_groups_are_gone_when_a_dispatch_returns(session):
    before = threading.active_count()
    session.dispatch(adds(1_000, word=3))
    assert threading.active_count() == before
    assert session.engine._memory.in_use == 2


def test_a_dispatch_in_a_closed_session_is_refused_and_one_under_way_ends():
    session = vyre.open("cpu", workers=1)
    heard: list[BaseException] = []

    def run() -> None:
        try:
            session.dispatch([(slow, {"x": np.zeros(64 * 1024, np.int32), "turns": 20_000})] * 20)
        except SessionClosed as error:
            heard.append(error)

    thread = threading.Thread(target=run)
    thread.start()
    time.sleep(0.1)
    session.close()
    thread.join(10)
    assert not thread.is_alive()
    assert len(heard) == 1
    with pytest.raises(SessionClosed):
        session.dispatch(adds(3))


def test_slots_for_the_gpu_are_launched_with_the_geometrys_grid_and_whole_warps():
    from types import SimpleNamespace

    from vyre.geometry import DispatchConfig
    from vyre.ring.layout import SLOT_DTYPE
    from vyre.runtime.dispatch import block_threads, dispatch

    launched = []
    engine = SimpleNamespace(
        name="cuda", dispatch=lambda slots, *grid, timeout_s, make_room: launched.append((len(slots), *grid, timeout_s))
    )
    config = DispatchConfig(timeout=None, grid_override=(7, 1, 1), workgroup_override=(100, 1, 1))
    dispatch(SimpleNamespace(engine=engine, _reap=None), np.zeros(3, SLOT_DTYPE), config, "raise")
    assert launched == [(3, 7, 96, None)]
    widths = [DispatchConfig(None, (1, 1, 1), (w, 1, 1)) for w in (1, 33, 64, 127, 1024)]
    assert [block_threads(c) for c in widths] == [64, 64, 64, 96, 128]


def test_an_engine_without_finite_launches_says_so_in_the_report():
    import vyre

    with vyre.open("reference") as session:
        program = vyre.expression("x + 1", {"x": vyre.f32})
        (result,) = session.dispatch([(program, {"x": np.zeros(3, np.float32)})])
    assert result.value.tolist() == [1, 1, 1]
    assert any("without a finite launch" in note for note in result.report.notes)
