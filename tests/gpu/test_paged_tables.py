"""Tables on disk that the resident kernel gathers from: the bits of tables in memory, and what may go wrong. Needs a device."""

from __future__ import annotations

import numpy as np
import pytest

import vyre
from vyre.errors import BindError, ProgramFault
from vyre.program.builder import Builder
from vyre.program.opcodes import FaultCode, MemType, Type
from vyre.stream.disk_table import disk_table
from vyre.stream.formats import numpy_dtype

try:
    _session = vyre.open("cuda")
except vyre.EngineUnavailable as error:
    pytest.skip(f"no GPU engine here: {error.message}", allow_module_level=True)

ELEMENTS = 300_000
POOL = 128 << 10  # 32 pages of 4 KiB: a tenth of an f32 table's 293


@vyre.program
def twice(i: vyre.i64, *, t: vyre.table[vyre.f32]):
    vyre.sum(s=t[i])
    vyre.max(m=t[i])
    vyre.count(c=t[i] > 0.25)
    if t[i] > 0.5:
        vyre.emit(big=t[i])
    return t[i] * 2


@vyre.program
def chained(i: vyre.i64, *, t: vyre.table[vyre.i32], u: vyre.table[vyre.f32]):
    vyre.histogram(h=t[t[i]] % 16, bins=16)
    vyre.sum(s=u[t[t[i]]])
    at = vyre.i32(i)
    for _ in range(3):
        at = t[at]
    return at


@pytest.fixture(scope="module")
def session():
    yield _session
    _session.close()


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    folder = tmp_path_factory.mktemp("tables")
    rng = np.random.default_rng(1)
    np.save(folder / "floats.npy", rng.random(ELEMENTS, np.float32))
    np.save(folder / "links.npy", rng.integers(0, ELEMENTS, ELEMENTS, np.int32))
    return folder


def near(count: int, seed: int = 2) -> np.ndarray:
    steps = np.random.default_rng(seed).integers(0, 40, count)
    return (np.cumsum(steps) % ELEMENTS).astype(np.int64)


def same(found, expected) -> None:
    assert sorted(found) == sorted(expected)
    for name in expected:
        assert np.asarray(found[name]).tobytes() == np.asarray(expected[name]).tobytes(), name


@pytest.mark.parametrize("count", [0, 1, 33, 1023, 1025, 70_001])
def test_a_table_ten_times_larger_than_its_pool_gives_the_bits_of_one_in_memory(session, files, count):
    index = near(count)
    want = vyre.run(twice, i=index, t=np.load(files / "floats.npy"), engine="cpu")
    with disk_table(files / "floats.npy", pool_bytes=POOL) as table:
        found = session.run(twice, i=index, t=table)
        same(found, want)
        assert not any("read into memory whole" in note for note in found.report.notes)
        if count > 1025:
            assert table.loaded > table.frames == 32


def test_gathers_that_depend_on_gathers_of_two_tables_are_run_again(session, files):
    index = near(20_000)
    links, floats = np.load(files / "links.npy"), np.load(files / "floats.npy")
    want = vyre.run(chained, i=index, t=links, u=floats, engine="cpu")
    with (
        disk_table(files / "links.npy", pool_bytes=16 << 20) as t,
        disk_table(files / "floats.npy", pool_bytes=16 << 20) as u,
    ):
        same(session.run(chained, i=index, t=t, u=u), want)
        same(session.run(chained, i=index, t=t, u=floats), want)  # one on disk, one in memory


@pytest.mark.parametrize("name", ["i8", "u8", "i16", "u16", "u32", "i64", "f16", "bf16", "f64", "bool"])
def test_every_memory_type_widens_as_from_memory(session, tmp_path, name):
    memory = MemType[name]
    dtype = numpy_dtype(memory)
    contents = np.random.default_rng(3).integers(0, 2 if name == "bool" else 256, 40_000 * dtype.itemsize, np.uint8)
    contents = contents.view(dtype)
    contents.tofile(tmp_path / "t.bin")
    b = Builder("look")
    b.input("i", MemType.i64)
    b.table("t", memory)
    b.output("y", {t: MemType[t.name] for t in Type}[memory.type])
    kind = memory.type.name
    b.op(f"{kind}.store", b.op(f"{kind}.table_get", b.op("i64.load", imm=0), imm=0), imm=0)
    program = b.build()
    index = np.random.default_rng(4).integers(0, contents.size, 5_000)
    want = vyre.run(program, i=index, t=contents, engine="cpu").value
    with disk_table(tmp_path / "t.bin", memory) as table:
        assert session.run(program, i=index, t=table).value.tobytes() == want.tobytes()


def test_a_trap_is_that_of_the_lowest_element_although_earlier_pages_were_missing(session, files):
    index = near(50_000)
    index[41_003], index[44_000] = ELEMENTS, -1
    with disk_table(files / "floats.npy", pool_bytes=POOL) as table, pytest.raises(ProgramFault) as found:
        session.run(twice, i=index, t=table)
    assert (found.value.fault.element, found.value.fault.code) == (41_003, FaultCode.out_of_bounds)


def test_a_tile_that_wants_more_pages_than_there_are_is_refused(session, files):
    index = np.arange(0, 290_000, 283, dtype=np.int64)[:1024]
    with (
        disk_table(files / "floats.npy", pool_bytes=16 << 10) as table,
        pytest.raises(BindError, match="more than the 4 pages"),
    ):
        session.run(twice, i=index, t=table)


def test_tables_come_and_go_and_their_memory_is_given_back(session, files):
    floats = np.load(files / "floats.npy")
    for seed in range(40):
        index = near(3_000, seed)
        with disk_table(files / "floats.npy", pool_bytes=POOL) as table:
            assert session.run(twice, i=index, t=table).value.tobytes() == (floats[index] * 2).tobytes()
    assert not session.engine._counters
