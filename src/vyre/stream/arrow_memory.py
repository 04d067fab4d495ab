"""Tables and series in memory that speak Arrow's C stream: Polars, pyarrow, pandas, DuckDB; used where they lie.

Owns: their columns as arrays, one for each chunk. Leaves to others: types (arrow), what a program does with several
arrays that are one column (source).
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vyre.program.opcodes import MemType
from vyre.stream.arrow import memtype_in, missing_column, pyarrow, refuse_nulls
from vyre.stream.formats import numpy_dtype


@dataclass(frozen=True, slots=True, eq=False)
class Chunked:
    """One column in several arrays, one behind the other.

    Attributes:
        arrays: contiguous, aligned, all of one dtype.
        notes: what was copied or is taken for something else, one line each.
    """

    arrays: list[NDArray[Any]]
    notes: list[str] = field(default_factory=list)

    def joined(self) -> NDArray[Any]:
        """One array: the only one there is, or a copy of them all."""
        return self.arrays[0] if len(self.arrays) == 1 else np.concatenate(self.arrays)


def is_table(value: object) -> bool:
    """Whether a value is a table: it speaks Arrow's C stream and has columns."""
    return hasattr(value, "__arrow_c_stream__") and (hasattr(value, "columns") or hasattr(value, "schema"))


def is_series(value: object) -> bool:
    """Whether a value is one column that speaks Arrow and is no NumPy array in disguise (as pandas' mostly are)."""
    speaks = hasattr(value, "__arrow_c_stream__") or hasattr(value, "__arrow_c_array__")
    return speaks and not isinstance(getattr(value, "dtype", None), np.dtype) and not is_table(value)


def columns_of(table: Any, names: Sequence[str]) -> dict[str, Chunked | NDArray[Any]]:
    """Columns of a table by name. pandas' columns over NumPy arrays are these arrays, NaN included.

    Raises:
        BindError: a column that is not there, nulls, or a type that memory cannot hold as it lies; with the cast to write.
    """
    kind = f"the {type(table).__name__}"
    found: dict[str, Chunked | NDArray[Any]] = {}
    pandas = sys.modules.get("pandas")
    if pandas is not None and isinstance(table, pandas.DataFrame):
        for name in names:
            if name in table.columns and isinstance(table[name].dtype, np.dtype):
                found[name] = table[name].to_numpy()
        names = [name for name in names if name not in found]
        if not names:
            return found
        table = table[[name for name in names if name in table.columns]]
    arrow = pyarrow(kind).table(table)
    for name in names:
        if name not in arrow.column_names:
            columns = [*found, *arrow.column_names]
            raise missing_column(kind, name, columns, f"rename it, or give each input: {name}=table[...]")
        found[name] = _chunked(f"{kind}: column {name!r}", arrow.column(name))
    return found


def series_of(name: str, value: Any) -> Chunked:
    """The arrays of a series, a chunked array or an array of Arrow's.

    Args:
        name: of the input.
    Raises:
        BindError: nulls, or a type that memory cannot hold as it lies; with the cast to write.
    """
    pa = pyarrow(f"input {name}, a {type(value).__name__},")
    if not isinstance(value, pa.ChunkedArray):
        value = pa.chunked_array(value) if hasattr(value, "__arrow_c_stream__") else pa.chunked_array([pa.array(value)])
    return _chunked(f"input {name}", value)


def _chunked(what: str, column: Any) -> Chunked:
    pa = pyarrow(what)
    notes: list[str] = []
    if pa.types.is_boolean(column.type):
        refuse_nulls(what, column.null_count)
        arrays = [chunk.to_numpy(zero_copy_only=False) for chunk in column.chunks]
        notes.append(f"{what}: {len(column):,} bytes copied once, because Arrow packs bool eight to a byte")
        return Chunked([array for array in arrays if array.size] or [np.empty(0, np.bool_)], notes)
    dtype, note = memtype_in(what, column.type)
    refuse_nulls(what, column.null_count)
    if note:
        notes.append(f"{what}: {note}")
    arrays = [_array(chunk, dtype, what, notes) for chunk in column.chunks if len(chunk)]
    return Chunked(arrays or [np.empty(0, numpy_dtype(dtype))], notes)


def _array(chunk: Any, dtype: MemType, what: str, notes: list[str]) -> NDArray[Any]:
    """The elements of one chunk where they are; they stay alive with the array."""
    array = np.frombuffer(chunk.buffers()[1], numpy_dtype(dtype), len(chunk), chunk.offset * dtype.size)
    if not array.flags.aligned:
        notes.append(f"{what}: {array.nbytes:,} bytes copied once, because they are not aligned")
        array = array.copy()
    return array
