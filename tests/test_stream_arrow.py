"""Columns of Arrow IPC files: read where they lie, or refused with the cast to write."""

from __future__ import annotations

import os
import subprocess
import sys

import numpy as np
import pytest

import vyre
from vyre.errors import BindError, StreamError
from vyre.program.opcodes import MemType
from vyre.stream import uring
from vyre.stream.formats import Column, column, numpy_dtype
from vyre.stream.source import open_columns
from vyre.stream.syscalls import direct_alignment

pa = pytest.importorskip("pyarrow")
pytest.importorskip("pyarrow.feather")

COUNT = 10_000
no_ring = pytest.mark.skipif(uring.available() is not None, reason="no io_uring here")
IO = ["hot", "pread", *(pytest.param(io, marks=no_ring) for io in ("uring", "uring-direct"))]


@vyre.program
def worth(price: vyre.f64, size: vyre.i32) -> vyre.f64:
    vyre.sum(total=price * size)
    return price * size


def has_direct(path):
    with open(path, "rb") as file:
        return direct_alignment(file.fileno()) is not None


def table():
    rng = np.random.default_rng(4)
    return pa.table(
        {"size": rng.integers(0, 99, COUNT).astype("i4"), "name": ["a"] * COUNT, "price": rng.random(COUNT)}
    )


def write(path, data, batch=COUNT, **options):
    """Write a table as a file, or, where the name says .arrows, as a stream."""
    new = pa.ipc.new_stream if str(path).endswith(".arrows") else pa.ipc.new_file
    with new(path, data.schema, options=pa.ipc.IpcWriteOptions(**options)) as writer:
        writer.write_table(data, max_chunksize=batch)
    return path


@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize("name", ["t.arrow", "t.arrows"])
@pytest.mark.parametrize("batch", [COUNT, 4_096, 1_000, 7])
def test_a_file_of_any_batches_gives_the_bits_that_its_columns_in_memory_give(tmp_path, io, name, batch):
    data = table()
    path = write(tmp_path / name, data, batch)
    if io == "uring-direct" and not has_direct(path):
        pytest.skip("no direct I/O on this file system")
    with vyre.open("cpu") as session:
        found = session.run(worth, path, io=io)
        right = session.run(worth, price=data["price"].to_numpy(), size=data["size"].to_numpy())
    assert found.value.tobytes() == right.value.tobytes()
    assert found["total"] == right["total"]
    assert found.report.bytes == COUNT * 12
    assert sum(found.report.copies.values()) == 0
    assert [note.split(":")[0] for note in found.report.notes[:2]] == ["price", "size"]  # two columns of one file


@pytest.mark.parametrize("memory", [m for m in MemType if m not in (MemType.bf16, MemType.bool)])
def test_every_type_that_arrow_has_unpacked_is_read(tmp_path, memory):
    array = np.arange(1_500).astype(numpy_dtype(memory))
    path = write(tmp_path / "a.arrow", pa.table({"k": array}), 1_000)
    with open_columns({"x": path}, {"x": memory}) as source:
        found = b"".join(os.pread(p.file.fd, p.bytes, p.offset) for p in source.pieces("x", 0, 1_500))
        assert found == array.tobytes()
        assert all(p.offset % memory.size == 0 for p in source.pieces("x", 0, 1_500))


def test_feather_of_polars_and_of_pyarrow_are_read_where_they_are_not_compressed(tmp_path):
    data = table()
    pa.feather.write_feather(data, tmp_path / "a.feather", compression="uncompressed")
    paths = [tmp_path / "a.feather"]
    if polars := pytest.importorskip("polars"):
        polars.from_arrow(data).write_ipc(tmp_path / "p.arrow", compression="uncompressed")
        paths.append(tmp_path / "p.arrow")
    for path in paths:
        with vyre.open("cpu") as session:
            assert (
                session.run(worth, path).value.tobytes()
                == (data["price"].to_numpy() * data["size"].to_numpy()).tobytes()
            )


@pytest.mark.parametrize("codec", ["lz4", "zstd"])
def test_a_compressed_column_is_refused_with_the_way_to_write_it(tmp_path, codec):
    path = write(tmp_path / "z.arrow", pa.table({"x": np.zeros(COUNT)}), compression=codec)
    with pytest.raises(StreamError, match=r"z\.arrow: column 'x': batch 0 is compressed.*\n.*uncompressed"):
        open_columns({"x": path}, {"x": MemType.f64})


def test_nulls_and_types_that_memory_cannot_hold_are_refused_with_the_cast(tmp_path):
    import decimal

    data = pa.table(
        {
            "nulls": pa.array([1.0, None, 3.0]),
            "money": pa.array([decimal.Decimal("1.10")] * 3),
            "coded": pa.array([1.5, 2.5, 1.5]).dictionary_encode(),
            "flag": [True, False, True],
            "text": ["a", "b", "c"],
            "list": [[1], [2], [3]],
            "none": pa.nulls(3),
            "point": [{"x": 1.0}] * 3,
            "whole": pa.array([1, 2, 3], pa.int32()),
        }
    )
    path = write(tmp_path / "t.arrow", data)
    for field, words in [
        ("nulls", r"batch 0, has 1 nulls.*\n.*fill_null.*drop_null"),
        ("money", r"no decimals\n.*cast\(pyarrow\.float64\(\)\)"),
        ("coded", r"dictionary encoded.*\n.*cast\(pyarrow\.float64\(\)\)"),
        ("flag", r"eight to a byte\n.*cast\(pyarrow\.uint8\(\)\)"),
        ("text", "no number"),
        ("list", r"single numbers\n.*flatten"),
        ("none", "no type"),
        ("point", "has parts: x"),
        ("whole", r"i32, but the input is declared f64\n.*declare the input i32.*cast"),
        ("cost", r"no column 'cost'; it has nulls, money"),
        ("nul", r"did you mean nulls"),
        (99, "no column 99"),
        (None, r"no column 'x'"),
    ]:
        with pytest.raises(BindError, match=words):
            open_columns({"x": Column(path, field=field)}, {"x": MemType.f64})
    with open_columns({"x": column(path, "point.x")}, {"x": MemType.f64}) as source:
        assert source.count == 3


def test_times_are_the_integers_that_they_are_stored_as_and_the_plan_says_so(tmp_path):
    days = np.array(["1994-01-01", "1995-01-01"], "M8[D]")
    data = pa.table({"day": pa.array(days), "at": pa.array(days.astype("M8[us]"))})
    path = write(tmp_path / "t.arrow", data)
    spec = {"day": path, "at": path}
    with open_columns(spec, {"day": MemType.i32, "at": MemType.i64}) as source:
        assert source.count == 2
        assert any("date32[day] as the i32 that it is stored as" in note for note in source.notes)
    with vyre.open("cpu") as session:
        assert session.run(vyre.expression("day", types={"day": "i32"}), day=path).value.tolist() == [8766, 9131]


def test_files_of_all_formats_are_one_stream(tmp_path):
    x = np.random.default_rng(3).random(9_000)
    np.save(tmp_path / "1.npy", x[:1_500])
    write(tmp_path / "2.arrow", pa.table({"x": x[1_500:4_000]}), 999)
    x[4_000:4_001].tofile(tmp_path / "3.bin")
    write(tmp_path / "4.arrows", pa.table({"k": np.arange(4_999), "x": x[4_001:]}), 2_048)
    paths = [tmp_path / name for name in ("1.npy", "2.arrow", "3.bin", "4.arrows")]
    double = vyre.expression("x*2", types={"x": "f64"})
    with vyre.open("cpu") as session:
        for io in ("hot", "pread", "auto"):
            for chunk in (None, 1024):
                assert session.run(double, x=paths, io=io, chunk=chunk).value.tobytes() == (x * 2).tobytes()
        both = vyre.expression("x+y", types={"x": "f64", "y": "f64"})
        write(tmp_path / "y.arrow", pa.table({"y": x}), 1_000)
        assert session.run(both, x=paths, y=tmp_path / "y.arrow").value.tobytes() == (x + x).tobytes()
        worths = [write(tmp_path / f"w{i}.arrow", table(), 999) for i in range(2)]
        assert session.run(worth, worths).report.elements == 2 * COUNT
        assert session.run(worth, Column(worths[0])).report.elements == COUNT
        with pytest.raises(BindError, match="'x' has 4001 elements and 'y' has 9000"):
            session.run(both, x=paths[:3], y=tmp_path / "y.arrow")


@pytest.mark.parametrize("name", ["t.arrow", "t.arrows"])
def test_an_arrow_file_cut_anywhere_or_forged_is_an_error_and_never_other_bytes(tmp_path, name):
    data = pa.table({"x": np.arange(3_000, dtype="f8")})
    whole = write(tmp_path / name, data, 1_000).read_bytes()
    rng = np.random.default_rng(5)
    for cut in [0, 1, 5, 8, 12, 100, *rng.integers(0, len(whole), 30)]:
        (tmp_path / name).write_bytes(whole[:cut])
        try:
            source = open_columns({"x": tmp_path / name}, {"x": MemType.f64})
        except (StreamError, BindError):
            continue
        with source:
            found = b"".join(os.pread(p.file.fd, p.bytes, p.offset) for p in source.pieces("x", 0, source.count))
            assert name == "t.arrows"  # a stream may end after any batch
            assert found == data["x"].to_numpy()[: source.count].tobytes()
            assert source.count % 1_000 == 0


def test_an_arrow_file_under_another_name_is_not_taken_for_raw_bytes(tmp_path):
    path = write(tmp_path / "a.bin", pa.table({"x": np.arange(8.0)}))
    with pytest.raises(StreamError, match=r"format='arrow'.*vyre\.raw"):
        open_columns({"x": path}, {"x": MemType.f64})
    with open_columns({"x": Column(path, format="arrow")}, {"x": MemType.f64}) as source:
        assert source.count == 8
    (tmp_path / "b.arrow").write_bytes(bytes(64))
    with pytest.raises(StreamError, match=r"not an Arrow IPC file.*\n.*vyre\.raw"):
        open_columns({"x": tmp_path / "b.arrow"}, {"x": MemType.f64})


def test_without_pyarrow_the_extra_is_named(tmp_path):
    write(tmp_path / "a.arrow", pa.table({"x": np.arange(8.0)}))
    script = "import sys; sys.modules['pyarrow'] = None; import vyre; vyre.run(vyre.expression('x', types={'x': 'f64'}), x='a.arrow')"
    done = subprocess.run([sys.executable, "-c", script], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "a.arrow: reading Arrow files needs pyarrow" in done.stderr
    assert "pip install 'vyre-runtime[arrow]'" in done.stderr
