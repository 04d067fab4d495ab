"""Files of odd sizes and kinds, in every format: the right answer, or an error that says what it is."""

from __future__ import annotations

import itertools
import os
import shutil
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pytest

import vyre
from vyre.errors import BindError, StreamError
from vyre.program.opcodes import MemType
from vyre.stream.formats import Column, column, npy_header
from vyre.stream.source import open_columns

pa = pytest.importorskip("pyarrow")

IO = ("auto", "hot", "pread")
CHUNK = 4_096
total = vyre.expression("sum(x)", types={"x": "f32"})
double = vyre.expression("x*2", types={"x": "f32"})


def raw_of(path: Path, x: np.ndarray) -> object:
    x.tofile(path)
    return vyre.raw(path, "f32")


def npy_of(path: Path, x: np.ndarray) -> object:
    np.save(path.with_suffix(".npy"), x)
    return path.with_suffix(".npy")


def rows_of(path: Path, x: np.ndarray) -> object:
    np.save(path.with_suffix(".npy"), np.stack([x + 1, x, x + 2], axis=1))
    return column(path.with_suffix(".npy"), 1)


def fields_of(path: Path, x: np.ndarray) -> object:
    array = np.zeros(x.size, [("odd", "u1"), ("x", "f4")])
    array["x"] = x
    np.save(path.with_suffix(".npy"), array)
    return path.with_suffix(".npy")


def arrow_of(path: Path, x: np.ndarray) -> object:
    table = pa.table({"y": x + 1, "x": x})
    with pa.ipc.new_file(path.with_suffix(".arrow"), table.schema) as writer:
        writer.write_table(table, max_chunksize=3_000)
    return path.with_suffix(".arrow")


def arrows_of(path: Path, x: np.ndarray) -> object:
    table = pa.table({"y": x + 1, "x": x})
    with pa.ipc.new_stream(path.with_suffix(".arrows"), table.schema) as writer:
        writer.write_table(table, max_chunksize=3_000)
    return path.with_suffix(".arrows")


FORMATS = [raw_of, npy_of, rows_of, fields_of, arrow_of, arrows_of]
NAMED = {"raw": "a.bin", "npy": "a.npy", "arrow": "a.arrow"}


@pytest.fixture(scope="module")
def session() -> Iterator[vyre.Session]:
    with vyre.open("cpu") as found:
        yield found


@pytest.mark.parametrize("io", IO)
@pytest.mark.parametrize("count", [0, 1, 1_023, 1_024, 1_025, CHUNK - 1, CHUNK, CHUNK + 1, 3 * CHUNK + 7])
@pytest.mark.parametrize("make", FORMATS)
def test_any_number_of_elements_around_a_chunk_gives_the_bits_of_the_array(
    session: vyre.Session, tmp_path: Path, make: Callable[[Path, np.ndarray], object], count: int, io: str
) -> None:
    x = np.random.default_rng(count).random(count).astype("f4")
    what = make(tmp_path / "a", x)
    assert session.run(double, x=what, io=io, chunk=CHUNK).value.tobytes() == (x * 2).tobytes()
    assert session.run(total, x=what, io=io, chunk=CHUNK)["value"] == session.run(total, x=x)["value"]


@pytest.mark.parametrize("make", FORMATS)
def test_several_files_of_a_format_and_a_directory_of_them_are_one_stream(
    session: vyre.Session, tmp_path: Path, make: Callable[[Path, np.ndarray], object]
) -> None:
    x = np.random.default_rng(1).random(10_000).astype("f4")
    cuts = [0, 1, 1, 1_500, 6_000, 10_000]
    (tmp_path / "d").mkdir()
    parts = [make(tmp_path / "d" / f"part{i}", x[a:b]) for i, (a, b) in enumerate(itertools.pairwise(cuts))]
    first = parts[0]
    paths = [part.paths[0] if isinstance(part, Column) else part for part in parts]
    options = {"format": first.format, "field": first.field, "dtype": first.dtype} if isinstance(first, Column) else {}
    for given in (paths, tmp_path / "d"):
        for io in IO:
            found = session.run(double, x=Column(given, **options), io=io, chunk=CHUNK)
            assert found.value.tobytes() == (x * 2).tobytes()
    shorter = make(tmp_path / "y", x[:-1])
    both = vyre.expression("x+y", types={"x": "f32", "y": "f32"})
    with pytest.raises(BindError, match="'x' has 10000 elements and 'y' has 9999"):
        session.run(
            both,
            x=Column(paths, **options),
            y=shorter if isinstance(shorter, Column) else column(shorter, "x") if make is not npy_of else shorter,
        )


@pytest.mark.parametrize("name", NAMED.values(), ids=NAMED)
@pytest.mark.parametrize("size", [0, 1])
def test_a_file_of_no_or_one_byte_is_nothing_or_refused(
    session: vyre.Session, tmp_path: Path, name: str, size: int
) -> None:
    (tmp_path / name).write_bytes(bytes(size))
    if name == "a.bin" and size == 0:
        assert session.run(total, x=tmp_path / name)["value"] == 0
        return
    with pytest.raises(StreamError, match=name):
        session.run(total, x=tmp_path / name)


@pytest.mark.parametrize("name", NAMED.values(), ids=NAMED)
def test_directories_pipes_and_files_without_a_length_are_refused_by_what_they_are(
    session: vyre.Session, tmp_path: Path, name: str
) -> None:
    form = {"a.bin": "raw", "a.npy": "npy", "a.arrow": "arrow"}[name]
    (tmp_path / "empty").mkdir()
    (tmp_path / "nested" / "deeper").mkdir(parents=True)
    os.mkfifo(tmp_path / name)
    for path, words in [
        (tmp_path / name, "a pipe: columns are read at any offset"),
        (tmp_path / "empty", "no files to read"),
        (tmp_path / "nested", "a directory in a directory"),
        (Path("/proc/self/maps"), "has bytes but no length"),
        (Path("/dev/zero"), "a character device"),
        (tmp_path / "missing" / name, "ENOENT"),
        (tmp_path / f"{'n' * 300}", "ENAMETOOLONG"),
    ]:
        with pytest.raises(StreamError, match=words):
            session.run(total, x=Column(path, format=form))


@pytest.mark.parametrize("make", [raw_of, npy_of, arrow_of])
def test_a_file_that_may_not_be_read_is_refused_with_its_name_and_the_way_out(
    make: Callable[[Path, np.ndarray], object],
) -> None:
    folder = Path(tempfile.mkdtemp())
    try:
        folder.chmod(0o755)
        what = make(folder / "a", np.ones(5, "f4"))
        Path(what.paths[0] if isinstance(what, Column) else str(what)).chmod(0)
        was = os.geteuid()
        os.seteuid(65534 if was == 0 else was)
        try:
            with pytest.raises(StreamError, match=r"a(\.\w+)?': cannot be read: .*EACCES.*\n.*chmod u\+r"):
                open_columns({"x": what}, {"x": MemType.f32})  # type: ignore[dict-item]
        finally:
            os.seteuid(was)
    finally:
        shutil.rmtree(folder)


FAR = 5 << 30


@pytest.mark.parametrize("form", ["raw", "npy", "rows", "arrow"])
def test_elements_beyond_four_gib_of_a_sparse_file_are_found_where_they_are(
    session: vyre.Session, tmp_path: Path, form: str
) -> None:
    path = tmp_path / {"raw": "a.bin", "npy": "a.npy", "rows": "a.npy", "arrow": "a.arrow"}[form]
    width = 256 if form == "rows" else 8
    count = FAR // width + 5_000
    at = count - 1_234
    given: object = Column(path, "f64") if form == "raw" else path
    start = 0
    if form == "arrow":
        start = sparse_arrow(path, count)
    elif form == "npy":
        path.write_bytes(npy_header(MemType.f64, count))
        start = 128
    elif form == "rows":
        text = f"{{'descr': '<f8', 'fortran_order': False, 'shape': ({count}, 32), }}".ljust(117) + "\n"
        path.write_bytes(b"\x93NUMPY\1\0\x76\0" + text.encode())
        start, given = 128, column(path, 31)
    if form != "arrow":
        path.touch()
        os.truncate(path, start + count * width)
    with open(path, "r+b") as file:
        file.seek(start + at * width + width - 8)
        file.write(np.array([2.5]).tobytes())
    found = session.run(big, x=given)
    assert (found["at"], found["total"]) == (at, 2.5)
    path.unlink()


@vyre.program
def big(x: vyre.f64) -> None:
    vyre.sum(total=x)
    if x > 0.0:
        vyre.max(at=vyre.index())


def sparse_arrow(path: Path, count: int) -> int:
    """A file of one column of zeros that occupy no disk; the offset of its elements."""
    places = []

    class Sparse:
        closed = False

        def __init__(self, file: BinaryIO) -> None:
            self.file = file

        def write(self, data: object) -> int:
            view = memoryview(data)  # type: ignore[arg-type]
            if view.nbytes > 1 << 20:
                places.append(self.file.tell())
                self.file.seek(view.nbytes, os.SEEK_CUR)
            else:
                self.file.write(view)
            return view.nbytes

        def flush(self) -> None:
            self.file.flush()

        def close(self) -> None:
            self.file.flush()

    table = pa.table({"x": np.zeros(count)})  # never touched, so never there
    with path.open("wb") as file, pa.ipc.new_file(pa.PythonFile(Sparse(file), mode="w"), table.schema) as writer:
        writer.write_table(table)
    assert len(places) == 1
    return places[0]
