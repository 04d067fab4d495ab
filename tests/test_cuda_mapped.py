"""Files that a GPU reads where they lie, with a GPU at the driver's edge that is a Python thread (fake_gpu)."""

from __future__ import annotations

import os
import time

import numpy as np
import pytest

import vyre
from fake_gpu import fake_engine
from vyre.engines.cuda import mapped, ways
from vyre.errors import BindError, StreamError
from vyre.runtime import selection
from vyre.stream.plan import Rung

ADD = vyre.expression("sum(x)", {"x": vyre.f32})
MAPPED = Rung.MAPPED.value


@pytest.fixture
def session(monkeypatch):
    engine = fake_engine(monkeypatch)
    monkeypatch.setattr(selection, "_cuda", lambda *_, **__: (engine, "a stand-in"))
    monkeypatch.setattr(mapped, "WINDOW_BYTES", 1 << 16)
    monkeypatch.setattr(ways, "AUTO_BYTES", 1 << 16)
    with vyre.open("cuda", pool_bytes=1 << 20) as s:
        yield s
    assert engine.device.registered == {}


@pytest.fixture
def numbers(tmp_path):
    x = np.arange(100_000, dtype=np.float32)
    x.tofile(tmp_path / "x.f32")
    settle(tmp_path / "x.f32")
    return tmp_path / "x.f32", x


def settle(path) -> None:
    """Have a file look as if it had been written a while ago: what was written just now is not trusted."""
    past = time.time() - 60
    os.utime(path, (past, past))
    time.sleep(mapped._SETTLED_NS / 1e9 + 0.02)  # utime changes ctime


def run(session, path, **more):
    return session.run(ADD, x=vyre.raw(path, vyre.f32), **more)


@pytest.mark.parametrize("chunk", [None, 1024, 30_000])
def test_a_mapped_file_gives_the_bits_of_one_that_is_copied(session, numbers, chunk):
    path, x = numbers
    result = run(session, path, io="mapped", chunk=chunk)
    assert result.value == x.sum(dtype=np.float64)
    assert result.report.bytes_by_way == {MAPPED: x.nbytes}
    assert f"{MAPPED} (as asked)" in "\n".join(result.report.notes)


def test_the_second_read_of_a_file_is_in_place_and_the_third_registers_nothing(session, numbers):
    path, x = numbers
    assert MAPPED not in run(session, path).report.bytes_by_way
    second = run(session, path)
    assert second.report.bytes_by_way == {MAPPED: x.nbytes}
    assert "not read for the first time" in "\n".join(second.report.notes)
    registrations = session.engine.device.registrations
    third = run(session, path)
    assert third.value == x.sum(dtype=np.float64)
    assert "still registered" in "\n".join(third.report.notes)
    assert session.engine.device.registrations == registrations


def test_a_file_that_was_written_to_is_mapped_anew(session, numbers):
    path, _ = numbers
    run(session, path, io="mapped")
    old = session.engine.mapped.registered_bytes
    y = np.ones(150_000, np.float32)
    with open(path, "r+b") as f:  # the same file, cut and grown
        f.truncate(0)
        y.tofile(f)
    assert MAPPED not in run(session, path).report.bytes_by_way
    assert run(session, path, io="mapped").value == y.size
    assert session.engine.mapped.registered_bytes == y.nbytes > old


def test_a_file_written_to_just_before_is_not_trusted_to_be_the_same(session, numbers):
    path, _ = numbers
    os.utime(path)
    run(session, path, io="mapped")
    assert not session.engine.mapped.is_registered(next(iter(opened(path))))
    assert run(session, path, io="mapped").value == np.arange(100_000, dtype=np.float32).sum(dtype=np.float64)


def opened(path):
    from vyre.program.opcodes import MemType
    from vyre.stream.source import open_columns

    with open_columns({"x": vyre.raw(path, vyre.f32)}, {"x": MemType.f32}) as source:
        yield source.files["x"][0]


def test_a_file_that_is_cut_while_it_is_mapped_ends_in_an_error_and_not_in_a_dead_process(session, numbers):
    path, _ = numbers
    session.engine.device.reads_mapped = False  # the stand-in is no GPU: it would touch what has been cut
    with session.stream(ADD, x=vyre.raw(path, vyre.f32), io="mapped", chunk=10_240) as stream:
        next(stream)
        os.truncate(path, 4 * 50_000)
        with pytest.raises(StreamError, match="shrank while it was read") as caught:
            for _ in stream:
                pass
    assert str(path) in str(caught.value)


def test_values_at_a_fault_come_from_the_file_and_not_from_the_mapping(session, tmp_path):
    a, b = np.arange(40_000, dtype=np.int32), np.ones(40_000, np.int32)
    b[33_333] = 0
    for name, column in (("a", a), ("b", b)):
        column.tofile(tmp_path / name)
    program = vyre.expression("sum(a // b)", {"a": vyre.i32, "b": vyre.i32})
    columns = {n: vyre.raw(tmp_path / n, vyre.i32) for n in "ab"}
    with pytest.raises(vyre.ProgramFault) as caught:
        session.run(program, columns, io="mapped", chunk=4096)
    assert caught.value.fault.element == 33_333
    assert sorted(caught.value.fault.operands.values()) == [0, 33_333]


def test_chunks_that_cross_the_ends_of_files_are_put_together(session, tmp_path):
    x = np.arange(70_001, dtype=np.float32)
    paths = []
    for k, part in enumerate(np.array_split(x, 3)):
        part.tofile(tmp_path / f"{k}.f32")
        paths.append(tmp_path / f"{k}.f32")
    result = session.run(ADD, x=vyre.raw(paths, vyre.f32), io="mapped")
    assert result.value == x.sum(dtype=np.float64)
    ways_taken = result.report.bytes_by_way
    assert sum(ways_taken.values()) == x.nbytes
    assert 0 < ways_taken[Rung.COPIED.value] < ways_taken[MAPPED]


def test_a_refusal_of_cuda_is_named_and_the_file_is_copied(session, numbers):
    path, x = numbers
    run(session, path)
    session.engine.device.refuses_read_only = True
    result = run(session, path)
    assert result.value == x.sum(dtype=np.float64)
    notes = "\n".join(result.report.notes)
    assert "mapped, read in place refused: CUDA does not register" in notes
    assert "CUDA_ERROR_INVALID_VALUE" in notes
    with pytest.raises(StreamError, match="impossible here: CUDA does not register"):
        run(session, path, io="mapped")
    assert session.engine.mapped.registered_bytes == 0


def test_no_more_is_registered_than_is_allowed_and_the_oldest_goes_first(session, tmp_path):
    files = session.engine.mapped
    files.limit_bytes = 900_000
    x = np.arange(100_000, dtype=np.float32)
    for k in range(4):
        x.tofile(tmp_path / f"{k}")
        settle(tmp_path / f"{k}")
        run(session, tmp_path / f"{k}", io="mapped")
        assert files.registered_bytes == 400_000 * min(k + 1, 2)
    np.zeros(300_000, np.float32).tofile(tmp_path / "big")
    with pytest.raises(StreamError, match="1,200,000 bytes more would be registered than the 900,000 that are allowed"):
        run(session, tmp_path / "big", io="mapped")


def test_columns_in_memory_are_not_mapped_and_say_so(session):
    with pytest.raises(StreamError, match="some columns are in memory"):
        list(session.stream(ADD, x=np.ones(10, np.float32), io="mapped"))


def test_another_engine_refuses_to_map_with_the_reason(numbers):
    path, _ = numbers
    with vyre.open("cpu", workers=1) as cpu, pytest.raises(BindError, match="engine='cuda'"):
        cpu.run(ADD, x=vyre.raw(path, vyre.f32), io="mapped")
