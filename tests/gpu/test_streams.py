"""Files through the resident kernel: bits of the reference and of the CPU engine, faults, cut files. Needs a device."""

from __future__ import annotations

import os
import signal
import threading
import time
from pathlib import Path

import numpy as np
import pytest

import vyre
from vyre.engines.cuda import copiers, staging, ways
from vyre.errors import StreamError
from vyre.stream import cufile, uring
from vyre.stream.plan import Rung

try:
    _session = vyre.open("cuda", pool_bytes=32 << 20)
except vyre.EngineUnavailable as error:
    pytest.skip(f"no GPU engine here: {error.message}", allow_module_level=True)

IO = ["auto", "hot", "pread", "uring", "uring-direct", "mapped"]


@pytest.fixture(scope="module")
def session():
    yield _session
    _session.close()


@pytest.fixture(params=["disk", "memory"])
def folder(request, tmp_path):
    """A file system on a disk, and one in memory."""
    if request.param == "disk":
        yield tmp_path
        return
    shm = Path("/dev/shm") / f"vyre-test-{os.getpid()}"
    shm.mkdir()
    yield shm
    for path in shm.iterdir():
        path.unlink()
    shm.rmdir()


@vyre.program
def mixed(x: vyre.f32, k: vyre.i32):
    if k == 3:
        vyre.emit(at=vyre.index(), kept=x)
    vyre.sum(total=x, squares=x * x)
    vyre.min(low=x)
    vyre.max(high=k)
    vyre.count(threes=k == 3)
    vyre.histogram(h=k, bins=8)
    return x * x + 1.0


def same(a, b) -> bool:
    return all(np.asarray(a[n]).tobytes() == np.asarray(b[n]).tobytes() for n in b.keys())  # noqa: SIM118


def columns(folder, count: int, seed: int = 1):
    rng = np.random.default_rng(seed)
    x, k = rng.normal(size=count).astype(np.float32), rng.integers(0, 8, count).astype(np.int32)
    np.save(folder / "x.npy", x)
    k.tofile(folder / "k.i32")
    return {"x": x, "k": k}, {"x": folder / "x.npy", "k": vyre.raw(folder / "k.i32", vyre.i32)}


@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize(("count", "chunk"), [(1, None), (1023, 1024), (1_000_001, 5000), (3_300_007, None)])
def test_every_way_gives_the_bits_of_the_reference_whatever_the_chunks(session, folder, io, count, chunk):
    if "uring" in io and uring.available() is not None:
        pytest.skip(f"no io_uring here: {uring.available()}")
    arrays, files = columns(folder, count)
    want = vyre.run(mixed, arrays, engine="cpu")
    if count < 10_000:
        assert same(want, vyre.run(mixed, arrays, engine="reference"))
    try:
        result = session.run(mixed, files, io=io, chunk=chunk)
    except StreamError as error:
        if io in ("auto", "hot", "pread"):
            raise
        pytest.skip(error.message)
    assert same(result, want)
    assert sum(result.report.bytes_by_way.values()) == 8 * count


@pytest.mark.parametrize("io", ["hot", "pread", "mapped"])
def test_chunks_that_are_staged_in_gpu_memory_give_the_same_bits(session, folder, io, monkeypatch):
    monkeypatch.setattr(ways, "measured", lambda *_: staging.Measured({1: 1.0}, {1: 2.0}))
    monkeypatch.setattr(ways, "STAGED_BYTES", 0)
    arrays, files = columns(folder, 1_500_007)
    want = vyre.run(mixed, arrays, engine="cpu")
    for _ in range(5):  # slots are used again and again, so what a kernel kept of the last lap would show
        result = session.run(mixed, files, io=io, chunk=10_240)
        assert same(result, want)
    assert "by the copy engine" in "\n".join(result.report.notes)


def test_what_was_measured_for_staging_is_plausible(session):
    found = staging.measured(session.engine, None)
    print(found)
    assert all(1 < rate < 500 for rate in (*found.in_place.values(), *found.staged.values()))


def test_parts_come_in_order_and_add_up_to_the_totals(session, folder):
    arrays, files = columns(folder, 500_000)
    outputs = []
    with session.stream(mixed, files, chunk=20_480) as stream:
        for k, part in enumerate(stream):
            piece = arrays["x"][k * 20_480 : (k + 1) * 20_480]
            assert part["low"] == piece.min()
            outputs.append(np.asarray(part["value"]))
        assert stream.total()["total"] == vyre.run(mixed, arrays, engine="cpu")["total"]
    assert np.concatenate(outputs).tobytes() == (arrays["x"] * arrays["x"] + np.float32(1)).tobytes()


@pytest.mark.parametrize("io", ["hot", "mapped"])
def test_a_fault_in_the_middle_names_its_element_and_the_session_goes_on(session, folder, io):
    a, b = np.arange(3_000_000, dtype=np.int32), np.ones(3_000_000, np.int32)
    b[[2_222_222, 2_999_999]] = 0
    for name, column in (("a", a), ("b", b)):
        column.tofile(folder / name)
    files = {n: vyre.raw(folder / n, vyre.i32) for n in "ab"}
    program = vyre.expression("sum(a // b)", {"a": vyre.i32, "b": vyre.i32})
    for _ in range(3):
        with pytest.raises(vyre.ProgramFault) as caught:
            session.run(program, files, io=io, chunk=100_000)
        assert caught.value.fault.element == 2_222_222
        assert sorted(caught.value.fault.operands.values()) == [0, 2_222_222]
    arrays, files = columns(folder, 10_000)
    assert same(session.run(mixed, files), vyre.run(mixed, arrays, engine="cpu"))


@pytest.mark.parametrize("io", ["hot", "mapped"])
def test_a_file_that_is_cut_while_it_is_read_ends_in_an_error(session, folder, io):
    x = np.ones(8_000_000, np.float32)
    x.tofile(folder / "x")
    program = vyre.expression("sum(x)", {"x": vyre.f32})
    with session.stream(program, x=vyre.raw(folder / "x", vyre.f32), io=io, chunk=10_240) as stream:
        assert next(stream).value == 10_240
        os.truncate(folder / "x", 4 * 4_000_000)
        rest = []
        with pytest.raises(StreamError, match="shrank while it was read"):
            rest.extend(part.value for part in stream)
        assert set(rest) <= {10_240}
    x.tofile(folder / "x")
    assert session.run(program, x=vyre.raw(folder / "x", vyre.f32), io=io).value == x.size


def test_a_file_that_is_read_again_is_read_in_place_and_a_rewritten_one_is_not_mistaken_for_it(session, folder):
    program = vyre.expression("sum(x)", {"x": vyre.f64})
    x = np.arange(ways.AUTO_BYTES // 8 + 1000, dtype=np.float64)
    x.tofile(folder / "x")
    path = vyre.raw(folder / "x", vyre.f64)
    time.sleep(0.15)
    taken = []
    for _ in range(3):
        result = session.run(program, x=path)
        taken.append(*result.report.bytes_by_way)
        assert result.value == x.sum()
    assert taken == [copiers.CACHED_WAY, Rung.MAPPED.value, Rung.MAPPED.value]
    with open(folder / "x", "r+b") as f:
        f.truncate(0)
        np.ones_like(x).tofile(f)
    assert session.run(program, x=path).value == x.size
    assert session.run(program, x=path, io="mapped").value == x.size


def test_a_file_written_to_in_place_is_seen_as_it_is_now(session, folder):
    program = vyre.expression("sum(x)", {"x": vyre.i64})
    x = np.zeros(100_000, np.int64)
    x.tofile(folder / "x")
    with open(folder / "x", "r+b") as f:
        for k in range(20):
            f.seek(8 * 4096 * k)
            f.write(np.int64(1).tobytes())
            f.flush()
            assert session.run(program, x=vyre.raw(folder / "x", vyre.i64), io="mapped").value == k + 1


def test_a_registered_pool_survives_a_hundred_streams_without_a_leak(session, folder):
    arrays, files = columns(folder, 300_000)
    want = vyre.run(mixed, arrays, engine="cpu")
    for io in ("hot", "mapped"):
        assert same(session.run(mixed, files, io=io), want)
    cu, engine = session.engine.device.cu, session.engine

    def state() -> tuple[object, ...]:
        free = engine.device.call("memory", cu.cuMemGetInfo())[0]
        pinned = tuple(dict(c.pieces.taken) for c in engine._pinned._chunks)
        return (
            len(os.listdir("/proc/self/fd")),
            threading.active_count(),
            free,
            dict(engine.arena._pieces.taken),
            pinned,
        )

    before = state()
    for k in range(100):
        with session.stream(mixed, files, io=("hot", "mapped")[k % 2], chunk=10_240) as stream:
            for _ in zip(stream, range(k % 7), strict=False):
                pass
    assert same(session.run(mixed, files, io="hot"), want)
    assert state() == before


def test_ctrl_c_ends_a_stream_within_a_second_and_the_session_goes_on(session, folder):
    arrays, files = columns(folder, 2_000_000)
    threading.Timer(0.3, os.kill, [os.getpid(), signal.SIGINT]).start()
    with pytest.raises(KeyboardInterrupt):
        [session.run(mixed, files, io="hot") for _ in range(100_000)]
    since = time.monotonic()
    assert same(session.run(mixed, files), vyre.run(mixed, arrays, engine="cpu"))
    assert time.monotonic() - since < 1


def test_several_streams_at_once_do_not_mix(session, folder):
    arrays, files = columns(folder, 1_000_000)
    want = vyre.run(mixed, arrays, engine="cpu")
    found = []

    def work(io: str) -> None:
        found.extend(same(session.run(mixed, files, io=io, chunk=50_000), want) for _ in range(5))

    threads = [threading.Thread(target=work, args=(io,)) for io in ("hot", "mapped", "hot", "pread")]
    for thread in threads:
        thread.start()
    x = np.arange(1000, dtype=np.float32)
    while any(thread.is_alive() for thread in threads):  # small items in between
        assert session.run(vyre.expression("x + 1", {"x": vyre.f32}), x=x).value[999] == 1000
    assert found == [True] * 20


def test_tables_are_read_from_device_memory_and_atomic_ones_come_back(session, folder):
    from vyre.program.builder import Builder
    from vyre.program.opcodes import Access, MemType

    b = Builder("counting")
    x = b.input("x", MemType.i64)
    seen, names = b.table("seen", MemType.i64, Access.atomic), b.table("names", MemType.i64)
    i = b.op("i64.load", imm=x)
    b.op("i64.table_add", i, b.op("i64.table_get", i, imm=names), imm=seen)
    x = np.arange(1_000_000) % 8
    x.tofile(folder / "x")
    seen, names = np.zeros(8, np.int64), np.arange(8) * 10
    session.run(b.build(), x=vyre.raw(folder / "x", vyre.i64), seen=seen, names=names, chunk=20_480)
    assert (seen == 125_000 * names).all()


def test_cufile_answers_within_its_time_and_says_what_it_can(folder):
    np.ones(1 << 20).tofile(folder / "x")
    since = time.monotonic()
    found = cufile.preflight(folder / "x")
    assert time.monotonic() - since < cufile.TIMEOUT_S + 2
    print(found, found.facts)
    assert found.mode == "direct" or found.causes
