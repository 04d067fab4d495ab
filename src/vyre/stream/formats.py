"""What lies in a file: element types by name, the ``.npy`` header, and a column as a caller writes it.

Owns: the mapping between NumPy's types and VIR0's memory types, the strict ``.npy`` reader, ``Column``. Leaves to
others: opening and cutting (source), reading (reader), writing (sink).
"""

from __future__ import annotations

import ast
import math
import os
import re
import struct
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Final, Literal, NamedTuple, get_args

import numpy as np

from vyre.errors import BindError, StreamError
from vyre.program.opcodes import MemType

PathLike = str | os.PathLike[str]
Format = Literal["auto", "raw", "npy", "arrow"]
Field = str | int
"""Which column of a file that has several: its name, or its index from 0."""

NPY_MAGIC: Final = b"\x93NUMPY"
NPY_HEADER_MAX: Final = 1 << 16  # a header of one plain column has 128 bytes; anything near this is not ours to read

_NUMPY: Final[dict[MemType, np.dtype[Any]]] = {
    MemType.i32: np.dtype("<i4"),
    MemType.i64: np.dtype("<i8"),
    MemType.f32: np.dtype("<f4"),
    MemType.f64: np.dtype("<f8"),
    MemType.i8: np.dtype("i1"),
    MemType.u8: np.dtype("u1"),
    MemType.i16: np.dtype("<i2"),
    MemType.u16: np.dtype("<u2"),
    MemType.u32: np.dtype("<u4"),
    MemType.u64: np.dtype("<u8"),
    MemType.f16: np.dtype("<f2"),
    MemType.bf16: np.dtype("<u2"),  # NumPy has no bfloat16: its bits
    MemType.bool: np.dtype("?"),
}
_MEMTYPE: Final[dict[np.dtype[Any], MemType]] = {
    dtype: memtype for memtype, dtype in _NUMPY.items() if memtype is not MemType.bf16
}
_BY_NAME: Final[dict[str, MemType]] = {
    **{memtype.name: memtype for memtype in MemType},
    **{dtype.name: memtype for dtype, memtype in _MEMTYPE.items()},
    "bfloat16": MemType.bf16,
}


def numpy_dtype(memtype: MemType) -> np.dtype[Any]:
    """The NumPy type whose elements hold ``memtype``: little-endian; bf16 as its bits in uint16."""
    return _NUMPY[memtype]


def memtype_of(dtype: Any) -> MemType | None:
    """The memory type that holds elements of a NumPy dtype, or None: other byte order, structured, object, ..."""
    found = np.dtype(dtype)
    if found.name == "bfloat16" and found.itemsize == 2:  # registered by ml_dtypes
        return MemType.bf16
    return _MEMTYPE.get(found) if found.subdtype is None else None


def memtype(spec: MemType | str | np.dtype[Any] | type) -> MemType:
    """The memory type that a caller names.

    Strings are VIR0's names ("f32", "u8": eight bits) or NumPy's long ones ("float32"). NumPy's short codes are not
    taken, because its "i8" has 64 bits; a ``np.dtype`` is, and so is an annotation such as ``vyre.f32``.

    Raises:
        BindError: no memory type is meant by it.
    """
    if isinstance(spec, MemType):
        return spec
    found: MemType | None
    if isinstance(spec, str):
        found = _BY_NAME.get(spec)
    elif isinstance(memory := getattr(spec, "memory", None), MemType):  # vyre.f32 and its like
        found = memory
    else:
        try:
            found = memtype_of(spec)
        except TypeError:
            found = None
    if found is None:
        raise BindError(
            f"element type {spec if isinstance(spec, str) else repr(spec)} is none that memory can hold",
            fix=f"one of {', '.join(t.name for t in MemType)}, NumPy's long names, or a native np.dtype",
        )
    return found


@dataclass(frozen=True, slots=True)
class Column:
    """One column of elements over one or several files, in the order given; a directory is its files in byte order.

    Attributes:
        paths: files or directories. A single path may be given bare.
        dtype: element type; None takes it from the ``.npy`` header, or from the program for raw files.
        offset: bytes before the first element, in each file (raw only).
        elements: elements to take (raw only, one file only); None takes all.
        format: "raw", "npy", "arrow", or "auto": by the file's name (``.npy``; ``.arrow``, ``.arrows``, ``.feather``,
            ``.ipc``), raw otherwise.
        field: which column of files that have several. In ``.npy``: a field of structured elements by name ("pos.x" for
            a field in a field) or index, or a column of the last axis of an array by index. In Arrow files: a column by
            name ("pos.x" for a part of a struct) or index. None takes the one that is called as the input, where columns
            have names (in Arrow files also the only one), and else every element in C order.
    """

    paths: tuple[str, ...]
    dtype: MemType | None
    offset: int
    elements: int | None
    format: Format
    field: Field | None

    def __init__(
        self,
        paths: PathLike | Sequence[PathLike],
        dtype: MemType | str | np.dtype[Any] | type | None = None,
        offset: int = 0,
        elements: int | None = None,
        format: Format = "auto",
        field: Field | None = None,
    ) -> None:
        listed = [paths] if isinstance(paths, (str, os.PathLike)) else list(paths)
        if format not in get_args(Format):
            raise BindError(f"column format {format!r} is unknown", fix=f"one of {', '.join(get_args(Format))}")
        if format in ("npy", "arrow") and (offset or elements is not None):
            raise BindError(
                f"offset and elements cut raw files; {format} files say themselves where their elements are"
            )
        if offset < 0 or (elements is not None and elements < 0):
            raise BindError(f"offset {offset} and elements {elements} of a column cannot be negative")
        if format == "auto" and (offset or elements is not None):
            format = "raw"
        if isinstance(field, (bool, np.bool_)) or not isinstance(field, (str, int, np.integer, type(None))):
            raise BindError(f"field {field!r} of a column is neither a name nor an index")
        if field is not None and format == "raw":
            raise BindError(f"field {field!r}: a raw file has one column", fix="leave field, offset or elements out")
        if elements is not None and len(listed) != 1:
            raise BindError(f"elements={elements} names a part of one file, but the column has {len(listed)} paths")
        object.__setattr__(self, "paths", tuple(os.fspath(path) for path in listed))
        object.__setattr__(self, "dtype", None if dtype is None else memtype(dtype))
        object.__setattr__(self, "offset", offset)
        object.__setattr__(self, "elements", elements)
        object.__setattr__(self, "format", format)
        object.__setattr__(self, "field", field if field is None or isinstance(field, str) else int(field))


def is_file(value: object) -> bool:
    """Whether one file is named: a path, a Column, or what stands for a file (a table on disk)."""
    return isinstance(value, (str, Column)) or hasattr(value, "__fspath__")


def raw(
    path: PathLike | Sequence[PathLike],
    dtype: MemType | str | np.dtype[Any] | type,
    offset: int = 0,
    elements: int | None = None,
) -> Column:
    """A column of bare elements, whatever the files are called (the bytes of a ``.npy`` file too)."""
    return Column(path, dtype, offset, elements, "raw")


def npy(path: PathLike | Sequence[PathLike]) -> Column:
    """A column of ``.npy`` files, whatever they are called."""
    return Column(path, format="npy")


def column(path: PathLike | Sequence[PathLike], field: Field) -> Column:
    """One column of files that hold several: ``vyre.column("points.npy", 3)``, ``vyre.column("trades.npy", "price")``.

    Args:
        path: a file, a directory of files, or several: one stream, with this column of each.
        field: see ``Column``.
    """
    return Column(path, field=field)


class NpyHeader(NamedTuple):
    """Where the elements of a column of a ``.npy`` file are.

    Attributes:
        dtype, elements: what they are, and how many.
        offset: bytes from the start of the file to the first element, or to the first row.
        width: bytes from one element to the next; the size of an element unless it is a field of rows.
        inside: bytes from the start of a row to the element.
    """

    dtype: MemType
    elements: int
    offset: int
    width: int
    inside: int = 0


def npy_fields(fd: int, path: str, size: int) -> list[str]:
    """Names of the fields of a ``.npy`` file with structured elements; none where elements are plain.

    Raises:
        StreamError: as for ``read_npy_header``.
    """
    return list(_npy_array(fd, path, size).dtype.names or ())


def read_npy_header(fd: int, path: str, size: int, field: Field | None = None, name: str = "") -> NpyHeader:
    """Find a column in a ``.npy`` file of ``size`` bytes. Nothing in it is executed and nothing unpickled.

    Args:
        field: as for ``Column``.
        name: of the input; the field that is taken when elements are structured and ``field`` is None.
    Raises:
        StreamError: not a ``.npy`` file, cut short, or elements that cannot be read where they lie; with the way out.
    Source:
        numpy.lib.format, "Format Version 1.0" to "3.0".
    """
    array = _npy_array(fd, path, size)
    if array.dtype.names is not None:
        return _structured(path, array, field, name)
    found = _npy_memtype(path, array.dtype)
    if field is not None:
        return _of_the_last_axis(path, array, field, found)
    if array.fortran_order and sum(extent != 1 for extent in array.shape) > 1:
        raise StreamError(
            f"{path}: shape {array.shape} in Fortran order: elements are numbered in C order",
            fix=f"np.save({path!r}, np.ascontiguousarray(np.load({path!r})))",
        )
    return NpyHeader(found, math.prod(array.shape), array.offset, found.size)


def _structured(path: str, array: _NpyArray, field: Field | None, name: str) -> NpyHeader:
    """A field of structured elements: rows of the file's own width."""
    names = array.dtype.names
    assert names is not None
    listed = f"{len(names)} fields {', '.join(names)}" if len(names) <= 12 else f"{len(names)} fields {names[0]}, ..."
    if field is None:
        if name not in names:
            raise StreamError(
                f"{path}: structured elements of {listed}" + (f"; none is called {name}" if name else ""),
                fix=f"name one: vyre.column({path!r}, {names[0]!r}), on the command line {path}:{names[0]}",
            )
        field = name
    dtype, inside = array.dtype, 0
    steps = [field] if isinstance(field, int) or field in names else field.split(".")
    for step in steps:
        below = _step(dtype, step)
        if below is None:
            raise StreamError(f"{path}: structured elements have no field {field!r}", fix=f"there are {listed}")
        dtype, inside = below[0], inside + below[1]
    if dtype.names is not None or dtype.subdtype is not None:
        parts = dtype.names or [str(i) for i in range(math.prod(dtype.shape))]
        raise StreamError(f"{path}: field {field!r} has {len(parts)} parts", fix=f"name one: '{field}.{parts[0]}', ...")
    return NpyHeader(_npy_memtype(path, dtype), math.prod(array.shape), array.offset, array.dtype.itemsize, inside)


def _step(dtype: np.dtype[Any], step: Field) -> tuple[np.dtype[Any], int] | None:
    """Type and place of a field in a structure, or of an element in a field that is an array; None where there is none."""
    if dtype.subdtype is not None:
        base, shape = dtype.subdtype
        at = int(step) if isinstance(step, int) or step.isdecimal() else -1
        return (base, at * base.itemsize) if 0 <= at < math.prod(shape) else None
    if dtype.names is None or dtype.fields is None:
        return None
    if step not in dtype.names and (isinstance(step, int) or step.isdecimal()):
        if not 0 <= int(step) < len(dtype.names):
            return None
        step = dtype.names[int(step)]
    found = dtype.fields.get(str(step))
    return None if found is None else (found[0], found[1])


def _of_the_last_axis(path: str, array: _NpyArray, field: Field, found: MemType) -> NpyHeader:
    """Column ``field`` of an array of two or more dimensions: rows as long as its last axis."""
    shape = array.shape
    if isinstance(field, str) and not field.isdecimal():
        raise StreamError(f"{path}: has no field {field!r}: its elements are plain {found.name}", fix="give an index")
    if len(shape) < 2:
        raise StreamError(f"{path}: shape {shape} has no column {field}: it has one", fix="leave the index out")
    index = int(field)
    if not 0 <= index < shape[-1]:
        raise StreamError(f"{path}: shape {shape} has no column {field}", fix=f"the columns are 0 to {shape[-1] - 1}")
    elements = math.prod(shape[:-1])
    if not array.fortran_order:
        return NpyHeader(found, elements, array.offset, shape[-1] * found.size, index * found.size)
    if len(shape) > 2:
        raise StreamError(
            f"{path}: shape {shape} in Fortran order: rows are numbered in C order",
            fix=f"np.save({path!r}, np.ascontiguousarray(np.load({path!r})))",
        )
    return NpyHeader(found, elements, array.offset + index * elements * found.size, found.size)


class _NpyArray(NamedTuple):
    """What a header says, checked against the size of the file."""

    dtype: np.dtype[Any]
    shape: tuple[int, ...]
    fortran_order: bool
    offset: int


def _npy_array(fd: int, path: str, size: int) -> _NpyArray:
    """Read a header strictly."""
    start = os.pread(fd, 12, 0)
    if start[:6] != NPY_MAGIC:
        raise StreamError(
            f"{path}: not a .npy file: begins with {start[:6].hex(' ') or 'nothing'}, not 93 4e 55 4d 50 59",
            fix=f"for a file of bare elements write vyre.raw({path!r}, dtype)",
        )
    version = tuple(start[6:8])
    if version not in ((1, 0), (2, 0), (3, 0)):
        raise StreamError(f"{path}: .npy version {'.'.join(map(str, version)) or 'missing'} is none of 1.0, 2.0, 3.0")
    prefix, pattern = (10, "<H") if version == (1, 0) else (12, "<I")
    if len(start) < prefix:
        raise StreamError(f"{path}: .npy header cut short: the file has {size} bytes")
    (length,) = struct.unpack(pattern, start[8:prefix])
    if length > NPY_HEADER_MAX:
        raise StreamError(f"{path}: .npy header of {length} bytes is longer than {NPY_HEADER_MAX}")
    text = os.pread(fd, length, prefix)
    if len(text) != length:
        raise StreamError(f"{path}: .npy header cut short: {length} bytes from offset {prefix}, file has {size} bytes")
    try:
        header = ast.literal_eval(text.decode("utf-8" if version == (3, 0) else "latin-1").strip())
    except (ValueError, SyntaxError, UnicodeDecodeError, MemoryError, RecursionError) as error:
        raise StreamError(f"{path}: .npy header is not a dictionary of plain values") from error
    if not isinstance(header, dict) or header.keys() != {"descr", "fortran_order", "shape"}:
        raise StreamError(f"{path}: .npy header needs exactly the keys descr, fortran_order, shape")
    shape = header["shape"]
    if not isinstance(shape, tuple) or not all(type(extent) is int and extent >= 0 for extent in shape):
        raise StreamError(f"{path}: .npy shape {shape!r} is not a tuple of lengths")
    dtype = _npy_dtype(path, header["descr"])
    if header["fortran_order"] not in (False, True):
        raise StreamError(f"{path}: .npy fortran_order {header['fortran_order']!r} is neither True nor False")
    elements = math.prod(shape)
    offset = prefix + length
    expected = offset + elements * dtype.itemsize
    if size != expected:
        found = memtype_of(dtype)
        raise StreamError(
            f"{path}: {'cut short' if size < expected else 'longer than its array'}: shape {shape} of "
            f"{found.name if found else dtype} needs {expected} bytes, the file has {size}",
            fix=""
            if size < expected or found is None
            else f"to read the first array only: vyre.raw({path!r}, {found.name!r}, {offset}, {elements})",
        )
    return _NpyArray(dtype, shape, bool(header["fortran_order"]), offset)


def _npy_dtype(path: str, descr: object) -> np.dtype[Any]:
    """The NumPy type of a header's ``descr``; refuses Python objects, whatever else is in it."""
    try:
        if isinstance(descr, str):
            dtype = np.dtype(descr if re.fullmatch(r"[<>|=]?[a-zA-Z?]\d*(\[[\w/]+\])?", descr) else "unknown")
        elif isinstance(descr, list) and descr:
            dtype = np.lib.format.descr_to_dtype(descr)
        else:
            raise TypeError
    except (TypeError, ValueError, IndexError, RecursionError, OverflowError) as error:
        raise StreamError(f"{path}: .npy element type {descr!r} is unknown") from error
    if dtype.hasobject:
        raise StreamError(
            f"{path}: Python objects (pickled): reading them could run code, so they are never loaded",
            fix="save plain numbers: np.save(path, array.astype(np.float64))",
        )
    return dtype


def _npy_memtype(path: str, dtype: np.dtype[Any]) -> MemType:
    """The memory type of plain elements; refuses the other byte order, times, text, ... by name."""
    found = memtype_of(dtype)
    if found is not None:
        return found
    swapped = memtype_of(dtype.newbyteorder("=")) if dtype.byteorder in "<>" else None
    if swapped is not None and sys.byteorder == "little":
        raise StreamError(
            f"{path}: {dtype.str} has big-endian elements",
            fix=f"np.save({path!r}, np.load({path!r}).astype(np.{dtype.newbyteorder('=').name}))",
        )
    if dtype.kind in "mM":
        raise StreamError(f"{path}: {dtype} is none of VIR0's types", fix="save its integers: array.view(np.int64)")
    raise StreamError(
        f"{path}: elements of type {dtype} ({dtype.str}) are none of VIR0's types",
        fix=f"save as one of {', '.join(t.name for t in MemType if t is not MemType.bf16)}, or as several columns",
    )


def npy_header(memtype: MemType, elements: int) -> bytes:
    """A version 1.0 header of 128 bytes for a 1-D array, so that it can be written again with another length.

    Raises:
        BindError: bf16, which ``.npy`` cannot name.
    """
    if memtype is MemType.bf16:
        raise BindError(".npy has no bf16", fix="write raw, or store f32 or f16")
    text = f"{{'descr': '{numpy_dtype(memtype).str}', 'fortran_order': False, 'shape': ({elements},), }}"
    body = text.encode("latin-1").ljust(117) + b"\n"
    return NPY_MAGIC + bytes((1, 0)) + struct.pack("<H", len(body)) + body
