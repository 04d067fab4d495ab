"""Chunks copied on into GPU memory, with a GPU at the driver's edge that is a Python thread (fake_gpu)."""

from __future__ import annotations

import os

import numpy as np
import pytest

import vyre
from fake_gpu import fake_engine
from vyre.engines.cuda import staging, ways
from vyre.errors import StreamError
from vyre.runtime import selection
from vyre.runtime.session import verified_of
from vyre.store import Store

STAGES = staging.Measured({1: 45.0, 2: 25.0, 4: 12.0}, {1: 46.0, 2: 53.0, 4: 53.0})


@pytest.fixture
def session(monkeypatch, tmp_path):
    engine = fake_engine(monkeypatch, store=Store(tmp_path / "store"))
    monkeypatch.setattr(selection, "_cuda", lambda *_, **__: (engine, "a stand-in"))
    staging._known.clear()
    with vyre.open("cuda", pool_bytes=1 << 20) as s:
        yield s
    staging._known.clear()
    assert (engine.device.registered, engine.device.events) == ({}, 0)


@vyre.program
def mixed(x: vyre.f32, k: vyre.i32):
    if k == 3:
        vyre.emit(at=vyre.index())
    vyre.sum(total=x // 1.0)
    return x * x


def test_loads_are_counted_by_input_and_a_loop_counts_for_many():
    assert staging.loads_of(staging._reading(1)) == 1
    assert staging.loads_of(staging._reading(4)) == 4
    assert staging.loads_of(verified_of(mixed).program) == 1


def test_the_choice_says_what_was_measured_and_takes_what_is_faster_beyond_noise():
    assert STAGES.choice(1) == (
        False, "read by the kernel in host memory: measured here 45.0 GB/s in place, 46.0 staged, for 1 loads an element",
    )  # fmt: skip
    better, line = STAGES.choice(3)
    assert better
    assert line.startswith(
        "copied on into GPU memory by the copy engine: measured here 25.0 GB/s in place, 53.0 staged"
    )


@pytest.mark.parametrize("io", ["hot", "mapped", "pread"])
@pytest.mark.parametrize("chunk", [1024, 30_000, None])
def test_staged_chunks_give_the_same_bits_and_are_counted_as_they_came(session, tmp_path, monkeypatch, io, chunk):
    monkeypatch.setattr(ways, "measured", lambda *_: staging.Measured({1: 1.0}, {1: 2.0}))
    monkeypatch.setattr(ways, "STAGED_BYTES", 0)
    x, k = np.random.default_rng(1).normal(size=100_001).astype(np.float32), np.arange(100_001, dtype=np.int32) % 8
    x.tofile(tmp_path / "x")
    k.tofile(tmp_path / "k")
    columns = {"x": vyre.raw(tmp_path / "x", vyre.f32), "k": vyre.raw(tmp_path / "k", vyre.i32)}
    want = vyre.run(mixed, {"x": x, "k": k}, engine="reference")
    result = session.run(mixed, columns, io=io, chunk=chunk)
    for name in want.keys():  # noqa: SIM118
        assert np.asarray(result[name]).tobytes() == np.asarray(want[name]).tobytes()
    assert sum(result.report.bytes_by_way.values()) == x.nbytes + k.nbytes
    assert "by the copy engine" in "\n".join(result.report.notes)
    assert len(session.engine.device.staged) >= 2


def test_a_fault_and_a_cut_file_are_told_as_without_staging(session, tmp_path, monkeypatch):
    monkeypatch.setattr(ways, "measured", lambda *_: staging.Measured({1: 1.0}, {1: 2.0}))
    monkeypatch.setattr(ways, "STAGED_BYTES", 0)
    a, b = np.arange(40_000, dtype=np.int32), np.ones(40_000, np.int32)
    b[33_333] = 0
    a.tofile(tmp_path / "a")
    program = vyre.expression("sum(a // b)", {"a": vyre.i32, "b": vyre.i32})
    columns = {"a": vyre.raw(tmp_path / "a", vyre.i32), "b": b}
    with pytest.raises(vyre.ProgramFault) as caught:
        session.run(program, columns, chunk=4096)
    assert (caught.value.fault.element, sorted(caught.value.fault.operands.values())) == (33_333, [0, 33_333])
    np.ones(1_000_000, np.int32).tofile(tmp_path / "a")
    with session.stream(program, {"a": columns["a"], "b": np.ones(1_000_000, np.int32)}, chunk=1024) as stream:
        next(stream)
        os.truncate(tmp_path / "a", 4 * 900_000)
        with pytest.raises(StreamError, match="shrank while it was read"):
            list(stream)


def test_what_was_measured_is_kept_for_the_machine(session, monkeypatch):
    calls = []
    monkeypatch.setattr(staging, "_measure", lambda engine: calls.append(1) or STAGES)
    store = session.engine.store
    assert staging.measured(session.engine, store) == STAGES
    staging._known.clear()
    assert staging.measured(session.engine, store) == STAGES
    assert calls == [1]


def test_the_measurement_itself_runs(session, monkeypatch):
    monkeypatch.setattr(staging, "_TEST_BYTES", 1 << 14)
    found = staging.measured(session.engine, None)
    assert list(found.in_place) == list(found.staged) == [1, 2, 4]
    assert min(*found.in_place.values(), *found.staged.values()) >= 0
