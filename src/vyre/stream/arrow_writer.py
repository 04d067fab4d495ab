"""Record batches of results, in Arrow's IPC format, through a function that writes bytes.

Owns: schema and batches. Leaves to others: the file (sink).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from vyre.program.opcodes import MemType
from vyre.stream.arrow import arrow_type, pyarrow


class ArrowWriter:
    """Writes a table batch by batch: as a file, or, where the path ends in ``.arrows``, as a stream.

    Raises:
        BindError: pyarrow is missing, or Arrow has no type for a column.
    """

    def __init__(self, path: str, columns: Sequence[tuple[str, MemType]], write: Callable[[memoryview], None]) -> None:
        pa = self._pa = pyarrow(f"{path}: writing Arrow files")
        types = [pa.bool_() if dtype is MemType.bool else arrow_type(dtype) for _, dtype in columns]
        self._schema = pa.schema([pa.field(name, t, False) for (name, _), t in zip(columns, types, strict=True)])
        new = pa.ipc.new_stream if path.endswith(".arrows") else pa.ipc.new_file
        self._writer = new(pa.PythonFile(_File(write), mode="w"), self._schema)

    def add(self, arrays: Sequence[NDArray[Any]]) -> None:
        """Write one batch. What ``write`` raises is raised here."""
        columns = [
            self._pa.array(np.ascontiguousarray(array).reshape(-1), field.type)
            for array, field in zip(arrays, self._schema, strict=True)
        ]
        self._writer.write_batch(self._pa.record_batch(columns, schema=self._schema))

    def end(self) -> None:
        """Write the footer."""
        self._writer.close()


class _File:
    """What pyarrow asks of a file that is written from front to back."""

    closed = False

    def __init__(self, write: Callable[[memoryview], None]) -> None:
        self._write = write

    def write(self, data: Any) -> int:
        view = memoryview(data).cast("B")
        self._write(view)
        return len(view)

    def flush(self) -> None:
        pass

    def close(self) -> None:
        pass
