"""User values become operands: arrays checked against declarations, parameters as their 64 bits (decisions 12, 13).

Owns: the rules for what may be bound to what, and their words when it may not. Leaves to others: files (stream),
descriptors (engines).
"""

from __future__ import annotations

import math
import struct
from collections.abc import Mapping, Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.engines.device_array import DeviceArray, is_on_device
from vyre.errors import BindError
from vyre.program.ir import Param, Program, Stream, Table
from vyre.program.opcodes import Access, MemType
from vyre.stream.arrow_memory import Chunked, is_series, series_of
from vyre.stream.formats import is_file, memtype_of, numpy_dtype

_INTEGERS: Final[dict[MemType, tuple[int, int]]] = {
    t: (-(1 << 8 * t.size - 1) if signed else 0, (1 << 8 * t.size - signed) - 1)
    for t, signed in (
        (MemType.i8, 1), (MemType.u8, 0), (MemType.i16, 1), (MemType.u16, 0),
        (MemType.i32, 1), (MemType.u32, 0), (MemType.i64, 1), (MemType.u64, 0),
    )
}  # fmt: skip


def on_device(role: str, declared: Stream | Table, value: Any, stream: int) -> DeviceArray:
    """A device array of the declared type; used where it is.

    Args:
        role: "input", "out for" or "table", for messages.
        stream: a CUDA stream of the engine's.
    Raises:
        BindError: it has another type, or its producer does not give it away.
    """
    a = DeviceArray(value, f"{role} {declared.name}", stream)
    if a.memtype is not declared.dtype and (a.memtype, declared.dtype) != (MemType.u16, MemType.bf16):
        raise BindError(
            f"{role} {declared.name} is a device array of {a.memtype.name}; the program has {declared.dtype.name}",
            fix="convert it on the device first",
        )
    return a


def output_on_device(declared: Stream, value: Any, count: int, stream: int, others: Mapping[str, Any]) -> DeviceArray:
    """A device array that the caller wants an output written to, in place.

    Args:
        others: operands by role and name; it may be exactly an input, but not lie across one.
    Raises:
        BindError: as ``on_device``; it may not be written to, has another length, or lies across another operand.
    """
    a = on_device("out for", declared, value, stream)
    if a.read_only:
        raise BindError(
            f"out for {declared.name} is read-only: its producer does not let others write to it",
            fix="leave it out and read the result, or pass an array of torch or CuPy",
        )
    if a.size != count:
        raise BindError(f"out for {declared.name} has {a.size} elements, the inputs have {count}")
    for name, other in others.items():
        if not isinstance(other, DeviceArray) or not a.overlaps(other):
            continue
        if name.startswith("input ") and (a.address, a.dtype.itemsize) == (other.address, other.dtype.itemsize):
            continue
        raise BindError(
            f"out for {declared.name} overlaps {name} without being the same elements",
            fix="write to memory of its own, or in place over an input of the same size of element",
        )
    return a


def table_on_device(table: Table, value: Any, stream: int) -> DeviceArray:
    """A device array for a table; one that the program updates is updated in place."""
    a = on_device("table", table, value, stream)
    if len(a.shape) != 1:
        raise BindError(f"table {table.name} has {len(a.shape)} dimensions and must have 1", fix="pass table.ravel()")
    if a.read_only and table.access is Access.atomic:
        raise BindError(
            f"table {table.name} is updated in place, and its producer does not let others write to it",
            fix="keep the table in an array of torch, CuPy or NumPy",
        )
    return a


def as_input(stream: Stream, value: object, notes: list[str]) -> NDArray[Any]:
    """The array behind a value given for an input: of the declared type, native order, C-contiguous, any shape.

    A strided array costs one copy, which ``notes`` then says. Lists and scalars are taken for small inputs.

    Raises:
        BindError: the type is another one, or it is no array at all.
    """
    want = numpy_dtype(stream.dtype)
    if type(value) is np.ndarray:
        a: NDArray[Any] = value
    elif isinstance(value, Chunked) or is_series(value):
        a = _joined(stream.name, value, notes)
    else:
        a = _array_of("input", stream.name, value, stream.dtype)
    if a.dtype is not want and a.dtype != want:
        a = _retyped("input", stream.name, a, stream.dtype)
    if not a.flags.c_contiguous or not a.flags.aligned:
        notes.append(f"input {stream.name}: {a.nbytes:,} bytes copied once, because it is strided or not aligned")
        a = np.array(a, order="C", copy=True)
    return a


def _joined(name: str, value: object, notes: list[str]) -> NDArray[Any]:
    """The column of a table or series of Arrow's as one array: where it is, unless it is in several chunks."""
    chunked = value if isinstance(value, Chunked) else series_of(name, value)
    a = chunked.joined()
    notes.extend(chunked.notes)
    if len(chunked.arrays) > 1:
        notes.append(f"input {name}: {a.nbytes:,} bytes copied once, because it is in {len(chunked.arrays)} chunks")
    return a


def as_table(table: Table, value: object) -> NDArray[Any]:
    """The memory behind a table: one-dimensional and, where the program updates it, the caller's own."""
    if type(value) is np.ndarray:
        a: NDArray[Any] = value
    elif is_file(value):
        raise BindError(
            f"table {table.name} is a file, and only session.run over arrays gathers from files",
            fix="use session.run with the inputs in memory, or pass the table as an array (numpy.load)",
        )
    else:
        a = _array_of("table", table.name, value, table.dtype)
    if a.dtype != numpy_dtype(table.dtype):
        a = _retyped("table", table.name, a, table.dtype)
    if a.ndim != 1:
        raise BindError(f"table {table.name} has {a.ndim} dimensions and must have 1", fix="pass table.ravel()")
    if table.access is Access.atomic:
        if (
            not isinstance(value, np.ndarray)
            or not a.flags.writeable
            or not a.flags.c_contiguous
            or not a.flags.aligned
        ):
            raise BindError(
                f"table {table.name} is updated in place and must be a writable, contiguous NumPy array, not "
                f"{_kind_of(value)}",
                fix="keep the table in an array of your own, for instance numpy.zeros(n, dtype)",
            )
    elif not a.flags.c_contiguous or not a.flags.aligned:
        a = np.array(a, order="C", copy=True)
    return a


def as_output(stream: Stream, value: object, count: int) -> NDArray[Any]:
    """An array that the caller wants an output written to."""
    want = numpy_dtype(stream.dtype)
    if not isinstance(value, np.ndarray):
        raise BindError(f"out for {stream.name} is {_kind_of(value)}, not a NumPy array")
    if value.dtype != want:
        raise BindError(
            f"out for {stream.name} has dtype {value.dtype}; the output is {stream.dtype.name}",
            fix=f"numpy.empty({count}, numpy.{want.name})",
        )
    if not value.flags.c_contiguous or not value.flags.writeable or not value.flags.aligned:
        raise BindError(f"out for {stream.name} must be contiguous, aligned and writable")
    if value.size != count:
        raise BindError(f"out for {stream.name} has {value.size} elements, the inputs have {count}")
    return value


def check_overlap(out: NDArray[Any], name: str, others: Mapping[str, NDArray[Any]], *, in_place: bool = True) -> None:
    """An output may be exactly an input's memory, element for element, but not lie across one.

    Args:
        in_place: False where not even that is allowed: outputs among themselves, and tables.
    """
    for other, a in others.items():
        if np.may_share_memory(out, a):
            same = out.ctypes.data == a.ctypes.data and out.itemsize == a.itemsize
            if not same or not in_place:
                raise BindError(
                    f"out for {name} overlaps {other}" + (" without being the same elements" if in_place else ""),
                    fix="write to memory of its own, or in place over an input of the same size of element",
                )


def count_of(program: Program, arrays: Sequence[NDArray[Any]], elements: int | None) -> int:
    """The number of elements of an item: what all inputs agree on, or ``elements`` where there is no input.

    Raises:
        BindError: two lengths differ, or there is nothing to take the number from.
    """
    if not arrays:
        if elements is None:
            raise BindError(
                f"program {program.name} has no inputs, so it does not know how many elements to run over",
                fix="pass elements=N",
            )
        if isinstance(elements, bool) or not isinstance(elements, (int, np.integer)) or elements < 0:
            raise BindError(f"elements={elements!r}: it must be an integer of at least 0")
        return int(elements)
    count = int(arrays[0].size)
    for stream, a in zip(program.inputs[1:], arrays[1:], strict=True):
        if a.size != count:
            raise BindError(
                f"inputs of program {program.name} differ in length: {program.inputs[0].name} has {count} elements, "
                f"{stream.name} has {a.size}",
                fix="pass equal lengths; nothing is broadcast, a uniform value is a parameter",
            )
    if elements is not None and elements != count:
        raise BindError(f"elements={elements} given, but the inputs have {count}", fix="leave elements out")
    return count


def as_param(param: Param, value: object) -> int:
    """The 64 bits of a parameter.

    Integers must fit; an integer may stand for a float, a float never for an integer; f64 is rounded into f32, but a
    finite value that would become infinite is refused. A bool is taken for a bool only.

    Raises:
        BindError: any of that.
    """
    t = param.dtype
    if isinstance(value, np.ndarray) and value.ndim == 0:
        value = value[()]
    if isinstance(value, (bool, np.bool_)):
        if t is not MemType.bool:
            raise BindError(
                f"parameter {param.name} is {t.name} and was given the bool {value}", fix=f"pass {int(value)}"
            )
        return int(value)
    if t is MemType.bool:
        raise BindError(f"parameter {param.name} is a bool and was given {value!r}", fix="pass True or False")
    if isinstance(value, (int, np.integer)):
        number = int(value)
        if t in _INTEGERS:
            low, high = _INTEGERS[t]
            if not low <= number <= high:
                raise BindError(f"parameter {param.name} = {number} does not fit {t.name}, which holds {low} to {high}")
            return number & ((1 << 8 * t.size) - 1)
        return _float_bits(param, number)
    if isinstance(value, (float, np.floating)):
        if t in _INTEGERS:
            raise BindError(f"parameter {param.name} is {t.name} and was given the float {value!r}", fix="pass an int")
        return _float_bits(param, float(value))
    raise BindError(f"parameter {param.name} is {_kind_of(value)}; it takes one {t.name}")


def _float_bits(param: Param, value: float) -> int:
    try:
        wide = float(value)
    except OverflowError:
        raise BindError(f"parameter {param.name} = {value} does not fit {param.dtype.name}") from None
    if param.dtype is MemType.f64:
        return int(struct.unpack("<Q", struct.pack("<d", wide))[0])
    try:
        return int(struct.unpack("<I", struct.pack("<f", wide))[0])
    except OverflowError:
        assert math.isfinite(wide)
        raise BindError(f"parameter {param.name} = {value!r} is finite and would overflow f32") from None


def _array_of(role: str, name: str, value: object, want: MemType) -> NDArray[Any]:
    """An array from whatever carries one."""
    if isinstance(value, np.ma.MaskedArray):
        raise BindError(f"{role} {name} is a masked array, whose mask no program sees", fix=f"{name}.filled(value)")
    if isinstance(value, np.ndarray):
        return value.view(np.ndarray)
    if is_on_device(value):
        raise BindError(
            f"{role} {name} lies in device memory, which this engine cannot read",
            fix="open a session with engine='cuda', or copy it to the host",
        )
    if isinstance(value, (list, tuple, int, float, np.generic)):
        return _small(role, name, value, want)
    for take in (_from_dlpack, _from_array, _from_buffer):
        found = take(value)
        if found is not None:
            return found
    raise BindError(
        f"{role} {name} is {_kind_of(value)}, which carries no array",
        fix="pass an array, a buffer, a list of numbers, or a path",
    )


def _from_dlpack(value: Any) -> NDArray[Any] | None:
    if not hasattr(value, "__dlpack__"):
        return None
    try:
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError):
        return None


def _from_array(value: Any) -> NDArray[Any] | None:
    return np.asarray(value) if hasattr(value, "__array__") or hasattr(value, "__array_interface__") else None


def _from_buffer(value: Any) -> NDArray[Any] | None:
    try:
        return np.asarray(memoryview(value))
    except (TypeError, ValueError):
        return None


def _small(role: str, name: str, value: Any, want: MemType) -> NDArray[Any]:
    """Lists and scalars: integers must fit, floats do not become integers."""
    try:
        a = np.asarray(value)
    except (ValueError, OverflowError) as error:
        raise BindError(f"{role} {name}: {error}") from None
    if a.size == 0:
        return np.empty(a.shape, numpy_dtype(want))
    if a.dtype == object or a.dtype.kind not in "biuf":
        raise BindError(f"{role} {name} holds {a.dtype} values, not numbers that {want.name} could hold")
    to = numpy_dtype(want)
    if a.dtype.kind == "b" and want is not MemType.bool:
        raise BindError(f"{role} {name} is {want.name} and was given bools", fix="pass numbers")
    if want in _INTEGERS:
        low, high = _INTEGERS[want]
        if a.dtype.kind == "f":
            raise BindError(f"{role} {name} is {want.name} and was given floats", fix="pass integers")
        if int(a.min()) < low or int(a.max()) > high:
            raise BindError(
                f"{role} {name}: {int(a.min())} to {int(a.max())} does not fit {want.name} ({low} to {high})"
            )
    elif want is MemType.bool and a.dtype.kind != "b":
        raise BindError(f"{role} {name} is a bool and was given {a.dtype} values", fix="pass True and False")
    elif want is MemType.bf16:
        raise BindError(f"{role} {name} is bf16, which lists cannot give", fix="pass an array of dtype bfloat16")
    with np.errstate(over="ignore"):
        b = np.array(a, to, order="C")
    if to.kind == "f" and not np.array_equal(np.isfinite(a), np.isfinite(b)):
        raise BindError(f"{role} {name} holds a finite value that would overflow {want.name}")
    return b


def _retyped(role: str, name: str, a: NDArray[Any], want: MemType) -> NDArray[Any]:
    """The same memory where only the dtype's name differs (bfloat16), else a refusal with the cast to write."""
    if want is MemType.bf16 and memtype_of(a.dtype) is MemType.bf16:
        return a.view(np.uint16)
    to = numpy_dtype(want).name
    fix = f"{name}.astype(numpy.{to})" if want is not MemType.bf16 else f"{name}.astype(ml_dtypes.bfloat16)"
    if not a.dtype.isnative:
        raise BindError(f"{role} {name} has the other byte order ({a.dtype.str})", fix=f"{name}.astype(numpy.{to})")
    raise BindError(f"{role} {name} has dtype {a.dtype}; the program takes {want.name}", fix=fix)


def _kind_of(value: object) -> str:
    return "None" if value is None else f"a {type(value).__name__}"
