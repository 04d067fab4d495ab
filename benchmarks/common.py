"""What every benchmark here does alike: options, interleaved timing, rows of the schema, a table for people.

Owns: how a figure is taken (median of interleaved rounds, spread, whether others used the machine meanwhile). Leaves to
others: the schema (vyre.bench.schema), what is measured (bench_*.py).
"""

from __future__ import annotations

import argparse
import importlib
import mmap
import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from types import ModuleType
from typing import Any, Final

import numpy as np

from vyre.bench import schema

HERE: Final = Path(__file__).resolve().parent
LOADED_CORES: Final = 0.15
"""Cores that other processes used, on average, from which on a figure is marked as taken on a loaded machine."""
Runs = list[float]


def interleave(candidates: Mapping[str, Callable[[], Any]], rounds: int, number: int = 1) -> dict[str, Runs]:
    """Seconds of one call of each candidate, ``rounds`` times, taking turns; each round begins with another one.

    Args:
        number: calls of one measurement, for what is too short to be timed alone.
    """
    names = list(candidates)
    taken: dict[str, Runs] = {name: [] for name in names}
    clock = time.perf_counter
    for i in range(rounds):
        for name in names[i % len(names) :] + names[: i % len(names)]:
            call = candidates[name]
            began = clock()
            for _ in range(number):
                call()
            taken[name].append((clock() - began) / number)
    return taken


def peer(name: str) -> ModuleType | None:
    """A module that is compared with, None where it is not installed."""
    try:
        return importlib.import_module(name)
    except ImportError:
        return None


def geometric_mean(values: Sequence[float]) -> float:
    return statistics.geometric_mean(values)


def crossing(ours: Sequence[tuple[float, float]], theirs: Sequence[tuple[float, float]]) -> float | None:
    """Elements from which on ``theirs`` is slower than ``ours`` for good, on straight lines between points in log-log.

    None: never within the points that both have.
    """
    import math

    other = dict(theirs)
    gaps = [(math.log(n), math.log(other[n]) - math.log(t)) for n, t in ours if n in other]
    if not gaps or gaps[-1][1] <= 0:
        return None
    for (x0, g0), (x1, g1) in zip(reversed(gaps[:-1]), reversed(gaps[1:]), strict=True):
        if g0 <= 0:
            return math.exp(x0 + (x1 - x0) * -g0 / (g1 - g0))
    return math.exp(gaps[0][0])


class Bench:
    """One run of one benchmark: its options and the rows that it finds.

    Attributes:
        quick: a tiny version, for the tests: every path, no figure worth keeping.
    """

    def __init__(self, quick: bool) -> None:
        self.quick = quick
        self.rows: list[schema.Row] = []
        self.missing: list[str] = []
        self.notes: list[str] = []
        self._machine = f"{schema.machine()}, Python {sys.version_info[0]}.{sys.version_info[1]}"
        self._commit = schema.commit()
        self._folder: Path | None = None
        self._lack: dict[str, str] = {}

    def rounds(self, full: int, quick: int = 2) -> int:
        return quick if self.quick else full

    def lacks(self, name: str, why: str = "not installed") -> None:
        """A peer that is not here: said, not an error."""
        if name not in self.missing:
            self.missing.append(name)
            self._lack[name] = why

    def note(self, line: str) -> None:
        self.notes.append(line)

    def add(
        self,
        row: str,
        runs: Sequence[float],
        unit: str,
        *,
        target: str = "",
        peers: Mapping[str, float | Sequence[float]] | None = None,
        must: bool = False,
        reason: str = "",
        points: Mapping[str, Sequence[tuple[float, float]]] | None = None,
    ) -> float:
        """One figure: the median of ``runs`` with its spread, beside the medians of the peers. Returns the median."""
        value = statistics.median(runs)
        beside = {
            name: round_to(statistics.median(found) if isinstance(found, Sequence) else found)
            for name, found in (peers or {}).items()
        }
        self.rows.append(
            schema.Row(
                row, round_to(value), unit, target, beside, self._machine, self._commit,
                round(schema.spread(runs), 4), must, reason, dict(points or {}),
            )
        )  # fmt: skip
        return value

    def folder(self, need_bytes: int = 0) -> Path:
        """A folder for data, removed in the end. ``VYRE_BENCH_TMP`` says where."""
        if self._folder is None:
            self._folder = Path(tempfile.mkdtemp(prefix="vyre-bench-", dir=os.environ.get("VYRE_BENCH_TMP")))
        free = shutil.disk_usage(self._folder).free
        if free < need_bytes + (1 << 30):
            self._clean()
            raise SystemExit(f"{need_bytes >> 20} MiB of data do not fit; set VYRE_BENCH_TMP to a larger file system")
        return self._folder

    def _clean(self) -> None:
        if self._folder is not None:
            shutil.rmtree(self._folder, ignore_errors=True)
            self._folder = None


def arena(arrays: int, count: int) -> list[Any]:
    """Arrays of float32 side by side in one mapping, in pages of 2 MiB where the kernel gives them, already touched.

    So that a benchmark of arithmetic measures neither page faults nor the luck of where arrays lie.
    """
    stride = -(-4 * count // 4096) * 4096 + 4096 + 256
    memory = mmap.mmap(-1, arrays * stride + (2 << 20))
    memory.madvise(mmap.MADV_HUGEPAGE)
    whole = np.frombuffer(memory, np.uint8)
    whole[:] = 0
    start = -whole.ctypes.data % (2 << 20)
    return [whole[start + i * stride :][: 4 * count].view(np.float32) for i in range(arrays)]


def round_to(value: float) -> float:
    """Four digits, which is more than any of these figures has."""
    return float(f"{value:.4g}")


def compiled(source: str, folder: Path, *flags: str) -> Path | None:
    """A shared library from benchmarks/c, by the C compiler that is here; None where there is none."""
    compiler = shutil.which("gcc") or shutil.which("clang") or shutil.which("cc")
    if compiler is None:
        return None
    out = folder / (Path(source).stem + ".so")
    command = [compiler, "-O3", "-march=native", "-fno-math-errno", "-fno-trapping-math", "-ffp-contract=off"]
    done = subprocess.run(
        [*command, *flags, "-shared", "-fPIC", "-pthread", "-o", str(out), str(HERE / "c" / source)],
        capture_output=True,
        text=True,
    )
    if done.returncode:
        raise SystemExit(f"{source}: {done.stderr}")
    return out


def sum_by_preadv(fd: int, elements: int, threads: int) -> float:
    """The sum of a file of float32, as one writes it: each thread reads pieces of 1 MiB in turn into memory of its own and adds them with NumPy."""
    piece = 1 << 20
    sums = [0.0] * threads

    def work(k: int) -> None:
        buffer = np.empty(piece // 4, np.float32)
        for at in range(k * piece, 4 * elements, threads * piece):
            got = os.preadv(fd, [buffer], at)
            sums[k] += float(buffer[: got // 4].sum(dtype=np.float64))

    started = [threading.Thread(target=work, args=(k,)) for k in range(1, threads)]
    for thread in started:
        thread.start()
    work(0)
    for thread in started:
        thread.join()
    return sum(sums)


def drop_from_cache(path: Path) -> None:
    """Ask the kernel to forget a file's pages."""
    fd = os.open(path, os.O_RDONLY)
    try:
        os.fsync(fd)
        os.posix_fadvise(fd, 0, 0, os.POSIX_FADV_DONTNEED)
    finally:
        os.close(fd)


class _Others:
    """How many cores other processes used since this was made."""

    def __init__(self) -> None:
        self._began = self._now()

    @staticmethod
    def _now() -> tuple[float, float, float]:
        with open("/proc/stat") as f:
            words = [int(w) for w in f.readline().split()[1:9]]
        busy = (sum(words) - words[3] - words[4]) / os.sysconf("SC_CLK_TCK")
        own = 0.0
        for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN):
            used = resource.getrusage(who)
            own += used.ru_utime + used.ru_stime
        return time.monotonic(), busy, own

    def cores(self) -> float:
        (t0, b0, o0), (t1, b1, o1) = self._began, self._now()
        return max(0.0, (b1 - b0 - (o1 - o0)) / max(t1 - t0, 1e-3))


def main(document: str | None, measure: Callable[[Bench], None]) -> None:
    """What a script does: read the options, measure, print, write.

    ``--quick`` is the tiny version; ``--out FILE.json`` writes the rows where ``vyre bench`` finds them.
    """
    text = (document or "").strip()
    parser = argparse.ArgumentParser(description=text, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="a tiny version: every path, no figure worth keeping")
    parser.add_argument("--out", type=Path, metavar="FILE.json", help="write the rows")
    options = parser.parse_args()
    bench = Bench(options.quick)
    others = _Others()
    began = time.monotonic()
    try:
        measure(bench)
    finally:
        bench._clean()
    cores = others.cores()
    if cores > LOADED_CORES:
        bench.note(f"other processes used {cores:.2f} cores meanwhile: rows are marked as taken on a loaded machine")
        from dataclasses import replace

        bench.rows = [replace(row, loaded=True) for row in bench.rows]
    _print(text.splitlines()[0], bench, time.monotonic() - began)
    if options.out is not None:
        schema.write(options.out, bench.rows)


def _print(title: str, bench: Bench, seconds: float) -> None:
    print(title)
    if bench.rows:
        print(f"{bench.rows[0].machine}; commit {bench.rows[0].commit}; {seconds:.0f} s; answers agree")
    width = max((len(row.row) for row in bench.rows), default=0)
    for row in bench.rows:
        verdict = {True: "met", False: "MISSED", None: ""}[row.met]
        star = "*" if row.must else " "
        print(
            f"  {row.row:<{width}} {star} {row.value:>10.4g} {row.unit:<8} {row.target:<9} {verdict:<6} ±{100 * row.spread:.0f} %"
        )
        if row.peer:
            print(f"  {'':<{width}}      " + ", ".join(f"{name} {value:.4g}" for name, value in row.peer.items()))
        if row.reason:
            print(f"  {'':<{width}}      {row.reason}")
    for name, why in bench._lack.items():
        print(f"  {name}: {why}")
    for line in bench.notes:
        print(f"  {line}")
