"""Fields out of rows that were read into memory: the one copy that a column costs when its elements lie apart.

Owns: that copy. Leaves to others: where rows are (source), how they come (reader), rows that workers read themselves.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import NDArray

from vyre.stream.formats import numpy_dtype
from vyre.stream.source import Source


def take_field(rows: memoryview, source: Source, name: str, count: int) -> NDArray[Any]:
    """The elements of input ``name``, one behind the other, out of ``count`` rows."""
    take = source.takes[name]
    width = source.strips[take.strip].width
    return np.ndarray((count,), numpy_dtype(take.dtype), rows, take.offset, (width,)).copy()
