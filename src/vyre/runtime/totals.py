"""Totals of a stream: accumulators folded over its parts, to the same bits whatever the parts were.

Owns: the fold over parts. Leaves to others: parts and their order (streaming), the fold inside a part (engines).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from vyre.engines.base import ItemResult
from vyre.engines.fold import ABSENT, halve
from vyre.program.ir import Accumulator, Program
from vyre.program.opcodes import SPAN, TILE, AccKind, MemType
from vyre.stream.formats import numpy_dtype

FoldOnto: TypeAlias = Callable[[int, int, int, int], int]


class Totals:
    """Accumulators over all parts so far. Float sums are folded as decision 2 says, whatever the chunks were."""

    def __init__(self, program: Program, fold_onto: FoldOnto | None = None) -> None:
        self._program = program
        self._values: list[Any] = [identity_of(a) for a in program.accumulators]
        self._sums = {i: SpanFold(fold_onto) for i, a in enumerate(program.accumulators) if is_float_sum(a)}

    def add(self, first: int, part: ItemResult) -> None:
        """Take in the part that starts at element ``first``; parts come in order."""
        for i, (acc, value) in enumerate(zip(self._program.accumulators, part.accumulators, strict=True)):
            if i in self._sums:
                self._sums[i].add(first // TILE, part.tile_sums[i])
            else:
                self._values[i] = combine(acc, self._values[i], value)

    def skip(self, first: int, count: int) -> None:
        """Go on without the part that starts at element ``first``."""
        absent = np.full(-(-count // TILE), ABSENT)
        for fold in self._sums.values():
            fold.add(first // TILE, absent)

    def values(self) -> list[NDArray[Any]]:
        """One 0-d array (histogram: i64[bins]) per accumulator."""
        return [
            np.asarray(self._sums[i].total()) if i in self._sums else np.array(value)
            for i, value in enumerate(self._values)
        ]


class SpanFold:
    """Folds tile results that come in order, a few at a time: spans halved, added left to right from +0.0.

    Args:
        fold_onto: the compiled fold (engines/spans.py); None leaves it to NumPy. NumPy gives up the GIL for
            arrays of this length, which beside a busy thread costs 5 ms each time.
    """

    def __init__(self, fold_onto: FoldOnto | None = None) -> None:
        # the number of the next tile, the total of complete spans, the tiles of the span that is not complete
        self._state = np.zeros(2 + SPAN, np.uint64)
        self._sum = self._state[1:2].view(np.float64)
        self._span = self._state[2:].view(np.float64)
        self._address = self._state.ctypes.data
        self._fold_onto = fold_onto

    @property
    def _next(self) -> int:
        return int(self._state[0])

    def add(self, tile: int, sums: NDArray[np.float64]) -> None:
        assert tile == self._next, "parts come in order"
        if self._fold_onto is not None:
            self._fold_onto(self._address, sums.ctypes.data, sums.strides[0], len(sums))
            return
        done = 0
        while done < len(sums):
            at = self._next
            n = min(SPAN - at % SPAN, len(sums) - done)
            self._span[at % SPAN : at % SPAN + n] = sums[done : done + n]
            self._state[0] = at + n
            done += n
            if (at + n) % SPAN == 0:
                self._sum[0] = self._with(SPAN)

    def total(self) -> np.float64:
        present = self._next % SPAN
        return np.float64(self._with(present) if present else self._sum[0])

    def _with(self, present: int) -> float:
        span = np.full(SPAN, ABSENT)
        span[:present] = self._span[:present]
        total = float(self._sum[0]) + float(halve(span.reshape(1, SPAN))[0])
        return total if total == total else float("nan")


def is_float_sum(acc: Accumulator) -> bool:
    return acc.kind is AccKind.sum and acc.dtype is MemType.f64


def identity_of(acc: Accumulator) -> Any:
    """What an accumulator over nothing is."""
    dtype = numpy_dtype(acc.dtype)
    if acc.kind is AccKind.histogram:
        return np.zeros(acc.bins, np.int64)
    if acc.kind in (AccKind.sum, AccKind.count):
        return dtype.type(0)
    low = acc.kind is AccKind.max
    if dtype.kind == "f":
        return dtype.type(-np.inf if low else np.inf)
    info = np.iinfo(dtype)
    return dtype.type(info.min if low else info.max)


def combine(acc: Accumulator, a: Any, b: Any) -> Any:
    """Two results of an accumulator that is free of order."""
    with np.errstate(over="ignore", invalid="ignore"):
        if acc.kind in (AccKind.sum, AccKind.count, AccKind.histogram):
            return a + b
        if numpy_dtype(acc.dtype).kind == "f":
            return _float_extreme(acc, a, b)
        return min(a, b) if acc.kind is AccKind.min else max(a, b)


def _float_extreme(acc: Accumulator, a: Any, b: Any) -> Any:
    """f32.min and its like: NaN if either is, canonical; -0 < +0."""
    dtype = numpy_dtype(acc.dtype).type
    if a != a or b != b:
        return dtype(np.nan)
    if a == b:
        negative = np.signbit(a) or np.signbit(b) if acc.kind is AccKind.min else np.signbit(a) and np.signbit(b)
        return dtype(-0.0) if a == 0 and negative else (dtype(0.0) if a == 0 else a)
    return min(a, b) if acc.kind is AccKind.min else max(a, b)
