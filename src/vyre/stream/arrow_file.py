"""Columns of uncompressed Arrow IPC files (Feather version 2 is one) and streams, where they lie.

Owns: which bytes of the file are a column's elements. pyarrow reads schema and batches from a mapping of the file, of
which it touches nothing but metadata; where a buffer's address lies in the mapping is where it lies in the file. The
bytes themselves come as those of every other file (plan, reader). Leaves to others: types (arrow).
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, NamedTuple

from vyre.errors import BindError, StreamError, VyreError
from vyre.program.opcodes import MemType
from vyre.stream.arrow import memtype_in, missing_column, pyarrow, refuse_nulls
from vyre.stream.formats import Field

MAGIC = b"ARROW1"


class ArrowColumn(NamedTuple):
    """Where a column lies: (offset in bytes, elements) of each record batch that is not empty, and what to say of it."""

    dtype: MemType
    places: list[tuple[int, int]]
    note: str


def names_in(fd: int, path: str, size: int) -> list[str]:
    """The names of a file's columns.

    Raises:
        BindError: pyarrow is missing.
        StreamError: it is no Arrow IPC file.
    """
    mapping = _Mapping(fd, path, size)
    try:
        with mapping:
            return list(mapping.schema.names)
    finally:
        mapping.close()


class ArrowFiles:
    """The Arrow files of one source: each is looked through once, however many of its columns are wanted."""

    def __init__(self) -> None:
        self._seen: dict[tuple[int, int], _Mapping] = {}

    def find(self, fd: int, path: str, size: int, field: Field | None, name: str) -> ArrowColumn:
        """Find the elements of a column in every record batch.

        Args:
            field: its name ("pos.x" for a part of a struct) or index; None takes the column called ``name``, or the only
                one.
            name: of the input.
        Raises:
            BindError: no such column, nulls, or a type that memory cannot hold as it lies; with the cast to write.
            StreamError: no Arrow IPC file, a damaged one, or a compressed one.
        """
        status = os.fstat(fd)
        key = (status.st_dev, status.st_ino)
        if key not in self._seen:
            self._seen[key] = _Mapping(fd, path, size)
        return _find(self._seen[key], path, field, name)

    def close(self) -> None:
        """Let go of every file."""
        while self._seen:
            self._seen.popitem()[1].close()

    def __enter__(self) -> ArrowFiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def _find(mapping: _Mapping, path: str, field: Field | None, name: str) -> ArrowColumn:
    with mapping:
        steps = _steps(path, mapping.schema, field, name)
        what = f"{path}: column {'.'.join([mapping.schema.names[steps[0]], *map(str, steps[1:])])!r}"
        type_ = mapping.schema.field(steps[0]).type
        for step in steps[1:]:
            type_ = type_.field(step).type
        dtype, note = memtype_in(what, type_)
        places = []
        for index, array in enumerate(mapping.arrays(steps[0])):
            refuse_nulls(f"{what}, batch {index},", array.null_count)
            for step in steps[1:]:
                array = array.field(step)
                refuse_nulls(f"{what}, batch {index},", array.null_count)
            if len(array):
                places.append((mapping.place(array, dtype, what, index), len(array)))
        return ArrowColumn(dtype, places, f"{what}: {note}" if note else "")


def _steps(path: str, schema: Any, field: Field | None, name: str) -> list[Any]:
    """The index of a column, and the names of the parts of a struct down from it."""
    names = list(schema.names)
    spell = f"name one: vyre.column({path!r}, {names[0] if names else ''!r})"
    if field is None:
        field = name if name in names or len(names) != 1 else 0
    head, *parts = [field] if isinstance(field, int) or field in names else field.split(".")
    if isinstance(head, str) and names.count(head) > 1:
        raise BindError(f"{path} has {names.count(head)} columns called {head!r}", fix="give the index of one")
    if head in names:
        index = names.index(head)
    elif (isinstance(head, int) or head.isdecimal()) and 0 <= int(head) < len(names):
        index = int(head)
    else:
        raise missing_column(path, field, names, spell)
    type_ = schema.field(index).type
    for part in parts:
        below = [type_.field(i).name for i in range(type_.num_fields)]
        if part not in below:
            raise missing_column(path, field, names, spell)
        type_ = type_.field(part).type
    return [index, *parts]


class _Mapping:
    """A file as pyarrow sees it: mapped, its metadata read."""

    def __init__(self, fd: int, path: str, size: int) -> None:
        self._pa = pyarrow(f"{path}: reading Arrow files")
        self._path = path
        self._size = size
        self._batches: list[Any] = []
        self._reader: Any = None
        if size == 0:
            raise StreamError(f"{path}: not an Arrow IPC file: it is empty")
        try:
            # Through /proc, so that it is the same file even when the path has been replaced.
            self._map = self._pa.memory_map(f"/proc/self/fd/{fd}")
            self._base = self._map.read_buffer(size).address
            self._file = self._begins_as_file()
            self.schema = self._open().schema
        except self._failures() as error:
            raise self._damaged(error) from None

    def _failures(self) -> tuple[type[Exception], ...]:
        """What pyarrow raises over a file that is damaged."""
        return (self._pa.ArrowException, OSError, EOFError, UnicodeDecodeError)

    def _begins_as_file(self) -> bool:
        self._map.seek(0)
        return bool(self._map.read(len(MAGIC)) == MAGIC)

    def _open(self) -> Any:
        """A reader of all columns: one of some columns would copy them out of the mapping."""
        self._map.seek(0)
        options = self._pa.ipc.IpcReadOptions(use_threads=False)
        if self._file:
            return self._pa.ipc.open_file(self._map, options=options)
        return self._pa.ipc.open_stream(self._map, options=options)

    def arrays(self, column: int) -> Iterator[Any]:
        """The column's array of each record batch."""
        index = 0
        # One after the other: of a compressed file, which is refused at its first, no more than that is unpacked.
        while index < len(self._batches) or self._read_batch():
            yield self._batches[index].column(column)
            index += 1

    def _read_batch(self) -> bool:
        """Read the metadata of one batch more. False: that was the last one."""
        if self._reader is None:
            self._reader = self._open()
        if self._file:
            if len(self._batches) == self._reader.num_record_batches:
                return False
            self._batches.append(self._reader.get_batch(len(self._batches)))
            return True
        try:
            self._batches.append(self._reader.read_next_batch())
        except StopIteration:
            return False
        return True

    def place(self, array: Any, dtype: MemType, what: str, index: int) -> int:
        """Offset in the file of an array's first element."""
        data = array.buffers()[1]
        needed = len(array) * dtype.size
        at = -1 if data is None else data.address - self._base + array.offset * dtype.size
        if data is not None and not 0 <= data.address - self._base <= self._size:
            raise StreamError(
                f"{what}: batch {index} is compressed (or of the other byte order): its elements are not in the file",
                fix="write it without: pyarrow.feather.write_feather(table, path, compression='uncompressed'), "
                "polars write_ipc(path, compression='uncompressed')",
            )
        if data is None or data.size < needed or at + needed > self._size:
            raise StreamError(f"{what}: batch {index} is damaged: {needed} bytes of {dtype.name} are not all there")
        if at % dtype.size:
            raise StreamError(
                f"{what}: batch {index} lies at byte {at}, which is no multiple of {dtype.size}",
                fix="write the file again with pyarrow, which aligns buffers to 64 bytes",
            )
        return at

    def _damaged(self, error: Exception) -> StreamError:
        reason = str(error).split("\n")[0] or type(error).__name__
        return StreamError(
            f"{self._path}: not an Arrow IPC file, or a damaged one: {reason}",
            fix=f"for a file of bare elements write vyre.raw({self._path!r}, dtype)",
        )

    def __enter__(self) -> _Mapping:
        return self

    def close(self) -> None:
        self._batches.clear()
        self._reader = None
        self._map.close()

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        if isinstance(error, self._failures()) and not isinstance(error, VyreError):
            raise self._damaged(error) from None
