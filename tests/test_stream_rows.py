"""Columns that do not lie one behind the other: fields of structures, columns of arrays."""

from __future__ import annotations

import os

import numpy as np
import pytest

import vyre
from vyre.errors import BindError, ProgramFault, StreamError
from vyre.program.opcodes import MemType
from vyre.stream import uring
from vyre.stream.formats import Column, column, numpy_dtype
from vyre.stream.source import open_columns
from vyre.stream.syscalls import direct_alignment

COUNT = 5_000
TRADES = np.dtype(
    [("id", "<i8"), ("price", "<f4"), ("flag", "?"), ("pos", [("x", "<f8"), ("y", "<f8")]), ("rgb", "u1", (3,))]
)
no_ring = pytest.mark.skipif(uring.available() is not None, reason="no io_uring here")
IO = ["hot", "pread", *(pytest.param(io, marks=no_ring) for io in ("uring", "uring-direct"))]


@vyre.program
def last_of_three(a: vyre.f32, b: vyre.f32, c: vyre.f32) -> vyre.f32:
    vyre.sum(total=a)
    return a + b * c


@vyre.program
def keep(x: vyre.f32) -> vyre.f32:
    return x


@pytest.fixture
def points(tmp_path):
    array = np.random.default_rng(1).random((COUNT, 16)).astype("f4")
    np.save(tmp_path / "points.npy", array)
    return tmp_path / "points.npy", array


@pytest.fixture
def trades(tmp_path):
    array = np.zeros(COUNT, TRADES)
    rng = np.random.default_rng(2)
    array["id"], array["price"] = np.arange(COUNT), rng.random(COUNT)
    array["pos"]["y"], array["rgb"] = rng.random(COUNT), rng.integers(0, 256, (COUNT, 3))
    np.save(tmp_path / "trades.npy", array)
    return tmp_path / "trades.npy", array


@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize("chunk", [None, 1024, 3000])
def test_columns_of_an_array_give_the_bits_that_the_same_columns_in_memory_give(points, io, chunk):
    path, array = points
    if io == "uring-direct":
        with open(path, "rb") as file:
            if direct_alignment(file.fileno()) is None:
                pytest.skip("no direct I/O on this file system")
    bound = {"a": column(path, 3), "b": column(path, 0), "c": column(path, 15)}
    with vyre.open("cpu") as session:
        found = session.run(last_of_three, bound, io=io, chunk=chunk)
        right = session.run(last_of_three, a=array[:, 3].copy(), b=array[:, 0].copy(), c=array[:, 15].copy())
    assert found.value.tobytes() == right.value.tobytes()
    assert found["total"] == right["total"]


@pytest.mark.parametrize("chunk", [None, 1024])
@pytest.mark.parametrize("io", ["hot", "pread"])
def test_the_report_counts_whole_rows_once_and_the_fields_as_a_copy(points, io, chunk):
    path, array = points
    with vyre.open("cpu") as session:
        fields = {"a": column(path, 3), "b": column(path, 0), "c": column(path, 15)}
        report = session.run(last_of_three, fields, io=io, chunk=chunk).report
    assert list(report.bytes_by_way.values()) == [array.nbytes]
    assert report.copies == {"fields taken out of rows": 3 * 4 * COUNT}
    assert any("12 of every 64 bytes" in note for note in report.notes)
    assert f"{3 * 4 * COUNT:,} bytes fields taken out of rows" in str(report)


@pytest.mark.parametrize("field", ["price", 1, "1"])
def test_a_field_of_structured_elements_is_named_or_counted(trades, field):
    path, array = trades
    with vyre.open("cpu") as session:
        assert session.run(keep, column(path, field)).value.tobytes() == array["price"].tobytes()


@pytest.mark.parametrize(
    ("field", "dtype", "take"),
    [
        ("id", "i64", lambda a: a["id"]),
        ("flag", "bool", lambda a: a["flag"]),
        ("pos.y", "f64", lambda a: a["pos"]["y"]),
        ("rgb.2", "u8", lambda a: a["rgb"][:, 2]),
    ],
)
def test_a_field_in_a_field_is_named_with_a_dot_however_it_is_aligned(trades, field, dtype, take):
    path, array = trades
    with (
        vyre.open("cpu") as session,
        session.stream(vyre.expression("x", types={"x": dtype}), {"x": column(path, field)}) as s,
    ):
        parts = [part.value for part in s]
    assert np.array_equal(np.concatenate(parts), take(array))


def test_the_field_of_the_inputs_name_is_taken_when_none_is_named(trades):
    path, array = trades
    with vyre.open("cpu") as session:
        found = session.run(vyre.expression("price*2", types={"price": "f32"}), price=path)
    assert found.value.tobytes() == (array["price"] * 2).tobytes()


def test_columns_of_the_same_rows_share_one_descriptor_and_one_read(points):
    path, _ = points
    with open_columns({"a": column(path, 1), "b": column(path, 2)}, {"a": MemType.f32, "b": MemType.f32}) as source:
        assert list(source.strips) == ["a"]
        assert source.takes["b"][:2] == ("a", 8)
        assert source.bytes == COUNT * 64


def test_a_column_of_an_array_in_fortran_order_lies_together_and_costs_no_copy(tmp_path):
    array = np.asfortranarray(np.random.default_rng(1).random((COUNT, 5)).astype("f4"))
    np.save(tmp_path / "f.npy", array)
    with vyre.open("cpu") as session:
        found = session.run(keep, column(tmp_path / "f.npy", 3))
    assert found.value.tobytes() == np.ascontiguousarray(array[:, 3]).tobytes()
    assert found.report.copies == {}
    assert found.report.bytes == 4 * COUNT


def test_an_array_of_more_dimensions_gives_a_column_of_its_last_axis(tmp_path):
    array = np.arange(4 * 5 * 6, dtype="f4").reshape(4, 5, 6)
    np.save(tmp_path / "a.npy", array)
    with vyre.open("cpu") as session:
        assert session.run(keep, column(tmp_path / "a.npy", 2)).value.tolist() == array[:, :, 2].ravel().tolist()


def test_several_files_of_rows_are_one_stream_and_must_be_laid_out_alike(tmp_path, points):
    path, array = points
    rest = np.ones((1_500, 16), "f4")
    np.save(tmp_path / "rest.npy", rest)
    np.save(tmp_path / "narrow.npy", np.ones((10, 3), "f4"))
    with vyre.open("cpu") as session:
        for io in ("hot", "pread"):
            found = session.run(keep, column([path, tmp_path / "rest.npy"], 2), chunk=1024, io=io).value
            assert found.tobytes() == np.concatenate([array[:, 2], rest[:, 2]]).tobytes()
        with pytest.raises(
            BindError, match=r"narrow\.npy has it at byte 8 of every 12, .*points\.npy at byte 8 of every 64"
        ):
            session.run(keep, column([path, tmp_path / "narrow.npy"], 2))


def test_what_is_no_column_is_refused_with_those_there_are(points, trades, tmp_path):
    rows, path = points[0], trades[0]
    np.save(tmp_path / "flat.npy", np.ones(5, "f4"))
    for what, words in [
        (column(rows, 16), r"shape \(5000, 16\) has no column 16\n.*0 to 15"),
        (column(rows, -1), r"no column -1"),
        (column(rows, "price"), "elements are plain f32"),
        (column(tmp_path / "flat.npy", 0), "it has one"),
        (column(path, "cost"), r"no field 'cost'\n.*id, price, flag"),
        (column(path, 9), "no field 9"),
        (column(path, "pos"), r"2 parts\n.*'pos\.x'"),
        (column(path, "rgb"), r"3 parts\n.*'rgb\.0'"),
        (column(path, "rgb.3"), "no field"),
        (path, r"none is called x\n.*vyre\.column\(.*'id'\)"),
        (column(path, "id"), "i64 .*declared f32|type i64"),
        (f"{rows}:3", r"ENOENT.*\n.*vyre\.column\('.*points\.npy', 3\)"),
        (f"{path}:price", r"ENOENT.*\n.*vyre\.column\('.*trades\.npy', 'price'\)"),
    ]:
        with pytest.raises((StreamError, BindError), match=words):
            open_columns({"x": what}, {"x": MemType.f32})
    for bad in (1.5, True, None.__class__):
        with pytest.raises(BindError, match="neither a name nor an index"):
            Column(rows, field=bad)
    with pytest.raises(BindError, match="one column"):
        Column(rows, "f32", 4, field=1)
    np.save(tmp_path / "objects.npy", np.array([(1, None)], [("a", "i4"), ("b", object)]), allow_pickle=True)
    with pytest.raises(StreamError, match="never loaded"):
        open_columns({"x": column(tmp_path / "objects.npy", "a")}, {"x": MemType.i32})


def test_a_file_of_rows_that_shrinks_is_an_error_after_the_parts_before_it(tmp_path):
    path = tmp_path / "points.npy"
    np.save(path, np.ones((200_000, 16), "f4"))
    with vyre.open("cpu") as session, session.stream(keep, column(path, 1), chunk=1024, io="hot") as stream:
        next(stream)
        os.truncate(path, 128 + 150_000 * 64)
        with pytest.raises(StreamError, match=r"points\.npy: shrank while it was read"):
            for _ in stream:
                pass
        assert stream.done == 150_000 // 1024 * 1024


def test_an_empty_array_of_rows_gives_an_empty_result(tmp_path):
    np.save(tmp_path / "none.npy", np.ones((0, 4), "f4"))
    with vyre.open("cpu") as session:
        assert session.run(keep, column(tmp_path / "none.npy", 2)).value.size == 0


@pytest.mark.parametrize("engine", ["cpu", "reference"])
@pytest.mark.parametrize("memory", [m for m in MemType if m is not MemType.bf16])
def test_fields_of_every_size_that_are_aligned_to_nothing_are_those_of_the_array(tmp_path, engine, memory):
    array = np.zeros(
        3_000, [("odd", "u1"), ("x", numpy_dtype(memory)), ("y", numpy_dtype(memory)), ("tail", "u1", (5,))]
    )
    rng = np.random.default_rng(3)
    array["x"], array["y"] = rng.integers(0, 2, 3_000), rng.integers(0, 2, 3_000)
    np.save(tmp_path / "a.npy", array)
    program = vyre.expression("where(x == y, x, y)", types={"x": memory.name, "y": memory.name})
    with vyre.open(engine) as session:
        right = session.run(program, x=array["x"].copy(), y=array["y"].copy()).value
        for io in ("hot", "pread"):
            assert (
                session.run(program, x=tmp_path / "a.npy", y=tmp_path / "a.npy", io=io).value.tobytes()
                == right.tobytes()
            )


@pytest.mark.parametrize("engine", ["cpu", "reference"])
def test_rows_that_are_longer_than_the_memory_for_rows_are_read_field_by_field(tmp_path, engine):
    array = np.random.default_rng(4).random((7, 70_000)).astype("f4")
    np.save(tmp_path / "a.npy", array)
    with vyre.open(engine) as session:
        found = session.run(
            vyre.expression("x-y", types={"x": "f32", "y": "f32"}),
            x=column(tmp_path / "a.npy", 69_999), y=column(tmp_path / "a.npy", 5), io="hot",
        )  # fmt: skip
    assert found.value.tobytes() == (array[:, 69_999] - array[:, 5]).tobytes()
    with open(tmp_path / "b.npy", "wb") as file:
        text = "{'descr': '<f4', 'fortran_order': False, 'shape': (2, 70000000), }".ljust(117) + "\n"
        file.write(b"\x93NUMPY\1\0\x76\0" + text.encode())
        file.truncate(128 + 2 * 280_000_000)
    with pytest.raises(StreamError, match=r"rows of 280,000,000 bytes; one of 268,435,455 is the longest"):
        open_columns({"x": column(tmp_path / "b.npy", 5)}, {"x": MemType.f32})


def test_inputs_of_different_rows_and_plain_ones_go_together_in_any_order(points, trades, tmp_path):
    rows, array = points
    path, structured = trades
    plain = np.random.default_rng(5).random(COUNT).astype("f4")
    plain.tofile(tmp_path / "p.bin")
    types = dict.fromkeys("abcdef", "f32") | {"e": "f64"}
    mixed = vyre.expression("a + 2*b + 3*c + 4*d + 5*e + 6*f", types=types)
    given = {
        "a": column(rows, 7), "b": column(path, "price"), "c": tmp_path / "p.bin",
        "d": column(rows, 2), "e": column(path, "pos.y"), "f": plain,
    }  # fmt: skip
    with vyre.open("cpu") as session:
        right = session.run(
            mixed, a=array[:, 7].copy(), b=structured["price"].copy(), c=plain, d=array[:, 2].copy(),
            e=structured["pos"]["y"].copy(), f=plain,
        )  # fmt: skip
        for io in IO[:2]:
            assert session.run(mixed, given, io=io, chunk=1024).value.tobytes() == right.value.tobytes()


def test_a_fault_over_rows_says_the_values_of_its_element(tmp_path):
    array = np.ones((9_000, 3), "i4")
    array[7_777, 1] = 0
    np.save(tmp_path / "k.npy", array)
    with vyre.open("cpu") as session, pytest.raises(ProgramFault) as caught:
        session.run(vyre.expression("7//k", types={"k": "i32"}), k=column(tmp_path / "k.npy", 1), io="hot")
    assert caught.value.fault.element == 7_777
    assert 0 in caught.value.fault.operands.values()
