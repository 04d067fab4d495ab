"""The order in which a float sum is added up: part of the format, not of an engine (decision 2).

Owns: the halving tree of a tile and of a span, and the fold of tile results into one sum. Leaves to others: the
partial of each element (engines) and which tiles there are (streams).
"""

from __future__ import annotations

from typing import Any, Final

import numpy as np
from numpy.typing import NDArray

from vyre.program.opcodes import SPAN

ABSENT: Final = -0.0  # x + -0.0 is x for every x, also for both zeros


def halve(rows: NDArray[Any]) -> NDArray[np.float64]:
    """Add up each row: x[i] += x[i + s] for i < s, with s = width / 2 .. 1.

    Args:
        rows: f64[n, width], width a power of two. Not changed.
    Returns:
        f64[n].
    """
    width = rows.shape[1]
    with np.errstate(all="ignore"):
        while width > 1:
            width //= 2
            rows = rows[:, :width] + rows[:, width : 2 * width]
    return rows[:, 0].astype(np.float64, copy=True)


def fold_spans(tile_sums: NDArray[np.float64], first_tile: int) -> float:
    """The sum over consecutive tiles: every span halved, spans added left to right from +0.0.

    Spans are aligned to global tile numbers: span k is tiles [1024 k, 1024 (k + 1)), absent ones count as -0.0.

    Args:
        tile_sums: f64[tiles], the result of tile ``first_tile`` first.
        first_tile: global number of the first of them.
    Returns:
        The sum; of no tiles +0.0. A NaN is the canonical one.
    """
    before = first_tile % SPAN
    spans = -(-(before + len(tile_sums)) // SPAN) if len(tile_sums) else 0
    padded = np.full(spans * SPAN, ABSENT)
    padded[before : before + len(tile_sums)] = tile_sums
    total = 0.0
    for span in halve(padded.reshape(spans, SPAN)).tolist():
        total += span
    return total if total == total else float("nan")


def fold_rows(tile_sums: NDArray[np.float64]) -> NDArray[np.float64]:
    """``fold_spans`` of each row, from tile 0 on.

    Args:
        tile_sums: f64[n, tiles]. Not changed.
    Returns:
        f64[n].
    """
    n, tiles = tile_sums.shape
    # Of one span: absent tiles change nothing, so a narrower power of two gives the same.
    width = SPAN if tiles > SPAN else 1 << max(tiles - 1, 0).bit_length()
    totals = np.zeros(n)
    with np.errstate(all="ignore"):
        for first in range(0, tiles, SPAN):
            part = tile_sums[:, first : first + SPAN]
            padded = np.full((n, width), ABSENT)
            padded[:, : part.shape[1]] = part
            totals += halve(padded)
    totals[np.isnan(totals)] = np.nan
    return totals
