"""Keep the interesting rows of a stream, in order, with their row numbers.

python examples/filter.py
"""

from __future__ import annotations

import numpy as np

import vyre


@vyre.program
def outliers(x: vyre.f32, *, mean: vyre.f32, deviation: vyre.f32, sigmas: vyre.f32 = 3.0) -> None:
    """Rows further than ``sigmas`` deviations from the mean, and how many there are on each side."""
    z = (x - mean) / deviation
    if abs(z) > sigmas:
        vyre.emit(row=vyre.index(), z=z)
        vyre.count(high=z > 0)
        vyre.count(low=z < 0)


def main(rows: int = 1_000_000) -> None:
    x = np.random.default_rng(1).normal(20, 5, rows).astype(np.float32)
    result = vyre.run(outliers, x=x, mean=20, deviation=5)
    print(f"{len(result['row'])} of {rows} rows: {result['high']} high, {result['low']} low")

    z = (x - np.float32(20)) / np.float32(5)
    rows_expected = np.flatnonzero(np.abs(z) > 3)
    assert np.array_equal(result["row"], rows_expected)
    assert np.array_equal(result["z"], z[rows_expected])


if __name__ == "__main__":
    main()
