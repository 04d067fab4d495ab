"""Plans and reading: every way gives the oracle's bytes, counts them as they really went, and says why it was taken."""

from __future__ import annotations

import errno
import itertools
import os
import random
import subprocess
import sys

import numpy as np
import pytest

from simulated_uring import SimulatedKernel
from vyre.errors import BindError, StreamError
from vyre.program.opcodes import MemType
from vyre.ring.layout import OperandKind
from vyre.stream import cached as cached_module
from vyre.stream import plan as plan_module
from vyre.stream import uring
from vyre.stream.cached import cached
from vyre.stream.compiled import pump_functions
from vyre.stream.formats import Column, raw
from vyre.stream.frames import P_FLYING
from vyre.stream.plan import Plan, Rung
from vyre.stream.pool import Pool
from vyre.stream.pread import read_exactly
from vyre.stream.reader import Reader
from vyre.stream.source import Segment, Source, Strip, Take, open_columns
from vyre.stream.syscalls import direct_alignment

REFUSED = uring.available()
real = pytest.mark.skipif(REFUSED is not None, reason=f"no io_uring here: {REFUSED}")
POOL_BYTES = 16 << 20


def has_direct(path):
    with open(path, "rb") as file:
        return direct_alignment(file.fileno()) is not None


def drain(reader, *, hold=0, release=True):
    """Read everything; bytes by column and chunk index. ``hold`` chunks are kept for a while, as an engine keeps them."""
    found, held, order = {}, [], []
    while not reader.finished:
        reader.submit()
        loads = reader.ready(1.0)
        for load in loads:
            order.append(load.chunk.index)
            if load.error is not None:
                raise load.error
            held.append(load)
        while held and (len(held) > hold or not loads):
            load = held.pop(0)
            for name, operand in load.columns.items():
                if operand.kind is OperandKind.FILE:
                    data = os.pread(operand.fd, operand.bytes, operand.offset)
                elif load._buffer is None or not (0 <= operand.address - load._buffer.address < load._buffer.bytes):
                    data = None
                else:
                    data = bytes(load.view(name))
                    assert operand.address % reader.source.strips[name].alignment == 0
                found.setdefault(name, {})[load.chunk.index] = data
            reader.release(load)
    return {name: b"".join(parts[at] for at in sorted(parts)) for name, parts in found.items()}, order


def read(spec, declared, *, io="auto", chunk=None, kernel=None, pool_bytes=POOL_BYTES, hold=0, **driven):
    """Columns, the reader and its plan after everything was read and closed."""
    options = {} if kernel is None else {"kernel": kernel}
    with open_columns(spec, declared) as source, Pool(pool_bytes) as pool:
        plan = Plan.choose(source, pool, io=io, chunk_elements=chunk, **options)
        with Reader(source, plan, pool, **driven) as reader:
            data, order = drain(reader, hold=hold)
        assert pool.lent == 0
        assert sum(reader.taken.values()) == source.bytes
        return data, reader, plan, order


def write(path, data):
    path.write_bytes(data)
    return path


DRIVEN = [
    pytest.param({}, id="python"),
    pytest.param({"natives": pump_functions(None)}, id="thread"),
    pytest.param({"natives": pump_functions(None), "copiers": 3}, id="copiers"),
]
IO = ["auto", "hot", "pread", pytest.param("uring", marks=real), pytest.param("uring-direct", marks=real)]


@pytest.mark.parametrize("driven", DRIVEN)
@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize("size", [0, 1, 511, 512, 513, 4095, 4096, 4097, 65535, 65536, 65537, 1 << 20, (1 << 20) + 1])
def test_files_of_every_awkward_size_give_their_bytes_on_every_way(tmp_path, io, size, driven):
    data = random.Random(size).randbytes(size)
    path = write(tmp_path / "a", data)
    if io == "uring-direct" and not has_direct(path):
        pytest.skip("no direct I/O on this file system")
    found, reader, plan, _ = read({"x": path}, {"x": MemType.u8}, io=io, chunk=65536, **driven)
    assert found.get("x", b"") == data
    if io == "uring-direct" and size:
        assert all(rung.is_direct for rung in reader.taken), plan.explain()


@pytest.mark.parametrize("driven", DRIVEN)
@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize("chunk", [1024, 5000, 1 << 20, None])
def test_several_columns_over_several_files_and_headers_give_the_oracles_bytes(tmp_path, io, chunk, driven):
    rng = np.random.default_rng(5)
    x, y = rng.random(150_000).astype("f4"), rng.integers(0, 99, 150_000).astype("i8")
    np.save(tmp_path / "x.npy", x)
    if io == "uring-direct" and not has_direct(tmp_path / "x.npy"):
        pytest.skip("no direct I/O on this file system")
    cuts = [0, 1, 1, 1500, 4096, 100_000, 150_000]
    paths = [write(tmp_path / f"y{i}", y[a:b].tobytes()) for i, (a, b) in enumerate(itertools.pairwise(cuts))]
    spec = {"x": tmp_path / "x.npy", "y": paths, "z": Column(tmp_path / "x.npy", "u8", 3, 150_000)}
    declared = {"x": MemType.f32, "y": MemType.i64, "z": MemType.u8}
    found, _, _, _ = read(spec, declared, io=io, chunk=chunk, hold=2, **driven)
    assert found["x"] == x.tobytes()
    assert found["y"] == y.tobytes()
    assert found["z"] == (tmp_path / "x.npy").read_bytes()[3:150_003]


@pytest.mark.parametrize("seed", range(8))
def test_completions_out_of_order_and_short_reads_publish_each_chunk_with_its_own_bytes(tmp_path, seed):
    choose = random.Random(seed)
    data = choose.randbytes(1_000_000 + 8 * seed)
    kernel = SimulatedKernel(shuffle=choose, flags_known=uring.FLAG_LADDER[seed % 5])
    kernel.shorten = lambda length: length if choose.random() < 0.5 else max(1, length * choose.randrange(1, 8) // 8)
    io = "uring-direct" if seed % 2 else "uring"
    path = write(tmp_path / "a", data)
    if not has_direct(path):
        io = "uring"
    found, reader, _, order = read({"x": path}, {"x": MemType.u64}, io=io, chunk=2048, kernel=kernel, hold=3)
    assert found["x"] == data
    expected = {Rung.DIRECT_REGISTERED, Rung.BUFFERED} if io == "uring-direct" else {Rung.BUFFERED}
    assert set(reader.taken) == expected, "what is left of a block after a short direct read comes through the cache"
    assert order != sorted(order)
    assert kernel.inversions > 0


def test_registered_buffers_are_used_with_the_opcode_that_uses_them(tmp_path):
    path = write(tmp_path / "a", bytes(100_000))
    if not has_direct(path):
        pytest.skip("no direct I/O on this file system")
    kernel = SimulatedKernel()
    _, reader, plan, _ = read({"x": path}, {"x": MemType.u8}, io="uring-direct", chunk=16384, kernel=kernel)
    assert plan.files[0].rung is Rung.DIRECT_REGISTERED
    assert {entry["opcode"] for entry in kernel.log} == {uring.READ_FIXED} == {4}
    assert reader.taken == {Rung.DIRECT_REGISTERED: 100_000}
    assert all(entry["offset"] % 4096 == entry["length"] % 4096 == entry["address"] % 4096 == 0 for entry in kernel.log)


def test_memory_that_cannot_be_locked_falls_to_unregistered_and_says_why(tmp_path):
    path = write(tmp_path / "a", bytes(100_000))
    if not has_direct(path):
        pytest.skip("no direct I/O on this file system")
    kernel = SimulatedKernel()
    kernel.register_errno = errno.ENOMEM
    _, reader, plan, _ = read({"x": path}, {"x": MemType.u8}, io="uring-direct", chunk=16384, kernel=kernel)
    assert reader.taken == {Rung.DIRECT: 100_000}
    assert "registered refused: registering buffers: ENOMEM" in plan.explain()
    assert {entry["opcode"] for entry in kernel.log} == {uring.READ}


@pytest.mark.parametrize(("code", "name"), [(errno.EPERM, "EPERM"), (errno.ENOSYS, "ENOSYS")])
def test_a_blocked_io_uring_falls_to_preadv_and_says_so_and_is_an_error_when_asked_for(
    tmp_path, monkeypatch, code, name
):
    monkeypatch.setattr(plan_module, "SMALL_BYTES", 0)
    monkeypatch.setattr(plan_module, "HOT_FRACTION", 2.0)
    path = write(tmp_path / "a", bytes(100_000))
    kernel = SimulatedKernel()
    kernel.setup_errno = code
    _, reader, plan, _ = read({"x": path}, {"x": MemType.u8}, kernel=kernel)
    assert reader.taken == {Rung.PREAD: 100_000}
    assert f"refused: io_uring_setup: {name}" in plan.explain()
    for io in ("uring", "uring-direct"):
        with pytest.raises(StreamError, match=f'impossible here: io_uring_setup: {name}.*\n.*io="auto"'):
            read({"x": path}, {"x": MemType.u8}, io=io, kernel=kernel)


def test_a_ring_that_is_blocked_between_plan_and_reading_still_ends_with_all_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "SMALL_BYTES", 0)
    monkeypatch.setattr(plan_module, "HOT_FRACTION", 2.0)
    data = random.Random(1).randbytes(300_000)
    kernel = SimulatedKernel()
    with open_columns({"x": write(tmp_path / "a", data)}, {"x": MemType.u8}) as source, Pool(POOL_BYTES) as pool:
        plan = Plan.choose(source, pool, chunk_elements=65536, kernel=kernel)
        assert plan.files[0].rung.is_uring
        kernel.setup_errno = errno.EPERM
        with Reader(source, plan, pool) as reader:
            assert drain(reader)[0]["x"] == data
            assert reader.taken == {Rung.PREAD: len(data)}
        assert "preadv instead of io_uring: io_uring_setup: EPERM" in plan.explain()


def test_a_direct_read_that_is_refused_in_the_middle_goes_on_through_the_page_cache(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "SMALL_BYTES", 0)
    monkeypatch.setattr(plan_module, "HOT_FRACTION", 2.0)
    data = random.Random(1).randbytes(300_000)
    path = write(tmp_path / "a", data)
    if not has_direct(path):
        pytest.skip("no direct I/O on this file system")
    kernel = SimulatedKernel()
    with open_columns({"x": path}, {"x": MemType.u8}) as source, Pool(POOL_BYTES) as pool:
        plan = Plan.choose(source, pool, chunk_elements=65536, kernel=kernel)
        kernel.fail = lambda entry: errno.EINVAL if entry["opcode"] == 4 and entry["offset"] >= 131072 else 0
        with Reader(source, plan, pool) as reader:
            assert drain(reader)[0]["x"] == data
            assert reader.taken == {Rung.DIRECT_REGISTERED: 131072, Rung.BUFFERED: len(data) - 131072}
        assert "while reading: EINVAL" in plan.explain()


def test_a_test_read_that_gives_other_bytes_is_not_trusted(tmp_path):
    path = write(tmp_path / "a", random.Random(1).randbytes(300_000))

    class Wrong(SimulatedKernel):
        def _result(self, entry):
            entry["offset"] += 1 if entry["opcode"] != uring.NOP else 0
            return super()._result(entry)

    with pytest.raises(StreamError, match="other bytes than preadv"):
        read({"x": path}, {"x": MemType.u8}, io="uring", kernel=Wrong())


@pytest.mark.parametrize("driven", DRIVEN)
@pytest.mark.parametrize("io", ["pread", pytest.param("uring", marks=real), pytest.param("uring-direct", marks=real)])
def test_a_file_truncated_while_it_is_read_names_file_offset_and_expected_length(tmp_path, io, driven):
    path = write(tmp_path / "a", bytes(1 << 20))
    if io == "uring-direct" and not has_direct(path):
        pytest.skip("no direct I/O on this file system")
    with open_columns({"x": path}, {"x": MemType.u8}) as source, Pool(POOL_BYTES) as pool:
        plan = Plan.choose(source, pool, io=io, chunk_elements=131072)
        with Reader(source, plan, pool, **driven) as reader:
            os.truncate(path, 300_000)
            good, bad = set(), {}
            while not reader.finished:
                reader.submit()
                for load in reader.ready(1.0):
                    if load.error is None:
                        good.add(load.chunk.index)
                    else:
                        bad[load.chunk.index] = load.error
                    reader.release(load)
    assert good == {0, 1}
    assert sorted(bad) == [2, 3, 4, 5, 6, 7]
    assert "a: shrank" in str(bad[2])
    assert "expected 131072 bytes at offset 262144" in str(bad[2])
    assert "now has 300000" in str(bad[2])


def test_an_io_error_ends_its_chunk_only_and_names_the_place(tmp_path):
    path = write(tmp_path / "a", random.Random(2).randbytes(500_000))
    kernel = SimulatedKernel()
    with open_columns({"x": path}, {"x": MemType.u8}) as source, Pool(POOL_BYTES) as pool:
        plan = Plan.choose(source, pool, io="uring", chunk_elements=100_352, kernel=kernel)
        kernel.fail = lambda entry: errno.EIO if entry["offset"] == 200_704 else 0
        with Reader(source, plan, pool) as reader:
            errors, good = {}, 0
            while not reader.finished:
                reader.submit()
                for load in reader.ready(1.0):
                    if load.error:
                        errors[load.chunk.index] = load.error
                    else:
                        good += 1
                    reader.release(load)
    assert list(errors) == [2]
    assert good == 4
    assert errors[2].errno == errno.EIO
    assert "EIO) at offset 200704, 100352 bytes expected" in str(errors[2])


@pytest.mark.parametrize("driven", DRIVEN)
@pytest.mark.parametrize("io", [pytest.param("uring", marks=real), pytest.param("uring-direct", marks=real), "pread"])
def test_eio_of_a_real_device_ends_in_an_error_that_names_the_offset(tmp_path, io, driven):
    """ext4 on a loop device whose backing file is cut while it is mounted."""
    disk, mount = tmp_path / "disk", tmp_path / "mnt"
    mount.mkdir()
    with open(disk, "wb") as file:
        file.truncate(16 << 20)
    made = subprocess.run(["mkfs.ext4", "-q", "-O", "^has_journal", disk], capture_output=True)
    if made.returncode or subprocess.run(["mount", "-o", "loop", disk, mount], capture_output=True).returncode:
        pytest.skip("cannot mount a loop device here (needs root and /dev/loop*)")
    try:
        path = write(mount / "a", bytes(8 << 20))
        subprocess.run(["sync", "-f", mount], check=True)
        with open(path, "rb") as file:
            os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        with open_columns({"x": path}, {"x": MemType.u8}) as source, Pool(POOL_BYTES) as pool:
            plan = Plan.choose(source, pool, io=io, chunk_elements=1 << 20)
            os.posix_fadvise(source.files["x"][0].fd, 0, 0, os.POSIX_FADV_DONTNEED)
            os.truncate(disk, 4 << 20)
            subprocess.run(["sh", "-c", "echo 1 > /proc/sys/vm/drop_caches"], check=False)
            errors = []
            with Reader(source, plan, pool, **driven) as reader:
                while not reader.finished:
                    reader.submit()
                    for load in reader.ready(1.0):
                        errors += [load.error] if load.error else []
                        reader.release(load)
        assert errors
        assert all(error.errno == errno.EIO for error in errors)
        assert "at offset" in str(errors[0])
    finally:
        subprocess.run(["umount", mount], check=False)


@pytest.mark.parametrize("io", ["hot", "pread", pytest.param("uring-direct", marks=real)])
def test_a_sparse_file_over_4_gib_is_read_right_at_its_far_end(tmp_path, io):
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(5 << 30)
        file.seek((5 << 30) - 8)
        file.write(b"farthest")
    if io == "uring-direct" and not has_direct(path):
        pytest.skip("no direct I/O on this file system")
    spec = {"x": Column(path, "u64", (5 << 30) - (1 << 20), 1 << 17)}
    found, _, _, _ = read(spec, {"x": MemType.u64}, io=io, chunk=16384)
    assert found["x"] == bytes((1 << 20) - 8) + b"farthest"
    with open_columns({"x": path}, {"x": MemType.u8}) as source:
        assert source.count == 5 << 30
        *_, last = source.chunks(1 << 20)
        assert (last.first + last.count, last.index) == (5 << 30, 5119)


def test_memory_stays_the_pools_whatever_the_consumer_holds_and_stalls_are_counted(tmp_path):
    data = random.Random(4).randbytes(3_000_000)
    path = write(tmp_path / "a", data)
    with open_columns({"x": path}, {"x": MemType.u8}) as source, Pool(600_000) as pool:
        plan = Plan.choose(source, pool, io="pread", chunk_elements=65536)
        with Reader(source, plan, pool) as reader:
            held = []
            for _ in range(200):
                reader.submit()
                held += reader.ready()
            assert 0 < pool.lent <= pool.limit
            assert not reader.finished
            assert reader.stalls > 0
            before = len(held)
            for load in held:
                reader.release(load)
            reader.submit()
            assert len(reader.ready(1.0)) > 0
            assert before < 10
    with (
        open_columns({"x": path}, {"x": MemType.u8}) as source,
        Pool(60_000) as pool,
        pytest.raises(StreamError, match=r"a chunk of 65536 elements needs .* bytes, the pool has 57344"),
    ):
        Plan.choose(source, pool, io="pread", chunk_elements=65536)


def test_many_wide_columns_get_chunks_that_fit_the_pool(tmp_path):
    path = write(tmp_path / "a", bytes(8 * 100_000))
    names = {f"c{at}": MemType.f64 for at in range(40)}
    with open_columns(dict.fromkeys(names, path), names) as source, Pool(8 << 20) as pool:
        plan = Plan.choose(source, pool, io="pread")
        assert plan.frame_bytes * 4 <= pool.limit
        with Reader(source, plan, pool) as reader:
            drain(reader)


@pytest.mark.parametrize(
    "kernel", [pytest.param(None, marks=real, id="real"), pytest.param("simulated", id="simulated")]
)
def test_closing_with_reads_in_flight_waits_for_them_and_gives_all_memory_back(tmp_path, kernel):
    path = write(tmp_path / "a", random.Random(4).randbytes(4 << 20))
    options = {} if kernel is None else {"kernel": SimulatedKernel(shuffle=random.Random(1))}
    io = "uring-direct" if has_direct(path) else "uring"
    with open_columns({"x": path}, {"x": MemType.u8}) as source, Pool(POOL_BYTES) as pool:
        plan = Plan.choose(source, pool, io=io, chunk_elements=131072, **options)
        for _ in range(20):
            reader = Reader(source, plan, pool)
            reader.submit()
            kept = reader.ready(0)
            reader.close()
            for load in kept:
                reader.release(load)
            assert reader.in_flight == 0
            assert pool.lent == 0
            assert pool.bytes > 0, "retired although every read was waited for"


@real
def test_a_reader_closed_by_another_thread_retires_its_pool_instead_of_unmapping_it(tmp_path):
    import threading

    path = write(tmp_path / "a", random.Random(4).randbytes(4 << 20))
    with open_columns({"x": path}, {"x": MemType.u8}) as source, Pool(POOL_BYTES) as pool:
        plan = Plan.choose(source, pool, io="uring", chunk_elements=131072)
        reader = Reader(source, plan, pool)
        thread = threading.Thread(target=reader.submit)
        thread.start()
        thread.join()
        in_flight = reader.in_flight
        reader.close()
        if in_flight:
            assert pool.bytes == 0


def test_hot_files_are_left_to_the_workers_as_operands_of_kind_file(tmp_path):
    path = tmp_path / "a.npy"
    np.save(path, np.arange(3000, dtype="f4"))
    with open_columns({"x": path, "y": np.arange(3000, dtype="i8")}, {"x": MemType.f32, "y": MemType.i64}) as source:
        pool = Pool(POOL_BYTES)
        plan = Plan.choose(source, pool, io="hot", chunk_elements=1024)
        reader = Reader(source, plan, pool)
        assert reader.submit() == 3
        loads = reader.ready()
        assert [load.chunk.first for load in loads] == [0, 1024, 2048]
        operand = loads[1].columns["x"]
        assert (operand.kind, operand.offset, operand.bytes) == (OperandKind.FILE, 128 + 4096, 4096)
        assert loads[1].columns["y"].kind is OperandKind.MEMORY
        assert loads[1].columns["y"].address == loads[0].columns["y"].address + 8192
        assert Rung.HOT not in reader.taken
        for load in loads:
            reader.release(load)
        assert reader.taken == {Rung.HOT: 12_000, Rung.MEMORY: 24_000}
        assert reader.finished
        assert pool.bytes == 0, "nothing was mapped for files that workers read"
        assert reader.report() == {"worker page cache": 12_000, "in memory": 24_000}


def test_auto_asks_the_page_cache_and_the_plan_is_one_line_a_file(tmp_path, monkeypatch):
    monkeypatch.setattr(plan_module, "SMALL_BYTES", 0)
    path = write(tmp_path / "a", bytes(2 << 20))
    with open_columns({"x": path}, {"x": MemType.u8}) as source, Pool(POOL_BYTES) as pool:
        plan = Plan.choose(source, pool)
        assert plan.explain() == f"{path} 2 MiB, 100 % cached: worker page cache (in the page cache)"
        os.fsync(os.open(path, os.O_RDONLY))
        os.posix_fadvise(source.files["x"][0].fd, 0, 0, os.POSIX_FADV_DONTNEED)
        if cached(source.files["x"][0].fd, 0, 2 << 20).fraction != 0:
            pytest.skip("this file system keeps its pages")
        plan = Plan.choose(source, pool)
        if REFUSED is None and has_direct(path):
            assert plan.explain() == f"{path} 2 MiB, 0 % cached: io_uring O_DIRECT registered 8x1 MiB"
        with Reader(source, plan, pool) as reader:
            drain(reader)
        if REFUSED is None and has_direct(path):
            assert cached(source.files["x"][0].fd, 0, 1 << 19).fraction < 0.5, "direct reads do not fill the cache"


def test_small_sources_are_not_worth_a_ring_and_many_files_share_a_line(tmp_path):
    for at in range(9):
        write(tmp_path / f"{at}", bytes(100))
    with open_columns({"x": tmp_path}, {"x": MemType.u8}) as source, Pool(POOL_BYTES) as pool:
        text = Plan.choose(source, pool).explain()
        assert text.count("\n") == 0
        assert "0 and 8 more files 900 bytes, 100 to 100 % cached: worker page cache (all columns together" in text


def test_tmpfs_has_no_direct_io_and_the_plan_says_how_that_is_known():
    path = f"/dev/shm/vyre-test-{os.getpid()}"
    try:
        with open(path, "wb") as file:
            file.write(bytes(10_000))
    except OSError:
        pytest.skip("no /dev/shm")
    try:
        if has_direct(path):
            pytest.skip("/dev/shm is no tmpfs")
        with pytest.raises(StreamError, match="no DIOALIGN"):
            read({"x": raw(path, "u8")}, {"x": MemType.u8}, io="uring-direct")
    finally:
        os.unlink(path)


def test_an_unknown_way_and_an_empty_chunk_are_refused(tmp_path):
    path = write(tmp_path / "a", bytes(8))
    for options, words in [({"io": "psync"}, "psync.*\n.*uring-direct"), ({"chunk": 0}, "chunk of 0")]:
        with pytest.raises(BindError, match=words):
            read({"x": path}, {"x": MemType.u8}, **options)


def test_the_cached_part_is_known_by_mincore_where_cachestat_is_missing(tmp_path, monkeypatch):
    path = write(tmp_path / "a", bytes(9 << 20))
    with open(path, "rb") as file:
        os.fsync(file.fileno())
        monkeypatch.setattr(cached_module, "cached_pages", lambda *_: -errno.ENOSYS)
        assert cached(file.fileno(), 5000, 8 << 20) == (1.0, "mincore")
        os.posix_fadvise(file.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        assert cached(file.fileno(), 0, 9 << 20).fraction < 0.1
        monkeypatch.setattr(cached_module, "resident_pages", lambda *_: -errno.EPERM)
        assert str(cached(file.fileno(), 0, 9 << 20)) == "unknown how much cached"
        assert cached(file.fileno(), 0, 0).fraction == 1.0


def test_the_oracle_continues_short_reads_retries_eintr_and_maps_errors(tmp_path, monkeypatch):
    data = random.Random(1).randbytes(10_000)
    with open_columns({"x": write(tmp_path / "a", data)}, {"x": MemType.u8}) as source:
        file = source.files["x"][0]
        answers = iter([7, InterruptedError(), 1000, 10_000])

        def preadv(fd, buffers, offset):
            answer = next(answers)
            if isinstance(answer, Exception):
                raise answer
            part = data[offset : offset + answer][: len(buffers[0])]
            buffers[0][: len(part)] = part
            return len(part)

        monkeypatch.setattr(os, "preadv", preadv)
        target = bytearray(9000)
        assert read_exactly(file, memoryview(target), 500) == 4
        assert target == data[500:9500]
        monkeypatch.setattr(os, "preadv", lambda *_: (_ for _ in ()).throw(OSError(errno.EIO, "x")))
        with pytest.raises(StreamError, match=r"a: .*EIO\) at offset 5, 4 bytes expected") as caught:
            read_exactly(file, memoryview(bytearray(4)), 5)
        assert caught.value.errno == errno.EIO


@real
def test_ctrl_c_in_the_middle_of_a_stream_ends_within_a_second_and_leaves_no_read_in_flight(tmp_path):
    path = write(tmp_path / "a", bytes(1 << 20))
    script = f"""
import sys, time
from vyre.program.opcodes import MemType
from vyre.stream.plan import Plan
from vyre.stream.pool import Pool
from vyre.stream.reader import Reader
from vyre.stream.source import Segment, Source, Strip, Take, open_columns
source, pool = open_columns({{"x": {str(path)!r}}}, {{"x": MemType.u8}}), Pool(1 << 24)
plan = Plan.choose(source, pool, io="uring", chunk_elements=65536)
print("go", flush=True)
try:
    while True:
        with Reader(source, plan, pool) as reader:
            while not reader.finished:
                reader.submit()
                for load in reader.ready(1.0):
                    reader.release(load)
except KeyboardInterrupt:
    print("stopped", reader.in_flight, pool.bytes > 0, flush=True)
"""
    import signal
    import time

    process = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True)
    assert process.stdout.readline() == "go\n"
    time.sleep(0.2)
    started = time.monotonic()
    process.send_signal(signal.SIGINT)
    out, _ = process.communicate(timeout=10)
    assert time.monotonic() - started < 1
    assert out == "stopped 0 True\n"


@pytest.mark.parametrize("driven", DRIVEN)
def test_a_forked_child_is_refused_and_the_parents_reader_goes_on(tmp_path, driven):
    data = random.Random(1).randbytes(3_000_000)
    path = write(tmp_path / "a", data)
    with open_columns({"x": path}, {"x": MemType.u8}) as source, Pool(POOL_BYTES) as pool:
        plan = Plan.choose(source, pool, io="pread", chunk_elements=65536)
        with Reader(source, plan, pool, **driven) as reader:
            reader.submit()
            child = os.fork()
            if child == 0:
                code = 1
                try:
                    reader.ready(0.1)
                except StreamError as error:
                    code = 0 if "belongs to the parent" in str(error) else 2
                reader.close()
                del reader
                os._exit(code)
            assert os.waitpid(child, 0)[1] == 0
            assert drain(reader)[0]["x"] == data


@real
def test_a_read_that_ctrl_c_kept_from_the_ring_does_not_hold_up_closing(tmp_path):
    import time

    path = write(tmp_path / "a", bytes(1 << 20))
    with open_columns({"x": path}, {"x": MemType.u8}) as source, Pool(POOL_BYTES) as pool:
        plan = Plan.choose(source, pool, io="uring", chunk_elements=131072)
        reader = Reader(source, plan, pool)
        reader.submit()
        reader._tables.words[P_FLYING // 8] += 1
        started = time.monotonic()
        reader.close()
        assert time.monotonic() - started < 1
        assert pool.bytes > 0


@real
def test_a_file_far_larger_than_the_pool_takes_the_pools_memory_only(tmp_path):
    path = tmp_path / "sparse"
    with open(path, "wb") as file:
        file.truncate(2 << 30)
    script = f"""
from vyre.program.opcodes import MemType
from vyre.stream.plan import Plan
from vyre.stream.pool import Pool
from vyre.stream.reader import Reader
from vyre.stream.source import Segment, Source, Strip, Take, open_columns
def peak():
    return next(int(line.split()[1]) for line in open("/proc/self/status") if line.startswith("VmHWM"))
before = peak()
with open_columns({{"x": {str(path)!r}}}, {{"x": MemType.f32}}) as source, Pool(32 << 20) as pool:
    plan = Plan.choose(source, pool)
    with Reader(source, plan, pool) as reader:
        while not reader.finished:
            reader.submit()
            for load in reader.ready(1.0):
                assert load.error is None
                reader.release(load)
    assert sum(reader.taken.values()) == source.bytes
print((peak() - before) // 1024)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert int(done.stdout) < 32 + 8


@pytest.mark.parametrize("chunk", [1024, 3000, 1 << 20])
def test_arrays_one_behind_the_other_are_read_where_they_are_and_joined_only_where_a_chunk_crosses(tmp_path, chunk):
    x, y = np.arange(10_000, dtype="i8"), np.arange(10_000, dtype="f4")
    parts = np.split(x, [1, 1500, 1500, 4096, 9_999])
    strip, first = Strip(8, 8), 0
    for part in parts:
        strip.segments.append(Segment(first, part.size, array=part.copy()))
        first += part.size
    path = write(tmp_path / "y", y.tobytes())
    with open_columns({"y": path}, {"y": MemType.f32}) as files, Pool(POOL_BYTES) as pool:
        takes = {"x": Take("x", 0, MemType.i64), **files.takes}
        source = Source({"x": strip, **files.strips}, takes)
        plan = Plan.choose(source, pool, io="pread", chunk_elements=chunk)
        with Reader(source, plan, pool) as reader:
            found = {}
            while not reader.finished:
                reader.submit()
                for load in reader.ready(1.0):
                    at, count = load.chunk.first, load.chunk.count
                    whole = source.array("x", at, count)
                    if whole is not None:
                        assert load.columns["x"].address == whole.ctypes.data
                    found[at] = bytes(load.view("x")) if whole is None else whole.tobytes(), bytes(load.view("y"))
                    reader.release(load)
        assert b"".join(found[at][0] for at in sorted(found)) == x.tobytes()
        assert b"".join(found[at][1] for at in sorted(found)) == y.tobytes()
        assert 0 < reader.copied < 5 * 8 * 1024 * 2
        assert sum(reader.taken.values()) == source.bytes
