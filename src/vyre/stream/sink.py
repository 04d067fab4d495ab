"""Where results go: ``.npy``, Arrow IPC, raw or standard output; under a temporary name until they are complete.

Owns: the temporary file, headers, the moment of renaming, which results share a file. Leaves to others: what is written
and in which order.
"""

from __future__ import annotations

import errno
import os
import secrets
import stat
import sys
from collections.abc import Mapping, Sequence
from typing import Any, Final, Literal, Self

import numpy as np
from numpy.typing import NDArray

from vyre.errors import BindError, StreamError
from vyre.program.opcodes import MemType
from vyre.stream.arrow import SUFFIXES
from vyre.stream.arrow_writer import ArrowWriter
from vyre.stream.formats import PathLike, memtype_of, npy_header
from vyre.stream.source import stream_error

STDOUT: Final = "-"
_WRITE_MAX: Final = 1 << 30
SinkFormat = Literal["auto", "npy", "arrow", "raw"]


class _Landing:
    """A file that stands under its name with everything or not at all.

    ``commit`` gives it its name; leaving a ``with`` by an exception, or ``abort``, removes what was written. Standard
    output and other pipes and devices get the bytes at once and cannot take them back.

    Attributes:
        path: the final name, or "-".
        count: elements written so far; rows, where there are several columns.
    """

    def __init__(self, path: PathLike, element_bytes: int) -> None:
        self.path = os.fspath(path)
        self.count = 0
        self._element_bytes = element_bytes
        self._temporary: str | None = None
        self._fd = -1
        self._own = False

    def _open(self) -> None:
        if self.path == STDOUT:
            sys.stdout.flush()
            self._fd = sys.stdout.fileno() if sys.stdout is not None else 1
            return
        try:
            target = os.path.realpath(self.path)  # a symbolic link stays one
            try:
                mode = os.stat(target).st_mode
            except FileNotFoundError:
                mode = stat.S_IFREG
            self._own = True
            if stat.S_ISDIR(mode):
                raise IsADirectoryError(errno.EISDIR, os.strerror(errno.EISDIR))
            if not stat.S_ISREG(mode):  # a device or pipe: renaming over it would replace it
                self._fd = os.open(target, os.O_WRONLY | os.O_CLOEXEC)
                return
            folder, name = os.path.split(target)
            temporary = os.path.join(folder, f".{name}.{secrets.token_hex(4)}.partial")
            self._fd = os.open(temporary, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
            self._temporary, self._target = temporary, target
        except (OSError, ValueError) as error:
            raise self._failed(error) from None

    def _write(self, view: memoryview) -> None:
        if self._fd < 0:
            raise StreamError(f"{self.path}: written to after commit or abort")
        done = 0
        try:
            while done < len(view):
                done += os.write(self._fd, view[done : done + _WRITE_MAX])
        except OSError as error:
            failure = self._failed(error)
            self.abort()
            raise failure from None

    def _finish(self) -> None:
        """Write what comes last: called once, before the file gets its name."""

    def commit(self) -> None:
        """Say that everything was written: the file gets its last bytes and its name, in one step.

        Raises:
            StreamError: the last bytes could not be stored; nothing stands under the final name.
        """
        if self._fd < 0:
            raise StreamError(f"{self.path}: committed after commit or abort")
        try:
            self._finish()
            fd, self._fd = self._fd, -1
            if self._own:
                os.close(fd)  # some file systems report a full disk only here
            if self._temporary is not None:
                os.replace(self._temporary, self._target)
                self._temporary = None
        except OSError as error:
            failure = error if isinstance(error, StreamError) else self._failed(error)
            self.abort()
            raise failure from None
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Forget the result: nothing of it stays on disk. After ``commit`` it does nothing."""
        fd, self._fd = self._fd, -1
        if self._own and fd >= 0:
            os.close(fd)
        if self._temporary is not None:
            temporary, self._temporary = self._temporary, None
            try:
                os.unlink(temporary)
            except OSError:
                pass

    def _failed(self, error: OSError | ValueError) -> StreamError:
        code = (error.errno or 0) if isinstance(error, OSError) else 0
        where = "standard output" if self.path == STDOUT else self.path
        at = f" after {self.count} elements ({self.count * self._element_bytes} bytes)" if self.count else ""
        reason = f"{os.strerror(code)} ({errno.errorcode.get(code, code)})" if code else str(error)
        kept = "; nothing was left under that name" if self._temporary is not None else ""
        fix = {
            errno.ENOSPC: "make room on the disk, or write elsewhere",
            errno.EPIPE: "the program that reads the pipe ended early",
            errno.ENOENT: "create the directory first",
            errno.EISDIR: "name a file in it",
            errno.EACCES: "write to a directory that you may write to",
        }.get(code, "")
        return stream_error(f"{where}: cannot be written{at}: {reason}{kept}", fix=fix, code=code)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: object) -> None:
        if kind is None and self._fd >= 0:
            self.commit()
        else:
            self.abort()


class Sink(_Landing):
    """One stream of results on its way into a file, as ``.npy`` or raw elements.

    Attributes:
        dtype: memory type of the elements.
    """

    def __init__(
        self, path: PathLike, dtype: MemType, *, count: int | None = None, format: SinkFormat = "auto"
    ) -> None:
        """Open the temporary file beside ``path``.

        Args:
            path: a file, a device, or "-" for standard output.
            dtype: memory type of the elements.
            count: elements that will come, where that is known; needed for ``.npy`` into a pipe.
            format: "auto" writes ``.npy`` where the name says so, else raw elements.
        Raises:
            BindError: a format that cannot hold this.
            StreamError: the directory does not exist, cannot be written to, or ``path`` is a directory.
        """
        super().__init__(path, dtype.size)
        self.dtype = dtype
        self._expected = count
        if format not in ("auto", "npy", "raw"):
            raise BindError(f"result format {format!r} is unknown", fix='"auto", "npy" or "raw"')
        npy = format == "npy" or (format == "auto" and self.path.endswith(".npy"))
        header = npy_header(dtype, count or 0) if npy else b""
        self._open()
        self._patch = bool(header) and self._temporary is not None
        try:
            if header and count is None and self._temporary is None:
                raise BindError(
                    f"{self.path}: a .npy header says how many elements come, which a pipe must know before",
                    fix="write raw elements, or to a file",
                )
            self._write(memoryview(header))
        except BaseException:
            self.abort()
            raise

    def write(self, array: NDArray[Any]) -> None:
        """Append elements, in C order. The array is yours again on return.

        Raises:
            BindError: other elements than were announced.
            StreamError: the disk is full, the reader of a pipe has gone, ...; nothing stands under the final name.
        """
        found = memtype_of(array.dtype)
        bits = self.dtype is MemType.bf16 and found is MemType.u16
        if found is not self.dtype and not bits:
            raise BindError(f"{self.path}: elements of type {array.dtype} in a result of {self.dtype.name}")
        if self._expected is not None and self.count + array.size > self._expected:
            raise BindError(f"{self.path}: more than the {self._expected} elements that were announced")
        if array.size:
            self._write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)
        self.count += array.size

    def _finish(self) -> None:
        if self._expected is not None and self.count != self._expected:
            raise StreamError(f"{self.path}: {self.count} elements written where {self._expected} were announced")
        if self._patch:
            os.pwrite(self._fd, npy_header(self.dtype, self.count), 0)


class TableSink(_Landing):
    """Columns of results on their way into one Arrow IPC file; a stream, where the name ends in ``.arrows``.

    Attributes:
        columns: names and memory types, in order.
    """

    def __init__(self, path: PathLike, columns: Sequence[tuple[str, MemType]]) -> None:
        """Open the temporary file beside ``path``.

        Raises:
            BindError: pyarrow is missing, or Arrow has no such type.
            StreamError: as for ``Sink``.
        """
        super().__init__(path, sum(dtype.size for _, dtype in columns))
        self.columns = tuple(columns)
        self._open()
        try:
            self._writer = ArrowWriter(self.path, self.columns, self._write)
        except BaseException:
            self.abort()
            raise

    def write(self, arrays: Mapping[str, NDArray[Any]]) -> None:
        """Append rows: an array for each column, all of one length. They are yours again on return.

        Raises:
            BindError: lengths or types that differ.
            StreamError: as for ``Sink.write``.
        """
        if self._fd < 0:
            raise StreamError(f"{self.path}: written to after commit or abort")
        lengths = {name: arrays[name].size for name, _ in self.columns}
        if len(set(lengths.values())) > 1:
            raise BindError(
                f"{self.path}: columns of one table have one length, but {', '.join(f'{n} has {k}' for n, k in lengths.items())}",
                fix="write each result to a file of its own",
            )
        for name, dtype in self.columns:
            if memtype_of(arrays[name].dtype) is not dtype:
                raise BindError(f"{self.path}: {name} has elements of type {arrays[name].dtype}, not {dtype.name}")
        rows = lengths[self.columns[0][0]]
        if rows:
            self._writer.add([arrays[name] for name, _ in self.columns])
        self.count += rows

    def _finish(self) -> None:
        self._writer.end()


class Sinks:
    """The files of a program's results: one for each path, whatever the paths' formats.

    Args:
        paths: path by name of the result. Results that share a path are columns of one Arrow file.
        types: memory type by name.
        counts: elements that will come, by name, where that is known.
    Raises:
        BindError: two results share a path that is no Arrow file's, and as for ``Sink``.
        StreamError: as for ``Sink``. Nothing is left of the others then.
    """

    def __init__(
        self, paths: Mapping[str, PathLike], types: Mapping[str, MemType], counts: Mapping[str, int] | None = None
    ) -> None:
        sharing: dict[str, list[str]] = {}
        for name, path in paths.items():
            sharing.setdefault(os.fspath(path), []).append(name)
        self._tables: list[TableSink] = []
        self._single: dict[str, Sink] = {}
        try:
            for path, names in sharing.items():
                if path.endswith(SUFFIXES):
                    self._tables.append(TableSink(path, [(name, types[name]) for name in names]))
                elif len(names) > 1:
                    raise BindError(
                        f"{path}: {' and '.join(names)} cannot both go there",
                        fix="give each a path of its own, or one that ends in .arrow for a table of all",
                    )
                else:
                    self._single[names[0]] = Sink(path, types[names[0]], count=(counts or {}).get(names[0]))
        except BaseException:
            self.abort()
            raise

    def write(self, part: Mapping[str, NDArray[Any]]) -> None:
        """Append a part: the arrays of all results that have a path, by name. They are yours again on return.

        Raises:
            As for ``Sink.write`` and ``TableSink.write``.
        """
        for name, sink in self._single.items():
            sink.write(part[name])
        for table in self._tables:
            table.write(part)

    def commit(self) -> None:
        """Give every file its name. Raises StreamError; those that have their name already keep it."""
        try:
            for sink in (*self._single.values(), *self._tables):
                sink.commit()
        except BaseException:
            self.abort()
            raise

    def abort(self) -> None:
        """Leave nothing of what has no name yet."""
        for sink in (*self._single.values(), *self._tables):
            sink.abort()
