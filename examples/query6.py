"""TPC-H's query 6 over columns in files: one pass, one number.

    python examples/query6.py

The columns are written to a temporary folder first; in real use they are there already.
"""

from __future__ import annotations

import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

import vyre


@vyre.program
def query6(
    shipdate: vyre.i32,
    discount: vyre.f64,
    quantity: vyre.f64,
    price: vyre.f64,
    *,
    start: vyre.i32,
    end: vyre.i32,
) -> None:
    """Revenue of a year's small orders with a discount of 5 to 7 per cent. Days are counted from 1970-01-01."""
    if start <= shipdate < end and 0.05 <= discount <= 0.07 and quantity < 24:
        vyre.sum(revenue=price * discount)
        vyre.count(orders=True)


def main(rows: int = 100_000) -> None:
    rng = np.random.default_rng(6)
    columns: dict[str, NDArray[Any]] = {
        "shipdate": rng.integers(8_000, 10_600, rows, dtype=np.int32),
        "discount": rng.integers(0, 11, rows) / 100,
        "quantity": rng.integers(1, 51, rows).astype(np.float64),
        "price": rng.uniform(900, 105_000, rows),
    }
    with tempfile.TemporaryDirectory() as folder:
        files = {}
        for name, column in columns.items():
            files[name] = Path(folder) / f"{name}.npy"
            np.save(files[name], column)
        result = vyre.run(query6, files, start=8_766, end=9_131)
    print(f"{result['orders']} orders, revenue {result['revenue']:,.2f}")

    c = columns
    keep = (c["shipdate"] >= 8_766) & (c["shipdate"] < 9_131) & (c["quantity"] < 24)
    keep &= (c["discount"] >= 0.05) & (c["discount"] <= 0.07)
    assert result["orders"] == keep.sum()
    assert np.isclose(float(result["revenue"]), (c["price"] * c["discount"])[keep].sum(), rtol=1e-12)


if __name__ == "__main__":
    main()
