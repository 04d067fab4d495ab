"""Fields out of rows: the one copy that a column costs when its elements do not lie one behind the other.

Owns: that copy, in blocks that stay in the cache. Leaves to others: where rows are (source), how cold ones come (reader).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.ring.layout import OperandKind
from vyre.stream.formats import numpy_dtype
from vyre.stream.pread import read_exactly
from vyre.stream.reader import Loaded
from vyre.stream.source import Source, Take

BLOCK_BYTES: Final = 256 << 10
"""Rows of a hot file that are read at a time: what stays in the second-level cache until its fields have been taken."""


class Rows:
    """Takes the fields of one chunk after another out of rows. One thread at a time.

    Attributes:
        copied: bytes of fields so far.
    """

    def __init__(self, source: Source) -> None:
        self._source = source
        self._block: NDArray[np.uint8] | None = None
        self.copied = 0

    def take(self, arrived: Loaded, strip: str, takes: Sequence[Take]) -> list[NDArray[Any]]:
        """One contiguous array for each of ``takes``, all fields of ``strip``, of the elements of a chunk.

        Rows that the reader left in their file, because it is in the page cache, are read here.

        Raises:
            StreamError: the file ended early, or the device failed.
        """
        count, width = arrived.chunk.count, self._source.strips[strip].width
        found = [np.empty(count, numpy_dtype(take.dtype)) for take in takes]
        if arrived.columns[strip].kind is not OperandKind.FILE:
            _copy(arrived.view(strip), width, takes, found, 0, count)
        else:
            (piece,) = self._source.pieces(strip, arrived.chunk.first, count)
            assert piece.file is not None
            at_once = max(1, BLOCK_BYTES // width)
            if self._block is None or self._block.size < at_once * width:
                self._block = np.empty(at_once * width, np.uint8)
            for first in range(0, count, at_once):
                n = min(at_once, count - first)
                block = self._block[: n * width].data
                read_exactly(piece.file, block, piece.offset + first * width)
                _copy(block, width, takes, found, first, n)
        self.copied += sum(array.nbytes for array in found)
        return found


def _copy(
    rows: memoryview, width: int, takes: Sequence[Take], found: Sequence[NDArray[Any]], first: int, count: int
) -> None:
    for take, target in zip(takes, found, strict=True):
        target[first : first + count] = np.ndarray((count,), target.dtype, rows, take.offset, (width,))
