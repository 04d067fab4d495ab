"""What there is to read: columns opened, checked against each other, and cut into chunks.

Owns: file descriptors of the inputs, which bytes hold which elements, where chunks are cut. Leaves to others: how the
bytes come in (plan, reader), what a file's header means (formats).
"""

from __future__ import annotations

import bisect
import contextlib
import errno
import fcntl
import os
import stat
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Final, NamedTuple, Self

import numpy as np
from numpy.typing import NDArray

from vyre.errors import BindError, StreamError
from vyre.program.opcodes import MemType
from vyre.stream.arrow import SUFFIXES
from vyre.stream.arrow_file import MAGIC as ARROW_MAGIC
from vyre.stream.arrow_file import ArrowFiles
from vyre.stream.arrow_memory import Chunked
from vyre.stream.formats import (
    NPY_MAGIC,
    Column,
    PathLike,
    memtype_of,
    npy_fields,
    numpy_dtype,
    read_npy_header,
)
from vyre.stream.ranges import Ranges

TILE: Final = 1_024  # decision 1: chunks start and, but for the last, end at a tile
ROW_BYTES_MAX: Final = (1 << 28) - 1  # bytes from row to row: what an input's descriptor holds
COLD_CHUNK_BYTES: Final = 1 << 20  # of the widest column
HOT_CHUNK_ELEMENTS: Final = 1 << 20  # one span of tiles: few slots, and every worker has its share of tiles

ColumnSpec = PathLike | Sequence[PathLike] | Column | NDArray[Any] | Chunked


@dataclass(slots=True, eq=False)
class File:
    """An open regular file. The descriptor stays the same when the path is replaced meanwhile.

    Attributes:
        path: as the caller wrote it, for messages.
        fd: for reading through the page cache.
        size, modified_ns: when it was opened.
        device, inode: which file it is.
        direct_fd: a second descriptor with O_DIRECT, or -1; opened by plan.
        align: bytes to which direct reads are widened, 0 while there is no ``direct_fd``.
    """

    path: str
    fd: int
    size: int
    modified_ns: int
    device: int
    inode: int
    direct_fd: int = -1
    align: int = 0

    def close(self) -> None:
        """Close both descriptors. Calling it again does nothing."""
        fds, self.fd, self.direct_fd = (self.fd, self.direct_fd), -1, -1
        for fd in fds:
            if fd >= 0:
                os.close(fd)


class Piece(NamedTuple):
    """Bytes of one column of one chunk that lie together: in ``file`` at ``offset``, or (file None) at ``address``."""

    file: File | None
    offset: int
    bytes: int
    address: int


@dataclass(frozen=True, slots=True)
class Chunk:
    """Elements [first, first + count) of every column. ``index`` numbers chunks from 0 in element order."""

    index: int
    first: int
    count: int


@dataclass(frozen=True, slots=True)
class Run:
    """``chunks`` chunks of ``count`` elements each, one behind the other from element ``first`` on.

    In a run of several, every column of every chunk is one piece, and pieces follow each other at equal steps.
    """

    first: int
    count: int
    chunks: int


class Segment(NamedTuple):
    """Elements [first, first + elements) of a strip lie together: in ``file`` from byte ``offset`` on, or in ``array``.

    One file may hold several, in any order (the record batches of an Arrow file).
    """

    first: int
    elements: int
    file: File | None = None
    offset: int = 0
    array: NDArray[Any] | None = None


class Extent(NamedTuple):
    """What a strip has in one file: ``bytes`` of it, all of them in [offset, end)."""

    file: File
    offset: int
    end: int
    bytes: int


@dataclass(slots=True, eq=False)
class Strip:
    """What is read: the elements of one column, or whole rows out of which several columns are taken.

    Attributes:
        width: bytes from one element (or row) to the next; nothing else lies between them.
        alignment: bytes to which elements have to be aligned in memory, 1 for rows.
        segments: where they are, in order.
        scattered: they are many and short: chunks are put together out of several, instead of being cut at each.
    """

    width: int
    alignment: int
    segments: list[Segment] = field(default_factory=list)
    scattered: bool = False

    @property
    def count(self) -> int:
        return self.segments[-1].first + self.segments[-1].elements if self.segments else 0

    def extents(self) -> list[Extent]:
        """One for each file, in the order of their first elements; none for memory."""
        found: dict[File, Extent] = {}
        for segment in self.segments:
            if segment.file is not None:
                size = segment.elements * self.width
                offset, end = segment.offset, segment.offset + size
                _, low, high, total = found.get(segment.file, (None, offset, end, 0))
                found[segment.file] = Extent(segment.file, min(low, offset), max(high, end), total + size)
        return list(found.values())


class Take(NamedTuple):
    """Where the elements of an input are: a ``dtype`` at byte ``offset`` of each element of ``strip``."""

    strip: str
    offset: int
    dtype: MemType


class Source:
    """Columns of equal length, cut at the same elements. Close it, or use it in a ``with``.

    Attributes:
        types: memory type of each input by name, in the order of the declarations.
        takes: where each input's elements are; most inputs have a strip of their own, which bears their name.
        strips: what is read, by name.
        count: elements of each column.
        files: every file that is open, by name of the strip; none for memory.
        notes: what was done on the way that costs something or leaves something out, one line each.
    """

    def __init__(self, strips: Mapping[str, Strip], takes: Mapping[str, Take], notes: Sequence[str] = ()) -> None:
        self.strips = dict(strips)
        self.takes = dict(takes)
        self.types = {name: take.dtype for name, take in takes.items()}
        self.files = {name: [extent.file for extent in strip.extents()] for name, strip in strips.items()}
        self.notes = list(notes)
        self.count = next((strip.count for strip in strips.values()), 0)
        self._starts = {name: [s.first for s in strip.segments] for name, strip in strips.items()}
        self._scattered = any(strip.scattered for strip in strips.values())
        self._cuts = sorted({start for starts in self._starts.values() for start in starts if 0 < start < self.count})

    @property
    def bytes(self) -> int:
        """Bytes of all strips together."""
        return self.count * sum(strip.width for strip in self.strips.values())

    def fields(self) -> dict[str, list[str]]:
        """Inputs that are fields of rows, by the name of their strip: they cost a copy, whichever way the rows come."""
        found: dict[str, list[str]] = {}
        for name, take in self.takes.items():
            if self.strips[take.strip].width != take.dtype.size:
                found.setdefault(take.strip, []).append(name)
        return found

    def chunk_elements(self, *, hot: bool) -> int:
        """The default length of a chunk: a span when workers read the files, else 1 MiB of the widest strip."""
        if hot and not self._scattered:
            return HOT_CHUNK_ELEMENTS
        return COLD_CHUNK_BYTES // max((strip.width for strip in self.strips.values()), default=1)

    def runs(self, chunk_elements: int) -> Iterator[Run]:
        """Cut all columns at the same elements; chunks that are alike are one run.

        A chunk lies in one file of each column, so that it can be read where it is, except for short ones around the
        ends of files, which are runs of one.

        Args:
            chunk_elements: longest chunk; rounded up to a multiple of 1,024.
        """
        longest = max(TILE, -(-chunk_elements // TILE) * TILE)
        first = 0
        while first < self.count:
            at = bisect.bisect_right(self._cuts, first)
            end = self._cuts[at] // TILE * TILE if at < len(self._cuts) else self.count
            chunks, rest = divmod(max(0, end - first), longest)
            if chunks:
                yield Run(first, longest, chunks)
                first += chunks * longest
            elif self._scattered:
                last = min(first + longest, self.count)
                yield Run(first, last - first, 1)
                first = last
            elif rest:
                yield Run(first, rest, 1)
                first = end
            else:  # the end of a file lies in this tile: take it, and what small files follow closely
                last = min(first + longest, self.count)
                end = first + TILE
                while at < len(self._cuts) and self._cuts[at] < min(last, end + longest // 8):
                    end = max(end, -(-self._cuts[at] // TILE) * TILE)
                    at += 1
                yield Run(first, min(last, end) - first, 1)
                first = min(last, end)

    def chunks(self, chunk_elements: int) -> Iterator[Chunk]:
        """The chunks of ``runs``, one by one."""
        index = 0
        for run in self.runs(chunk_elements):
            for k in range(run.chunks):
                yield Chunk(index, run.first + k * run.count, run.count)
                index += 1

    def pieces(self, name: str, first: int, count: int) -> list[Piece]:
        """Where elements [first, first + count) of a strip lie, in order. More than one piece: they cross segments.

        The pieces of a strip are all in files, or all in memory.
        """
        strip = self.strips[name]
        size = strip.width
        found = []
        at = bisect.bisect_right(self._starts[name], first) - 1
        while count > 0:
            segment = strip.segments[at]
            inside = first - segment.first
            here = min(count, segment.elements - inside)
            if here > 0:
                address = 0 if segment.array is None else segment.array.ctypes.data + inside * size
                found.append(Piece(segment.file, segment.offset + inside * size, here * size, address))
            first, count, at = first + here, count - here, at + 1
        return found

    def array(self, name: str, first: int, count: int) -> NDArray[Any] | None:
        """The array over elements [first, first + count) of a strip, where they lie together in memory; else None."""
        segment = self.strips[name].segments[bisect.bisect_right(self._starts[name], first) - 1]
        inside = first - segment.first
        if segment.array is None or inside + count > segment.elements:
            return None
        return segment.array[inside : inside + count]

    def read_error(self, first: int, count: int, code: int = 0) -> StreamError:
        """The error for a chunk that somebody else could not read: which file, where, what was expected.

        Args:
            code: errno of the failed read, 0 when the file ended early.
        """
        pieces = [piece for name in self.strips for piece in self.pieces(name, first, count)]
        for piece in pieces:
            if piece.file is not None and os.fstat(piece.file.fd).st_size < piece.offset + piece.bytes:
                return shrank(piece.file, piece.offset, piece.bytes)
        names = ", ".join(dict.fromkeys(piece.file.path for piece in pieces if piece.file is not None))
        cause = f"{os.strerror(code)} ({errno.errorcode.get(code, code)})" if code else "read ended early"
        return stream_error(f"{names}: {cause} while elements {first} to {first + count - 1} were read", code=code)

    def changed(self) -> list[str]:
        """Files that were written to since they were opened, one sentence each: their elements may be mixed."""
        found = []
        for file in dict.fromkeys(file for files in self.files.values() for file in files):
            now = os.fstat(file.fd)
            if now.st_size != file.size or now.st_mtime_ns != file.modified_ns:
                found.append(f"{file.path} was changed while it was read ({file.size} -> {now.st_size} bytes)")
        return found

    def close(self) -> None:
        """Close every file. Nothing may be reading any more."""
        for files in self.files.values():
            for file in files:
                file.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def stream_error(message: str, *, fix: str = "", code: int = 0) -> StreamError:
    """A StreamError that carries ``errno`` as every OSError does."""
    error = StreamError(message, fix=fix)
    if code:
        error.errno = code
    return error


def shrank(file: File, offset: int, expected: int) -> StreamError:
    """The error for a file that ends before bytes that were there when it was opened."""
    size = os.fstat(file.fd).st_size
    return stream_error(
        f"{file.path}: shrank while it was read: expected {expected} bytes at offset {offset} of a file of "
        f"{file.size} bytes, which now has {size}",
        fix="read a file that nobody truncates, or a copy of it",
    )


def open_columns(spec: Mapping[str, ColumnSpec], declared: Mapping[str, MemType]) -> Source:
    """Open the columns of a stream and check them against the program's inputs and each other.

    Args:
        spec: for each input a path, several paths (one stream in this order), a Column, an array in memory, or several.
        declared: the program's inputs, in order.
    Raises:
        BindError: unknown or missing names, element types that differ, unequal lengths.
        StreamError: files that cannot be read or are not what their names say.
    """
    for name in spec:
        if name not in declared:
            raise BindError(f"no input is called {name!r}", fix=f"the inputs are {', '.join(declared) or 'none'}")
    missing = [name for name in declared if name not in spec]
    if missing:
        raise BindError(f"input {missing[0]!r} has no column", fix=f"give {', '.join(f'{n}=PATH' for n in missing)}")
    strips: dict[str, Strip] = {}
    takes: dict[str, Take] = {}
    notes: list[str] = []
    with contextlib.ExitStack() as undo, ArrowFiles() as arrow:
        for name, dtype in declared.items():
            what = spec[name]
            if isinstance(what, (np.ndarray, Chunked)):
                strips[name] = _open_arrays(name, what, dtype, notes)
                takes[name] = Take(name, 0, dtype)
            else:
                column = what if isinstance(what, Column) else Column(what)
                strip, inside = _open_files(name, column, dtype, undo, notes, arrow)
                takes[name] = Take(_shared(strips, name, strip), inside, dtype)
        _check_lengths({name: strips[take.strip].count for name, take in takes.items()})
        undo.pop_all()
    source = Source(strips, takes, notes)
    for rows, names in source.fields().items():
        size = sum(takes[name].dtype.size for name in names)
        source.notes.append(
            f"{', '.join(names)}: {size} of every {strips[rows].width} bytes, copied once out of whole rows"
        )
    return source


def type_in_files(name: str, column: Column) -> MemType | None:
    """The memory type that a column's first file says itself; None for raw elements.

    Args:
        name: of the input that would take it.
    Raises:
        StreamError, BindError: as for ``open_columns``.
    """
    if column.dtype is not None:
        return column.dtype
    with _first_file(column) as (file, format):
        if format == "npy":
            return read_npy_header(file.fd, file.path, file.size, column.field, name).dtype
        if format == "arrow":
            with ArrowFiles() as arrow:
                return arrow.find(file.fd, file.path, file.size, column.field, name).dtype
    return None


def has_names(column: Column) -> bool:
    """Whether a column's first file has columns with names, so that inputs can be bound by theirs."""
    with _first_file(column) as (file, format):
        return format == "arrow" or (format == "npy" and bool(npy_fields(file.fd, file.path, file.size)))


@contextlib.contextmanager
def _first_file(column: Column) -> Iterator[tuple[File, str]]:
    """The first file of a column, open for the moment, and what it is read as."""
    with contextlib.ExitStack() as undo:
        for path, _ in _files_of(column.paths, []):
            yield _open_file(path, undo), _format(column, path)
            return
        raise BindError("an empty list of paths", fix="give at least one file")


def _format(column: Column, path: str) -> str:
    """What a file of a column is read as."""
    if column.format != "auto":
        return column.format
    if path.endswith(".npy"):
        return "npy"
    return "arrow" if path.endswith(SUFFIXES) else "raw"


def _check_lengths(lengths: Mapping[str, int]) -> None:
    reference = next(iter(lengths), "")
    for name, length in lengths.items():
        if length != lengths[reference]:
            raise BindError(
                f"columns are zipped by element, but {reference!r} has {lengths[reference]} elements and {name!r} "
                f"has {length}",
                fix="give columns of one length; Column(path, dtype, offset, elements) takes a part of a raw file",
            )


def _check_type(what: str, found: MemType, dtype: MemType, cast: str) -> None:
    if found is not dtype:
        raise BindError(f"{what} has elements of type {found.name}, but the input is declared {dtype.name}", fix=cast)


def _open_arrays(name: str, given: NDArray[Any] | Chunked, dtype: MemType, notes: list[str]) -> Strip:
    strip, first = Strip(dtype.size, dtype.size), 0
    arrays = [given] if isinstance(given, np.ndarray) else given.arrays
    for array in arrays:
        found = memtype_of(array.dtype)
        cast = f"{name}.astype(np.{numpy_dtype(dtype).name})"
        if not isinstance(given, np.ndarray):
            cast = (
                f"cast the column: column.cast(...) of pyarrow, or .cast(...) of Polars, to {numpy_dtype(dtype).name}"
            )
        if found is None:
            raise BindError(f"array {name!r} has elements of type {array.dtype}, which memory cannot hold", fix=cast)
        _check_type(f"array {name!r}", found, dtype, cast)
        if not array.flags.c_contiguous:
            notes.append(f"{name}: copied once, because the array is strided")
        flat = np.ascontiguousarray(array).reshape(-1)
        strip.segments.append(Segment(first, flat.size, array=flat))
        first += flat.size
    notes.extend(given.notes if isinstance(given, Chunked) else [])
    return strip


def _open_files(
    name: str, column: Column, dtype: MemType, undo: contextlib.ExitStack, notes: list[str], arrow: ArrowFiles
) -> tuple[Strip, int]:
    """Open a column's files; what is to be read of them, and where in each row the column is."""
    if isinstance(column, Ranges):
        return _open_ranges(name, column, dtype, undo), 0
    strip, inside, first = None, 0, 0
    if not column.paths:
        raise BindError(f"input {name!r} has an empty list of paths", fix="give at least one file")
    if column.dtype is not None:
        cast = f"declare the input {column.dtype.name}, or write another file with the cast"
        _check_type(f"column {name!r} ({column.paths[0]})", column.dtype, dtype, cast)
    for path, listed in _files_of(column.paths, notes):
        if listed and column.elements is not None:
            raise BindError(f"elements={column.elements} names a part of one file, but {path} is one of a directory")
        file = _open_file(path, undo)
        found = _find(file, column, dtype, name, notes, arrow)
        if found.width > ROW_BYTES_MAX:
            raise stream_error(
                f"{path}: rows of {found.width:,} bytes; one of {ROW_BYTES_MAX:,} is the longest",
                fix="save the column as a file of its own: np.save('column.npy', array[:, k])",
            )
        if strip is None:
            strip, inside = Strip(found.width, dtype.size if found.width == dtype.size else 1), found.inside
        elif (strip.width, inside) != (found.width, found.inside):
            raise BindError(
                f"input {name!r}: {path} has it at byte {found.inside} of every {found.width}, "
                f"{column.paths[0]} at byte {inside} of every {strip.width}; files of one column are laid out alike",
                fix="save the column of each file as a file of its own: np.save('column.npy', array[:, k])",
            )
        for offset, elements in found.places:
            strip.segments.append(Segment(first, elements, file, offset))
            first += elements
    assert strip is not None, "a directory without files was refused"
    return strip, inside


def _open_ranges(name: str, column: Ranges, dtype: MemType, undo: contextlib.ExitStack) -> Strip:
    """Open the files of many ranges, each once."""
    if column.dtype is not None:
        _check_type(
            f"column {name!r} ({column.paths[0]})", column.dtype, dtype, f"declare the input {column.dtype.name}"
        )
    files = [_open_file(path, undo) for path in column.paths]
    strip = Strip(dtype.size, dtype.size, scattered=True)
    first = 0
    for at, (number, offset, size) in enumerate(column.places):
        file = files[number]
        elements, left = divmod(size, dtype.size)
        if left or offset + size > file.size:
            what = f"are no whole number of {dtype.name} elements" if left else f"reach beyond its {file.size} bytes"
            raise stream_error(f"{file.path}: range {at} of {name!r}, {size} bytes from offset {offset}, {what}")
        if elements:
            strip.segments.append(Segment(first, elements, file, offset))
            first += elements
    return strip


class _Found(NamedTuple):
    """Where a column is in one file: bytes from element to element, from the start of a row to its element, and
    (offset, elements) of each part that lies together."""

    width: int
    inside: int
    places: list[tuple[int, int]]


def _find(file: File, column: Column, dtype: MemType, name: str, notes: list[str], arrow: ArrowFiles) -> _Found:
    """Find a column's elements in one of its files and check their type."""
    path = file.path
    format = _format(column, path)
    if format == "npy":
        found = read_npy_header(file.fd, path, file.size, column.field, name)
        cast = f"np.save({path!r}, np.load({path!r}).astype(np.{numpy_dtype(dtype).name}))"
        if found.width != found.dtype.size:
            of = "" if column.field is None else f"[{column.field!r}]"
            cast = f"declare the input {found.dtype.name}, or save np.load({path!r}){of}.astype(...) by itself"
        if dtype is MemType.bf16:
            cast = f"bf16 is read from raw files only: np.load({path!r}).tofile('raw.bin')"
        _check_type(f"{path} (input {name!r})", found.dtype, dtype, cast)
        return _Found(found.width, found.inside, [(found.offset, found.elements)])
    if format == "arrow":
        column_ = arrow.find(file.fd, path, file.size, column.field, name)
        cast = f"declare the input {column_.dtype.name}, or write the column with column.cast(...)"
        _check_type(f"{path} (input {name!r})", column_.dtype, dtype, cast)
        if column_.note:
            notes.append(column_.note)
        return _Found(dtype.size, 0, column_.places)
    if column.field is not None:
        raise BindError(
            f"{path} is read as raw elements, which have no column {column.field!r}",
            fix=f"name a .npy or an Arrow file, or say what it is: vyre.Column({path!r}, format='arrow', ...)",
        )
    return _Found(dtype.size, 0, [(column.offset, _raw_elements(file, column, dtype))])


def _shared(strips: dict[str, Strip], name: str, strip: Strip) -> str:
    """Keep a strip under ``name``, unless another input has the same rows open already; the name it has."""
    if strip.alignment == 1 < strip.width:

        def places(one: Strip) -> list[tuple[int, ...]]:
            return [(s.file.device, s.file.inode, s.offset, s.elements) for s in one.segments if s.file is not None]

        for other, one in strips.items():
            if one.width == strip.width and one.alignment == 1 and places(one) == places(strip):
                for file in dict.fromkeys(segment.file for segment in strip.segments):
                    assert file is not None
                    file.close()
                return other
    strips[name] = strip
    return name


def _raw_elements(file: File, column: Column, dtype: MemType) -> int:
    start = os.pread(file.fd, 6, 0) if column.format == "auto" else b""
    if start == ARROW_MAGIC:
        raise stream_error(
            f"{file.path}: begins like an Arrow file but is not called one",
            fix=f"vyre.Column({file.path!r}, format='arrow') reads a column, vyre.raw({file.path!r}, {dtype.name!r}) "
            "its bytes",
        )
    if start == NPY_MAGIC:
        raise stream_error(
            f"{file.path}: begins like a .npy file but is not called one",
            fix=f"vyre.npy({file.path!r}) reads its array, vyre.raw({file.path!r}, {dtype.name!r}) its bytes",
        )
    size = file.size - column.offset
    if size < 0:
        raise stream_error(f"{file.path}: offset {column.offset} lies beyond the end: the file has {file.size} bytes")
    if column.elements is not None:
        if column.elements * dtype.size > size:
            raise stream_error(
                f"{file.path}: {column.elements} elements of {dtype.name} from offset {column.offset} need "
                f"{column.offset + column.elements * dtype.size} bytes, the file has {file.size}"
            )
        return column.elements
    if size % dtype.size:
        after = f" after offset {column.offset}" if column.offset else ""
        raise stream_error(
            f"{file.path}: {size} bytes{after} are no whole number of {dtype.name} elements of {dtype.size} bytes: "
            f"{size % dtype.size} left over",
            fix=f"the wrong type, or a cut file; Column({file.path!r}, {dtype.name!r}, elements={size // dtype.size}) "
            "takes the whole ones",
        )
    return size // dtype.size


def _files_of(paths: Sequence[str], notes: list[str]) -> Iterator[tuple[str, bool]]:
    """Each file to read, and whether it was found in a directory. Hidden files of a directory are left out."""
    for path in paths:
        try:
            is_directory = stat.S_ISDIR(os.stat(path).st_mode)
            names = sorted(os.listdir(path), key=os.fsencode) if is_directory else []
        except (OSError, ValueError) as error:
            raise _cannot_open(path, error) from None
        if not is_directory:
            yield path, False
            continue
        hidden = [name for name in names if name.startswith(".")]
        if hidden:
            notes.append(f"{path}: {len(hidden)} hidden files left out ({hidden[0]}, ...)")
        if len(hidden) == len(names):
            raise stream_error(f"{path}: the directory has no files to read")
        for name in names:
            if not name.startswith("."):
                inside = os.path.join(path, name)
                if os.path.isdir(inside):
                    raise stream_error(
                        f"{inside}: a directory in a directory", fix="name the directories that hold the files"
                    )
                yield inside, True


def _open_file(path: str, undo: contextlib.ExitStack) -> File:
    try:
        # O_NONBLOCK, so that a pipe without a writer is refused instead of waited for.
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | os.O_NOCTTY)
    except OSError as error:
        raise _cannot_open(path, error) from None
    status = os.fstat(fd)
    file = File(path, fd, status.st_size, status.st_mtime_ns, status.st_dev, status.st_ino)
    undo.callback(file.close)
    if not stat.S_ISREG(status.st_mode):
        kind = next((text for test, text in _KINDS if test(status.st_mode)), "no regular file")
        raise stream_error(
            f"{path}: {kind}: columns are read at any offset, so they must be regular files",
            fix="write it to a file first (cat PIPE > FILE)",
            code=errno.ESPIPE,
        )
    # io_uring takes O_NONBLOCK on a regular file as "never wait" and answers EAGAIN.
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) & ~os.O_NONBLOCK)
    try:
        unsized = status.st_size == 0 and os.pread(fd, 1, 0) != b""
    except OSError as error:
        raise _cannot_open(path, error) from None
    if unsized:
        raise stream_error(
            f"{path}: has bytes but no length (as files in /proc and /sys have)", fix="copy it to a file first"
        )
    return file


_KINDS: Final = (
    (stat.S_ISFIFO, "a pipe"),
    (stat.S_ISSOCK, "a socket"),
    (stat.S_ISCHR, "a character device"),
    (stat.S_ISBLK, "a block device"),
    (stat.S_ISDIR, "a directory"),
)


def _cannot_open(path: str, error: OSError | ValueError) -> StreamError:
    code = (error.errno or 0) if isinstance(error, OSError) else 0
    fix = {
        errno.ENOENT: "check the spelling; relative paths begin at the working directory " + os.getcwd(),
        errno.EACCES: "give yourself the right to read it (chmod u+r)",
        errno.EMFILE: "allow more open files: ulimit -n 65536",
        errno.ENXIO: "write it to a file first",
    }.get(code, "")
    reason = f"{os.strerror(code)} ({errno.errorcode.get(code, code)})" if code else str(error)
    whole, colon, field = path.rpartition(":")
    if code == errno.ENOENT and colon and os.path.exists(whole):  # the command line's spelling
        fix = f"a column of it is vyre.column({whole!r}, {int(field) if field.isdecimal() else field!r})"
    return stream_error(f"{path!r}: cannot be read: {reason}", fix=fix, code=code)
