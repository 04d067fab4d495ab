"""Programs over files, chunk by chunk: the same bits whatever the chunks, order, faults, files that change, giving back."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest

import vyre
from vyre.errors import BindError, ProgramFault, SessionClosed, StreamError, WaitTimeout
from vyre.program.opcodes import FaultCode

N = 300_001
WAYS = ["auto", "hot", "uring", "pread"]


@vyre.program
def folds(x: vyre.f32, k: vyre.i32):
    vyre.sum(total=x)
    vyre.sum(whole=k)
    vyre.count(negative=x < 0.0)
    vyre.min(low=x)
    vyre.max(high=k)
    vyre.histogram(counts=k & 15, bins=16)
    if k & 3 == 0:
        vyre.emit(kept=x)
    return x + 1.0


@vyre.program
def place(k: vyre.i32):
    vyre.emit(at=vyre.index())
    return 1000 // k


@pytest.fixture(scope="module")
def session() -> Iterator[vyre.Session]:
    with vyre.open("cpu", workers=2) as found:
        yield found


@pytest.fixture(scope="module")
def columns(tmp_path_factory: pytest.TempPathFactory) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        "x": (rng.standard_normal(N) * 10.0 ** rng.integers(-20, 20, N)).astype(np.float32),
        "k": rng.integers(-(2**31), 2**31, N).astype(np.int32),
    }


@pytest.fixture(scope="module")
def files(columns: dict[str, np.ndarray], tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    root = tmp_path_factory.mktemp("columns")
    for name, a in columns.items():
        np.save(root / f"{name}.npy", a)
    return {name: str(root / f"{name}.npy") for name in columns}


@pytest.fixture(scope="module")
def wanted(session: vyre.Session, columns: dict[str, np.ndarray]) -> dict[str, bytes]:
    return bits(session.run(folds, columns))


def bits(result: vyre.Result) -> dict[str, bytes]:
    return {name: np.asarray(value).tobytes() for name, value in result.items()}


# --- the same bits ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", WAYS)
@pytest.mark.parametrize("chunk", [1, 1024, 4096, 5_000, 65_537, 1 << 20, None])
def test_files_give_the_bits_of_arrays_whatever_the_chunk_and_the_way(session, files, wanted, io, chunk):
    r = session.run(folds, files, chunk=chunk, io=io)
    assert bits(r) == wanted
    assert r.report.elements == N
    assert r.report.bytes == 8 * N


def test_the_reference_engine_streams_to_the_same_bits(files, wanted):
    with vyre.open("reference") as session:
        assert bits(session.run(folds, files, chunk=100_000)) == wanted


@pytest.mark.parametrize("workers", [1, 3])
def test_the_number_of_workers_changes_no_bit(files, wanted, workers):
    with vyre.open("cpu", workers=workers) as session:
        assert bits(session.run(folds, files, chunk=20_000)) == wanted


@pytest.mark.parametrize("cuts", [[1], [1024], [4_097, 4_098], [100_000, 200_000, 300_000]])
def test_several_files_are_one_stream_wherever_they_are_cut(session, columns, files, wanted, tmp_path, cuts):
    paths = []
    for i, (start, stop) in enumerate(zip([0, *cuts], [*cuts, N], strict=True)):
        np.save(tmp_path / f"{i}.npy", columns["x"][start:stop])
        paths.append(tmp_path / f"{i}.npy")
    for io in ("auto", "pread"):
        assert bits(session.run(folds, {"x": paths, "k": files["k"]}, chunk=8_192, io=io)) == wanted


def test_arrays_and_files_may_be_mixed(session, columns, files, wanted):
    r = session.run(folds, {"x": files["x"], "k": columns["k"]}, chunk=10_000)
    assert bits(r) == wanted
    assert "in memory" in str(r.report)


def test_raw_files_are_read_with_the_declared_type(session, columns, wanted, tmp_path):
    for name, a in columns.items():
        a.tofile(tmp_path / f"{name}.bin")
    spec = {name: str(tmp_path / f"{name}.bin") for name in columns}
    assert bits(session.run(folds, spec, chunk=50_000)) == wanted


def test_parts_come_in_order_and_their_totals_are_those_of_the_whole(session, columns, files, wanted):
    seen: list[tuple[int, int]] = []
    outputs, kept = [], []
    with session.stream(folds, files, chunk=7_000, progress=lambda done, n: seen.append((done, n))) as stream:
        assert stream.elements == N
        for part in stream:
            outputs.append(part["value"])
            kept.append(part["kept"])
            assert stream.done == sum(map(len, outputs))
        total = stream.total()
    np.testing.assert_array_equal(np.concatenate(outputs), columns["x"] + np.float32(1))
    assert np.concatenate(kept).tobytes() == wanted["kept"]
    assert {name: np.asarray(v).tobytes() for name, v in total.items()} == {n: wanted[n] for n in total}
    assert "total" in total
    assert [done for done, _ in seen] == np.cumsum([len(a) for a in outputs]).tolist()
    assert seen[-1] == (N, N)


def test_elements_are_numbered_over_the_whole_stream(session, tmp_path):
    np.save(tmp_path / "k.npy", np.ones(10_000, np.int32))
    r = session.run(place, {"k": tmp_path / "k.npy"}, chunk=1024)
    np.testing.assert_array_equal(r["at"], np.arange(10_000))


def test_a_file_of_nothing_gives_identities_and_no_part(session, tmp_path):
    np.save(tmp_path / "x.npy", np.empty(0, np.float32))
    np.save(tmp_path / "k.npy", np.empty(0, np.int32))
    spec = {"x": tmp_path / "x.npy", "k": tmp_path / "k.npy"}
    r = session.run(folds, spec)
    assert (r["total"], r["whole"], r["negative"], len(r["kept"]), len(r["value"])) == (0, 0, 0, 0, 0)
    assert (r["low"], r["high"]) == (np.inf, -(2**31))
    assert list(session.stream(folds, spec)) == []


def test_a_list_of_paths_a_directory_and_a_source_are_columns_too(session, columns, files, wanted, tmp_path):
    from vyre.program.opcodes import MemType
    from vyre.stream.source import open_columns

    source = open_columns(files, {"x": MemType.f32, "k": MemType.i32})
    assert bits(session.run(folds, source)) == wanted
    source = open_columns(files, {"x": MemType.f32, "k": MemType.i32})
    with session.stream(folds, source, chunk=100_000) as stream:
        assert sum(len(part["value"]) for part in stream) == N


# --- results to files -------------------------------------------------------------------------------------------------


def test_outputs_and_emits_go_to_files_whole(session, columns, files, wanted, tmp_path):
    out = {"value": tmp_path / "value.npy", "kept": tmp_path / "kept.bin"}
    r = session.run(folds, files, chunk=10_000, out=out)
    assert r["value"] == str(tmp_path / "value.npy")
    np.testing.assert_array_equal(np.load(out["value"]), columns["x"] + np.float32(1))
    assert out["kept"].read_bytes() == wanted["kept"]
    assert np.asarray(r["total"]).tobytes() == wanted["total"]
    assert sorted(p.name for p in tmp_path.iterdir()) == ["kept.bin", "value.npy"]


def test_one_output_may_be_one_path(session, tmp_path):
    np.arange(5_000, dtype=np.int32).tofile(tmp_path / "x.bin")
    rule = vyre.expression("x * 2", types={"x": vyre.i32})
    session.run(rule, x=tmp_path / "x.bin", out=tmp_path / "y.bin")
    np.testing.assert_array_equal(np.fromfile(tmp_path / "y.bin", np.int32), 2 * np.arange(5_000))


def test_an_out_that_names_nothing_or_no_path_is_refused(session, files, tmp_path):
    for out, words in (
        ({"other": tmp_path / "o"}, "out names 'other', which program folds does not write"),
        ({"value": 3}, "out for value is a int"),
        (tmp_path / "o", "out is one path, but program folds writes value, kept"),
    ):
        with pytest.raises(BindError, match=words):
            session.run(folds, files, out=out)
    assert list(tmp_path.iterdir()) == []


def test_a_fault_leaves_no_file_under_the_final_name(session, tmp_path):
    k = np.ones(20_000, np.int32)
    k[15_000] = 0
    np.save(tmp_path / "k.npy", k)
    (tmp_path / "old.npy").write_bytes(b"old")
    with pytest.raises(ProgramFault, match="element 15000"):
        session.run(
            place, {"k": tmp_path / "k.npy"}, chunk=1024, out={"value": tmp_path / "old.npy", "at": tmp_path / "at.npy"}
        )
    assert (tmp_path / "old.npy").read_bytes() == b"old"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["k.npy", "old.npy"]


@pytest.mark.skipif(not os.path.exists("/dev/full"), reason="needs /dev/full")
def test_a_full_disk_is_an_error_that_names_the_file(session, files):
    with pytest.raises((StreamError, BindError), match="/dev/full"):
        session.run(folds, files, out={"value": "/dev/full"})


# --- faults -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("io", WAYS)
@pytest.mark.parametrize("at", [0, 1_023, 1_024, 50_000, 99_999])
def test_every_part_before_a_fault_is_given_then_the_fault_then_nothing(session, tmp_path, io, at):
    k = np.full(100_000, 10, np.int32)
    k[[at, 99_999]] = 0
    np.save(tmp_path / "k.npy", k)
    parts = []
    stream = session.stream(place, {"k": tmp_path / "k.npy"}, chunk=1024, io=io)
    with pytest.raises(ProgramFault) as caught:
        parts.extend(part["value"] for part in stream)
    assert sum(map(len, parts)) == at // 1024 * 1024
    fault = caught.value.fault
    assert (fault.code, fault.element) == (FaultCode.divide_by_zero, at)
    assert fault.file is not None
    assert fault.line is not None
    assert sorted(fault.operands.values()) == [0, 1000]
    assert list(stream) == []
    r = session.run(place, {"k": tmp_path / "k.npy"}, chunk=1024, io=io, on_fault="report")
    assert r.fault.element == at


@pytest.mark.parametrize("io", WAYS)
def test_a_file_cut_while_it_is_read_is_named_with_offset_and_what_was_expected(session, tmp_path, io):
    path = tmp_path / "k.bin"
    np.ones(400_000, np.int32).tofile(path)
    stream = session.stream(place, {"k": str(path)}, chunk=1024, io=io)
    next(stream)
    os.truncate(path, 4 * 200_000)
    with pytest.raises(StreamError) as caught:
        list(stream)
    text = str(caught.value)
    assert str(path) in text
    assert "800,000" in text or "800000" in text, text
    stream.close()
    np.testing.assert_array_equal(session.run(place, {"k": np.ones(5, np.int32)})["value"], [1000] * 5)


def test_columns_of_different_lengths_are_refused_with_both(session, files, tmp_path):
    np.save(tmp_path / "k.npy", np.ones(77, np.int32))
    with pytest.raises(BindError) as caught:
        session.run(folds, {"x": files["x"], "k": tmp_path / "k.npy"})
    text = str(caught.value).replace(",", "")
    assert "77" in text
    assert str(N) in text


@pytest.mark.parametrize(
    "problem", ["missing", "directory of nothing", "another type", "odd length", "unreadable format"]
)
def test_a_file_that_cannot_be_a_column_is_refused_by_name(session, tmp_path, problem):
    path = tmp_path / "k.npy"
    match problem:
        case "directory of nothing":
            path.mkdir()
        case "another type":
            np.save(path, np.ones(5))
        case "odd length":
            path = tmp_path / "k.bin"
            path.write_bytes(bytes(7))
        case "unreadable format":
            path.write_bytes(b"not an npy file at all")
    with pytest.raises((BindError, StreamError)) as caught:
        session.run(place, {"k": str(path)})
    assert path.name in str(caught.value)


def test_streaming_refuses_unknown_and_missing_names_and_opens_nothing(session, files):
    before = len(os.listdir("/proc/self/fd"))
    for named, words in (
        ({"y": files["x"]}, "declares no 'y'"),
        ({"x": files["x"]}, r"input k \(i32\) is missing"),
        ({**files, "io": "never"}, "never"),
        ({**files, "chunk": 0}, "chunk"),
        ({**files, "elements": 5}, "elements=5 given, but files say themselves how many"),
    ):
        with pytest.raises(ValueError, match=words):
            session.run(folds, **named)
    assert len(os.listdir("/proc/self/fd")) == before


# --- giving back ------------------------------------------------------------------------------------------------------


def held(session: vyre.Session) -> tuple[int, int, int]:
    engine = session.engine
    free_rings = sum(len(rings) for rings in engine._idle_rings.values())
    return len(os.listdir("/proc/self/fd")), len(engine._rings) - free_rings, len(engine._blocks)


@pytest.mark.parametrize("io", WAYS)
@pytest.mark.parametrize("how", ["close", "with", "dropped", "fault", "interrupt", "run"])
def test_a_stream_that_ends_early_gives_everything_back(session, files, tmp_path, io, how):
    k = np.ones(200_000, np.int32)
    k[20_000] = 0
    np.save(tmp_path / "k.npy", k)
    spec = {"k": str(tmp_path / "k.npy")}
    session.run(place, {"k": np.ones(3, np.int32)})
    before = held(session)
    for _ in range(20):
        stream = session.stream(place, spec, chunk=4096, io=io)
        next(stream)
        match how:
            case "close":
                stream.close()
                stream.close()
            case "with":
                with stream:
                    next(stream)
            case "fault":
                with pytest.raises(ProgramFault):
                    list(stream)
            case "interrupt":
                with pytest.raises(KeyboardInterrupt), stream:
                    raise KeyboardInterrupt
            case "run":
                stream.close()
                session.run(place, spec, chunk=4096, io=io, on_fault="report")
        del stream
    assert held(session) == before


def test_fifteen_streams_at_once_go_on_and_the_sixteenth_is_refused(session, files, columns):
    streams = [session.stream(folds, files, chunk=50_000 + 1024 * i) for i in range(15)]
    with pytest.raises(vyre.ArenaFull, match="close a stream first"):
        session.stream(folds, files)
    whole = [[] for _ in streams]
    for _ in range(10):
        for stream, parts in zip(streams, whole, strict=True):
            part = next(stream, None)
            if part is not None:
                parts.append(part["value"])
    for parts in whole:
        np.testing.assert_array_equal(np.concatenate(parts), columns["x"] + np.float32(1))
    for stream in streams:
        stream.close()


def test_a_session_closed_under_a_stream_ends_it_with_session_closed(files):
    session = vyre.open("cpu", workers=1)
    stream = session.stream(folds, files, chunk=1024)
    next(stream)
    session.close()
    with pytest.raises(SessionClosed):
        list(stream)
    stream.close()


def test_a_stream_out_of_time_says_where_it_was_and_leaves_no_file(session, tmp_path):
    @vyre.program
    def slow(k: vyre.i32):
        left = 20_000 + k
        while left > 0:
            left -= 1
        return left

    np.save(tmp_path / "k.npy", np.ones(1 << 20, np.int32))
    began = time.monotonic()
    with pytest.raises(WaitTimeout, match="the stream was not at its end in time, but at element"):
        session.run(slow, {"k": tmp_path / "k.npy"}, chunk=1024, out=tmp_path / "o.npy", timeout_s=0.2)
    assert time.monotonic() - began < 3
    assert not (tmp_path / "o.npy").exists()


def test_tables_are_shared_by_all_parts(session, tmp_path):
    from vyre.program.builder import Builder
    from vyre.program.opcodes import Access, MemType, Type

    b = Builder("tally")
    x = b.input("x", MemType.i64)
    t = b.table("counts", MemType.i64, Access.atomic)
    b.op("i64.table_add", b.op("i64.load", imm=x), b.const(Type.i64, 1), imm=t)
    data = np.random.default_rng(3).integers(0, 50, 100_000)
    np.save(tmp_path / "x.npy", data)
    counts = np.zeros(50, np.int64)
    session.run(b.build(), x=tmp_path / "x.npy", counts=counts, chunk=3_000)
    np.testing.assert_array_equal(counts, np.bincount(data, minlength=50))


def test_memory_stays_bounded_while_a_large_sparse_file_is_streamed(tmp_path):
    """2 GiB, sparse: peak memory in a process of its own stays below 250 MiB."""
    script = textwrap.dedent(
        """
        import re, sys, vyre
        @vyre.program
        def total(x: vyre.f32):
            vyre.sum(total=x)
        with vyre.open("cpu", workers=2) as s:
            r = s.run(total, x=sys.argv[1])
        assert r["total"] == 0 and r.report.elements == 1 << 29
        # Not getrusage: its maximum begins with what the parent had when it forked.
        print(re.search(r"VmHWM:\\s*(\\d+) kB", open("/proc/self/status").read())[1])
        """
    )
    path = tmp_path / "sparse.bin"
    with open(path, "wb") as f:
        f.truncate(1 << 31)
    (tmp_path / "script.py").write_text(script)
    done = subprocess.run([sys.executable, tmp_path / "script.py", path], capture_output=True, text=True, check=True)
    assert int(done.stdout) * 1024 <= 250 << 20


def test_the_report_counts_every_byte_by_the_way_it_took(session, files):
    r = session.run(folds, files, io="pread")
    assert sum(r.report.bytes_by_way.values()) == 8 * N
    assert r.report.notes, "one line says which way and why"
    assert any("pread" in note for note in r.report.notes)


def test_paths_that_do_not_exist_are_no_traceback_of_ours(session):
    with pytest.raises((StreamError, BindError), match="no-such-file"):
        session.run(place, k=Path("no-such-file.npy"))


@pytest.mark.parametrize("io", ["pread", "hot"])
def test_a_last_chunk_that_cannot_be_read_is_an_error_and_not_the_end(session, tmp_path, io):
    np.save(tmp_path / "x.npy", np.ones(400_000, "f4"))
    with session.stream(vyre.expression("sum(x)", types={"x": "f32"}), x=tmp_path / "x.npy", chunk=1024, io=io) as s:
        next(s)
        os.truncate(tmp_path / "x.npy", 128 + 4 * 399_500)
        with pytest.raises(StreamError, match="shrank while it was read"):
            for _ in s:
                pass
        assert s.done == 399_500 // 1024 * 1024
