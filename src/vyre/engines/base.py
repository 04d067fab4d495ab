"""What an engine takes and gives: operands in, an item's result out.

Owns: the values that cross between runtime and engines. Leaves to others: execution (reference, null, cpu, cuda),
joining of parts (runtime).
"""

from __future__ import annotations

from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from vyre.errors import Fault


@dataclass(slots=True)
class ItemResult:
    """What one item delivered. A faulted item delivered nothing but its fault.

    Attributes:
        outputs: by declaration order, one array of ``count`` elements each, in memory type.
        emits: by declaration order, the kept elements in element order.
        accumulators: by declaration order, memory-type scalars as 0-d arrays, histograms as i64[bins]. Float sums
            are folded as decision 2 says, over this item alone.
        tile_sums: for each float sum (by accumulator index) f64[tiles], the halved tile results before any span is
            folded: what a stream folds over all its parts in order.
        fault: the lowest trapping element's, or None.
    """

    outputs: list[NDArray[np.generic]] = field(default_factory=list)
    emits: list[NDArray[np.generic]] = field(default_factory=list)
    accumulators: list[NDArray[np.generic]] = field(default_factory=list)
    tile_sums: dict[int, NDArray[np.float64]] = field(default_factory=dict)
    fault: Fault | None = None
