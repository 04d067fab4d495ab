"""Columns: what is read, what is refused and how the refusal reads."""

from __future__ import annotations

import os

import numpy as np
import pytest

import vyre
from vyre.errors import BindError, StreamError
from vyre.program.opcodes import MemType
from vyre.stream.formats import Column, memtype, memtype_of, npy, npy_header, numpy_dtype, raw
from vyre.stream.source import open_columns


def collect(source, name, chunk):
    """The column's bytes, chunk by chunk, by the plainest reads there are."""
    out = b""
    for part in source.chunks(chunk):
        for piece in source.pieces(name, part.first, part.count):
            got = os.pread(piece.file.fd, piece.bytes, piece.offset)
            assert len(got) == piece.bytes
            out += got
    return out


def save(path, array):
    np.save(path, array)
    return path


@pytest.mark.parametrize("memory", list(MemType))
def test_every_memory_type_has_a_numpy_type_of_its_size_and_a_name(memory):
    assert numpy_dtype(memory).itemsize == memory.size
    assert memtype(memory.name) is memory
    if memory is not MemType.bf16:
        assert memtype_of(numpy_dtype(memory)) is memory


def test_an_annotation_of_a_program_names_the_type_of_a_file_too():
    assert memtype(vyre.f32) is MemType.f32
    assert memtype(vyre.bool_) is MemType.bool


def test_numpys_short_codes_are_not_taken_because_i8_would_have_two_meanings():
    assert memtype("i8") is MemType.i8
    assert memtype(np.dtype("i8")) is MemType.i64
    assert memtype("float32") is MemType.f32
    assert memtype(np.float64) is MemType.f64
    for bad in ("f4", "S3", ">f4", "nonsense", object, 7):
        with pytest.raises(BindError, match="none that memory can hold"):
            memtype(bad)


@pytest.mark.parametrize("dtype", ["f4", "f8", "i1", "u1", "i2", "u2", "i4", "u4", "i8", "u8", "f2", "?"])
@pytest.mark.parametrize("shape", [(0,), (), (7,), (3, 5), (2, 3, 4)])
def test_npy_files_of_any_shape_are_read_flattened_in_c_order(tmp_path, dtype, shape):
    array = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    path = save(tmp_path / "a.npy", array)
    with open_columns({"x": path}, {"x": memtype_of(array.dtype)}) as source:
        assert source.count == array.size
        assert collect(source, "x", 1) == array.tobytes()


def test_fortran_order_other_byte_order_objects_and_structures_are_refused_with_the_way_out(tmp_path):
    path = tmp_path / "a.npy"
    for array, words in [
        (np.asfortranarray(np.ones((3, 4), "f4")), "Fortran order.*\n.*ascontiguousarray"),
        (np.ones(3, ">f4"), "big-endian.*\n.*astype"),
        (np.array([1, "a", None], object), "never loaded"),
        (np.zeros(3, [("a", "f4"), ("b", "i4")]), "structured.*2 fields"),
        (np.zeros(3, "M8[s]"), "view"),
        (np.zeros(3, "c8"), "complex64"),
        (np.zeros(3, "U4"), "<U4"),
    ]:
        np.save(path, array, allow_pickle=True)
        with pytest.raises(StreamError, match=words):
            open_columns({"x": path}, {"x": MemType.f32})


def test_a_fortran_flag_on_one_long_axis_is_no_obstacle(tmp_path):
    array = np.asfortranarray(np.arange(5, dtype="f4").reshape(1, 5, 1))
    text = "{'descr': '<f4', 'fortran_order': True, 'shape': (1, 5, 1), }".ljust(117) + "\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\1\0\x76\0" + text.encode() + array.tobytes())
    with open_columns({"x": tmp_path / "a.npy"}, {"x": MemType.f32}) as source:
        assert source.count == 5


@pytest.mark.parametrize("cut", [0, 1, 5, 6, 7, 8, 9, 10, 60, 127, 128, 130, 139])
def test_an_npy_file_cut_at_any_length_is_refused(tmp_path, cut):
    whole = save(tmp_path / "a.npy", np.arange(3, dtype="f4")).read_bytes()
    assert len(whole) == 140
    (tmp_path / "a.npy").write_bytes(whole[:cut])
    with pytest.raises(StreamError, match=r"a\.npy"):
        open_columns({"x": tmp_path / "a.npy"}, {"x": MemType.f32})


def test_an_npy_file_with_bytes_behind_its_array_is_refused_with_the_column_to_write(tmp_path):
    path = save(tmp_path / "a.npy", np.arange(3, dtype="f4"))
    path.write_bytes(path.read_bytes() + b"x")
    with pytest.raises(StreamError, match=r"longer than its array.*\n.*raw\(.*'f32', 128, 3\)"):
        open_columns({"x": path}, {"x": MemType.f32})
    with open_columns({"x": raw(path, "f32", 128, 3)}, {"x": MemType.f32}) as source:
        assert collect(source, "x", 1) == np.arange(3, dtype="f4").tobytes()


@pytest.mark.parametrize(
    "header",
    [
        "{'descr': '<f4', 'fortran_order': False, 'shape': (-1,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': (True,), }",
        "{'descr': '<f4', 'fortran_order': False, 'shape': 3, }",
        "{'descr': '<f4', 'fortran_order': 'no', 'shape': (3,), }",
        "{'descr': '<f4', 'shape': (3,), }",
        "{'descr': 'f4,f4', 'fortran_order': False, 'shape': (3,), }",
        "{'descr': '|O', 'fortran_order': False, 'shape': (3,), }",
        "__import__('os').abort()",
        "(" * 5000,
    ],
)
def test_a_forged_npy_header_is_an_error_and_never_runs(tmp_path, header):
    body = header.encode() + b"\n"
    (tmp_path / "a.npy").write_bytes(b"\x93NUMPY\2\0" + len(body).to_bytes(4, "little") + body + bytes(12))
    with pytest.raises(StreamError, match=r"a\.npy"):
        open_columns({"x": tmp_path / "a.npy"}, {"x": MemType.f32})


@pytest.mark.parametrize("memory", [m for m in MemType if m is not MemType.bf16])
def test_our_npy_header_is_the_one_that_numpy_reads_and_has_one_length_for_every_count(tmp_path, memory):
    for count in (0, 3, 10**15):
        assert len(npy_header(memory, count)) == 128
    array = np.arange(3).astype(numpy_dtype(memory))
    (tmp_path / "a.npy").write_bytes(npy_header(memory, 3) + array.tobytes())
    loaded = np.load(tmp_path / "a.npy")
    assert loaded.dtype == array.dtype
    assert loaded.tobytes() == array.tobytes()


def test_a_file_of_another_type_is_refused_with_the_cast_to_write(tmp_path):
    path = save(tmp_path / "a.npy", np.arange(3, dtype="i4"))
    with pytest.raises(BindError, match=r"i32.*declared u32\n.*astype\(np\.uint32\)"):
        open_columns({"x": path}, {"x": MemType.u32})
    with pytest.raises(BindError, match=r"i32.*declared u32"):
        open_columns({"x": raw(path, "i32")}, {"x": MemType.u32})
    with pytest.raises(BindError, match=r"int32|i32.*\n.*x\.astype\(np\.float32\)"):
        open_columns({"x": np.arange(3, dtype="i4")}, {"x": MemType.f32})


def test_bf16_is_read_from_raw_files_only(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(8))
    with open_columns({"x": raw(tmp_path / "a.bin", "bf16")}, {"x": MemType.bf16}) as source:
        assert source.count == 4
    with pytest.raises(BindError, match="raw files only"):
        open_columns({"x": save(tmp_path / "a.npy", np.zeros(3, "u2"))}, {"x": MemType.bf16})


def test_a_raw_file_that_is_no_whole_number_of_elements_names_path_size_and_element(tmp_path):
    (tmp_path / "a.bin").write_bytes(bytes(10))
    with pytest.raises(StreamError, match=r"a\.bin: 10 bytes are no whole number of f32 elements of 4 bytes: 2 left"):
        open_columns({"x": str(tmp_path / "a.bin")}, {"x": MemType.f32})
    with open_columns({"x": Column(tmp_path / "a.bin", "f32", 2, 1)}, {"x": MemType.f32}) as source:
        assert source.pieces("x", 0, 1)[0][1:3] == (2, 4)
    with pytest.raises(StreamError, match="need 14 bytes, the file has 10"):
        open_columns({"x": Column(tmp_path / "a.bin", "f32", 2, 3)}, {"x": MemType.f32})
    with pytest.raises(StreamError, match="beyond the end"):
        open_columns({"x": Column(tmp_path / "a.bin", "f32", 11)}, {"x": MemType.f32})


def test_an_npy_file_under_another_name_is_not_taken_for_raw_bytes(tmp_path):
    path = save(tmp_path / "a.npy", np.zeros(8, "f4")).rename(tmp_path / "a.bin")
    with pytest.raises(StreamError, match=r"vyre\.npy.*vyre\.raw"):
        open_columns({"x": path}, {"x": MemType.f32})
    with open_columns({"x": npy(path)}, {"x": MemType.f32}) as source:
        assert source.count == 8
    with open_columns({"x": raw(path, "f32")}, {"x": MemType.f32}) as source:
        assert source.count == 40


def test_unequal_lengths_unknown_and_missing_names_are_refused_with_both(tmp_path):
    a = save(tmp_path / "a.npy", np.zeros(8, "f4"))
    b = save(tmp_path / "b.npy", np.zeros(9, "f4"))
    two = {"x": MemType.f32, "y": MemType.f32}
    with pytest.raises(BindError, match="'x' has 8 elements and 'y' has 9"):
        open_columns({"x": a, "y": b}, two)
    with pytest.raises(BindError, match="'x' has 8 elements and 'y' has 9"):
        open_columns({"x": a, "y": np.zeros(9, "f4")}, two)
    with pytest.raises(BindError, match="no input is called 'z'"):
        open_columns({"x": a, "z": b}, two)
    with pytest.raises(BindError, match="'y' has no column"):
        open_columns({"x": a}, two)
    with pytest.raises(BindError, match="empty list"):
        open_columns({"x": [], "y": b}, two)


def test_several_files_are_one_stream_in_the_order_given_and_a_directory_in_byte_order(tmp_path):
    arrays = {}
    for name, count in [("b", 3), ("A", 1030), ("ä", 0), ("c", 5000), ("a", 1)]:
        arrays[name] = np.random.default_rng(count).random(count).astype("f4")
        np.save(tmp_path / f"{name}.npy", arrays[name])
    (tmp_path / ".hidden").write_bytes(b"not a column")
    with open_columns({"x": [tmp_path / "c.npy", tmp_path / "a.npy"]}, {"x": MemType.f32}) as source:
        assert collect(source, "x", 1024) == arrays["c"].tobytes() + arrays["a"].tobytes()
    with open_columns({"x": tmp_path}, {"x": MemType.f32}) as source:
        assert collect(source, "x", 2048) == b"".join(arrays[n].tobytes() for n in ["A", "a", "b", "c", "ä"])
        assert "1 hidden" in source.notes[0]


@pytest.mark.parametrize("chunk", [1, 1024, 4096, 1 << 20])
def test_chunks_start_and_end_at_tiles_cover_everything_once_and_cross_files_only_when_short(tmp_path, chunk):
    rng = np.random.default_rng(chunk)
    counts = [int(n) for n in rng.choice([0, 1, 7, 1023, 1024, 1025, 3000, 20_000, 70_001], 12)] + [100_000]
    paths = []
    for at, count in enumerate(counts):
        (tmp_path / f"{at}").write_bytes(rng.bytes(count * 4))
        paths.append(tmp_path / f"{at}")
    total = sum(counts)
    with open_columns({"x": paths, "y": np.zeros(total, "u1")}, {"x": MemType.f32, "y": MemType.u8}) as source:
        parts = list(source.chunks(chunk))
        assert [p.index for p in parts] == list(range(len(parts)))
        assert all(p.first % 1024 == 0 and p.count > 0 for p in parts)
        assert all(p.count % 1024 == 0 for p in parts[:-1])
        assert [p.first for p in parts] == [0, *np.cumsum([p.count for p in parts])[:-1].tolist()]
        assert sum(p.count for p in parts) == total
        assert all(p.count <= max(chunk, 1024) for p in parts)
        assert collect(source, "x", chunk) == b"".join(p.read_bytes() for p in paths)
        crossing = sum(p.count for p in parts if len(source.pieces("x", p.first, p.count)) > 1)
        assert crossing < total
        assert source.pieces("y", 1024, 5)[0].address - source.pieces("y", 0, 5)[0].address == 1024


def test_an_empty_source_has_no_chunks(tmp_path):
    (tmp_path / "a").write_bytes(b"")
    with open_columns({"x": tmp_path / "a"}, {"x": MemType.f64}) as source:
        assert source.count == 0
        assert list(source.chunks(1024)) == []


def test_directories_pipes_devices_and_missing_or_unreadable_files_say_what_they_are(tmp_path):
    os.mkfifo(tmp_path / "pipe")
    (tmp_path / "empty").mkdir()
    (tmp_path / "nested" / "inner").mkdir(parents=True)
    for path, words in [
        (tmp_path / "pipe", "a pipe"),
        ("/dev/null", "a character device"),
        (tmp_path / "empty", "no files"),
        (tmp_path / "nested", "a directory in a directory"),
        (tmp_path / "missing", r"ENOENT.*\n.*working directory"),
        ("/proc/self/status", "has bytes but no length"),
        ("a\0b", "null"),
    ]:
        with pytest.raises(StreamError, match=words):
            open_columns({"x": path}, {"x": MemType.u8})


def test_an_unreadable_file_is_refused_with_its_errno(tmp_path, monkeypatch):
    path = tmp_path / "secret"
    path.write_bytes(b"1234")
    path.chmod(0)
    if os.geteuid() == 0:  # root reads everything: inject what anybody else gets
        real = os.open

        def refuse(name, *rest):
            if os.fspath(name) == str(path):
                raise PermissionError(13, "Permission denied")
            return real(name, *rest)

        monkeypatch.setattr(os, "open", refuse)
    with pytest.raises(StreamError, match="EACCES") as caught:
        open_columns({"x": path}, {"x": MemType.u8})
    assert caught.value.errno == 13


def test_a_refused_column_leaves_no_descriptor_open(tmp_path):
    good = save(tmp_path / "a.npy", np.zeros(8, "f4"))
    before = os.listdir("/proc/self/fd")
    with pytest.raises(StreamError):
        open_columns({"x": good, "y": tmp_path / "no"}, {"x": MemType.f32, "y": MemType.f32})
    assert os.listdir("/proc/self/fd") == before


def test_a_file_that_is_changed_while_it_is_open_is_reported(tmp_path):
    (tmp_path / "a").write_bytes(bytes(100))
    with open_columns({"x": tmp_path / "a"}, {"x": MemType.u8}) as source:
        assert source.changed() == []
        with open(tmp_path / "a", "ab") as file:
            file.write(b"more")
        assert "100 -> 104" in source.changed()[0]
        os.truncate(tmp_path / "a", 10)
        assert "shrank" in str(source.read_error(0, 100))
        assert "expected 100 bytes at offset 0" in str(source.read_error(0, 100))


def test_a_strided_array_costs_one_announced_copy():
    with open_columns({"x": np.arange(10, dtype="f4")[::2]}, {"x": MemType.f32}) as source:
        assert source.count == 5
        assert "strided" in source.notes[0]
