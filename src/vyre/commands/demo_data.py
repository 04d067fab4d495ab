"""The data set of ``vyre demo``: four columns of the shape of TPC-H's lineitem, and what NumPy says about them.

Owns: the columns, where they lie, that they are complete when they have their name; the answers to check against.
Leaves to others: running the programs (demo).

A data set is a folder ``lineitem-<rows>-<format>`` with shipdate.npy (i32, days since 1970), discount.npy,
quantity.npy and price.npy (f64). It is written under a temporary name and renamed when complete. The same rows give
the same bytes on every machine.

Source:
    TPC Benchmark H, revision 3.0, section 4.2.3: the distributions of the four columns.
"""

from __future__ import annotations

import os
import shutil
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any, Final, NamedTuple

import numpy as np
from numpy.typing import NDArray

from vyre.errors import StreamError

COLUMNS: Final[dict[str, Any]] = {
    "shipdate": np.int32,
    "discount": np.float64,
    "quantity": np.float64,
    "price": np.float64,
}
ROW_BYTES: Final = sum(np.dtype(dtype).itemsize for dtype in COLUMNS.values())
FORMAT: Final = 1
CHUNK: Final = 1 << 20  # rows made, and read, at a time; a span of the fold
SEED: Final = 19_940_101

_FIRST_ORDER: Final = 8_035  # 1992-01-01
_LAST_ORDER: Final = 10_440  # 1998-08-02, 151 days before the end of 1998
_PARTS: Final = 200_000  # part keys of one scale factor


def folder_of(root: Path, rows: int) -> Path:
    """Where the data set of so many rows lies, written or not."""
    return root / f"lineitem-{rows}-{FORMAT}"


def columns_of(folder: Path) -> dict[str, Path]:
    """Path of each column, in the order of q6's inputs."""
    return {name: folder / f"{name}.npy" for name in COLUMNS}


def make_rows(first: int, count: int) -> dict[str, NDArray[Any]]:
    """Rows [first, first + count) of every column; ``first`` a multiple of CHUNK, ``count`` at most CHUNK."""
    draw = np.random.Generator(np.random.PCG64([SEED, first // CHUNK]))
    ordered = draw.integers(_FIRST_ORDER, _LAST_ORDER, count, dtype=np.int32, endpoint=True)
    shipped = ordered + draw.integers(1, 121, count, dtype=np.int32, endpoint=True)
    quantity = draw.integers(1, 50, count, dtype=np.int32, endpoint=True)
    part = draw.integers(1, _PARTS, count, dtype=np.int32, endpoint=True)
    discount = draw.integers(0, 10, count, dtype=np.int32, endpoint=True)
    retail_cents = 90_000 + (part // 10) % 20_001 + 100 * (part % 1_000)
    return {
        "shipdate": shipped,
        "discount": discount / 100.0,  # correctly rounded: the same double as the literal 0.05
        "quantity": quantity.astype(np.float64),
        "price": quantity * retail_cents / 100.0,
    }


def write(root: Path, rows: int, progress: Callable[[int, int], None] | None = None) -> Path:
    """Write the data set unless it is there already; its folder.

    Args:
        root: folder that holds data sets; made when it is not there.
        rows: at least 1.
        progress: called with (bytes written, bytes in all).
    Raises:
        StreamError: no room on the disk, or the folder cannot be written. Nothing is left behind.
    """
    folder = folder_of(root, rows)
    if folder.is_dir():
        return folder
    wanted = rows * ROW_BYTES
    temporary = root / f".writing-{folder.name}-{os.getpid()}"
    try:
        root.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(root).free
        if free < wanted + (64 << 20):
            raise StreamError(
                f"{root}: {free / 1e6:,.0f} MB free, the data set needs {wanted / 1e6:,.0f} MB",
                fix="choose fewer rows with --rows, or another folder with --dir",
            )
        temporary.mkdir()
        _write_columns(temporary, rows, progress)
        try:
            temporary.rename(folder)
        except OSError:
            if not folder.is_dir():  # another process was faster; its bytes are the same
                raise
    except StreamError:
        raise
    except OSError as error:
        raise StreamError(
            f"{error.filename or root}: {error.strerror or error}", fix="choose another folder with --dir"
        ) from None
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return folder


def _write_columns(folder: Path, rows: int, progress: Callable[[int, int], None] | None) -> None:
    with ExitStack() as stack:
        files = {}
        for name, path in columns_of(folder).items():
            files[name] = stack.enter_context(path.open("wb"))
            header = {"descr": np.dtype(COLUMNS[name]).str, "fortran_order": False, "shape": (rows,)}
            np.lib.format.write_array_header_1_0(files[name], header)
        for first in range(0, rows, CHUNK):
            count = min(CHUNK, rows - first)
            for name, values in make_rows(first, count).items():
                files[name].write(values.data)
            if progress is not None:
                progress((first + count) * ROW_BYTES, rows * ROW_BYTES)


class Answers(NamedTuple):
    """What NumPy says about a data set.

    Attributes:
        revenue: query 6, added by NumPy chunk by chunk in its own order.
        bound: how far two orders of addition of these numbers can lie apart.
        folded: query 6, added in the order that VIR0 prescribes: has to agree bit for bit.
        orders: rows that query 6 chose.
        counts: i64[256], how often each byte occurs in the four files.
    """

    revenue: float
    bound: float
    folded: float
    orders: int
    counts: NDArray[np.int64]


def answers(folder: Path, progress: Callable[[int, int], None] | None = None) -> Answers:
    """Compute query 6 (of 1994) and the byte histogram with NumPy, a chunk at a time: memory stays below 100 MB."""
    paths = columns_of(folder)
    arrays = {name: np.load(path, mmap_mode="r") for name, path in paths.items()}
    rows = len(arrays["shipdate"])
    total = sum(path.stat().st_size for path in paths.values()) + rows * ROW_BYTES
    revenue = folded = absolute = 0.0
    orders = 0
    for first in range(0, rows, CHUNK):
        part = {name: np.array(array[first : first + CHUNK]) for name, array in arrays.items()}
        chosen = (part["shipdate"] >= 8_766) & (part["shipdate"] < 9_131)
        chosen &= (part["discount"] >= 0.05) & (part["discount"] <= 0.07) & (part["quantity"] < 24.0)
        values = part["price"] * part["discount"]
        revenue += float(values[chosen].sum())
        absolute += float(np.abs(values[chosen]).sum())
        orders += int(chosen.sum())
        folded += _span(np.where(chosen, values, -0.0))
        if progress is not None:
            progress(min(first + CHUNK, rows) * ROW_BYTES, total)
    counts = np.zeros(256, np.int64)
    done = rows * ROW_BYTES
    for path in paths.values():
        for block in _blocks(path):
            counts += np.bincount(block, minlength=256)
            done += block.size
            if progress is not None:
                progress(done, total)
    return Answers(revenue, _bound(rows, absolute), folded, orders, counts)


def _span(values: NDArray[np.float64]) -> float:
    """The sum of at most 1,024 tiles in the order of VIR0: halves onto halves, in each tile, then over the tiles."""
    whole = np.full(CHUNK, -0.0)
    whole[: values.size] = values
    tiles = _halve(whole.reshape(1_024, 1_024).T)
    return float(_halve(tiles.reshape(1_024, 1))[0])


def _halve(x: NDArray[np.float64]) -> NDArray[np.float64]:
    while len(x) > 1:
        half = len(x) // 2
        x = x[:half] + x[half:]
    return np.asarray(x[0])


def _bound(rows: int, absolute: float) -> float:
    """How far two sums of the same numbers can lie apart: (depth of one order + depth of the other) * u * sum |x|.

    VIR0 adds 10 levels in a tile, 10 in a span, then span by span; NumPy's pairwise sum at most 23 levels and 128
    in a block, then chunk by chunk. u = 2**-53.

    Source:
        Higham, Accuracy and Stability of Numerical Algorithms, 2nd ed., section 4.2.
    """
    spans = -(-rows // CHUNK)
    return float(((20 + spans) + (151 + spans)) * 2.0**-53 * absolute)


def _blocks(path: Path) -> Iterator[NDArray[np.uint8]]:
    with path.open("rb") as file:
        while block := file.read(16 << 20):
            yield np.frombuffer(block, np.uint8)
