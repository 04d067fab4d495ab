"""The native fold of tiles against its definition."""

from __future__ import annotations

import numpy as np
import pytest

from vyre.engines.fold import fold_spans
from vyre.engines.spans import fold_onto
from vyre.runtime.totals import SpanFold


@pytest.mark.parametrize("tiles", [0, 1, 1023, 1024, 1025, 5000])
@pytest.mark.parametrize("step", [1, 7, 1000, 1024, 4096])
def test_tiles_that_come_in_pieces_give_the_bits_of_the_definition(tiles, step):
    if tiles > 1100 and step == 1:
        pytest.skip("long")
    sums = np.random.default_rng(tiles).normal(size=tiles) * 10.0 ** np.arange(-8, -8 + tiles).clip(-8, 8)
    fold = SpanFold(fold_onto())
    for first in range(0, tiles, step):
        fold.add(first, sums[first : first + step])
    assert fold.total().tobytes() == np.float64(fold_spans(sums, 0)).tobytes()


@pytest.mark.parametrize("values", [[-0.0], [np.inf, -np.inf], [np.nan, 1.0], [-0.0] * 1024, [-0.0] * 1500])
def test_zeros_infinities_and_nans_are_those_of_the_definition(values):
    sums = np.array(values)
    sums.view(np.uint64)[np.isnan(sums)] = 0xFFF8_0000_0000_1234  # a NaN that is not canonical
    fold = SpanFold(fold_onto())
    fold.add(0, sums)
    assert fold.total().tobytes() == np.float64(fold_spans(sums, 0)).tobytes()
    assert fold.total().tobytes() == fold.total().tobytes(), "asking changes nothing"
