"""Tables that stay in a file while programs gather from them: the bits of tables in memory, and nothing else is ever read."""

from __future__ import annotations

import threading

import numpy as np
import pytest

import vyre
from vyre.errors import BindError, ProgramFault, StreamError
from vyre.program.builder import Builder
from vyre.program.opcodes import FaultCode, MemType, Type
from vyre.ring.layout import IO_REQUEST_DTYPE, Opcode, Right
from vyre.runtime import paging
from vyre.stream import disk_table as home
from vyre.stream.disk_table import Capabilities, Capability, disk_table
from vyre.stream.formats import numpy_dtype

ELEMENTS = 300_000
POOL = 128 << 10  # 32 pages of 4 KiB: a tenth of an f32 table's 293


@vyre.program
def twice(i: vyre.i64, *, t: vyre.table[vyre.f32]):
    vyre.sum(s=t[i])
    vyre.max(m=t[i])
    if t[i] > 0.5:
        vyre.emit(big=t[i])
    return t[i] * 2


@vyre.program
def chained(i: vyre.i64, *, t: vyre.table[vyre.i32]):
    if i % 3 == 0:
        vyre.histogram(h=t[t[i]] % 16, bins=16)
    vyre.sum(s=t[t[t[i]]])
    vyre.count(odd=t[i] % 2 == 1)


@pytest.fixture(scope="module")
def session():
    with vyre.open("cpu", workers=2) as s:
        yield s


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(1)
    floats = rng.random(ELEMENTS, np.float32)
    links = rng.integers(0, ELEMENTS, ELEMENTS, np.int32)
    np.save(folder / "floats.npy", floats)
    np.save(folder / "links.npy", links)
    floats.tofile(folder / "floats.f32")
    return folder


def near(count: int, seed: int = 2) -> np.ndarray:
    """Indices that wander: a tile of them wants a few pages, all of them want most."""
    steps = np.random.default_rng(seed).integers(0, 40, count)
    return (np.cumsum(steps) % ELEMENTS).astype(np.int64)


def same(found, expected) -> None:
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert np.asarray(found[name]).tobytes() == np.asarray(expected[name]).tobytes(), name


@pytest.mark.parametrize("io", ["auto", "uring", "pread"])
@pytest.mark.parametrize("count", [0, 1, 1023, 1025, 70_001])
def test_a_table_ten_times_larger_than_its_pool_gives_the_bits_of_one_in_memory(session, files, count, io):
    index = near(count)
    want = session.run(twice, i=index, t=np.load(files / "floats.npy"))
    with disk_table(files / "floats.npy", pool_bytes=POOL, io=io) as table:
        found = session.run(twice, i=index, t=table)
        same(found, want)
        assert table.resident <= table.frames == 32
        if count > 1025:
            assert table.loaded > table.frames
            assert any("pages of 4 KiB read by" in note for note in found.report.notes)


def test_gathers_that_depend_on_gathers_are_run_again_until_all_pages_are_there(session, files):
    index = near(20_000)
    links = np.load(files / "links.npy")
    want = session.run(chained, i=index, t=links)
    with disk_table(files / "links.npy", pool_bytes=16 << 20) as table:
        same(session.run(chained, i=index, t=table), want)


def test_a_gather_in_a_loop_over_a_table_on_disk_gives_the_reference_s_bits(session, files):
    @vyre.program
    def walk(i: vyre.i64, *, t: vyre.table[vyre.i32]):
        at = vyre.i32(i)
        for _ in range(5):
            at = t[at]
        return at

    index = near(3_000)
    links = np.load(files / "links.npy")
    want = vyre.run(walk, i=index, t=links, engine="reference").value
    with disk_table(files / "links.npy", pool_bytes=16 << 20) as table:
        assert session.run(walk, i=index, t=table).value.tobytes() == want.tobytes()


@pytest.mark.parametrize("name", ["i8", "u8", "i16", "u16", "i32", "u32", "i64", "u64", "f16", "f32", "f64"])
def test_every_memory_type_widens_as_from_memory(session, tmp_path, name):
    kind = getattr(vyre, name)
    dtype = numpy_dtype(MemType[name])
    bits = np.random.default_rng(3).integers(0, 256, 40_000 * dtype.itemsize, np.uint8)
    contents = bits.view(dtype)
    path = tmp_path / "t.bin"
    contents.tofile(path)
    program = _gather_of(name)
    index = np.random.default_rng(4).integers(0, contents.size, 5_000)
    want = session.run(program, i=index, t=contents).value
    with disk_table(path, kind) as table:
        assert session.run(program, i=index, t=table).value.tobytes() == want.tobytes()


def _gather_of(name: str):
    memory = MemType[name]
    b = Builder("look")
    b.input("i", MemType.i64)
    b.table("t", memory)
    b.output(
        "y", {Type.i32: MemType.i32, Type.i64: MemType.i64, Type.f32: MemType.f32, Type.f64: MemType.f64}[memory.type]
    )
    r = b.op("i64.load", imm=0)
    b.op(f"{memory.type.name}.store", b.op(f"{memory.type.name}.table_get", r, imm=0), imm=0)
    return b.build()


def test_a_trap_is_that_of_the_lowest_element_although_earlier_pages_were_missing(session, files):
    index = near(50_000)
    index[41_003] = ELEMENTS
    index[44_000] = -1
    with disk_table(files / "floats.npy", pool_bytes=POOL) as table:
        with pytest.raises(ProgramFault) as found:
            session.run(twice, i=index, t=table)
        assert found.value.fault.element == 41_003
        assert found.value.fault.code == FaultCode.out_of_bounds
        reported = session.run(twice, i=index, t=table, on_fault="report")
        assert reported.fault.element == 41_003


def test_a_tile_that_wants_more_pages_than_there_are_is_refused_with_the_pool_to_ask_for(session, files):
    index = np.arange(0, 290_000, 283, dtype=np.int64)[:1024]
    with (
        disk_table(files / "floats.npy", pool_bytes=16 << 10) as table,
        pytest.raises(BindError, match=r"more than the 4 pages of .*floats.npy") as found,
    ):
        session.run(twice, i=index, t=table)
    assert "16,384 bytes" in found.value.fix


def test_a_path_for_a_table_is_gathered_from_and_closed_again(session, files):
    index = near(5_000)
    want = session.run(twice, i=index, t=np.load(files / "floats.npy"))
    same(session.run(twice, i=index, t=files / "floats.npy"), want)
    same(session.run(twice, i=index, t=vyre.raw(files / "floats.f32", vyre.f32)), want)


def test_pages_stay_for_the_next_run(session, files):
    index = near(5_000)
    with disk_table(files / "floats.npy") as table:
        session.run(twice, i=index, t=table)
        before = table.loaded
        assert before > 0
        session.run(twice, i=index, t=table)
        assert table.loaded == before


def test_threads_that_share_a_table_take_turns_and_get_their_own_answers(session, files):
    floats = np.load(files / "floats.npy")
    wrong = []
    with disk_table(files / "floats.npy", pool_bytes=POOL) as table:

        def work(seed: int) -> None:
            for k in range(5):
                index = near(9_000, 10 * seed + k)
                if session.run(twice, i=index, t=table).value.tobytes() != (floats[index] * 2).tobytes():
                    wrong.append((seed, k))

        threads = [threading.Thread(target=work, args=(n,)) for n in range(3)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert not wrong


def test_an_engine_without_pages_reads_the_table_whole_and_says_so(files):
    index = near(2_000)
    floats = np.load(files / "floats.npy")
    with vyre.open("reference") as session:
        found = session.run(twice, i=index, t=files / "floats.npy")
    assert found.value.tobytes() == (floats[index] * 2).tobytes()
    assert any("read into memory whole" in note for note in found.report.notes)


# --- what a request may name -----------------------------------------------------------------------------------------------


def request(**words: int) -> np.ndarray:
    one = np.zeros(1, IO_REQUEST_DTYPE)
    one["opcode"], one["bytes"] = Opcode.LOAD_MISS, 4096
    for name, value in words.items():
        one[name] = value
    return one


@pytest.fixture
def table(files):
    with disk_table(files / "floats.npy", pool_bytes=POOL) as found:
        yield found


FORGED = {
    "another opcode": ({"opcode": Opcode.MEMCPY}, "no LOAD_MISS"),
    "a handle that was not granted": ({"handle": 0xFFFF_FFFF}, "was not granted"),
    "a page behind the file's end": ({"offset_low": 293 * 4096}, "not for a page at"),
    "a page beyond 4 GiB": ({"offset_high": 7}, "not for a page at"),
    "the middle of a page": ({"offset_low": 8}, "not for a page at"),
    "more than a page": ({"bytes": 8192}, "not for a page at"),
    "nothing": ({"bytes": 0}, "not for a page at"),
}


@pytest.mark.parametrize("name", FORGED)
def test_a_request_that_names_more_than_was_granted_is_refused(table, name):
    words, why = FORGED[name]
    asked = np.concatenate([request(handle=table._handle), request(**{"handle": table._handle, **words})])
    wanted, wrong = table.capabilities.check(asked)
    assert wanted == {}
    assert wrong is not None
    assert why in wrong


@pytest.mark.parametrize("seed", range(20))
def test_whatever_bytes_a_request_holds_only_granted_pages_are_named(table, seed):
    rng = np.random.default_rng(seed)
    asked = rng.integers(0, 256, 64 * IO_REQUEST_DTYPE.itemsize, np.uint8).view(IO_REQUEST_DTYPE)
    asked["opcode"], asked["bytes"] = Opcode.LOAD_MISS, 4096
    asked["handle"] = table._handle
    asked["offset_high"] = rng.integers(0, 2, 64)
    asked["offset_low"] = rng.integers(0, 400, 64) * 4096
    wanted, wrong = table.capabilities.check(asked)
    inside = (asked["offset_high"] == 0) & (asked["offset_low"] < 293 * 4096 + 1)
    assert (wrong is None) == bool(inside.all())
    for pages in wanted.values():
        assert pages.min() >= 0
        assert pages.max() <= 293


def test_a_handle_without_the_right_to_read_and_one_that_was_taken_back_are_refused(table):
    own = Capabilities()
    handle = own.grant(Capability(table, 128, 4096, Right.WRITE))
    assert "right to read" in str(own.check(request(handle=handle))[1])
    own.revoke(handle)
    assert "was not granted" in str(own.check(request(handle=handle))[1])


def test_an_item_with_a_forged_request_ends_in_fault_rights_and_reads_nothing(session, table, monkeypatch):
    monkeypatch.setattr(home.Requests, "take", lambda self, count: request(handle=12_345_678))
    found = session.run(twice, i=near(2_000), t=table, on_fault="report")
    assert found.fault.code == FaultCode.rights
    assert "12345678" in found.fault.reason
    assert table.loaded == 0


def test_a_request_for_a_table_of_another_program_is_refused(session, files, table, monkeypatch):
    with disk_table(files / "links.npy") as other:
        monkeypatch.setattr(home.Requests, "take", lambda self, count: request(handle=other._handle))
        found = session.run(twice, i=near(2_000), t=table, on_fault="report")
        assert found.fault.code == FaultCode.rights
        assert other.loaded == 0


# --- bad input ---------------------------------------------------------------------------------------------------------------


def test_a_file_that_shrinks_ends_in_an_error_that_names_file_and_offset(session, tmp_path):
    path = tmp_path / "t.f32"
    np.zeros(100_000, np.float32).tofile(path)
    with disk_table(path, vyre.f32, pool_bytes=POOL) as table:
        with open(path, "r+b") as f:
            f.truncate(200_000)
        with pytest.raises(StreamError, match=r"t\.f32"):
            session.run(twice, i=np.arange(60_000, 62_000), t=table)


def test_a_program_that_writes_a_table_takes_none_on_disk(session, files):
    @vyre.program
    def counted(i: vyre.i64, *, t: vyre.table[vyre.f32], n: vyre.atomic[vyre.i64]):
        vyre.table_add(n, i % 4, 1)
        return t[i]

    with pytest.raises(BindError, match="writes table n"):
        session.run(counted, i=near(10), t=files / "floats.npy", n=np.zeros(4, np.int64))


def test_inputs_in_files_beside_a_table_on_disk_are_refused_with_what_to_do(session, files, tmp_path):
    np.save(tmp_path / "i.npy", near(10))
    with pytest.raises(BindError, match="goes with inputs in memory"):
        session.run(twice, i=tmp_path / "i.npy", t=files / "floats.npy")
    with pytest.raises(BindError, match="is a file"):
        session.submit(twice, i=near(10), t=files / "floats.npy")
    with pytest.raises(BindError, match="is a file"):
        session.bind(twice, i=near(10), t=files / "floats.npy")


def test_a_table_of_another_type_a_closed_one_and_a_bad_page_size_are_refused(session, files):
    with pytest.raises(BindError, match=r"t is f32.*i32"):
        session.run(twice, i=near(10), t=disk_table(files / "links.npy"))
    with disk_table(files / "floats.npy") as table:
        pass
    with pytest.raises(BindError, match="was closed"):
        session.run(twice, i=near(10), t=table)
    with pytest.raises(BindError, match="power of two"):
        disk_table(files / "floats.npy", page_bytes=5_000)
    with pytest.raises(BindError, match="no room for a page"):
        disk_table(files / "floats.npy", pool_bytes=100)
    with pytest.raises(BindError, match="nothing says"):
        disk_table(files / "floats.f32")
    with pytest.raises(StreamError, match=r"missing\.npy"):
        disk_table(files / "missing.npy")


def test_blocked_io_uring_is_announced_and_read_by_preadv(session, files, monkeypatch):
    monkeypatch.setattr(home, "available", lambda: "io_uring_setup: EPERM (a test)")
    index = near(3_000)
    floats = np.load(files / "floats.npy")
    with disk_table(files / "floats.npy", pool_bytes=POOL) as table:
        found = session.run(twice, i=index, t=table)
        assert found.value.tobytes() == (floats[index] * 2).tobytes()
        assert "EPERM" in "".join(found.report.notes)
    with pytest.raises(StreamError, match="EPERM"):
        disk_table(files / "floats.npy", io="uring")


def test_a_run_with_a_deadline_ends_in_time(session, files):
    with disk_table(files / "floats.npy", pool_bytes=POOL) as table, pytest.raises(vyre.WaitTimeout):
        session.run(twice, i=near(200_000), t=table, timeout_s=1e-6)
    assert paging.FIRST_WINDOW % 1024 == 0


@pytest.mark.parametrize("lost", [False, True])
def test_an_interrupt_while_pages_are_read_leaves_no_frame_that_the_system_still_writes_to(
    session, files, monkeypatch, lost
):
    completions, calls = home.Ring.completions, []
    monkeypatch.setattr(home, "SEE_OUT_S", 0.3)

    def interrupted(ring):
        calls.append(ring)
        if len(calls) == 1:
            if lost:  # it came after completions were taken: they are never seen
                completions(ring)
            raise KeyboardInterrupt
        return completions(ring)

    index, floats = near(9_000), np.load(files / "floats.npy")
    with disk_table(files / "floats.npy", io="uring") as table:
        monkeypatch.setattr(home.Ring, "completions", interrupted)
        with pytest.raises(KeyboardInterrupt):
            session.run(twice, i=index, t=table)
        assert len(calls) > 1
        if lost:
            with pytest.raises(BindError, match="was closed"):
                session.run(twice, i=index, t=table)
        else:
            assert session.run(twice, i=index, t=table).value.tobytes() == (floats[index] * 2).tobytes()
