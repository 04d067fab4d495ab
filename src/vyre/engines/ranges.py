"""Elements that lie in a file, as an array: for engines that want arrays, and for the description of faults."""

from __future__ import annotations

import os
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import FileRange
from vyre.program.opcodes import MemType
from vyre.stream.formats import numpy_dtype

_BLOCK_BYTES: Final = 1 << 20


def read_range(place: FileRange, dtype: MemType, count: int) -> NDArray[Any] | None:
    """``count`` elements from a file, or None when it ends before them."""
    found = np.empty(count, numpy_dtype(dtype))
    width = place.width or dtype.size
    at_once = max(1, _BLOCK_BYTES // width)
    for first in range(0, count, at_once):
        n = min(at_once, count - first)
        rows = _read(place.fd, n * width, place.offset + first * width)
        if rows is None:
            return None
        found[first : first + n] = np.ndarray((n,), found.dtype, rows, place.inside, (width,))
    return found


def _read(fd: int, size: int, offset: int) -> bytearray | None:
    data = bytearray()
    while len(data) < size:
        more = os.pread(fd, size - len(data), offset + len(data))
        if not more:
            return None
        data += more
    return data
