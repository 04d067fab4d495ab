"""Streams on the GPU engine, with a GPU at the driver's edge that is a Python thread (fake_gpu)."""

from __future__ import annotations

import os
import threading

import numpy as np
import pytest

import vyre
from fake_gpu import fake_engine
from vyre.engines.cuda import copiers
from vyre.errors import StreamError, WaitTimeout
from vyre.program.builder import Builder
from vyre.program.opcodes import Access, MemType
from vyre.runtime import selection
from vyre.stream import uring
from vyre.stream.cached import cached


@pytest.fixture
def session(monkeypatch):
    engine = fake_engine(monkeypatch)
    monkeypatch.setattr(selection, "_cuda", lambda *_, **__: (engine, "a stand-in"))
    with vyre.open("cuda", pool_bytes=4 << 20) as s:
        yield s
    assert engine.device.registered == {}


def write(tmp_path, name: str, array: np.ndarray):
    path = tmp_path / name
    array.tofile(path)
    return path


@vyre.program
def mixed(x: vyre.f32, k: vyre.i32):
    """Every kind of result over two columns, with the element's index in one of them."""
    if k == 3:
        vyre.emit(at=vyre.index())
    vyre.sum(total=x)
    vyre.min(low=x)
    vyre.max(high=k)
    vyre.count(threes=k == 3)
    vyre.histogram(h=k, bins=8)
    return x * x


def same(a, b) -> bool:
    return all(np.asarray(a[n]).tobytes() == np.asarray(b[n]).tobytes() for n in a.keys())  # noqa: SIM118


@pytest.mark.parametrize("count", [1, 1023, 1024, 1025, 70_001])
@pytest.mark.parametrize("chunk", [1024, 5000, None])
def test_a_stream_gives_the_bits_of_the_reference_whatever_its_chunks(session, tmp_path, count, chunk):
    rng = np.random.default_rng(count)
    x, k = rng.normal(size=count).astype(np.float32), rng.integers(0, 8, count).astype(np.int32)
    columns = {"x": write(tmp_path, "x.f32", x), "k": write(tmp_path, "k.i32", k)}
    want = vyre.run(mixed, {"x": x, "k": k}, engine="reference")
    columns = {"x": vyre.raw(columns["x"], vyre.f32), "k": vyre.raw(columns["k"], vyre.i32)}
    assert same(session.run(mixed, columns, chunk=chunk), want)


@vyre.program
def floor(a: vyre.i32, b: vyre.i32):
    vyre.sum(total=a // b)


def test_a_fault_names_the_element_of_the_whole_stream_after_every_part_before_it(session, tmp_path):
    a, b = np.arange(20_000, dtype=np.int32), np.ones(20_000, np.int32)
    b[[7_001, 7_000, 19_999]] = 0
    columns = {"a": vyre.raw(write(tmp_path, "a", a), vyre.i32), "b": vyre.raw(write(tmp_path, "b", b), vyre.i32)}
    parts = []
    with session.stream(floor, columns, chunk=2048) as stream, pytest.raises(vyre.ProgramFault) as caught:
        parts.extend(part["total"] for part in stream)
    assert parts == [a[k : k + 2048].sum() for k in range(0, 6144, 2048)]
    fault = caught.value.fault
    assert (fault.element, sorted(fault.operands.values())) == (7_000, [0, 7_000])


def test_a_file_that_is_cut_while_it_is_read_ends_in_an_error_after_the_parts_that_were_there(session, tmp_path):
    x = np.ones(100_000, np.float32)
    path = write(tmp_path, "x.f32", x)
    program = vyre.expression("sum(x)", {"x": vyre.f32})
    with session.stream(program, {"x": vyre.raw(path, vyre.f32)}, chunk=1024) as stream:
        first = next(stream)
        os.truncate(path, 4 * 90_000)
        rest = []
        with pytest.raises(StreamError, match="shrank while it was read") as caught:
            rest.extend(part.value for part in stream)
    assert first.value == 1024
    assert rest == [1024.0] * (90_000 // 1024 - 1)
    assert str(path) in str(caught.value)


def test_sums_over_spans_of_a_stream_are_added_as_the_format_says(session, tmp_path):
    x = np.random.default_rng(3).normal(size=3 * (1 << 20) + 17).astype(np.float32)
    path = vyre.raw(write(tmp_path, "x.f32", x), vyre.f32)
    program = vyre.expression("sum(x)", {"x": vyre.f32})
    want = vyre.run(program, x=x, engine="cpu").value
    for chunk in (None, 700 * 1024):
        assert session.run(program, x=path, chunk=chunk).value.tobytes() == want.tobytes()


def test_columns_in_memory_come_with_those_of_files(session, tmp_path):
    a, b = np.arange(50_000, dtype=np.int32), np.arange(50_000, dtype=np.int32) % 7 + 1
    columns = {"a": vyre.raw(write(tmp_path, "a", a), vyre.i32), "b": b}
    result = session.run(floor, columns, chunk=4096)
    assert result["total"] == (a // b).sum()
    assert result.report.bytes_by_way == {copiers.CACHED_WAY: a.nbytes, copiers.MEMORY_WAY: b.nbytes}


def test_fields_of_rows_are_taken_out_of_them(session, tmp_path):
    rows = np.zeros(30_000, [("k", "<i2"), ("a", "<i4"), ("b", "<i4")])
    rows["a"], rows["b"] = np.arange(30_000), np.arange(30_000) % 5 + 1
    np.save(tmp_path / "rows.npy", rows)
    columns = {n: vyre.column(tmp_path / "rows.npy", n) for n in "ab"}
    result = session.run(floor, columns, chunk=4096)
    assert result["total"] == (rows["a"] // rows["b"]).sum()
    assert result.report.copies == {"fields taken out of rows": 8 * 30_000}


def test_tables_are_staged_once_and_atomic_ones_come_back(session, tmp_path):
    b = Builder("counting")
    x = b.input("x", MemType.i64)
    seen, names = b.table("seen", MemType.i64, Access.atomic), b.table("names", MemType.i64)
    i = b.op("i64.load", imm=x)
    b.op("i64.table_add", i, b.op("i64.table_get", i, imm=names), imm=seen)
    x = np.arange(40_000) % 8
    seen, names = np.zeros(8, np.int64), np.arange(8) * 10
    session.run(b.build(), x=vyre.raw(write(tmp_path, "x", x), vyre.i64), seen=seen, names=names, chunk=2048)
    assert (seen == 5_000 * names).all()


def test_many_streams_one_after_the_other_use_one_registered_pool(session, tmp_path):
    x = np.arange(5_000, dtype=np.float32)
    path = vyre.raw(write(tmp_path, "x.f32", x), vyre.f32)
    program = vyre.expression("x + 1", {"x": vyre.f32})
    session.run(program, x=path)
    engine = session.engine
    registrations, fds = engine.device.registrations, len(os.listdir("/proc/self/fd"))
    engine.arena._pieces.settle()
    arena, threads = list(engine.arena._pieces.free), threading.active_count()
    for k in range(100):
        with session.stream(program, x=path, chunk=1024) as stream:
            for part, _ in zip(stream, range(k % 6), strict=False):  # some are left in the middle
                assert part.value[0] % 1024 == 1
    assert engine.device.registrations == registrations
    assert len(os.listdir("/proc/self/fd")) == fds
    engine.arena._pieces.settle()
    assert list(engine.arena._pieces.free) == arena
    assert threading.active_count() <= threads + 1  # a stay of the stand-in


def test_a_pool_that_is_refused_in_the_middle_is_rolled_back_and_the_next_stream_works(session, tmp_path, monkeypatch):
    monkeypatch.setattr("vyre.stream.pool.PIECE_MAX", 1 << 20)
    x = np.arange(2_000_000, dtype=np.float32)
    path = vyre.raw(write(tmp_path, "x.f32", x), vyre.f32)
    program = vyre.expression("sum(x)", {"x": vyre.f32})
    session.engine.device.refuse_after = 2
    with pytest.raises(StreamError, match="2 of 4 pieces had been, and were given back"):
        session.run(program, x=path)
    assert session.engine.device.registered == {}
    session.engine.device.refuse_after = None
    assert session.run(program, x=path).value == x.sum(dtype=np.float64)


def test_a_time_limit_ends_a_stream_that_the_gpu_holds_up(session, tmp_path):
    x = np.arange(100_000, dtype=np.float32)
    path = vyre.raw(write(tmp_path, "x.f32", x), vyre.f32)
    session.engine.device.pause_s = 0.05
    with pytest.raises(WaitTimeout):
        session.run(vyre.expression("sum(x)", {"x": vyre.f32}), x=path, chunk=1024, timeout_s=0.2)


def test_memory_of_a_stream_is_its_pool_whatever_the_length_of_the_file(session, tmp_path):
    path = tmp_path / "sparse"
    path.touch()
    os.truncate(path, 64 << 20)
    engine = session.engine
    lent = []
    take = engine.pools.take
    engine.pools.take = lambda n: lent.append(take(n)) or lent[-1]
    assert session.run(vyre.expression("sum(x)", {"x": vyre.f64}), x=vyre.raw(path, vyre.f64)).value == 0
    assert [pool.bytes for pool in lent] == [4 << 20]
    assert lent[0].lent == 0


def test_a_stream_left_open_is_closed_with_its_session(monkeypatch, tmp_path):
    engine = fake_engine(monkeypatch)
    monkeypatch.setattr(selection, "_cuda", lambda *_, **__: (engine, "a stand-in"))
    path = write(tmp_path, "x.f32", np.arange(100_000, dtype=np.float32))
    session = vyre.open("cuda", pool_bytes=1 << 20)
    stream = session.stream(vyre.expression("sum(x)", {"x": vyre.f32}), x=vyre.raw(path, vyre.f32), chunk=1024)
    next(stream)
    session.close()
    with pytest.raises(vyre.SessionClosed):
        next(stream)
    stream.close()
    assert engine.device.registered == {}


def test_registering_keeps_no_pool_beyond_one(session):
    pools = session.engine.pools
    a, b = pools.take(1 << 20), pools.take(1 << 20)
    pools.give_back(a)
    pools.give_back(b)
    assert list(session.engine.device.registered) == [address for address, _ in b.pieces()]
    assert pools.take(1 << 20) is b
    pools.give_back(b)


@pytest.mark.parametrize("io", ["pread", "uring", "uring-direct"])
def test_cold_ways_bring_the_same_bits_through_the_registered_pool(session, tmp_path, io):
    if io != "pread" and uring.available() is not None:
        pytest.skip("no io_uring here")
    x, k = np.random.default_rng(1).normal(size=400_001).astype(np.float32), np.arange(400_001, dtype=np.int32) % 8
    np.save(tmp_path / "x.npy", x)
    columns = {"x": tmp_path / "x.npy", "k": vyre.raw(write(tmp_path, "k.i32", k), vyre.i32)}
    want = vyre.run(mixed, {"x": x, "k": k}, engine="reference")
    result = session.run(mixed, columns, chunk=50_000, io=io)
    assert same(result, want)
    ways = " ".join(result.report.bytes_by_way)
    assert {"pread": "preadv page cache", "uring": "io_uring page cache", "uring-direct": "O_DIRECT"}[io] in ways


@pytest.mark.parametrize("io", ["auto", "hot", "pread"])
def test_an_empty_file_has_no_parts_and_totals_of_nothing(session, tmp_path, io):
    (tmp_path / "empty").touch()
    column = vyre.raw(tmp_path / "empty", vyre.f32)
    assert session.run(vyre.expression("sum(x)", {"x": vyre.f32}), x=column, io=io).value == 0
    with session.stream(vyre.expression("x + 1", {"x": vyre.f32}), x=column, io=io) as stream:
        assert list(stream) == []


def test_a_cold_column_beside_a_hot_one_is_read_around_the_page_cache_by_the_copiers(session, tmp_path):
    x, k = np.random.default_rng(2).normal(size=700_001).astype(np.float32), np.arange(700_001, dtype=np.int32) % 8
    np.save(tmp_path / "x.npy", x)
    columns = {"x": tmp_path / "x.npy", "k": vyre.raw(write(tmp_path, "k.i32", k), vyre.i32)}
    fd = os.open(tmp_path / "x.npy", os.O_RDONLY)
    os.fsync(fd)
    os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    share = cached(fd, 0, x.nbytes).fraction
    os.close(fd)
    if share is None or share > 0.1 or uring.available() is not None:
        pytest.skip("this file cannot be made cold, or has no direct reads")
    result = session.run(mixed, columns, chunk=100_000)
    assert same(result, vyre.run(mixed, {"x": x, "k": k}, engine="reference"))
    if "O_DIRECT" not in result.report.notes[0]:
        pytest.skip("no direct I/O here")
    # The tail of the file lies inside a block, and so comes through the page cache after all; the header came in pages.
    taken = result.report.bytes_by_way
    assert taken[copiers.DIRECT_WAY] > 0.9 * x.nbytes
    assert k.nbytes <= taken[copiers.CACHED_WAY] < k.nbytes + 0.1 * x.nbytes
