"""Where arrays are.

Owns: the address of an array's first element, read without an object for it. Leaves to others: what is done with it (engine,
items).
"""

from __future__ import annotations

import ctypes
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import PagedTable

MEMORY_WORDS: Final = (ctypes.c_uint64 * (1 << 45)).from_address(0)
"""All memory that a process can have, as words. An object of its own for each address would take three times as long."""


def _data_offset() -> int | None:
    """Where in an array object NumPy keeps the address of its data, found by looking; None when it is not there.

    Asking for it through an attribute takes a microsecond, which is longer than running a small program.
    """
    offset = object.__basicsize__
    samples = [np.empty(n, np.uint8) for n in (1, 100, 10_000)]
    found = [MEMORY_WORDS[id(a) + offset >> 3] == a.ctypes.data for a in samples]
    return offset if all(found) else None


OFFSET: Final = _data_offset()


def address_of(a: NDArray[Any]) -> int:
    """Where an array's first element is."""
    if OFFSET is None or type(a) is not np.ndarray:
        return int(a.ctypes.data)
    return MEMORY_WORDS[id(a) + OFFSET >> 3]


def table_at(table: NDArray[Any] | PagedTable) -> tuple[int, int]:
    """Address and elements of a table; of one on disk the address of what describes it."""
    if isinstance(table, PagedTable):
        return table.address, table.size
    return address_of(table), table.size
