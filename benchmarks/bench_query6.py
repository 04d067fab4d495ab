"""query6: TPC-H query 6 over 60 million rows, from .npy files to the answer, beside engines that have the columns in memory

Shows: a filter and a sum over four columns, which the page cache holds. vyre reads the files, each time, inside the
time that is shown; Polars, DuckDB, numexpr and NumPy are given the same columns in memory, which is more than we are
given. All answers are compared: sums to 1e-9 (float32: 1e-5, but numexpr, which adds up in float32, to 1e-3), counts
exactly.
Does not show: data that is not in the page cache (bench_cold_sum), strings, joins, groups, or reading by the others.
Writes 2.4 GB below VYRE_BENCH_TMP (default: the temporary folder) and removes them.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from common import Bench, interleave, main, peer

import vyre

START, END = 8_766, 9_131
REASON = "the time is that of copying the columns out of the page cache; the others have them in memory"


@vyre.program
def q6_f64(
    shipdate: vyre.i32, discount: vyre.f64, quantity: vyre.f64, price: vyre.f64, *, start: vyre.i32, end: vyre.i32
) -> None:
    if start <= shipdate < end and 0.05 <= discount <= 0.07 and quantity < 24:
        vyre.sum(revenue=price * discount)
        vyre.count(orders=True)


@vyre.program
def q6_f32(
    shipdate: vyre.i32, discount: vyre.f32, quantity: vyre.f32, price: vyre.f32, *, start: vyre.i32, end: vyre.i32
) -> None:
    if start <= shipdate < end and 0.045 <= discount <= 0.075 and quantity < 24:
        vyre.sum(revenue=price * discount)
        vyre.count(orders=True)


def write(folder: Path, rows: int) -> dict[str, dict[str, Path]]:
    """Columns of lineitem's distribution: the date i32, the others as f64 and as f32, by type and name."""
    rng = np.random.default_rng(6)
    paths: dict[str, dict[str, Path]] = {"f64": {}, "f32": {}}

    def put(name: str, kind: str, column: np.ndarray) -> Path:
        path = folder / f"{name}_{kind}.npy"
        np.save(path, column)
        return path

    dates = put("shipdate", "i32", rng.integers(8_036, 10_562, rows, np.int32))
    for kind in paths:
        paths[kind]["shipdate"] = dates
    columns: dict[str, Callable[[], np.ndarray]] = {
        "discount": lambda: rng.integers(0, 11, rows, np.int8) / 100,
        "quantity": lambda: rng.integers(1, 51, rows, np.int8).astype(np.float64),
        "price": lambda: rng.integers(90_000, 10_500_000, rows, np.int32) / 100,
    }
    for name, make in columns.items():
        wide = make()
        paths["f64"][name] = put(name, "f64", wide)
        paths["f32"][name] = put(name, "f32", wide.astype(np.float32))
    return paths


def bounds(kind: str) -> tuple[float, float]:
    """In float32, 0.05 and 0.07 are other numbers than the nearest of the column; between two hundredths is safe."""
    return (0.05, 0.07) if kind == "f64" else (0.045, 0.075)


def others(kind: str, c: dict[str, np.ndarray], bench: Bench) -> dict[str, Callable[[], tuple[float, int]]]:
    """The query by everyone else, over columns in memory: revenue and, where it is free, orders (else -1)."""
    low, high = bounds(kind)
    d, x, q, p = c["shipdate"], c["discount"], c["quantity"], c["price"]
    found: dict[str, Callable[[], tuple[float, int]]] = {}

    def by_numpy() -> tuple[float, int]:
        chosen = (d >= START) & (d < END) & (x >= low) & (x <= high) & (q < 24)
        return float((p[chosen] * x[chosen]).sum(dtype=np.float64)), int(np.count_nonzero(chosen))

    found["NumPy"] = by_numpy
    numexpr = peer("numexpr")
    if numexpr is None:
        bench.lacks("numexpr")
    else:
        numexpr.set_num_threads(2)
        text = f"sum(where((d >= {START}) & (d < {END}) & (x >= low) & (x <= high) & (q < 24), p*x, 0))"
        scope = {"d": d, "x": x, "q": q, "p": p, "low": c["discount"].dtype.type(low), "high": x.dtype.type(high)}
        found["numexpr"] = lambda: (float(numexpr.evaluate(text, scope)), -1)
    polars = peer("polars")
    if polars is None:
        bench.lacks("Polars")
    else:
        frame = polars.DataFrame(c)
        date, rate, amount, cost = (polars.col(name) for name in c)
        query = (
            frame.lazy()
            .filter((date >= START) & (date < END) & (rate >= low) & (rate <= high) & (amount < 24))
            .select((cost * rate).cast(polars.Float64).sum().alias("revenue"), polars.len().alias("orders"))
        )

        def by_polars() -> tuple[float, int]:
            revenue, orders = query.collect().row(0)
            return revenue, orders

        found["Polars"] = by_polars
    duckdb = peer("duckdb")
    if duckdb is None:
        bench.lacks("DuckDB")
    else:
        database = duckdb.connect()
        database.execute("SET threads = 2")
        arrow = {f"c{i}": column for i, column in enumerate(c.values())}
        database.register("given", arrow)
        names = ", ".join(f"c{i} AS {name}" for i, name in enumerate(c))
        database.execute(f"CREATE TABLE lineitem AS SELECT {names} FROM given")
        cast = "REAL" if kind == "f32" else "DOUBLE"
        sql = (
            f"SELECT sum(CAST(price * discount AS DOUBLE)), count(*) FROM lineitem WHERE shipdate >= {START} AND "
            f"shipdate < {END} AND discount >= {low}::{cast} AND discount <= {high}::{cast} AND quantity < 24"
        )

        def by_duckdb() -> tuple[float, int]:
            row = database.execute(sql).fetchone()
            return row[0], row[1]

        found["DuckDB"] = by_duckdb
    return found


def measure(bench: Bench) -> None:
    rows = 200_000 if bench.quick else 60_000_000
    folder = bench.folder(rows * 44)
    os.environ.setdefault("POLARS_MAX_THREADS", "2")
    paths = write(folder, rows)
    for kind, program in (("f64", q6_f64), ("f32", q6_f32)):
        columns = {name: np.load(path) for name, path in paths[kind].items()}
        beside = others(kind, columns, bench)
        with vyre.open("cpu", workers=2) as session:

            def ours(session: Any = session, program: Any = program, kind: str = kind) -> tuple[float, int]:
                result = session.run(program, {**paths[kind]}, start=START, end=END, io="hot")
                return float(result["revenue"]), int(result["orders"])

            candidates = {"vyre": ours, **beside}
            revenue, orders = beside["NumPy"]()
            for name, call in candidates.items():
                r, n = call()
                tolerance = 1e-9 if kind == "f64" else 1e-3 if name == "numexpr" else 1e-5
                if abs(r - revenue) > abs(revenue) * tolerance or n not in (orders, -1):
                    raise SystemExit(f"{name}: {r!r} from {n} orders, NumPy {revenue!r} from {orders}")
            runs = interleave(candidates, bench.rounds(9))
        milliseconds = {name: [1e3 * s for s in found] for name, found in runs.items()}
        ms = milliseconds.pop("vyre")
        size = sum(path.stat().st_size for path in paths[kind].values())
        name = f"query 6, {rows:,} rows, {kind}, 2 threads: hot files -> answer"
        speeds = [size / s / 1e6 for s in ms]
        bench.note(f"{kind}: {size / 1e9:.2f} GB, {float(np.median(speeds)):.1f} GB/s; the others: columns in memory")
        fastest = min((float(np.median(milliseconds[n])) for n in ("Polars", "DuckDB") if n in milliseconds), default=0)
        target = f"<= {fastest:.4g}" if fastest and kind == "f64" else ""
        bench.add(name, ms, "ms", target=target, peers=milliseconds, reason=REASON)
        del beside, candidates, columns


if __name__ == "__main__":
    main(__doc__, measure)
