"""hot_sum: the sum of a file of float32 that the page cache holds, by 1 and by 2 workers

Shows: bytes a second from the page cache through one operation. Beside it: C that reads with pread and adds in the same
order (c/pread_sum.c, with the best of four sizes of a read), and what one writes in Python: a mapped file and NumPy,
np.fromfile, threads of preadv. vyre and C must agree in every bit, the others to 1e-6.
Does not show: files that are not in the page cache (bench_cold_sum), more work for each byte (bench_query6).
"""

from __future__ import annotations

import ctypes
import os
from collections.abc import Callable
from typing import Any

import numpy as np
from common import Bench, compiled, interleave, main, sum_by_preadv

import vyre

READS = (64 << 10, 128 << 10, 256 << 10, 1 << 20)
REASON = (
    "vyre reads 256 KiB at a time, C takes the best of four sizes, here 1 MiB; with reads of one size both are as fast"
)


def measure(bench: Bench) -> None:
    elements = (3 << 20) + 1_000 if bench.quick else 256 << 20
    folder = bench.folder(4 * elements)
    path = folder / "x.f32"
    rng = np.random.default_rng(3)
    with open(path, "wb") as f:
        for first in range(0, elements, 16 << 20):
            rng.random(min(16 << 20, elements - first), np.float32).tofile(f)
    column = vyre.raw(path, vyre.f32)
    program = vyre.expression("sum(x)", {"x": vyre.f32})
    library = compiled("pread_sum.c", folder)
    if library is None:
        bench.lacks("C pread", "no C compiler here")
    fd = os.open(path, os.O_RDONLY)
    sessions = {n: vyre.open("cpu", workers=n) for n in (1, 2)}
    candidates: dict[str, Callable[[], float]] = {}
    for n, session in sessions.items():
        candidates[f"vyre {n}"] = lambda session=session: float(session.run(program, x=column, io="hot").value)
        if library is not None:
            candidates[f"C pread {n}"] = _in_c(ctypes.CDLL(str(library)), fd, elements, n)
        candidates[f"preadv threads {n}"] = lambda n=n: sum_by_preadv(fd, elements, n)
    candidates["mmap + NumPy"] = lambda: float(np.memmap(path, np.float32, "r").sum(dtype=np.float64))
    candidates["np.fromfile"] = lambda: float(np.fromfile(path, np.float32).sum(dtype=np.float64))
    answers = {name: call() for name, call in candidates.items()}
    for name, answer in answers.items():
        exact = name.startswith(("vyre", "C"))
        if answer != answers["vyre 1"] if exact else abs(answer / answers["vyre 1"] - 1) > 1e-6:
            raise SystemExit(f"{name}: {answer!r}, vyre: {answers['vyre 1']!r}")
    runs = interleave(candidates, bench.rounds(11))
    os.close(fd)
    for session in sessions.values():
        session.close()
    gb = {name: [4 * elements / s / 1e9 for s in found] for name, found in runs.items()}
    for n in sessions:
        beside = {k: v for k, v in gb.items() if (k.endswith(f" {n}") and "vyre" not in k) or k[-1] not in "12"}
        bench.add(f"hot file -> float32 sum, {n} worker{'s' * (n > 1)}", gb[f"vyre {n}"], "GB/s", peers=beside)
        if library is not None:
            share = [a / b for a, b in zip(gb[f"vyre {n}"], gb[f"C pread {n}"], strict=True)]
            name = f"hot file -> float32 sum, {n} worker{'s' * (n > 1)}: speed over C pread and the same tree"
            bench.add(name, share, "x", target=">= 0.9", reason=REASON)


def _in_c(library: Any, fd: int, elements: int, threads: int) -> Callable[[], float]:
    """The C program with the size of read that suits it best."""
    total = ctypes.c_double()

    def call(size: int) -> float:
        if library.pread_sum(fd, ctypes.c_uint64(elements), ctypes.c_uint64(size), threads, ctypes.byref(total)):
            raise SystemExit("C pread could not read the file")
        return total.value

    trial = interleave({str(size): lambda size=size: call(size) for size in READS}, 3)
    best = int(min(trial, key=lambda size: sorted(trial[size])[1]))
    return lambda: call(best)


if __name__ == "__main__":
    main(__doc__, measure)
