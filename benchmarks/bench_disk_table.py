"""disk_table: a program that gathers at random from a table on disk ten times larger than the memory it may use

Shows: elements a second, and how long one window of 16,384 elements takes (p50, p99), when nearly every element wants a page
of 4 KiB that is not in memory: cold, around the page cache. Beside it the reads alone, of the same pages in the same order
and as many at a time (io_uring from the same Python code without any program, and os.preadv one by one), and numpy.memmap,
which faults pages in through the page cache. Every answer is compared with the table in memory.
Does not show: tables that fit into the pool, or indices that lie near each other; both are faster by far.
"""

from __future__ import annotations

import mmap
import os
import time
from pathlib import Path
from typing import Any

import numpy as np
from common import Bench, drop_from_cache, main

import vyre
from vyre.stream.uring import Ring

WINDOW = 16 * 1024
PAGE = 4096
DEPTH = 64


@vyre.program
def look(i: vyre.i64, *, t: vyre.table[vyre.f32]) -> vyre.f32:
    return t[i] * 2


def measure(bench: Bench) -> None:
    elements = 1 << 20 if bench.quick else 160 << 20
    pool = max(4 * elements // 10, WINDOW * PAGE)
    folder = bench.folder(4 * elements)
    path = folder / "t.npy"
    values = np.random.default_rng(7).random(elements, np.float32)
    np.save(path, values)
    rounds = bench.rounds(60, 3)
    direct = _direct(path)
    if not direct:
        bench.lacks("O_DIRECT", "this file system has none: pages come through the page cache")
    rng = np.random.default_rng(8)
    windows = [rng.integers(0, elements, WINDOW) for _ in range(rounds)]
    taken: dict[str, list[float]] = {"vyre": [], "io_uring alone": [], "preadv alone": [], "numpy.memmap": []}
    io = "uring-direct" if direct else "uring"
    with (
        vyre.open("cpu") as session,
        vyre.disk_table(path, pool_bytes=pool, io=io) as table,
        Reads(path, direct) as reads,
    ):
        bench.note(f"pool {pool >> 20} MiB for a table of {4 * elements >> 20} MiB; {table.way}")
        session.run(look, i=windows[0], t=values)
        for number, index in enumerate(windows):
            drop_from_cache(path)
            before = table.loaded
            began = time.perf_counter()
            found = session.run(look, i=index, t=table).value
            taken["vyre"].append(time.perf_counter() - began)
            if not np.array_equal(found, values[index] * 2):
                raise SystemExit(f"window {number}: wrong values")
            read = table.loaded - before
            pages = np.unique((index * 4 + 128) // PAGE)
            pages = np.random.default_rng(number).permutation(pages)[:read]
            drop_from_cache(path)
            taken["io_uring alone"].append(reads.uring(pages))
            if number % 6 == 0:  # slow, and steady
                drop_from_cache(path)
                taken["preadv alone"].append(reads.blocking(pages[:1024]) * len(pages) / min(1024, max(1, len(pages))))
                drop_from_cache(path)
                mapped: Any = np.load(path, mmap_mode="r")
                began = time.perf_counter()
                again = mapped[index] * 2
                taken["numpy.memmap"].append(time.perf_counter() - began)
                if not np.array_equal(again, found):
                    raise SystemExit("numpy.memmap: other values")
                del mapped
    warm = slice(rounds // 4, None)  # when the pool is full
    ours = taken["vyre"][warm]
    beside = {name: [WINDOW / s / 1e3 for s in found] for name, found in taken.items() if name != "vyre"}
    name = f"gathers from a table on disk, {'cold' if direct else 'cached'}"
    bench.add(f"{name}: elements a second", [WINDOW / s / 1e3 for s in ours], "k/s", peers=beside)
    alone = taken["io_uring alone"][warm]
    for q in (50, 99):
        bench.add(
            f"{name}: a window of {WINDOW:,}, p{q}", [1e3 * float(np.percentile(ours, q))], "ms",
            peers={"io_uring alone": [1e3 * float(np.percentile(alone, q))]},
        )  # fmt: skip


class Reads:
    """The same pages without any program."""

    def __init__(self, path: Path, direct: bool) -> None:
        self.fd = os.open(path, os.O_RDONLY | (os.O_DIRECT if direct else 0))
        self.memory = mmap.mmap(-1, WINDOW * PAGE)
        self.address = np.frombuffer(self.memory, np.uint8).ctypes.data
        self.ring = Ring(DEPTH)

    def uring(self, pages: np.ndarray) -> float:
        """Seconds for all of them, DEPTH in flight."""
        began = time.perf_counter()
        waiting = list(enumerate(pages.tolist()))
        flying = 0
        while waiting or flying:
            while waiting and flying < DEPTH:
                number, page = waiting.pop()
                self.ring.read(self.fd, self.address + number * PAGE, PAGE, page * PAGE, number)
                flying += 1
            self.ring.submit(wait=1, timeout_s=0.05)
            flying -= len(self.ring.completions())
        return time.perf_counter() - began

    def blocking(self, pages: np.ndarray) -> float:
        """Seconds for all of them, one after the other."""
        view = memoryview(self.memory)[:PAGE]
        began = time.perf_counter()
        for page in pages.tolist():
            os.preadv(self.fd, [view], page * PAGE)
        return time.perf_counter() - began

    def __enter__(self) -> Reads:
        return self

    def __exit__(self, *_: object) -> None:
        self.ring.close()
        os.close(self.fd)


def _direct(path: Path) -> bool:
    try:
        os.close(os.open(path, os.O_RDONLY | os.O_DIRECT))
    except OSError:
        return False
    return True


if __name__ == "__main__":
    main(__doc__, measure)
