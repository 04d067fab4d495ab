"""columns: one column, or some, out of hot files that hold several, and out of tables in memory; parts under asyncio

Shows: query time over (N, 16) float32 in .npy, over a float64 column of an Arrow IPC file in batches of 65,536, and over the
same table in memory, with two workers; beside it what one writes with NumPy over a mapped file, pyarrow and Polars. Sums of
float32 agree to 1e-6, those of float64 to 1e-12. Then how much longer a part of 4,096 elements takes under asyncio.
Does not show: cold files (bench_cold_sum), plain columns (bench_hot_sum), more work for each element (bench_query6).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable

import numpy as np
from common import Bench, interleave, main, peer

import vyre

COLUMNS = 16
BATCH = 65_536
PART = 4_096


def measure(bench: Bench) -> None:
    rows = 20_000 if bench.quick else 8 << 20
    folder = bench.folder(rows * (4 * COLUMNS + 16))
    points = np.random.default_rng(1).random((rows, COLUMNS), np.float32)
    np.save(folder / "points.npy", points)
    del points
    with vyre.open("cpu", workers=2) as session:
        _rows(bench, session, str(folder / "points.npy"), rows)
        _arrow(bench, session, str(folder / "trades.arrow"), rows)
        _parts(bench, session, str(folder / "points.npy"))


def _compare(bench: Bench, candidates: dict[str, Callable[[], float]], within: float) -> dict[str, list[float]]:
    """Milliseconds of each candidate, once all agree with the first."""
    answers = {name: call() for name, call in candidates.items()}
    right = answers["vyre"]
    for name, answer in answers.items():
        if abs(answer / right - 1) > within:
            raise SystemExit(f"{name}: {answer!r}, vyre: {right!r}")
    return {name: [1e3 * s for s in found] for name, found in interleave(candidates, bench.rounds(15)).items()}


def _rows(bench: Bench, session: vyre.Session, path: str, rows: int) -> None:
    mapped = np.load(path, mmap_mode="r")
    one = vyre.expression("sum(a)", {"a": vyre.f32})
    four = vyre.expression("sum(a*b + c*d)", dict.fromkeys("abcd", vyre.f32))
    bound = {name: vyre.column(path, k) for name, k in zip("abcd", (0, 5, 10, 15), strict=True)}

    def eager() -> float:
        a, b, c, d = (mapped[:, k] for k in (0, 5, 10, 15))
        return float((a * b + c * d).sum(dtype=np.float64))

    what = f"({rows:,}, {COLUMNS}) f32 in a hot .npy"
    runs = _compare(
        bench,
        {
            "vyre": lambda: float(session.run(one, vyre.column(path, 3), io="hot").value),
            "mmap + NumPy": lambda: float(mapped[:, 3].sum(dtype=np.float64)),
            "np.load + NumPy": lambda: float(np.load(path)[:, 3].sum(dtype=np.float64)),
        },
        1e-6,
    )
    bench.add(f"{what}: sum of one column", runs.pop("vyre"), "ms", peers=runs)
    runs = _compare(
        bench, {"vyre": lambda: float(session.run(four, bound, io="hot").value), "mmap + NumPy": eager}, 1e-6
    )
    bench.add(f"{what}: sum of a*b + c*d over four", runs.pop("vyre"), "ms", peers=runs)


def _arrow(bench: Bench, session: vyre.Session, path: str, rows: int) -> None:
    pa, pl = peer("pyarrow"), peer("polars")
    if pa is None:
        bench.lacks("pyarrow")
        return
    import pyarrow.compute as pc
    import pyarrow.ipc

    rng = np.random.default_rng(2)
    table = pa.table({"price": rng.random(rows), "size": rng.random(rows)})
    with pyarrow.ipc.new_file(path, table.schema) as writer:
        writer.write_table(table, max_chunksize=BATCH)
    worth = vyre.expression("sum(price*size)", {"price": vyre.f64, "size": vyre.f64})

    def mapped() -> float:
        with pa.memory_map(path) as file:
            found = pyarrow.ipc.open_file(file).read_all()
            return float(pc.sum(pc.multiply(found["price"], found["size"])).as_py())

    candidates: dict[str, Callable[[], float]] = {
        "vyre": lambda: float(session.run(worth, path, io="hot").value),
        "pyarrow, mapped": mapped,
    }
    in_memory: dict[str, Callable[[], float]] = {
        "vyre": lambda: float(session.run(worth, table).value),
        "pyarrow": lambda: float(pc.sum(pc.multiply(table["price"], table["size"])).as_py()),
    }
    if pl is None:
        bench.lacks("Polars")
    else:
        frame = pl.from_arrow(table)
        sum_ = (pl.col("price") * pl.col("size")).sum()
        candidates["Polars"] = lambda: float(pl.scan_ipc(path).select(sum_).collect().item())
        in_memory["Polars"] = lambda: float(frame.select(sum_).item())
    what = f"{rows:,} rows of two f64 columns"
    runs = _compare(bench, candidates, 1e-12)
    bench.add(f"{what} in a hot Arrow file: sum of their product", runs.pop("vyre"), "ms", peers=runs)
    runs = _compare(bench, in_memory, 1e-12)
    bench.add(f"{what} in a table in memory: sum of their product", runs.pop("vyre"), "ms", peers=runs)


def _parts(bench: Bench, session: vyre.Session, path: str) -> None:
    keep = vyre.expression("sum(x)", {"x": vyre.f32})
    column = vyre.raw(path, "f32", 128, 200 * PART if not bench.quick else 20 * PART)
    parts = 200 if not bench.quick else 20

    def plain() -> int:
        with session.stream(keep, column, chunk=PART) as stream:
            return sum(1 for _ in stream)

    async def awaited() -> int:
        async with session.stream(keep, column, chunk=PART) as stream:
            return sum([1 async for _ in stream])

    if plain() != parts or asyncio.run(awaited()) != parts:
        raise SystemExit(f"a stream of {parts} parts gave another number")
    runs = interleave({"plain": plain, "asyncio": lambda: asyncio.run(awaited())}, bench.rounds(15))
    us = {name: [1e6 * s / parts for s in found] for name, found in runs.items()}
    bench.add(f"a part of {PART:,} elements under asyncio", us["asyncio"], "us", peers={"plain loop": us["plain"]})


if __name__ == "__main__":
    main(__doc__, measure)
