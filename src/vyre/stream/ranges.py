"""Many places of files as one column: what random access to a data set reads.

Owns: the checks of what a caller lists. Leaves to others: opening and cutting (source), reading (pump).
"""

from __future__ import annotations

import os
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

import numpy as np

from vyre.errors import BindError
from vyre.program.opcodes import MemType
from vyre.stream.formats import Column, PathLike


@dataclass(frozen=True, slots=True, init=False)
class Ranges(Column):
    """See ``ranges``.

    Attributes:
        places: (number of the path, offset, bytes) of each range, in the order of the elements.
    """

    places: tuple[tuple[int, int, int], ...]

    def __init__(self, places: Iterable[tuple[PathLike, int, int]], dtype: Any = None) -> None:
        numbers: dict[str, int] = {}
        found = []
        for at, (path, offset, size) in enumerate(places):
            if offset < 0 or size < 0:
                raise BindError(f"range {at}: offset {offset} and bytes {size} cannot be negative")
            found.append((numbers.setdefault(os.fspath(path), len(numbers)), int(offset), int(size)))
        if not found:
            raise BindError("a column of no ranges", fix="give at least one (path, offset, bytes)")
        Column.__init__(self, list(numbers), dtype, format="raw")
        object.__setattr__(self, "places", tuple(found))


def ranges(
    places: Iterable[tuple[PathLike, int, int]], dtype: MemType | str | np.dtype[Any] | type | None = None
) -> Ranges:
    """A column whose elements lie in many places of raw files, one behind the other in the order given.

    Ranges that begin and end at blocks of 4,096 bytes are read around the page cache where the file system can; others
    through it. A range may occur twice, and ranges may overlap.

    Args:
        places: (path, offset, bytes) of each range; a whole number of elements.
        dtype: element type; None takes the program's.
    """
    return Ranges(places, dtype)
